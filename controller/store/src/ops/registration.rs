//! Registration: who may be which node.
//!
//! | name      | proof            | token                       | outcome                           |
//! | --------- | ---------------- | --------------------------- | --------------------------------- |
//! | unknown   | key not proven   | any                         | `NeedsProof`                      |
//! | unknown   | no key, or own   | admits new, or replaces it  | `Created`; the use is counted     |
//! | unknown   | own, deregistered| older than that             | `Departed`                        |
//! | unknown   | no key, or own   | none, or any other          | `TokenInvalid`                    |
//! | known     | its own key      | any                         | `Known`; the token is not used    |
//! | known     | any other, proven, or none | replaces it       | `Known` with the new key; counted |
//! | known     | any other        | none, or any other          | `NameTaken`                       |
//! | known     | none             | none                        | `NeedsProof`                      |
//!
//! A node that is only declared is unknown here. A key that is presented without proof counts as none, except that it is
//! never stored.

use jiff::Timestamp;
use windlass_crds::NodeConfigSpec;

use super::{artifacts, fleet, nodes};
use crate::engine::value::{args, json, ms, truncated};
use crate::engine::writer::Tx;
use crate::{Change, Error, NodeEventKind, NodeRegistration, NodeRow, RedeemedToken, RegisterOutcome, Store};

impl Store {
    /// Registers a node, or refuses to: see the outcomes. The token is checked and its use counted in the same
    /// transaction, so that a token for one node admits one.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and what the engine reports.
    pub async fn register_node(
        &self,
        now: Timestamp,
        registration: NodeRegistration,
    ) -> Result<RegisterOutcome, Error> {
        self.write("register_node", move |tx| Box::pin(register(tx, truncated(now), registration))).await
    }
}

/// What the table above says.
enum Verdict {
    Admit { redeem: Option<String> },
    Refuse(Box<RegisterOutcome>),
}

impl Verdict {
    fn refuse(outcome: RegisterOutcome) -> Self {
        Self::Refuse(Box::new(outcome))
    }
}

fn judge(known: Option<&NodeRow>, new: &NodeRegistration) -> Verdict {
    let proven = new.public_key.as_ref().filter(|_| new.proven);
    let replaces = |token: &&RedeemedToken| token.replaces.as_deref() == Some(new.name.as_str());
    let Some(known) = known.filter(|row| row.registered_at.is_some()) else {
        let token = new.token.as_ref().filter(|token| token.allows_new || replaces(token));
        return match token {
            _ if new.public_key.is_some() && !new.proven => Verdict::refuse(RegisterOutcome::NeedsProof),
            Some(token) => Verdict::Admit { redeem: Some(token.id.clone()) },
            None => Verdict::refuse(RegisterOutcome::TokenInvalid),
        };
    };
    if proven.is_some() && proven == known.public_key.as_ref() {
        return Verdict::Admit { redeem: None };
    }
    let token = new.token.as_ref().filter(replaces);
    match token {
        Some(_) if new.public_key.is_some() && !new.proven => Verdict::refuse(RegisterOutcome::NeedsProof),
        Some(token) => Verdict::Admit { redeem: Some(token.id.clone()) },
        None if proven.is_some() || new.token.is_some() => Verdict::refuse(RegisterOutcome::NameTaken),
        None => Verdict::refuse(RegisterOutcome::NeedsProof),
    }
}

