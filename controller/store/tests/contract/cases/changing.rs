//! What people do to jobs.

use std::collections::BTreeMap;

use windlass_crds::{JobPhase, Priority, Span};
use windlass_store::{
    AttemptPhase, CancelOutcome, DeleteOutcome, Error, InputRow, JobFilter, JobPatch, Page, RecordStore,
    RetryOutcome, Store,
};

use crate::fixtures::{
    at, attempt, claim, claimed, finish, is_lost, job, log, register, report, reread, transit, transition,
};

fn suspend(suspend: bool) -> JobPatch {
    JobPatch { suspend: Some(suspend), ..JobPatch::default() }
}

pub(crate) async fn a_suspended_job_waits_and_a_resumed_one_is_claimed(store: Store) {
    register(&store, &["n"]).await;
    let row = job("a").create(&store, at(0)).await;
    let held_back = store.update_job(at(1), &row.uid, suspend(true), None).await.unwrap();
    assert!(held_back.suspend && held_back.spec.suspend);
    assert_eq!(held_back.generation, 2);
    assert!(claim("n").run(&store, at(2)).await.is_empty());
    store.update_job(at(3), &row.uid, suspend(false), None).await.unwrap();
    assert_eq!(claim("n").names(&store, at(4)).await, ["a"]);
}

pub(crate) async fn a_new_priority_moves_a_queued_job(store: Store) {
    register(&store, &["n"]).await;
    job("first").create(&store, at(0)).await;
    let second = job("second").create(&store, at(1)).await;
    let patch = JobPatch { priority: Some(750), ..JobPatch::default() };
    let row = store.update_job(at(2), &second.uid, patch, None).await.unwrap();
    assert_eq!((row.priority, row.spec.priority), (750, Priority::HIGH));
    assert_eq!(claim("n").names(&store, at(3)).await, ["second", "first"]);
    let patch = JobPatch { priority: Some(1001), ..JobPatch::default() };
    assert_eq!(store.update_job(at(2), &second.uid, patch, None).await.unwrap_err().kind(), "Invalid");
}

pub(crate) async fn a_patch_on_a_stale_version_conflicts(store: Store) {
    let row = job("a").create(&store, at(0)).await;
    let stale = row.resource_version;
    store.update_job(at(1), &row.uid, suspend(true), Some(stale)).await.unwrap();
    match store.update_job(at(2), &row.uid, suspend(false), Some(stale)).await {
        Err(Error::Conflict { object: "job", expected, found, .. }) => {
            assert_eq!(expected, stale);
            assert!(found > stale);
        }
        other => panic!("{other:?}"),
    }
    assert!(reread(&store, &row.uid).await.suspend);
    let missing = store.update_job(at(2), "nowhere", suspend(true), None).await.unwrap_err();
    assert_eq!(missing.kind(), "NotFound");
}

pub(crate) async fn a_patch_that_changes_nothing_keeps_the_version(store: Store) {
    let row = job("a").label("k", "v").create(&store, at(0)).await;
    let patch = JobPatch {
        suspend: Some(false),
        priority: Some(500),
        ttl_after_finished: Some(None),
        labels: Some(row.labels.clone()),
        annotations: Some(BTreeMap::new()),
    };
    assert_eq!(store.update_job(at(1), &row.uid, patch, None).await.unwrap(), row);
}

pub(crate) async fn labels_replace_labels_and_are_found(store: Store) {
    let row = job("a").label("old", "1").label("kept", "1").create(&store, at(0)).await;
    let labels: BTreeMap<String, String> =
        [("kept".to_owned(), "1".to_owned()), ("new".to_owned(), "2".to_owned())].into();
    let annotations: BTreeMap<String, String> = [("note".to_owned(), "x".to_owned())].into();
    let patch = JobPatch {
        labels: Some(labels.clone()),
        annotations: Some(annotations.clone()),
        ..JobPatch::default()
    };
    let changed = store.update_job(at(1), &row.uid, patch, None).await.unwrap();
    assert_eq!((&changed.labels, &changed.annotations), (&labels, &annotations));
    assert_eq!(changed.generation, row.generation, "labels are not part of the specification");
    assert_eq!(changed, reread(&store, &row.uid).await);
    for (key, value, found) in [("old", "1", 0), ("kept", "1", 1), ("new", "2", 1), ("new", "1", 0)] {
        let filter =
            JobFilter { label_equals: [(key.to_owned(), value.to_owned())].into(), ..JobFilter::default() };
        let (jobs, _) = store.list_jobs(filter, Page { limit: 10, cursor: None }).await.unwrap();
        assert_eq!(jobs.len(), found, "{key}={value}");
    }
}

