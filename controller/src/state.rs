//! The state folder: everything that makes this controller the one that its nodes know.
//!
//! Its parts belong together: the database, the certificate authority (`pki/ca.key` and `pki/ca.crt`) that every node
//! trusts, the bodies that rows name, and the admin token. A controller that would make a missing part anew would be another
//! controller, or one that has lost its jobs, so it does that only while a **first start** is under way:
//!
//! ```text
//! mark `first-start` ─► database ─► ca.key ─► ca.crt ─► bodies ─► admin.token ─► its row ─► authority's hash ─► unmark
//! ```
//!
//! *Guarantees.* The mark is set only in a folder without any part. A first start that is killed, at any point, goes on
//! at the next start: nobody has been told of what it made. The hash in the database is written last and ends the making; from
//! then on every start demands all parts, and the authority that has this hash. `admin.token` alone may be taken away:
//! the token goes on working, and `--new-admin-token` replaces it.
//!
//! Authority, bodies and admin token may be kept elsewhere, as controllers that share a database need it. Such a part is
//! not looked for in the folder; the authority and the admin token are then never made here.
//!
//! *Assumptions.* One process at a time works on a folder's parts; `.lock` sees to it. Controllers that share a database
//! have the same authority: the first start of another one ends with what to copy.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use windlass_store::{ApiTokenRow, Store, StoreOptions, StoreUrl};

use crate::bodies::{self, Bodies, Place};
use crate::clock::{Clock, IdSource};
use crate::tls::{self, Authority};
use crate::{auth, backup};

/// A part of the state folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The database, where it is a file.
    Database,
    /// The authority's private key.
    Key,
    /// The authority's certificate.
    Certificate,
    /// The folder with logs and inputs.
    Bodies,
    /// The file with the admin token.
    AdminToken,
}

impl Part {
    /// Its name in the folder.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Database => "windlass.db",
            Self::Key => "pki/ca.key",
            Self::Certificate => "pki/ca.crt",
            Self::Bodies => "bodies",
            Self::AdminToken => "admin.token",
        }
    }

    /// What it is, and how to get it back.
    const fn explain(self) -> &'static str {
        match self {
            Self::Database => "the database of all jobs, nodes and tokens; restore it from a backup",
            Self::Key => {
                "the private key of the authority that every node trusts; restore it from a backup, copy it from another \
                 controller of the same database, or name the folder that has it with --authority"
            }
            Self::Certificate => {
                "the certificate of the authority that every node trusts; restore it from a backup, copy it from another \
                 controller of the same database, or name the folder that has it with --authority"
            }
            Self::Bodies => {
                "the folder with the logs and inputs of jobs; mount it or restore it from a backup, name it with \
                 --bodies, or make it empty to go on without them"
            }
            Self::AdminToken => "the operators' token; `--new-admin-token` makes another",
        }
    }
}

