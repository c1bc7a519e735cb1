//! Backups of whole state folders, damaged in every way, and restored.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Request;
use futures::TryStreamExt as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use windlass_controller::backup::{self, Backup, Error, PlaceArgs, Restoration, Restore};
use windlass_controller::bodies::Bodies;
use windlass_controller::clock::{RandomIds, SystemClock};
use windlass_controller::error::chain;
use windlass_controller::{Controller, ControllerArgs};
use windlass_store::transfer::FileHold;
use windlass_store::{InputRow, NewJob, Requirement, Reserve, Store, StoreOptions, StoreUrl};
use windlass_test_postgres::Server;

use crate::startup::start;
use crate::world::{World, log, started};

/// A state folder with jobs and a body, which no controller works on.
async fn filled() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    run(&args(folder.path())).await.unwrap();
    let store = open(&folder.path().join("windlass.db")).await;
    for name in ["one", "two"] {
        store.create_jobs(now(), vec![new_job(name)]).await.unwrap();
    }
    let bodies = Bodies::folder(&folder.path().join("bodies")).unwrap();
    for (key, len) in [("inputs/small", 5), ("inputs/large", 20 << 20), ("inputs/empty", 0)] {
        bodies.put(key, vec![7; len].into()).await.unwrap();
        let input = InputRow { digest: format!("sha256:{key}"), size: len as u64, object_key: key.into() };
        store.put_input(now(), input).await.unwrap();
    }
    store.close().await.unwrap();
    folder
}

fn now() -> jiff::Timestamp {
    windlass_controller::clock::Clock::now(&SystemClock)
}

fn new_job(name: &str) -> NewJob {
    NewJob {
        uid: format!("uid-{name}"),
        namespace: "default".into(),
        name: name.into(),
        labels: Default::default(),
        annotations: Default::default(),
        spec: windlass_crds::SandboxJobSpec::default(),
        spec_hash: "hash".into(),
        requirement: Requirement { hash: "any".into(), predicates: Value::Null },
        reserve: Reserve::default(),
        queue: "default".into(),
        priority: 500,
        phase: windlass_crds::JobPhase::Queued,
        idempotency: None,
        input_digests: Vec::new(),
    }
}

fn args(folder: &Path) -> ControllerArgs {
    ControllerArgs::new(folder.to_owned(), ([127, 0, 0, 1], 0).into())
}

async fn run(args: &ControllerArgs) -> Result<(), windlass_controller::Error> {
    let stop = CancellationToken::new();
    let controller = start(args, &stop).await?;
    stop.cancel();
    stopped(controller, &args.state_dir).await
}

