//! Graphics processors: found by the kernel's list of PCI devices, so that those without a display count too, and described by
//! their drivers: AMD's publishes memory and model in the device's folder, Nvidia's by the program that comes with it.
//!
//! A program is asked instead of Nvidia's library, because a driver that hangs would take a thread of the agent with it for ever,
//! and a program can be killed. Proven on recorded folders and a program that stands in; unproven on hardware.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use windlass_crds::protocol::{Gpu, GpuDevice};

/// How long Nvidia's program may take; it wakes the driver, which takes some seconds where nothing else uses it.
const PATIENCE: Duration = Duration::from_secs(20);
/// Classes of PCI devices that are graphics processors: with a display, without one, and others.
const CLASSES: [&str; 3] = ["0x0300", "0x0302", "0x0380"];
/// What Nvidia's program is asked for.
const QUERY: [&str; 2] = ["--query-gpu=pci.bus_id,name,memory.total", "--format=csv,noheader,nounits"];

/// Where to look.
#[derive(Clone, Debug)]
pub(super) struct GpuProbe {
    /// The kernel's list of PCI devices.
    pub(super) devices: PathBuf,
    /// Nvidia's program.
    pub(super) nvidia_smi: PathBuf,
}

impl Default for GpuProbe {
    fn default() -> Self {
        Self { devices: "/sys/bus/pci/devices".into(), nvidia_smi: "nvidia-smi".into() }
    }
}

/// Model and MiB of memory, by PCI address.
type Described = BTreeMap<String, (String, u64)>;

/// A processor as the kernel lists it.
struct Found {
    address: String,
    vendor: &'static str,
    folder: PathBuf,
    device_id: Option<String>,
}

impl GpuProbe {
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
        let mut asked: Option<Result<Described, String>> = None;
        for one in found {
            let driver = std::fs::read_link(one.folder.join("driver")).ok();
            let driver =
                driver.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
            let Some(driver) = driver else {
                problems.push(format!(
                    "GPU {} ({}) has no driver; install its vendor's",
                    one.address, one.vendor
                ));
                continue;
            };
            if ["vfio-pci", "nouveau", "pci-stub"].contains(&driver.as_str()) {
                let message = format!(
                    "GPU {} ({}) is bound to the driver {driver} and cannot compute here",
                    one.address, one.vendor
                );
                problems.push(message);
                continue;
            }
            let read = |name: &str| {
                let text = std::fs::read_to_string(one.folder.join(name)).ok()?;
                Some(text.trim().to_owned()).filter(|text| !text.is_empty())
            };
            let mut device = GpuDevice {
                vendor: Some(one.vendor.to_owned()),
                model: read("product_name"),
                device_id: one.device_id.clone(),
                vram_mb: read("mem_info_vram_total")
                    .and_then(|bytes| bytes.parse::<u64>().ok())
                    .map(|bytes| bytes >> 20),
            };
            if driver == "nvidia" {
                if asked.is_none() {
                    asked = Some(self.ask_nvidia().await);
                }
                // Why it could not be asked is said once, below.
                if let Some(Ok(answers)) = &asked {
                    match answers.get(&one.address) {
                        Some((model, memory)) => {
                            device.model = Some(model.clone());
                            device.vram_mb = Some(*memory);
                        }
                        None => problems
                            .push(format!("GPU {}: nvidia-smi does not list it; see `dmesg`", one.address)),
                    }
                }
            }
            if one.vendor == "amd" && device.vram_mb.is_none() {
                problems.push(format!("GPU {}: the driver {driver} does not tell its memory", one.address));
            }
            devices.push(device);
        }
        if let Some(Err(problem)) = asked {
            problems.push(format!("GPUs of Nvidia: their memory is not known: {problem}"));
        }
        (Some(Gpu { present: !devices.is_empty(), devices }), problems)
    }

    /// Model and MiB of memory of each of Nvidia's processors, by PCI address.
    async fn ask_nvidia(&self) -> Result<Described, String> {
        let name = self.nvidia_smi.display();
        let child = Command::new(&self.nvidia_smi)
            .args(QUERY)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("{name} cannot be started: {error}; it comes with the driver"))?;
        let output = match tokio::time::timeout(PATIENCE, child.wait_with_output()).await {
            Ok(Ok(output)) => output,
            Ok(Err(error)) => return Err(format!("{name} cannot be read: {error}")),
            Err(_elapsed) => return Err(format!("{name} does not answer within {} s", PATIENCE.as_secs())),
        };
        let stdout = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let said = stdout.lines().chain(stderr.lines()).map(str::trim).find(|line| !line.is_empty());
            return Err(format!(
                "{name} ended with {}: {}",
                output.status,
                said.unwrap_or("it said nothing")
            ));
        }
        stdout
            .lines()
            .filter(|line| !line.trim().is_empty())
            .map(|line| {
                read_line(line).ok_or_else(|| format!("{name} says {line:?}, which is not understood"))
            })
            .collect()
    }
}

