DROP VIEW events;
DROP TRIGGER tasks_told_new;
DROP TRIGGER tasks_told;
DROP TRIGGER ops_log_forget;
CREATE TABLE ops_log_new (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at BIGINT NOT NULL,
    obj_type TEXT NOT NULL,
    obj_id TEXT NOT NULL,
    obj_name TEXT NOT NULL,
    obj_version BIGINT NOT NULL,
    action TEXT NOT NULL,
    owner_domain_id TEXT NOT NULL,
    owner_project_id TEXT NOT NULL,
    owner_user_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    user_name TEXT NOT NULL,
    project_id TEXT NOT NULL,
    request_id TEXT NOT NULL,
    notes TEXT NOT NULL,
    id TEXT NOT NULL DEFAULT '',
    domain_id TEXT NOT NULL DEFAULT '',
    client_ip TEXT NOT NULL DEFAULT '',
    task_id TEXT NOT NULL DEFAULT ''
);
INSERT INTO ops_log_new SELECT * FROM ops_log;
DROP TABLE ops_log;
ALTER TABLE ops_log_new RENAME TO ops_log;
CREATE INDEX ops_log_obj ON ops_log (obj_id, at);
CREATE UNIQUE INDEX ops_log_id ON ops_log (id);
CREATE INDEX ops_log_at ON ops_log (at);
CREATE INDEX ops_log_user ON ops_log (user_id, at);
CREATE INDEX ops_log_owner ON ops_log ((CASE WHEN owner_user_id <> user_id THEN owner_user_id END), at);
CREATE INDEX ops_log_tasks ON ops_log (at) WHERE obj_type = 'task';
CREATE TRIGGER ops_log_forget AFTER INSERT ON ops_log WHEN NEW.action = 'delete' BEGIN
    DELETE FROM metadata WHERE obj_type = NEW.obj_type AND obj_id = NEW.obj_id;
END;
CREATE TRIGGER tasks_told_new AFTER INSERT ON tasks WHEN EXISTS (SELECT 1 FROM task_watch WHERE watched = TRUE) BEGIN
    INSERT INTO ops_log (at, obj_type, obj_id, obj_name, obj_version, action, owner_domain_id, owner_project_id,
        owner_user_id, user_id, user_name, project_id, domain_id, request_id, task_id, id, notes)
    VALUES (CAST(unixepoch('subsec') * 1000000 AS INTEGER), 'task', NEW.id, '', NEW.version, 'create', NEW.domain_id, NEW.project_id,
        NEW.user_id, '', '', '', '', '', NEW.id, 'task-' || NEW.id || '-' || NEW.version, '{}');
END;
CREATE TRIGGER tasks_told AFTER UPDATE ON tasks WHEN NEW.version <> OLD.version AND EXISTS (SELECT 1 FROM task_watch WHERE watched = TRUE) BEGIN
    INSERT INTO ops_log (at, obj_type, obj_id, obj_name, obj_version, action, owner_domain_id, owner_project_id,
        owner_user_id, user_id, user_name, project_id, domain_id, request_id, task_id, id, notes)
    VALUES (CAST(unixepoch('subsec') * 1000000 AS INTEGER), 'task', NEW.id, '', NEW.version, NEW.status, NEW.domain_id, NEW.project_id,
        NEW.user_id, '', '', '', '', '', NEW.id, 'task-' || NEW.id || '-' || NEW.version, '{}');
END;
CREATE VIEW events AS
    SELECT id, obj_version AS version, at AS created_at, at AS updated_at, obj_type, obj_id, obj_name,
        obj_version, action, owner_domain_id, owner_project_id, owner_user_id, user_id, user_name,
        domain_id, project_id, request_id, client_ip, task_id, notes AS changes,
        CASE WHEN owner_user_id <> user_id THEN owner_user_id END AS other_owner
    FROM ops_log WHERE obj_type <> 'task';
