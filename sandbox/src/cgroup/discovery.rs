//! Finds the cgroup file systems and the places in them where this process may make cgroups, by making some.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Controller, FOLDER};

/// The cgroup in a container for everything that is no unit's.
const LEAF: &str = "agent";
/// How often processes are looked for that were started while others were moved.
const MOVES: usize = 10;
/// There is no such process (errno.h).
const ESRCH: i32 = 3;

/// Where cgroup file systems are mounted.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    /// For each v1 controller, mount point and the cgroup that is its root.
    pub(super) v1: BTreeMap<String, (PathBuf, String)>,
    pub(super) v2: Option<(PathBuf, String)>,
}

impl Mounts {
    pub(super) fn read() -> Self {
        Self::parse(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
    }

    /// See proc(5).
    fn parse(text: &str) -> Self {
        let mut mounts = Self::default();
        for line in text.lines() {
            let Some((place, kind)) = line.split_once(" - ") else { continue };
            let mut place = place.split(' ').skip(3);
            let (Some(root), Some(point)) = (place.next(), place.next()) else { continue };
            let mut kind = kind.split(' ');
            let (Some(name), Some(options)) = (kind.next(), kind.nth(1)) else { continue };
            let entry = (PathBuf::from(point), root.to_owned());
            match name {
                "cgroup2" if mounts.v2.is_none() => mounts.v2 = Some(entry),
                "cgroup" => {
                    for option in options.split(',') {
                        mounts.v1.entry(option.to_owned()).or_insert_with(|| entry.clone());
                    }
                }
                _ => {}
            }
        }
        mounts
    }
}

/// The cgroups of this process.
#[derive(Debug, Default)]
pub(super) struct OwnCgroups {
    v1: BTreeMap<String, String>,
    v2: Option<String>,
}

impl OwnCgroups {
    pub(super) fn read() -> Self {
        Self::parse(&fs::read_to_string("/proc/self/cgroup").unwrap_or_default())
    }

    /// Those of another process; none if there is no such process.
    fn of(pid: i32) -> Self {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default())
    }

    /// See cgroups(7).
    fn parse(text: &str) -> Self {
        let mut own = Self::default();
        for line in text.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
            if controllers.is_empty() {
                own.v2 = Some(path.to_owned());
            }
            for controller in controllers.split(',').filter(|name| !name.is_empty()) {
                own.v1.insert(controller.to_owned(), path.to_owned());
            }
        }
        own
    }
}

/// The folder of a cgroup, given where its hierarchy is mounted and which cgroup the mount shows.
fn folder_of(point: &Path, root: &str, cgroup: &str) -> PathBuf {
    let below = cgroup.strip_prefix(root.trim_end_matches('/')).unwrap_or(cgroup);
    point.join(below.trim_start_matches('/'))
}

/// The folders of a process's cgroups, by controller; the one of version 2 goes by the empty name.
pub(crate) fn folders_of_process(pid: i32) -> BTreeMap<String, PathBuf> {
    let (mounts, cgroups) = (Mounts::read(), OwnCgroups::of(pid));
    let v1 = cgroups.v1.iter().filter_map(|(controller, cgroup)| {
        let (point, root) = mounts.v1.get(controller)?;
        Some((controller.clone(), folder_of(point, root, cgroup)))
    });
    let v2 = cgroups.v2.iter().zip(&mounts.v2);
    let v2 = v2.map(|(cgroup, (point, root))| (String::new(), folder_of(point, root, cgroup)));
    v1.chain(v2).collect()
}

pub(super) type Found = (BTreeMap<Controller, PathBuf>, BTreeMap<Controller, String>);

pub(super) fn discover_v1(mounts: &Mounts, own: &OwnCgroups, parent: Option<&str>) -> Found {
    let (mut usable, mut problems) = (BTreeMap::new(), BTreeMap::new());
    for controller in Controller::ALL {
        let name = controller.name(false);
        let Some((point, root)) = mounts.v1.get(name) else { continue };
        let cgroup = parent.or(own.v1.get(name).map(String::as_str)).unwrap_or("/");
        let base = folder_of(point, root, cgroup).join(FOLDER);
        match fs::create_dir_all(&base).and_then(|()| writable(&base)) {
            Ok(()) => {
                usable.insert(controller, base);
            }
            Err(error) => {
                problems
                    .insert(controller, format!("cgroup folder {} cannot be used: {error}", base.display()));
            }
        }
    }
    (usable, problems)
}

