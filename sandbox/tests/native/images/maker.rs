//! Images made here, as builders make them and as nobody should.

use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// A layer that is being written.
pub(crate) struct Layer(Builder<Vec<u8>>);

impl Layer {
    pub(crate) fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    /// An entry whose name is written as it is, however it looks.
    fn entry(
        mut self,
        path: impl AsRef<[u8]>,
        kind: EntryType,
        mode: u32,
        target: &str,
        content: &[u8],
    ) -> Self {
        let path = path.as_ref();
        let mut header = Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path);
        header.as_gnu_mut().unwrap().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(4711);
        header.set_gid(4712);
        header.set_mtime(1_000_000_000);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    pub(crate) fn dir(self, path: &str) -> Self {
        self.entry(path, EntryType::Directory, 0o700, "", b"")
    }

    pub(crate) fn file(self, path: impl AsRef<[u8]>, mode: u32, content: impl AsRef<[u8]>) -> Self {
        self.entry(path, EntryType::Regular, mode, "", content.as_ref())
    }

    pub(crate) fn link(self, path: &str, target: &str) -> Self {
        self.entry(path, EntryType::Symlink, 0o777, target, b"")
    }

    pub(crate) fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(path, EntryType::Link, 0o644, target, b"")
    }

    pub(crate) fn special(self, path: &str, kind: EntryType) -> Self {
        self.entry(path, kind, 0o666, "", b"")
    }

    /// An extended header in front of the next entry.
    pub(crate) fn noted(mut self, notes: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(notes.iter().copied()).unwrap();
        self
    }

    /// A file that is one hole.
    pub(crate) fn sparse(mut self, path: &str, bytes: u64) -> Self {
        let mut header = Header::new_gnu();
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..path.len()].copy_from_slice(path.as_bytes());
        // The end is marked by a piece without data; the size is larger than octal digits hold.
        let number = |field: &mut [u8; 12], value: u64| {
            field[0] = 0x80;
            field[4..].copy_from_slice(&value.to_be_bytes());
        };
        number(&mut gnu.sparse[0].offset, bytes);
        number(&mut gnu.sparse[0].numbytes, 0);
        number(&mut gnu.realsize, bytes);
        header.set_entry_type(EntryType::GNUSparse);
        header.set_mode(0o644);
        header.set_size(0);
        header.set_cksum();
        self.0.append(&header, std::io::empty()).unwrap();
        self
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }

    /// BusyBox under many names.
    pub(crate) fn busybox() -> Self {
        let program = fs::read("/usr/bin/busybox").expect("tests need busybox-static");
        let mut layer = Self::new().dir("bin/").file("bin/busybox", 0o4755, program);
        for name in ["sh", "cat", "id", "ls", "pwd", "true", "touch", "stat", "grep", "env", "hostname"] {
            layer = layer.hard_link(&format!("bin/{name}"), "bin/busybox");
        }
        layer
    }
}

/// An image that is being made.
pub(crate) struct Image {
    pub(crate) layers: Vec<Vec<u8>>,
    pub(crate) config: Value,
    pub(crate) architecture: String,
}

/// How the layers of a layout are packed.
#[derive(Clone, Copy)]
pub(crate) enum Packed {
    Plain,
    Gzip,
    Zstd,
}

pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

impl Image {
    pub(crate) fn of(layers: impl IntoIterator<Item = Layer>) -> Self {
        let layers = layers.into_iter().map(Layer::bytes).collect();
        Self { layers, config: json!({}), architecture: architecture().to_owned() }
    }

    /// BusyBox with a file that says so.
    pub(crate) fn busybox() -> Self {
        Self::of([Layer::busybox().file("marker", 0o600, "from the image\n")])
    }

    pub(crate) fn configured(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    pub(crate) fn config_file(&self) -> Vec<u8> {
        let diff_ids: Vec<String> =
            self.layers.iter().map(|layer| format!("sha256:{}", sha256(layer))).collect();
        let rootfs = json!({"type": "layers", "diff_ids": diff_ids});
        json!({"architecture": self.architecture, "os": "linux", "config": self.config, "rootfs": rootfs})
            .to_string()
            .into_bytes()
    }

    /// The digest that everything knows it by.
    pub(crate) fn id(&self) -> String {
        format!("sha256:{}", sha256(&self.config_file()))
    }

    /// Writes it as Docker does.
    pub(crate) fn docker_archive(&self, path: &Path, tags: &[&str]) {
        let config = self.config_file();
        let config_name = format!("{}.json", sha256(&config));
        let mut names = Vec::new();
        let mut archive = Layer::new().file(&config_name, 0o444, &config);
        for (index, layer) in self.layers.iter().enumerate() {
            // As it writes them: the content under one name, and a link beside the old form of metadata.
            let (name, link) = (format!("{}.tar", sha256(layer)), format!("old-{index}/layer.tar"));
            archive = archive.file(&name, 0o444, layer).link(&link, &format!("../{name}"));
            names.push(if index % 2 == 0 { name } else { link });
        }
        let manifest = json!([{"Config": config_name, "RepoTags": tags, "Layers": names}]);
        archive = archive.file("manifest.json", 0o444, manifest.to_string());
        fs::write(path, archive.bytes()).unwrap();
    }

    /// Writes it as an OCI layout; gives the digest of its manifest.
    pub(crate) fn layout(&self, dir: &Path, packed: Packed, name: Option<&str>) -> String {
        self.layout_with(dir, packed, name, |_| {})
    }

    /// The same with a manifest that somebody has changed.
    pub(crate) fn layout_with(
        &self,
        dir: &Path,
        packed: Packed,
        name: Option<&str>,
        change: impl FnOnce(&mut Value),
    ) -> String {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let blob = |media_type: &str, bytes: &[u8]| {
            fs::write(blobs.join(sha256(bytes)), bytes).unwrap();
            json!({"mediaType": media_type, "digest": format!("sha256:{}", sha256(bytes)), "size": bytes.len()})
        };
        let layer_type = "application/vnd.oci.image.layer.v1.tar";
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| match packed {
                Packed::Plain => blob(layer_type, layer),
                Packed::Gzip => blob(&format!("{layer_type}+gzip"), &gzip(layer)),
                Packed::Zstd => {
                    // A frame without data follows, as builders write a table of contents.
                    let mut bytes = compress_to_vec(&**layer, CompressionLevel::Fastest);
                    bytes.extend([0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
                    blob(&format!("{layer_type}+zstd"), &bytes)
                }
            })
            .collect();
        let config = blob("application/vnd.oci.image.config.v1+json", &self.config_file());
        let mut manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        change(&mut manifest);
        let mut entry = blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
        let digest = entry["digest"].as_str().unwrap().to_owned();
        if let Some(name) = name {
            entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        }
        // Several images can be in one layout.
        let index = fs::read(dir.join("index.json")).map_or_else(
            |_| json!({"schemaVersion": 2, "manifests": []}),
            |index| serde_json::from_slice(&index).unwrap(),
        );
        let mut index: Value = index;
        index["manifests"].as_array_mut().unwrap().push(entry);
        fs::write(dir.join("index.json"), index.to_string()).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        digest
    }
}

/// Packs a layout into an archive.
pub(crate) fn archive_of(layout: &Path) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    builder.append_dir_all(".", layout).unwrap();
    builder.into_inner().unwrap()
}
