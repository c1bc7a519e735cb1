//! What the databases say differently.
//!
//! Statements are written once, in what SQLite and PostgreSQL share: numbered parameters, `RETURNING`, `ON CONFLICT`,
//! `UPDATE … FROM`, `->>`, `FILTER`, `AS MATERIALIZED`, `BIGINT` milliseconds and flags of 0 and 1. Batches travel as one
//! JSON array that is read by `json_each($n)`; its rows have a column `value`. What is left over is here.

/// Opens a write transaction at once, so that no statement in it can fail for want of the lock.
pub(crate) const BEGIN: &str = "BEGIN IMMEDIATE";

/// Draws `$1` store-wide numbers and yields the last of them. The row is written by every changing transaction; SQLite
/// has one writer anyway.
pub(crate) const DRAW_VERSIONS: &str =
    "UPDATE counters SET value = value + $1 WHERE name = 'resource_version' RETURNING value";

/// A statement that yields the given columns of the given source as one document, for `Conn::packed`. The order of the
/// rows is not kept.
macro_rules! packed {
    ($columns:expr, $source:expr) => {
        concat!("SELECT json_group_array(json_array(", $columns, ")) AS rows FROM ", $source)
    };
}
pub(crate) use packed;

/// The next ready jobs of the lanes in `$1` after rank `$2`, at most `$3` of each lane and `$4` in all.
///
/// The subquery is correlated and limited, which PostgreSQL writes as `CROSS JOIN LATERAL`, with
/// `FOR UPDATE SKIP LOCKED`.
pub(crate) const LANE_HEADS: &str = packed!(
    "lane_id, ready_rank",
    "(SELECT j.lane_id, j.ready_rank
    FROM json_each($1) AS l
    JOIN jobs AS j ON j.lane_id = CAST(l.value AS BIGINT) AND j.ready_rank IS NOT NULL AND j.ready_rank IN (
        SELECT h.ready_rank FROM jobs AS h
        WHERE h.lane_id = CAST(l.value AS BIGINT) AND h.ready_rank IS NOT NULL AND h.ready_rank > $2
        ORDER BY h.ready_rank LIMIT $3)
    ORDER BY j.ready_rank LIMIT $4) AS heads"
);

/// The next ready jobs of all lanes after rank `$1`, at most `$2`.
pub(crate) const READY_HEADS: &str = packed!(
    "lane_id, ready_rank",
    "(SELECT lane_id, ready_rank FROM jobs
    WHERE ready_rank IS NOT NULL AND ready_rank > $1
    ORDER BY ready_rank LIMIT $2) AS heads"
);

/// All lanes that have a ready job: one step down the index per lane.
pub(crate) const LANES_IN_USE: &str = packed!(
    "lane",
    "(WITH RECURSIVE used (lane) AS (
        SELECT min(lane_id) FROM jobs WHERE ready_rank IS NOT NULL
        UNION ALL
        SELECT (SELECT min(lane_id) FROM jobs WHERE ready_rank IS NOT NULL AND lane_id > used.lane)
        FROM used WHERE used.lane IS NOT NULL)
    SELECT lane FROM used WHERE lane IS NOT NULL) AS lanes_in_use"
);
