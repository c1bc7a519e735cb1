-- See 0001 for how steps are written.

-- Agents whose node was deregistered, by their keys: the tokens that they hold already do not let them in again. A key is
-- forgotten when it joins with a newer token, or when every token is newer.
CREATE TABLE departed_nodes (
    public_key  BLOB PRIMARY KEY,
    name        TEXT NOT NULL,
    departed_at BIGINT NOT NULL
) WITHOUT ROWID;
