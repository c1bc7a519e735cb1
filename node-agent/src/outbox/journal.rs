//! The outbox on disk: numbered segments of frames, each a length, a CRC-32 and JSON.
//!
//! A segment begins with a snapshot of every attempt that is not forgotten, so that older segments can go when all
//! their records are acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::watch;
use serde::{Deserialize, Serialize};
use windlass_crds::protocol::{AttemptId, Record};

use super::Progress;
use crate::executor::output::OutputMark;
use crate::fs::AgentFs;

const FOLDER: &str = "outbox";
/// Length and checksum.
const HEADER: usize = 8;
/// No frame comes near it; a larger length is damage.
const MAX_FRAME: usize = 16 << 20;
/// Between tries to write when the disk is full or broken: soon enough for a person who just made room.
const RETRY: Duration = Duration::from_secs(1);

/// One entry of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Frame {
    /// A record to be sent.
    Record {
        record: Record,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mark: Option<OutputMark>,
    },
    /// Records that the controller has answered for.
    Acknowledged { attempt: AttemptId, sequences: Vec<u64> },
    /// How far an attempt has come by all segments before this one.
    Progress { attempt: AttemptId, progress: Progress },
    /// An attempt of which nothing needs to be known any more.
    Forgotten { attempt: AttemptId },
}

impl Frame {
    /// About as many bytes as it takes in the journal, without encoding it.
    pub(super) fn size(&self) -> u64 {
        use windlass_crds::protocol::{LogBody, RecordBody};
        // Names, numbers and punctuation of a record are within this.
        const ENVELOPE: usize = 256;
        let content = match self {
            Self::Record { record, .. } => match &record.body {
                RecordBody::Log { body: LogBody::Text(text) | LogBody::Base64(text), .. } => text.len(),
                RecordBody::Event { message, data, .. } => {
                    message.len() + data.as_ref().map_or(0, |data| data.to_string().len())
                }
                RecordBody::StepEnded(ended) => ended.message.as_ref().map_or(0, String::len),
                RecordBody::Terminal(terminal) => terminal.message.as_ref().map_or(0, String::len),
                RecordBody::Artifacts { items } => {
                    let text = |artifact: &windlass_crds::protocol::Artifact| {
                        artifact.name.len() + artifact.refused.as_ref().map_or(0, String::len) + ENVELOPE
                    };
                    items.iter().map(text).sum()
                }
                RecordBody::Facts(facts) => serde_json::to_vec(facts).map_or(0, |json| json.len()),
                RecordBody::Started { .. } | RecordBody::StepStarted { .. } => 0,
            },
            Self::Acknowledged { .. } | Self::Progress { .. } | Self::Forgotten { .. } => 0,
        };
        (content + ENVELOPE) as u64
    }

