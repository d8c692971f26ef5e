DROP TRIGGER ops_log_forget;
DROP TABLE shared_resources;
DROP TABLE metadata;
