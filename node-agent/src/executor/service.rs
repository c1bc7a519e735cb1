//! A step that starts, stops or restarts a container of the node: by leave of the node's rules, and never one of Windlass's own.
//!
//! ```text
//! rules ─► find ─► ServiceActing (durable) ─► engine ─► look until it is as it should be ─► output ┄┄► put back, if it is not
//! ```
//!
//! *Guarantees*: the container is asked for by its id once it was found by its name, so that no other one is met. What it was is
//! durable before the engine is asked; after a restart of the agent a restart that has happened is not repeated, and one of which
//! it is not known is told to be. *Caveats*: an engine finishes what it was asked for, also when the job is cancelled, out of
//! time or without a lease by then: a container is not left stopped because its restart was not waited for.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{Instant, timeout};
use windlass_crds::protocol::{Assignment, SandboxCapability, SandboxRules};
use windlass_crds::service::{ContainerEngine, ServiceAction, ServiceStep};
use windlass_sandbox::engine::{Containers, EngineKind, Named, NamedAction, NamedState};
use windlass_sandbox::{Error as SandboxError, Exit};

use super::policy::Refusal;
use super::step::{Cut, StepRun};
use super::verdict::{Verdict, sandbox_verdict};
use crate::plugins::{self, RolledBack};

/// The reason of the event that says what is about to be done; its data is an [`Acting`].
pub(crate) const ACTING: &str = "ServiceActing";
/// Between two looks at a container. They cost the engine a few milliseconds.
const POLL: Duration = Duration::from_millis(250);
/// How long a container without a health check must run to count as running: programs that cannot start end sooner.
const SETTLE: Duration = Duration::from_secs(2);
/// How long an engine may take to tell about a container.
const PATIENCE: Duration = Duration::from_secs(20);
const RULE: &str = "policy.sandbox.services";

/// What a step is about to do with a container, and what that was before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Acting {
    /// The step's position.
    pub(crate) step: u32,
    node: String,
    job: String,
    action: String,
    runtime: String,
    container: String,
    id: String,
    state: String,
    started_at: Option<String>,
}

/// A container that a step has done something with.
#[derive(Clone)]
pub(super) struct Touched {
    engine: Containers,
    id: String,
    was_running: bool,
}

/// Why a step gets no further.
pub(super) enum Trouble {
    /// The attempt ends.
    Attempt(Verdict),
    /// The step fails.
    Step(plugins::Error),
    /// The step's time is over.
    Time,
}

impl From<Verdict> for Trouble {
    fn from(verdict: Verdict) -> Self {
        Self::Attempt(verdict)
    }
}

impl From<Cut> for Trouble {
    fn from(cut: Cut) -> Self {
        match cut {
            Cut::Stopped(verdict) => Self::Attempt(verdict),
            Cut::Time => Self::Time,
        }
    }
}

/// Why a container is not found.
enum Missing {
    /// The step is declared wrongly for this node.
    Invalid(&'static str, String),
    /// The node allows nobody to touch it.
    Refused(String),
    /// An engine does not say.
    Engine(SandboxError),
    /// An engine does not answer.
    Silent(EngineKind),
}

/// How far a container is from what it should be.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// It is as it should be.
    Good,
    /// It may yet be; what is missing.
    NotYet(String),
    /// It will not be; why.
    Bad(String),
}

/// The engine of a step that names one.
pub(crate) const fn kind_of(engine: ContainerEngine) -> EngineKind {
    match engine {
        ContainerEngine::Podman => EngineKind::Podman,
        ContainerEngine::Docker => EngineKind::Docker,
    }
}

/// Checks the containers that a job wants to touch against the node's rules.
///
/// # Errors
/// The rule that is broken.
pub(super) fn check(
    assignment: &Assignment,
    rules: &SandboxRules,
    host: &SandboxCapability,
) -> Result<(), Refusal> {
    for step in &assignment.spec.steps {
        let Some(service) = &step.service else { continue };
        if let Some(message) = forbidden(&service.name, rules) {
            return Err(Refusal { rule: RULE, message: format!("step `{}`: {message}", step.name) });
        }
        let works = |kind: &str| host.runtimes.iter().any(|works| works == kind);
        let (fits, wanted) = match service.runtime {
            Some(wanted) => (works(wanted.into()), wanted.to_string()),
            None => (works("podman") || works("docker"), "podman or docker".to_owned()),
        };
        if !fits {
            let message = format!("step `{}` needs {wanted}, which does not work on the node", step.name);
            return Err(Refusal { rule: "capability.sandbox.runtimes", message });
        }
    }
    Ok(())
}

