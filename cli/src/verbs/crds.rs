//! `windlass crds`: the custom resources of Kubernetes.

use windlass_crds::schema::{Rules, crds_yaml};

use super::Context;
use crate::cluster::ClusterArgs;
use crate::exit::Exit;
use crate::failure::{Failure, Report};

/// Print or install the custom resources for Kubernetes.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    Print(PrintArgs),
    Install(InstallArgs),
}

/// Print the custom resources as YAML.
///
/// They carry rules between fields, which API servers before 1.25 refuse; `--without-rules` leaves them out. The controller checks
/// the same in either case.
#[derive(clap::Args, Debug)]
struct PrintArgs {
    /// Leave out rules between fields, for API servers before 1.25.
    #[arg(long)]
    without_rules: bool,
}

/// Install the custom resources in a cluster, or bring them up to date.
///
/// Rules between fields are left out for an API server that does not know them.
#[derive(clap::Args, Debug)]
struct InstallArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(crate) async fn perform(context: &Context, args: &Args) -> Result<Exit, Failure> {
    match &args.verb {
        Verb::Print(PrintArgs { without_rules }) => {
            let rules = if *without_rules { Rules::None } else { Rules::Cel };
            let yaml = crds_yaml(rules)
                .map_err(|error| Report::new(Exit::Failed, error.to_string()).causes(&error))?;
            context.console.line(yaml.trim_end())?;
        }
        Verb::Install(InstallArgs { cluster }) => {
            let connection = cluster.open().await?;
            let installed = windlass_controller::kube::admin::install_crds(&connection).await?;
            for name in &installed.names {
                context.console.line(format!("customresourcedefinition/{name} installed"))?;
            }
            match installed.rules {
                Rules::Cel => {}
                Rules::None => context.console.note(format!(
                    "The API server is of version {}: rules between fields, which it does not know, are left to the controller.",
                    installed.server
                )),
            }
        }
    }
    Ok(Exit::Success)
}
