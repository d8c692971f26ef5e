CREATE TABLE webhooks (
    id TEXT NOT NULL PRIMARY KEY,
    version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    url TEXT NOT NULL,
    resource TEXT NOT NULL,
    events TEXT NOT NULL,
    secret TEXT NOT NULL,
    timeout BIGINT NOT NULL,
    failure_policy TEXT NOT NULL,
    enabled BOOLEAN NOT NULL
);
CREATE UNIQUE INDEX webhooks__name_key ON webhooks (name);
CREATE INDEX webhooks_created ON webhooks (created_at, id);

CREATE TABLE webhook_deliveries (
    id TEXT NOT NULL PRIMARY KEY,
    version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    webhook_id TEXT NOT NULL,
    event TEXT NOT NULL,
    obj_type TEXT NOT NULL,
    obj_id TEXT NOT NULL,
    payload TEXT NOT NULL,
    ended BOOLEAN NOT NULL
);
CREATE INDEX webhook_deliveries_webhook ON webhook_deliveries (webhook_id, id);
CREATE INDEX webhook_deliveries_obj ON webhook_deliveries (obj_id, webhook_id, id);
CREATE INDEX webhook_deliveries_created ON webhook_deliveries (created_at, id);
