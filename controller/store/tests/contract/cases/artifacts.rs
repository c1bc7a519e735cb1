//! What attempts have left.

use std::time::Duration;

use windlass_crds::protocol::{AttemptId, Outcome};
use windlass_store::{
    ArtifactOutcome, ArtifactRow, BodyOf, DeleteOutcome, Error, NewRecord, RecordStore, RetentionPolicy,
    Store, StoredBody,
};

use crate::fixtures::{
    artifact, artifacts, at, attempt, claimed, finish, is_lost, refused, register, report, transit,
};

async fn rows(store: &Store, attempt: &AttemptId) -> Vec<ArtifactRow> {
    store.artifacts(&attempt.job).await.unwrap()
}

fn names(rows: &[ArtifactRow]) -> Vec<(u32, &str)> {
    rows.iter().map(|row| (row.artifact.number, row.artifact.name.as_str())).collect()
}

async fn put(store: &Store, attempt: &AttemptId, number: u32, key: &str) -> ArtifactOutcome {
    store.store_artifact(at(5), "n", attempt, number, key).await.unwrap()
}

pub(crate) async fn a_manifest_becomes_rows_once_and_only_the_first_of_a_name_counts(store: Store) {
    let id = attempt(&claimed(&store, "n", "a", at(0)).await);
    let (first, second) = (artifact(1, "a/report.md"), artifact(2, "ž 'quoted'\"%\\"));
    let record = artifacts(&id, 2, &[first.clone(), second.clone(), refused(3, "a/report.md")]);
    assert_eq!(report(&store, "n", vec![record.clone()]).await, [Outcome::Accepted]);
    assert_eq!(report(&store, "n", vec![record]).await, [Outcome::Duplicate]);
    let again = artifacts(&id, 3, &[artifact(2, "other"), artifact(4, "a/report.md"), artifact(5, "b")]);
    assert_eq!(report(&store, "n", vec![again]).await, [Outcome::Accepted]);
    let found = rows(&store, &id).await;
    assert_eq!(
        names(&found),
        [(1, "a/report.md"), (2, "ž 'quoted'\"%\\"), (3, "a/report.md"), (5, "b")],
        "no number and no name that is there is taken again"
    );
    let expected = ArtifactRow {
        epoch: id.epoch,
        attempt: 1,
        node: "n".into(),
        artifact: first,
        collected_at: at(1),
        superseded: false,
        object_key: None,
        stored_at: None,
        lost: None,
    };
    assert_eq!(found[0], expected);
    assert_eq!((&found[1].artifact, &found[2].artifact), (&second, &refused(3, "a/report.md")));
    let nonsense = NewRecord { body: RecordStore::None, ..artifacts(&id, 9, &[]) };
    let error = store.apply(at(2), "n", vec![nonsense], Vec::new()).await.unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
}

pub(crate) async fn an_artifact_gets_one_body_and_keeps_it(store: Store) {
    let id = attempt(&claimed(&store, "n", "a", at(0)).await);
    report(&store, "n", vec![artifacts(&id, 1, &[artifact(1, "a"), artifact(2, "b"), refused(3, "c")])])
        .await;
    assert_eq!(put(&store, &id, 1, "artifacts/1.x").await, ArtifactOutcome::Stored);
    assert_eq!(put(&store, &id, 1, "artifacts/1.y").await, ArtifactOutcome::Known);
    assert_eq!(put(&store, &id, 3, "artifacts/3").await, ArtifactOutcome::Gone, "it was refused");
    assert_eq!(put(&store, &id, 4, "artifacts/4").await, ArtifactOutcome::Gone, "nobody has told of it");
    let found = rows(&store, &id).await;
    assert_eq!(
        (found[0].object_key.as_deref(), found[0].stored_at),
        (Some("artifacts/1.x"), Some(at(5))),
        "the first stays"
    );
    assert_eq!((&found[1].object_key, &found[2].object_key), (&None, &None));
    let (row, stored) = store.artifact_of_node("n", &id, 2).await.unwrap().unwrap();
    assert_eq!((row.artifact.name.as_str(), stored), ("b", 7));
}

