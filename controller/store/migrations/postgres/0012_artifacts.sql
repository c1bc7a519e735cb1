-- See 0001 for how steps are written.

-- What attempts have left: a row for each entry of a manifest, also for what was refused. The body is in the object store once
-- it came; one that will never come is lost, for a reason.
CREATE TABLE artifacts (
    job_id       BIGINT NOT NULL,
    epoch        BIGINT NOT NULL,
    number       BIGINT NOT NULL,
    name         TEXT COLLATE "C" NOT NULL,
    kind         TEXT COLLATE "C" NOT NULL,
    size         BIGINT NOT NULL,
    sha256       TEXT COLLATE "C",
    refused      TEXT COLLATE "C",
    collected_at BIGINT NOT NULL,
    received_at  BIGINT NOT NULL,
    superseded   BIGINT NOT NULL,
    object_key   TEXT COLLATE "C",
    stored_at    BIGINT,
    lost         TEXT COLLATE "C",
    PRIMARY KEY (job_id, epoch, number)
);

CREATE UNIQUE INDEX artifacts_name ON artifacts (job_id, epoch, name) WHERE refused IS NULL;
CREATE INDEX artifacts_superseded ON artifacts (received_at) WHERE superseded = 1;

-- They go with their job, as its records do.
CREATE OR REPLACE FUNCTION forget_job() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM records WHERE job_id = OLD.id;
    DELETE FROM artifacts WHERE job_id = OLD.id;
    DELETE FROM attempts WHERE job_id = OLD.id;
    DELETE FROM job_inputs WHERE job_id = OLD.id;
    DELETE FROM job_bodies WHERE job_id = OLD.id;
    RETURN NULL;
END;
$$;
