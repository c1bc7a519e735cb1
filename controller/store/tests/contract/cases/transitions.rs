//! Transitions.

use windlass_crds::protocol::Outcome;
use windlass_crds::sandbox_job::{Limit, StepPhase, StepStatus};
use windlass_crds::{JobPhase, Span};
use windlass_store::{
    AttemptPhase, Error, JobPatch, JobRow, LateOutcome, LateSteps, NodeChange, Store, Transition,
    TransitionOutcome,
};

use crate::fixtures::{
    at, attempt, claim, claimed, ended, finish, is_lost, job, log, register, reread, succeeds, transit,
    transition,
};

async fn outcome(store: &Store, transition: Transition) -> TransitionOutcome {
    store.apply_transitions(at(5), vec![transition]).await.unwrap().remove(0)
}

pub(crate) async fn a_transition_on_a_stale_version_is_refused(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let patch = JobPatch { priority: Some(1), ..JobPatch::default() };
    let newer = store.update_job(at(1), &got.job.uid, patch, None).await.unwrap();
    assert_eq!(outcome(&store, succeeds(&got.job, 1)).await, TransitionOutcome::Stale);
    assert_eq!(reread(&store, &got.job.uid).await, newer);
    assert!(matches!(outcome(&store, succeeds(&newer, 1)).await, TransitionOutcome::Done(_)));
}

pub(crate) async fn a_transition_of_a_stale_epoch_is_refused(store: Store) {
    let first = claimed(&store, "n", "a", at(0)).await;
    transit(&store, at(1), is_lost(&first.job, None)).await;
    let second = claim("n").run(&store, at(2)).await.remove(0);
    let mut forged = succeeds(&second.job, 1);
    forged.epoch = first.epoch;
    assert_eq!(outcome(&store, forged).await, TransitionOutcome::Stale);
    assert_eq!(reread(&store, &second.job.uid).await, second.job);
}

pub(crate) async fn a_transition_of_an_ended_job_is_refused(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let done = finish(&store, &got, at(1)).await;
    for phase in [JobPhase::Failed, JobPhase::Queued, JobPhase::Running, JobPhase::Succeeded] {
        let refused = outcome(&store, transition(&done, |set| set.phase = phase)).await;
        assert_eq!(refused, TransitionOutcome::Stale, "{phase}");
    }
    assert_eq!(reread(&store, &done.uid).await, done);
}

pub(crate) async fn a_transition_of_an_unknown_job_is_stale(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let mut nowhere = succeeds(&got.job, 1);
    nowhere.job = "nowhere".to_owned();
    assert_eq!(outcome(&store, nowhere).await, TransitionOutcome::Stale);
}

pub(crate) async fn of_two_transitions_of_a_job_only_the_first_happens(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let both = vec![succeeds(&got.job, 1), transition(&got.job, |set| set.phase = JobPhase::Failed)];
    let outcomes = store.apply_transitions(at(1), both).await.unwrap();
    assert!(matches!(&outcomes[0], TransitionOutcome::Done(row) if row.phase == JobPhase::Succeeded));
    assert_eq!(outcomes[1], TransitionOutcome::Stale);
}

pub(crate) async fn a_stale_transition_keeps_the_records(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let mut stale = succeeds(&got.job, 1);
    stale.expect_version -= 1;
    let applied = store.apply(at(1), "n", vec![log(&attempt(&got), 1, b"x")], vec![stale]).await.unwrap();
    assert_eq!(applied.records, [Outcome::Accepted]);
    assert_eq!(applied.transitions, [TransitionOutcome::Stale]);
    assert_eq!(store.logs(&got.job.uid, Default::default(), None, 9).await.unwrap().len(), 1);
}

pub(crate) async fn a_queued_job_does_not_become_running_by_a_transition(store: Store) {
    let row = job("a").create(&store, at(0)).await;
    for phase in [JobPhase::Claimed, JobPhase::Running, JobPhase::Waiting, JobPhase::PendingApproval] {
        let refused = outcome(&store, transition(&row, |set| set.phase = phase)).await;
        assert_eq!(refused, TransitionOutcome::Stale, "{phase}");
    }
    let failed = transit(&store, at(1), transition(&row, |set| set.phase = JobPhase::Failed)).await;
    assert_eq!((failed.phase, failed.finished_at), (JobPhase::Failed, Some(at(1))));
}

pub(crate) async fn an_approved_job_is_claimed(store: Store) {
    register(&store, &["n"]).await;
    let row = job("a").phase(JobPhase::PendingApproval).create(&store, at(0)).await;
    transit(&store, at(1), transition(&row, |set| set.phase = JobPhase::Queued)).await;
    assert_eq!(claim("n").names(&store, at(2)).await, ["a"]);
}

