-- See 0001 for how steps are written.

-- What operators have asked of nodes by a command, apart from what is declared for them: to get no new jobs, or to be
-- emptied. Both last until they are lifted.
CREATE TABLE node_holds (
    node        TEXT COLLATE "C" PRIMARY KEY REFERENCES nodes (name) ON DELETE CASCADE,
    since       BIGINT NOT NULL,
    drain       BIGINT NOT NULL,
    deadline_at BIGINT,
    overdue     TEXT COLLATE "C" NOT NULL,
    stopping_at BIGINT,
    drained_at  BIGINT
);

-- What happened to a node, only the last of it. The number grows with each entry.
CREATE TABLE node_history (
    node    TEXT COLLATE "C" NOT NULL REFERENCES nodes (name) ON DELETE CASCADE,
    number  BIGINT NOT NULL,
    at      BIGINT NOT NULL,
    kind    TEXT COLLATE "C" NOT NULL,
    message TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (node, number)
);
