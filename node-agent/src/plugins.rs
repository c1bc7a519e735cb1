//! Step plugins: what the agent can do for a step, one file a kind.
//!
//! A plugin validates before anything of the job runs, executes, verifies afterwards, and undoes. It does not touch the
//! host itself: a [`StepRunner`] runs programs for it in the sandbox. After a restart of the agent a step that had
//! begun is executed again with a runner that takes up the running program instead of starting it, so `execute` must do
//! the same each time it is given the same step.

mod command;
mod container;
mod facts;
mod script;
mod service;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use windlass_crds::facts::FactsStep;
use windlass_crds::sandbox_job::Step;
use windlass_crds::service::ServiceStep;
use windlass_sandbox::Exit;

pub use self::command::Command;
pub use self::container::Container;
pub use self::facts::Facts;
pub use self::script::Script;
pub use self::service::Service;

/// What went wrong in a plugin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The step is declared wrongly.
    #[error("{field}: {message}")]
    Validation {
        /// The field of the step.
        field: String,
        /// What is wrong and what would be right.
        message: String,
    },
    /// The step could not be carried out.
    #[error("{message}")]
    Execution {
        /// What went wrong.
        message: String,
    },
    /// The step was carried out and its effect is not what it should be.
    #[error("{message}")]
    Postcheck {
        /// What is not as it should be.
        message: String,
    },
    /// What the step did could not be undone.
    #[error("{message}")]
    Rollback {
        /// What went wrong.
        message: String,
    },
    /// The step took too long.
    #[error("{message}")]
    Timeout {
        /// Which time was exceeded.
        message: String,
    },
    /// No plugin of this agent carries out such a step.
    #[error("no plugin for steps of kind `{kind}`, this agent has {known}")]
    Unsupported {
        /// What was asked for.
        kind: String,
        /// What there is.
        known: String,
    },
}

impl Error {
    /// The stable code of contracts between plugins and the rest.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Validation { .. } => "VALIDATION_ERROR",
            Self::Execution { .. } => "EXECUTION_ERROR",
            Self::Postcheck { .. } => "POSTCHECK_ERROR",
            Self::Rollback { .. } => "ROLLBACK_ERROR",
            Self::Timeout { .. } => "TIMEOUT_ERROR",
            Self::Unsupported { .. } => "UNSUPPORTED_TASK",
        }
    }

    /// A stable word for the kind of error.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Validation { .. } => "validation",
            Self::Execution { .. } => "execution",
            Self::Postcheck { .. } => "postcheck",
            Self::Rollback { .. } => "rollback",
            Self::Timeout { .. } => "timeout",
            Self::Unsupported { .. } => "unsupported",
        }
    }
}

/// What became of undoing a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RolledBack {
    /// The step leaves nothing behind that outlives its workspace, so there was nothing to undo.
    NothingToUndo,
    /// What the step did was undone as far as that can be.
    Undone {
        /// What was done for it and how things are now, to go on with a sentence.
        how: String,
    },
}

/// A program for the sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// The content of the file at [`StepRunner::script_path`], which only this step can run.
    pub script: Option<String>,
}

/// Runs programs for a plugin, in the sandbox of its step.
#[async_trait]
pub trait StepRunner: Send {
    /// Where a program finds its script inside the sandbox.
    fn script_path(&self) -> String;

    /// Runs a program, or takes up the one that was started before a restart, and returns how it ended. A step runs at
    /// most one.
    ///
    /// # Errors
    /// When it could not be run at all.
    async fn run(&mut self, program: Program) -> Result<Exit, Error>;

    /// Tells facts of the node as the step's output. Nothing of it runs in the sandbox.
    ///
    /// # Errors
    /// When the node does not allow it, or it was stopped.
    async fn facts(&mut self, step: &FactsStep) -> Result<Exit, Error>;

    /// Does something with a container of the node, and looks until it is as it should be; where it does not get there, the exit
    /// has a message and no code. After a restart of the agent it finds out what was done, and does not do it again.
    ///
    /// # Errors
    /// When the node does not allow it, there is no such container, or it is not known what became of it.
    async fn service(&mut self, step: &ServiceStep) -> Result<Exit, Error>;

