//! What the driver of an engine asks and makes on the host.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};

use super::plan;
use crate::error::Error;
use crate::spec::UnitSpec;
use crate::workspace::Workspace;

/// The name that this state folder gives to what it makes: made once, by chance.
pub(super) fn owner(state: &std::path::Path) -> Result<String, Error> {
    let path = state.join("owner");
    match fs::read_to_string(&path) {
        Ok(owner) if owner.len() == 12 && owner.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            return Ok(owner);
        }
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io("read", path)(error)),
    }
    let mut bytes = [0; 6];
    let chance = "/dev/urandom";
    File::open(chance).and_then(|mut file| file.read_exact(&mut bytes)).map_err(Error::io("read", chance))?;
    let owner: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(&path, &owner).map_err(Error::io("write", path))?;
    Ok(owner)
}

/// The number of processes that the kernel can have.
pub(super) fn most_processes() -> u64 {
    let text = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    text.trim().parse().unwrap_or(u64::MAX)
}

/// Makes the places of mounts below the workspace, as its owner: an engine would make them as root.
pub(super) fn mount_points(spec: &UnitSpec) -> Result<(), Error> {
    let (Some(root), Some(name)) =
        (spec.workspace.parent(), spec.workspace.file_name().and_then(|name| name.to_str()))
    else {
        return Ok(());
    };
    for mount in &spec.mounts {
        let target = plan::inside(&mount.target);
        let Some(below) = plan::below_workspace(&target) else { continue };
        let workspace = Workspace::open(root, name, spec.identity)?;
        if mount.source.is_dir() {
            workspace.make_dir(below)?;
        } else {
            workspace.write_file(below, b"", 0o644)?;
        }
    }
    Ok(())
}
