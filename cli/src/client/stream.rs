//! A stream of server-sent events that survives the loss of its connection.
//!
//! ```text
//! task: connect -> parse -> events ─► channel ─► Stream::next
//!          ▲                   │
//!          └── back-off ◄── lost   (Last-Event-ID is sent again)
//! ```
//!
//! The first connection must succeed; its error is the first and only item. After that a lost connection is told once,
//! and tried again with growing waits until it succeeds, the server refuses for good, or it has been away too long.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use tokio::sync::mpsc;
use url::Url;
use windlass_crds::protocol::Problem;

use super::sse::{Event, Parser};
use super::{Client, Error};

/// The first wait before a lost connection is tried again.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// The longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How long a connection is tried again before the stream is given up: an upgrade of the controller is shorter.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long the server may be silent: it sends a comment every 15 s, so that this is three of them.
const SILENCE: Duration = Duration::from_secs(45);
/// Events that may wait for a slow reader before the connection itself is held back.
const BUFFERED: usize = 64;

/// One thing that a stream tells.
#[derive(Debug)]
pub(crate) enum Followed {
    /// The server sent an event.
    Event(Event),
    /// The connection is lost and is tried again.
    Lost(String),
    /// The connection is back.
    Restored,
}

/// A stream of events. Dropping it closes the connection.
#[derive(Debug)]
pub(crate) struct Stream {
    items: mpsc::Receiver<Result<Followed, Error>>,
    task: tokio::task::JoinHandle<()>,
}

impl Stream {
    /// Begins to follow a URL.
    pub(super) fn open(client: Client, url: Url) -> Self {
        let (sender, items) = mpsc::channel(BUFFERED);
        let task = tokio::spawn(follow(client, url, sender));
        Self { items, task }
    }

    /// The next item; `None` after an error. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Result<Followed, Error>> {
        self.items.recv().await
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why a connection ended.
enum End {
    /// It broke or the server closed it; it can be taken up again.
    Broken(String),
    /// It cannot go on.
    Final(Error),
    /// Nobody listens any more.
    Unheard,
}

async fn follow(client: Client, url: Url, sender: mpsc::Sender<Result<Followed, Error>>) {
    let mut last_id: Option<String> = None;
    let mut response = match client.open_stream(url.clone(), None).await {
        Ok(response) => response,
        Err(error) => {
            sender.send(Err(error)).await.ok();
            return;
        }
    };
    loop {
        let reason = match read(response, &sender, &mut last_id).await {
            End::Broken(reason) => reason,
            End::Final(error) => {
                sender.send(Err(error)).await.ok();
                return;
            }
            End::Unheard => return,
        };
        if sender.send(Ok(Followed::Lost(reason))).await.is_err() {
            return;
        }
        response = match reconnect(&client, &url, last_id.as_deref()).await {
            Ok(response) => response,
            Err(error) => {
                sender.send(Err(error)).await.ok();
                return;
            }
        };
        if sender.send(Ok(Followed::Restored)).await.is_err() {
            return;
        }
    }
}

async fn read(
    response: reqwest::Response,
    sender: &mpsc::Sender<Result<Followed, Error>>,
    last_id: &mut Option<String>,
) -> End {
    let mut parser = Parser::default();
    let mut chunks = response.bytes_stream();
    let mut events = Vec::new();
    loop {
        let parsed = match tokio::time::timeout(SILENCE, chunks.next()).await {
            Err(_) => return End::Broken(format!("the server was silent for {} seconds", SILENCE.as_secs())),
            Ok(None) => return End::Broken("the server closed the connection".to_owned()),
            Ok(Some(Err(error))) => return End::Broken(super::causes::loss(&error)),
            Ok(Some(Ok(chunk))) => parser.push(&chunk, &mut events),
        };
        for event in events.drain(..) {
            if event.event == "error" {
                return last_word(&event.data);
            }
            if event.id.is_some() {
                last_id.clone_from(&event.id);
            }
            if sender.send(Ok(Followed::Event(event))).await.is_err() {
                return End::Unheard;
            }
        }
        if let Err(error) = parsed {
            return End::Final(Error::Stream(error));
        }
    }
}

/// What it means that the server ended the stream with an error.
fn last_word(data: &str) -> End {
    let Ok(problem) = serde_json::from_str::<Problem>(data) else {
        return End::Broken("the server ended the stream with an error".to_owned());
    };
    let error = Error::Problem(Box::new(problem));
    if error.is_passing() { End::Broken(error.to_string()) } else { End::Final(error) }
}

async fn reconnect(client: &Client, url: &Url, last_id: Option<&str>) -> Result<reqwest::Response, Error> {
    let begun = Instant::now();
    let mut wait = FIRST_WAIT;
    loop {
        // Between half of the wait and all of it, so that many clients of one server do not come back at once.
        tokio::time::sleep(wait.mul_f64(rand::random_range(0.5..1.0))).await;
        wait = (wait * 2).min(LONGEST_WAIT);
        match client.open_stream(url.clone(), last_id).await {
            Ok(response) => return Ok(response),
            Err(error) if !error.is_passing() => return Err(error),
            Err(error) if begun.elapsed() > PATIENCE => {
                return Err(Error::StreamLost {
                    url: client.base().clone(),
                    seconds: PATIENCE.as_secs(),
                    reason: crate::failure::chain(&error),
                });
            }
            Err(_) => {}
        }
    }
}
