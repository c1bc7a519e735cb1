-- See 0001 for how steps are written.

-- Values of Secrets. What is sealed is opened by a key that is wrapped by another, which is not in the database: `key_id` names
-- it. A Secret is there while it has a value.
CREATE TABLE secret_values (
    namespace   TEXT NOT NULL,
    name        TEXT NOT NULL,
    entry       TEXT NOT NULL,
    key_id      TEXT NOT NULL,
    wrapped_key BLOB NOT NULL,
    sealed      BLOB NOT NULL,
    size        BIGINT NOT NULL,
    created_at  BIGINT NOT NULL,
    updated_at  BIGINT NOT NULL,
    version     BIGINT NOT NULL,
    PRIMARY KEY (namespace, name, entry)
);

CREATE INDEX secret_values_key ON secret_values (key_id);
