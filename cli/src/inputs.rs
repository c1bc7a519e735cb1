//! What a job is given from this machine: a folder, an archive or a file, uploaded once by its content's hash.
//!
//! The same content always makes the same archive: members are sorted, and their times, owners and permissions (but for
//! whether a file is executable) are left out, so that an unchanged folder is never uploaded twice.

mod pack;
mod progress;

use std::io;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use tokio_util::io::ReaderStream;
use windlass_crds::sandbox_job::{Input, Upload};

use crate::client::{self, Client};
use crate::console::Console;
use crate::exit::Exit;
use crate::failure::{Failure, Report};
use crate::output::human;
use pack::{Packed, pack};
use progress::Progress;

/// The most bytes that one input may have: the server's own limit.
pub(crate) const MAX_INPUT: u64 = 1 << 30;
/// Where an input is placed whose destination is not named.
const DEFAULT_DESTINATION: &str = "input";

/// An input as the command line names it: `[DEST=]PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InputArg {
    /// Where it is placed, relative to the workspace; `None` for the default.
    pub(crate) destination: Option<String>,
    /// What it is on this machine.
    pub(crate) path: PathBuf,
}

/// Why an input cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The words on the command line do not name an input.
    #[error("`{text}` names no path: write `PATH` or `DESTINATION=PATH`")]
    Syntax {
        /// What was written.
        text: String,
    },
    /// The destination leaves the workspace.
    #[error("the destination `{destination}` is not a path inside the workspace")]
    Destination {
        /// What was written.
        destination: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A `.gitignore` cannot be understood.
    #[error("{} cannot be understood", path.display())]
    Ignore {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ignore::Error,
    },
    /// Two inputs have the same destination.
    #[error("two inputs are placed at `{destination}`")]
    Twice {
        /// The destination.
        destination: String,
    },
    /// A file or folder cannot be read.
    #[error("{} cannot be read", path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The input is a socket, a pipe or a device.
    #[error("{} is neither a file nor a folder", path.display())]
    Special {
        /// What it is.
        path: PathBuf,
    },
    /// A file grew shorter while it was read.
    #[error("{} changed while it was read", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The temporary file for the archive cannot be written.
    #[error("the archive of {} cannot be written to the folder for temporary files", path.display())]
    Archive {
        /// What is packed.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The input is larger than the server accepts.
    #[error("{} is too large to be uploaded: packed it has more than {}", path.display(), human::bytes(MAX_INPUT))]
    TooLarge {
        /// What is uploaded.
        path: PathBuf,
    },
}

/// The file that is uploaded could not be read; inside of the error of the request that it broke.
#[derive(Debug, thiserror::Error)]
#[error("the input cannot be read")]
pub(crate) struct ReadError(#[source] pub(crate) io::Error);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let exit = match &error {
            Error::Syntax { .. } | Error::Destination { .. } | Error::Twice { .. } => Exit::Usage,
            Error::Unreadable { .. }
            | Error::Ignore { .. }
            | Error::Special { .. }
            | Error::Changed { .. }
            | Error::TooLarge { .. } => Exit::Invalid,
            Error::Archive { .. } => Exit::Failed,
        };
        let report = Report::new(exit, error.to_string()).causes(&error);
        match error {
            Error::Destination { reason, .. } => report
                .detail(reason)
                .hint("write a relative path without `..`, such as `--input data=./samples`"),
            Error::Twice { .. } => {
                report.hint("give each input its own destination: `--input DESTINATION=PATH`")
            }
            Error::Archive { .. } => report.hint("name another folder for temporary files by TMPDIR"),
            Error::Ignore { .. } => {
                report.hint("mend the file, or take everything along by `--include-ignored`")
            }
            Error::Special { .. } => report.hint("copy what you need into a file first"),
            Error::TooLarge { .. } => report
                .hint("leave out what the job does not need by `--exclude NAME`, such as `--exclude target`"),
            Error::Syntax { .. } | Error::Unreadable { .. } | Error::Changed { .. } => report,
        }
        .into()
    }
}

impl std::str::FromStr for InputArg {
    type Err = Error;

