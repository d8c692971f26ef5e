CREATE TABLE cache_generation (
    generation BIGINT NOT NULL
);
INSERT INTO cache_generation (generation) VALUES (1);

CREATE TABLE ops_log (
    seq BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at BIGINT NOT NULL,
    obj_type TEXT NOT NULL,
    obj_id TEXT NOT NULL,
    obj_name TEXT NOT NULL,
    obj_version BIGINT NOT NULL,
    action TEXT NOT NULL,
    owner_domain_id TEXT NOT NULL,
    owner_project_id TEXT NOT NULL,
    owner_user_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    user_name TEXT NOT NULL,
    project_id TEXT NOT NULL,
    request_id TEXT NOT NULL,
    notes TEXT NOT NULL
);
CREATE INDEX ops_log_obj ON ops_log (obj_type, obj_id, seq);
