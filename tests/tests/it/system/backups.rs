//! Backups of a fleet that works, and what becomes of it when one is restored.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use windlass_test_postgres::Server;

use super::fleet::{Fleet, wait_for, windlass};
use super::shared::Shared;

const SOON: Duration = Duration::from_secs(60);

/// What a command says that does not do what it is told, and how it ends.
fn refused(command: &mut Command) -> (i32, String) {
    let output = command.output().expect("the command runs");
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn done(command: &mut Command) -> String {
    let output = command.output().expect("the command runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// `windlass VERB FILE` for the controller of a state folder.
fn verb(verb: &str, file: &Path, state: &Path, store: &[&str]) -> Command {
    let mut command = Command::new(windlass());
    command.arg(verb).arg(file).arg("--state-dir").arg(state).args(store);
    command
}

fn the_work_after_a_backup(store: &[&str]) {
    // Leases are short, so that the hold that is as long as the longest is short, too.
    let mut settings = vec!["--heartbeat", "1s", "--lease", "4s", "--offline-grace", "6s"];
    settings.extend(store);
    let mut fleet = Fleet::with(&settings);
    let nodes = ["n1".to_owned(), "n2".to_owned()];
    let shared = Shared::with(&fleet, &nodes);
    let agents: Vec<_> = nodes.iter().map(|node| fleet.agent(node)).collect();
    let until = |file: &str| format!("until [ -e /workspace/shared/{file} ]; do sleep 0.1; done");
    fleet.apply(&shared.job("long", "", &until("end-long")));
    fleet.apply(&shared.job("ended", "", &until("end-ended")));
    fleet.apply(&shared.job("waits", "  suspend: true\n", ":"));
    for name in ["long", "ended"] {
        fleet.wait_for_phase(name, "Running", SOON);
    }
    let (file, state) = (fleet.path("backup"), fleet.path("controller"));
    let said = done(&mut verb("backup", &file, &state, store));
    assert!(said.contains("3 jobs, 2 nodes"), "{said}");

    // More work, of which the backup knows nothing.
    let end =
        |name: &str| std::fs::write(fleet.path("shared").join(format!("end-{name}")), "").expect("ours");
    end("ended");
    fleet.wait_for_phase("ended", "Succeeded", SOON);
    fleet.apply(&shared.job("unknown", "", &until("never")));
    fleet.wait_for_phase("unknown", "Running", SOON);
    fleet.apply(&shared.job("waits", "", ":"));
    fleet.wait_for_phase("waits", "Succeeded", SOON);
    let version = |field: &str| fleet.json(&["get", "node", "n1"])["status"][field].as_u64().unwrap_or(0);
    for round in 1..=3 {
        fleet.apply(&shared.node("n1", &format!("  labels: {{round: \"{round}\"}}\n")));
    }
    let newest = version("configVersion");
    wait_for("the newest configuration is in force", SOON, || {
        (version("appliedVersion") == newest).then_some(())
    });

    let (_, said) = refused(verb("restore", &file, &state, store).arg("--replace"));
    assert!(said.contains("stop"), "a restore over a controller that works: {said}");
    fleet.controller.signal("TERM");
    wait_for("the controller has ended", SOON, || fleet.controller.has_ended());
    let (code, said) = refused(&mut verb("restore", &file, &state, store));
    assert!(code == 2 && said.contains("--replace"), "{said}");
    let restoring = Instant::now();
    let said = done(verb("restore", &file, &state, store).args(["--replace", "--hold", "8s"]));
    assert!(said.contains("3 jobs, 2 nodes"), "{said}");
    fleet.restart_controller();

    // The agents, which were never told, come back by themselves, and what the backup knows of goes on.
    for node in &nodes {
        fleet.wait_until_node_is_ready(node);
    }
    let version = |field: &str| fleet.json(&["get", "node", "n1"])["status"][field].as_u64().unwrap_or(0);
    assert!(version("configVersion") > newest, "configurations still grow");
    wait_for("the configuration of the backup is in force", SOON, || {
        (version("appliedVersion") == version("configVersion")).then_some(())
    });
    let gone = fleet.cli(&["get", "job", "unknown"]);
    assert!(!gone.status.success(), "a job that was made since is not known");
    wait_for("nothing of it runs on", SOON, || {
        let lock = std::fs::File::open(fleet.path("shared").join("unknown.lock")).expect("it ran");
        lock.try_lock().is_ok().then_some(())
    });
    fleet.wait_for_phase("ended", "Succeeded", SOON);
    assert!(restoring.elapsed() > Duration::from_secs(8), "it waited until no lease could be left");
    let end =
        |name: &str| std::fs::write(fleet.path("shared").join(format!("end-{name}")), "").expect("ours");
    end("long");
    let long = fleet.wait_for_phase("long", "Succeeded", SOON);
    assert_eq!(
        long["status"]["attempts"], 1,
        "an attempt of the backup that its node still had went on: {long}"
    );
    assert_eq!(fleet.phase("waits"), "Queued", "it is suspended, as in the backup");
    fleet.apply(&shared.job("waits", "", ":"));
    fleet.wait_for_phase("waits", "Succeeded", SOON);
    fleet.apply(&shared.job("new", "", ":"));
    fleet.wait_for_phase("new", "Succeeded", SOON);
    assert_eq!(shared.noted("twice"), BTreeMap::new(), "nothing ran twice at once");
    let count = |name: &str, count: usize| (name.to_owned(), count);
    let ends = BTreeMap::from([count("long", 1), count("ended", 2), count("waits", 2), count("new", 1)]);
    assert_eq!(shared.noted("end"), ends, "what had ended after the backup ran once more, and nothing else");
    drop(agents);
}

#[test]
fn what_was_done_after_a_backup_is_done_once_more_at_most_with_sqlite() {
    the_work_after_a_backup(&[]);
}

#[test]
fn what_was_done_after_a_backup_is_done_once_more_at_most_with_postgresql() {
    let database = Server::shared().database();
    the_work_after_a_backup(&["--store", &database.url()]);
    database.remove();
}

/// A state folder that has been in use, and a backup of it.
fn stopped_fleet() -> (Fleet, std::path::PathBuf, std::path::PathBuf) {
    let mut fleet = Fleet::start();
    fleet.script("kept", "  suspend: true\n", "true");
    let (file, state) = (fleet.path("backup"), fleet.path("controller"));
    done(&mut verb("backup", &file, &state, &[]));
    fleet.controller.signal("TERM");
    wait_for("the controller has ended", SOON, || fleet.controller.has_ended());
    (fleet, file, state)
}

#[test]
fn a_restore_that_is_killed_at_any_time_is_made_up_for_by_another() {
    let (mut fleet, file, state) = stopped_fleet();
    for delay in (0..12).map(|n| Duration::from_millis(n * 8)) {
        let mut restoring = verb("restore", &file, &state, &[])
            .arg("--replace")
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("the command runs");
        // Where the kill falls is chance; a test of the controller has each place.
        std::thread::park_timeout(delay);
        restoring.kill().expect("it is ours");
        restoring.wait().expect("it is ours");
        if state.join("restore-incomplete").exists() {
            let (_, said) = refused(
                Command::new(windlass())
                    .args(["controller", "--listen", "127.0.0.1:0", "--state-dir"])
                    .arg(&state),
            );
            assert!(said.contains("`windlass restore` again"), "{said}");
            done(&mut verb("restore", &file, &state, &[]));
        }
        fleet.restart_controller();
        assert_eq!(fleet.phase("kept"), "Queued");
        fleet.controller.signal("TERM");
        wait_for("the controller has ended", SOON, || fleet.controller.has_ended());
    }
}

/// Runs a command where something is mounted that only it sees.
fn in_mounts(mount: &str, folder: &Path, command: &Command) -> Command {
    let mut inside = Command::new("unshare");
    inside.args(["--mount", "--propagation", "private", "sh", "-c"]);
    inside.arg(format!("{mount} && shift && exec \"$@\"")).arg("sh").arg(folder);
    inside.arg(command.get_program()).args(command.get_args());
    inside
}

#[test]
fn a_full_disk_and_a_folder_that_cannot_be_written_are_told_and_leave_nothing_behind() {
    let (fleet, file, state) = stopped_fleet();
    let small = fleet.path("small");
    std::fs::create_dir(&small).expect("the folder can be made");
    // Something that does not fit, and that cannot be compressed.
    let noise: Vec<u8> =
        (0..300_000u64).flat_map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 13).to_le_bytes()).collect();
    std::fs::write(state.join("admin.token"), noise).expect("the folder is ours");
    let backup = verb("backup", &small.join("backup"), &state, &[]);
    let (code, said) =
        refused(&mut in_mounts("mount -t tmpfs -o size=64k,mode=700 none \"$1\"", &small, &backup));
    assert!(code == 1 && said.contains("could not write") && said.contains("No space left"), "{said}");
    let read_only = "mount --bind \"$1\" \"$1\" && mount -o remount,ro,bind \"$1\"";
    let (_, said) = refused(&mut in_mounts(read_only, &small, &backup));
    assert!(said.contains("could not write") && said.contains("Read-only"), "{said}");
    assert_eq!(std::fs::read_dir(&small).expect("ours").count(), 0);
    for mount in ["mount -t tmpfs -o size=64k,mode=700 none \"$1\"", read_only] {
        let restore = verb("restore", &file, &small, &[]);
        let (code, said) = refused(&mut in_mounts(mount, &small, &restore));
        assert!(code == 1, "{said}");
        assert!(
            said.contains("full") || said.contains("No space left") || said.contains("make it writable"),
            "{said}"
        );
    }
    // Where it was full, the next one goes through.
    done(&mut verb("restore", &file, &small, &[]));
}

#[test]
fn a_damaged_backup_is_told_by_a_check() {
    let (_fleet, file, _) = stopped_fleet();
    let said = done(Command::new(windlass()).args(["restore", "--check"]).arg(&file));
    assert!(said.contains("is whole: 1 jobs"), "{said}");
    let mut content = std::fs::read(&file).expect("the file is ours");
    // More than a bit: a compressed file has some that say nothing.
    let middle = content.len() / 2;
    content[middle..middle + 16].iter_mut().for_each(|byte| *byte = !*byte);
    std::fs::write(&file, content).expect("the file is ours");
    let (code, said) = refused(Command::new(windlass()).args(["restore", "--check"]).arg(&file));
    assert!(code == 65 && said.contains("is damaged"), "{said}");
}
