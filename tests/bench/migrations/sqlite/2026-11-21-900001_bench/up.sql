CREATE TABLE servers (
    id TEXT PRIMARY KEY NOT NULL,
    version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    status TEXT NOT NULL,
    owner TEXT NOT NULL,
    cpu BIGINT NOT NULL
);
-- The yardstick's index and no other: both pay for the same on a write.
CREATE INDEX servers_status ON servers (status, created_at, id);
