//! A folder that was filled by somebody who means ill, and secrets in every place.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use windlass_crds::protocol::{SecretBytes, SecretValue};
use windlass_sandbox::{Identity, Workspace};

use super::*;
use crate::mask::Mask;

const SECRET: &str = "correct-horse-battery-staple";

fn secrets() -> FileSecrets {
    holding(&[("db", SECRET), ("web", "another-one-entirely")])
}

fn holding(secrets: &[(&str, &str)]) -> FileSecrets {
    let secret = |name: &str, value: &str| SecretValue {
        name: name.to_owned(),
        key: "password".to_owned(),
        value: Some(SecretBytes::new(value.as_bytes().to_vec())),
        problem: None,
    };
    let mask = Mask::new(secrets.iter().map(|(_, value)| value.as_bytes()));
    let secrets: Vec<SecretValue> = secrets.iter().map(|(name, value)| secret(name, value)).collect();
    FileSecrets::new(mask, &secrets)
}

struct World {
    folder: tempfile::TempDir,
    workspace: Workspace,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("spool")).unwrap();
        let workspace = Workspace::create(folder.path(), "attempt", Identity::caller()).unwrap();
        Self { folder, workspace }
    }

    fn put(&self, name: &str, content: impl AsRef<[u8]>) {
        self.workspace.write_file(&format!("out/{name}"), content.as_ref(), 0o644).unwrap();
    }

    fn collector(&self, room: u64) -> Collector {
        self.collector_of(secrets(), room)
    }

    fn collector_of(&self, secrets: FileSecrets, room: u64) -> Collector {
        let room = Room::take(&Arc::default(), || Ok(room)).unwrap();
        Collector::new(self.folder.path().join("spool"), secrets, room, Halt::default())
    }

    fn collect(&self) -> Vec<Artifact> {
        self.collect_into(self.collector(u64::MAX))
    }

    fn collect_into(&self, mut collector: Collector) -> Vec<Artifact> {
        collector.collect(self.workspace.files("out", WALK).unwrap().into_iter().flatten());
        collector.items()
    }

    fn copies(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("spool")).unwrap().count()
    }
}

/// Name and reason of what was refused, in the order of the manifest.
fn refused(items: &[Artifact]) -> Vec<(&str, &str)> {
    let refused = |item| {
        let Artifact { name, refused, .. }: &Artifact = item;
        Some((name.as_str(), refused.as_deref()?))
    };
    items.iter().filter_map(refused).collect()
}

#[test]
fn what_is_collected_is_copied_with_its_hash_and_what_is_not_is_named() {
    let world = World::new();
    world.put("a/report.md", "# Report");
    world.put("b.bin", b"\0\xff");
    std::os::unix::fs::symlink("/etc/shadow", world.workspace.path().join("out/c")).unwrap();
    let items = world.collect();
    let [report, binary, link] = items.as_slice() else { panic!("{items:?}") };
    assert_eq!((report.number, report.name.as_str(), report.size), (1, "a/report.md", 8));
    assert_eq!(report.sha256, Some(hex::encode(Sha256::digest("# Report"))));
    assert_eq!((report.kind, binary.kind), (ArtifactKind::Markdown, ArtifactKind::File));
    assert_eq!(link.refused.as_deref(), Some("it is a symbolic link"));
    assert_eq!((link.number, &link.sha256), (3, &None));
    assert_eq!(std::fs::read(world.folder.path().join("spool/1")).unwrap(), b"# Report");
    assert_eq!(world.copies(), 2);
}

