//! `facts`: what the node looks at on its host, as JSON on standard output.

use async_trait::async_trait;
use windlass_crds::sandbox_job::Step;
use windlass_sandbox::Exit;

use super::{Error, RolledBack, StepPlugin, StepRunner, verify_exit};

/// Carries out `facts` steps.
#[derive(Debug, Clone, Copy)]
pub struct Facts;

#[async_trait]
impl StepPlugin for Facts {
    fn kind(&self) -> &'static str {
        "facts"
    }

    fn validate(&self, step: &Step) -> Result<(), Error> {
        match &step.facts {
            Some(_) => Ok(()),
            None => Err(Error::Validation {
                field: format!("steps[{}].facts", step.name),
                message: "is missing".to_owned(),
            }),
        }
    }

    async fn execute(&self, step: &Step, runner: &mut dyn StepRunner) -> Result<Exit, Error> {
        self.validate(step)?;
        runner.facts(&step.facts.clone().unwrap_or_default()).await
    }

    fn verify(&self, _: &Step, exit: &Exit) -> Result<(), Error> {
        verify_exit(exit)
    }

    async fn rollback(&self, _: &Step, _: &mut dyn StepRunner) -> Result<RolledBack, Error> {
        // It only looks.
        Ok(RolledBack::NothingToUndo)
    }
}

#[cfg(test)]
mod tests {
    use windlass_crds::facts::FactsStep;

    use super::*;
    use crate::testing::{FakeRunner, exit};

    #[tokio::test]
    async fn a_step_without_the_word_is_refused_and_one_with_it_looks() {
        assert_eq!(Facts.validate(&Step::default()).unwrap_err().code(), "VALIDATION_ERROR");
        let step = Step { facts: Some(FactsStep::default()), ..Step::default() };
        let mut runner = FakeRunner::ending(exit(0));
        let ended = Facts.execute(&step, &mut runner).await.unwrap();
        Facts.verify(&step, &ended).unwrap();
        assert_eq!(Facts.rollback(&step, &mut runner).await, Ok(RolledBack::NothingToUndo));
    }
}
