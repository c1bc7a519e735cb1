//! Reading a unit's output spool while it grows.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use windlass_launcher::frame::{self, HEADER, MAX_PAYLOAD};
use windlass_launcher::record;

use crate::driver::{OutputChunk, OutputSource};
use crate::error::Error;
use crate::native::{Subscription, Watcher, is_locked};

/// Frames of one stream that follow each other are given together up to this size.
const MAX_CHUNK: usize = MAX_PAYLOAD;
/// How much is read at once.
const WINDOW: usize = 2 * (HEADER + MAX_PAYLOAD);
/// How often a reader looks by itself, also where changes are told: a supervisor that was killed tells nothing.
const LOOK: Duration = Duration::from_secs(1);
/// The same where changes are not told.
const POLL: Duration = Duration::from_millis(20);

/// See [`crate::Driver::output`].
#[derive(Debug)]
pub(crate) struct SpoolReader {
    dir: PathBuf,
    cursor: u64,
    watcher: Watcher,
    subscription: Option<Subscription>,
    file: Option<File>,
    /// What was read beyond the cursor.
    window: Vec<u8>,
}

impl SpoolReader {
    pub(crate) fn new(dir: PathBuf, cursor: u64, watcher: Watcher) -> Self {
        Self { dir, cursor, watcher, subscription: None, file: None, window: Vec::new() }
    }

    /// The next chunk that is there already.
    fn take(&mut self) -> Result<Option<OutputChunk>, Error> {
        if let Some(chunk) = self.decode()? {
            return Ok(Some(chunk));
        }
        self.fill()?;
        self.decode()
    }