pub(crate) async fn an_attempt_that_is_live_where_its_job_is_not_held_is_refused(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let live = transition(&got.job, |set| {
        set.phase = JobPhase::Succeeded;
        set.attempt = Some(ended(AttemptPhase::Running, None));
    });
    let gone = transition(&got.job, |set| {
        set.phase = JobPhase::Running;
        set.attempt = Some(ended(AttemptPhase::Lost, None));
    });
    for defect in [live, gone] {
        let refused =
            store.apply(at(1), "n", vec![log(&attempt(&got), 1, b"")], vec![defect]).await.unwrap_err();
        assert!(matches!(refused, Error::Invalid { .. }), "{refused}");
    }
    assert_eq!(reread(&store, &got.job.uid).await, got.job);
    assert!(store.logs(&got.job.uid, Default::default(), None, 9).await.unwrap().is_empty());
}

pub(crate) async fn a_lost_attempt_goes_back_to_the_queue_with_a_delay(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let mut change = is_lost(&got.job, Some(at(90)));
    change.set.node = NodeChange::Clear;
    change.set.message = Some("the lease ended".to_owned());
    let row = transit(&store, at(30), change).await;
    assert_eq!((row.phase, row.not_before, row.lost_attempts), (JobPhase::Queued, Some(at(90)), 1));
    assert_eq!((row.node, row.lease_until, row.queued_at), (None, None, Some(at(30))));
    let lost = store.attempts(&row.uid).await.unwrap().remove(0);
    assert_eq!((lost.phase, lost.ended_at, lost.last_sequence), (AttemptPhase::Lost, Some(at(30)), None));
    assert_eq!(lost.reason.as_deref(), Some("Told"));
}

