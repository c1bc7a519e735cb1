//! One row for each reason, in the order in which they are checked.

use std::collections::BTreeSet;

use proptest::prelude::*;
use windlass_crds::sandbox_job::{Network, Runtime, SandboxJobSpec};

use super::*;
use crate::requirement;

fn offer() -> Offer {
    Offer {
        working_runtimes: BTreeSet::from([Runtime::Native]),
        permitted_networks: BTreeSet::from([Network::None]),
        working_networks: BTreeSet::from([Network::None]),
        capacity: Room { cpu_millis: 4000, memory_bytes: 8 << 30, gpus: 0 },
        ..Default::default()
    }
}

fn condition(status: ConditionStatus, reason: &str, message: &str) -> Condition {
    Condition {
        condition_type: "Ready".to_owned(),
        status,
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: at(0),
        observed_generation: None,
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn node(offer: &Offer) -> NodeView<'_> {
    NodeView {
        offer: Some(offer),
        conditions: &[],
        unschedulable: false,
        hold: None,
        configured: true,
        unreachable: None,
        queues: &[],
        slots: 2,
        used: Used::default(),
        kept: None,
    }
}

fn job<'a>(requirement: &'a Requirement, room: Room) -> JobView<'a> {
    JobView {
        phase: JobPhase::Queued,
        node: None,
        queue: "default",
        queue_limit: None,
        suspend: false,
        not_before: None,
        hold_until: None,
        requirement,
        room,
        rank: Some(10),
    }
}

fn of(json: &str) -> (Requirement, Room) {
    let spec: SandboxJobSpec = serde_json::from_str(json).expect("the test's own spec is valid");
    (Requirement::of(&spec), requirement::room(&spec))
}

