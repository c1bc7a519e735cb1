//! Steps that make the file tree of a sandbox. Until the new root is entered relative paths are below it; see [`Step`].

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};

use crate::plan::{Step, Text};
use crate::sys;

/// Where a system is laid out, in the small root: over a folder that is of no other use then.
pub(super) const SYSTEM: &CStr = c"workspace";
/// The memory file system that a unit may fill, of which only parts are shown.
pub(crate) struct Scratch {
    root: OwnedFd,
    /// How many there are; they are numbered.
    parts: u64,
}

/// Carries out the steps of a template, and makes the root that they made read-only.
pub(crate) fn lay_out(steps: &[Step]) -> Result<(), Errno> {
    let mut sources = steps.iter().map(open_tree_of).collect::<Result<Vec<_>, _>>()?;
    steps.iter().zip(&mut sources).try_for_each(|(step, source)| lay(step, source))?;
    freeze(c"/")
}

/// Opens what a step shows as a detached mount with its final flags. The supervisor does it for everything if it is root,
/// because the job's user may not be able to reach the path; otherwise the child does it for itself.
pub(crate) fn open_tree_of(step: &Step) -> Result<Option<OwnedFd>, Errno> {
    let clone =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let harmless = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let (tree, flags) = match step {
        Step::Show { source, .. } => (
            rustix::mount::open_tree(CWD, source.as_c_str(), clone)?,
            harmless | MountAttrFlags::MOUNT_ATTR_RDONLY,
        ),
        Step::ShowDevice { source, .. } => (
            rustix::mount::open_tree(CWD, source.as_c_str(), clone)?,
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC,
        ),
        Step::LayOut { source } => {
            // Itself alone: what somebody has mounted in it is no part of it.
            let alone = clone.difference(OpenTreeFlags::AT_RECURSIVE);
            let tree = open_tree_without_links(source, alone)?;
            (tree, harmless | MountAttrFlags::MOUNT_ATTR_RDONLY)
        }
        Step::Attach { source, read_only, .. } => {
            let tree = open_tree_without_links(source, clone)?;
            let flags = if *read_only { harmless | MountAttrFlags::MOUNT_ATTR_RDONLY } else { harmless };
            (tree, flags)
        }
        _ => return Ok(None),
    };
    set_flags(tree.as_fd(), flags)?;
    Ok(Some(tree))
}

/// A detached mount of a path without links.
fn open_tree_without_links(path: &Text, flags: OpenTreeFlags) -> Result<OwnedFd, Errno> {
    let place = rustix::fs::openat2(
        CWD,
        path.as_c_str(),
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )?;
    rustix::mount::open_tree(&place, c"", flags | OpenTreeFlags::AT_EMPTY_PATH)
}

/// Sets a detached mount's flags and cuts its propagation.
fn set_flags(tree: BorrowedFd<'_>, flags: MountAttrFlags) -> Result<(), Errno> {
    sys::mount_setattr(tree, c"", true, u64::from(flags.bits()), libc::MS_PRIVATE)
}

/// The kind of file that a descriptor refers to.
pub(super) fn file_type(fd: impl AsFd) -> Result<FileType, Errno> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode))
}

/// Carries out one of the steps that need nothing but the file tree, which are those that a template may have.
pub(super) fn lay(step: &Step, source: &mut Option<OwnedFd>) -> Result<(), Errno> {
    match step {
        Step::DetachMounts => {
            // What the host mounts and unmounts is still followed, so that a base that waits for its unit neither keeps a disk
            // of the host busy nor misses one.
            let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
            rustix::mount::mount_change(c"/", slave)
        }
        Step::MakeRoot => make_root(),
        Step::MakeDir { path, mode } => make_dir(path, *mode),
        Step::MakeFile { path, content } => make_file(path, content.as_bytes()),
        Step::MakeLink { path, target } => rustix::fs::symlink(target.as_c_str(), path.as_c_str()),
        Step::Show { target, .. } | Step::ShowDevice { target, .. } => {
            let tree = source.take().ok_or(Errno::BADF)?;
            let made = match file_type(&tree)? {
                FileType::Directory => make_dir(target, 0o755),
                _ => make_file(target, b""),
            };
            match made {
                Ok(()) | Err(Errno::EXIST) => mount_at(&tree, target.as_c_str()),
                Err(errno) => Err(errno),
            }
        }
        Step::MountProc { target } => mount_proc(target.as_c_str()),
        Step::EnterRoot => enter_root(),
        // The policy has put no other into a template.
        _ => Err(Errno::INVAL),
    }
}

