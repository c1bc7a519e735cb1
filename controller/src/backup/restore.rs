//! Getting a backup back.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::mpsc;
use windlass_crds::Span;
use windlass_store::StoreUrl;
use windlass_store::transfer::{self, Cell, FileHold, Loader, Restored, Restoring, Settled, TableShape};

use super::archive::{self, Entry};
use super::folder::{self, Folder, Staging};
use super::{Error, Header, Manifest, PlaceArgs};
use crate::bodies::{Bodies, Place};
use crate::clock::{Clock, IdSource};
use crate::state::{self, Part};
use crate::tls::Authority;

/// The shortest hold that is taken by default: what controllers grant by default when they stop in order.
const HOLD: Duration = Duration::from_secs(15 * 60);

/// What to restore, and where to.
#[derive(Clone, Debug)]
pub struct Restore<'a> {
    /// The controller.
    pub place: &'a PlaceArgs,
    /// The backup.
    pub file: &'a Path,
    /// Whether it takes the place of what is there.
    pub replace: bool,
    /// How long jobs of the backup may still run on nodes without this controller knowing; by default 15 minutes, or the
    /// longest `offlineGrace` of a node if that is longer.
    pub hold: Option<Duration>,
}

/// What was restored.
#[derive(Clone, Debug)]
pub struct Restoration {
    /// What the backup says of itself.
    pub header: Header,
    /// What it holds.
    pub manifest: Manifest,
    /// What the restored store knows of that.
    pub restored: Restored,
    /// Where the parts are that were in the state folder before.
    pub kept: Option<PathBuf>,
}

/// Verifies all of a backup.
///
/// # Errors
/// [`Error::Foreign`], [`Error::NewerFormat`], [`Error::Damaged`], a schema that is newer than this program's, and tables
/// that are not those of its schema.
pub async fn check(file: &Path) -> Result<(Header, Manifest), Error> {
    let path = file.to_owned();
    let checked = tokio::task::spawn_blocking(move || {
        let mut files = Vec::new();
        let mut tables: Vec<TableShape> = Vec::new();
        let (header, manifest) = archive::read::<Error>(&path, |header, entry| match entry {
            Entry::Rows(shape, _) => {
                if !tables.contains(&shape) {
                    tables.push(shape);
                }
                check_schema(header)
            }
            Entry::State(name, _) => {
                files.push(part(&path, &name)?);
                Ok(())
            }
            Entry::Body(key, _) => check_key(&path, &key),
        })?;
        check_schema(&header)?;
        let complete = [Part::Key, Part::Certificate].iter().all(|part| files.contains(part));
        if header.secrets && !complete {
            let problem = "it lacks the authority that it says to hold".to_owned();
            return Err(Error::Damaged { path, problem });
        }
        Ok((header, manifest, tables))
    });
    let checked = checked.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    let (header, manifest, tables) = checked?;
    transfer::check_tables(header.schema, &tables).await?;
    Ok((header, manifest))
}

/// Restores a backup: all of it, or nothing.
///
/// # Errors
/// As [`Error`] says. What was there is as it was, unless the error came while parts were swapped: then no controller
/// starts before the restore was run again.
pub async fn restore(
    restore: &Restore<'_>,
    clock: &dyn Clock,
    ids: &dyn IdSource,
) -> Result<Restoration, Error> {
    let Restore { place, file, replace, hold: _ } = restore;
    let url = place.url()?;
    let (header, manifest) = check(file).await?;
    let bodies = match place.bodies() {
        Place::Folder(path) => path,
        bucket @ Place::Bucket { .. } => return Err(Error::IntoBucket { place: bucket }),
    };
    let folder = Folder::take(&place.state_dir, bodies, matches!(url, StoreUrl::Sqlite(_)))?;
    let secrets = header.secrets && place.authority.is_none();
    let _hold = match &url {
        StoreUrl::Sqlite(database) => Some(FileHold::take(database)?),
        StoreUrl::SqliteMemory | StoreUrl::Postgres(_) => None,
    };
    let replace = *replace || folder.is_marked()?;
    if !replace && let Some(part) = folder.occupied(secrets)? {
        return Err(Error::NotEmpty {
            place: part.display().to_string(),
            keeps: "what is in the folder is kept there under another name",
        });
    }
    let staging = folder.stage()?;
    let work = Work { restore, replace, staging: &staging, header: &header, secrets };
    let (restored, settled) = match work.fill(&url, clock, ids).await {
        Ok(filled) => filled,
        Err(error) => {
            staging.discard();
            return Err(error);
        }
    };
    staging.sync()?;
    let time = restored.at.strftime("%Y%m%dT%H%M%SZ").to_string();
    folder.mark()?;
    settled.commit().await?;
    let moves = folder.moves(&staging, &time)?;
    moves.iter().try_for_each(folder::perform)?;
    folder.unmark(&staging)?;
    tracing::info!(
        backup.at = %header.at,
        state.dir = %place.state_dir.display(),
        hold.until = %restored.hold_until,
        "backup restored"
    );
    Ok(Restoration { header, manifest, restored, kept: folder::kept(&moves) })
}

