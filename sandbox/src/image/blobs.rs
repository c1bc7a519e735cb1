//! The parts of an image by name: files of a folder, or of an archive.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use flate2::read::MultiGzDecoder;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};
use tar::EntryType;

use super::packed::Packed;
use super::room::Room;
use super::{LocalImage, Source, Trouble};
use crate::error::{Error, ImageProblem};

/// Entries of an archive's outside; an image has a few for each layer.
const MAX_PARTS: usize = 10_000;
/// Bytes of a document. Others take no larger ones either.
const MAX_DOCUMENT: u64 = 4 << 20;
/// Bytes of a reader's window: layers are read in large pieces.
const WINDOW: usize = 256 << 10;
/// The first words of frames of zstd that hold no data.
const EMPTY_FRAMES: std::ops::RangeInclusive<u32> = 0x184d_2a50..=0x184d_2a5f;

/// The parts of an image.
pub(super) enum Blobs {
    /// Of a folder.
    Folder(OwnedFd),
    /// Of an archive.
    Archive { file: Arc<File>, parts: BTreeMap<String, Part> },
}

/// What was opened of an image.
pub(super) enum Opened {
    /// Its parts.
    Blobs(Blobs),
    /// An archive that is compressed as a whole.
    Packed(Packed),
}

/// What an archive has under a name.
pub(super) enum Part {
    File { at: u64, size: u64 },
    Link { to: String },
}

/// A file without links on its way.
fn open(path: &Path, flags: OFlags) -> Result<OwnedFd, Trouble> {
    // NONBLOCK: opening a FIFO must not wait for a writer.
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve).map_err(|errno| match errno {
        Errno::NOENT => Trouble::Image(ImageProblem::NotFound, "is not on the node".to_owned()),
        Errno::NOTDIR => Trouble::unusable("is no folder, or is below something that is none"),
        Errno::LOOP => Trouble::unusable("is behind a symbolic link"),
        errno => Error::io("open", path)(errno.into()).into(),
    })
}

/// Opens the folder of a layout or of a system.
pub(super) fn folder(path: &Path) -> Result<OwnedFd, Trouble> {
    open(path, OFlags::DIRECTORY)
}

/// Opens a regular file.
fn regular(path: &Path) -> Result<File, Trouble> {
    let file = File::from(open(path, OFlags::empty())?);
    let kind = file.metadata().map_err(Error::io("inspect", path))?;
    if !kind.is_file() {
        return Err(Trouble::unusable("is not a regular file"));
    }
    Ok(file)
}

impl Blobs {
    /// Opens what an image is made of.
    pub(super) fn open(image: &LocalImage) -> Result<Opened, Trouble> {
        match image.source {
            Source::OciLayout => folder(&image.path).map(|dir| Opened::Blobs(Self::Folder(dir))),
            Source::DockerArchive | Source::OciArchive => {
                let file = regular(&image.path)?;
                if is_packed(&file)? {
                    let packed = Packed::of(file).map_err(Error::io("inspect", &image.path))?;
                    Ok(Opened::Packed(packed))
                } else {
                    Self::of(file).map(Opened::Blobs)
                }
            }
            Source::RootFolder => Err(Trouble::unusable("is a folder without layers")),
        }
    }

    /// The parts of a plain archive.
    fn of(file: File) -> Result<Self, Trouble> {
        let parts = index(&file)?;
        Ok(Self::Archive { file: Arc::new(file), parts })
    }

    /// The parts of a compressed archive, which is uncompressed into a nameless file of `scratch` first, of at most `most` bytes.
    pub(super) fn unpacked(
        packed: &File,
        scratch: &Path,
        most: u64,
        room: Room<'_>,
        stop: &AtomicBool,
    ) -> Result<Self, Trouble> {
        Self::of(plain(packed, scratch, most, room, stop)?)
    }

