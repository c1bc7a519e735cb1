//! What PostgreSQL can do to a store: servers that die, sessions that are ended, answers that get lost, neighbours that
//! hold locks, servers that will not have us; and what several stores on one database may not do to each other.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sqlx::{Connection as _, Executor as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use windlass_crds::JobPhase;
use windlass_store::{
    CancelOutcome, Change, ClaimedJob, CreateOutcome, Error, JobFilter, Page, PostgresUrl, RetentionPolicy,
    Store, StoreOptions, StoreUrl,
};
use windlass_test_postgres::{Database, Server};

use crate::fixtures::{at, attempt, claim, job, on_server, register, succeeds, terminal};

/// How long anything here may take to come true on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

async fn try_open(url: &str) -> Result<Store, Error> {
    let url = url.parse::<PostgresUrl>()?.with_patience(Duration::from_millis(300));
    Store::open(StoreOptions { url: StoreUrl::Postgres(url), read_connections: 2 }).await
}

async fn wait_for(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < until, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn queued(store: &Store) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut cursor = None;
    loop {
        let (jobs, next) = store.list_jobs(JobFilter::default(), Page { limit: 500, cursor }).await.unwrap();
        for job in jobs {
            assert!(names.insert(job.name.clone()), "{} is there twice", job.name);
        }
        match next {
            Some(next) => cursor = Some(next),
            None => return names,
        }
    }
}

/// Creates jobs until told to stop; yields the names of those that were acknowledged.
async fn keep_creating(store: Store, worker: usize, stop: Arc<AtomicBool>) -> Vec<String> {
    let mut acknowledged = Vec::new();
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("job-{worker}-{n}");
        match store.create_jobs(at(0), vec![job(&name).uid(&name).build()]).await {
            Ok(_) => acknowledged.push(name),
            Err(error) => assert_eq!(error.kind(), "Unavailable", "{error:?}"),
        }
    }
    acknowledged
}

/// Runs `disturb` while jobs are created; yields the names of those that were acknowledged.
async fn while_creating(store: &Store, disturb: impl AsyncFnOnce()) -> BTreeSet<String> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..4 {
        tasks.spawn(keep_creating(store.clone(), worker, Arc::clone(&stop)));
    }
    disturb().await;
    stop.store(true, Ordering::Relaxed);
    tasks.join_all().await.into_iter().flatten().collect()
}

