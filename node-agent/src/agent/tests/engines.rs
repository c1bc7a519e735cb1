//! Steps for which the agent itself asks an engine: one that never answers holds nobody up.

use std::os::unix::net::UnixListener;

use windlass_crds::facts::{FactsPart, FactsStep};
use windlass_crds::protocol::{FactsSettings, StepEnded};
use windlass_crds::service::{ServiceAction, ServiceStep};
use windlass_sandbox::engine::{Containers, ContainersConfig, EngineInfo, EngineKind, Engines};

use super::*;

/// Runs a job of one step on a node whose engine takes connections and says nothing; gives how the step ended.
async fn with_a_hung_engine(step: Step) -> StepEnded {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("podman.sock");
    let _hung = UnixListener::bind(&socket).unwrap();
    let config = ContainersConfig {
        kind: EngineKind::Podman,
        socket,
        state_dir: folder.path().join("state"),
        launcher: "/proc/self/exe".into(),
    };
    let mut world = World::new();
    world.engines = Engines::new(vec![Containers::open(config, EngineInfo::default()).unwrap()]);
    let mut settings = configuration(NODE, 2);
    settings.policy.sandbox.services = vec!["web".to_owned()];
    settings.facts = Some(FactsSettings { steps: true, ..FactsSettings::default() });
    world.controller.configure(&settings);
    let mut job = assignment("a", 1, &["true"]);
    job.spec.steps = vec![step];
    world.run_job(job).await;
    let bodies = world.controller.state().bodies("a");
    let ended = bodies.into_iter().find_map(|body| match body {
        RecordBody::StepEnded(ended) => Some(ended),
        _ => None,
    });
    ended.unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_time_of_a_step_holds_while_an_engine_does_not_answer() {
    let step = Step { name: "s".to_owned(), timeout: Some(Span::from_secs(5)), ..Step::default() };
    let facts = FactsStep { include: vec![FactsPart::Containers] };
    let service = ServiceStep {
        action: ServiceAction::Restart,
        name: "web".to_owned(),
        runtime: None,
        timeout_seconds: 300,
    };
    for step in
        [Step { facts: Some(facts), ..step.clone() }, Step { service: Some(service.clone()), ..step.clone() }]
    {
        let ended = with_a_hung_engine(step.clone()).await;
        assert_eq!((ended.succeeded, ended.reason.as_str()), (false, "Timeout"), "{step:?}: {ended:?}");
        assert!(ended.message.as_ref().unwrap().contains("5s"), "{ended:?}");
    }
    // Without a time of its own the engine's ends it, and says whose fault it is.
    let ended = with_a_hung_engine(Step { service: Some(service), timeout: None, ..step }).await;
    assert_eq!((ended.succeeded, ended.reason.as_str()), (false, "ExecutionError"), "{ended:?}");
    assert!(ended.message.as_ref().unwrap().contains("podman does not answer"), "{ended:?}");
}
