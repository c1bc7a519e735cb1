//! Steps for which the agent itself asks an engine: one that never answers holds nobody up.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Mutex;

use axum::Json;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use serde_json::json;
use windlass_crds::facts::{FactsPart, FactsStep};
use windlass_crds::protocol::{FactsSettings, StepEnded, Terminal};
use windlass_crds::service::{ServiceAction, ServiceStep};
use windlass_sandbox::engine::{Containers, ContainersConfig, EngineInfo, EngineKind, Engines};

use super::*;

fn engine(kind: EngineKind, socket: &Path) -> Containers {
    let config = ContainersConfig {
        kind,
        socket: socket.to_owned(),
        state_dir: socket.with_extension("state"),
        launcher: "/proc/self/exe".into(),
    };
    Containers::open(config, EngineInfo::default()).unwrap()
}

/// A node that lets jobs touch the container `web` of these engines.
fn world(engines: Vec<Containers>) -> World {
    let mut world = World::new();
    world.engines = Engines::new(engines);
    let mut settings = configuration(NODE, 2);
    settings.policy.sandbox.services = vec!["web".to_owned()];
    settings.facts = Some(FactsSettings { steps: true, ..FactsSettings::default() });
    world.controller.configure(&settings);
    world
}

/// A daemon of Docker with a container `web`, which runs and does not come up when it is restarted.
struct FakeDocker {
    state: Mutex<Web>,
    /// A restart takes until then.
    restarts: watch::Sender<bool>,
}

struct Web {
    runs: bool,
    starts: u32,
    /// How often somebody has asked for it by its name.
    looks: u32,
    /// What the daemon was asked to do.
    asked: Vec<String>,
}

impl FakeDocker {
    /// Serves at a socket for as long as the test runs.
    fn serve(socket: &Path) -> Arc<Self> {
        let web = Web { runs: true, starts: 1, looks: 0, asked: Vec::new() };
        let docker = Arc::new(Self { state: Mutex::new(web), restarts: watch::Sender::new(false) });
        let router = axum::Router::new().fallback(Self::answer).with_state(Arc::clone(&docker));
        let listener = tokio::net::UnixListener::bind(socket).unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        docker
    }

    async fn answer(State(docker): State<Arc<Self>>, method: Method, uri: Uri) -> Response {
        let path: Vec<&str> = uri.path().split('/').filter(|part| !part.is_empty()).collect();
        match (method, &path[..]) {
            (Method::GET, [.., "version"]) => Json(json!({"ApiVersion": "1.47"})).into_response(),
            (Method::GET, [.., name, "json"]) => {
                let mut web = docker.state.lock().unwrap();
                web.looks += u32::from(*name == "web");
                Json(json!({
                    "Id": "id",
                    "Name": "/web",
                    "State": {
                        "Status": if web.runs { "running" } else { "exited" },
                        "StartedAt": format!("2026-01-01T00:00:{:02}Z", web.starts),
                        "ExitCode": 3,
                    },
                }))
                .into_response()
            }
            (Method::POST, [.., "id", action]) => {
                docker.state.lock().unwrap().asked.push((*action).to_owned());
                if *action == "restart" {
                    docker.restarts.subscribe().wait_for(|go_on| *go_on).await.unwrap();
                }
                let mut web = docker.state.lock().unwrap();
                web.runs = *action == "start";
                web.starts += u32::from(*action != "stop");
                StatusCode::NO_CONTENT.into_response()
            }
            (method, path) => panic!("{method} {path:?}"),
        }
    }

    fn web<T>(&self, of: impl FnOnce(&Web) -> T) -> T {
        of(&self.state.lock().unwrap())
    }
}

fn service(job: &str, action: ServiceAction) -> Assignment {
    let mut job = assignment(job, 1, &["true"]);
    let service = ServiceStep { action, name: "web".to_owned(), runtime: None, timeout_seconds: 10 };
    job.spec.steps = vec![Step { name: "s".to_owned(), service: Some(service), ..Step::default() }];
    job
}

