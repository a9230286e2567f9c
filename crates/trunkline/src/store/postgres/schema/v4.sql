-- The first results of messages that were produced under a cache.
CREATE TABLE cache_value (
    scope text COLLATE "C" NOT NULL, hash bytea NOT NULL, env text NOT NULL, event text NOT NULL, id uuid NOT NULL, owner text NOT NULL,
    until bigint NOT NULL, expiry bigint NOT NULL, sent_at bigint, expires_at bigint NOT NULL,
    taken_over boolean NOT NULL,      -- an earlier owner may have sent it
    PRIMARY KEY (scope, hash)
) WITH (fillfactor = 80);
CREATE INDEX cache_value_expires ON cache_value (expires_at);
CREATE INDEX cache_value_age ON cache_value (scope, sent_at);

-- `due_at` is when a schedule may be claimed by the wall clock (its due time, or when a failed firing is tried again);
-- `until` ends a claim by the store's clock.
CREATE TABLE schedule (
    id uuid PRIMARY KEY, product text NOT NULL, env text NOT NULL, event text NOT NULL, state text NOT NULL,
    timing text NOT NULL, format bigint NOT NULL, key bytea, headers bytea NOT NULL, payload bytea NOT NULL, cache text,
    next_at bigint, retry_at bigint, due_at bigint, firing_at bigint, owner text, until bigint NOT NULL,
    fired bigint NOT NULL, missed bigint NOT NULL, failures bigint NOT NULL, error text, last_at bigint, last_id uuid,
    created_at bigint NOT NULL, updated_at bigint NOT NULL
) WITH (fillfactor = 80);
CREATE INDEX schedule_due ON schedule (due_at) WHERE state = 'active';
CREATE INDEX schedule_product ON schedule (product, env, created_at);
CREATE INDEX schedule_over ON schedule (updated_at) WHERE state IN ('done', 'cancelled');
