//! `service`: a container of the node is started, stopped or restarted, and put back where that does not come to a good end.

use async_trait::async_trait;
use windlass_crds::sandbox_job::Step;
use windlass_crds::service::ServiceStep;
use windlass_sandbox::Exit;

use super::{Error, RolledBack, StepPlugin, StepRunner, verify_exit};

/// Carries out `service` steps.
#[derive(Debug, Clone, Copy)]
pub struct Service;

#[async_trait]
impl StepPlugin for Service {
    fn kind(&self) -> &'static str {
        "service"
    }

    fn validate(&self, step: &Step) -> Result<(), Error> {
        spec(step).map(drop)
    }

    async fn execute(&self, step: &Step, runner: &mut dyn StepRunner) -> Result<Exit, Error> {
        runner.service(spec(step)?).await
    }

    fn verify(&self, _: &Step, exit: &Exit) -> Result<(), Error> {
        // The runner has looked until the container was as it should be, or could not be any more.
        verify_exit(exit)
    }

    async fn rollback(&self, step: &Step, runner: &mut dyn StepRunner) -> Result<RolledBack, Error> {
        runner.undo_service(spec(step)?).await
    }
}

fn spec(step: &Step) -> Result<&ServiceStep, Error> {
    let invalid = |field: &str, message: String| {
        Err(Error::Validation { field: format!("steps[{}].service{field}", step.name), message })
    };
    let Some(service) = &step.service else { return invalid("", "is missing".to_owned()) };
    if !ServiceStep::is_name(&service.name) {
        let message = format!(
            "`{}` is no name of a container; up to 128 letters, digits, `_`, `.` and `-`, the first a letter or digit",
            service.name.escape_debug()
        );
        return invalid(".name", message);
    }
    if !(1..=300).contains(&service.timeout_seconds) {
        return invalid(
            ".timeoutSeconds",
            format!("`{}` is not between 1 and 300; correct it", service.timeout_seconds),
        );
    }
    Ok(service)
}

#[cfg(test)]
mod tests {
    use windlass_crds::service::ServiceAction;

    use super::*;
    use crate::testing::{FakeRunner, exit};

    fn step(name: &str, timeout_seconds: u32) -> Step {
        let service = ServiceStep {
            action: ServiceAction::Restart,
            name: name.to_owned(),
            runtime: None,
            timeout_seconds,
        };
        Step { name: "s".to_owned(), service: Some(service), ..Step::default() }
    }

    #[test]
    fn names_that_are_none_and_times_out_of_bounds_are_refused_by_their_fields() {
        Service.validate(&step("web-1", 300)).unwrap();
        for (step, field) in [
            (Step::default(), "steps[].service: "),
            (step("../web", 10), "steps[s].service.name: "),
            (step("web; reboot", 10), "steps[s].service.name: "),
            (step("web", 0), "steps[s].service.timeoutSeconds: "),
            (step("web", 301), "steps[s].service.timeoutSeconds: "),
        ] {
            let error = Service.validate(&step).unwrap_err();
            assert!(error.code() == "VALIDATION_ERROR" && error.to_string().starts_with(field), "{error}");
        }
    }

    #[tokio::test]
    async fn a_container_that_is_not_as_it_should_be_fails_the_check_and_is_put_back() {
        let step = step("web", 10);
        let bad = Exit { code: None, message: Some("it has ended".to_owned()), ..exit(0) };
        let mut runner = FakeRunner::ending(bad);
        let ended = Service.execute(&step, &mut runner).await.unwrap();
        let error = Service.verify(&step, &ended).unwrap_err();
        assert_eq!((error.code(), error.to_string().as_str()), ("POSTCHECK_ERROR", "it has ended"));
        let back = Service.rollback(&step, &mut runner).await.unwrap();
        assert_eq!(back, RolledBack::Undone { how: "put back".to_owned() });
        Service.verify(&step, &exit(0)).unwrap();
    }
}