/// Why the rules forbid to touch a container of this name.
fn forbidden(name: &str, rules: &SandboxRules) -> Option<String> {
    if rules.services.iter().any(|allowed| allowed == name) {
        return None;
    }
    let allowed = if rules.services.is_empty() { "none".to_owned() } else { rules.services.join(", ") };
    Some(format!(
        "the job asks for container `{}`, the node allows {allowed}; it must be listed in sandbox.services of the NodeConfig",
        name.escape_debug()
    ))
}

/// Whether a container is as it should be after an action. `was` is when it was started last before, `up` how long it has been seen
/// running since it was started.
fn judge(action: ServiceAction, was: Option<&str>, now: &Named, up: Duration, settle: Duration) -> Seen {
    match (action, now.state) {
        (ServiceAction::Stop, NamedState::Exited | NamedState::Created) => Seen::Good,
        (ServiceAction::Stop, state) => Seen::NotYet(format!("it is still {state}")),
        (ServiceAction::Restart, NamedState::Running) if now.started_at.as_deref() == was => {
            Seen::NotYet("it has not been restarted".to_owned())
        }
        (ServiceAction::Start | ServiceAction::Restart, NamedState::Running) => {
            let Some(health) = &now.health else {
                return match up >= settle {
                    true => Seen::Good,
                    false => Seen::NotYet("it does not stay up".to_owned()),
                };
            };
            let time = |text: &Option<String>| text.as_deref()?.parse::<Timestamp>().ok();
            // What an engine says right after a start may be of the time before it.
            let checked = time(&health.last_check)
                .is_some_and(|at| time(&now.started_at).is_some_and(|start| at >= start));
            match health.word.as_str() {
                "healthy" if checked => Seen::Good,
                "unhealthy" if checked => Seen::Bad("its health check says `unhealthy`".to_owned()),
                word => Seen::NotYet(format!(
                    "its health check has not passed since it was started, it says `{word}`"
                )),
            }
        }
        (ServiceAction::Start | ServiceAction::Restart, NamedState::Changing) => {
            Seen::NotYet(format!("it is {}", now.state))
        }
        (
            ServiceAction::Start | ServiceAction::Restart,
            NamedState::Exited | NamedState::Created | NamedState::Paused | NamedState::Unusable,
        ) => Seen::Bad(match now.exit_code {
            Some(code) if now.state == NamedState::Exited => format!("it has ended with code {code}"),
            Some(_) | None => format!("it is {}", now.state),
        }),
    }
}

/// Looks at a container by its id.
async fn look(engine: &Containers, id: &str) -> Result<Option<Named>, Missing> {
    match timeout(PATIENCE, engine.named(id)).await {
        Ok(looked) => looked.map_err(Missing::Engine),
        Err(_elapsed) => Err(Missing::Silent(engine.kind())),
    }
}

/// Looks until a container is as it should be, cannot be any more, or the time is over. Gives the last look and what is wrong.
async fn settle(
    engine: &Containers,
    id: &str,
    action: ServiceAction,
    was: Option<&str>,
    patience: Duration,
) -> Result<(Option<Named>, Option<String>), Missing> {
    let settle = SETTLE.min(patience);
    let deadline = Instant::now() + patience.max(settle + POLL);
    let mut up: (Option<String>, Instant) = (None, Instant::now());
    loop {
        let Some(now) = look(engine, id).await? else {
            return Ok((None, Some("it was removed by somebody else".to_owned())));
        };
        if now.started_at != up.0 {
            up = (now.started_at.clone(), Instant::now());
        }
        match judge(action, was, &now, up.1.elapsed(), settle) {
            Seen::Good => return Ok((Some(now), None)),
            Seen::Bad(why) => return Ok((Some(now), Some(why))),
            Seen::NotYet(why) if Instant::now() >= deadline => {
                return Ok((Some(now), Some(format!("{why} after {} s", patience.as_secs()))));
            }
            Seen::NotYet(_) => tokio::time::sleep(POLL).await,
        }
    }
}

