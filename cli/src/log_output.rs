//! A job's output on our own output: byte for byte, or line by line with times.

use std::collections::BTreeMap;

use jiff::Timestamp;
use windlass_crds::protocol::Stream;

use crate::client::model::{LogGap, LogItem};
use crate::console::Console;
use crate::exit::Exit;
use crate::failure::{Failure, Report};
use crate::output::human::{self, printable};

/// Where the two streams of a job go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Routing {
    /// Each to our own stream of the same name, as if the program ran here.
    Apart,
    /// Both to standard output, because they are the data that was asked for.
    Together,
}

/// Writes a job's output.
#[derive(Debug)]
pub(crate) struct LogPrinter {
    console: Console,
    routing: Routing,
    timestamps: Option<Lines>,
    /// The last byte that was written ends a line, or nothing was written.
    at_line_start: bool,
}

impl LogPrinter {
    /// A printer that has written nothing yet.
    pub(crate) fn new(console: Console, routing: Routing, timestamps: bool) -> Self {
        Self { console, routing, timestamps: timestamps.then(Lines::default), at_line_start: true }
    }

    /// Writes a piece of output.
    pub(crate) fn print(&mut self, item: LogItem) -> Result<(), Failure> {
        let (at, step, stream) = (item.at, item.step.clone(), item.stream);
        if let Some(LogGap { bytes, reason }) = &item.gap {
            if self.is_mid_line() && self.console.is_watched() {
                self.console.note("");
            }
            let of = step.as_deref().map(|step| format!(" of step {}", printable(step))).unwrap_or_default();
            self.console.warn(format!(
                "here {} of {stream}{of} are missing: {}",
                human::bytes(*bytes),
                printable(reason)
            ));
        }
        let bytes = item.into_bytes().ok_or_else(|| {
            Report::new(
                Exit::Failed,
                "the server's copy of the job's output is broken: its base64 cannot be read",
            )
        })?;
        match &mut self.timestamps {
            None => self.write(stream, &bytes),
            Some(lines) => {
                let text = lines.push(step, stream, at, &bytes);
                self.write(stream, &text)
            }
        }
    }

    /// Writes what is left of lines that never ended.
    pub(crate) fn finish(&mut self) -> Result<(), Failure> {
        let rest = self.timestamps.as_mut().map(Lines::finish).unwrap_or_default();
        rest.into_iter().try_for_each(|(stream, line)| self.write(stream, &line))
    }

    /// Whether the output so far ends in the middle of a line, so that a message of ours would be glued to it.
    pub(crate) const fn is_mid_line(&self) -> bool {
        !self.at_line_start
    }

    fn write(&mut self, stream: Stream, bytes: &[u8]) -> Result<(), Failure> {
        let Some(last) = bytes.last() else { return Ok(()) };
        self.at_line_start = *last == b'\n';
        match (self.routing, stream) {
            (Routing::Apart, Stream::Stderr) => self.console.raw_stderr(bytes),
            (Routing::Apart | Routing::Together, Stream::Stdout) | (Routing::Together, Stream::Stderr) => {
                self.console.raw_stdout(bytes)
            }
        }
    }
}

/// Puts pieces together to whole lines, each with the time of its first byte in front.
#[derive(Debug, Default)]
struct Lines {
    open: BTreeMap<(Option<String>, Stream), (Timestamp, Vec<u8>)>,
}

/// The longest line that is kept back to be put together; what is longer is written in parts.
const LONGEST_LINE: usize = 1 << 20;

impl Lines {
    fn push(&mut self, step: Option<String>, stream: Stream, at: Timestamp, bytes: &[u8]) -> Vec<u8> {
        let mut ready = Vec::new();
        let key = (step, stream);
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (since, mut line) = self.open.remove(&key).unwrap_or((at, Vec::new()));
            line.extend_from_slice(part);
            if line.ends_with(b"\n") {
                write_line(&mut ready, since, &line);
            } else if line.len() > LONGEST_LINE {
                line.push(b'\n');
                write_line(&mut ready, since, &line);
            } else {
                self.open.insert(key.clone(), (since, line));
            }
        }
        ready
    }

    fn finish(&mut self) -> Vec<(Stream, Vec<u8>)> {
        std::mem::take(&mut self.open)
            .into_iter()
            .map(|((_, stream), (since, mut line))| {
                let mut ready = Vec::new();
                line.push(b'\n');
                write_line(&mut ready, since, &line);
                (stream, ready)
            })
            .collect()
    }
}

fn write_line(ready: &mut Vec<u8>, at: Timestamp, line: &[u8]) {
    ready.extend_from_slice(format!("{at:.3} ").as_bytes());
    ready.extend_from_slice(line);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_get_the_time_of_their_first_byte_however_they_were_cut() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut lines = Lines::default();
        let mut push = |second, stream, bytes: &[u8]| {
            String::from_utf8(lines.push(Some("main".into()), stream, at(second), bytes)).unwrap()
        };
        assert_eq!(push(1, Stream::Stdout, b"one\ntw"), "1970-01-01T00:00:01.000Z one\n");
        assert_eq!(push(2, Stream::Stderr, b"err\n"), "1970-01-01T00:00:02.000Z err\n");
        assert_eq!(push(3, Stream::Stdout, b"o\nthree"), "1970-01-01T00:00:01.000Z two\n");
        assert_eq!(push(4, Stream::Stdout, b""), "");
        let rest = lines.finish();
        assert_eq!(rest, [(Stream::Stdout, b"1970-01-01T00:00:03.000Z three\n".to_vec())]);
    }
}
