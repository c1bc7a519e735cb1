//! The images that are unpacked: each once, whole or not at all, until nobody has used it for long and room is wanted.
//!
//! Folder: `<64 digits>/{root,record.json}` · `.unpack-<n>/` while one is unpacked · `.gone-<n>/` while one is removed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, DirBuilder};
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::fs::{AtFlags, CWD, RenameFlags, Timestamps, UTIME_NOW};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use windlass_launcher::record;

use super::blobs::{self, Blobs, Opened};
use super::layer::{Tree, new_dir, open_dir};
use super::packed::{Packed, Seen};
use super::room::{Room, is_free};
use super::users::Account;
use super::work::{Teller, Works};
use super::{ImageLimits, LocalImage, Source, SystemImage, Trouble, manifest, places};
use crate::error::{Error, ImageProblem};
use crate::workspace::removal;

const ROOT: &str = "root";
const RECORD: &str = "record.json";
const UNPACKING: &str = ".unpack-";
const GONE: &str = ".gone-";
/// Compressed archives of which the image is remembered: more than lie on a node, and some hundred KiB.
const MAX_PACKED: usize = 1024;

/// The images of a state folder. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Images(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    /// The folder of the units, each of which names its image.
    units: PathBuf,
    limits: ImageLimits,
    /// Bytes of images that are kept, beyond those in use.
    keep: AtomicU64,
    number: AtomicU64,
    works: Arc<Works>,
    /// The images of compressed archives as they were when they were uncompressed. Locked for a look or a change.
    packed: Mutex<HashMap<LocalImage, (Seen, String)>>,
    /// By an image's id, locked while it is unpacked: archives of the same one are uncompressed side by side.
    unpacking: Mutex<HashMap<String, Weak<Mutex<()>>>>,
    /// The images that somebody was given who still has them, by their folder, and how many have. Locked for a look or a change,
    /// and while an image is taken out of its place.
    held: Mutex<BTreeMap<String, usize>>,
    /// What is left of a run before this one, or was damaged. Locked while something is removed.
    left: Mutex<Vec<String>>,
}

/// An image that somebody was given: it stays as long as this does.
#[derive(Debug)]
pub struct Held {
    image: SystemImage,
    /// Counts it as long as this lives.
    hold: Option<Arc<Hold>>,
}

#[derive(Debug)]
struct Hold {
    inner: Arc<Inner>,
    folder: String,
}

impl Held {
    /// An image that nothing of this removes.
    pub(super) fn of_others(image: SystemImage) -> Self {
        Self { image, hold: None }
    }

    /// The same for one more.
    pub(super) fn again(&self) -> Self {
        Self { image: self.image.clone(), hold: self.hold.clone() }
    }
}

impl Deref for Held {
    type Target = SystemImage;

    fn deref(&self) -> &SystemImage {
        &self.image
    }
}

impl Hold {
    fn on(inner: &Arc<Inner>, id: &str) -> Self {
        let folder = folder_of(id).to_owned();
        *lock(&inner.held).entry(folder.clone()).or_default() += 1;
        Self { inner: Arc::clone(inner), folder }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = lock(&self.inner.held);
        if let Some(count) = held.get_mut(&self.folder) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.folder);
            }
        }
    }
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