impl Missing {
    /// What it means for a step that has begun.
    fn of_step(self, step: &str) -> Trouble {
        match self {
            Self::Invalid(field, message) => Trouble::Step(plugins::Error::Validation {
                field: format!("steps[{step}].service.{field}"),
                message,
            }),
            Self::Refused(message) => Verdict::failed("PolicyRefused", message).into(),
            Self::Engine(error) => {
                Trouble::Step(plugins::Error::Execution { message: crate::error_chain(&error) })
            }
            Self::Silent(kind) => {
                let message = format!("{kind} does not answer within {} s", PATIENCE.as_secs());
                Trouble::Step(plugins::Error::Execution { message })
            }
        }
    }
}

impl StepRun<'_> {
    /// Does something with a container, and looks what comes of it.
    pub(super) async fn act_on_service(&mut self, service: &ServiceStep) -> Result<Exit, Trouble> {
        let began = self.task.parts.clock.now();
        match self.carry_out(service).await {
            Ok((told, wrong)) => {
                let mut text = serde_json::to_string_pretty(&told)
                    .expect("what is told has only string keys and so becomes JSON");
                text.push('\n');
                let exit = self.tell(began, &text).await;
                let code = wrong.is_none().then_some(0);
                Ok(Exit { code, message: wrong, ..exit })
            }
            Err(Trouble::Time) => Ok(self.out_of_time(began)),
            Err(trouble) => Err(trouble),
        }
    }

    async fn carry_out(
        &mut self,
        service: &ServiceStep,
    ) -> Result<(serde_json::Value, Option<String>), Trouble> {
        let limit = self.time_limit();
        let (name, action) = (&service.name, service.action);
        let rules = self.task.parts.in_force.get();
        let rules = rules.map(|applied| applied.configuration.policy.sandbox.clone()).unwrap_or_default();
        if let Some(message) = forbidden(name, &rules) {
            let refusal = Refusal { rule: RULE, message };
            return Err(Verdict::failed("PolicyRefused", refusal.to_string()).into());
        }
        let found = self.within(limit, self.find(service)).await;
        if let Ok(Err(Missing::Engine(error @ SandboxError::EngineUnreachable { .. }))) = &found
            && self.task.started.is_none()
        {
            return Err(sandbox_verdict(error, false).into());
        }
        self.begin_without_unit().await?;
        let (engine, found) = found?.map_err(|missing| missing.of_step(&self.step.name))?;
        let patience = Duration::from_secs(service.timeout_seconds.into());
        let mut before = self.acting(service, &engine, &found);
        let mut asks = match action {
            ServiceAction::Start => found.state != NamedState::Running,
            ServiceAction::Stop => !matches!(found.state, NamedState::Exited | NamedState::Created),
            ServiceAction::Restart => true,
        };
        let earlier = self.before.acting.take().filter(|earlier| earlier.id == found.id);
        if let Some(earlier) = earlier {
            if asks && action == ServiceAction::Restart {
                // The engine may still be about it.
                let was = earlier.started_at.clone();
                let restarted = async {
                    let deadline = Instant::now() + patience;
                    while Instant::now() < deadline {
                        match look(&engine, &found.id).await? {
                            Some(now) if now.started_at == was => tokio::time::sleep(POLL).await,
                            Some(_) | None => return Ok(true),
                        }
                    }
                    Ok(false)
                };
                let restarted = self.within(limit, restarted).await?;
                asks = !restarted.map_err(|missing: Missing| missing.of_step(&self.step.name))?;
            }
            before = earlier;
            let (level, what) = match asks {
                true => ("warn", "the engine is asked again, which may be the second time"),
                false => ("info", "it was done by then and is not repeated"),
            };
            let message = format!(
                "step `{}`: the agent was started again while it was about to {action} container `{name}`: {what}",
                self.step.name
            );
            self.task.event(level, "ServiceTakenUp", message);
        } else {
            let message = match asks {
                true => format!(
                    "step `{}`: {} is asked to {action} container `{name}`, which is {}",
                    self.step.name,
                    engine.kind(),
                    found.state
                ),
                false => format!(
                    "step `{}`: container `{name}` of {} is {} already; nothing is done",
                    self.step.name,
                    engine.kind(),
                    found.state
                ),
            };
            let data = serde_json::to_value(&before).expect("it has only string keys and so becomes JSON");
            self.task.event_with("info", ACTING, message, Some(data));
        }
        self.task.commit().await;
        let was_running =
            before.state != NamedState::Exited.to_string() && before.state != NamedState::Created.to_string();
        self.touched = Some(Touched { engine: engine.clone(), id: found.id.clone(), was_running });

        let (kind, seconds) = (engine.kind(), service.timeout_seconds);
        let was = before.started_at.as_deref();
        let act = async {
            let wrong = match asks {
                true => engine.act(&found.id, named_action(action), seconds).await.err(),
                false => None,
            };
            match wrong {
                None => settle(&engine, &found.id, action, was, patience).await,
                Some(error @ SandboxError::EngineUnreachable { .. }) => Err(Missing::Engine(error)),
                // It may have stopped it and not started it.
                Some(error) => Ok((look(&engine, &found.id).await?, Some(crate::error_chain(&error)))),
            }
        };
        let (after, wrong) = match self.within(limit, act).await {
            Ok(looked) => looked.map_err(|missing| missing.of_step(&self.step.name))?,
            Err(cut) => {
                let message = format!(
                    "step `{}` ends before it is known what became of container `{name}`: {kind} finishes what it was asked for",
                    self.step.name
                );
                self.task.event("warn", "ServiceNotAwaited", message);
                return Err(cut.into());
            }
        };
        let told = json!({
            "container": name,
            "runtime": kind.to_string(),
            "action": action,
            "stateBefore": before.state,
            "stateAfter": after.as_ref().map_or("removed".to_owned(), |after| after.state.to_string()),
            "startedAt": after.as_ref().and_then(|after| after.started_at.clone()),
            "health": after.as_ref().and_then(|after| Some(after.health.as_ref()?.word.clone())),
        });
        let wrong = wrong.map(|why| format!("container `{name}` of {kind}, {action}: {why}"));
        let (level, how) = match &wrong {
            None => (
                "info",
                format!(
                    "container `{name}` of {kind} is {}",
                    told["stateAfter"].as_str().unwrap_or_default()
                ),
            ),
            Some(wrong) => ("warn", wrong.clone()),
        };
        let message = format!("step `{}`: {how}", self.step.name);
        self.task.event_with(level, "ServiceActed", message, Some(told.clone()));
        Ok((told, wrong))
    }

    /// Puts the container back into the state that it was in.
    pub(super) async fn put_back(&mut self, service: &ServiceStep) -> Result<RolledBack, plugins::Error> {
        let Some(Touched { engine, id, was_running }) = self.touched.take() else {
            return Ok(RolledBack::NothingToUndo);
        };
        let patience = Duration::from_secs(service.timeout_seconds.into());
        let restore = async {
            let Some(now) = look(&engine, &id).await? else { return Ok(None) };
            let runs = !matches!(now.state, NamedState::Exited | NamedState::Created);
            let (action, done) = match (was_running, runs) {
                (true, true) => return Ok(Some((Ok(()), "runs, as before".to_owned()))),
                (false, false) => return Ok(Some((Ok(()), "is stopped, as before".to_owned()))),
                (true, false) => (ServiceAction::Start, "was started again"),
                (false, true) => (ServiceAction::Stop, "was stopped again"),
            };
            engine.act(&id, named_action(action), service.timeout_seconds).await.map_err(Missing::Engine)?;
            // Not the health is what is asked for here, but the state.
            let (_, wrong) = settle(&engine, &id, action, None, patience).await?;
            Ok(Some((wrong.map_or(Ok(()), Err), done.to_owned())))
        };
        // Longer than stopping and looking may take.
        let limit = Instant::now() + 2 * patience + 2 * PATIENCE;
        let failed = |why: String| {
            let message = format!("container `{}` could not be put back: {why}", service.name);
            Err(plugins::Error::Rollback { message })
        };
        let restored: Result<_, Missing> = match self.within(limit, restore).await {
            Ok(restored) => restored,
            Err(Cut::Stopped(verdict)) => return failed(verdict.message.unwrap_or_default()),
            Err(Cut::Time) => return failed("the engine takes too long".to_owned()),
        };
        match restored {
            Ok(Some((Ok(()), how))) => Ok(RolledBack::Undone { how: format!("the container {how}") }),
            Ok(Some((Err(why), how))) => failed(format!("it {how}, and {why}")),
            Ok(None) => failed("it was removed by somebody else".to_owned()),
            Err(Missing::Engine(error)) => failed(crate::error_chain(&error)),
            Err(Missing::Silent(kind)) => failed(format!("{kind} does not answer")),
            Err(Missing::Invalid(_, message) | Missing::Refused(message)) => failed(message),
        }
    }

    /// What is about to be done.
    fn acting(&self, service: &ServiceStep, engine: &Containers, found: &Named) -> Acting {
        let node = self.task.parts.in_force.get().map(|applied| applied.configuration.node_slug.clone());
        Acting {
            step: self.index,
            node: node.unwrap_or_default(),
            job: self.task.assignment().name.clone(),
            action: service.action.to_string(),
            runtime: engine.kind().to_string(),
            container: service.name.clone(),
            id: found.id.clone(),
            state: found.state.to_string(),
            started_at: found.started_at.clone(),
        }
    }

    /// The container of a step and the engine that has it.
    fn find(
        &self,
        service: &ServiceStep,
    ) -> impl Future<Output = Result<(Containers, Named), Missing>> + use<> {
        let (parts, service) = (Arc::clone(&self.task.parts), service.clone());
        async move {
            let ServiceStep { action, name, runtime, timeout_seconds: _ } = service;
            let mut found = Vec::new();
            let mut asked = Vec::new();
            for engine in parts.engines.iter() {
                if runtime.is_some_and(|wanted| kind_of(wanted) != engine.kind()) {
                    continue;
                }
                asked.push(engine.kind().to_string());
                // An engine takes the beginning of an id for a name, too.
                if let Some(named) = look(engine, &name).await?.filter(|named| named.name == name) {
                    found.push((engine.clone(), named));
                }
            }
            if found.len() > 1 {
                let message =
                    format!("is missing, and {} have a container `{name}`; name one", asked.join(" and "));
                return Err(Missing::Invalid("runtime", message));
            }
            let Some((engine, named)) = found.pop() else {
                let asked =
                    if asked.is_empty() { "no engine of the node".to_owned() } else { asked.join(" and ") };
                let message = format!(
                    "`{name}` is no container that {asked} knows; make it first, or correct the name (`windlass facts NODE` lists \
                     them)"
                );
                return Err(Missing::Invalid("name", message));
            };
            if named.is_ours {
                return Err(Missing::Refused(format!(
                    "refused by the node: container `{name}` was made by Windlass, for a job or for models; no rule lets jobs touch \
                     such containers"
                )));
            }
            match named.state {
                NamedState::Created | NamedState::Running | NamedState::Exited | NamedState::Changing => {
                    Ok((engine, named))
                }
                NamedState::Paused | NamedState::Unusable => Err(Missing::Invalid(
                    "name",
                    format!(
                        "`{name}` is {}, so that nobody can {action} it; unpause it or make it anew",
                        named.state
                    ),
                )),
            }
        }
    }
}

