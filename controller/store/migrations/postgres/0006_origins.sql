-- See 0001 for how steps are written.

-- Which objects of other systems the store holds something for. A row outlives what it speaks of, so that an object whose
-- job has been deleted is not taken for a new one; it goes when the object itself is known to be gone. A released subject
-- belongs to the store alone, until its object is seen again.
CREATE TABLE origins (
    cluster  TEXT COLLATE "C" NOT NULL,
    object   TEXT COLLATE "C" NOT NULL,
    kind     TEXT COLLATE "C" NOT NULL,
    subject  TEXT COLLATE "C" NOT NULL,
    released BIGINT NOT NULL,
    PRIMARY KEY (cluster, object)
);

CREATE UNIQUE INDEX origins_subject ON origins (subject);