    /// A path that exists wins over the reading as `DEST=PATH`, so that `a=b` can be named where it is a file.
    fn from_str(text: &str) -> Result<Self, Error> {
        let refused = || Error::Syntax { text: text.to_owned() };
        match text.split_once('=') {
            _ if text.is_empty() => Err(refused()),
            Some((destination, path)) if !Path::new(text).exists() => {
                if destination.is_empty() || path.is_empty() {
                    return Err(refused());
                }
                Ok(Self { destination: Some(check_destination(destination)?), path: path.into() })
            }
            Some(_) | None => Ok(Self { destination: None, path: text.into() }),
        }
    }
}

/// Checks that a destination stays in the workspace, and writes it without `.` and doubled slashes.
fn check_destination(text: &str) -> Result<String, Error> {
    let refused = |reason| Error::Destination { destination: text.to_owned(), reason };
    if text.chars().any(char::is_control) {
        return Err(refused("it holds a control character"));
    }
    let mut parts = Vec::new();
    for component in Path::new(text).components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str().ok_or_else(|| refused("it is not UTF-8"))?),
            Component::CurDir => {}
            Component::ParentDir => return Err(refused("it holds `..`")),
            Component::RootDir | Component::Prefix(_) => return Err(refused("it is absolute")),
        }
    }
    Ok(if parts.is_empty() { ".".to_owned() } else { parts.join("/") })
}

/// What of a folder is packed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    /// What is left out: a member by its path, or every member by its name.
    pub(crate) exclude: Vec<PathBuf>,
    /// Whether a git checkout is packed with what its `.gitignore` files name.
    pub(crate) include_ignored: bool,
}

/// Packs and uploads inputs, and says how the job names them.
pub(crate) async fn upload_all(
    client: &Client,
    console: Console,
    inputs: &[InputArg],
    selection: &Selection,
) -> Result<Vec<Input>, Failure> {
    let mut named: Vec<Input> = Vec::new();
    for input in inputs {
        let progress = Progress::new(console, &input.path);
        let (path, selection) = (input.path.clone(), selection.clone());
        let counter = progress.bar.clone();
        let packed = tokio::task::spawn_blocking(move || {
            pack(&path, &selection, &|bytes| counter.set_position(bytes))
        })
        .await
        .expect("packing does not panic")?;
        if packed.ignored > 0 {
            console.note(format!(
                "{} entries that .gitignore names are left out of {}; --include-ignored takes them along",
                packed.ignored,
                input.path.display()
            ));
        }
        for skipped in &packed.skipped {
            console.warn(format!("{} is a socket, a pipe or a device and is left out", skipped.display()));
        }
        let path = destination_of(input, packed.unpack);
        if named.iter().any(|other| other.path == path) {
            return Err(Error::Twice { destination: path }.into());
        }
        let content = Upload { digest: packed.digest.clone(), unpack: packed.unpack };
        named.push(Input { path, upload: Some(content), executable: packed.executable, ..Input::default() });
        upload(client, &progress, packed).await?;
    }
    Ok(named)
}

/// Uploads content, unless the server has it already.
async fn upload(client: &Client, progress: &Progress, packed: Packed) -> Result<(), client::Error> {
    let Packed { file, digest, size, unpack: _, executable: _, ignored: _, skipped: _ } = packed;
    if client.has_input(&digest).await? {
        return Ok(());
    }
    progress.upload(size);
    let bar = progress.bar.clone();
    let chunks =
        futures::StreamExt::map(ReaderStream::with_capacity(tokio::fs::File::from_std(file), 1 << 16), {
            move |chunk: io::Result<Bytes>| {
                chunk.inspect(|chunk| bar.inc(chunk.len() as u64)).map_err(ReadError)
            }
        });
    client.upload(&digest, size, reqwest::Body::wrap_stream(chunks)).await
}

/// Where an input is placed: a folder or archive at its destination, a file there or below `input`.
fn destination_of(input: &InputArg, unpack: bool) -> String {
    match (&input.destination, input.path.file_name().and_then(|name| name.to_str())) {
        (Some(destination), _) => destination.clone(),
        (None, Some(name)) if !unpack => format!("{DEFAULT_DESTINATION}/{name}"),
        (None, _) => DEFAULT_DESTINATION.to_owned(),
    }
}

#[cfg(test)]
mod tests;
