//! Everything else that is kept: tokens, settings, templates, inputs, events, numbers.

use std::time::Duration;

use windlass_crds::{JobPhase, JobTemplateSpec, SandboxJobSpec, Span};
use windlass_store::{
    ApiTokenRow, BodyOf, Change, DeleteOutcome, Error, EventLevel, InputRow, JobPatch, LiveAttempts,
    NewEvent, NewRecord, PriorityRow, Pruned, PutTemplate, QueueCounts, RecordStore, RetentionPolicy, Store,
    StoredBody,
};

use crate::fixtures::{
    at, attempt, claim, claimed, finish, is_lost, job, join_token, log, register, report, reread, transit,
    transition,
};

pub(crate) async fn tokens_are_found_by_their_secret(store: Store) {
    let mut token = join_token("one");
    token.description = "for the rack".to_owned();
    token.expires_at = Some(at(100));
    token.max_uses = Some(5);
    store.create_join_token(at(3), token.clone()).await.unwrap();
    token.created_at = at(3);
    assert_eq!(store.find_join_token(&token.secret_hash).await.unwrap(), Some(token.clone()));
    assert_eq!(store.find_join_token(&[9; 32]).await.unwrap(), None);
    assert_eq!(store.list_join_tokens().await.unwrap(), [token]);
    let api = ApiTokenRow {
        id: "admin".into(),
        secret_hash: [7; 32],
        name: "first".into(),
        role: "admin".into(),
        created_at: at(0),
        expires_at: Some(at(50)),
    };
    store.create_api_token(api.clone()).await.unwrap();
    assert_eq!(store.find_api_token(&[7; 32]).await.unwrap(), Some(api.clone()));
    assert_eq!(store.find_api_token(&[8; 32]).await.unwrap(), None);
    assert!(!format!("{api:?}").contains("secret_hash"), "not even hashes are printed");
}

pub(crate) async fn an_api_token_ends_with_the_one_that_replaces_it(store: Store) {
    let token = |id: &str, name: &str, secret: u8| ApiTokenRow {
        id: id.into(),
        secret_hash: [secret; 32],
        name: name.into(),
        role: "admin".into(),
        created_at: at(0),
        expires_at: None,
    };
    store.create_api_token(token("1", "admin", 1)).await.unwrap();
    store.create_api_token(token("2", "admin", 2)).await.unwrap();
    store.create_api_token(token("3", "ci", 3)).await.unwrap();
    let taken = store.replace_api_tokens(token("4", "admin", 3)).await.unwrap_err();
    assert!(matches!(taken, Error::AlreadyExists { .. }), "{taken}");
    let found = async |secret: u8| store.find_api_token(&[secret; 32]).await.unwrap().map(|token| token.id);
    assert_eq!(found(1).await.as_deref(), Some("1"), "a replacement that fails changes nothing");
    store.replace_api_tokens(token("4", "admin", 4)).await.unwrap();
    let left = [found(1).await, found(2).await, found(3).await, found(4).await];
    assert_eq!(left, [None, None, Some("3".into()), Some("4".into())]);
}

pub(crate) async fn a_token_that_is_known_is_not_created_again(store: Store) {
    store.create_join_token(at(0), join_token("one")).await.unwrap();
    let mut same_secret = join_token("one");
    same_secret.id = "two".to_owned();
    for again in [join_token("one"), same_secret] {
        let refused = store.create_join_token(at(0), again).await.unwrap_err();
        assert!(matches!(refused, Error::AlreadyExists { .. }), "{refused}");
    }
}

pub(crate) async fn a_setting_is_made_once(store: Store) {
    assert_eq!(store.get_setting("cluster").await.unwrap(), None);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8u8 {
        let store = store.clone();
        tasks.spawn(async move { store.put_setting_if_absent("cluster", vec![0, n, 255]).await.unwrap() });
    }
    let mut seen = tasks.join_all().await;
    seen.push(store.get_setting("cluster").await.unwrap().unwrap());
    seen.dedup();
    assert_eq!(seen.len(), 1, "all see the same: {seen:?}");
}

