DROP TRIGGER tasks_told;
DROP TRIGGER tasks_told_new;
DROP INDEX ops_log_tasks;
DELETE FROM ops_log WHERE obj_type = 'task';
DROP VIEW events;
CREATE VIEW events AS
    SELECT id, obj_version AS version, at AS created_at, at AS updated_at, obj_type, obj_id, obj_name,
        obj_version, action, owner_domain_id, owner_project_id, owner_user_id, user_id, user_name,
        domain_id, project_id, request_id, client_ip, task_id, notes AS changes,
        CASE WHEN owner_user_id <> user_id THEN owner_user_id END AS other_owner
    FROM ops_log;
DROP TABLE task_watch;
DROP TABLE task_notes;
DROP TABLE schedules;
DROP TABLE task_kinds;
