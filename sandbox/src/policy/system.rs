//! The steps of a unit whose system is an image: the small root is made as ever, and parts of it are laid over the image.

use windlass_launcher::plan::{Step, Text};

use super::{HOME, RESOLVER, WORKSPACE, text};
use crate::error::Error;
use crate::spec::SystemRoot;

/// Parts of the small root, where they lie in the system, and whether their own files may only be read.
const PARTS: [(&str, &str, bool); 8] = [
    ("dev", "dev", true),
    ("proc", "proc", false),
    ("sys", "sys", true),
    ("tmp", "tmp", false),
    ("tmp", "var/tmp", false),
    ("run", "run", false),
    ("home/job", "home/job", false),
    ("etc/hosts", "etc/hosts", true),
];

/// Adds the steps that take the place of entering the small root.
pub(super) fn lay_out(steps: &mut Vec<Step>, system: &SystemRoot) -> Result<(), Error> {
    let fixed = |value: &str| Text::new(value).expect("a constant without NUL");
    let account = &system.image.account;
    steps.push(Step::LayOut { source: super::host_path("system", &system.image.dir)? });
    for (part, place, read_only) in PARTS {
        steps.push(Step::Cover { part: fixed(part), place: fixed(place), read_only });
    }
    for place in ["etc/hostname", RESOLVER.trim_start_matches('/')] {
        steps.push(Step::Cover { part: fixed(place), place: fixed(place), read_only: true });
    }
    for (name, content) in [("etc/passwd", account.passwd_file(HOME)), ("etc/group", account.group_file())] {
        if let Some(content) = content {
            steps.push(Step::ShowFile { target: fixed(name), content });
            steps.push(Step::Cover { part: fixed(name), place: fixed(name), read_only: true });
        }
    }
    for place in &system.scratch {
        let place = text("scratch", place.trim_start_matches('/'))?;
        steps.push(Step::CoverWithScratch { place, mode: 0o1777 });
    }
    steps.push(Step::EnterSystem);
    Ok(())
}

/// Makes the folder that the image names for its program, as engines do, where it is in what begins empty. Elsewhere it was made
/// when the image was unpacked.
pub(super) fn make_working_folder(
    steps: &mut Vec<Step>,
    system: &SystemRoot,
    cwd: &str,
) -> Result<(), Error> {
    if system.image.config.working_dir.as_deref() != Some(cwd) {
        return Ok(());
    }
    let empty = ["/tmp", "/var/tmp", "/run", "/dev/shm", HOME, WORKSPACE];
    let mut places = empty.into_iter().chain(system.scratch.iter().map(String::as_str));
    let Some(below) = places.find_map(|place| cwd.strip_prefix(place)?.strip_prefix('/')) else {
        return Ok(());
    };
    let above = cwd.len() - below.len();
    let ends = below.match_indices('/').map(|(at, _)| at).chain([below.len()]);
    for end in ends {
        steps.push(Step::MakeDir { path: text("cwd", &cwd[..above + end])?, mode: 0o755 });
    }
    Ok(())
}
