//! The cgroups of units, version 1 or 2: found once, made for each unit with only the controllers that its limits need.

mod device;
mod discovery;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use cgroups_rs::fs::blkio::BlkIoController;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use cgroups_rs::fs::{Cgroup, Hierarchy, MaxValue, Subsystem};
use sha2::{Digest as _, Sha256};
use windlass_launcher::plan;

pub(crate) use self::device::Device;
pub(crate) use self::discovery::folders_of_process;
use self::discovery::{Mounts, OwnCgroups, discover_v1, discover_v2};
use crate::error::Error;
use crate::spec::{LimitName, UnitId};

/// The folder of all units below the parent.
const FOLDER: &str = "windlass";
/// The kernel's default period of a processor quota, in microseconds.
const PERIOD_US: u64 = 100_000;
/// The least quota that the kernel takes, in microseconds.
const MIN_QUOTA_US: u64 = 1000;
/// The weight of a cgroup of version 2 that was given none.
const USUAL_WEIGHT: u64 = 100;
/// The shares of a cgroup of version 1 that was given none.
const USUAL_SHARES: u64 = 1024;

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
    Io,
}

impl Controller {
    const ALL: [Self; 4] = [Self::Cpu, Self::Memory, Self::Pids, Self::Io];

    /// What the kernel calls it.
    fn name(self, v2: bool) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Io if v2 => "io",
            Self::Io => "blkio",
        }
    }

    /// The controller of a limit; what is limited otherwise has none.
    pub(crate) fn of(limit: LimitName) -> Option<Self> {
        match limit {
            LimitName::Cpu => Some(Self::Cpu),
            LimitName::Memory => Some(Self::Memory),
            LimitName::Pids => Some(Self::Pids),
            LimitName::Io => Some(Self::Io),
            LimitName::Disk | LimitName::Files => None,
        }
    }
}

/// The limits of a unit that cgroups enforce.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wanted {
    pub(crate) cpu_millis: Option<u64>,
    pub(crate) cpu_weight: Option<u64>,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) pids: Option<u64>,
    pub(crate) io_read_bps: Option<u64>,
    pub(crate) io_write_bps: Option<u64>,
}

