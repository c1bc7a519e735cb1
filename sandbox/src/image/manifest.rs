//! From the documents of an image to its configuration and layers. What is read is checked against its digest before it is
//! believed.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::blobs::Blobs;
use super::{ImageConfig, LocalImage, Source, Trouble};
use crate::error::ImageProblem;

/// Indexes that lie in each other: one for the names, one for the platforms.
const MAX_DEPTH: usize = 3;
/// Layers of an image; engines take 127.
const MAX_LAYERS: usize = 256;

const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFESTS: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
const LAYERS: [&str; 7] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar",
];

/// An image that was found.
pub(super) struct Found {
    /// `sha256:…` of its configuration.
    pub(super) id: String,
    /// All digests that name it.
    digests: Vec<String>,
    pub(super) config: ImageConfig,
    /// The lowest first.
    pub(super) layers: Vec<Layer>,
}

/// A layer.
pub(super) struct Layer {
    /// The part that holds it.
    pub(super) part: String,
    /// The digest of the part, where one is named.
    pub(super) digest: Option<String>,
    /// The digest of its plain form.
    pub(super) plain_digest: String,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    os: String,
    architecture: String,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    config: Option<RunConfig>,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct RunConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
}

/// Finds the image that is meant.
pub(super) fn find(blobs: &Blobs, image: &LocalImage) -> Result<Found, Trouble> {
    let found = match image.source {
        Source::DockerArchive => saved(blobs, image.name.as_deref())?,
        // What `docker save` writes is both; podman and skopeo write one.
        Source::OciArchive | Source::OciLayout | Source::RootFolder => layout(blobs, image.name.as_deref())?,
    };
    if let Some(digest) = &image.digest
        && !found.digests.contains(digest)
    {
        let message = format!("is another one than {digest}: it is {}", found.digests.join(", "));
        return Err(Trouble::Image(ImageProblem::Digest, message));
    }
    Ok(found)
}

/// `sha256:…` of some bytes.
fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// The part that holds what has a digest.
fn part_of(digest: &str) -> Result<String, Trouble> {
    let hex = digest.strip_prefix("sha256:").unwrap_or_default();
    if hex.len() != 64 || !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(Trouble::unusable(format!("names a part by {digest:?}, which is no SHA-256 digest")));
    }
    Ok(format!("blobs/sha256/{hex}"))
}

fn parse<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, Trouble> {
    serde_json::from_slice(bytes)
        .map_err(|error| Trouble::unusable(format!("has a document {name} that is not understood: {error}")))
}

/// A document by its digest, which it must have.
fn checked<T: DeserializeOwned>(blobs: &Blobs, digest: &str) -> Result<T, Trouble> {
    let part = part_of(digest)?;
    let bytes = blobs.document(&part)?;
    let real = digest_of(&bytes);
    if real != digest {
        let message = format!("has a part {part} whose content is {real}; it was damaged or changed");
        return Err(Trouble::Image(ImageProblem::Digest, message));
    }
    parse(&part, &bytes)
}

/// What Docker and Podman save.
fn saved(blobs: &Blobs, name: Option<&str>) -> Result<Found, Trouble> {
    if !blobs.has("manifest.json") {
        let other = if blobs.has("index.json") { "; it is an `oci-archive:`" } else { "" };
        return Err(Trouble::unusable(format!("has no manifest.json, as `docker save` writes one{other}")));
    }
    let images: Vec<Saved> = parse("manifest.json", &blobs.document("manifest.json")?)?;
    let names = |image: &Saved| image.repo_tags.clone().unwrap_or_default();
    let all = || images.iter().flat_map(names).collect::<Vec<_>>();
    let mut chosen = images
        .iter()
        .filter(|image| name.is_none_or(|name| names(image).iter().any(|known| same_name(known, name))));
    let image = match (chosen.next(), chosen.next()) {
        (Some(image), None) => image,
        (None, _) => return Err(no_such(name, &all())),
        (Some(_), Some(_)) => return Err(several(&all())),
    };
    let bytes = blobs.document(&image.config)?;
    let id = digest_of(&bytes);
    // Its name is its digest.
    let named = image.config.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
    if named.len() == 64 && id.strip_prefix("sha256:") != Some(named) {
        let message = format!("has a part {} whose content is {id}; it was damaged or changed", image.config);
        return Err(Trouble::Image(ImageProblem::Digest, message));
    }
    let layers = image.layers.iter().map(|part| (part.clone(), None)).collect();
    described(&id, vec![id.clone()], &parse::<ConfigFile>(&image.config, &bytes)?, layers)
}

