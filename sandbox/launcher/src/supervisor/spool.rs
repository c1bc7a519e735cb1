//! The output spool: appends what the program writes, up to a cap for each stream, and never blocks the program.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::exit::StreamEnd;
use crate::frame::{self, Frame, Stream};
use crate::record;

/// One stream's account.
#[derive(Debug, Default)]
struct Account {
    end: StreamEnd,
    /// Up to three bytes that may be the beginning of a UTF-8 character, so that frames end between characters.
    pending: Vec<u8>,
}

/// Where a spool is.
#[derive(Debug)]
enum Place {
    Open(File),
    /// It is made when there is something to write: many programs print nothing.
    Later(PathBuf),
}

/// The output of one unit.
#[derive(Debug)]
pub struct Spool {
    place: Place,
    /// Is written to after each frame.
    grown: Option<File>,
    /// Length of the file's good part.
    length: u64,
    /// Bytes of each stream that are kept.
    cap: u64,
    /// Length past which nothing is kept: many tiny writes cost more in frame headers than in payload.
    ceiling: u64,
    accounts: [Account; 2],
    buffer: Vec<u8>,
    /// Why writing failed, once it has.
    failure: Option<io::Error>,
}

impl Spool {
    /// A spool that appends to the empty `file`.
    #[must_use]
    pub fn new(file: File, cap: u64) -> Self {
        Self::of(Place::Open(file), None, cap)
    }

    /// The spool of a unit's folder.
    ///
    /// # Errors
    /// What opening `grown` gives, where that is there.
    pub(super) fn within(dir: &Path, cap: u64) -> io::Result<Self> {
        let grown = match File::options().write(true).open(dir.join(record::GROWN)) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Self::of(Place::Later(dir.join(record::OUTPUT)), grown, cap))
    }

    fn of(place: Place, grown: Option<File>, cap: u64) -> Self {
        Self {
            place,
            grown,
            length: 0,
            cap,
            ceiling: cap.saturating_mul(4).saturating_add(1 << 20),
            accounts: Default::default(),
            buffer: Vec::new(),
            failure: None,
        }
    }

    /// Takes bytes that were read from a stream.
    pub fn push(&mut self, stream: Stream, bytes: &[u8], time_ms: i64) {
        let account = &mut self.accounts[slot(stream)];
        account.end.bytes += bytes.len() as u64;
        if account.end.truncated {
            return;
        }
        let mut joined;
        let mut payload = bytes;
        if !account.pending.is_empty() {
            joined = std::mem::take(&mut account.pending);
            joined.extend_from_slice(bytes);
            payload = &joined;
        }
        let left = usize::try_from(self.cap - account.end.kept).unwrap_or(usize::MAX);
        let cut = payload.len() > left;
        if cut {
            payload = &payload[..left];
        }
        let (whole, rest) = payload.split_at(payload.len() - unfinished(payload));
        if cut {
            account.end.truncated = true;
        } else {
            account.pending = rest.to_vec();
        }
        let whole = whole.to_vec();
        self.append(stream, &whole, time_ms);
    }

    /// Takes the end of a stream.
    pub fn close(&mut self, stream: Stream, time_ms: i64) {
        let pending = std::mem::take(&mut self.accounts[slot(stream)].pending);
        self.append(stream, &pending, time_ms);
    }

    /// What became of a stream.
    #[must_use]
    pub fn end(&self, stream: Stream) -> StreamEnd {
        self.accounts[slot(stream)].end
    }

    /// Why the spool could not be written, if so.
    #[must_use]
    pub fn failure(&self) -> Option<&io::Error> {
        self.failure.as_ref()
    }

    /// Writes frames; on failure what was half written is cut off and the rest of the output is discarded.
    fn append(&mut self, stream: Stream, bytes: &[u8], time_ms: i64) {
        for payload in bytes.chunks(frame::MAX_PAYLOAD) {
            let account = &mut self.accounts[slot(stream)];
            let size = (frame::HEADER + payload.len()) as u64;
            if self.failure.is_some() || self.length + size > self.ceiling {
                account.end.truncated = true;
                return;
            }
            self.buffer.clear();
            Frame { stream, offset: account.end.kept, time_ms, payload }.encode(&mut self.buffer);
            if let Err(error) = self.place.write(&self.buffer, self.length) {
                account.end.truncated = true;
                self.failure = Some(error);
                return;
            }
            self.length += size;
            account.end.kept += payload.len() as u64;
            if let Some(grown) = &self.grown {
                // Who is not told looks by itself now and then.
                let _untold = grown.write_at(&[1], 0);
            }
        }
    }
}

