DROP TABLE ops_log;
DROP TABLE cache_generation;