/// Why the state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused something.
    #[error("could not use the state folder {}; choose another with --state-dir, or make it writable", path.display())]
    Folder {
        /// What was to be used: the folder, or a part of it.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The folder belongs to another user, who could read and change the keys in it.
    #[error(
        "the state folder {} belongs to user {owner}, and this controller runs as user {user}; \
         give it to that user (chown {user}), or name a folder inside it with --state-dir",
        path.display()
    )]
    Owner {
        /// The folder.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who runs the controller.
        user: u32,
    },
    /// The folder is open to others and used for something else.
    #[error(
        "the state folder {} is open to other users and holds what is not Windlass's, such as `{example}`; \
         name a folder of its own with --state-dir, or close this one (chmod 700)",
        path.display()
    )]
    Shared {
        /// The folder.
        path: PathBuf,
        /// Something in it.
        example: String,
    },
    /// A restore was cut short.
    #[error(
        "a restore into {} was cut short, and the folder is neither what it was nor what it should be; run `windlass restore` \
         again with the same backup or another",
        path.display()
    )]
    HalfRestored {
        /// The state folder.
        path: PathBuf,
    },
    /// A part is missing and others are there.
    #[error(
        "{} is missing: it is {}; to begin anew, move the whole state folder away: every node must then join again",
        path.display(),
        part.explain()
    )]
    Missing {
        /// The part.
        part: Part,
        /// Where it should be.
        path: PathBuf,
    },
    /// The database is an empty one, and the state folder is not.
    #[error(
        "the database is empty, but the state folder {} belongs to one that was in use; restore the database from a backup \
         or name the right one, or, to begin anew, move the whole state folder away: every node must then join again",
        path.display()
    )]
    EmptyDatabase {
        /// The state folder.
        path: PathBuf,
    },
    /// The database belongs to another authority.
    #[error(
        "{} is not the authority that the nodes of this database trust: its SHA-256 is {found}, not {expected}; restore \
         the folder `pki` and the database from the same backup, or copy `pki` from a controller of this database",
        path.display()
    )]
    OtherAuthority {
        /// The certificate.
        path: PathBuf,
        /// Its hash.
        found: String,
        /// The hash that the database names.
        expected: String,
    },
    /// The admin token in the file is not one of the database.
    #[error(
        "{} holds no token of this database; put the right one there, or move it away: to make another, start once with \
         --new-admin-token",
        path.display()
    )]
    ForeignToken {
        /// The file.
        path: PathBuf,
    },
    /// The admin token that was made elsewhere cannot be read.
    #[error("could not read --admin-token-file {}", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The admin token that was made elsewhere is not one.
    #[error(
        "--admin-token-file {} holds no admin token: it must be one line of {TOKEN_LENGTHS} characters without spaces; \
         `windlass identity create` makes one",
        path.display()
    )]
    WeakToken {
        /// The file.
        path: PathBuf,
    },
    /// The database could not be opened or asked.
    #[error("could not open the database")]
    Store(#[from] windlass_store::Error),
    /// The folder for bodies could not be opened.
    #[error(transparent)]
    Bodies(#[from] bodies::Error),
    /// The authority cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::Error),
}

/// What only the owner may enter, read and change.
const MODE: u32 = 0o700;
/// Others may put files into a folder with this bit, such as `/tmp`.
const STICKY: u32 = 0o1000;
/// The mark of a first start that is under way.
const FIRST_START: &str = "first-start";
/// The file that is locked while parts are looked at and made.
pub(crate) const LOCK: &str = ".lock";
/// Names, or beginnings of names, of what a controller keeps in its folder.
const OURS: [&str; 7] = ["windlass.db", "pki", "admin.", "bodies", "secrets.", FIRST_START, LOCK];
/// The setting that names the authority, by the SHA-256 of its certificate in hexadecimal.
pub(crate) const AUTHORITY: &str = "authority";
/// The setting with the secret that node tokens are signed with. A database with it has been in use.
pub(crate) const NODE_TOKEN_SECRET: &str = "node-token-secret";
/// The name of the admin token's row.
const ADMIN: &str = "admin";
/// How long an admin token may be that was made elsewhere. Only its plain hash is stored, so it must be long enough to resist guessing
/// by chance alone; what is longer is no token but the wrong file.
const TOKEN_LENGTH: std::ops::RangeInclusive<usize> = 32..=256;
/// The same in words.
const TOKEN_LENGTHS: &str = "32 to 256";

/// Which admin token a controller has.
#[derive(Clone, Copy, Debug)]
pub(crate) enum AdminToken<'a> {
    /// The one in the folder; made at the first start.
    Kept,
    /// Another one than there was.
    Replaced,
    /// The one in this file.
    Given(&'a Path),
}

/// What a state folder is opened with.
pub(crate) struct Opening<'a> {
    /// The folder.
    pub(crate) folder: &'a Path,
    /// Where the database is.
    pub(crate) url: StoreUrl,
    /// Which admin token there is to be.
    pub(crate) admin_token: AdminToken<'a>,
    /// Where the authority is, if not in the folder.
    pub(crate) authority: Option<&'a Path>,
    /// Where bodies are, if not in the folder.
    pub(crate) bodies: Option<&'a Place>,
    /// What time it is.
    pub(crate) clock: &'a dyn Clock,
    /// New ids and secrets.
    pub(crate) ids: &'a dyn IdSource,
}

