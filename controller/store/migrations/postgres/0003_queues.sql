-- See 0001 for how steps are written.

-- Settings of queues. A queue without a row has weight 1 and no limit. `turns` grows with each claim that depends on a
-- limit, which lets such claims come one after another where there are several writers.
CREATE TABLE queues (
    name        TEXT COLLATE "C" PRIMARY KEY,
    weight      BIGINT NOT NULL,
    concurrency BIGINT,
    turns       BIGINT NOT NULL,
    updated_at  BIGINT NOT NULL
);

-- A job's place is the minute from which it counts as waiting, from 2026 on, above 40 bits of its id; its rank is its
-- place a thousand minutes less its priority later.
ALTER TABLE jobs ADD COLUMN place BIGINT NOT NULL DEFAULT 0;

UPDATE jobs SET place = (CASE
    WHEN created_at < 1767225600000 THEN 0
    WHEN created_at / 60000 - 29453760 > 8387583 THEN 8387583
    ELSE created_at / 60000 - 29453760 END << 40) + id;

UPDATE jobs SET ready_rank = ((1000 - priority) << 40) + place WHERE ready_rank IS NOT NULL;

-- Ranks mean something else than before: a program that writes the former ones would give its jobs a wrong place.
UPDATE compatibility SET oldest = 3;
