//! A/B/A/B: subjects are measured by turns, so that what disturbs the machine disturbs all of them.

use crate::stats::{median, percentile};

/// How often every subject is measured.
const ROUNDS: usize = 5;

/// A measurement, or why there is none.
pub(crate) type Measured<T> = Result<T, String>;

/// How much of a reason is shown: errors may quote whole batches.
const REASON: usize = 300;

/// The reason why there is no measurement.
#[expect(clippy::needless_pass_by_value, reason = "it stands in `map_err`, which gives the error away")]
pub(crate) fn reason(error: anyhow::Error) -> String {
    let text = format!("{error:#}");
    match text.char_indices().nth(REASON) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Something that can be measured: yields the samples of one round, at least one.
pub(crate) type Subject<'s> = Box<dyn FnMut() -> anyhow::Result<Vec<f64>> + 's>;

/// Makes a subject of a function.
pub(crate) fn subject<'s>(round: impl FnMut() -> anyhow::Result<Vec<f64>> + 's) -> Subject<'s> {
    Box::new(round)
}

/// The samples of a subject, by round.
#[derive(Debug, Default)]
pub(crate) struct Rounds(Vec<Vec<f64>>);

impl Rounds {
    /// The median of the rounds' medians, which one disturbed round does not move.
    pub(crate) fn median(&self) -> f64 {
        median(&self.0.iter().map(|round| median(round)).collect::<Vec<_>>())
    }

    /// A percentile over the samples of all rounds: the tail is rare and must not be averaged away.
    pub(crate) fn percentile(&self, percent: f64) -> f64 {
        percentile(&self.0.concat(), percent)
    }
}

/// Between two subjects: the kernel takes namespaces and cgroups apart long after a program has ended, and the next one in the row
/// is not to pay for it.
const SETTLING: std::time::Duration = std::time::Duration::from_millis(500);

/// Measures all by turns. One that could not be set up, or fails, is left out from there on.
pub(crate) fn interleave<const N: usize>(
    row: &str,
    mut subjects: [Measured<Subject<'_>>; N],
) -> [Measured<Rounds>; N] {
    let mut all = [const { Vec::new() }; N];
    for round in 1..=ROUNDS {
        eprintln!("{row}: round {round} of {ROUNDS}");
        for (subject, rounds) in subjects.iter_mut().zip(&mut all) {
            let Ok(measure) = subject else { continue };
            std::thread::sleep(SETTLING);
            match measure() {
                Ok(samples) => rounds.push(samples),
                Err(error) => *subject = Err(reason(error)),
            }
        }
    }
    let mut all = all.into_iter();
    subjects.map(|subject| {
        let rounds = all.next().expect("there are as many lists of rounds as subjects");
        subject.map(|_| Rounds(rounds))
    })
}