    /// Reads a document.
    pub(super) fn document(&self, name: &str) -> Result<Vec<u8>, Trouble> {
        let mut bytes = Vec::new();
        let read = self.reader(name)?.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes);
        read.map_err(|error| unreadable(name, &error))?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(Trouble::unusable(format!(
                "has a document {name} of more than {MAX_DOCUMENT} bytes"
            )));
        }
        Ok(bytes)
    }

    /// Whether there is such a part.
    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Self::Folder(_) => self.reader(name).is_ok(),
            Self::Archive { parts, .. } => parts.contains_key(name),
        }
    }

    /// A part from its beginning.
    pub(super) fn reader(&self, name: &str) -> Result<Box<dyn Read>, Trouble> {
        let missing = || Trouble::unusable(format!("lacks its part {name}; was it copied whole?"));
        match self {
            Self::Folder(dir) => {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                let fd = match rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve) {
                    Ok(fd) => fd,
                    Err(Errno::NOENT | Errno::NOTDIR) => return Err(missing()),
                    Err(Errno::XDEV | Errno::LOOP) => {
                        return Err(Trouble::unusable(format!(
                            "has a part {name} that leads out of its folder"
                        )));
                    }
                    Err(errno) => return Err(Error::io("open", name)(errno.into()).into()),
                };
                let stat =
                    rustix::fs::fstat(&fd).map_err(|errno| Error::io("inspect", name)(errno.into()))?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    return Err(Trouble::unusable(format!("has a part {name} that is not a regular file")));
                }
                Ok(Box::new(BufReader::with_capacity(WINDOW, File::from(fd))))
            }
            Self::Archive { file, parts } => {
                let found = match parts.get(name) {
                    // `docker save` writes a layer once, and links to it.
                    Some(Part::Link { to }) => parts.get(to),
                    found => found,
                };
                match found {
                    Some(&Part::File { at, size }) => {
                        let slice = Slice { file: Arc::clone(file), at, left: size };
                        Ok(Box::new(BufReader::with_capacity(WINDOW, slice)))
                    }
                    Some(Part::Link { .. }) | None => Err(missing()),
                }
            }
        }
    }
}

/// The trouble of a part that cannot be read.
pub(super) fn unreadable(name: &str, error: &io::Error) -> Trouble {
    Trouble::unusable(format!("has a part {name} that cannot be read: {error}"))
}

/// A piece of a file that others read too.
struct Slice {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Read for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let got = self.file.read_at(&mut buffer[..most], self.at)?;
        if got == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.at += got as u64;
        self.left -= got as u64;
        Ok(got)
    }
}

/// The plain form of what may be compressed.
pub(super) fn uncompressed<'a>(mut input: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = [0; 6];
    let mut got = 0;
    while got < magic.len() {
        match input.read(&mut magic[got..])? {
            0 => break,
            more => got += more,
        }
    }
    let unsupported = |what: &str| {
        let message = format!("it is compressed with {what}; gzip and zstd are supported");
        Err(io::Error::new(ErrorKind::Unsupported, message))
    };
    let kind = magic;
    let whole = io::Cursor::new(magic).take(got as u64).chain(input);
    match &kind {
        [0x1f, 0x8b, ..] => Ok(Box::new(MultiGzDecoder::new(BufReader::with_capacity(WINDOW, whole)))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Box::new(Frames { decoder: None, input: Some(whole) })),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => unsupported("xz"),
        [b'B', b'Z', b'h', ..] => unsupported("bzip2"),
        _ => Ok(Box::new(whole)),
    }
}

/// The frames of a zstd stream, one after the other. Frames that hold no data are passed over: some builders keep a table of
/// contents in them.
struct Frames<R: Read> {
    decoder: Option<StreamingDecoder<Resumed<R>, FrameDecoder>>,
    input: Option<R>,
}

/// A reader of which the beginning was read already.
struct Resumed<R> {
    beginning: [u8; 4],
    given: usize,
    input: R,
}

impl<R: Read> Read for Resumed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut beginning = &self.beginning[self.given..];
        if beginning.is_empty() {
            return self.input.read(buffer);
        }
        let got = beginning.read(buffer)?;
        self.given += got;
        Ok(got)
    }
}

