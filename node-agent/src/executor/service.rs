//! A step that starts, stops or restarts a container of the node: by leave of the node's rules, and never one of Windlass's own.
//!
//! ```text
//! rules ─► find ─► ServiceActing (durable) ─► engine ─► look until it is as it should be ─► output ┄┄► put back, if it is not
//! ```
//!
//! *Guarantees*: the container is asked for by its id once it was found by its name, so that no other one is met. One step at a time
//! has to do with a container, from its look at it until it is put back ([`Turns`]). What it was is durable before the engine is
//! asked; after a restart of the agent a restart that has happened is not repeated, and one of which it is not known is told to be.
//! *Caveats*: an engine finishes what it was asked for, also when the job is cancelled, out of time or without a lease by then: a
//! container is not left stopped because its restart was not waited for. Nothing is put back then.

mod decide;
mod turns;

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{Instant, timeout};
use windlass_crds::protocol::{Assignment, RecordBody, SandboxCapability, SandboxRules};
use windlass_crds::service::{ContainerEngine, ServiceAction, ServiceStep};
use windlass_sandbox::engine::{Containers, EngineKind, Named, NamedAction, NamedState};
use windlass_sandbox::{Error as SandboxError, Exit};

use self::decide::{Aim, Missing, Seen, Undo, choose, is_stopped, judge, needed, undo};
use self::turns::Turn;
pub(crate) use self::turns::Turns;
use super::policy::Refusal;
use super::step::{Cut, StepRun};
use super::verdict::{Verdict, sandbox_verdict};
use crate::mask::Mask;
use crate::plugins::{self, RolledBack};

/// The reason of the event that says what is about to be done; its data is an [`Acting`].
pub(crate) const ACTING: &str = "ServiceActing";
/// Between two looks at a container. They cost the engine a few milliseconds.
const POLL: Duration = Duration::from_millis(250);
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

impl Acting {
    /// The event's data without secrets. What an engine says of its container is no job's, and is read back after a restart: it
    /// stays as it is, also where a secret is a word like `running`.
    fn data(self, mask: &Mask) -> serde_json::Value {
        let Self { node, job, container, .. } = self.clone();
        let masked =
            Self { node: mask.text(node), job: mask.text(job), container: mask.text(container), ..self };
        serde_json::to_value(masked).expect("it has only string keys and so becomes JSON")
    }
}

/// A container that was found for a step.
struct Found {
    engine: Containers,
    named: Named,
    turn: Turn,
}

