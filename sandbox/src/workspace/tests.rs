//! Attacks on workspaces, and what must work.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;

fn workspace() -> (tempfile::TempDir, Workspace) {
    let dir = tempfile::tempdir().unwrap();
    let identity = match Identity::caller() {
        Identity { uid: 0, .. } => Identity { uid: 70_123, gid: 70_123 },
        caller => caller,
    };
    let workspace = Workspace::create(dir.path(), "attempt-1", identity).unwrap();
    (dir, workspace)
}

/// Path, kind, link target and content of an entry.
type Entry<'a> = (&'a str, tar::EntryType, &'a str, &'a [u8]);

/// A tar archive of raw entries; the checks of the `tar` crate's own builder are bypassed on purpose.
fn tar_of(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, kind, link, content) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(*kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o4755);
        header.set_mtime(1_000_000_000);
        let raw = header.as_ustar_mut().unwrap();
        raw.name[..path.len()].copy_from_slice(path.as_bytes());
        raw.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn unpack(workspace: &Workspace, entries: &[Entry<'_>]) -> Result<Unpacked, Error> {
    workspace.unpack(tar_of(entries).as_slice(), Archive::Tar, ArchiveLimits::default())
}

#[test]
fn files_are_written_below_and_owned_by_the_identity() {
    let (_dir, workspace) = workspace();
    workspace.write_file("a/b/run.sh", b"#!/bin/sh\n", 0o4755).unwrap();
    workspace.write_file("a/b/run.sh", b"#!/bin/sh\ntrue\n", 0o755).unwrap();
    let file = workspace.path().join("a/b/run.sh");
    assert_eq!(fs::read(&file).unwrap(), b"#!/bin/sh\ntrue\n");
    let meta = fs::metadata(&file).unwrap();
    assert_eq!(meta.mode() & 0o7777, 0o755);
    for path in ["a/b/run.sh", "a/b", "a", ""] {
        assert_eq!(
            fs::metadata(workspace.path().join(path)).unwrap().uid(),
            workspace.identity().uid,
            "{path}"
        );
    }
    assert_eq!(fs::metadata(workspace.path()).unwrap().mode() & 0o7777, 0o700);
}

#[test]
fn paths_that_lead_out_are_refused() {
    let (dir, workspace) = workspace();
    symlink(dir.path(), workspace.path().join("out")).unwrap();
    fs::write(dir.path().join("victim"), "safe").unwrap();
    symlink("../victim", workspace.path().join("to-victim")).unwrap();
    for path in ["../x", "a/../../x", "/etc/x", "out/victim", "out/new/x", "", "a\0b"] {
        let result = workspace.write_file(path, b"x", 0o644);
        assert!(matches!(result, Err(Error::UnsafePath { .. })), "{path:?}: {result:?}");
    }
    // A link in the last place is replaced, not followed.
    workspace.write_file("to-victim", b"mine", 0o644).unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("victim")).unwrap(), "safe");
    assert!(!dir.path().join("x").exists());
}

#[test]
fn a_host_file_is_copied_but_neither_a_link_nor_a_device_is() {
    let (dir, workspace) = workspace();
    fs::write(dir.path().join("input"), "data").unwrap();
    symlink("input", dir.path().join("link")).unwrap();
    assert_eq!(workspace.copy_file(&dir.path().join("input"), "in/data", 0o600).unwrap(), 4);
    assert!(workspace.copy_file(&dir.path().join("link"), "l", 0o600).is_err());
    assert!(workspace.copy_file(Path::new("/dev/zero"), "z", 0o600).is_err());
}

#[test]
fn an_honest_archive_is_unpacked_with_links_modes_and_times() {
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    let (_dir, workspace) = workspace();
    let done = unpack(
        &workspace,
        &[
            ("./", Directory, "", b""),
            ("src/", Directory, "", b""),
            ("src/main.c", Regular, "", b"int main;"),
            ("src/same.c", Link, "src/main.c", b""),
            ("src/up", Symlink, "../src/main.c", b""),
            ("src/main.c", Regular, "", b"int main();"),
        ],
    )
    .unwrap();
    assert_eq!(done, Unpacked { entries: 6, bytes: 20 });
    let read = |path: &str| fs::read_to_string(workspace.path().join(path)).unwrap();
    assert_eq!(read("src/main.c"), "int main();");
    assert_eq!(read("src/same.c"), "int main;");
    assert_eq!(read("src/up"), "int main();");
    let meta = fs::metadata(workspace.path().join("src/main.c")).unwrap();
    assert_eq!(
        (meta.mode() & 0o7777, meta.mtime(), meta.uid()),
        (0o755, 1_000_000_000, workspace.identity().uid)
    );
    assert_eq!(
        fs::symlink_metadata(workspace.path().join("src/up")).unwrap().uid(),
        workspace.identity().uid
    );
}