    /// Puts the container of [`StepRunner::service`] back into the state that it was in.
    ///
    /// # Errors
    /// [`Error::Rollback`].
    async fn undo_service(&mut self, step: &ServiceStep) -> Result<RolledBack, Error>;
}

/// Carries out steps of one kind.
#[async_trait]
pub trait StepPlugin: Send + Sync {
    /// The kind, as the field of the step that names it.
    fn kind(&self) -> &'static str;

    /// Checks a step before anything of its job runs. Has no effect.
    ///
    /// # Errors
    /// [`Error::Validation`].
    fn validate(&self, step: &Step) -> Result<(), Error>;

    /// Carries a step out.
    ///
    /// # Errors
    /// [`Error::Execution`] and what the runner says.
    async fn execute(&self, step: &Step, runner: &mut dyn StepRunner) -> Result<Exit, Error>;

    /// Checks the effect of a step that was carried out.
    ///
    /// # Errors
    /// [`Error::Timeout`] if it took too long, [`Error::Postcheck`] if it has not succeeded.
    fn verify(&self, step: &Step, exit: &Exit) -> Result<(), Error>;

    /// Undoes a step.
    ///
    /// # Errors
    /// [`Error::Rollback`].
    async fn rollback(&self, step: &Step, runner: &mut dyn StepRunner) -> Result<RolledBack, Error>;
}

/// Why a plugin cannot be registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// It has no kind.
    #[error("a step plugin must name its kind")]
    EmptyKind,
    /// There is one of this kind.
    #[error("there is a step plugin of kind `{kind}` already")]
    Duplicate {
        /// The kind.
        kind: &'static str,
    },
}

impl RegistryError {
    /// A stable word for the kind of error.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::EmptyKind => "empty_kind",
            Self::Duplicate { .. } => "duplicate_kind",
        }
    }
}

/// The plugins by kind.
#[derive(Clone, Default)]
pub struct Registry {
    plugins: BTreeMap<&'static str, Arc<dyn StepPlugin>>,
}

impl Registry {
    /// A registry with the plugins of this agent.
    pub fn built_in() -> Self {
        let mut registry = Self::default();
        let built_in: [Arc<dyn StepPlugin>; 5] =
            [Arc::new(Command), Arc::new(Container), Arc::new(Facts), Arc::new(Script), Arc::new(Service)];
        for plugin in built_in {
            registry.register(plugin).expect("the built-in plugins have kinds of their own");
        }
        registry
    }

    /// Adds a plugin.
    ///
    /// # Errors
    /// When it has no kind, or one that is taken.
    pub fn register(&mut self, plugin: Arc<dyn StepPlugin>) -> Result<(), RegistryError> {
        let kind = plugin.kind();
        if kind.is_empty() {
            return Err(RegistryError::EmptyKind);
        }
        if self.plugins.contains_key(kind) {
            return Err(RegistryError::Duplicate { kind });
        }
        self.plugins.insert(kind, plugin);
        Ok(())
    }

    /// The kinds, sorted.
    pub fn kinds(&self) -> Vec<&'static str> {
        self.plugins.keys().copied().collect()
    }

    /// The plugin of a kind.
    ///
    /// # Errors
    /// [`Error::Unsupported`].
    pub fn get(&self, kind: &str) -> Result<Arc<dyn StepPlugin>, Error> {
        let found = self.plugins.get(kind).cloned();
        found.ok_or_else(|| Error::Unsupported { kind: kind.to_owned(), known: self.kinds().join(", ") })
    }

    /// The plugin for a step.
    ///
    /// # Errors
    /// [`Error::Validation`] when the step names no kind or several, [`Error::Unsupported`].
    pub fn for_step(&self, step: &Step) -> Result<Arc<dyn StepPlugin>, Error> {
        let invalid = |message: &str| {
            Err(Error::Validation { field: format!("steps[{}]", step.name), message: message.to_owned() })
        };
        let kinds = [
            ("command", step.command.is_some()),
            ("script", step.script.is_some()),
            ("container", step.container.is_some()),
            ("facts", step.facts.is_some()),
            ("service", step.service.is_some()),
        ];
        let mut given = kinds.into_iter().filter(|(_, given)| *given).map(|(kind, _)| kind);
        match (given.next(), given.next()) {
            (Some(kind), None) => self.get(kind),
            (None, _) => invalid("has no `command`, `script`, `container`, `facts` or `service`; give one"),
            (Some(_), Some(_)) => invalid(
                "has more than one of `command`, `script`, `container`, `facts` and `service`; give one",
            ),
        }
    }
}

