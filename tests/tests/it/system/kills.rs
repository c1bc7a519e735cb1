//! kill -9 of each part at a bad moment.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::fleet::{Fleet, wait_for};

const SOON: Duration = Duration::from_secs(30);

/// Counts to `last`, a line each 100 ms, and says at the end that it got there.
fn counting(last: u32) -> String {
    format!("for i in $(seq 1 {last}); do echo \"line $i\"; sleep 0.1; done\necho done")
}

fn expected(last: u32) -> String {
    let lines: String = (1..=last).map(|line| format!("line {line}\n")).collect();
    lines + "done\n"
}

/// Processes of this machine whose command line has this text.
fn processes_with(text: &str) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir("/proc").expect("/proc is there").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&command).replace('\0', " ").contains(text) {
            found.insert(pid);
        }
    }
    found.remove(&std::process::id());
    found
}

#[test]
fn a_job_goes_on_and_ends_once_when_its_agent_is_killed_and_started_again() {
    let fleet = Fleet::start();
    let mut agent = fleet.agent("n1");
    fleet.script("count", "", &counting(50));
    wait_for("the job has written something", SOON, || {
        fleet.text(&["logs", "count"]).contains("line 5\n").then_some(())
    });
    agent.kill();
    // The agent is away while the job goes on.
    let away = Instant::now();
    wait_for("the agent has been away for a second", SOON, || {
        (away.elapsed() > Duration::from_secs(1)).then_some(())
    });
    let _agent = fleet.run_agent("n1", &[]);
    let job = fleet.wait_for_phase("count", "Succeeded", SOON);
    assert_eq!(job["status"]["attempts"], 1, "the attempt was taken up again: {job}");
    assert_eq!(fleet.text(&["logs", "count"]), expected(50), "no line is lost or doubled");
    assert_eq!(job["status"]["logsComplete"], true);
}

#[test]
fn the_old_process_is_dead_before_the_new_attempt_starts_when_an_agent_is_gone_for_good() {
    let fleet = Fleet::start();
    let mut first = fleet.agent("n1");
    let marker = format!("98765.{}", std::process::id());
    fleet.script("long", "", &format!("echo attempt $WINDLASS_ATTEMPT\nexec sleep {marker}"));
    fleet.wait_for_phase("long", "Running", SOON);
    let sleeping = format!("sleep {marker}");
    let old = wait_for("the step's process is there", SOON, || {
        Some(processes_with(&sleeping)).filter(|found| !found.is_empty())
    });
    let _second = fleet.agent("n2");
    let killed = Instant::now();
    first.kill();
    let mut seen_alive = true;
    wait_for("another node has the job", Duration::from_secs(60), || {
        seen_alive = old.iter().any(|pid| processes_with(&sleeping).contains(pid));
        let job = fleet.job("long");
        (job["status"]["node"] == "n2" && job["status"]["phase"] == "Running").then_some(())
    });
    let took = killed.elapsed();
    assert!(!seen_alive, "the old process lived while the job was given away");
    assert!(took < Duration::from_secs(37), "recovery took {} s", took.as_secs_f32());
    let job = fleet.job("long");
    assert_eq!(job["status"]["attempts"], 2);
    fleet.text(&["cancel", "long"]);
    fleet.wait_for_phase("long", "Cancelled", SOON);
    wait_for("nothing of the job runs", SOON, || processes_with(&sleeping).is_empty().then_some(()));
}

#[test]
fn nothing_is_lost_and_no_retry_is_charged_when_the_controller_is_away_for_20_s() {
    let mut fleet = Fleet::start();
    let _agent = fleet.agent("n1");
    fleet.script("short", "", &counting(30));
    fleet.script("patient", "  offline: continue\n", &counting(280));
    for name in ["short", "patient"] {
        fleet.wait_for_phase(name, "Running", SOON);
    }
    fleet.controller.kill();
    let away = Instant::now();
    wait_for("the controller has been away for 20 s", Duration::from_secs(40), || {
        (away.elapsed() > Duration::from_secs(20)).then_some(())
    });
    fleet.restart_controller();
    for (name, last) in [("short", 30), ("patient", 280)] {
        let job = fleet.wait_for_phase(name, "Succeeded", Duration::from_secs(90));
        assert_eq!(job["status"]["attempts"], 1, "{job}");
        assert_eq!(fleet.text(&["logs", name]), expected(last), "no line of {name} is lost or doubled");
    }
}

