//! What the operating system says of the host.

use std::path::PathBuf;

use async_trait::async_trait;
use windlass_crds::protocol::{Compute, Gpu, Platform};

use super::gpu::GpuProbe;

/// What the operating system says of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// The operating system.
    pub platform: Platform,
    /// Processor, memory and disk.
    pub compute: Compute,
    /// Graphics processors; `None` where it is not known whether there are any.
    pub gpu: Option<Gpu>,
    /// What could not be found out, and why.
    pub problems: Vec<String>,
}

/// Looks at a host.
#[async_trait]
pub trait HostProbe: Send + Sync + 'static {
    /// What the host is now.
    async fn look(&self) -> HostFacts;
}

/// This host.
#[derive(Clone, Debug)]
pub struct SystemHost {
    state: PathBuf,
    gpus: GpuProbe,
}

impl SystemHost {
    /// `state` is the folder whose free space is reported.
    pub fn new(state: impl Into<PathBuf>) -> Self {
        Self { state: state.into(), gpus: GpuProbe::default() }
    }

    /// Looks for graphics processors in another way.
    #[must_use]
    pub fn with_gpus(self, gpus: GpuProbe) -> Self {
        Self { gpus, ..self }
    }

    fn look_now(&self) -> HostFacts {
        let mut system = sysinfo::System::new();
        system.refresh_memory();
        system.refresh_cpu_list(sysinfo::CpuRefreshKind::nothing());
        let model = system.cpus().first().map(|cpu| cpu.brand().trim().to_owned());
        let distro = match (sysinfo::System::distribution_id(), sysinfo::System::os_version()) {
            (id, Some(version)) => format!("{id} {version}"),
            (id, None) => id,
        };
        let memory = system.cgroup_limits().map_or(system.total_memory(), |limits| limits.total_memory);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let free = rustix::fs::statvfs(&self.state).ok().map(|stat| stat.f_bavail * stat.f_frsize);
        HostFacts {
            platform: Platform {
                os: "linux".to_owned(),
                distro: Some(distro),
                arch: oci_arch(std::env::consts::ARCH).to_owned(),
                kernel_version: sysinfo::System::kernel_version(),
            },
            compute: Compute {
                cpu_model: model.filter(|model| !model.is_empty()),
                cpu_cores: u32::try_from(cores).unwrap_or(u32::MAX),
                ram_mb: memory >> 20,
                storage_free_mb: free.map(|bytes| (bytes >> 30) << 10),
            },
            // Asked for by itself, for it may take a while.
            gpu: None,
            problems: Vec::new(),
        }
    }
}

#[async_trait]
impl HostProbe for SystemHost {
    async fn look(&self) -> HostFacts {
        let this = self.clone();
        let (gpu, problems) = this.gpus.look().await;
        match tokio::task::spawn_blocking(move || this.look_now()).await {
            Ok(facts) => HostFacts { gpu, problems, ..facts },
            // The runtime is going down, and this task with it.
            Err(_) => std::future::pending().await,
        }
    }
}

/// The architecture in the names of OCI images.
fn oci_arch(arch: &str) -> &str {
    match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn this_host_has_a_processor_and_memory() {
        let facts = SystemHost::new("/").look().await;
        assert!(facts.compute.cpu_cores >= 1 && facts.compute.ram_mb > 0, "{facts:?}");
        assert!(facts.compute.storage_free_mb.is_some_and(|free| free % 1024 == 0), "{facts:?}");
        assert!(facts.platform.kernel_version.is_some());
        assert!(["amd64", "arm64"].contains(&facts.platform.arch.as_str()));
    }
}
