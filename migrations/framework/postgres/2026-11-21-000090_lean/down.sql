ALTER TABLE tasks SET (fillfactor = 70);
DROP INDEX ops_log_task_ids;
DROP INDEX ops_log_owner;
CREATE UNIQUE INDEX ops_log_id ON ops_log (id);
CREATE INDEX ops_log_owner ON ops_log ((CASE WHEN owner_user_id <> user_id THEN owner_user_id END), at);
ALTER TABLE ops_log DROP CONSTRAINT ops_log_pkey;
ALTER TABLE ops_log ADD PRIMARY KEY (seq);
CREATE INDEX ops_log_feed ON ops_log (xid, seq);
CREATE OR REPLACE FUNCTION tasks_told() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM task_watch WHERE watched) THEN
        INSERT INTO ops_log (at, obj_type, obj_id, obj_name, obj_version, action, owner_domain_id, owner_project_id,
        owner_user_id, user_id, user_name, project_id, domain_id, request_id, task_id, id, notes)
        SELECT (extract(epoch from clock_timestamp()) * 1000000)::bigint, 'task', t.id, '', t.version, CASE WHEN TG_OP = 'INSERT' THEN 'create' ELSE t.status END, t.domain_id, t.project_id,
        t.user_id, '', '', '', '', '', t.id, 'task-' || t.id || '-' || t.version, '{}'
        FROM changed AS t ON CONFLICT (id) DO NOTHING;
    END IF;
    RETURN NULL;
END $$;