/// An open state folder.
pub(crate) struct State {
    /// The database.
    pub(crate) store: Store,
    /// The bodies.
    pub(crate) bodies: Bodies,
    /// The authority.
    pub(crate) authority: Authority,
    /// The admin token's file, which may have been taken away.
    pub(crate) admin_token_file: PathBuf,
}

/// What a folder looks like before anything in it is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// There is no part in it.
    Empty,
    /// A first start is, or was, under way.
    Begun,
    /// There are parts, and they should be all.
    Complete,
}

/// Opens a state folder, and makes what belongs into it if this is its first start.
pub(crate) async fn open(opening: Opening<'_>) -> Result<State, Error> {
    let Opening { folder, url, admin_token, authority, bodies, clock, ids } = opening;
    secure(folder)?;
    let failed = |source| Error::Folder { path: folder.to_owned(), source };
    let starting = lock(folder.join(LOCK)).await.map_err(failed)?;
    if exists(&folder.join(backup::MARK)).map_err(failed)? {
        return Err(Error::HalfRestored { path: folder.to_owned() });
    }
    let database = match &url {
        StoreUrl::Sqlite(file) => Some(file.clone()),
        StoreUrl::SqliteMemory | StoreUrl::Postgres(_) => None,
    };
    let stage = stage(folder, database.as_deref()).map_err(failed)?;
    match (stage, &database) {
        (Stage::Empty, _) => {
            let text =
                "The first start of this controller is under way, or was cut short and goes on next time.\n";
            fs::write(folder.join(FIRST_START), text).map_err(failed)?;
        }
        (Stage::Complete, Some(file)) if !exists(file).map_err(failed)? => {
            return Err(Error::Missing { part: Part::Database, path: file.clone() });
        }
        (Stage::Begun | Stage::Complete, _) => {}
    }
    let store = Store::open(StoreOptions { url, read_connections: 4 }).await?;
    let known = store.get_setting(AUTHORITY).await?;
    let first = known.is_none() && stage != Stage::Complete;
    let place = bodies.cloned().unwrap_or_else(|| Place::Folder(folder.join(Part::Bodies.name())));
    if first {
        if authority.is_none() {
            Authority::ensure(folder)?;
        }
        place.ensure()?;
    } else {
        if known.is_none() && store.get_setting(NODE_TOKEN_SECRET).await?.is_none() {
            return Err(Error::EmptyDatabase { path: folder.to_owned() });
        }
        let own = authority.is_none();
        let mut needed: Vec<_> = [Part::Key, Part::Certificate]
            .iter()
            .filter(|_| own)
            .map(|part| (*part, folder.join(part.name())))
            .collect();
        if let Place::Folder(path) = &place {
            needed.push((Part::Bodies, path.clone()));
        }
        for (part, path) in needed {
            if !exists(&path).map_err(failed)? {
                return Err(Error::Missing { part, path });
            }
        }
    }
    let authority = match authority {
        Some(folder) => Authority::given(folder)?,
        None => Authority::open(folder)?,
    };
    let found = authority.fingerprint();
    let differs = |expected: Vec<u8>| Error::OtherAuthority {
        path: authority.file().to_owned(),
        found: found.clone(),
        expected: String::from_utf8_lossy(&expected).into_owned(),
    };
    if let Some(expected) = known.filter(|known| known != found.as_bytes()) {
        return Err(differs(expected));
    }
    let bodies = Bodies::at(&place).await?;
    let tokens = Tokens { store: &store, file: folder.join(Part::AdminToken.name()), clock, ids };
    let admin_token_file = match admin_token {
        AdminToken::Given(file) => {
            tokens.adopt(file).await?;
            file.to_owned()
        }
        AdminToken::Kept | AdminToken::Replaced if first => tokens.ensure().await?,
        AdminToken::Replaced => tokens.replace().await?,
        AdminToken::Kept => tokens.check().await?,
    };
    let expected = store.put_setting_if_absent(AUTHORITY, found.clone().into_bytes()).await?;
    if expected != found.as_bytes() {
        // Another controller's first start on the same database was quicker.
        return Err(differs(expected));
    }
    match fs::remove_file(folder.join(FIRST_START)) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    drop(starting);
    Ok(State { store, bodies, authority, admin_token_file })
}

