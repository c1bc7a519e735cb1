//! `container`: the program of a container image.

use async_trait::async_trait;
use windlass_crds::sandbox_job::{ContainerStep, Step};
use windlass_sandbox::Exit;

use super::{Error, Program, RolledBack, StepPlugin, StepRunner, verify_exit};

/// Carries out `container` steps.
#[derive(Debug, Clone, Copy)]
pub struct Container;

#[async_trait]
impl StepPlugin for Container {
    fn kind(&self) -> &'static str {
        "container"
    }

    fn validate(&self, step: &Step) -> Result<(), Error> {
        spec(step).map(drop)
    }

    async fn execute(&self, step: &Step, runner: &mut dyn StepRunner) -> Result<Exit, Error> {
        // What runs is the image's entry point, or the step's: the runner sees to it.
        runner.run(Program { command: spec(step)?.args.clone(), script: None }).await
    }

    fn verify(&self, _: &Step, exit: &Exit) -> Result<(), Error> {
        verify_exit(exit)
    }

    async fn rollback(&self, _: &Step, _: &mut dyn StepRunner) -> Result<RolledBack, Error> {
        Ok(RolledBack::NothingToUndo)
    }
}

fn spec(step: &Step) -> Result<&ContainerStep, Error> {
    let invalid = |field: &str, message: &str| {
        let field = format!("steps[{}].container{field}", step.name);
        Err(Error::Validation { field, message: message.to_owned() })
    };
    let Some(container) = &step.container else { return invalid("", "is missing") };
    let words = container.entrypoint.iter().flatten().chain(&container.args);
    if words.clone().any(|word| word.contains('\0')) {
        return invalid("", "must not hold NUL bytes");
    }
    if container.entrypoint.as_ref().is_some_and(|words| words.first().is_none_or(String::is_empty)) {
        return invalid(".entrypoint", "must begin with a program");
    }
    Ok(container)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FakeRunner, exit};

    fn step(container: ContainerStep) -> Step {
        Step { name: "s".to_owned(), container: Some(container), ..Step::default() }
    }

    #[test]
    fn an_entry_point_without_a_program_and_nul_bytes_are_refused() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        Container.validate(&step(ContainerStep::default())).unwrap();
        for container in [
            ContainerStep { entrypoint: Some(words(&[""])), ..ContainerStep::default() },
            ContainerStep { entrypoint: Some(Vec::new()), ..ContainerStep::default() },
            ContainerStep { args: words(&["a\0b"]), ..ContainerStep::default() },
        ] {
            let error = Container.validate(&step(container)).unwrap_err();
            assert!(error.to_string().starts_with("steps[s].container"), "{error}");
        }
        assert_eq!(Container.validate(&Step::default()).unwrap_err().code(), "VALIDATION_ERROR");
    }

    #[tokio::test]
    async fn the_arguments_are_run_and_the_exit_decides() {
        let args = vec!["--version".to_owned()];
        let step = step(ContainerStep { args: args.clone(), ..ContainerStep::default() });
        let mut runner = FakeRunner::ending(exit(0));
        let ended = Container.execute(&step, &mut runner).await.unwrap();
        assert_eq!(*runner.ran(), Program { command: args, script: None });
        Container.verify(&step, &ended).unwrap();
        assert_eq!(Container.verify(&step, &exit(3)).unwrap_err().code(), "POSTCHECK_ERROR");
    }
}