const fn named_action(action: ServiceAction) -> NamedAction {
    match action {
        ServiceAction::Start => NamedAction::Start,
        ServiceAction::Stop => NamedAction::Stop,
        ServiceAction::Restart => NamedAction::Restart,
    }
}

#[cfg(test)]
mod tests {
    use windlass_sandbox::engine::Health;

    use super::*;

    fn named(state: NamedState, started_at: &str, health: Option<(&str, &str)>) -> Named {
        Named {
            id: "id".to_owned(),
            name: "web".to_owned(),
            state,
            started_at: Some(started_at.to_owned()),
            exit_code: Some(3),
            health: health.map(|(word, last_check)| Health {
                word: word.to_owned(),
                last_check: Some(last_check.to_owned()),
            }),
            is_ours: false,
        }
    }

    #[test]
    fn a_container_counts_only_when_it_was_started_anew_stays_up_and_is_healthy_since_then() {
        const OLD: &str = "2026-01-01T00:00:00.25Z";
        const NEW: &str = "2026-01-01T00:00:09.5Z";
        let (none, long) = (Duration::ZERO, SETTLE);
        let restart = |now: &Named, up| judge(ServiceAction::Restart, Some(OLD), now, up, SETTLE);
        let not_yet = |seen: Seen, word: &str| {
            let Seen::NotYet(why) = seen else { panic!("{seen:?}") };
            assert!(why.contains(word), "{why}");
        };
        not_yet(restart(&named(NamedState::Running, OLD, None), long), "not been restarted");
        not_yet(restart(&named(NamedState::Running, NEW, None), none), "stay up");
        not_yet(restart(&named(NamedState::Changing, NEW, None), long), "restarting");
        assert_eq!(restart(&named(NamedState::Running, NEW, None), long), Seen::Good);
        let ended = restart(&named(NamedState::Exited, NEW, None), long);
        assert_eq!(ended, Seen::Bad("it has ended with code 3".to_owned()));
        // Of the time before the start, in another form of the same kind of time.
        let stale = "2026-01-01T01:00:05.123456789+01:00";
        not_yet(
            restart(&named(NamedState::Running, NEW, Some(("healthy", stale))), long),
            "since it was started",
        );
        not_yet(restart(&named(NamedState::Running, NEW, Some(("unhealthy", stale))), long), "unhealthy");
        not_yet(
            restart(&named(NamedState::Running, NEW, Some(("starting", "2026-01-01T00:00:10Z"))), long),
            "starting",
        );
        let now = "2026-01-01T00:00:10Z";
        assert_eq!(restart(&named(NamedState::Running, NEW, Some(("healthy", now))), none), Seen::Good);
        let sick = restart(&named(NamedState::Running, NEW, Some(("unhealthy", now))), none);
        assert!(matches!(sick, Seen::Bad(why) if why.contains("unhealthy")));
        let stop = |state| judge(ServiceAction::Stop, Some(OLD), &named(state, OLD, None), none, SETTLE);
        assert_eq!((stop(NamedState::Exited), stop(NamedState::Created)), (Seen::Good, Seen::Good));
        not_yet(stop(NamedState::Running), "still running");
        let start =
            judge(ServiceAction::Start, Some(OLD), &named(NamedState::Running, OLD, None), long, SETTLE);
        assert_eq!(start, Seen::Good);
    }

