//! Copies what an attempt leaves out of its workspace, or says why not.
//!
//! Everything is copied, hashed and looked through in one pass, so that what is sent is what was looked at, whatever
//! happens to the file meanwhile. All of it blocks.
//!
//! *Bounds*: of an attempt no more is read than may be collected of it, whatever becomes of what was read, and no file has to be
//! read that has holes instead of bytes. A [`Halt`] ends it within one piece.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::SeekFrom;
use sha2::{Digest as _, Sha256};
use windlass_crds::protocol::{
    Artifact, ArtifactKind, MAX_ARTIFACT_BYTES, MAX_ARTIFACT_NAME, MAX_ARTIFACTS, MAX_ARTIFACTS_BYTES,
};
use windlass_sandbox::{FileLimits, Visited};

use super::spool::Room;
use super::{FileSecrets, kind};

/// How much is copied at once.
const PIECE: usize = 64 << 10;
/// Entries of the folder that are looked at: enough for a thousand files in folders of their own, and whoever leaves more than
/// that has not meant it.
const ENTRIES: u64 = 10_000;
/// Folders that a file may be in.
const DEPTH: usize = 16;
/// The most bytes of a file that are holes. A copy would fill them: a job could make the node keep more than its own disk limit
/// lets it have. Programs that skip some blocks of what they write stay below this.
const HOLES: u64 = 1 << 20;
/// Refused files that are named; of more only their number is told.
const NAMED: u32 = 200;

/// How far a folder of artifacts is looked through.
pub(crate) const WALK: FileLimits =
    FileLimits { entries: ENTRIES, depth: DEPTH, path_bytes: MAX_ARTIFACT_NAME };

/// Ends a collection from outside. Clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct Halt(Arc<OnceLock<&'static str>>);

impl Halt {
    /// Ends it; the first reason counts.
    pub(crate) fn end(&self, why: &'static str) {
        self.0.get_or_init(|| why);
    }

    fn reason(&self) -> Option<&'static str> {
        self.0.get().copied()
    }
}

/// Collects the artifacts of one attempt into a folder, where a body has its number as its name.
pub(crate) struct Collector {
    folder: PathBuf,
    secrets: FileSecrets,
    room: Room,
    halt: Halt,
    items: Vec<Artifact>,
    collected: u32,
    /// Bytes that were read, of what was refused too.
    read: u64,
    refused: u32,
    unnamed: u64,
}

/// A copy.
struct Copied {
    kind: ArtifactKind,
    sha256: String,
}

