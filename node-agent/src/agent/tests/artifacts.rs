//! What attempts leave, through crashes, outages and refusals.

use windlass_crds::protocol::{Artifact, SecretBytes, SecretValue};

use super::*;

const LEFT: [(&str, &[u8]); 3] = [("a/report.md", b"# Report"), ("b.bin", b"\0\x01"), ("c.pipe", b"")];

/// A world whose job `a` leaves artifacts.
fn world() -> World {
    let world = World::new();
    world.sandbox.leave("a-1", &LEFT);
    world
}

/// What waits on the node's disk.
fn waiting(world: &World) -> Vec<String> {
    let Ok(folders) = std::fs::read_dir(world.artifacts.path().join("artifacts")) else { return Vec::new() };
    let mut found: Vec<String> = folders
        .flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap())
        .map(|file| file.unwrap().path().strip_prefix(world.artifacts.path()).unwrap().display().to_string())
        .collect();
    found.sort();
    found
}

fn manifest(world: &World, job: &str) -> Vec<Artifact> {
    let bodies = world.controller.state().bodies(job);
    let told = bodies.into_iter().filter_map(|body| match body {
        RecordBody::Artifacts { items } => Some(items),
        _ => None,
    });
    told.flatten().collect()
}

/// That the controller has all that job `a` has left, and the node nothing of it.
fn check_delivered(world: &World, context: &str) {
    let items = manifest(world, "a");
    let names: Vec<_> =
        items.iter().map(|item| (item.number, item.name.as_str(), item.refused.is_some())).collect();
    assert_eq!(names, [(1, "a/report.md", false), (2, "b.bin", false), (3, "c.pipe", true)], "{context}");
    let state = world.controller.state();
    let bodies: Vec<_> = state
        .artifacts
        .iter()
        .map(|((of, number), body)| (of.job.as_str(), *number, body.as_slice()))
        .collect();
    assert_eq!(bodies, [("a", 1, LEFT[0].1), ("a", 2, LEFT[1].1)], "{context}");
    drop(state);
    assert_eq!(waiting(world), Vec::<String>::new(), "{context}");
}

#[tokio::test(start_paused = true)]
async fn what_a_job_leaves_is_told_before_its_end_and_sent() {
    let world = world();
    let terminal = world.run_job(steps("a", &[&["out x"]])).await;
    assert_eq!(terminal.phase, TerminalPhase::Succeeded);
    let story = world.controller.state().story("a");
    let last: Vec<&str> = story.iter().rev().take(3).rev().map(String::as_str).collect();
    assert_eq!(
        last,
        ["artifacts a/report.md b.bin c.pipe", "event ArtifactsRefused", "Succeeded Completed"],
        "{story:?}"
    );
    check_delivered(&world, "");
    let first = &manifest(&world, "a")[0];
    assert_eq!(first.sha256, Some(crate::capabilities::sha256_text(LEFT[0].1).replace("sha256:", "")));
    assert_eq!(world.controller.state().sent.len(), 2, "each once");
}

