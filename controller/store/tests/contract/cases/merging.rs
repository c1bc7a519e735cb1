//! What waits for the writer at the same time is carried out together, and is answered as if it had come one after the other.

use std::collections::{HashMap, HashSet};
use std::future::Future;

use tokio::task::JoinSet;
use windlass_crds::JobPhase;
use windlass_crds::protocol::Outcome;
use windlass_store::{ClaimedJob, CreateOutcome, Error, Store, TransitionOutcome};

use crate::fixtures::{
    LEASE, LONG_LEASE, all_classes, at, attempt, claim, job, log, register, reread, succeeds, terminal,
};

/// Hands everything in while the writer has its hands full, so that most of it waits at the same time.
async fn at_once<T: Send + 'static>(
    store: &Store,
    calls: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let filler = (0..2000).map(|n| job(&format!("filler-{n}")).queue("filler").class("filler").build());
    let busy = tokio::spawn({
        let (store, jobs) = (store.clone(), filler.collect());
        async move { store.create_jobs(at(0), jobs).await }
    });
    let mut calls: JoinSet<(usize, T)> =
        calls.into_iter().enumerate().map(|(number, call)| async move { (number, call.await) }).collect();
    let mut answers = Vec::with_capacity(calls.len());
    while let Some(answer) = calls.join_next().await {
        answers.push(answer.unwrap());
    }
    busy.await.unwrap().unwrap();
    answers.sort_by_key(|(number, _)| *number);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

pub(crate) async fn a_creation_fails_alone(store: Store) {
    let calls = (0..40).map(|n| {
        let store = store.clone();
        async move {
            let new = job(&format!("job-{n}")).class(&format!("class-{}", n % 4));
            let new = if n % 8 == 3 { new.input("sha256:missing") } else { new };
            store.create_jobs(at(1), vec![new.build(), job(&format!("second-{n}")).build()]).await
        }
    });
    let answers = at_once(&store, calls).await;
    for (n, answer) in answers.into_iter().enumerate() {
        let kept = store.get_job("default", &format!("second-{n}")).await.unwrap();
        if n % 8 == 3 {
            assert!(matches!(answer, Err(Error::NotFound { object: "input", .. })), "{n}: {answer:?}");
            assert_eq!(kept, None, "{n} is taken back as a whole");
            continue;
        }
        let outcomes = answer.unwrap();
        assert_eq!(outcomes.len(), 2, "{n}");
        let CreateOutcome::Created(second) = &outcomes[1] else { panic!("{n}: {:?}", outcomes[1]) };
        assert_eq!(kept.as_ref(), Some(second), "{n}");
    }
}

pub(crate) async fn one_name_is_created_once(store: Store) {
    let calls = (0..30).map(|n| {
        let store = store.clone();
        async move {
            let new = job("same").uid(&format!("uid-{n}")).build();
            store.create_jobs(at(1), vec![new]).await.unwrap().remove(0)
        }
    });
    let mut created = 0;
    let mut kept = |outcomes: Vec<CreateOutcome>| {
        let mut uids = HashSet::new();
        for outcome in outcomes {
            match outcome {
                CreateOutcome::Created(row) => {
                    created += 1;
                    uids.insert(row.uid);
                }
                CreateOutcome::NameTaken(row) => {
                    uids.insert(row.uid);
                }
                other => panic!("{other:?}"),
            }
        }
        uids
    };
    let uids = kept(at_once(&store, calls).await);
    assert_eq!((created, uids.len()), (1, 1));
}

