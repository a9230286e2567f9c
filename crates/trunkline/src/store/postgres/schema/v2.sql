-- Secrets and access keys change under the catalogue's version.
CREATE TABLE secret (
    id text COLLATE "C" PRIMARY KEY, product text, key text NOT NULL, envs text[] NOT NULL, sealed text NOT NULL,
    created_at bigint NOT NULL, updated_at bigint NOT NULL
);

CREATE TABLE access_key (
    id text COLLATE "C" PRIMARY KEY, role text NOT NULL, name text, hash bytea NOT NULL,
    created_at bigint NOT NULL, expires_at bigint, revoked_at bigint
);

-- `audit_head` notes where the chain ends, so that rows that are taken off its end are missed; who appends holds its row.
-- What was written stays as it is.
CREATE TABLE audit (
    seq bigint PRIMARY KEY, at bigint NOT NULL, actor text NOT NULL, call text NOT NULL, target text NOT NULL,
    outcome text NOT NULL, previous bytea NOT NULL, hash bytea NOT NULL
);
CREATE TABLE audit_head (one bigint PRIMARY KEY CHECK (one = 1), seq bigint NOT NULL, hash bytea NOT NULL);
INSERT INTO audit_head VALUES (1, 0, decode(repeat('00', 32), 'hex'));
CREATE FUNCTION audit_stays() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit is only added to';
END $$;
CREATE TRIGGER audit_stays BEFORE UPDATE OR DELETE OR TRUNCATE ON audit FOR EACH STATEMENT EXECUTE FUNCTION audit_stays();
