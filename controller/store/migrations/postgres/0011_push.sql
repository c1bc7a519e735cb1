-- See 0001 for how steps are written.

-- What the controller needs to call nodes that are given their jobs: which token of its own counts since which version of the
-- node's configuration, and how the last calls went. The token itself is in no table: it follows from a key and these numbers.
CREATE TABLE node_push (
    node               TEXT COLLATE "C" PRIMARY KEY REFERENCES nodes (name) ON DELETE CASCADE,
    serial             BIGINT NOT NULL,
    since_version      BIGINT NOT NULL,
    issued_at          BIGINT NOT NULL,
    former_issued_at   BIGINT,
    delivered_at       BIGINT,
    error              TEXT COLLATE "C",
    error_since        BIGINT
);