/// Makes a folder with exactly this mode; one that is there is fine.
fn make_dir(path: &Text, mode: u32) -> Result<(), Errno> {
    match rustix::fs::mkdir(path.as_c_str(), Mode::from_raw_mode(mode)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Makes a file with mode 0644.
fn make_file(path: &Text, content: &[u8]) -> Result<(), Errno> {
    make_file_at(CWD, path.as_c_str(), content)
}

/// Makes a file with mode 0644 below a folder.
fn make_file_at(folder: impl AsFd, path: &CStr, mut content: &[u8]) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, path, flags, Mode::from_raw_mode(0o644))?;
    while !content.is_empty() {
        let written = rustix::io::write(&file, content)?;
        content = content.get(written..).unwrap_or_default();
    }
    Ok(())
}

/// Attaches a detached mount.
pub(super) fn mount_at(tree: &OwnedFd, target: &CStr) -> Result<(), Errno> {
    rustix::mount::move_mount(tree, c"", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// A detached mount of what is at `path`.
pub(super) fn clone_of(path: &CStr) -> Result<OwnedFd, Errno> {
    rustix::mount::open_tree(
        CWD,
        path,
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_SYMLINK_NOFOLLOW
            | OpenTreeFlags::AT_RECURSIVE,
    )
}

/// See [`Step::MakeRoot`]. The new root is laid over the old one and becomes the working directory; absolute paths still
/// begin at the old one.
fn make_root() -> Result<(), Errno> {
    let root = memory_file_system(1 << 20, 256)?;
    mount_at(&root, c"/")?;
    rustix::process::fchdir(&root)
}

/// A detached one.
fn memory_file_system(bytes: u64, files: u64) -> Result<OwnedFd, Errno> {
    let mut digits = [0; 24];
    let context = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, c"source", c"windlass")?;
    rustix::mount::fsconfig_set_string(&context, c"size", decimal(bytes, &mut digits))?;
    rustix::mount::fsconfig_set_string(&context, c"nr_inodes", decimal(files, &mut digits))?;
    rustix::mount::fsconfig_set_string(&context, c"mode", c"0755")?;
    rustix::mount::fsconfig_create(&context)?;
    rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV,
    )
}

impl Scratch {
    /// See [`Step::MountScratch`].
    pub(super) fn mount(target: &CStr, bytes: u64, files: u64) -> Result<Self, Errno> {
        let root = memory_file_system(bytes, files)?;
        mount_at(&root, target)?;
        Ok(Self { root, parts: 0 })
    }

    /// See [`Step::SizeScratch`].
    pub(super) fn size(&self, bytes: u64, files: u64) -> Result<(), Errno> {
        let mut digits = [0; 24];
        let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
        let context = rustix::mount::fspick(&self.root, c"", flags)?;
        rustix::mount::fsconfig_set_string(&context, c"size", decimal(bytes, &mut digits))?;
        rustix::mount::fsconfig_set_string(&context, c"nr_inodes", decimal(files, &mut digits))?;
        rustix::mount::fsconfig_reconfigure(&context)
    }

    /// A new folder as a detached mount.
    pub(super) fn folder(&mut self, mode: u32) -> Result<OwnedFd, Errno> {
        self.part(|root, name| rustix::fs::mkdirat(root, name, Mode::from_raw_mode(mode)))
    }

    /// A new file as a detached mount, to be read only.
    pub(super) fn file(&mut self, content: &[u8]) -> Result<OwnedFd, Errno> {
        let tree = self.part(|root, name| make_file_at(root, name, content))?;
        freeze_tree(&tree)?;
        Ok(tree)
    }

    /// Lets nobody make something in its root, should anybody get there.
    pub(super) fn seal(&self) -> Result<(), Errno> {
        freeze_tree(&self.root)
    }

    /// Something new as a detached mount.
    fn part(&mut self, make: impl FnOnce(&OwnedFd, &CStr) -> Result<(), Errno>) -> Result<OwnedFd, Errno> {
        let mut digits = [0; 24];
        let name = decimal(self.parts, &mut digits);
        self.parts += 1;
        make(&self.root, name)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        rustix::mount::open_tree(&self.root, name, flags)
    }
}

