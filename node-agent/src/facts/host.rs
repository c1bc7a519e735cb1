//! What the operating system says.

use windlass_crds::facts::{DiskFacts, HostFacts};

/// File systems of one report.
const MOST_DISKS: usize = 64;

/// Looks at the host. What cannot be looked at is noted.
pub(super) async fn look(problems: &mut Vec<String>) -> Option<HostFacts> {
    match tokio::task::spawn_blocking(look_now).await {
        Ok(facts) => Some(facts),
        Err(error) => {
            problems.push(format!("the host cannot be looked at: {error}"));
            None
        }
    }
}

fn look_now() -> HostFacts {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let load = sysinfo::System::load_average();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let os = match (sysinfo::System::distribution_id(), sysinfo::System::os_version()) {
        (id, Some(version)) => format!("{id} {version}"),
        (id, None) => id,
    };
    let mut disks: Vec<DiskFacts> = sysinfo::Disks::new_with_refreshed_list()
        .iter()
        .map(|disk| DiskFacts {
            mount: disk.mount_point().display().to_string(),
            file_system: disk.file_system().to_string_lossy().into_owned(),
            total_bytes: disk.total_space(),
            free_bytes: disk.available_space(),
        })
        .collect();
    disks.sort_by(|one, other| one.mount.cmp(&other.mount));
    disks.dedup_by(|one, other| one.mount == other.mount);
    disks.truncate(MOST_DISKS);
    HostFacts {
        hostname: sysinfo::System::host_name().unwrap_or_default(),
        os,
        kernel: sysinfo::System::kernel_version().unwrap_or_default(),
        uptime_seconds: sysinfo::System::uptime(),
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        load: [load.one, load.five, load.fifteen],
        memory_bytes: system.total_memory(),
        memory_available_bytes: system.available_memory(),
        swap_bytes: system.total_swap(),
        swap_used_bytes: system.used_swap(),
        disks,
    }
}
