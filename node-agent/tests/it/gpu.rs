//! Nvidia's processors, as the agent's own program finds them out from a library that stands in for Nvidia's.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use windlass_agent::{GpuProbe, HostFacts, HostProbe as _, SystemHost};
use windlass_crds::protocol::{GpuDevice, GpuFeatures};

/// How long the library may take where it does answer.
const PATIENCE: Duration = Duration::from_secs(60);
const A10: &str = "0000:81:00.0";
const H100: &str = "0000:c1:00.0";

/// A host with two of Nvidia's processors, or more.
struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        host.device(A10, "0x2236");
        host.device(H100, "0x2331");
        host
    }

    fn device(&self, address: &str, id: &str) {
        let folder = self.0.path().join("devices").join(address);
        std::fs::create_dir_all(&folder).unwrap();
        for (name, text) in [("class", "0x030200"), ("vendor", "0x10de"), ("device", id)] {
            std::fs::write(folder.join(name), format!("{text}\n")).unwrap();
        }
        symlink("../../../bus/pci/drivers/nvidia", folder.join("driver")).unwrap();
    }

    /// Compiles the library with these definitions.
    fn library(self, definitions: &[&str]) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/gpu/nvml.c");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(self.0.path().join("libnvidia-ml.so.1"))
            .args(definitions)
            .arg(source)
            .output()
            .expect("cc is installed");
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        self
    }

    async fn look(&self, patience: Duration) -> HostFacts {
        let gpus = GpuProbe::new(
            self.0.path().join("devices"),
            env!("CARGO_BIN_EXE_windlass-agent").into(),
            self.0.path().join("libnvidia-ml.so.1").into(),
            patience,
        );
        SystemHost::new(self.0.path()).with_gpus(gpus).look().await
    }

    /// Sees that the two are told without their memory, and why, in words that hold these.
    async fn tells(&self, patience: Duration, words: &[&str]) {
        let HostFacts { gpu, problems, .. } = self.look(patience).await;
        let devices = gpu.expect("the list is there").devices;
        let known: Vec<_> =
            devices.iter().map(|device| (device.device_id.as_deref(), device.vram_mb)).collect();
        assert_eq!(known, [(Some("0x2236"), None), (Some("0x2331"), None)]);
        let [problem] = &problems[..] else { panic!("one reason for all of them: {problems:?}") };
        for word in words.iter().chain(&["GPUs of Nvidia: their memory is not known"]) {
            assert!(problem.contains(word), "{word}: {problem}");
        }
    }
}

/// What the library that stands in says of one.
fn nvidia(model: &str, id: &str, vram_mb: Option<u64>, uuid: &str) -> GpuDevice {
    GpuDevice {
        vendor: Some("nvidia".to_owned()),
        model: Some(model.to_owned()),
        device_id: Some(id.to_owned()),
        vram_mb,
        features: Some(GpuFeatures {
            uuid: Some(uuid.to_owned()),
            driver_version: Some("550.54.15".to_owned()),
            cuda_version: Some("12.4".to_owned()),
        }),
    }
}

fn both(second: Option<u64>) -> [GpuDevice; 2] {
    [
        nvidia("NVIDIA A10", "0x2236", Some(23028), "GPU-11111111-2222-3333-4444-555555555555"),
        nvidia("NVIDIA H100 PCIe", "0x2331", second, "GPU-66666666-7777-8888-9999-000000000000"),
    ]
}

#[tokio::test]
async fn two_processors_are_told_with_their_memory() {
    let HostFacts { gpu, problems, .. } = Host::new().library(&[]).look(PATIENCE).await;
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(gpu.unwrap().devices, both(Some(81559)));
}

#[tokio::test]
async fn one_that_does_not_answer_leaves_the_other() {
    let HostFacts { gpu, problems, .. } = Host::new().library(&["-DLOST"]).look(PATIENCE).await;
    assert_eq!(gpu.unwrap().devices, both(None));
    let [problem] = &problems[..] else { panic!("one reason: {problems:?}") };
    assert!(
        problem.contains(H100) && problem.contains("memory") && problem.contains("reset it"),
        "{problem}"
    );
}

#[tokio::test]
async fn one_that_only_the_kernel_knows_is_told_as_such() {
    let host = Host::new().library(&[]);
    host.device("0000:e1:00.0", "0x20b0");
    let HostFacts { gpu, problems, .. } = host.look(PATIENCE).await;
    assert_eq!(gpu.unwrap().devices.len(), 3);
    assert_eq!(problems, ["GPU 0000:e1:00.0: NVML does not list it; see `dmesg`"]);
}

#[tokio::test]
async fn a_driver_of_another_version_is_a_reason() {
    let host = Host::new().library(&["-DINIT_RESULT=18"]);
    host.tells(PATIENCE, &["driver/library version mismatch", "restart the host"]).await;
}

#[tokio::test]
async fn a_driver_that_is_not_loaded_or_not_allowed_is_a_reason() {
    let host = Host::new().library(&["-DINIT_RESULT=9"]);
    host.tells(PATIENCE, &["driver is not loaded", "kernel module `nvidia`"]).await;
    let host = host.library(&["-DINIT_RESULT=4"]);
    host.tells(PATIENCE, &["does not have permission", "/dev/nvidiactl"]).await;
}

#[tokio::test]
async fn a_missing_library_is_a_reason() {
    let host = Host::new();
    host.tells(
        PATIENCE,
        &["cannot be loaded", "libnvidia-ml.so.1", "No such file", "comes with Nvidia's driver"],
    )
    .await;
    std::fs::write(host.0.path().join("libnvidia-ml.so.1"), "no library").unwrap();
    host.tells(PATIENCE, &["cannot be loaded", "file too short"]).await;
}

#[tokio::test]
async fn a_library_that_hangs_is_killed_and_a_reason() {
    let host = Host::new().library(&["-DHANG"]);
    host.tells(Duration::from_millis(500), &["does not answer within 0.5 s", "dmesg"]).await;
    let left = Command::new("pgrep")
        .args(["-f", &host.0.path().display().to_string()])
        .output()
        .expect("pgrep is installed");
    assert_eq!(String::from_utf8_lossy(&left.stdout), "", "nothing of it is left");
}

#[tokio::test]
async fn a_library_that_crashes_takes_nothing_with_it_and_is_a_reason() {
    let host = Host::new().library(&["-DCRASH"]);
    host.tells(PATIENCE, &["crashed the process that asked it", "SIGSEGV", "dmesg"]).await;
}
