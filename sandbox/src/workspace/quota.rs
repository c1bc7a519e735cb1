//! What keeps a workspace within its disk limit, where the host has something better than looking at it.
//!
//! | means | needs | exact | what it takes |
//! | --- | --- | --- | --- |
//! | project quota | root, ext4 or XFS with project quota | yes | two system calls |
//! | image | root, a loop device, `mkfs.ext4` and `mount` | yes | some ten milliseconds at the begin and at the end |
//!
//! Nothing here is remembered: what a workspace has is read from the host, so that whoever finds it can remove it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, CWD, OFlags, StatxAttributes, StatxFlags};
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use windlass_launcher::quota::{self, Allowance};

use super::mounts;
use crate::error::Error;
use crate::identity::Identity;

/// Bytes for each file of a workspace: the ratio of ext4 by default, so that images and projects have the same.
const BYTES_A_FILE: u64 = 16_384;
/// Files of the smallest workspace.
const LEAST_FILES: u64 = 64;
/// The smallest image: below it the file system itself would take most of it.
const LEAST_IMAGE: u64 = 1 << 20;
/// What stands before and after a workspace's name in that of its image. No workspace's name begins with a dot.
const IMAGE: (&str, &str) = (".", ".img");
/// Where programs for file systems are.
const PROGRAMS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// Guards the mount that makes the folder of the workspaces one that others follow; see [`follow`].
static FOLLOWED: Mutex<()> = Mutex::new(());

/// How much a workspace may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskQuota {
    /// Bytes.
    pub bytes: u64,
    /// Whether exactness is worth the time that it takes to make an image.
    pub exact: bool,
}

/// What keeps a workspace within its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::Display)]
pub enum DiskMeans {
    /// A project quota of the file system that it is in.
    #[strum(serialize = "project quota")]
    ProjectQuota,
    /// A file system of its own.
    #[strum(serialize = "file system of its own")]
    Image,
    /// The unit's supervisor, by looking.
    #[strum(serialize = "looking every 250 ms")]
    Looking,
}

impl DiskMeans {
    /// What keeps the folder `path` within `bytes` now.
    pub(crate) fn of(path: &Path, bytes: u64) -> Self {
        let is_bounded = rustix::fs::statvfs(path)
            .is_ok_and(|space| space.f_blocks.saturating_mul(space.f_frsize) <= bytes);
        let has_project =
            || open(path).and_then(|folder| quota::project_of(&folder)).is_ok_and(|it| it.is_some());
        if is_bounded && is_mount(path).unwrap_or(false) {
            Self::Image
        } else if is_bounded && has_project() {
            Self::ProjectQuota
        } else {
            Self::Looking
        }
    }
}

/// Puts a new, empty workspace below a quota, by the best means that the host has. Where it has none nothing is changed,
/// and the unit's supervisor looks.
pub(super) fn put(root: &Path, name: &str, identity: Identity, wanted: DiskQuota) -> Result<(), Error> {
    if Identity::caller().uid != 0 {
        return Ok(());
    }
    let path = root.join(name);
    match project(&path, identity, wanted.bytes) {
        Ok(true) => return Ok(()),
        Ok(false) => tracing::debug!("the file system of workspaces does not enforce project quotas"),
        Err(error) => tracing::debug!(%error, "no project quota"),
    }
    if !wanted.exact || wanted.bytes < LEAST_IMAGE {
        return Ok(());
    }
    if let Err(error) = image(root, name, identity, wanted.bytes) {
        tracing::warn!(%error, path = %path.display(), "no image for a workspace; its size is looked at instead");
        lift(root, name)?;
    }
    Ok(())
}

/// Takes a workspace's quota away, with all that it has on the host. Idempotent.
pub(super) fn lift(root: &Path, name: &str) -> Result<(), Error> {
    let path = root.join(name);
    loop {
        match is_mount(&path) {
            Ok(true) => unmount(&path).map_err(Error::io("unmount", &path))?,
            Ok(false) => break,
            Err(error) if error.kind() == ErrorKind::NotFound => break,
            Err(error) => return Err(Error::io("inspect", &path)(error)),
        }
    }
    let image = image_path(root, name);
    match fs::remove_file(&image) {
        Ok(()) => unfollow(root)?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io("remove", image)(error)),
    }
    if let Ok(folder) = open(&path)
        && let Some(project) = own_project(&folder).map_err(Error::io("inspect", &path))?
    {
        quota::allow(&folder, project, None).map_err(Error::io("lift the quota of", &path))?;
    }
    Ok(())
}

/// The project of a workspace that [`project`] has made: it has the number of the workspace's user. Any other one belongs
/// to whoever runs the host.
fn own_project(folder: &File) -> io::Result<Option<u32>> {
    let user = rustix::fs::fstat(folder)?.st_uid;
    // A file system without projects has none of ours.
    Ok(quota::project_of(folder).unwrap_or(None).filter(|project| *project == user))
}

/// The workspace that an entry of the folder of all workspaces belongs to.
pub(super) fn owner(entry: &str) -> &str {
    entry.strip_prefix(IMAGE.0).and_then(|rest| rest.strip_suffix(IMAGE.1)).unwrap_or(entry)
}