fn template(version: &str, description: &str) -> JobTemplateSpec {
    JobTemplateSpec {
        version: version.to_owned(),
        description: Some(description.to_owned()),
        parameters: Vec::new(),
        job: SandboxJobSpec::default(),
    }
}

pub(crate) async fn a_template_version_with_other_content_is_refused(store: Store) {
    let put = async |spec| store.put_template(at(1), ("ns", "t"), "uid", spec, None).await.unwrap();
    let PutTemplate::Created(row) = put(template("1", "one")).await else { panic!() };
    assert_eq!(put(template("1", "one")).await, PutTemplate::Unchanged(row.clone()));
    assert_eq!(put(template("1", "other")).await, PutTemplate::VersionConflict { existing: row.clone() });
    assert_eq!(store.get_template("ns", "t").await.unwrap(), Some(row));
}

pub(crate) async fn an_earlier_template_version_becomes_current_again(store: Store) {
    let put =
        async |seconds, spec| store.put_template(at(seconds), ("ns", "t"), "uid", spec, None).await.unwrap();
    put(1, template("1", "one")).await;
    let PutTemplate::Updated(two) = put(2, template("2", "two")).await else { panic!() };
    assert_eq!((two.generation, two.created_at, two.updated_at), (2, at(1), at(2)));
    assert!(matches!(put(3, template("1", "other")).await, PutTemplate::VersionConflict { .. }));
    let PutTemplate::Updated(one) = put(4, template("1", "one")).await else { panic!() };
    assert_eq!((one.spec.version.as_str(), one.generation), ("1", 3));
    let old = store.get_template_version("ns", "t", "2").await.unwrap().unwrap();
    assert_eq!(old.spec, template("2", "two"));
    assert_eq!(store.get_template_version("ns", "t", "3").await.unwrap(), None);
}

pub(crate) async fn templates_are_listed_and_deleted(store: Store) {
    for (namespace, name, uid) in [("b", "x", "1"), ("a", "y", "2"), ("a", "x", "3")] {
        store.put_template(at(0), (namespace, name), uid, template("1", name), None).await.unwrap();
    }
    let names = async |namespace: Option<&str>| {
        let rows = store.list_templates(namespace).await.unwrap();
        rows.into_iter().map(|row| format!("{}/{}", row.namespace, row.name)).collect::<Vec<_>>()
    };
    assert_eq!(names(None).await, ["a/x", "a/y", "b/x"]);
    assert_eq!(names(Some("a")).await, ["a/x", "a/y"]);
    assert_eq!(store.delete_template("a", "x", None).await.unwrap().unwrap().uid, "3");
    assert_eq!(store.delete_template("a", "x", None).await.unwrap(), None);
    let again = store.put_template(at(1), ("a", "x"), "4", template("1", "new content"), None).await.unwrap();
    assert!(matches!(again, PutTemplate::Created(_)), "its versions went with it");
}

fn input(digest: &str) -> InputRow {
    InputRow { digest: digest.to_owned(), size: 1 << 40, object_key: format!("inputs/{digest}") }
}

pub(crate) async fn an_input_in_use_is_not_deleted(store: Store) {
    store.put_input(at(0), input("d")).await.unwrap();
    assert_eq!(store.get_input("d").await.unwrap(), Some(input("d")));
    assert_eq!(store.get_input("e").await.unwrap(), None);
    let row = job("a").input("d").create(&store, at(1)).await;
    assert_eq!(store.unreferenced_inputs(at(100), 10).await.unwrap(), []);
    let refused = store.delete_input(at(2), "d").await.unwrap_err();
    assert!(matches!(refused, Error::InUse { object: "input", .. }), "{refused}");
    store.delete_job(at(3), &row.uid, None).await.unwrap();
    assert_eq!(store.delete_input(at(4), "d").await.unwrap().as_deref(), Some("inputs/d"));
    assert_eq!(store.delete_input(at(4), "d").await.unwrap(), None);
    assert_eq!(store.pending_removals(10).await.unwrap(), ["inputs/d"]);
    store.put_input(at(5), input("d")).await.unwrap();
    assert!(store.pending_removals(10).await.unwrap().is_empty(), "the body is wanted again");
}

