DROP TABLE workers;
DROP TABLE task_callbacks;
DROP TABLE task_history;
DROP TABLE task_ready;
DROP TABLE tasks;