#[test]
fn a_folder_of_the_workspace_takes_any_name_and_is_not_reached_through_a_link() {
    let (dir, workspace) = workspace();
    symlink(dir.path(), workspace.path().join("out")).unwrap();
    let files = tar_of(&[("file", tar::EntryType::Regular, "", b"x")]);
    for path in [".hidden", "a/.b/c", ".", ".windlass"] {
        let folder = workspace.folder(path).unwrap();
        folder.unpack(files.as_slice(), Archive::Tar, ArchiveLimits::default()).unwrap();
        assert_eq!(fs::read(workspace.path().join(path).join("file")).unwrap(), b"x");
        assert_eq!(fs::metadata(folder.path()).unwrap().uid(), workspace.identity().uid);
        fs::remove_file(workspace.path().join(path).join("file")).unwrap();
    }
    for path in ["..", "a/../..", "out", "/etc"] {
        let result = workspace.folder(path);
        assert!(matches!(result, Err(Error::UnsafePath { .. })), "{path:?}: {result:?}");
    }
}

#[test]
fn a_compressed_archive_is_unpacked() {
    use std::io::Write;
    let (_dir, workspace) = workspace();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&tar_of(&[("a", tar::EntryType::Regular, "", b"x")])).unwrap();
    let bytes = gz.finish().unwrap();
    workspace.unpack(bytes.as_slice(), Archive::TarGz, ArchiveLimits::default()).unwrap();
    let half = &bytes[..bytes.len() / 2];
    assert!(workspace.unpack(half, Archive::TarGz, ArchiveLimits::default()).is_err());
}

#[test]
fn archives_that_reach_out_are_refused() {
    use tar::EntryType::{Block, Char, Fifo, Link, Regular, Symlink};
    let cases: &[&[Entry<'_>]] = &[
        &[("../evil", Regular, "", b"x")],
        &[("/tmp/evil", Regular, "", b"x")],
        &[("a/../../evil", Regular, "", b"x")],
        &[("link", Symlink, "/etc", b"")],
        &[("link", Symlink, "..", b"")],
        &[("a/link", Symlink, "../../evil", b"")],
        // Climbs out of where another link leads, though the text alone looks harmless.
        &[("a/b/c", Symlink, "../../", b""), ("x", Symlink, "a/b/c/..", b"")],
        // Writes through a link of the archive itself.
        &[("d", Symlink, "e", b""), ("e/", tar::EntryType::Directory, "", b""), ("d/f", Regular, "", b"x")],
        &[("hard", Link, "/etc/passwd", b"")],
        &[("hard", Link, "../victim", b"")],
        // One more name for a link, less deep than the link.
        &[("a/b/link", Symlink, "../../c", b""), ("hard", Link, "a/b/link", b"")],
        &[("null", Char, "", b"")],
        &[("disk", Block, "", b"")],
        &[("pipe", Fifo, "", b"")],
    ];
    for entries in cases {
        let (dir, workspace) = workspace();
        fs::write(dir.path().join("victim"), "safe").unwrap();
        let result = unpack(&workspace, entries);
        assert!(matches!(result, Err(Error::UnsafePath { .. })), "{entries:?}: {result:?}");
        assert!(!dir.path().join("evil").exists());
    }
}

#[test]
fn archive_bombs_stop_at_their_limit() {
    use tar::EntryType::{Directory, Regular};
    let (_dir, workspace) = workspace();
    let limits = ArchiveLimits { entries: 3, bytes: 10 };
    let big = tar_of(&[("a", Regular, "", b"123456"), ("b", Regular, "", b"12345")]);
    let result = workspace.unpack(big.as_slice(), Archive::Tar, limits);
    assert!(matches!(result, Err(Error::ArchiveTooLarge { limit: 10, unit: "bytes" })), "{result:?}");
    let many = tar_of(&[
        ("d1", Directory, "", b""),
        ("d2", Directory, "", b""),
        ("d3", Directory, "", b""),
        ("d4", Directory, "", b""),
    ]);
    let result = workspace.unpack(many.as_slice(), Archive::Tar, limits);
    assert!(matches!(result, Err(Error::ArchiveTooLarge { limit: 3, unit: "entries" })), "{result:?}");
}

#[test]
fn removal_leaves_nothing_of_a_hostile_tree() {
    let (dir, workspace) = workspace();
    fs::write(dir.path().join("victim"), "safe").unwrap();
    let base = workspace.path();
    fs::create_dir_all(base.join("locked/inner")).unwrap();
    fs::write(base.join("locked/inner/file"), "x").unwrap();
    fs::set_permissions(base.join("locked/inner"), fs::Permissions::from_mode(0o0)).unwrap();
    fs::set_permissions(base.join("locked"), fs::Permissions::from_mode(0o100)).unwrap();
    symlink("..", base.join("up")).unwrap();
    symlink(dir.path(), base.join("away")).unwrap();
    for index in 0..3000 {
        fs::write(base.join(format!("file-{index}")), "").unwrap();
    }
    // Deeper than PATH_MAX allows to name, so it is made step by step.
    let mut at = rustix::fs::open(base, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&at, "deep-folder", Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, "deep-folder", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .unwrap();
    }
    drop(at);
    Workspace::remove(dir.path(), "attempt-1").unwrap();
    Workspace::remove(dir.path(), "attempt-1").unwrap();
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["victim"]);
    assert!(Workspace::remove(dir.path(), "../x").is_err());
}

