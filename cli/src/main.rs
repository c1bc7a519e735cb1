//! The `windlass` command: declares nodes and jobs, runs them, and shows what became of them.
//!
//! ```text
//! main ─► args (what was said) ─► settings (which server) ─► verbs/* ─► client (REST, event streams)
//!                                                              │
//!                                                              └─► output/* and console (data, and everything else)
//! ```
//!
//! Standard output carries data and nothing else; every message goes to standard error. Exit codes are those of
//! [`exit`].

mod args;
mod artifacts;
mod client;
mod clock;
mod cluster;
mod console;
mod exit;
mod failure;
mod fleet;
mod follow;
mod inputs;
mod interrupts;
mod kind;
mod log_output;
mod manifests;
mod output;
mod settings;
mod verbs;
mod view;

use std::process::ExitCode;

use args::CommandLine;
use console::Console;
use exit::Exit;
use failure::{Failure, Report};

fn main() -> ExitCode {
    // The agent starts this program again as launcher and probe, which must come before threads and arguments.
    if let Some(code) = windlass_agent::run_if_requested() {
        return code;
    }
    let line = match CommandLine::read() {
        Ok(line) => line,
        Err(error) => return tell_usage(&error),
    };
    let console = Console::new();
    let result = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let result = runtime.block_on(verbs::perform(line, console));
            // Whatever still blocks, such as a name that is being resolved, has nothing more to say.
            runtime.shutdown_background();
            result
        }
        Err(error) => {
            Err(Report::new(Exit::Failed, "threads cannot be started").detail(error.to_string()).into())
        }
    };
    match result {
        Ok(exit) => exit.into(),
        Err(Failure::OutputClosed) => Exit::Success.into(),
        Err(Failure::Report(report)) => {
            console.report(&report);
            report.exit.into()
        }
    }
}

/// Prints help or what is wrong with the command line.
fn tell_usage(error: &clap::Error) -> ExitCode {
    // A reader that has gone away, as in `windlass --help | head`, has seen enough.
    error.print().ok();
    if error.use_stderr() { Exit::Usage.into() } else { Exit::Success.into() }
}