    /// Reads on from the cursor.
    fn fill(&mut self) -> Result<(), Error> {
        let path = self.dir.join(record::OUTPUT);
        let file = match &mut self.file {
            Some(file) => file,
            none => match File::open(&path) {
                Ok(file) => none.insert(file),
                // Not started yet, or removed.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(Error::io("open", path)(error)),
            },
        };
        let held = self.window.len();
        self.window.resize(WINDOW, 0);
        let mut filled = held;
        let result = loop {
            match file.read_at(&mut self.window[filled..], self.cursor + filled as u64) {
                Ok(0) => break Ok(()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => break Err(Error::io("read", path)(error)),
            }
        };
        self.window.truncate(filled);
        result
    }

    /// Takes frames of one stream off the window.
    fn decode(&mut self) -> Result<Option<OutputChunk>, Error> {
        let mut chunk: Option<OutputChunk> = None;
        let mut used = 0;
        loop {
            let decoded = frame::decode(&self.window[used..]).map_err(|error| Error::Corrupt {
                path: self.dir.join(record::OUTPUT),
                problem: format!("{error} at {}", self.cursor + used as u64),
            })?;
            let Some((frame, length)) = decoded else { break };
            match &mut chunk {
                None => {
                    chunk = Some(OutputChunk {
                        stream: frame.stream,
                        offset: frame.offset,
                        time_ms: frame.time_ms,
                        bytes: frame.payload.to_vec(),
                        next_cursor: 0,
                    });
                }
                Some(chunk)
                    if chunk.stream == frame.stream
                        && chunk.bytes.len() + frame.payload.len() <= MAX_CHUNK =>
                {
                    chunk.bytes.extend_from_slice(frame.payload);
                }
                Some(_) => break,
            }
            used += length;
        }
        self.window.drain(..used);
        self.cursor += used as u64;
        Ok(chunk.map(|chunk| OutputChunk { next_cursor: self.cursor, ..chunk }))
    }

    /// Whether the unit has ended, so that what is in the spool is all. A unit that is gone has ended too.
    fn ended(&self) -> Result<bool, Error> {
        if self.dir.join(record::EXIT).exists() {
            return Ok(true);
        }
        match is_locked(&self.dir.join(record::SUPERVISOR)) {
            Ok(locked) => Ok(!locked),
            // Prepared, or gone.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(!self.dir.exists()),
            Err(error) => Err(Error::io("lock", self.dir.join(record::SUPERVISOR))(error)),
        }
    }
}

#[async_trait]
impl OutputSource for SpoolReader {
    async fn next(&mut self) -> Result<Option<OutputChunk>, Error> {
        loop {
            if self.subscription.is_none() {
                self.subscription = self.watcher.subscribe(&self.dir);
            }
            if let Some(chunk) = self.take()? {
                return Ok(Some(chunk));
            }
            if self.ended()? {
                // It may have written between the last look and its end.
                return self.take();
            }
            // Nothing is taken before this point of waiting, so a dropped call loses nothing.
            match &mut self.subscription {
                Some(subscription) => tokio::select! {
                    // Cancel-safe: see `Subscription::changed`.
                    () = subscription.changed() => {}
                    // Cancel-safe: a timer.
                    () = tokio::time::sleep(LOOK) => {}
                },
                None => tokio::time::sleep(POLL).await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::Stream;
    use windlass_launcher::frame::Frame;

    fn frames(list: &[(Stream, u64, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (stream, offset, payload) in list {
            Frame { stream: *stream, offset: *offset, time_ms: 5, payload }.encode(&mut bytes);
        }
        bytes
    }

    async fn all(reader: &mut SpoolReader) -> Vec<(Stream, u64, Vec<u8>, u64)> {
        let mut chunks = Vec::new();
        while let Some(chunk) = reader.next().await.unwrap() {
            chunks.push((chunk.stream, chunk.offset, chunk.bytes, chunk.next_cursor));
        }
        chunks
    }

    #[tokio::test]
    async fn frames_of_one_stream_are_merged_and_a_cursor_resumes_between_any_two() {
        let dir = tempfile::tempdir().unwrap();
        let list: [(Stream, u64, &[u8]); 4] = [
            (Stream::Stdout, 0, b"a\0"),
            (Stream::Stdout, 2, b"\xff"),
            (Stream::Stderr, 0, b"e"),
            (Stream::Stdout, 3, b"z"),
        ];
        std::fs::write(dir.path().join(record::OUTPUT), frames(&list)).unwrap();
        std::fs::write(dir.path().join(record::EXIT), "{}").unwrap();
        let mut reader = SpoolReader::new(dir.path().into(), 0, Watcher::start());
        let chunks = all(&mut reader).await;
        assert_eq!(chunks.len(), 3);
        assert_eq!(chunks[0].2, b"a\0\xff");
        for index in 0..chunks.len() {
            let mut resumed = SpoolReader::new(dir.path().into(), chunks[index].3, Watcher::start());
            assert_eq!(all(&mut resumed).await, chunks[index + 1..]);
        }
    }

    #[tokio::test]
    async fn a_reader_wakes_up_for_new_frames_and_waits_for_unfinished_ones() {
        use std::io::Write;
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(record::PLAN), "{}").unwrap();
        let mut reader = SpoolReader::new(dir.path().into(), 0, Watcher::start());
        let bytes = frames(&[(Stream::Stdout, 0, b"hello")]);
        let mut file = File::create(dir.path().join(record::OUTPUT)).unwrap();
        let path = dir.path().to_owned();
        let writer = async {
            for byte in &bytes {
                file.write_all(&[*byte]).unwrap();
                tokio::task::yield_now().await;
            }
        };
        let (chunk, ()) = tokio::join!(reader.next(), writer);
        assert_eq!(chunk.unwrap().unwrap().bytes, b"hello");
        std::fs::write(path.join(record::EXIT), "{}").unwrap();
        assert!(reader.next().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn damage_is_an_error_and_not_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = frames(&[(Stream::Stdout, 0, b"hello")]);
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(dir.path().join(record::OUTPUT), bytes).unwrap();
        let mut reader = SpoolReader::new(dir.path().into(), 0, Watcher::start());
        assert!(matches!(reader.next().await, Err(Error::Corrupt { .. })));
    }
}
