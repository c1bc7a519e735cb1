//! The life of containers: stops, leases, restarts of the agent, and what is left behind.

use std::sync::Arc;
use std::time::Duration;

use windlass_sandbox::driver::UnitPhase;
use windlass_sandbox::engine::{Containers, ContainersConfig};
use windlass_sandbox::{Deadline, Driver, EndReason, Error, Lease, Stop, StopReason};
use windlass_test_process::Signal;

use crate::world::{Runtime, World, eventually, finish, printed, program};
use windlass_test_engines::run;

/// What the engine knows of a unit's containers.
pub(crate) fn containers_of(runtime: &Runtime, unit: &str) -> Vec<String> {
    let kind = runtime.kind.unwrap();
    let socket = format!("unix://{}", crate::world::socket(kind).display());
    let mut list = match kind {
        windlass_sandbox::engine::EngineKind::Podman => {
            let mut list = std::process::Command::new("podman");
            list.args(["--remote", "--url", &socket]);
            list
        }
        windlass_sandbox::engine::EngineKind::Docker => {
            let mut list = std::process::Command::new("docker");
            list.args(["-H", &socket]);
            list
        }
    };
    list.args(["ps", "-a", "-q", "--no-trunc", "--filter"]).arg(format!("label=dev.windlass.unit={unit}"));
    run(&mut list).lines().map(str::to_owned).collect()
}