impl Wanted {
    fn controllers(self) -> Vec<Controller> {
        let named = [
            (self.cpu_millis.or(self.cpu_weight).is_some(), Controller::Cpu),
            (self.memory_bytes.is_some(), Controller::Memory),
            (self.pids.is_some(), Controller::Pids),
            (self.io_read_bps.or(self.io_write_bps).is_some(), Controller::Io),
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
    /// The disk that the units' workspaces are on, or why there is none to limit.
    device: Result<Device, String>,
    /// Tells units from those of the same name that another agent of this host runs.
    tag: String,
}

impl CgroupHost {
    /// Finds out, by making the units' folder, what can be used. `parent` overrides this process's own cgroup; workspaces
    /// are on the disk that holds `state`.
    pub(crate) fn discover(parent: Option<&str>, state: &Path) -> Self {
        let device = device::of(state);
        let tag = tag(state);
        let mounts = Mounts::read();
        let own = OwnCgroups::read();
        let (v1, problems) = discover_v1(&mounts, &own, parent);
        if !v1.is_empty() {
            return Self { version: CgroupVersion::V1, usable: v1, problems, device, tag };
        }
        let (v2, v2_problems) = discover_v2(&mounts, &own, parent);
        if !v2.is_empty() {
            return Self { version: CgroupVersion::V2, usable: v2, problems: v2_problems, device, tag };
        }
        // Tell what is wrong with the generation that the host uses for its controllers.
        let problems = if mounts.v1.is_empty() { v2_problems } else { problems };
        Self { version: CgroupVersion::None, usable: BTreeMap::new(), problems, device, tag }
    }

    /// What a unit's cgroups are called.
    fn name(&self, id: &UnitId) -> String {
        format!("{id}-{}", self.tag)
    }

    pub(crate) fn version(&self) -> CgroupVersion {
        self.version
    }

    /// Why a controller cannot be used; `None` if it can.
    pub(crate) fn problem(&self, controller: Controller) -> Option<&str> {
        if self.usable.contains_key(&controller) {
            return match (controller, &self.device) {
                (Controller::Io, Err(problem)) => Some(problem),
                (Controller::Io | Controller::Cpu | Controller::Memory | Controller::Pids, _) => None,
            };
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
        // A limit without its controller would be passed over.
        let problem =
            controllers.iter().find_map(|controller| Some((*controller, self.problem(*controller)?)));
        if let Some((controller, problem)) = problem {
            let name = controller.name(self.version == CgroupVersion::V2);
            return Err(Error::Unsupported {
                feature: format!("the {name} controller of cgroups"),
                needed: problem.to_owned(),
            });
        }
        let cgroup = self.handle(id, &controllers);
        let failed = |operation| {
            let path = format!("{FOLDER}/{}", self.name(id));
            move |source| Error::Cgroup { operation, path, source }
        };
        // To make them, the library goes by the kernel's names; to find them afterwards, by its own.
        let v2 = self.version == CgroupVersion::V2;
        let names = controllers.iter().map(|controller| controller.name(v2).to_owned()).collect();
        let made =
            Cgroup::load_with_specified_controllers(self.hierarchy(&controllers), self.name(id), names)
                .create()
                .map_err(failed("make"))
                .and_then(|()| limit(&cgroup, wanted, self.device.as_ref().ok()).map_err(failed("limit")))
                .and_then(|()| self.end_together(id, wanted));
        if let Err(error) = made {
            // The first error is the one to tell; what could be made is taken away again.
            if let Err(left) = cgroup.delete() {
                tracing::warn!(unit.id = %id, error = %left, "cgroup left behind");
            }
            return Err(error);
        }
        let dir = |controller| self.usable.get(&controller).map(|base| base.join(self.name(id)));
        let mut dirs: Vec<PathBuf> = controllers.iter().filter_map(|controller| dir(*controller)).collect();
        dirs.dedup();
        Ok(Some(plan::Cgroups {
            v2,
            memory: wanted.memory_bytes.and_then(|_| dir(Controller::Memory)),
            pids: wanted.pids.and_then(|_| dir(Controller::Pids)),
            // Version 2 counts for every cgroup; version 1 needs one in a hierarchy of its own.
            io: dir(Controller::Io).filter(|dir| dirs.contains(dir)),
            dirs,
        }))
    }

    /// Has the kernel kill the whole unit where it kills one process of it for want of memory. Version 1 has no such
    /// switch: there the supervisor does it.
    fn end_together(&self, id: &UnitId, wanted: Wanted) -> Result<(), Error> {
        if self.version != CgroupVersion::V2 || wanted.memory_bytes.is_none() {
            return Ok(());
        }
        let Some(base) = self.usable.get(&Controller::Memory) else { return Ok(()) };
        let path = base.join(self.name(id)).join("memory.oom.group");
        fs::write(&path, "1").map_err(Error::io("write", path))
    }

    /// Removes whatever cgroups a unit has. Idempotent.
    pub(crate) fn remove(&self, id: &UnitId) -> Result<(), Error> {
        let present: Vec<Controller> = self
            .usable
            .iter()
            .filter(|(_, base)| base.join(self.name(id)).exists())
            .map(|(controller, _)| *controller)
            .collect();
        if present.is_empty() {
            return Ok(());
        }
        self.handle(id, &present).delete().map_err(|source| Error::Cgroup {
            operation: "remove",
            path: format!("{FOLDER}/{}", self.name(id)),
            source,
        })
    }

    /// Processes that are in a unit's cgroups.
    pub(crate) fn processes(&self, id: &UnitId) -> Vec<i32> {
        let mut pids: Vec<i32> = self
            .usable
            .values()
            .filter_map(|base| fs::read_to_string(base.join(self.name(id)).join("cgroup.procs")).ok())
            .flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<_>>())
            .collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Whether a unit has a cgroup.
    pub(crate) fn exists(&self, id: &UnitId) -> bool {
        self.usable.values().any(|base| base.join(self.name(id)).exists())
    }

    /// The library's handle on a unit's cgroups with these controllers.
    fn handle(&self, id: &UnitId, controllers: &[Controller]) -> Cgroup {
        Cgroup::load(self.hierarchy(controllers), self.name(id))
    }

    fn hierarchy(&self, controllers: &[Controller]) -> Box<UnitHierarchy> {
        let v2 = self.version == CgroupVersion::V2;
        let subsystems = controllers
            .iter()
            .filter_map(|controller| {
                let base = self.usable.get(controller)?.clone();
                Some(match controller {
                    Controller::Cpu => Subsystem::Cpu(CpuController::new(base.clone(), base, v2)),
                    Controller::Memory => Subsystem::Mem(MemController::new(base.clone(), base, v2)),
                    Controller::Pids => Subsystem::Pid(PidController::new(base.clone(), base, v2)),
                    Controller::Io => Subsystem::BlkIo(BlkIoController::new(base.clone(), base, v2)),
                })
            })
            .collect();
        let root = self.usable.values().next().cloned().unwrap_or_default();
        Box::new(UnitHierarchy { subsystems, root, v2 })
    }
}

/// A word that tells state folders apart, and stays the same when one is moved.
fn tag(state: &Path) -> String {
    // Without the folder nothing works at all, which others tell.
    let (device, inode) = fs::metadata(state).map_or((0, 0), |meta| (meta.dev(), meta.ino()));
    hex::encode(&Sha256::digest([device.to_le_bytes(), inode.to_le_bytes()].concat())[..4])
}

/// Sets the limits.
fn limit(
    cgroup: &Cgroup,
    wanted: Wanted,
    device: Option<&Device>,
) -> Result<(), cgroups_rs::fs::error::Error> {
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
    if let Some(cpu) = cgroup.controller_of::<CpuController>() {
        if let Some(millis) = wanted.cpu_millis {
            let quota = millis.saturating_mul(PERIOD_US / 1000).max(MIN_QUOTA_US);
            cpu.set_cfs_quota_and_period(Some(signed(quota)), Some(PERIOD_US))?;
        }
        if let Some(weight) = wanted.cpu_weight {
            cpu.set_shares(if cgroup.v2() { weight } else { shares(weight) })?;
        }
    }
    if let (Some(device), Some(io)) = (device, cgroup.controller_of::<BlkIoController>()) {
        let Device { major, minor } = *device;
        if let Some(rate) = wanted.io_read_bps {
            io.throttle_read_bps_for_device(major, minor, rate)?;
        }
        if let Some(rate) = wanted.io_write_bps {
            io.throttle_write_bps_for_device(major, minor, rate)?;
        }
    }
    if let (Some(count), Some(pids)) = (wanted.pids, cgroup.controller_of::<PidController>()) {
        // The sandbox's own first process counts too.
        pids.set_pid_max(MaxValue::Value(signed(count.saturating_add(1))))?;
    }
    Ok(())
}

/// The shares of version 1 for a weight of version 2.
fn shares(weight: u64) -> u64 {
    // 2 is the kernel's least.
    (weight * USUAL_SHARES / USUAL_WEIGHT).max(2)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_that_is_not_writable_is_a_problem_that_is_told() {
        let host = CgroupHost::discover(Some("/does/not\0exist"), Path::new("/"));
        assert_eq!(host.version(), CgroupVersion::None);
        assert!(host.problem(Controller::Memory).is_some());
    }

    #[test]
    fn a_weight_keeps_its_proportion_to_units_without_one() {
        assert_eq!([1, 50, 100, 10_000].map(shares), [10, 512, 1024, 102_400]);
    }
}
