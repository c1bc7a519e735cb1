//! Keeps room for jobs that others pass over; claims honour what is kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use windlass_core::placement::Offer;
use windlass_core::requirement::Room;
use windlass_core::reservation::{self, GiveBack, Keep, Kept, Node, Plan, Shortages, Snapshot, Waiting};
use windlass_core::why::Used;
use windlass_crds::conditions::ConditionStatus;
use windlass_store::{EventLevel, NewEvent, NewReservation, NodeRow, Store, WaitingRow};

use crate::clock::Clock;
use crate::dispatch::{self, Dispatch, room};
use crate::error::ApiError;

/// The most lanes that are looked at, those that come first in line: more than have ready jobs in any but the oddest fleet.
const LANES: u32 = 20_000;

/// Keeps room for jobs that others pass over; cheap to clone.
#[derive(Clone)]
pub struct Reservations {
    dispatch: Dispatch,
    store: Store,
    clock: Arc<dyn Clock>,
    after: Duration,
    /// Since when which lanes have been short, as this controller has seen it while it leads: one that comes up counts
    /// anew. The lock is held only to exchange it.
    shortages: Arc<Mutex<Shortages>>,
}

impl Reservations {
    /// A reconciler that works on this store and keeps room for jobs that were passed over for so long.
    pub fn new(dispatch: Dispatch, store: Store, clock: Arc<dyn Clock>, after: Duration) -> Self {
        Self { dispatch, store, clock, after, shortages: Arc::default() }
    }

    /// One round.
    pub async fn reconcile(&self) -> Result<(), ApiError> {
        // Of several controllers one does this, and only while it leads.
        let Some(store) = self.store.as_leader() else {
            self.exchange(Shortages::default());
            return Ok(());
        };
        let waiting = store.first_of_lanes(LANES).await?;
        let kept = store.reservations().await?;
        if waiting.is_empty() && kept.is_empty() {
            self.exchange(Shortages::default());
            return Ok(());
        }
        let limits = limits(&store).await?;
        let waiting_job = |row: WaitingRow| Waiting {
            permitted: limits.get(&row.queue).is_none_or(|(limit, running)| running < limit),
            uid: row.uid,
            lane: row.lane,
            class: row.class,
            queue: row.queue,
            rank: row.rank,
            room: room(row.reserve),
            since: row.since,
        };
        let nodes = self.nodes(&store).await?;
        let snapshot = Snapshot {
            nodes: nodes.iter().map(Seen::view).collect(),
            waiting: waiting.into_iter().map(waiting_job).collect(),
            kept: kept
                .into_iter()
                .map(|row| Kept {
                    node: row.node,
                    uid: row.uid,
                    job: row.job.map(waiting_job),
                    since: row.since,
                    moves: row.moves,
                })
                .collect(),
        };
        let now = self.clock.now();
        let before = self.exchange(Shortages::default());
        let plan = reservation::plan(&snapshot, &before, self.after, now);
        self.exchange(plan.shortages.clone());
        self.apply(&store, now, plan).await
    }

    async fn apply(&self, store: &Store, now: jiff::Timestamp, plan: Plan) -> Result<(), ApiError> {
        let Plan { give_back, keep, shortages: _ } = plan;
        if give_back.is_empty() && keep.is_empty() {
            return Ok(());
        }
        for GiveBack { node, uid } in &give_back {
            tracing::debug!(node.name = %node, job.id = %uid, "room is kept no more");
        }
        let give_back = give_back.into_iter().map(|GiveBack { node, uid }| (node, uid)).collect();
        let keep = keep.into_iter().map(|Keep { node, uid, moves }| NewReservation { node, uid, moves });
        let kept = store.keep_room(now, give_back, keep.collect()).await?;
        let uids: Vec<String> = kept.iter().map(|kept| kept.uid.clone()).collect();
        let jobs = store.get_jobs(&uids).await?.into_iter();
        let names: HashMap<String, String> =
            jobs.map(|job| (job.uid, format!("{}/{}", job.namespace, job.name))).collect();
        for NewReservation { node, uid, moves: _ } in kept {
            // One that was deleted just now has no name any more.
            let name = names.get(&uid).unwrap_or(&uid);
            tracing::info!(node.name = %node, job.id = %uid, "room is kept for a job that others passed over");
            let event = NewEvent {
                message: format!(
                    "room is kept on node `{node}` for job `{name}`: no node that it fits has had enough"
                ),
                job: Some(uid),
                node: Some(node),
                level: EventLevel::Info,
                source: "placement".to_owned(),
                reason: "RoomKept".to_owned(),
                data: None,
            };
            store.append_event(now, event).await?;
        }
        Ok(())
    }

    /// The nodes that have reported what they can do.
    async fn nodes(&self, store: &Store) -> Result<Vec<Seen>, ApiError> {
        let usage = store.node_usage().await?.into_iter();
        let mut usage: HashMap<_, _> =
            usage.map(|usage| (usage.node, Used { slots: usage.slots, room: room(usage.reserve) })).collect();
        let mut seen = Vec::new();
        for node in store.list_nodes().await? {
            let Some(capability) = &node.capability else { continue };
            let offer = Offer::new(&node.name, capability, &node.spec);
            seen.push(Seen {
                classes: self.dispatch.fitting(&offer).await?,
                capacity: offer.capacity,
                used: usage.remove(&node.name).unwrap_or_default(),
                node,
            });
        }
        Ok(seen)
    }

    fn exchange(&self, shortages: Shortages) -> Shortages {
        std::mem::replace(&mut *self.shortages.lock().unwrap_or_else(PoisonError::into_inner), shortages)
    }
}

/// The queues with a limit, with it and with how many of their jobs run.
async fn limits(store: &Store) -> Result<HashMap<String, (u32, u32)>, ApiError> {
    let settings = store.queue_settings().await?.into_iter();
    let limit = settings.filter_map(|row| Some((row.queue, (row.settings.concurrency?, row.running))));
    Ok(limit.collect())
}

/// A node with what follows from its row.
struct Seen {
    node: NodeRow,
    classes: Arc<Vec<i64>>,
    capacity: Room,
    used: Used,
}

impl Seen {
    fn view(&self) -> Node<'_> {
        let ready = self.node.conditions.iter().find(|condition| condition.condition_type == "Ready");
        Node {
            name: &self.node.name,
            open: !dispatch::is_closed(&self.node)
                && ready.is_none_or(|ready| ready.status == ConditionStatus::True),
            classes: &self.classes,
            queues: &self.node.spec.queues,
            slots: dispatch::slots(&self.node),
            capacity: self.capacity,
            used: self.used,
        }
    }
}