impl Collector {
    /// Collects into an empty folder, as far as there is room, until it is told to end.
    pub(super) const fn new(folder: PathBuf, secrets: FileSecrets, room: Room, halt: Halt) -> Self {
        let items = Vec::new();
        Self { folder, secrets, room, halt, items, collected: 0, read: 0, refused: 0, unnamed: 0 }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Collects all that was found, as far as it gets.
    pub(crate) fn collect(&mut self, found: impl Iterator<Item = Visited>) {
        for found in found {
            if let Some(why) = self.halt.reason() {
                let problem = format!("what comes after these was not collected: {why}");
                return self.push_refused("…".to_owned(), 0, problem);
            }
            match found {
                Visited::File { path, file, size } => self.file(path, file, size),
                Visited::Refused { path, size, problem } => self.refuse(&path, size, problem),
            }
        }
    }

    /// The manifest.
    pub(super) fn items(mut self) -> Vec<Artifact> {
        if self.unnamed > 0 {
            let problem = format!("{} more were refused and are not named", self.unnamed);
            self.push_refused("…".to_owned(), 0, problem);
        }
        self.items
    }

    fn file(&mut self, path: String, mut file: File, size: u64) {
        if let Some(found) = self.secrets.finder().finds(path.as_bytes()) {
            let problem = format!("its name holds the secret `{}`", self.secrets.name(found));
            return self.refuse(path.as_bytes(), size, problem);
        }
        if let Some(problem) = self.beyond(size).or_else(|| sparse(&file, size)) {
            return self.refuse(path.as_bytes(), size, problem);
        }
        let number = self.next_number();
        let place = self.folder.join(number.to_string());
        match self.copy(&path, &mut file, size, &place) {
            Ok(Copied { kind, sha256 }) => {
                self.collected += 1;
                self.room.use_up(size);
                let sha256 = Some(sha256);
                self.items.push(Artifact { number, name: path, kind, size, sha256, refused: None });
            }
            Err(problem) => {
                if let Err(error) = std::fs::remove_file(&place)
                    && error.kind() != io::ErrorKind::NotFound
                {
                    tracing::warn!(path = %place.display(), error = %error, "what was copied of a refused artifact cannot be removed yet");
                }
                self.refuse(path.as_bytes(), size, problem);
            }
        }
    }

    /// Why a file of this size is too much.
    fn beyond(&self, size: u64) -> Option<String> {
        if self.collected >= MAX_ARTIFACTS {
            return Some(format!("there are more than {MAX_ARTIFACTS} files; pack them into an archive"));
        }
        if size > MAX_ARTIFACT_BYTES {
            return Some(format!(
                "it has {size} bytes, at most {MAX_ARTIFACT_BYTES} are collected of a file"
            ));
        }
        if self.read.saturating_add(size) > MAX_ARTIFACTS_BYTES {
            return Some(format!(
                "with its {size} bytes more than {MAX_ARTIFACTS_BYTES} would be read of this attempt"
            ));
        }
        (size > self.room.bytes()).then(|| "the node's disk has no room for it".to_owned())
    }

    /// Copies a file. The error is why it is refused.
    fn copy(&mut self, path: &str, file: &mut File, size: u64, to: &Path) -> Result<Copied, String> {
        let unread = |error: io::Error| format!("it cannot be read: {error}");
        let unkept = |error: io::Error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "the node's disk is full".to_owned(),
            _ => format!("the node cannot keep it: {error}"),
        };
        let state = |file: &File| {
            let metadata = file.metadata().map_err(unread)?;
            Ok::<_, String>((metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
        };
        let before = state(file)?;
        let mut options = OpenOptions::new();
        let mut copy = options.write(true).create_new(true).mode(0o600).open(to).map_err(unkept)?;
        let mut hash = Sha256::new();
        let mut finder = self.secrets.finder();
        let mut head = Vec::with_capacity(kind::HEAD);
        let (mut is_text, mut length) = (true, 0u64);
        let mut piece = vec![0; PIECE];
        // One byte more than there should be, so that a file that grows is noticed and does not go on for ever.
        let mut content = Read::take(&mut *file, size.saturating_add(1));
        loop {
            if let Some(why) = self.halt.reason() {
                return Err(format!("it was not read to its end: {why}"));
            }
            let read = match content.read(&mut piece) {
                Ok(0) => break,
                Ok(read) => &piece[..read],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(unread(error)),
            };
            self.read += read.len() as u64;
            if let Some(found) = finder.finds(read) {
                let name = self.secrets.name(found);
                return Err(format!(
                    "it holds the secret `{name}`; leave that out, or pass it on by other means"
                ));
            }
            head.extend_from_slice(&read[..read.len().min(kind::HEAD - head.len())]);
            is_text = is_text && !read.contains(&0);
            length += read.len() as u64;
            hash.update(read);
            copy.write_all(read).map_err(unkept)?;
        }
        if length != size || state(file)? != before {
            return Err("it was changed while it was collected".to_owned());
        }
        copy.sync_data().map_err(unkept)?;
        let kind = kind::of(path, &head, is_text);
        Ok(Copied { kind, sha256: hex::encode(hash.finalize()) })
    }

    fn refuse(&mut self, path: &[u8], size: u64, problem: String) {
        if self.refused == NAMED {
            self.unnamed += 1;
            return;
        }
        self.refused += 1;
        let name = if path.is_empty() { ".".to_owned() } else { self.secrets.shown(path) };
        self.push_refused(name, size, problem);
    }

    fn push_refused(&mut self, name: String, size: u64, problem: String) {
        let number = self.next_number();
        let kind = ArtifactKind::File;
        self.items.push(Artifact { number, name, kind, size, sha256: None, refused: Some(problem) });
    }

    fn next_number(&self) -> u32 {
        u32::try_from(self.items.len()).unwrap_or(u32::MAX).saturating_add(1)
    }
}

/// Why a file with holes is refused; `None` of one that has none, or few.
fn sparse(file: &File, size: u64) -> Option<String> {
    let problem = || {
        format!(
            "it is sparse: more than {HOLES} of its {size} bytes were never written; pack it into an archive"
        )
    };
    (!has_few_holes(file, size)).then(problem)
}

/// Whether no more than [`HOLES`] bytes of a file are holes, as far as its file system tells. It is at its beginning after this.
fn has_few_holes(mut file: &File, size: u64) -> bool {
    let (mut at, mut holes) = (0, 0);
    while at < size && holes <= HOLES {
        // An error is of a file system that does not tell, or of a file that is shorter by now: then the rest is data.
        let Ok(hole) = rustix::fs::seek(file, SeekFrom::Hole(at)) else { break };
        at = match rustix::fs::seek(file, SeekFrom::Data(hole)) {
            Ok(data) => data.min(size),
            Err(rustix::io::Errno::NXIO) => size,
            Err(_) => break,
        };
        holes += at.saturating_sub(hole);
    }
    file.rewind().is_ok() && holes <= HOLES
}

#[cfg(test)]
mod tests;
