//! From specification to container: the policy of a native unit in the words of an engine. Pure: what it needs to know of
//! the host is in [`Host`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Bind, ContainerPlan, LABEL_OWNER, LABEL_UNIT, PlannedNetwork, Users};
use crate::egress;
use crate::error::Error;
use crate::policy::DEFAULT_PATH;
use crate::spec::{Container, HANDED, Network, UnitSpec};

/// Where the workspace is inside.
pub(crate) const WORKSPACE: &str = "/workspace";
/// The private home folder of programs that no image has a word for.
const HOME: &str = "/home/job";
/// As for native units.
const OOM_SCORE_ADJ: i32 = 500;
/// The share of the processor that a weight of 100 stands for, in the engines' figures.
const SHARES_OF_100: u64 = 1024;

/// What the plan depends on.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// The value of [`LABEL_OWNER`].
    pub(crate) owner: String,
    /// Whether the engine works without root.
    pub(crate) rootless: bool,
    /// The most open files that this process could have.
    pub(crate) open_files: u64,
    /// Soft and hard limit of processes.
    pub(crate) processes: (u64, u64),
    /// The environment of the image.
    pub(crate) image_env: Vec<String>,
}

/// The plan for a unit whose network, if it is restricted, is that of `holder`.
///
/// # Errors
/// [`Error::InvalidSpec`], [`Error::Unsupported`].
pub(crate) fn plan(spec: &UnitSpec, container: &Container, host: &Host) -> Result<ContainerPlan, Error> {
    if container.root && !host.rootless {
        return Err(Error::Unsupported {
            feature: "user root inside a container".to_owned(),
            needed: "an engine that works without root, for root inside would be root of the workspace's files outside"
                .to_owned(),
        });
    }
    let (entrypoint, command) = match (&container.entrypoint, spec.command.split_first()) {
        (crate::spec::Entrypoint::Replaced, Some((program, arguments))) => {
            (Some(vec![program.clone()]), arguments.to_vec())
        }
        (crate::spec::Entrypoint::Replaced, None) => {
            return Err(Error::InvalidSpec { field: "command", problem: "must name a program".to_owned() });
        }
        (crate::spec::Entrypoint::Image, _) => (None, spec.command.clone()),
        (crate::spec::Entrypoint::Given(entrypoint), _) => (Some(entrypoint.clone()), spec.command.clone()),
    };
    let limits = &spec.limits;
    let value = |limit: Option<crate::spec::Limit>| limit.map(|limit| limit.value);
    let mut scratch: Vec<(String, u64)> = ["/tmp", "/run", "/var/tmp", HOME]
        .iter()
        .chain(&container.scratch.iter().map(String::as_str).collect::<Vec<_>>())
        .map(|path| ((*path).to_owned(), limits.scratch_bytes))
        .collect();
    scratch.dedup();
    Ok(ContainerPlan {
        name: container_name(&host.owner, spec.id.as_str()),
        image: container.image.clone(),
        entrypoint,
        command,
        env: environment(spec, host),
        cwd: inside(&spec.cwd),
        user: if container.root { (0, 0) } else { (spec.identity.uid, spec.identity.gid) },
        users: if host.rootless && !container.root { Users::Keep } else { Users::Engine },
        hostname: spec.hostname.clone(),
        binds: binds(spec)?,
        scratch,
        read_only_root: container.read_only_root,
        network: match spec.network {
            // The holder's takes its place once there is a holder.
            Network::None | Network::Restricted => PlannedNetwork::None,
            Network::Open => PlannedNetwork::Open,
        },
        cpu_millis: value(limits.cpu_millis),
        cpu_shares: value(limits.cpu_weight).map(|weight| (weight * SHARES_OF_100 / 100).max(2)),
        memory_bytes: value(limits.memory_bytes),
        pids: value(limits.pids),
        open_files: {
            let hard = limits.open_files.min(host.open_files);
            (hard, hard)
        },
        processes: host.processes,
        oom_score_adj: OOM_SCORE_ADJ,
        gpus: container.gpus,
        devices: container.devices.clone(),
        kept_output: 0,
        labels: labels(spec, container, &host.owner),
    })
}

/// The name of a unit's container: that of another agent's unit of the same id on the same engine differs.
pub(crate) fn container_name(owner: &str, unit: &str) -> String {
    format!("windlass-{owner}-{unit}")
}