#[test]
fn the_first_reason_of_a_node_is_named() {
    let offer = offer();
    let (requirement, room) = of(r#"{"requires":{"cpu":2,"memory":"1Gi"}}"#);
    let stale = [condition(ConditionStatus::Unknown, "HeartbeatStale", "the last heartbeat came 40 s ago")];
    let silent = [condition(ConditionStatus::False, "ClaimChannelSilent", "it does not ask for work")];
    let healthy = [condition(ConditionStatus::True, "Healthy", "")];
    let others = ["batch".to_owned()];
    let free = node(&offer);
    let busy = |slots, cpu_millis, gib: u64| Used {
        slots,
        room: Room { cpu_millis, memory_bytes: gib << 30, gpus: 0 },
    };
    let rows: [(NodeView<'_>, Option<(&str, &str)>); 14] = [
        (NodeView { conditions: &healthy, ..free }, None),
        (NodeView { offer: None, ..free }, Some(("NotRegistered", "the node has not registered yet"))),
        (
            NodeView { queues: &others, conditions: &stale, ..free },
            Some(("Queue", "the node does not serve the queue `default`")),
        ),
        (
            NodeView { conditions: &stale, unschedulable: true, ..free },
            Some(("Offline", "the node is offline: the last heartbeat came 40 s ago")),
        ),
        (
            NodeView { conditions: &silent, unschedulable: true, ..free },
            Some(("ClaimChannelSilent", "the node is not ready: it does not ask for work")),
        ),
        (
            NodeView { hold: Some(HoldPhase::Cordoned), unschedulable: true, ..free },
            Some(("Cordoned", "the node is cordoned; `windlass uncordon` lifts that")),
        ),
        (
            NodeView { hold: Some(HoldPhase::Stopping), ..free },
            Some(("Stopping", "the node is being drained")),
        ),
        (
            NodeView { unschedulable: true, configured: false, ..free },
            Some(("Unschedulable", "the node's manifest says `unschedulable: true`")),
        ),
        (
            NodeView { configured: false, ..free },
            Some(("Unconfigured", "the node has not applied its configuration yet")),
        ),
        (
            NodeView { unreachable: Some("connection refused"), used: busy(2, 4000, 0), ..free },
            Some(("Unreachable", "the controller cannot give it jobs: connection refused")),
        ),
        (NodeView { used: busy(2, 4000, 0), ..free }, Some(("Full", "all 2 slots are taken"))),
        (
            NodeView { used: busy(1, 2500, 8), ..free },
            Some(("Busy", "2 of cpu are needed and 1500m of 4 are free")),
        ),
        (
            NodeView { used: busy(1, 2000, 8), ..free },
            Some(("Busy", "1Gi of memory are needed and 0 of 8Gi are free")),
        ),
        (NodeView { used: busy(1, 2000, 7), ..free }, None),
    ];
    for (node, expected) in rows {
        let found = obstacle(&job(&requirement, room), &node);
        let found = found.map(|obstacle| (obstacle.reason().to_owned(), obstacle.to_string()));
        let found = found.as_ref().map(|(reason, message)| (reason.as_str(), message.as_str()));
        assert_eq!(found, expected, "{node:?}");
    }
}

#[test]
fn what_lasts_comes_before_what_passes() {
    let offer = offer();
    let (requirement, room) = of(r#"{"nodeSelector":{"zone":"a"}}"#);
    let stale = [condition(ConditionStatus::Unknown, "HeartbeatStale", "")];
    let node = NodeView { conditions: &stale, unschedulable: true, ..node(&offer) };
    let found = obstacle(&job(&requirement, room), &node).unwrap();
    assert_eq!((found.reason(), found.is_lasting()), ("Selector", true));
}

#[test]
fn what_keeps_the_job_from_every_node_is_said_once() {
    let (requirement, room) = of("{}");
    let job = job(&requirement, room);
    let told = |job: JobView<'_>| block(&job, at(100)).map(|block| block.to_string());
    assert_eq!(told(job), None);
    assert_eq!(told(JobView { not_before: Some(at(100)), ..job }), None, "its time has come");
    assert_eq!(told(JobView { queue_limit: Some((3, 2)), ..job }), None);
    for (job, expected) in [
        (JobView { phase: JobPhase::Failed, ..job }, "it has ended as Failed"),
        (JobView { phase: JobPhase::Running, node: Some("n1"), ..job }, "it is Running on node `n1`"),
        (JobView { phase: JobPhase::PendingApproval, ..job }, "it waits for approval"),
        (JobView { suspend: true, not_before: Some(at(200)), ..job }, "it is suspended (spec.suspend)"),
        (
            JobView { queue_limit: Some((3, 3)), ..job },
            "queue `default` has reached its limit of 3 running jobs",
        ),
        (JobView { not_before: Some(at(200)), ..job }, "it is tried again at 1970-01-01T00:03:20Z"),
        (
            JobView { not_before: Some(at(200)), hold_until: Some(at(190)), ..job },
            "it is tried again at 1970-01-01T00:03:20Z",
        ),
        (
            JobView { not_before: Some(at(200)), hold_until: Some(at(200)), ..job },
            "the store was restored from a backup, and the job may be running since on a node: it is held until \
             1970-01-01T00:03:20Z",
        ),
    ] {
        assert_eq!(told(job).as_deref(), Some(expected));
    }
}

#[test]
fn the_summary_counts_the_nodes_and_says_where_the_job_stands() {
    let (requirement, room) = of("{}");
    let job = job(&requirement, room);
    let offline = || Some(Obstacle::Offline { message: String::new() });
    let never = || Some(Obstacle::Queue { queue: "default".to_owned() });
    let at_position = |ahead, at_least| Some(Position { ahead, at_least });
    let told = |position, verdicts: &[Option<Obstacle>]| summary(&job, None, position, verdicts);
    for (position, verdicts, expected) in [
        (None, vec![], "there is no node yet; `windlass join-token create` makes a token for one"),
        (
            at_position(0, false),
            vec![None],
            "the only node has room for it; it is the next of queue `default`",
        ),
        (
            at_position(1, false),
            vec![None, never()],
            "1 of 2 nodes has room for it; 1 job is before it in queue `default`",
        ),
        (
            at_position(900, true),
            vec![offline(), never(), offline()],
            "no node takes it now; 2 of 3 nodes could later (Offline 2); at least 900 jobs are before it in queue `default`",
        ),
        (at_position(5, false), vec![never(), never()], "it fits no node (Queue 2)"),
    ] {
        assert_eq!(told(position, &verdicts), expected);
    }
    let suspended = summary(&job, Some(&Block::Suspended), None, &[]);
    assert_eq!(suspended, "it is suspended (spec.suspend)");
}

#[test]
fn those_who_hold_most_are_named_first() {
    let holder = |job: &str, cpu_millis| Holder {
        job: job.to_owned(),
        used: Used { slots: 1, room: Room { cpu_millis, ..Room::default() } },
    };
    let holders =
        [holder("d/a", 100), holder("d/b", 2000), holder("d/c", 0), holder("d/d", 500), holder("d/e", 100)];
    assert_eq!(held_by(Resource::Cpu, &holders).as_deref(), Some("held by d/b, d/d, d/a and 1 more"));
    assert_eq!(held_by(Resource::Cpu, &holders[1..2]).as_deref(), Some("held by d/b"));
    assert_eq!(held_by(Resource::Gpus, &holders), None);
}

proptest! {
    /// What the claim would do and what is told are one and the same.
    #[test]
    fn a_node_without_an_obstacle_has_the_room(
        cpu in 0u64..6000, memory in 0u64..10, used_cpu in 0u64..5000, used_memory in 0u64..9, slots in 0u32..4,
    ) {
        let offer = offer();
        let (requirement, _) = of("{}");
        let room = Room { cpu_millis: cpu, memory_bytes: memory << 30, gpus: 0 };
        let used = Used { slots, room: Room { cpu_millis: used_cpu, memory_bytes: used_memory << 30, gpus: 0 } };
        let found = obstacle(&job(&requirement, room), &NodeView { used, ..node(&offer) });
        let free = Room {
            cpu_millis: offer.capacity.cpu_millis.saturating_sub(used_cpu),
            memory_bytes: offer.capacity.memory_bytes.saturating_sub(used_memory << 30),
            gpus: 0,
        };
        prop_assert_eq!(found.is_none(), slots < 2 && room.fits(free));
    }
}

#[test]
fn room_that_is_kept_is_named_to_those_who_come_later_and_its_growth_to_the_job_itself() {
    let (requirement, room) = of(r#"{"requires":{"cpu":2}}"#);
    let offer = offer();
    let busy = Used { slots: 1, room: Room { cpu_millis: 1000, ..Room::default() } };
    let kept = KeptView { job: "ci/large", rank: 5, room: Room { cpu_millis: 3000, ..Room::default() } };
    let view = NodeView { used: busy, kept: Some(kept), slots: 8, ..node(&offer) };
    let first = JobView { rank: Some(4), ..job(&requirement, room) };
    assert_eq!(obstacle(&first, &view), None, "it comes before the one that room is kept for");
    let itself = JobView { rank: Some(5), ..first };
    assert_eq!(obstacle(&itself, &view), None);
    for rank in [Some(6), None] {
        let later = JobView { rank, ..first };
        let found = obstacle(&later, &view).expect("something is in the way");
        assert_eq!(
            (found.reason(), found.to_string().as_str(), found.is_lasting()),
            ("Kept", "room is kept for ci/large, which others passed over", false)
        );
    }
    let small = JobView { rank: Some(6), room: Room::default(), ..first };
    assert_eq!(obstacle(&small, &view), None, "it fits beside");
    let full = NodeView { slots: 2, ..view };
    assert_eq!(obstacle(&small, &full).expect("the last slot is kept too").reason(), "Kept");

    let large = JobView { room: kept.room, ..first };
    let fuller = NodeView { used: Used { room: Room { cpu_millis: 2500, ..busy.room }, ..busy }, ..view };
    assert_eq!(so_far(&large, "n2", &fuller), "room is kept on `n2`: 1500m of 3 cpu free so far");
    assert_eq!(so_far(&large, "n2", &view), "room is kept on `n2`: all of it is free now");
}
