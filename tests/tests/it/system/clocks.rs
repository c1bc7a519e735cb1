//! Two controllers on one database whose hosts have wrong clocks: one is ten minutes ahead, the other ten behind. libfaketime gives them
//! these; the steady clock is left alone, as time servers and people leave it.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use windlass_test_postgres::{Database, Server};

use super::fleet::{Fleet, Process, wait_for, windlass};

/// How long something may take that takes a lease of some seconds; much less than the clocks are apart.
const SOON: Duration = Duration::from_secs(60);
/// Short leases, so that one that is lost is soon missed.
const LEASES: [&str; 4] = ["--heartbeat", "2s", "--lease", "6s"];

/// The clock of a controller's host.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Off {
    Ahead,
    Behind,
}

/// What controllers share.
pub(crate) struct Shared {
    folder: TempDir,
    database: Database<'static>,
}

impl Shared {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder for the test");
        for (make, name) in [(["identity", "create"], "identity"), (["secret", "new-key"], "secrets.key")] {
            let made = Command::new(windlass()).args(make).arg(folder.path().join(name)).output();
            assert!(made.expect("the program runs").status.success(), "{make:?}");
        }
        Self { folder, database: Server::shared().database() }
    }

    /// A controller with such a clock.
    pub(crate) fn controller(&self, off: Off, settings: &[&str]) -> Fleet {
        let (url, bodies) = (self.database.url(), format!("file://{}", self.path("bodies").display()));
        let mut all = vec!["--store", &url, "--bodies", &bodies];
        all.extend(LEASES);
        all.extend(settings);
        let key = self.path("secrets.key");
        let library = library();
        let environment = [
            ("LD_PRELOAD", library.to_str().expect("the path is text")),
            ("DONT_FAKE_MONOTONIC", "1"),
            (
                "FAKETIME",
                match off {
                    Off::Ahead => "+10m",
                    Off::Behind => "-10m",
                },
            ),
            ("WINDLASS_SECRETS_KEY_FILE", key.to_str().expect("the path is text")),
        ];
        let fleet = Fleet::sharing(&self.path("identity"), &all, &environment);
        let log = fleet.controller.log();
        assert!(log.contains("this host's clock is not that of the database's server"), "{off:?}: {log}");
        fleet
    }

    /// Ends them, and removes their database.
    pub(crate) fn end(self, controllers: Vec<Fleet>) {
        drop(controllers);
        self.database.remove();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// The library that gives a program another time.
fn library() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let mut found = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    found.find(|library| library.exists()).expect("libfaketime is installed (Debian: faketime)")
}

/// Jobs that a wrong time would end early, keep for too long, or remove.
fn what_hangs_on_time_is_right(fleet: &Fleet, name: &str) {
    let named = |what: &str| format!("{name}-{what}");
    fleet.script(&named("long"), "", "for i in $(seq 100); do sleep 0.1; done");
    fleet.script(&named("kept"), "  ttlAfterFinished: 5m\n", "true");
    fleet.script(&named("goes"), "  ttlAfterFinished: 1s\n", "true");
    let again = "  retry: {failures: 1, backoff: {initial: 1s, max: 1s}}\n";
    fleet.script(&named("again"), again, "exit 1");
    // Longer than a lease.
    let long = fleet.wait_for_phase(&named("long"), "Succeeded", SOON);
    assert_eq!(long["status"]["attempts"], 1, "{long}\n{}", fleet.controller.log());
    let again = fleet.wait_for_phase(&named("again"), "Failed", SOON);
    assert_eq!(again["status"]["attempts"], 2, "{again}");
    wait_for("the job whose time to live is over is gone", SOON, || {
        (!fleet.cli(&["get", "job", &named("goes")]).status.success()).then_some(())
    });
    fleet.wait_for_phase(&named("kept"), "Succeeded", SOON);
}

/// Two controllers, of which the first leads, with a node each; then the first is killed.
fn leading(first: Off, second: Off) {
    let shared = Shared::new();
    let mut one = shared.controller(first, &[]);
    let other = shared.controller(second, &[]);
    let agents: Vec<Process> = [(&one, "n1"), (&other, "n2")].map(|(fleet, name)| fleet.agent(name)).into();
    for (fleet, elsewhere, name) in [(&one, "n2", "one"), (&other, "n1", "two")] {
        fleet.text(&["cordon", elsewhere]);
        what_hangs_on_time_is_right(fleet, name);
        fleet.text(&["uncordon", elsewhere]);
    }
    // The node of the one that is killed cannot reach the other.
    other.text(&["cordon", "n2"]);
    other.script("moves", "", "sleep 3");
    other.wait_for_phase("moves", "Running", SOON);
    one.controller.kill();
    other.text(&["uncordon", "n2"]);
    let moved = other.wait_for_phase("moves", "Succeeded", SOON);
    let status = &moved["status"];
    assert_eq!(
        (&status["attempts"], &status["node"]),
        (&json!(2), &json!("n2")),
        "{}",
        other.controller.log()
    );
    drop(agents);
    shared.end(vec![one, other]);
}

#[test]
fn a_leader_whose_clock_is_ahead_ends_nothing_early_and_is_followed_by_one_that_is_behind() {
    leading(Off::Ahead, Off::Behind);
}

#[test]
fn a_leader_whose_clock_is_behind_keeps_nothing_for_longer_and_is_followed_by_one_that_is_ahead() {
    leading(Off::Behind, Off::Ahead);
}
