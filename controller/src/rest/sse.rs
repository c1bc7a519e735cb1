//! Streams of server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures::Stream;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::error::ApiError;

/// Sends events to one caller.
pub(super) struct Sender(mpsc::Sender<Event>);

/// The caller has gone.
pub(super) struct Gone;

impl Sender {
    /// Sends an event; waits while the caller reads slowly.
    pub(super) async fn send(&self, name: &str, id: Option<&str>, data: &impl Serialize) -> Result<(), Gone> {
        let event = Event::default().event(name);
        let event = id.map_or_else(|| event.clone(), |id| event.clone().id(id));
        let event = match event.json_data(data) {
            Ok(event) => event,
            Err(error) => {
                tracing::error!(error = %error, "an event could not be written as JSON");
                return Err(Gone);
            }
        };
        self.0.send(event).await.map_err(|_| Gone)
    }

    /// Completes when the caller has gone.
    pub(super) async fn closed(&self) {
        self.0.closed().await;
    }
}

/// Whether the caller asks for a stream.
pub(super) fn wanted(headers: &HeaderMap) -> bool {
    headers
        .get("accept")
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("text/event-stream"))
}

/// The cursor after which the caller wants to go on.
pub(super) fn last_event_id(headers: &HeaderMap) -> Option<String> {
    headers.get("last-event-id").and_then(|id| id.to_str().ok()).map(str::to_owned)
}

/// Answers with a stream that `produce` fills. An error after the first byte cannot change the status any more: it is
/// sent as an event named `error` and ends the stream.
pub(super) fn stream<F, Fut>(produce: F) -> Response
where
    F: FnOnce(std::sync::Arc<Sender>) -> Fut,
    Fut: Future<Output = Result<(), ApiError>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(64);
    let sender = std::sync::Arc::new(Sender(sender));
    let work = produce(sender.clone());
    tokio::spawn(async move {
        tokio::select! {
            biased;
            // Cancel-safe: dropping the producer drops only reads.
            () = sender.closed() => {}
            result = work => if let Err(error) = result {
                tracing::warn!(error = %crate::error::chain(&error), "a stream ended with an error");
                // A caller that has gone needs no last word.
                drop(sender.send("error", None, &error.problem()).await);
            }
        }
    });
    let keep_alive = KeepAlive::new().interval(Duration::from_secs(15));
    Sse::new(events(receiver)).keep_alive(keep_alive).into_response()
}

fn events(receiver: mpsc::Receiver<Event>) -> impl Stream<Item = Result<Event, Infallible>> {
    futures::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|event| (Ok(event), receiver))
    })
}
