//! Writes the generated files of this crate: custom resources and JSON Schemas.
//!
//! Usage: `windlass-generate FOLDER`, where FOLDER is the crate's own folder, or another one to compare with.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(folder), None) = (arguments.next(), arguments.next()) else {
        return fail("usage: windlass-generate FOLDER");
    };
    let folder = PathBuf::from(folder);
    let files = match windlass_crds::schema::generated_files() {
        Ok(files) => files,
        Err(error) => return fail(&describe(&error)),
    };
    for (path, content) in files {
        let path = folder.join(path);
        let written = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        if let Err(error) = written.and_then(|()| std::fs::write(&path, content)) {
            return fail(&format!("write {}: {error}", path.display()));
        }
    }
    ExitCode::SUCCESS
}

/// An error with everything that caused it.
fn describe(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |source| source.source())
        .fold(error.to_string(), |text, source| format!("{text}: {source}"))
}

#[expect(clippy::print_stderr, reason = "this program's only output")]
fn fail(message: &str) -> ExitCode {
    eprintln!("{message}");
    ExitCode::FAILURE
}