fn image_path(root: &Path, name: &str) -> PathBuf {
    root.join(format!("{}{name}{}", IMAGE.0, IMAGE.1))
}

fn files_of(bytes: u64) -> u64 {
    (bytes / BYTES_A_FILE).max(LEAST_FILES)
}

fn open(path: &Path) -> io::Result<File> {
    let flags = (OFlags::DIRECTORY | OFlags::NOFOLLOW).bits().cast_signed();
    File::options().read(true).custom_flags(flags).open(path)
}

/// Whether something is mounted at a path.
fn is_mount(path: &Path) -> io::Result<bool> {
    let stat = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)?;
    Ok(stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT)
        && stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Whatever has a file open there keeps the file system, but not the place.
fn unmount(path: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?)
}

/// Makes a workspace a project of its own, named by the number of its user, which no other attempt has. Gives whether the
/// file system keeps to it, which is seen by the size that it then tells. A workspace that is part of a project already,
/// because the host's owner has put the folder above into one, stays there.
fn project(path: &Path, identity: Identity, bytes: u64) -> io::Result<bool> {
    let folder = open(path)?;
    if quota::project_of(&folder)?.is_some() {
        return Ok(false);
    }
    let project = identity.uid;
    quota::allow(&folder, project, Some(Allowance { bytes, files: files_of(bytes) }))?;
    quota::join(&folder, project)?;
    let keeps = DiskMeans::of(path, bytes) == DiskMeans::ProjectQuota;
    if !keeps {
        quota::allow(&folder, project, None)?;
    }
    Ok(keeps)
}

/// Makes a file system of the given size in a file and mounts it over the workspace.
fn image(root: &Path, name: &str, identity: Identity, bytes: u64) -> io::Result<()> {
    let (path, image) = (root.join(name), image_path(root, name));
    let file = File::options().write(true).create_new(true).mode(0o600).open(&image)?;
    file.set_len(bytes)?;
    // No journal: after a crash of the host nothing of the attempt is used again. Nothing is kept back for root.
    let owner = format!("root_owner={}:{},lazy_itable_init=1,nodiscard", identity.uid, identity.gid);
    let files = files_of(bytes).to_string();
    let image_text = image.as_os_str();
    let words = ["-q", "-F", "-m", "0", "-O", "^has_journal", "-N", &files, "-E", &owner].map(OsStr::new);
    run("mkfs.ext4", &[&words[..], &[image_text]].concat())?;
    follow(root)?;
    // What is deleted inside is given back to the host. The device goes by itself with the last mount.
    let words = ["-t", "ext4", "-o", "loop,nosuid,nodev,noatime,discard"].map(OsStr::new);
    run("mount", &[&words[..], &[image_text, path.as_os_str()]].concat())?;
    match fs::remove_dir(path.join("lost+found")) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700))
}

/// Sees to it that a workspace's mount is taken away from all that have a copy of the host's mounts when it is taken away
/// here; above all from a spare sandbox, which would keep the loop device for as long as it waits.
fn follow(root: &Path) -> io::Result<()> {
    let _guard = FOLLOWED.lock().unwrap_or_else(PoisonError::into_inner);
    let root = root.canonicalize()?;
    if mounts::Table::read()?.holding(&root).is_some_and(|mount| mount.shared) {
        return Ok(());
    }
    if !is_mount(&root)? {
        rustix::mount::mount_bind(&root, &root)?;
    }
    Ok(rustix::mount::mount_change(&root, MountPropagationFlags::SHARED)?)
}

/// Undoes [`follow`] once the last image is gone.
fn unfollow(root: &Path) -> Result<(), Error> {
    let _guard = FOLLOWED.lock().unwrap_or_else(PoisonError::into_inner);
    let root = &root.canonicalize().map_err(Error::io("resolve", root))?;
    let is_image = |entry: fs::DirEntry| {
        let name = entry.file_name();
        name.to_str().is_some_and(|name| owner(name) != name)
    };
    let mut entries = fs::read_dir(root).map_err(Error::io("list", root))?;
    if entries.any(|entry| entry.is_ok_and(is_image)) {
        return Ok(());
    }
    let table = mounts::Table::read().map_err(Error::io("read", "/proc/self/mountinfo"))?;
    if table.is_bound_to_itself(root) {
        unmount(root).map_err(Error::io("unmount", root))?;
    }
    Ok(())
}

/// Runs a program of the system; its complaint is the error.
fn run(program: &str, arguments: &[&OsStr]) -> io::Result<()> {
    let found = PROGRAMS.iter().map(|dir| Path::new(dir).join(program)).find(|path| path.exists());
    let Some(path) = found else {
        return Err(io::Error::new(ErrorKind::NotFound, format!("{program} is not installed")));
    };
    let output = Command::new(path)
        .args(arguments)
        .env_clear()
        .env("PATH", PROGRAMS.join(":"))
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{program} ended with {}: {}", output.status, complaint.trim())))
}
