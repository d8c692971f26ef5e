CREATE TABLE quotas (
    id TEXT PRIMARY KEY NOT NULL,
    version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    scope TEXT NOT NULL,
    target_id TEXT NOT NULL,
    resource TEXT NOT NULL,
    most BIGINT NOT NULL
);
CREATE INDEX quotas_created ON quotas (created_at, id);
CREATE INDEX quotas_target ON quotas (target_id);

-- What is used of what a quota limits; rows come with the first use.
CREATE TABLE usages (
    id TEXT PRIMARY KEY NOT NULL,
    version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    scope TEXT NOT NULL,
    target_id TEXT NOT NULL,
    resource TEXT NOT NULL,
    used BIGINT NOT NULL,
    pending BIGINT NOT NULL,
    generation BIGINT NOT NULL
);
CREATE INDEX usages_created ON usages (created_at, id);
CREATE INDEX usages_target ON usages (target_id);
