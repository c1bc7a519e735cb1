//! What the operating system says of the host.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use windlass_crds::protocol::{Compute, Gpu, GpuDevice, Platform};

/// What the operating system says of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// The operating system.
    pub platform: Platform,
    /// Processor, memory and disk.
    pub compute: Compute,
    /// Graphics processors; `None` where it is not known whether there are any.
    pub gpu: Option<Gpu>,
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
}

impl SystemHost {
    /// `state` is the folder whose free space is reported.
    pub fn new(state: impl Into<PathBuf>) -> Self {
        Self { state: state.into() }
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
            gpu: graphics(Path::new("/sys/class/drm")),
        }
    }
}

#[async_trait]
impl HostProbe for SystemHost {
    async fn look(&self) -> HostFacts {
        let this = self.clone();
        match tokio::task::spawn_blocking(move || this.look_now()).await {
            Ok(facts) => facts,
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

/// The graphics processors that have a driver, by the kernel's list of display devices. `None` where the kernel has no
/// such list. Memory is known for drivers that publish it there (amdgpu).
fn graphics(drm: &Path) -> Option<Gpu> {
    let mut cards: Vec<PathBuf> = std::fs::read_dir(drm)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            // `card0` is a device, `card0-HDMI-A-1` a plug on it.
            let name =
                path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("card"));
            name.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
        })
        .collect();
    cards.sort();
    let devices: Vec<GpuDevice> =
        cards.iter().filter_map(|card| graphics_device(&card.join("device"))).collect();
    Some(Gpu { present: !devices.is_empty(), devices })
}

fn graphics_device(device: &Path) -> Option<GpuDevice> {
    let read =
        |name: &str| std::fs::read_to_string(device.join(name)).ok().map(|text| text.trim().to_owned());
    // A virtual display has no vendor of graphics processors and cannot compute.
    let vendor = match read("vendor")?.as_str() {
        "0x10de" => "nvidia",
        "0x1002" => "amd",
        "0x8086" => "intel",
        _ => return None,
    };
    let bytes: Option<u64> = read("mem_info_vram_total").and_then(|text| text.parse().ok());
    Some(GpuDevice {
        vendor: Some(vendor.to_owned()),
        model: read("product_name").filter(|name| !name.is_empty()),
        device_id: read("device"),
        vram_mb: bytes.map(|bytes| bytes >> 20),
    })
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

    #[test]
    fn graphics_are_read_from_the_kernels_list() {
        let drm = tempfile::tempdir().unwrap();
        let file = |path: &str, text: &str| {
            let path = drm.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(graphics(drm.path()), Some(Gpu::default()));
        file("card0/device/vendor", "0x1002\n");
        file("card0/device/device", "0x744c\n");
        file("card0/device/mem_info_vram_total", "25753026560\n");
        file("card0-HDMI-A-1/device/vendor", "0x1002\n");
        file("card1/device/vendor", "0x10de\n");
        file("card2/device/vendor", "0x1234\n");
        let gpu = graphics(drm.path()).unwrap();
        assert!(gpu.present);
        let vendors: Vec<_> = gpu.devices.iter().map(|device| device.vendor.as_deref().unwrap()).collect();
        assert_eq!(vendors, ["amd", "nvidia"]);
        assert_eq!(gpu.devices[0].vram_mb, Some(24560));
        assert_eq!(gpu.devices[0].device_id.as_deref(), Some("0x744c"));
        assert_eq!(graphics(&drm.path().join("missing")), None);
    }
}