/// A container that a step has done something with.
pub(super) struct Touched {
    engine: Containers,
    id: String,
    was_running: bool,
    /// What the step has seen of it last.
    left: Option<Named>,
    /// Nobody else of this node touches it until it is put back.
    _turn: Turn,
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

/// Looks at a container by its id.
async fn look(engine: &Containers, id: &str) -> Result<Option<Named>, Missing> {
    match timeout(PATIENCE, engine.named(id)).await {
        Ok(looked) => looked.map_err(Missing::Engine),
        Err(_elapsed) => Err(Missing::Silent(engine.kind())),
    }
}

/// Looks until a container is as it should be, cannot be any more, or the time is over. That is never too short for it to settle, or
/// for its first health check. Gives the last look and what is wrong.
async fn settle(
    engine: &Containers,
    id: &str,
    aim: &Aim,
) -> Result<(Option<Named>, Option<String>), Missing> {
    let mut began = None;
    let mut up: (Option<String>, Instant) = (None, Instant::now());
    loop {
        let Some(now) = look(engine, id).await? else {
            return Ok((None, Some("it was removed meanwhile".to_owned())));
        };
        // An engine that is slow to say the first word takes nothing of the container's time.
        let began = *began.get_or_insert_with(Instant::now);
        if now.started_at != up.0 {
            up = (now.started_at.clone(), Instant::now());
        }
        let patience = aim.patience(&now);
        match judge(aim, &now, up.1.elapsed()) {
            Seen::Good => return Ok((Some(now), None)),
            Seen::Bad(why) => return Ok((Some(now), Some(why))),
            Seen::NotYet(why) if began.elapsed() >= patience => {
                return Ok((Some(now), Some(format!("{why} after {} s", patience.as_secs()))));
            }
            Seen::NotYet(_) => tokio::time::sleep(POLL).await,
        }
    }
}

fn silent(kind: EngineKind) -> String {
    format!("{kind} does not answer within {} s", PATIENCE.as_secs())
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
            Self::Silent(kind) => Trouble::Step(plugins::Error::Execution { message: silent(kind) }),
        }
    }

    /// What it means for a job of which nothing has begun, where that is something else: another node may have an engine that works.
    fn of_job(&self) -> Option<Verdict> {
        match self {
            Self::Engine(error @ SandboxError::EngineUnreachable { .. }) => {
                Some(sandbox_verdict(error, false))
            }
            Self::Silent(kind) => Some(Verdict::released("EngineUnavailable", silent(*kind))),
            Self::Engine(_) | Self::Invalid(..) | Self::Refused(_) => None,
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

    /// Whether the rules that are in force now allow to touch a container of this name.
    fn allowed(&self, name: &str) -> Result<(), Verdict> {
        let rules = self.task.parts.in_force.get();
        let rules = rules.map(|applied| applied.configuration.policy.sandbox.clone()).unwrap_or_default();
        forbidden(name, &rules).map_or(Ok(()), |message| {
            let refusal = Refusal { rule: RULE, message };
            Err(Verdict::failed("PolicyRefused", refusal.to_string()))
        })
    }

    async fn carry_out(
        &mut self,
        service: &ServiceStep,
    ) -> Result<(serde_json::Value, Option<String>), Trouble> {
        let limit = self.time_limit();
        let (name, action) = (&service.name, service.action);
        self.allowed(name)?;
        let found = self.within(limit, self.find(service)).await;
        if let Ok(Err(missing)) = &found
            && self.task.started.is_none()
            && let Some(verdict) = missing.of_job()
        {
            return Err(verdict.into());
        }
        self.begin_without_unit().await?;
        let Found { engine, named: found, turn } =
            found?.map_err(|missing| missing.of_step(&self.step.name))?;
        // The step may have waited for its turn.
        self.allowed(name)?;
        let patience = Duration::from_secs(service.timeout_seconds.into());
        let mut before = self.acting(service, &engine, &found);
        let mut was = found.state;
        let mut asks = needed(action, was);
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
            was = before.state.parse().unwrap_or(NamedState::Unusable);
            // The account does not tell whose doing it is.
            let (level, what) = match (asks, action) {
                (true, _) => ("warn", "the engine is asked again, which may be the second time"),
                (false, ServiceAction::Restart) => {
                    ("info", "it was started anew by then, and the restart is not repeated")
                }
                (false, ServiceAction::Start) => ("info", "it runs by then, and nothing is done"),
                (false, ServiceAction::Stop) => ("info", "it is stopped by then, and nothing is done"),
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
            let data = before.clone().data(&self.task.mask);
            let (level, reason) = ("info".to_owned(), ACTING.to_owned());
            let message = self.task.mask.text(message);
            self.task.record_masked(RecordBody::Event { level, reason, message, data: Some(data) });
        }
        self.task.commit().await;
        // Where nothing is and was done, there is nothing to put back.
        if asks || needed(action, was) {
            let (engine, id) = (engine.clone(), found.id.clone());
            self.touched =
                Some(Touched { engine, id, was_running: !is_stopped(was), left: None, _turn: turn });
        }

        let (kind, seconds) = (engine.kind(), service.timeout_seconds);
        let aim = Aim { action, was: before.started_at.clone(), healthy: true, patience };
        let act = async {
            let wrong = match asks {
                true => engine.act(&found.id, named_action(action), seconds).await.err(),
                false => None,
            };
            match wrong {
                None => settle(&engine, &found.id, &aim).await,
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
        if let Some(touched) = &mut self.touched {
            touched.left.clone_from(&after);
        }
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
        let Some(Touched { engine, id, was_running, left, _turn }) = self.touched.take() else {
            return Ok(RolledBack::NothingToUndo);
        };
        let patience = Duration::from_secs(service.timeout_seconds.into());
        let restore = async {
            let Some(now) = look(&engine, &id).await? else {
                return Ok(Err("it was removed meanwhile".to_owned()));
            };
            let (action, done, patience) = match undo(was_running, left.as_ref(), &now) {
                Undo::Nothing => return Ok(Ok("is stopped, as before")),
                Undo::Leave(why) => return Ok(Err(why)),
                Undo::Look => (ServiceAction::Start, "runs, as before", Duration::ZERO),
                Undo::Act(action, done) => {
                    let acted = engine.act(&id, named_action(action), service.timeout_seconds).await;
                    acted.map_err(Missing::Engine)?;
                    (action, done, patience)
                }
            };
            // Not the health is what is asked for here, but the state.
            let aim = Aim { action, was: None, healthy: false, patience };
            let (after, wrong) = settle(&engine, &id, &aim).await?;
            Ok(match (wrong, patience.is_zero()) {
                (None, _) => Ok(done),
                (Some(why), true) => Err(format!("it ran before, and {why}")),
                (Some(why), false) if after.is_some() => Err(format!("it {done}, and {why}")),
                (Some(why), false) => Err(why),
            })
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
            Ok(Ok(how)) => Ok(RolledBack::Undone { how: format!("the container {how}") }),
            Ok(Err(why)) => failed(why),
            Err(Missing::Engine(error)) => failed(crate::error_chain(&error)),
            Err(Missing::Silent(kind)) => failed(silent(kind)),
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

    /// The container of a step and the engine that has it, when it is the step's turn.
    fn find(&self, service: &ServiceStep) -> impl Future<Output = Result<Found, Missing>> + use<> {
        let (parts, service) = (Arc::clone(&self.task.parts), service.clone());
        async move {
            let mut had: Option<(EngineKind, String, Turn)> = None;
            loop {
                let wanted = |engine: &&Containers| {
                    service.runtime.is_none_or(|runtime| kind_of(runtime) == engine.kind())
                };
                let answers = join_all(parts.engines.iter().filter(wanted).map(|engine| async {
                    // An engine takes the beginning of an id for a name, too.
                    let looked = look(engine, &service.name).await;
                    let named = looked.map(|named| named.filter(|named| named.name == service.name));
                    (engine.kind(), named)
                }));
                let (kind, named) = choose(&service, answers.await)?;
                match had.take() {
                    Some((engine, id, turn)) if engine == kind && id == named.id => {
                        let engine =
                            parts.engines.get(kind).expect("it was asked, and engines stay the same").clone();
                        return Ok(Found { engine, named, turn });
                    }
                    // Another step may have had to do with it, so it is looked at again. No two turns are held at a time.
                    other => drop(other),
                }
                let turn = parts.services.wait(kind, &named.id).await;
                had = Some((kind, named.id, turn));
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
    use super::*;

    fn service(action: ServiceAction, runtime: Option<ContainerEngine>) -> ServiceStep {
        ServiceStep { action, name: "web".to_owned(), runtime, timeout_seconds: 10 }
    }

    #[test]
    fn an_account_can_be_read_again_whatever_the_secrets_of_the_job_are() {
        let acting = Acting {
            step: 0,
            node: "rack-1".to_owned(),
            job: "job".to_owned(),
            action: "restart".to_owned(),
            runtime: "docker".to_owned(),
            container: "hunter2".to_owned(),
            id: "0123456789abcdef".to_owned(),
            state: "running".to_owned(),
            started_at: Some("2026-01-01T00:00:00Z".to_owned()),
        };
        let secrets = ["running", "startedAt", "docker", "01234567", "2026-01-01", "hunter2"];
        let mask = Mask::new(secrets.iter().map(|secret| secret.as_bytes()));
        let read = Acting::deserialize(acting.clone().data(&mask)).unwrap();
        assert_ne!(read.container, "hunter2");
        assert_eq!(Acting { container: acting.container.clone(), ..read }, acting);
    }

    #[test]
    fn a_container_that_is_not_listed_is_refused_with_the_rule_and_what_would_allow_it() {
        let mut assignment = crate::testing::assignment("uid", 1, &["true"]);
        assignment.spec.steps[0].service = Some(service(ServiceAction::Stop, None));
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