pub(crate) async fn each_node_gets_what_fits_it_and_no_more(store: Store) {
    let nodes: Vec<String> = (0..24).map(|n| format!("node-{n}")).collect();
    register(&store, &nodes.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for n in 0..60 {
        job(&format!("small-{n}")).reserve(100, 10, 0).create(&store, at(0)).await;
        job(&format!("large-{n}")).class("large").reserve(1000, 10, 0).create(&store, at(0)).await;
    }
    store.cordon_node(at(0), "node-5").await.unwrap();
    let classes = all_classes(&store).await;
    let calls = (0..26usize).map(|n| {
        let (store, classes) = (store.clone(), classes.clone());
        async move {
            let asked = match n {
                // Nobody knows it, and nobody has started it.
                24 => claim("stranger"),
                25 => claim("node-0").boot("another boot"),
                // Even ones are too small for the large ones; every third wants only those.
                _ => claim(&format!("node-{n}")).slots(3).capacity(
                    if n % 2 == 0 { 250 } else { 2100 },
                    1 << 30,
                    0,
                ),
            };
            let wanted = if n < 24 && n % 3 == 0 { &classes[1..] } else { &classes[..] };
            asked.classes(wanted).try_run(&store, at(2)).await
        }
    });
    let answers = at_once(&store, calls).await;
    let mut seen = HashSet::new();
    for (n, answer) in answers.into_iter().enumerate() {
        let got: Vec<ClaimedJob> = match n {
            24 => {
                assert!(matches!(answer, Err(Error::NotFound { .. })), "{answer:?}");
                continue;
            }
            25 => {
                assert!(matches!(answer, Err(Error::OtherBoot { .. })), "{answer:?}");
                continue;
            }
            _ => answer.unwrap(),
        };
        let cpu: u64 = got.iter().map(|claimed| claimed.job.reserve.cpu_millis).sum();
        let only_large = n % 3 == 0;
        let expected = match (n == 5, n % 2 == 0, only_large) {
            (true, ..) | (_, true, true) => 0,
            (_, true, false) | (_, false, true) => 2,
            (_, false, false) => 3,
        };
        assert_eq!(got.len(), expected, "node {n}");
        assert!(cpu <= if n % 2 == 0 { 250 } else { 2100 }, "node {n} has {cpu}");
        for claimed in got {
            assert!(!only_large || claimed.job.name.starts_with("large"), "node {n}: {}", claimed.job.name);
            let kept = reread(&store, &claimed.job.uid).await;
            assert_eq!(kept, claimed.job);
            assert_eq!((kept.phase, kept.node.as_deref()), (JobPhase::Claimed, Some(&*format!("node-{n}"))));
            assert!(seen.insert(claimed.job.uid), "node {n}");
        }
    }
}

pub(crate) async fn each_node_keeps_its_own_lease_and_request(store: Store) {
    use windlass_crds::sandbox_job::OfflinePolicy::{Continue, Stop};
    let nodes: Vec<String> = (0..10).map(|n| format!("node-{n}")).collect();
    register(&store, &nodes.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for n in 0..10 {
        job(&format!("job-{n}")).create(&store, at(0)).await;
    }
    let classes = all_classes(&store).await;
    let calls = (0..10usize).map(|n| {
        let (store, classes) = (store.clone(), classes.clone());
        let policy = if n % 2 == 0 { Stop } else { Continue };
        async move {
            let asked = claim(&format!("node-{n}")).request(&format!("own {n}")).classes(&classes);
            asked.max(1).offline(policy).run(&store, at(10 + i64::try_from(n).unwrap())).await
        }
    });
    for (n, got) in at_once(&store, calls).await.into_iter().enumerate() {
        let attempts = store.attempts(&got[0].job.uid).await.unwrap();
        let lease = if n % 2 == 0 { LEASE } else { LONG_LEASE };
        let now = at(10 + i64::try_from(n).unwrap());
        assert_eq!((attempts[0].claimed_at, attempts[0].lease_until), (now, now + lease), "{n}");
        let again = claim(&format!("node-{n}")).request(&format!("own {n}")).run(&store, now).await;
        assert_eq!(again.len(), 1, "{n}");
        assert_eq!(again[0].job.uid, got[0].job.uid, "{n}");
    }
}

pub(crate) async fn of_two_reports_about_a_job_one_decides(store: Store) {
    register(&store, &["n", "m"]).await;
    for n in 0..12 {
        job(&format!("job-{n}")).create(&store, at(0)).await;
    }
    let classes = all_classes(&store).await;
    let mut claimed = claim("n").classes(&classes).max(6).run(&store, at(1)).await;
    claimed.extend(claim("m").classes(&classes).max(6).run(&store, at(1)).await);
    // Each twice, and once by a node that does not have it.
    let calls = claimed.clone().into_iter().flat_map(|claimed| {
        let own = claimed.job.node.clone().unwrap();
        let other = if own == "n" { "m" } else { "n" };
        [own.clone(), own, other.to_owned()].map(|node| {
            let (store, claimed) = (store.clone(), claimed.clone());
            async move {
                let id = attempt(&claimed);
                let records = vec![log(&id, 1, b"hello"), terminal(&id, 2)];
                let mine = claimed.job.node.as_deref() == Some(node.as_str());
                let decided = if mine { vec![succeeds(&claimed.job, 2)] } else { Vec::new() };
                (claimed.job.uid, mine, store.apply(at(2), &node, records, decided).await.unwrap())
            }
        })
    });
    let mut done: HashMap<String, usize> = HashMap::new();
    let mut accepted: HashMap<String, usize> = HashMap::new();
    for (uid, mine, applied) in at_once(&store, calls).await {
        if !mine {
            assert_eq!(applied.records, [Outcome::Rejected, Outcome::Rejected]);
            continue;
        }
        let new = applied.records.iter().filter(|outcome| **outcome == Outcome::Accepted).count();
        assert!(new == 2 || applied.records == [Outcome::Duplicate, Outcome::Duplicate]);
        *accepted.entry(uid.clone()).or_default() += new;
        if let [TransitionOutcome::Done(row)] = &*applied.transitions {
            assert_eq!(*row, reread(&store, &uid).await);
            assert!(row.logs_complete);
            *done.entry(uid).or_default() += 1;
        }
    }
    assert_eq!(done.len(), 12);
    assert!(done.values().all(|count| *count == 1) && accepted.values().all(|count| *count == 2));
}