pub(crate) async fn an_unreferenced_input_is_listed_once_it_is_old(store: Store) {
    store.put_input(at(0), input("old")).await.unwrap();
    store.put_input(at(0), input("renewed")).await.unwrap();
    store.put_input(at(10), input("new")).await.unwrap();
    store.put_input(at(10), input("renewed")).await.unwrap();
    assert_eq!(store.unreferenced_inputs(at(5), 10).await.unwrap(), [input("old")]);
    assert_eq!(store.unreferenced_inputs(at(11), 2).await.unwrap().len(), 2);
}

pub(crate) async fn removals_are_remembered_until_confirmed(store: Store) {
    let got = claimed(&store, "n", "a", at(0)).await;
    let id = attempt(&got);
    let keys: Vec<String> = (1..=3).map(|n| format!("logs/{n}")).collect();
    let records = (1..).zip(&keys).map(|(sequence, key)| windlass_store::NewRecord {
        body: RecordStore::Object { key: key.clone(), len: 1 },
        ..log(&id, sequence, b"")
    });
    report(&store, "n", records.collect()).await;
    transit(&store, at(1), transition(&got.job, |set| set.phase = JobPhase::Failed)).await;
    store.delete_job(at(2), &id.job, None).await.unwrap();
    assert_eq!(store.pending_removals(2).await.unwrap().len(), 2);
    let gone = ["logs/1".to_owned(), "logs/3".to_owned(), "unknown".to_owned()];
    assert_eq!(store.confirm_removed(&gone).await.unwrap(), 2);
    assert_eq!(store.pending_removals(10).await.unwrap(), ["logs/2"]);
    assert_eq!(store.confirm_removed(&[]).await.unwrap(), 0);
}

fn event(job: Option<&str>, message: &str) -> NewEvent {
    NewEvent {
        job: job.map(str::to_owned),
        node: None,
        level: EventLevel::Info,
        source: "controller".into(),
        reason: "Said".into(),
        message: message.to_owned(),
        data: Some(serde_json::json!({ "n": 1 })),
    }
}

pub(crate) async fn pruning_forgets_what_is_due_in_small_batches(store: Store) {
    let hour = Duration::from_secs(3600);
    let policy = RetentionPolicy { events: hour, superseded: hour, join_tokens: hour };
    let got = claimed(&store, "n", "a", at(0)).await;
    transit(&store, at(1), is_lost(&got.job, None)).await;
    let mut fenced = log(&attempt(&got), 1, b"");
    fenced.body = RecordStore::Object { key: "logs/fenced".into(), len: 1 };
    report(&store, "n", vec![fenced, log(&attempt(&got), 2, b"x")]).await;
    for n in 0..3 {
        store.append_event(at(2), event(None, &n.to_string())).await.unwrap();
    }
    store.append_event(at(2), event(Some(&got.job.uid), "kept with its job")).await.unwrap();
    job("keyed").key("k", "r", at(100)).create(&store, at(2)).await;
    let mut spent = join_token("spent");
    spent.expires_at = Some(at(5));
    store.create_join_token(at(2), spent).await.unwrap();

    let nothing = store.prune(at(50), policy, 10).await.unwrap();
    assert_eq!(nothing, Pruned::default());
    let later = at(3700);
    let first = store.prune(later, policy, 2).await.unwrap();
    assert_eq!((first.events, first.records, first.idempotency_keys, first.join_tokens), (2, 2, 1, 1));
    assert_eq!(first.bodies, ["logs/fenced"]);
    assert!(first.more);
    let second = store.prune(later, policy, 2).await.unwrap();
    assert_eq!((second.events, second.records, second.more), (1, 0, false));
    assert_eq!(store.pending_removals(10).await.unwrap(), ["logs/fenced"]);
    let left = store.events(None, None, 10).await.unwrap();
    assert_eq!(left.iter().map(|event| event.message.as_str()).collect::<Vec<_>>(), ["kept with its job"]);
    let tokens = store.list_join_tokens().await.unwrap();
    assert_eq!(tokens.len(), 1, "the one that still admits nodes stays");
}

