//! The environment of a step.

use std::collections::BTreeMap;

use windlass_crds::protocol::Assignment;
use windlass_crds::sandbox_job::Step;

/// Where the steps of a job find their workspace.
pub(crate) const WORKSPACE: &str = "/workspace";
/// Names that begin so are Windlass's own.
const RESERVED: &str = "WINDLASS_";

/// The environment of a step: the sandbox's, over it the step's, over both what Windlass says. A declared name that is
/// reserved is left out.
pub(crate) fn environment(assignment: &Assignment, step: &Step) -> BTreeMap<String, String> {
    let declared = assignment.spec.sandbox.env.iter().chain(&step.env);
    let mut environment: BTreeMap<String, String> = declared
        .filter(|(name, _)| !name.starts_with(RESERVED))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let ours = [
        ("JOB_ID", assignment.attempt.job.clone()),
        ("TASK_ID", crate::worker_api::task(assignment)),
        ("JOB_NAME", assignment.name.clone()),
        ("ATTEMPT", assignment.number.to_string()),
        ("WORKSPACE_DIR", WORKSPACE.to_owned()),
        ("ARTIFACTS_DIR", format!("{WORKSPACE}/.windlass/artifacts")),
        ("OUTPUT", format!("{WORKSPACE}/.windlass/output")),
    ];
    environment.extend(ours.map(|(name, value)| (format!("{RESERVED}{name}"), value)));
    if step.secrets.iter().any(|secret| secret.file.is_some()) {
        environment.insert(format!("{RESERVED}SECRETS_DIR"), windlass_sandbox::HANDED.to_owned());
    }
    environment
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assignment;

    #[test]
    fn the_steps_own_wins_over_the_sandboxs_and_reserved_names_over_both() {
        let mut assignment = assignment("uid-1", 3, &["true"]);
        assignment.spec.sandbox.env =
            [("A", "sandbox"), ("B", "sandbox"), ("WINDLASS_JOB_ID", "forged"), ("WINDLASS_X", "y")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into();
        let step = Step {
            env: [("B", "step"), ("WINDLASS_OUTPUT", "/etc/passwd")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            ..Step::default()
        };
        let environment = environment(&assignment, &step);
        let expected = [
            ("A", "sandbox"),
            ("B", "step"),
            ("WINDLASS_ARTIFACTS_DIR", "/workspace/.windlass/artifacts"),
            ("WINDLASS_ATTEMPT", "1"),
            ("WINDLASS_JOB_ID", "uid-1"),
            ("WINDLASS_JOB_NAME", "job-uid-1"),
            ("WINDLASS_OUTPUT", "/workspace/.windlass/output"),
            ("WINDLASS_TASK_ID", "uid-1"),
            ("WINDLASS_WORKSPACE_DIR", "/workspace"),
        ];
        let found: Vec<_> = environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(found, expected);
    }
}