const FEW: FileLimits = FileLimits { entries: 50, depth: 3, path_bytes: 40 };

/// What is found in the folder `out`, a line each.
fn found(workspace: &Workspace, limits: FileLimits) -> Vec<String> {
    let Some(files) = workspace.files("out", limits).unwrap() else { return vec!["nothing".into()] };
    files
        .map(|found| match found {
            Visited::File { path, mut file, size } => {
                let mut content = String::new();
                file.read_to_string(&mut content).unwrap();
                assert_eq!(content.len() as u64, size);
                format!("{path} = {content}")
            }
            Visited::Refused { path, size: _, problem } => {
                format!("{}: {problem}", String::from_utf8_lossy(&path))
            }
        })
        .collect()
}

#[test]
fn only_regular_files_with_one_name_are_found_and_whatever_else_is_there_is_told() {
    use std::os::unix::ffi::OsStrExt as _;
    let (_dir, workspace) = workspace();
    assert_eq!(found(&workspace, FEW), ["nothing"]);
    workspace.make_dir("out/sub").unwrap();
    assert_eq!(found(&workspace, FEW), Vec::<String>::new(), "an empty folder is nothing");
    let out = workspace.path().join("out");
    workspace.write_file("out/sub/b", b"two", 0o600).unwrap();
    workspace.write_file("out/a", b"one", 0o000).unwrap();
    workspace.write_file("out/suid", b"x", 0o755).unwrap();
    fs::set_permissions(out.join("suid"), fs::Permissions::from_mode(0o4755)).unwrap();
    workspace.write_file("secret", b"x", 0o600).unwrap();
    fs::hard_link(workspace.path().join("secret"), out.join("hard")).unwrap();
    symlink("/etc/passwd", out.join("link")).unwrap();
    symlink("..", out.join("up")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, out.join("pipe"), Mode::RWXU).unwrap();
    drop(std::os::unix::net::UnixListener::bind(out.join("socket")).unwrap());
    fs::write(out.join(std::ffi::OsStr::from_bytes(b"bad\xff")), "x").unwrap();
    fs::write(out.join("esc\u{1b}[31m\nx"), "x").unwrap();
    fs::write(out.join("n".repeat(41)), "x").unwrap();
    workspace.make_dir("out/1/2/3/4").unwrap();
    workspace.write_file("out/1/2/3/deep", b"kept", 0o600).unwrap();
    let readable = rustix::process::geteuid().is_root();
    let a = if readable { "a = one" } else { "a: it cannot be opened: Permission denied (os error 13)" };
    assert_eq!(
        found(&workspace, FEW),
        [
            "1/2/3/4: it is deeper than 3 folders",
            "1/2/3/deep = kept",
            a,
            "bad\u{fffd}: its name is not UTF-8",
            "esc\u{1b}[31m\nx: its name has control characters",
            "hard: it is a file with 2 names (hard links); leave a copy",
            "link: it is a symbolic link",
            "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn: its path has more than 40 bytes",
            "pipe: it is a named pipe",
            "socket: it is a socket",
            "sub/b = two",
            "suid: it is a program that runs as somebody else (set-user-id or set-group-id)",
            "up: it is a symbolic link",
        ]
    );
}

