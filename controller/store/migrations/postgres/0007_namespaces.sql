-- See 0001 for how steps are written. This one builds its index while writers wait, a second or two for a million jobs,
-- because a restore takes every step in one transaction.

-- Only lists by namespace say `id > 0`, which every id is. A planner that takes the table for a small one would look names up
-- by namespace as well, and read all of it each time.
DROP INDEX jobs_namespace;
CREATE INDEX jobs_namespace ON jobs (namespace, id) WHERE id > 0;