pub(crate) async fn a_new_ttl_of_an_ended_job_counts_from_its_end(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let row = finish(&store, &got, at(10)).await;
    assert_eq!(row.ttl_at, None);
    let patch = JobPatch { ttl_after_finished: Some(Some(Span::from_secs(60))), ..JobPatch::default() };
    let row = store.update_job(at(20), &row.uid, patch, None).await.unwrap();
    assert_eq!(row.ttl_at, Some(at(70)));
    assert_eq!(row.spec.ttl_after_finished, Some(Span::from_secs(60)));
    let patch =
        JobPatch { ttl_after_finished: Some(Some(Span::from_millis(u64::MAX))), ..JobPatch::default() };
    let row = store.update_job(at(20), &row.uid, patch, None).await.unwrap();
    assert!(row.ttl_at.is_some_and(|ttl| ttl > at(1_000_000_000)), "the end of time is not overrun");
    let patch = JobPatch { ttl_after_finished: Some(None), ..JobPatch::default() };
    assert_eq!(store.update_job(at(20), &row.uid, patch, None).await.unwrap().ttl_at, None);
}

pub(crate) async fn a_queued_job_is_cancelled_at_once(store: Store) {
    register(&store, &["n"]).await;
    let row =
        job("a").spec(|spec| spec.ttl_after_finished = Some(Span::from_secs(5))).create(&store, at(0)).await;
    let CancelOutcome::Cancelled(row) = store.request_cancel(at(1), &row.uid).await.unwrap() else {
        panic!()
    };
    assert_eq!(row.phase, JobPhase::Cancelled);
    assert_eq!(
        (row.finished_at, row.cancel_requested_at, row.ttl_at),
        (Some(at(1)), Some(at(1)), Some(at(6)))
    );
    assert!(row.logs_complete && row.spec.cancel);
    assert!(claim("n").run(&store, at(2)).await.is_empty());
}

pub(crate) async fn a_job_that_needs_approval_is_cancelled_at_once(store: Store) {
    let row = job("a").phase(JobPhase::PendingApproval).create(&store, at(0)).await;
    let outcome = store.request_cancel(at(1), &row.uid).await.unwrap();
    assert!(matches!(outcome, CancelOutcome::Cancelled(row) if row.phase == JobPhase::Cancelled));
}

pub(crate) async fn a_held_job_is_cancelled_through_its_node(store: Store) {
    for (name, phase) in
        [("claimed", JobPhase::Claimed), ("runs", JobPhase::Running), ("waits", JobPhase::Waiting)]
    {
        let got = claimed(&store, "n", name, at(0)).await;
        transit(&store, at(1), transition(&got.job, |set| set.phase = phase)).await;
        let CancelOutcome::Requested(row) = store.request_cancel(at(2), &got.job.uid).await.unwrap() else {
            panic!("{name}")
        };
        assert_eq!((row.phase, row.cancel_requested_at), (phase, Some(at(2))));
        let again = store.request_cancel(at(3), &got.job.uid).await.unwrap();
        assert_eq!(again, CancelOutcome::Requested(row.clone()), "asking again changes nothing");
        let done = transit(&store, at(4), transition(&row, |set| set.phase = JobPhase::Cancelled)).await;
        assert_eq!(done.phase, JobPhase::Cancelled);
        assert_eq!(store.attempts(&done.uid).await.unwrap()[0].phase, AttemptPhase::Cancelled);
    }
}

pub(crate) async fn an_ended_job_is_not_cancelled(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let row = finish(&store, &got, at(1)).await;
    let outcome = store.request_cancel(at(2), &row.uid).await.unwrap();
    assert_eq!(outcome, CancelOutcome::AlreadyEnded(row.clone()));
    assert_eq!(reread(&store, &row.uid).await, row);
}

pub(crate) async fn cancelling_or_deleting_what_does_not_exist_says_so(store: Store) {
    assert_eq!(store.request_cancel(at(0), "nowhere").await.unwrap(), CancelOutcome::NotFound);
    assert_eq!(store.delete_job(at(0), "nowhere", None).await.unwrap(), DeleteOutcome::NotFound);
    assert_eq!(store.retry_job(at(0), "nowhere").await.unwrap(), RetryOutcome::NotFound);
}

