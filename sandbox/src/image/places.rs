//! The places of a system that the sandbox lays its own parts over: made in what is unpacked, asked for in a folder that somebody
//! else made.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::Trouble;
use super::layer::{clear, new_dir};
use super::users::MAX_ACCOUNTS;
use crate::error::Error;

/// Folders.
pub(crate) const FOLDERS: [&str; 8] =
    ["dev", "proc", "sys", "tmp", "run", "var/tmp", "home/job", "workspace"];
/// Files.
pub(crate) const FILES: [&str; 5] =
    ["etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/passwd", "etc/group"];
/// Entries of a root: more are a mistake, or a trick.
const MAX_ROOT: usize = 256;

const CONFINED: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

fn kind_of(root: &OwnedFd, path: &str) -> Result<Option<FileType>, Errno> {
    match rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), CONFINED) {
        Ok(fd) => Ok(Some(FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        // A link is what nothing can be laid over.
        Err(Errno::LOOP) => Ok(Some(FileType::Symlink)),
        Err(errno) => Err(errno),
    }
}

/// Whether there is a folder at a path, not behind a link.
pub(super) fn is_folder(root: &OwnedFd, path: &str) -> bool {
    kind_of(root, path) == Ok(Some(FileType::Directory))
}

/// Makes those that are missing, in place of links and whatever else has their names.
pub(super) fn make(root: &OwnedFd) -> Result<(), Trouble> {
    let places = FOLDERS.iter().map(|path| (*path, FileType::Directory));
    for (path, wanted) in places.chain(FILES.iter().map(|path| (*path, FileType::RegularFile))) {
        let failed = |errno| match errno {
            Errno::NOTDIR | Errno::LOOP => {
                Trouble::unusable(format!("has something at /{path} that is no folder"))
            }
            errno => Error::io("make", format!("/{path} of an image"))(std::io::Error::from(errno)).into(),
        };
        if kind_of(root, path).map_err(failed)? == Some(wanted) {
            continue;
        }
        let (above, name) = match path.split_once('/') {
            Some((above, name)) => {
                match new_dir(root, above.as_bytes()) {
                    Ok(_) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(failed(errno)),
                }
                let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
                (rustix::fs::openat2(root, above, flags, Mode::empty(), CONFINED).map_err(failed)?, name)
            }
            None => (root.as_fd().try_clone_to_owned().map_err(|_| failed(Errno::MFILE))?, path),
        };
        // Behind a link there may be accounts.
        let content =
            if wanted == FileType::RegularFile { read(root, path).unwrap_or_default() } else { Vec::new() };
        clear(&above, name.as_bytes()).map_err(failed)?;
        match wanted {
            FileType::Directory => {
                new_dir(&above, name.as_bytes()).map_err(failed)?;
            }
            _ => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file =
                    rustix::fs::openat(&above, name, flags, Mode::from_raw_mode(0o444)).map_err(failed)?;
                rustix::fs::fchmod(&file, Mode::from_raw_mode(0o444)).map_err(failed)?;
                std::io::Write::write_all(&mut File::from(file), &content)
                    .map_err(Error::io("write", format!("/{path} of an image")))?;
            }
        }
    }
    Ok(())
}

/// Whether all are there.
pub(super) fn check(root: &OwnedFd, path: &Path) -> Result<(), Trouble> {
    let lacks = |places: &[&str], wanted| -> Result<Vec<String>, Trouble> {
        let mut lacking = Vec::new();
        for place in places {
            let kind = kind_of(root, place).map_err(|errno| Error::io("inspect", *place)(errno.into()))?;
            if kind != Some(wanted) {
                lacking.push(path.join(place).display().to_string());
            }
        }
        Ok(lacking)
    };
    let folders = lacks(&FOLDERS, FileType::Directory)?;
    let files = lacks(&FILES, FileType::RegularFile)?;
    let command = |command: &str, paths: &[String]| {
        (!paths.is_empty()).then(|| format!("{command} {}", paths.join(" ")))
    };
    let commands: Vec<String> =
        [command("mkdir -p", &folders), command("touch", &files)].into_iter().flatten().collect();
    if commands.is_empty() {
        return Ok(());
    }
    Err(Trouble::unusable(format!(
        "lacks places that are real folders and files, for the sandbox lays its own over them and does not change it; make \
         them: {}",
        commands.join(" && ")
    )))
}

/// A file of accounts; `None` where there is none or it is too large.
pub(super) fn accounts(root: &OwnedFd, path: &str) -> Option<String> {
    read(root, path).map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', ""))
}

/// A small file, through links as they are below the root.
fn read(root: &OwnedFd, path: &str) -> Option<Vec<u8>> {
    let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::openat2(root, path, flags, Mode::empty(), within).ok()?);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(MAX_ACCOUNTS as u64 + 1).read_to_end(&mut bytes).ok()?;
    (bytes.len() <= MAX_ACCOUNTS).then_some(bytes)
}

/// What of a root programs are executed from: all of it but what the sandbox lays over it.
pub(super) fn programs(root: &OwnedFd) -> Result<Vec<String>, Trouble> {
    let failed = |errno: Errno| Error::io("list", "the root of an image")(errno.into());
    let mut programs = Vec::new();
    for entry in Dir::read_from(root).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if matches!(name, "." | "..") || FOLDERS.contains(&name) {
            continue;
        }
        let stat = rustix::fs::statat(root, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        if matches!(FileType::from_raw_mode(stat.st_mode), FileType::Directory | FileType::RegularFile) {
            programs.push(format!("/{name}"));
        }
        if programs.len() > MAX_ROOT {
            return Err(Trouble::unusable(format!("has more than {MAX_ROOT} entries in its root")));
        }
    }
    programs.sort();
    Ok(programs)
}
