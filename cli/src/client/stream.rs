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
/// A connection that lived this long was a good one, also where nothing came on it.
const GOOD: Duration = Duration::from_secs(30);
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
    let mut tries = Tries::default();
    loop {
        let (since, before) = (Instant::now(), last_id.clone());
        let end = read(response, &sender, &mut last_id).await;
        tries.judge(last_id != before, since.elapsed());
        let reason = match end {
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
        response = match reconnect(&client, &url, last_id.as_deref(), &mut tries).await {
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

/// The tries since the stream last got on. A server that takes each connection and breaks it again at once is asked as
/// seldom as one that takes none.
#[derive(Debug, Default)]
struct Tries {
    count: u32,
    since: Option<Instant>,
}

impl Tries {
    /// Begins anew after a connection that brought something that need not be asked for again, or lived for a while.
    fn judge(&mut self, got_on: bool, lived: Duration) {
        if got_on || lived >= GOOD {
            *self = Self::default();
        }
    }

    /// The longest wait before the next try.
    fn next(&mut self) -> Duration {
        let factor = 1_u32.checked_shl(self.count).unwrap_or(u32::MAX);
        self.count = self.count.saturating_add(1);
        self.since.get_or_insert_with(Instant::now);
        FIRST_WAIT.saturating_mul(factor).min(LONGEST_WAIT)
    }

    /// Whether it has been tried for too long.
    fn are_over(&self) -> bool {
        self.since.is_some_and(|since| since.elapsed() > PATIENCE)
    }
}

async fn reconnect(
    client: &Client,
    url: &Url,
    last_id: Option<&str>,
    tries: &mut Tries,
) -> Result<reqwest::Response, Error> {
    loop {
        let over = tries.are_over();
        // Between half of the wait and all of it, so that many clients of one server do not come back at once.
        tokio::time::sleep(tries.next().mul_f64(rand::random_range(0.5..1.0))).await;
        match client.open_stream(url.clone(), last_id).await {
            Ok(response) => return Ok(response),
            Err(error) if !error.is_passing() => return Err(error),
            Err(error) if over => {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_breaks_at_once_is_no_success() {
        let mut tries = Tries::default();
        for wait in [250, 500, 1000] {
            assert_eq!(tries.next().as_millis(), wait);
            tries.judge(false, Duration::from_millis(20));
        }
        tries.judge(true, Duration::from_millis(20));
        assert_eq!(tries.next(), FIRST_WAIT);
        tries.judge(false, GOOD);
        assert_eq!(tries.next(), FIRST_WAIT);
    }

    #[test]
    fn waits_grow_to_a_bound_however_often_it_is_tried() {
        let mut tries = Tries::default();
        let waits: Vec<u128> = (0..8).map(|_| tries.next().as_millis()).collect();
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 5000, 5000, 5000]);
        tries.count = u32::MAX;
        assert_eq!(tries.next(), LONGEST_WAIT);
        assert!(!tries.are_over());
    }
}
