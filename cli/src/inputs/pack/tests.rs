use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixListener;
use std::time::SystemTime;

use super::*;

fn quiet(_: u64) {}

/// A folder with everything that a checkout may hold.
fn checkout(order: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in order {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("content of {name}\n")).unwrap();
    }
    fs::create_dir_all(folder.path().join("empty")).unwrap();
    std::os::unix::fs::symlink("../outside", folder.path().join("link")).unwrap();
    folder
}

fn members(packed: &mut Packed) -> BTreeMap<PathBuf, (tar::EntryType, u32, u64, Vec<u8>)> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&mut packed.file));
    let entries = archive.entries().unwrap();
    entries
        .map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            if let Some(target) = entry.link_name().unwrap() {
                content = target.as_os_str().as_bytes().to_vec();
            }
            let header = entry.header();
            let value = (header.entry_type(), header.mode().unwrap(), header.mtime().unwrap(), content);
            (entry.path().unwrap().into_owned(), value)
        })
        .collect()
}

const NAMES: [&str; 5] = ["src/main.rs", ".git/HEAD", ".git/objects/ab/cd", "run.sh", "a b/ž"];

#[test]
fn the_same_content_makes_the_same_archive_whatever_times_order_and_permissions_say() {
    let one = checkout(&NAMES);
    let mut reversed = NAMES;
    reversed.reverse();
    let two = checkout(&reversed);
    let main = File::options().write(true).open(two.path().join("src/main.rs")).unwrap();
    main.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    fs::set_permissions(two.path().join("src/main.rs"), fs::Permissions::from_mode(0o600)).unwrap();

    let packed = pack(one.path(), &Selection::default(), &quiet).unwrap();
    assert_eq!(packed.digest, pack(two.path(), &Selection::default(), &quiet).unwrap().digest);
    assert!(packed.unpack);
    assert!(packed.digest.starts_with("sha256:") && packed.digest.len() == 71);

    fs::write(two.path().join("src/main.rs"), "other").unwrap();
    assert_ne!(packed.digest, pack(two.path(), &Selection::default(), &quiet).unwrap().digest);
}

#[test]
fn nothing_but_sockets_is_left_out_of_a_folder_that_is_wanted_whole() {
    let folder = checkout(&NAMES);
    fs::write(folder.path().join(".gitignore"), "run.sh\n").unwrap();
    fs::set_permissions(folder.path().join("run.sh"), fs::Permissions::from_mode(0o700)).unwrap();
    let long = "x".repeat(200);
    fs::create_dir(folder.path().join(&long)).unwrap();
    fs::write(folder.path().join(&long).join(&long), "deep").unwrap();
    let odd = std::ffi::OsStr::from_bytes(b"not\xffutf8");
    fs::write(folder.path().join(odd), "odd").unwrap();
    let _listener = UnixListener::bind(folder.path().join("socket")).unwrap();

    let everything = Selection { include_ignored: true, ..Selection::default() };
    let mut packed = pack(folder.path(), &everything, &quiet).unwrap();
    assert_eq!(packed.skipped, [folder.path().join("socket")]);
    let members = members(&mut packed);
    let regular = |content: &str| (tar::EntryType::Regular, 0o644, MEMBER_TIME, content.as_bytes().to_vec());
    assert_eq!(members[Path::new(".gitignore")], regular("run.sh\n"));
    assert_eq!(members[Path::new(".git/objects/ab/cd")], regular("content of .git/objects/ab/cd\n"));
    assert_eq!(members[Path::new("a b/ž")], regular("content of a b/ž\n"));
    assert_eq!(members[&Path::new(&long).join(&long)], regular("deep"));
    assert_eq!(members[Path::new(odd)], regular("odd"));
    assert_eq!(members[Path::new("run.sh")].1, 0o755);
    assert_eq!(members[Path::new("empty")].0, tar::EntryType::Directory);
    let link = &members[Path::new("link")];
    assert_eq!((link.0, link.3.as_slice()), (tar::EntryType::Symlink, b"../outside".as_slice()));
    assert!(!members.contains_key(Path::new("socket")));
}

