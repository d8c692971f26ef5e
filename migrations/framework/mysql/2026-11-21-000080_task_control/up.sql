-- What administrators say of kinds of tasks; a row for each that a worker has known.
CREATE TABLE task_kinds (
    id TEXT NOT NULL PRIMARY KEY,
    version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    name TEXT NOT NULL,
    paused BOOLEAN NOT NULL,
    priority BIGINT NOT NULL,
    concurrency BIGINT,
    per_second BIGINT
);
CREATE INDEX task_kinds_created ON task_kinds (created_at, id);

-- Tasks that start by themselves.
CREATE TABLE schedules (
    id TEXT NOT NULL PRIMARY KEY,
    version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    enabled BOOLEAN NOT NULL,
    task_name TEXT NOT NULL,
    obj_type TEXT NOT NULL,
    obj_id TEXT NOT NULL,
    params TEXT NOT NULL,
    cron TEXT NOT NULL,
    time_zone TEXT NOT NULL,
    overlap TEXT NOT NULL,
    next_at BIGINT,
    last_at BIGINT,
    last_task_id TEXT,
    last_outcome TEXT NOT NULL
);
CREATE UNIQUE INDEX schedules__name_key ON schedules (name);
CREATE INDEX schedules_created ON schedules (created_at, id);
CREATE INDEX schedules_obj ON schedules (obj_id);
CREATE INDEX schedules_next ON schedules (next_at) WHERE next_at IS NOT NULL;

-- What was done to a task by hand, or by who looks after stuck ones.
CREATE TABLE task_notes (
    id TEXT NOT NULL PRIMARY KEY,
    task_id TEXT NOT NULL,
    at BIGINT NOT NULL,
    what TEXT NOT NULL,
    user_name TEXT NOT NULL
);
CREATE INDEX task_notes_task ON task_notes (task_id, id);

-- Tasks change too often for a record of each change: records are made only
-- while somebody watches tasks, by the triggers below. Records after the
-- position are all there, once it is ready.
CREATE TABLE task_watch (
    id BIGINT NOT NULL PRIMARY KEY,
    watched BOOLEAN NOT NULL,
    ready BOOLEAN NOT NULL,
    until BIGINT NOT NULL,
    xid BIGINT NOT NULL,
    seq BIGINT NOT NULL
);
INSERT INTO task_watch (id, watched, ready, until, xid, seq) VALUES (1, FALSE, FALSE, 0, 0, 0);
CREATE TRIGGER tasks_told_new AFTER INSERT ON tasks WHEN EXISTS (SELECT 1 FROM task_watch WHERE watched = TRUE) BEGIN
    INSERT INTO ops_log (at, obj_type, obj_id, obj_name, obj_version, action, owner_domain_id, owner_project_id,
        owner_user_id, user_id, user_name, project_id, domain_id, request_id, task_id, id, notes)
    VALUES (TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)), 'task', NEW.id, '', NEW.version, 'create', NEW.domain_id, NEW.project_id,
        NEW.user_id, '', '', '', '', '', NEW.id, CONCAT('task-', NEW.id, '-', NEW.version), '{}');
END;
CREATE TRIGGER tasks_told AFTER UPDATE ON tasks WHEN NEW.version <> OLD.version AND EXISTS (SELECT 1 FROM task_watch WHERE watched = TRUE) BEGIN
    INSERT INTO ops_log (at, obj_type, obj_id, obj_name, obj_version, action, owner_domain_id, owner_project_id,
        owner_user_id, user_id, user_name, project_id, domain_id, request_id, task_id, id, notes)
    VALUES (TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)), 'task', NEW.id, '', NEW.version, NEW.status, NEW.domain_id, NEW.project_id,
        NEW.user_id, '', '', '', '', '', NEW.id, CONCAT('task-', NEW.id, '-', NEW.version), '{}');
END;

-- They are the feed's, not the audit's.
CREATE OR REPLACE VIEW events AS
    SELECT id, obj_version AS version, at AS created_at, at AS updated_at, obj_type, obj_id, obj_name,
        obj_version, action, owner_domain_id, owner_project_id, owner_user_id, user_id, user_name,
        domain_id, project_id, request_id, client_ip, task_id, notes AS changes,
        other_owner
    FROM ops_log WHERE obj_type <> 'task';