#[tokio::test(start_paused = true)]
async fn what_is_there_is_kept_however_the_attempt_ends() {
    let commands: [(&str, &[&str], TerminalPhase); 3] = [
        ("failed", &["exit 3"], TerminalPhase::Failed),
        ("timed out", &["sleep 60000"], TerminalPhase::TimedOut),
        ("cancelled", &["sleep 60000"], TerminalPhase::Cancelled),
    ];
    for (how, command, phase) in commands {
        let world = world();
        let mut job = steps("a", &[command]);
        if how == "timed out" {
            job.spec.timeout = Some(Span::from_secs(5));
        }
        world.controller.assign(job);
        let run = world.start();
        if how == "cancelled" {
            world.until("the step", || !world.sandbox.running().is_empty()).await;
            world.controller.change(|state| state.cancelled.insert(id("a")));
        }
        assert_eq!(world.controller.terminal("a").await.phase, phase, "{how}");
        run.drain().await;
        check_delivered(&world, how);
        world.check();
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_leaves_nothing_says_nothing_of_it() {
    let world = World::new();
    world.run_job(steps("a", &[&["true"]])).await;
    assert_eq!(manifest(&world, "a"), []);
    assert!(!world.artifacts.path().join("artifacts").exists(), "and touches no disk");
}

#[tokio::test(start_paused = true)]
async fn a_manifest_of_many_comes_in_several_records() {
    let world = World::new();
    let names: Vec<String> = (0..150).map(|number| format!("{number:03}")).collect();
    let left: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), name.as_bytes())).collect();
    world.sandbox.leave("a-1", &left);
    world.run_job(steps("a", &[&["true"]])).await;
    let items = manifest(&world, "a");
    assert!(items.iter().map(|item| item.number).eq(1..=150));
    assert_eq!(world.controller.state().artifacts.len(), 150);
}

#[tokio::test(start_paused = true)]
async fn artifacts_wait_for_the_controller_and_hold_neither_slot_nor_workspace() {
    let mut world = world();
    world.concurrency = 1;
    let run = world.start();
    let mut status = run.status.clone();
    status.wait_for(|status| status.up).await.unwrap();
    // Nothing but heartbeats and claims gets through.
    world.controller.change(|state| state.reports_down = true);
    world.controller.assign(steps("a", &[&["true"]]));
    world.controller.assign(steps("b", &[&["sleep 1000"]]));
    let unit = unit_id(&id("b"), 0);
    world
        .until("the next job has the slot", || world.sandbox.starts().iter().any(|(of, _)| *of == unit))
        .await;
    assert!(!world.sandbox.homes().contains_key("a-1"), "its workspace is gone");
    assert_eq!(
        waiting(&world),
        ["artifacts/a-1/1", "artifacts/a-1/2", "artifacts/a-1/manifest.json"],
        "what it has left is not"
    );
    assert!(world.controller.state().sent.is_empty(), "no body comes before its manifest");
    run.crash().await;
    let run = world.start();
    tokio::time::sleep(secs(60)).await;
    assert_eq!(waiting(&world).len(), 3);
    world.controller.change(|state| {
        state.reports_down = false;
        state.refuse_artifacts = [503, 503, 0].into();
    });
    // The pauses between tries are longer than an agent that ends would wait.
    world.until("everything is there", || waiting(&world).is_empty()).await;
    run.drain().await;
    check_delivered(&world, "");
    assert_eq!(world.controller.state().sent.len(), 5, "{:?}", world.controller.state().sent);
    world.check();
}