#[test]
fn what_is_excluded_is_left_out_by_its_path_or_its_name() {
    let folder = checkout(&["target/a", "src/target/b", "src/keep", "docs/out/c", "out/d"]);
    let exclude = vec![PathBuf::from("target"), PathBuf::from("docs/out")];
    let selection = Selection { exclude, ..Selection::default() };
    let mut packed = pack(folder.path(), &selection, &quiet).unwrap();
    let names: Vec<PathBuf> = members(&mut packed).into_keys().collect();
    let expected = ["docs", "empty", "link", "out", "out/d", "src", "src/keep"];
    assert_eq!(names, expected.map(PathBuf::from));
}

#[test]
fn an_archive_is_unpacked_and_any_other_file_is_placed_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    for (name, unpack) in
        [("a.tar", true), ("a.tar.gz", true), ("A.TGZ", true), ("a.gz", false), ("tar", false)]
    {
        let path = folder.path().join(name);
        fs::write(&path, "content").unwrap();
        let packed = pack(&path, &Selection::default(), &quiet).unwrap();
        assert_eq!((packed.unpack, packed.size), (unpack, 7), "{name}");
        assert_eq!(packed.digest, format!("sha256:{}", hex::encode(Sha256::digest("content"))));
    }
    let script = folder.path().join("script");
    fs::write(&script, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(pack(&script, &Selection::default(), &quiet).unwrap().executable);
}

#[test]
fn what_cannot_be_packed_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    assert!(
        matches!(pack(&missing, &Selection::default(), &quiet), Err(Error::Unreadable { path, .. }) if path == missing)
    );
    let socket = folder.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    assert!(
        matches!(pack(&socket, &Selection::default(), &quiet), Err(Error::Special { path }) if path == socket)
    );
    let large = folder.path().join("large");
    File::create(&large).unwrap().set_len(MAX_INPUT + 1).unwrap();
    assert!(
        matches!(pack(&large, &Selection::default(), &quiet), Err(Error::TooLarge { path }) if path == large)
    );
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_not_padded() {
    let mut reader = Exactly { content: io::Cursor::new(b"abc").take(5), left: 5, error: None };
    assert_eq!(reader.read_to_end(&mut Vec::new()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(reader.error.unwrap().kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_git_checkout_is_packed_without_what_git_ignores_unless_that_is_wanted() {
    let names = [
        ".git/HEAD",
        ".gitignore",
        "src/main.rs",
        "target/debug/program",
        "notes.log",
        "keep.log",
        "docs/.gitignore",
        "docs/out/page",
        "docs/page",
    ];
    let folder = checkout(&names);
    fs::write(folder.path().join(".gitignore"), "/target\n*.log\n!keep.log\n").unwrap();
    fs::write(folder.path().join("docs/.gitignore"), "out/\n").unwrap();
    let files = |packed: &mut Packed| {
        let all = members(packed);
        let files = all.iter().filter(|(_, member)| member.0 == tar::EntryType::Regular);
        files.map(|(path, _)| path.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let mut packed = pack(folder.path(), &Selection::default(), &quiet).unwrap();
    let kept = [".git/HEAD", ".gitignore", "docs/.gitignore", "docs/page", "keep.log", "src/main.rs"];
    assert_eq!(files(&mut packed), kept);
    assert_eq!(packed.ignored, 3, "the folders target and docs/out, and notes.log");
    let everything = Selection { include_ignored: true, ..Selection::default() };
    assert_eq!(files(&mut pack(folder.path(), &everything, &quiet).unwrap()).len(), names.len());
    fs::remove_dir_all(folder.path().join(".git")).unwrap();
    let mut plain = pack(folder.path(), &Selection::default(), &quiet).unwrap();
    assert_eq!(files(&mut plain).len(), names.len() - 1, "a folder that is no checkout is packed whole");
}
