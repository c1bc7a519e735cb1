//! What only a store on disk can go through: processes that die, second processes, newer and broken files, file systems
//! that are full or cannot be written.
//!
//! Cases that need a file system of their own run this very program again, as a child in a mount namespace; the tests
//! named `child_…` are those children and do nothing by themselves.

#![expect(clippy::unwrap_used, reason = "a case that cannot go on has failed")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sqlx::Connection as _;
use windlass_crds::JobPhase;
use windlass_crds::sandbox_job::Script;
use windlass_store::{CreateOutcome, Error, JobFilter, Page, Store, StoreOptions, StoreUrl};

#[expect(dead_code, reason = "the contract's cases use the rest")]
#[path = "contract/fixtures.rs"]
mod fixtures;

use fixtures::{at, claim, claimed, finish, job, on_disk, register, reread};

async fn try_open(file: &Path) -> Result<Store, Error> {
    let url = StoreUrl::Sqlite(file.to_owned());
    Store::open(StoreOptions { url, read_connections: 2 }).await
}

/// Runs SQL on the file behind the store's back.
async fn tamper(file: &Path, sql: &'static str) {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file);
    let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

fn database(folder: &Path) -> PathBuf {
    folder.join("windlass.db")
}

/// A script to run in a mount namespace before the child: `$1` is its folder.
const READ_ONLY: &str = r#"mount --bind "$1" "$1" && mount -o remount,ro,bind "$1""#;
const SMALL: &str = r#"mount -t tmpfs -o size=8m none "$1""#;

/// Starts the test `name` of this program as a child that is told `folder`. With `prepare` it has mounts of its own.
fn child(name: &str, folder: &Path, prepare: Option<&str>) -> Child {
    let program = std::env::current_exe().unwrap();
    let test = ["--exact", name, "--ignored", "--nocapture", "--test-threads=1"];
    let mut command = match prepare {
        None => {
            let mut command = Command::new(program);
            command.args(test);
            command
        }
        Some(prepare) => {
            let mut command = Command::new("unshare");
            if !rustix::process::geteuid().is_root() {
                command.arg("--map-root-user");
            }
            command.args(["--mount", "--propagation", "private", "sh", "-c"]);
            command
                .arg(format!(r#"{prepare} && shift && exec "$@""#))
                .arg("sh")
                .arg(folder)
                .arg(program)
                .args(test);
            command
        }
    };
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("util-linux is installed");
    let mut input = child.stdin.take().unwrap();
    writeln!(input, "{}", folder.display()).unwrap();
    child
}

/// Runs a child to its end, which must be a good one.
fn run_child(name: &str, folder: &Path, prepare: &str) {
    let output = child(name, folder, Some(prepare)).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// The folder that a child was told; `None` where somebody runs the ignored tests by hand.
fn told_folder() -> Option<PathBuf> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).unwrap();
    (!line.trim().is_empty()).then(|| PathBuf::from(line.trim()))
}

#[tokio::test]
async fn what_was_written_is_there_after_opening_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = on_disk(folder.path()).await;
    let got = claimed(&store, "n", "a", at(0)).await;
    let done = finish(&store, &got, at(1)).await;
    job("b").class("other").create(&store, at(2)).await;
    let node = store.get_node("n").await.unwrap();
    store.close().await.unwrap();
    let store = on_disk(folder.path()).await;
    assert_eq!(reread(&store, &done.uid).await, done);
    assert_eq!(store.get_node("n").await.unwrap(), node);
    let later = job("c").create(&store, at(3)).await;
    assert!(later.resource_version > done.resource_version, "versions go on where they were");
    assert_eq!(claim("n").names(&store, at(3)).await, ["b", "c"]);
}

#[tokio::test]
async fn a_second_opener_is_told_who_holds_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let store = on_disk(folder.path()).await;
    match try_open(&database(folder.path())).await {
        Err(Error::Locked { path }) => assert_eq!(path, folder.path().join("windlass.db.lock")),
        other => panic!("{other:?}"),
    }
    store.ping().await.unwrap();
    store.close().await.unwrap();
    try_open(&database(folder.path())).await.unwrap();
}

