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
