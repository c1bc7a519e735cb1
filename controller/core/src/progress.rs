//! How the records of an attempt change the picture of its job.
//!
//! Records may arrive in any order, and some twice: folding them must give the same picture every time.

use jiff::Timestamp;
use windlass_crds::protocol::{RecordBody, StepEnded, Terminal};
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
                    if status.phase == StepPhase::Pending {
                        status.phase = StepPhase::Running;
                    }
                }
            }
            RecordBody::StepEnded(ended) => self.step_ended(at, ended),
            RecordBody::Terminal(terminal) => {
                self.terminal.get_or_insert_with(|| terminal.clone());
                self.skip_pending();
            }
            RecordBody::Log { .. } | RecordBody::Event { .. } => {}
        }
    }

    /// Steps that have not started will not start any more.
    pub fn skip_pending(&mut self) {
        for status in &mut self.steps {
            if status.phase == StepPhase::Pending {
                status.phase = StepPhase::Skipped;
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
    use windlass_crds::protocol::TerminalPhase;
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
