//! How the records of an attempt change the picture of its job.
//!
//! Records may arrive in any order, and some twice: folding them must give the same picture every time.

use jiff::Timestamp;
use windlass_crds::protocol::{RecordBody, StepEnded, Terminal, TerminalPhase};
use windlass_crds::sandbox_job::{Limit, StepPhase, StepStatus};

/// The picture of an attempt.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Progress {
    /// The steps, in the order of the spec.
    pub steps: Vec<StepStatus>,
    /// Limits that are not enforced.
    pub unenforced: Vec<Limit>,
    /// When the attempt began to run.
    pub started_at: Option<Timestamp>,
    /// How it ended.
    pub terminal: Option<Terminal>,
    /// The end of the attempt, where it is known: by its terminal record, or because it was ended by somebody else.
    pub end: Option<End>,
}

/// The end of an attempt, as its steps see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// When it was.
    pub at: Timestamp,
    /// Whether the attempt succeeded.
    pub succeeded: bool,
    /// Why, as one word.
    pub reason: String,
}

impl Progress {
    /// The picture of an attempt of which nothing is known yet.
    pub fn new<'a>(step_names: impl IntoIterator<Item = &'a str>) -> Self {
        let steps =
            step_names.into_iter().map(|name| StepStatus { name: name.to_owned(), ..Default::default() });
        Self { steps: steps.collect(), ..Default::default() }
    }

    /// Takes one record in. Logs and events change nothing here; a step that the job does not have is ignored.
    pub fn fold(&mut self, at: Timestamp, body: &RecordBody) {
        match body {
            RecordBody::Started { unenforced } => {
                self.started_at.get_or_insert(at);
                self.unenforced.clone_from(unenforced);
            }
            RecordBody::StepStarted { step } => {
                self.started_at.get_or_insert(at);
                if let Some(status) = self.step(*step) {
                    status.started_at.get_or_insert(at);
                    if matches!(status.phase, StepPhase::Pending | StepPhase::Skipped) {
                        status.phase = StepPhase::Running;
                    }
                }
            }
            RecordBody::StepEnded(ended) => self.step_ended(at, ended),
            RecordBody::Terminal(terminal) => {
                self.terminal.get_or_insert_with(|| terminal.clone());
                let succeeded = terminal.phase == TerminalPhase::Succeeded;
                self.end.get_or_insert_with(|| End { at, succeeded, reason: terminal.reason.clone() });
            }
            RecordBody::Log { .. }
            | RecordBody::Event { .. }
            | RecordBody::Artifacts { .. }
            | RecordBody::Facts(_) => {}
        }
        self.close_steps();
    }

    /// Notes that the attempt has ended, unless that is known: nothing of it runs any more, and nothing will start. What
    /// its records tell of a step afterwards still counts.
    pub fn close(&mut self, end: End) {
        self.end.get_or_insert(end);
        self.close_steps();
    }

    /// Once the attempt has ended, a step that had not started was skipped, and one whose end was not told ended with
    /// the attempt: nothing runs in a picture of what is over.
    fn close_steps(&mut self) {
        let Some(end) = &self.end else { return };
        for status in &mut self.steps {
            match status.phase {
                StepPhase::Pending => status.phase = StepPhase::Skipped,
                StepPhase::Running => {
                    status.phase = if end.succeeded { StepPhase::Succeeded } else { StepPhase::Failed };
                    status.reason = Some(end.reason.clone());
                    status.finished_at = Some(end.at);
                }
                StepPhase::Succeeded | StepPhase::Failed | StepPhase::Skipped => {}
            }
        }
    }

    fn step(&mut self, position: u32) -> Option<&mut StepStatus> {
        self.steps.get_mut(usize::try_from(position).ok()?)
    }

    fn step_ended(&mut self, at: Timestamp, ended: &StepEnded) {
        if let Some(status) = self.step(ended.step) {
            status.phase = if ended.succeeded { StepPhase::Succeeded } else { StepPhase::Failed };
            status.reason = Some(ended.reason.clone());
            status.message.clone_from(&ended.message);
            status.exit_code = ended.exit_code;
            status.signal = ended.signal;
            status.finished_at = Some(at);
            status.usage = Some(ended.usage.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use windlass_crds::sandbox_job::StepUsage;

    fn story() -> Vec<(Timestamp, RecordBody)> {
        let at = |second| Timestamp::from_second(second).unwrap();
        vec![
            (at(1), RecordBody::Started { unenforced: vec![Limit::Pids] }),
            (at(2), RecordBody::StepStarted { step: 0 }),
            (
                at(3),
                RecordBody::StepEnded(StepEnded {
                    step: 0,
                    succeeded: false,
                    reason: "Exited".into(),
                    message: None,
                    exit_code: Some(2),
                    signal: None,
                    usage: StepUsage::default(),
                }),
            ),
            (
                at(4),
                RecordBody::Terminal(Terminal {
                    phase: TerminalPhase::Failed,
                    reason: "StepFailed".into(),
                    message: None,
                    exit_code: Some(2),
                    last_sequence: 4,
                }),
            ),
        ]
    }

    #[test]
    fn a_story_told_in_order_gives_the_expected_picture() {
        let mut progress = Progress::new(["one", "two"]);
        for (at, body) in story() {
            progress.fold(at, &body);
        }
        assert_eq!(progress.steps[0].phase, StepPhase::Failed);
        assert_eq!(progress.steps[0].exit_code, Some(2));
        assert_eq!(progress.steps[1].phase, StepPhase::Skipped);
        assert_eq!(progress.unenforced, [Limit::Pids]);
    }

    #[test]
    fn nothing_runs_in_the_picture_of_an_attempt_that_has_ended() {
        // The end of the step is lost with the sandbox, or not here yet.
        let pictures = [[0, 1, 3], [3, 1, 0], [1, 3, 0]].map(|order| {
            let mut progress = Progress::new(["one", "two"]);
            for index in order {
                let (at, body) = &story()[index];
                progress.fold(*at, body);
            }
            progress.steps
        });
        let (one, two) = (&pictures[0][0], &pictures[0][1]);
        assert_eq!((one.phase, one.reason.as_deref()), (StepPhase::Failed, Some("StepFailed")));
        assert_eq!((one.exit_code, one.finished_at), (None, Timestamp::from_second(4).ok()));
        assert_eq!(two.phase, StepPhase::Skipped);
        assert!(pictures.iter().all(|picture| *picture == pictures[0]), "{pictures:?}");
        let mut lost = Progress::new(["one", "two"]);
        story()[..2].iter().for_each(|(at, body)| lost.fold(*at, body));
        let at = Timestamp::from_second(9).unwrap();
        lost.close(End { at, succeeded: false, reason: "NodeLost".into() });
        assert_eq!(
            (lost.steps[0].phase, lost.steps[0].reason.as_deref()),
            (StepPhase::Failed, Some("NodeLost"))
        );
        assert_eq!(lost.steps[1].phase, StepPhase::Skipped);
    }

    proptest! {
        #[test]
        fn order_and_repetition_do_not_matter_to_the_steps(
            order in Just((0..4).chain(0..4).collect::<Vec<usize>>()).prop_shuffle(),
        ) {
            let story = story();
            let mut straight = Progress::new(["one", "two"]);
            story.iter().for_each(|(at, body)| straight.fold(*at, body));
            let mut shuffled = Progress::new(["one", "two"]);
            order.iter().for_each(|index| shuffled.fold(story[*index].0, &story[*index].1));
            // A start that arrives after the terminal record fills in its time and nothing else.
            shuffled.started_at = straight.started_at;
            prop_assert_eq!(shuffled, straight);
        }
    }
}
