//! Roll-outs: what was started, and how it gets further.
//!
//! A roll-out gets further by steps that were decided on a version of it; they happen together with the changes of nodes that
//! they make, or not at all. While a roll-out is open it has hold of its nodes.

use std::collections::HashMap;

use jiff::Timestamp;
use windlass_crds::Span;
use windlass_crds::rollout::{RolloutDirection, RolloutNodeState, RolloutPhase};

use super::{fleet, nodes};
use crate::engine::conn::Conn;
use crate::engine::value::{Row, args, clean, int, json, ms, truncated, word};
use crate::engine::writer::Tx;
use crate::{
    Error, NewNodeConfig, NewRollout, NodeEventKind, NodeRow, RolloutNodeRow, RolloutRow, RolloutStep, Store,
};

/// How many roll-outs are kept that have ended: the oldest ones are forgotten when another one is started.
const KEPT: i64 = 100;

/// The columns of a roll-out, of `rollouts AS r`.
macro_rules! select_rollout {
    () => {
        "SELECT r.id, r.name, r.selector, r.patch, r.max_unavailable, r.pause_after, r.timeout_ms, r.direction, \
         r.phase, r.reason, r.message, r.created_at, r.updated_at, r.version FROM rollouts AS r "
    };
}

/// The columns of a roll-out's nodes, of `rollout_nodes AS n`.
macro_rules! select_nodes {
    () => {
        "SELECT n.rollout_id, n.node, n.state, n.config_version, n.changed_at, n.former, n.message \
         FROM rollout_nodes AS n "
    };
}

impl Store {
    /// Starts a roll-out: nothing is changed yet.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] where another one has the name; [`Error::InUse`] where another open one has a node;
    /// [`Error::NotFound`] for a node that is gone.
    pub async fn create_rollout(&self, now: Timestamp, new: NewRollout) -> Result<RolloutRow, Error> {
        self.write("create_rollout", move |tx| Box::pin(create(tx, truncated(now), new))).await
    }

    /// The roll-out of this name.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn get_rollout(&self, name: &str) -> Result<Option<RolloutRow>, Error> {
        let name = name.to_owned();
        self.read("get_rollout", move |conn| Box::pin(async move { get(conn, &name).await })).await
    }

    /// All roll-outs, the newest first.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn list_rollouts(&self) -> Result<Vec<RolloutRow>, Error> {
        self.read("list_rollouts", move |conn| {
            Box::pin(async move {
                let sql = concat!(select_nodes!(), "ORDER BY n.rollout_id, n.position");
                let mut nodes: HashMap<i64, Vec<RolloutNodeRow>> = HashMap::new();
                for row in conn.rows(sql, args![]).await? {
                    let (id, node) = read_node(&row)?;
                    nodes.entry(id).or_default().push(node);
                }
                let rows = conn.rows(concat!(select_rollout!(), "ORDER BY r.id DESC"), args![]).await?;
                let read = |row: &Row| {
                    let (id, rollout) = read(row)?;
                    Ok(RolloutRow { nodes: nodes.remove(&id).unwrap_or_default(), ..rollout })
                };
                rows.iter().map(read).collect()
            })
        })
        .await
    }

    /// Carries steps of a roll-out out, and yields it as it is then.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] when the roll-out, or a node that is to be changed, is not at the version
    /// that the steps were decided on; [`Error::InUse`] where it would have to get hold of a node again that another one
    /// has.
    pub async fn advance_rollout(
        &self,
        now: Timestamp,
        name: &str,
        expected_version: i64,
        steps: Vec<RolloutStep>,
    ) -> Result<RolloutRow, Error> {
        let name = name.to_owned();
        self.write("advance_rollout", move |tx| {
            Box::pin(async move { advance(tx, truncated(now), &name, expected_version, steps).await })
        })
        .await
    }
}

async fn create(tx: &mut Tx, now: Timestamp, new: NewRollout) -> Result<RolloutRow, Error> {
    let NewRollout { name, selector, patch, max_unavailable, pause_after, timeout, nodes } = new;
    if find(&mut tx.conn, &name).await?.is_some() {
        return Err(Error::AlreadyExists { object: "roll-out", key: name });
    }
    forget(tx).await?;
    let sql = "
        INSERT INTO rollouts (name, selector, patch, max_unavailable, pause_after, timeout_ms, direction, phase,
            created_at, updated_at, version)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9, 1) RETURNING id";
    let args = args![
        name.as_str(),
        clean(&selector),
        json(&patch),
        i64::from(max_unavailable),
        pause_after.map(i64::from),
        int(timeout.millis()),
        word(RolloutDirection::Forward),
        word(RolloutPhase::Rolling),
        ms(now)
    ];
    let row = tx.conn.row(sql, args).await?;
    let row = row.ok_or_else(|| Error::NotFound { object: "roll-out", key: name.clone() })?;
    let id = row.cells("rollouts").int("id")?;
    for node in &nodes {
        nodes::require(tx, node).await?;
        join(tx, id, node).await?;
    }
    require(tx, &name).await
}

