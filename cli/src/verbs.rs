//! The verbs, one file each: what they take from the command line and what they do.

pub(crate) mod agent;
pub(crate) mod apply;
pub(crate) mod artifacts;
pub(crate) mod backup;
pub(crate) mod cancel;
pub(crate) mod completion;
pub(crate) mod config;
pub(crate) mod controller;
pub(crate) mod cordon;
pub(crate) mod crds;
pub(crate) mod delete;
pub(crate) mod deregister;
pub(crate) mod describe;
pub(crate) mod dev;
pub(crate) mod doctor;
pub(crate) mod drain;
pub(crate) mod explain;
pub(crate) mod export;
pub(crate) mod facts;
pub(crate) mod get;
pub(crate) mod identity;
pub(crate) mod import;
pub(crate) mod join_token;
pub(crate) mod logs;
pub(crate) mod restore;
pub(crate) mod retry;
pub(crate) mod rollout;
pub(crate) mod run;
pub(crate) mod secret;
pub(crate) mod set;
pub(crate) mod validate;
pub(crate) mod version;
pub(crate) mod wait;
pub(crate) mod why;

use crate::args::{CommandLine, Verb};
use crate::client::{self, Client};
use crate::console::Console;
use crate::exit::Exit;
use crate::failure::{Failure, Report};
use crate::kind;
use crate::settings::{Given, Settings};

/// What every verb works with.
#[derive(Debug)]
pub(crate) struct Context {
    /// Where output goes.
    pub(crate) console: Console,
    /// What the command line and the environment say about the server.
    pub(crate) given: Given,
}

impl Context {
    /// The settings in force.
    pub(crate) fn settings(&self) -> Result<Settings, Failure> {
        Ok(Settings::resolve(self.given.clone())?)
    }

    /// The settings in force and a client of their server.
    pub(crate) fn connect(&self) -> Result<(Settings, Client), Failure> {
        let settings = self.settings()?;
        let client = Client::new(&settings)?;
        Ok((settings, client))
    }
}

impl From<kind::Error> for Failure {
    fn from(error: kind::Error) -> Self {
        Report::new(Exit::Usage, error.to_string()).into()
    }
}

/// Prints that the server refused one of several things, so that the others can go on. Any other error ends the verb.
fn tell_refusal(context: &Context, error: client::Error) -> Result<Exit, Failure> {
    if error.problem_code().is_none() {
        return Err(error.into());
    }
    let report = error.report();
    context.console.report(&report);
    Ok(report.exit)
}

/// Does what the command line says.
pub(crate) async fn perform(line: CommandLine, console: Console) -> Result<Exit, Failure> {
    let CommandLine { verb, given } = line;
    let context = Context { console, given };
    match verb {
        Verb::Dev(args) => dev::perform(&context, args).await,
        Verb::Agent(args) => agent::perform(&context, args).await,
        Verb::Doctor(args) => doctor::perform(&context, &args).await,
        Verb::Controller(args) => controller::perform(&context, *args).await,
        Verb::Apply(args) => apply::perform(&context, &args).await,
        Verb::Get(args) => get::perform(&context, args).await,
        Verb::Describe(args) => describe::perform(&context, &args).await,
        Verb::Run(args) => run::perform(&context, *args).await,
        Verb::Logs(args) => logs::perform(&context, &args).await,
        Verb::Artifacts(args) => artifacts::perform(&context, &args).await,
        Verb::Wait(args) => wait::perform(&context, &args).await,
        Verb::Why(args) => why::perform(&context, &args).await,
        Verb::Facts(args) => facts::perform(&context, &args).await,
        Verb::Cancel(args) => cancel::perform(&context, &args).await,
        Verb::Retry(args) => retry::perform(&context, &args).await,
        Verb::Cordon(args) => cordon::cordon(&context, &args).await,
        Verb::Uncordon(args) => cordon::uncordon(&context, &args).await,
        Verb::Set(args) => set::perform(&context, &args).await,
        Verb::Rollout(args) => rollout::perform(&context, args).await,
        Verb::Drain(args) => drain::perform(&context, &args).await,
        Verb::Deregister(args) => deregister::perform(&context, &args).await,
        Verb::Delete(args) => delete::perform(&context, &args).await,
        Verb::Validate(args) => validate::perform(&context, &args),
        Verb::Backup(args) => backup::perform(&context, &args).await,
        Verb::Restore(args) => restore::perform(&context, &args).await,
        Verb::Export(args) => export::perform(&context, &args).await,
        Verb::Import(args) => import::perform(&context, &args).await,
        Verb::Identity(args) => identity::perform(&context, &args),
        Verb::Crds(args) => crds::perform(&context, &args).await,
        Verb::Secret(args) => secret::perform(&context, args).await,
        Verb::JoinToken(args) => join_token::perform(&context, args).await,
        Verb::Explain(args) => explain::perform(&context, &args),
        Verb::Completion(args) => completion::perform(&context, &args),
        Verb::Version(args) => version::perform(&context, &args).await,
        Verb::Config(args) => config::perform(&context, &args),
    }
}
