-- Which objects of other systems the store holds something for. A row outlives what it speaks of, so that an object whose
-- job has been deleted is not taken for a new one; it goes when the object itself is known to be gone. A released subject
-- belongs to the store alone, until its object is seen again.
CREATE TABLE origins (
    cluster  TEXT NOT NULL,
    object   TEXT NOT NULL,
    kind     TEXT NOT NULL,
    subject  TEXT NOT NULL,
    released BIGINT NOT NULL,
    PRIMARY KEY (cluster, object)
) WITHOUT ROWID;

CREATE UNIQUE INDEX origins_subject ON origins (subject);