/// A restore that is being staged.
struct Work<'a> {
    restore: &'a Restore<'a>,
    /// Whether it takes the place of what is on the server.
    replace: bool,
    staging: &'a Staging,
    header: &'a Header,
    /// Whether authority and admin token are restored.
    secrets: bool,
}

/// What is read from the backup, for what is written.
enum Piece {
    Rows(TableShape, Vec<Vec<Cell>>),
    State(Part, Vec<u8>),
    BodyBegins(String),
    BodyGoesOn(Bytes),
    BodyEnds,
}

/// What must be known of the rows.
#[derive(Default)]
struct Seen {
    authority: Option<String>,
    grace: Duration,
}

impl Work<'_> {
    /// Stages everything.
    async fn fill(
        &self,
        url: &StoreUrl,
        clock: &dyn Clock,
        ids: &dyn IdSource,
    ) -> Result<(Restored, Settled), Error> {
        let schema = self.header.schema;
        let mut loader = match url {
            StoreUrl::Sqlite(_) | StoreUrl::SqliteMemory => {
                Loader::into_file(&self.staging.database(), schema).await?
            }
            StoreUrl::Postgres(url) => match Loader::into_server(url, schema, self.replace).await {
                Err(transfer::Error::NotEmpty { place }) => {
                    return Err(Error::NotEmpty {
                        place,
                        keeps: "what is in the database is lost then, so back it up before",
                    });
                }
                begun => begun?,
            },
        };
        let bodies = Bodies::staging(&self.staging.bodies)?;
        let (sender, mut pieces) = mpsc::channel(4);
        let path = self.restore.file.to_owned();
        let reading = tokio::task::spawn_blocking(move || send(&path, &sender));
        let mut seen = Seen::default();
        let mut body: Option<(String, Vec<Bytes>, Option<crate::bodies::Upload>)> = None;
        while let Some(piece) = pieces.recv().await {
            match piece {
                Piece::Rows(shape, rows) => {
                    seen.look(&shape, &rows);
                    loader.insert(&shape, rows).await?;
                }
                Piece::State(part, content) if self.secrets => self.staging.keep(part, &content)?,
                Piece::State(..) => {}
                Piece::BodyBegins(key) => body = Some((key, Vec::new(), None)),
                Piece::BodyGoesOn(bytes) => {
                    if let Some((key, held, upload)) = &mut body {
                        // Most are small, and written at once.
                        if upload.is_none() && !held.is_empty() {
                            let mut begun = bodies.upload(key).await?;
                            for piece in held.drain(..) {
                                begun.put(piece).await?;
                            }
                            *upload = Some(begun);
                        }
                        match upload {
                            Some(upload) => upload.put(bytes).await?,
                            None => held.push(bytes),
                        }
                    }
                }
                Piece::BodyEnds => match body.take() {
                    Some((_, _, Some(upload))) => upload.complete().await?,
                    Some((key, held, None)) => {
                        bodies.put(&key, held.into_iter().next().unwrap_or_default()).await?;
                    }
                    None => {}
                },
            }
        }
        let read = reading.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        // It was verified, but it may have changed since.
        if read? != *self.header {
            let problem = "it has changed while it was read".to_owned();
            return Err(Error::Damaged { path: self.restore.file.to_owned(), problem });
        }
        if !self.secrets {
            self.check_authority(seen.authority)?;
        }
        let restoring = Restoring {
            now: clock.now(),
            hold: self.restore.hold.unwrap_or_else(|| HOLD.max(seen.grace)),
            version: self.header.version,
            // Nodes prove themselves anew, also those whose agents were started again since the backup.
            settings: vec![(state::NODE_TOKEN_SECRET.to_owned(), ids.secret().to_vec())],
        };
        Ok(loader.settle(&restoring).await?)
    }

    /// Checks that the controller has the authority of the backup's nodes, where it is not restored.
    fn check_authority(&self, expected: Option<String>) -> Result<(), Error> {
        let place = self.restore.place;
        for part in [Part::Key, Part::Certificate] {
            let path = place.secret(part);
            if !path.exists() {
                return Err(Error::NoAuthority { path });
            }
        }
        let authority = match &place.authority {
            Some(folder) => Authority::given(folder)?,
            None => Authority::open(&place.state_dir)?,
        };
        let found = authority.fingerprint();
        match expected {
            Some(expected) if expected != found => {
                Err(Error::OtherAuthority { path: authority.file().to_owned(), found, expected })
            }
            Some(_) | None => Ok(()),
        }
    }
}

