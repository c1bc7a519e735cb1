//! The outbox: every record on its way to the controller, on disk before it is sent.
//!
//! ```text
//!  attempts ──append──► queue ──► writer (one task): encode, append to a segment, fsync, for all attempts at once
//!                                   │ durable
//!                                   ▼
//!                         records that wait ──► sender (one task): batches, one in flight ──► controller
//!                                   ▲                         │ outcome per record
//!                                   └────────── forget ◄──────┘
//! ```
//!
//! The journal is also the only account of how far an attempt has come ([`Progress`]): its last sequence, which steps
//! started and ended, how far their output was read, and its terminal record. So a record and what it stands for
//! become durable in one write, and after a crash nothing is reported twice or left out.
//!
//! *Guarantees*: sequences of an attempt start at 1 and have no gaps, over crashes too, because a record is sent only
//! once it is durable. A record is dropped only when the controller has answered for it. Acknowledgements come in any
//! order. A torn end of the journal is cut with a warning.
//!
//! Of a bare run of the Worker API the journal is an account alone: nothing of it is sent.
//!
//! *Flow control*: [`Outbox::room`] waits while more than [`ROOM_BYTES`] are unsent; output then stays in the spools of
//! the sandbox. When the disk is full, appending waits (and [`Outbox::stalled`] says why) until it is not.

mod journal;
pub(crate) mod sender;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, oneshot};
use windlass_crds::protocol::{AttemptId, Record, RecordBody, StepEnded, Terminal};

pub use self::journal::Error;
use self::journal::{Frame, Journal};
use crate::executor::output::OutputMark;
use crate::executor::service::{self, Acting};
use crate::fs::AgentFs;
use crate::watch;

/// Unsent bytes beyond which no more output is read from the spools. The unsent records are kept in memory too, so
/// this also bounds the agent's memory during an outage.
pub(crate) const ROOM_BYTES: u64 = 64 << 20;

/// Size of a segment beyond which the next one is begun. Small enough that the space of sent records is soon free
/// again, large enough that a busy node does not make files all the time.
const SEGMENT_BYTES: u64 = 8 << 20;

/// A record before it has a number.
#[derive(Clone, Debug)]
pub(crate) struct NewRecord {
    pub(crate) at: Timestamp,
    pub(crate) body: RecordBody,
    /// For a log record: where reading of the step's output goes on after it.
    pub(crate) mark: Option<OutputMark>,
}

/// How far an attempt has come, by its durable records.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Progress {
    pub(crate) last_sequence: u64,
    /// When the first step was about to begin.
    #[serde(default)]
    pub(crate) started_at: Option<Timestamp>,
    #[serde(default)]
    pub(crate) steps: BTreeMap<u32, StepProgress>,
    /// How many entries of its manifest of artifacts are told.
    #[serde(default)]
    pub(crate) artifacts: usize,
    #[serde(default)]
    pub(crate) terminal: Option<Terminal>,
}

/// How far a step has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct StepProgress {
    #[serde(default)]
    pub(crate) started_at: Option<Timestamp>,
    #[serde(default)]
    pub(crate) mark: Option<OutputMark>,
    #[serde(default)]
    pub(crate) ended: Option<StepEnded>,
    /// What a step of kind `service` was about to do.
    #[serde(default)]
    pub(crate) acting: Option<Acting>,
}

impl Progress {
    fn fold(&mut self, record: &Record, mark: Option<&OutputMark>) {
        self.last_sequence = self.last_sequence.max(record.sequence);
        match &record.body {
            RecordBody::Started { .. } => self.started_at = Some(record.at),
            RecordBody::StepStarted { step } => {
                self.steps.entry(*step).or_default().started_at = Some(record.at);
            }
            RecordBody::Log { step, .. } => {
                if let Some(mark) = mark {
                    self.steps.entry(*step).or_default().mark = Some(mark.clone());
                }
            }
            RecordBody::StepEnded(ended) => {
                self.steps.entry(ended.step).or_default().ended = Some(ended.clone());
            }
            RecordBody::Event { reason, data: Some(data), .. } if reason == service::ACTING => {
                // One that is masked beyond reading is no account: the step then says that it begins anew.
                if let Ok(acting) = Acting::deserialize(data) {
                    let step = acting.step;
                    self.steps.entry(step).or_default().acting = Some(acting);
                }
            }
            RecordBody::Artifacts { items } => self.artifacts += items.len(),
            RecordBody::Event { .. } | RecordBody::Facts(_) => {}
            RecordBody::Terminal(terminal) => self.terminal = Some(terminal.clone()),
        }
    }
}

