//! Heartbeats and leases.

use std::collections::HashMap;
use std::time::Duration;

use windlass_crds::protocol::AttemptId;
use windlass_crds::sandbox_job::OfflinePolicy;
use windlass_store::{Beat, BeatOutcome, Store};

use crate::fixtures::{
    LEASE, LONG_LEASE, at, attempt, claim, claimed, finish, is_lost, job, register, registration, reread,
    transit,
};

pub(crate) fn beat(node: &str, held: Vec<AttemptId>) -> Beat {
    Beat {
        node: node.to_owned(),
        boot_id: format!("{node} boot 1"),
        held,
        left: HashMap::new(),
        slots: 4,
        not_ready: None,
        lease: LEASE,
        lease_continue: LONG_LEASE,
    }
}

async fn one(store: &Store, seconds: i64, beat: Beat) -> BeatOutcome {
    let mut outcomes = store.beat(at(seconds), vec![beat]).await.unwrap();
    assert_eq!(outcomes.len(), 1);
    outcomes.remove(0)
}

pub(crate) async fn a_beat_renews_only_what_it_lists(store: Store) {
    register(&store, &["n"]).await;
    for name in ["a", "b"] {
        job(name).create(&store, at(0)).await;
    }
    let continues = |spec: &mut windlass_crds::SandboxJobSpec| spec.offline = Some(OfflinePolicy::Continue);
    job("c").spec(continues).create(&store, at(0)).await;
    let got = claim("n").run(&store, at(0)).await;
    let held = vec![attempt(&got[0]), attempt(&got[2]), attempt(&got[0])];
    let outcome = one(&store, 10, beat("n", held)).await;
    assert_eq!(outcome.renewed, [(attempt(&got[0]), LEASE), (attempt(&got[2]), LONG_LEASE)]);
    assert!(outcome.cancel.is_empty() && outcome.fenced.is_empty() && !outcome.other_boot);
    assert_eq!(outcome.config_version, 1);
    assert_eq!(outcome.capability_hash.as_deref(), Some("capability 1"));
    assert_eq!(reread(&store, &got[0].job.uid).await.lease_until, Some(at(35)));
    assert_eq!(reread(&store, &got[1].job.uid).await.lease_until, Some(at(25)));
    assert_eq!(reread(&store, &got[2].job.uid).await.lease_until, Some(at(910)));
}

pub(crate) async fn a_lease_is_cut_short_only_as_far_as_the_node_keeps_to(store: Store) {
    let got = claimed(&store, "n", "long", at(0)).await;
    let id = attempt(&got);
    let ends = async |seconds, lease, left: Option<u64>| {
        let lease = Duration::from_secs(lease);
        let left = left.map(|left| (id.clone(), Duration::from_secs(left)));
        let beat = Beat { lease, left: left.into_iter().collect(), ..beat("n", vec![id.clone()]) };
        let outcome = one(&store, seconds, beat).await;
        assert_eq!(outcome.renewed, [(id.clone(), lease)], "it is told the lease that is granted now");
        reread(&store, &got.job.uid).await.lease_until.unwrap()
    };
    assert_eq!(ends(0, 900, Some(25)).await, at(900));
    assert_eq!(ends(10, 25, None).await, at(900), "the answer may be lost");
    assert_eq!(ends(20, 25, Some(880)).await, at(900), "it was");
    assert_eq!(ends(30, 25, Some(500)).await, at(530), "cut by somebody else, such as an older answer");
    assert_eq!(ends(40, 25, Some(10)).await, at(65));
    assert_eq!(ends(50, 25, Some(10_000)).await, at(75), "it is not lengthened by what a node says");
}