pub(crate) async fn a_body_is_unnamed_unless_its_own_row_names_it(store: Store) {
    register(&store, &["n"]).await;
    let got = claimed(&store, "n", "a", at(0)).await;
    let id = attempt(&got);
    let kept = format!("logs/{}/{}/1", id.job, id.epoch);
    let body = RecordStore::Object { key: kept.clone(), len: 1 };
    report(&store, "n", vec![NewRecord { body, ..log(&id, 1, b"") }]).await;
    let input = InputRow { digest: "sha256:a".into(), size: 1, object_key: "inputs/a.2".into() };
    store.put_input(at(0), input).await.unwrap();
    let of_record = |sequence| BodyOf::Record { attempt: id.clone(), sequence };
    let of_input = |digest: &str| BodyOf::Input { digest: digest.to_owned() };
    let bodies = [
        (kept.as_str(), of_record(1)),
        ("logs/other-key", of_record(1)),
        ("logs/2", of_record(2)),
        ("inputs/a.2", of_input("sha256:a")),
        ("inputs/a.1", of_input("sha256:a")),
        ("inputs/b", of_input("sha256:b")),
        ("stray", BodyOf::Nothing),
    ];
    let bodies = bodies.map(|(key, of)| StoredBody { key: key.to_owned(), of }).to_vec();
    let mut unnamed = store.unnamed_bodies(bodies).await.unwrap();
    unnamed.sort();
    assert_eq!(unnamed, ["inputs/a.1", "inputs/b", "logs/2", "logs/other-key", "stray"]);
    assert_eq!(store.unnamed_bodies(vec![]).await.unwrap(), Vec::<String>::new());
}

pub(crate) async fn what_is_removed_or_replaced_on_a_stale_version_stays(store: Store) {
    register(&store, &["n"]).await;
    let row = job("a").create(&store, at(0)).await;
    let stale = Some(row.resource_version + 1);
    let conflict = |error: Error| matches!(error, Error::Conflict { .. });
    assert!(conflict(store.delete_job(at(1), &row.uid, stale).await.unwrap_err()));
    assert!(conflict(store.delete_node(at(1), "n", LiveAttempts::Refuse, Some(99)).await.unwrap_err()));
    let put = async |spec, expected| store.put_template(at(1), ("ns", "t"), "uid", spec, expected).await;
    assert!(conflict(put(template("1", "x"), Some(7)).await.unwrap_err()), "there is none yet");
    let made = put(template("1", "x"), None).await.unwrap();
    let PutTemplate::Created(made) = made else { panic!("{made:?}") };
    assert!(conflict(put(template("2", "x"), Some(made.resource_version + 1)).await.unwrap_err()));
    put(template("2", "x"), Some(made.resource_version)).await.unwrap();
    assert!(conflict(store.delete_template("ns", "t", Some(made.resource_version)).await.unwrap_err()));
    let exact = Some(row.resource_version);
    assert_eq!(
        store.delete_job(at(1), &row.uid, exact).await.unwrap(),
        DeleteOutcome::Deleted { bodies: vec![] }
    );
}

