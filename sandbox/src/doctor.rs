//! Proves each promise of the sandbox on this host by trying it, and says for each lack what to do about it.

use std::time::Duration;

use windlass_launcher::probe::Feature;

use crate::cgroup::Controller;
use crate::driver::{Driver, EndReason, Exit, Stream};
use crate::error::Error;
use crate::lease::{Deadline, Lease};
use crate::native::{Native, is_optional};
use crate::spec::{Limit, UnitId, UnitSpec};
use crate::workspace::Workspace;

/// How to get cgroups.
pub(crate) const CGROUP_FIX: &str = "run the agent as root, or as a systemd service with `Delegate=yes` and \
     `DelegateSubgroup=agent`, or set the cgroup parent to a cgroup that this user may write";
/// How long a trial run may take.
const TRIAL: Duration = Duration::from_secs(20);

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
    }
}

/// Runs all checks. The trial runs use their own units and leave nothing.
pub async fn run(driver: &Native) -> Vec<Check> {
    let mut checks: Vec<Check> =
        Feature::ALL.into_iter().map(|feature| feature_check(driver, feature)).collect();
    checks.push(landlock_check(driver));
    for (id, title, controller) in [
        ("cgroup-cpu", "cpu limit by cgroup", Controller::Cpu),
        ("cgroup-memory", "memory limit by cgroup", Controller::Memory),
        ("cgroup-pids", "pids limit by cgroup", Controller::Pids),
    ] {
        let outcome = match driver.cgroups().problem(controller) {
            None => Outcome::Ok,
            Some(why) => Outcome::Degraded { why: why.to_owned(), fix: CGROUP_FIX.to_owned() },
        };
        checks.push(Check { id, title, outcome });
    }
    checks.push(run_check(driver).await);
    for (id, title, command, package) in [
        ("bash", "bash in the sandbox", ["bash", "-c", "echo $((40 + 2))"], "bash"),
        ("python3", "Python 3 in the sandbox", ["python3", "-c", "print(40 + 2)"], "python3"),
    ] {
        checks.push(interpreter_check(driver, id, title, &command, package).await);
    }
    checks
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

/// Whether a program runs with every limit that the host can enforce.
async fn run_check(driver: &Native) -> Check {
    let outcome = match trial(driver, &["true"], "true").await {
        Ok((exit, _))
            if exit.succeeded() && exit.proof.as_ref().is_some_and(crate::driver::KillProof::holds) =>
        {
            Outcome::Ok
        }
        Ok((exit, _)) => Outcome::Missing {
            why: format!("`true` ended with {}: {}", exit.reason, exit.message.unwrap_or_default()),
            fix: "see the checks above".to_owned(),
        },
        Err(error) => Outcome::Missing { why: chain(&error), fix: "see the checks above".to_owned() },
    };
    Check { id: "run", title: "a program in the sandbox", outcome }
}

/// Whether an interpreter computes inside.
async fn interpreter_check(
    driver: &Native,
    id: &'static str,
    title: &'static str,
    command: &[&str],
    package: &str,
) -> Check {
    let degraded = |why| Outcome::Degraded {
        why,
        fix: format!("install {package} below /usr (`apt-get install {package}` or the like)"),
    };
    let outcome = match trial(driver, command, id).await {
        Ok((exit, output)) if exit.succeeded() && output.trim_ascii() == b"42" => Outcome::Ok,
        Ok((exit, _)) if exit.reason == EndReason::Exited && exit.code == Some(127) => {
            degraded("it is not below /usr".to_owned())
        }
        Ok((exit, output)) => degraded(format!(
            "it ended with {} and printed {:?}",
            exit.reason,
            String::from_utf8_lossy(&output)
        )),
        Err(error) => degraded(chain(&error)),
    };
    Check { id, title, outcome }
}

/// Runs a command in a unit of its own; gives its exit and what it printed.
async fn trial(driver: &Native, command: &[&str], name: &str) -> Result<(Exit, Vec<u8>), Error> {
    let root = driver.config().state_dir.join("doctor");
    let owner = format!("doctor-{name}");
    let id = UnitId::new(format!("doctor.{name}"))?;
    std::fs::create_dir_all(&root).map_err(Error::io("create", &root))?;
    // What a trial that was cut short has left.
    driver.cleanup(&id).await?;
    Workspace::remove(&root, &owner)?;
    let identity = driver.identities().acquire(&owner)?;
    let workspace = Workspace::create(&root, &owner, identity)?;
    let lease = Lease::create(root.join(format!("{owner}.lease")), Deadline::after(TRIAL))?;
    let command = command.iter().map(|word| (*word).to_owned()).collect();
    let mut unit =
        UnitSpec::new(id.clone(), command, workspace.path().to_owned(), identity, lease.path().to_owned());
    unit.timeout = Some(TRIAL);
    unit.limits.memory_bytes = Some(Limit::default_value(256 << 20));
    unit.limits.cpu_millis = Some(Limit::default_value(1000));
    unit.limits.pids = Some(Limit::default_value(64));
    let result = observe(driver, &unit).await;
    driver.cleanup(&id).await?;
    Workspace::remove(&root, &owner)?;
    std::fs::remove_file(lease.path()).map_err(Error::io("remove", lease.path()))?;
    driver.identities().release(&owner)?;
    result
}

/// Runs a unit to its end.
async fn observe(driver: &Native, unit: &UnitSpec) -> Result<(Exit, Vec<u8>), Error> {
    driver.prepare(unit).await?;
    driver.start(&unit.id).await?;
    let exit = driver.wait(&unit.id).await?;
    let mut output = Vec::new();
    let mut reader = driver.output(&unit.id, 0);
    while let Some(chunk) = reader.next().await? {
        match chunk.stream {
            Stream::Stdout => output.extend_from_slice(&chunk.bytes),
            Stream::Stderr => {}
        }
    }
    Ok((exit, output))
}

/// An error and its causes in one line.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}
