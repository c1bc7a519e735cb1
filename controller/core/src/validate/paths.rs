//! Paths in the workspace and on the host, and what is placed at them.

use std::collections::BTreeMap;

use windlass_crds::names::Quoted;
use windlass_crds::sandbox_job::{HostPath, Input};
use windlass_crds::{ConfigMapUse, SandboxJobSpec};

use super::findings::Findings;

/// The most bytes of one part of a path, as on every common file system.
pub(super) const MAX_PART: usize = 255;

/// Something that is placed in the workspace.
struct Placed<'a> {
    /// What it is, for messages.
    what: String,
    /// The field of its path.
    field: String,
    /// Whether other things may lie below it.
    is_folder: bool,
    /// The ConfigMap that it comes from.
    config_map: Option<&'a ConfigMapUse>,
}

/// Checks what is placed in the workspace of a job, whose manifest's part is `at`: inputs, and the files of ConfigMaps.
pub(super) fn check_workspace(spec: &SandboxJobSpec, at: &str, findings: &mut Findings) {
    let mut placed: BTreeMap<Vec<&str>, Placed<'_>> = BTreeMap::new();
    for (index, input) in spec.workspace.inputs.iter().enumerate() {
        let what = format!("{at}.workspace.inputs[{index}]");
        let is_folder = check_input(input, &what, findings);
        let field = format!("{what}.path");
        place(&mut placed, &input.path, Placed { what, field, is_folder, config_map: None }, findings);
    }
    let of_steps = spec.steps.iter().enumerate();
    let lists = of_steps.map(|(index, step)| (format!("{at}.steps[{index}].configMaps"), &step.config_maps));
    for (list, uses) in lists.chain([(format!("{at}.configMaps"), &spec.config_maps)]) {
        for (index, config_map) in uses.iter().enumerate() {
            let Some(path) = &config_map.file else { continue };
            let what = format!("{list}[{index}]");
            let field = format!("{what}.file");
            if parts(path).next().is_none() && !path.is_empty() {
                findings
                    .refuse(&field, "`.` is the workspace itself, which no file can be; choose a path in it");
                continue;
            }
            let config_map = Some(config_map);
            place(&mut placed, path, Placed { what, field, is_folder: false, config_map }, findings);
        }
    }
    for (parts, own) in &placed {
        let above =
            (1..parts.len()).find_map(|length| placed.get(&parts[..length]).filter(|above| !above.is_folder));
        if let Some(above) = above {
            let path = parts.join("/");
            findings.refuse(&own.field, format!("{} lies below the file of {}", Quoted(&path), above.what));
        }
    }
}

/// Notes where something lies. Steps may name the same value at the same path.
fn place<'a>(
    placed: &mut BTreeMap<Vec<&'a str>, Placed<'a>>,
    path: &'a str,
    new: Placed<'a>,
    findings: &mut Findings,
) {
    let Some(parts) = check_relative(path, &new.field, findings) else { return };
    match placed.get(&parts) {
        Some(other) => {
            let same = |a: &ConfigMapUse, b: &ConfigMapUse| a.name == b.name && a.key == b.key;
            if !other.config_map.zip(new.config_map).is_some_and(|(a, b)| same(a, b)) {
                let message = format!("{} is also the path of {}; choose another", Quoted(path), other.what);
                findings.refuse(new.field, message);
            }
        }
        None => {
            placed.insert(parts, new);
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
