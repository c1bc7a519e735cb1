//! `command`: a program and its arguments, run without a shell.

use async_trait::async_trait;
use windlass_crds::sandbox_job::Step;
use windlass_sandbox::Exit;

use super::{Error, Program, RolledBack, StepPlugin, StepRunner, verify_exit};

/// Carries out `command` steps.
#[derive(Debug, Clone, Copy)]
pub struct Command;

#[async_trait]
impl StepPlugin for Command {
    fn kind(&self) -> &'static str {
        "command"
    }

    fn validate(&self, step: &Step) -> Result<(), Error> {
        words(step).map(drop)
    }

    async fn execute(&self, step: &Step, runner: &mut dyn StepRunner) -> Result<Exit, Error> {
        runner.run(Program { command: words(step)?.to_vec(), script: None }).await
    }

    fn verify(&self, _: &Step, exit: &Exit) -> Result<(), Error> {
        verify_exit(exit)
    }

    async fn rollback(&self, _: &Step, _: &mut dyn StepRunner) -> Result<RolledBack, Error> {
        Ok(RolledBack::NothingToUndo)
    }
}

fn words(step: &Step) -> Result<&[String], Error> {
    let invalid = |message: &str| {
        Err(Error::Validation { field: format!("steps[{}].command", step.name), message: message.to_owned() })
    };
    let words = step.command.as_deref().unwrap_or_default();
    if words.first().is_none_or(String::is_empty) {
        return invalid("must begin with a program");
    }
    if words.iter().any(|word| word.contains('\0')) {
        return invalid("must not hold NUL bytes");
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FakeRunner, exit};

    fn step(words: &[&str]) -> Step {
        let command = Some(words.iter().map(|word| (*word).to_owned()).collect());
        Step { name: "s".to_owned(), command, ..Step::default() }
    }

    #[test]
    fn a_command_needs_a_program() {
        Command.validate(&step(&["true"])).unwrap();
        for words in [&[][..], &[""], &["a\0b"]] {
            let error = Command.validate(&step(words)).unwrap_err();
            assert_eq!(error.code(), "VALIDATION_ERROR");
            assert!(error.to_string().contains("steps[s].command"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_command_runs_as_it_is_and_its_exit_code_decides() {
        let mut runner = FakeRunner::ending(exit(3));
        let step = step(&["sh", "-c", "exit 3"]);
        let end = Command.execute(&step, &mut runner).await.unwrap();
        assert_eq!(runner.ran().command, ["sh", "-c", "exit 3"]);
        assert_eq!(runner.ran().script, None);
        let error = Command.verify(&step, &end).unwrap_err();
        assert_eq!((error.code(), error.to_string().as_str()), ("POSTCHECK_ERROR", "exited with code 3"));
        Command.verify(&step, &exit(0)).unwrap();
        assert_eq!(Command.rollback(&step, &mut runner).await, Ok(RolledBack::NothingToUndo));
    }

    #[test]
    fn an_end_by_timeout_has_its_own_code() {
        let end = Exit { reason: windlass_sandbox::EndReason::Timeout, code: None, ..exit(0) };
        assert_eq!(Command.verify(&step(&["x"]), &end).unwrap_err().code(), "TIMEOUT_ERROR");
    }
}
