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

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, timeout};
use windlass_crds::protocol::{Assignment, RecordBody, SandboxCapability, SandboxRules};
use windlass_crds::service::{ContainerEngine, ServiceAction, ServiceStep};
use windlass_sandbox::engine::{Containers, EngineKind, Health, Named, NamedAction, NamedState};
use windlass_sandbox::{Error as SandboxError, Exit};

use super::policy::Refusal;
use super::step::{Cut, StepRun};
use super::verdict::{Verdict, sandbox_verdict};
use crate::mask::Mask;
use crate::plugins::{self, RolledBack};

/// The reason of the event that says what is about to be done; its data is an [`Acting`].
pub(crate) const ACTING: &str = "ServiceActing";
/// Between two looks at a container. They cost the engine a few milliseconds.
const POLL: Duration = Duration::from_millis(250);
/// How long a container without a health check must run to count as running, however little time a step gives it: programs that
/// cannot start end sooner.
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

/// Lets one step at a time have to do with a container, so that none takes back what another has done.
#[derive(Default)]
pub(crate) struct Turns {
    /// The containers that a step has to do with or waits for. Locked only to look one up.
    taken: Mutex<HashMap<(EngineKind, String), Taken>>,
}

/// A container while a step has to do with it or waits for it.
type Taken = Weak<tokio::sync::Mutex<()>>;

impl Turns {
    /// Waits for the turn at a container, which lasts as long as what is returned. Cancel-safe: whoever gives up waits no more.
    async fn wait(&self, engine: EngineKind, id: &str) -> Turn {
        let turn = {
            let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            taken.retain(|_, turn| turn.strong_count() > 0);
            let known = taken.entry((engine, id.to_owned())).or_default();
            known.upgrade().unwrap_or_else(|| {
                let turn = Arc::default();
                *known = Arc::downgrade(&turn);
                turn
            })
        };
        turn.lock_owned().await
    }
}

/// The turn of a step.
type Turn = OwnedMutexGuard<()>;

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

/// What a container is to become.
struct Aim {
    action: ServiceAction,
    /// When it was started last before.
    was: Option<String>,
    /// Whether it must be healthy, if it has a health check.
    healthy: bool,
    patience: Duration,
}