#[tokio::test]
async fn only_the_owner_can_read_a_database_also_one_that_others_could_read_before() {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = tempfile::tempdir().unwrap();
    let modes = || {
        let mut modes: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                (name, entry.metadata().unwrap().permissions().mode() & 0o7777)
            })
            .collect();
        modes.sort();
        modes
    };
    let private = ["windlass.db", "windlass.db-shm", "windlass.db-wal", "windlass.db.lock"];
    let private = private.map(|name| (name.to_owned(), 0o600));
    let store = on_disk(folder.path()).await;
    assert_eq!(modes(), private);
    // As an earlier version left them: a copy that a kill cut short, so that the log is still there.
    for (name, _) in &private {
        std::fs::set_permissions(folder.path().join(name), std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    let copy = tempfile::tempdir().unwrap();
    for (name, _) in &private {
        std::fs::copy(folder.path().join(name), copy.path().join(name)).unwrap();
    }
    store.close().await.unwrap();
    for (name, _) in &private {
        std::fs::copy(copy.path().join(name), folder.path().join(name)).unwrap();
    }
    let _store = on_disk(folder.path()).await;
    assert_eq!(modes(), private);
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = database(folder.path());
    on_disk(folder.path()).await.close().await.unwrap();
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
        VALUES (9999, 'from the future', 1, x'00', 0)";
    tamper(&file, newer).await;
    let refused = try_open(&file).await.unwrap_err();
    assert!(matches!(refused, Error::NewerSchema { found: 9999, .. }), "{refused}");
    assert!(refused.to_string().contains("run the newer program"), "{refused}");
    tamper(&file, "DELETE FROM _sqlx_migrations WHERE version = 9999").await;
    try_open(&file).await.unwrap();
}

#[tokio::test]
async fn a_schema_left_half_done_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = database(folder.path());
    on_disk(folder.path()).await.close().await.unwrap();
    for broken in [
        "UPDATE _sqlx_migrations SET success = 0 WHERE version = 1",
        "UPDATE _sqlx_migrations SET success = 1, checksum = x'00' WHERE version = 1",
    ] {
        tamper(&file, broken).await;
        let refused = try_open(&file).await.unwrap_err();
        assert!(matches!(refused, Error::SchemaBroken { version: 1 }), "{refused}");
        assert!(refused.to_string().contains("restore a backup"), "{refused}");
    }
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = database(folder.path());
    std::fs::write(&file, "This is a letter, not a database. ".repeat(200)).unwrap();
    let refused = try_open(&file).await.unwrap_err();
    assert!(matches!(refused, Error::Damaged { .. }), "{refused:?}");
    assert!(std::fs::read_to_string(&file).unwrap().starts_with("This is a letter"), "it is left alone");
}

#[tokio::test]
async fn a_missing_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("missing").join("windlass.db");
    let refused = try_open(&file).await.unwrap_err();
    assert!(matches!(refused, Error::NotWritable { .. }), "{refused:?}");
    assert!(refused.to_string().contains("missing"), "{refused}");
}

