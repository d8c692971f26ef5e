-- What the log is called: one row, made up at its first use, so that watchers'
-- positions in the log of another database are told from those in this one.
CREATE TABLE feed_log (
    one BIGINT NOT NULL,
    name TEXT NOT NULL,
    PRIMARY KEY (one)
);