pub(crate) async fn queue_statistics_count_every_state(store: Store) {
    assert_eq!(store.queue_stats(at(0)).await.unwrap(), []);
    register(&store, &["n"]).await;
    // One after the other into another state, so that each claim finds just the one.
    let put = async |name: &str| {
        job(name).queue("q").create(&store, at(10)).await;
        claim("n").run(&store, at(10)).await.remove(0)
    };
    let runs = put("runs").await;
    transit(&store, at(11), transition(&runs.job, |set| set.phase = JobPhase::Running)).await;
    put("claimed").await;
    let waits = put("waits").await;
    transit(&store, at(11), transition(&waits.job, |set| set.phase = JobPhase::Waiting)).await;
    let delayed = put("delayed").await;
    transit(&store, at(11), is_lost(&delayed.job, Some(at(500)))).await;
    let dead = put("dead").await;
    let exhausted = transition(&dead.job, |set| {
        set.phase = JobPhase::Failed;
        set.reason = Some("AttemptsExhausted".into());
    });
    transit(&store, at(11), exhausted).await;
    let failed = put("failed").await;
    transit(&store, at(11), transition(&failed.job, |set| set.phase = JobPhase::Failed)).await;
    let done = put("done").await;
    finish(&store, &done, at(11)).await;
    let held_back = job("held-back").queue("q").create(&store, at(1)).await;
    let patch = JobPatch { suspend: Some(true), ..JobPatch::default() };
    store.update_job(at(2), &held_back.uid, patch, None).await.unwrap();
    job("unapproved").queue("q").phase(JobPhase::PendingApproval).create(&store, at(1)).await;
    job("queued").queue("q").create(&store, at(20)).await;
    job("urgent").queue("q").priority(750).create(&store, at(30)).await;
    job("elsewhere").queue("a").create(&store, at(40)).await;

    let stats = store.queue_stats(at(100)).await.unwrap();
    assert_eq!(stats.iter().map(|row| row.queue.as_str()).collect::<Vec<_>>(), ["a", "q"]);
    let normal = QueueCounts {
        queued: 1,
        delayed: 1,
        suspended: 1,
        pending_approval: 1,
        running: 2,
        waiting: 1,
        dead: 1,
    };
    let urgent = QueueCounts { queued: 1, ..QueueCounts::default() };
    let by_priority =
        [PriorityRow { priority: 750, counts: urgent }, PriorityRow { priority: 500, counts: normal }];
    assert_eq!(stats[1].by_priority, by_priority);
    assert_eq!(stats[1].totals, QueueCounts { queued: 2, ..normal });
    assert_eq!(stats[1].oldest_queued_at, Some(at(20)));
    assert_eq!(stats[0].oldest_queued_at, Some(at(40)));
    let later = store.queue_stats(at(500)).await.unwrap();
    assert_eq!((later[1].totals.delayed, later[1].totals.queued), (0, 3), "time alone makes it ready");
}

pub(crate) async fn counts_see_everything(store: Store) {
    assert_eq!(store.counts(at(0)).await.unwrap(), Default::default());
    let got = claimed(&store, "n", "a", at(0)).await;
    claimed(&store, "n", "b", at(0)).await;
    finish(&store, &got, at(1)).await;
    job("c").create(&store, at(7)).await;
    let counts = store.counts(at(30)).await.unwrap();
    let jobs: Vec<_> = counts.jobs.iter().map(|(phase, count)| (*phase, *count)).collect();
    assert_eq!(jobs, [(JobPhase::Queued, 1), (JobPhase::Claimed, 1), (JobPhase::Succeeded, 1)]);
    assert_eq!((counts.nodes, counts.registered_nodes), (1, 1));
    assert_eq!((counts.live_attempts, counts.expired_leases), (1, 1));
    assert_eq!(counts.oldest_queued_at, Some(at(7)));
}

pub(crate) async fn events_are_read_on_from_a_cursor(store: Store) {
    let row = job("a").create(&store, at(0)).await;
    let events =
        (0..4).map(|n| event((n % 2 == 0).then_some(row.uid.as_str()), &format!("{n}\u{0}"))).collect();
    store.append_events(at(9), events).await.unwrap();
    let all = store.events(None, None, 10).await.unwrap();
    let messages = |events: &[windlass_store::EventRow]| {
        events.iter().map(|event| event.message.clone()).collect::<Vec<_>>()
    };
    assert_eq!(messages(&all), ["0\u{fffd}", "1\u{fffd}", "2\u{fffd}", "3\u{fffd}"]);
    assert_eq!((all[0].at, all[0].data.clone()), (at(9), Some(serde_json::json!({ "n": 1 }))));
    let own = store.events(Some(&row.uid), None, 10).await.unwrap();
    assert_eq!(messages(&own), ["0\u{fffd}", "2\u{fffd}"]);
    let rest = store.events(None, Some(all[1].id), 1).await.unwrap();
    assert_eq!(messages(&rest), ["2\u{fffd}"]);
    store.delete_job(at(10), &row.uid, None).await.unwrap();
    assert_eq!(store.events(Some(&row.uid), None, 10).await.unwrap(), []);
}

