//! Containers that somebody else has made, by their names: what they are, and starting, stopping and restarting them.
//!
//! It is the caller who says which of them may be touched. What Windlass itself has made with an engine, for units or for the node,
//! is told by [`Named::is_ours`].

use super::driver::Containers;
use crate::error::Error;

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
}

/// What the health check of a container says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// The engine's word: `starting`, `healthy` or `unhealthy`.
    pub word: String,
    /// When the last check ended, in the form of RFC 3339.
    pub last_check: Option<String>,
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
    /// [`Error::Engine`] where the engine has refused or failed, [`Error::EngineUnreachable`] where it is not known what it did.
    pub async fn act(&self, id: &str, action: NamedAction, seconds: u32) -> Result<(), Error> {
        self.0.engine.act(id, action, seconds).await
    }
}

/// A time as the engines write it, which for one that never was is that of the year 1.
pub(crate) fn time(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty() && !text.starts_with("0001-"))
}

#[cfg(test)]
mod tests {
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
}
