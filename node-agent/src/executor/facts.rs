//! A step that tells facts of the node: the agent itself looks, and what it finds is the step's output.

use std::sync::Arc;

use windlass_crds::facts::FactsStep;
use windlass_sandbox::Exit;

use super::step::{Cut, StepRun};
use super::verdict::Verdict;
use crate::facts::Asked;

impl StepRun<'_> {
    /// Looks, and tells. Does the same again after a restart in the middle of it.
    pub(super) async fn tell_facts(&mut self, step: &FactsStep) -> Result<Exit, Verdict> {
        let limit = self.time_limit();
        self.begin_without_unit().await?;
        let began = self.task.parts.clock.now();
        let parts = Arc::clone(&self.task.parts);
        let settings = parts.in_force.get().and_then(|applied| applied.configuration.facts.clone());
        let settings = settings.filter(|settings| settings.steps).ok_or_else(|| {
            let message = "refused by the node's rule facts.steps: the node tells no facts to jobs";
            Verdict::failed("PolicyRefused", message)
        })?;
        let asked = Asked::Job(&self.task.attempt().job);
        // Looking can be dropped at any time.
        let facts = match self.within(limit, parts.facts.collect(&settings, &step.include, asked)).await {
            Ok(facts) => facts,
            Err(Cut::Stopped(verdict)) => return Err(verdict),
            Err(Cut::Time) => return Ok(self.out_of_time(began)),
        };
        let mut text =
            serde_json::to_string_pretty(&facts).expect("facts have only string keys and so become JSON");
        text.push('\n');
        // Facts may hold what the job was told in confidence, such as the environment of its containers.
        if !self.task.mask.is_nothing() {
            let message =
                "the facts are kept in the job's output only: the job has secrets, which are masked there";
            self.task.event("info", "FactsNotKept", message.to_owned());
        } else if !parts.facts_outbox.send(facts) {
            let message = "the facts are not kept beside the job's output: too much waits for the controller";
            self.task.event("warn", "FactsNotKept", message.to_owned());
        }
        Ok(self.tell(began, &text).await)
    }
}
