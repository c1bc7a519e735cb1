//! `windlass wait`: until objects are in a state.

use std::time::Duration;

use tokio::time::Instant;
use windlass_crds::conditions::{Condition, ConditionStatus};
use windlass_crds::{JobPhase, Span};

use super::Context;
use crate::client::Client;
use crate::client::model::{Job, Node};
use crate::exit::Exit;
use crate::failure::{Failure, Report};
use crate::kind::{self, Kind, Target, TargetParser};
use crate::output::name;

/// The wait between the first two looks at an object.
const FIRST_LOOK: Duration = Duration::from_millis(100);
/// The longest wait between two looks: well below what a person takes for a delay, and little work for the server.
const SLOWEST_LOOK: Duration = Duration::from_secs(1);

/// Wait until objects are in a state.
///
/// A job that has ended in another state than the one waited for is a failure at once, because it will not get there by
/// itself.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The objects, each as `KIND/NAME`, or a kind with the names after it.
    #[arg(value_name = "KIND/NAME", value_parser = TargetParser)]
    first: Target,

    /// More objects.
    #[arg(value_name = "KIND/NAME")]
    more: Vec<String>,

    /// The state: `phase=PHASE` for a job, `condition=TYPE` or `condition=TYPE=STATUS`, or `delete`.
    #[arg(long = "for", value_name = "STATE", default_value = "condition=Complete")]
    state: State,

    /// Give up after this long, such as `90s` or `1h30m`; without it there is no limit.
    #[arg(long, value_name = "DURATION")]
    timeout: Option<Span>,
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Phase(JobPhase),
    Condition { name: String, status: ConditionStatus },
    Deleted,
}

impl std::str::FromStr for State {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "delete" => Ok(Self::Deleted),
            Some(("phase", phase)) => super::get::parse_phase(phase).map(Self::Phase),
            Some(("condition", condition)) => {
                let (name, status) = condition.split_once('=').unwrap_or((condition, "true"));
                let status = match status.to_ascii_lowercase().as_str() {
                    "true" => ConditionStatus::True,
                    "false" => ConditionStatus::False,
                    "unknown" => ConditionStatus::Unknown,
                    _ => {
                        return Err(format!(
                            "`{status}` is not the status of a condition: write True, False or Unknown"
                        ));
                    }
                };
                if name.is_empty() {
                    return Err("the condition's type is missing, such as `condition=Complete`".to_owned());
                }
                Ok(Self::Condition { name: name.to_owned(), status })
            }
            Some(_) | None => Err("write `phase=PHASE`, `condition=TYPE` or `delete`".to_owned()),
        }
    }
}

/// How an object stands to the state that is waited for.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    There,
    NotYet(String),
    Never(String),
}

pub(crate) async fn perform(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let Args { first, more, state, timeout } = args;
    let targets = kind::targets(first, more)?;
    let (settings, client) = context.connect()?;
    let deadline = timeout.map(|timeout| Instant::now() + timeout.get());
    for Target { kind, name } in &targets {
        let Some(object_name) = name else { return Err(kind::Error::NoName(*kind).into()) };
        let waited =
            Waited { client: &client, kind: *kind, namespace: &settings.namespace.value, name: object_name };
        waited.check(state)?;
    }
    for Target { kind, name } in targets {
        let object_name = name.unwrap_or_default();
        let waited =
            Waited { client: &client, kind, namespace: &settings.namespace.value, name: &object_name };
        waited.wait(state, deadline).await?;
        let met = match state {
            State::Deleted => "deleted",
            State::Phase(_) | State::Condition { .. } => "condition met",
        };
        context.console.line(format!("{} {met}", name::format(kind, &object_name)))?;
    }
    Ok(Exit::Success)
}

/// An object that is waited for.
struct Waited<'a> {
    client: &'a Client,
    kind: Kind,
    namespace: &'a str,
    name: &'a str,
}