    #[test]
    fn a_container_that_is_not_listed_is_refused_with_the_rule_and_what_would_allow_it() {
        let mut assignment = crate::testing::assignment("uid", 1, &["true"]);
        let service = ServiceStep {
            action: ServiceAction::Stop,
            name: "web".to_owned(),
            runtime: None,
            timeout_seconds: 10,
        };
        assignment.spec.steps[0].service = Some(service);
        let rules = |names: &[&str]| SandboxRules {
            services: names.iter().map(|name| (*name).to_owned()).collect(),
            ..SandboxRules::default()
        };
        let mut host = crate::testing::capability();
        let refusal = check(&assignment, &rules(&["web-2", "db"]), &host).unwrap_err();
        assert_eq!(refusal.rule, "policy.sandbox.services");
        let said = refusal.to_string();
        assert!(
            said.contains("the node allows web-2, db") && said.contains("sandbox.services of the NodeConfig"),
            "{said}"
        );
        assert!(check(&assignment, &rules(&[]), &host).unwrap_err().to_string().contains("allows none"));
        let refusal = check(&assignment, &rules(&["web"]), &host).unwrap_err();
        assert_eq!(refusal.rule, "capability.sandbox.runtimes");
        host.runtimes.push("docker".to_owned());
        check(&assignment, &rules(&["web"]), &host).unwrap();
        assignment.spec.steps[0].service.as_mut().unwrap().runtime = Some(ContainerEngine::Podman);
        assert!(check(&assignment, &rules(&["web"]), &host).unwrap_err().message.contains("needs podman"));
    }
}
