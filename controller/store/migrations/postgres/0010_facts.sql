-- See 0001 for how steps are written.

-- What nodes have told of their hosts, the last reports of each. The epoch is the second in which the node's agent was started,
-- and the sequence the report's number in that run: together they tell a report that comes twice.
CREATE TABLE node_facts (
    node         TEXT COLLATE "C" NOT NULL REFERENCES nodes (name) ON DELETE CASCADE,
    epoch        BIGINT NOT NULL,
    sequence     BIGINT NOT NULL,
    collected_at BIGINT NOT NULL,
    received_at  BIGINT NOT NULL,
    facts        TEXT NOT NULL,
    PRIMARY KEY (node, epoch, sequence)
);
