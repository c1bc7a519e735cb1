//! The command line: what can be said, and what each word of it means.

use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::exit;
use crate::settings::folders::Folders;
use crate::settings::{Given, Origin, Resolved};
use crate::verbs;

/// Declare nodes and jobs, run them safely, and see what became of them.
///
/// Windlass runs jobs in sandboxes on any set of Linux hosts. `windlass run --local -- CMD` needs nothing but this
/// binary; `windlass dev` starts a whole controller and node on this machine; `windlass controller` and `windlass
/// agent` make a fleet of many.
#[derive(Parser, Debug)]
#[command(
    name = "windlass",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    subcommand_required = true,
    after_help = "`windlass --help` lists the exit codes, `windlass VERB --help` tells everything about a verb.",
    after_long_help = exit::HELP
)]
pub(crate) struct Args {
    #[command(flatten)]
    connection: ConnectionArgs,

    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// Where the server is and how to speak to it. What is not given here comes from the configuration file, then from a
/// running `windlass dev`.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Connection")]
struct ConnectionArgs {
    /// Speak to the server at this URL.
    #[arg(long, global = true, value_name = "URL", env = "WINDLASS_SERVER", hide_env_values = true)]
    server: Option<String>,

    /// Trust the certificate authority in this PEM file, and no other.
    #[arg(long, global = true, value_name = "PATH", env = "WINDLASS_CA_FILE", hide_env_values = true)]
    ca_file: Option<PathBuf>,

    /// Read the API token from this file.
    #[arg(long, global = true, value_name = "PATH", env = "WINDLASS_TOKEN_FILE", hide_env_values = true)]
    token_file: Option<PathBuf>,

    /// Work in this namespace.
    #[arg(
        short,
        long,
        global = true,
        value_name = "NAME",
        env = "WINDLASS_NAMESPACE",
        hide_env_values = true
    )]
    namespace: Option<String>,

    /// Read the settings from this file in place of `$XDG_CONFIG_HOME/windlass/config.yaml`.
    #[arg(long, global = true, value_name = "PATH", env = "WINDLASS_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
}

/// What to do. Each verb is described at its own arguments, which is what its help prints.
#[derive(Subcommand, Debug)]
pub(crate) enum Verb {
    Dev(verbs::dev::Args),
    Run(Box<verbs::run::Args>),
    Apply(verbs::apply::Args),
    Get(verbs::get::Args),
    Describe(verbs::describe::Args),
    Logs(verbs::logs::Args),
    Artifacts(verbs::artifacts::Args),
    Wait(verbs::wait::Args),
    Why(verbs::why::Args),
    Facts(verbs::facts::Args),
    Cancel(verbs::cancel::Args),
    Retry(verbs::retry::Args),
    Delete(verbs::delete::Args),
    Validate(verbs::validate::Args),
    Explain(verbs::explain::Args),
    Cordon(verbs::cordon::CordonArgs),
    Uncordon(verbs::cordon::UncordonArgs),
    Drain(verbs::drain::Args),
    Rollout(verbs::rollout::Args),
    Set(verbs::set::Args),
    Deregister(verbs::deregister::Args),
    Doctor(verbs::doctor::Args),
    Controller(Box<verbs::controller::Args>),
    Agent(verbs::agent::Args),
    Backup(verbs::backup::Args),
    Restore(verbs::restore::Args),
    Identity(verbs::identity::Args),
    JoinToken(verbs::join_token::Args),
    Secret(verbs::secret::Args),
    Export(verbs::export::Args),
    Import(verbs::import::Args),
    Crds(verbs::crds::Args),
    Config(verbs::config::Args),
    Version(verbs::version::Args),
    Completion(verbs::completion::Args),
}

/// The command line that was given.
#[derive(Debug)]
pub(crate) struct CommandLine {
    /// What to do.
    pub(crate) verb: Verb,
    /// What the command line and the environment say about the server.
    pub(crate) given: Given,
}

impl CommandLine {
    /// Reads the process's own command line and environment.
    ///
    /// # Errors
    /// What clap has to say: the help text, or what is wrong.
    pub(crate) fn read() -> Result<Self, clap::Error> {
        Self::from_matches(&Args::command().try_get_matches()?)
    }

    fn from_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let Args { connection, verb } = Args::from_arg_matches(matches)?;
        let ConnectionArgs { server, ca_file, token_file, namespace, config } = connection;
        let given = Given {
            server: resolved(matches, "server", "--server", "WINDLASS_SERVER", server),
            ca_file: resolved(matches, "ca_file", "--ca-file", "WINDLASS_CA_FILE", ca_file),
            token_file: resolved(matches, "token_file", "--token-file", "WINDLASS_TOKEN_FILE", token_file),
            namespace: resolved(matches, "namespace", "--namespace", "WINDLASS_NAMESPACE", namespace),
            config_file: resolved(matches, "config", "--config", "WINDLASS_CONFIG", config),
            folders: Folders::of_this_user(),
        };
        Ok(Self { verb, given })
    }
}

/// A value with its origin; an empty variable of the environment says nothing.
fn resolved<T: AsRef<std::ffi::OsStr>>(
    matches: &ArgMatches,
    id: &str,
    flag: &'static str,
    variable: &'static str,
    value: Option<T>,
) -> Option<Resolved<T>> {
    let value = value?;
    match matches.value_source(id) {
        Some(ValueSource::EnvVariable) if value.as_ref().is_empty() => None,
        Some(ValueSource::EnvVariable) => Some(Resolved::new(value, Origin::Environment(variable))),
        Some(_) | None => Some(Resolved::new(value, Origin::Flag(flag))),
    }
}

#[cfg(test)]
mod tests;