pub(crate) async fn a_retry_reopens_with_counters_reset_and_the_next_claim_has_a_new_epoch(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let failed = transit(
        &store,
        at(1),
        transition(&got.job, |set| {
            set.phase = JobPhase::Failed;
            set.reason = Some("AttemptsExhausted".to_owned());
            set.exit_code = Some(3);
            set.lost_attempts = 3;
            set.failures = 2;
        }),
    )
    .await;
    assert_eq!(failed.finished_at, Some(at(1)));
    let RetryOutcome::Queued(row) = store.retry_job(at(5), &failed.uid).await.unwrap() else { panic!() };
    assert_eq!((row.phase, row.lost_attempts, row.failures), (JobPhase::Queued, 0, 0));
    assert_eq!((row.reason, row.exit_code, row.node, row.finished_at), (None, None, None, None));
    assert_eq!((row.queued_at, row.epoch, row.attempts), (Some(at(5)), 1, 1));
    let again = claim("n").run(&store, at(6)).await.remove(0);
    assert_eq!((again.epoch, again.number), (2, 2));
    // What the first attempt still has to say reaches its logs and not the job.
    let late = report(&store, "n", vec![log(&attempt(&got), 1, b"late")]).await;
    assert_eq!(late, [windlass_crds::protocol::Outcome::Superseded]);
    let now = reread(&store, &row.uid).await;
    assert_eq!((now.phase, now.resource_version), (JobPhase::Claimed, again.job.resource_version));
}

pub(crate) async fn a_job_that_has_not_ended_is_not_retried(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    assert_eq!(store.retry_job(at(1), &got.job.uid).await.unwrap(), RetryOutcome::NotEnded(got.job));
    let queued = job("b").create(&store, at(1)).await;
    assert_eq!(store.retry_job(at(1), &queued.uid).await.unwrap(), RetryOutcome::NotEnded(queued));
}

pub(crate) async fn a_held_job_is_not_deleted(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let outcome = store.delete_job(at(1), &got.job.uid, None).await.unwrap();
    assert_eq!(outcome, DeleteOutcome::StillHeld(got.job.clone()));
    let lost = transit(&store, at(2), is_lost(&got.job, None)).await;
    let outcome = store.delete_job(at(3), &lost.uid, None).await.unwrap();
    assert_eq!(outcome, DeleteOutcome::Deleted { bodies: vec![] });
}

pub(crate) async fn a_deleted_job_leaves_nothing_but_the_bodies_to_remove(store: Store) {
    let input = InputRow { digest: "sha256:a".into(), size: 1, object_key: "inputs/a".into() };
    store.put_input(at(0), input.clone()).await.unwrap();
    register(&store, &["n"]).await;
    job("a").label("k", "v").input("sha256:a").create(&store, at(0)).await;
    let got = claim("n").run(&store, at(0)).await.remove(0);
    let id = attempt(&got);
    let mut body = log(&id, 1, b"");
    body.body = RecordStore::Object { key: "logs/1".into(), len: 7 };
    report(&store, "n", vec![body, log(&id, 2, b"inline")]).await;
    let done = transit(&store, at(3), transition(&got.job, |set| set.phase = JobPhase::Failed)).await;
    let outcome = store.delete_job(at(4), &done.uid, None).await.unwrap();
    assert_eq!(outcome, DeleteOutcome::Deleted { bodies: vec!["logs/1".to_owned()] });
    assert_eq!(store.get_job_by_uid(&done.uid).await.unwrap(), None);
    assert_eq!(store.attempts(&done.uid).await.unwrap(), []);
    assert_eq!(store.logs(&done.uid, Default::default(), None, 10).await.unwrap(), []);
    assert_eq!(store.pending_removals(10).await.unwrap(), ["logs/1"]);
    assert_eq!(store.unreferenced_inputs(at(1), 10).await.unwrap(), [input]);
    // The name is free again, and its labels find only the new job.
    job("a").label("k", "v").input("sha256:a").create(&store, at(5)).await;
    let filter =
        JobFilter { label_equals: [("k".to_owned(), "v".to_owned())].into(), ..JobFilter::default() };
    let (jobs, _) = store.list_jobs(filter, Page { limit: 10, cursor: None }).await.unwrap();
    assert_eq!(jobs.len(), 1);
}
