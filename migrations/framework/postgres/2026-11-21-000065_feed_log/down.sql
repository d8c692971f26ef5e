DROP TABLE feed_log;