/// Whether a program that ran for a step has done what was asked: it has exited with 0.
fn verify_exit(exit: &Exit) -> Result<(), Error> {
    use windlass_sandbox::EndReason;
    if exit.succeeded() {
        return Ok(());
    }
    let message = describe(exit);
    match exit.reason {
        EndReason::Timeout => Err(Error::Timeout { message }),
        EndReason::SetupFailed | EndReason::EngineLost => Err(Error::Execution { message }),
        EndReason::Exited
        | EndReason::Signalled
        | EndReason::LeaseExpired
        | EndReason::Cancelled
        | EndReason::OOMKilled
        | EndReason::PidsLimit
        | EndReason::DiskLimit
        | EndReason::SeccompDenied
        | EndReason::SupervisorLost => Err(Error::Postcheck { message }),
    }
}

/// How a program ended, for people.
pub(crate) fn describe(exit: &Exit) -> String {
    if let Some(message) = &exit.message {
        return message.clone();
    }
    match (exit.code, exit.signal) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("ended by signal {signal}"),
        (None, None) => format!("ended: {}", exit.reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Named(&'static str);

    #[async_trait]
    impl StepPlugin for Named {
        fn kind(&self) -> &'static str {
            self.0
        }
        fn validate(&self, _: &Step) -> Result<(), Error> {
            Ok(())
        }
        async fn execute(&self, _: &Step, _: &mut dyn StepRunner) -> Result<Exit, Error> {
            Err(Error::Execution { message: "never".to_owned() })
        }
        fn verify(&self, _: &Step, _: &Exit) -> Result<(), Error> {
            Ok(())
        }
        async fn rollback(&self, _: &Step, _: &mut dyn StepRunner) -> Result<RolledBack, Error> {
            Ok(RolledBack::NothingToUndo)
        }
    }

    #[test]
    fn the_registry_lists_its_plugins_and_refuses_empty_and_double_kinds() {
        let mut registry = Registry::built_in();
        assert_eq!(registry.kinds(), ["command", "container", "facts", "script", "service"]);
        registry.register(Arc::new(Named("http"))).unwrap();
        assert_eq!(registry.kinds(), ["command", "container", "facts", "http", "script", "service"]);
        assert_eq!(registry.register(Arc::new(Named(""))), Err(RegistryError::EmptyKind));
        let double = registry.register(Arc::new(Named("script")));
        assert_eq!(double, Err(RegistryError::Duplicate { kind: "script" }));
        let missing = registry.get("llm").err().unwrap();
        assert_eq!(missing.code(), "UNSUPPORTED_TASK");
        assert!(
            missing.to_string().contains("command, container, facts, http, script, service"),
            "{missing}"
        );
    }

    #[test]
    fn a_step_is_exactly_one_thing() {
        let registry = Registry::built_in();
        let command = Some(vec!["true".to_owned()]);
        let script = crate::testing::script("true");
        let step = |command, script| Step { name: "s".to_owned(), command, script, ..Step::default() };
        assert_eq!(registry.for_step(&step(command.clone(), None)).unwrap().kind(), "command");
        assert_eq!(registry.for_step(&step(None, Some(script.clone()))).unwrap().kind(), "script");
        for wrong in [step(None, None), step(command, Some(script))] {
            assert_eq!(registry.for_step(&wrong).err().unwrap().code(), "VALIDATION_ERROR");
        }
    }
}
