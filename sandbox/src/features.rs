//! What the native driver can do on this host, for the capability report.

use std::path::{Path, PathBuf};

use strum::IntoEnumIterator as _;
use windlass_launcher::probe::{Feature, Probes};

use crate::cgroup::{CgroupHost, CgroupVersion, Controller};
use crate::policy::{self, Place};
use crate::spec::{LimitName, Network};

/// Programs that steps are most often written for.
const INTERPRETERS: [&str; 3] = ["bash", "sh", "python3"];

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features {
    /// Whether units can run at all.
    pub supported: bool,
    /// Which generation of cgroups enforces limits.
    pub cgroup: CgroupVersion,
    /// Limits that are enforced; the others are refused where they are named.
    pub limits: Vec<LimitName>,
    /// Namespaces that a unit gets.
    pub namespaces: Vec<&'static str>,
    /// Landlock's version, where it is used.
    pub landlock: Option<u32>,
    /// Whether system calls are filtered.
    pub seccomp: bool,
    /// Networks that a unit may ask for.
    pub networks: Vec<Network>,
    /// Interpreters that are there inside a unit, by name.
    pub interpreters: Vec<(&'static str, PathBuf)>,
}

impl Features {
    /// From what was found out.
    pub(crate) fn of(probes: &Probes, cgroups: &CgroupHost, system: &[(&'static str, Place)]) -> Self {
        let works = |feature: Feature| probes.failure(feature).is_none();
        let namespaces = [
            ("user", Feature::UserNamespace),
            ("mount", Feature::MountNamespace),
            ("pid", Feature::PidNamespace),
            ("net", Feature::NetNamespace),
            ("ipc", Feature::IpcNamespace),
            ("uts", Feature::UtsNamespace),
            ("cgroup", Feature::CgroupNamespace),
            ("time", Feature::TimeNamespace),
        ];
        let enforced = |limit: LimitName| match limit {
            LimitName::Cpu => cgroups.problem(Controller::Cpu).is_none(),
            LimitName::Memory => cgroups.problem(Controller::Memory).is_none(),
            LimitName::Io => cgroups.problem(Controller::Io).is_none(),
            // By rlimit and by looking at the least.
            LimitName::Pids | LimitName::Disk | LimitName::Files => true,
        };
        let supported =
            Feature::ALL.into_iter().all(|feature| crate::native::is_optional(feature) || works(feature));
        Self {
            supported,
            cgroup: cgroups.version(),
            limits: LimitName::iter().filter(|limit| enforced(*limit)).collect(),
            namespaces: namespaces
                .into_iter()
                .filter_map(|(name, feature)| works(feature).then_some(name))
                .collect(),
            landlock: probes.landlock.filter(|abi| *abi >= 2),
            seccomp: works(Feature::Seccomp),
            networks: if supported {
                vec![Network::None, Network::Restricted, Network::Open]
            } else {
                Vec::new()
            },
            interpreters: INTERPRETERS
                .into_iter()
                .filter_map(|name| interpreter(name, system).map(|path| (name, path)))
                .collect(),
        }
    }
}

/// Where an interpreter is inside a unit: on the default path, and leading into the part of the host that is shown.
fn interpreter(name: &str, system: &[(&'static str, Place)]) -> Option<PathBuf> {
    policy::DEFAULT_PATH.split(':').map(|dir| Path::new(dir).join(name)).find(|path| {
        let Ok(real) = path.canonicalize() else { return false };
        system.iter().any(|(shown, place)| *place == Place::Present && real.starts_with(shown))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interpreter_outside_of_what_is_shown_is_none() {
        assert_eq!(interpreter("sh", &[]), None);
        assert!(interpreter("sh", &[("/usr", Place::Present), ("/bin", Place::Present)]).is_some());
        assert_eq!(interpreter("no-such-interpreter", &[("/usr", Place::Present)]), None);
    }
}
