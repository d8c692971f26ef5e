-- What the audit and the change feed need of the ops log.
ALTER TABLE ops_log ADD COLUMN id TEXT NOT NULL DEFAULT '';
ALTER TABLE ops_log ADD COLUMN domain_id TEXT NOT NULL DEFAULT '';
ALTER TABLE ops_log ADD COLUMN client_ip TEXT NOT NULL DEFAULT '';
ALTER TABLE ops_log ADD COLUMN task_id TEXT NOT NULL DEFAULT '';
UPDATE ops_log SET id = LPAD(seq, 20, '0');
UPDATE ops_log SET task_id = request_id WHERE request_id IN (SELECT id FROM tasks);
DROP INDEX ops_log_obj;
CREATE INDEX ops_log_obj ON ops_log (obj_id, at);
CREATE UNIQUE INDEX ops_log_id ON ops_log (id);
CREATE INDEX ops_log_at ON ops_log (at);
CREATE INDEX ops_log_user ON ops_log (user_id, at);
-- Most records are of what is one's own: those stand together here, as NULL,
-- and cost next to nothing.
ALTER TABLE ops_log ADD COLUMN other_owner VARCHAR(255)
    GENERATED ALWAYS AS (CASE WHEN owner_user_id <> user_id THEN owner_user_id END) STORED;
CREATE INDEX ops_log_owner ON ops_log (other_owner, at);

-- Up to where records were removed: who stood before it has missed some.
CREATE TABLE feed_horizon (
    xid BIGINT NOT NULL,
    seq BIGINT NOT NULL
);
INSERT INTO feed_horizon (xid, seq) VALUES (0, 0);

-- The log as a resource type.
CREATE VIEW events AS
    SELECT id, obj_version AS version, at AS created_at, at AS updated_at, obj_type, obj_id, obj_name,
        obj_version, action, owner_domain_id, owner_project_id, owner_user_id, user_id, user_name,
        domain_id, project_id, request_id, client_ip, task_id, notes AS changes,
        other_owner
    FROM ops_log;
