DROP TABLE revocations;
DROP TABLE identity_secrets;
DROP TABLE users;
DROP TABLE projects;
DROP TABLE domains;
