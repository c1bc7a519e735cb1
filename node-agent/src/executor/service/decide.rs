//! What is made of what engines say of a container: which one a step means, whether it is as it should be, and what puts it back.
//! Nothing here asks or waits.

use std::time::Duration;

use jiff::Timestamp;
use windlass_crds::service::{ServiceAction, ServiceStep};
use windlass_sandbox::Error as SandboxError;
use windlass_sandbox::engine::{EngineKind, Health, Named, NamedState};

use super::POLL;

/// How long a container without a health check must run to count as running, however little time a step gives it: programs that
/// cannot start end sooner.
pub(super) const SETTLE: Duration = Duration::from_secs(2);

/// What a container is to become.
pub(super) struct Aim {
    pub(super) action: ServiceAction,
    /// When it was started last before.
    pub(super) was: Option<String>,
    /// Whether it must be healthy, if it has a health check.
    pub(super) healthy: bool,
    pub(super) patience: Duration,
}

/// What is to be done to put a container back.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Undo {
    /// It is stopped, as it was.
    Nothing,
    /// It ran; what is to be seen is whether it does.
    Look,
    /// The action, and what is then said of the container.
    Act(ServiceAction, &'static str),
    /// Nothing may be done; why.
    Leave(String),
}

/// Why a container is not found.
pub(super) enum Missing {
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
pub(super) enum Seen {
    /// It is as it should be.
    Good,
    /// It may yet be; what is missing.
    NotYet(String),
    /// It will not be; why.
    Bad(String),
}

pub(super) const fn is_stopped(state: NamedState) -> bool {
    matches!(state, NamedState::Exited | NamedState::Created)
}

/// Whether the engine must be asked to do something with a container in this state.
pub(super) fn needed(action: ServiceAction, state: NamedState) -> bool {
    match action {
        ServiceAction::Start => state != NamedState::Running,
        ServiceAction::Stop => !is_stopped(state),
        ServiceAction::Restart => true,
    }
}

/// The engine and the container of a step, by what the engines that were asked have answered.
pub(super) fn choose(
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
pub(super) fn undo(was_running: bool, left: Option<&Named>, now: &Named) -> Undo {
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
pub(super) fn judge(aim: &Aim, now: &Named, up: Duration) -> Seen {
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

impl Aim {
    /// How long a container may take.
    pub(super) fn patience(&self, now: &Named) -> Duration {
        let first_check = match self.action {
            ServiceAction::Start | ServiceAction::Restart if self.healthy => now.health.as_ref(),
            ServiceAction::Start | ServiceAction::Restart | ServiceAction::Stop => None,
        };
        let first_check = first_check.map_or(Duration::ZERO, Health::first);
        self.patience.max(SETTLE + POLL).max(first_check)
    }
}

#[cfg(test)]
mod tests {
    use windlass_crds::service::ContainerEngine;

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
}
