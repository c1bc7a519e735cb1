//! What the disk says after each step, and who goes first.

use windlass_crds::protocol::ArtifactKind;
use windlass_sandbox::Visited;

use super::*;
use crate::mask::Mask;
use crate::testing::SeededIds;

struct World {
    folder: tempfile::TempDir,
    cap: u64,
}

fn id(job: &str) -> AttemptId {
    AttemptId { job: job.to_owned(), epoch: 1 }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

impl World {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), cap: 1 << 20 }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("artifacts")
    }

    fn open(&self) -> Spool {
        Spool::open(self.root(), self.cap, 0, Arc::new(SeededIds::new(3))).unwrap()
    }

    fn paths(&self) -> Vec<String> {
        let mut found = Vec::new();
        for folder in entries(&self.root()).unwrap() {
            let folder = folder.unwrap();
            for file in std::fs::read_dir(folder.path()).unwrap() {
                let names = [folder.file_name(), file.unwrap().file_name()];
                found.push(names.map(|name| name.into_string().unwrap()).join("/"));
            }
        }
        found.sort();
        found
    }
}

async fn begin(spool: &Spool) -> io::Result<Collector> {
    spool.begin(FileSecrets::new(Mask::default(), &[]), Halt::default()).await
}

/// Collects files of these contents; one without is refused.
async fn collect(spool: &Spool, job: &str, at: Timestamp, contents: &[&str]) -> Vec<Artifact> {
    let files: Vec<Visited> = contents
        .iter()
        .map(|content| {
            let path = format!("file {content}");
            if content.is_empty() {
                return Visited::Refused {
                    path: path.into_bytes(),
                    size: 0,
                    problem: "it is a socket".to_owned(),
                };
            }
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(content.as_bytes()).unwrap();
            std::io::Seek::rewind(&mut file).unwrap();
            Visited::File { path, file, size: content.len() as u64 }
        })
        .collect();
    let mut collector = begin(spool).await.unwrap();
    collector.collect(files.into_iter());
    spool.commit(&id(job), at, collector).await.unwrap()
}

/// What is to be done next, in short.
fn next(spool: &Spool) -> String {
    match spool.next(|_| true) {
        None => "nothing".to_owned(),
        Some(Task::Send { attempt, number, size, path }) => {
            let content = std::fs::read(path).unwrap();
            assert_eq!(content.len() as u64, size);
            format!("send {}/{number}", attempt.job)
        }
        Some(Task::Tell { attempt, lost }) => {
            let lost: Vec<String> =
                lost.iter().map(|lost| format!("{} {}", lost.number, lost.reason)).collect();
            format!("tell {} {}", attempt.job, lost.join(", "))
        }
    }
}