#[test]
fn a_file_that_holds_a_secret_is_refused_wherever_and_however_it_does() {
    let world = World::new();
    let wide = |bytes: fn(u16) -> [u8; 2]| SECRET.encode_utf16().flat_map(bytes).collect::<Vec<u8>>();
    let filler = |length: usize| "x".repeat(length);
    // One that lies across the border of what is read at once, wherever that cuts it.
    let across = |at: usize| format!("{}{SECRET}{}", filler(PIECE - at), filler(100));
    let cases: Vec<(String, Vec<u8>)> = [
        ("alone", SECRET.as_bytes().to_vec()),
        ("begin", format!("{SECRET}\n").into_bytes()),
        ("end", format!("password={SECRET}").into_bytes()),
        ("binary", [b"\0\x01\x02", SECRET.as_bytes(), b"\0"].concat()),
        ("tar", [&[0; 512][..], SECRET.as_bytes(), &[0; 512]].concat()),
        ("base64", STANDARD.encode(SECRET).into_bytes()),
        ("inside-base64", STANDARD.encode(format!("user:{SECRET}:more")).into_bytes()),
        ("utf16le", wide(u16::to_le_bytes)),
        ("utf16be", [&[0xfe, 0xff][..], &wide(u16::to_be_bytes)].concat()),
        ("after-a-beginning", format!("correct-horse-correct-horse-batt{SECRET}").into_bytes()),
    ]
    .into_iter()
    .map(|(name, content)| (name.to_owned(), content))
    .chain((1..SECRET.len()).step_by(5).map(|at| (format!("across-{at}"), across(at).into_bytes())))
    .collect();
    for (name, content) in &cases {
        world.put(name, content);
    }
    world.put("two", format!("{SECRET} another-one-entirely"));
    world.put("clean", format!("correct-horse-battery-stapl {}", filler(2 * PIECE)));
    let items = world.collect();
    let refused = refused(&items);
    assert_eq!(refused.len(), cases.len() + 1, "{refused:?}");
    for (name, reason) in &refused {
        assert!(reason.contains("it holds the secret `db/password`;"), "{name}: {reason}");
        assert!(!reason.contains(SECRET));
    }
    assert_eq!(world.copies(), 1, "nothing is kept of what was refused");
    let kept: Vec<&str> =
        items.iter().filter(|item| item.refused.is_none()).map(|item| item.name.as_str()).collect();
    assert_eq!(kept, ["clean"]);
}

#[test]
fn a_name_that_holds_a_secret_is_refused_and_not_shown() {
    let world = World::new();
    world.put(&format!("for-{SECRET}/a.txt"), "x");
    std::os::unix::fs::symlink("x", world.workspace.path().join(format!("out/{SECRET}"))).unwrap();
    let items = world.collect();
    assert_eq!(
        refused(&items),
        [("***", "it is a symbolic link"), ("for-***/a.txt", "its name holds the secret `db/password`"),]
    );
    assert!(!serde_json::to_string(&items).unwrap().contains(SECRET));
}

#[test]
fn a_refused_name_is_shown_without_secrets_however_it_hides_them() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let world = World::new();
    world.put("z", "fine");
    let out = world.workspace.path().join("out");
    let link = |name: &[u8]| std::os::unix::fs::symlink("x", out.join(OsStr::from_bytes(name))).unwrap();
    let (one, two) = SECRET.split_at(10);
    // Across the place where names are cut, and with what is replaced where a name is shown in or beside the secret.
    link(format!("{}{SECRET}", "a".repeat(195)).as_bytes());
    link(format!("b{one}\x01{two}").as_bytes());
    link(format!("c{one}\u{85}{two}\n").as_bytes());
    link(&[b"d", one.as_bytes(), b"\xff", two.as_bytes()].concat());
    link(&[b"e\xff", SECRET.as_bytes()].concat());
    link(b"f tab\tand\nline end");
    link(b"g bin\xff\xfe\x01ary end");
    link(b"h strange \x1b[31m\xff");
    // The path of a file that is not collected because it is too long.
    let deep = format!("i{}", "x".repeat(244));
    let folder = out.join(&deep).join(&deep);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(format!("{SECRET}{SECRET}")), "").unwrap();
    let values: [&[u8]; 3] = [SECRET.as_bytes(), b"tab\tand\nline", b"bin\xff\xfe\x01ary"];
    let secrets = FileSecrets::new(Mask::new(values), &[]);
    let items = world.collect_into(world.collector_of(secrets, u64::MAX));
    let names: Vec<&str> = refused(&items).into_iter().map(|(name, _)| name).collect();
    let cut = format!("{}***", "a".repeat(195));
    let long = format!("{}…", &format!("{deep}/{deep}")[..200]);
    assert_eq!(
        names,
        [
            &*cut,
            "***",
            "***",
            "***",
            "e\u{fffd}***",
            "f *** end",
            "g *** end",
            "h strange \u{fffd}[31m\u{fffd}",
            &*long
        ]
    );
}

