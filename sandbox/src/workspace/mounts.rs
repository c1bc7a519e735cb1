//! The mount table of this process, as proc(5) has it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    id: u64,
    parent: u64,
    /// The numbers of its device.
    device: String,
    /// Which folder of its file system it shows.
    shows: PathBuf,
    /// Where.
    point: PathBuf,
    /// Whether what is mounted and unmounted below it is so in its copies too.
    pub(super) shared: bool,
}

/// All mounts, in the order in which they were made.
#[derive(Debug)]
pub(super) struct Table(Vec<Mount>);

impl Table {
    pub(super) fn read() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    fn parse(text: &str) -> Self {
        Self(text.lines().filter_map(parse_line).collect())
    }

    /// The mount that a path is on.
    pub(super) fn holding(&self, path: &Path) -> Option<&Mount> {
        // Of those at one place the last one covers the others.
        self.0
            .iter()
            .filter(|mount| path.starts_with(&mount.point))
            .max_by_key(|mount| mount.point.components().count())
    }

    /// Whether what is mounted at a path is the folder that is there without it.
    pub(super) fn is_bound_to_itself(&self, path: &Path) -> bool {
        let Some(mount) = self.holding(path).filter(|mount| mount.point == path) else { return false };
        let Some(parent) = self.0.iter().find(|parent| parent.id == mount.parent) else { return false };
        path.strip_prefix(&parent.point)
            .is_ok_and(|below| mount.device == parent.device && mount.shows == parent.shows.join(below))
    }
}

fn parse_line(line: &str) -> Option<Mount> {
    let (place, _) = line.split_once(" - ")?;
    let mut fields = place.split(' ');
    let mut next = || fields.next();
    Some(Mount {
        id: next()?.parse().ok()?,
        parent: next()?.parse().ok()?,
        device: next()?.to_owned(),
        shows: path(next()?),
        point: path(next()?),
        // After the options.
        shared: fields.skip(1).any(|field| field.starts_with("shared:")),
    })
}

/// A path in which white space and backslashes are written as three octal digits.
fn path(text: &str) -> PathBuf {
    let mut parts = text.split('\\');
    let mut path = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                path.push(char::from(code));
                path.push_str(&part[3..]);
            }
            None => path.push_str(part),
        }
    }
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "24 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n\
        30 24 0:28 / /srv rw - tmpfs tmpfs rw\n\
        31 30 0:28 /a\\040b/workspaces /srv/a\\040b/workspaces rw shared:9 master:1 - tmpfs tmpfs rw\n\
        32 24 254:1 /data /var/workspaces rw - ext4 /dev/vda1 rw\n\
        33 24 8:1 / /disk rw - ext4 /dev/sda1 rw\n";

    #[test]
    fn a_path_is_on_the_innermost_mount() {
        let table = Table::parse(TABLE);
        let holding = |path: &str| table.holding(Path::new(path)).map(|mount| (mount.id, mount.shared));
        assert_eq!(holding("/srvx"), Some((24, true)));
        assert_eq!(holding("/srv/a"), Some((30, false)));
        assert_eq!(holding("/srv/a b/workspaces/one"), Some((31, true)));
    }

    #[test]
    fn a_folder_that_is_bound_to_itself_is_told_from_what_others_have_mounted() {
        let table = Table::parse(TABLE);
        let itself = |path: &str| table.is_bound_to_itself(Path::new(path));
        assert!(itself("/srv/a b/workspaces"));
        assert!(!itself("/var/workspaces"));
        assert!(!itself("/disk"));
        assert!(!itself("/srv/a"));
    }
}
