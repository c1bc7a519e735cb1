//! What steps are given of secrets.

use windlass_crds::SecretUse;
use windlass_crds::names::Quoted;
use windlass_crds::protocol::{Assignment, SecretValue};
use windlass_crds::sandbox_job::Step;
use windlass_sandbox::Handed;

use super::verdict::{Verdict, sandbox_verdict};
use super::{AttemptTask, Home};
use crate::mask::Mask;
use crate::workspaces::StepSecrets;

/// What takes these values out of what leaves the node.
pub(super) fn mask(secrets: &[SecretValue]) -> Mask {
    Mask::new(secrets.iter().filter_map(|secret| Some(secret.value.as_ref()?.expose())))
}

/// How an attempt ends whose secrets are sealed with another key of the node.
pub(super) fn lost(started: bool) -> Verdict {
    let message = "the node's key that seals the job's secrets is gone; give the agent --secrets-key-file, and such jobs go on";
    if started { Verdict::lost("SecretsLost", message) } else { Verdict::released("SecretsLost", message) }
}

/// Checks, before anything of the job runs, that every step can be given what it names.
pub(super) fn check(assignment: &Assignment, steps: &[Step]) -> Result<(), Verdict> {
    for step in steps {
        for secret in &step.secrets {
            given(assignment, step, secret)?;
        }
    }
    Ok(())
}

/// The value that a step names, which fits the form that it asks for.
fn given<'a>(assignment: &'a Assignment, step: &Step, secret: &SecretUse) -> Result<&'a [u8], Verdict> {
    let found = assignment.secrets.iter().find(|value| value.name == secret.name && value.key == secret.key);
    let failed =
        |reason, message: String| Verdict::failed(reason, format!("step {}: {message}", Quoted(&step.name)));
    let value = match found {
        Some(SecretValue { value: Some(value), .. }) => value.expose(),
        Some(SecretValue { problem: Some(problem), .. }) => {
            return Err(failed("SecretUnavailable", problem.clone()));
        }
        Some(SecretValue { value: None, problem: None, .. }) | None => {
            let message =
                format!("the controller has not given the secret `{secret}`; it may be too old to do so");
            return Err(failed("SecretUnavailable", message));
        }
    };
    let is_text = std::str::from_utf8(value).is_ok_and(|text| !text.contains('\0'));
    if secret.env.is_some() && !is_text {
        let message = format!(
            "the secret `{secret}` is no text, or has a NUL in it, and so fits no environment variable; take it as `file`"
        );
        return Err(failed("SecretUnsuitable", message));
    }
    Ok(value)
}

impl AttemptTask {
    /// Puts the secrets of a step where its unit finds them.
    pub(super) async fn hand_over(&self, home: &Home, index: u32, step: &Step) -> Result<Handed, Verdict> {
        if step.secrets.is_empty() {
            return Ok(Handed::default());
        }
        let mut secrets = StepSecrets::default();
        for secret in &step.secrets {
            let value = given(self.assignment(), step, secret)?;
            if let Some(variable) = &secret.env {
                secrets.environment.push((variable.clone(), value.to_vec()));
            }
            if let Some(path) = &secret.file {
                secrets.files.push((path.clone(), value.to_vec()));
            }
        }
        let handed = self.parts.workspaces.hand_over(home, index, secrets).await;
        handed.map_err(|error| sandbox_verdict(&error, self.started.is_some()))
    }

    /// Removes the secrets of a step that has ended. What cannot be removed goes with the attempt.
    pub(super) async fn take_back(&self, home: &Home, index: u32, step: &Step) {
        if step.secrets.is_empty() {
            return;
        }
        if let Err(error) = self.parts.workspaces.take_back(home, index).await {
            tracing::warn!(
                step = step.name,
                error = %crate::error_chain(&error),
                "secrets of a step stay in memory until the attempt is removed"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use windlass_crds::protocol::SecretBytes;

    use super::*;
    use crate::testing::assignment;

    fn with(value: Option<&[u8]>, problem: Option<&str>) -> Assignment {
        let secret = SecretValue {
            name: "db".to_owned(),
            key: "password".to_owned(),
            value: value.map(|value| SecretBytes::new(value.to_vec())),
            problem: problem.map(str::to_owned),
        };
        Assignment { secrets: vec![secret], ..assignment("job", 1, &["true"]) }
    }

    fn step(env: Option<&str>, file: Option<&str>) -> [Step; 1] {
        let text = |text: &str| text.to_owned();
        let (name, key) = (text("db"), text("password"));
        let secret = SecretUse { name, key, env: env.map(text), file: file.map(text) };
        [Step { name: "main".to_owned(), secrets: vec![secret], ..Step::default() }]
    }

    #[test]
    fn what_cannot_be_given_fails_before_anything_runs_and_says_why() {
        let (as_env, as_file) = (step(Some("P"), None), step(None, Some("p")));
        check(&with(Some(b"good"), None), &as_env).unwrap();
        check(&with(Some(b"\xff\0binary"), None), &as_file).unwrap();
        for (assignment, reason, part) in [
            (with(Some(b"\xff\0binary"), None), "SecretUnsuitable", "take it as `file`"),
            (with(Some(b"a\0bc"), None), "SecretUnsuitable", "`db/password`"),
            (with(None, Some("there is no Secret `default/db`")), "SecretUnavailable", "there is no Secret"),
            (assignment("job", 1, &["true"]), "SecretUnavailable", "has not given"),
        ] {
            let verdict = check(&assignment, &as_env).unwrap_err();
            let message = verdict.message.unwrap();
            assert_eq!(verdict.reason, reason, "{message}");
            assert!(message.contains(part) && message.contains("step `main`"), "{message}");
        }
    }
}
