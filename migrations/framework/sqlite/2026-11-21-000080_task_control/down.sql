DROP TABLE task_notes;
DROP TABLE schedules;
DROP TABLE task_kinds;
