-- Changes of many nodes' configurations, a few nodes at a time. The version grows with every step, so that a step that was
-- decided on an older state does not happen.
CREATE TABLE rollouts (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    name            TEXT NOT NULL UNIQUE,
    selector        TEXT NOT NULL,
    patch           TEXT NOT NULL,
    max_unavailable BIGINT NOT NULL,
    pause_after     BIGINT,
    timeout_ms      BIGINT NOT NULL,
    direction       TEXT NOT NULL,
    phase           TEXT NOT NULL,
    reason          TEXT,
    message         TEXT,
    created_at      BIGINT NOT NULL,
    updated_at      BIGINT NOT NULL,
    version         BIGINT NOT NULL
);

-- The nodes of a roll-out, in order of their position. `former` is the configuration that was there first. `open_node` is
-- the node while the roll-out has hold of it: two cannot.
CREATE TABLE rollout_nodes (
    rollout_id     BIGINT NOT NULL REFERENCES rollouts (id) ON DELETE CASCADE,
    node           TEXT NOT NULL REFERENCES nodes (name) ON DELETE CASCADE,
    position       BIGINT NOT NULL,
    state          TEXT NOT NULL,
    config_version BIGINT,
    changed_at     BIGINT,
    former         TEXT,
    message        TEXT,
    open_node      TEXT UNIQUE,
    PRIMARY KEY (rollout_id, node)
);

CREATE INDEX rollout_nodes_node ON rollout_nodes (node);
