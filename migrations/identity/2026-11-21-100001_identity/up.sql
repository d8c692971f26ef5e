CREATE TABLE domains (
    id TEXT PRIMARY KEY NOT NULL,
    version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    enabled BOOLEAN NOT NULL
);
CREATE UNIQUE INDEX domains__name_key ON domains (name);
CREATE INDEX domains_created ON domains (created_at, id);

CREATE TABLE projects (
    id TEXT PRIMARY KEY NOT NULL,
    version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    domain_id TEXT NOT NULL,
    enabled BOOLEAN NOT NULL
);
CREATE UNIQUE INDEX projects__name_key ON projects (domain_id, name);
CREATE INDEX projects_name ON projects (name);
CREATE INDEX projects_created ON projects (created_at, id);

CREATE TABLE users (
    id TEXT PRIMARY KEY NOT NULL,
    version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    domain_id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    role TEXT NOT NULL,
    enabled BOOLEAN NOT NULL,
    email TEXT NOT NULL,
    password_hash TEXT NOT NULL
);
CREATE UNIQUE INDEX users__name_key ON users (domain_id, name);
CREATE INDEX users_name ON users (name);
CREATE INDEX users_created ON users (created_at, id);
CREATE INDEX users_project ON users (project_id);

CREATE TABLE identity_secrets (
    name TEXT PRIMARY KEY NOT NULL,
    value TEXT NOT NULL
);

-- Tokens are checked without the database; what is revoked is read from here
-- at start and now and then.
CREATE TABLE revocations (
    id TEXT PRIMARY KEY NOT NULL,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    issued_before BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX revocations_created ON revocations (created_at);
CREATE INDEX revocations_expires ON revocations (expires_at);
