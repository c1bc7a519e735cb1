//! Everything of a database into another one, of either kind, and what a restored store does about what it cannot know.

#![expect(clippy::unwrap_used, reason = "a case that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::time::Duration;

use windlass_crds::protocol::{Outcome, Stream};
use windlass_crds::{JobPhase, JobTemplateSpec, SandboxJobSpec, Span};
use windlass_store::transfer::{
    Cell, Column, ColumnKind, Error, FileHold, Loader, Restored, Restoring, Snapshot, TableShape,
    check_tables, newest_schema,
};
use windlass_store::{
    ApiTokenRow, Beat, EventLevel, InputRow, LiveAttempts, NewEvent, NewFacts, NewReservation, NewRollout,
    Origin, OriginKind, QueueSettings, RecordStore, RolloutStep, Store, StoreOptions, StoreUrl,
};
use windlass_test_postgres::{Database, Server};

#[expect(dead_code, reason = "the contract's cases use the rest")]
#[path = "contract/fixtures.rs"]
mod fixtures;

use fixtures::{
    LEASE, LONG_LEASE, artifact, artifacts, at, attempt, claim, claimed, facts, finish, is_lost, job, log,
    redeemed, refused, register, registration, report, reread, terminal, transit,
};

/// A place for a database.
enum Place {
    File(tempfile::TempDir),
    Server(Database<'static>),
}

impl Place {
    fn file() -> Self {
        Self::File(tempfile::tempdir().unwrap())
    }

    fn server() -> Self {
        Self::Server(Server::shared().database())
    }

    fn url(&self) -> StoreUrl {
        match self {
            Self::File(folder) => StoreUrl::Sqlite(folder.path().join("windlass.db")),
            Self::Server(database) => StoreUrl::Postgres(database.url().parse().unwrap()),
        }
    }

    async fn open(&self) -> Store {
        Store::open(StoreOptions { url: self.url(), read_connections: 2 }).await.unwrap()
    }

    async fn loader(&self, schema: i64, replace: bool) -> Result<Loader, Error> {
        match self.url() {
            StoreUrl::Sqlite(file) => Loader::into_file(&file, schema).await,
            StoreUrl::SqliteMemory => unreachable!("places are on disk"),
            StoreUrl::Postgres(url) => Loader::into_server(&url, schema, replace).await,
        }
    }

