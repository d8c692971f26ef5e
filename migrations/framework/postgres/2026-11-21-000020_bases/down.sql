DROP TRIGGER ops_log_forget ON ops_log;
DROP FUNCTION ops_log_forget();
DROP TABLE shared_resources;
DROP TABLE metadata;
