DROP TABLE task_clock;
DROP TABLE workers;
CREATE TABLE workers (
    id TEXT NOT NULL PRIMARY KEY,
    host TEXT NOT NULL,
    pid BIGINT NOT NULL,
    pid_started BIGINT NOT NULL,
    started_at BIGINT NOT NULL,
    until BIGINT NOT NULL
);
DROP TRIGGER tasks_ready;
DROP TABLE task_ready;
CREATE TABLE task_ready (
    task_id TEXT NOT NULL PRIMARY KEY,
    task_name TEXT NOT NULL,
    priority BIGINT NOT NULL,
    run_at BIGINT NOT NULL
);
CREATE INDEX task_ready_due ON task_ready (run_at, task_id, task_name);
INSERT INTO task_ready (task_id, task_name, priority, run_at)
    SELECT id, task_name, 0, run_at FROM tasks WHERE status = 'queued' OR status = 'waiting' OR status = 'blocked';
CREATE TRIGGER tasks_ready AFTER INSERT ON tasks BEGIN
    INSERT INTO task_ready (task_id, task_name, priority, run_at)
    VALUES (NEW.id, NEW.task_name, NEW.priority, NEW.run_at);
END;
DROP INDEX tasks_parent;
DROP INDEX tasks_blocked;
DROP INDEX tasks__unique_key_key;
UPDATE tasks SET status = 'queued', active_key = id WHERE status = 'blocked';
UPDATE tasks SET priority = 0;
ALTER TABLE tasks DROP COLUMN deadline;
ALTER TABLE tasks DROP COLUMN progress_text;
ALTER TABLE tasks DROP COLUMN ending;
ALTER TABLE tasks DROP COLUMN "undo";
ALTER TABLE tasks DROP COLUMN members;
ALTER TABLE tasks DROP COLUMN open_children;
ALTER TABLE tasks DROP COLUMN parent_seq;
ALTER TABLE tasks DROP COLUMN unique_key;
ALTER TABLE tasks DROP COLUMN queue;
ALTER TABLE tasks DROP COLUMN blocked_on;
ALTER TABLE tasks DROP COLUMN followers;
ALTER TABLE tasks DROP COLUMN lane_tail;
ALTER TABLE tasks DROP COLUMN lane_seq;
ALTER TABLE tasks DROP COLUMN lane;
