//! Taking a backup.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use futures::TryStreamExt as _;
use windlass_store::transfer::{Cell, Snapshot, TableShape};

use super::archive::{self, BODIES, DATABASE, STATE, Writer};
use super::{Error, FORMAT, Header, Manifest, PlaceArgs, file_error};
use crate::bodies::{self, Bodies, Place};
use crate::clock::Clock;
use crate::state::{self, Part};

/// Rows are written in pieces of about this size, because the length of an entry comes before it.
const PIECE: usize = 4 << 20;

/// What to back up, and where to.
#[derive(Clone, Debug)]
pub struct Backup<'a> {
    /// The controller.
    pub place: &'a PlaceArgs,
    /// The file to write; it must not exist.
    pub file: &'a Path,
    /// Whether the authority's key and the admin token go into it.
    pub secrets: bool,
}

/// Takes a backup. The controller may be working meanwhile: its database is taken as it was at one moment.
///
/// # Errors
/// As [`Error`] says; there is no file then.
pub async fn create(backup: &Backup<'_>, clock: &dyn Clock) -> Result<(Header, Manifest), Error> {
    let Backup { place, file, secrets } = backup;
    let url = place.url()?;
    if file.symlink_metadata().is_ok() {
        return Err(Error::Exists { path: file.to_path_buf() });
    }
    let mut snapshot = Snapshot::open(&url).await?;
    let header = Header {
        format: FORMAT,
        program: env!("CARGO_PKG_VERSION").to_owned(),
        schema: snapshot.schema(),
        version: snapshot.version(),
        at: clock.now(),
        secrets: *secrets,
    };
    let partial = Partial::make(file)?;
    let mut writer = Writer::begin(partial.open()?, file, &header)?;
    for part in [Part::Key, Part::Certificate, Part::AdminToken] {
        if *secrets {
            keep(&mut writer, place, part)?;
        }
    }
    let mut tables = BTreeMap::new();
    let mut keys = BTreeSet::new();
    for shape in snapshot.tables().to_vec() {
        tables.insert(shape.name.clone(), rows(&mut snapshot, &mut writer, &shape, &mut keys).await?);
    }
    drop(snapshot);
    let (mut count, mut missing) = (0, 0);
    if !keys.is_empty() {
        let bodies_place = place.bodies();
        if let Place::Folder(path) = &bodies_place
            && !path.is_dir()
        {
            return Err(state::Error::Missing { part: Part::Bodies, path: path.clone() }.into());
        }
        let bodies = Bodies::at(&bodies_place).await?;
        for key in &keys {
            // One that is gone belongs to a job that was deleted since the view of the database was taken.
            if body(&mut writer, &bodies, key).await? { count += 1 } else { missing += 1 }
        }
    }
    let manifest = Manifest { tables, bodies: count, missing_bodies: missing, parts: BTreeMap::new() };
    let manifest = writer.finish(manifest)?;
    partial.publish()?;
    Ok((header, manifest))
}

/// Puts the authority's key or certificate, or the admin token, into the backup.
fn keep(writer: &mut Writer, place: &PlaceArgs, part: Part) -> Result<(), Error> {
    let path = place.secret(part);
    match fs::read(&path) {
        Ok(content) => writer.entry(&format!("{STATE}/{}", part.name()), &content),
        // It may have been taken away.
        Err(error) if error.kind() == ErrorKind::NotFound && part == Part::AdminToken => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(state::Error::Missing { part, path }.into()),
        Err(source) => Err(Error::File { action: "read", path, source }),
    }
}

/// Puts all rows of a table into the backup; collects the keys of bodies that they name, and counts the rows.
async fn rows(
    snapshot: &mut Snapshot,
    writer: &mut Writer,
    shape: &TableShape,
    keys: &mut BTreeSet<String>,
) -> Result<u64, Error> {
    let first = archive::first_line(shape);
    let key = shape.columns.iter().position(|column| column.name == "object_key");
    let mut piece = first.clone();
    let (mut number, mut count) = (0, 0u64);
    let name = |number: u32| format!("{DATABASE}/{}.{number}.jsonl", shape.name);
    snapshot
        .read::<Error>(shape, |row| {
            if is_replaced(shape, &row) {
                return Ok(());
            }
            if let Some(Cell::Text(key)) = key.and_then(|index| row.get(index)) {
                keys.insert(key.clone());
            }
            archive::line(&row, &mut piece);
            count += 1;
            if piece.len() >= PIECE {
                writer.entry(&name(number), &piece)?;
                number += 1;
                piece.clone_from(&first);
            }
            Ok(())
        })
        .await?;
    // Also of a table without rows, so that a restore knows that it is there.
    if number == 0 || piece.len() > first.len() {
        writer.entry(&name(number), &piece)?;
    }
    Ok(count)
}

/// Whether a restore makes the row anew: a secret that nobody needs to keep.
fn is_replaced(shape: &TableShape, row: &[Cell]) -> bool {
    shape.name == "settings"
        && shape.columns.iter().zip(row).any(|(column, cell)| {
            column.name == "key" && *cell == Cell::Text(state::NODE_TOKEN_SECRET.to_owned())
        })
}

/// Puts a body into the backup; false where it is gone.
async fn body(writer: &mut Writer, bodies: &Bodies, key: &str) -> Result<bool, Error> {
    let Some((len, mut content)) = bodies.open(key).await? else { return Ok(false) };
    let name = format!("{BODIES}/{key}");
    writer.start(&name, len)?;
    let mut found = 0;
    let failed = |source| bodies::Error::Store { action: "read", key: key.to_owned(), source };
    while let Some(piece) = content.try_next().await.map_err(failed)? {
        found += piece.len() as u64;
        writer.write(&name, &piece)?;
    }
    if found != len {
        return Err(Error::Changed { key: key.to_owned(), said: len, found });
    }
    writer.end(len)?;
    Ok(true)
}

/// The file while it is written; goes with this value unless it was published.
struct Partial {
    path: PathBuf,
    target: PathBuf,
    published: bool,
}

impl Partial {
    fn make(target: &Path) -> Result<Self, Error> {
        let mut name = target.as_os_str().to_owned();
        name.push(".partial");
        let path = PathBuf::from(name);
        // One that was left behind by a backup that was killed.
        if path.symlink_metadata().is_ok() {
            fs::remove_file(&path).map_err(file_error("remove", &path))?;
        }
        Ok(Self { path, target: target.to_owned(), published: false })
    }

    fn open(&self) -> Result<File, Error> {
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.path);
        made.map_err(file_error("write", &self.path))
    }

    /// Gives the file its name, where nothing has it; it is on disk when this returns.
    fn publish(mut self) -> Result<(), Error> {
        match fs::hard_link(&self.path, &self.target) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return Err(Error::Exists { path: self.target.clone() });
            }
            // A file system without links.
            Err(_) => {
                fs::rename(&self.path, &self.target).map_err(file_error("write", &self.target))?;
                self.published = true;
            }
        }
        let folder = self.target.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(file_error("write", folder))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = fs::remove_file(&self.path)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(file = %self.path.display(), error = %error, "an incomplete backup could not be removed");
        }
    }
}
