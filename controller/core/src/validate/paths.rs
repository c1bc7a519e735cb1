//! Paths in the workspace and on the host, and what is placed at them.

use std::collections::BTreeMap;

use windlass_crds::names::Quoted;
use windlass_crds::sandbox_job::{HostPath, Input, WorkspaceSpec};

use super::findings::Findings;

/// The most bytes of one part of a path, as on every common file system.
pub(super) const MAX_PART: usize = 255;

/// Checks what is placed in the workspace.
pub(super) fn check_workspace(workspace: &WorkspaceSpec, at: &str, findings: &mut Findings) {
    // Where each thing lies, and whether other things may lie below it.
    let mut placed: BTreeMap<Vec<&str>, (String, bool)> = BTreeMap::new();
    for (index, input) in workspace.inputs.iter().enumerate() {
        let field = format!("{at}.inputs[{index}]");
        let is_folder = check_input(input, &field, findings);
        let at = format!("{field}.path");
        let Some(parts) = check_relative(&input.path, &at, findings) else { continue };
        if let Some((other, _)) = placed.get(&parts) {
            findings
                .refuse(&at, format!("{} is also the path of {other}; choose another", Quoted(&input.path)));
            continue;
        }
        placed.insert(parts, (field, is_folder));
    }
    for (parts, (field, _)) in &placed {
        let above =
            (1..parts.len()).find_map(|length| placed.get(&parts[..length]).filter(|(_, folder)| !folder));
        if let Some((other, _)) = above {
            let path = parts.join("/");
            findings
                .refuse(format!("{field}.path"), format!("{} lies below the file of {other}", Quoted(&path)));
        }
    }
}

/// Checks one input; tells whether it is a folder.
fn check_input(input: &Input, at: &str, findings: &mut Findings) -> bool {
    let Input { path: _, inline, upload, host_path, executable } = input;
    let given = [inline.is_some(), upload.is_some(), host_path.is_some()];
    match given.iter().filter(|given| **given).count() {
        1 => {}
        0 => findings.refuse(at, "has no content; write exactly one of `inline`, `upload` and `hostPath`"),
        _ => findings
            .refuse(at, "has more than one content; write exactly one of `inline`, `upload` and `hostPath`"),
    }
    let unpacked = upload.as_ref().is_some_and(|upload| upload.unpack);
    if *executable && (unpacked || host_path.is_some()) {
        let message =
            "means nothing here: an unpacked upload and a host path keep their own modes; remove the field";
        findings.refuse(format!("{at}.executable"), message);
    }
    if let Some(host_path) = host_path {
        check_host_path(host_path, &format!("{at}.hostPath"), findings);
    }
    let is_workspace = parts(&input.path).next().is_none();
    if is_workspace && !unpacked && !input.path.is_empty() {
        let message =
            "`.` is the workspace itself, where only an unpacked upload can be placed; choose a path in it";
        findings.refuse(format!("{at}.path"), message);
    }
    unpacked || host_path.is_some()
}

/// Checks a path of the host.
pub(super) fn check_host_path(host_path: &HostPath, at: &str, findings: &mut Findings) {
    let at = format!("{at}.path");
    let path = host_path.path.as_str();
    // Whether it begins with `/` is in the schema.
    if path.split('/').any(|part| part == "..") {
        findings.refuse(at, format!("{} contains `..`; write the path without it", Quoted(path)));
    } else if let Some(part) = parts(path).find(|part| part.len() > MAX_PART) {
        findings.refuse(at, format!("the part {} is longer than {MAX_PART} bytes", Quoted(part)));
    }
}

/// Checks a path in the workspace; answers with its parts where it is one.
pub(super) fn check_relative<'a>(path: &'a str, at: &str, findings: &mut Findings) -> Option<Vec<&'a str>> {
    // An empty path is refused by the schema.
    if path.is_empty() {
        return None;
    }
    let message = if path.starts_with('/') {
        format!("{} is absolute; write a path relative to the workspace", Quoted(path))
    } else if path.split('/').any(|part| part == "..") {
        format!("{} contains `..`; write a path inside the workspace", Quoted(path))
    } else if let Some(part) = parts(path).find(|part| part.len() > MAX_PART) {
        format!("the part {} is longer than {MAX_PART} bytes", Quoted(part))
    } else {
        return Some(parts(path).collect());
    };
    findings.refuse(at, message);
    None
}

/// The parts of a path that name something.
pub(super) fn parts(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".")
}
