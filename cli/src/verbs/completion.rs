//! `windlass completion`: a script that completes command lines.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::Context;
use crate::exit::Exit;
use crate::failure::Failure;

/// Print a script that completes command lines in a shell.
///
/// For bash: `source <(windlass completion bash)` in `~/.bashrc`. For zsh: `windlass completion zsh >
/// "${fpath[1]}/_windlass"`. For fish: `windlass completion fish > ~/.config/fish/completions/windlass.fish`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

pub(crate) fn perform(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::args::Args::command(), "windlass", &mut script);
    context.console.raw_stdout(&script)?;
    Ok(Exit::Success)
}
