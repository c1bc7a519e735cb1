//! PostgreSQL makes plans that fit, also when nobody has told it how much there is.

use std::time::{Duration, Instant};

use windlass_test_postgres::{Database, Server};

use crate::cases::leasing::beat;
use crate::fixtures::{at, attempt, claim, finish, job, on_server, register};

/// How many jobs are claimed and completed before and after the tables have grown.
const WORK: u32 = 20;

/// By how many jobs they grow: batches, and jobs in each.
const BATCHES: u32 = 20;
const BATCH: u32 = 500;

/// Jobs written so far, new and again, and what was read for that and for everything else: index entries, and scans of
/// tables.
fn effort(database: &Database<'_>) -> (u64, u64, u64) {
    let numbers = database.psql(
        "SELECT (SELECT n_tup_ins + n_tup_upd FROM pg_stat_user_tables WHERE relname = 'jobs'),
            (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes
                WHERE relname IN ('jobs', 'job_bodies', 'attempts', 'records')),
            (SELECT sum(seq_tup_read) FROM pg_stat_user_tables
                WHERE relname IN ('jobs', 'job_bodies', 'attempts', 'records'))",
    );
    let mut numbers = numbers.split('|').map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap(), numbers.next().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_creation_and_a_claim_read_does_not_grow_with_tables_that_were_never_analysed() {
    let database = Server::shared().database();
    let store = on_server(&database.url()).await;
    for table in ["jobs", "job_bodies", "attempts", "records"] {
        database.psql(&format!("ALTER TABLE {table} SET (autovacuum_enabled = off)"));
    }
    register(&store, &["n"]).await;
    // Plans are made while there is next to nothing.
    for n in 0..WORK {
        job(&format!("early-{n}")).create(&store, at(0)).await;
        for claimed in claim("n").max(1).run(&store, at(1)).await {
            finish(&store, &claimed, at(2)).await;
        }
    }
    let (_, read_before, _) = settled(&database, u64::from(3 * WORK)).await;
    for batch in 0..BATCHES {
        let jobs = (0..BATCH).map(|n| job(&format!("late-{batch}-{n}")).build()).collect();
        store.create_jobs(at(3), jobs).await.unwrap();
    }
    let early = u64::from(WORK + BATCHES * BATCH + 2 * WORK);
    let (written, read, scanned) = settled(&database, early).await;
    let (created, read_for_them) = (u64::from(BATCHES * BATCH), read - read_before);
    assert!(read_for_them < created * 10, "{read_for_them} index entries were read to create {created} jobs");
    for _ in 0..WORK {
        for claimed in claim("n").max(1).run(&store, at(4)).await {
            finish(&store, &claimed, at(5)).await;
        }
    }
    let after = settled(&database, written + 2 * u64::from(WORK)).await;
    let (read, scanned) = (after.1 - read, after.2 - scanned);
    assert!(read < u64::from(WORK) * 100, "{read} index entries were read for {WORK} jobs");
    assert_eq!(scanned, 0, "no table was scanned");
    database.remove();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_claim_and_a_beat_read_does_not_grow_with_what_the_node_holds() {
    const HELD: u32 = 400;
    let database = Server::shared().database();
    let store = on_server(&database.url()).await;
    register(&store, &["n"]).await;
    let jobs = (0..HELD).map(|n| job(&format!("held-{n}")).build()).collect();
    store.create_jobs(at(0), jobs).await.unwrap();
    let (_, before, _) = settled(&database, u64::from(HELD)).await;
    let mut held = Vec::new();
    for _ in 0..HELD / 100 {
        held.extend(claim("n").max(100).run(&store, at(1)).await.iter().map(attempt));
    }
    assert_eq!(held.len(), HELD as usize);
    let outcomes = store.beat(at(2), vec![beat("n", held)]).await.unwrap();
    assert_eq!(outcomes[0].renewed.len(), HELD as usize);
    // One more job, so that what the beat has read is told too.
    job("last").create(&store, at(3)).await;
    let (_, read, _) = settled(&database, u64::from(2 * HELD + 1)).await;
    let by_index = database
        .psql("SELECT indexrelname, idx_scan, idx_tup_read FROM pg_stat_user_indexes WHERE idx_tup_read > 0");
    assert!(
        read - before < u64::from(HELD) * 50,
        "{} index entries were read for {HELD} jobs: {by_index}",
        read - before
    );
    database.remove();
}

/// The effort, once so many written jobs were reported. A session reports about once a second, all that it has done until
/// then, so that nothing of what came before is left to be counted later.
async fn settled(database: &Database<'_>, written: u64) -> (u64, u64, u64) {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let effort = effort(database);
        if effort.0 >= written {
            return effort;
        }
        assert!(Instant::now() < until, "{effort:?} after a minute, and {written} jobs were written");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
