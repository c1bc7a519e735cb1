//! The images that are unpacked: each once, whole or not at all, until nobody has used it for long and room is wanted.
//!
//! Folder: `<64 digits>/{root,record.json}` · `.unpack-<n>/` while one is unpacked · `.gone-<n>/` while one is removed.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, RenameFlags, Timestamps, UTIME_NOW};
use serde::{Deserialize, Serialize};
use windlass_launcher::record;

use super::blobs::{self, Blobs};
use super::layer::{Tree, open_dir};
use super::users::Account;
use super::{ImageLimits, LocalImage, Source, SystemImage, Trouble, manifest, places};
use crate::error::Error;
use crate::workspace::removal;

const ROOT: &str = "root";
const RECORD: &str = "record.json";
const UNPACKING: &str = ".unpack-";
const GONE: &str = ".gone-";
/// How long an image is kept that was asked for and that no unit names yet.
const GRACE: Duration = Duration::from_secs(600);

/// The images of a state folder. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Images(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    /// The folder of the units, each of which names its image.
    units: PathBuf,
    limits: ImageLimits,
    number: AtomicU64,
    /// Held while an image is unpacked, or some are removed: what two want at once is unpacked once.
    work: Mutex<()>,
}

/// What is written beside an unpacked image.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    image: SystemImage,
    bytes: u64,
}

/// The part of a unit's plan that names its image.
#[derive(Deserialize)]
struct PlannedUnit {
    spec: SpecOfUnit,
}

#[derive(Deserialize)]
struct SpecOfUnit {
    #[serde(default)]
    system: Option<crate::spec::SystemRoot>,
}

/// Tells those who work that nobody waits any more.
struct Stopper(Arc<AtomicBool>);

impl Drop for Stopper {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Images {
    /// The images below `dir`, for units below `units`. What a crash left half made is removed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(dir: PathBuf, units: PathBuf, limits: ImageLimits) -> Result<Self, Error> {
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(Error::io("create", &dir))?;
        let inner = Inner { dir, units, limits, number: AtomicU64::new(0), work: Mutex::default() };
        for name in inner.names()? {
            if name.starts_with('.') {
                inner.erase(&name)?;
            }
        }
        Ok(Self(Arc::new(inner)))
    }

    /// Sees to it that an image is unpacked, and that it is the one that its digest names. `known` is the id of the image that was
    /// given for the same name before, should the same one be wanted. `progress` is told what is done that takes time. Dropping the
    /// future stops the work.
    ///
    /// # Errors
    /// [`Error::Image`], [`Error::Io`].
    pub async fn ensure(
        &self,
        image: &LocalImage,
        known: Option<&str>,
        progress: impl Fn(String) + Send + 'static,
    ) -> Result<SystemImage, Error> {
        let inner = Arc::clone(&self.0);
        let stop = Arc::new(AtomicBool::new(false));
        let stopper = Stopper(Arc::clone(&stop));
        let (image, known) = (image.clone(), known.map(str::to_owned));
        let work = move || {
            let done = inner.ensure(&image, known.as_deref(), &progress, &stop);
            done.map_err(|trouble| trouble.of(&image))
        };
        let done = tokio::task::spawn_blocking(work).await;
        drop(stopper);
        match done {
            Ok(result) => result,
            Err(failed) => std::panic::resume_unwind(failed.into_panic()),
        }
    }

    /// Removes images that nobody has used for longest, until those that are not in use are within the limit. Gives how many.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn collect(&self) -> Result<u64, Error> {
        let _work = self.0.lock();
        self.0.collect()
    }
}

