//! Cuts the output of a step into log records.
//!
//! A chunk holds bytes of one stream, at most [`CHUNK_BYTES`], and does not end inside a UTF-8 character as long as
//! the stream goes on, so that text stays text. The order of the two streams is kept. Every chunk carries a
//! [`OutputMark`]: where reading goes on after it, so that output continues after a crash without loss or repetition.

use serde::{Deserialize, Serialize};
use windlass_crds::protocol::Stream;

/// The most bytes of a chunk.
pub(crate) const CHUNK_BYTES: usize = 64 << 10;

/// Where reading of a step's output goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OutputMark {
    /// The position in the spool up to which everything was read.
    pub(crate) position: u64,
    #[serde(default)]
    stdout: StreamMark,
    #[serde(default)]
    stderr: StreamMark,
    /// What was read up to `position` and waits in front of the chunks because it could be the beginning of a secret: sealed, and
    /// opened by whoever sealed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) held: Option<String>,
}

/// What was done with one stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct StreamMark {
    /// Bytes that are in chunks.
    #[serde(default)]
    offset: u64,
    /// Bytes that were read and are in no chunk yet; after a chunk at most a part of a character.
    #[serde(default)]
    pending: Vec<u8>,
}

/// A piece of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) stream: Stream,
    /// The position of the first byte in the stream.
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
    /// Where reading goes on after this chunk.
    pub(crate) mark: OutputMark,
}

/// Cuts output into chunks.
#[derive(Debug)]
pub(crate) struct Chunker {
    mark: OutputMark,
    /// The stream that was read last and may have bytes that could be a chunk.
    current: Option<Stream>,
}

impl Chunker {
    /// Goes on after `mark`.
    pub(crate) const fn new(mark: OutputMark) -> Self {
        Self { mark, current: None }
    }

    /// Where in the spool to read on.
    pub(crate) const fn position(&self) -> u64 {
        self.mark.position
    }

    /// Whether there are bytes that a flush would turn into a chunk.
    pub(crate) fn has_pending(&self) -> bool {
        self.current.is_some_and(|stream| whole_characters(&self.stream(stream).pending) > 0)
    }

    /// Takes bytes that were read; `position` is where the spool is read on.
    #[cfg(test)]
    pub(crate) fn push(&mut self, stream: Stream, bytes: &[u8], position: u64, chunks: &mut Vec<Chunk>) {
        self.push_before(stream, bytes, (position, None), chunks);
    }

    /// Takes bytes; after them the spool is read on at a position, and what was read before it and is held back comes first.
    pub(crate) fn push_before(
        &mut self,
        stream: Stream,
        bytes: &[u8],
        (position, held): (u64, Option<String>),
        chunks: &mut Vec<Chunk>,
    ) {
        let full = self.stream(stream).pending.len() + bytes.len() > CHUNK_BYTES;
        if self.current.is_some_and(|current| current != stream || full) {
            chunks.extend(self.flush());
        }
        self.current = Some(stream);
        self.mark.position = position;
        self.mark.held = held;
        self.stream_mut(stream).pending.extend_from_slice(bytes);
        // More than one turn only when bytes that were held back came before bytes that fill a chunk.
        while self.stream(stream).pending.len() >= CHUNK_BYTES {
            let cut = whole_characters(&self.stream(stream).pending[..CHUNK_BYTES]);
            chunks.push(self.cut(stream, cut));
        }
    }

    /// Makes a chunk of what was read last, but for a part of a character at its end.
    pub(crate) fn flush(&mut self) -> Option<Chunk> {
        let stream = self.current?;
        let cut = whole_characters(&self.stream(stream).pending);
        (cut > 0).then(|| self.cut(stream, cut))
    }

    /// Makes chunks of everything that is left, after the streams have ended.
    pub(crate) fn finish(&mut self) -> Vec<Chunk> {
        let mut chunks: Vec<Chunk> = self.flush().into_iter().collect();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let left = self.stream(stream).pending.len();
            if left > 0 {
                chunks.push(self.cut(stream, left));
            }
        }
        chunks
    }

    fn cut(&mut self, stream: Stream, length: usize) -> Chunk {
        let state = self.stream_mut(stream);
        let bytes: Vec<u8> = state.pending.drain(..length).collect();
        let offset = state.offset;
        state.offset += length as u64;
        Chunk { stream, offset, bytes, mark: self.mark.clone() }
    }

    const fn stream(&self, stream: Stream) -> &StreamMark {
        match stream {
            Stream::Stdout => &self.mark.stdout,
            Stream::Stderr => &self.mark.stderr,
        }
    }

    const fn stream_mut(&mut self, stream: Stream) -> &mut StreamMark {
        match stream {
            Stream::Stdout => &mut self.mark.stdout,
            Stream::Stderr => &mut self.mark.stderr,
        }
    }
}