fn labels(spec: &UnitSpec, container: &Container, owner: &str) -> BTreeMap<String, String> {
    let mut labels = container.labels.clone();
    labels.insert(LABEL_OWNER.to_owned(), owner.to_owned());
    labels.insert(LABEL_UNIT.to_owned(), spec.id.to_string());
    labels
}

/// The environment: what is declared, over that of the image, and what is left then.
fn environment(spec: &UnitSpec, host: &Host) -> BTreeMap<String, String> {
    let mut environment = spec.env.clone();
    let of_image = |name: &str| {
        host.image_env.iter().any(|entry| entry.split_once('=').is_some_and(|(known, _)| known == name))
    };
    for (name, value) in [("PATH", DEFAULT_PATH), ("HOME", HOME), ("USER", "job"), ("LANG", "C.UTF-8")] {
        // An engine puts a variable of its own in place of a home folder that nobody names.
        if !of_image(name) || name == "HOME" {
            environment.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        }
    }
    if spec.network == Network::Restricted {
        for (name, value) in egress::environment() {
            environment.entry(name).or_insert(value);
        }
    }
    environment
}

/// The workspace, and in it what the job mounts. Other places belong to the image.
fn binds(spec: &UnitSpec) -> Result<Vec<Bind>, Error> {
    let workspace = Bind { source: spec.workspace.clone(), target: WORKSPACE.to_owned(), read_only: false };
    let mut binds = vec![workspace];
    for mount in &spec.mounts {
        let target = inside(&mount.target);
        if below_workspace(&target).is_none() {
            return Err(Error::InvalidSpec {
                field: "mounts",
                problem: format!(
                    "{target} is not below {WORKSPACE}; in a container other places belong to the image"
                ),
            });
        }
        binds.push(Bind { source: mount.source.clone(), target, read_only: mount.read_only });
    }
    if let Some(folder) = &spec.handed.folder {
        binds.push(Bind { source: folder.clone(), target: HANDED.to_owned(), read_only: true });
    }
    let odd = |path: &PathBuf| path.to_str().is_none_or(|path| path.contains(':'));
    if let Some(bind) = binds.iter().find(|bind| odd(&bind.source)) {
        let problem = format!("{} is not UTF-8 or has a `:` in it", bind.source.display());
        return Err(Error::InvalidSpec { field: "mounts", problem });
    }
    Ok(binds)
}

/// The part of a path inside that is below the workspace.
pub(crate) fn below_workspace(path: &str) -> Option<&str> {
    path.strip_prefix(WORKSPACE)?.strip_prefix('/').filter(|rest| !rest.is_empty())
}

/// A path inside: absolute, or below the workspace.
pub(crate) fn inside(path: &str) -> String {
    let path = path.trim_end_matches('/');
    if path.starts_with('/') {
        path.to_owned()
    } else if path.is_empty() || path == "." {
        WORKSPACE.to_owned()
    } else {
        format!("{WORKSPACE}/{}", path.trim_start_matches("./"))
    }
}