pub(crate) async fn a_ttl_that_is_due_is_listed(store: Store) {
    register(&store, &["n"]).await;
    for (name, ttl) in [("short", 10), ("long", 100)] {
        let spec = |spec: &mut SandboxJobSpec| spec.ttl_after_finished = Some(Span::from_secs(ttl));
        job(name).spec(spec).create(&store, at(0)).await;
    }
    job("for-ever").create(&store, at(0)).await;
    for got in claim("n").run(&store, at(0)).await {
        finish(&store, &got, at(1)).await;
    }
    let due = async |seconds| {
        let rows = store.ttl_due(at(seconds), 10).await.unwrap().rows;
        rows.into_iter().map(|row| row.name).collect::<Vec<_>>()
    };
    assert!(due(10).await.is_empty());
    assert_eq!(due(11).await, ["short"]);
    assert_eq!(due(1000).await, ["short", "long"]);
}

pub(crate) async fn wake_ups_come_after_the_commit(store: Store) {
    let mut changes = store.changes();
    register(&store, &["n"]).await;
    let row = job("a").create(&store, at(0)).await;
    let mut seen = Vec::new();
    while !seen.contains(&Change::Queued) || !seen.contains(&Change::Job { uid: row.uid.clone() }) {
        seen.push(changes.recv().await.expect("the wake-ups of a creation"));
        // Whoever is woken finds what woke him.
        if seen.contains(&Change::Job { uid: row.uid.clone() }) {
            reread(&store, &row.uid).await;
        }
    }
    assert!(seen.contains(&Change::Node { name: "n".into() }));
    let got = claim("n").run(&store, at(1)).await.remove(0);
    report(&store, "n", vec![log(&attempt(&got), 1, b"x")]).await;
    while changes.recv().await.expect("the wake-ups of a report")
        != (Change::Records { uid: row.uid.clone() })
    {}
    store.request_cancel(at(2), &row.uid).await.unwrap();
    while changes.recv().await.expect("the order for the node") != (Change::Node { name: "n".into() }) {}
    // What is refused wakes nobody.
    store.update_job(at(3), &row.uid, JobPatch::default(), Some(0)).await.unwrap_err();
    store.ping().await.unwrap();
    let left: Vec<Change> = std::iter::from_fn(|| changes.try_recv().ok()).collect();
    let told = |change: &Change| *change == Change::Job { uid: row.uid.clone() };
    // A store that has just begun to listen to others says that anything may have changed.
    assert!(left.iter().all(|change| told(change) || *change == Change::Any), "{left:?}");
}

pub(crate) async fn a_ping_writes(store: Store) {
    store.ping().await.unwrap();
    let other = store.clone();
    store.close().await.unwrap();
    other.ping().await.unwrap();
    other.close().await.unwrap();
}

pub(crate) async fn operations_at_the_same_time_fail_alone(store: Store) {
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..200u32 {
        let store = store.clone();
        tasks.spawn(async move {
            if n % 3 == 0 {
                // Writes a class, a lane and a job before it fails on the input: all of it is taken back.
                let class = format!("class-{n}");
                let jobs = vec![
                    job(&format!("job-{n}")).class(&class).build(),
                    job(&format!("other-{n}")).input("missing").build(),
                ];
                store.create_jobs(at(0), jobs).await.unwrap_err();
                store.update_job(at(0), "nowhere", JobPatch::default(), None).await.unwrap_err();
            } else {
                job(&format!("job-{n}")).class(&format!("class-{n}")).create(&store, at(0)).await;
            }
        });
    }
    tasks.join_all().await;
    let counts = store.counts(at(0)).await.unwrap();
    assert_eq!(counts.jobs[&JobPhase::Queued], 133);
    assert_eq!(store.unfitted_classes(0).await.unwrap().len(), 133);
    register(&store, &["n"]).await;
    assert_eq!(claim("n").max(500).run(&store, at(1)).await.len(), 133);
}
