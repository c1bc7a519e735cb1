//! Backups: everything that makes a controller, in one file, taken while it works; and getting it back.
//!
//! ```text
//!  database (one moment of it) ─┐
//!  pki, admin.token ────────────┼─► header, rows, state, bodies, manifest with sums ─► FILE.partial ─► FILE
//!  bodies that rows name ───────┘
//!
//!  FILE ─► verify all of it ─► stage beside what is there ─► mark ─► commit and swap ─► unmark
//! ```
//!
//! The file is a tar, compressed by gzip, so that `tar -tzf` lists it; its rows are plain JSON under the names of columns,
//! so a backup of SQLite can be restored into PostgreSQL and the reverse. Sums tell damage, not forgery: whoever can write
//! the file can make it say what they like.
//!
//! *Guarantees.* A backup exists as a whole or not at all, and only its owner can read it. A restore that is refused or that
//! fails has changed nothing; one that is killed leaves what was there before, or a state folder that a controller refuses
//! to start on until the restore was run again. What a restored store does about what has happened since its backup is told
//! at [`windlass_store::transfer::Restored`].

mod archive;
mod create;
mod folder;
mod restore;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use windlass_crds::Span;
use windlass_store::{StoreUrl, transfer};

use crate::args::{self, StoreText};
use crate::bodies::Place;
use crate::{bodies, state, tls};

pub use create::{Backup, create};
pub(crate) use folder::{MARK, is_ours};
pub use restore::{Restoration, Restore, check, restore};

/// The format of the file that this program writes, and the newest that it reads.
const FORMAT: u32 = 1;

/// Which controller is meant: as `windlass controller` is told.
#[derive(Args, Clone, Debug)]
pub struct PlaceArgs {
    /// The controller's state folder.
    #[arg(
        long,
        env = "WINDLASS_STATE_DIR",
        default_value = "/var/lib/windlass/controller",
        value_name = "DIR"
    )]
    pub state_dir: PathBuf,

    /// The controller's database, where it is not a file in the state folder.
    #[arg(long, env = "WINDLASS_STORE", hide_env_values = true, value_name = "URL")]
    pub store: Option<StoreText>,

    /// A file with the password for the database, in place of one in its URL.
    #[arg(long, env = "WINDLASS_STORE_PASSWORD_FILE", value_name = "FILE", requires = "store")]
    pub store_password_file: Option<PathBuf>,

    /// How long to wait for a database that cannot be reached.
    #[arg(long, env = "WINDLASS_STORE_WAIT", default_value = "30s", value_name = "SPAN")]
    pub store_wait: Span,

    /// The folder with the controller's authority, where it is not in the state folder.
    #[arg(long, env = "WINDLASS_AUTHORITY", value_name = "DIR")]
    pub authority: Option<PathBuf>,

    /// Where the controller keeps logs, artifacts and inputs, if not in the state folder.
    #[arg(long, env = "WINDLASS_BODIES", value_name = "URL")]
    pub bodies: Option<Place>,
}

impl PlaceArgs {
    /// The controller with this state folder, and its database in there.
    pub fn new(state_dir: PathBuf) -> Self {
        Self {
            state_dir,
            store: None,
            store_password_file: None,
            store_wait: Span::from_secs(30),
            authority: None,
            bodies: None,
        }
    }

    fn url(&self) -> Result<StoreUrl, args::Error> {
        let Self { state_dir, store, store_password_file, store_wait, authority: _, bodies: _ } = self;
        args::store_url(state_dir, store.as_ref(), store_password_file.as_deref(), *store_wait)
    }
}

impl PlaceArgs {
    /// Where the authority and the admin token are that a backup keeps.
    fn secret(&self, part: state::Part) -> PathBuf {
        match (part, &self.authority) {
            (state::Part::Key, Some(folder)) => folder.join(tls::KEY),
            (state::Part::Certificate, Some(folder)) => folder.join(tls::CERTIFICATE),
            (part, _) => self.state_dir.join(part.name()),
        }
    }