pub(crate) async fn the_next_claim_of_a_lost_job_has_a_higher_epoch(store: Store) {
    let mut got = claimed(&store, "n", "a", at(0)).await;
    register(&store, &["m"]).await;
    for epoch in 2..5 {
        transit(&store, at(30), is_lost(&got.job, None)).await;
        got = claim(if epoch % 2 == 0 { "m" } else { "n" }).run(&store, at(31)).await.remove(0);
        assert_eq!((got.epoch, got.number), (epoch, u32::try_from(epoch).unwrap()));
    }
    let attempts = store.attempts(&got.job.uid).await.unwrap();
    assert_eq!(attempts.iter().map(|attempt| attempt.epoch).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(attempts.iter().filter(|attempt| attempt.phase.is_live()).count(), 1);
}

pub(crate) async fn a_running_job_notes_steps_and_start(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let step = StepStatus { name: "build".into(), phase: StepPhase::Running, ..StepStatus::default() };
    let row = transit(
        &store,
        at(2),
        transition(&got.job, |set| {
            set.phase = JobPhase::Running;
            set.started_at = Some(at(1));
            set.steps = Some(vec![step.clone()]);
            set.unenforced = Some(vec![Limit::Disk]);
        }),
    )
    .await;
    assert_eq!(
        (row.phase, row.started_at, &row.steps),
        (JobPhase::Running, Some(at(1)), &vec![step.clone()])
    );
    let running = store.attempts(&row.uid).await.unwrap().remove(0);
    assert_eq!((running.phase, running.started_at), (AttemptPhase::Running, Some(at(1))));
    let row = transit(&store, at(3), transition(&row, |set| set.message = Some("still".into()))).await;
    assert_eq!(
        (row.steps.as_slice(), row.unenforced.as_slice()),
        ([step].as_slice(), [Limit::Disk].as_slice())
    );
    assert_eq!(reread(&store, &row.uid).await, row);
    // The next attempt begins with a clean sheet.
    transit(&store, at(4), is_lost(&row, None)).await;
    let next = claim("n").run(&store, at(5)).await.remove(0);
    assert!(next.job.steps.is_empty() && next.job.unenforced.is_empty());
    assert_eq!((next.job.started_at, next.job.reason), (None, None));
}

pub(crate) async fn an_end_sets_the_time_to_live(store: Store) {
    register(&store, &["n"]).await;
    job("a").spec(|spec| spec.ttl_after_finished = Some(Span::from_secs(100))).create(&store, at(0)).await;
    let got = claim("n").run(&store, at(1)).await.remove(0);
    let done = finish(&store, &got, at(7)).await;
    assert_eq!((done.finished_at, done.ttl_at), (Some(at(7)), Some(at(107))));
}

pub(crate) async fn a_transition_without_an_attempt_ends_it_all_the_same(store: Store) {
    for (phase, attempt_phase) in [
        (JobPhase::Queued, AttemptPhase::Released),
        (JobPhase::Succeeded, AttemptPhase::Succeeded),
        (JobPhase::Failed, AttemptPhase::Failed),
        (JobPhase::Cancelled, AttemptPhase::Cancelled),
        (JobPhase::TimedOut, AttemptPhase::TimedOut),
    ] {
        let got = claimed(&store, "n", &format!("to-{phase}").to_lowercase(), at(0)).await;
        let row = transit(&store, at(3), transition(&got.job, |set| set.phase = phase)).await;
        let ended = store.attempts(&row.uid).await.unwrap().remove(0);
        assert_eq!((ended.phase, ended.ended_at), (attempt_phase, Some(at(3))));
        assert_eq!(store.live_attempts("n").await.unwrap(), []);
        if phase == JobPhase::Queued {
            store.request_cancel(at(4), &row.uid).await.unwrap();
        }
    }
}

pub(crate) async fn nul_in_messages_is_replaced(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let row = transit(
        &store,
        at(1),
        transition(&got.job, |set| {
            set.phase = JobPhase::Failed;
            set.message = Some("a\u{0}b ž".to_owned());
        }),
    )
    .await;
    assert_eq!(row.message.as_deref(), Some("a\u{fffd}b ž"));
}

pub(crate) async fn versions_grow_with_every_change(store: Store) {
    let mut versions = Vec::new();
    let a = job("a").create(&store, at(0)).await;
    versions.push(a.resource_version);
    versions.push(job("b").create(&store, at(0)).await.resource_version);
    register(&store, &["n"]).await;
    versions.push(store.get_node("n").await.unwrap().unwrap().resource_version);
    let got = claim("n").max(1).run(&store, at(1)).await.remove(0);
    versions.push(got.job.resource_version);
    let runs = transit(&store, at(2), transition(&got.job, |set| set.phase = JobPhase::Running)).await;
    versions.push(runs.resource_version);
    store.request_cancel(at(3), &a.uid).await.unwrap();
    versions.push(reread(&store, &a.uid).await.resource_version);
    let pairs: Vec<_> = versions.windows(2).collect();
    assert!(pairs.iter().all(|pair| pair[0] < pair[1]), "{versions:?}");
}

fn late(job: &JobRow, phase: StepPhase) -> LateSteps {
    LateSteps {
        job: job.uid.clone(),
        epoch: job.epoch,
        expect_version: job.resource_version,
        steps: vec![StepStatus { name: "build".into(), phase, ..StepStatus::default() }],
        unenforced: vec![Limit::Disk],
        started_at: Some(at(1)),
    }
}

pub(crate) async fn what_is_learned_after_the_end_completes_the_picture_and_moves_nothing(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let done = finish(&store, &got, at(7)).await;
    assert!(done.logs_complete && done.started_at.is_none());
    let picture = late(&done, StepPhase::Succeeded);
    assert_eq!(store.complete_pictures(vec![picture.clone()]).await.unwrap(), [LateOutcome::Done]);
    let after = reread(&store, &done.uid).await;
    assert!(after.resource_version > done.resource_version);
    let expected = JobRow {
        steps: picture.steps,
        unenforced: picture.unenforced,
        started_at: Some(at(1)),
        resource_version: after.resource_version,
        ..done
    };
    assert_eq!(after, expected);
    let attempt = store.attempts(&after.uid).await.unwrap().remove(0);
    assert_eq!((attempt.phase, attempt.started_at), (AttemptPhase::Succeeded, Some(at(1))));
    let again = LateSteps { started_at: Some(at(3)), ..late(&after, StepPhase::Failed) };
    assert_eq!(store.complete_pictures(vec![again]).await.unwrap(), [LateOutcome::Done]);
    let again = reread(&store, &after.uid).await;
    assert_eq!((again.started_at, again.steps[0].phase), (Some(at(1)), StepPhase::Failed));
}

pub(crate) async fn a_picture_is_completed_only_of_an_ended_job_as_it_was_decided_on(store: Store) {
    use LateOutcome::{Done, Stale};
    let got = claimed(&store, "n", "a", at(0)).await;
    let held = store.complete_pictures(vec![late(&got.job, StepPhase::Running)]).await.unwrap();
    assert_eq!((held, reread(&store, &got.job.uid).await), (vec![Stale], got.job.clone()));
    let done = finish(&store, &got, at(1)).await;
    let other = claimed(&store, "n", "b", at(2)).await;
    let other = finish(&store, &other, at(3)).await;
    let mut epoch = late(&done, StepPhase::Running);
    epoch.epoch += 1;
    let mut nowhere = late(&done, StepPhase::Running);
    nowhere.job = "nowhere".to_owned();
    let batch = vec![late(&got.job, StepPhase::Running), epoch, nowhere, late(&other, StepPhase::Failed)];
    for (position, wanted) in batch.into_iter().zip([Stale, Stale, Stale, Done]) {
        assert_eq!(store.complete_pictures(vec![position]).await.unwrap(), [wanted]);
    }
    assert_eq!(reread(&store, &done.uid).await, done);
    assert_eq!(reread(&store, &other.uid).await.steps[0].phase, StepPhase::Failed);
    store.retry_job(at(9), &done.uid).await.unwrap();
    assert_eq!(store.complete_pictures(vec![late(&done, StepPhase::Failed)]).await.unwrap(), [Stale]);
}

pub(crate) async fn what_is_learned_of_a_fenced_attempt_changes_nothing(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let lost = transition(&got.job, |set| {
        set.phase = JobPhase::Failed;
        set.attempt = Some(ended(AttemptPhase::Lost, None));
    });
    let failed = transit(&store, at(30), lost).await;
    let outcomes = store.complete_pictures(vec![late(&failed, StepPhase::Succeeded)]).await.unwrap();
    assert_eq!(outcomes, [LateOutcome::Fenced]);
    assert_eq!(reread(&store, &failed.uid).await, failed);
}
