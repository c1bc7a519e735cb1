//! Nodes: configuration, acknowledgement, capability, conditions.

use jiff::Timestamp;
use windlass_crds::NodeConfigSpec;
use windlass_crds::conditions::Condition;
use windlass_crds::protocol::AckStatus;

use super::artifacts;
use super::expect_version;
use super::fleet::{self, hold_columns};
use super::push::{self, push_columns};
use super::registration;
use crate::engine::conn::Conn;
use crate::engine::value::{Row, args, int, json, ms, truncated, word};
use crate::engine::writer::Tx;
use crate::{
    Ack, CapabilitySnapshot, CapabilityUpdate, Change, Error, LiveAttempts, NewNodeConfig, NewNodeEvent,
    NodeEventKind, NodeRow, Put, Store,
};

/// How many capability reports are kept of a node, to see what changed on a host.
const SNAPSHOTS: i64 = 20;

/// The columns of a node, of `nodes AS n` and `node_liveness AS l`.
macro_rules! node_columns {
    () => {
        "SELECT n.name, n.uid, n.spec, n.meta_labels, n.annotations, n.generation, n.config_version, \
         n.resource_version, n.registered_at, n.public_key, n.boot_id, n.capability, n.capability_hash, \
         n.agent_labels, n.agent_version, n.acked_version, n.applied_version, n.ack_status, n.ack_error, \
         n.effective_hash, n.conditions, n.created_at, l.last_seen_at, l.last_claim_at, l.slots, l.not_ready, \
         (SELECT count(*) FROM attempts AS a WHERE a.node = n.name AND a.ended_at IS NULL) AS running, "
    };
}

/// A node with its liveness and its hold.
macro_rules! select_node {
    () => {
        concat!(
            node_columns!(),
            hold_columns!(),
            ", ",
            push_columns!(),
            " FROM nodes AS n JOIN node_liveness AS l ON l.name = n.name",
            " LEFT JOIN node_holds AS h ON h.node = n.name",
            " LEFT JOIN node_push AS p ON p.node = n.name"
        )
    };
}

impl Store {
    /// Declares the configuration of a node, which need not have registered yet. `config_version` and `generation` grow
    /// only when the configuration itself differs.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the node is not at the expected version.
    pub async fn put_node_config(
        &self,
        now: Timestamp,
        config: NewNodeConfig,
    ) -> Result<Put<NodeRow>, Error> {
        self.write("put_node_config", move |tx| Box::pin(put_config(tx, truncated(now), config))).await
    }

