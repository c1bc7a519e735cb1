//! Containers that somebody else has made: what the engines tell of them, and what they do with them.

use std::time::Duration;

use windlass_sandbox::engine::{Containers, EngineKind, Named, NamedAction, NamedState};
use windlass_test_engines::{Made, run};

use crate::life::containers_of;
use crate::world::{Runtime, World, eventually, printed, socket};

/// Runs until it is told to stop.
const SERVES: &str = "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done";

/// A container of an engine, as somebody else makes it.
struct Other {
    made: Made,
    engine: Containers,
}

impl Other {
    fn new(runtime: &Runtime, name: &str, options: &[&str], script: &str) -> Self {
        let kind = runtime.kind.unwrap();
        let made = Made::new(&kind.to_string(), &socket(kind), name, options, script);
        Self { made, engine: runtime.containers.clone().unwrap() }
    }

    async fn look(&self) -> Named {
        self.engine.named(&self.made.name).await.unwrap().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_started_restarted_and_stopped_by_its_id_as_often_as_it_is_asked() {
    let world = World::new();
    for runtime in world.engines().await {
        let other = Other::new(&runtime, "named", &[], "sleep 987 & trap 'exit 7' TERM; wait");
        let engine = &other.engine;
        let created = other.look().await;
        assert_eq!(
            (created.state, created.started_at.as_deref()),
            (NamedState::Created, None),
            "{created:?}"
        );
        assert_eq!(
            (created.name.as_str(), created.is_ours, &created.health),
            (other.made.name.as_str(), false, &None)
        );
        assert_eq!(engine.named(&created.id).await.unwrap().unwrap(), created);
        engine.act(&created.id, NamedAction::Stop, 5).await.unwrap();
        assert_ne!(other.look().await.state, NamedState::Running);

        engine.act(&created.id, NamedAction::Start, 5).await.unwrap();
        let started = other.look().await;
        assert!(started.state == NamedState::Running && started.started_at.is_some(), "{started:?}");
        engine.act(&created.id, NamedAction::Start, 5).await.unwrap();
        assert_eq!(other.look().await.started_at, started.started_at, "one that runs is left alone");

        engine.act(&created.id, NamedAction::Restart, 5).await.unwrap();
        let restarted = other.look().await;
        assert_eq!((restarted.state, &restarted.id), (NamedState::Running, &started.id));
        assert_ne!(restarted.started_at, started.started_at);

        engine.act(&created.id, NamedAction::Stop, 5).await.unwrap();
        let stopped = other.look().await;
        assert_eq!(stopped.state, NamedState::Exited, "{stopped:?}");
        engine.act(&created.id, NamedAction::Stop, 5).await.unwrap();
        engine.act(&created.id, NamedAction::Restart, 5).await.unwrap();
        assert_eq!(other.look().await.state, NamedState::Running);
        assert_eq!(engine.named("no-such-container").await.unwrap(), None);
        let error = engine.act("no-such-container", NamedAction::Restart, 5).await.unwrap_err();
        assert_eq!(error.kind(), "engine", "{error}");
        assert!(error.to_string().contains("restart a container"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_finishes_a_restart_that_nobody_waits_for() {
    let world = World::new();
    for runtime in world.engines().await {
        // It takes no notice of TERM, so that stopping takes its time.
        let other =
            Other::new(&runtime, "unawaited", &[], "trap '' TERM; touch /tmp/up; while :; do sleep 1; done");
        let id = other.look().await.id;
        other.engine.act(&id, NamedAction::Start, 1).await.unwrap();
        let before = other.look().await.started_at;
        let is_up = || {
            let mut test = other.made.program();
            test.args(["exec", &other.made.name, "test", "-e", "/tmp/up"]).output().unwrap().status.success()
        };
        eventually("the script takes no notice", is_up).await;
        let restart = other.engine.act(&id, NamedAction::Restart, 3);
        let awaited = tokio::time::timeout(Duration::from_secs(1), restart).await;
        assert!(awaited.is_err(), "{}: it takes three seconds: {awaited:?}", runtime.name());
        let mut after = other.look().await;
        for _ in 0..600 {
            if after.state == NamedState::Running && after.started_at != before {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            after = other.look().await;
        }
        assert!(
            after.state == NamedState::Running && after.started_at != before,
            "{}: {after:?}",
            runtime.name()
        );
        // Both engines give ten seconds where nobody says otherwise.
        eventually("the script takes no notice again", is_up).await;
        let quick = other.engine.act(&id, NamedAction::Restart, 1);
        tokio::time::timeout(Duration::from_secs(8), quick)
            .await
            .expect("it was killed after a second")
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_told_with_the_time_of_the_last_check() {
    let world = World::new();
    for runtime in world.engines().await {
        let checks =
            ["--health-cmd", "test -e /tmp/well", "--health-interval", "1s", "--health-retries", "1"];
        let other = Other::new(&runtime, "health", &checks, "sleep 987");
        let id = other.look().await.id;
        other.engine.act(&id, NamedAction::Start, 1).await.unwrap();
        let word_is = async |word: &str| {
            for _ in 0..600 {
                if runtime.kind == Some(EngineKind::Podman) {
                    // Podman leaves the time of its checks to systemd, which need not be here.
                    let mut check = other.made.program();
                    check.args(["healthcheck", "run", &other.made.name]).output().unwrap();
                }
                let found = other.look().await;
                if let Some(health) = found.health.filter(|health| health.word == word) {
                    return (health.last_check.unwrap(), found.started_at.unwrap());
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            panic!("{} is not {word}", other.made.name);
        };
        let (checked, _) = word_is("unhealthy").await;
        let health = other.look().await.health.unwrap();
        assert_eq!(health.interval, Duration::from_secs(1), "{}", runtime.name());
        // A start period of none, and the time of a check that both engines give it.
        assert_eq!(health.first(), Duration::from_secs(31), "{}", runtime.name());
        run(other.made.program().args(["exec", &other.made.name, "touch", "/tmp/well"]));
        let (again, _) = word_is("healthy").await;
        assert_ne!(checked, again, "{}", runtime.name());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_is_removed_when_it_stops_is_told() {
    let world = World::new();
    for runtime in world.engines().await {
        let kept = Other::new(&runtime, "kept", &[], SERVES);
        assert!(!kept.look().await.auto_remove, "{}", runtime.name());
        let other = Other::new(&runtime, "fleeting", &["--rm"], SERVES);
        let created = other.look().await;
        assert!(created.auto_remove, "{}: {created:?}", runtime.name());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_windlass_has_made_is_told_to_be_its_own() {
    let world = World::new();
    for runtime in world.engines().await {
        let unit = world.script(&runtime, "own", "echo up; sleep 987");
        runtime.driver.prepare(&unit).await.unwrap();
        runtime.driver.start(&unit.id).await.unwrap();
        printed(&*runtime.driver, &unit.id, "up\n").await;
        let engine = runtime.containers.as_ref().unwrap();
        for id in containers_of(&runtime, unit.id.as_str()) {
            assert!(engine.named(&id).await.unwrap().unwrap().is_ours, "{}", runtime.name());
        }
        let stop =
            windlass_sandbox::Stop { grace: Duration::ZERO, reason: windlass_sandbox::StopReason::Cancelled };
        runtime.driver.signal(&unit.id, stop).await.unwrap();
        runtime.driver.wait(&unit.id).await.unwrap();
        runtime.driver.cleanup(&unit.id).await.unwrap();
    }
}