/// See [`Step::EnterRoot`].
pub(super) fn enter_root() -> Result<(), Errno> {
    rustix::process::pivot_root(c".", c".")?;
    // The old root now lies over the new one.
    rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")
}

/// See [`Step::Cover`].
pub(super) fn cover(tree: &OwnedFd, place: &Text) -> Result<(), Errno> {
    let through = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let confined = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let system = rustix::fs::open(SYSTEM, through | OFlags::DIRECTORY, Mode::empty())?;
    let place = rustix::fs::openat2(&system, place.as_c_str(), through, Mode::empty(), confined)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, c"", &place, c"", flags)
}

/// Makes the top of a detached mount read-only, but not what is mounted below it.
pub(super) fn freeze_tree(tree: &OwnedFd) -> Result<(), Errno> {
    let flags = u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits());
    sys::mount_setattr(tree.as_fd(), c"", false, flags, 0)
}

/// A number in decimal digits, without allocating.
fn decimal(mut value: u64, digits: &mut [u8; 24]) -> &CStr {
    let mut at = digits.len() - 1;
    digits[at] = 0;
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(value % 10).expect("a digit");
        value /= 10;
        if value == 0 {
            return CStr::from_bytes_with_nul(&digits[at..]).expect("only digits before the NUL");
        }
    }
}

/// See [`Step::MountProc`].
fn mount_proc(target: &CStr) -> Result<(), Errno> {
    let context = rustix::mount::fsopen(c"proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&context)?;
    let proc = rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )?;
    mount_at(&proc, target)
}

/// See [`Step::Mask`]. The covers are the root's own `dev/null` and `sys`, which is empty. Most are files, and for these the old
/// call does in one what the new ones do in three; nothing of a fresh /proc that is covered is a link. It is looked first which of both
/// it is: taking back a mount that does not fit waits for all processors.
pub(super) fn mask(path: &Text) -> Result<(), Errno> {
    match rustix::fs::stat(path.as_c_str()) {
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
        Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::Directory => {
            let cover = clone_of(c"sys")?;
            set_flags(cover.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY)?;
            mount_at(&cover, path.as_c_str())
        }
        Ok(_) => rustix::mount::mount_bind(c"dev/null", path.as_c_str()),
    }
}

/// See [`Step::Tune`].
pub(super) fn tune(path: &Text, value: u64) -> Result<(), Errno> {
    let file = match rustix::fs::open(path.as_c_str(), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let mut digits = [0; 24];
    // The kernel takes such a file's content in one piece.
    rustix::io::write(&file, decimal(value, &mut digits).to_bytes()).map(drop)
}

/// See [`Step::Freeze`].
pub(super) fn freeze(path: &CStr) -> Result<(), Errno> {
    sys::mount_setattr(CWD, path, false, u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits()), 0)
}

/// See [`Step::Attach`]. Every part of the target is opened beneath the one before, never through a link, because the
/// target may lie in a workspace that an earlier step has prepared.
pub(super) fn attach(tree: &OwnedFd, target: &Text) -> Result<(), Errno> {
    let through = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let confined = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let is_dir = file_type(tree)? == FileType::Directory;
    let mut at = rustix::fs::open(c"/", through | OFlags::DIRECTORY, Mode::empty())?;
    let mut parts =
        target.as_c_str().to_bytes().split(|byte| *byte == b'/').filter(|part| !part.is_empty()).peekable();
    while let Some(part) = parts.next() {
        let mut buffer = [0; 256];
        let name = buffer.get_mut(..part.len()).ok_or(Errno::NAMETOOLONG)?;
        name.copy_from_slice(part);
        let name = CStr::from_bytes_until_nul(&buffer).map_err(|_| Errno::NAMETOOLONG)?;
        let made = if parts.peek().is_some() || is_dir {
            rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(0o755))
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(&at, name, flags, Mode::from_raw_mode(0o644)).map(|_| ())
        };
        match made {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        at = rustix::fs::openat2(&at, name, through, Mode::empty(), confined)?;
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, c"", &at, c"", flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_decimal() {
        let mut digits = [0; 24];
        assert_eq!(decimal(0, &mut digits), c"0");
        assert_eq!(decimal(u64::MAX, &mut digits), c"18446744073709551615");
    }
}