/// What is to be done to put a container back.
#[derive(Debug, PartialEq, Eq)]
enum Undo {
    /// It is stopped, as it was.
    Nothing,
    /// It ran; what is to be seen is whether it does.
    Look,
    /// The action, and what is then said of the container.
    Act(ServiceAction, &'static str),
    /// Nothing may be done; why.
    Leave(String),
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

const fn is_stopped(state: NamedState) -> bool {
    matches!(state, NamedState::Exited | NamedState::Created)
}

/// Whether the engine must be asked to do something with a container in this state.
fn needed(action: ServiceAction, state: NamedState) -> bool {
    match action {
        ServiceAction::Start => state != NamedState::Running,
        ServiceAction::Stop => !is_stopped(state),
        ServiceAction::Restart => true,
    }
}

/// The engine and the container of a step, by what the engines that were asked have answered.
fn choose(
    service: &ServiceStep,
    answers: Vec<(EngineKind, Result<Option<Named>, Missing>)>,
) -> Result<(EngineKind, Named), Missing> {
    let ServiceStep { action, name, runtime: _, timeout_seconds: _ } = service;
    let (mut found, mut failed, mut asked) = (Vec::new(), Vec::new(), Vec::new());
    for (kind, answer) in answers {
        asked.push(kind.to_string());
        match answer {
            Ok(named) => found.extend(named.map(|named| (kind, named))),
            Err(missing) => failed.push((kind, missing)),
        }
    }
    if found.len() > 1 {
        let message = format!("is missing, and {} have a container `{name}`; name one", asked.join(" and "));
        return Err(Missing::Invalid("runtime", message));
    }
    let (kind, named) = match (found.pop(), failed.pop()) {
        (Some(found), None) => found,
        (Some((kind, _)), Some((other, _))) => {
            let message = format!(
                "is missing: {kind} has a container `{name}`, and {other} does not say whether it has one, too; name `runtime: {kind}`"
            );
            return Err(Missing::Invalid("runtime", message));
        }
        (None, Some((_, missing))) => return Err(missing),
        (None, None) => {
            let asked =
                if asked.is_empty() { "no engine of the node".to_owned() } else { asked.join(" and ") };
            let message = format!(
                "`{name}` is no container that {asked} knows; make it first, or correct the name (`windlass facts NODE` lists them)"
            );
            return Err(Missing::Invalid("name", message));
        }
    };
    if named.is_ours {
        return Err(Missing::Refused(format!(
            "refused by the node: container `{name}` was made by Windlass, for a job or for models; no rule lets jobs touch such \
             containers"
        )));
    }
    match named.state {
        NamedState::Created | NamedState::Running | NamedState::Exited | NamedState::Changing => {}
        NamedState::Paused | NamedState::Unusable => {
            let state = named.state;
            let message =
                format!("`{name}` is {state}, so that nobody can {action} it; unpause it or make it anew");
            return Err(Missing::Invalid("name", message));
        }
    }
    // Podman removes it in the middle of a restart too, if it is quick.
    if named.auto_remove && !is_stopped(named.state) && *action != ServiceAction::Start {
        let message = format!(
            "`{action}` would remove container `{name}` for good, which was made with `--rm`; make it without"
        );
        return Err(Missing::Invalid("action", message));
    }
    Ok((kind, named))
}

/// How a container gets back to what it was. `left` is what the step has seen last, and what differs from that is somebody else's
/// doing, unless the engine was about to start it by the container's own policy.
fn undo(was_running: bool, left: Option<&Named>, now: &Named) -> Undo {
    let known = left.is_some_and(|left| {
        left.state == NamedState::Changing || (left.state, &left.started_at) == (now.state, &now.started_at)
    });
    match (was_running, is_stopped(now.state)) {
        (true, false) => Undo::Look,
        (false, true) => Undo::Nothing,
        (true, true) | (false, false) if !known => Undo::Leave(format!(
            "it is {}, which is not what the step has left; it is left alone, for somebody else has touched it",
            now.state
        )),
        (true, true) => Undo::Act(ServiceAction::Start, "was started again"),
        (false, false) if now.auto_remove => Undo::Leave(format!(
            "it is {}, and to stop it would remove it for good, for it was made with `--rm`; it is left alone",
            now.state
        )),
        (false, false) => Undo::Act(ServiceAction::Stop, "was stopped again"),
    }
}

/// Whether a container is as it should be after an action. `up` is how long it has been seen running since it was started.
fn judge(aim: &Aim, now: &Named, up: Duration) -> Seen {
    match (aim.action, now.state) {
        (ServiceAction::Stop, NamedState::Exited | NamedState::Created) => Seen::Good,
        (ServiceAction::Stop, state) => Seen::NotYet(format!("it is still {state}")),
        (ServiceAction::Restart, NamedState::Running) if now.started_at == aim.was => {
            Seen::NotYet("it has not been restarted".to_owned())
        }
        (ServiceAction::Start | ServiceAction::Restart, NamedState::Running) => {
            let Some(health) = now.health.as_ref().filter(|_| aim.healthy) else {
                return match up >= SETTLE {
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
                    "its health check, which runs every {} s, has not passed since it was started, it says `{word}`",
                    health.interval.as_secs_f64()
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

impl Aim {
    /// How long a container may take.
    fn patience(&self, now: &Named) -> Duration {
        let first_check = match self.action {
            ServiceAction::Start | ServiceAction::Restart if self.healthy => now.health.as_ref(),
            ServiceAction::Start | ServiceAction::Restart | ServiceAction::Stop => None,
        };
        let first_check = first_check.map_or(Duration::ZERO, Health::first);
        self.patience.max(SETTLE + POLL).max(first_check)
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
                interval: Duration::from_secs(30),
                start_period: Duration::from_secs(5),
                timeout: Duration::from_secs(30),
            }),
            is_ours: false,
            auto_remove: false,
        }
    }

    #[test]
    fn a_container_counts_only_when_it_was_started_anew_stays_up_and_is_healthy_since_then() {
        const OLD: &str = "2026-01-01T00:00:00.25Z";
        const NEW: &str = "2026-01-01T00:00:09.5Z";
        let (none, long) = (Duration::ZERO, SETTLE);
        let aim = |action| Aim {
            action,
            was: Some(OLD.to_owned()),
            healthy: true,
            patience: Duration::from_secs(10),
        };
        let restart = |now: &Named, up| judge(&aim(ServiceAction::Restart), now, up);
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
        let stop = |state| judge(&aim(ServiceAction::Stop), &named(state, OLD, None), none);
        assert_eq!((stop(NamedState::Exited), stop(NamedState::Created)), (Seen::Good, Seen::Good));
        not_yet(stop(NamedState::Running), "still running");
        let running = named(NamedState::Running, OLD, None);
        assert_eq!(judge(&aim(ServiceAction::Start), &running, long), Seen::Good);
        // However little time a step gives it, a container must stay up as long as any.
        let hasty = Aim { patience: Duration::from_secs(1), ..aim(ServiceAction::Start) };
        not_yet(judge(&hasty, &running, Duration::from_millis(1500)), "stay up");
        assert!(hasty.patience(&running) > SETTLE);
        // A health check gets the time until its first result, where it matters.
        let checked = named(NamedState::Running, NEW, Some(("starting", now)));
        let patience = |action, healthy| Aim { healthy, ..aim(action) }.patience(&checked).as_secs();
        assert_eq!(patience(ServiceAction::Start, true), 65);
        assert_eq!((patience(ServiceAction::Start, false), patience(ServiceAction::Stop, true)), (10, 10));
        let unchecked = judge(&aim(ServiceAction::Restart), &checked, long);
        not_yet(unchecked, "every 30 s");
        let state_only = Aim { healthy: false, ..aim(ServiceAction::Start) };
        assert_eq!(judge(&state_only, &checked, long), Seen::Good);
    }

    fn service(action: ServiceAction, runtime: Option<ContainerEngine>) -> ServiceStep {
        ServiceStep { action, name: "web".to_owned(), runtime, timeout_seconds: 10 }
    }

    #[test]
    fn a_container_is_put_back_only_from_what_the_step_itself_has_left() {
        const THEN: &str = "2026-01-01T00:00:00Z";
        const LATER: &str = "2026-01-01T00:00:09Z";
        let at = |state, started_at| named(state, started_at, None);
        let exited = at(NamedState::Exited, THEN);
        let running = at(NamedState::Running, THEN);
        let start = Undo::Act(ServiceAction::Start, "was started again");
        let stop = Undo::Act(ServiceAction::Stop, "was stopped again");
        assert_eq!(undo(true, Some(&exited), &exited), start);
        assert_eq!(undo(false, Some(&running), &running), stop);
        assert_eq!(undo(false, Some(&running), &exited), Undo::Nothing);
        // The engine starts it time and again, by its own policy.
        let restarting = at(NamedState::Changing, THEN);
        assert_eq!(undo(false, Some(&restarting), &at(NamedState::Running, LATER)), stop);
        // Whatever is not stopped must yet be seen to run.
        for state in [NamedState::Running, NamedState::Changing, NamedState::Paused, NamedState::Unusable] {
            assert_eq!(undo(true, Some(&running), &at(state, THEN)), Undo::Look, "{state}");
        }
        // Somebody else has stopped it, or started it anew.
        let left = |undo: Undo, word: &str| {
            let Undo::Leave(why) = undo else { panic!("{undo:?}") };
            assert!(why.contains(word), "{why}");
        };
        left(undo(true, Some(&running), &exited), "it is exited");
        left(undo(false, Some(&running), &at(NamedState::Running, LATER)), "somebody else");
        left(undo(true, None, &exited), "somebody else");
        // It would be gone.
        let fleeting = Named { auto_remove: true, ..running };
        left(undo(false, Some(&fleeting), &fleeting), "--rm");
    }

    #[test]
    fn what_an_aim_looks_for_after_a_rollback_is_a_container_that_runs() {
        let aim = Aim { action: ServiceAction::Start, was: None, healthy: false, patience: Duration::ZERO };
        let seen = |state| judge(&aim, &named(state, "2026-01-01T00:00:00Z", None), SETTLE);
        assert_eq!(seen(NamedState::Running), Seen::Good);
        assert!(matches!(seen(NamedState::Changing), Seen::NotYet(why) if why.contains("restarting")));
        assert!(matches!(seen(NamedState::Paused), Seen::Bad(why) if why.contains("paused")));
        assert!(matches!(seen(NamedState::Unusable), Seen::Bad(why) if why.contains("removing")));
    }

    #[test]
    fn an_engine_that_is_not_needed_makes_no_step_impossible() {
        let web = || Ok(Some(named(NamedState::Running, "2026-01-01T00:00:00Z", None)));
        let (podman, docker) = (EngineKind::Podman, EngineKind::Docker);
        let stop = service(ServiceAction::Stop, None);
        let chosen = |answers| {
            choose(&stop, answers).map(|(kind, _)| kind).map_err(|missing| match missing {
                Missing::Invalid(field, message) => format!("{field} {message}"),
                Missing::Refused(message) => message,
                Missing::Engine(error) => error.to_string(),
                Missing::Silent(kind) => format!("{kind} is silent"),
            })
        };
        assert_eq!(chosen(vec![(docker, web())]), Ok(docker));
        assert_eq!(chosen(vec![(podman, Ok(None)), (docker, web())]), Ok(docker));
        let why = chosen(vec![(podman, Err(Missing::Silent(podman))), (docker, web())]).unwrap_err();
        assert!(why.starts_with("runtime is missing") && why.contains("name `runtime: docker`"), "{why}");
        let why = chosen(vec![(podman, Err(Missing::Silent(podman))), (docker, Ok(None))]).unwrap_err();
        assert_eq!(why, "podman is silent");
        let why = chosen(vec![(podman, web()), (docker, web())]).unwrap_err();
        assert!(why.contains("podman and docker have"), "{why}");
        let why = chosen(vec![(podman, Ok(None)), (docker, Ok(None))]).unwrap_err();
        assert!(why.starts_with("name") && why.contains("podman and docker knows"), "{why}");
    }

    #[test]
    fn a_container_that_is_removed_when_it_stops_is_never_stopped() {
        let found = |state| {
            let fleeting = Named { auto_remove: true, ..named(state, "2026-01-01T00:00:00Z", None) };
            vec![(EngineKind::Docker, Ok(Some(fleeting)))]
        };
        for action in [ServiceAction::Stop, ServiceAction::Restart] {
            let Err(Missing::Invalid(field, why)) =
                choose(&service(action, None), found(NamedState::Running))
            else {
                panic!("it is refused")
            };
            assert!(field == "action" && why.contains("--rm"), "{field} {why}");
            assert!(choose(&service(action, None), found(NamedState::Created)).is_ok(), "{action}");
        }
        assert!(choose(&service(ServiceAction::Start, None), found(NamedState::Created)).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn steps_take_turns_at_a_container_and_not_at_others() {
        let turns = Turns::default();
        let mine = turns.wait(EngineKind::Docker, "a").await;
        let soon = Duration::from_secs(1);
        assert!(timeout(soon, turns.wait(EngineKind::Docker, "a")).await.is_err());
        for (engine, id) in [(EngineKind::Docker, "b"), (EngineKind::Podman, "a")] {
            timeout(soon, turns.wait(engine, id)).await.unwrap();
        }
        drop(mine);
        let again = timeout(soon, turns.wait(EngineKind::Docker, "a")).await.unwrap();
        assert_eq!(turns.taken.lock().unwrap().len(), 1, "those that nobody has are forgotten");
        drop(again);
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
