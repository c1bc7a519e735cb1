//! The cgroups of units, version 1 or 2: found once, made for each unit with only the controllers that its limits need.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use cgroups_rs::fs::{Cgroup, Hierarchy, MaxValue, Subsystem};
use windlass_launcher::plan;

use crate::error::Error;
use crate::spec::{LimitName, UnitId};

/// The folder of all units below the parent.
const FOLDER: &str = "windlass";
/// The kernel's default period of a processor quota, in microseconds.
const PERIOD_US: u64 = 100_000;
/// The least quota that the kernel takes, in microseconds.
const MIN_QUOTA_US: u64 = 1000;

/// Which generation of cgroups limits are enforced by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::Display)]
pub enum CgroupVersion {
    /// One hierarchy for each controller.
    #[strum(serialize = "v1")]
    V1,
    /// The unified hierarchy.
    #[strum(serialize = "v2")]
    V2,
    /// No cgroup that this process may use.
    #[strum(serialize = "none")]
    None,
}

/// A controller that limits need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Controller {
    Cpu,
    Memory,
    Pids,
}

impl Controller {
    const ALL: [Self; 3] = [Self::Cpu, Self::Memory, Self::Pids];

    fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Pids => "pids",
        }
    }

    /// The controller of a limit; the disk limit has none.
    pub(crate) fn of(limit: LimitName) -> Option<Self> {
        match limit {
            LimitName::Cpu => Some(Self::Cpu),
            LimitName::Memory => Some(Self::Memory),
            LimitName::Pids => Some(Self::Pids),
            LimitName::Disk => None,
        }
    }
}

/// The limits of a unit that cgroups enforce.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wanted {
    pub(crate) cpu_millis: Option<u64>,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) pids: Option<u64>,
}

impl Wanted {
    fn controllers(self) -> Vec<Controller> {
        let named = [
            (self.cpu_millis.is_some(), Controller::Cpu),
            (self.memory_bytes.is_some(), Controller::Memory),
            (self.pids.is_some(), Controller::Pids),
        ];
        named.into_iter().filter_map(|(wanted, controller)| wanted.then_some(controller)).collect()
    }
}

/// Where this process may make cgroups, and why not where it may not.
#[derive(Debug, Clone)]
pub(crate) struct CgroupHost {
    version: CgroupVersion,
    /// For each usable controller, the folder below which units get theirs.
    usable: BTreeMap<Controller, PathBuf>,
    /// Why the others are not usable.
    problems: BTreeMap<Controller, String>,
}

impl CgroupHost {
    /// Finds out, by making the units' folder, what can be used. `parent` overrides this process's own cgroup.
    pub(crate) fn discover(parent: Option<&str>) -> Self {
        let mounts = Mounts::read();
        let own = OwnCgroups::read();
        let (v1, problems) = discover_v1(&mounts, &own, parent);
        if !v1.is_empty() {
            return Self { version: CgroupVersion::V1, usable: v1, problems };
        }
        let (v2, v2_problems) = discover_v2(&mounts, &own, parent);
        if !v2.is_empty() {
            return Self { version: CgroupVersion::V2, usable: v2, problems: v2_problems };
        }
        // Tell what is wrong with the generation that the host uses for its controllers.
        let problems = if mounts.v1.is_empty() { v2_problems } else { problems };
        Self { version: CgroupVersion::None, usable: BTreeMap::new(), problems }
    }

    pub(crate) fn version(&self) -> CgroupVersion {
        self.version
    }

    /// Why a controller cannot be used; `None` if it can.
    pub(crate) fn problem(&self, controller: Controller) -> Option<&str> {
        if self.usable.contains_key(&controller) {
            return None;
        }
        Some(
            self.problems.get(&controller).map_or("the kernel does not offer the controller", String::as_str),
        )
    }