pub(crate) async fn bodies_are_taken_of_the_node_that_has_the_attempt_alone(store: Store) {
    let id = attempt(&claimed(&store, "n", "a", at(0)).await);
    register(&store, &["other"]).await;
    assert_eq!(
        report(&store, "other", vec![artifacts(&id, 1, &[artifact(1, "evil")])]).await,
        [Outcome::Rejected]
    );
    report(&store, "n", vec![artifacts(&id, 1, &[artifact(1, "a")])]).await;
    assert_eq!(names(&rows(&store, &id).await), [(1, "a")]);
    assert_eq!(store.artifact_of_node("other", &id, 1).await.unwrap(), None);
    let stranger = store.store_artifact(at(5), "other", &id, 1, "x").await.unwrap();
    assert_eq!(stranger, ArtifactOutcome::Gone);
    store.lose_artifacts("other", &id, &[(1, "evil".into())]).await.unwrap();
    assert_eq!(rows(&store, &id).await[0].lost, None);
}

pub(crate) async fn a_body_that_will_never_come_is_a_gap_until_it_comes_all_the_same(store: Store) {
    let id = attempt(&claimed(&store, "n", "a", at(0)).await);
    report(&store, "n", vec![artifacts(&id, 1, &[artifact(1, "a"), artifact(2, "b"), refused(3, "c")])])
        .await;
    put(&store, &id, 1, "key").await;
    let lost = [(1, "why".into()), (2, "no \0 room".into()), (3, "why".into()), (9, "why".into())];
    for _ in 0..2 {
        store.lose_artifacts("n", &id, &lost).await.unwrap();
    }
    let found = rows(&store, &id).await;
    let why: Vec<_> = found.iter().map(|row| row.lost.as_deref()).collect();
    assert_eq!(why, [None, Some("no \u{fffd} room"), None]);
    assert_eq!(put(&store, &id, 2, "other key").await, ArtifactOutcome::Stored);
    assert_eq!(rows(&store, &id).await[1].lost, None);
}

pub(crate) async fn artifacts_and_their_bodies_go_with_their_job(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let id = attempt(&got);
    report(&store, "n", vec![artifacts(&id, 2, &[artifact(1, "a"), artifact(2, "b")])]).await;
    put(&store, &id, 1, "artifacts/key").await;
    finish(&store, &got, at(3)).await;
    let keys = vec!["artifacts/key".to_owned()];
    let deleted = store.delete_job(at(4), &id.job, None).await.unwrap();
    assert_eq!(deleted, DeleteOutcome::Deleted { bodies: keys.clone() });
    assert_eq!(store.pending_removals(9).await.unwrap(), keys);
    assert_eq!(rows(&store, &id).await, []);
    assert_eq!(put(&store, &id, 2, "late").await, ArtifactOutcome::Gone);
}

pub(crate) async fn artifacts_of_a_fenced_attempt_are_kept_for_a_while(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let id = attempt(&got);
    transit(&store, at(1), is_lost(&got.job, None)).await;
    let record = artifacts(&id, 1, &[artifact(1, "a"), artifact(2, "b")]);
    assert_eq!(report(&store, "n", vec![record]).await, [Outcome::Superseded]);
    assert_eq!(put(&store, &id, 1, "artifacts/key").await, ArtifactOutcome::Stored);
    assert!(rows(&store, &id).await.iter().all(|row| row.superseded));
    let keep = Duration::from_secs(100);
    let policy = RetentionPolicy { events: keep, superseded: keep, join_tokens: keep };
    assert_eq!(store.prune(at(50), policy, 9).await.unwrap().artifacts, 0);
    let pruned = store.prune(at(500), policy, 1).await.unwrap();
    assert!(pruned.more && pruned.artifacts == 1, "{pruned:?}");
    let after = store.prune(at(500), policy, 9).await.unwrap();
    let bodies: Vec<_> = pruned.bodies.into_iter().chain(after.bodies).collect();
    assert_eq!((after.artifacts, bodies), (1, vec!["artifacts/key".to_owned()]));
    assert_eq!(rows(&store, &id).await, []);
}

pub(crate) async fn a_body_of_an_artifact_is_unnamed_unless_its_own_row_names_it(store: Store) {
    let id = attempt(&claimed(&store, "n", "a", at(0)).await);
    report(&store, "n", vec![artifacts(&id, 1, &[artifact(1, "a"), artifact(2, "b")])]).await;
    put(&store, &id, 1, "artifacts/1.x").await;
    let of = |number| BodyOf::Artifact { attempt: id.clone(), number };
    let bodies = [("artifacts/1.x", of(1)), ("artifacts/1.y", of(1)), ("artifacts/2.x", of(2))];
    let bodies = bodies.map(|(key, of)| StoredBody { key: key.to_owned(), of }).to_vec();
    let mut unnamed = store.unnamed_bodies(bodies).await.unwrap();
    unnamed.sort();
    assert_eq!(unnamed, ["artifacts/1.y", "artifacts/2.x"]);
}
