DROP TABLE usages;
DROP TABLE quotas;
