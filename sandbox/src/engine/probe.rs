//! Finding out which engines a node has, by asking them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{EngineKind, open};
use crate::spec::LimitName;

/// How long an engine may take to tell about itself. A service that is started by its socket takes a second or two.
const PATIENCE: Duration = Duration::from_secs(20);

/// What an engine says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineInfo {
    /// Its version.
    pub version: String,
    /// Whether it works without root.
    pub rootless: bool,
    /// How it stores images: `overlay`, `vfs`, …
    pub storage: String,
    /// The OCI runtimes that it has.
    pub runtimes: Vec<String>,
    /// `v1` or `v2`.
    pub cgroup: String,
    /// The cgroup controllers that it can use.
    pub controllers: Vec<String>,
}

impl EngineInfo {
    /// The limits that it can enforce. Open files are an attribute of processes, and the workspace is watched from outside.
    #[must_use]
    pub fn limits(&self) -> Vec<LimitName> {
        let mut limits = vec![LimitName::Disk, LimitName::Files];
        for (limit, controller) in
            [(LimitName::Cpu, "cpu"), (LimitName::Memory, "memory"), (LimitName::Pids, "pids")]
        {
            if self.can(controller) {
                limits.push(limit);
            }
        }
        // Without a cgroup the kernel counts the tasks of the container's own user namespace.
        if self.rootless && !limits.contains(&LimitName::Pids) {
            limits.push(LimitName::Pids);
        }
        limits
    }

    /// Whether it can use a controller. Of the older cgroups it lists none, and has them all if it is root.
    pub(crate) fn can(&self, controller: &str) -> bool {
        match self.cgroup.as_str() {
            "v1" => !self.rootless,
            _ => self.controllers.iter().any(|known| known == controller),
        }
    }
}

/// An engine that was looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// Which.
    pub kind: EngineKind,
    /// Where.
    pub socket: PathBuf,
    /// What it says, or why it cannot be used and what to do about it.
    pub answer: Result<EngineInfo, String>,
}

/// Asks the engine behind a socket.
pub async fn probe(kind: EngineKind, socket: &Path) -> Probed {
    let root = rustix::process::geteuid().is_root();
    let ask = async {
        let engine = open(kind, socket, Path::new(""))?;
        engine.info().await
    };
    let answer = match tokio::time::timeout(PATIENCE, ask).await {
        Err(_) => Err(format!(
            "{kind} does not answer on {} within {} s; restart its service",
            socket.display(),
            PATIENCE.as_secs()
        )),
        Ok(Err(error)) => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            Err(format!("{text}; start its service, or name the right socket with --{kind}-socket"))
        }
        Ok(Ok(info)) if info.rootless && root => Err(format!(
            "{kind} on {} works without root for another user than this agent's, root; name the socket of an engine of root \
             with --{kind}-socket, or run the agent as that user",
            socket.display()
        )),
        Ok(Ok(info)) => Ok(info),
    };
    Probed { kind, socket: socket.to_owned(), answer }
}

/// Where the engine's socket is by default, for the user that this process runs as.
#[must_use]
pub fn default_socket(kind: EngineKind) -> PathBuf {
    let user = rustix::process::geteuid();
    match (kind, user.is_root()) {
        (EngineKind::Podman, true) => PathBuf::from("/run/podman/podman.sock"),
        (EngineKind::Podman, false) => {
            PathBuf::from(format!("/run/user/{}/podman/podman.sock", user.as_raw()))
        }
        (EngineKind::Docker, true) => PathBuf::from("/var/run/docker.sock"),
        (EngineKind::Docker, false) => {
            let own = PathBuf::from(format!("/run/user/{}/docker.sock", user.as_raw()));
            if own.exists() { own } else { PathBuf::from("/var/run/docker.sock") }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_follow_from_controllers_and_from_who_the_engine_is() {
        let info = |cgroup: &str, rootless, controllers: &[&str]| EngineInfo {
            cgroup: cgroup.to_owned(),
            rootless,
            controllers: controllers.iter().map(|&name| name.to_owned()).collect(),
            ..EngineInfo::default()
        };
        use LimitName::{Cpu, Disk, Files, Memory, Pids};
        assert_eq!(info("v1", false, &[]).limits(), [Disk, Files, Cpu, Memory, Pids]);
        assert_eq!(info("v1", true, &["memory"]).limits(), [Disk, Files, Pids]);
        assert_eq!(info("v2", true, &["memory", "pids"]).limits(), [Disk, Files, Memory, Pids]);
        assert_eq!(info("v2", false, &["cpu", "memory", "pids"]).limits(), [Disk, Files, Cpu, Memory, Pids]);
    }

    #[tokio::test]
    async fn a_socket_that_nobody_serves_is_a_reason_with_a_fix() {
        let folder = tempfile::tempdir().unwrap();
        for kind in [EngineKind::Podman, EngineKind::Docker] {
            let probed = probe(kind, &folder.path().join("none.sock")).await;
            let reason = probed.answer.unwrap_err();
            assert!(reason.contains("none.sock") && reason.contains(&format!("--{kind}-socket")), "{reason}");
        }
    }
}