async fn register(tx: &mut Tx, now: Timestamp, new: NodeRegistration) -> Result<RegisterOutcome, Error> {
    let before = nodes::get(&mut tx.conn, &new.name).await?;
    let verdict = judge(before.as_ref(), &new);
    let redeems = matches!(verdict, Verdict::Admit { redeem: Some(_) });
    match verdict {
        Verdict::Refuse(outcome) => return Ok(*outcome),
        Verdict::Admit { redeem: Some(token) } => {
            if let Some(at) = departed(tx, &token, &new).await? {
                return Ok(RegisterOutcome::Departed { at });
            }
            if !redeem(tx, now, &token, &new).await? {
                return Ok(RegisterOutcome::TokenInvalid);
            }
        }
        Verdict::Admit { redeem: None } => {}
    }
    let known = before.as_ref().filter(|row| row.registered_at.is_some());
    if redeems && known.is_some() {
        // Who has lost its key has most likely lost what it was to send as well.
        artifacts::abandon(tx, &new.name, "its node was replaced").await?;
    }
    let version = tx.draw_version();
    if before.is_none() {
        nodes::insert(tx, now, &new.name, &new.uid, &NodeConfigSpec::default(), version).await?;
    }
    let report = json(&new.capability);
    let sql = "
        UPDATE nodes SET registered_at = $2, public_key = $3, boot_id = $4, capability = $5, capability_hash = $6,
            agent_labels = $7, agent_version = $8, resource_version = $9
        WHERE name = $1";
    let args = args![
        new.name.as_str(),
        ms(now),
        new.public_key,
        new.boot_id,
        report.as_str(),
        new.capability_hash.as_str(),
        json(&new.labels),
        new.agent_version.as_str(),
        version
    ];
    tx.conn.execute(sql, args).await?;
    let sql = "UPDATE node_liveness SET last_seen_at = $2 WHERE name = $1";
    tx.conn.execute(sql, args![new.name.as_str(), ms(now)]).await?;
    if before.as_ref().and_then(|row| row.capability_hash.as_ref()) != Some(&new.capability_hash) {
        let (hash, agent) = (&new.capability_hash, &new.agent_version);
        nodes::snapshot(tx, now, &new.name, version, hash, agent, report).await?;
    }
    let row = nodes::require(tx, &new.name).await?;
    let known = before.filter(|row| row.registered_at.is_some());
    note(tx, now, known.as_ref(), &row).await?;
    tx.changed(Change::Node { name: new.name });
    let was_known = known.is_some();
    Ok(if was_known { RegisterOutcome::Known(row) } else { RegisterOutcome::Created(row) })
}

/// Notes what a registration means for the node.
async fn note(tx: &mut Tx, now: Timestamp, before: Option<&NodeRow>, after: &NodeRow) -> Result<(), Error> {
    let version = after.agent_version.as_deref().unwrap_or_default();
    let Some(before) = before else {
        let message = format!("the agent of version {version} has joined");
        return fleet::note(tx, now, &after.name, NodeEventKind::Registered, &message).await;
    };
    if before.public_key != after.public_key {
        let message = "a token has given the name to another key; the former one works no more";
        fleet::note(tx, now, &after.name, NodeEventKind::Replaced, message).await?;
    }
    if before.agent_version != after.agent_version {
        let old = before.agent_version.as_deref().unwrap_or_default();
        let message = format!("from version {old} to {version}");
        fleet::note(tx, now, &after.name, NodeEventKind::AgentVersion, &message).await?;
    }
    if before.boot_id != after.boot_id {
        let message = "the agent was started again and has registered";
        fleet::note(tx, now, &after.name, NodeEventKind::Returned, message).await?;
    }
    Ok(())
}

/// When the agent's node was deregistered, where the token was there by then. Otherwise that is forgotten.
async fn departed(tx: &mut Tx, token: &str, new: &NodeRegistration) -> Result<Option<Timestamp>, Error> {
    let Some(key) = new.public_key.as_ref() else { return Ok(None) };
    let sql = "
        SELECT d.departed_at FROM departed_nodes AS d JOIN join_tokens AS t ON t.id = $2
        WHERE d.public_key = $1 AND t.created_at <= d.departed_at";
    if let Some(row) = tx.conn.row(sql, args![key.clone(), token]).await? {
        return row.cells("departed_nodes").time("departed_at").map(Some);
    }
    tx.conn.execute("DELETE FROM departed_nodes WHERE public_key = $1", args![key.clone()]).await?;
    Ok(None)
}

/// Remembers that the node of a key was deregistered, for as long as there is a token that was there by then.
pub(crate) async fn depart(tx: &mut Tx, now: Timestamp, node: &NodeRow) -> Result<(), Error> {
    let Some(key) = node.public_key.as_ref() else { return Ok(()) };
    let sql = "
        INSERT INTO departed_nodes (public_key, name, departed_at) VALUES ($1, $2, $3)
        ON CONFLICT (public_key) DO UPDATE SET name = excluded.name, departed_at = excluded.departed_at";
    tx.conn.execute(sql, args![key.clone(), node.name.as_str(), ms(now)]).await?;
    let sql = "
        DELETE FROM departed_nodes
        WHERE NOT EXISTS (SELECT 1 FROM join_tokens AS t WHERE t.created_at <= departed_nodes.departed_at)";
    tx.conn.execute(sql, args![]).await.map(drop)
}

/// Counts a use of a token, where it still has one and is for this node.
async fn redeem(tx: &mut Tx, now: Timestamp, id: &str, new: &NodeRegistration) -> Result<bool, Error> {
    let sql = "
        UPDATE join_tokens SET uses = uses + 1
        WHERE id = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2)
            AND (max_uses IS NULL OR uses < max_uses) AND (replaces IS NULL OR replaces = $3)";
    Ok(tx.conn.execute(sql, args![id, ms(now), new.name.as_str()]).await? == 1)
}
