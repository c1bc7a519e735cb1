//! Records.

use serde_json::json;
use windlass_crds::JobPhase;
use windlass_crds::protocol::{AttemptId, Outcome, Stream};
use windlass_store::{
    EventLevel, JobChange, LogFilter, NewRecord, RecordKind, RecordStore, Reportable, Store, Transition,
    TransitionOutcome,
};

use crate::fixtures::{
    at, attempt, claim, claimed, is_lost, job, log, register, report, reread, succeeds, terminal, transit,
};

async fn bodies(store: &Store, uid: &str) -> Vec<(u64, Vec<u8>)> {
    let rows = store.logs(uid, LogFilter::default(), None, 1000).await.unwrap();
    rows.into_iter()
        .map(|row| match row.body {
            RecordStore::Inline(bytes) => (row.sequence, bytes),
            other => panic!("{other:?}"),
        })
        .collect()
}

pub(crate) async fn a_record_is_stored_once(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let id = attempt(&got);
    assert_eq!(report(&store, "n", vec![log(&id, 1, b"one")]).await, [Outcome::Accepted]);
    assert_eq!(report(&store, "n", vec![log(&id, 1, b"other")]).await, [Outcome::Duplicate]);
    assert_eq!(bodies(&store, &id.job).await, [(1, b"one".to_vec())]);
    assert_eq!(store.attempts(&id.job).await.unwrap()[0].received, 1);
}

pub(crate) async fn records_come_in_any_order_and_read_in_theirs(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let id = attempt(&got);
    report(&store, "n", vec![log(&id, 3, b"3"), log(&id, 1, b"1")]).await;
    assert_eq!(
        report(&store, "n", vec![log(&id, 2, b"2"), log(&id, 3, b"3")]).await,
        [Outcome::Accepted, Outcome::Duplicate]
    );
    let read = bodies(&store, &id.job).await;
    assert_eq!(read, [(1, b"1".to_vec()), (2, b"2".to_vec()), (3, b"3".to_vec())]);
}

pub(crate) async fn a_record_repeated_in_one_batch_is_stored_once(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let id = attempt(&got);
    let outcomes = report(&store, "n", vec![log(&id, 1, b"first"), log(&id, 1, b"second")]).await;
    assert_eq!(outcomes, [Outcome::Accepted, Outcome::Duplicate]);
    assert_eq!(bodies(&store, &id.job).await, [(1, b"first".to_vec())]);
}

pub(crate) async fn a_record_of_an_unknown_job_is_rejected(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let unknown = AttemptId { job: "unknown".into(), epoch: 1 };
    let future = AttemptId { job: got.job.uid.clone(), epoch: 2 };
    let outcomes =
        report(&store, "n", vec![log(&unknown, 1, b""), log(&attempt(&got), 1, b""), log(&future, 1, b"")])
            .await;
    assert_eq!(outcomes, [Outcome::Rejected, Outcome::Accepted, Outcome::Rejected]);
}

pub(crate) async fn a_record_of_another_nodes_attempt_is_rejected(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    register(&store, &["m"]).await;
    assert_eq!(report(&store, "m", vec![log(&attempt(&got), 1, b"")]).await, [Outcome::Rejected]);
    assert!(bodies(&store, &got.job.uid).await.is_empty());
}

pub(crate) async fn a_record_with_sequence_zero_is_rejected(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let id = attempt(&got);
    let outcomes = report(&store, "n", vec![log(&id, 0, b""), log(&id, u64::MAX, b"")]).await;
    assert_eq!(outcomes, [Outcome::Rejected, Outcome::Rejected]);
}

