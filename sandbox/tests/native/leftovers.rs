//! Nothing is left: no process, cgroup, mount, descriptor or file.

use std::fs;
use std::path::Path;

use windlass_sandbox::{Driver, Limit, LimitName, Workspace, doctor};

use crate::fixture::{Fixture, eventually, is_root};

/// Cgroup folders of units, anywhere below `dir`.
fn unit_cgroups(dir: &Path, name: &str, found: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        if entry.file_name().to_string_lossy().starts_with(name) {
            found.push(entry.path().display().to_string());
        }
        unit_cgroups(&entry.path(), name, found);
    }
}

/// What this process and its children hold: descriptors, mounts, children. What others mount on the host meanwhile is not
/// counted; the root of a sandbox is known by its source.
fn holdings(dir: &Path) -> (usize, usize, usize) {
    let own = std::process::id();
    let children = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok())
        .filter(|stat| stat.contains("(windlass-unit)"))
        .count();
    let descriptors = fs::read_dir(format!("/proc/{own}/fd")).unwrap().count();
    let dir = dir.to_str().unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mounts = mounts.lines().filter(|line| line.contains(dir) || line.contains(" windlass ")).count();
    (descriptors, mounts, children)
}

#[tokio::test]
async fn fifty_runs_leave_nothing() {
    let fixture = Fixture::new().await;
    let name = format!("left-{}-", std::process::id());
    let run = async |index: usize| {
        let mut unit = fixture.unit(&format!("{name}{index}"), &["bash", "-c", "sleep 100 & echo hi"]);
        unit.limits.memory_bytes = Some(Limit::default_value(64 << 20));
        unit.limits.cpu_millis = Some(Limit::default_value(500));
        unit.limits.pids = Some(Limit::default_value(20));
        assert_eq!(fixture.run(&unit).await.ok(), "hi\n");
        let mut cgroups = Vec::new();
        unit_cgroups(Path::new("/sys/fs/cgroup"), &name, &mut cgroups);
        assert_eq!(cgroups.is_empty(), !fixture.enforces(LimitName::Memory), "{cgroups:?}");
        let supervisor = fixture.supervisor(&unit.id);
        fixture.native.cleanup(&unit.id).await.unwrap();
        supervisor
    };
    // The first run makes what stays for good: the pool's threads and their descriptors. So does the line to the next spare.
    let first = run(0).await;
    eventually(
        "only the next spare",
        || matches!(*fixture.children_of_launcher(), [spare] if spare != first),
    )
    .await;
    let (descriptors, mounts, _) = holdings(fixture.dir.path());
    for index in 1..=50 {
        run(index).await;
    }
    // Tests beside this one in the same process hold descriptors for a while, too.
    eventually("the process to hold no more than before", || {
        let after = holdings(fixture.dir.path());
        after.0 <= descriptors && after.1 == mounts
    })
    .await;
    let mut cgroups = Vec::new();
    unit_cgroups(Path::new("/sys/fs/cgroup"), &name, &mut cgroups);
    assert_eq!(cgroups, Vec::<String>::new());
    let units = fixture.dir.path().join("state/units");
    assert_eq!(fs::read_dir(units).unwrap().count(), 0);
    // A unit's supervisor holds its state folder's path nowhere, so look for children of the launcher.
    eventually("the launcher to have only its spare", || fixture.children_of_launcher().len() == 1).await;
    Workspace::remove(&fixture.dir.path().join("workspaces"), "attempt-1").unwrap();
    assert!(!fixture.workspace.path().exists());
}

#[tokio::test]
async fn the_doctor_finds_this_host_fit_and_leaves_nothing() {
    let fixture = Fixture::new().await;
    let checks = doctor::run(&fixture.native).await;
    for check in &checks {
        let fit = match &check.outcome {
            doctor::Outcome::Ok => true,
            doctor::Outcome::Degraded { fix, .. } => {
                let may_lack = check.id.starts_with("cgroup-") || check.id == "limit-disk";
                !fix.is_empty() && may_lack && !is_root()
            }
            doctor::Outcome::Missing { .. } => false,
        };
        assert!(fit, "{check:?}");
    }
    for id in ["run", "limit-pids", "limit-disk", "limit-time", "limit-files", "network-none"] {
        assert!(checks.iter().any(|check| check.id == id), "{id}");
    }
    for limit in ["cpu", "memory", "io"] {
        let outcome = |id: String| checks.iter().find(|check| check.id == id).map(|check| &check.outcome);
        let has_cgroup = outcome(format!("cgroup-{limit}")) == Some(&doctor::Outcome::Ok);
        assert_eq!(outcome(format!("limit-{limit}")).is_some(), has_cgroup, "{limit}");
    }
    assert_eq!(fixture.native.inventory().await.unwrap(), []);
    let left = fs::read_dir(fixture.dir.path().join("state/doctor")).unwrap().count();
    assert_eq!(left, 0);
    let features = fixture.native.features();
    assert!(features.supported && features.seccomp);
    use windlass_sandbox::Network::{None, Open, Restricted};
    assert_eq!(features.networks, [None, Restricted, Open]);
    assert!(features.interpreters.iter().any(|(name, _)| *name == "bash"));
}