#[tokio::test(start_paused = true)]
async fn what_the_controller_will_not_take_is_a_gap_and_holds_up_nothing() {
    let world = world();
    // A body that is not what its manifest says.
    world.controller.change(|state| state.refuse_artifacts = [422].into());
    world.run_job(steps("a", &[&["true"]])).await;
    {
        let state = world.controller.state();
        let kept: Vec<u32> = state.artifacts.keys().map(|(_, number)| *number).collect();
        assert_eq!(kept, [2]);
        assert_eq!(
            (state.lost.len(), &state.lost[0].attempt, state.lost[0].lost[0].number),
            (1, &id("a"), 1)
        );
        assert!(state.lost[0].lost[0].reason.contains("because"), "{:?}", state.lost);
    }
    assert_eq!(waiting(&world), Vec::<String>::new());

    // For a reason that this agent does not know, but again and again.
    let world = self::world();
    world.controller.change(|state| state.refuse_artifacts = [400; 5].into());
    world.run_job(steps("a", &[&["true"]])).await;
    assert_eq!(world.controller.state().lost[0].lost[0].number, 1);
    assert_eq!(world.controller.state().artifacts.len(), 1);

    // A job that was deleted meanwhile.
    let world = self::world();
    world.controller.change(|state| state.refuse_artifacts = [404].into());
    world.run_job(steps("a", &[&["true"]])).await;
    assert!(world.controller.state().artifacts.is_empty() && world.controller.state().lost.is_empty());
    assert_eq!(waiting(&world), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_body_that_always_fails_holds_up_no_other_attempt() {
    let world = world();
    world.sandbox.leave("b-1", &[("two", b"0123456789ab")]);
    world.controller.change(|state| state.fail_artifacts = [id("a")].into());
    let run = world.start();
    world.controller.assign(steps("a", &[&["true"]]));
    world.controller.until("it fails", |state| (!state.sent.is_empty()).then_some(())).await;
    world.controller.assign(steps("b", &[&["true"]]));
    let of_b =
        |state: &crate::testing::controller::State| state.artifacts.contains_key(&(id("b"), 1)).then_some(());
    world.controller.until("the other's is there", of_b).await;
    assert_eq!(world.controller.state().artifacts.len(), 1);
    world.controller.change(|state| state.fail_artifacts.clear());
    world.controller.until("it is there too", |state| (state.artifacts.len() == 3).then_some(())).await;
    run.drain().await;
    assert_eq!(waiting(&world), Vec::<String>::new());
}

/// A job that leaves more than a node can look at ends all the same.
#[tokio::test(start_paused = true)]
async fn collecting_that_does_not_end_is_ended_when_the_job_is_cancelled() {
    let world = World::new();
    let begun = world.sandbox.leave_without_end("a-1");
    world.controller.assign(steps("a", &[&["true"]]));
    let run = world.start();
    // Time does not pass by itself while something blocks.
    let pass = async |time| {
        tokio::time::advance(time).await;
        tokio::task::yield_now().await;
    };
    while !begun.load(std::sync::atomic::Ordering::SeqCst) {
        pass(Duration::from_millis(1)).await;
    }
    world.controller.change(|state| state.cancelled.insert(id("a")));
    while world.controller.state().terminal("a").is_none() {
        pass(Duration::from_millis(100)).await;
    }
    run.drain().await;
    let items = manifest(&world, "a");
    let ends = items.iter().filter_map(|item| {
        item.refused.as_deref()?.strip_prefix("what comes after these was not collected: ")
    });
    assert_eq!(ends.collect::<Vec<_>>(), ["the job was cancelled meanwhile"]);
    world.check();
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_damaged_on_the_disk_is_told_to_be_lost() {
    let world = world();
    world.controller.change(|state| state.reports_down = true);
    world.controller.assign(steps("a", &[&["true"]]));
    let run = world.start();
    world.until("it waits", || waiting(&world).len() == 3).await;
    world
        .until("the job is gone", || world.sandbox.homes().is_empty() && !world.sandbox.starts().is_empty())
        .await;
    std::fs::write(world.artifacts.path().join("artifacts/a-1/1"), "#").unwrap();
    world.controller.change(|state| state.reports_down = false);
    run.drain().await;
    let state = world.controller.state();
    assert_eq!(state.artifacts.keys().map(|(_, number)| *number).collect::<Vec<_>>(), [2]);
    assert!(state.lost[0].lost[0].reason.contains("it has 1 bytes, not 8"), "{:?}", state.lost);
}

#[tokio::test(start_paused = true)]
async fn where_too_much_waits_the_oldest_is_dropped_and_told_to_be() {
    let mut world = World::new();
    world.artifact_bytes = 20;
    world.sandbox.leave("a-1", &[("one", b"0123456789")]);
    world.sandbox.leave("b-1", &[("two", b"0123456789ab")]);
    let run = world.start();
    world.controller.change(|state| state.reports_down = true);
    for job in ["a", "b"] {
        world.controller.assign(steps(job, &[&["true"]]));
        let home = format!("artifacts/{job}-1/manifest.json");
        world.until("it waits", || waiting(&world).contains(&home)).await;
    }
    world
        .until("the first is dropped", || waiting(&world).contains(&"artifacts/a-1/lost.json".to_owned()))
        .await;
    world.controller.change(|state| state.reports_down = false);
    run.drain().await;
    let state = world.controller.state();
    assert_eq!(state.artifacts.keys().map(|(of, _)| of.job.as_str()).collect::<Vec<_>>(), ["b"]);
    assert_eq!(state.lost[0].attempt, id("a"));
    assert!(state.lost[0].lost[0].reason.contains("--artifacts-mib"), "{:?}", state.lost);
}

#[tokio::test(start_paused = true)]
async fn a_secret_leaves_the_node_in_no_artifact() {
    const SECRET: &str = "swordfish-of-the-deep";
    let world = World::new();
    let leak = format!("the password is {SECRET}");
    world.sandbox.leave("a-1", &[("clean.txt", b"clean"), ("leak.txt", leak.as_bytes()), (SECRET, b"x")]);
    let mut job = steps("a", &[&["true"]]);
    job.secrets = vec![SecretValue {
        name: "db".to_owned(),
        key: "password".to_owned(),
        value: Some(SecretBytes::new(SECRET.as_bytes().to_vec())),
        problem: None,
    }];
    // Nothing gets out, so that what is on the disk can be looked at.
    world.controller.change(|state| state.reports_down = true);
    world.controller.assign(job);
    let run = world.start();
    world.until("it waits", || !waiting(&world).is_empty() && world.sandbox.homes().is_empty()).await;
    for path in waiting(&world) {
        let content = std::fs::read(world.artifacts.path().join(&path)).unwrap();
        assert!(!String::from_utf8_lossy(&content).contains(SECRET), "{path}");
    }
    world.controller.change(|state| state.reports_down = false);
    run.drain().await;
    let items = manifest(&world, "a");
    let told = serde_json::to_string(&world.controller.state().bodies("a")).unwrap();
    assert!(!told.contains(SECRET), "{told}");
    let refused: Vec<_> = items.iter().map(|item| (item.name.as_str(), item.refused.as_deref())).collect();
    assert_eq!(refused[0], ("clean.txt", None));
    assert!(
        refused[1].0 == "leak.txt" && refused[1].1.unwrap().contains("the secret `db/password`"),
        "{refused:?}"
    );
    assert!(refused[2].0 == "***" && refused[2].1.unwrap().contains("its name holds"), "{refused:?}");
    assert_eq!(world.controller.state().artifacts.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_takes_nothing_costs_the_artifacts_and_not_the_job() {
    let world = world();
    // Something is in the place of the folder.
    std::fs::write(world.artifacts.path().join("artifacts"), "").unwrap();
    let refused = world.start().failed().await;
    assert_eq!(refused.kind(), "artifacts");
    std::fs::remove_file(world.artifacts.path().join("artifacts")).unwrap();
    world.controller.assign(steps("a", &[&["sleep 1000"]]));
    let run = world.start();
    world.until("the step", || !world.sandbox.running().is_empty()).await;
    std::fs::write(world.artifacts.path().join("artifacts"), "").unwrap();
    assert_eq!(world.controller.terminal("a").await.phase, TerminalPhase::Succeeded);
    run.drain().await;
    let story = world.controller.state().story("a");
    assert!(story.contains(&"event ArtifactsNotCollected".to_owned()), "{story:?}");
}

/// Crashes at every changing operation on the agent's files, in each of three ways, and starts again.
#[tokio::test(start_paused = true)]
async fn a_crash_at_any_write_loses_no_artifact_and_tells_of_none_twice() {
    let job = || steps("a", &[&["out one", "sleep 2000"]]);
    let operations = {
        let world = world();
        world.run_job(job()).await;
        world.fs.operations()
    };
    for crash in [Crash::Before, Crash::Within, Crash::After] {
        for at in 1..=operations {
            let world = world();
            world.fs.crash_at(at, crash);
            world.controller.assign(job());
            let run = world.start();
            let everything_is_there = async {
                world.controller.terminal("a").await;
                world
                    .controller
                    .until("the bodies", |state| (state.artifacts.len() == 2).then_some(()))
                    .await;
            };
            tokio::select! {
                biased;
                () = world.fs.crashed() => {}
                () = everything_is_there => {}
            }
            run.crash().await;
            world.fs.restart();
            let lost = world.controller.state().queue.is_empty()
                && !world.fs.paths().iter().any(|path| path.starts_with("ledger/"))
                && world.controller.state().records.is_empty()
                && world.sandbox.starts().is_empty();
            if lost && !unsent(&world).await {
                // A claim that was granted and never noted is the controller's to give again; it is as new.
                continue;
            }
            let run = world.start();
            let context = format!("{crash:?} at {at}: {:?}", world.controller.state().story("a"));
            assert_eq!(world.controller.terminal("a").await.phase, TerminalPhase::Succeeded, "{context}");
            run.drain().await;
            check_delivered(&world, &context);
            world.check();
        }
    }
}

/// A crash that lets a part of a manifest of many records through, and not the end of the attempt.
#[tokio::test(start_paused = true)]
async fn a_manifest_of_which_a_part_was_written_is_told_on_from_there() {
    let names: Vec<String> = (0..150).map(|number| format!("{number:03}")).collect();
    let left: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), name.as_bytes())).collect();
    let world = || {
        let world = World::new();
        world.sandbox.leave("a-1", &left);
        world
    };
    let whole = world();
    whole.run_job(steps("a", &[&["true"]])).await;
    let mut parts = 0;
    for at in 1..=whole.fs.operations() {
        let world = world();
        world.fs.crash_at(at, Crash::Within);
        world.controller.assign(steps("a", &[&["true"]]));
        let run = world.start();
        tokio::select! {
            biased;
            () = world.fs.crashed() => {}
            _ = world.controller.terminal("a") => {}
        }
        run.crash().await;
        world.fs.restart();
        let (outbox, _) = Outbox::open(world.fs.clone()).await.unwrap();
        let progress = outbox.progress().remove(&id("a")).unwrap_or_default();
        if progress.artifacts == 0 || progress.terminal.is_some() {
            continue;
        }
        parts += 1;
        assert!(progress.artifacts < 150, "{}", progress.artifacts);
        let run = world.start();
        world.controller.terminal("a").await;
        run.drain().await;
        assert!(manifest(&world, "a").iter().map(|item| item.number).eq(1..=150));
        assert_eq!(world.controller.state().artifacts.len(), 150);
        world.check();
    }
    assert_eq!(parts, 1, "there is one such write");
}

/// Crashes at random moments around the end of a job, while bodies are refused and answers get lost.
#[test]
fn crashes_at_any_moment_lose_no_artifact() {
    use proptest::prelude::*;
    let crashes = proptest::collection::vec(0..40_u64, 0..8);
    let answers = proptest::collection::vec(prop_oneof![Just(0_u16), Just(503)], 0..4);
    let mut runner = TestRunner::new(ProptestConfig { cases: 60, ..ProptestConfig::default() });
    let result = runner.run(&(crashes, answers), |(crashes, answers)| {
        block_on(async move {
            let world = world();
            world.controller.change(|state| state.refuse_artifacts = answers.into());
            let mut run = world.start();
            let mut status = run.status.clone();
            status.wait_for(|status| status.up).await.unwrap();
            world.controller.assign(steps("a", &[&["out one", "sleep 20"]]));
            world.until("start", || !world.sandbox.starts().is_empty()).await;
            for after in crashes {
                tokio::time::sleep(Duration::from_millis(after)).await;
                run.crash().await;
                run = world.start();
            }
            assert_eq!(world.controller.terminal("a").await.phase, TerminalPhase::Succeeded);
            run.drain().await;
            check_delivered(&world, "");
            world.check();
        });
        Ok(())
    });
    result.unwrap();
}