#[test]
fn a_device_is_not_opened() {
    let (_dir, workspace) = workspace();
    workspace.make_dir("out").unwrap();
    let tty = workspace.path().join("out/tty");
    let device = rustix::fs::makedev(5, 0);
    match rustix::fs::mknodat(
        rustix::fs::CWD,
        &tty,
        rustix::fs::FileType::CharacterDevice,
        Mode::RWXU,
        device,
    ) {
        Ok(()) => assert_eq!(found(&workspace, FEW), ["tty: it is a device"]),
        // Only root makes devices, and programs in the sandbox are not root.
        Err(errno) => assert_eq!(errno, Errno::PERM),
    }
}

#[test]
fn a_folder_that_was_replaced_leads_nowhere() {
    let (dir, workspace) = workspace();
    fs::create_dir(dir.path().join("elsewhere")).unwrap();
    fs::write(dir.path().join("elsewhere/x"), "x").unwrap();
    symlink(dir.path().join("elsewhere"), workspace.path().join("out")).unwrap();
    assert_eq!(found(&workspace, FEW), [": it is not a folder"]);
    fs::remove_file(workspace.path().join("out")).unwrap();
    fs::write(workspace.path().join("out"), "").unwrap();
    assert_eq!(found(&workspace, FEW), [": it is not a folder"]);
    assert!(workspace.files("../elsewhere", FEW).is_err());
}

#[test]
fn endless_trees_are_looked_at_within_a_bound_and_that_is_told() {
    let (_dir, workspace) = workspace();
    for number in 0..60 {
        workspace.write_file(&format!("out/{number:02}"), b"x", 0o600).unwrap();
    }
    let files = found(&workspace, FEW);
    assert_eq!(files.len(), 51);
    assert_eq!(files[50], ": there are more than 50 entries; what comes after these was not looked at");
    for number in 0..60 {
        fs::remove_file(workspace.path().join(format!("out/{number:02}"))).unwrap();
        workspace.write_file(&format!("out/{}/{}", number % 20, number), b"x", 0o600).unwrap();
    }
    let files = found(&workspace, FEW);
    assert!(files.len() <= 51, "folders count too: {files:?}");
    assert!(files.last().unwrap().contains("there are more than 50 entries"), "{files:?}");
}

#[test]
fn a_file_that_was_put_in_the_place_of_another_is_not_taken() {
    let (_dir, workspace) = workspace();
    workspace.write_file("out/a", b"one", 0o600).unwrap();
    workspace.write_file("out/b", b"two", 0o600).unwrap();
    let mut files = workspace.files("out", FEW).unwrap().unwrap();
    let Some(Visited::File { mut file, .. }) = files.next() else { panic!("the first is found") };
    // What is open stays what it was, whatever gets its name.
    fs::remove_file(workspace.path().join("out/a")).unwrap();
    symlink("/etc/passwd", workspace.path().join("out/a")).unwrap();
    let mut content = String::new();
    file.read_to_string(&mut content).unwrap();
    assert_eq!(content, "one");
    // The names are known already; one that is gone or another thing by now is told.
    fs::remove_file(workspace.path().join("out/b")).unwrap();
    let gone = files.next().unwrap();
    assert!(matches!(&gone, Visited::Refused { problem, .. } if problem.contains("removed")), "{gone:?}");
    assert!(files.next().is_none());
}
