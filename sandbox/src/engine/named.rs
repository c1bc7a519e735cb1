//! Containers that somebody else has made, by their names: what they are, and starting, stopping and restarting them.
//!
//! It is the caller who says which of them may be touched. What Windlass itself has made with an engine, for units or for the node,
//! is told by [`Named::is_ours`].

use std::time::Duration;

use super::driver::Containers;
use super::unreachable;
use crate::error::Error;

/// How long an engine may take to do what it was asked for, beside the time that a container has to stop.
const PATIENCE: Duration = Duration::from_secs(120);
/// The interval and the time of a health check that names none, with both engines.
const HEALTH_DEFAULT: Duration = Duration::from_secs(30);

/// A container, whoever made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// In what state it is.
    pub state: NamedState,
    /// When it was last started, in the form of RFC 3339; `None` if it never was.
    pub started_at: Option<String>,
    /// The exit code of its first process, where that has ended.
    pub exit_code: Option<i32>,
    /// What its health check says; `None` if it has none.
    pub health: Option<Health>,
    /// Whether Windlass has made it.
    pub is_ours: bool,
    /// Whether the engine removes it as soon as it stops.
    pub auto_remove: bool,
}

/// What the health check of a container says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// The engine's word: `starting`, `healthy` or `unhealthy`.
    pub word: String,
    /// When the last check ended, in the form of RFC 3339.
    pub last_check: Option<String>,
    /// Between two checks, and from the start to the first.
    pub interval: Duration,
    /// How long after the start a check that has failed counts for nothing.
    pub start_period: Duration,
    /// How long a check may take.
    pub timeout: Duration,
}

impl Health {
    /// What an engine says of a check, with its times in nanoseconds, where 0 is its default: the same of both engines.
    pub(crate) fn new(word: String, last_check: Option<String>, times: [Option<i64>; 3]) -> Self {
        let [interval, start_period, timeout] = times.map(|nanoseconds| {
            nanoseconds.and_then(|time| u64::try_from(time).ok()).map_or(Duration::ZERO, Duration::from_nanos)
        });
        let or_default = |time: Duration| if time.is_zero() { HEALTH_DEFAULT } else { time };
        Self { word, last_check, interval: or_default(interval), start_period, timeout: or_default(timeout) }
    }

    /// How long after a start the first check that counts may take to end.
    #[must_use]
    pub fn first(&self) -> Duration {
        self.start_period + self.interval + self.timeout
    }
}

/// In what state a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::Display, strum::EnumString)]
#[strum(serialize_all = "lowercase")]
pub enum NamedState {
    /// It was made and has not been started.
    #[strum(to_string = "created", serialize = "configured", serialize = "initialized")]
    Created,
    /// It runs.
    Running,
    /// It has ended.
    #[strum(to_string = "exited", serialize = "stopped")]
    Exited,
    /// It is on its way from one state to another: ending, or about to be started again by its own policy.
    #[strum(to_string = "restarting", serialize = "stopping")]
    Changing,
    /// Its processes are frozen.
    Paused,
    /// It is being removed, or cannot be used any more.
    #[strum(to_string = "removing", serialize = "dead", serialize = "unknown")]
    Unusable,
}

impl NamedState {
    /// The state by the word of an engine. A word that is not known is none to act upon.
    pub(crate) fn of(word: &str) -> Self {
        word.parse().unwrap_or(Self::Unusable)
    }
}

/// What is done with a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub enum NamedAction {
    /// It is started.
    Start,
    /// It is stopped.
    Stop,
    /// It is stopped if it runs, and started.
    Restart,
}

impl NamedAction {
    /// The same for errors.
    pub(crate) const fn operation(self) -> &'static str {
        match self {
            Self::Start => "start a container",
            Self::Stop => "stop a container",
            Self::Restart => "restart a container",
        }
    }
}

impl Containers {
    /// A container by its name or id, whoever made it; `None` where there is none. Cancel-safe: it only looks.
    ///
    /// # Errors
    /// [`Error::Engine`], [`Error::EngineUnreachable`].
    pub async fn named(&self, name: &str) -> Result<Option<Named>, Error> {
        self.0.engine.named(name).await
    }

    /// Starts, stops or restarts a container by its id, and returns when the engine has done so. It has so many seconds to stop
    /// before it is killed. Once it was asked, the engine goes on with it also when the future is dropped.
    ///
    /// # Errors
    /// [`Error::Engine`] where the engine has refused or failed, [`Error::EngineUnreachable`] where it is not known what it did,
    /// also where it does not answer for two minutes longer than the container has.
    pub async fn act(&self, id: &str, action: NamedAction, seconds: u32) -> Result<(), Error> {
        let limit = PATIENCE + Duration::from_secs(seconds.into());
        match tokio::time::timeout(limit, self.0.engine.act(id, action, seconds)).await {
            Ok(done) => done,
            Err(elapsed) => Err(unreachable(self.kind(), &self.0.config.socket, elapsed)),
        }
    }
}

/// A time as the engines write it, which for one that never was is that of the year 1.
pub(crate) fn time(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty() && !text.starts_with("0001-"))
}

#[cfg(test)]
mod tests {
    use super::super::{ContainersConfig, EngineInfo, EngineKind};
    use super::*;

    #[test]
    fn states_are_read_in_the_words_of_both_engines_and_unknown_ones_are_not_acted_upon() {
        for (word, state) in [
            ("created", NamedState::Created),
            ("configured", NamedState::Created),
            ("running", NamedState::Running),
            ("exited", NamedState::Exited),
            ("stopped", NamedState::Exited),
            ("stopping", NamedState::Changing),
            ("restarting", NamedState::Changing),
            ("paused", NamedState::Paused),
            ("dead", NamedState::Unusable),
            ("", NamedState::Unusable),
            ("sublimating", NamedState::Unusable),
        ] {
            assert_eq!(NamedState::of(word), state, "{word}");
        }
        assert_eq!(NamedState::of("configured").to_string(), "created");
        assert_eq!(time(Some("0001-01-01T00:00:00Z".to_owned())), None);
        assert!(time(Some("2026-02-05T10:00:00.5Z".to_owned())).is_some());
    }

    #[test]
    fn health_checks_without_times_have_the_defaults_of_the_engines() {
        let health = |times| Health::new("starting".to_owned(), None, times);
        assert_eq!(health([None, Some(0), Some(-1)]).first(), Duration::from_secs(60));
        let second = 1_000_000_000;
        let health = health([Some(2 * second), Some(5 * second), Some(second)]);
        assert_eq!((health.interval, health.first()), (Duration::from_secs(2), Duration::from_secs(8)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_does_not_answer_is_not_waited_for_for_ever() {
        for kind in [EngineKind::Podman, EngineKind::Docker] {
            let folder = tempfile::tempdir().unwrap();
            let socket = folder.path().join("engine.sock");
            let _hung = std::os::unix::net::UnixListener::bind(&socket).unwrap();
            let config = ContainersConfig {
                kind,
                socket,
                state_dir: folder.path().join("state"),
                launcher: "/proc/self/exe".into(),
            };
            let engine = Containers::open(config, EngineInfo::default()).unwrap();
            for action in [NamedAction::Start, NamedAction::Stop, NamedAction::Restart] {
                let began = tokio::time::Instant::now();
                let error = engine.act("id", action, 7).await.unwrap_err();
                assert!(matches!(error, Error::EngineUnreachable { .. }), "{kind} {action}: {error:?}");
                assert!(began.elapsed() < Duration::from_secs(130), "{kind} {action}");
            }
        }
    }
}
