//! What is printed: a line for each comparison, hit, missed or failed.

use std::fmt::{self, Display, Formatter};

use crate::rounds::{Measured, Rounds};

/// What a figure counts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unit {
    PerSecond,
    Milliseconds,
    MiB,
    MiBPerSecond,
    /// Of one core.
    Percent,
    /// One figure ÷ another of the same subject.
    Times,
    /// How many there are.
    Count,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Aim {
    /// Ours ÷ the peer's is at least this.
    RatioAtLeast(f64),
    /// Ours ÷ the peer's is at most this.
    RatioAtMost(f64),
    /// Ours is at most this.
    AtMost(f64),
    /// Ours is at least this.
    AtLeast(f64),
    /// Nothing: for orientation.
    None,
}

/// What is compared.
#[derive(Clone, Debug)]
pub(crate) struct Comparison {
    /// The row's id.
    pub(crate) row: &'static str,
    /// What is measured.
    pub(crate) metric: &'static str,
    /// Whom we are beside.
    pub(crate) peer: &'static str,
    /// What the figures count.
    pub(crate) unit: Unit,
    /// What is asked for.
    pub(crate) aim: Aim,
    /// Differences that the reader must know; may be empty.
    pub(crate) note: String,
}

/// Everything that was measured.
#[derive(Debug, Default)]
pub(crate) struct Table {
    lines: Vec<String>,
    incomplete: bool,
}

impl Table {
    /// Adds a line with two values, or says why there are none.
    pub(crate) fn values(&mut self, comparison: &Comparison, ours: &Measured<f64>, peer: &Measured<f64>) {
        let Comparison { row, metric, peer: name, unit, aim, note } = comparison;
        let (ours, peer) = match (ours, peer) {
            (Ok(ours), Ok(peer)) => (*ours, *peer),
            (Err(reason), _) => return self.failed(row, metric, &format!("windlass: {reason}")),
            (_, Err(reason)) => return self.failed(row, metric, &format!("{name}: {reason}")),
        };
        let ratio = ours / peer;
        let (aim, verdict) = judged(*aim, *unit, ours, ratio);
        // A peer that takes nothing has no ratio.
        let ratio_text = if ratio.is_finite() { format!("{ratio:.2} ×") } else { "–".to_owned() };
        let [ours, peer] = [ours, peer].map(|value| shown(value, *unit));
        self.lines.push(line([row, metric, &ours, &peer, name, &ratio_text, &aim, verdict]));
        self.lines.extend(note.lines().map(|line| format!("       {line}")));
    }

    /// Adds a line with the medians of what was measured in rounds, and for latencies one with their tails.
    pub(crate) fn rounds(
        &mut self,
        comparison: &Comparison,
        ours: &Measured<Rounds>,
        peer: &Measured<Rounds>,
    ) {
        let median = |side: &Measured<Rounds>| side.as_ref().map(Rounds::median).map_err(Clone::clone);
        self.values(comparison, &median(ours), &median(peer));
        if let (Ok(ours), Ok(peer), Unit::Milliseconds) = (ours, peer, comparison.unit) {
            let tails = |rounds: &Rounds| {
                let [p50, p95, p99] = [50.0, 95.0, 99.0].map(|percent| rounds.percentile(percent));
                format!("{p50:.2} / {p95:.2} / {p99:.2}")
            };
            self.lines.push(format!("       p50 / p95 / p99 in ms: {} beside {}", tails(ours), tails(peer)));
        }
    }

    /// Adds a line with a value that nobody else is measured beside.
    pub(crate) fn alone(&mut self, row: &str, metric: &str, ours: f64, unit: Unit, aim: Aim) {
        let (aim, verdict) = judged(aim, unit, ours, f64::NAN);
        self.lines.push(line([row, metric, &shown(ours, unit), "–", "", "–", &aim, verdict]));
    }

    /// Adds a remark to the line before.
    pub(crate) fn note(&mut self, note: &str) {
        self.lines.push(format!("       {note}"));
    }

    /// Whether every figure could be taken. Missed aims do not matter here.
    pub(crate) fn is_complete(&self) -> bool {
        !self.incomplete
    }

    /// Adds a line that says why there is no value.
    pub(crate) fn failed(&mut self, row: &str, metric: &str, reason: &str) {
        self.lines.push(format!("{row:<4} {metric:<40} FAILED: {reason}"));
        self.incomplete = true;
    }
}

/// A value as it is printed.
fn shown(value: f64, unit: Unit) -> String {
    let decimals = match unit {
        Unit::PerSecond => 0,
        Unit::Milliseconds | Unit::Times | Unit::Count => 2,
        Unit::MiB => 1,
        Unit::MiBPerSecond => 0,
        Unit::Percent => 3,
    };
    format!("{value:.decimals$} {unit}").trim_end().to_owned()
}

/// What was asked for, and whether it is so.
fn judged(aim: Aim, unit: Unit, ours: f64, ratio: f64) -> (String, &'static str) {
    let (aim, hit) = match aim {
        Aim::RatioAtLeast(least) => (format!("≥ {least} ×"), Some(ratio >= least)),
        Aim::RatioAtMost(most) => (format!("≤ {most} ×"), Some(ratio <= most)),
        Aim::AtMost(most) => (format!("≤ {most} {unit}"), Some(ours <= most)),
        Aim::AtLeast(least) => (format!("≥ {least} {unit}"), Some(ours >= least)),
        Aim::None => ("–".to_owned(), None),
    };
    let verdict = match hit {
        Some(true) => "hit",
        Some(false) => "MISSED",
        None => "",
    };
    (aim.trim_end().to_owned(), verdict)
}

fn line([row, metric, ours, peer, name, ratio, aim, verdict]: [&str; 8]) -> String {
    let line =
        format!("{row:<4} {metric:<40} {ours:>11} {peer:>11} {name:<16} {ratio:>9} {aim:<9} {verdict}");
    line.trim_end().to_owned()
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", line(["row", "metric", "ours", "peer", "", "ratio", "aim", ""]))?;
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl Display for Unit {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PerSecond => "/s",
            Self::Milliseconds => "ms",
            Self::MiB => "MiB",
            Self::MiBPerSecond => "MiB/s",
            Self::Percent => "%",
            Self::Times => "×",
            Self::Count => "",
        })
    }
}
