//! A controller on PostgreSQL: at start, through an outage, and beside another one.

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio_util::sync::CancellationToken;
use windlass_controller::error::chain;
use windlass_controller::{Controller, ControllerArgs};
use windlass_crds::Span;
use windlass_store::StoreUrl;
use windlass_test_postgres::Server;

use crate::world::World;

/// How long anything here may take to come true on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn on(url: &str) -> StoreUrl {
    StoreUrl::Postgres(url.parse().expect("a URL"))
}

fn spec() -> serde_json::Value {
    json!({"command": ["true"]})
}

async fn wait_for(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < until, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Starts a controller on a database that it cannot have; yields what it says.
async fn refused(store: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut args = ControllerArgs::new(folder.path().to_owned(), (Ipv4Addr::LOCALHOST, 0).into());
    args.store = Some(store.parse().unwrap());
    args.store_wait = Span::from_millis(500);
    match Controller::start(args, CancellationToken::new()).await {
        Ok(_) => panic!("it started"),
        Err(error) => chain(&error),
    }
}

#[tokio::test]
async fn a_controller_without_its_database_says_what_it_looked_for_and_never_the_password() {
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let said = refused(&format!("postgres://me:s3cret@127.0.0.1:{nobody}/fleet")).await;
    assert!(said.contains(&format!("cannot be reached as me@127.0.0.1:{nobody}/fleet")), "{said}");
    assert!(!said.contains("s3cret"), "{said}");
    let port = Server::shared().port();
    let said = refused(&format!("postgres://me:s3cret@127.0.0.1:{port}/fleet")).await;
    assert!(said.contains(&format!("refuses the login as me@127.0.0.1:{port}/fleet")), "{said}");
    assert!(!said.contains("s3cret"), "{said}");
    let said = refused("mysql://me:s3cret@127.0.0.1/fleet").await;
    assert!(said.contains("--store cannot be used") && !said.contains("s3cret"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_database_is_told_as_such_and_ends_by_itself() {
    let server = Server::own();
    let world = World::on(on(&server.database().url())).await;
    assert_eq!(world.job("before", spec()).await.status, 201);
    assert_eq!(world.get("/readyz").await.status, 200);
    server.stop();
    assert_eq!(world.get("/readyz").await.status, 503);
    let told = world.job("meanwhile", spec()).await;
    assert_eq!((told.status, &told.body["code"]), (503, &json!("unavailable")));
    let told = world.get("/v1/namespaces/default/jobs/before").await;
    assert_eq!((told.status, &told.body["code"]), (503, &json!("unavailable")));
    assert_eq!(world.get("/livez").await.status, 200);
    server.start();
    wait_for("the controller to be ready", async || world.get("/readyz").await.status == 200).await;
    assert_eq!(world.job("meanwhile", spec()).await.status, 201);
    assert_eq!(world.get("/v1/namespaces/default/jobs/before").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_controllers_on_one_database_show_the_same_and_one_of_them_sweeps() {
    let database = Server::shared().database();
    let first = World::on(on(&database.url())).await;
    let second = windlass_store::Store::open(windlass_store::StoreOptions {
        url: on(&database.url()),
        read_connections: 2,
    })
    .await
    .unwrap();
    let mut changes = second.changes();
    wait_for("the first to lead", async || first.store.as_leader().is_some()).await;
    assert!(second.as_leader().is_none());
    assert_eq!(first.job("a", spec()).await.status, 201);
    tokio::time::timeout(PATIENCE, changes.recv()).await.unwrap().unwrap();
    let job = second.get_job("default", "a").await.unwrap().unwrap();
    second.request_cancel(windlass_controller::clock::Clock::now(&*first.clock), &job.uid).await.unwrap();
    assert_eq!(first.phase("a").await, "Cancelled CancelRequested");
    first.sweeper.sweep().await.unwrap();
    database.remove();
}
