CREATE TABLE kinds (
    id TEXT PRIMARY KEY NOT NULL,
    version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL
);
CREATE UNIQUE INDEX kinds__name_key ON kinds (name);
CREATE INDEX kinds_created ON kinds (created_at, id);

CREATE TABLE templates (
    id TEXT PRIMARY KEY NOT NULL,
    version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    kind_id TEXT NOT NULL,
    driver TEXT NOT NULL,
    command TEXT NOT NULL,
    env TEXT NOT NULL,
    keep_prefix BOOLEAN NOT NULL,
    tags TEXT NOT NULL,
    icon TEXT NOT NULL,
    enabled BOOLEAN NOT NULL
);
CREATE UNIQUE INDEX templates__name_key ON templates (name);
CREATE INDEX templates_created ON templates (created_at, id);

CREATE TABLE specs (
    id TEXT PRIMARY KEY NOT NULL,
    version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    cpu TEXT NOT NULL,
    memory TEXT NOT NULL,
    storage TEXT NOT NULL,
    enabled BOOLEAN NOT NULL
);
CREATE UNIQUE INDEX specs__name_key ON specs (name);
CREATE INDEX specs_created ON specs (created_at, id);

CREATE TABLE spaces (
    id TEXT PRIMARY KEY NOT NULL,
    version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    status TEXT NOT NULL,
    status_reason TEXT NOT NULL,
    domain_id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    deleted BOOLEAN NOT NULL,
    deleted_at BIGINT,
    template_id TEXT NOT NULL,
    spec_id TEXT NOT NULL,
    sid TEXT NOT NULL,
    node TEXT,
    started_at BIGINT,
    stopped_at BIGINT,
    exit_code BIGINT,
    exit_signal BIGINT,
    last_lines TEXT NOT NULL
);
-- A name is free again once its space is deleted.
CREATE UNIQUE INDEX spaces__name_key ON spaces (user_id, name) WHERE deleted = FALSE;
CREATE UNIQUE INDEX spaces__sid_key ON spaces (sid);
CREATE INDEX spaces_owner ON spaces (user_id, created_at, id) WHERE deleted = FALSE;
CREATE INDEX spaces_status ON spaces (status, created_at, id) WHERE deleted = FALSE;
CREATE INDEX spaces_created ON spaces (created_at, id) WHERE deleted = FALSE;
CREATE INDEX spaces_project ON spaces (project_id) WHERE deleted = FALSE;
CREATE INDEX spaces_domain ON spaces (domain_id) WHERE deleted = FALSE;
CREATE INDEX spaces_template ON spaces (template_id) WHERE deleted = FALSE;
CREATE INDEX spaces_spec ON spaces (spec_id) WHERE deleted = FALSE;
CREATE INDEX spaces_name ON spaces (name) WHERE deleted = FALSE;
