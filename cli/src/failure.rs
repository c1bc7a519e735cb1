//! What a person reads when something did not work: what, the details, and what to do about it.

use std::error::Error;
use std::fmt::Write as _;

use crate::exit::Exit;

/// Why a verb did not do what it was asked to.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something that must be said.
    Report(Report),
    /// Whoever read our standard output has gone away. There is nobody to tell and nothing went wrong.
    OutputClosed,
}

/// A failure in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Report {
    /// How the command ends.
    pub(crate) exit: Exit,
    /// What did not work, without a full stop.
    pub(crate) what: String,
    /// More about it, a line each.
    pub(crate) details: Vec<String>,
    /// What to do about it.
    pub(crate) hint: Option<String>,
}

impl Report {
    /// A report with nothing but what did not work.
    pub(crate) fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { exit, what: what.into(), details: Vec::new(), hint: None }
    }

    /// Adds a line of detail.
    #[must_use]
    pub(crate) fn detail(mut self, line: impl Into<String>) -> Self {
        self.details.push(line.into());
        self
    }

    /// Adds lines of detail.
    #[must_use]
    pub(crate) fn details(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        self.details.extend(lines);
        self
    }

    /// Adds every cause of an error, the nearest first, as lines of detail.
    #[must_use]
    pub(crate) fn causes(mut self, error: &dyn Error) -> Self {
        self.details.extend(causes(error));
        self
    }

    /// Says what to do about it.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<Report> for Failure {
    fn from(report: Report) -> Self {
        Self::Report(report)
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const RED: anstyle::Style = anstyle::AnsiColor::Red.on_default().effects(anstyle::Effects::BOLD);
        const CYAN: anstyle::Style = anstyle::AnsiColor::Cyan.on_default();
        writeln!(f, "{RED}error:{RED:#} {}", self.what)?;
        for line in self.details.iter().flat_map(|detail| detail.lines()) {
            writeln!(f, "  {line}")?;
        }
        if let Some(hint) = &self.hint {
            writeln!(f, "{CYAN}hint:{CYAN:#} {hint}")?;
        }
        Ok(())
    }
}

/// The causes of an error, the nearest first, without those that only repeat the one before.
fn causes(error: &dyn Error) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if lines.last().is_none_or(|last| !last.contains(&text)) {
            lines.push(text);
        }
        next = cause.source();
    }
    lines
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    for cause in causes(error) {
        if !line.contains(&cause) {
            write!(line, ": {cause}").expect("writing to a string cannot fail");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_reads_from_what_to_hint() {
        let report = Report::new(Exit::Invalid, "2 manifests are invalid")
            .detail("a.yaml:1:2: one")
            .detail("b.yaml:3:4: two\nlines")
            .hint("mend them");
        let text = anstream::adapter::strip_str(&report.to_string()).to_string();
        assert_eq!(
            text,
            "error: 2 manifests are invalid\n  a.yaml:1:2: one\n  b.yaml:3:4: two\n  lines\nhint: mend them\n"
        );
    }

    #[test]
    fn a_chain_names_each_cause_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read the file")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("disk on fire"));
        assert_eq!(chain(&error), "cannot read the file: disk on fire");
    }
}