#[tokio::test]
async fn a_value_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = database(folder.path());
    let store = on_disk(folder.path()).await;
    job("sound").create(&store, at(0)).await;
    job("spoilt").uid("spoilt-uid").create(&store, at(0)).await;
    store.close().await.unwrap();
    for (sql, wanted) in [
        ("UPDATE jobs SET phase = 'Sideways' WHERE uid = 'spoilt-uid'", "phase"),
        ("UPDATE jobs SET phase = 'Queued', queued_at = 'noon' WHERE uid = 'spoilt-uid'", "queued_at"),
        ("UPDATE jobs SET queued_at = 9223372036854775807 WHERE uid = 'spoilt-uid'", "queued_at"),
        ("UPDATE jobs SET queued_at = 0, priority = 70000 WHERE uid = 'spoilt-uid'", "priority"),
        ("UPDATE jobs SET priority = 500, steps = '[{]' WHERE uid = 'spoilt-uid'", "steps"),
    ] {
        tamper(&file, sql).await;
        let store = on_disk(folder.path()).await;
        match store.get_job_by_uid("spoilt-uid").await {
            Err(Error::Corrupt { table: "jobs", column, row }) => {
                assert_eq!((column, row.as_str()), (wanted, "spoilt-uid"));
            }
            other => panic!("{sql}: {other:?}"),
        }
        assert!(store.get_job("default", "sound").await.unwrap().is_some(), "the others are readable");
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_damaged_job_hides_no_other_from_claims_and_from_the_sweeper() {
    let folder = tempfile::tempdir().unwrap();
    let file = database(folder.path());
    let store = on_disk(folder.path()).await;
    register(&store, &["n", "m"]).await;
    for name in ["held", "held-too"] {
        claimed(&store, "n", name, at(0)).await;
    }
    let ended = claimed(&store, "n", "ended", at(0)).await;
    finish(&store, &ended, at(1)).await;
    job("queued").create(&store, at(2)).await;
    job("queued-too").create(&store, at(3)).await;
    store.close().await.unwrap();
    for sql in [
        "UPDATE jobs SET steps = '[{]' WHERE name = 'held'",
        "UPDATE jobs SET created_at = 'noon' WHERE name = 'queued'",
        "UPDATE jobs SET ttl_at = 1000 WHERE name = 'ended'",
        "UPDATE jobs SET ttl_at = 999 WHERE name = 'held-too'",
    ] {
        tamper(&file, sql).await;
    }
    let store = on_disk(folder.path()).await;
    let expired = store.expired_leases(at(1000), 10).await.unwrap();
    assert_eq!(expired.rows.iter().map(|(job, _)| job.name.as_str()).collect::<Vec<_>>(), ["held-too"]);
    assert_eq!(expired.damaged.len(), 1);
    assert!(expired.damaged[0].contains("steps") && expired.damaged[0].contains("jobs"), "{expired:?}");
    assert_eq!(claim("m").names(&store, at(4)).await, ["queued-too"], "the damaged one is set aside");
    store.close().await.unwrap();
    tamper(&file, "UPDATE jobs SET steps = '[{]' WHERE name = 'held-too'").await;
    let store = on_disk(folder.path()).await;
    let due = store.ttl_due(at(1000), 10).await.unwrap();
    assert_eq!(due.rows.iter().map(|job| job.name.as_str()).collect::<Vec<_>>(), ["ended"]);
    assert_eq!(due.damaged.len(), 1);
}

#[test]
fn a_killed_process_loses_nothing_that_it_had_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut acknowledged: Vec<String> = Vec::new();
    for round in 0..5 {
        let mut child = child("child_that_writes_until_it_is_killed", folder.path(), None);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut read = 0;
        // Somewhere else in its work each time.
        while read < 60 + 97 * round {
            let line = lines.next().expect("the child writes on").unwrap();
            if let Some(what) = acknowledgement(&line) {
                acknowledged.push(what);
                read += 1;
            }
        }
        child.kill().unwrap();
        // What is in the pipe was acknowledged too; a line that was cut short was not.
        acknowledged.extend(lines.map_while(Result::ok).filter_map(|line| acknowledgement(&line)));
        child.wait().unwrap();
        runtime.block_on(async {
            let store = on_disk(folder.path()).await;
            for line in &acknowledged {
                let (what, uid) = line.split_once(' ').unwrap();
                let job = store.get_job_by_uid(uid).await.unwrap();
                let job = job.unwrap_or_else(|| panic!("round {round}: {line} is lost"));
                match what {
                    "created" => {}
                    "done" => assert!(
                        job.phase == JobPhase::Succeeded && job.logs_complete,
                        "round {round}: {line}"
                    ),
                    other => panic!("{other}"),
                }
            }
            // A job is held exactly while it has a live attempt, whatever the process was in the middle of.
            let (jobs, _) =
                store.list_jobs(JobFilter::default(), Page { limit: 1_000_000, cursor: None }).await.unwrap();
            let held = jobs.iter().filter(|job| job.phase.is_held()).count();
            assert_eq!(held, store.live_attempts("n").await.unwrap().len());
            store.close().await.unwrap();
        });
    }
    assert!(acknowledged.iter().any(|line| line.starts_with("done")), "it did more than create jobs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by a_killed_process_loses_nothing_that_it_had_acknowledged"]
async fn child_that_writes_until_it_is_killed() {
    let Some(folder) = told_folder() else { return };
    let store = on_disk(&folder).await;
    if store.get_node("n").await.unwrap().is_none() {
        register(&store, &["n"]).await;
    }
    let start = store.counts(at(0)).await.unwrap().jobs.values().sum::<u64>();
    let next = Arc::new(AtomicU64::new(start));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (store, next) = (store.clone(), Arc::clone(&next));
        tasks.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                let name = format!("job-{n}-of-{}", std::process::id());
                let row = job(&name).uid(&name).create(&store, at(0)).await;
                acknowledge("created", &row.uid);
                for got in claim("n").max(2).run(&store, at(1)).await {
                    let done = finish(&store, &got, at(2)).await;
                    acknowledge("done", &done.uid);
                }
            }
        });
    }
    tasks.join_all().await;
}