async fn creates_one(store: &Store, name: &str) {
    wait_for("the store to write again", async || {
        store.create_jobs(at(0), vec![job(name).uid(name).build()]).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_in_the_middle_of_writes_loses_nothing_that_was_acknowledged() {
    let server = Server::own();
    let database = server.database();
    let store = on_server(&database.url()).await;
    let acknowledged = while_creating(&store, async || {
        for round in 0..3 {
            creates_one(&store, &format!("before-{round}")).await;
            server.kill();
            server.start();
            creates_one(&store, &format!("after-{round}")).await;
        }
    })
    .await;
    let there = queued(&store).await;
    let lost: Vec<_> = acknowledged.difference(&there).collect();
    assert!(lost.is_empty(), "{lost:?}");
    assert!(acknowledged.len() > 10, "{}", acknowledged.len());
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_is_told_and_ends_by_itself() {
    let server = Server::own();
    let database = server.database();
    let store = on_server(&database.url()).await;
    register(&store, &["n"]).await;
    server.stop();
    let write = store.ping().await.unwrap_err();
    assert_eq!(write.kind(), "Unavailable", "{write:?}");
    let began = Instant::now();
    store.ping().await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(4), "while it lasts nobody waits long again");
    let read = store.get_node("n").await.unwrap_err();
    assert_eq!(read.kind(), "Unavailable", "{read:?}");
    server.start();
    wait_for("the store to write again", async || store.ping().await.is_ok()).await;
    assert!(store.get_node("n").await.unwrap().is_some());
}

/// Ends every session of a database, or those of one kind.
fn terminate(database: &Database<'_>, like: &str) {
    database.psql(&format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE '{like}'"
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_are_ended_under_load_lose_nothing_and_do_nothing_twice() {
    let database = Server::shared().database();
    let store = on_server(&database.url()).await;
    let acknowledged = while_creating(&store, async || {
        for round in 0..15 {
            terminate(&database, "windlass%");
            creates_one(&store, &format!("round-{round}")).await;
        }
    })
    .await;
    let there = queued(&store).await;
    let lost: Vec<_> = acknowledged.difference(&there).collect();
    assert!(lost.is_empty(), "{lost:?}");
    register(&store, &["n"]).await;
    let claimed: BTreeSet<_> = claim("n").max(100_000).names(&store, at(1)).await.into_iter().collect();
    assert_eq!(claimed, there);
    store.close().await.unwrap();
    database.remove();
}

/// Claims and completes everything; yields how often each job was completed.
async fn drain(store: Store, node: &'static str, left: Arc<AtomicUsize>) -> HashMap<String, u32> {
    let mut done: HashMap<String, u32> = HashMap::new();
    let until = Instant::now() + PATIENCE;
    let mut held: Vec<ClaimedJob> = Vec::new();
    while left.load(Ordering::Acquire) > 0 {
        assert!(Instant::now() < until, "not everything was done in time");
        if held.is_empty() {
            held = claim(node).max(7).run(&store, at(1)).await;
            continue;
        }
        let records = held.iter().map(|claimed| terminal(&attempt(claimed), 1)).collect();
        let transitions = held.iter().map(|claimed| succeeds(&claimed.job, 1)).collect();
        store.apply(at(2), node, records, transitions).await.unwrap();
        left.fetch_sub(held.len(), Ordering::AcqRel);
        for claimed in held.drain(..) {
            *done.entry(claimed.job.name).or_default() += 1;
        }
    }
    done
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_stores_on_one_database_claim_no_job_twice_and_lose_none() {
    const JOBS: usize = 300;
    let database = Server::shared().database();
    let first = on_server(&database.url()).await;
    let second = on_server(&database.url()).await;
    register(&first, &["a", "b"]).await;
    // Lanes and classes that either store learns of only through the other.
    for (n, store) in (0..JOBS).zip([&first, &second].into_iter().cycle()) {
        let new =
            job(&format!("job-{n}")).class(&format!("class-{}", n % 7)).queue(&format!("queue-{}", n % 3));
        new.create(store, at(0)).await;
    }
    let left = Arc::new(AtomicUsize::new(JOBS));
    let mut tasks = tokio::task::JoinSet::new();
    for (store, node) in [(&first, "a"), (&second, "b"), (&first, "b"), (&second, "a")] {
        tasks.spawn(drain(store.clone(), node, Arc::clone(&left)));
    }
    let mut done: HashMap<String, u32> = HashMap::new();
    for part in tasks.join_all().await {
        for (name, times) in part {
            *done.entry(name).or_default() += times;
        }
    }
    assert_eq!(done.len(), JOBS);
    assert!(done.values().all(|times| *times == 1), "{done:?}");
    let counts = second.counts(at(3)).await.unwrap();
    assert_eq!(counts.jobs[&JobPhase::Succeeded], JOBS as u64);
    database.remove();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_and_events_of_several_stores_are_committed_in_order() {
    let database = Server::shared().database();
    let stores = [on_server(&database.url()).await, on_server(&database.url()).await];
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = tokio::task::JoinSet::new();
    for (worker, store) in stores.iter().enumerate() {
        tasks.spawn(keep_creating(store.clone(), worker, Arc::clone(&stop)));
    }
    // Whoever reads on from the highest version that he has seen misses nothing.
    let mut seen = BTreeSet::new();
    let mut highest = 0;
    let reader = &stores[0];
    wait_for("enough jobs", async || {
        let (jobs, _) =
            reader.list_jobs(JobFilter::default(), Page { limit: 500, cursor: None }).await.unwrap();
        let before = highest;
        for job in jobs {
            if seen.insert(job.resource_version) {
                assert!(job.resource_version > before, "{} came after {before}", job.resource_version);
                highest = highest.max(job.resource_version);
            }
        }
        seen.len() >= 300
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    tasks.join_all().await;
    database.remove();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_neighbour_that_sits_on_a_job_holds_up_nothing_else() {
    let database = Server::shared().database();
    let store = on_server(&database.url()).await;
    register(&store, &["n"]).await;
    let locked = job("locked").priority(1000).create(&store, at(0)).await;
    job("free").create(&store, at(0)).await;
    let mut neighbour = sqlx::PgConnection::connect(&database.url()).await.unwrap();
    neighbour.execute("BEGIN; SELECT 1 FROM jobs WHERE name = 'locked' FOR UPDATE").await.unwrap();
    assert_eq!(claim("n").max(1).names(&store, at(1)).await, ["free"]);
    // What needs that very job fails alone, and soon; what comes with it does not.
    let began = Instant::now();
    let (cancelled, created) =
        tokio::join!(store.request_cancel(at(1), &locked.uid), job("other").try_create(&store, at(1)));
    assert_eq!(cancelled.unwrap_err().kind(), "Unavailable");
    assert!(matches!(created, CreateOutcome::Created(_)), "{created:?}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    neighbour.execute("ROLLBACK").await.unwrap();
    assert_eq!(claim("n").max(1).names(&store, at(1)).await, ["locked"]);
    assert!(matches!(store.request_cancel(at(2), &locked.uid).await.unwrap(), CancelOutcome::Requested(_)));
    neighbour.close().await.unwrap();
    database.remove();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_stops_in_its_transaction_holds_up_the_others_for_a_bounded_time() {
    let database = Server::shared().database();
    let store = on_server(&database.url()).await;
    store.ping().await.unwrap();
    // Another controller's writer, with its settings, that goes to sleep while it holds the writers' lock.
    let mut stuck = sqlx::PgConnection::connect(&database.url()).await.unwrap();
    let lock = "SET idle_in_transaction_session_timeout = '5s'; BEGIN;
        SELECT pg_advisory_xact_lock(1464421956, 'counters'::REGCLASS::OID::INT)";
    stuck.execute(lock).await.unwrap();
    wait_for("the store to write again", async || store.ping().await.is_ok()).await;
    assert!(stuck.execute("SELECT 1").await.is_err(), "the server has ended it");
    database.remove();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lookups_wait_their_turn_when_connections_run_out() {
    let server = Server::shared();
    let database = server.database();
    let role = format!("few_{}", database.name());
    // Enough for the writer, the listener, and two lookups at a time.
    database.psql(&format!("CREATE ROLE {role} LOGIN PASSWORD 'few' CONNECTION LIMIT 4"));
    database.psql(&format!("ALTER SCHEMA public OWNER TO {role}"));
    let url = format!("postgres://{role}:few@127.0.0.1:{}/{}", server.port(), database.name());
    let options = StoreOptions { url: StoreUrl::Postgres(url.parse().unwrap()), read_connections: 16 };
    let store = Store::open(options).await.unwrap();
    let uid = job("a").create(&store, at(0)).await.uid;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let (store, uid) = (store.clone(), uid.clone());
        tasks.spawn(async move { store.get_job_by_uid(&uid).await.unwrap().unwrap() });
    }
    assert_eq!(tasks.join_all().await.len(), 200);
    job("b").create(&store, at(0)).await;
    store.close().await.unwrap();
    database.psql(&format!("ALTER SCHEMA public OWNER TO windlass; REASSIGN OWNED BY {role} TO windlass"));
    database.remove();
    server.psql("postgres", &format!("DROP ROLE {role}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_wake_each_other_also_after_their_listeners_were_cut_off() {
    let database = Server::shared().database();
    let first = on_server(&database.url()).await;
    let second = on_server(&database.url()).await;
    let mut changes = second.changes();
    wait_for("the second store to listen", async || {
        database.psql(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'windlass listener'
            AND datname = current_database() AND query LIKE '%LISTEN%' OR query = 'SELECT 1'",
        ) != "0"
    })
    .await;
    let uid = job("a").create(&first, at(0)).await.uid;
    let told = async |changes: &mut tokio::sync::broadcast::Receiver<Change>, uid: &str| {
        let wanted = [Change::Any, Change::Job { uid: uid.to_owned() }];
        let woken = async { while !wanted.contains(&changes.recv().await.expect("not too many")) {} };
        tokio::time::timeout(PATIENCE, woken).await.expect("a wake-up");
    };
    told(&mut changes, &uid).await;
    terminate(&database, "windlass listener");
    let uid = job("b").create(&first, at(0)).await.uid;
    told(&mut changes, &uid).await;
    // Once it listens again, it is told what has changed, by name.
    wait_for("a wake-up by name", async || {
        let name = format!("c-{}", uuid_of(&database));
        let uid = job(&name).create(&first, at(0)).await.uid;
        let by_name = async {
            while changes.recv().await.expect("not too many") != (Change::Job { uid: uid.clone() }) {}
        };
        tokio::time::timeout(Duration::from_millis(500), by_name).await.is_ok()
    })
    .await;
    database.remove();
}

fn uuid_of(database: &Database<'_>) -> String {
    database.psql("SELECT gen_random_uuid()")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_store_leads_and_a_former_leader_writes_nothing() {
    let database = Server::shared().database();
    let first = on_server(&database.url()).await;
    wait_for("the first store to lead", async || first.as_leader().is_some()).await;
    let second = on_server(&database.url()).await;
    let leader = first.as_leader().unwrap();
    leader.ping().await.unwrap();
    leader.prune(at(0), policy(), 10).await.unwrap();
    assert!(second.as_leader().is_none(), "only one leads");
    // The server ends the session that holds the lead, and somebody takes it.
    let before = database.psql("SELECT term FROM leadership");
    terminate(&database, "windlass listener");
    wait_for("a new term", async || database.psql("SELECT term FROM leadership") != before).await;
    let refused = leader.prune(at(0), policy(), 10).await.unwrap_err();
    assert!(matches!(refused, Error::NotLeader), "{refused:?}");
    first.ping().await.unwrap();
    wait_for("one leader", async || first.as_leader().is_some() != second.as_leader().is_some()).await;
    database.remove();
}

fn policy() -> RetentionPolicy {
    let long = Duration::from_secs(3600);
    RetentionPolicy { events: long, superseded: long, join_tokens: long }
}

/// What the proxy does with the next message that contains the words.
const PASS: u8 = 0;
const CUT_BEFORE: u8 = 1;
const CUT_AFTER: u8 = 2;

/// Stands between a store and its server, and cuts the connection once, around a message with these words.
struct Proxy {
    port: u16,
    mode: Arc<AtomicU8>,
}

impl Proxy {
    async fn new(server: u16, words: &'static [u8]) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mode = Arc::new(AtomicU8::new(PASS));
        let shared = Arc::clone(&mode);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let mode = Arc::clone(&shared);
                tokio::spawn(async move {
                    let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                    forward(client, server, words, &mode).await;
                });
            }
        });
        Self { port, mode }
    }

    fn cut(&self, mode: u8) {
        self.mode.store(mode, Ordering::SeqCst);
    }

    fn has_cut(&self) -> bool {
        self.mode.load(Ordering::SeqCst) == PASS
    }
}

async fn forward(client: TcpStream, server: TcpStream, words: &[u8], mode: &AtomicU8) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let withhold = Arc::new(AtomicBool::new(false));
    let withheld = Arc::clone(&withhold);
    // Ends when one side does, or with the first answer that is withheld.
    let mut answers = tokio::spawn(async move {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
            if withheld.load(Ordering::SeqCst) || to_client.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
    });
    let mut buffer = vec![0; 1 << 16];
    while let Ok(count) = from_client.read(&mut buffer).await {
        let message = &buffer[..count];
        let meant = message.windows(words.len()).any(|window| window == words);
        let wanted = if meant { mode.swap(PASS, Ordering::SeqCst) } else { PASS };
        if wanted == CUT_AFTER {
            // The server does it, and nobody gets the answer.
            withhold.store(true, Ordering::SeqCst);
            to_server.write_all(message).await.unwrap();
            (&mut answers).await.unwrap();
            return;
        }
        if wanted != PASS || count == 0 || to_server.write_all(message).await.is_err() {
            break;
        }
    }
    answers.abort();
}

async fn through_a_proxy(database: &Database<'_>, words: &'static [u8]) -> (Store, Proxy) {
    let port = Server::shared().port();
    let proxy = Proxy::new(port, words).await;
    let url = database.url().replace(&format!(":{port}/"), &format!(":{}/", proxy.port));
    (on_server(&format!("{url}?sslmode=disable")).await, proxy)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_to_a_commit_is_told_and_never_done_twice() {
    let database = Server::shared().database();
    let (store, proxy) = through_a_proxy(&database, b"COMMIT").await;
    job("first").create(&store, at(0)).await;
    for (mode, name, happened) in [(CUT_AFTER, "happened", true), (CUT_BEFORE, "did-not", false)] {
        proxy.cut(mode);
        let new = job(name).uid(name).build();
        let told = store.create_jobs(at(0), vec![new.clone()]).await.unwrap_err();
        assert!(proxy.has_cut());
        assert_eq!(told.kind(), "Unavailable");
        assert_eq!(queued(&store).await.contains(name), happened, "{name}");
        // Whoever was told so asks again, and there is one.
        let again = store.create_jobs(at(0), vec![new]).await.unwrap().remove(0);
        match again {
            CreateOutcome::NameTaken(row) => assert!(happened && row.uid == name),
            CreateOutcome::Created(row) => assert!(!happened && row.uid == name),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(queued(&store).await.len(), 3);
    store.close().await.unwrap();
    database.remove();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_lost_before_the_commit_is_made_up_for() {
    let database = Server::shared().database();
    let (store, proxy) = through_a_proxy(&database, b"pg_advisory_xact_lock").await;
    register(&store, &["n"]).await;
    for (mode, name) in [(CUT_AFTER, "a"), (CUT_BEFORE, "b")] {
        proxy.cut(mode);
        job(name).create(&store, at(0)).await;
        assert!(proxy.has_cut());
    }
    assert_eq!(claim("n").names(&store, at(1)).await, ["a", "b"]);
    store.close().await.unwrap();
    database.remove();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_log_in_is_told_where_and_as_whom_but_never_the_password() {
    let server = Server::shared();
    let database = server.database();
    let port = server.port();
    let name = database.name();
    let wrong = format!("postgres://windlass:wr0ng@127.0.0.1:{port}/{name}");
    let refused = try_open(&wrong).await.unwrap_err();
    assert!(matches!(refused, Error::Refused { .. }), "{refused:?}");
    let shown = format!("{refused} {refused:?}");
    assert!(shown.contains(&format!("windlass@127.0.0.1:{port}/{name}")), "{shown}");
    assert!(!shown.contains("wr0ng"), "{shown}");
    let missing = try_open(&server.url("no_such_database")).await.unwrap_err();
    assert!(matches!(missing, Error::Refused { .. }), "{missing:?}");
    let nobody = TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap().port();
    let began = Instant::now();
    let away = try_open(&format!("postgres://u:s3cret@127.0.0.1:{nobody}/d")).await.unwrap_err();
    assert!(matches!(away, Error::Unreachable { .. }), "{away:?}");
    assert!(began.elapsed() >= Duration::from_millis(300), "it was waited for");
    assert!(away.to_string().contains(&format!("u@127.0.0.1:{nobody}/d")), "{away}");
    assert!(!format!("{away:?}").contains("s3cret"), "{away:?}");
    database.remove();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_server_is_refused_by_name() {
    let database = Server::shared().database();
    on_server(&database.url()).await.close().await.unwrap();
    database.psql(&format!("ALTER DATABASE {} SET default_transaction_read_only = on", database.name()));
    let refused = try_open(&database.url()).await.unwrap_err();
    assert!(matches!(refused, Error::ReadOnly { .. }), "{refused:?}");
    assert!(refused.to_string().contains("connect to the primary"), "{refused}");
    database.remove();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_becomes_a_replica_is_told_as_such_and_serves_again_once_promoted() {
    let server = Server::own();
    server.psql("postgres", "CREATE DATABASE fleet");
    let url = server.url("fleet");
    let store = on_server(&url).await;
    creates_one(&store, "before").await;
    server.stop();
    std::fs::write(server.data().join("standby.signal"), "").unwrap();
    server.start();
    let refused = try_open(&url).await.unwrap_err();
    assert!(matches!(refused, Error::ReadOnly { .. }), "{refused:?}");
    let refused = store.ping().await.unwrap_err();
    assert!(matches!(refused, Error::ReadOnly { .. }), "{refused:?}");
    let found = store.get_job("default", "before").await.unwrap();
    assert!(found.is_some(), "lookups go on");
    server.psql("postgres", "SELECT pg_promote()");
    wait_for("writes", async || store.ping().await.is_ok()).await;
    creates_one(&store, "after").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_without_privileges_is_told_so() {
    let server = Server::shared();
    let database = server.database();
    let role = format!("poor_{}", database.name());
    database.psql(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'poor'; REVOKE CREATE ON SCHEMA public FROM PUBLIC"
    ));
    let url = format!("postgres://{role}:poor@127.0.0.1:{}/{}", server.port(), database.name());
    let refused = try_open(&url).await.unwrap_err();
    assert!(matches!(refused, Error::NotPermitted { .. }), "{refused:?}");
    database.remove();
    server.psql("postgres", &format!("DROP ROLE {role}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_that_open_an_empty_database_together_make_one_schema() {
    let database = Server::shared().database();
    let url = database.url();
    let opened = tokio::join!(try_open(&url), try_open(&url), try_open(&url), try_open(&url));
    let stores = [opened.0.unwrap(), opened.1.unwrap(), opened.2.unwrap(), opened.3.unwrap()];
    for (n, store) in stores.iter().enumerate() {
        job(&format!("job-{n}")).create(store, at(0)).await;
    }
    assert_eq!(queued(&stores[0]).await.len(), 4);
    database.remove();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_schema_is_refused_unless_it_says_that_this_program_can_work_with_it() {
    let database = Server::shared().database();
    on_server(&database.url()).await.close().await.unwrap();
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
        VALUES (9999, 'from the future', true, '', 0)";
    database.psql(newer);
    job("a").create(&try_open(&database.url()).await.unwrap(), at(0)).await;
    database.psql("UPDATE compatibility SET oldest = 9999");
    let refused = try_open(&database.url()).await.unwrap_err();
    assert!(matches!(refused, Error::NewerSchema { found: 9999, .. }), "{refused:?}");
    database.psql("DELETE FROM _sqlx_migrations WHERE version = 9999; UPDATE compatibility SET oldest = 1");
    for broken in ["success = false", "success = true, checksum = ''"] {
        database.psql(&format!("UPDATE _sqlx_migrations SET {broken} WHERE version = 1"));
        let refused = try_open(&database.url()).await.unwrap_err();
        assert!(matches!(refused, Error::SchemaBroken { version: 1 }), "{refused:?}");
    }
    database.remove();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_is_locked_is_waited_for_without_holding_up_others() {
    let database = Server::shared().database();
    let store = on_server(&database.url()).await;
    let mut other = sqlx::PgConnection::connect(&database.url()).await.unwrap();
    // Another controller migrates: it holds the migrator's lock for a while.
    other.execute("BEGIN; LOCK TABLE _sqlx_migrations").await.unwrap();
    let url = database.url();
    let opening = tokio::spawn(async move { try_open(&url).await });
    for n in 0..20 {
        job(&format!("job-{n}")).create(&store, at(0)).await;
    }
    // It waits, gives up, and waits again on a new connection.
    let mut waiting = BTreeSet::new();
    wait_for("two attempts", async || {
        waiting.extend(
            database
                .psql(
                    "SELECT min(pid) FROM pg_stat_activity WHERE application_name = 'windlass migration'
            AND datname = current_database() AND wait_event_type = 'Lock'",
                )
                .parse::<i32>()
                .ok(),
        );
        waiting.len() >= 2
    })
    .await;
    assert!(!opening.is_finished(), "it is waited for");
    other.execute("COMMIT").await.unwrap();
    opening.await.unwrap().unwrap();
    other.close().await.unwrap();
    database.remove();
}