pub(crate) async fn a_beat_fences_what_is_not_the_nodes(store: Store) {
    let mine = claimed(&store, "n", "mine", at(0)).await;
    let others = claimed(&store, "m", "others", at(0)).await;
    let done = claimed(&store, "n", "done", at(0)).await;
    finish(&store, &done, at(1)).await;
    let lost = claimed(&store, "n", "lost", at(0)).await;
    transit(&store, at(1), is_lost(&lost.job, None)).await;
    let unknown = AttemptId { job: "unknown".into(), epoch: 1 };
    let future = AttemptId { job: mine.job.uid.clone(), epoch: u64::MAX };
    let held = vec![
        attempt(&mine),
        attempt(&others),
        attempt(&done),
        attempt(&lost),
        unknown.clone(),
        future.clone(),
    ];
    let outcome = one(&store, 5, beat("n", held)).await;
    assert_eq!(outcome.renewed, [(attempt(&mine), LEASE)]);
    assert_eq!(outcome.fenced, [attempt(&others), attempt(&done), attempt(&lost), unknown, future]);
    assert_eq!(reread(&store, &others.job.uid).await.lease_until, Some(at(25)));
}

pub(crate) async fn a_beat_orders_the_cancel_of_what_it_renews(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    store.request_cancel(at(1), &got.job.uid).await.unwrap();
    let outcome = one(&store, 5, beat("n", vec![attempt(&got)])).await;
    assert_eq!(outcome.renewed, [(attempt(&got), LEASE)]);
    assert_eq!(outcome.cancel, [attempt(&got)]);
}

pub(crate) async fn a_beat_of_another_run_renews_nothing(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let mut again = registration("n");
    again.boot_id = "n boot 2".to_owned();
    store.register_node(at(1), again).await.unwrap();
    let outcome = one(&store, 10, beat("n", vec![attempt(&got)])).await;
    assert!(outcome.other_boot);
    assert!(outcome.renewed.is_empty() && outcome.fenced.is_empty());
    let node = store.get_node("n").await.unwrap().unwrap();
    assert_eq!((node.last_seen_at, node.slots), (Some(at(1)), 0), "it does not count as a sign of life");
    // The run that is registered now may go on with the attempt.
    let mut beat = beat("n", vec![attempt(&got)]);
    beat.boot_id = "n boot 2".to_owned();
    assert_eq!(one(&store, 11, beat).await.renewed, [(attempt(&got), LEASE)]);
}

pub(crate) async fn a_beat_of_an_unknown_node_renews_nothing(store: Store) {
    let outcome = one(&store, 0, beat("nobody", vec![])).await;
    assert_eq!(outcome, BeatOutcome { other_boot: true, ..BeatOutcome::default() });
}