    /// The node of this name.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn get_node(&self, name: &str) -> Result<Option<NodeRow>, Error> {
        let name = name.to_owned();
        self.read("get_node", move |conn| Box::pin(async move { get(conn, &name).await })).await
    }

    /// All nodes, by name.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn list_nodes(&self) -> Result<Vec<NodeRow>, Error> {
        self.read("list_nodes", move |conn| {
            Box::pin(async move {
                let rows = conn.rows(concat!(select_node!(), " ORDER BY n.name"), args![]).await?;
                rows.iter().map(read).collect()
            })
        })
        .await
    }

    /// Forgets a node; yields it where it was there. Its key and its token work no more; it may register again only with
    /// a token that admits new nodes and was made since. Attempts that are abandoned end with their leases.
    ///
    /// # Errors
    /// [`Error::InUse`] while it holds attempts that are not to be abandoned; [`Error::Conflict`] when the node is not at
    /// the version that is expected.
    pub async fn delete_node(
        &self,
        now: Timestamp,
        name: &str,
        attempts: LiveAttempts,
        expected: Option<i64>,
    ) -> Result<Option<NodeRow>, Error> {
        let name = name.to_owned();
        self.write("delete_node", move |tx| {
            Box::pin(async move {
                let row = delete(tx, now, &name, attempts, expected).await?;
                if let Some(row) = &row {
                    registration::depart(tx, now, row).await?;
                }
                Ok(row)
            })
        })
        .await
    }

    /// Forgets a node as [`Store::delete_node`] does, but for a while: its agent may come back with a token that it has.
    ///
    /// # Errors
    /// [`Error::InUse`] while it holds attempts.
    pub async fn forget_node(&self, now: Timestamp, name: &str) -> Result<Option<NodeRow>, Error> {
        let name = name.to_owned();
        self.write("forget_node", move |tx| {
            Box::pin(async move { delete(tx, now, &name, LiveAttempts::Refuse, None).await })
        })
        .await
    }

    /// Notes what a node says about a version of its configuration. One about a lower version than the node has
    /// acknowledged before changes nothing; `applied_version` moves only on `applied`.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn record_ack(&self, now: Timestamp, name: &str, ack: Ack) -> Result<(), Error> {
        let name = name.to_owned();
        self.write("record_ack", move |tx| {
            Box::pin(async move {
                require(tx, &name).await?;
                seen(tx, now, &name).await?;
                let version = tx.draw_version();
                let (kind, message) = match (ack.status, &ack.error) {
                    (AckStatus::Applied, _) => {
                        (NodeEventKind::ConfigApplied, format!("version {} is in force", ack.version))
                    }
                    (AckStatus::Failed, error) => {
                        let why = error.as_ref().map_or("the node gave no reason", |error| &error.message);
                        (NodeEventKind::ConfigFailed, format!("version {}: {why}", ack.version))
                    }
                };
                let sql = "
                    UPDATE nodes SET acked_version = $2, ack_status = $3, ack_error = $4, effective_hash = $5,
                        applied_version = CASE $3 WHEN 'applied' THEN $2 ELSE applied_version END,
                        resource_version = $6
                    WHERE name = $1 AND (acked_version IS NULL OR acked_version <= $2)
                        AND (acked_version IS DISTINCT FROM $2 OR ack_status IS DISTINCT FROM $3 OR ack_error IS DISTINCT FROM $4
                            OR effective_hash IS DISTINCT FROM $5)";
                let args = args![
                    name.as_str(),
                    int(ack.version),
                    word(ack.status),
                    ack.error.map(|error| json(&error)),
                    ack.hash,
                    version
                ];
                if tx.conn.execute(sql, args).await? > 0 {
                    fleet::note(tx, now, &name, kind, &message).await?;
                    tx.changed(Change::Node { name });
                }
                Ok(())
            })
        })
        .await
    }

    /// Notes what a host can do; the last twenty reports are kept.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn record_capability(
        &self,
        now: Timestamp,
        name: &str,
        update: CapabilityUpdate,
    ) -> Result<(), Error> {
        let name = name.to_owned();
        self.write("record_capability", move |tx| {
            Box::pin(async move {
                require(tx, &name).await?;
                seen(tx, now, &name).await?;
                let version = tx.draw_version();
                let report = json(&update.report);
                let sql = "
                    UPDATE nodes SET capability = $2, capability_hash = $3, agent_labels = $4, agent_version = $5,
                        resource_version = $6
                    WHERE name = $1";
                let args = args![
                    name.as_str(),
                    report.as_str(),
                    update.hash.as_str(),
                    json(&update.labels),
                    update.agent_version.as_str(),
                    version
                ];
                tx.conn.execute(sql, args).await?;
                snapshot(tx, now, &name, version, &update.hash, &update.agent_version, report).await?;
                tx.changed(Change::Node { name });
                Ok(())
            })
        })
        .await
    }

    /// The last capability reports of a node, newest first: those of its registrations and updates that differed.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn capability_history(&self, name: &str) -> Result<Vec<CapabilitySnapshot>, Error> {
        let name = name.to_owned();
        self.read("capability_history", move |conn| {
            Box::pin(async move {
                let sql = "
                    SELECT version, at, hash, agent_version, report FROM capability_snapshots
                    WHERE node = $1 ORDER BY version DESC";
                let rows = conn.rows(sql, args![name]).await?;
                let read = |row: &Row| {
                    let mut cells = row.cells("capability_snapshots");
                    cells.int("version")?;
                    Ok(CapabilitySnapshot {
                        at: cells.time("at")?,
                        hash: cells.text("hash")?,
                        agent_version: cells.text("agent_version")?,
                        report: cells.json("report")?,
                    })
                };
                rows.iter().map(read).collect()
            })
        })
        .await
    }

    /// Sets a node's conditions, and notes what that means for it; those that it has already change nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] when the node is not at `expected_version`.
    pub async fn set_node_conditions(
        &self,
        now: Timestamp,
        name: &str,
        conditions: Vec<Condition>,
        event: Option<NewNodeEvent>,
        expected_version: i64,
    ) -> Result<(), Error> {
        let name = name.to_owned();
        self.write("set_node_conditions", move |tx| {
            Box::pin(async move {
                let row = require(tx, &name).await?;
                let (expected, found) = (expected_version, row.resource_version);
                if expected != found {
                    return Err(Error::Conflict { object: "node", key: name, expected, found });
                }
                if row.conditions == conditions {
                    return Ok(());
                }
                let version = tx.draw_version();
                let sql =
                    "UPDATE nodes SET conditions = $2, resource_version = $3 WHERE name = $1 AND resource_version = $4";
                let args = args![name.as_str(), json(&conditions), version, expected];
                if tx.conn.execute(sql, args).await? != 1 {
                    return Err(Error::Conflict { object: "node", key: name, expected, found });
                }
                if let Some(event) = event {
                    fleet::note(tx, now, &name, event.kind, &event.message).await?;
                }
                tx.changed(Change::Node { name });
                Ok(())
            })
        })
        .await
    }
}