    fn encode(&self, to: &mut Vec<u8>) {
        let start = to.len();
        to.extend_from_slice(&[0; HEADER]);
        serde_json::to_writer(&mut *to, self).expect("a frame has only string keys and so becomes JSON");
        let body = &to[start + HEADER..];
        let length = u32::try_from(body.len()).expect("a frame is far below 4 GiB");
        let crc = crc32fast::hash(body);
        to[start..start + 4].copy_from_slice(&length.to_le_bytes());
        to[start + 4..start + HEADER].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Why the outbox could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder cannot be listed.
    #[error("cannot list the outbox")]
    List(#[source] std::io::Error),
    /// A segment cannot be read.
    #[error("cannot read outbox segment {number}")]
    Read {
        /// The segment.
        number: u64,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// What follows a damaged place of a segment cannot be put aside.
    #[error("cannot put aside the damaged part of outbox segment {number}")]
    Keep {
        /// The segment.
        number: u64,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The torn end of the last segment cannot be cut.
    #[error("cannot cut outbox segment {number} to {length} bytes")]
    Cut {
        /// The segment.
        number: u64,
        /// The bytes that are whole.
        length: u64,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A frame is whole but not one of ours.
    #[error("outbox segment {number} has an unknown frame at byte {offset}; a newer agent wrote it")]
    Unknown {
        /// The segment.
        number: u64,
        /// Where the frame begins.
        offset: usize,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
}

impl Error {
    /// A stable word for the kind of error.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::List(_) => "outbox_list",
            Self::Read { .. } => "outbox_read",
            Self::Keep { .. } => "outbox_keep",
            Self::Cut { .. } => "outbox_cut",
            Self::Unknown { .. } => "outbox_unknown_frame",
        }
    }
}

/// What the journal says at start.
pub(super) struct Replayed {
    pub(super) journal: Journal,
    pub(super) segments: Vec<u64>,
    pub(super) progress: BTreeMap<AttemptId, Progress>,
    /// Records without an acknowledgement, oldest first: segment, record, size.
    pub(super) unsent: Vec<(u64, Record, u64)>,
}

/// The segment that is written to.
pub(super) struct Journal {
    fs: Arc<dyn AgentFs>,
    number: u64,
    length: u64,
}

/// The path of a segment under the state folder.
pub(super) fn segment_path(number: u64) -> String {
    format!("{FOLDER}/{number:012}.journal")
}

fn segment_number(name: &str) -> Option<u64> {
    name.strip_suffix(".journal")?.parse().ok()
}

impl Journal {
    /// Reads all segments. Where nothing in them is needed any more they are removed and a new one is begun.
    pub(super) async fn open(fs: Arc<dyn AgentFs>) -> Result<Replayed, Error> {
        let names = fs.list(FOLDER).await.map_err(Error::List)?;
        let mut segments: Vec<u64> = names.iter().filter_map(|name| segment_number(name)).collect();
        segments.sort_unstable();
        let mut replay = Replay::default();
        let mut length = 0;
        for &number in &segments {
            let content = fs.read(&segment_path(number)).await;
            let content = content.map_err(|source| Error::Read { number, source })?.unwrap_or_default();
            let whole = replay.segment(number, &content)?;
            length = whole as u64;
            let rest = &content[whole..];
            if !rest.is_empty() {
                if is_torn(rest) {
                    // A crash in the middle of a write, which nobody was told had worked.
                    tracing::warn!(
                        segment = number,
                        bytes = rest.len(),
                        "the outbox has a torn end, which was cut"
                    );
                } else {
                    // Not what a crash leaves: it may have been acknowledged, so it is kept for somebody to look at.
                    let path = format!("{FOLDER}/{number:012}.damaged");
                    let kept = fs.replace(&path, rest.to_vec()).await;
                    kept.map_err(|source| Error::Keep { number, source })?;
                    tracing::error!(
                        segment = number,
                        bytes = rest.len(),
                        kept = path,
                        "the outbox is damaged on disk; what follows the damage was put aside and will not be reported"
                    );
                }
                let cut = fs.truncate(&segment_path(number), length).await;
                cut.map_err(|source| Error::Cut { number, length, source })?;
            }
        }
        let Replay { progress, unsent, acknowledged } = replay;
        let unsent: Vec<_> = unsent
            .into_iter()
            .filter(|(_, record, _)| !acknowledged.contains(&(record.attempt.clone(), record.sequence)))
            .collect();
        let mut number = segments.last().copied().unwrap_or(1);
        if unsent.is_empty() && progress.is_empty() && length > 0 {
            for &old in &segments {
                // What stays is replayed to nothing again at the next start.
                if let Err(error) = fs.remove(&segment_path(old)).await {
                    tracing::warn!(segment = old, error = %error, "cannot remove a sent outbox segment");
                }
            }
            segments.clear();
            number += 1;
            length = 0;
        }
        if segments.is_empty() {
            segments.push(number);
        }
        Ok(Replayed { journal: Self { fs, number, length }, segments, progress, unsent })
    }

    /// Bytes in the segment that is written to.
    pub(super) const fn length(&self) -> u64 {
        self.length
    }

    /// Makes frames durable, in a new segment that begins with `snapshots` where there are some to write. Tries until
    /// it works and says in `stalled` why it does not. Returns the segment.
    pub(super) async fn write(
        &mut self,
        snapshots: Option<Vec<Frame>>,
        frames: &[Frame],
        stalled: &watch::Sender<Option<String>>,
    ) -> u64 {
        if snapshots.is_some() {
            self.number += 1;
            self.length = 0;
        }
        let mut bytes = Vec::new();
        for frame in snapshots.iter().flatten().chain(frames) {
            frame.encode(&mut bytes);
        }
        let size = bytes.len() as u64;
        let path = segment_path(self.number);
        loop {
            let Err(error) = self.fs.append(&path, bytes.clone()).await else { break };
            if stalled.borrow().is_none() {
                tracing::warn!(segment = self.number, error = %error, "records cannot be written; attempts wait");
            }
            stalled.send_replace(Some(format!("records cannot be written to the state folder: {error}")));
            loop {
                tokio::time::sleep(RETRY).await;
                // The failed write may have left a part behind, which must go before the next one. A segment that
                // was not made yet has nothing to cut.
                match self.fs.truncate(&path, self.length).await {
                    Ok(()) => break,
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound && self.length == 0 => break,
                    Err(_) => {}
                }
            }
        }
        if stalled.send_replace(None).is_some() {
            tracing::info!(segment = self.number, "records can be written again");
        }
        self.length += size;
        self.number
    }
}

#[derive(Default)]
struct Replay {
    progress: BTreeMap<AttemptId, Progress>,
    unsent: Vec<(u64, Record, u64)>,
    acknowledged: BTreeSet<(AttemptId, u64)>,
}

impl Replay {
    /// Takes a segment over. Returns how many of its bytes are whole frames.
    fn segment(&mut self, number: u64, content: &[u8]) -> Result<usize, Error> {
        let mut offset = 0;
        while let Some(body) = whole_frame(&content[offset..]) {
            let frame =
                serde_json::from_slice(body).map_err(|source| Error::Unknown { number, offset, source })?;
            self.frame(number, frame);
            offset += HEADER + body.len();
        }
        Ok(offset)
    }

    fn frame(&mut self, segment: u64, frame: Frame) {
        let size = frame.size();
        match frame {
            Frame::Record { record, mark } => {
                self.progress.entry(record.attempt.clone()).or_default().fold(&record, mark.as_ref());
                self.unsent.push((segment, record, size));
            }
            Frame::Acknowledged { attempt, sequences } => {
                self.acknowledged.extend(sequences.into_iter().map(|sequence| (attempt.clone(), sequence)));
            }
            Frame::Progress { attempt, progress } => {
                self.progress.insert(attempt, progress);
            }
            Frame::Forgotten { attempt } => {
                self.progress.remove(&attempt);
            }
        }
    }
}

/// Whether bytes that do not begin with a whole frame are the beginning of one, which is what an interrupted write leaves:
/// everything up to some place, or zeros where the length of the file was written before its content.
fn is_torn(bytes: &[u8]) -> bool {
    let Some((length, _)) = bytes.split_first_chunk::<4>() else { return true };
    let length = u64::from(u32::from_le_bytes(*length));
    let is_short = length <= MAX_FRAME as u64 && (bytes.len() as u64) < length + HEADER as u64;
    is_short || bytes.iter().all(|byte| *byte == 0)
}

/// The body of the frame at the start of `bytes`, `None` where it is torn or there is none.
fn whole_frame(bytes: &[u8]) -> Option<&[u8]> {
    let (header, rest) = bytes.split_at_checked(HEADER)?;
    let (length, crc) = header.split_at(4);
    let length = usize::try_from(u32::from_le_bytes(length.try_into().ok()?)).ok()?;
    let crc = u32::from_le_bytes(crc.try_into().ok()?);
    // No frame is empty, but zeros would pass for one: their sum is right.
    if length == 0 || length > MAX_FRAME {
        return None;
    }
    let body = rest.get(..length)?;
    (crc32fast::hash(body) == crc).then_some(body)
}