#[tokio::test]
async fn bodies_go_one_after_the_other_the_oldest_attempt_first_once_it_is_released() {
    let world = World::new();
    let spool = world.open();
    collect(&spool, "b", at(2), &["one"]).await;
    let items = collect(&spool, "a", at(3), &["two", "", "three"]).await;
    assert_eq!(items.iter().map(|item| item.number).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(items[0].kind, ArtifactKind::File);
    assert_eq!(next(&spool), "nothing");
    spool.release(&id("a")).await;
    assert_eq!(next(&spool), "send a/1");
    spool.release(&id("b")).await;
    assert_eq!(next(&spool), "send b/1");
    assert!(
        spool
            .next(|attempt| attempt.job != "b")
            .is_some_and(|task| matches!(task, Task::Send { attempt, .. } if attempt.job == "a"))
    );
    spool.sent(&id("b"), 1).await;
    spool.sent(&id("a"), 1).await;
    assert_eq!(next(&spool), "send a/3", "what was refused has no body");
    spool.sent(&id("a"), 3).await;
    assert_eq!(next(&spool), "nothing");
    spool.drained().await;
    assert_eq!(world.paths(), Vec::<String>::new());
}

#[tokio::test]
async fn after_each_step_the_next_run_goes_on_where_it_was() {
    let world = World::new();
    let spool = world.open();
    let unfinished = begin(&spool).await.unwrap();
    std::fs::write(unfinished.folder().join("1"), "half").unwrap();
    assert_eq!(world.paths().len(), 1);
    let spool = world.open();
    assert_eq!(world.paths(), Vec::<String>::new(), "what was not committed does not count");

    let items = collect(&spool, "a", at(1), &["one", "two", "three"]).await;
    let spool = world.open();
    assert_eq!(spool.manifest(&id("a")).await.unwrap(), Some(items.clone()));
    assert_eq!(spool.attempts(), [id("a")]);
    assert_eq!(next(&spool), "nothing", "not before what tells of it is durable");
    spool.release(&id("a")).await;
    spool.sent(&id("a"), 2).await;
    let spool = world.open();
    spool.release(&id("a")).await;
    assert_eq!(next(&spool), "send a/1");
    spool.lose(&id("a"), 1, "for a reason").await;
    let spool = world.open();
    spool.release(&id("a")).await;
    assert_eq!(next(&spool), "tell a 1 for a reason");
    spool.told(&id("a")).await;
    let spool = world.open();
    spool.release(&id("a")).await;
    assert_eq!(next(&spool), "send a/3");
    spool.sent(&id("a"), 3).await;
    assert_eq!(spool.manifest(&id("a")).await.unwrap(), None);
    assert_eq!(world.paths(), Vec::<String>::new());
}

#[tokio::test]
async fn a_body_that_was_lost_and_is_there_is_sent() {
    let world = World::new();
    let spool = world.open();
    collect(&spool, "a", at(1), &["one"]).await;
    // A crash between noting that it goes and its removal.
    let lost = BTreeMap::from([(1, "for a reason".to_owned())]);
    write_new(&world.root().join("a-1").join(LOST), &lost).unwrap();
    let spool = world.open();
    spool.release(&id("a")).await;
    assert_eq!(next(&spool), "send a/1");
}

#[tokio::test]
async fn where_there_is_no_room_the_oldest_go_and_that_is_told() {
    let mut world = World::new();
    world.cap = 10;
    let spool = world.open();
    collect(&spool, "a", at(1), &["12345", ""]).await;
    collect(&spool, "b", at(2), &["1234"]).await;
    for job in ["a", "b"] {
        spool.release(&id(job)).await;
    }
    assert_eq!(next(&spool), "send a/1");
    collect(&spool, "c", at(3), &["12"]).await;
    assert_eq!(next(&spool), format!("tell a 1 {NO_ROOM}"));
    assert_eq!(
        world.paths(),
        ["a-1/lost.json", "a-1/manifest.json", "b-1/1", "b-1/manifest.json", "c-1/1", "c-1/manifest.json"]
    );
    spool.told(&id("a")).await;
    assert_eq!(next(&spool), "send b/1");
    // One that is too large by itself goes last.
    collect(&spool, "d", at(4), &["12345678901"]).await;
    spool.release(&id("c")).await;
    spool.release(&id("d")).await;
    for job in ["b", "c", "d"] {
        assert_eq!(next(&spool), format!("tell {job} 1 {NO_ROOM}"));
        spool.told(&id(job)).await;
    }
    assert_eq!(world.paths(), Vec::<String>::new());
}

#[tokio::test]
async fn what_was_refused_alone_needs_nothing_but_to_be_told_of() {
    let world = World::new();
    let spool = world.open();
    assert_eq!(collect(&spool, "a", at(1), &[""]).await.len(), 1);
    assert!(spool.manifest(&id("a")).await.unwrap().is_some());
    spool.release(&id("a")).await;
    assert_eq!(next(&spool), "nothing");
    assert!(collect(&spool, "b", at(1), &[]).await.is_empty());
    assert_eq!(world.paths(), Vec::<String>::new());
}

#[tokio::test]
async fn a_folder_that_cannot_be_read_hides_no_other_and_stays() {
    let world = World::new();
    let spool = world.open();
    collect(&spool, "a", at(1), &["one"]).await;
    collect(&spool, "b", at(2), &["two"]).await;
    std::fs::write(world.root().join("a-1").join(MANIFEST), "{").unwrap();
    let spool = world.open();
    assert_eq!(spool.attempts(), [id("b")]);
    assert!(world.root().join("a-1/1").exists());
    assert!(collect(&spool, "b", at(3), &[]).await.is_empty());
}

#[tokio::test]
async fn what_is_not_of_the_spool_stays_and_keeps_nobody_from_starting() {
    let world = World::new();
    let spool = world.open();
    collect(&spool, "a", at(1), &["one"]).await;
    let put = |path: &str| {
        let path = world.root().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "x").unwrap();
    };
    let stray = [".snapshot/x", "lost+found/x", "notes/README", "z-7/README"];
    stray.iter().for_each(|path| put(path));
    std::fs::write(world.root().join("a file"), "x").unwrap();
    std::fs::write(world.root().join(".nfs000"), "x").unwrap();
    std::fs::write(world.root().join(format!(".{}", "0".repeat(32))), "no folder").unwrap();
    std::fs::rename(world.root().join("a-1"), world.root().join("moved")).unwrap();
    // A crash while the folder of an attempt was removed.
    put("b-1/7");
    put("b-1/lost.json");
    let spool = world.open();
    assert_eq!(spool.attempts(), []);
    let mut left: Vec<String> = entries(&world.root())
        .unwrap()
        .into_iter()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    let unfinished = format!(".{}", "0".repeat(32));
    assert_eq!(left, [&*unfinished, ".nfs000", ".snapshot", "a file", "lost+found", "moved", "notes", "z-7"]);
    assert!(stray.iter().all(|path| world.root().join(path).exists()));
}

