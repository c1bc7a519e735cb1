//! Creating jobs.

use windlass_crds::sandbox_job::{OfflinePolicy, Script};
use windlass_crds::{JobPhase, Priority, Span};
use windlass_store::{CreateOutcome, DeleteOutcome, Error, InputRow, Store};

use crate::fixtures::{all_classes, at, claim, job, register, reread, transit, transition};

pub(crate) async fn a_created_job_reads_back_as_it_was_answered(store: Store) {
    let answered = job("a")
        .queue("lane")
        .priority(750)
        .reserve(1500, 1 << 30, 2)
        .label("app", "x")
        .spec(|spec| {
            spec.offline = Some(OfflinePolicy::Continue);
            spec.ttl_after_finished = Some(Span::from_secs(60));
            spec.suspend = true;
        })
        .create(&store, at(0))
        .await;
    assert_eq!(answered, reread(&store, &answered.uid).await);
    assert_eq!(Some(&answered), store.get_job("default", "a").await.unwrap().as_ref());
    assert_eq!(answered.spec.priority, Priority::HIGH);
    assert_eq!(answered.spec.queue, "lane");
    assert!(answered.suspend && answered.spec.suspend);
    assert_eq!(answered.queued_at, Some(at(0)));
    assert_eq!((answered.epoch, answered.attempts, answered.generation), (0, 0, 1));
    assert_eq!(store.get_job("default", "b").await.unwrap(), None);
    assert_eq!(store.get_job_by_uid("b").await.unwrap(), None);
}

pub(crate) async fn a_batch_answers_in_order(store: Store) {
    let jobs = (0..250).map(|n| job(&format!("job-{n}")).build()).collect();
    let outcomes = store.create_jobs(at(0), jobs).await.unwrap();
    let mut version = 0;
    for (n, outcome) in outcomes.iter().enumerate() {
        let CreateOutcome::Created(row) = outcome else { panic!("{outcome:?}") };
        assert_eq!(row.name, format!("job-{n}"));
        assert!(row.resource_version > version);
        version = row.resource_version;
    }
}

pub(crate) async fn a_taken_name_yields_the_job_that_has_it(store: Store) {
    let first = job("a").create(&store, at(0)).await;
    assert_eq!(job("a").try_create(&store, at(1)).await, CreateOutcome::NameTaken(first.clone()));
    assert_eq!(job("b").uid(&first.uid).try_create(&store, at(1)).await, CreateOutcome::NameTaken(first));
}

pub(crate) async fn a_name_repeated_in_one_batch_is_taken(store: Store) {
    let outcomes = store.create_jobs(at(0), vec![job("a").build(), job("a").build()]).await.unwrap();
    let [CreateOutcome::Created(first), CreateOutcome::NameTaken(second)] = outcomes.as_slice() else {
        panic!("{outcomes:?}")
    };
    assert_eq!(first, second);
}

pub(crate) async fn the_same_name_in_another_namespace_is_free(store: Store) {
    job("a").create(&store, at(0)).await;
    let other = job("a").namespace("other").create(&store, at(0)).await;
    assert_eq!(store.get_job("other", "a").await.unwrap(), Some(other));
}