/// Nothing that a lock guards here is half changed by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a piece that blocks on a thread made for that.
async fn blocking<T: Send + 'static>(
    body: impl FnOnce() -> Result<T, Trouble> + Send + 'static,
) -> Result<T, Trouble> {
    match tokio::task::spawn_blocking(body).await {
        Ok(result) => result,
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}

impl Images {
    /// The images below `dir`, for units below `units`. What a crash left half made is never used, and is removed in the background.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(dir: PathBuf, units: PathBuf, limits: ImageLimits) -> Result<Self, Error> {
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(Error::io("create", &dir))?;
        let mut inner = Inner {
            dir,
            units,
            limits,
            keep: AtomicU64::new(limits.kept),
            number: AtomicU64::new(0),
            works: Arc::new(Works::new()),
            packed: Mutex::default(),
            unpacking: Mutex::default(),
            held: Mutex::default(),
            left: Mutex::default(),
        };
        let left: Vec<String> = inner.names()?.into_iter().filter(|name| name.starts_with('.')).collect();
        // What is new has another name than what is left.
        let numbers = left.iter().filter_map(|name| name.rsplit('-').next()?.parse::<u64>().ok());
        inner.number = AtomicU64::new(numbers.max().map_or(0, |most| most.saturating_add(1)));
        let inner = Arc::new(inner);
        if !left.is_empty() {
            inner.clear(left)?;
        }
        Ok(Self(inner))
    }

    /// Sees to it that an image is unpacked, and that it is the one that its digest names. `known` is the id of the image that was
    /// given for the same name before, should the same one be wanted. `progress` is told what is done that takes time. What
    /// several want at once is unpacked once, and stops when all of their futures have been dropped.
    ///
    /// # Errors
    /// [`Error::Image`], [`Error::Io`].
    pub async fn ensure(
        &self,
        image: &LocalImage,
        known: Option<&str>,
        progress: impl Fn(String) + Send,
    ) -> Result<Held, Error> {
        self.held(image, known, progress).await.map_err(|trouble| trouble.of(image))
    }

    async fn held(
        &self,
        image: &LocalImage,
        known: Option<&str>,
        progress: impl Fn(String) + Send,
    ) -> Result<Held, Trouble> {
        if image.source == Source::RootFolder {
            let image = image.clone();
            return Ok(Held::of_others(blocking(move || given(&image)).await?));
        }
        if let Some(id) = known
            && let Some(held) = self.there(id).await?
        {
            return Ok(held);
        }
        let (wanted, known) = (image.clone(), known.map(ToOwned::to_owned));
        match blocking(move || Blobs::open(&wanted)).await? {
            Opened::Blobs(blobs) => {
                let wanted = image.clone();
                let (blobs, found) =
                    blocking(move || manifest::find(&blobs, &wanted).map(|found| (blobs, found))).await?;
                check_known(known.as_deref(), &found.id)?;
                if let Some(held) = self.there(&found.id).await? {
                    return Ok(held);
                }
                let id = found.id.clone();
                self.join(&id, progress, move |inner, teller, stop| {
                    inner.ensure(&blobs, &found, teller, stop)
                })
                .await
            }
            Opened::Packed(packed) => {
                if let Some(id) = self.0.id_of(image, &packed.seen) {
                    check_known(known.as_deref(), &id)?;
                    if let Some(held) = self.there(&id).await? {
                        return Ok(held);
                    }
                }
                let wanted = image.clone();
                let work = format!("{image:?} {:?} {known:?}", packed.seen);
                self.join(&work, progress, move |inner, teller, stop| {
                    inner.ensure_packed(&packed, &wanted, known.as_deref(), teller, stop)
                })
                .await
            }
        }
    }

    /// Joins a work, or begins it, and waits for its end.
    async fn join(
        &self,
        name: &str,
        progress: impl Fn(String) + Send,
        unpack: impl FnOnce(&Arc<Inner>, &Teller, &AtomicBool) -> Result<Held, Trouble> + Send + 'static,
    ) -> Result<Held, Trouble> {
        let (worker, after) = (Arc::clone(&self.0), Arc::clone(&self.0));
        let collect = move || {
            // What could not be removed is tried again after the next one.
            if let Err(error) = after.collect() {
                tracing::warn!(error = %error, "images that nobody uses cannot be removed");
            }
        };
        let unpack = move |teller: &Teller, stop: &AtomicBool| unpack(&worker, teller, stop);
        self.0.works.join(name, unpack, collect).ended(progress).await
    }

    /// An image that is there. It is held before it is looked for, so that nobody removes it in between.
    async fn there(&self, id: &str) -> Result<Option<Held>, Trouble> {
        let hold = Arc::new(Hold::on(&self.0, id));
        let (inner, id) = (Arc::clone(&self.0), id.to_owned());
        let found = blocking(move || inner.unpacked(&id)).await?;
        Ok(found.map(|image| Held { image, hold: Some(hold) }))
    }

    /// Keeps so many bytes of images from now on, beyond those in use; `None` for what was said when they were opened. What is there
    /// too much goes with the next [`Self::collect`], which an image that was unpacked calls as well.
    pub fn keep(&self, bytes: Option<u64>) {
        self.0.keep.store(bytes.unwrap_or(self.0.limits.kept), Ordering::Relaxed);
    }

    /// Removes images that nobody has used for longest, until those that are not in use are within the limit. Gives how many.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn collect(&self) -> Result<u64, Error> {
        self.0.collect()
    }
}

impl Inner {
    /// The image that a compressed archive held when it was the same as now.
    fn id_of(&self, image: &LocalImage, seen: &Seen) -> Option<String> {
        let packed = lock(&self.packed);
        packed.get(image).filter(|(then, _)| then == seen).map(|(_, id)| id.clone())
    }