/// One line of Nvidia's program: an address, whose domain it writes with eight digits and the kernel with four; a model; MiB.
fn read_line(line: &str) -> Option<(String, (String, u64))> {
    let mut parts = line.split(',').map(str::trim);
    let address = parts.next()?.to_ascii_lowercase();
    let (domain, rest) = address.split_once(':')?;
    let domain = u32::from_str_radix(domain, 16).ok()?;
    let model = parts.next()?.to_owned();
    let memory = parts.next()?.parse().ok()?;
    Some((format!("{domain:04x}:{rest}"), (model, memory)))
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
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    struct Host {
        folder: tempfile::TempDir,
        probe: GpuProbe,
    }

    impl Host {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let probe = GpuProbe {
                devices: folder.path().join("devices"),
                nvidia_smi: folder.path().join("nvidia-smi"),
            };
            std::fs::create_dir(&probe.devices).unwrap();
            Self { folder, probe }
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

        /// A program that prints what Nvidia's does.
        fn nvidia_smi(&self, script: &str) {
            let path = self.folder.path().join("nvidia-smi");
            std::fs::write(
                &path,
                format!("#!/bin/sh\n[ \"$*\" = '{}' ] || exit 9\n{script}\n", QUERY.join(" ")),
            )
            .unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
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
        host.device("0000:81:00.0", A10, Some("nvidia"));
        host.device("0000:00:02.0", &[("class", "0x030000"), ("vendor", "0x1234")], Some("bochs-drm"));
        host.device("0000:00:1f.6", &[("class", "0x020000"), ("vendor", "0x8086")], Some("e1000e"));
        host.nvidia_smi("echo '00000000:81:00.0, NVIDIA A10, 23028'");
        let (devices, problems) = host.look().await;
        assert_eq!(
            devices,
            [
                ("amd".to_owned(), Some("Radeon RX 7900 XTX".to_owned()), Some(24560)),
                ("nvidia".to_owned(), Some("NVIDIA A10".to_owned()), Some(23028)),
            ]
        );
        assert_eq!(problems, Vec::<String>::new());
    }

    #[tokio::test]
    async fn what_does_not_work_is_a_reason_and_never_silence() {
        let host = Host::new();
        host.device("0000:01:00.0", A10, Some("nvidia"));
        host.device("0000:02:00.0", A10, None);
        host.device("0000:03:00.0", A10, Some("vfio-pci"));
        // Without the program the processor is there all the same, and its memory is not known.
        let (devices, problems) = host.look().await;
        assert_eq!(devices, [("nvidia".to_owned(), None, None)]);
        for word in
            ["0000:02:00.0 (nvidia) has no driver", "bound to the driver vfio-pci", "cannot be started"]
        {
            assert!(problems.iter().any(|problem| problem.contains(word)), "{word}: {problems:?}");
        }
        for (script, word) in [
            (
                "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18",
                "version mismatch",
            ),
            ("echo nonsense", "not understood"),
            ("echo '00000000:07:00.0, NVIDIA A10, 23028'", "does not list it"),
        ] {
            host.nvidia_smi(script);
            let (devices, problems) = host.look().await;
            assert_eq!(devices.len(), 1);
            assert!(problems.iter().any(|problem| problem.contains(word)), "{word}: {problems:?}");
        }
        assert_eq!(
            GpuProbe { devices: "/nonexistent".into(), ..GpuProbe::default() }.look().await,
            (None, Vec::new())
        );
    }
}
