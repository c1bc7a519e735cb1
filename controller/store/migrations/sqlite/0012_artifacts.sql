-- See 0001 for how steps are written.

-- What attempts have left: a row for each entry of a manifest, also for what was refused. The body is in the object store once
-- it came; one that will never come is lost, for a reason.
CREATE TABLE artifacts (
    job_id       BIGINT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    epoch        BIGINT NOT NULL,
    number       BIGINT NOT NULL,
    name         TEXT NOT NULL,
    kind         TEXT NOT NULL,
    size         BIGINT NOT NULL,
    sha256       TEXT,
    refused      TEXT,
    collected_at BIGINT NOT NULL,
    received_at  BIGINT NOT NULL,
    superseded   BIGINT NOT NULL,
    object_key   TEXT,
    stored_at    BIGINT,
    lost         TEXT,
    PRIMARY KEY (job_id, epoch, number)
) WITHOUT ROWID;

CREATE UNIQUE INDEX artifacts_name ON artifacts (job_id, epoch, name) WHERE refused IS NULL;
CREATE INDEX artifacts_superseded ON artifacts (received_at) WHERE superseded = 1;
