//! Graphics processors: found by the kernel's list of PCI devices, so that those without a display count too, and described by
//! their drivers: AMD's publishes memory and model in the device's folder, Nvidia's by its library, which [`super::nvml`] asks.
//!
//! Proven on recorded folders and a library that stands in; unproven on hardware.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use windlass_crds::protocol::{Gpu, GpuDevice, GpuFeatures};

use super::nvml::{Answer, NvmlProbe};

/// Classes of PCI devices that are graphics processors: with a display, without one, and others.
const CLASSES: [&str; 3] = ["0x0300", "0x0302", "0x0380"];
/// Drivers with which a processor cannot compute.
const IDLE_DRIVERS: [&str; 3] = ["vfio-pci", "nouveau", "pci-stub"];

/// Where to look for graphics processors. Clones are the same.
#[derive(Clone, Debug)]
pub struct GpuProbe {
    /// The kernel's list of PCI devices.
    devices: PathBuf,
    nvml: NvmlProbe,
}

impl Default for GpuProbe {
    fn default() -> Self {
        Self { devices: "/sys/bus/pci/devices".into(), nvml: NvmlProbe::default() }
    }
}

/// A processor as the kernel lists it.
struct Found {
    address: String,
    vendor: &'static str,
    folder: PathBuf,
    device_id: Option<String>,
}

impl Found {
    /// What a file of the device's folder says.
    fn read(&self, name: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.folder.join(name)).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// The driver that it is bound to, if it can compute by it.
    fn driver(&self) -> Result<String, String> {
        let Self { address, vendor, .. } = self;
        let link = std::fs::read_link(self.folder.join("driver")).ok();
        let name = link.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        match name {
            None => Err(format!("GPU {address} ({vendor}) has no driver; install its vendor's")),
            Some(driver) if IDLE_DRIVERS.contains(&driver.as_str()) => Err(format!(
                "GPU {address} ({vendor}) is bound to the driver {driver} and cannot compute here"
            )),
            Some(driver) => Ok(driver),
        }
    }

    /// What the kernel says of it.
    fn device(&self) -> GpuDevice {
        let bytes = self.read("mem_info_vram_total").and_then(|bytes| bytes.parse::<u64>().ok());
        GpuDevice {
            vendor: Some(self.vendor.to_owned()),
            model: self.read("product_name"),
            device_id: self.device_id.clone(),
            vram_mb: bytes.map(|bytes| bytes >> 20),
            features: None,
        }
    }
}

impl GpuProbe {
    /// Looks in another place than the kernel's list, and asks another library than the installed one of Nvidia, for `patience`, by
    /// another program than this one. Its `main` must begin with [`crate::run_if_requested`].
    pub fn new(devices: PathBuf, program: PathBuf, library: OsString, patience: Duration) -> Self {
        Self { devices, nvml: NvmlProbe::new(program, library, patience) }
    }

    /// The graphics processors that can be used, and what is wrong with others. `None` where the kernel has no list.
    pub(super) async fn look(&self) -> (Option<Gpu>, Vec<String>) {
        let mut problems = Vec::new();
        let found = match list(&self.devices) {
            Ok(found) => found,
            // A host without PCI has no such processors that could be told.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return (None, problems),
            Err(error) => {
                problems.push(format!("GPUs: {} cannot be read: {error}", self.devices.display()));
                return (None, problems);
            }
        };
        let mut devices = Vec::new();
        let mut nvidia: Option<Result<Answer, String>> = None;
        for one in found {
            let driver = match one.driver() {
                Ok(driver) => driver,
                Err(problem) => {
                    problems.push(problem);
                    continue;
                }
            };
            let mut device = one.device();
            if driver == "nvidia" {
                if nvidia.is_none() {
                    nvidia = Some(self.nvml.ask().await);
                }
                // Why it could not be asked is said once, below.
                if let Some(Ok(answer)) = &nvidia
                    && let Err(problem) = tell_nvidia(&mut device, &one.address, answer)
                {
                    problems.push(problem);
                }
            }
            if one.vendor == "amd" && device.vram_mb.is_none() {
                problems.push(format!("GPU {}: the driver {driver} does not tell its memory", one.address));
            }
            devices.push(device);
        }
        match nvidia {
            Some(Err(problem)) => {
                problems.push(format!("GPUs of Nvidia: their memory is not known: {problem}"));
            }
            Some(Ok(answer)) => problems.extend(answer.problems),
            None => {}
        }
        (Some(Gpu { present: !devices.is_empty(), devices }), problems)
    }
}