#[tokio::test(start_paused = true)]
async fn what_one_job_has_done_to_a_container_is_not_taken_back_by_the_rollback_of_another() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("docker.sock");
    let docker = FakeDocker::serve(&socket);
    let world = world(vec![engine(EngineKind::Docker, &socket)]);
    let run = world.start();
    world.controller.assign(service("a", ServiceAction::Restart));
    world.until("the container is being restarted", || docker.web(|web| !web.asked.is_empty())).await;
    let looks = docker.web(|web| web.looks);
    world.controller.assign(service("b", ServiceAction::Stop));
    world.until("the other job has found it", || docker.web(|web| web.looks) > looks).await;
    docker.restarts.send_replace(true);
    let a = world.controller.terminal("a").await;
    let b = world.controller.terminal("b").await;
    assert_eq!(a.phase, TerminalPhase::Failed, "{a:?}");
    let why = a.message.unwrap();
    assert!(why.contains("ended with code 3") && why.contains("was started again"), "{why}");
    assert_eq!(b.phase, TerminalPhase::Succeeded, "{b:?}");
    assert_eq!(docker.web(|web| web.asked.clone()), ["restart", "start", "stop"]);
    assert!(!docker.web(|web| web.runs), "it stays stopped");
    run.drain().await;
    world.check();
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_hangs_is_no_hindrance_to_a_step_that_names_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let (podman, docker) = (folder.path().join("podman.sock"), folder.path().join("docker.sock"));
    let _hung = UnixListener::bind(&podman).unwrap();
    let fake = FakeDocker::serve(&docker);
    let world = world(vec![engine(EngineKind::Podman, &podman), engine(EngineKind::Docker, &docker)]);
    let terminal = world.run_job(service("unnamed", ServiceAction::Stop)).await;
    let why = terminal.message.unwrap();
    assert!(
        terminal.phase == TerminalPhase::Failed && why.contains("name `runtime: docker`"),
        "{:?} {why}",
        terminal.phase
    );
    assert!(fake.web(|web| web.runs));
    let mut named = service("named", ServiceAction::Stop);
    named.spec.steps[0].service.as_mut().unwrap().runtime =
        Some(windlass_crds::service::ContainerEngine::Docker);
    let terminal = world.run_job(named).await;
    assert_eq!(terminal.phase, TerminalPhase::Succeeded, "{terminal:?}");
    assert!(!fake.web(|web| web.runs));
}

/// Runs a job on a node whose engine takes connections and says nothing; gives how it and its last step ended.
async fn with_a_hung_engine(steps: Vec<Step>) -> (Terminal, Option<StepEnded>) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("podman.sock");
    let _hung = UnixListener::bind(&socket).unwrap();
    let world = world(vec![engine(EngineKind::Podman, &socket)]);
    let mut job = assignment("a", 1, &["true"]);
    job.spec.steps = steps;
    let terminal = world.run_job(job).await;
    let bodies = world.controller.state().bodies("a");
    let ended = bodies.into_iter().rev().find_map(|body| match body {
        RecordBody::StepEnded(ended) => Some(ended),
        _ => None,
    });
    (terminal, ended)
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
        let (_, ended) = with_a_hung_engine(vec![step.clone()]).await;
        let ended = ended.unwrap();
        assert_eq!((ended.succeeded, ended.reason.as_str()), (false, "Timeout"), "{step:?}: {ended:?}");
        assert!(ended.message.as_ref().unwrap().contains("5s"), "{ended:?}");
    }
    // Without a time of its own the engine's ends it, and says whose fault it is.
    let service = Step { service: Some(service), timeout: None, ..step };
    let first = Step { name: "first".to_owned(), command: Some(vec!["true".to_owned()]), ..Step::default() };
    let (_, ended) = with_a_hung_engine(vec![first, service.clone()]).await;
    let ended = ended.unwrap();
    assert_eq!((ended.succeeded, ended.reason.as_str()), (false, "ExecutionError"), "{ended:?}");
    assert!(ended.message.as_ref().unwrap().contains("podman does not answer"), "{ended:?}");
    // While nothing of the job has begun, another node may do it.
    let (terminal, ended) = with_a_hung_engine(vec![service]).await;
    assert_eq!(ended, None);
    assert_eq!(
        (terminal.phase, terminal.reason.as_str()),
        (TerminalPhase::Released, "EngineUnavailable"),
        "{terminal:?}"
    );
}