async fn delete(
    tx: &mut Tx,
    now: Timestamp,
    name: &str,
    attempts: LiveAttempts,
    expected: Option<i64>,
) -> Result<Option<NodeRow>, Error> {
    let Some(row) = get(&mut tx.conn, name).await? else { return Ok(None) };
    expect_version("node", name, expected, row.resource_version)?;
    if row.running > 0 && attempts == LiveAttempts::Refuse {
        let by = format!("{} running attempts", row.running);
        return Err(Error::InUse { object: "node", key: name.to_owned(), by });
    }
    tx.conn.execute("DELETE FROM nodes WHERE name = $1", args![name]).await?;
    artifacts::abandon(tx, name, "its node was removed").await?;
    tracing::debug!(node.name = %name, node.deleted_at = ms(now), "a node was deleted");
    tx.changed(Change::Node { name: name.to_owned() });
    Ok(Some(row))
}

pub(crate) fn read(row: &Row) -> Result<NodeRow, Error> {
    let mut cells = row.cells("nodes");
    Ok(NodeRow {
        name: cells.text("name")?,
        uid: cells.text("uid")?,
        spec: cells.json("spec")?,
        meta_labels: cells.json_or_default("meta_labels")?,
        annotations: cells.json_or_default("annotations")?,
        generation: cells.int("generation")?,
        config_version: cells.number("config_version")?,
        resource_version: cells.int("resource_version")?,
        registered_at: cells.opt_time("registered_at")?,
        public_key: cells.opt_bytes("public_key")?,
        boot_id: cells.opt_text("boot_id")?,
        capability: cells.opt_json("capability")?,
        capability_hash: cells.opt_text("capability_hash")?,
        agent_labels: cells.json_or_default("agent_labels")?,
        agent_version: cells.opt_text("agent_version")?,
        acked_version: cells.opt_number("acked_version")?,
        applied_version: cells.opt_number("applied_version")?,
        ack_status: cells.opt_one_of("ack_status", [AckStatus::Applied, AckStatus::Failed])?,
        ack_error: cells.opt_json("ack_error")?,
        effective_hash: cells.opt_text("effective_hash")?,
        conditions: cells.json_or_default("conditions")?,
        created_at: cells.time("created_at")?,
        last_seen_at: cells.opt_time("last_seen_at")?,
        last_claim_at: cells.opt_time("last_claim_at")?,
        slots: cells.number("slots")?,
        not_ready: cells.opt_text("not_ready")?,
        running: cells.number("running")?,
        hold: fleet::read_hold(&mut cells)?,
        push: push::read_push(&mut cells)?,
    })
}

pub(crate) async fn get(conn: &mut Conn, name: &str) -> Result<Option<NodeRow>, Error> {
    let row = conn.row(concat!(select_node!(), " WHERE n.name = $1"), args![name]).await?;
    row.map(|row| read(&row)).transpose()
}

/// The node of this name, which must exist.
pub(crate) async fn require(tx: &mut Tx, name: &str) -> Result<NodeRow, Error> {
    let row = get(&mut tx.conn, name).await?;
    row.ok_or_else(|| Error::NotFound { object: "node", key: name.to_owned() })
}

/// Notes that the node was heard of.
async fn seen(tx: &mut Tx, now: Timestamp, name: &str) -> Result<(), Error> {
    let sql = "UPDATE node_liveness SET last_seen_at = $2 WHERE name = $1";
    tx.conn.execute(sql, args![name, ms(now)]).await.map(drop)
}