impl Seen {
    fn look(&mut self, shape: &TableShape, rows: &[Vec<Cell>]) {
        let column = |name: &str| shape.columns.iter().position(|column| column.name == name);
        match shape.name.as_str() {
            "settings" => {
                let (Some(key), Some(value)) = (column("key"), column("value")) else { return };
                for row in rows {
                    if let (Cell::Text(key), Cell::Bytes(value)) = (&row[key], &row[value])
                        && key == state::AUTHORITY
                    {
                        self.authority = Some(String::from_utf8_lossy(value).into_owned());
                    }
                }
            }
            "nodes" => {
                let Some(spec) = column("spec") else { return };
                for row in rows {
                    if let Cell::Text(spec) = &row[spec]
                        // What cannot be read here is told when the controller reads it.
                        && let Ok(Grace { offline_grace: Some(grace) }) = serde_json::from_str(spec)
                    {
                        self.grace = self.grace.max(grace.get());
                    }
                }
            }
            _ => {}
        }
    }
}

/// What of a node's configuration says how long it goes on alone.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Grace {
    offline_grace: Option<Span>,
}

/// Reads the backup and sends its pieces; stops where nobody takes them any more.
fn send(path: &Path, pieces: &mpsc::Sender<Piece>) -> Result<Header, Error> {
    let gone = || Error::Damaged { path: path.to_owned(), problem: "it was not read to its end".to_owned() };
    let send = |piece| pieces.blocking_send(piece).map_err(|_| gone());
    let (header, _) = archive::read::<Error>(path, |_, entry| match entry {
        Entry::Rows(shape, rows) => send(Piece::Rows(shape, rows)),
        Entry::State(name, content) => send(Piece::State(part(path, &name)?, content)),
        Entry::Body(key, content) => {
            check_key(path, &key)?;
            send(Piece::BodyBegins(key))?;
            loop {
                let mut piece = Vec::new();
                let read = content.take(crate::bodies::PART as u64).read_to_end(&mut piece);
                read.map_err(super::file_error("read", path))?;
                if piece.is_empty() {
                    return send(Piece::BodyEnds);
                }
                send(Piece::BodyGoesOn(piece.into()))?;
            }
        }
    })?;
    Ok(header)
}

fn check_schema(header: &Header) -> Result<(), Error> {
    let (found, known) = (header.schema, transfer::newest_schema());
    if found > known { Err(transfer::Error::NewerSchema { found, known }.into()) } else { Ok(()) }
}

/// The part of the state folder that an entry is.
fn part(path: &Path, name: &str) -> Result<Part, Error> {
    let parts = [Part::Key, Part::Certificate, Part::AdminToken];
    parts.into_iter().find(|part| part.name() == name).ok_or_else(|| Error::Damaged {
        path: path.to_owned(),
        problem: format!("`{name}` is no part of a state folder"),
    })
}