#[test]
fn no_more_is_read_of_an_attempt_than_may_be_collected_whatever_becomes_of_it() {
    let world = World::new();
    let leak = format!("{}{SECRET}", "x".repeat(PIECE));
    for name in ["a", "b", "c"] {
        world.put(name, &leak);
    }
    world.put("d", "fine");
    let size = leak.len() as u64;
    let mut collector = world.collector(u64::MAX);
    collector.read = MAX_ARTIFACTS_BYTES - 2 * size - 4;
    collector.collect(world.workspace.files("out", WALK).unwrap().into_iter().flatten());
    assert_eq!(collector.read, MAX_ARTIFACTS_BYTES, "what was refused counts too");
    let items = collector.items();
    let refused = refused(&items);
    assert!(refused[..2].iter().all(|(_, reason)| reason.contains("`db/password`")), "{refused:?}");
    let expected = format!("with its {size} bytes more than 1073741824 would be read of this attempt");
    assert_eq!(refused[2..], [("c", expected.as_str())]);
    assert!(items.iter().any(|item| item.name == "d" && item.refused.is_none()));
}

#[test]
fn what_is_not_reached_before_the_end_is_told_and_not_read() {
    let world = World::new();
    for name in ["a", "b", "c", "d"] {
        world.put(name, "data");
    }
    let mut collector = world.collector(u64::MAX);
    let halt = collector.halt.clone();
    let found = world.workspace.files("out", WALK).unwrap().into_iter().flatten();
    collector.collect(found.inspect(|found| {
        if matches!(found, Visited::File { path, .. } if path == "b") {
            halt.end("the time is over");
            halt.end("for another reason");
        }
    }));
    assert_eq!(collector.read, 4);
    let items = collector.items();
    let told: Vec<_> = items.iter().map(|item| (item.name.as_str(), item.refused.as_deref())).collect();
    let rest = "what comes after these was not collected: the time is over";
    assert_eq!(told, [("a", None), ("…", Some(rest))]);

    // In the middle of a file.
    let mut collector = world.collector(u64::MAX);
    collector.halt.end("the time is over");
    let mut file = File::open(world.workspace.path().join("out/a")).unwrap();
    let copied = collector.copy("a", &mut file, 4, &world.folder.path().join("spool/9"));
    assert_eq!(copied.err().unwrap(), "it was not read to its end: the time is over");
    assert_eq!(collector.read, 0);
}