/// Forgets the oldest roll-outs that have ended.
async fn forget(tx: &mut Tx) -> Result<(), Error> {
    let sql = "
        DELETE FROM rollouts WHERE phase IN ('Complete', 'Aborted') AND id NOT IN (
            SELECT id FROM rollouts WHERE phase IN ('Complete', 'Aborted') ORDER BY id DESC LIMIT $1)";
    tx.conn.execute(sql, args![KEPT - 1]).await.map(drop)
}

/// Takes a node in, at the end.
async fn join(tx: &mut Tx, id: i64, node: &str) -> Result<(), Error> {
    refuse_taken(tx, id, node).await?;
    let sql = "
        INSERT INTO rollout_nodes (rollout_id, node, position, state, open_node)
        SELECT $1, $2, coalesce(max(n.position), 0) + 1, $3, $2 FROM rollout_nodes AS n WHERE n.rollout_id = $1";
    tx.conn.execute(sql, args![id, node, word(RolloutNodeState::Pending)]).await.map(drop)
}

async fn refuse_taken(tx: &mut Tx, id: i64, node: &str) -> Result<(), Error> {
    let sql = "
        SELECT r.name FROM rollout_nodes AS n JOIN rollouts AS r ON r.id = n.rollout_id
        WHERE n.open_node = $2 AND n.rollout_id <> $1";
    let Some(row) = tx.conn.row(sql, args![id, node]).await? else { return Ok(()) };
    let by = format!("roll-out `{}`", row.cells("rollouts").text("name")?);
    Err(Error::InUse { object: "node", key: node.to_owned(), by })
}

async fn advance(
    tx: &mut Tx,
    now: Timestamp,
    name: &str,
    expected: i64,
    steps: Vec<RolloutStep>,
) -> Result<RolloutRow, Error> {
    // Of two that carry out steps at the same time the second one finds another version.
    let sql =
        "UPDATE rollouts SET version = version + 1, updated_at = $2 WHERE name = $1 RETURNING id, version";
    let unknown = || Error::NotFound { object: "roll-out", key: name.to_owned() };
    let row = tx.conn.row(sql, args![name, ms(now)]).await?.ok_or_else(unknown)?;
    let mut cells = row.cells("rollouts");
    let (id, found) = (cells.int("id")?, cells.int("version")? - 1);
    if found != expected {
        return Err(Error::Conflict { object: "roll-out", key: name.to_owned(), expected, found });
    }
    for step in steps {
        match step {
            RolloutStep::Join { node } => join(tx, id, &node).await?,
            RolloutStep::Change { node, spec, expected_version } => {
                let before = nodes::require(tx, &node).await?;
                let config = NewNodeConfig {
                    name: node.clone(),
                    uid: before.uid.clone(),
                    spec: *spec,
                    labels: before.meta_labels.clone(),
                    annotations: before.annotations.clone(),
                    expected_version: Some(expected_version),
                };
                let declared = nodes::put_config(tx, now, config).await?.into_inner();
                let version = if declared.config_version == before.config_version {
                    nodes::declare_again(tx, now, &declared).await?
                } else {
                    declared.config_version
                };
                changing(tx, now, id, &before, version).await?;
                let message = format!("roll-out `{name}` has declared version {version}");
                fleet::note(tx, now, &node, NodeEventKind::Rollout, &message).await?;
            }
            RolloutStep::Watch { node, config_version } => {
                let before = nodes::require(tx, &node).await?;
                changing(tx, now, id, &before, config_version).await?;
            }
            RolloutStep::Settle { node, state, message } => {
                let sql = "
                    UPDATE rollout_nodes SET state = $3, message = $4 WHERE rollout_id = $1 AND node = $2";
                let args = args![id, node.as_str(), word(state), clean(&message)];
                if tx.conn.execute(sql, args).await? > 0 {
                    let message = format!("roll-out `{name}`: {state}: {message}");
                    fleet::note(tx, now, &node, NodeEventKind::Rollout, &message).await?;
                }
            }
            RolloutStep::Turn { direction, phase, pause_after, reason, message } => {
                let sql = "
                    UPDATE rollouts SET direction = $2, phase = $3, pause_after = $4, reason = $5, message = $6
                    WHERE id = $1";
                let pause_after = pause_after.map(i64::from);
                let args = args![id, word(direction), word(phase), pause_after, reason, clean(&message)];
                tx.conn.execute(sql, args).await?;
                hold(tx, id, phase.is_open()).await?;
            }
        }
    }
    require(tx, name).await
}

