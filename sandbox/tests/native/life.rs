//! How units end, and what survives whose death.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use windlass_launcher::record::{self, SupervisorRecord};
use windlass_sandbox::{
    Deadline, Driver, EndReason, Error, Lease, Native, Stop, StopReason, UnitId, UnitPhase, Workspace,
};

use crate::fixture::{Fixture, config, eventually, is_root, printed, processes_with, program, read_all};

/// A stop with a grace.
fn stop(grace_ms: u64) -> Stop {
    Stop { grace: Duration::from_millis(grace_ms), reason: StopReason::Cancelled }
}

/// A word that is in the command line of this test's processes alone.
fn marker(name: &str) -> String {
    format!("marker-{name}-{}", std::process::id())
}

#[tokio::test]
async fn a_polite_program_ends_by_itself_after_term() {
    let fixture = Fixture::new().await;
    let unit =
        fixture.unit("polite", &["bash", "-c", "trap 'echo bye; exit 7' TERM; echo ready; sleep 100 & wait"]);
    fixture.native.prepare(&unit).await.unwrap();
    fixture.native.start(&unit.id).await.unwrap();
    printed(&fixture.native, &unit.id, "ready").await;
    fixture.native.signal(&unit.id, stop(30_000)).await.unwrap();
    let outcome = fixture.finish(&unit.id).await;
    assert_eq!((outcome.exit.reason, outcome.exit.code), (EndReason::Cancelled, Some(7)));
    assert_eq!(outcome.text(), "ready\nbye\n");
    let proof = outcome.exit.proof.unwrap();
    assert!(proof.holds() && proof.term_sent_at_ms.is_some() && proof.kill_sent_at_ms.is_none());
    // A stop of what has ended is no error.
    fixture.native.signal(&unit.id, stop(0)).await.unwrap();
}

#[tokio::test]
async fn a_program_that_ignores_term_is_killed_after_the_grace_with_all_its_children() {
    let fixture = Fixture::new().await;
    let marker = marker("ignore");
    let script = format!(
        "trap '' TERM; setsid bash -c 'trap \"\" TERM; while :; do sleep 1; done' {marker} & echo ready; while :; do sleep 1; done"
    );
    let unit = fixture.unit("stubborn", &["bash", "-c", &script, &marker]);
    fixture.native.prepare(&unit).await.unwrap();
    fixture.native.start(&unit.id).await.unwrap();
    printed(&fixture.native, &unit.id, "ready").await;
    assert!(!processes_with(&marker).is_empty());
    let began = Instant::now();
    fixture.native.signal(&unit.id, stop(300)).await.unwrap();
    let exit = fixture.native.wait(&unit.id).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(300) && began.elapsed() < Duration::from_secs(60));
    assert_eq!((exit.reason, exit.signal), (EndReason::Cancelled, Some(9)));
    assert!(exit.proof.unwrap().holds());
    assert_eq!(processes_with(&marker), Vec::<u32>::new());
}

