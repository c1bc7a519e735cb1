//! The container engines of this host: found by asking, and told in the words of the protocol.

use std::path::{Path, PathBuf};

use windlass_crds::protocol::{ContainerRuntime, EngineCapability, SandboxCapability};
use windlass_sandbox::engine::probe::{self, Probed};
use windlass_sandbox::engine::{Containers, ContainersConfig, EngineKind, Engines};

/// The engines that work, with their state below `state`, each noted in `capability`, as is each one that does not work but
/// should: one whose socket was named, or is there.
pub(super) async fn open(
    state: &Path,
    launcher: &Path,
    sockets: [(EngineKind, Option<PathBuf>); 2],
    capability: &mut SandboxCapability,
) -> Engines {
    let [one, other] = sockets.map(|(kind, named)| async move {
        let default = probe::default_socket(kind);
        match named {
            Some(socket) => Some(probe::probe(kind, &socket).await),
            None if default.exists() => Some(probe::probe(kind, &default).await),
            None => None,
        }
    });
    let probed = tokio::join!(one, other);
    let mut engines = Vec::new();
    for Probed { kind, socket, answer } in [probed.0, probed.1].into_iter().flatten() {
        let opened = answer.and_then(|info| {
            let config = ContainersConfig {
                kind,
                socket,
                state_dir: state.join("containers").join(kind.to_string()),
                launcher: launcher.to_owned(),
            };
            Containers::open(config, info).map_err(|error| crate::error_chain(&error))
        });
        match opened {
            Ok(containers) => {
                tracing::info!(engine = %kind, version = containers.info().version, "container engine found");
                note(&containers, capability);
                engines.push(containers);
            }
            Err(why) => {
                tracing::warn!(engine = %kind, error = why, "container engine cannot be used");
                capability.lacks.push(format!("{kind}: {why}"));
            }
        }
    }
    Engines::new(engines)
}

/// Notes an engine that works.
fn note(containers: &Containers, capability: &mut SandboxCapability) {
    let (kind, info) = (containers.kind().to_string(), containers.info());
    capability.supported = true;
    capability.runtimes.push(kind.clone());
    for network in ["None", "Restricted", "Open"] {
        if !capability.networks.iter().any(|known| known == network) {
            capability.networks.push(network.to_owned());
        }
    }
    capability.engines.push(EngineCapability {
        engine: kind,
        version: info.version.clone(),
        rootless: info.rootless,
        storage: info.storage.clone(),
        runtimes: info.runtimes.clone(),
        limits: info.limits().iter().map(ToString::to_string).collect(),
    });
}

/// Whether this host lets an engine of an ordinary user map other users: the kernel has user namespaces, and the program that
/// maps is there.
fn can_be_rootless() -> bool {
    let allowed = std::fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    let maps = ["/usr/bin/newuidmap", "/bin/newuidmap"].iter().any(|path| Path::new(path).exists());
    allowed.trim().parse().is_ok_and(|most: u64| most > 0) && maps
}

/// The first engine, as reports to others than our controller know it.
pub(crate) fn first(capability: &SandboxCapability) -> Option<ContainerRuntime> {
    let engine = capability.engines.first()?;
    Some(ContainerRuntime {
        runtime: engine.engine.clone(),
        version: Some(engine.version.clone()),
        rootless_supported: Some(engine.rootless || can_be_rootless()),
        rootless_enabled: Some(engine.rootless),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_engine_that_is_named_and_does_not_answer_is_a_reason_on_the_node() {
        let state = tempfile::tempdir().unwrap();
        let missing = state.path().join("podman.sock");
        let mut capability = SandboxCapability::default();
        let sockets = [
            (EngineKind::Podman, Some(missing.clone())),
            (EngineKind::Docker, Some(state.path().join("d.sock"))),
        ];
        let engines = open(state.path(), Path::new("/proc/self/exe"), sockets, &mut capability).await;
        assert!(engines.get(EngineKind::Podman).is_none() && engines.get(EngineKind::Docker).is_none());
        assert_eq!(capability.lacks.len(), 2, "{:?}", capability.lacks);
        assert!(capability.lacks[0].contains(&missing.display().to_string()), "{:?}", capability.lacks);
        assert!(capability.runtimes.is_empty() && first(&capability).is_none());
    }
}
