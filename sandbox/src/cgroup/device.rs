//! The disk below a folder, by the numbers that cgroups know it by.

use std::fs;
use std::path::Path;

/// A whole disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) major: u64,
    pub(crate) minor: u64,
}

/// The disk that holds a folder, or why there is none whose use can be limited.
pub(super) fn of(folder: &Path) -> Result<Device, String> {
    let stat = rustix::fs::stat(folder).map_err(|errno| format!("{}: {errno}", folder.display()))?;
    let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    if major == 0 {
        return Err(format!(
            "{} is not on a block device of its own (a file system in memory, on the network or of several devices)",
            folder.display()
        ));
    }
    whole(Path::new("/sys/dev/block"), major, minor)
}

/// The disk of a partition; cgroups take whole disks alone.
fn whole(table: &Path, major: u32, minor: u32) -> Result<Device, String> {
    let entry = table.join(format!("{major}:{minor}"));
    let failed = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    let entry = entry.canonicalize().map_err(|error| failed(&entry, error))?;
    let disk = if entry.join("partition").exists() { entry.parent().unwrap_or(&entry) } else { &entry };
    let path = disk.join("dev");
    let numbers = fs::read_to_string(&path).map_err(|error| failed(&path, error))?;
    let parsed = numbers
        .trim()
        .split_once(':')
        .and_then(|(major, minor)| Some(Device { major: major.parse().ok()?, minor: minor.parse().ok()? }));
    parsed.ok_or_else(|| format!("{} holds {numbers:?}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_limited_by_its_disk() {
        let sys = tempfile::tempdir().unwrap();
        let disk = sys.path().join("devices/vda");
        let (table, partition) = (sys.path().join("table"), disk.join("vda2"));
        fs::create_dir_all(&partition).unwrap();
        fs::create_dir(&table).unwrap();
        fs::write(disk.join("dev"), "254:0\n").unwrap();
        fs::write(partition.join("dev"), "254:2\n").unwrap();
        fs::write(partition.join("partition"), "2\n").unwrap();
        std::os::unix::fs::symlink(&disk, table.join("254:0")).unwrap();
        std::os::unix::fs::symlink(&partition, table.join("254:2")).unwrap();
        let disk = Ok(Device { major: 254, minor: 0 });
        assert_eq!(whole(&table, 254, 2), disk);
        assert_eq!(whole(&table, 254, 0), disk);
        assert!(whole(&table, 9, 9).is_err());
    }

    #[test]
    fn a_file_system_without_a_device_is_told() {
        assert!(of(Path::new("/proc")).unwrap_err().contains("not on a block device"));
    }
}