pub(crate) async fn beats_of_many_nodes_go_in_one_batch(store: Store) {
    let nodes: Vec<String> = (0..50).map(|n| format!("node-{n}")).collect();
    register(&store, &nodes.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut beats = Vec::new();
    let mut held = Vec::new();
    for node in &nodes {
        job(&format!("job-of-{node}")).create(&store, at(0)).await;
        let got = claim(node).run(&store, at(0)).await;
        held.push(attempt(&got[0]));
        beats.push(beat(node, vec![attempt(&got[0])]));
    }
    let outcomes = store.beat(at(10), beats).await.unwrap();
    for (outcome, held) in outcomes.iter().zip(&held) {
        assert_eq!(outcome.renewed, [(held.clone(), LEASE)]);
    }
    assert_eq!(store.expired_leases(at(34), 100).await.unwrap().rows.len(), 0);
    assert_eq!(store.expired_leases(at(35), 100).await.unwrap().rows.len(), 50);
}

pub(crate) async fn a_beat_keeps_what_the_node_says_of_itself(store: Store) {
    register(&store, &["n"]).await;
    let mut sick = beat("n", vec![]);
    sick.not_ready = Some("the disk is full\u{0}".to_owned());
    sick.slots = 7;
    one(&store, 3, sick).await;
    let before = store.get_node("n").await.unwrap().unwrap();
    assert_eq!((before.slots, before.last_seen_at), (7, Some(at(3))));
    assert_eq!(before.not_ready.as_deref(), Some("the disk is full\u{fffd}"));
    one(&store, 13, beat("n", vec![])).await;
    let after = store.get_node("n").await.unwrap().unwrap();
    assert_eq!((after.slots, after.not_ready, after.last_seen_at), (4, None, Some(at(13))));
    assert_eq!(before.resource_version, after.resource_version, "a sign of life is no change");
}

pub(crate) async fn leases_that_have_ended_are_listed_oldest_first(store: Store) {
    let second = claimed(&store, "n", "second", at(10)).await;
    let first = claimed(&store, "n", "first", at(5)).await;
    let third = claimed(&store, "n", "third", at(20)).await;
    let ended = store.expired_leases(at(35), 10).await.unwrap().rows;
    let names: Vec<&str> = ended.iter().map(|(job, _)| job.name.as_str()).collect();
    assert_eq!(names, ["first", "second"]);
    assert_eq!((&ended[0].0, ended[0].1.id()), (&first.job, attempt(&first)));
    assert_eq!(store.expired_leases(at(35), 1).await.unwrap().rows.len(), 1);
    transit(&store, at(36), is_lost(&first.job, None)).await;
    finish(&store, &second, at(36)).await;
    assert_eq!(store.expired_leases(at(40), 10).await.unwrap().rows.len(), 0);
    assert_eq!(store.expired_leases(at(45), 10).await.unwrap().rows[0].0.uid, third.job.uid);
}

pub(crate) async fn a_planned_stop_extends_leases_and_shortens_none(store: Store) {
    let short = claimed(&store, "n", "short", at(0)).await;
    let continues = |spec: &mut windlass_crds::SandboxJobSpec| spec.offline = Some(OfflinePolicy::Continue);
    job("long").spec(continues).create(&store, at(0)).await;
    let long = claim("n").run(&store, at(0)).await.remove(0);
    let done = claimed(&store, "n", "done", at(0)).await;
    finish(&store, &done, at(1)).await;
    assert_eq!(store.extend_all_leases(at(1), at(600)).await.unwrap(), 1);
    assert_eq!(reread(&store, &short.job.uid).await.lease_until, Some(at(600)));
    assert_eq!(reread(&store, &long.job.uid).await.lease_until, Some(at(900)));
    assert_eq!(store.attempts(&done.job.uid).await.unwrap()[0].lease_until, at(25));
    assert_eq!(store.extend_all_leases(at(1), at(0)).await.unwrap(), 0);
}

pub(crate) async fn leases_follow_a_clock_that_was_put_forward(store: Store) {
    let live = claimed(&store, "n", "live", at(0)).await;
    let done = claimed(&store, "n", "done", at(0)).await;
    finish(&store, &done, at(1)).await;
    assert_eq!(store.move_leases(std::time::Duration::from_secs(60)).await.unwrap(), 1);
    assert_eq!(reread(&store, &live.job.uid).await.lease_until, Some(at(85)));
    assert_eq!(store.attempts(&done.job.uid).await.unwrap()[0].lease_until, at(25));
    assert_eq!(store.expired_leases(at(84), 10).await.unwrap().rows.len(), 0);
    assert_eq!(store.expired_leases(at(85), 10).await.unwrap().rows.len(), 1);
}

pub(crate) async fn live_attempts_are_those_the_node_holds(store: Store) {
    let a = claimed(&store, "n", "a", at(0)).await;
    let b = claimed(&store, "n", "b", at(1)).await;
    claimed(&store, "m", "c", at(2)).await;
    let ids = |attempts: Vec<windlass_store::AttemptRow>| {
        attempts.iter().map(windlass_store::AttemptRow::id).collect::<Vec<_>>()
    };
    assert_eq!(ids(store.live_attempts("n").await.unwrap()), [attempt(&a), attempt(&b)]);
    assert_eq!(store.get_node("n").await.unwrap().unwrap().running, 2);
    finish(&store, &a, at(3)).await;
    assert_eq!(ids(store.live_attempts("n").await.unwrap()), [attempt(&b)]);
    assert_eq!(store.get_node("n").await.unwrap().unwrap().running, 1);
}
