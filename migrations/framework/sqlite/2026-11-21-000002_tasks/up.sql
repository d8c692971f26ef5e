CREATE TABLE tasks (
    id TEXT NOT NULL PRIMARY KEY,
    version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    task_name TEXT NOT NULL,
    obj_type TEXT NOT NULL,
    obj_id TEXT NOT NULL,
    obj_name TEXT NOT NULL,
    domain_id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    user_cred TEXT NOT NULL,
    params TEXT NOT NULL,
    priority BIGINT NOT NULL,
    status TEXT NOT NULL,
    stage TEXT NOT NULL,
    progress DOUBLE PRECISION NOT NULL,
    attempt BIGINT NOT NULL,
    epoch BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    secret TEXT NOT NULL,
    retry_stage TEXT NOT NULL,
    data TEXT,
    reason_kind TEXT NOT NULL,
    reason TEXT NOT NULL,
    worker_id TEXT,
    run_at BIGINT NOT NULL,
    started_at BIGINT,
    ended_at BIGINT,
    parent_task_id TEXT,
    cancel_requested BOOLEAN NOT NULL,
    cancelling BOOLEAN NOT NULL,
    active_key TEXT
);
-- One active task per object; also the way to all that are active.
CREATE UNIQUE INDEX tasks__active_key_key ON tasks (active_key) WHERE active_key IS NOT NULL;
CREATE INDEX tasks_created ON tasks (created_at, id);
CREATE INDEX tasks_user ON tasks (user_id, created_at, id);
CREATE INDEX tasks_obj ON tasks (obj_id, created_at, id);
CREATE INDEX tasks_ended ON tasks (ended_at) WHERE ended_at IS NOT NULL;

-- What is due, or will be: small, so that a claim is.
CREATE TABLE task_ready (
    task_id TEXT NOT NULL PRIMARY KEY,
    task_name TEXT NOT NULL,
    priority BIGINT NOT NULL,
    run_at BIGINT NOT NULL
) WITHOUT ROWID;
CREATE INDEX task_ready_due ON task_ready (run_at, task_id, task_name);

-- In the statement that makes a task, as PostgreSQL's does by itself.
CREATE TRIGGER tasks_ready AFTER INSERT ON tasks BEGIN
    INSERT INTO task_ready (task_id, task_name, priority, run_at)
    VALUES (NEW.id, NEW.task_name, NEW.priority, NEW.run_at);
END;

CREATE TABLE task_history (
    task_id TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    stage TEXT NOT NULL,
    attempt BIGINT NOT NULL,
    worker_id TEXT NOT NULL,
    started_at BIGINT,
    ended_at BIGINT NOT NULL,
    outcome TEXT NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (task_id, epoch)
) WITHOUT ROWID;

-- Each callback that was accepted: a token is used once.
CREATE TABLE task_callbacks (
    token TEXT NOT NULL PRIMARY KEY,
    task_id TEXT NOT NULL,
    data TEXT NOT NULL,
    received_at BIGINT NOT NULL
) WITHOUT ROWID;
CREATE INDEX task_callbacks_task ON task_callbacks (task_id);

CREATE TABLE workers (
    id TEXT NOT NULL PRIMARY KEY,
    host TEXT NOT NULL,
    pid BIGINT NOT NULL,
    pid_started BIGINT NOT NULL,
    started_at BIGINT NOT NULL,
    until BIGINT NOT NULL
);