impl Waited<'_> {
    /// Refuses to wait for what cannot happen to the kind.
    fn check(&self, state: &State) -> Result<(), Failure> {
        let what = match (self.kind, state) {
            (Kind::Queue, _) => "a queue has no state to wait for",
            (Kind::Node | Kind::Template, State::Phase(_)) => "only a job has a phase",
            (Kind::Template, State::Condition { .. }) => "a template has no conditions",
            (Kind::Job | Kind::Node | Kind::Template, _) => return Ok(()),
        };
        Err(Report::new(Exit::Usage, what).into())
    }

    async fn wait(&self, state: &State, deadline: Option<Instant>) -> Result<(), Failure> {
        let label = name::format(self.kind, self.name);
        let mut pause = FIRST_LOOK;
        loop {
            let standing = match self.standing(state).await {
                Ok(standing) => standing,
                // A controller that is restarted comes back; a wait with a limit is patient until then.
                Err(error) if error.is_passing() && deadline.is_some() => {
                    Standing::NotYet(crate::failure::chain(&error))
                }
                Err(error) => return Err(error.into()),
            };
            let now = match standing {
                Standing::There => return Ok(()),
                Standing::Never(why) => {
                    return Err(
                        Report::new(Exit::Failed, format!("{label} will not get there: {why}")).into()
                    );
                }
                Standing::NotYet(now) => now,
            };
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(Report::new(Exit::TimedOut, format!("{label} did not get there in time"))
                    .detail(format!("it is {now} now"))
                    .into());
            }
            tokio::time::sleep(left.map_or(pause, |left| pause.min(left))).await;
            pause = (pause * 2).min(SLOWEST_LOOK);
        }
    }

    async fn standing(&self, state: &State) -> Result<Standing, crate::client::Error> {
        let result = match self.kind {
            Kind::Job => {
                let job: Result<Job, _> = self.client.get(self.kind, self.namespace, self.name).await;
                job.map(|job| standing_of_job(&job, state))
            }
            Kind::Node => {
                let node: Result<Node, _> = self.client.get(self.kind, self.namespace, self.name).await;
                node.map(|node| standing_of_conditions(&node.status.conditions, state))
            }
            Kind::Template | Kind::Queue => {
                let object: Result<serde_json::Value, _> =
                    self.client.get(self.kind, self.namespace, self.name).await;
                object.map(|_| Standing::NotYet("still there".to_owned()))
            }
        };
        match result {
            Err(error) if error.problem_code() == Some("not_found") && *state == State::Deleted => {
                Ok(Standing::There)
            }
            other => other,
        }
    }
}

fn standing_of_job(job: &Job, state: &State) -> Standing {
    let status = &job.status;
    let there = match state {
        State::Phase(phase) => status.phase == *phase,
        State::Condition { .. } => {
            matches!(standing_of_conditions(&status.conditions, state), Standing::There)
        }
        State::Deleted => false,
    };
    let now = match &status.reason {
        Some(reason) => format!("{} ({reason})", status.phase),
        None => status.phase.to_string(),
    };
    match state {
        _ if there => Standing::There,
        State::Phase(_) | State::Condition { .. } if status.phase.is_terminal() => {
            Standing::Never(format!("it has ended as {now}"))
        }
        State::Phase(_) | State::Condition { .. } | State::Deleted => Standing::NotYet(now),
    }
}

fn standing_of_conditions(conditions: &[Condition], state: &State) -> Standing {
    let State::Condition { name, status } = state else {
        return Standing::NotYet("still there".to_owned());
    };
    match conditions.iter().find(|condition| condition.condition_type.eq_ignore_ascii_case(name)) {
        Some(condition) if condition.status == *status => Standing::There,
        Some(condition) => Standing::NotYet(format!(
            "{}={} ({})",
            condition.condition_type, condition.status, condition.reason
        )),
        None => Standing::NotYet(format!("without the condition {name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(status: &serde_json::Value) -> Job {
        serde_json::from_value(serde_json::json!({"metadata": {"name": "a"}, "status": status})).unwrap()
    }

    #[test]
    fn states_are_read_and_nonsense_names_the_forms() {
        assert_eq!("phase=succeeded".parse(), Ok(State::Phase(JobPhase::Succeeded)));
        assert_eq!("delete".parse(), Ok(State::Deleted));
        let condition = |name: &str, status| State::Condition { name: name.into(), status };
        assert_eq!("condition=Ready".parse(), Ok(condition("Ready", ConditionStatus::True)));
        assert_eq!("condition=Ready=false".parse(), Ok(condition("Ready", ConditionStatus::False)));
        for text in ["", "phase=done", "condition=", "condition=A=maybe", "deleted", "x=y"] {
            assert!(text.parse::<State>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_job_that_ended_otherwise_will_never_get_there() {
        let state = "phase=Succeeded".parse().unwrap();
        assert_eq!(
            standing_of_job(&job(&serde_json::json!({"phase": "Succeeded"})), &state),
            Standing::There
        );
        assert_eq!(
            standing_of_job(&job(&serde_json::json!({"phase": "Running"})), &state),
            Standing::NotYet("Running".into())
        );
        assert_eq!(
            standing_of_job(&job(&serde_json::json!({"phase": "Failed", "reason": "StepFailed"})), &state),
            Standing::Never("it has ended as Failed (StepFailed)".into())
        );
    }

    #[test]
    fn conditions_decide_also_after_the_end() {
        let failed = serde_json::json!({"phase": "Failed", "conditions": [
            {"type": "Failed", "status": "True", "reason": "StepFailed", "lastTransitionTime": "2026-01-01T00:00:00Z"},
        ]});
        let standing = |text: &str| standing_of_job(&job(&failed), &text.parse().unwrap());
        assert_eq!(standing("condition=failed"), Standing::There);
        assert!(matches!(standing("condition=Complete"), Standing::Never(_)));
        assert!(matches!(standing("delete"), Standing::NotYet(_)));
    }
}
