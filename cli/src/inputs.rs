//! What a job is given from this machine: a folder, an archive or a file, uploaded once by its content's hash.
//!
//! The same content always makes the same archive: members are sorted, and their times, owners and permissions (but for
//! whether a file is executable) are left out, so that an unchanged folder is never uploaded twice.

use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Read, Seek as _, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use flate2::{Compression, GzBuilder};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest as _, Sha256};
use tokio_util::io::ReaderStream;
use windlass_crds::sandbox_job::{Input, Upload};

use crate::client::{self, Client};
use crate::console::Console;
use crate::exit::Exit;
use crate::failure::{Failure, Report};
use crate::output::human;

/// The most bytes that one input may have: the server's own limit.
pub(crate) const MAX_INPUT: u64 = 1 << 30;
/// Where an input is placed whose destination is not named.
const DEFAULT_DESTINATION: &str = "input";
/// The time of every member: the first that zip files can hold, because a time of 0 upsets some tools.
const MEMBER_TIME: u64 = 315_532_800;
/// Endings of files that are unpacked at their destination.
const ARCHIVES: [&str; 3] = [".tar", ".tar.gz", ".tgz"];

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

/// Content that is ready to be uploaded.
#[derive(Debug)]
pub(crate) struct Packed {
    /// The content, at its beginning.
    file: File,
    /// Its hash, as the server names it.
    pub(crate) digest: String,
    /// Its length in bytes.
    pub(crate) size: u64,
    /// Whether it is an archive to be unpacked.
    pub(crate) unpack: bool,
    /// Whether it is an executable file.
    executable: bool,
    /// What could not be packed because it is neither file, folder nor symbolic link.
    pub(crate) skipped: Vec<PathBuf>,
}

/// Packs and uploads inputs, and says how the job names them.
pub(crate) async fn upload_all(
    client: &Client,
    console: Console,
    inputs: &[InputArg],
    exclude: &[PathBuf],
) -> Result<Vec<Input>, Failure> {
    let mut named: Vec<Input> = Vec::new();
    for input in inputs {
        let progress = Progress::new(console, &input.path);
        let (path, exclude) = (input.path.clone(), exclude.to_vec());
        let counter = progress.bar.clone();
        let packed =
            tokio::task::spawn_blocking(move || pack(&path, &exclude, &|bytes| counter.set_position(bytes)))
                .await
                .expect("packing does not panic")?;
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
    let Packed { file, digest, size, unpack: _, executable: _, skipped: _ } = packed;
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

/// Makes one file of a path and takes its hash; `progress` is told how many bytes were read so far. Of a folder is left
/// out what `exclude` names: a member by its path, or every member by its name.
pub(crate) fn pack(path: &Path, exclude: &[PathBuf], progress: &dyn Fn(u64)) -> Result<Packed, Error> {
    let metadata =
        fs::metadata(path).map_err(|source| Error::Unreadable { path: path.to_owned(), source })?;
    if metadata.is_dir() {
        pack_folder(path, exclude, progress)
    } else if metadata.is_file() {
        pack_file(path, &metadata, progress)
    } else {
        Err(Error::Special { path: path.to_owned() })
    }
}

/// Takes a copy of a file, so that what is uploaded is what was hashed also when the file is written to meanwhile.
fn pack_file(path: &Path, metadata: &Metadata, progress: &dyn Fn(u64)) -> Result<Packed, Error> {
    let source = File::open(path).map_err(|source| Error::Unreadable { path: path.to_owned(), source })?;
    let mut archive = Archive::new(path)?;
    archive.copy(path, source, progress)?;
    let name = path.file_name().unwrap_or_default().as_encoded_bytes().to_ascii_lowercase();
    let unpack = ARCHIVES.iter().any(|ending| name.ends_with(ending.as_bytes()));
    let (file, digest, size) = archive.finish()?;
    let executable = !unpack && is_executable(metadata);
    Ok(Packed { file, digest, size, unpack, executable, skipped: Vec::new() })
}

fn pack_folder(path: &Path, exclude: &[PathBuf], progress: &dyn Fn(u64)) -> Result<Packed, Error> {
    let archive = Archive::new(path)?;
    // The header of gzip has a time and a name too; both are left empty. Level 1 is nearly as small as the default
    // for source code and several times as fast.
    let gzip = GzBuilder::new().mtime(0).write(archive, Compression::fast());
    let mut folder = FolderPacker {
        tar: tar::Builder::new(gzip),
        root: path,
        exclude,
        read: 0,
        progress,
        skipped: Vec::new(),
    };
    folder.add_folder(Path::new(""))?;
    let FolderPacker { tar, skipped, .. } = folder;
    let archive = tar
        .into_inner()
        .and_then(flate2::write::GzEncoder::finish)
        .map_err(|source| written(path, source))?;
    let (file, digest, size) = archive.finish()?;
    Ok(Packed { file, digest, size, unpack: true, executable: false, skipped })
}

/// Packs a folder member by member.
struct FolderPacker<'a> {
    tar: tar::Builder<flate2::write::GzEncoder<Archive>>,
    root: &'a Path,
    exclude: &'a [PathBuf],
    read: u64,
    progress: &'a dyn Fn(u64),
    skipped: Vec<PathBuf>,
}

impl FolderPacker<'_> {
    /// Adds what a folder holds, in the order of the names' bytes.
    fn add_folder(&mut self, below: &Path) -> Result<(), Error> {
        let folder = self.root.join(below);
        let unreadable = |source| Error::Unreadable { path: folder.clone(), source };
        let mut names = fs::read_dir(&folder)
            .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>())
            .map_err(unreadable)?;
        names.sort_unstable();
        for name in names {
            let member = below.join(&name);
            if !self.exclude.iter().any(|excluded| excluded == &member || excluded.as_os_str() == name) {
                self.add(&member)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, member: &Path) -> Result<(), Error> {
        let path = self.root.join(member);
        let unreadable = |source| Error::Unreadable { path: path.clone(), source };
        let metadata = fs::symlink_metadata(&path).map_err(unreadable)?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            self.append(member, tar::EntryType::Directory, 0o755, 0, io::empty())?;
            self.add_folder(member)
        } else if kind.is_symlink() {
            let target = fs::read_link(&path).map_err(unreadable)?;
            let mut header = header(tar::EntryType::Symlink, 0o777, 0);
            self.tar.append_link(&mut header, member, &target).map_err(|source| written(self.root, source))
        } else if kind.is_file() {
            let file = File::open(&path).map_err(unreadable)?;
            // The length is that of the open file: the name may mean another one by now.
            let metadata = file.metadata().map_err(unreadable)?;
            let mode = if is_executable(&metadata) { 0o755 } else { 0o644 };
            self.append(member, tar::EntryType::Regular, mode, metadata.len(), file)?;
            self.read += metadata.len();
            (self.progress)(self.read);
            Ok(())
        } else {
            debug_assert!(
                kind.is_socket() || kind.is_fifo() || kind.is_char_device() || kind.is_block_device()
            );
            self.skipped.push(path);
            Ok(())
        }
    }

    fn append(
        &mut self,
        member: &Path,
        kind: tar::EntryType,
        mode: u32,
        size: u64,
        content: impl Read,
    ) -> Result<(), Error> {
        let mut content = Exactly { content: content.take(size), left: size, error: None };
        let mut header = header(kind, mode, size);
        let result = self.tar.append_data(&mut header, member, &mut content);
        let path = self.root.join(member);
        match (content.error, result) {
            (Some(error), _) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Error::Changed { path }),
            (Some(source), _) => Err(Error::Unreadable { path, source }),
            (None, result) => result.map_err(|source| written(self.root, source)),
        }
    }
}