    /// Where the bodies are.
    fn bodies(&self) -> Place {
        self.bodies.clone().unwrap_or_else(|| Place::Folder(self.state_dir.join(state::Part::Bodies.name())))
    }
}

/// Why there is no backup, or why it was not restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings cannot be used.
    #[error(transparent)]
    Args(#[from] args::Error),
    /// The database could not be read or filled.
    #[error(transparent)]
    Transfer(#[from] transfer::Error),
    /// The state folder cannot be used.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The authority of the state folder cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// Bodies could not be read or written.
    #[error(transparent)]
    Bodies(#[from] bodies::Error),
    /// The backup's file is there.
    #[error("{} exists: name a file that does not, a backup is never written over another", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file could not be used.
    #[error("could not {action} {}", path.display())]
    File {
        /// `write`, `read`, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A body was cut while it was read.
    #[error("the body `{key}` has {found} bytes where its store said {said}: take the backup again")]
    Changed {
        /// The body.
        key: String,
        /// What the object store said.
        said: u64,
        /// What came.
        found: u64,
    },
    /// The file is no backup.
    #[error("{} is no Windlass backup: {problem}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The file is a backup, and is damaged.
    #[error("{} is damaged: {problem}; nothing was restored, use another backup", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The file was written by a newer program.
    #[error(
        "{} has backup format {found} and this program knows only up to {FORMAT}: run the newer program ({program})",
        path.display()
    )]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The version of the program that has written it.
        program: String,
    },
    /// There is something in the target already.
    #[error(
        "{place} holds a controller's state already; to put the backup in its place, say --replace: {keeps}"
    )]
    NotEmpty {
        /// The folder's part, or the database.
        place: String,
        /// What becomes of what is there.
        keeps: &'static str,
    },
    /// Bodies cannot be restored into a bucket.
    #[error(
        "bodies are not restored into {place}: leave --bodies away, so that they are restored into the state folder, and copy its \
         folder `bodies` to the bucket before a controller starts"
    )]
    IntoBucket {
        /// The bucket.
        place: Place,
    },
    /// A controller is starting, or another restore is under way.
    #[error("{} is locked: a controller is starting on this folder, or another restore is under way", path.display())]
    Busy {
        /// The lock file.
        path: PathBuf,
    },
    /// The backup has no secrets, and the folder has none either.
    #[error(
        "the backup was made without secrets, and {} is missing: put the folder `pki` of this fleet there first",
        path.display()
    )]
    NoAuthority {
        /// The file.
        path: PathBuf,
    },
    /// The backup has no secrets, and the folder has those of another fleet.
    #[error(
        "the backup was made without secrets, and the authority in {} is not the one of its nodes: its SHA-256 is {found}, \
         not {expected}",
        path.display()
    )]
    OtherAuthority {
        /// The certificate.
        path: PathBuf,
        /// Its hash.
        found: String,
        /// The hash that the backup names.
        expected: String,
    },
}

/// What a backup says of itself at its beginning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// The format of the file.
    pub format: u32,
    /// The version of the program that has written it.
    pub program: String,
    /// The schema version of the database.
    pub schema: i64,
    /// The last version that was drawn in the database.
    pub version: i64,
    /// When it was taken.
    pub at: Timestamp,
    /// Whether it holds the authority's key and the admin token.
    pub secrets: bool,
}

/// What a backup says of itself at its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// How many rows of each table there are.
    pub tables: BTreeMap<String, u64>,
    /// How many bodies there are.
    pub bodies: u64,
    /// How many bodies rows name that were gone when they were read.
    pub missing_bodies: u64,
    /// Sums of what is in the file, by the first part of its entries' names.
    pub parts: BTreeMap<String, Sum>,
}

/// What entries of a part hold together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sum {
    /// How many entries there are.
    pub entries: u64,
    /// How many bytes they have.
    pub bytes: u64,
    /// The SHA-256 of their names, lengths and contents, in hexadecimal.
    pub sha256: String,
}

fn file_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::File { action, path: path.to_owned(), source }
}