impl Inner {
    fn lock(&self) -> std::sync::MutexGuard<'_, ()> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ensure(
        &self,
        image: &LocalImage,
        known: Option<&str>,
        progress: &dyn Fn(String),
        stop: &AtomicBool,
    ) -> Result<SystemImage, Trouble> {
        if image.source == Source::RootFolder {
            return given(image);
        }
        if let Some(id) = known
            && let Some(unpacked) = self.unpacked(id)?
        {
            return Ok(unpacked);
        }
        let blobs = Blobs::open(image, &self.dir, self.limits.bytes)?;
        let found = manifest::find(&blobs, image)?;
        if let Some(id) = known
            && id != found.id
        {
            let message = "was replaced by another one while the job ran".to_owned();
            return Err(Trouble::Image(crate::error::ImageProblem::Digest, message));
        }
        if let Some(unpacked) = self.unpacked(&found.id)? {
            return Ok(unpacked);
        }
        let _work = self.lock();
        // Somebody may have unpacked it while this one waited.
        if let Some(unpacked) = self.unpacked(&found.id)? {
            return Ok(unpacked);
        }
        let began = std::time::Instant::now();
        let unpacked = self.unpack(&blobs, &found, progress, stop)?;
        tracing::info!(
            image = %image, image.id = unpacked.id, took_ms = began.elapsed().as_millis(), "image unpacked"
        );
        // What could not be removed is tried again after the next one.
        if let Err(error) = self.collect() {
            tracing::warn!(error = %error, "images that nobody uses cannot be removed");
        }
        Ok(unpacked)
    }

    /// An image that is there, which counts as used now.
    fn unpacked(&self, id: &str) -> Result<Option<SystemImage>, Trouble> {
        let dir = self.dir.join(folder_of(id));
        let record: Option<Record> = record::read(&dir.join(RECORD))
            .map_err(|error| Error::Corrupt { path: dir.join(RECORD), problem: error.to_string() })?;
        let Some(record) = record else { return Ok(None) };
        let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        rustix::fs::utimensat(CWD, &dir, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| Error::io("mark", &dir)(errno.into()))?;
        Ok(Some(record.image))
    }

    /// Unpacks an image beside the others, and then gives it its place.
    fn unpack(
        &self,
        blobs: &Blobs,
        found: &manifest::Found,
        progress: &dyn Fn(String),
        stop: &AtomicBool,
    ) -> Result<SystemImage, Trouble> {
        let name = format!("{UNPACKING}{}", self.number.fetch_add(1, Ordering::Relaxed));
        let made = self.fill(&name, blobs, found, progress, stop);
        if made.is_err()
            && let Err(error) = self.erase(&name)
        {
            tracing::warn!(error = %error, "half of an image stays until the agent starts again");
        }
        made
    }

    fn fill(
        &self,
        name: &str,
        blobs: &Blobs,
        found: &manifest::Found,
        progress: &dyn Fn(String),
        stop: &AtomicBool,
    ) -> Result<SystemImage, Trouble> {
        let dir = self.dir.join(name);
        let root_path = dir.join(ROOT);
        DirBuilder::new().mode(0o700).create(&dir).map_err(Error::io("create", &dir))?;
        // Jobs of other users look into it.
        DirBuilder::new().mode(0o755).create(&root_path).map_err(Error::io("create", &root_path))?;
        let root = open_dir(&root_path)?;
        let mut tree = Tree::new(open_dir(&root_path)?, self.limits, stop);
        for (index, layer) in found.layers.iter().enumerate() {
            progress(format!("unpacking layer {} of {}", index + 1, found.layers.len()));
            tree.lay(blobs, layer)?;
        }
        places::make(&root)?;
        if let Some(dir) = &found.config.working_dir {
            tree.make_folder(dir)?;
        }
        let place = self.dir.join(folder_of(&found.id));
        let image = describe(&root, place.join(ROOT), found.id.clone(), found.config.clone())?;
        let record = Record { image, bytes: tree.bytes + tree.entries * 4096 };
        record::publish(&dir, RECORD, &record).map_err(Error::io("write", dir.join(RECORD)))?;
        // What has its name is whole, also after a loss of power.
        rustix::fs::syncfs(&root).map_err(|errno| Error::io("write", &root_path)(errno.into()))?;
        match rustix::fs::renameat_with(CWD, &dir, CWD, &place, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(record.image),
            Err(errno) => Err(Error::io("place", place)(errno.into()).into()),
        }
    }

    fn names(&self) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(Error::io("list", &self.dir))? {
            let name = entry.map_err(Error::io("list", &self.dir))?.file_name();
            names.extend(name.into_string());
        }
        Ok(names)
    }

    /// Removes a folder of this one.
    fn erase(&self, name: &str) -> Result<(), Error> {
        removal::remove(&self.dir, name)
            .map_err(|errno| Error::io("remove", self.dir.join(name))(errno.into()))
    }

    /// The folders of images that units name.
    fn in_use(&self) -> Result<BTreeSet<PathBuf>, Error> {
        let mut used = BTreeSet::new();
        for entry in fs::read_dir(&self.units).map_err(Error::io("list", &self.units))? {
            let path = entry.map_err(Error::io("list", &self.units))?.path().join(record::PLAN);
            let unit: Option<PlannedUnit> = record::read(&path)
                .map_err(|error| Error::Corrupt { path: path.clone(), problem: error.to_string() })?;
            let system = unit.and_then(|unit| unit.spec.system);
            used.extend(system.and_then(|system| system.image.dir.parent().map(Path::to_owned)));
        }
        Ok(used)
    }

    /// See [`Images::collect`].
    fn collect(&self) -> Result<u64, Error> {
        let in_use = self.in_use()?;
        let mut idle = Vec::new();
        for name in self.names()? {
            let dir = self.dir.join(&name);
            if name.starts_with('.') || in_use.contains(&dir) {
                continue;
            }
            let used =
                fs::metadata(&dir).and_then(|found| found.modified()).map_err(Error::io("inspect", &dir))?;
            let record: Option<Record> = record::read(&dir.join(RECORD)).unwrap_or_default();
            idle.push((used, name, record.map_or(0, |record| record.bytes)));
        }
        idle.sort();
        let mut bytes: u64 = idle.iter().map(|(_, _, bytes)| bytes).sum();
        let mut removed = 0;
        for (used, name, own) in idle {
            #[expect(clippy::disallowed_methods, reason = "it is compared with the times of files")]
            let age = SystemTime::now().duration_since(used).unwrap_or_default();
            if bytes <= self.limits.kept || age < GRACE {
                break;
            }
            let gone = format!("{GONE}{}", self.number.fetch_add(1, Ordering::Relaxed));
            fs::rename(self.dir.join(&name), self.dir.join(&gone))
                .map_err(Error::io("remove", self.dir.join(&name)))?;
            self.erase(&gone)?;
            tracing::info!(image.id = name, bytes = own, "image removed that nobody uses");
            bytes -= own;
            removed += 1;
        }
        Ok(removed)
    }
}

/// The name of an image's folder.
fn folder_of(id: &str) -> &str {
    id.strip_prefix("sha256:").unwrap_or(id)
}

/// A folder that somebody else made.
fn given(image: &LocalImage) -> Result<SystemImage, Trouble> {
    if let Some(digest) = &image.digest {
        let message = format!("is a folder, which has no digest; remove `@{digest}`, or use an archive");
        return Err(Trouble::Image(crate::error::ImageProblem::Digest, message));
    }
    if let Some(name) = &image.name {
        let message = format!("is a folder, which has no names; remove `:{name}`");
        return Err(Trouble::Image(crate::error::ImageProblem::Invalid, message));
    }
    let root = blobs::folder(&image.path)?;
    places::check(&root, &image.path)?;
    describe(&root, image.path.clone(), String::new(), super::ImageConfig::default())
}

fn describe(
    root: &std::os::fd::OwnedFd,
    dir: PathBuf,
    id: String,
    config: super::ImageConfig,
) -> Result<SystemImage, Trouble> {
    let [passwd, group] = ["etc/passwd", "etc/group"].map(|path| places::accounts(root, path));
    let account = Account::of(&config.user, passwd, group)?;
    Ok(SystemImage { id, dir, account, programs: places::programs(root)?, config })
}