/// Notes that the roll-out has declared a node's configuration, and what it was before: what is there is the roll-out's own
/// where it has the version that the roll-out declared, and somebody else's otherwise.
async fn changing(tx: &mut Tx, now: Timestamp, id: i64, before: &NodeRow, version: u64) -> Result<(), Error> {
    let sql = "
        UPDATE rollout_nodes SET state = $3, config_version = $4, changed_at = $5, message = NULL,
            former = CASE config_version WHEN $6 THEN former ELSE $7 END
        WHERE rollout_id = $1 AND node = $2";
    let state = word(RolloutNodeState::Changing);
    let args = args![
        id,
        before.name.as_str(),
        state,
        int(version),
        ms(now),
        int(before.config_version),
        json(&before.spec)
    ];
    tx.conn.execute(sql, args).await.map(drop)
}

/// Gets hold of the roll-out's nodes, or lets go of them.
async fn hold(tx: &mut Tx, id: i64, open: bool) -> Result<(), Error> {
    if !open {
        let sql = "UPDATE rollout_nodes SET open_node = NULL WHERE rollout_id = $1 AND open_node IS NOT NULL";
        return tx.conn.execute(sql, args![id]).await.map(drop);
    }
    let sql = "SELECT node FROM rollout_nodes WHERE rollout_id = $1 AND open_node IS NULL ORDER BY position";
    let rows = tx.conn.rows(sql, args![id]).await?;
    for row in &rows {
        refuse_taken(tx, id, &row.cells("rollout_nodes").text("node")?).await?;
    }
    let sql = "UPDATE rollout_nodes SET open_node = node WHERE rollout_id = $1 AND open_node IS NULL";
    tx.conn.execute(sql, args![id]).await.map(drop)
}

async fn find(conn: &mut Conn, name: &str) -> Result<Option<(i64, RolloutRow)>, Error> {
    let sql = concat!(select_rollout!(), "WHERE r.name = $1");
    conn.row(sql, args![name]).await?.map(|row| read(&row)).transpose()
}

async fn get(conn: &mut Conn, name: &str) -> Result<Option<RolloutRow>, Error> {
    let Some((id, rollout)) = find(conn, name).await? else { return Ok(None) };
    let sql = concat!(select_nodes!(), "WHERE n.rollout_id = $1 ORDER BY n.position");
    let rows = conn.rows(sql, args![id]).await?;
    let nodes = rows.iter().map(|row| read_node(row).map(|(_, node)| node)).collect::<Result<_, _>>()?;
    Ok(Some(RolloutRow { nodes, ..rollout }))
}

async fn require(tx: &mut Tx, name: &str) -> Result<RolloutRow, Error> {
    let found = get(&mut tx.conn, name).await?;
    found.ok_or_else(|| Error::NotFound { object: "roll-out", key: name.to_owned() })
}

/// Reads a roll-out without its nodes, and its id.
fn read(row: &Row) -> Result<(i64, RolloutRow), Error> {
    let mut cells = row.cells("rollouts");
    let id = cells.int("id")?;
    let rollout = RolloutRow {
        name: cells.text("name")?,
        selector: cells.text("selector")?,
        patch: cells.json("patch")?,
        max_unavailable: cells.number("max_unavailable")?,
        pause_after: cells.opt_number("pause_after")?,
        timeout: Span::from_millis(cells.number("timeout_ms")?),
        direction: cells.word("direction")?,
        phase: cells.word("phase")?,
        reason: cells.opt_text("reason")?,
        message: cells.opt_text("message")?,
        created_at: cells.time("created_at")?,
        updated_at: cells.time("updated_at")?,
        version: cells.int("version")?,
        nodes: Vec::new(),
    };
    Ok((id, rollout))
}

fn read_node(row: &Row) -> Result<(i64, RolloutNodeRow), Error> {
    let mut cells = row.cells("rollout_nodes");
    let id = cells.int("rollout_id")?;
    let node = RolloutNodeRow {
        node: cells.text("node")?,
        state: cells.word("state")?,
        config_version: cells.opt_number("config_version")?,
        changed_at: cells.opt_time("changed_at")?,
        former: cells.opt_json("former")?,
        message: cells.opt_text("message")?,
    };
    Ok((id, node))
}