/// Waits for the lock; it is held until the file is dropped.
async fn lock(path: PathBuf) -> io::Result<File> {
    let locked = tokio::task::spawn_blocking(move || {
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        file.lock().map(|()| file)
    });
    locked.await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

fn stage(folder: &Path, database: Option<&Path>) -> io::Result<Stage> {
    if exists(&folder.join(FIRST_START))? {
        return Ok(Stage::Begun);
    }
    for part in [Part::Key, Part::Certificate, Part::AdminToken] {
        if exists(&folder.join(part.name()))? {
            return Ok(Stage::Complete);
        }
    }
    if let Some(database) = database
        && exists(database)?
    {
        return Ok(Stage::Complete);
    }
    // An empty one may be a mount point.
    match fs::read_dir(folder.join(Part::Bodies.name())) {
        Ok(mut entries) => Ok(if entries.next().is_some() { Stage::Complete } else { Stage::Empty }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Stage::Empty),
        Err(error) => Err(error),
    }
}

fn exists(path: &Path) -> io::Result<bool> {
    path.try_exists()
}

/// The admin token in the folder, and its row.
struct Tokens<'a> {
    store: &'a Store,
    file: PathBuf,
    clock: &'a dyn Clock,
    ids: &'a dyn IdSource,
}

impl Tokens<'_> {
    /// Makes the file, then its row; goes on where it was cut short. Yields the file, as the others do.
    async fn ensure(self) -> Result<PathBuf, Error> {
        let token = match self.kept()? {
            Some(token) => token,
            None => {
                let token = auth::secret_text("wlt_", self.ids.secret());
                self.write(&token)?;
                token
            }
        };
        if self.store.find_api_token(&auth::secret_hash(&token)).await?.is_none() {
            self.store.create_api_token(self.row(&token)).await?;
        }
        tracing::info!(file = %self.file.display(), "admin token created");
        Ok(self.file)
    }

    /// Makes another token; the ones there were end.
    async fn replace(self) -> Result<PathBuf, Error> {
        let token = auth::secret_text("wlt_", self.ids.secret());
        self.store.replace_api_tokens(self.row(&token)).await?;
        self.write(&token)?;
        tracing::info!(file = %self.file.display(), "admin token replaced; the one before has ended");
        Ok(self.file)
    }

    /// Checks that the file, where there is one, holds a token of this database.
    async fn check(self) -> Result<PathBuf, Error> {
        match self.kept()? {
            None => {
                tracing::info!(
                    file = %self.file.display(),
                    "no admin token is kept here; the one there was goes on working, --new-admin-token replaces it"
                );
                Ok(self.file)
            }
            Some(token) if self.store.find_api_token(&auth::secret_hash(&token)).await?.is_some() => {
                Ok(self.file)
            }
            Some(_) => Err(Error::ForeignToken { path: self.file.clone() }),
        }
    }

    /// Makes the token in a file that was made elsewhere the only one there is.
    async fn adopt(&self, file: &Path) -> Result<(), Error> {
        let text =
            fs::read_to_string(file).map_err(|source| Error::TokenFile { path: file.to_owned(), source })?;
        let token = text.trim_end_matches(['\r', '\n']);
        if !TOKEN_LENGTH.contains(&token.len()) || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::WeakToken { path: file.to_owned() });
        }
        if self.store.find_api_token(&auth::secret_hash(token)).await?.is_none() {
            self.store.replace_api_tokens(self.row(token)).await?;
            tracing::info!(file = %file.display(), "admin token taken over; another one that there was has ended");
        }
        Ok(())
    }

    fn kept(&self) -> Result<Option<String>, Error> {
        match fs::read_to_string(&self.file) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Folder { path: self.file.clone(), source }),
        }
    }

    fn write(&self, token: &str) -> Result<(), Error> {
        Ok(tls::write_private(&self.file, format!("{token}\n").as_bytes())?)
    }

    fn row(&self, token: &str) -> ApiTokenRow {
        let now = self.clock.now();
        ApiTokenRow {
            id: self.ids.uid(now),
            secret_hash: auth::secret_hash(token),
            name: ADMIN.to_owned(),
            role: "admin".to_owned(),
            created_at: now,
            expires_at: None,
        }
    }
}