impl<R: Read> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(decoder) = &mut self.decoder {
                let got = decoder.read(buffer)?;
                if got > 0 || buffer.is_empty() {
                    return Ok(got);
                }
                self.input = self.decoder.take().map(|decoder| decoder.into_inner().input);
            }
            let Some(mut input) = self.input.take() else { return Ok(0) };
            let mut beginning = Vec::new();
            (&mut input).take(4).read_to_end(&mut beginning)?;
            if beginning.is_empty() {
                return Ok(0);
            }
            let beginning: [u8; 4] =
                beginning.try_into().map_err(|_| io::Error::from(ErrorKind::UnexpectedEof))?;
            if EMPTY_FRAMES.contains(&u32::from_le_bytes(beginning)) {
                let mut length = [0; 4];
                input.read_exact(&mut length)?;
                let length = u64::from(u32::from_le_bytes(length));
                if io::copy(&mut (&mut input).take(length), &mut io::sink())? < length {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                self.input = Some(input);
                continue;
            }
            let input = Resumed { beginning, given: 0, input };
            self.decoder = Some(StreamingDecoder::new(input).map_err(io::Error::other)?);
        }
    }
}

/// Whether an archive as a whole is compressed.
fn is_packed(file: &File) -> Result<bool, Trouble> {
    let mut magic = [0; 4];
    let got = file.read_at(&mut magic, 0).map_err(|error| unreadable("(its beginning)", &error))?;
    Ok(matches!(
        &magic[..got],
        [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd] | [0xfd, b'7', b'z', b'X'] | [b'B', b'Z', b'h', _]
    ))
}

/// A plain copy of a compressed archive.
fn plain(
    file: &File,
    scratch: &Path,
    most: u64,
    mut room: Room<'_>,
    stop: &AtomicBool,
) -> Result<File, Trouble> {
    let input = uncompressed(file).map_err(|error| Trouble::unusable(error.to_string()))?;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let copy = rustix::fs::open(scratch, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|errno| Error::io("make a file in", scratch)(errno.into()))?;
    let mut copy = File::from(copy);
    let mut input = input.take(most.saturating_add(1));
    let mut buffer = vec![0; WINDOW];
    let mut written = 0_u64;
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(Trouble::Stopped);
        }
        let got =
            input.read(&mut buffer).map_err(|error| Trouble::unusable(format!("cannot be read: {error}")))?;
        if got == 0 {
            return Ok(copy);
        }
        written += got as u64;
        if written > most {
            return Err(Trouble::unusable(format!("is larger than {most} bytes once it is uncompressed")));
        }
        room.take(got as u64)?;
        copy.write_all(&buffer[..got]).map_err(Error::io("write in", scratch))?;
    }
}

/// What an archive holds, and where.
fn index(file: &File) -> Result<BTreeMap<String, Part>, Trouble> {
    let failed = |error: io::Error| Trouble::unusable(format!("is no archive of an image: {error}"));
    let mut parts = BTreeMap::new();
    let mut archive = tar::Archive::new(Outside { file, at: 0, headers: MAX_DOCUMENT });
    for entry in archive.entries_with_seek().map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
        let part = match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => {
                Part::File { at: entry.raw_file_position(), size: entry.size() }
            }
            EntryType::Symlink | EntryType::Link => {
                let to = entry.link_name_bytes().unwrap_or_default();
                Part::Link { to: beside(&name, &String::from_utf8_lossy(&to), entry.header().entry_type()) }
            }
            _ => continue,
        };
        parts.insert(name, part);
        if parts.len() > MAX_PARTS {
            return Err(Trouble::unusable(format!("has more than {MAX_PARTS} parts")));
        }
    }
    Ok(parts)
}

/// The name that a link of an archive means.
fn beside(name: &str, to: &str, kind: EntryType) -> String {
    let mut parts: Vec<&str> = match kind {
        EntryType::Symlink => name.split('/').collect(),
        _ => vec![""],
    };
    parts.pop();
    for part in to.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// An archive of which only headers are read: data is passed over, so what is read is bounded.
struct Outside<'a> {
    file: &'a File,
    at: u64,
    headers: u64,
}

impl Read for Outside<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.file.read_at(buffer, self.at)?;
        self.headers = self.headers.checked_sub(got as u64).ok_or_else(|| {
            io::Error::new(
                ErrorKind::InvalidData,
                format!("it has more than {MAX_DOCUMENT} bytes of headers"),
            )
        })?;
        self.at += got as u64;
        Ok(got)
    }
}

impl Seek for Outside<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(_) => None,
        };
        self.at = at.ok_or(ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