/// Refuses a key that would lead out of the folder of bodies.
fn check_key(path: &Path, key: &str) -> Result<(), Error> {
    let leads_out = key.split('/').any(|piece| piece.is_empty() || piece == "." || piece == "..");
    if leads_out || folder::is_ours(key.split('/').next().unwrap_or_default()) {
        let problem = format!("`{key}` is no key of a body");
        return Err(Error::Damaged { path: path.to_owned(), problem });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::backup::{self, Backup};
    use crate::clock::{RandomIds, SystemClock};
    use crate::state::{AdminToken, Opening, State};

    async fn open(folder: &Path) -> Result<State, state::Error> {
        let (clock, ids) = (SystemClock, RandomIds::from_os());
        let url = StoreUrl::Sqlite(folder.join("windlass.db"));
        let opening = Opening {
            folder,
            url,
            admin_token: AdminToken::Kept,
            authority: None,
            bodies: None,
            clock: &clock,
            ids: &ids,
        };
        state::open(opening).await
    }

    fn take(folder: &Path) -> Folder {
        Folder::take(folder, folder.join("bodies"), true).unwrap()
    }

    async fn close(state: State) {
        state.store.close().await.unwrap();
    }

    /// A restore over a folder that is in use, as far as the swap: what it moves, step by step.
    async fn staged(folder: &Path, file: &Path) -> (Folder, Staging, Vec<folder::Move>) {
        let place = PlaceArgs::new(folder.to_owned());
        let restore = Restore { place: &place, file, replace: true, hold: None };
        let (header, _) = check(file).await.unwrap();
        let taken = take(folder);
        let staging = taken.stage().unwrap();
        let work =
            Work { restore: &restore, replace: true, staging: &staging, header: &header, secrets: true };
        let url = StoreUrl::Sqlite(folder.join("windlass.db"));
        work.fill(&url, &SystemClock, &RandomIds::from_os()).await.unwrap();
        let moves = taken.moves(&staging, "20300317T174640Z").unwrap();
        (taken, staging, moves)
    }

    #[tokio::test]
    async fn a_backup_that_could_not_be_restored_for_its_tables_does_not_pass_for_whole() {
        let work = tempfile::tempdir().unwrap();
        let path = work.path().join("backup");
        let header = Header {
            format: backup::FORMAT,
            program: "0.0.0".to_owned(),
            schema: 1,
            version: 1,
            at: SystemClock.now(),
            secrets: false,
        };
        let file = std::fs::File::create_new(&path).unwrap();
        let mut writer = archive::Writer::begin(file, &path, &header).unwrap();
        let theirs = TableShape { name: "bar".to_owned(), columns: Vec::new() };
        writer.entry("database/bar.0.jsonl", &archive::first_line(&theirs)).unwrap();
        let tables = std::collections::BTreeMap::from([("bar".to_owned(), 0)]);
        let parts = std::collections::BTreeMap::new();
        writer.finish(Manifest { tables, bodies: 0, missing_bodies: 0, parts }).unwrap();
        let refused = check(&path).await.unwrap_err();
        assert!(refused.to_string().contains("table `bar` is none of it"), "{refused}");
    }

    #[tokio::test]
    async fn a_restore_that_is_cut_short_leaves_the_old_state_or_one_that_no_controller_starts_on() {
        let work = tempfile::tempdir().unwrap();
        let (source, file) = (work.path().join("source"), work.path().join("backup"));
        let state = open(&source).await.unwrap();
        state.store.put_setting_if_absent("of", b"the backup".to_vec()).await.unwrap();
        state.bodies.put("inputs/a", "a".into()).await.unwrap();
        let input = windlass_store::InputRow { digest: "d".into(), size: 1, object_key: "inputs/a".into() };
        state.store.put_input(SystemClock.now(), input).await.unwrap();
        close(state).await;
        let place = PlaceArgs::new(source);
        backup::create(&Backup { place: &place, file: &file, secrets: true }, &SystemClock).await.unwrap();

        let mut performed = 0;
        loop {
            let folder = work.path().join(format!("cut-{performed}"));
            let state = open(&folder).await.unwrap();
            state.store.put_setting_if_absent("of", b"the folder".to_vec()).await.unwrap();
            state.bodies.put("logs/b", "b".into()).await.unwrap();
            close(state).await;
            let (taken, staging, moves) = staged(&folder, &file).await;
            drop(taken);
            // Staged, and cut short: everything is as it was.
            let state = open(&folder).await.unwrap();
            assert_eq!(state.store.get_setting("of").await.unwrap().unwrap(), b"the folder");
            close(state).await;
            let taken = take(&folder);
            taken.mark().unwrap();
            moves.iter().take(performed).try_for_each(folder::perform).unwrap();
            let complete = performed == moves.len();
            if complete {
                taken.unmark(&staging).unwrap();
            }
            drop(taken);
            if !complete {
                let Err(refused) = open(&folder).await else { panic!("it started after {performed} moves") };
                assert!(refused.to_string().contains("`windlass restore` again"), "{refused}");
                let place = PlaceArgs::new(folder.clone());
                let again = Restore { place: &place, file: &file, replace: false, hold: None };
                // At the time that the folder for the old parts has in its name.
                let clock = crate::clock::ManualClock::at_millis(1_900_000_000_000);
                restore(&again, &clock, &RandomIds::from_os()).await.unwrap();
            }
            let state = open(&folder).await.unwrap();
            assert_eq!(state.store.get_setting("of").await.unwrap().unwrap(), b"the backup");
            assert_eq!(state.bodies.get("inputs/a").await.unwrap(), "a");
            assert!(state.bodies.get("logs/b").await.is_err(), "the old ones are out of the way");
            assert!(fs::read_dir(&folder).unwrap().all(|entry| {
                let name = entry.unwrap().file_name();
                name != "restoring" && name != folder::MARK
            }));
            close(state).await;
            if complete {
                assert!(performed >= 6, "{moves:?}");
                return;
            }
            performed += 1;
        }
    }
}
