//! Servers that a real controller is not: strangers, and streams that break where a test wants them to.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use futures::StreamExt as _;
use tokio::process::Command;

use crate::world;

/// One answer.
#[derive(Clone)]
pub(crate) struct Answer {
    path: &'static str,
    status: u16,
    content_type: &'static str,
    body: String,
    /// Whether the connection stays open after the body.
    open: bool,
}

/// An answer in JSON.
pub(crate) fn json(path: &'static str, body: &serde_json::Value) -> Answer {
    Answer { path, status: 200, content_type: "application/json", body: body.to_string(), open: false }
}

/// An answer of any kind.
pub(crate) fn other(path: &'static str, status: u16, content_type: &'static str, body: &str) -> Answer {
    Answer { path, status, content_type, body: body.to_owned(), open: false }
}

/// A stream of events that breaks off after these.
pub(crate) fn broken_stream(path: &'static str, events: &str) -> Answer {
    Answer { path, status: 200, content_type: "text/event-stream", body: events.to_owned(), open: false }
}

/// A stream of events that stays open after these.
pub(crate) fn open_stream(path: &'static str, events: &str) -> Answer {
    Answer { open: true, ..broken_stream(path, events) }
}

/// A server on loopback that gives each of its answers once, in their order for each path; the last one of a path is
/// given again and again.
pub(crate) struct Fake {
    folder: tempfile::TempDir,
    url: String,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    answers: Mutex<Vec<Answer>>,
    /// What was asked: the path with its query, and the last event that the caller had.
    asked: Mutex<Vec<(String, Option<String>)>>,
}

impl Fake {
    pub(crate) async fn new(answers: Vec<Answer>) -> Self {
        let shared = Arc::new(Shared { answers: Mutex::new(answers), asked: Mutex::new(Vec::new()) });
        let listener =
            tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback can be listened on");
        let url = format!("http://{}", listener.local_addr().expect("it listens"));
        let router = Router::new().fallback(answer).with_state(shared.clone());
        let task = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("it serves until it is aborted");
        });
        Self { folder: tempfile::tempdir().expect("a temporary folder"), url, shared, task }
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = world::bare(args, self.folder.path());
        command.env("WINDLASS_SERVER", &self.url);
        command
    }

    pub(crate) async fn cli(&self, args: &[&str]) -> world::Output {
        world::finish(self.command(args)).await
    }

    /// The ids after which streams of this path were taken up.
    pub(crate) fn resumed_after(&self, path: &str) -> Vec<Option<String>> {
        let asked = self.shared.asked.lock().expect("no test panics while it holds this");
        asked.iter().filter(|(asked, _)| asked.starts_with(path)).map(|(_, id)| id.clone()).collect()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let id = request.headers().get("last-event-id").map(|id| id.to_str().expect("ids are text").to_owned());
    shared.asked.lock().expect("no test panics while it holds this").push((request.uri().to_string(), id));
    let found = {
        let mut answers = shared.answers.lock().expect("no test panics while it holds this");
        let mut matching =
            answers.iter().enumerate().filter(|(_, answer)| answer.path == path).map(|(index, _)| index);
        let first = matching.next();
        let is_last = matching.next().is_none();
        first.map(|index| if is_last { answers[index].clone() } else { answers.remove(index) })
    };
    let Some(Answer { path: _, status, content_type, body, open }) = found else {
        return (StatusCode::NOT_FOUND, "nothing here").into_response();
    };
    let status = StatusCode::from_u16(status).expect("tests use real codes");
    let headers = [("content-type", content_type)];
    if open {
        let forever = futures::stream::once(async move { Ok::<_, std::convert::Infallible>(body) })
            .chain(futures::stream::pending());
        return (status, headers, Body::from_stream(forever)).into_response();
    }
    (status, headers, body).into_response()
}
