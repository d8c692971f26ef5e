-- Raised by each change of a type or webhook; processes compare it.
CREATE TABLE runtime_generation (
    generation BIGINT NOT NULL
);
INSERT INTO runtime_generation (generation) VALUES (1);

CREATE TABLE resource_types (
    id TEXT NOT NULL PRIMARY KEY,
    version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    keyword TEXT NOT NULL,
    plural TEXT NOT NULL,
    description TEXT NOT NULL,
    owner TEXT NOT NULL,
    access TEXT NOT NULL,
    fields TEXT NOT NULL,
    table_name TEXT NOT NULL,
    serial BIGINT NOT NULL
);
CREATE UNIQUE INDEX resource_types__keyword_key ON resource_types (keyword);
CREATE UNIQUE INDEX resource_types__plural_key ON resource_types (plural);
CREATE INDEX resource_types_created ON resource_types (created_at, id);
