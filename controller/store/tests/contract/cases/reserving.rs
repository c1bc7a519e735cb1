//! Room that is kept for jobs that others pass over.

use windlass_crds::JobPhase;
use windlass_store::{
    Change, LiveAttempts, NewReservation, QueueSettings, ReservationRow, Reserve, Store, WaitingRow,
};

use crate::fixtures::{ClaimBuilder, at, claim, finish, job, register, transit, transition};

/// A node with four cores that asks for work.
fn four(node: &str) -> ClaimBuilder {
    claim(node).capacity(4000, 1 << 40, 0)
}

async fn keep(store: &Store, node: &str, uid: &str) -> bool {
    let new = NewReservation { node: node.to_owned(), uid: uid.to_owned(), moves: 0 };
    store.keep_room(at(100), vec![], vec![new]).await.unwrap().len() == 1
}

async fn kept(store: &Store) -> Vec<(String, String)> {
    let rows = store.reservations().await.unwrap();
    rows.into_iter().filter(|row| row.job.is_some()).map(|row| (row.node, row.name)).collect()
}

fn of(node: &str, name: &str) -> (String, String) {
    (node.to_owned(), name.to_owned())
}

pub(crate) async fn the_first_of_each_lane_are_listed_in_line(store: Store) {
    register(&store, &["n"]).await;
    for (name, queue, cpu, second) in
        [("a1", "a", 1000, 0), ("a2", "a", 1000, 1), ("b1", "b", 1000, 2), ("a-large", "a", 4000, 3)]
    {
        job(name).queue(queue).reserve(cpu, 0, 0).create(&store, at(second * 60)).await;
    }
    job("urgent").queue("b").priority(900).reserve(2000, 0, 0).create(&store, at(240)).await;
    let names = async |limit| {
        let rows = store.first_of_lanes(limit).await.unwrap();
        rows.into_iter().map(|row| row.uid.split('-').nth(1).unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(10).await, ["urgent", "a1", "b1", "a"]);
    assert_eq!(names(2).await, ["urgent", "a1"]);
    let first = store.first_of_lanes(1).await.unwrap().remove(0);
    let WaitingRow { queue, reserve, since, .. } = first;
    assert_eq!((queue.as_str(), reserve.cpu_millis, since), ("b", 2000, at(240)));
    claim("n").max(2).run(&store, at(300)).await;
    assert_eq!(names(10).await, ["a2", "b1", "a"]);
}

pub(crate) async fn jobs_that_come_later_get_only_what_is_left_beside(store: Store) {
    register(&store, &["n"]).await;
    job("early").reserve(1000, 0, 0).create(&store, at(0)).await;
    let early = four("n").run(&store, at(0)).await;
    let large = job("large").reserve(3500, 0, 0).create(&store, at(60)).await;
    job("small").reserve(1000, 0, 0).create(&store, at(120)).await;
    job("tiny").reserve(500, 0, 0).create(&store, at(180)).await;
    job("nothing").create(&store, at(240)).await;
    assert!(keep(&store, "n", &large.uid).await);
    assert_eq!(four("n").names(&store, at(300)).await, ["nothing"], "what needs none of it may run");
    finish(&store, &early[0], at(301)).await;
    assert_eq!(four("n").max(1).names(&store, at(302)).await, ["large"]);
    assert_eq!(store.reservations().await.unwrap(), [], "the claim has ended it");
    assert_eq!(four("n").names(&store, at(303)).await, ["tiny"], "what is left is there for everybody");
}

pub(crate) async fn a_job_that_comes_before_is_never_refused(store: Store) {
    register(&store, &["n"]).await;
    job("runs").reserve(1000, 0, 0).create(&store, at(0)).await;
    four("n").run(&store, at(0)).await;
    let large = job("large").reserve(4000, 0, 0).create(&store, at(60)).await;
    assert!(keep(&store, "n", &large.uid).await);
    job("urgent").priority(900).reserve(1000, 0, 0).create(&store, at(120)).await;
    job("later").reserve(1000, 0, 0).create(&store, at(120)).await;
    job("urgent-too").priority(900).reserve(2000, 0, 0).create(&store, at(120)).await;
    assert_eq!(four("n").names(&store, at(121)).await, ["urgent", "urgent-too"]);
    assert_eq!(kept(&store).await, [of("n", "large")]);
}

pub(crate) async fn the_last_slot_is_kept_too(store: Store) {
    register(&store, &["n"]).await;
    job("runs").reserve(3000, 0, 0).create(&store, at(0)).await;
    let runs = four("n").slots(3).run(&store, at(0)).await;
    let large = job("large").reserve(4000, 0, 0).create(&store, at(60)).await;
    job("one").create(&store, at(120)).await;
    job("two").create(&store, at(120)).await;
    assert!(keep(&store, "n", &large.uid).await);
    assert_eq!(four("n").slots(3).names(&store, at(121)).await, ["one"]);
    finish(&store, &runs[0], at(122)).await;
    assert_eq!(four("n").slots(3).names(&store, at(123)).await, ["large", "two"]);
}

pub(crate) async fn another_node_may_take_the_job_and_frees_what_was_kept(store: Store) {
    register(&store, &["n", "m"]).await;
    job("runs").reserve(1000, 0, 0).create(&store, at(0)).await;
    four("n").run(&store, at(0)).await;
    let large = job("large").reserve(4000, 0, 0).create(&store, at(60)).await;
    job("small").reserve(1000, 0, 0).create(&store, at(120)).await;
    assert!(keep(&store, "n", &large.uid).await);
    assert!(!keep(&store, "m", &large.uid).await, "one node keeps room for a job");
    let mut changes = store.changes();
    assert_eq!(four("m").names(&store, at(121)).await, ["large"]);
    let mut told = Vec::new();
    while let Ok(change) = changes.try_recv() {
        told.push(change);
    }
    // What another process has changed is told without what.
    assert!(told.iter().any(|change| matches!(change, Change::Queued | Change::Any)), "{told:?}");
    assert_eq!(four("n").names(&store, at(122)).await, ["small"]);
}

pub(crate) async fn one_node_keeps_room_for_one_job(store: Store) {
    register(&store, &["n"]).await;
    let one = job("one").reserve(4000, 0, 0).create(&store, at(0)).await;
    let two = job("two").reserve(3000, 0, 0).create(&store, at(60)).await;
    assert!(keep(&store, "n", &one.uid).await);
    assert!(!keep(&store, "n", &two.uid).await);
    assert!(!keep(&store, "nowhere", &two.uid).await);
    assert!(!keep(&store, "n", "no such job").await);
    let new = NewReservation { node: "n".to_owned(), uid: two.uid.clone(), moves: 3 };
    let give_back = vec![("n".to_owned(), one.uid.clone())];
    let kept = store.keep_room(at(100), give_back, vec![new.clone()]).await.unwrap();
    assert_eq!(kept, [new]);
    // What has changed hands meanwhile is not given back by those who knew the former holder.
    store.keep_room(at(101), vec![("n".to_owned(), one.uid)], vec![]).await.unwrap();
    let rows = store.reservations().await.unwrap();
    let [ReservationRow { node, uid, name, since, moves, job: Some(job), .. }] = &rows[..] else {
        panic!("{rows:?}")
    };
    let expected = ("n", two.uid.as_str(), "two", at(100), 3);
    assert_eq!((node.as_str(), uid.as_str(), name.as_str(), *since, *moves), expected);
    assert_eq!(job.reserve, Reserve { cpu_millis: 3000, ..Reserve::default() });
    assert_eq!(store.rank(&two.uid).await.unwrap(), Some(job.rank));
}

pub(crate) async fn nothing_is_kept_for_a_job_that_could_not_be_claimed(store: Store) {
    register(&store, &["n", "m"]).await;
    let large = job("large").queue("big").reserve(4000, 0, 0).create(&store, at(0)).await;
    job("small").reserve(1000, 0, 0).create(&store, at(60)).await;
    assert!(keep(&store, "n", &large.uid).await);
    let busy = async |slots| four("n").slots(slots).queues(&["default"]).names(&store, at(61)).await;
    // Of a node that does not serve its queue, or has become too small, nothing is kept.
    assert_eq!(busy(1).await, ["small"]);
    job("small-2").reserve(1000, 0, 0).create(&store, at(60)).await;
    let shrunk = claim("n").capacity(3000, 1 << 40, 0);
    assert_eq!(shrunk.names(&store, at(62)).await, ["small-2"]);
    job("small-3").reserve(1000, 0, 0).create(&store, at(60)).await;
    assert_eq!(four("n").names(&store, at(63)).await, Vec::<String>::new());
    // Its queue is at its limit.
    let limit = QueueSettings { weight: 1, concurrency: Some(0) };
    store.set_queue(at(64), "big", limit).await.unwrap();
    assert_eq!(four("n").names(&store, at(65)).await, ["small-3"]);
    store.unset_queue("big").await.unwrap();
    job("small-4").reserve(1000, 0, 0).create(&store, at(60)).await;
    assert_eq!(four("n").names(&store, at(66)).await, Vec::<String>::new());
    // It is cancelled.
    store.request_cancel(at(67), &large.uid).await.unwrap();
    assert_eq!(kept(&store).await, []);
    assert_eq!(store.rank(&large.uid).await.unwrap(), None);
    assert_eq!(four("n").names(&store, at(68)).await, ["small-4"]);
    assert!(!keep(&store, "m", &large.uid).await, "it does not wait any more");
}

pub(crate) async fn what_is_kept_goes_with_the_job_and_with_the_node(store: Store) {
    register(&store, &["n", "m"]).await;
    let one = job("one").create(&store, at(0)).await;
    let two = job("two").create(&store, at(0)).await;
    assert!(keep(&store, "n", &one.uid).await && keep(&store, "m", &two.uid).await);
    store.delete_job(at(1), &one.uid, None).await.unwrap();
    assert_eq!(kept(&store).await, [of("m", "two")]);
    store.delete_node(at(2), "m", LiveAttempts::Refuse, None).await.unwrap();
    assert_eq!(store.reservations().await.unwrap(), []);
}

pub(crate) async fn queues_with_weights_honour_what_is_kept(store: Store) {
    register(&store, &["n"]).await;
    store.set_queue(at(0), "many", QueueSettings { weight: 9, concurrency: None }).await.unwrap();
    job("runs").queue("few").reserve(1000, 0, 0).create(&store, at(0)).await;
    let runs = four("n").run(&store, at(0)).await;
    let large = job("large").queue("few").reserve(4000, 0, 0).create(&store, at(60)).await;
    for n in 0..20 {
        job(&format!("many-{n}")).queue("many").reserve(1000, 0, 0).create(&store, at(120)).await;
    }
    job("many-free").queue("many").create(&store, at(180)).await;
    assert!(keep(&store, "n", &large.uid).await);
    assert_eq!(four("n").names(&store, at(181)).await, ["many-free"]);
    finish(&store, &runs[0], at(182)).await;
    // It is the turn of the other queue, all of whose jobs come later.
    assert_eq!(four("n").names(&store, at(183)).await, ["large"]);
}

pub(crate) async fn what_is_kept_is_honoured_with_many_classes(store: Store) {
    register(&store, &["n"]).await;
    job("runs").reserve(1000, 0, 0).create(&store, at(0)).await;
    let runs = four("n").run(&store, at(0)).await;
    let large = job("large").class("large").reserve(4000, 0, 0).create(&store, at(60)).await;
    let small = (0..300).map(|n| job(&format!("s-{n}")).class(&format!("c{n}")).reserve(1000, 0, 0).build());
    store.create_jobs(at(120), small.collect()).await.unwrap();
    job("free").class("free").create(&store, at(180)).await;
    assert!(keep(&store, "n", &large.uid).await);
    assert_eq!(four("n").max(1).names(&store, at(181)).await, ["free"]);
    assert_eq!(four("n").names(&store, at(181)).await, Vec::<String>::new());
    transit(&store, at(182), transition(&runs[0].job, |set| set.phase = JobPhase::Running)).await;
    finish(&store, &runs[0], at(183)).await;
    assert_eq!(four("n").max(1).names(&store, at(184)).await, ["large"]);
}

pub(crate) async fn ten_thousand_distinct_requirements_are_claimed_in_line(store: Store) {
    const DISTINCT: usize = 10_000;
    register(&store, &["n"]).await;
    for batch in (0..DISTINCT).collect::<Vec<_>>().chunks(1000) {
        let jobs = batch.iter().map(|n| job(&format!("j-{n:05}")).class(&format!("c{n}")).build());
        store.create_jobs(at(0), jobs.collect()).await.unwrap();
    }
    let classes = crate::fixtures::all_classes(&store).await;
    assert_eq!(classes.len(), DISTINCT);
    assert_eq!(four("n").max(3).names(&store, at(1)).await, ["j-00000", "j-00001", "j-00002"]);
    // A node that fits only the last ones finds them behind all the others.
    let last = four("n").classes(&classes[DISTINCT - 3..]).max(2);
    assert_eq!(last.names(&store, at(2)).await, ["j-09997", "j-09998"]);
    // So does one that fits many, none of them near the front.
    let half = four("n").classes(&classes[DISTINCT / 2..]).max(2);
    assert_eq!(half.names(&store, at(3)).await, ["j-05000", "j-05001"]);
    assert_eq!(store.first_of_lanes(5).await.unwrap().len(), 5);
}