/// Writes the row of a node that is neither declared nor registered yet.
pub(crate) async fn insert(
    tx: &mut Tx,
    now: Timestamp,
    name: &str,
    uid: &str,
    spec: &NodeConfigSpec,
    version: i64,
) -> Result<(), Error> {
    let sql = "
        INSERT INTO nodes (name, uid, spec, meta_labels, annotations, generation, config_version, resource_version,
            agent_labels, conditions, created_at)
        VALUES ($1, $2, $3, '{}', '{}', 1, 1, $4, '{}', '[]', $5)";
    tx.conn.execute(sql, args![name, uid, json(spec), version, ms(now)]).await?;
    tx.conn.execute("INSERT INTO node_liveness (name, slots) VALUES ($1, 0)", args![name]).await.map(drop)
}

/// Keeps a capability report, and only the last of them.
pub(crate) async fn snapshot(
    tx: &mut Tx,
    now: Timestamp,
    name: &str,
    version: i64,
    hash: &str,
    agent_version: &str,
    report: String,
) -> Result<(), Error> {
    let sql = "
        INSERT INTO capability_snapshots (node, version, at, hash, agent_version, report)
        VALUES ($1, $2, $3, $4, $5, $6)";
    tx.conn.execute(sql, args![name, version, ms(now), hash, agent_version, report]).await?;
    let sql = "
        DELETE FROM capability_snapshots WHERE node = $1 AND version <= (
            SELECT version FROM capability_snapshots WHERE node = $1 ORDER BY version DESC LIMIT 1 OFFSET $2)";
    tx.conn.execute(sql, args![name, SNAPSHOTS]).await.map(drop)
}

/// Declares a node's configuration again as a new version, which it tries as one that it does not know; yields that.
pub(crate) async fn declare_again(tx: &mut Tx, now: Timestamp, row: &NodeRow) -> Result<u64, Error> {
    let (name, version) = (row.name.as_str(), row.config_version + 1);
    let sql = "UPDATE nodes SET config_version = $2, resource_version = $3 WHERE name = $1";
    let resource_version = tx.draw_version();
    tx.conn.execute(sql, args![name, int(version), resource_version]).await?;
    let message = format!("version {version} waits for the node");
    fleet::note(tx, now, name, NodeEventKind::ConfigDeclared, &message).await?;
    tx.changed(Change::Node { name: name.to_owned() });
    Ok(version)
}

pub(crate) async fn put_config(
    tx: &mut Tx,
    now: Timestamp,
    config: NewNodeConfig,
) -> Result<Put<NodeRow>, Error> {
    let NewNodeConfig { name, uid, spec, labels, annotations, expected_version } = config;
    let before = get(&mut tx.conn, &name).await?;
    let found = before.as_ref().map_or(0, |row| row.resource_version);
    expect_version("node", &name, expected_version, found)?;
    let respecified = before.as_ref().is_some_and(|row| row.spec != spec);
    if let Some(row) = &before
        && !respecified
        && row.meta_labels == labels
        && row.annotations == annotations
    {
        return Ok(Put::Unchanged(row.clone()));
    }
    let version = tx.draw_version();
    if before.is_none() {
        insert(tx, now, &name, &uid, &spec, version).await?;
    }
    let sql = "
        UPDATE nodes SET spec = $2, meta_labels = $3, annotations = $4, generation = generation + $5,
            config_version = config_version + $5, resource_version = $6
        WHERE name = $1";
    let args =
        args![name.as_str(), json(&spec), json(&labels), json(&annotations), i64::from(respecified), version];
    tx.conn.execute(sql, args).await?;
    if before.as_ref().is_some_and(|row| row.spec.dispatch != spec.dispatch) {
        // A token of before is in no configuration since, so none is in force.
        tx.conn.execute("DELETE FROM node_push WHERE node = $1", args![name.as_str()]).await?;
    }
    let row = require(tx, &name).await?;
    if respecified || before.is_none() {
        let message = format!("version {} waits for the node", row.config_version);
        fleet::note(tx, now, &name, NodeEventKind::ConfigDeclared, &message).await?;
    }
    tx.changed(Change::Node { name });
    Ok(if before.is_some() { Put::Updated(row) } else { Put::Created(row) })
}