    fn remove(self) {
        if let Self::Server(database) = self {
            database.remove();
        }
    }
}

type Rows = BTreeMap<String, (TableShape, Vec<Vec<Cell>>)>;

async fn dump(url: &StoreUrl) -> (Rows, i64, i64) {
    let mut snapshot = Snapshot::open(url).await.unwrap();
    let mut tables = Rows::new();
    for shape in snapshot.tables().to_vec() {
        let mut rows = Vec::new();
        snapshot
            .read::<Error>(&shape, |row| {
                rows.push(row);
                Ok(())
            })
            .await
            .unwrap();
        tables.insert(shape.name.clone(), (shape, rows));
    }
    (tables, snapshot.schema(), snapshot.version())
}

/// The order in which the tables of a database can be filled.
async fn order(url: &StoreUrl) -> Vec<String> {
    let snapshot = Snapshot::open(url).await.unwrap();
    snapshot.tables().iter().map(|shape| shape.name.clone()).collect()
}

fn restoring(now: i64, hold: u64, version: i64) -> Restoring {
    let settings = vec![("made anew".to_owned(), vec![1, 2, 3])];
    Restoring { now: at(now), hold: Duration::from_secs(hold), version, settings }
}

/// Restores what is in `from` into `to`.
async fn restore(from: &Place, to: &Place, now: i64, hold: u64) -> Restored {
    let (rows, schema, version) = dump(&from.url()).await;
    let loader = to.loader(schema, true).await.unwrap();
    load(loader, &order(&from.url()).await, rows, restoring(now, hold, version)).await
}

async fn load(mut loader: Loader, order: &[String], mut rows: Rows, restoring: Restoring) -> Restored {
    for table in order {
        let (shape, rows) = rows.remove(table).unwrap();
        loader.insert(&shape, rows).await.unwrap();
    }
    let (restored, settled) = loader.settle(&restoring).await.unwrap();
    settled.commit().await.unwrap();
    restored
}

/// Something in every table.
async fn fill(store: &Store) {
    let done = claimed(store, "n1", "done", at(0)).await;
    report(store, "n1", vec![log(&attempt(&done), 2, b"\x00\xff bytes")]).await;
    finish(store, &done, at(1)).await;
    register(store, &["n2", "n3", "gone"]).await;
    store.delete_node(at(1), "gone", LiveAttempts::Refuse, None).await.unwrap();
    let rollout = NewRollout {
        name: "r".into(),
        selector: "zone=a".into(),
        patch: serde_json::json!({"concurrency": 4}),
        max_unavailable: 1,
        pause_after: None,
        timeout: Span::from_secs(300),
        nodes: vec!["n2".into(), "n3".into()],
    };
    store.create_rollout(at(1), rollout).await.unwrap();
    let expected_version = store.get_node("n2").await.unwrap().unwrap().resource_version;
    let change = RolloutStep::Change { node: "n2".into(), spec: Box::default(), expected_version };
    store.advance_rollout(at(1), "r", 1, vec![change]).await.unwrap();
    let origin = Origin { cluster: "c".into(), object: "uid-o".into() };
    store.bind_origin(origin, OriginKind::Node, "uid of n2").await.unwrap();
    let gone = claimed(store, "n1", "gone", at(1)).await;
    let mut body = log(&attempt(&gone), 2, b"");
    body.body = RecordStore::Object { key: "logs/gone/1/1".into(), len: 7 };
    report(store, "n1", vec![body]).await;
    finish(store, &gone, at(1)).await;
    store.delete_job(at(1), &gone.job.uid, None).await.unwrap();
    let held = claimed(store, "n1", "held", at(2)).await;
    let mut body = log(&attempt(&held), 1, b"");
    body.body = RecordStore::Object { key: "logs/held/1/1".into(), len: 7 };
    body.stream = Some(Stream::Stderr);
    report(store, "n1", vec![body, artifacts(&attempt(&held), 2, &[artifact(1, "a/b.md"), refused(2, "c")])])
        .await;
    store.store_artifact(at(2), "n1", &attempt(&held), 1, "artifacts/held/1/1.x").await.unwrap();
    let input = InputRow { digest: "sha256:aa".into(), size: 5, object_key: "inputs/aa".into() };
    store.put_input(at(2), input).await.unwrap();
    let queued =
        job("queued").class("other").queue("slow").label("team", "ünïcode \u{1F980}").input("sha256:aa");
    queued.key("key", "hash", at(90_000)).create(store, at(3)).await;
    job("asks").class("other").phase(JobPhase::PendingApproval).create(store, at(3)).await;
    job("paused").class("other").spec(|spec| spec.suspend = true).create(store, at(3)).await;
    let settings = QueueSettings { weight: 3, concurrency: Some(2) };
    store.set_queue(at(3), "slow", settings).await.unwrap();
    store.put_template(at(3), ("default", "t"), "uid-t", template(), None).await.unwrap();
    store.put_setting_if_absent("node-token-secret", vec![0, 255, 7]).await.unwrap();
    let told = NewFacts { epoch: 7, sequence: 1, facts: facts("n1", 3) };
    store.record_facts(at(3), "n1", vec![told]).await.unwrap();
    store.cordon_node(at(4), "n1").await.unwrap();
    store.uncordon_node(at(4), "n1").await.unwrap();
    store.cordon_node(at(4), "n2").await.unwrap();
    let waiting = store.get_job("default", "queued").await.unwrap().unwrap();
    let room = NewReservation { node: "n3".into(), uid: waiting.uid, moves: 0 };
    assert_eq!(store.keep_room(at(4), Vec::new(), vec![room]).await.unwrap().len(), 1);
    let token = ApiTokenRow {
        id: "admin".into(),
        secret_hash: [7; 32],
        name: "admin".into(),
        role: "admin".into(),
        created_at: at(0),
        expires_at: None,
    };
    store.create_api_token(token).await.unwrap();
    let value = windlass_store::SealedValue {
        entry: "k".into(),
        key_id: "id".into(),
        wrapped_key: vec![1, 0, 255],
        sealed: vec![0; 40],
        size: 7,
    };
    store.put_secret(at(4), ("default", "s"), vec![value], 9).await.unwrap();
    store.issue_worker_token(at(4), "n1", 0).await.unwrap();
    store.note_delivery(at(4), "n1", Err("it does not answer".into())).await.unwrap();
    store.append_event(at(4), event()).await.unwrap();
}

/// What a restore leaves as it was, of what [`fill`] has made.
const AS_IT_WAS: [&str; 26] = [
    "api_tokens",
    "artifacts",
    "body_removals",
    "capability_snapshots",
    "classes",
    "departed_nodes",
    "events",
    "idempotency",
    "inputs",
    "job_bodies",
    "job_inputs",
    "job_labels",
    "join_tokens",
    "lanes",
    "node_facts",
    "node_history",
    "node_holds",
    "node_liveness",
    "node_push",
    "origins",
    "queues",
    "records",
    "reservations",
    "rollouts",
    "secret_values",
    "templates",
];

fn set(rows: &Rows, table: &str) -> BTreeSet<String> {
    rows[table].1.iter().map(|row| format!("{row:?}")).collect()
}

async fn everything_arrives(from: Place, to: Place) {
    let store = from.open().await;
    fill(&store).await;
    let names = |rows: &Rows| rows.keys().cloned().collect::<Vec<_>>();
    let (before, ..) = dump(&from.url()).await;
    let empty: Vec<_> =
        before.iter().filter(|(_, (_, rows))| rows.is_empty()).map(|(name, _)| name).collect();
    assert_eq!(empty, Vec::<&String>::new(), "something is in every table, so that all are shown to arrive");
    restore(&from, &to, 1000, 0).await;
    let (after, ..) = dump(&to.url()).await;
    assert_eq!(names(&before), names(&after));
    for table in AS_IT_WAS {
        assert_eq!(set(&before, table), set(&after, table), "{table}");
    }
    let settings = set(&after, "settings");
    assert!(set(&before, "settings").is_subset(&settings), "{settings:?}");
    store.close().await.unwrap();
    let store = to.open().await;
    for (name, phase) in [
        ("done", JobPhase::Succeeded),
        ("held", JobPhase::Claimed),
        ("queued", JobPhase::Queued),
        ("asks", JobPhase::PendingApproval),
    ] {
        assert_eq!(store.get_job("default", name).await.unwrap().unwrap().phase, phase);
    }
    let rollout = store.get_rollout("r").await.unwrap().unwrap();
    let node = store.get_node("n2").await.unwrap().unwrap();
    let changing = &rollout.nodes[0];
    assert_eq!(
        (changing.config_version, changing.changed_at),
        (Some(node.config_version), Some(at(1000))),
        "the roll-out knows its own configuration again, and waits for it anew"
    );
    // It goes on as any other: with new jobs, classes, lanes, events and templates.
    let new = job("new").class("new").queue("new").create(&store, at(1001)).await;
    assert!(new.resource_version > before["jobs"].1.len() as i64);
    assert_eq!(claim("n1").queues(&["new"]).names(&store, at(1002)).await, ["new"]);
    store.put_template(at(1002), ("default", "u"), "uid-u", template(), None).await.unwrap();
    store.append_event(at(1002), event()).await.unwrap();
    let last = store.events(None, None, 100).await.unwrap();
    assert!(last.windows(2).all(|pair| pair[0].id < pair[1].id));
    assert!(last.last().unwrap().id > 1_000_000, "readers of events after the backup miss none: {last:?}");
    store.close().await.unwrap();
    from.remove();
    to.remove();
}

fn template() -> JobTemplateSpec {
    JobTemplateSpec {
        version: "1".into(),
        description: None,
        parameters: Vec::new(),
        job: SandboxJobSpec::default(),
    }
}

fn event() -> NewEvent {
    NewEvent {
        job: None,
        node: None,
        level: EventLevel::Info,
        source: "test".into(),
        reason: "Told".into(),
        message: "another".into(),
        data: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_of_a_file_arrives_in_a_file() {
    everything_arrives(Place::file(), Place::file()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_of_a_file_arrives_on_a_server() {
    everything_arrives(Place::file(), Place::server()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_of_a_server_arrives_in_a_file() {
    everything_arrives(Place::server(), Place::file()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_of_a_server_arrives_on_a_server() {
    everything_arrives(Place::server(), Place::server()).await;
}

fn beat(node: &str, boot: &str, held: Vec<windlass_crds::protocol::AttemptId>) -> Beat {
    Beat {
        node: node.into(),
        boot_id: boot.into(),
        held,
        left: HashMap::new(),
        slots: 4,
        not_ready: None,
        lease: LEASE,
        lease_continue: LONG_LEASE,
    }
}

/// The story of a backup that is restored while nodes still work on what came after it.
async fn what_came_after_the_backup_is_not_taken_for_current(from: Place, to: Place) {
    let store = from.open().await;
    let going_on = claimed(&store, "n1", "going on", at(0)).await;
    let given_away = claimed(&store, "n1", "given away", at(0)).await;
    let ended = claimed(&store, "n1", "ended", at(0)).await;
    let done = claimed(&store, "n1", "done", at(1)).await;
    let done = finish(&store, &done, at(2)).await;
    let waiting = job("waiting").create(&store, at(2)).await;
    let config = store.get_node("n1").await.unwrap().unwrap().config_version;
    let (rows, schema, version) = dump(&from.url()).await;
    let tables = order(&from.url()).await;

    // More happens than the backup knows.
    let lost = transit(&store, at(30), is_lost(&reread(&store, &given_away.job.uid).await, None)).await;
    assert_eq!(lost.phase, JobPhase::Queued);
    register(&store, &["n2"]).await;
    let second = claim("n2").run(&store, at(31)).await;
    assert_eq!(second.len(), 2, "what was lost, and what was waiting");
    finish(&store, &ended, at(32)).await;
    let unknown = job("unknown").class("x").create(&store, at(33)).await;
    store.close().await.unwrap();

    let loader = to.loader(schema, true).await.unwrap();
    let restored = load(loader, &tables, rows, restoring(1000, 900, version)).await;
    assert_eq!((restored.at, restored.hold_until), (at(1000), at(1900)));
    let store = to.open().await;
    assert_eq!(store.restored(), Some(restored));
    assert!(store.get_job_by_uid(&unknown.uid).await.unwrap().is_none());

    // Configurations are delivered again, as newer ones.
    let node = store.get_node("n1").await.unwrap().unwrap();
    assert!(
        node.config_version > config && node.acked_version.is_none_or(|acked| acked < node.config_version)
    );
    // A node still has an attempt of the backup, and one that it was given afterwards.
    register_again(&store, "n1").await;
    let held = vec![attempt(&going_on), attempt(&second[0])];
    let told = store.beat(at(1001), vec![beat("n1", "n1 boot 2", held)]).await.unwrap().remove(0);
    assert_eq!(told.renewed.iter().map(|(held, _)| held.clone()).collect::<Vec<_>>(), [attempt(&going_on)]);
    assert_eq!(told.fenced, [attempt(&second[0])]);
    let late =
        report(&store, "n1", vec![log(&attempt(&second[0]), 1, b"late"), terminal(&attempt(&second[0]), 2)]);
    assert_eq!(late.await, [Outcome::Rejected, Outcome::Rejected]);
    // Nothing of the backup is handed out while it may still run elsewhere; what is new is.
    assert_eq!(claim("n1").boot("n1 boot 2").names(&store, at(1899)).await, Vec::<String>::new());
    job("new").create(&store, at(1100)).await;
    let new = claim("n1").boot("n1 boot 2").run(&store, at(1101)).await;
    assert_eq!(new.iter().map(|claimed| claimed.job.name.as_str()).collect::<Vec<_>>(), ["new"]);
    finish(&store, &new[0], at(1101)).await;
    let again = store.retry_job(at(1102), &done.uid).await.unwrap();
    let windlass_store::RetryOutcome::Queued(again) = again else { panic!("{again:?}") };
    assert_eq!(again.not_before, Some(at(1900)), "it may have been opened again after the backup, too");
    let back = transit(&store, at(1103), is_lost(&reread(&store, &going_on.job.uid).await, None)).await;
    assert_eq!(back.not_before, Some(at(1900)), "another node may have it");
    let expired = store.expired_leases(at(1900), 10).await.unwrap().rows;
    let names: BTreeSet<&str> = expired.iter().map(|(job, _)| job.name.as_str()).collect();
    assert_eq!(
        names,
        BTreeSet::from(["ended", "given away"]),
        "of what no node has, the lease ends with the hold"
    );
    for (job, _) in &expired {
        assert!(restored.had(job.epoch));
        transit(&store, at(1900), is_lost(job, None)).await;
    }
    let mut got = claim("n1").boot("n1 boot 2").run(&store, at(1900)).await;
    got.sort_by(|a, b| a.job.name.cmp(&b.job.name));
    let names: Vec<&str> = got.iter().map(|claimed| claimed.job.name.as_str()).collect();
    assert_eq!(names, ["done", "ended", "given away", "going on", "waiting"]);
    for claimed in &got {
        assert!(!restored.had(claimed.epoch) && claimed.epoch > second[0].epoch + 1000, "{}", claimed.epoch);
    }
    assert!(got.iter().any(|claimed| claimed.job.uid == waiting.uid));
    store.close().await.unwrap();
    from.remove();
    to.remove();
}

async fn register_again(store: &Store, node: &str) {
    let mut again = registration(node);
    again.boot_id = format!("{node} boot 2");
    again.token = Some(redeemed("token"));
    store.register_node(at(1000), again).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_after_the_backup_of_a_file_is_not_taken_for_current() {
    what_came_after_the_backup_is_not_taken_for_current(Place::file(), Place::file()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_after_the_backup_of_a_server_is_not_taken_for_current() {
    what_came_after_the_backup_is_not_taken_for_current(Place::server(), Place::server()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_of_a_second_restore_are_above_those_of_the_first() {
    let (from, first, second) = (Place::file(), Place::file(), Place::file());
    let store = from.open().await;
    register(&store, &["n1"]).await;
    job("a").create(&store, at(0)).await;
    store.close().await.unwrap();
    let early = restore(&from, &first, 1000, 0).await;
    let store = first.open().await;
    let got = claim("n1").run(&store, at(1000)).await;
    let config = store.get_node("n1").await.unwrap().unwrap().config_version;
    store.close().await.unwrap();
    // A moment later.
    let late = restore(&from, &second, 1001, 0).await;
    assert!(late.number > early.number && !late.had(u64::try_from(late.number).unwrap() + 1));
    let store = second.open().await;
    let again = claim("n1").run(&store, at(1001)).await;
    assert!(again[0].epoch > got[0].epoch, "{} {}", again[0].epoch, got[0].epoch);
    assert!(store.get_node("n1").await.unwrap().unwrap().config_version > config);
    store.close().await.unwrap();
    // Also with a clock that is far behind, where it is a restore of what was restored.
    let third = Place::file();
    let behind = restore(&second, &third, -30_000_000, 0).await;
    assert!(behind.number > late.number);
    // And not with one that shows a time from which jobs could get no ids.
    let (rows, schema, version) = dump(&from.url()).await;
    let mut loader = Place::file().loader(schema, false).await.unwrap();
    for table in order(&from.url()).await {
        let (shape, rows) = &rows[&table];
        loader.insert(shape, rows.clone()).await.unwrap();
    }
    let refused = loader.settle(&restoring(3_000_000_000, 0, version)).await.unwrap_err();
    assert!(matches!(refused, Error::Clock { .. }), "{refused}");
}

/// The rows of a schema that is older than they are: without what it did not have.
fn narrowed(rows: &Rows, to: &[TableShape]) -> Rows {
    let narrow = |shape: &TableShape| {
        let (from, rows) = &rows[&shape.name];
        let places: Vec<usize> = shape
            .columns
            .iter()
            .map(|column| {
                from.columns.iter().position(|other| other == column).expect("columns are only added")
            })
            .collect();
        let rows = rows.iter().map(|row| places.iter().map(|place| row[*place].clone()).collect()).collect();
        (shape.name.clone(), (shape.clone(), rows))
    };
    to.iter().map(narrow).collect()
}

async fn every_released_schema_can_be_restored(place: fn() -> Place) {
    let from = place();
    let store = from.open().await;
    fill(&store).await;
    store.close().await.unwrap();
    let (rows, newest, version) = dump(&from.url()).await;
    assert_eq!(newest, newest_schema());
    for schema in 1..=newest {
        let to = place();
        let loader = to.loader(schema, false).await.unwrap();
        let shapes = loader.tables().to_vec();
        let order: Vec<String> = shapes.iter().map(|shape| shape.name.clone()).collect();
        load(loader, &order, narrowed(&rows, &shapes), restoring(1000, 0, version)).await;
        let store = to.open().await;
        register_again(&store, "n1").await;
        let names = claim("n1").boot("n1 boot 2").queues(&["slow"]).names(&store, at(2000)).await;
        assert_eq!(names, ["queued"], "from schema {schema}");
        let held = store.get_job("default", "held").await.unwrap().unwrap();
        assert_eq!(held.phase, JobPhase::Claimed);
        store.close().await.unwrap();
        to.remove();
    }
    from.remove();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_released_schema_can_be_restored_into_a_file() {
    every_released_schema_can_be_restored(Place::file).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_released_schema_can_be_restored_onto_a_server() {
    every_released_schema_can_be_restored(Place::server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_one_moment_while_writes_go_on() {
    for place in [Place::file(), Place::server()] {
        let store = place.open().await;
        for n in 0..20 {
            job(&format!("before-{n}")).create(&store, at(n)).await;
        }
        let mut snapshot = Snapshot::open(&place.url()).await.unwrap();
        let mut seen = BTreeMap::new();
        for (round, shape) in snapshot.tables().to_vec().into_iter().enumerate() {
            // Each table is read at another time.
            job(&format!("after-{round}")).label("a", "b").create(&store, at(100)).await;
            let mut count = 0;
            snapshot
                .read::<Error>(&shape, |_| {
                    count += 1;
                    Ok(())
                })
                .await
                .unwrap();
            seen.insert(shape.name.clone(), count);
        }
        drop(snapshot);
        assert_eq!((seen["jobs"], seen["job_bodies"], seen["job_labels"]), (20, 20, 0));
        store.close().await.unwrap();
        place.remove();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_database_is_not_backed_up() {
    for place in [Place::file(), Place::server()] {
        let refused = Snapshot::open(&place.url()).await.unwrap_err();
        assert!(matches!(refused, Error::Nothing { .. }), "{refused}");
        place.remove();
    }
    let empty = Place::file();
    let StoreUrl::Sqlite(file) = empty.url() else { unreachable!("it is a file") };
    std::fs::write(&file, "").unwrap();
    assert!(matches!(Snapshot::open(&empty.url()).await.unwrap_err(), Error::Nothing { .. }));
    std::fs::write(&file, "no database at all, but long enough to look for a header in it").unwrap();
    let refused = Snapshot::open(&empty.url()).await.unwrap_err();
    assert!(matches!(refused, Error::Store(windlass_store::Error::Damaged { .. })), "{refused}");
}

/// Runs SQL behind the store's back.
async fn tamper(place: &Place, sql: &'static str) {
    use sqlx::Connection as _;
    match place {
        Place::File(folder) => {
            let options =
                sqlx::sqlite::SqliteConnectOptions::new().filename(folder.path().join("windlass.db"));
            let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
            sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
            connection.close().await.unwrap();
        }
        Place::Server(database) => drop(database.psql(sql)),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_is_not_known_is_neither_backed_up_nor_restored() {
    for place in [Place::file(), Place::server()] {
        place.open().await.close().await.unwrap();
        tamper(&place, "UPDATE _sqlx_migrations SET success = false WHERE version = 2").await;
        let refused = Snapshot::open(&place.url()).await.unwrap_err();
        assert!(
            matches!(refused, Error::Store(windlass_store::Error::SchemaBroken { version: 2 })),
            "{refused}"
        );
        tamper(&place, "UPDATE _sqlx_migrations SET success = true, version = version + 1000").await;
        let refused = Snapshot::open(&place.url()).await.unwrap_err();
        assert!(matches!(refused, Error::Store(windlass_store::Error::NewerSchema { .. })), "{refused}");
        place.remove();
        let to = Place::file();
        let refused = to.loader(newest_schema() + 1, false).await.unwrap_err();
        assert!(refused.to_string().contains("run the newer program"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_do_not_fit_are_refused_and_a_server_is_as_it_was() {
    let from = Place::file();
    let store = from.open().await;
    fill(&store).await;
    store.close().await.unwrap();
    let (rows, schema, version) = dump(&from.url()).await;
    let tables = order(&from.url()).await;
    let without = |left_out: &'static str| {
        tables.iter().filter(move |table| *table != left_out).cloned().collect::<Vec<_>>()
    };
    for to in [Place::file(), Place::server()] {
        for (left_out, problem) in [("queues", "is missing"), ("jobs", "missing")] {
            if let StoreUrl::Sqlite(file) = to.url()
                && file.exists()
            {
                std::fs::remove_file(file).unwrap();
            }
            let mut loader = to.loader(schema, false).await.unwrap();
            let mut failure = None;
            for table in without(left_out) {
                let (shape, rows) = &rows[&table];
                if let Err(error) = loader.insert(shape, rows.clone()).await {
                    failure = Some(error);
                    break;
                }
            }
            let failure = match failure {
                Some(failure) => failure,
                None => loader.settle(&restoring(1000, 0, version)).await.unwrap_err(),
            };
            assert!(failure.to_string().contains(problem), "{failure}");
        }
        let mut loader = match to.url() {
            StoreUrl::Sqlite(file) => {
                std::fs::remove_file(&file).unwrap();
                to.loader(schema, false).await.unwrap()
            }
            StoreUrl::SqliteMemory | StoreUrl::Postgres(_) => to.loader(schema, false).await.unwrap(),
        };
        let (shape, _) = &rows["settings"];
        let wrong = vec![vec![Cell::Int(1), Cell::Bytes(vec![])]];
        assert!(matches!(loader.insert(shape, wrong).await.unwrap_err(), Error::Unfit { .. }));
        let mut other = shape.clone();
        other.name = "unheard_of".into();
        assert!(matches!(loader.insert(&other, vec![]).await.unwrap_err(), Error::Unfit { .. }));
        let mut other = shape.clone();
        other.columns[0].name = "unheard_of".into();
        assert!(matches!(loader.insert(&other, vec![]).await.unwrap_err(), Error::Unfit { .. }));
        drop(loader);
        if let Place::Server(database) = &to {
            assert_eq!(database.psql("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"), "0");
        }
        to.remove();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_in_use_or_holds_something_else_is_not_filled() {
    let to = Place::server();
    let store = to.open().await;
    job("kept").create(&store, at(0)).await;
    let refused = to.loader(1, false).await.unwrap_err();
    assert!(matches!(refused, Error::NotEmpty { .. }), "{refused}");
    let refused = to.loader(1, true).await.unwrap_err();
    assert!(refused.to_string().contains("windlass writer"), "{refused}");
    store.close().await.unwrap();
    let Place::Server(database) = &to else { unreachable!("it is a server") };
    // Sessions that have ended are shown for a moment.
    let quiet = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND application_name LIKE 'windlass %'";
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while database.psql(quiet) != "0" {
        assert!(std::time::Instant::now() < deadline, "the store's sessions end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    database.psql("CREATE TABLE theirs (id BIGINT)");
    let refused = to.loader(1, true).await.unwrap_err();
    assert!(refused.to_string().contains("theirs"), "{refused}");
    database.psql("DROP TABLE theirs");
    // A restore that is broken off leaves what was there.
    drop(to.loader(1, true).await.unwrap());
    let store = to.open().await;
    assert!(store.get_job("default", "kept").await.unwrap().is_some());
    store.close().await.unwrap();
    to.remove();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_else_has_beside_it_is_neither_taken_nor_touched() {
    const THEIRS: &str = "
        CREATE TABLE theirs (id BIGINT GENERATED ALWAYS AS IDENTITY, at TIMESTAMPTZ);
        INSERT INTO theirs (at) VALUES (now()), (now());
        DELETE FROM theirs";
    let (from, to, other) = (Place::server(), Place::server(), Place::server());
    let store = from.open().await;
    fill(&store).await;
    store.close().await.unwrap();
    tamper(&from, THEIRS).await;
    let (rows, schema, version) = dump(&from.url()).await;
    let shapes: Vec<TableShape> = rows.values().map(|(shape, _)| shape.clone()).collect();
    check_tables(schema, &shapes).await.expect("it has the tables of its schema and no others");
    let tables = order(&from.url()).await;

    tamper(&to, THEIRS).await;
    let loader = to.loader(schema, false).await.unwrap();
    load(loader, &tables, rows, restoring(1000, 0, version)).await;
    let store = to.open().await;
    assert!(store.get_job("default", "queued").await.unwrap().is_some());
    store.close().await.unwrap();
    let Place::Server(database) = &to else { unreachable!("it is a server") };
    let next = database.psql("INSERT INTO theirs (at) VALUES (now()) RETURNING id");
    assert_eq!(next.lines().next(), Some("3"), "its numbers go on where they were");

    tamper(&other, "CREATE TABLE jobs (id BIGINT)").await;
    let refused = other.loader(schema, false).await.unwrap_err();
    assert!(matches!(&refused, Error::UnknownTables { tables, .. } if tables == "jobs"), "{refused}");
    for place in [from, to, other] {
        place.remove();
    }
}

#[tokio::test]
async fn tables_that_are_not_those_of_their_schema_are_named() {
    let from = Place::file();
    from.open().await.close().await.unwrap();
    let (rows, schema, _) = dump(&from.url()).await;
    let shapes: Vec<TableShape> = rows.into_values().map(|(shape, _)| shape).collect();
    check_tables(schema, &shapes).await.unwrap();
    let refused = async |change: &dyn Fn(&mut Vec<TableShape>)| {
        let mut changed = shapes.clone();
        change(&mut changed);
        check_tables(schema, &changed).await.unwrap_err().to_string()
    };
    let bar =
        TableShape { name: "bar".into(), columns: vec![Column { name: "id".into(), kind: ColumnKind::Int }] };
    let said = refused(&|tables| tables.push(bar.clone())).await;
    assert!(said.ends_with("table `bar` is none of it"), "{said}");
    let said = refused(&|tables| tables.retain(|table| table.name != "queues")).await;
    assert!(said.ends_with("table `queues` is missing"), "{said}");
    let said = refused(&|tables| {
        let queues = tables.iter_mut().find(|table| table.name == "queues").unwrap();
        queues.columns.retain(|column| column.name != "weight");
    })
    .await;
    assert!(said.ends_with("table `queues` lacks column `weight`"), "{said}");
    let more = Column { name: "more".into(), kind: ColumnKind::Text };
    let said = refused(&|tables| tables[0].columns.push(more.clone())).await;
    assert!(said.contains("has no column `more`"), "{said}");
    let newer = check_tables(schema + 1, &shapes).await.unwrap_err();
    assert!(matches!(newer, Error::NewerSchema { .. }), "{newer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_a_controller_has_is_not_to_be_had() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("windlass.db");
    drop(FileHold::take(&file).unwrap());
    assert!(!Path::new(&file).exists(), "holding a place makes no database there");
    let store = fixtures::on_disk(folder.path()).await;
    let refused = FileHold::take(&file).unwrap_err();
    assert!(matches!(refused, Error::Store(windlass_store::Error::Locked { .. })), "{refused}");
    store.close().await.unwrap();
    let _held = FileHold::take(&file).unwrap();
    let refused = Store::open(StoreOptions { url: StoreUrl::Sqlite(file), read_connections: 1 }).await;
    assert!(matches!(refused, Err(windlass_store::Error::Locked { .. })));
}