    /// Uncompresses an archive, and unpacks its image in the same turn: what is uncompressed lies there for no other one's turn.
    fn ensure_packed(
        self: &Arc<Self>,
        packed: &Packed,
        image: &LocalImage,
        known: Option<&str>,
        teller: &Teller,
        stop: &AtomicBool,
    ) -> Result<Held, Trouble> {
        teller.line("uncompressing the archive".to_owned());
        let make = |disk: &OwnedFd| self.make_room(disk);
        let room = Room::of(open_dir(&self.dir)?, self.limits.leave_free, &make);
        let blobs = Blobs::unpacked(&packed.file, &self.dir, self.limits.bytes, room, stop)?;
        let found = manifest::find(&blobs, image)?;
        if packed.settled {
            let mut packed_ids = lock(&self.packed);
            if packed_ids.len() >= MAX_PACKED {
                packed_ids.clear();
            }
            packed_ids.insert(image.clone(), (packed.seen, found.id.clone()));
        }
        check_known(known, &found.id)?;
        self.ensure(&blobs, &found, teller, stop)
    }

    /// Unpacks an image, unless somebody has done so while this one waited for a turn. It is held before it is looked for.
    fn ensure(
        self: &Arc<Self>,
        blobs: &Blobs,
        found: &manifest::Found,
        teller: &Teller,
        stop: &AtomicBool,
    ) -> Result<Held, Trouble> {
        let hold = Some(Arc::new(Hold::on(self, &found.id)));
        let alone = self.alone(&found.id);
        // Who has it has a turn, so it comes to an end.
        let _alone = lock(&alone);
        if let Some(image) = self.unpacked(&found.id)? {
            return Ok(Held { image, hold });
        }
        let began = std::time::Instant::now();
        let image = self.unpack(blobs, found, teller, stop)?;
        tracing::info!(image.id = image.id, took_ms = began.elapsed().as_millis(), "image unpacked");
        Ok(Held { image, hold })
    }

    /// What is locked by who unpacks an image.
    fn alone(&self, id: &str) -> Arc<Mutex<()>> {
        let mut unpacking = lock(&self.unpacking);
        unpacking.retain(|_, alone| alone.strong_count() > 0);
        if let Some(alone) = unpacking.get(id).and_then(Weak::upgrade) {
            return alone;
        }
        let alone = Arc::default();
        unpacking.insert(id.to_owned(), Arc::downgrade(&alone));
        alone
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
        self: &Arc<Self>,
        blobs: &Blobs,
        found: &manifest::Found,
        teller: &Teller,
        stop: &AtomicBool,
    ) -> Result<SystemImage, Trouble> {
        let name = self.number_of(UNPACKING);
        let made = self.fill(&name, blobs, found, teller, stop);
        if made.is_err()
            && let Err(error) = self.erase(&name)
        {
            tracing::warn!(error = %error, "half of an image stays until the agent starts again");
        }
        made
    }