/// What a whole line acknowledges; the test harness may have written before it.
fn acknowledgement(line: &str) -> Option<String> {
    let (_, what) = line.split_once("ack ")?;
    what.strip_suffix(" .").map(str::to_owned)
}

fn acknowledge(what: &str, uid: &str) {
    let line = format!("ack {what} {uid} .\n");
    std::io::stdout().write_all(line.as_bytes()).unwrap();
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    run_child("child_in_a_read_only_folder", folder.path(), READ_ONLY);
    // Also when there is a database in it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = on_disk(folder.path()).await;
        job("a").create(&store, at(0)).await;
        store.close().await.unwrap();
    });
    run_child("child_in_a_read_only_folder", folder.path(), READ_ONLY);
}

#[tokio::test]
#[ignore = "started by a_folder_that_cannot_be_written_is_named"]
async fn child_in_a_read_only_folder() {
    let Some(folder) = told_folder() else { return };
    let refused = try_open(&database(&folder)).await.unwrap_err();
    assert!(matches!(refused, Error::NotWritable { .. }), "{refused:?}");
    assert!(refused.to_string().contains(&folder.display().to_string()), "{refused}");
}

#[test]
fn a_full_disk_refuses_writes_and_loses_nothing_and_passes() {
    let folder = tempfile::tempdir().unwrap();
    run_child("child_on_a_small_disk", folder.path(), SMALL);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by a_full_disk_refuses_writes_and_loses_nothing_and_passes"]
async fn child_on_a_small_disk() {
    let Some(folder) = told_folder() else { return };
    let ballast = folder.join("ballast");
    std::fs::write(&ballast, vec![1; 4 << 20]).unwrap();
    let store = on_disk(&folder).await;
    register(&store, &["n"]).await;
    let mut acknowledged = Vec::new();
    let mut n = 0;
    let full = loop {
        let source = "x".repeat(50_000);
        let script = Script { interpreter: "sh".into(), source, args: vec![] };
        let new = job(&format!("job-{n}")).spec(|spec| spec.script = Some(script)).build();
        match store.create_jobs(at(0), vec![new]).await {
            Ok(outcomes) => match &outcomes[0] {
                CreateOutcome::Created(row) => acknowledged.push(row.uid.clone()),
                other => panic!("{other:?}"),
            },
            Err(error) => break error,
        }
        n += 1;
        assert!(n < 1000, "eight megabytes never fill up");
    };
    assert!(matches!(full, Error::DiskFull { .. }), "{full:?}");
    assert!(full.to_string().contains("free space"), "{full}");
    // Reading goes on, and all that was acknowledged is there.
    for uid in &acknowledged {
        reread(&store, uid).await;
    }
    assert_eq!(store.get_job("default", &format!("job-{n}")).await.unwrap(), None);
    std::fs::remove_file(&ballast).unwrap();
    store.ping().await.unwrap();
    let after = job(&format!("job-{n}")).create(&store, at(1)).await;
    acknowledged.push(after.uid);
    assert_eq!(claim("n").max(1000).run(&store, at(2)).await.len(), acknowledged.len());
    store.close().await.unwrap();
    let store = on_disk(&folder).await;
    for uid in &acknowledged {
        assert_eq!(reread(&store, uid).await.phase, JobPhase::Claimed);
    }
    store.close().await.unwrap();
}