pub(crate) async fn a_repeated_idempotency_key_replays_the_job_as_it_is_now(store: Store) {
    let first = job("a").key("k", "r", at(100)).create(&store, at(0)).await;
    store.request_cancel(at(1), &first.uid).await.unwrap();
    match job("a").key("k", "r", at(100)).try_create(&store, at(2)).await {
        CreateOutcome::Replayed(row) => {
            assert_eq!((row.uid, row.phase), (first.uid, JobPhase::Cancelled));
        }
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn an_idempotency_key_with_another_request_is_refused(store: Store) {
    job("a").key("k", "r", at(100)).create(&store, at(0)).await;
    assert_eq!(job("b").key("k", "other", at(100)).try_create(&store, at(1)).await, CreateOutcome::KeyReused);
    assert_eq!(store.get_job("default", "b").await.unwrap(), None);
}

pub(crate) async fn an_idempotency_key_repeated_in_one_batch_is_replayed(store: Store) {
    let jobs = vec![
        job("a").key("k", "r", at(100)).build(),
        job("a").key("k", "r", at(100)).build(),
        job("b").key("k", "other", at(100)).build(),
    ];
    let outcomes = store.create_jobs(at(0), jobs).await.unwrap();
    let [CreateOutcome::Created(first), CreateOutcome::Replayed(second), CreateOutcome::KeyReused] =
        outcomes.as_slice()
    else {
        panic!("{outcomes:?}")
    };
    assert_eq!(first, second);
}

pub(crate) async fn an_expired_idempotency_key_is_free_again(store: Store) {
    job("a").key("k", "r", at(100)).create(&store, at(0)).await;
    let second = job("b").key("k", "other", at(300)).create(&store, at(100)).await;
    match job("b").key("k", "other", at(300)).try_create(&store, at(200)).await {
        CreateOutcome::Replayed(row) => assert_eq!(row, second),
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn an_idempotency_key_of_a_deleted_job_does_not_run_it_again(store: Store) {
    let first = job("a").key("k", "r", at(100)).create(&store, at(0)).await;
    assert_eq!(
        store.delete_job(at(1), &first.uid, None).await.unwrap(),
        DeleteOutcome::Deleted { bodies: vec![] }
    );
    assert_eq!(job("a").key("k", "r", at(100)).try_create(&store, at(2)).await, CreateOutcome::KeyReused);
}

pub(crate) async fn a_missing_input_refuses_the_whole_batch(store: Store) {
    let input = InputRow { digest: "sha256:a".into(), size: 1, object_key: "inputs/a".into() };
    store.put_input(at(0), input).await.unwrap();
    let jobs = vec![job("a").input("sha256:a").build(), job("b").input("sha256:b").build()];
    match store.create_jobs(at(0), jobs).await {
        Err(Error::NotFound { object: "input", key }) => assert_eq!(key, "sha256:b"),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.get_job("default", "a").await.unwrap(), None);
    job("a").input("sha256:a").input("sha256:a").create(&store, at(0)).await;
}

pub(crate) async fn a_job_that_needs_approval_is_not_claimed_before(store: Store) {
    register(&store, &["n"]).await;
    let row = job("a").phase(JobPhase::PendingApproval).create(&store, at(0)).await;
    assert_eq!(row.queued_at, None);
    assert!(claim("n").run(&store, at(1)).await.is_empty());
    let approved = transit(&store, at(2), transition(&row, |set| set.phase = JobPhase::Queued)).await;
    assert_eq!(approved.queued_at, Some(at(2)));
    assert_eq!(claim("n").names(&store, at(3)).await, ["a"]);
}

pub(crate) async fn a_phase_that_no_new_job_has_is_refused(store: Store) {
    for phase in [JobPhase::Claimed, JobPhase::Running, JobPhase::Succeeded] {
        let refused = store.create_jobs(at(0), vec![job("a").phase(phase).build()]).await.unwrap_err();
        assert!(matches!(refused, Error::Invalid { .. }), "{refused}");
        assert!(refused.to_string().contains("phase"), "{refused}");
    }
    let refused = store.create_jobs(at(0), vec![job("a").priority(1001).build()]).await.unwrap_err();
    assert_eq!(refused.kind(), "Invalid");
    let refused = store.create_jobs(at(0), vec![job("a").reserve(u64::MAX, 0, 0).build()]).await.unwrap_err();
    assert_eq!(refused.kind(), "Invalid");
}

pub(crate) async fn a_spec_of_a_megabyte_survives(store: Store) {
    let source = "echo ž\n".repeat(150_000);
    let script = Script { interpreter: "bash".into(), source: source.clone(), args: vec![] };
    let row = job("a").spec(|spec| spec.script = Some(script)).create(&store, at(0)).await;
    let read = reread(&store, &row.uid).await;
    assert_eq!(read.spec.script.as_ref().map(|script| script.source.len()), Some(source.len()));
    assert_eq!(read, row);
}

pub(crate) async fn unicode_and_nul_survive_in_names_of_labels_and_specs(store: Store) {
    let row = job("a")
        .label("emoji", "🦀 'quoted' \"twice\" \\ back")
        .spec(|spec| {
            spec.title = Some("žluťoučký\u{0}kůň".to_owned());
            spec.sandbox.env.insert("NUL".to_owned(), "a\u{0}b".to_owned());
        })
        .create(&store, at(0))
        .await;
    assert_eq!(reread(&store, &row.uid).await, row);
}

pub(crate) async fn jobs_of_one_requirement_share_a_class(store: Store) {
    let a = job("a").class("gpu").create(&store, at(0)).await;
    let b = job("b").class("gpu").queue("other").reserve(1, 1, 1).create(&store, at(0)).await;
    let c = job("c").class("any").create(&store, at(0)).await;
    assert_eq!(a.class_id, b.class_id);
    assert_ne!(a.class_id, c.class_id);
}

pub(crate) async fn classes_are_listed_once_and_ids_grow(store: Store) {
    job("a").class("one").create(&store, at(0)).await;
    let first = store.unfitted_classes(0).await.unwrap();
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].predicates, serde_json::json!({ "is": "one" }));
    job("b").class("one").create(&store, at(0)).await;
    assert_eq!(store.unfitted_classes(first[0].id).await.unwrap(), []);
    job("c").class("two").create(&store, at(0)).await;
    job("d").class("three").create(&store, at(0)).await;
    let later = store.unfitted_classes(first[0].id).await.unwrap();
    assert_eq!(later.iter().map(|class| class.hash.as_str()).collect::<Vec<_>>(), ["two", "three"]);
    assert!(all_classes(&store).await.is_sorted());
}