#[test]
fn what_is_too_large_or_too_much_is_named_and_the_rest_is_collected() {
    let world = World::new();
    world.put("a", "small");
    let sparse = |name: &str, size: u64| {
        world.put(name, "");
        let path = world.workspace.path().join("out").join(name);
        OpenOptions::new().write(true).open(path).unwrap().set_len(size).unwrap();
    };
    // Nothing of it is on a disk, and it is not read either.
    sparse("huge", 1 << 40);
    sparse("hole", HOLES + 1);
    sparse("z-hole", 1 << 20);
    let items = world.collect();
    assert_eq!(
        refused(&items),
        [
            (
                "hole",
                "it is sparse: more than 1048576 of its 1048577 bytes were never written; pack it into an archive"
            ),
            ("huge", "it has 1099511627776 bytes, at most 268435456 are collected of a file"),
        ]
    );
    let hole = items.last().unwrap();
    let zeros = hex::encode(Sha256::digest(vec![0; 1 << 20]));
    assert_eq!((hole.size, hole.sha256.as_deref()), (1 << 20, Some(zeros.as_str())));

    let world = World::new();
    world.put("a", "12345");
    world.put("b", "123456");
    world.put("c", "1");
    let mut items = world.collect_into(world.collector(6));
    assert_eq!(refused(&items), [("b", "the node's disk has no room for it")]);
    items.retain(|item| item.refused.is_none());
    assert_eq!(items.len(), 2);

    let mut full = world.collector(u64::MAX);
    full.read = MAX_ARTIFACTS_BYTES - 5;
    full.collected = MAX_ARTIFACTS - 1;
    std::fs::remove_dir_all(world.folder.path().join("spool")).unwrap();
    std::fs::create_dir(world.folder.path().join("spool")).unwrap();
    let items = world.collect_into(full);
    let reasons: Vec<&str> = refused(&items).into_iter().map(|(_, reason)| reason).collect();
    assert!(reasons[0].contains("more than 1000 files"), "{reasons:?}");
    assert_eq!(reasons.len(), 2);
    let mut nearly = world.collector(u64::MAX);
    nearly.read = MAX_ARTIFACTS_BYTES - 1;
    assert!(nearly.beyond(2).unwrap().contains("more than 1073741824"));
    assert_eq!(nearly.beyond(1), None);
}

#[test]
fn of_very_many_refused_files_some_are_named_and_the_others_counted() {
    let world = World::new();
    for number in 0..=NAMED + 5 {
        world.put(&format!("{number:04}"), SECRET);
    }
    world.put("z", "fine");
    let items = world.collect();
    let refused = refused(&items);
    assert_eq!(refused.len() as u32, NAMED + 1);
    assert_eq!(refused.last(), Some(&("…", "6 more were refused and are not named")));
    assert!(items.iter().any(|item| item.name == "z" && item.refused.is_none()));
    let numbers: Vec<u32> = items.iter().map(|item| item.number).collect();
    assert!(numbers.into_iter().eq(1..=NAMED + 2));
}

#[test]
fn a_file_that_changes_while_it_is_read_is_refused() {
    let world = World::new();
    world.put("a", "data");
    let path = world.workspace.path().join("out/a");
    let opened = || {
        let mut found = world.workspace.files("out", WALK).unwrap().unwrap();
        let Some(found @ Visited::File { .. }) = found.next() else { panic!("it is found") };
        found
    };
    type Change = fn(&Path);
    let changes: [(&str, Change); 3] = [
        ("grows", |path| OpenOptions::new().append(true).open(path).unwrap().write_all(b"more").unwrap()),
        ("shrinks", |path| OpenOptions::new().write(true).open(path).unwrap().set_len(1).unwrap()),
        ("grows without an end", |path| {
            OpenOptions::new().write(true).open(path).unwrap().set_len(1 << 40).unwrap();
        }),
    ];
    for (how, change) in changes {
        let found = opened();
        change(&path);
        let mut collector = world.collector(u64::MAX);
        collector.collect(std::iter::once(found));
        let items = collector.items();
        assert_eq!(refused(&items), [("a", "it was changed while it was collected")], "{how}");
        assert_eq!(world.copies(), 0, "{how}");
        world.put("a", "data");
    }
}

#[test]
fn an_empty_file_and_one_without_secrets_in_the_job_are_collected() {
    let world = World::new();
    world.put("empty", "");
    world.put("text", SECRET);
    let items = world.collect_into(world.collector_of(holding(&[]), u64::MAX));
    assert_eq!(refused(&items), []);
    assert_eq!(items[0].sha256, Some(hex::encode(Sha256::digest(""))));
}
