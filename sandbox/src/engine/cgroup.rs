//! What the cgroups of a container count. They go with the container, so they are read while it runs; what happens after the
//! last look is not in the figures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::cgroup::folders_of_process;

/// What was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) cpu_ns: Option<u64>,
    pub(super) peak_memory: Option<u64>,
    pub(super) peak_pids: Option<u64>,
    pub(super) oom_kills: u64,
    /// How often a process was refused.
    pub(super) refused_pids: u64,
}

/// The cgroups of a container.
#[derive(Debug)]
pub(super) struct ContainerCgroups {
    /// By controller; the one of version 2 goes by the empty name.
    folders: BTreeMap<String, PathBuf>,
    counts: Counts,
}

impl ContainerCgroups {
    /// Those of the container's first process, as far as they are the container's own.
    pub(super) fn of(pid: i32, id: &str) -> Self {
        let own = |folder: &Path| folder.to_string_lossy().contains(id);
        let folders = folders_of_process(pid).into_iter().filter(|(_, folder)| own(folder)).collect();
        Self { folders, counts: Counts::default() }
    }

    /// Looks again. Gives what is known by now.
    pub(super) fn look(&mut self) -> Counts {
        let read = |controller: &str, name: &str| {
            let folder = self.folders.get(controller)?;
            std::fs::read_to_string(folder.join(name)).ok()
        };
        let number = |text: Option<String>| text.and_then(|text| text.trim().parse::<u64>().ok());
        let counts = &mut self.counts;
        let cpu = number(read("cpuacct", "cpuacct.usage"))
            .or_else(|| field(&read("", "cpu.stat")?, "usage_usec").map(|micros| micros * 1000));
        counts.cpu_ns = larger(counts.cpu_ns, cpu);
        let memory = number(read("memory", "memory.max_usage_in_bytes"))
            .or_else(|| number(read("", "memory.peak")))
            .or_else(|| number(read("", "memory.current")));
        counts.peak_memory = larger(counts.peak_memory, memory);
        let pids = number(read("pids", "pids.current")).or_else(|| number(read("", "pids.peak")));
        counts.peak_pids = larger(counts.peak_pids, pids.or_else(|| number(read("", "pids.current"))));
        let kills = read("memory", "memory.oom_control").or_else(|| read("", "memory.events"));
        counts.oom_kills = counts.oom_kills.max(kills.and_then(|text| field(&text, "oom_kill")).unwrap_or(0));
        let refused = read("pids", "pids.events").or_else(|| read("", "pids.events"));
        counts.refused_pids =
            counts.refused_pids.max(refused.and_then(|text| field(&text, "max")).unwrap_or(0));
        *counts
    }
}

fn larger(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.max(other)
}

/// A figure of a file with a name and a figure on each line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_generations_are_read_and_figures_never_fall() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let with = |names: &[&str]| ContainerCgroups {
            folders: names.iter().map(|name| ((*name).to_owned(), folder.path().to_owned())).collect(),
            counts: Counts::default(),
        };
        write("cpuacct.usage", "5000\n");
        write("memory.max_usage_in_bytes", "70\n");
        write("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n");
        write("pids.current", "3\n");
        write("pids.events", "max 4\n");
        let mut first = with(&["cpuacct", "memory", "pids"]);
        let expected = Counts {
            cpu_ns: Some(5000),
            peak_memory: Some(70),
            peak_pids: Some(3),
            oom_kills: 2,
            refused_pids: 4,
        };
        assert_eq!(first.look(), expected);
        write("pids.current", "1\n");
        std::fs::remove_file(folder.path().join("cpuacct.usage")).unwrap();
        assert_eq!(first.look(), expected);
        write("cpu.stat", "usage_usec 9\nuser_usec 1\n");
        write("memory.events", "low 0\noom 1\noom_kill 1\n");
        write("memory.peak", "80\n");
        let second = with(&[""]).look();
        assert_eq!((second.cpu_ns, second.peak_memory, second.oom_kills), (Some(9000), Some(80), 1));
    }
}