/// What is in an OCI layout.
fn layout(blobs: &Blobs, name: Option<&str>) -> Result<Found, Trouble> {
    if !blobs.has("index.json") {
        let other = if blobs.has("manifest.json") { "; it is a `docker-archive:`" } else { "" };
        return Err(Trouble::unusable(format!("has no index.json, as an OCI layout has one{other}")));
    }
    let index: Index = parse("index.json", &blobs.document("index.json")?)?;
    let mut digests = Vec::new();
    let chosen = named(&index.manifests, name)?;
    let manifest = descend(blobs, &chosen, &mut digests, 0)?;
    if !CONFIGS.contains(&&*manifest.config.media_type) {
        return Err(wrong_kind("a configuration", &manifest.config.media_type));
    }
    let config: ConfigFile = checked(blobs, &manifest.config.digest)?;
    let mut layers = Vec::new();
    for layer in &manifest.layers {
        if !LAYERS.contains(&&*layer.media_type) {
            return Err(wrong_kind("a layer", &layer.media_type));
        }
        layers.push((part_of(&layer.digest)?, Some(layer.digest.clone())));
    }
    let id = manifest.config.digest;
    digests.push(id.clone());
    described(&id, digests, &config, layers)
}

fn wrong_kind(what: &str, media_type: &str) -> Trouble {
    Trouble::unusable(format!(
        "has {what} of the media type {media_type:?}; it is no image for containers, or is encrypted"
    ))
}

/// The entries of a layout that a name means; all of one image where there is none.
fn named<'a>(manifests: &'a [Descriptor], name: Option<&str>) -> Result<Vec<&'a Descriptor>, Trouble> {
    let names = |entry: &Descriptor| -> Vec<String> {
        ["io.containerd.image.name", "org.opencontainers.image.ref.name"]
            .iter()
            .filter_map(|annotation| entry.annotations.get(*annotation).cloned())
            .collect()
    };
    let all = || manifests.iter().flat_map(names).collect::<Vec<_>>();
    match name {
        Some(name) => {
            let chosen: Vec<&Descriptor> = manifests
                .iter()
                .filter(|entry| names(entry).iter().any(|known| same_name(known, name)))
                .collect();
            if chosen.is_empty() { Err(no_such(Some(name), &all())) } else { Ok(chosen) }
        }
        None => {
            let mut different: Vec<Vec<String>> = manifests.iter().map(names).collect();
            different.dedup();
            match different.len() {
                0 => Err(Trouble::Image(ImageProblem::NotFound, "holds no image".to_owned())),
                1 => Ok(manifests.iter().collect()),
                _ => Err(several(&all())),
            }
        }
    }
}

/// The manifest for this host among entries, also below further indexes.
fn descend(
    blobs: &Blobs,
    entries: &[&Descriptor],
    digests: &mut Vec<String>,
    depth: usize,
) -> Result<Manifest, Trouble> {
    let (os, architecture) = host();
    let fits = |entry: &&&Descriptor| {
        entry
            .platform
            .as_ref()
            .is_none_or(|platform| platform.os == os && platform.architecture == architecture)
    };
    let Some(entry) = entries.iter().find(fits) else {
        let made: Vec<String> = entries
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
            .map(|platform| format!("{}/{}", platform.os, platform.architecture))
            .collect();
        return Err(wrong_host(&made.join(", ")));
    };
    digests.push(entry.digest.clone());
    if MANIFESTS.contains(&&*entry.media_type) {
        return checked(blobs, &entry.digest);
    }
    if !INDEXES.contains(&&*entry.media_type) {
        return Err(wrong_kind("a manifest", &entry.media_type));
    }
    if depth == MAX_DEPTH {
        return Err(Trouble::unusable(format!("has more than {MAX_DEPTH} indexes in each other")));
    }
    let index: Index = checked(blobs, &entry.digest)?;
    if index.manifests.is_empty() {
        return Err(Trouble::Image(ImageProblem::NotFound, "has an index without an image".to_owned()));
    }
    descend(blobs, &index.manifests.iter().collect::<Vec<_>>(), digests, depth + 1)
}