pub(crate) async fn a_record_of_a_fenced_attempt_is_superseded_and_changes_nothing(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let id = attempt(&got);
    let lost = transit(&store, at(30), is_lost(&got.job, None)).await;
    // Before the next attempt, and after it: the transition that the late end asks for is stale both times.
    let applied =
        store.apply(at(31), "n", vec![log(&id, 1, b"late")], vec![succeeds(&got.job, 2)]).await.unwrap();
    assert_eq!(applied.records, [Outcome::Superseded]);
    assert_eq!(applied.transitions, [TransitionOutcome::Stale]);
    assert_eq!(reread(&store, &id.job).await, lost);
    register(&store, &["m"]).await;
    let next = claim("m").run(&store, at(32)).await.remove(0);
    let applied = store.apply(at(33), "n", vec![terminal(&id, 2)], vec![succeeds(&lost, 2)]).await.unwrap();
    assert_eq!(applied.records, [Outcome::Superseded]);
    assert_eq!(applied.transitions, [TransitionOutcome::Stale]);
    assert_eq!(reread(&store, &id.job).await, next.job);
    let rows = store.logs(&id.job, LogFilter::default(), None, 10).await.unwrap();
    assert!(rows[0].superseded && rows[0].epoch == 1);
}

pub(crate) async fn logs_are_complete_when_the_last_gap_is_closed(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let id = attempt(&got);
    let applied = store
        .apply(at(1), "n", vec![log(&id, 2, b"2"), terminal(&id, 5)], vec![succeeds(&got.job, 5)])
        .await
        .unwrap();
    let TransitionOutcome::Done(done) = &applied.transitions[0] else { panic!() };
    assert!(!done.logs_complete);
    report(&store, "n", vec![log(&id, 4, b"4"), log(&id, 2, b"2")]).await;
    report(&store, "n", vec![log(&id, 1, b"1")]).await;
    let before = reread(&store, &id.job).await;
    assert!(!before.logs_complete, "one is missing");
    assert_eq!(report(&store, "n", vec![log(&id, 3, b"3")]).await, [Outcome::Accepted]);
    let after = reread(&store, &id.job).await;
    assert!(after.logs_complete);
    assert!(after.resource_version > before.resource_version);
    assert_eq!((after.phase, after.finished_at), (before.phase, before.finished_at));
}

pub(crate) async fn logs_complete_at_once_when_all_came_before_the_end(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let id = attempt(&got);
    report(&store, "n", vec![log(&id, 1, b"1"), log(&id, 2, b"2")]).await;
    let applied = store.apply(at(1), "n", vec![terminal(&id, 3)], vec![succeeds(&got.job, 3)]).await.unwrap();
    let TransitionOutcome::Done(done) = &applied.transitions[0] else { panic!() };
    assert!(done.logs_complete);
    let attempt = store.attempts(&id.job).await.unwrap().remove(0);
    assert_eq!((attempt.received, attempt.last_sequence), (3, Some(3)));
}

pub(crate) async fn a_record_beyond_the_terminal_one_does_not_count(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let id = attempt(&got);
    // The node breaks the protocol: 9 comes although the end is to be 3.
    report(&store, "n", vec![log(&id, 1, b"1"), log(&id, 9, b"9")]).await;
    let applied = store.apply(at(1), "n", vec![terminal(&id, 3)], vec![succeeds(&got.job, 3)]).await.unwrap();
    let TransitionOutcome::Done(done) = &applied.transitions[0] else { panic!() };
    assert!(!done.logs_complete, "three records are here, but not the second");
    assert_eq!(report(&store, "n", vec![log(&id, 4, b"4")]).await, [Outcome::Rejected]);
    assert!(!reread(&store, &id.job).await.logs_complete);
    report(&store, "n", vec![log(&id, 2, b"2")]).await;
    assert!(reread(&store, &id.job).await.logs_complete);
}

pub(crate) async fn log_bodies_survive_byte_for_byte(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let id = attempt(&got);
    let wanted: Vec<Vec<u8>> = vec![
        vec![],
        b"plain".to_vec(),
        vec![0, b'a', 0],
        vec![0xff, 0xfe, 0x00, 0x80],
        "žluťoučký 🦀".into(),
        (0..=255).collect(),
        vec![0; 300_000],
    ];
    let records = (1..).zip(&wanted).map(|(sequence, body)| log(&id, sequence, body)).collect();
    let outcomes = report(&store, "n", records).await;
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Accepted));
    let read: Vec<Vec<u8>> = bodies(&store, &id.job).await.into_iter().map(|(_, body)| body).collect();
    assert_eq!(read, wanted);
}

