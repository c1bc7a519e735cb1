//! What attempts have left.

use std::time::Duration;

use windlass_crds::protocol::{Artifact, AttemptId, MAX_ARTIFACTS_BYTES, Outcome};
use windlass_store::{
    ArtifactOutcome, ArtifactRow, BodyOf, Change, DeleteOutcome, Error, LiveAttempts, NewRecord, RecordStore,
    RedeemedToken, RegisterOutcome, RetentionPolicy, Store, StoredBody,
};

use crate::fixtures::{
    artifact, artifacts, at, attempt, claim, claimed, finish, is_lost, join_token, refused, register,
    registration, report, transit,
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

pub(crate) async fn the_bodies_of_an_attempt_stay_within_their_bound_together(store: Store) {
    let id = attempt(&claimed(&store, "n", "a", at(0)).await);
    let sized = |number, name: &str, size| Artifact { size, ..artifact(number, name) };
    let half = MAX_ARTIFACTS_BYTES / 2;
    let items = [sized(1, "a", half), sized(2, "b", half), sized(3, "c", 1), sized(4, "d", 0)];
    report(&store, "n", vec![artifacts(&id, 1, &items)]).await;
    assert_eq!(put(&store, &id, 3, "c").await, ArtifactOutcome::Stored);
    let (one, two) = tokio::join!(put(&store, &id, 1, "a"), put(&store, &id, 2, "b"));
    let outcomes = [one, two];
    assert!(outcomes.contains(&ArtifactOutcome::Stored) && outcomes.contains(&ArtifactOutcome::Full));
    assert_eq!(put(&store, &id, 4, "d").await, ArtifactOutcome::Stored, "it has no bytes");
    assert_eq!(put(&store, &id, 3, "again").await, ArtifactOutcome::Known);
    let other = attempt(&claimed(&store, "n", "b", at(0)).await);
    report(&store, "n", vec![artifacts(&other, 1, &[sized(1, "a", MAX_ARTIFACTS_BYTES)])]).await;
    assert_eq!(put(&store, &other, 1, "a").await, ArtifactOutcome::Stored, "each attempt has its own");
}

/// Two artifacts of a node of which one has come, and one of another node that is to come.
async fn half_sent(store: &Store) -> (AttemptId, AttemptId) {
    let got = claimed(store, "n", "a", at(0)).await;
    let id = attempt(&got);
    report(store, "n", vec![artifacts(&id, 2, &[artifact(1, "a"), artifact(2, "b"), refused(3, "c")])]).await;
    put(store, &id, 1, "key").await;
    finish(store, &got, at(3)).await;
    let other = attempt(&claimed(store, "m", "b", at(0)).await);
    report(store, "m", vec![artifacts(&other, 2, &[artifact(1, "a")])]).await;
    (id, other)
}

async fn lost(store: &Store, attempt: &AttemptId) -> Vec<Option<String>> {
    rows(store, attempt).await.into_iter().map(|row| row.lost).collect()
}

pub(crate) async fn what_a_removed_node_has_not_sent_is_lost(store: Store) {
    let (id, other) = half_sent(&store).await;
    let mut changes = store.changes();
    store.delete_node(at(4), "n", LiveAttempts::Refuse, None).await.unwrap();
    assert_eq!(lost(&store, &id).await, [None, Some("its node was removed".to_owned()), None]);
    assert_eq!(lost(&store, &other).await, [None], "its node is there");
    let told = Change::Records { uid: id.job.clone() };
    while changes.recv().await.expect("whoever watches the job is woken") != told {}
    let mut again = registration("n");
    again.public_key = Some(b"made anew".to_vec());
    assert!(matches!(store.register_node(at(5), again).await.unwrap(), RegisterOutcome::Created(_)));
    assert_eq!(put(&store, &id, 2, "late").await, ArtifactOutcome::Stored, "it has it all the same");
    assert_eq!(lost(&store, &id).await, [None, None, None]);
}

pub(crate) async fn what_a_replaced_node_has_not_sent_is_lost(store: Store) {
    let (id, other) = half_sent(&store).await;
    store.register_node(at(4), registration("n")).await.unwrap();
    assert_eq!(lost(&store, &id).await, [None, None, None], "it has only been started again");
    let mut token = join_token("r");
    token.replaces = Some("n".to_owned());
    store.create_join_token(at(0), token).await.unwrap();
    let mut new = registration("n");
    new.public_key = Some(b"new key".to_vec());
    new.token = Some(RedeemedToken { id: "r".into(), allows_new: false, replaces: Some("n".into()) });
    assert!(matches!(store.register_node(at(5), new).await.unwrap(), RegisterOutcome::Known(_)));
    assert_eq!(lost(&store, &id).await, [None, Some("its node was replaced".to_owned()), None]);
    assert_eq!(lost(&store, &other).await, [None], "it is another node's");
}

pub(crate) async fn one_artifact_is_found_by_its_number_or_its_name(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let first = attempt(&got);
    let items = [refused(1, "a"), artifact(2, "a"), artifact(3, "b")];
    report(&store, "n", vec![artifacts(&first, 1, &items)]).await;
    transit(&store, at(1), is_lost(&got.job, None)).await;
    let second = attempt(&claim("n").run(&store, at(2)).await[0]);
    report(&store, "n", vec![artifacts(&second, 1, &[artifact(1, "a")])]).await;
    let other = attempt(&claimed(&store, "m", "b", at(3)).await);
    report(&store, "m", vec![artifacts(&other, 1, &[artifact(1, "a"), artifact(7, "c")])]).await;
    let named = async |attempt: &AttemptId, name| {
        let found = store.artifacts_named(attempt, name).await.unwrap();
        found.into_iter().map(|row| (row.epoch, row.artifact.number)).collect::<Vec<_>>()
    };
    assert_eq!(named(&first, "a").await, [(first.epoch, 1), (first.epoch, 2)]);
    assert_eq!(named(&second, "a").await, [(second.epoch, 1)]);
    assert_eq!(named(&second, "b").await, []);
    let with = async |name| store.attempts_with_artifact(&first.job, name).await.unwrap();
    assert_eq!(with("a").await, [(second.epoch, 2), (first.epoch, 1)]);
    assert_eq!((with("b").await, with("c").await), (vec![(first.epoch, 1)], vec![]));
    let numbered = async |attempt: &AttemptId, number| {
        store.artifact(attempt, number).await.unwrap().map(|row| row.artifact)
    };
    assert_eq!(numbered(&first, 3).await, Some(artifact(3, "b")));
    assert_eq!((numbered(&second, 3).await, numbered(&other, 3).await), (None, None));
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
