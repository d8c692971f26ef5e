DROP TABLE spaces;
DROP TABLE specs;
DROP TABLE templates;
DROP TABLE kinds;