/// The supervisor of a unit, and the container's first process.
fn processes_of(world: &World, runtime: &Runtime, unit: &str) -> (i32, Option<i32>) {
    let folder = world.dir.path().join("containers").join(runtime.name());
    let text = std::fs::read(folder.join("units").join(unit).join("supervisor.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let pid = |name: &str| record[name]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    (pid("supervisor").unwrap(), pid("init"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_gives_the_grace_then_kills_and_proves_it() {
    let world = World::new();
    for runtime in world.engines().await {
        // A program that asks for TERM ends by itself within the grace.
        let polite = world.script(
            &runtime,
            "polite",
            "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.1; done",
        );
        runtime.driver.prepare(&polite).await.unwrap();
        runtime.driver.start(&polite.id).await.unwrap();
        printed(&*runtime.driver, &polite.id, "up\n").await;
        let stop = Stop { grace: Duration::from_secs(60), reason: StopReason::Cancelled };
        runtime.driver.signal(&polite.id, stop).await.unwrap();
        let ran = finish(&*runtime.driver, &polite.id).await;
        assert_eq!((ran.exit.reason, ran.exit.code), (EndReason::Cancelled, Some(3)), "{ran:?}");
        assert!(ran.stdout.ends_with("bye\n"));
        assert_eq!(ran.exit.proof.as_ref().unwrap().kill_sent_at_ms, None, "{ran:?}");
        // One that does not is killed with all that it has started.
        let stubborn = world.script(
            &runtime,
            "stubborn",
            "trap '' TERM; (trap '' TERM; sleep 987) & echo up; sleep 987",
        );
        runtime.driver.prepare(&stubborn).await.unwrap();
        runtime.driver.start(&stubborn.id).await.unwrap();
        printed(&*runtime.driver, &stubborn.id, "up\n").await;
        assert!(matches!(runtime.driver.cleanup(&stubborn.id).await, Err(Error::StillRunning { .. })));
        assert_eq!(containers_of(&runtime, stubborn.id.as_str()).len(), 1);
        let stop = Stop { grace: Duration::from_millis(300), reason: StopReason::Cancelled };
        runtime.driver.signal(&stubborn.id, stop).await.unwrap();
        let ran = finish(&*runtime.driver, &stubborn.id).await;
        assert_eq!((ran.exit.reason, ran.exit.signal), (EndReason::Cancelled, Some(9)), "{ran:?}");
        let proof = ran.exit.proof.unwrap();
        assert!(proof.holds() && proof.kill_sent_at_ms >= proof.term_sent_at_ms, "{proof:?}");
        assert!(containers_of(&runtime, stubborn.id.as_str()).is_empty());
        runtime.driver.cleanup(&stubborn.id).await.unwrap();
        assert!(matches!(runtime.driver.wait(&stubborn.id).await, Err(Error::NotFound { .. })));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_ends_with_its_lease_though_no_agent_is_there() {
    for runtime in World::new().engines().await {
        let world = World::new();
        let runtime = world.engine(runtime.kind.unwrap(), crate::world::socket(runtime.kind.unwrap())).await;
        let lease =
            Lease::create(world.dir.path().join("short"), Deadline::after(Duration::from_secs(600))).unwrap();
        let mut unit = world.script(&runtime, "lease", "echo up; sleep 987; sleep 987");
        unit.lease_file = lease.path().to_owned();
        runtime.driver.prepare(&unit).await.unwrap();
        runtime.driver.start(&unit.id).await.unwrap();
        printed(&*runtime.driver, &unit.id, "up\n").await;
        let (supervisor, init) = processes_of(&world, &runtime, unit.id.as_str());
        let parent = std::fs::read_to_string(format!("/proc/{supervisor}/stat")).unwrap();
        let session: i32 =
            parent.rsplit_once(')').unwrap().1.split_whitespace().nth(3).unwrap().parse().unwrap();
        assert_eq!(session, supervisor, "it is in no session of the agent");
        // The driver is gone, as after a kill of the agent.
        let Runtime { kind, driver, .. } = runtime;
        drop(driver);
        // A deadline only grows for a supervisor that knows a later one, so this one looks at the file when it is stopped from
        // outside; a new unit with a short lease shows the end by the lease itself.
        let again = world.engine(kind.unwrap(), crate::world::socket(kind.unwrap())).await;
        let units = again.driver.inventory().await.unwrap();
        assert!(matches!(units[0].phase, UnitPhase::Running), "{units:?}");
        let short =
            Lease::create(world.dir.path().join("shorter"), Deadline::after(Duration::from_secs(4))).unwrap();
        let mut brief = world.script(&again, "brief", "echo up; trap '' TERM; sleep 987; sleep 987");
        brief.lease_file = short.path().to_owned();
        again.driver.prepare(&brief).await.unwrap();
        again.driver.start(&brief.id).await.unwrap();
        let ran = finish(&*again.driver, &brief.id).await;
        assert_eq!(ran.exit.reason, EndReason::LeaseExpired, "{ran:?}");
        assert!(ran.exit.proof.as_ref().unwrap().holds(), "{ran:?}");
        let stop = Stop { grace: Duration::ZERO, reason: StopReason::LeaseExpired };
        again.driver.signal(&unit.id, stop).await.unwrap();
        let ran = finish(&*again.driver, &unit.id).await;
        assert_eq!((ran.exit.reason, &*ran.stdout), (EndReason::LeaseExpired, "up\n"));
        assert!(!windlass_test_process::is_alive(init.unwrap()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_supervisor_leaves_is_ended_and_removed() {
    let world = World::new();
    for runtime in world.engines().await {
        let unit = world.script(&runtime, "orphan", "echo up; sleep 987; sleep 987");
        runtime.driver.prepare(&unit).await.unwrap();
        runtime.driver.start(&unit.id).await.unwrap();
        printed(&*runtime.driver, &unit.id, "up\n").await;
        let (supervisor, init) = processes_of(&world, &runtime, unit.id.as_str());
        windlass_test_process::send(supervisor, Signal::KILL);
        let ran = finish(&*runtime.driver, &unit.id).await;
        assert_eq!((ran.exit.reason, &*ran.stdout), (EndReason::SupervisorLost, "up\n"), "{ran:?}");
        assert!(ran.exit.proof.as_ref().unwrap().holds(), "{ran:?}");
        assert!(!windlass_test_process::is_alive(init.unwrap()));
        assert!(containers_of(&runtime, unit.id.as_str()).is_empty());
        assert!(runtime.driver.start(&unit.id).await.is_ok(), "it has ended, and is not started again");
        runtime.driver.cleanup(&unit.id).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_no_unit_go_at_the_next_start_and_those_of_others_stay() {
    let (world, other) = (World::new(), World::new());
    for runtime in world.engines().await {
        let kind = runtime.kind.unwrap();
        let beside = other.engine(kind, crate::world::socket(kind)).await;
        let mut units = Vec::new();
        for (place, runtime) in [(&world, &runtime), (&other, &beside)] {
            let unit = place.script(runtime, "left", "echo up; sleep 987; sleep 987");
            runtime.driver.prepare(&unit).await.unwrap();
            runtime.driver.start(&unit.id).await.unwrap();
            printed(&*runtime.driver, &unit.id, "up\n").await;
            units.push(unit);
        }
        let (supervisor, _) = processes_of(&world, &runtime, units[0].id.as_str());
        windlass_test_process::send(supervisor, Signal::KILL);
        eventually("the supervisor's end", || !windlass_test_process::is_alive(supervisor)).await;
        // As if the state of the unit were lost with the disk.
        let state = world.dir.path().join("containers").join(runtime.name());
        std::fs::remove_dir_all(state.join("units").join(units[0].id.as_str())).unwrap();
        assert_eq!(containers_of(&runtime, units[0].id.as_str()).len(), 2);
        let containers = runtime.containers.unwrap();
        let config = ContainersConfig {
            kind,
            socket: crate::world::socket(kind),
            state_dir: state,
            launcher: program(),
        };
        let again: Arc<dyn Driver> = Arc::new(Containers::open(config, containers.info().clone()).unwrap());
        assert_eq!(again.inventory().await.unwrap(), []);
        let left = containers_of(&beside, units[1].id.as_str());
        assert_eq!(left.len(), 1, "the other agent's stays");
        beside
            .driver
            .signal(&units[1].id, Stop { grace: Duration::ZERO, reason: StopReason::Cancelled })
            .await
            .unwrap();
        beside.driver.wait(&units[1].id).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn preparing_twice_is_the_same_and_starting_twice_runs_once() {
    let world = World::new();
    for runtime in world.engines().await {
        let mut unit = world.script(&runtime, "twice", "echo x >> ran; cat ran");
        let prepared = runtime.driver.prepare(&unit).await.unwrap();
        assert_eq!(runtime.driver.prepare(&unit).await.unwrap(), prepared);
        unit.env.insert("A".to_owned(), "b".to_owned());
        assert!(matches!(runtime.driver.prepare(&unit).await, Err(Error::Exists { .. })));
        unit.env.clear();
        let stop = Stop { grace: Duration::ZERO, reason: StopReason::Cancelled };
        assert!(matches!(runtime.driver.signal(&unit.id, stop).await, Err(Error::NotStarted { .. })));
        let (one, other) = tokio::join!(runtime.driver.start(&unit.id), runtime.driver.start(&unit.id));
        one.unwrap();
        other.unwrap();
        let ran = finish(&*runtime.driver, &unit.id).await;
        assert_eq!(ran.ok(), "x\n");
        runtime.driver.start(&unit.id).await.unwrap();
        assert_eq!(std::fs::read_to_string(world.workspace.path().join("ran")).unwrap(), "x\n");
        std::fs::remove_file(world.workspace.path().join("ran")).unwrap();
    }
}