    /// Makes the cgroups of a unit and sets its limits. Idempotent. On error nothing is left.
    pub(crate) fn create(&self, id: &UnitId, wanted: Wanted) -> Result<Option<plan::Cgroups>, Error> {
        let controllers = wanted.controllers();
        if controllers.is_empty() {
            return Ok(None);
        }
        let cgroup = self.handle(id, &controllers);
        let failed = |operation| {
            let path = format!("{FOLDER}/{id}");
            move |source| Error::Cgroup { operation, path, source }
        };
        let made = cgroup
            .create()
            .map_err(failed("make"))
            .and_then(|()| limit(&cgroup, wanted).map_err(failed("limit")));
        if let Err(error) = made {
            // The first error is the one to tell; what could be made is taken away again.
            if let Err(left) = cgroup.delete() {
                tracing::warn!(unit.id = %id, error = %left, "cgroup left behind");
            }
            return Err(error);
        }
        let dir = |controller| self.usable.get(&controller).map(|base| base.join(id.as_str()));
        let mut dirs: Vec<PathBuf> = controllers.iter().filter_map(|controller| dir(*controller)).collect();
        dirs.dedup();
        Ok(Some(plan::Cgroups {
            v2: self.version == CgroupVersion::V2,
            dirs,
            memory: wanted.memory_bytes.and_then(|_| dir(Controller::Memory)),
            pids: wanted.pids.and_then(|_| dir(Controller::Pids)),
        }))
    }

    /// Removes whatever cgroups a unit has. Idempotent.
    pub(crate) fn remove(&self, id: &UnitId) -> Result<(), Error> {
        let present: Vec<Controller> = self
            .usable
            .iter()
            .filter(|(_, base)| base.join(id.as_str()).exists())
            .map(|(controller, _)| *controller)
            .collect();
        if present.is_empty() {
            return Ok(());
        }
        self.handle(id, &present).delete().map_err(|source| Error::Cgroup {
            operation: "remove",
            path: format!("{FOLDER}/{id}"),
            source,
        })
    }

    /// Processes that are in a unit's cgroups.
    pub(crate) fn processes(&self, id: &UnitId) -> Vec<i32> {
        let mut pids: Vec<i32> = self
            .usable
            .values()
            .filter_map(|base| fs::read_to_string(base.join(id.as_str()).join("cgroup.procs")).ok())
            .flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<_>>())
            .collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Whether a unit has a cgroup.
    pub(crate) fn exists(&self, id: &UnitId) -> bool {
        self.usable.values().any(|base| base.join(id.as_str()).exists())
    }

    /// The library's handle on a unit's cgroups with these controllers.
    fn handle(&self, id: &UnitId, controllers: &[Controller]) -> Cgroup {
        let v2 = self.version == CgroupVersion::V2;
        let subsystems: Vec<Subsystem> = controllers
            .iter()
            .filter_map(|controller| {
                let base = self.usable.get(controller)?.clone();
                Some(match controller {
                    Controller::Cpu => Subsystem::Cpu(CpuController::new(base.clone(), base, v2)),
                    Controller::Memory => Subsystem::Mem(MemController::new(base.clone(), base, v2)),
                    Controller::Pids => Subsystem::Pid(PidController::new(base.clone(), base, v2)),
                })
            })
            .collect();
        let root = self.usable.values().next().cloned().unwrap_or_default();
        let names = controllers.iter().map(|controller| controller.name().to_owned()).collect();
        let hierarchy = Box::new(UnitHierarchy { subsystems, root, v2 });
        Cgroup::load_with_specified_controllers(hierarchy, id.as_str(), names)
    }
}

/// Sets the limits.
fn limit(cgroup: &Cgroup, wanted: Wanted) -> Result<(), cgroups_rs::fs::error::Error> {
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    if let (Some(bytes), Some(memory)) = (wanted.memory_bytes, cgroup.controller_of::<MemController>()) {
        memory.set_limit(signed(bytes))?;
        // Version 1 limits memory and swap together, version 2 swap alone; where the kernel accounts no swap there is
        // nothing to limit.
        let swap = if cgroup.v2() { 0 } else { signed(bytes) };
        if memory.set_memswap_limit(swap).is_err() && !cgroup.v2() {
            memory.set_swappiness(0)?;
        }
    }
    if let (Some(millis), Some(cpu)) = (wanted.cpu_millis, cgroup.controller_of::<CpuController>()) {
        let quota = millis.saturating_mul(PERIOD_US / 1000).max(MIN_QUOTA_US);
        cpu.set_cfs_quota_and_period(Some(signed(quota)), Some(PERIOD_US))?;
    }
    if let (Some(count), Some(pids)) = (wanted.pids, cgroup.controller_of::<PidController>()) {
        // The sandbox's own first process counts too.
        pids.set_pid_max(MaxValue::Value(signed(count.saturating_add(1))))?;
    }
    Ok(())
}

