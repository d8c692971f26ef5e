-- The ops log with no more indexes than its readers need: each is paid for by
-- every write. A record's id carries its time, and is found by that.
DROP INDEX ops_log_id;
DROP INDEX ops_log_owner;
UPDATE ops_log SET id = lpad(to_hex(at / 1000 >> 16), 8, '0') || '-' || lpad(to_hex(at / 1000 & 65535), 4, '0') || '-7'
    || CASE WHEN id LIKE '________-____-____-____-____________' THEN substr(id, 16) ELSE '000-8000-' || lpad(to_hex(seq), 12, '0') END
    WHERE obj_type <> 'task';
-- What somebody else did to what is one's own: few records.
CREATE INDEX ops_log_owner ON ops_log ((CASE WHEN owner_user_id <> user_id THEN owner_user_id END), at)
    WHERE (CASE WHEN owner_user_id <> user_id THEN owner_user_id END) IS NOT NULL;
CREATE UNIQUE INDEX ops_log_task_ids ON ops_log (id) WHERE obj_type = 'task';
-- The feed's order is the key; numbers alone are asked for by nobody but the keeper of tasks' records.
ALTER TABLE ops_log DROP CONSTRAINT ops_log_pkey;
DROP INDEX ops_log_feed;
ALTER TABLE ops_log ADD PRIMARY KEY (xid, seq);
-- A claim finds room beside each task: then it touches no index.
ALTER TABLE tasks SET (fillfactor = 50);
CREATE OR REPLACE FUNCTION tasks_told() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM task_watch WHERE watched) THEN
        INSERT INTO ops_log (at, obj_type, obj_id, obj_name, obj_version, action, owner_domain_id, owner_project_id,
        owner_user_id, user_id, user_name, project_id, domain_id, request_id, task_id, id, notes)
        SELECT (extract(epoch from clock_timestamp()) * 1000000)::bigint, 'task', t.id, '', t.version, CASE WHEN TG_OP = 'INSERT' THEN 'create' ELSE t.status END, t.domain_id, t.project_id,
        t.user_id, '', '', '', '', '', t.id, 'task-' || t.id || '-' || t.version, '{}'
        FROM changed AS t ON CONFLICT (id) WHERE obj_type = 'task' DO NOTHING;
    END IF;
    RETURN NULL;
END $$;