pub(crate) async fn a_body_in_the_object_store_is_pointed_to(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let id = attempt(&got);
    let object = RecordStore::Object { key: "logs/x/1".into(), len: 1 << 40 };
    let json = RecordStore::Json(json!({ "a": ["\u{0}", 1.5, null] }));
    let mut records = vec![log(&id, 1, b""), log(&id, 2, b""), log(&id, 3, b"")];
    records[0].body = object.clone();
    records[1].body = json.clone();
    records[2].body = RecordStore::None;
    report(&store, "n", records).await;
    let rows = store.logs(&id.job, LogFilter::default(), None, 10).await.unwrap();
    let read: Vec<RecordStore> = rows.into_iter().map(|row| row.body).collect();
    assert_eq!(read, [object, json, RecordStore::None]);
}

pub(crate) async fn logs_are_filtered_and_read_on_from_a_cursor(store: Store) {
    let first = claimed(&store, "n", "a", at(0)).await;
    let id = attempt(&first);
    let with = |sequence, step, stream, offset| NewRecord {
        step: Some(step),
        stream: Some(stream),
        offset: Some(offset),
        ..log(&id, sequence, b"x")
    };
    report(
        &store,
        "n",
        vec![
            NewRecord { kind: RecordKind::Started, body: RecordStore::None, ..with(1, 0, Stream::Stdout, 0) },
            with(2, 0, Stream::Stdout, 0),
            with(3, 0, Stream::Stderr, 0),
            with(4, 1, Stream::Stdout, 7),
        ],
    )
    .await;
    let lost = transit(&store, at(1), is_lost(&first.job, None)).await;
    let second = claim("n").run(&store, at(2)).await.remove(0);
    assert_eq!(second.job.uid, lost.uid);
    report(&store, "n", vec![log(&attempt(&second), 1, b"y")]).await;
    let positions = async |filter: LogFilter, after, limit| {
        let rows = store.logs(&lost.uid, filter, after, limit).await.unwrap();
        rows.iter().map(|row| (row.epoch, row.sequence)).collect::<Vec<_>>()
    };
    let all = LogFilter::default();
    assert_eq!(positions(all, None, 10).await, [(1, 2), (1, 3), (1, 4), (2, 1)]);
    assert_eq!(positions(LogFilter { epoch: Some(2), ..all }, None, 10).await, [(2, 1)]);
    assert_eq!(positions(LogFilter { step: Some(1), ..all }, None, 10).await, [(1, 4)]);
    assert_eq!(positions(LogFilter { stream: Some(Stream::Stderr), ..all }, None, 10).await, [(1, 3)]);
    let page = store.logs(&lost.uid, all, None, 3).await.unwrap();
    assert_eq!((page[2].offset, page[2].step, page[2].at), (Some(7), Some(1), at(1)));
    assert_eq!(positions(all, page.last().map(windlass_store::LogRow::cursor), 10).await, [(2, 1)]);
    assert_eq!(positions(all, page.first().map(windlass_store::LogRow::cursor), 1).await, [(1, 3)]);
}