/// What it means that an archive cannot be written.
fn written(of: &Path, source: io::Error) -> Error {
    let path = of.to_owned();
    if source.kind() == io::ErrorKind::FileTooLarge {
        Error::TooLarge { path }
    } else {
        Error::Archive { path, source }
    }
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(MEMBER_TIME);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn is_executable(metadata: &Metadata) -> bool {
    metadata.permissions().mode() & 0o111 != 0
}

/// A reader that fails where the content is shorter than it was said to be, and keeps its own errors apart from those
/// of whoever writes what it reads.
struct Exactly<R> {
    content: io::Take<R>,
    left: u64,
    error: Option<io::Error>,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = match self.content.read(buffer) {
            Ok(0) if self.left > 0 && !buffer.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            other => other,
        };
        match result {
            Ok(count) => {
                self.left -= count as u64;
                Ok(count)
            }
            Err(error) => {
                let told = io::Error::from(error.kind());
                self.error = Some(error);
                Err(told)
            }
        }
    }
}

/// A temporary file that has no name and vanishes with the process, and the hash of what is written to it.
struct Archive {
    file: BufWriter<File>,
    hash: Sha256,
    size: u64,
    of: PathBuf,
}

impl Archive {
    fn new(of: &Path) -> Result<Self, Error> {
        let file = tempfile::tempfile().map_err(|source| Error::Archive { path: of.to_owned(), source })?;
        Ok(Self { file: BufWriter::new(file), hash: Sha256::new(), size: 0, of: of.to_owned() })
    }

    fn copy(&mut self, path: &Path, mut source: impl Read, progress: &dyn Fn(u64)) -> Result<(), Error> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let count = source
                .read(&mut buffer)
                .map_err(|source| Error::Unreadable { path: path.to_owned(), source })?;
            if count == 0 {
                return Ok(());
            }
            self.write_all(&buffer[..count]).map_err(|source| written(path, source))?;
            progress(self.size);
        }
    }

    fn finish(self) -> Result<(File, String, u64), Error> {
        let Self { file, hash, size, of } = self;
        let rewound = file.into_inner().map_err(io::IntoInnerError::into_error).and_then(|mut file| {
            file.seek(SeekFrom::Start(0))?;
            Ok(file)
        });
        let file = rewound.map_err(|source| Error::Archive { path: of, source })?;
        Ok((file, format!("sha256:{}", hex::encode(hash.finalize())), size))
    }
}

impl Write for Archive {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Said as soon as it is known, and not after hours of packing something that the server refuses.
        if self.size + bytes.len() as u64 > MAX_INPUT {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let count = self.file.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// What is drawn while an input is packed and uploaded, where somebody watches.
struct Progress {
    bar: ProgressBar,
    name: String,
}

impl Progress {
    fn new(console: Console, path: &Path) -> Self {
        let name = human::printable(&path.display().to_string());
        if !console.is_watched() {
            return Self { bar: ProgressBar::hidden(), name };
        }
        let bar = ProgressBar::new_spinner().with_message(format!("packing {name}"));
        bar.set_style(
            ProgressStyle::with_template("{spinner} {msg}  {binary_bytes}")
                .expect("the template is constant"),
        );
        Self { bar, name }
    }

    fn upload(&self, size: u64) {
        self.bar.reset();
        self.bar.set_length(size);
        self.bar.set_message(format!("uploading {}", self.name));
        self.bar.set_style(
            ProgressStyle::with_template("{msg}  {bar:30} {binary_bytes} of {binary_total_bytes}  {eta}")
                .expect("the template is constant"),
        );
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests;
