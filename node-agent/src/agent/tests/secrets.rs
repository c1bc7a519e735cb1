//! Secrets of an attempt: given to the step that names them, and nowhere else.

use windlass_crds::SecretUse;
use windlass_crds::protocol::{SecretBytes, SecretValue};

use super::*;
use crate::ids::SystemIds;
use crate::workspaces::StepSecrets;

const SECRET: &str = "swordfish";

/// A job whose second step is given a secret, and whose steps write it in pieces.
fn job() -> Assignment {
    let mut job = steps(
        "a",
        &[
            &["out one"],
            &["out the sword", "sleep 2000", "out fish is", "err sw", "out  sword"],
            &["out end"],
        ],
    );
    let text = |text: &str| text.to_owned();
    let named = |env: Option<&str>, file: Option<&str>| SecretUse {
        name: text("s"),
        key: text("k"),
        env: env.map(text),
        file: file.map(text),
    };
    job.spec.steps[1].secrets = vec![named(Some("S"), None), named(None, Some("d/s"))];
    job.secrets = vec![SecretValue {
        name: text("s"),
        key: text("k"),
        value: Some(SecretBytes::new(SECRET.as_bytes().to_vec())),
        problem: None,
    }];
    job
}

/// What the files of a node hold that could tell of the secret: all of it in any of them, and a part of it where only output is.
async fn leaks(world: &World) -> Vec<String> {
    let mut leaks = Vec::new();
    for path in world.fs.paths() {
        let Some(content) = world.fs.read(&path).await.unwrap() else { continue };
        let text = String::from_utf8_lossy(&content).into_owned();
        let encoded = ["c3dvcmRmaXNo", "[115,119,111,114"];
        let part = !path.starts_with("ledger/") && text.contains("sword") && !text.contains("sword\"");
        if part || text.contains(SECRET) || encoded.iter().any(|form| text.contains(form)) {
            leaks.push(format!("{path}: {text}"));
        }
    }
    leaks
}

#[tokio::test(start_paused = true)]
async fn a_step_is_given_what_it_names_and_its_output_is_masked() {
    let world = World::new();
    world.controller.assign(job());
    let run = world.start();
    let unit = unit_id(&id("a"), 1);
    world.until("the second step", || world.sandbox.running() == [unit.clone()]).await;
    assert_eq!(world.sandbox.handed("a-1", 0), None);
    let value = SECRET.as_bytes().to_vec();
    let given = StepSecrets {
        environment: vec![("S".to_owned(), value.clone())],
        files: vec![("d/s".to_owned(), value)],
    };
    assert_eq!(world.sandbox.handed("a-1", 1), Some(given));
    let spec = world.sandbox.spec(&unit).unwrap();
    assert!(spec.handed.folder.is_some() && spec.handed.environment.is_some());
    assert_eq!(spec.env["WINDLASS_SECRETS_DIR"], "/run/windlass/secrets");
    assert!(!serde_json::to_string(&spec).unwrap().contains(SECRET), "the unit's record does not have it");
    world.until("the third step", || world.sandbox.starts().len() == 3).await;
    assert_eq!(world.sandbox.handed("a-1", 1), None, "it is taken back");
    assert_eq!(world.controller.terminal("a").await.phase, TerminalPhase::Succeeded);
    run.drain().await;
    let state = world.controller.state();
    // The end of a stream is told from the beginning of the secret only where the stream has ended.
    assert_eq!(state.output("a", Stream::Stdout), "onethe *** is swordend");
    assert_eq!(state.output("a", Stream::Stderr), "sw");
    drop(state);
    world.check();
}

