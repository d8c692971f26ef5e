-- Lanes, subtasks, undoing, unique keys, deadlines and fairness.
ALTER TABLE tasks ADD COLUMN lane TEXT NOT NULL DEFAULT '';
ALTER TABLE tasks ADD COLUMN lane_seq BIGINT NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN lane_tail BIGINT NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN followers BIGINT NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN blocked_on TEXT;
ALTER TABLE tasks ADD COLUMN queue TEXT NOT NULL DEFAULT '';
ALTER TABLE tasks ADD COLUMN unique_key TEXT;
ALTER TABLE tasks ADD COLUMN parent_seq BIGINT NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN open_children BIGINT NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN members BIGINT NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN "undo" TEXT;
ALTER TABLE tasks ADD COLUMN ending TEXT NOT NULL DEFAULT '';
ALTER TABLE tasks ADD COLUMN progress_text TEXT NOT NULL DEFAULT '';
ALTER TABLE tasks ADD COLUMN deadline BIGINT;
UPDATE tasks SET priority = 50, lane = obj_type || ':' || obj_id, queue = '50/' || project_id || '/' || task_name;
CREATE UNIQUE INDEX tasks__unique_key_key ON tasks (unique_key) WHERE unique_key IS NOT NULL;
-- Those that wait behind an object's active task; few. (Not by status: on PostgreSQL
-- a column of an index that changes makes each update dearer.)
CREATE INDEX tasks_blocked ON tasks (blocked_on, lane_seq) WHERE blocked_on IS NOT NULL;
CREATE INDEX tasks_parent ON tasks (parent_task_id, id) WHERE parent_task_id IS NOT NULL;

-- What is due, by queue (priority, project, name); and what will be, by time.
DROP TRIGGER tasks_ready;
DROP TABLE task_ready;
CREATE TABLE task_ready (
    task_id TEXT NOT NULL PRIMARY KEY,
    queue TEXT NOT NULL,
    due BOOLEAN NOT NULL,
    run_at BIGINT NOT NULL
) WITHOUT ROWID;
CREATE INDEX task_ready_due ON task_ready (due, queue, run_at, task_id);
CREATE INDEX task_ready_timer ON task_ready (due, run_at);
INSERT INTO task_ready (task_id, queue, due, run_at)
    SELECT id, queue, FALSE, run_at FROM tasks WHERE status = 'queued' OR status = 'waiting';

-- In the statement that makes a task, as PostgreSQL's does by itself.
CREATE TRIGGER tasks_ready AFTER INSERT ON tasks WHEN NEW.status = 'queued' BEGIN
    INSERT INTO task_ready (task_id, queue, due, run_at) VALUES (NEW.id, NEW.queue, TRUE, NEW.run_at);
END;

DROP TABLE workers;
CREATE TABLE workers (
    id TEXT NOT NULL PRIMARY KEY,
    host TEXT NOT NULL,
    pid BIGINT NOT NULL,
    pid_started BIGINT NOT NULL,
    started_at BIGINT NOT NULL,
    beat BIGINT NOT NULL,
    seen_at BIGINT NOT NULL
);

-- What is added to the database's clock so that the engine's time never jumps.
CREATE TABLE task_clock (
    id BIGINT NOT NULL PRIMARY KEY,
    offset_us BIGINT NOT NULL
);
INSERT INTO task_clock (id, offset_us) VALUES (1, 0);