/// A plan for tests of the engines' words.
#[cfg(test)]
pub(super) fn sample(change: impl FnOnce(&mut ContainerPlan)) -> ContainerPlan {
    let mut plan = ContainerPlan {
        name: "windlass-o-u".to_owned(),
        image: "sha256:1".to_owned(),
        entrypoint: Some(vec!["sh".to_owned()]),
        command: vec!["-c".to_owned(), "true".to_owned()],
        env: [("A".to_owned(), "b".to_owned())].into(),
        cwd: WORKSPACE.to_owned(),
        user: (7000, 7001),
        users: Users::Engine,
        hostname: "job".to_owned(),
        binds: vec![Bind { source: "/state/w".into(), target: WORKSPACE.to_owned(), read_only: false }],
        scratch: vec![("/tmp".to_owned(), 1 << 20)],
        read_only_root: true,
        network: PlannedNetwork::None,
        cpu_millis: Some(1500),
        cpu_shares: None,
        memory_bytes: Some(64 << 20),
        pids: Some(10),
        open_files: (64, 64),
        processes: (100, u64::MAX),
        oom_score_adj: 500,
        gpus: 0,
        devices: Vec::new(),
        kept_output: 0,
        labels: BTreeMap::new(),
    };
    change(&mut plan);
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use crate::spec::{Entrypoint, Limit, Mount, UnitId};

    fn host() -> Host {
        Host {
            owner: "o".to_owned(),
            rootless: false,
            open_files: 1000,
            processes: (50, 60),
            image_env: vec!["PATH=/image/bin".to_owned(), "HOME=/root".to_owned()],
        }
    }

    fn unit() -> (UnitSpec, Container) {
        let id = UnitId::new("u-1-0").unwrap();
        let command = vec!["sh".to_owned(), "-c".to_owned(), "true".to_owned()];
        let identity = Identity { uid: 7000, gid: 7001 };
        let spec = UnitSpec::new(id, command, "/state/w".into(), identity, "/state/l".into());
        (spec, Container::new(super::super::EngineKind::Podman, "sha256:1", "localhost/x:1"))
    }

    #[test]
    fn a_command_takes_the_place_of_the_images_entry_point() {
        let (spec, container) = unit();
        let plan = plan(&spec, &container, &host()).unwrap();
        assert_eq!(plan.entrypoint.unwrap(), ["sh"]);
        assert_eq!(plan.command, ["-c", "true"]);
        assert_eq!((plan.user, plan.users), ((7000, 7001), Users::Engine));
        assert_eq!((plan.open_files, plan.processes), ((1000, 1000), (50, 60)));
        assert!(plan.read_only_root);
        assert_eq!(plan.network, PlannedNetwork::None);
        assert!(!plan.env.contains_key("PATH"), "the image has one");
        assert_eq!(plan.env["HOME"], "/home/job");
        assert_eq!(plan.name, "windlass-o-u-1-0");
        assert_eq!(plan.labels[LABEL_UNIT], "u-1-0");
    }

    #[test]
    fn a_container_step_has_the_images_entry_point_or_one_of_its_own() {
        let (mut spec, mut container) = unit();
        container.entrypoint = Entrypoint::Image;
        spec.command.clear();
        let with_image = plan(&spec, &container, &host()).unwrap();
        assert_eq!((with_image.entrypoint, with_image.command.len()), (None, 0));
        container.entrypoint = Entrypoint::Given(vec!["/bin/x".to_owned()]);
        spec.command = vec!["a".to_owned()];
        let given = plan(&spec, &container, &host()).unwrap();
        assert_eq!(
            (given.entrypoint.unwrap(), given.command),
            (vec!["/bin/x".to_owned()], vec!["a".to_owned()])
        );
    }

    #[test]
    fn root_inside_needs_an_engine_without_root() {
        let (spec, mut container) = unit();
        container.root = true;
        assert_eq!(plan(&spec, &container, &host()).unwrap_err().kind(), "unsupported");
        let rootless = plan(&spec, &container, &Host { rootless: true, ..host() }).unwrap();
        assert_eq!((rootless.user, rootless.users), ((0, 0), Users::Engine));
        container.root = false;
        let kept = plan(&spec, &container, &Host { rootless: true, ..host() }).unwrap();
        assert_eq!(kept.users, Users::Keep);
    }

    #[test]
    fn limits_become_the_engines_figures() {
        let (mut spec, container) = unit();
        spec.limits.cpu_weight = Some(Limit::named(200));
        spec.limits.memory_bytes = Some(Limit::named(1 << 20));
        spec.limits.open_files = 64;
        let plan = plan(&spec, &container, &host()).unwrap();
        assert_eq!(
            (plan.cpu_shares, plan.memory_bytes, plan.open_files),
            (Some(2048), Some(1 << 20), (64, 64))
        );
    }

    #[test]
    fn mounts_stay_below_the_workspace() {
        let (mut spec, container) = unit();
        let mount =
            |target: &str| Mount { source: "/data".into(), target: target.to_owned(), read_only: true };
        spec.mounts = vec![mount("in/data/")];
        let plan_ = plan(&spec, &container, &host()).unwrap();
        assert_eq!(plan_.binds[1].target, "/workspace/in/data");
        for target in ["/etc", "/proc/self", "/workspace", "/workspacex/a"] {
            spec.mounts = vec![mount(target)];
            let error = plan(&spec, &container, &host()).unwrap_err();
            assert!(error.to_string().contains("is not below /workspace"), "{target}: {error}");
        }
        spec.mounts = vec![Mount { source: "/da:ta".into(), ..mount("in") }];
        assert!(plan(&spec, &container, &host()).is_err());
    }
}