#[tokio::test]
async fn a_second_stop_may_shorten_the_grace() {
    let fixture = Fixture::new().await;
    let unit =
        fixture.unit("shorten", &["bash", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"]);
    fixture.native.prepare(&unit).await.unwrap();
    fixture.native.start(&unit.id).await.unwrap();
    printed(&fixture.native, &unit.id, "ready").await;
    fixture.native.signal(&unit.id, stop(600_000)).await.unwrap();
    fixture.native.signal(&unit.id, stop(0)).await.unwrap();
    let exit = tokio::time::timeout(Duration::from_secs(60), fixture.native.wait(&unit.id)).await.unwrap();
    assert_eq!(exit.unwrap().reason, EndReason::Cancelled);
}

#[tokio::test]
async fn what_a_program_leaves_behind_dies_with_it_and_does_not_hold_its_output_open() {
    let fixture = Fixture::new().await;
    let marker = marker("daemon");
    let script = format!("(setsid bash -c '(sleep 1000 & exec sleep 1000 {marker})' &) ; echo done");
    let began = Instant::now();
    let outcome = fixture.bash(&script).await;
    assert!(began.elapsed() < Duration::from_secs(60));
    assert_eq!(outcome.ok(), "done\n");
    assert_eq!(processes_with(&marker), Vec::<u32>::new());
}

#[tokio::test]
async fn the_time_limit_ends_a_unit() {
    let fixture = Fixture::new().await;
    let mut unit =
        fixture.unit("slow", &["bash", "-c", "trap '' TERM; echo on; while :; do sleep 0.1; done"]);
    // Time enough for the shell to begin to ignore TERM, also in an emulated machine.
    unit.timeout = Some(Duration::from_millis(2000));
    unit.grace = Duration::from_millis(200);
    let outcome = fixture.run(&unit).await;
    assert_eq!((outcome.exit.reason, outcome.exit.signal), (EndReason::Timeout, Some(9)));
    assert_eq!(outcome.exit.message.as_deref(), Some("time limit of 2000 ms passed"));
    let lived = outcome.exit.ended_at_ms - outcome.exit.started_at_ms.unwrap();
    assert!((2150..20_000).contains(&lived), "{lived}");
}

#[tokio::test]
async fn a_renewed_lease_keeps_a_unit_alive_and_an_expired_one_ends_it() {
    let fixture = Fixture::new().await;
    // Time enough to begin, also in an emulated machine.
    fixture.lease.renew(Deadline::after(Duration::from_secs(3))).unwrap();
    let unit = fixture.unit("leased", &["sleep", "1000"]);
    fixture.native.prepare(&unit).await.unwrap();
    fixture.native.start(&unit.id).await.unwrap();
    let renewed = Deadline::after(Duration::from_secs(4));
    fixture.lease.renew(renewed).unwrap();
    let exit = fixture.native.wait(&unit.id).await.unwrap();
    assert_eq!((exit.reason, exit.signal), (EndReason::LeaseExpired, Some(9)));
    assert_eq!(renewed.remaining(), Duration::ZERO);
    // A unit whose lease is over does not even begin.
    let late = fixture.unit("late", &["touch", "/workspace/late"]);
    fixture.native.prepare(&late).await.unwrap();
    fixture.native.start(&late.id).await.unwrap();
    let exit = fixture.native.wait(&late.id).await.unwrap();
    assert_eq!(exit.reason, EndReason::LeaseExpired);
    assert!(!exit.program_started && !fixture.workspace.path().join("late").exists());
}

/// Starts a unit in a process like an agent, and kills that with -9 once the unit runs.
async fn run_and_lose_the_agent(fixture: &Fixture, dir: &std::path::Path, lease_ms: u64, script: &str) {
    let mut agent = Command::new(program())
        .arg(dir.join("state"))
        .args(["run", "orphan"])
        .arg(fixture.workspace.path())
        .arg(lease_ms.to_string())
        .args(["bash", "-c", script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(agent.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "started");
    agent.kill().unwrap();
    agent.wait().unwrap();
}

#[tokio::test]
async fn a_unit_survives_the_agents_death_and_is_adopted_with_all_its_output() {
    let fixture = Fixture::new().await;
    let dir = tempfile::tempdir().unwrap();
    let script = "for i in $(seq 1 20); do echo line $i; sleep 0.05; done; exit 5";
    run_and_lose_the_agent(&fixture, dir.path(), 60_000, script).await;
    let native = Native::open(config(dir.path())).await.unwrap();
    let units = native.inventory().await.unwrap();
    assert_eq!(units.len(), 1);
    assert_eq!(units[0].phase, UnitPhase::Running);
    let exit = native.wait(&units[0].id).await.unwrap();
    assert_eq!((exit.reason, exit.code), (EndReason::Exited, Some(5)));
    let (stdout, _) = read_all(&native, &units[0].id).await;
    let expected: String = (1..=20).map(|index| format!("line {index}\n")).collect();
    assert_eq!(String::from_utf8(stdout).unwrap(), expected);
    native.cleanup(&units[0].id).await.unwrap();
}

#[tokio::test]
async fn a_unit_does_not_outlive_its_lease_when_the_agent_is_dead() {
    let fixture = Fixture::new().await;
    let dir = tempfile::tempdir().unwrap();
    let marker = marker("lease");
    let began = Instant::now();
    run_and_lose_the_agent(&fixture, dir.path(), 1500, &format!("exec -a {marker} sleep 1000")).await;
    eventually("the program to run", || !processes_with(&marker).is_empty()).await;
    eventually("the program to die", || processes_with(&marker).is_empty()).await;
    assert!(began.elapsed() >= Duration::from_millis(1500));
    let native = Native::open(config(dir.path())).await.unwrap();
    let units = native.inventory().await.unwrap();
    assert!(
        matches!(&units[0].phase, UnitPhase::Ended(exit) if exit.reason == EndReason::LeaseExpired),
        "{units:?}"
    );
    native.cleanup(&units[0].id).await.unwrap();
}

/// The record of a running unit's supervisor.
fn supervisor(fixture: &Fixture, id: &UnitId) -> SupervisorRecord {
    let path = fixture.dir.path().join("state/units").join(id.as_str()).join(record::SUPERVISOR);
    record::read(&path).unwrap().unwrap()
}

fn kill_9(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn nothing_is_left_when_the_supervisor_is_killed() {
    let fixture = Fixture::new().await;
    let marker = marker("lost");
    let script =
        format!("setsid bash -c 'exec -a {marker} sleep 1000' & echo ready; exec -a {marker} sleep 1000");
    let unit = fixture.unit("lost", &["bash", "-c", &script]);
    fixture.native.prepare(&unit).await.unwrap();
    fixture.native.start(&unit.id).await.unwrap();
    printed(&fixture.native, &unit.id, "ready").await;
    eventually("both programs to run", || processes_with(&marker).len() == 2).await;
    let pid = supervisor(&fixture, &unit.id).supervisor.pid;
    let native = fixture.native.clone();
    let id = unit.id.clone();
    let waiting = tokio::spawn(async move { native.wait(&id).await });
    kill_9(pid);
    let outcome = fixture.finish(&unit.id).await;
    assert_eq!(outcome.exit.reason, EndReason::SupervisorLost);
    assert!(outcome.exit.program_started && outcome.exit.proof.as_ref().unwrap().holds());
    assert_eq!(outcome.text(), "ready\n");
    assert_eq!(processes_with(&marker), Vec::<u32>::new());
    assert_eq!(waiting.await.unwrap().unwrap().reason, EndReason::SupervisorLost);
    assert!(matches!(&fixture.native.inventory().await.unwrap()[0].phase, UnitPhase::Ended(_)));
    fixture.native.cleanup(&unit.id).await.unwrap();
}

#[tokio::test]
async fn the_inventory_of_the_next_agent_cleans_up_after_a_lost_supervisor() {
    let fixture = Fixture::new().await;
    let unit = fixture.unit("lost", &["sleep", "1000"]);
    fixture.native.prepare(&unit).await.unwrap();
    fixture.native.start(&unit.id).await.unwrap();
    let record = supervisor(&fixture, &unit.id);
    let state = config(fixture.dir.path());
    let Fixture { dir, native, .. } = fixture;
    drop(native);
    kill_9(record.supervisor.pid);
    let native = open_when_free(state).await;
    eventually("the lock to go", || record::start_time(record.supervisor.pid).is_err()).await;
    let units = native.inventory().await.unwrap();
    assert!(matches!(&units[0].phase, UnitPhase::Ended(exit) if exit.reason == EndReason::SupervisorLost));
    assert_eq!(units[0].notes.len(), 1);
    // It is dead; its entry goes when the host's first process, to which it fell, has reaped it.
    eventually("the first process to be reaped", || record::start_time(record.init.pid).is_err()).await;
    drop(dir);
}

/// Opens a driver on a folder that the last one has just let go.
async fn open_when_free(config: windlass_sandbox::SandboxConfig) -> Native {
    for _ in 0..200 {
        match Native::open(config.clone()).await {
            Err(Error::InUse { .. }) => tokio::time::sleep(Duration::from_millis(50)).await,
            result => return result.unwrap(),
        }
    }
    panic!("the state folder stays in use");
}

#[tokio::test]
async fn the_launcher_process_is_replaced_when_it_dies_and_running_units_go_on() {
    let fixture = Fixture::new().await;
    let unit = fixture.unit("long", &["bash", "-c", "echo ready; read x < <(sleep 1); echo over"]);
    fixture.native.prepare(&unit).await.unwrap();
    fixture.native.start(&unit.id).await.unwrap();
    let first = fixture.native.spawner_pid();
    kill_9(i32::try_from(first).unwrap());
    let outcome = fixture.run(&fixture.unit("next", &["echo", "again"])).await;
    assert_eq!(outcome.ok(), "again\n");
    assert_ne!(fixture.native.spawner_pid(), first);
    assert_eq!(fixture.finish(&unit.id).await.ok(), "ready\nover\n");
}

#[tokio::test]
async fn the_first_unit_of_the_next_attempt_starts_on_the_spare_and_another_spare_is_made() {
    let fixture = Fixture::new().await;
    let spare = fixture.spare(&[]).await;
    let first = fixture.unit("first", &["echo", "quick"]);
    assert_eq!(fixture.run(&first).await.ok(), "quick\n");
    assert_eq!(fixture.supervisor(&first.id), spare);
    let another = fixture.spare(&[&first.id]).await;

    // Root gives the next attempt another user, so this one's second unit does not take what was made for that.
    let second = fixture.unit("second", &["echo", "again"]);
    assert_eq!(fixture.run(&second).await.ok(), "again\n");
    assert_eq!(fixture.supervisor(&second.id) == another, !is_root());
    let next = fixture.native.identities().acquire("attempt-2").unwrap();
    let workspaces = fixture.dir.path().join("workspaces");
    let workspace = Workspace::create(&workspaces, "attempt-2", next).unwrap();
    let spare = fixture.spare(&[&first.id, &second.id]).await;
    let mut unit = fixture.unit("next", &["id", "-u"]);
    (unit.identity, unit.workspace) = (next, workspace.path().to_owned());
    assert_eq!(fixture.run(&unit).await.ok(), "1000\n");
    assert_eq!(fixture.supervisor(&unit.id), spare);
}

#[tokio::test]
async fn a_spare_that_died_costs_no_unit_and_units_that_were_prepared_for_one_spare_all_run() {
    let fixture = Fixture::new().await;
    kill_9(fixture.spare(&[]).await);
    let first = fixture.unit("first", &["echo", "all the same"]);
    assert_eq!(fixture.run(&first).await.ok(), "all the same\n");

    fixture.spare(&[&first.id]).await;
    let identity = fixture.native.identities().acquire("attempt-2").unwrap();
    let workspace = Workspace::create(&fixture.dir.path().join("workspaces"), "attempt-2", identity).unwrap();
    let units = ["a", "b", "c"].map(|name| {
        let mut unit = fixture.unit(name, &["echo", name]);
        (unit.identity, unit.workspace) = (identity, workspace.path().to_owned());
        unit
    });
    for unit in &units {
        fixture.native.prepare(unit).await.unwrap();
    }
    for unit in &units {
        fixture.native.start(&unit.id).await.unwrap();
    }
    for unit in &units {
        assert_eq!(fixture.finish(&unit.id).await.ok(), format!("{}\n", unit.command[1]));
    }
}

#[tokio::test]
async fn a_spare_serves_without_its_launcher_and_ends_with_its_driver() {
    let fixture = Fixture::new().await;
    let spare = fixture.spare(&[]).await;
    let launcher = fixture.native.spawner_pid();
    kill_9(i32::try_from(launcher).unwrap());
    assert!(record::start_time(spare).is_ok());
    let after = fixture.unit("after", &["true"]);
    assert!(fixture.run(&after).await.exit.succeeded());
    eventually("another launcher", || fixture.native.spawner_pid() != launcher).await;
    let spare = fixture.spare(&[&after.id]).await;
    drop(fixture.native);
    eventually("the spare to end", || record::start_time(spare).is_err()).await;
}

#[tokio::test]
async fn how_a_unit_ended_is_kept_though_the_disk_fills_up_while_it_runs() {
    if !is_root() {
        // An ordinary user cannot mount a small disk.
        return;
    }
    let disk = SmallDisk::mount();
    let fixture = Fixture::with(|config| config.state_dir = disk.0.path().join("state")).await;
    let unit = fixture.unit("full", &["bash", "-c", "until [ -e go ]; do sleep 0.02; done; exit 7"]);
    fixture.native.prepare(&unit).await.unwrap();
    fixture.native.start(&unit.id).await.unwrap();
    let junk = fs::File::create(disk.0.path().join("junk")).unwrap();
    let full = std::io::Write::write_all(&mut &junk, &vec![1; 8 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    fs::write(fixture.workspace.path().join("go"), "").unwrap();
    let exit = fixture.native.wait(&unit.id).await.unwrap();
    assert_eq!((exit.reason, exit.code), (EndReason::Exited, Some(7)), "{exit:?}");
    fixture.native.cleanup(&unit.id).await.unwrap();
}

/// A file system of 4 MiB.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", "size=4m,mode=0711", "small"]).arg(dir.path());
        assert!(command.status().unwrap().success());
        Self(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[tokio::test]
async fn verbs_can_be_repeated_and_come_in_order() {
    let fixture = Fixture::new().await;
    let unit = fixture.unit("again", &["bash", "-c", "echo run >> log; sleep 0.3"]);
    let id = unit.id.clone();
    let native = &fixture.native;
    assert!(matches!(native.start(&id).await, Err(Error::NotFound { .. })));
    assert!(matches!(native.wait(&id).await, Err(Error::NotFound { .. })));
    let prepared = native.prepare(&unit).await.unwrap();
    assert_eq!(native.prepare(&unit).await.unwrap(), prepared);
    let mut other = unit.clone();
    other.command.push("x".into());
    assert!(matches!(native.prepare(&other).await, Err(Error::Exists { .. })));
    assert!(matches!(native.wait(&id).await, Err(Error::NotStarted { .. })));
    assert!(matches!(native.signal(&id, stop(0)).await, Err(Error::NotStarted { .. })));
    assert_eq!(native.inventory().await.unwrap()[0].phase, UnitPhase::Prepared);
    let (one, two) = tokio::join!(native.start(&id), native.start(&id));
    one.unwrap();
    two.unwrap();
    assert!(matches!(native.cleanup(&id).await, Err(Error::StillRunning { .. })));
    assert!(native.wait(&id).await.unwrap().succeeded());
    native.start(&id).await.unwrap();
    assert_eq!(fs::read_to_string(fixture.workspace.path().join("log")).unwrap(), "run\n");
    native.cleanup(&id).await.unwrap();
    native.cleanup(&id).await.unwrap();
    assert_eq!(native.inventory().await.unwrap(), []);
    assert!(matches!(native.signal(&id, stop(0)).await, Err(Error::NotFound { .. })));
}

#[tokio::test]
async fn a_wait_that_is_dropped_can_be_repeated() {
    let fixture = Fixture::new().await;
    let unit = fixture.unit("wait", &["sleep", "0.5"]);
    fixture.native.prepare(&unit).await.unwrap();
    fixture.native.start(&unit.id).await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(50), fixture.native.wait(&unit.id)).await;
    assert!(early.is_err());
    assert!(fixture.native.wait(&unit.id).await.unwrap().succeeded());
}

#[tokio::test]
async fn a_state_folder_has_one_driver() {
    let fixture = Fixture::new().await;
    let second = Native::open(config(fixture.dir.path())).await;
    assert!(matches!(second, Err(Error::InUse { .. })));
}

#[tokio::test]
async fn a_missing_lease_is_refused_before_anything_is_made() {
    let fixture = Fixture::new().await;
    let mut unit = fixture.unit("no-lease", &["true"]);
    unit.lease_file = fixture.dir.path().join("nowhere");
    assert!(matches!(fixture.native.prepare(&unit).await, Err(Error::Io { .. })));
    fs::write(&unit.lease_file, "not a lease, really").unwrap();
    assert!(matches!(fixture.native.prepare(&unit).await, Err(Error::Corrupt { .. })));
    assert_eq!(fixture.native.inventory().await.unwrap(), []);
    drop(Lease::open(fixture.lease.path()).unwrap());
}

#[tokio::test]
async fn what_sandboxes_begin_with_is_made_anew_however_often_spares_are_used() {
    if !is_root() {
        // An ordinary user has only spares.
        return;
    }
    let fixture = Fixture::with(|config| config.spare_life = Duration::from_secs(1)).await;
    let launcher = fixture.native.spawner_pid();
    let namespaces = || -> BTreeSet<PathBuf> {
        let open = fs::read_dir(format!("/proc/{launcher}/fd")).unwrap();
        let targets = open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
        targets.filter(|target| target.to_string_lossy().starts_with("mnt:")).collect()
    };
    eventually("a template beside the launcher's own mounts", || namespaces().len() == 2).await;
    // The first spare is for the fixture's own attempt.
    let unit = fixture.unit("first", &["true"]);
    assert!(fixture.run(&unit).await.exit.succeeded());
    let (began, first) = (Instant::now(), namespaces());
    let mut index = 0;
    while namespaces() == first {
        assert!(began.elapsed() < Duration::from_secs(15), "it was never made anew, in {index} units");
        index += 1;
        let name = format!("many-{index}");
        fixture.spare(&[]).await;
        let identity = fixture.native.identities().acquire(&name).unwrap();
        let workspace = Workspace::create(&fixture.dir.path().join("workspaces"), &name, identity).unwrap();
        let mut unit = fixture.unit(&name, &["true"]);
        (unit.identity, unit.workspace) = (identity, workspace.path().to_owned());
        assert!(fixture.run(&unit).await.exit.succeeded());
        fixture.native.cleanup(&unit.id).await.unwrap();
        fixture.native.identities().release(&name).unwrap();
    }
}
