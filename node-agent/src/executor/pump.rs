//! The way of a step's output from the sandbox's spool to log records, masked.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use windlass_crds::protocol::{AttemptId, LogBody, RecordBody, Stream};
use windlass_sandbox::{Driver, Error as SandboxError, OutputChunk, UnitId};

use super::output::{Chunk, Chunker, OutputMark};
use crate::clock::Clock;
use crate::mask::{Held, Mask, Masker};
use crate::outbox::{NewRecord, Outbox};
use crate::vault::NodeKey;

/// How long output may wait for more of it before it is sent: not noticeable to a person who watches.
const FLUSH_AFTER: std::time::Duration = std::time::Duration::from_millis(20);

/// Why output does not get through.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The sandbox does not give it.
    #[error(transparent)]
    Read(#[from] SandboxError),
    /// What was held back before a restart cannot be opened, and without it a secret could be shown.
    #[error("what was held back of the output is sealed with another key of the node")]
    Sealed,
}

/// Reads a unit's output and hands it on as log records.
pub(super) struct Pump<'a> {
    pub(super) outbox: &'a Outbox,
    pub(super) driver: &'a dyn Driver,
    pub(super) clock: &'a dyn Clock,
    pub(super) attempt: &'a AttemptId,
    pub(super) step: u32,
    pub(super) unit: &'a UnitId,
    pub(super) mask: &'a Mask,
    pub(super) key: &'a NodeKey,
}

/// What the maskers of both streams hold back.
#[derive(Default, Serialize, Deserialize)]
struct BothHeld {
    stdout: Held,
    stderr: Held,
}

/// The maskers of both streams.
pub(super) struct Maskers {
    stdout: Masker,
    stderr: Masker,
}

impl Maskers {
    /// At the beginning of both.
    pub(super) fn new(mask: &Mask) -> Self {
        Self { stdout: Masker::new(mask.clone()), stderr: Masker::new(mask.clone()) }
    }

    pub(super) const fn of(&mut self, stream: Stream) -> &mut Masker {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    fn holds_nothing(&self) -> bool {
        self.stdout.held().is_nothing() && self.stderr.held().is_nothing()
    }
}

impl Pump<'_> {
    /// Reads until the unit has ended and everything is read. The records are queued, not durable.
    pub(super) async fn run(&self, mark: OutputMark) -> Result<(), Error> {
        let mut maskers = self.maskers(mark.held.as_deref())?;
        let mut chunker = Chunker::new(mark);
        let mut source = self.driver.output(self.unit, chunker.position());
        let mut flush_at: Option<Instant> = None;
        let mut at = self.clock.now();
        loop {
            // The spool is the buffer: what is not read now is read later.
            self.outbox.room().await;
            let due = flush_at.unwrap_or_else(Instant::now);
            // Cancel-safe: a read that is dropped loses nothing, and a timer neither.
            let read = tokio::select! {
                biased;
                read = source.next() => Some(read),
                () = tokio::time::sleep_until(due), if flush_at.is_some() => None,
            };
            let mut chunks = Vec::new();
            match read {
                Some(Ok(Some(OutputChunk { stream, offset: _, time_ms, bytes, next_cursor }))) => {
                    at = super::step::timestamp(time_ms).unwrap_or(at);
                    let stream = stream_word(stream);
                    let masked = maskers.of(stream).push(&bytes);
                    chunker.push_before(stream, &masked, (next_cursor, self.seal(&maskers)), &mut chunks);
                }
                Some(Ok(None)) => {
                    self.finish(&mut maskers, &mut chunker, &mut chunks).await;
                    self.hand_on(chunks, at);
                    return Ok(());
                }
                Some(Err(error)) => {
                    chunks = chunker.finish();
                    self.hand_on(chunks, at);
                    return Err(error.into());
                }
                None => {}
            }
            if flush_at.is_some_and(|flush_at| Instant::now() >= flush_at) {
                chunks.extend(chunker.flush());
            }
            self.hand_on(chunks, at);
            let soon = flush_at.unwrap_or_else(|| Instant::now() + FLUSH_AFTER);
            flush_at = chunker.has_pending().then_some(soon);
        }
    }

    /// Goes on where an earlier run left off.
    fn maskers(&self, sealed: Option<&str>) -> Result<Maskers, Error> {
        let held = match sealed {
            None => BothHeld::default(),
            Some(sealed) => {
                let held = self.key.open(&self.place(), sealed);
                held.and_then(|held| serde_json::from_slice(&held).ok()).ok_or(Error::Sealed)?
            }
        };
        let masker = |held| Masker::resume(self.mask.clone(), held);
        Ok(Maskers { stdout: masker(held.stdout), stderr: masker(held.stderr) })
    }

    /// What is held back, for the mark: it may be most of a secret.
    fn seal(&self, maskers: &Maskers) -> Option<String> {
        if maskers.holds_nothing() {
            return None;
        }
        let held = BothHeld { stdout: maskers.stdout.held().clone(), stderr: maskers.stderr.held().clone() };
        let held = serde_json::to_vec(&held).expect("it is plain data");
        Some(self.key.seal(&self.place(), &held))
    }

    /// What the sealed text is sealed for.
    fn place(&self) -> String {
        format!("output {}/{}", self.attempt, self.step)
    }

    /// Lets go what was held back. Where the cap has cut a stream, what could have become a secret is masked.
    async fn finish(&self, maskers: &mut Maskers, chunker: &mut Chunker, chunks: &mut Vec<Chunk>) {
        if !maskers.holds_nothing() {
            let exit = self.driver.wait(self.unit).await;
            // Where the end is not known, or not of the program's own will, the stream may have been cut.
            let whole = |exit: &windlass_sandbox::Exit| exit.reason == windlass_sandbox::EndReason::Exited;
            let cut = exit
                .ok()
                .filter(whole)
                .map_or((true, true), |exit| (exit.stdout.truncated, exit.stderr.truncated));
            for (stream, cut) in [(Stream::Stdout, cut.0), (Stream::Stderr, cut.1)] {
                let rest = maskers.of(stream).finish(cut);
                chunker.push_before(stream, &rest, (chunker.position(), self.seal(maskers)), chunks);
            }
        }
        chunks.extend(chunker.finish());
    }

    fn hand_on(&self, chunks: Vec<Chunk>, at: Timestamp) {
        if chunks.is_empty() {
            return;
        }
        let record = |chunk: Chunk| {
            let Chunk { stream, offset, bytes, mark } = chunk;
            let body = RecordBody::Log { step: self.step, stream, offset, body: LogBody::from_bytes(bytes) };
            NewRecord { at, body, mark: Some(mark) }
        };
        self.outbox.push(self.attempt, chunks.into_iter().map(record).collect());
    }
}

pub(super) const fn stream_word(stream: windlass_sandbox::Stream) -> Stream {
    match stream {
        windlass_sandbox::Stream::Stdout => Stream::Stdout,
        windlass_sandbox::Stream::Stderr => Stream::Stderr,
    }
}