/// Crashes at every write, after which nothing of the secret is on the disk, and what was held back is not lost.
#[tokio::test(start_paused = true)]
async fn a_crash_at_any_write_leaves_no_secret_on_the_disk_and_loses_no_output() {
    let operations = {
        let world = World::new();
        world.run_job(job()).await;
        world.fs.operations()
    };
    for at in 1..=operations {
        let world = World::new();
        world.fs.crash_at(at, Crash::After);
        world.controller.assign(job());
        let run = world.start();
        tokio::select! {
            biased;
            () = world.fs.crashed() => {}
            _ = world.controller.terminal("a") => {}
        }
        run.crash().await;
        world.fs.restart();
        assert_eq!(leaks(&world).await, [""; 0], "after {at}");
        // A claim that was granted and never noted is the controller's to give again.
        let lost = world.controller.state().queue.is_empty()
            && !world.fs.paths().iter().any(|path| path.starts_with("ledger/"))
            && world.controller.state().records.is_empty()
            && world.sandbox.starts().is_empty();
        let run = world.start();
        if lost && !unsent(&world).await {
            world.controller.assign(Assignment { attempt: AttemptId { epoch: 2, ..id("a") }, ..job() });
        }
        let terminal = world.controller.terminal("a").await;
        assert_eq!(terminal.phase, TerminalPhase::Succeeded, "after {at}: {terminal:?}");
        run.drain().await;
        let output = world.controller.state().output("a", Stream::Stdout);
        assert_eq!(output, "onethe *** is swordend", "after {at}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_the_nodes_key_an_attempt_is_not_carried_on() {
    for (until, expected) in [(0, TerminalPhase::Released), (2, TerminalPhase::Lost)] {
        let mut world = World::new();
        world.controller.assign(job());
        // Held up before it has started, or let go on.
        world.controller.change(|state| state.stingy = until == 0);
        let run = world.start();
        let noted = |world: &World| world.fs.paths().iter().any(|path| path.starts_with("ledger/"));
        world.until("the step", || noted(&world) && world.sandbox.starts().len() >= until).await;
        run.crash().await;
        world.controller.change(|state| state.stingy = false);
        world.key = NodeKey::new(&[8; 32], Arc::new(SystemIds));
        let run = world.start();
        let terminal = world.controller.terminal("a").await;
        if until == 0 && !world.sandbox.starts().is_empty() {
            // It had begun before the crash.
            assert_eq!(terminal.phase, TerminalPhase::Lost);
        } else {
            assert_eq!((terminal.phase, terminal.reason.as_str()), (expected, "SecretsLost"));
        }
        assert!(terminal.message.unwrap().contains("--secrets-key-file"));
        run.drain().await;
        world.check();
        assert!(!world.controller.state().output("a", Stream::Stdout).contains("sword"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_is_missing_fails_the_job_before_anything_runs() {
    let world = World::new();
    let mut job = job();
    job.secrets[0].value = None;
    job.secrets[0].problem = Some("there is no Secret `default/s`".to_owned());
    let terminal = world.run_job(job).await;
    assert_eq!((terminal.phase, terminal.reason.as_str()), (TerminalPhase::Failed, "SecretUnavailable"));
    assert!(terminal.message.unwrap().contains("step `s1`: there is no Secret `default/s`"));
    assert_eq!(world.sandbox.starts(), []);
}

#[tokio::test(start_paused = true)]
async fn the_output_of_a_job_without_secrets_stays_as_it_is() {
    let world = World::new();
    world.run_job(steps("a", &[&["out swordfish", "out ***"]])).await;
    assert_eq!(world.controller.state().output("a", Stream::Stdout), "swordfish***");
}

#[tokio::test(start_paused = true)]
async fn where_a_step_is_stopped_the_beginning_of_a_secret_is_masked() {
    let world = World::new();
    let mut job = job();
    job.spec.steps[1].command = Some(vec!["out the sword".to_owned(), "sleep 60000".to_owned()]);
    job.spec.steps[1].timeout = Some(windlass_crds::Span::from_secs(5));
    assert_eq!(world.run_job(job).await.phase, TerminalPhase::Failed);
    assert_eq!(world.controller.state().output("a", Stream::Stdout), "onethe ***");
}

#[tokio::test(start_paused = true)]
async fn facts_that_a_job_with_secrets_asks_for_are_masked_and_told_to_nobody_else() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    std::fs::write(&log, format!("the {SECRET} is in a log")).unwrap();
    let mut configuration = configuration(NODE, 2);
    configuration.facts = Some(windlass_crds::protocol::FactsSettings {
        steps: true,
        logs: vec![windlass_crds::facts::LogFile { path: log.display().to_string(), max_bytes: None }],
        ..Default::default()
    });
    world.controller.configure(&configuration);
    let mut job = job();
    job.spec.steps.truncate(2);
    job.spec.steps[0].command = None;
    job.spec.steps[0].facts =
        Some(windlass_crds::facts::FactsStep { include: vec![windlass_crds::facts::FactsPart::Logs] });
    assert_eq!(world.run_job(job).await.phase, TerminalPhase::Succeeded);
    let state = world.controller.state();
    let output = state.output("a", Stream::Stdout);
    assert!(output.contains("the *** is in a log") && !output.contains(SECRET), "{output}");
    assert!(state.bodies(windlass_crds::protocol::NODE_RECORDS).is_empty(), "they are the job's output only");
    assert!(state.story("a").contains(&"event FactsNotKept".to_owned()), "{:?}", state.story("a"));
}
