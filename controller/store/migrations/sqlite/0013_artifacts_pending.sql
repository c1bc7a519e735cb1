-- See 0001 for how steps are written.

-- Artifacts whose bodies are still to come, for when their node goes.
CREATE INDEX artifacts_pending ON artifacts (job_id, epoch)
    WHERE object_key IS NULL AND refused IS NULL AND lost IS NULL;
