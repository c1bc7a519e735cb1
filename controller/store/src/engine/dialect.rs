//! What the databases say differently.
//!
//! Statements are written once, in what SQLite and PostgreSQL share: numbered parameters, `RETURNING`, `ON CONFLICT`,
//! `UPDATE … FROM`, `->>`, `FILTER`, `AS MATERIALIZED`, `BIGINT` milliseconds and flags of 0 and 1. Batches travel as one
//! JSON array that is read by `json_each($n)`; its rows have a column `value`; PostgreSQL has it from our first migration.
//! What is left over is here.

/// A statement that may read differently for each database. Most do not, and are made of one text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sql {
    pub(crate) sqlite: &'static str,
    pub(crate) postgres: &'static str,
}

impl From<&'static str> for Sql {
    fn from(text: &'static str) -> Self {
        Self { sqlite: text, postgres: text }
    }
}

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
    /// The statement for `rows` rows in SQLite. Parameters of the rows come first, in order.
    pub(crate) fn render_sqlite(&self, rows: usize) -> String {
        let row = format!("({})", vec!["?"; self.columns.len()].join(","));
        let table =
            format!("WITH e ({}) AS (VALUES {}) ", self.columns.join(", "), vec![row; rows].join(","));
        self.after(table, '?', rows * self.columns.len())
    }

    /// The statement for any number of rows in PostgreSQL. The columns of the rows come first, an array each.
    pub(crate) fn render_postgres(&self) -> String {
        let arrays = (1..=self.columns.len()).map(|n| format!("${n}")).collect::<Vec<_>>().join(",");
        let table = format!("WITH e ({}) AS (SELECT * FROM unnest({arrays})) ", self.columns.join(", "));
        self.after(table, '$', self.columns.len())
    }

    /// `table` and the statement, its parameters numbered on from `before`.
    fn after(&self, table: String, mark: char, before: usize) -> String {
        let mut sql = table;
        let mut pieces = self.statement.split('$');
        sql.extend(pieces.next());
        for piece in pieces {
            let digits = piece.bytes().take_while(u8::is_ascii_digit).count();
            let (number, rest) = piece.split_at(digits);
            let number: usize = number.parse().expect("a dollar sign begins a numbered parameter");
            sql.push_str(&format!("{mark}{}{rest}", before + number));
        }
        sql
    }
}

/// A statement that yields the given columns of the given source, from SQLite as one document, for `Conn::packed`. The order
/// of the rows is not kept.
macro_rules! packed {
    ($columns:expr, $source:expr) => {
        $crate::engine::dialect::packed!($columns, $source, $source)
    };
    ($columns:expr, $sqlite:expr, $postgres:expr) => {
        $crate::engine::dialect::Sql {
            sqlite: concat!("SELECT json_group_array(json_array(", $columns, ")) AS rows FROM ", $sqlite),
            postgres: concat!("SELECT ", $columns, " FROM ", $postgres),
        }
    };
}
pub(crate) use packed;

/// The next ready jobs of the lanes in `$1` after rank `$2`, at most `$3` of each lane and `$4` in all: one descent of the
/// index for each lane. SQLite has no `LATERAL`.
pub(crate) const LANE_HEADS: Sql = packed!(
    "lane_id, ready_rank",
    "(SELECT j.lane_id, j.ready_rank
    FROM json_each($1) AS l
    JOIN jobs AS j ON j.lane_id = CAST(l.value AS BIGINT) AND j.ready_rank IS NOT NULL AND j.ready_rank IN (
        SELECT h.ready_rank FROM jobs AS h
        WHERE h.lane_id = CAST(l.value AS BIGINT) AND h.ready_rank IS NOT NULL AND h.ready_rank > $2
        ORDER BY h.ready_rank LIMIT $3)
    ORDER BY j.ready_rank LIMIT $4) AS heads",
    "(SELECT h.lane_id, h.ready_rank
    FROM json_each($1) AS l
    CROSS JOIN LATERAL (
        SELECT j.lane_id, j.ready_rank FROM jobs AS j
        WHERE j.lane_id = CAST(l.value AS BIGINT) AND j.ready_rank IS NOT NULL AND j.ready_rank > $2
        ORDER BY j.ready_rank LIMIT $3) AS h
    ORDER BY h.ready_rank LIMIT $4) AS heads"
);