/// The outbox. Cheap to share; [`OutboxWriter::run`] and [`sender::Sender::run`] are its two tasks.
pub(crate) struct Outbox {
    fs: Arc<dyn AgentFs>,
    /// Protects what is known in memory; never held over an await.
    state: Mutex<State>,
    /// There is something to write.
    queued: Notify,
    /// There is something to send.
    sendable: Notify,
    backlog: watch::Sender<Backlog>,
    stalled: watch::Sender<Option<String>>,
}

/// What waits to be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Records that the controller has not acknowledged.
    pub records: u64,
    /// Their size in the journal.
    pub bytes: u64,
}

/// What acknowledgements have led to.
#[derive(Debug, Default)]
struct Acknowledged {
    /// How many records were dropped.
    count: usize,
    /// The attempts whose terminal record was among them.
    ended: Vec<AttemptId>,
    /// Segments that nothing needs any more.
    free: Vec<u64>,
}

#[derive(Default)]
struct State {
    /// Frames that are not written yet, with those who wait for them.
    queue: Vec<Frame>,
    waiting: Vec<oneshot::Sender<()>>,
    /// Frames that may wait for the next write of something else: losing them costs a repetition at most.
    lazy: Vec<Frame>,
    /// The last number that was given out, durable or not.
    numbered: BTreeMap<AttemptId, u64>,
    /// Attempts that are not forgotten, by their durable records.
    progress: BTreeMap<AttemptId, Progress>,
    /// Durable records that the controller has not acknowledged, oldest first.
    unsent: BTreeMap<u64, Unsent>,
    /// Positions in `unsent`, to find the one that is acknowledged.
    positions: BTreeMap<(AttemptId, u64), u64>,
    next_position: u64,
    /// How many unsent records each segment holds, oldest first; the last one is written to.
    segments: VecDeque<(u64, u64)>,
    /// Bytes of unsent and of queued records.
    bytes: u64,
}

struct Unsent {
    record: Record,
    bytes: u64,
    segment: u64,
}

impl Outbox {
    /// Reads the journal and cuts a torn end.
    ///
    /// # Errors
    /// When the files cannot be read, or are damaged elsewhere than at the end.
    pub(crate) async fn open(fs: Arc<dyn AgentFs>) -> Result<(Self, OutboxWriter), Error> {
        let replayed = Journal::open(Arc::clone(&fs)).await?;
        let mut state = State { progress: replayed.progress, ..State::default() };
        state.numbered = state.progress.iter().map(|(id, p)| (id.clone(), p.last_sequence)).collect();
        state.segments = replayed.segments.iter().map(|number| (*number, 0)).collect();
        for (segment, record, bytes) in replayed.unsent {
            if !record.attempt.is_bare() {
                state.add_unsent(segment, record, bytes);
            }
        }
        let (backlog, stalled) = (watch::Sender::new(state.backlog()), watch::Sender::new(None));
        let outbox = Self {
            fs,
            state: Mutex::new(state),
            queued: Notify::new(),
            sendable: Notify::new(),
            backlog,
            stalled,
        };
        Ok((outbox, OutboxWriter { journal: replayed.journal }))
    }

    /// How far every attempt that is not forgotten has come.
    pub(crate) fn progress(&self) -> BTreeMap<AttemptId, Progress> {
        self.state().progress.clone()
    }

    /// Numbers records and queues them. They become durable in order, after a while; when the disk is full, after that.
    pub(crate) fn push(&self, attempt: &AttemptId, records: Vec<NewRecord>) {
        self.enqueue(attempt, records, None);
    }

