//! Standard output and standard error: data goes to the first, everything else to the second.
//!
//! Only this module writes to them, so that one place decides on colour, on width, and on what happens when the
//! reader has gone away.

use std::io::{IsTerminal as _, Write};

use crate::exit::Exit;
use crate::failure::{Failure, Report};

/// The two output streams and what they are connected to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Console {
    width: Option<usize>,
    stderr_is_terminal: bool,
}

impl Console {
    /// Looks at what the streams are connected to.
    pub(crate) fn new() -> Self {
        let stdout = std::io::stdout();
        let width = stdout
            .is_terminal()
            .then(|| rustix::termios::tcgetwinsize(&stdout).ok())
            .flatten()
            .map(|size| usize::from(size.ws_col))
            .filter(|columns| *columns > 0);
        Self { width, stderr_is_terminal: std::io::stderr().is_terminal() }
    }

    /// The terminal's width in columns; `None` when standard output is not a terminal, so nothing need be cut.
    pub(crate) const fn width(self) -> Option<usize> {
        self.width
    }

    /// Whether a person watches standard error, so that progress may be drawn there.
    pub(crate) const fn is_watched(self) -> bool {
        self.stderr_is_terminal
    }

    /// Writes data. Styles in it are kept only on a terminal and without `NO_COLOR`.
    pub(crate) fn data(self, text: &str) -> Result<(), Failure> {
        let mut out = anstream::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| output_error(&error))
    }

    /// Writes a line of data.
    pub(crate) fn line(self, text: impl AsRef<str>) -> Result<(), Failure> {
        self.data(&format!("{}\n", text.as_ref()))
    }

    /// Writes bytes of a job to standard output exactly as they are.
    pub(crate) fn raw_stdout(self, bytes: &[u8]) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| output_error(&error))
    }

    /// Writes bytes of a job to standard error exactly as they are.
    pub(crate) fn raw_stderr(self, bytes: &[u8]) -> Result<(), Failure> {
        let mut out = std::io::stderr().lock();
        out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| output_error(&error))
    }

    /// Tells a person something that is not data. Standard error is the last resort, so that a failure to write
    /// there has nowhere to go.
    pub(crate) fn note(self, text: impl AsRef<str>) {
        writeln!(anstream::stderr().lock(), "{}", text.as_ref()).ok();
    }

    /// Tells a person that something is not as it should be.
    pub(crate) fn warn(self, text: impl AsRef<str>) {
        const YELLOW: anstyle::Style =
            anstyle::AnsiColor::Yellow.on_default().effects(anstyle::Effects::BOLD);
        self.note(format!("{YELLOW}warning:{YELLOW:#} {}", text.as_ref()));
    }

    /// Prints a failure.
    pub(crate) fn report(self, report: &Report) {
        write!(anstream::stderr().lock(), "{report}").ok();
    }
}

/// What it means that our own output cannot be written.
fn output_error(error: &std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::BrokenPipe => Failure::OutputClosed,
        _ => Report::new(Exit::Failed, "the output cannot be written").detail(error.to_string()).into(),
    }
}
