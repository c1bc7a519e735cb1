-- Room that is kept on a node for a job that others have passed over for a while: one job a node, one node a job. A row
-- counts only while its job is ready to be claimed.
CREATE TABLE reservations (
    node   TEXT PRIMARY KEY REFERENCES nodes (name) ON DELETE CASCADE,
    job_id BIGINT NOT NULL UNIQUE REFERENCES jobs (id) ON DELETE CASCADE,
    since  BIGINT NOT NULL,
    moves  BIGINT NOT NULL
);