/// Waits until a controller has stopped, and has let go of its database, which is a moment later within this process.
async fn stopped(controller: Controller, folder: &Path) -> Result<(), windlass_controller::Error> {
    controller.stopped().await?;
    let deadline = Instant::now() + Duration::from_secs(30);
    while let Err(held) = FileHold::take(&folder.join("windlass.db")) {
        assert!(Instant::now() < deadline, "{held}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn open(file: &Path) -> Store {
    let url = StoreUrl::Sqlite(file.to_owned());
    Store::open(StoreOptions { url, read_connections: 1 }).await.unwrap()
}

async fn take(folder: &Path, file: &Path) -> Result<backup::Manifest, Error> {
    let place = PlaceArgs::new(folder.to_owned());
    let (_, manifest) = backup::create(&Backup { place: &place, file, secrets: true }, &SystemClock).await?;
    Ok(manifest)
}

async fn put_back(file: &Path, folder: &Path, replace: bool) -> Result<Restoration, Error> {
    let place = PlaceArgs::new(folder.to_owned());
    let restore = Restore { place: &place, file, replace, hold: Some(Duration::ZERO) };
    backup::restore(&restore, &SystemClock, &RandomIds::from_os()).await
}

/// A backup of a folder that is filled, beside it.
async fn backed_up() -> (tempfile::TempDir, PathBuf) {
    let folder = filled().await;
    let file = folder.path().with_extension("backup");
    take(folder.path(), &file).await.unwrap();
    (folder, file)
}

async fn names(database: &Path) -> Vec<String> {
    let store = open(database).await;
    let page = windlass_store::Page { limit: 10, cursor: None };
    let (jobs, _) = store.list_jobs(windlass_store::JobFilter::default(), page).await.unwrap();
    store.close().await.unwrap();
    let mut names: Vec<String> = jobs.into_iter().map(|job| job.name).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_a_working_controller_makes_another_folder_its_equal() {
    let folder = filled().await;
    let stop = CancellationToken::new();
    let controller = start(&args(folder.path()), &stop).await.unwrap();
    let file = folder.path().with_extension("backup");
    let manifest = take(folder.path(), &file).await.unwrap();
    assert_eq!((manifest.tables["jobs"], manifest.bodies, manifest.missing_bodies), (2, 3, 0));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let (header, checked) = backup::check(&file).await.unwrap();
    assert_eq!((header.format, checked), (1, manifest));
    let refused = put_back(&file, folder.path(), true).await.unwrap_err();
    assert!(refused.to_string().contains("stop it first"), "under a controller that works: {refused}");
    stop.cancel();
    stopped(controller, folder.path()).await.unwrap();

    let other = tempfile::tempdir().unwrap();
    let target = other.path().join("state");
    let restored = put_back(&file, &target, false).await.unwrap();
    assert_eq!(restored.kept, None);
    assert_eq!(names(&target.join("windlass.db")).await, ["one", "two"]);
    for part in ["pki/ca.key", "pki/ca.crt", "admin.token", "bodies/inputs/large", "bodies/inputs/empty"] {
        assert_eq!(
            fs::read(target.join(part)).unwrap(),
            fs::read(folder.path().join(part)).unwrap(),
            "{part}"
        );
        assert_eq!(
            fs::metadata(target.join(part)).unwrap().permissions().mode() & 0o077 & 0o022,
            0,
            "{part}"
        );
    }
    run(&args(&target)).await.expect("a controller starts on it, with the same authority and admin token");
    let left: Vec<_> = fs::read_dir(&target).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("restor")), "{left:?}");
    fs::remove_file(file).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_uploaded_and_what_jobs_have_written_is_in_it_under_its_long_key() {
    let folder = tempfile::tempdir().unwrap();
    run(&args(folder.path())).await.unwrap();
    let bodies = Bodies::folder(&folder.path().join("bodies")).unwrap();
    let world = World::with(StoreUrl::Sqlite(folder.path().join("windlass.db")), bodies).await;
    let digest = format!("sha256:{}", hex::encode(Sha256::digest(b"data")));
    let upload = Request::put(format!("/v1/inputs/{digest}")).header("authorization", "Bearer operator");
    let answer = world.raw(upload.body(Body::from("data")).unwrap()).await;
    assert_eq!(answer.status(), 201);
    world.job("a", json!({"command": ["true"]})).await;
    let node = world.node("n1").await;
    let attempt = node.claim("r1", 1).await[0]["attempt"].clone();
    let written = "o".repeat(20_000);
    let sha256 = hex::encode(Sha256::digest(b"left"));
    let left = json!({"number": 1, "name": "a", "kind": "file", "size": 4, "sha256": sha256});
    let manifest = json!({"kind": "artifacts", "items": [left]});
    node.report(&attempt, &[(1, started()), (2, log(&written, 0)), (3, manifest)]).await;
    let place = format!("/v1/nodes/artifacts/{}/1/1", attempt["job"].as_str().unwrap());
    let send = Request::put(place).header("authorization", format!("Bearer {}", node.token));
    assert_eq!(world.raw(send.body(Body::from("left")).unwrap()).await.status(), 201);
    world.store.close().await.unwrap();

    let file = folder.path().with_extension("backup");
    let manifest = take(folder.path(), &file).await.unwrap();
    assert_eq!((manifest.bodies, manifest.missing_bodies), (3, 0));
    let other = tempfile::tempdir().unwrap();
    let target = other.path().join("state");
    put_back(&file, &target, false).await.unwrap();
    let bodies = Bodies::folder(&target.join("bodies")).unwrap();
    let found: Vec<_> = bodies.list().try_collect().await.unwrap();
    let key = |root: &str| found.iter().find(|found| found.key.starts_with(root)).unwrap().key.clone();
    assert!(key("inputs/").len() > 100, "{found:?}");
    assert_eq!(bodies.get(&key("inputs/")).await.unwrap(), "data");
    assert_eq!(bodies.get(&key("logs/")).await.unwrap(), written);
    assert_eq!(bodies.get(&key("artifacts/")).await.unwrap(), "left");
    run(&args(&target)).await.unwrap();
    fs::remove_file(file).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_never_written_over_anything_and_leaves_no_pieces() {
    let (folder, file) = backed_up().await;
    let refused = take(folder.path(), &file).await.unwrap_err();
    assert!(matches!(refused, Error::Exists { .. }), "{refused}");
    fs::remove_file(&file).unwrap();
    let nowhere = folder.path().join("no/such/folder/backup");
    let refused = take(folder.path(), &nowhere).await.unwrap_err();
    assert!(matches!(refused, Error::File { action: "write", .. }), "{refused}");
    fs::remove_dir_all(folder.path().join("pki")).unwrap();
    let refused = take(folder.path(), &file).await.unwrap_err();
    assert!(refused.to_string().contains("pki/ca.key is missing"), "{refused}");
    assert!(!file.exists() && !file.with_extension("backup.partial").exists());
    let empty = tempfile::tempdir().unwrap();
    let refused = take(empty.path(), &file).await.unwrap_err();
    assert!(refused.to_string().contains("holds no Windlass database"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_gone_is_counted_and_the_rest_is_kept() {
    let folder = filled().await;
    fs::remove_file(folder.path().join("bodies/inputs/small")).unwrap();
    let file = folder.path().with_extension("backup");
    let manifest = take(folder.path(), &file).await.unwrap();
    assert_eq!((manifest.bodies, manifest.missing_bodies), (2, 1));
    fs::remove_file(file).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_cut_off_or_flipped_is_noticed_before_anything_is_written() {
    let folder = filled().await;
    // Small, so that every place of the file has its turn in reasonable time.
    fs::remove_file(folder.path().join("bodies/inputs/large")).unwrap();
    let file = folder.path().with_extension("backup");
    take(folder.path(), &file).await.unwrap();
    let whole = fs::read(&file).unwrap();
    let other = tempfile::tempdir().unwrap();
    let (damaged, target) = (other.path().join("damaged"), other.path().join("state"));
    let refuse = async |content: &[u8], what: &str| {
        fs::write(&damaged, content).unwrap();
        let Err(refused) = put_back(&damaged, &target, false).await else { panic!("{what} was not noticed") };
        assert!(
            matches!(refused, Error::Damaged { .. } | Error::Foreign { .. } | Error::NewerFormat { .. }),
            "{what}: {refused}"
        );
        assert!(!target.exists(), "{what}");
    };
    for length in (0..whole.len()).step_by(whole.len() / 40) {
        refuse(&whole[..length], &format!("cut after {length} of {} bytes", whole.len())).await;
    }
    refuse(&whole[..whole.len() - 1], "the last byte cut off").await;
    // The time and system in gzip's header say nothing of the content, and no sum covers them.
    for position in (10..whole.len()).step_by(whole.len() / 120) {
        let mut flipped = whole.clone();
        flipped[position] ^= 1 << (position % 8);
        // A few bits between blocks mean nothing to whoever unpacks it.
        if unpacked(&flipped).is_ok_and(|content| Ok(content) == unpacked(&whole)) {
            continue;
        }
        refuse(&flipped, &format!("bit {} of byte {position}", position % 8)).await;
    }
    let mut longer = whole.clone();
    longer.extend_from_slice(b"and more");
    refuse(&longer, "bytes after the end").await;
    refuse(b"not a backup", "something else").await;
    fs::remove_file(file).unwrap();
}

/// What was compressed.
fn unpacked(packed: &[u8]) -> Result<Vec<u8>, String> {
    let mut content = Vec::new();
    let read = flate2::read::GzDecoder::new(packed).read_to_end(&mut content);
    read.map(|_| content).map_err(|error| error.to_string())
}

/// The file, packed anew after each entry was changed.
fn repacked(file: &Path, change: impl Fn(&str, &mut Vec<u8>)) -> Vec<u8> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(fs::File::open(file).unwrap()));
    let mut tar = tar::Builder::new(Vec::new());
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        change(&name, &mut content);
        let mut header = entry.header().clone();
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, &name, &*content).unwrap();
    }
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&tar.into_inner().unwrap()).unwrap();
    packed.finish().unwrap()
}

fn replaced(content: &mut Vec<u8>, from: &str, to: &str) {
    let text = String::from_utf8(content.clone()).unwrap();
    assert!(text.contains(from), "{text}");
    *content = text.replace(from, to).into_bytes();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_says_something_else_than_its_sums_or_comes_from_a_newer_program_is_refused() {
    let (folder, file) = backed_up().await;
    let other = tempfile::tempdir().unwrap();
    let (changed, target) = (other.path().join("changed"), other.path().join("state"));
    let refused = async |change: &dyn Fn(&str, &mut Vec<u8>)| {
        fs::write(&changed, repacked(&file, change)).unwrap();
        let refused = put_back(&changed, &target, false).await.unwrap_err();
        assert!(!target.exists());
        chain(&refused)
    };
    let header = "windlass-backup.json";
    let said = refused(&|name, content| {
        if name == header {
            replaced(content, "\"format\":1", "\"format\":2");
        }
    })
    .await;
    assert!(said.contains("has backup format 2") && said.contains("run the newer program"), "{said}");
    let schema = windlass_store::transfer::newest_schema();
    let said = refused(&|name, content| {
        if name == header {
            replaced(content, &format!("\"schema\":{schema}"), "\"schema\":999");
        }
    })
    .await;
    assert!(said.contains("has schema version 999") && said.contains("run the newer program"), "{said}");
    let said = refused(&|name, content| {
        if name.starts_with("database/jobs.") {
            replaced(content, "uid-two", "uid-six");
        }
    })
    .await;
    assert!(said.contains("the sum of `database`"), "{said}");
    let said = refused(&|name, content| {
        if name == "bodies/inputs/small" {
            content[0] = 8;
        }
    })
    .await;
    assert!(said.contains("the sum of `bodies`"), "{said}");
    let said = refused(&|name, content| {
        if name == "manifest.json" {
            replaced(content, "\"jobs\":2", "\"jobs\":3");
        }
    })
    .await;
    assert!(said.contains("other rows or bodies"), "{said}");
    fs::write(&changed, repacked(&file, |_, _| {})).unwrap();
    put_back(&changed, &target, false).await.expect("packed anew without a change it is as good");
    drop(folder);
    fs::remove_file(file).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_there_is_replaced_only_when_told_so_and_is_kept() {
    let (folder, file) = backed_up().await;
    let store = open(&folder.path().join("windlass.db")).await;
    store.create_jobs(now(), vec![new_job("after")]).await.unwrap();
    store.close().await.unwrap();
    let refused = put_back(&file, folder.path(), false).await.unwrap_err();
    assert!(refused.to_string().contains("--replace"), "{refused}");
    assert_eq!(names(&folder.path().join("windlass.db")).await, ["after", "one", "two"]);
    let kept = put_back(&file, folder.path(), true).await.unwrap().kept.unwrap();
    assert_eq!(names(&folder.path().join("windlass.db")).await, ["one", "two"]);
    assert_eq!(names(&kept.join("windlass.db")).await, ["after", "one", "two"]);
    run(&args(folder.path())).await.unwrap();
    fs::remove_file(file).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_secrets_the_folder_must_have_those_of_the_fleet() {
    let folder = filled().await;
    let file = folder.path().with_extension("backup");
    let place = PlaceArgs::new(folder.path().to_owned());
    backup::create(&Backup { place: &place, file: &file, secrets: false }, &SystemClock).await.unwrap();
    let names_in = repacked(&file, |name, _| assert!(!name.starts_with("state/"), "{name}"));
    assert!(!names_in.is_empty());
    let other = tempfile::tempdir().unwrap();
    let target = other.path().join("state");
    let refused = put_back(&file, &target, false).await.unwrap_err();
    assert!(refused.to_string().contains("pki/ca.key is missing"), "{refused}");
    let foreign = other.path().join("foreign");
    run(&args(&foreign)).await.unwrap();
    let refused = put_back(&file, &foreign, true).await.unwrap_err();
    assert!(matches!(refused, Error::OtherAuthority { .. }), "{refused}");
    fs::create_dir(target.join("pki")).unwrap();
    for part in ["pki/ca.key", "pki/ca.crt"] {
        fs::copy(folder.path().join(part), target.join(part)).unwrap();
    }
    put_back(&file, &target, false).await.unwrap();
    run(&args(&target)).await.unwrap();
    assert_eq!(names(&target.join("windlass.db")).await, ["one", "two"]);
    fs::remove_file(file).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_laptop_moves_onto_a_server_and_back() {
    let (folder, file) = backed_up().await;
    let database = Server::shared().database();
    let other = tempfile::tempdir().unwrap();
    let target = other.path().join("state");
    let place = PlaceArgs { store: Some(database.url().parse().unwrap()), ..PlaceArgs::new(target.clone()) };
    let restore = Restore { place: &place, file: &file, replace: false, hold: Some(Duration::ZERO) };
    backup::restore(&restore, &SystemClock, &RandomIds::from_os()).await.unwrap();
    let refused = backup::restore(&restore, &SystemClock, &RandomIds::from_os()).await.unwrap_err();
    assert!(refused.to_string().contains("--replace"), "{refused}");
    let on_server = ControllerArgs { store: place.store.clone(), ..args(&target) };
    let stop = CancellationToken::new();
    let controller = Controller::start(on_server, stop.clone()).await.unwrap();
    let back = folder.path().with_extension("back");
    backup::create(&Backup { place: &place, file: &back, secrets: true }, &SystemClock).await.unwrap();
    let again = Restore { replace: true, ..restore };
    let refused = backup::restore(&again, &SystemClock, &RandomIds::from_os()).await.unwrap_err();
    assert!(refused.to_string().contains("stop every controller"), "{refused}");
    stop.cancel();
    controller.stopped().await.unwrap();
    let home = other.path().join("home");
    put_back(&back, &home, false).await.unwrap();
    assert_eq!(names(&home.join("windlass.db")).await, ["one", "two"]);
    for file in [file, back] {
        fs::remove_file(file).unwrap();
    }
    database.remove();
}
