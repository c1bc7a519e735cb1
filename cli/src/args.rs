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

    #[command(flatten)]
    folders: FolderArgs,

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

/// The user's folders, which only the environment names.
#[derive(clap::Args, Debug)]
struct FolderArgs {
    /// The folder of configuration files.
    #[arg(long, global = true, hide = true, env = "XDG_CONFIG_HOME")]
    xdg_config_home: Option<PathBuf>,

    /// The folder of data.
    #[arg(long, global = true, hide = true, env = "XDG_DATA_HOME")]
    xdg_data_home: Option<PathBuf>,

    /// The folder of what programs remember.
    #[arg(long, global = true, hide = true, env = "XDG_STATE_HOME")]
    xdg_state_home: Option<PathBuf>,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub(crate) enum Verb {
    /// Make objects be as manifests say, and create those that do not exist.
    Apply(verbs::apply::Args),
    /// List objects, or show the named ones.
    Get(verbs::get::Args),
    /// Show everything about objects, with what happened to them and why.
    Describe(verbs::describe::Args),
    /// Run a command or a manifest as a job, and follow it to its end.
    Run(Box<verbs::run::Args>),
    /// Print what a job has written.
    Logs(verbs::logs::Args),
    /// Wait until objects are in a state.
    Wait(verbs::wait::Args),
    /// Cancel jobs.
    Cancel(verbs::cancel::Args),
    /// Run jobs that have ended again.
    Retry(verbs::retry::Args),
    /// Delete objects.
    Delete(verbs::delete::Args),
    /// Check manifests without a server.
    Validate(verbs::validate::Args),
    /// Make, list and revoke the tokens by which nodes join.
    JoinToken(verbs::join_token::Args),
    /// Describe a kind of manifest, or one of its fields.
    Explain(verbs::explain::Args),
    /// Print a script that completes command lines in a shell.
    Completion(verbs::completion::Args),
    /// Print the version of this command, and of the server where one is configured.
    Version(verbs::version::Args),
    /// Show the settings that are in force and where each came from.
    Config(verbs::config::Args),
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
        let Args { connection, folders, verb } = Args::from_arg_matches(matches)?;
        let ConnectionArgs { server, ca_file, token_file, namespace, config } = connection;
        let FolderArgs { xdg_config_home, xdg_data_home, xdg_state_home } = folders;
        let home = std::env::home_dir();
        let given = Given {
            server: resolved(matches, "server", "--server", "WINDLASS_SERVER", server),
            ca_file: resolved(matches, "ca_file", "--ca-file", "WINDLASS_CA_FILE", ca_file),
            token_file: resolved(matches, "token_file", "--token-file", "WINDLASS_TOKEN_FILE", token_file),
            namespace: resolved(matches, "namespace", "--namespace", "WINDLASS_NAMESPACE", namespace),
            config_file: resolved(matches, "config", "--config", "WINDLASS_CONFIG", config),
            folders: Folders::new(xdg_config_home, xdg_data_home, xdg_state_home, home),
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
