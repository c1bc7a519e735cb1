//! Proves each promise of the sandbox on this host by trying it, and says for each lack what to do about it.

mod trials;

use windlass_launcher::probe::Feature;

use crate::cgroup::Controller;
use crate::native::{Native, is_optional};

/// How to get cgroups.
const CGROUP_FIX: &str = "run the agent as root, or as a systemd service with `Delegate=yes` and \
     `DelegateSubgroup=agent` (systemd 254), or name a cgroup that this user may write by `--cgroup-parent`";

/// How a check came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// As promised.
    Ok,
    /// Units run, but something is weaker or missing.
    Degraded {
        /// What is weaker.
        why: String,
        /// What to do about it.
        fix: String,
    },
    /// Units do not run.
    Missing {
        /// What is missing.
        why: String,
        /// What to do about it.
        fix: String,
    },
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// A stable word.
    pub id: &'static str,
    /// What was checked, for people.
    pub title: &'static str,
    /// How it came out.
    pub outcome: Outcome,
}

/// What a feature is called.
pub(crate) fn title(feature: Feature) -> &'static str {
    match feature {
        Feature::UserNamespace => "user namespaces",
        Feature::MountNamespace => "mount namespaces",
        Feature::PidNamespace => "pid namespaces",
        Feature::NetNamespace => "network namespaces",
        Feature::IpcNamespace => "IPC namespaces",
        Feature::UtsNamespace => "host name namespaces",
        Feature::CgroupNamespace => "cgroup namespaces",
        Feature::TimeNamespace => "time namespaces",
        Feature::MountCalls => "the mount calls of Linux 5.12",
        Feature::FreshProc => "a fresh /proc",
        Feature::NoNewPrivileges => "no_new_privs",
        Feature::Seccomp => "seccomp filters",
        Feature::SeccompNotification => "seccomp filters that name what they deny",
    }
}

/// A stable word for a feature.
fn word(feature: Feature) -> &'static str {
    match feature {
        Feature::UserNamespace => "user-namespace",
        Feature::MountNamespace => "mount-namespace",
        Feature::PidNamespace => "pid-namespace",
        Feature::NetNamespace => "net-namespace",
        Feature::IpcNamespace => "ipc-namespace",
        Feature::UtsNamespace => "uts-namespace",
        Feature::CgroupNamespace => "cgroup-namespace",
        Feature::TimeNamespace => "time-namespace",
        Feature::MountCalls => "mount-calls",
        Feature::FreshProc => "fresh-proc",
        Feature::NoNewPrivileges => "no-new-privs",
        Feature::Seccomp => "seccomp",
        Feature::SeccompNotification => "seccomp-notification",
    }
}

/// What to do where a feature is missing.
pub(crate) fn fix(feature: Feature) -> &'static str {
    match feature {
        Feature::UserNamespace => {
            "user namespaces for this user: `sysctl -w user.max_user_namespaces=65536`; on Debian before 11 \
             `sysctl -w kernel.unprivileged_userns_clone=1`; on Ubuntu from 23.10 \
             `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0` or an AppArmor profile; in a container \
             `--security-opt seccomp=unconfined`"
        }
        Feature::MountNamespace
        | Feature::PidNamespace
        | Feature::NetNamespace
        | Feature::IpcNamespace
        | Feature::UtsNamespace
        | Feature::CgroupNamespace => {
            "this kind of namespace: a kernel with CONFIG_NAMESPACES, and a limit above zero in /proc/sys/user/"
        }
        Feature::TimeNamespace => "time namespaces: Linux 5.6 with CONFIG_TIME_NS",
        Feature::MountCalls => "Linux 5.12 or newer",
        Feature::FreshProc => {
            "a /proc without masks: in a container `--security-opt systempaths=unconfined`, or run the agent on the host"
        }
        Feature::NoNewPrivileges => "Linux 3.5 or newer",
        Feature::Seccomp => "a kernel with CONFIG_SECCOMP_FILTER",
        Feature::SeccompNotification => {
            "run the agent outside of a container whose manager takes seccomp notifications (LXD and Incus do); without \
             them a step that makes a call which is never allowed ends as `Signalled`"
        }
    }
}

/// Runs all checks. The trial runs use their own units and leave nothing.
pub async fn run(driver: &Native) -> Vec<Check> {
    let mut checks = known(driver);
    checks.extend(trials::run(driver, &checks).await);
    checks
}

/// The checks that need no trial run: what the driver has found out by itself.
#[must_use]
pub fn known(driver: &Native) -> Vec<Check> {
    let mut checks: Vec<Check> =
        Feature::ALL.into_iter().map(|feature| feature_check(driver, feature)).collect();
    checks.push(landlock_check(driver));
    for (id, title, controller) in [
        ("cgroup-cpu", "a cgroup for the cpu limit", Controller::Cpu),
        ("cgroup-memory", "a cgroup for the memory limit", Controller::Memory),
        ("cgroup-pids", "a cgroup for the pids limit", Controller::Pids),
        ("cgroup-io", "a cgroup for the io limits", Controller::Io),
    ] {
        let outcome = match driver.cgroups().problem(controller) {
            None => Outcome::Ok,
            Some(why) => Outcome::Degraded { why: why.to_owned(), fix: cgroup_fix(controller, why) },
        };
        checks.push(Check { id, title, outcome });
    }
    checks
}

/// What to do about a cgroup controller that cannot be used.
pub(crate) fn cgroup_fix(controller: Controller, why: &str) -> String {
    match controller {
        Controller::Io if why.contains("block device") => {
            "keep the state folder on a disk, by `--state-dir PATH`, or name no io limits".to_owned()
        }
        Controller::Io => format!(
            "{CGROUP_FIX}; for a user's own service also `Delegate=cpu io memory pids` of user@.service"
        ),
        Controller::Cpu | Controller::Memory | Controller::Pids => CGROUP_FIX.to_owned(),
    }
}

/// The outcome of a probe.
fn feature_check(driver: &Native, feature: Feature) -> Check {
    let outcome = match driver.probes().failure(feature) {
        None => Outcome::Ok,
        Some(error) => {
            let (why, fix) = (format!("trying failed: {error}"), fix(feature).to_owned());
            if is_optional(feature) { Outcome::Degraded { why, fix } } else { Outcome::Missing { why, fix } }
        }
    };
    Check { id: word(feature), title: title(feature), outcome }
}

/// Whether Landlock is used.
fn landlock_check(driver: &Native) -> Check {
    let outcome = match driver.features().landlock {
        Some(_) => Outcome::Ok,
        None => Outcome::Degraded {
            why: "writing is restricted by mounts alone".to_owned(),
            fix: "Linux 5.19 with CONFIG_SECURITY_LANDLOCK and `landlock` in the `lsm=` kernel parameter"
                .to_owned(),
        },
    };
    Check { id: "landlock", title: "Landlock", outcome }
}