/// How many bytes there are before a UTF-8 character that has begun at the end and is not complete. Bytes that are no
/// UTF-8 at all count as whole.
fn whole_characters(bytes: &[u8]) -> usize {
    for (back, byte) in bytes.iter().rev().take(3).enumerate() {
        let needed = match byte {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            // A byte in the middle of a character: its first one is further ahead.
            0x80..=0xbf => continue,
            _ => break,
        };
        if needed > back + 1 {
            return bytes.len() - back - 1;
        }
        break;
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use windlass_crds::protocol::LogBody;

    use super::*;

    fn any_stream() -> impl Strategy<Value = Stream> {
        prop_oneof![Just(Stream::Stdout), Just(Stream::Stderr)]
    }

    /// Text of all widths of characters, cut into reads at any byte, with the reads of the two streams mixed.
    fn reads(text: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<(Stream, Vec<u8>)>> {
        (text, prop::collection::vec((any_stream(), 1..200_usize), 1..40)).prop_map(|(bytes, sizes)| {
            let mut rest = [bytes.as_slice(), bytes.as_slice()];
            let mut reads = Vec::new();
            for (stream, size) in sizes {
                let rest = &mut rest[usize::from(stream == Stream::Stderr)];
                let (read, left) = rest.split_at(size.min(rest.len()));
                *rest = left;
                reads.push((stream, read.to_vec()));
            }
            // What is left goes in one piece each, so that every stream has the whole text.
            reads.push((Stream::Stdout, rest[0].to_vec()));
            reads.push((Stream::Stderr, rest[1].to_vec()));
            reads.retain(|(_, bytes)| !bytes.is_empty());
            reads
        })
    }

    fn text() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop_oneof!["[a-z\n]{1,9}", "[ßžñ]{1,9}", "[€漢字]{1,9}", "[😀🦀]{1,9}"], 0..30)
            .prop_map(|parts| parts.concat().into_bytes())
    }

    /// Pushes reads from number `start` on; the spool's position is the number of reads.
    fn run(mark: OutputMark, reads: &[(Stream, Vec<u8>)], flush_every: usize) -> Vec<Chunk> {
        let mut chunker = Chunker::new(mark);
        let start = usize::try_from(chunker.position()).unwrap();
        let mut chunks = Vec::new();
        for (number, (stream, bytes)) in reads.iter().enumerate().skip(start) {
            chunker.push(*stream, bytes, number as u64 + 1, &mut chunks);
            if number % flush_every == 0 {
                chunks.extend(chunker.flush());
            }
        }
        chunks.extend(chunker.finish());
        chunks
    }

    fn joined<'a>(chunks: impl IntoIterator<Item = &'a Chunk>, stream: Stream) -> Vec<u8> {
        let mut bytes = Vec::new();
        for chunk in chunks.into_iter().filter(|chunk| chunk.stream == stream) {
            assert_eq!(chunk.offset, bytes.len() as u64);
            assert!(!chunk.bytes.is_empty() && chunk.bytes.len() <= CHUNK_BYTES);
            bytes.extend_from_slice(&chunk.bytes);
        }
        bytes
    }

    fn written(reads: &[(Stream, Vec<u8>)], stream: Stream) -> Vec<u8> {
        reads.iter().filter(|(of, _)| *of == stream).flat_map(|(_, bytes)| bytes.clone()).collect()
    }

    proptest! {
        #[test]
        fn text_stays_text_and_nothing_is_lost(reads in reads(text()), flush_every in 1..5_usize) {
            let chunks = run(OutputMark::default(), &reads, flush_every);
            for stream in [Stream::Stdout, Stream::Stderr] {
                prop_assert_eq!(joined(&chunks, stream), written(&reads, stream));
            }
            for chunk in chunks {
                prop_assert!(matches!(LogBody::from_bytes(chunk.bytes), LogBody::Text(_)));
            }
        }

        #[test]
        fn any_bytes_arrive_as_they_are(
            reads in reads(prop::collection::vec(any::<u8>(), 0..3000)), flush_every in 1..5_usize,
        ) {
            let chunks = run(OutputMark::default(), &reads, flush_every);
            for stream in [Stream::Stdout, Stream::Stderr] {
                prop_assert_eq!(joined(&chunks, stream), written(&reads, stream));
            }
        }

        #[test]
        fn after_a_crash_output_goes_on_from_any_mark(reads in reads(text()), crash in any::<prop::sample::Index>()) {
            let chunks = run(OutputMark::default(), &reads, 2);
            prop_assume!(!chunks.is_empty());
            let kept = &chunks[..=crash.index(chunks.len())];
            let mark = kept.last().unwrap().mark.clone();
            let mark: OutputMark = serde_json::from_str(&serde_json::to_string(&mark).unwrap()).unwrap();
            let after = run(mark, &reads, 3);
            for stream in [Stream::Stdout, Stream::Stderr] {
                prop_assert_eq!(joined(kept.iter().chain(&after), stream), written(&reads, stream));
            }
        }
    }

    #[test]
    fn large_output_is_cut_into_full_chunks_with_small_marks() {
        let euros = "€".repeat(CHUNK_BYTES).into_bytes();
        let mut chunker = Chunker::new(OutputMark::default());
        let mut chunks = Vec::new();
        for (number, read) in euros.chunks(CHUNK_BYTES).enumerate() {
            chunker.push(Stream::Stdout, read, number as u64 + 1, &mut chunks);
        }
        chunks.extend(chunker.finish());
        assert_eq!(joined(&chunks, Stream::Stdout), euros);
        assert!(chunks.len() <= 5, "{}", chunks.len());
        assert!(chunks.iter().all(|chunk| chunk.mark.stdout.pending.len() < 8));
        assert!(chunks.iter().all(|chunk| std::str::from_utf8(&chunk.bytes).is_ok()));
    }
}