impl Place {
    /// Appends to what is `length` long; on failure what was half written is cut off.
    fn write(&mut self, bytes: &[u8], length: u64) -> io::Result<()> {
        let file = match self {
            Self::Open(file) => file,
            Self::Later(path) => {
                let file = File::options().append(true).create(true).mode(0o600).open(path)?;
                *self = Self::Open(file);
                return self.write(bytes, length);
            }
        };
        let written = file.write_all(bytes);
        if written.is_err() {
            // If even this fails, the reader meets an unfinished frame at the end and stops before it.
            let _unfinished_tail = file.set_len(length);
        }
        written
    }
}

/// Where a stream's account is.
fn slot(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
    }
}

/// How many bytes at the end may be the beginning of a UTF-8 character: 0 to 3. Bytes that cannot be are not held back.
fn unfinished(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let byte = bytes[bytes.len() - back];
        let length = match byte {
            0x80..=0xBF => continue,
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            _ => return 0,
        };
        return if length > back { back } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};

    fn spool(cap: u64) -> Spool {
        Spool::new(tempfile::tempfile().unwrap(), cap)
    }

    /// The kept bytes of a stream, and the payload of every frame.
    fn kept(spool: &mut Spool, stream: Stream) -> (Vec<u8>, Vec<Vec<u8>>) {
        let mut bytes = Vec::new();
        let Place::Open(file) = &mut spool.place else { panic!("nothing was written") };
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        kept_of(&bytes, stream)
    }

    /// The same of a file's content.
    fn kept_of(bytes: &[u8], stream: Stream) -> (Vec<u8>, Vec<Vec<u8>>) {
        let (mut all, mut frames, mut at) = (Vec::new(), Vec::new(), 0);
        while let Some((frame, length)) = frame::decode(&bytes[at..]).unwrap() {
            if frame.stream == stream {
                assert_eq!(frame.offset, all.len() as u64);
                all.extend_from_slice(frame.payload);
                frames.push(frame.payload.to_vec());
            }
            at += length;
        }
        assert_eq!(at, bytes.len());
        (all, frames)
    }

    #[test]
    fn the_cap_cuts_between_characters_and_flags_it() {
        for cap in 0..12 {
            let mut spool = spool(cap);
            for byte in "aé€😀z".as_bytes() {
                spool.push(Stream::Stdout, &[*byte], 1);
            }
            spool.close(Stream::Stdout, 1);
            let (all, _) = kept(&mut spool, Stream::Stdout);
            let text = String::from_utf8(all).unwrap();
            assert!("aé€😀z".starts_with(&text) && text.len() as u64 <= cap, "cap {cap}: {text:?}");
            let end = spool.end(Stream::Stdout);
            assert_eq!((end.bytes, end.kept), (11, text.len() as u64));
            assert_eq!(end.truncated, cap < 11, "cap {cap}");
        }
    }

    #[test]
    fn it_is_made_with_the_first_frame_which_is_told() {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let target = elsewhere.path().join("unit");
        std::os::unix::fs::symlink(&target, dir.path().join(record::OUTPUT)).unwrap();
        let grown = dir.path().join(record::GROWN);
        std::fs::write(&grown, []).unwrap();
        let mut spool = Spool::within(dir.path(), 100).unwrap();
        spool.close(Stream::Stderr, 1);
        assert!(!target.exists());
        assert!(std::fs::read(&grown).unwrap().is_empty());
        spool.push(Stream::Stdout, b"hello", 1);
        spool.push(Stream::Stdout, b" again", 1);
        assert_eq!(kept_of(&std::fs::read(&target).unwrap(), Stream::Stdout).0, b"hello again");
        assert_eq!(std::fs::read(&grown).unwrap(), [1]);
    }

    #[test]
    fn any_bytes_pass_untouched_and_streams_do_not_mix() {
        let mut spool = spool(1000);
        let bytes = [0u8, 0xFF, 0xE2, 0x82, 0xF0, b'\n', 0xC3];
        for byte in bytes {
            spool.push(Stream::Stderr, &[byte], 1);
            spool.push(Stream::Stdout, b"o", 1);
        }
        spool.close(Stream::Stderr, 2);
        spool.close(Stream::Stdout, 2);
        assert_eq!(kept(&mut spool, Stream::Stderr).0, bytes);
        assert_eq!(kept(&mut spool, Stream::Stdout).0, b"ooooooo");
        assert!(!spool.end(Stream::Stderr).truncated);
    }

    #[test]
    fn frames_of_tiny_writes_cannot_grow_the_file_without_end() {
        let mut spool = spool(1000);
        for _ in 0..200_000 {
            spool.push(Stream::Stdout, b"x", 1);
        }
        assert!(spool.length <= spool.ceiling);
        assert!(spool.end(Stream::Stdout).truncated);
    }

    #[test]
    fn a_full_disk_loses_output_but_says_so() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut spool = Spool::new(full, 100);
        spool.push(Stream::Stdout, b"hello", 1);
        assert!(spool.failure().is_some());
        assert_eq!(spool.end(Stream::Stdout), StreamEnd { bytes: 5, kept: 0, truncated: true });
    }
}