/// What nodes hold, with the attempts that are live, and what else their claims depend on.
macro_rules! held {
    ($live:literal) => {
        concat!(
            "SELECT e.number, n.boot_id, l.last_claim_at,
                count(*) FILTER (WHERE a.request_id = e.request) AS repeated,
                count(*) FILTER (WHERE a.waiting = 0) AS busy,
                CAST(coalesce(sum(a.cpu_millis) FILTER (WHERE a.waiting = 0), 0) AS BIGINT) AS cpu_millis,
                CAST(coalesce(sum(a.memory_bytes), 0) AS BIGINT) AS memory_bytes,
                CAST(coalesce(sum(a.gpus), 0) AS BIGINT) AS gpus,
                CASE WHEN EXISTS (SELECT 1 FROM node_holds AS k WHERE k.node = n.name) THEN 1 ELSE 0 END AS on_hold,
                (SELECT min(j.due_at) FROM jobs AS j WHERE j.due_at IS NOT NULL) AS next_due,
                CASE WHEN EXISTS (SELECT 1 FROM queues) THEN 1 ELSE 0 END AS terms,
                CASE WHEN EXISTS (SELECT 1 FROM reservations) THEN 1 ELSE 0 END AS reservations
            FROM (SELECT CAST(value->>0 AS BIGINT) AS number, value->>1 AS node, value->>2 AS request
                FROM json_each($1)) AS e
            JOIN nodes AS n ON n.name = e.node
            LEFT JOIN node_liveness AS l ON l.name = n.name
            LEFT JOIN ",
            $live,
            " AS a ON a.node = n.name AND a.ended_at IS NULL
            GROUP BY e.number, n.name, n.boot_id, l.last_claim_at"
        )
    };
}

/// For each of the claims (number, node, request) in `$1`: the node's run and what it holds. PostgreSQL is told that only these
/// nodes' attempts matter: where it has last counted in an idle hour, it would go through all that is live for each.
pub(crate) const HELD: Sql = Sql {
    sqlite: held!("attempts"),
    postgres: held!(
        "(SELECT * FROM attempts WHERE ended_at IS NULL AND node = ANY (ARRAY(
            SELECT value->>1 FROM json_each($1))))"
    ),
};

/// What a claim changes.
macro_rules! claim {
    () => {
        "UPDATE jobs SET phase = 'Claimed', node = e.node, epoch = CASE WHEN epoch < $3 THEN $3 ELSE epoch END + 1, attempts = attempts + 1,
            ready_rank = NULL, not_before = NULL, reason = NULL, message = NULL, exit_code = NULL,
            started_at = NULL, steps = '[]', unenforced = '[]', logs_complete = 0, resource_version = $2
        FROM (SELECT CAST(value->>0 AS BIGINT) AS job_id, value->>1 AS node FROM json_each($1)) AS e
        WHERE id = e.job_id AND "
    };
}

/// Makes the ready ones of the jobs in `$1` the node's that is named beside each, at version `$2`, in epochs above `$3`; yields which.
/// On PostgreSQL it leaves out those that somebody has locked, such as a person in a transaction by hand: a claim never
/// waits for one job where there are others. Its condition matches no partial index, so that each job is found by its key.
pub(crate) const CLAIM: Sql = Sql {
    sqlite: concat!(claim!(), "ready_rank IS NOT NULL RETURNING id"),
    postgres: concat!(
        claim!(),
        "id = ANY (ARRAY(
            SELECT j.id FROM json_each($1) AS l JOIN jobs AS j ON j.id = CAST(l.value->>0 AS BIGINT)
            WHERE coalesce(j.ready_rank, -1) <> -1 FOR UPDATE OF j SKIP LOCKED))
        RETURNING id"
    ),
};

/// The next ready jobs of all lanes after rank `$1`, at most `$2`.
pub(crate) const READY_HEADS: Sql = packed!(
    "lane_id, ready_rank",
    "(SELECT lane_id, ready_rank FROM jobs
    WHERE ready_rank IS NOT NULL AND ready_rank > $1
    ORDER BY ready_rank LIMIT $2) AS heads"
);

/// All lanes that have a ready job: one step down the index per lane.
pub(crate) const LANES_IN_USE: Sql = packed!(
    "lane",
    "(WITH RECURSIVE used (lane) AS (
        SELECT min(lane_id) FROM jobs WHERE ready_rank IS NOT NULL
        UNION ALL
        SELECT (SELECT min(lane_id) FROM jobs WHERE ready_rank IS NOT NULL AND lane_id > used.lane)
        FROM used WHERE used.lane IS NOT NULL)
    SELECT lane FROM used WHERE lane IS NOT NULL) AS lanes_in_use"
);