    /// Numbers records and returns when they are durable, and with them all that were pushed before. Dropping the
    /// future does not take them back. When the disk is full this waits.
    pub(crate) async fn append(&self, attempt: &AttemptId, records: Vec<NewRecord>) {
        let (done, durable) = oneshot::channel();
        self.enqueue(attempt, records, Some(done));
        // An error means that the writer is gone, and with it the whole agent: nothing may go on from here.
        if durable.await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn enqueue(&self, attempt: &AttemptId, records: Vec<NewRecord>, done: Option<oneshot::Sender<()>>) {
        let mut state = self.state();
        for new in records {
            state.enqueue(attempt, new);
        }
        state.waiting.extend(done);
        self.backlog.send_replace(state.backlog());
        drop(state);
        self.queued.notify_one();
    }

    /// Forgets an attempt that has ended and is not in the ledger any more. Its unsent records stay.
    pub(crate) fn forget(&self, attempt: &AttemptId) {
        let mut state = self.state();
        state.progress.remove(attempt);
        state.numbered.remove(attempt);
        state.lazy.push(Frame::Forgotten { attempt: attempt.clone() });
    }

    /// Waits until there is room for more output.
    pub(crate) async fn room(&self) {
        let mut backlog = self.backlog.subscribe();
        // The sender lives as long as `self`.
        drop(backlog.wait_for(|backlog| backlog.bytes <= ROOM_BYTES).await);
    }

    /// Waits until every record is acknowledged.
    pub(crate) async fn drained(&self) {
        let mut backlog = self.backlog.subscribe();
        drop(backlog.wait_for(|backlog| backlog.records == 0).await);
    }

    /// Returns when everything is on disk, also what could have waited.
    pub(crate) async fn settle(&self) {
        let (done, durable) = oneshot::channel();
        self.state().waiting.push(done);
        self.queued.notify_one();
        // An error means that the writer is gone; there is nothing to wait for.
        drop(durable.await);
    }

    /// Follows what waits to be sent.
    pub(crate) fn backlog(&self) -> watch::Receiver<Backlog> {
        self.backlog.subscribe()
    }

    /// Follows whether records can be written: why not, if not.
    pub(crate) fn stalled(&self) -> watch::Receiver<Option<String>> {
        self.stalled.subscribe()
    }

    /// The next records to send, oldest first: at most `records` of them and `bytes`, but at least one.
    fn batch(&self, records: usize, bytes: u64) -> Vec<Record> {
        let state = self.state();
        let mut total = 0;
        state
            .unsent
            .values()
            .take(records)
            .take_while(|unsent| {
                let first = total == 0;
                total += unsent.bytes;
                first || total <= bytes
            })
            .map(|unsent| unsent.record.clone())
            .collect()
    }

    /// Drops records that the controller has answered for. Unknown ones are fine.
    fn acknowledge(&self, acknowledged: impl IntoIterator<Item = (AttemptId, u64)>) -> Acknowledged {
        let mut state = self.state();
        let mut dropped: BTreeMap<AttemptId, Vec<u64>> = BTreeMap::new();
        let mut result = Acknowledged::default();
        for (attempt, sequence) in acknowledged {
            let Some(record) = state.drop_unsent(&attempt, sequence) else { continue };
            result.count += 1;
            if let RecordBody::Terminal(_) = record.body {
                result.ended.push(attempt.clone());
            }
            dropped.entry(attempt).or_default().push(sequence);
        }
        state.lazy.extend(
            dropped.into_iter().map(|(attempt, sequences)| Frame::Acknowledged { attempt, sequences }),
        );
        self.backlog.send_replace(state.backlog());
        result.free = state.free_segments();
        result
    }

    /// Whether durable records of an attempt are not acknowledged.
    pub(crate) fn holds_records_of(&self, attempt: &AttemptId) -> bool {
        let of = (attempt.clone(), 0)..=(attempt.clone(), u64::MAX);
        self.state().positions.range(of).next().is_some()
    }

    /// The attempts whose terminal record is not acknowledged.
    pub(crate) fn unreported_ends(&self) -> Vec<AttemptId> {
        let state = self.state();
        let records = state.unsent.values().map(|unsent| &unsent.record);
        let ends = records.filter(|record| matches!(record.body, RecordBody::Terminal(_)));
        ends.map(|record| record.attempt.clone()).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The writing half of an outbox: what its writer task owns.
pub(crate) struct OutboxWriter {
    journal: Journal,
}

impl OutboxWriter {
    /// Writes what is queued, for ever. Everything that was queued during one write goes into the next one together.
    pub(crate) async fn run(mut self, outbox: Arc<Outbox>) -> std::convert::Infallible {
        loop {
            outbox.queued.notified().await;
            self.write_queued(&outbox).await;
        }
    }

    /// Writes what is queued, and what could have waited.
    pub(crate) async fn write_queued(&mut self, outbox: &Outbox) {
        let (frames, waiting, snapshots) = {
            let mut state = outbox.state();
            let mut frames = std::mem::take(&mut state.lazy);
            frames.append(&mut state.queue);
            let rotate = self.journal.length() >= SEGMENT_BYTES;
            let snapshots = rotate.then(|| state.snapshots());
            (frames, std::mem::take(&mut state.waiting), snapshots)
        };
        if frames.is_empty() && waiting.is_empty() {
            return;
        }
        let segment = self.journal.write(snapshots, &frames, &outbox.stalled).await;
        let free = {
            let mut state = outbox.state();
            state.written(segment, frames);
            outbox.backlog.send_replace(state.backlog());
            state.free_segments()
        };
        for done in waiting {
            // Who waited may be gone; the record stands all the same.
            done.send(()).ok();
        }
        outbox.sendable.notify_one();
        remove_segments(&*outbox.fs, free).await;
    }
}

async fn remove_segments(fs: &dyn AgentFs, numbers: Vec<u64>) {
    for number in numbers {
        if let Err(error) = fs.remove(&journal::segment_path(number)).await {
            // The segment is replayed at the next start: its records are then sent again and dropped as duplicates.
            tracing::warn!(segment = number, error = %error, "cannot remove a sent outbox segment");
        }
    }
}

impl State {
    fn enqueue(&mut self, attempt: &AttemptId, new: NewRecord) {
        let NewRecord { at, mut body, mark } = new;
        let last = self.numbered.entry(attempt.clone()).or_default();
        *last += 1;
        if let RecordBody::Terminal(terminal) = &mut body {
            terminal.last_sequence = *last;
        }
        let record = Record { attempt: attempt.clone(), sequence: *last, at, body };
        let frame = Frame::Record { record, mark };
        self.bytes += frame.size();
        self.queue.push(frame);
    }

    /// Takes frames over that are durable in `segment`.
    fn written(&mut self, segment: u64, frames: Vec<Frame>) {
        if self.segments.back().is_none_or(|(number, _)| *number != segment) {
            self.segments.push_back((segment, 0));
        }
        for frame in frames {
            let size = frame.size();
            let Frame::Record { record, mark } = frame else { continue };
            self.progress.entry(record.attempt.clone()).or_default().fold(&record, mark.as_ref());
            // `bytes` counted it when it was queued.
            self.bytes -= size;
            if !record.attempt.is_bare() {
                self.add_unsent(segment, record, size);
            }
        }
    }

    fn add_unsent(&mut self, segment: u64, record: Record, bytes: u64) {
        let position = self.next_position;
        self.next_position += 1;
        self.bytes += bytes;
        self.positions.insert((record.attempt.clone(), record.sequence), position);
        self.unsent.insert(position, Unsent { record, bytes, segment });
        if let Some((_, count)) = self.segments.iter_mut().find(|(number, _)| *number == segment) {
            *count += 1;
        }
    }

    fn drop_unsent(&mut self, attempt: &AttemptId, sequence: u64) -> Option<Record> {
        let position = self.positions.remove(&(attempt.clone(), sequence))?;
        let unsent = self.unsent.remove(&position)?;
        self.bytes -= unsent.bytes;
        if let Some((_, count)) = self.segments.iter_mut().find(|(number, _)| *number == unsent.segment) {
            *count -= 1;
        }
        Some(unsent.record)
    }

    /// Takes the oldest segments off that hold nothing unsent. Only from the front: a later segment may hold the
    /// acknowledgements of an earlier one. Never the last one, which is written to.
    fn free_segments(&mut self) -> Vec<u64> {
        let mut free = Vec::new();
        while self.segments.len() > 1
            && let Some((number, 0)) = self.segments.front().copied()
        {
            self.segments.pop_front();
            free.push(number);
        }
        free
    }

    fn snapshots(&self) -> Vec<Frame> {
        let snapshot = |(attempt, progress): (&AttemptId, &Progress)| Frame::Progress {
            attempt: attempt.clone(),
            progress: progress.clone(),
        };
        self.progress.iter().map(snapshot).collect()
    }

    fn backlog(&self) -> Backlog {
        Backlog { records: (self.unsent.len() + self.queue.len()) as u64, bytes: self.bytes }
    }
}

#[cfg(test)]
mod tests;