pub(crate) async fn an_accepted_event_record_becomes_an_event_of_the_job_once(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let id = attempt(&got);
    let event = |sequence, body| NewRecord {
        kind: RecordKind::Event,
        step: None,
        stream: None,
        offset: None,
        body: RecordStore::Json(body),
        ..log(&id, sequence, b"")
    };
    let told = json!({ "level": "warn", "reason": "LimitUnenforced", "message": "no disk limit" });
    report(&store, "n", vec![event(1, told.clone())]).await;
    report(&store, "n", vec![event(1, told.clone()), event(2, json!({ "level": "?" }))]).await;
    let events = store.events(Some(&id.job), None, 10).await.unwrap();
    assert_eq!(events.len(), 2);
    assert_eq!((events[0].level, events[0].reason.as_str()), (EventLevel::Warn, "LimitUnenforced"));
    assert_eq!((events[0].message.as_str(), events[0].node.as_deref()), ("no disk limit", Some("n")));
    assert_eq!((events[0].at, events[0].source.as_str()), (at(2), "node"));
    assert_eq!((events[1].level, events[1].reason.as_str()), (EventLevel::Info, "Unknown"));
    transit(&store, at(30), is_lost(&got.job, None)).await;
    assert_eq!(report(&store, "n", vec![event(3, told)]).await, [Outcome::Superseded]);
    assert_eq!(store.events(Some(&id.job), None, 10).await.unwrap().len(), 2);
}

pub(crate) async fn a_duplicate_in_a_new_batch_changes_no_job(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let id = attempt(&got);
    let batch = || vec![log(&id, 1, b"1"), terminal(&id, 2)];
    store.apply(at(1), "n", batch(), vec![succeeds(&got.job, 2)]).await.unwrap();
    let done = reread(&store, &id.job).await;
    assert!(done.logs_complete);
    let again = store.apply(at(2), "n", batch(), vec![succeeds(&got.job, 2)]).await.unwrap();
    assert_eq!(again.records, [Outcome::Duplicate, Outcome::Duplicate]);
    assert_eq!(again.transitions, [TransitionOutcome::Stale]);
    assert_eq!(reread(&store, &id.job).await, done);
}

pub(crate) async fn reports_of_many_attempts_go_in_one_batch(store: Store) {
    register(&store, &["n"]).await;
    let jobs = (0..100).map(|n| job(&format!("job-{n}")).build()).collect();
    store.create_jobs(at(0), jobs).await.unwrap();
    let got = claim("n").run(&store, at(0)).await;
    let records = got.iter().map(|claimed| terminal(&attempt(claimed), 1)).collect();
    let transitions: Vec<Transition> = got.iter().map(|claimed| succeeds(&claimed.job, 1)).collect();
    let applied = store.apply(at(1), "n", records, transitions).await.unwrap();
    assert_eq!(applied.records, vec![Outcome::Accepted; 100]);
    for (outcome, claimed) in applied.transitions.iter().zip(&got) {
        let TransitionOutcome::Done(row) = outcome else { panic!("{outcome:?}") };
        assert_eq!((&row.uid, row.phase, row.logs_complete), (&claimed.job.uid, JobPhase::Succeeded, true));
        assert_eq!(JobChange::of(row).finished_at, Some(at(1)));
    }
}

pub(crate) async fn what_would_become_of_a_record_is_told_before_it_is_reported(store: Store) {
    use Reportable::{Known, New, Refused};
    let got = claimed(&store, "n", "a", at(0)).await;
    register(&store, &["m"]).await;
    let id = attempt(&got);
    let unknown = AttemptId { job: "unknown".into(), epoch: 1 };
    let future = AttemptId { epoch: 2, ..id.clone() };
    report(&store, "n", vec![log(&id, 2, b"2")]).await;
    let asked = [(&id, 1), (&id, 2), (&id, 0), (&id, u64::MAX), (&unknown, 1), (&future, 1), (&id, 9)];
    let fates = store.reportable("n", &asked).await.unwrap();
    assert_eq!(fates, [New, Known, Refused, Refused, Refused, Refused, New]);
    assert_eq!(store.reportable("m", &asked).await.unwrap(), [Refused; 7]);
    store.apply(at(1), "n", vec![terminal(&id, 3)], vec![succeeds(&got.job, 3)]).await.unwrap();
    let fates = store.reportable("n", &asked).await.unwrap();
    assert_eq!(fates, [New, Known, Refused, Refused, Refused, Refused, Refused]);
}