#[test]
fn a_planned_stop_of_the_controller_leaves_running_jobs_alone() {
    // A lease that would end while the controller is away, if it had not granted longer ones when it stopped.
    let mut fleet = Fleet::with(&["--heartbeat", "1s", "--lease", "3s"]);
    let _agent = fleet.agent("n1");
    fleet.script("count", "", &counting(120));
    fleet.wait_for_phase("count", "Running", SOON);
    fleet.controller.signal("TERM");
    wait_for("the controller has ended", SOON, || fleet.controller.has_ended());
    let away = Instant::now();
    wait_for("the controller has been away for 6 s", SOON, || {
        (away.elapsed() > Duration::from_secs(6)).then_some(())
    });
    fleet.restart_controller();
    let job = fleet.wait_for_phase("count", "Succeeded", SOON);
    assert_eq!(job["status"]["attempts"], 1, "{job}");
    assert_eq!(fleet.text(&["logs", "count"]), expected(120));
}

#[test]
fn cancelling_stops_a_job_that_ignores_being_asked() {
    let fleet = Fleet::start();
    let _agent = fleet.agent("n1");
    let marker = format!("87654.{}", std::process::id());
    fleet.script("stubborn", "", &format!("trap '' TERM\nwhile true; do sleep {marker} & wait; done"));
    fleet.wait_for_phase("stubborn", "Running", SOON);
    wait_for("the step's process is there", SOON, || {
        (!processes_with(&format!("sleep {marker}")).is_empty()).then_some(())
    });
    let asked = Instant::now();
    fleet.text(&["cancel", "stubborn"]);
    fleet.wait_for_phase("stubborn", "Cancelled", SOON);
    assert!(asked.elapsed() < Duration::from_secs(10), "it took {} s", asked.elapsed().as_secs_f32());
    assert!(processes_with(&format!("sleep {marker}")).is_empty());
}

#[test]
fn an_agent_that_drains_finishes_what_it_has_and_takes_no_more() {
    let fleet = Fleet::start();
    let mut agent = fleet.agent("n1");
    fleet.script("last", "", &counting(20));
    fleet.wait_for_phase("last", "Running", SOON);
    agent.signal("TERM");
    fleet.script("next", "", "echo no");
    let code = wait_for("the agent has ended", SOON, || agent.has_ended());
    assert_eq!(code, 0, "{}", agent.log());
    assert_eq!(fleet.phase("last"), "Succeeded");
    assert_eq!(fleet.phase("next"), "Queued");
    assert_eq!(fleet.text(&["logs", "last"]), expected(20));
}

#[test]
fn a_second_signal_gives_a_running_job_back_at_once() {
    let fleet = Fleet::start();
    let mut agent = fleet.agent("n1");
    fleet.script("long", "", "echo begun\nsleep 1000");
    wait_for("the job has begun", SOON, || fleet.text(&["logs", "long"]).contains("begun").then_some(()));
    agent.signal("TERM");
    wait_for("the agent drains", SOON, || agent.log().contains("drain").then_some(()));
    agent.signal("TERM");
    wait_for("the agent has ended", SOON, || agent.has_ended());
    let job = fleet.wait_for_phase("long", "Queued", SOON);
    assert_eq!(job["status"]["attempts"], 1);
    let _other = fleet.agent("n2");
    wait_for("another node has the job", SOON, || {
        let job = fleet.job("long");
        (job["status"]["node"] == "n2" && job["status"]["phase"] == "Running").then_some(())
    });
}
