-- Tags. A value may be longer than an index entry may be, so its head is
-- indexed: it finds few rows, whose whole values are compared.
CREATE TABLE metadata (
    obj_type TEXT NOT NULL,
    obj_id TEXT NOT NULL,
    key TEXT NOT NULL,
    head TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (obj_type, obj_id, key)
);
CREATE INDEX metadata_tag ON metadata (obj_type, key, head);

-- With whom rows are shared: `project:<id>`, `domain:<id>` or `system`.
CREATE TABLE shared_resources (
    obj_type TEXT NOT NULL,
    obj_id TEXT NOT NULL,
    target TEXT NOT NULL,
    PRIMARY KEY (obj_type, obj_id, target)
);
CREATE INDEX shared_resources_target ON shared_resources (obj_type, target, obj_id);

-- A row's tags go with it, in the statement that records its
-- deletion: a delete takes no statement more for it. Shares stay: those it
-- was shared with are to hear that it is gone, and no id comes twice.
CREATE FUNCTION ops_log_forget() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM metadata WHERE obj_type = NEW.obj_type AND obj_id = NEW.obj_id;
    RETURN NULL;
END $$;
CREATE TRIGGER ops_log_forget AFTER INSERT ON ops_log
    FOR EACH ROW WHEN (NEW.action = 'delete') EXECUTE FUNCTION ops_log_forget();
