//! Why a job is not running: for each node, the first reason that excludes it.

use std::collections::HashMap;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};
use windlass_core::placement::Offer;
use windlass_core::requirement::{self, Requirement, Room};
use windlass_core::why::{self, Holder, JobView, KeptView, NodeView, Obstacle, Position, Used};
use windlass_store::{HolderRow, JobRow, NodeRow, ReservationRow};

use super::super::App;
use super::super::extract::{Operator, Path};
use super::super::present;
use super::find;
use crate::dispatch::room;
use crate::error::ApiError;
use crate::reconcile::hold_phase;

/// The most jobs that are read to name those that hold what is short.
const HOLDERS: u32 = 1000;

pub(in crate::rest) async fn placement(
    State(app): State<App>,
    _: Operator,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let row = find(&app, &namespace, &name).await?;
    let requirement = Requirement::of(&row.spec);
    let settings = app.store.queue_settings().await?;
    let settings = settings.iter().find(|settings| settings.queue == row.queue);
    let job = JobView {
        phase: row.phase,
        node: row.node.as_deref(),
        queue: &row.queue,
        queue_limit: settings.and_then(|row| row.settings.concurrency.map(|limit| (limit, row.running))),
        suspend: row.suspend,
        not_before: row.not_before,
        hold_until: app.store.restored().map(|restored| restored.hold_until),
        requirement: &requirement,
        room: requirement::room(&row.spec),
        rank: app.store.rank(&row.uid).await?,
    };
    let block = why::block(&job, app.clock.now());
    if let Some(block) = block.as_ref().filter(|block| !block.waits()) {
        let summary = why::summary(&job, Some(block), None, &[]);
        return Ok(Json(answer(&row, &summary, Some(block), None, None, &[])));
    }
    let position = app.store.queue_position(&row.uid).await?;
    let position = position.map(|position| Position { ahead: position.ahead, at_least: position.at_least });
    let nodes = app.store.list_nodes().await?;
    let kept = app.store.reservations().await?;
    let views = Views::of(&app, &nodes, &kept).await?;
    let verdicts: Vec<_> = views.iter().map(|view| why::obstacle(&job, &view)).collect();
    let holders = holders(&app, &nodes, &verdicts).await?;
    let items: Vec<_> = nodes
        .iter()
        .zip(&verdicts)
        .map(|(node, verdict)| item(node, verdict.as_ref(), holders.get(node.name.as_str())))
        .collect();
    let mut summary = why::summary(&job, block.as_ref(), position, &verdicts);
    let own = kept.iter().find(|kept| kept.uid == row.uid && kept.job.is_some());
    let own = own.filter(|_| block.is_none());
    let view = own.and_then(|own| views.iter().zip(&nodes).find(|(_, node)| node.name == own.node));
    if let Some((view, node)) = view {
        summary = format!("{summary}; {}", why::so_far(&job, &node.name, &view));
    }
    Ok(Json(answer(&row, &summary, block.as_ref(), position, own, &items)))
}

fn answer(
    job: &JobRow,
    summary: &str,
    block: Option<&why::Block>,
    position: Option<Position>,
    kept: Option<&ReservationRow>,
    items: &[Value],
) -> Value {
    json!({
        "kind": "Placement",
        "phase": job.phase,
        "summary": summary,
        "job": block.map(ToString::to_string),
        "reason": block.map(<&str>::from),
        "queue": job.queue,
        "queuePosition": position.map(|position| position.ahead),
        "queuePositionIsLeast": position.is_some_and(|position| position.at_least),
        "roomKept": kept.map(|kept| json!({"node": kept.node, "since": kept.since})),
        "items": items,
    })
}

/// What has to be known of each node, in their order.
struct Views<'a>(Vec<NodeParts<'a>>);

/// A node with what follows from its row.
struct NodeParts<'a> {
    row: &'a NodeRow,
    offer: Option<Offer>,
    used: Used,
    /// Why it cannot be given jobs, where it is to be given them.
    unreachable: Option<String>,
    /// The job that it keeps room for, as `namespace/name`, its place in line and the room.
    kept: Option<(String, i64, Room)>,
}

impl<'a> Views<'a> {
    async fn of(app: &App, nodes: &'a [NodeRow], kept: &[ReservationRow]) -> Result<Self, ApiError> {
        let usage = app.store.node_usage().await?.into_iter();
        let usage: HashMap<_, _> =
            usage.map(|usage| (usage.node, Used { slots: usage.slots, room: room(usage.reserve) })).collect();
        let kept: HashMap<_, _> = kept
            .iter()
            .filter_map(|kept| {
                let job = kept.job.as_ref()?;
                let name = format!("{}/{}", kept.namespace, kept.name);
                Some((kept.node.as_str(), (name, job.rank, room(job.reserve))))
            })
            .collect();
        let parts = |row: &'a NodeRow| NodeParts {
            row,
            offer: row.capability.as_ref().map(|capability| Offer::new(&row.name, capability, &row.spec)),
            used: usage.get(&row.name).copied().unwrap_or_default(),
            unreachable: app.dispatch.why_unreachable(row),
            kept: kept.get(row.name.as_str()).cloned(),
        };
        Ok(Self(nodes.iter().map(parts).collect()))
    }

    fn iter(&self) -> impl Iterator<Item = NodeView<'_>> {
        self.0.iter().map(|NodeParts { row, offer, used, unreachable, kept }| NodeView {
            offer: offer.as_ref(),
            conditions: &row.conditions,
            unschedulable: row.spec.unschedulable,
            hold: row.hold.as_ref().map(hold_phase),
            configured: row.applied_version.is_some(),
            unreachable: unreachable.as_deref(),
            queues: &row.spec.queues,
            slots: present::slots(row),
            used: *used,
            kept: kept.as_ref().map(|(job, rank, room)| KeptView { job, rank: *rank, room: *room }),
        })
    }
}

/// Who holds what is short, for the nodes on which that is the obstacle.
async fn holders(
    app: &App,
    nodes: &[NodeRow],
    verdicts: &[Option<Obstacle>],
) -> Result<HashMap<String, Vec<Holder>>, ApiError> {
    let short = nodes
        .iter()
        .zip(verdicts)
        .filter(|(_, verdict)| verdict.as_ref().is_some_and(|obstacle| obstacle.shortage().is_some()));
    let names: Vec<&str> = short.map(|(node, _)| node.name.as_str()).collect();
    let mut holders: HashMap<String, Vec<Holder>> = HashMap::new();
    for HolderRow { node, namespace, name, waiting, reserve } in app.store.holders(&names, HOLDERS).await? {
        let all = room(reserve);
        let used = if waiting {
            Used { slots: 0, room: Room { cpu_millis: 0, ..all } }
        } else {
            Used { slots: 1, room: all }
        };
        holders.entry(node).or_default().push(Holder { job: format!("{namespace}/{name}"), used });
    }
    Ok(holders)
}

fn item(node: &NodeRow, verdict: Option<&Obstacle>, holders: Option<&Vec<Holder>>) -> Value {
    let Some(obstacle) = verdict else { return json!({"node": node.name, "fits": true}) };
    let mut message = obstacle.to_string();
    let held_by = obstacle.shortage().zip(holders).and_then(|(short, holders)| why::held_by(short, holders));
    if let Some(held_by) = held_by {
        message = format!("{message}; {held_by}");
    }
    json!({
        "node": node.name,
        "fits": false,
        "lasting": obstacle.is_lasting(),
        "reason": obstacle.reason(),
        "message": message,
    })
}
