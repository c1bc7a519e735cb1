//! Disk limits that the file system keeps: an image of its own, as root, and project quotas where there are some.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use windlass_sandbox::{DiskMeans, DiskQuota, Driver, EndReason, Limit, Workspace};

use crate::fixture::{Fixture, eventually, is_root, setting};

const MIB: u64 = 1 << 20;
const LIMIT: u64 = 20 * MIB;
const EXACT: DiskQuota = DiskQuota { bytes: LIMIT, exact: true };

/// Where workspaces are kept by which means: an image anywhere, as root; project quotas in the folders that the run was
/// told of, for they need a file system that was mounted with them, and a kernel that has them.
fn places() -> Vec<(PathBuf, DiskMeans)> {
    if !is_root() {
        return Vec::new();
    }
    let told = setting("WINDLASS_TEST_PROJECTS").unwrap_or_default();
    let projects = std::env::split_paths(&told).filter(|path| path.is_absolute());
    let mut places: Vec<_> = projects.map(|path| (path, DiskMeans::ProjectQuota)).collect();
    places.push((std::env::temp_dir(), DiskMeans::Image));
    places
}

/// Loop devices, mounts and files that a workspace root has left.
fn left(root: &Path) -> Vec<String> {
    let mut left: Vec<String> =
        fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path().display().to_string()).collect();
    for device in fs::read_dir("/sys/block").unwrap() {
        let backing = device.unwrap().path().join("loop/backing_file");
        let backing = fs::read_to_string(backing).unwrap_or_default();
        left.extend(backing.contains(root.to_str().unwrap()).then(|| backing.trim().to_owned()));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    left.extend(mounts.lines().filter(|line| line.contains(root.to_str().unwrap())).map(str::to_owned));
    left
}

#[tokio::test]
async fn a_full_file_system_ends_the_unit_and_never_holds_more_than_the_limit() {
    for (place, means) in places() {
        let fixture = Fixture::limited(&place, EXACT).await;
        assert_eq!(fixture.workspace.disk_means(LIMIT), means, "{}", place.display());
        let scripts = [
            // Faster than anybody looks.
            ("many", "for i in $(seq 60); do head -c 1M /dev/zero >f$i || exit 1; done"),
            ("one", "head -c 60M /dev/zero >file"),
            ("deleted", "exec 5>gone; rm gone; head -c 60M /dev/zero >&5; sleep 60"),
            ("inodes", "mkdir e && cd e && for i in $(seq 40); do touch $(seq -f $i-%g 100) || exit 1; done"),
            ("ignored", "head -c 60M /dev/zero >file; sleep 60"),
        ];
        for (name, script) in scripts {
            let mut unit = fixture.unit(name, &["bash", "-c", script]);
            unit.limits.disk_bytes = Some(Limit::named(LIMIT));
            unit.timeout = Some(Duration::from_secs(50));
            let prepared = fixture.native.prepare(&unit).await.unwrap();
            let word = format!("disk by {means}");
            assert!(prepared.isolation.contains(&word), "{:?}", prepared.isolation);
            fixture.native.start(&unit.id).await.unwrap();
            let outcome = fixture.finish(&unit.id).await;
            assert_eq!(outcome.exit.reason, EndReason::DiskLimit, "{} {name}: {outcome:?}", place.display());
            let space = used(fixture.workspace.path());
            assert!(space <= LIMIT, "{} {name}: {space}", place.display());
            fixture.native.cleanup(&unit.id).await.unwrap();
            let clean = fixture.unit(&format!("clean-{name}"), &["bash", "-c", "rm -rf ./*"]);
            fixture.run(&clean).await.ok();
        }
        // What was deleted is free again, and a program that stays below its limit is none the wiser.
        let mut fits =
            fixture.unit("fits", &["bash", "-c", "head -c 15M /dev/zero >file && stat -c %s file"]);
        fits.limits.disk_bytes = Some(Limit::named(LIMIT));
        assert_eq!(fixture.run(&fits).await.ok(), format!("{}\n", 15 * MIB));
        Workspace::remove(&fixture.dir.path().join("workspaces"), "attempt-1").unwrap();
        println!("proved: disk limit by {means} in {}", place.display());
    }
}