/// Makes the folder where there is none, and closes it to everybody but its owner.
pub(crate) fn secure(path: &Path) -> Result<(), Error> {
    let failed = |source| Error::Folder { path: path.to_owned(), source };
    DirBuilder::new().recursive(true).mode(MODE).create(path).map_err(failed)?;
    let found = fs::metadata(path).map_err(failed)?;
    let user = rustix::process::geteuid().as_raw();
    if found.uid() != user {
        return Err(Error::Owner { path: path.to_owned(), owner: found.uid(), user });
    }
    if mode(&found) & !MODE == 0 {
        return Ok(());
    }
    if let Some(example) = foreign(path, &found).map_err(failed)? {
        return Err(Error::Shared { path: path.to_owned(), example });
    }
    fs::set_permissions(path, Permissions::from_mode(MODE)).map_err(failed)
}

/// Something in the folder that tells that closing it would take it from others.
fn foreign(path: &Path, found: &Metadata) -> io::Result<Option<String>> {
    if mode(found) & STICKY != 0 {
        return Ok(Some("files of everybody".to_owned()));
    }
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        // A file system of its own has one from the start.
        let ours = OURS.iter().any(|ours| name.starts_with(ours)) || backup::is_ours(&name);
        if name != "lost+found" && !ours {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Makes a folder inside the state folder where there is none, and closes it to everybody but its owner.
pub(crate) fn ensure_private_folder(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(MODE).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let found = mode(&fs::metadata(path)?);
    if found & !MODE == 0 { Ok(()) } else { fs::set_permissions(path, Permissions::from_mode(MODE)) }
}

fn mode(of: &Metadata) -> u32 {
    of.permissions().mode() & 0o7777
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with_mode(bits: u32) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(bits)).unwrap();
        folder
    }

    fn mode_of(path: &Path) -> u32 {
        mode(&fs::metadata(path).unwrap())
    }

    #[test]
    fn a_folder_that_was_open_to_others_is_closed() {
        let folder = folder_with_mode(0o755);
        fs::write(folder.path().join("windlass.db-wal"), "").unwrap();
        fs::create_dir(folder.path().join("lost+found")).unwrap();
        secure(folder.path()).unwrap();
        assert_eq!(mode_of(folder.path()), 0o700);
        let new = folder.path().join("a/b");
        secure(&new).unwrap();
        assert_eq!(mode_of(&new), 0o700);
    }

    #[test]
    fn a_folder_of_others_things_is_left_as_it_is() {
        let folder = folder_with_mode(0o755);
        fs::write(folder.path().join("notes.txt"), "").unwrap();
        let error = secure(folder.path()).unwrap_err();
        assert!(error.to_string().contains("such as `notes.txt`"), "{error}");
        assert_eq!(mode_of(folder.path()), 0o755);
        fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).unwrap();
        secure(folder.path()).expect("nobody else can enter it");
        let shared = folder_with_mode(0o1777);
        assert!(matches!(secure(shared.path()), Err(Error::Shared { .. })));
    }

    #[test]
    fn a_folder_of_another_user_is_refused() {
        let root = rustix::process::geteuid().is_root();
        let folder = tempfile::tempdir().unwrap();
        let path = if root {
            std::os::unix::fs::chown(folder.path(), Some(12345), None).unwrap();
            folder.path()
        } else {
            Path::new("/")
        };
        let error = secure(path).unwrap_err();
        assert!(matches!(error, Error::Owner { .. }), "{error}");
    }
}
