//! What the databases say differently.
//!
//! Statements are written once, in what SQLite and PostgreSQL share: numbered parameters, `RETURNING`, `ON CONFLICT`,
//! `UPDATE … FROM`, `->>`, `FILTER`, `AS MATERIALIZED`, `BIGINT` milliseconds and flags of 0 and 1. Batches travel as one
//! JSON array that is read by `json_each($n)`; its rows have a column `value`. What is left over is here.

/// Opens a write transaction at once, so that no statement in it can fail for want of the lock.
pub(crate) const BEGIN: &str = "BEGIN IMMEDIATE";

/// Ends a write transaction.
pub(crate) const COMMIT: &str = "COMMIT";

/// Ends a write transaction in which versions up to `$1` were drawn: two statements in one message to SQLite's thread.
/// There is one writer, so the counter lives with it and is written once a commit.
pub(crate) const COMMIT_VERSIONS: &str =
    "UPDATE counters SET value = $1 WHERE name = 'resource_version'; COMMIT";

/// A statement over a table `e` of values, which travel as parameters of their own. For wide rows that is twice as quick
/// as a document that the database takes apart.
pub(crate) struct Batch {
    /// The columns of `e`.
    pub(crate) columns: &'static [&'static str],
    /// What follows `WITH e AS (…)`, with its own parameters `$1`, `$2`, …. Rows of nothing but null in `e` must not count.
    pub(crate) statement: &'static str,
}

/// How many rows `e` may have: a statement is prepared once for each, and filled up with rows of null. The last keeps the
/// widest batch far below SQLite's limit of 32,766 parameters.
pub(crate) const BATCH_SIZES: [usize; 4] = [1, 8, 32, 128];

impl Batch {
    /// The statement for `rows` rows. Parameters of the rows come first, in order.
    pub(crate) fn render(&self, rows: usize) -> String {
        let row = format!("({})", vec!["?"; self.columns.len()].join(","));
        let mut sql =
            format!("WITH e ({}) AS (VALUES {}) ", self.columns.join(", "), vec![row; rows].join(","));
        let before = rows * self.columns.len();
        let mut pieces = self.statement.split('$');
        sql.extend(pieces.next());
        for piece in pieces {
            let digits = piece.bytes().take_while(u8::is_ascii_digit).count();
            let (number, rest) = piece.split_at(digits);
            let number: usize = number.parse().expect("a dollar sign begins a numbered parameter");
            sql.push_str(&format!("?{}{rest}", before + number));
        }
        sql
    }
}

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