/// Bytes that are in use below a workspace, as its file system tells.
fn used(path: &Path) -> u64 {
    let space = rustix::fs::statvfs(path).unwrap();
    (space.f_blocks - space.f_bfree) * space.f_frsize
}

#[tokio::test]
async fn a_job_can_neither_leave_its_project_nor_grow_its_file_system() {
    let program = "import ctypes, fcntl, os, struct, sys\n\
                   libc = ctypes.CDLL(None, use_errno=True)\n\
                   fd = os.open('.', os.O_RDONLY)\n\
                   attributes = bytearray(28)\n\
                   try:\n    fcntl.ioctl(fd, 0x801c581f, attributes)\n\
                   except OSError: pass\n\
                   struct.pack_into('I', attributes, 12, 0)\n\
                   struct.pack_into('I', attributes, 0, 0)\n\
                   try:\n    fcntl.ioctl(fd, 0x401c5820, bytes(attributes))\n    print('left')\n\
                   except OSError as error: print('kept')\n\
                   print(libc.syscall(443, fd, 0x80000802, os.getuid(), None))\n";
    for (place, means) in places() {
        let fixture = Fixture::limited(&place, EXACT).await;
        let output = fixture.python(program).await.ok();
        assert!(output.ends_with("-1\n"), "{output}");
        if means == DiskMeans::ProjectQuota {
            assert_eq!(output, "kept\n-1\n");
        }
        assert_eq!(fixture.workspace.disk_means(LIMIT), means);
        Workspace::remove(&fixture.dir.path().join("workspaces"), "attempt-1").unwrap();
    }
}

#[tokio::test]
async fn nothing_is_left_of_a_workspace_whose_agent_and_supervisor_were_killed() {
    for (place, means) in places() {
        let fixture = Fixture::limited(&place, EXACT).await;
        let root = fixture.dir.path().join("workspaces");
        let mut unit = fixture.unit("orphan", &["bash", "-c", "echo ready; sleep 1000"]);
        unit.limits.disk_bytes = Some(Limit::named(LIMIT));
        unit.limits.pids = Some(Limit::default_value(20));
        fixture.native.prepare(&unit).await.unwrap();
        fixture.native.start(&unit.id).await.unwrap();
        crate::fixture::printed(&fixture.native, &unit.id, "ready").await;
        // A spare that was begun while the workspace was mounted has a copy of that.
        eventually("a spare", || fixture.children_of_launcher().len() == 2).await;
        let supervisor = fixture.supervisor(&unit.id);
        let Fixture { dir, native, workspace, .. } = fixture;
        let launcher = native.spawner_pid();
        drop(workspace);
        for pid in [launcher.cast_signed(), supervisor] {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
        let exit = native.wait(&unit.id).await.unwrap();
        assert_eq!(exit.reason, EndReason::SupervisorLost, "{means}");
        native.cleanup(&unit.id).await.unwrap();
        assert!(Workspace::names(&root).unwrap().contains("attempt-1"));
        Workspace::remove(&root, "attempt-1").unwrap();
        eventually("all of the workspace to be gone", || left(&root).is_empty()).await;
        drop((dir, native));
    }
}

#[tokio::test]
async fn an_image_that_was_begun_before_a_crash_is_found_and_removed() {
    let fixture = Fixture::new().await;
    let root = fixture.dir.path().join("workspaces");
    fs::write(root.join(".half-1.img"), "").unwrap();
    assert_eq!(Workspace::names(&root).unwrap(), ["attempt-1", "half-1"].map(str::to_owned).into());
    Workspace::remove(&root, "half-1").unwrap();
    Workspace::remove(&root, "half-1").unwrap();
    Workspace::remove(&root, "attempt-1").unwrap();
    assert_eq!(left(&root), Vec::<String>::new());
}

#[tokio::test]
async fn an_ordinary_user_and_a_limit_that_nobody_insists_on_are_looked_at() {
    let fixture = Fixture::limited(&std::env::temp_dir(), DiskQuota { exact: !is_root(), ..EXACT }).await;
    assert_eq!(fixture.workspace.disk_means(LIMIT), DiskMeans::Looking);
    let root = fixture.dir.path().join("workspaces");
    Workspace::remove(&root, "attempt-1").unwrap();
    assert_eq!(left(&root), Vec::<String>::new());
}