/// What the library needs to know of the place of one unit's cgroups. Its own discovery reads the mount table for every
/// handle and knows only whole hosts.
#[derive(Debug)]
struct UnitHierarchy {
    subsystems: Vec<Subsystem>,
    root: PathBuf,
    v2: bool,
}

impl Hierarchy for UnitHierarchy {
    fn subsystems(&self) -> Vec<Subsystem> {
        self.subsystems.clone()
    }

    fn root(&self) -> PathBuf {
        self.root.clone()
    }

    fn root_control_group(&self) -> Cgroup {
        self.parent_control_group("")
    }

    fn parent_control_group(&self, _path: &str) -> Cgroup {
        Cgroup::load(
            Box::new(Self { subsystems: self.subsystems.clone(), root: self.root.clone(), v2: self.v2 }),
            "",
        )
    }

    fn v2(&self) -> bool {
        self.v2
    }
}

/// Where cgroup file systems are mounted.
#[derive(Debug, Default)]
struct Mounts {
    /// For each v1 controller, mount point and the cgroup that is its root.
    v1: BTreeMap<String, (PathBuf, String)>,
    v2: Option<(PathBuf, String)>,
}

impl Mounts {
    fn read() -> Self {
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
struct OwnCgroups {
    v1: BTreeMap<String, String>,
    v2: Option<String>,
}

impl OwnCgroups {
    fn read() -> Self {
        Self::parse(&fs::read_to_string("/proc/self/cgroup").unwrap_or_default())
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

type Found = (BTreeMap<Controller, PathBuf>, BTreeMap<Controller, String>);

fn discover_v1(mounts: &Mounts, own: &OwnCgroups, parent: Option<&str>) -> Found {
    let (mut usable, mut problems) = (BTreeMap::new(), BTreeMap::new());
    for controller in Controller::ALL {
        let Some((point, root)) = mounts.v1.get(controller.name()) else { continue };
        let cgroup = parent.or(own.v1.get(controller.name()).map(String::as_str)).unwrap_or("/");
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

fn discover_v2(mounts: &Mounts, own: &OwnCgroups, parent: Option<&str>) -> Found {
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
        for controller in Controller::ALL {
            let hand_down =
                |dir: &Path| fs::write(dir.join("cgroup.subtree_control"), format!("+{}", controller.name()));
            match hand_down(&parent).and_then(|()| hand_down(&base)) {
                Ok(()) => {
                    usable.insert(controller, base.clone());
                }
                Err(error) => {
                    problems.entry(controller).or_insert_with(|| {
                        format!(
                            "controller {} cannot be handed down in {}: {error}",
                            controller.name(),
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

    #[test]
    fn a_cgroup_is_found_below_a_mount_that_shows_only_a_part() {
        let point = Path::new("/sys/fs/cgroup/memory");
        assert_eq!(folder_of(point, "/", "/a/b"), Path::new("/sys/fs/cgroup/memory/a/b"));
        assert_eq!(folder_of(point, "/docker/x", "/docker/x/y"), Path::new("/sys/fs/cgroup/memory/y"));
        assert_eq!(folder_of(point, "/docker/x", "/docker/x"), Path::new("/sys/fs/cgroup/memory/"));
    }

    #[test]
    fn a_parent_that_is_not_writable_is_a_problem_that_is_told() {
        let host = CgroupHost::discover(Some("/does/not\0exist"));
        assert_eq!(host.version(), CgroupVersion::None);
        assert!(host.problem(Controller::Memory).is_some());
    }
}
