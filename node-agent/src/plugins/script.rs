//! `script`: a text that an interpreter of the sandbox runs.

use async_trait::async_trait;
use windlass_crds::sandbox_job::{Script as Spec, Step};
use windlass_sandbox::Exit;

use super::{Error, Program, RolledBack, StepPlugin, StepRunner, verify_exit};

/// The code of a program that was not found.
const NOT_FOUND: i32 = 127;

/// Carries out `script` steps.
#[derive(Debug, Clone, Copy)]
pub struct Script;

#[async_trait]
impl StepPlugin for Script {
    fn kind(&self) -> &'static str {
        "script"
    }

    fn validate(&self, step: &Step) -> Result<(), Error> {
        script(step).map(drop)
    }

    async fn execute(&self, step: &Step, runner: &mut dyn StepRunner) -> Result<Exit, Error> {
        let script = script(step)?;
        let mut command = vec![interpreter(script).to_owned(), runner.script_path()];
        command.extend(script.args.iter().cloned());
        let mut exit = runner.run(Program { command, script: Some(script.source.clone()) }).await?;
        if exit.code == Some(NOT_FOUND) && !exit.program_started {
            exit.message = Some(format!(
                "the interpreter `{}` is not in the sandbox; install it on the node, or in the image where there is one, or \
                 name another as `interpreter`",
                interpreter(script)
            ));
        }
        Ok(exit)
    }

    fn verify(&self, _: &Step, exit: &Exit) -> Result<(), Error> {
        verify_exit(exit)
    }

    async fn rollback(&self, _: &Step, _: &mut dyn StepRunner) -> Result<RolledBack, Error> {
        Ok(RolledBack::NothingToUndo)
    }
}

/// The program that runs a script.
fn interpreter(script: &Spec) -> &str {
    match script.interpreter.as_str() {
        // Most systems have no `python` any more, and where they do it may be Python 2.
        "python" => "python3",
        other => other,
    }
}

fn script(step: &Step) -> Result<&Spec, Error> {
    let invalid = |field: &str, message: &str| {
        let field = format!("steps[{}].script{field}", step.name);
        Err(Error::Validation { field, message: message.to_owned() })
    };
    let Some(script) = &step.script else { return invalid("", "is missing") };
    if script.interpreter.is_empty() || script.interpreter.contains('\0') {
        return invalid(".interpreter", "must name a program");
    }
    if script.source.is_empty() {
        return invalid(".source", "must not be empty");
    }
    if script.args.iter().any(|word| word.contains('\0')) {
        return invalid(".args", "must not hold NUL bytes");
    }
    Ok(script)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FakeRunner, exit, script as bash};

    fn step(script: Spec) -> Step {
        Step { name: "s".to_owned(), script: Some(script), ..Step::default() }
    }

    #[tokio::test]
    async fn a_script_is_given_to_its_interpreter_with_its_arguments() {
        let python = Spec {
            interpreter: "python".to_owned(),
            source: "print(1)".to_owned(),
            args: vec!["-x".to_owned()],
        };
        let mut runner = FakeRunner::ending(exit(0));
        let end = Script.execute(&step(python), &mut runner).await.unwrap();
        assert_eq!(runner.ran().command, ["python3", "/workspace/.windlass/steps/0", "-x"]);
        assert_eq!(runner.ran().script.as_deref(), Some("print(1)"));
        Script.verify(&step(bash("true")), &end).unwrap();
    }

    #[tokio::test]
    async fn a_missing_interpreter_is_named() {
        let missing = Exit { program_started: false, message: Some("not found".to_owned()), ..exit(127) };
        let mut runner = FakeRunner::ending(missing);
        let ruby = Spec { interpreter: "ruby".to_owned(), ..bash("p 1") };
        let end = Script.execute(&step(ruby.clone()), &mut runner).await.unwrap();
        assert_eq!(end.code, Some(127));
        let error = Script.verify(&step(ruby), &end).unwrap_err();
        assert!(error.to_string().contains("interpreter `ruby`"), "{error}");
    }

    #[test]
    fn a_script_needs_text_and_an_interpreter() {
        Script.validate(&step(bash("true"))).unwrap();
        for (wrong, field) in [
            (bash(""), "steps[s].script.source"),
            (Spec { interpreter: String::new(), ..bash("x") }, "steps[s].script.interpreter"),
            (Spec { args: vec!["\0".to_owned()], ..bash("x") }, "steps[s].script.args"),
        ] {
            let error = Script.validate(&step(wrong)).unwrap_err();
            assert!(error.to_string().contains(field), "{error}");
        }
    }
}
