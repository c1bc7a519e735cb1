//! Layers of images: whatever they hold, nothing outside of the new root is made, changed or removed, and what is unpacked has no
//! rights.

#![no_main]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};
use windlass_sandbox::image::{ImageLimits, Source};
use windlass_sandbox::{Images, LocalImage};

const CANARY: &[u8] = b"outside";

struct World {
    dir: tempfile::TempDir,
    images: Images,
    runtime: tokio::runtime::Runtime,
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        // In memory: an image that is unpacked is synchronised, which a disk takes its time for.
        let dir = tempfile::tempdir_in("/dev/shm").expect("a folder can be made");
        for name in ["units", "images", "layout/blobs/sha256"] {
            fs::create_dir_all(dir.path().join(name)).expect("a folder can be made");
        }
        fs::write(dir.path().join("canary"), CANARY).expect("a file can be written");
        let limits = ImageLimits { entries: 200, bytes: 1 << 20, kept: 0, leave_free: 0 };
        let images =
            Images::open(dir.path().join("images"), dir.path().join("units"), limits).expect("it can be opened");
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
        World { dir, images, runtime }
    })
}

/// Looks at what was unpacked; gives how many entries.
fn look(dir: &Path) {
    for entry in fs::read_dir(dir).expect("it can be listed") {
        let entry = entry.expect("it can be listed");
        let found = entry.metadata().expect("it can be inspected");
        if found.is_symlink() {
            continue;
        }
        assert_eq!(found.mode() & 0o7022, 0, "{:?}", entry.path());
        if found.is_dir() {
            look(&entry.path());
        }
    }
}

/// An archive whose headers have the sums that they must have, which no fuzzer finds.
fn with_sums(data: &[u8]) -> Vec<u8> {
    let mut archive = data.to_vec();
    let mut rest = &mut archive[..];
    while rest.len() >= 512 && rest[..512].iter().any(|byte| *byte != 0) {
        rest[148..156].fill(b' ');
        let sum: u32 = rest[..512].iter().map(|byte| u32::from(*byte)).sum();
        rest[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let digits = std::str::from_utf8(&rest[124..136]).unwrap_or_default();
        let size = usize::from_str_radix(digits.trim_matches(['\0', ' ']), 8).unwrap_or(0);
        let next = size.div_ceil(512).saturating_add(1).saturating_mul(512).min(rest.len());
        rest = &mut rest[next..];
    }
    archive
}

fuzz_target!(|data: &[u8]| {
    let layer = with_sums(data);
    let World { dir, images, runtime } = world();
    let dir = dir.path();
    let mut blobs = Vec::new();
    let mut blob = |bytes: &[u8]| {
        let hex = hex::encode(Sha256::digest(bytes));
        let path = dir.join("layout/blobs/sha256").join(&hex);
        fs::write(&path, bytes).expect("a blob can be written");
        blobs.push(path);
        format!("sha256:{hex}")
    };
    // Only what is at its digest is read, so the fuzzer does not have to find one. Laid over itself: what it takes away is then
    // there.
    let layer = blob(&layer);
    let digests = [&layer, &layer];
    let (os, architecture) = ("linux", if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" });
    let config = serde_json::json!({"os": os, "architecture": architecture, "rootfs": {"diff_ids": digests}});
    let config = blob(config.to_string().as_bytes());
    let media_type = "application/vnd.oci.image.layer.v1.tar";
    let layers: Vec<_> =
        digests.iter().map(|digest| serde_json::json!({"mediaType": media_type, "digest": digest})).collect();
    let manifest = serde_json::json!({
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config}, "layers": layers
    });
    let manifest = blob(manifest.to_string().as_bytes());
    let index = serde_json::json!({
        "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest}]
    });
    fs::write(dir.join("layout/index.json"), index.to_string()).expect("an index can be written");
    let image =
        LocalImage { source: Source::OciLayout, path: dir.join("layout"), name: None, digest: None };
    if let Ok(unpacked) = runtime.block_on(images.ensure(&image, None, |_| {})) {
        look(&unpacked.dir);
        fs::remove_dir_all(unpacked.dir.parent().expect("a root is in a folder")).expect("it can be removed");
    }
    for blob in blobs {
        fs::remove_file(blob).expect("a blob can be removed");
    }
    assert_eq!(fs::read(dir.join("canary")).expect("it is still there"), CANARY);
    let mut left: Vec<_> = fs::read_dir(dir).expect("it can be listed").map(|entry| entry.expect("it is").file_name()).collect();
    left.sort();
    assert_eq!(left, ["canary", "images", "layout", "units"]);
    assert_eq!(fs::read_dir(dir.join("images")).expect("it can be listed").count(), 0, "something is left");
});