#[tokio::test]
async fn a_collection_of_refused_files_alone_is_known_until_its_attempt_has_ended() {
    let world = World::new();
    let items = collect(&world.open(), "a", at(1), &[""]).await;
    let spool = world.open();
    assert_eq!(spool.manifest(&id("a")).await.unwrap(), Some(items));
    spool.release(&id("a")).await;
    assert_eq!(spool.manifest(&id("a")).await.unwrap(), None);
    assert_eq!(world.paths(), Vec::<String>::new());
}

#[tokio::test]
async fn a_collection_that_cannot_be_kept_leaves_nothing_behind() {
    let world = World::new();
    let spool = world.open();
    let mut collector = begin(&spool).await.unwrap();
    collector.collect(std::iter::once(Visited::Refused {
        path: b"x".to_vec(),
        size: 0,
        problem: "it is odd".to_owned(),
    }));
    std::fs::write(collector.folder().join("1"), "body").unwrap();
    // Something is in its place.
    std::fs::create_dir_all(world.root().join("a-1/x")).unwrap();
    assert!(spool.commit(&id("a"), at(1), collector).await.is_err());
    assert_eq!(world.paths(), ["a-1/x"]);
    assert_eq!(spool.attempts(), []);
}

#[tokio::test]
async fn bodies_that_are_lost_go_even_if_that_cannot_be_noted() {
    let world = World::new();
    let spool = world.open();
    collect(&spool, "a", at(1), &["one", "two"]).await;
    spool.release(&id("a")).await;
    // Something is in the way of the note.
    std::fs::create_dir(world.root().join("a-1/lost.tmp")).unwrap();
    spool.lose_all(&id("a"), vec![1, 2], "for a reason").await;
    assert_eq!(world.paths(), ["a-1/lost.tmp", "a-1/manifest.json"]);
    assert_eq!(next(&spool), "tell a 1 for a reason, 2 for a reason");
}

#[test]
fn two_collections_do_not_count_on_the_same_room() {
    const MIB: u64 = 1 << 20;
    let reserved = Reserved::default();
    let take = |free: u64| Room::take(&reserved, || Ok(free)).unwrap();
    let mut one = take(1500 * MIB);
    let two = take(1500 * MIB);
    assert_eq!([one.bytes(), two.bytes(), take(1500 * MIB).bytes()], [1024 * MIB, 476 * MIB, 0]);
    one.use_up(1000 * MIB);
    assert_eq!(take(500 * MIB).bytes(), 0);
    drop(two);
    assert_eq!(take(500 * MIB).bytes(), 476 * MIB);
    drop(one);
    assert_eq!(*reserved.lock().unwrap(), 0);
    assert!(Room::take(&reserved, || Err(io::ErrorKind::NotFound.into())).is_err());
}

#[tokio::test]
async fn nobody_else_can_read_what_waits() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = World::new();
    let spool = world.open();
    collect(&spool, "a", at(1), &["one"]).await;
    let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(world.root()), mode(world.root().join("a-1"))), (0o700, 0o700));
    assert_eq!(mode(world.root().join("a-1/1")), 0o600);
}
