CREATE TABLE disks (
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
    enabled BOOLEAN NOT NULL,
    pending_deleted BOOLEAN NOT NULL,
    pending_deleted_at BIGINT,
    is_public BOOLEAN NOT NULL,
    public_scope TEXT NOT NULL,
    external_id TEXT,
    source TEXT NOT NULL,
    imported_at BIGINT,
    serial TEXT,
    medium TEXT NOT NULL,
    size BIGINT NOT NULL,
    rack_id TEXT
);
CREATE UNIQUE INDEX disks__name_key ON disks (user_id, name) WHERE deleted = FALSE AND pending_deleted = FALSE;
CREATE UNIQUE INDEX disks__external_id_key ON disks (external_id);
CREATE UNIQUE INDEX disks__serial_key ON disks (serial);
CREATE INDEX disks_owner ON disks (user_id, created_at, id);
CREATE INDEX disks_created ON disks (created_at, id);
CREATE INDEX disks_status ON disks (status, created_at, id);
CREATE INDEX disks_name ON disks (name);
CREATE INDEX disks_project ON disks (project_id);
CREATE INDEX disks_domain ON disks (domain_id);
CREATE INDEX disks_trash ON disks (pending_deleted_at, id) WHERE pending_deleted = TRUE;
CREATE INDEX disks_medium ON disks (medium, created_at, id);
CREATE INDEX disks_rack ON disks (rack_id);