pub(super) fn discover_v2(mounts: &Mounts, own: &OwnCgroups, parent: Option<&str>) -> Found {
    let (mut usable, mut problems) = (BTreeMap::new(), BTreeMap::new());
    let Some((point, root)) = &mounts.v2 else { return (usable, problems) };
    // A cgroup that holds processes cannot hand controllers down, so the place beside this process's own leaf is tried
    // too (systemd's DelegateSubgroup= makes such a leaf).
    let own = own.v2.as_deref().unwrap_or("/");
    let above = Path::new(own).parent().and_then(Path::to_str);
    let candidates: Vec<&str> = match parent {
        Some(parent) => vec![parent],
        None => [Some(own), above].into_iter().flatten().collect(),
    };
    for candidate in candidates {
        let parent = folder_of(point, root, candidate);
        let base = parent.join(FOLDER);
        if let Err(error) = fs::create_dir_all(&base).and_then(|()| writable(&base)) {
            for controller in Controller::ALL {
                problems
                    .entry(controller)
                    .or_insert_with(|| format!("cgroup folder {} cannot be used: {error}", base.display()));
            }
            continue;
        }
        if *own == *candidate
            && is_root_of_container(own, &parent)
            && let Err(error) = move_out(&parent)
        {
            // Handing down says what is wrong then.
            tracing::debug!(path = %parent.display(), %error, "the processes of this container stay in its cgroup");
        }
        for controller in Controller::ALL {
            let hand_down = |dir: &Path| {
                fs::write(dir.join("cgroup.subtree_control"), format!("+{}", controller.name(true)))
            };
            match hand_down(&parent).and_then(|()| hand_down(&base)) {
                Ok(()) => {
                    usable.insert(controller, base.clone());
                }
                Err(error) => {
                    problems.entry(controller).or_insert_with(|| {
                        format!(
                            "controller {} cannot be handed down in {}: {error}",
                            controller.name(true),
                            parent.display()
                        )
                    });
                }
            }
        }
        if !usable.is_empty() {
            break;
        }
        // Nothing here: take the folder away again. It is empty, and one that is not is somebody's.
        if let Err(error) = fs::remove_dir(&base) {
            tracing::debug!(path = %base.display(), %error, "unused cgroup folder stays");
        }
    }
    (usable, problems)
}

/// Whether a process's cgroup is the root of what a container sees of the hierarchy, and is not that of the host: the host's own root
/// has no type.
fn is_root_of_container(own: &str, folder: &Path) -> bool {
    own == "/" && folder.join("cgroup.type").exists()
}

/// Moves all processes of a container's cgroup into a leaf of it, as `DelegateSubgroup=` does for a service: there is no place
/// above the root, and while it holds processes nothing can be handed down from it.
fn move_out(root: &Path) -> std::io::Result<()> {
    let leaf = root.join(LEAF);
    fs::create_dir_all(&leaf)?;
    // What is started meanwhile is started where its parent was.
    for _ in 0..MOVES {
        let processes = fs::read_to_string(root.join("cgroup.procs"))?;
        if processes.is_empty() {
            return Ok(());
        }
        for process in processes.lines() {
            // So the kernel calls one of another pid namespace; written, it would mean this process.
            if process == "0" {
                return Err(std::io::Error::other("a process of another pid namespace is in it"));
            }
            match fs::write(leaf.join("cgroup.procs"), process) {
                Err(error) if error.raw_os_error() != Some(ESRCH) => return Err(error),
                // It may have ended.
                Ok(()) | Err(_) => {}
            }
        }
    }
    Err(std::io::Error::other("processes are started faster than they are moved"))
}

/// Whether cgroups can be made in a folder, by making one.
fn writable(base: &Path) -> std::io::Result<()> {
    let trial = base.join(format!(".trial-{}", std::process::id()));
    fs::create_dir(&trial)?;
    fs::remove_dir(&trial)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_tables_of_both_generations_are_understood() {
        let mounts = Mounts::parse(
            "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
             32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:1 - cgroup cgroup rw,cpu,cpuacct\n\
             35 31 0:32 /docker/x /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
        );
        assert_eq!(mounts.v1["cpu"].0, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(mounts.v1["memory"].1, "/docker/x");
        assert_eq!(mounts.v2.unwrap().0, Path::new("/sys/fs/cgroup/unified"));
        let own = OwnCgroups::parse("9:name=systemd:/\n4:cpu,cpuacct:/a\n0::/user.slice\n");
        assert_eq!(own.v1["cpuacct"], "/a");
        assert_eq!(own.v2.unwrap(), "/user.slice");
    }

    /// On a hierarchy of version 2, wherever this process may make cgroups in one; its controllers may all be those of version 1.
    #[test]
    fn what_runs_in_the_root_of_a_container_is_moved_out_of_it() {
        let Some((point, root)) = Mounts::read().v2 else {
            return eprintln!("skipped: no cgroup2 is mounted");
        };
        let own = folder_of(&point, &root, OwnCgroups::read().v2.as_deref().unwrap_or("/"));
        let container = own.join(format!("windlass-test-{}", std::process::id()));
        if let Err(error) = fs::create_dir(&container) {
            return eprintln!("skipped: {}: {error}", container.display());
        }
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        fs::write(container.join("cgroup.procs"), child.id().to_string()).unwrap();
        assert!(is_root_of_container("/", &container) && !is_root_of_container("/below", &container));
        move_out(&container).unwrap();
        let read = |name: &str| fs::read_to_string(container.join(name)).unwrap();
        assert_eq!(
            (read("cgroup.procs"), read("agent/cgroup.procs")),
            (String::new(), format!("{}\n", child.id()))
        );
        move_out(&container).expect("nothing is left to be moved");
        child.kill().unwrap();
        child.wait().unwrap();
        for folder in [container.join(LEAF), container] {
            fs::remove_dir(folder).unwrap();
        }
    }

    #[test]
    fn a_cgroup_is_found_below_a_mount_that_shows_only_a_part() {
        let point = Path::new("/sys/fs/cgroup/memory");
        assert_eq!(folder_of(point, "/", "/a/b"), Path::new("/sys/fs/cgroup/memory/a/b"));
        assert_eq!(folder_of(point, "/docker/x", "/docker/x/y"), Path::new("/sys/fs/cgroup/memory/y"));
        assert_eq!(folder_of(point, "/docker/x", "/docker/x"), Path::new("/sys/fs/cgroup/memory/"));
    }
}