    fn fill(
        self: &Arc<Self>,
        name: &str,
        blobs: &Blobs,
        found: &manifest::Found,
        teller: &Teller,
        stop: &AtomicBool,
    ) -> Result<SystemImage, Trouble> {
        let dir = self.dir.join(name);
        let root_path = dir.join(ROOT);
        DirBuilder::new().mode(0o700).create(&dir).map_err(Error::io("create", &dir))?;
        // Jobs of other users look into it.
        let root = new_dir(&open_dir(&dir)?, ROOT.as_bytes())
            .map_err(|errno| Error::io("create", &root_path)(errno.into()))?;
        let make = |disk: &OwnedFd| self.make_room(disk);
        let room = Room::of(open_dir(&root_path)?, self.limits.leave_free, &make);
        let mut tree = Tree::new(open_dir(&root_path)?, self.limits, room, stop);
        for (index, layer) in found.layers.iter().enumerate() {
            teller.line(format!("unpacking layer {} of {}", index + 1, found.layers.len()));
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
        loop {
            match rustix::fs::renameat_with(CWD, &dir, CWD, &place, RenameFlags::NOREPLACE) {
                Ok(()) => return Ok(record.image),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(Error::io("place", place)(errno.into()).into()),
            }
            // What has the place has no record, or it would have been taken: it was damaged.
            let gone = self.number_of(GONE);
            fs::rename(&place, self.dir.join(&gone)).map_err(Error::io("remove", &place))?;
            tracing::warn!(image.id = found.id, "image removed that has lost its record");
            self.clear(vec![gone])?;
        }
    }

    /// A name that nothing else has.
    fn number_of(&self, kind: &str) -> String {
        format!("{kind}{}", self.number.fetch_add(1, Ordering::Relaxed))
    }

    /// Removes folders in the background.
    fn clear(self: &Arc<Self>, names: Vec<String>) -> Result<(), Error> {
        lock(&self.left).extend(names);
        let inner = Arc::clone(self);
        let work = move || inner.clear_left(&mut lock(&inner.left));
        let thread = std::thread::Builder::new().name("images-left".to_owned());
        thread.spawn(work).map_err(Error::io("start", "a thread"))?;
        Ok(())
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

    /// Removes what is left of a run before this one, or was damaged.
    fn clear_left(&self, left: &mut Vec<String>) {
        while let Some(name) = left.pop() {
            if let Err(error) = self.erase(&name) {
                tracing::warn!(error = %error, "what is left of an image stays until the agent starts again");
            }
        }
    }

    /// The images that nobody uses, the longest unused first, with their bytes.
    fn idle(&self) -> Result<Vec<(String, u64)>, Error> {
        let in_use = self.in_use()?;
        let mut idle = Vec::new();
        for name in self.names()? {
            let dir = self.dir.join(&name);
            if name.starts_with('.') || in_use.contains(&dir) || lock(&self.held).contains_key(&name) {
                continue;
            }
            let used =
                fs::metadata(&dir).and_then(|found| found.modified()).map_err(Error::io("inspect", &dir))?;
            let record: Option<Record> = record::read(&dir.join(RECORD)).unwrap_or_default();
            idle.push((used, name, record.map_or(0, |record| record.bytes)));
        }
        idle.sort();
        Ok(idle.into_iter().map(|(_, name, bytes)| (name, bytes)).collect())
    }

    /// Removes an image, unless somebody has been given it since it was found idle. The caller has `left`.
    fn discard(&self, name: &str, bytes: u64) -> Result<bool, Error> {
        let gone = self.number_of(GONE);
        let held = lock(&self.held);
        if held.contains_key(name) {
            return Ok(false);
        }
        fs::rename(self.dir.join(name), self.dir.join(&gone))
            .map_err(Error::io("remove", self.dir.join(name)))?;
        drop(held);
        self.erase(&gone)?;
        tracing::info!(image.id = name, bytes, "image removed that nobody uses");
        Ok(true)
    }

    /// See [`Images::collect`].
    fn collect(&self) -> Result<u64, Error> {
        let _removing = lock(&self.left);
        let keep = self.keep.load(Ordering::Relaxed);
        let idle = self.idle()?;
        let mut bytes: u64 = idle.iter().map(|(_, bytes)| bytes).sum();
        let mut removed = 0;
        for (name, own) in idle {
            if bytes <= keep {
                break;
            }
            removed += u64::from(self.discard(&name, own)?);
            bytes -= own;
        }
        Ok(removed)
    }

    /// Removes what nobody uses until as much of the disk is free as is to be left free.
    fn make_room(&self, disk: &OwnedFd) -> Result<(), Trouble> {
        let mut left = lock(&self.left);
        self.clear_left(&mut left);
        let mut idle = self.idle()?.into_iter();
        while !is_free(disk, self.limits.leave_free)? {
            let Some((name, bytes)) = idle.next() else {
                return Err(Trouble::Image(
                    ImageProblem::Unavailable,
                    format!(
                        "cannot be unpacked: less than {} MiB are free on the disk of {}, and no image there is idle; make room \
                         on the node",
                        self.limits.leave_free >> 20,
                        self.dir.display()
                    ),
                ));
            };
            self.discard(&name, bytes)?;
        }
        Ok(())
    }
}

/// Refuses an image other than the one that was given for the same name before.
fn check_known(known: Option<&str>, id: &str) -> Result<(), Trouble> {
    match known {
        Some(known) if known != id => {
            let message = "was replaced by another one while the job ran".to_owned();
            Err(Trouble::Image(ImageProblem::Digest, message))
        }
        Some(_) | None => Ok(()),
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
        return Err(Trouble::Image(ImageProblem::Digest, message));
    }
    if let Some(name) = &image.name {
        let message = format!("is a folder, which has no names; remove `:{name}`");
        return Err(Trouble::Image(ImageProblem::Invalid, message));
    }
    let root = blobs::folder(&image.path)?;
    places::check(&root, &image.path)?;
    describe(&root, image.path.clone(), String::new(), super::ImageConfig::default())
}

fn describe(
    root: &OwnedFd,
    dir: PathBuf,
    id: String,
    config: super::ImageConfig,
) -> Result<SystemImage, Trouble> {
    let [passwd, group] = ["etc/passwd", "etc/group"].map(|path| places::accounts(root, path));
    let account = Account::of(&config.user, passwd, group)?;
    Ok(SystemImage { id, dir, account, programs: places::programs(root)?, config })
}
