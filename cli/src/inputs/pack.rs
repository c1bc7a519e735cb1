//! Making one file of a folder or a file, always the same one for the same content.

use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Read, Seek as _, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use flate2::{Compression, GzBuilder};
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use sha2::{Digest as _, Sha256};

use super::{Error, MAX_INPUT, Selection};

/// The time of every member: the first that zip files can hold, because a time of 0 upsets some tools.
const MEMBER_TIME: u64 = 315_532_800;
/// Endings of files that are unpacked at their destination.
const ARCHIVES: [&str; 3] = [".tar", ".tar.gz", ".tgz"];

/// Content that is ready to be uploaded.
#[derive(Debug)]
pub(super) struct Packed {
    /// The content, at its beginning.
    pub(super) file: File,
    /// Its hash, as the server names it.
    pub(super) digest: String,
    /// Its length in bytes.
    pub(super) size: u64,
    /// Whether it is an archive to be unpacked.
    pub(super) unpack: bool,
    /// Whether it is an executable file.
    pub(super) executable: bool,
    /// How many entries of a git checkout were left out because its `.gitignore` files name them.
    pub(super) ignored: u64,
    /// What could not be packed because it is neither file, folder nor symbolic link.
    pub(super) skipped: Vec<PathBuf>,
}

/// Makes one file of a path and takes its hash; `progress` is told how many bytes were read so far. `selection` says
/// what of a folder is left out.
pub(super) fn pack(path: &Path, selection: &Selection, progress: &dyn Fn(u64)) -> Result<Packed, Error> {
    let metadata =
        fs::metadata(path).map_err(|source| Error::Unreadable { path: path.to_owned(), source })?;
    if metadata.is_dir() {
        pack_folder(path, selection, progress)
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
    Ok(Packed { file, digest, size, unpack, executable, ignored: 0, skipped: Vec::new() })
}

fn pack_folder(path: &Path, selection: &Selection, progress: &dyn Fn(u64)) -> Result<Packed, Error> {
    let archive = Archive::new(path)?;
    // The header of gzip has a time and a name too; both are left empty. Level 1 is nearly as small as the default
    // for source code and several times as fast.
    let gzip = GzBuilder::new().mtime(0).write(archive, Compression::fast());
    let mut folder = FolderPacker {
        tar: tar::Builder::new(gzip),
        root: path,
        selection,
        rules: Vec::new(),
        ignored: 0,
        read: 0,
        progress,
        skipped: Vec::new(),
    };
    folder.add_folder(Path::new(""))?;
    let FolderPacker { tar, skipped, ignored, .. } = folder;
    let archive = tar
        .into_inner()
        .and_then(flate2::write::GzEncoder::finish)
        .map_err(|source| written(path, source))?;
    let (file, digest, size) = archive.finish()?;
    Ok(Packed { file, digest, size, unpack: true, executable: false, ignored, skipped })
}

/// Packs a folder member by member.
struct FolderPacker<'a> {
    tar: tar::Builder<flate2::write::GzEncoder<Archive>>,
    root: &'a Path,
    selection: &'a Selection,
    /// The rules of `.gitignore` files from the root down to the folder that is being packed.
    rules: Vec<Gitignore>,
    ignored: u64,
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
        let rules = self.rules_of(&folder, below)?;
        let depth = self.rules.len();
        self.rules.extend(rules);
        for name in names {
            let member = below.join(&name);
            let excluded =
                |excluded: &PathBuf| excluded == &member || excluded.as_os_str() == name.as_os_str();
            if self.selection.exclude.iter().any(excluded) {
                continue;
            }
            if self.is_ignored(&member) {
                self.ignored += 1;
                continue;
            }
            self.add(&member)?;
        }
        self.rules.truncate(depth);
        Ok(())
    }

    /// The `.gitignore` of a folder, where the whole is a git checkout and nobody wants what is ignored.
    fn rules_of(&self, folder: &Path, below: &Path) -> Result<Option<Gitignore>, Error> {
        let file = folder.join(".gitignore");
        if self.selection.include_ignored || !self.root.join(".git").exists() || !file.is_file() {
            return Ok(None);
        }
        let mut builder = GitignoreBuilder::new(Path::new("/").join(below));
        let broken = builder.add(&file);
        let rules = broken.map_or_else(|| builder.build(), Err);
        rules.map(Some).map_err(|source| Error::Ignore { path: file, source })
    }

    /// Whether git would ignore a member: the innermost file that speaks of it decides. git's own folder stays.
    fn is_ignored(&self, member: &Path) -> bool {
        if self.rules.is_empty() || member.file_name().is_some_and(|name| name == ".git") {
            return false;
        }
        let is_dir = fs::symlink_metadata(self.root.join(member)).is_ok_and(|metadata| metadata.is_dir());
        let path = Path::new("/").join(member);
        let verdict = self
            .rules
            .iter()
            .rev()
            .map(|rules| rules.matched(&path, is_dir))
            .find(|verdict| !verdict.is_none());
        verdict.is_some_and(|verdict| verdict.is_ignore())
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

#[cfg(test)]
mod tests;