/// Adds what Nvidia's library says of a device.
fn tell_nvidia(device: &mut GpuDevice, address: &str, answer: &Answer) -> Result<(), String> {
    let Some(told) = answer.processors.get(address) else {
        // Why the library could not open one has no address, and is told beside this.
        return Err(format!("GPU {address}: NVML does not list it; see `dmesg`"));
    };
    if told.model.is_some() {
        device.model.clone_from(&told.model);
    }
    device.vram_mb = told.memory_bytes.map(|bytes| bytes >> 20);
    device.features = Some(GpuFeatures {
        uuid: told.uuid.clone(),
        driver_version: answer.driver.clone(),
        cuda_version: answer.cuda.clone(),
    });
    Ok(())
}

fn list(devices: &Path) -> std::io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(devices)? {
        let folder = entry?.path();
        let read =
            |name: &str| std::fs::read_to_string(folder.join(name)).ok().map(|text| text.trim().to_owned());
        let graphics =
            read("class").is_some_and(|class| CLASSES.iter().any(|known| class.starts_with(known)));
        // A virtual display has no vendor of graphics processors and cannot compute.
        let vendor = match read("vendor").as_deref() {
            Some("0x10de") if graphics => "nvidia",
            Some("0x1002") if graphics => "amd",
            Some("0x8086") if graphics => "intel",
            Some(_) | None => continue,
        };
        let address = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let device_id = read("device");
        found.push(Found { address, vendor, folder, device_id });
    }
    found.sort_by(|one, other| one.address.cmp(&other.address));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Host {
        _folder: tempfile::TempDir,
        probe: GpuProbe,
    }

    impl Host {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let devices = folder.path().join("devices");
            std::fs::create_dir(&devices).unwrap();
            let nobody = folder.path().join("nobody");
            let probe = GpuProbe::new(devices, nobody, "library".into(), Duration::from_secs(60));
            Self { _folder: folder, probe }
        }

        fn device(&self, address: &str, files: &[(&str, &str)], driver: Option<&str>) {
            let folder = self.probe.devices.join(address);
            std::fs::create_dir(&folder).unwrap();
            for (name, text) in files {
                std::fs::write(folder.join(name), format!("{text}\n")).unwrap();
            }
            if let Some(driver) = driver {
                symlink(format!("../../../bus/pci/drivers/{driver}"), folder.join("driver")).unwrap();
            }
        }

        async fn look(&self) -> (Vec<(String, Option<String>, Option<u64>)>, Vec<String>) {
            let (gpu, problems) = self.probe.look().await;
            let gpu = gpu.expect("the list is there");
            assert_eq!(gpu.present, !gpu.devices.is_empty());
            let told = |one: GpuDevice| (one.vendor.unwrap(), one.model, one.vram_mb);
            (gpu.devices.into_iter().map(told).collect(), problems)
        }
    }

    const AMD: &[(&str, &str)] = &[
        ("class", "0x030000"),
        ("vendor", "0x1002"),
        ("device", "0x744c"),
        ("mem_info_vram_total", "25753026560"),
        ("product_name", "Radeon RX 7900 XTX"),
    ];
    const A10: &[(&str, &str)] = &[("class", "0x030200"), ("vendor", "0x10de"), ("device", "0x2236")];

    #[tokio::test]
    async fn processors_are_described_by_their_drivers() {
        let host = Host::new();
        host.device("0000:03:00.0", AMD, Some("amdgpu"));
        host.device("0000:00:02.0", &[("class", "0x030000"), ("vendor", "0x1234")], Some("bochs-drm"));
        host.device("0000:00:1f.6", &[("class", "0x020000"), ("vendor", "0x8086")], Some("e1000e"));
        let (devices, problems) = host.look().await;
        assert_eq!(devices, [("amd".to_owned(), Some("Radeon RX 7900 XTX".to_owned()), Some(24560))]);
        assert_eq!(problems, Vec::<String>::new());
    }

    #[tokio::test]
    async fn what_does_not_work_is_a_reason_and_never_silence() {
        let host = Host::new();
        host.device("0000:01:00.0", A10, Some("nvidia"));
        host.device("0000:02:00.0", A10, None);
        host.device("0000:03:00.0", A10, Some("vfio-pci"));
        host.device("0000:04:00.0", &AMD[..3], Some("amdgpu"));
        // Nobody can be asked: the processor is there all the same, and its memory is not known.
        let (devices, problems) = host.look().await;
        assert_eq!(devices, [("nvidia".to_owned(), None, None), ("amd".to_owned(), None, None)]);
        for word in [
            "0000:02:00.0 (nvidia) has no driver",
            "bound to the driver vfio-pci",
            "cannot be started",
            "0000:04:00.0: the driver amdgpu does not tell its memory",
        ] {
            assert!(problems.iter().any(|problem| problem.contains(word)), "{word}: {problems:?}");
        }
        assert_eq!(
            GpuProbe { devices: "/nonexistent".into(), ..GpuProbe::default() }.look().await,
            (None, Vec::new())
        );
    }
}