/// Puts together what was found.
fn described(
    id: &str,
    digests: Vec<String>,
    file: &ConfigFile,
    layers: Vec<(String, Option<String>)>,
) -> Result<Found, Trouble> {
    let (os, architecture) = host();
    if file.os != os || file.architecture != architecture {
        return Err(wrong_host(&format!("{}/{}", file.os, file.architecture)));
    }
    let plain = &file.rootfs.diff_ids;
    if layers.len() != plain.len() || layers.len() > MAX_LAYERS {
        return Err(Trouble::unusable(format!(
            "has {} layers and names {} in its configuration; both must be the same, and at most {MAX_LAYERS}",
            layers.len(),
            plain.len()
        )));
    }
    let mut described = Vec::new();
    for ((part, digest), plain_digest) in layers.into_iter().zip(plain) {
        // Checked for its form alone.
        part_of(plain_digest)?;
        described.push(Layer { part, digest, plain_digest: plain_digest.clone() });
    }
    let empty = RunConfig::default();
    let run = file.config.as_ref().unwrap_or(&empty);
    let words = |words: &Option<Vec<String>>| words.clone().unwrap_or_default();
    let config = ImageConfig {
        entrypoint: words(&run.entrypoint),
        command: words(&run.cmd),
        env: words(&run.env),
        working_dir: super::working_dir(run.working_dir.as_deref()),
        user: run.user.clone().unwrap_or_default(),
    };
    let mut all =
        config.entrypoint.iter().chain(&config.command).chain(&config.env).chain(&config.working_dir);
    if all.any(|word| word.contains('\0')) {
        return Err(Trouble::unusable("has NUL bytes in its configuration"));
    }
    Ok(Found { id: id.to_owned(), digests, config, layers: described })
}

/// This host in the words of images.
pub(super) fn host() -> (&'static str, &'static str) {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    };
    (std::env::consts::OS, architecture)
}

fn wrong_host(made: &str) -> Trouble {
    let (os, architecture) = host();
    Trouble::unusable(format!("is made for {made}, and this node is {os}/{architecture}"))
}

fn no_such(name: Option<&str>, all: &[String]) -> Trouble {
    let all = if all.is_empty() { "images without a name".to_owned() } else { all.join(", ") };
    let message = match name {
        Some(name) => format!("holds no image `{name}`; it holds {all}"),
        None => "holds no image".to_owned(),
    };
    Trouble::Image(ImageProblem::NotFound, message)
}

fn several(all: &[String]) -> Trouble {
    let message =
        format!("holds several images; put one of these behind the path, after a `:`: {}", all.join(", "));
    Trouble::Image(ImageProblem::Invalid, message)
}

/// Whether two names mean the same, one of them perhaps short.
fn same_name(one: &str, other: &str) -> bool {
    fn full(name: &str) -> String {
        let name = name.strip_prefix("docker.io/").unwrap_or(name);
        let name = name.strip_prefix("library/").unwrap_or(name);
        let tagged = name.rsplit('/').next().is_some_and(|last| last.contains(':'));
        if tagged { name.to_owned() } else { format!("{name}:latest") }
    }
    one == other || full(one) == full(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_mean_the_full_ones() {
        assert!(same_name("docker.io/library/busybox:latest", "busybox"));
        assert!(same_name("localhost/a:1", "localhost/a:1") && same_name("1", "1"));
        assert!(!same_name("localhost/a:1", "localhost/a:2") && !same_name("registry.example:5000/a", "a"));
    }

    #[test]
    fn a_part_is_named_by_a_digest_and_nothing_else() {
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(part_of(&digest).unwrap(), format!("blobs/sha256/{}", "a".repeat(64)));
        for wrong in
            ["", "sha256:", "sha256:../../etc/passwd", "md5:00", &format!("sha256:{}", "A".repeat(64))]
        {
            assert!(part_of(wrong).is_err(), "{wrong}");
        }
    }
}
