//! Connections in virtual time: the server's half of a pipe is under watch, the test writes the client's half by hand.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::routing::get;
use axum_server::Handle;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::task::JoinHandle;

use super::super::{Acceptor, ConnectionLimits, Gate, limit_http};
use super::*;

const SECOND: Duration = Duration::from_secs(1);
const TIMES: Times = Times::DEFAULT;

fn router() -> Router {
    let events = || async {
        let silent = futures::stream::pending::<Result<Event, Infallible>>();
        Sse::new(silent).keep_alive(KeepAlive::new().interval(15 * SECOND))
    };
    let long_poll = || async {
        tokio::time::sleep(10 * TIMES.idle).await;
        "late"
    };
    let endless = || async {
        let pieces = futures::stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from(vec![b'x'; 4096])));
        Body::from_stream(pieces)
    };
    Router::new()
        .route("/quick", get(|| async { "quick" }))
        .route("/poll", get(long_poll))
        .route("/events", get(events))
        .route("/endless", get(endless))
}

/// A served connection: the client's half, and the task that serves the other.
fn connect(gate: &Gate) -> (DuplexStream, JoinHandle<()>) {
    let (client, server) = tokio::io::duplex(16 * 1024);
    let admission = gate.admit([192, 0, 2, 1].into()).expect("there is a place");
    let (stream, service) = guard(server, router(), admission, TIMES, Metrics::new());
    let mut http = auto::Builder::new(TokioExecutor::new());
    limit_http(&mut http);
    let serving = tokio::spawn(async move {
        let service = TowerToHyperService::new(service);
        // How it ends is for the test to see at the client's half.
        drop(http.serve_connection(TokioIo::new(stream), service).await);
    });
    (client, serving)
}

fn gate(total: usize) -> Gate {
    Gate::new(ConnectionLimits { total, per_peer: total }, Metrics::new())
}

async fn ask(client: &mut DuplexStream, path: &str) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n");
    client.write_all(request.as_bytes()).await.expect("the connection is open");
}

/// Reads until the text comes.
async fn expect(client: &mut DuplexStream, text: &str) -> String {
    let mut read = String::new();
    while !read.contains(text) {
        let mut piece = [0; 1024];
        let count = client.read(&mut piece).await.expect("the connection is open");
        assert!(count > 0, "the connection ended after {read:?}");
        read.push_str(std::str::from_utf8(&piece[..count]).expect("text"));
    }
    read
}

/// Reads to the end of the connection.
async fn rest(client: &mut DuplexStream) -> String {
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.expect("a pipe ends in order");
    String::from_utf8(rest).expect("text")
}

#[tokio::test(start_paused = true)]
async fn a_head_that_drips_in_is_cut_off() {
    for path in ["GET /quick HTTP/1.1\r\nhost: test\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r"] {
        let (mut client, _) = connect(&gate(1));
        let began = Instant::now();
        client.write_all(path.as_bytes()).await.unwrap();
        let mut dripped = 0;
        while client.write_all(if path.starts_with("GET") { b"x" } else { b"" }).await.is_ok() {
            dripped += 1;
            let closed = tokio::time::timeout(SECOND, client.read_u8()).await;
            if matches!(closed, Ok(Err(_))) {
                break;
            }
            assert!(dripped < 60, "it is never closed");
        }
        assert_eq!(began.elapsed(), TIMES.head, "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_kept_for_a_while_after_each_answer() {
    let (mut client, serving) = connect(&gate(1));
    let almost = TIMES.idle - SECOND;
    for _ in 0..3 {
        ask(&mut client, "/quick").await;
        expect(&mut client, "quick").await;
        tokio::time::sleep(almost).await;
    }
    ask(&mut client, "/quick").await;
    expect(&mut client, "quick").await;
    let began = Instant::now();
    assert_eq!(rest(&mut client).await, "");
    assert_eq!(began.elapsed(), TIMES.idle);
    serving.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn long_polls_and_streams_of_events_live_as_long_as_they_are_read() {
    let (mut client, _) = connect(&gate(1));
    ask(&mut client, "/poll").await;
    expect(&mut client, "late").await;
    ask(&mut client, "/quick").await;
    expect(&mut client, "quick").await;
    ask(&mut client, "/events").await;
    let until = Instant::now() + 20 * TIMES.idle;
    while Instant::now() < until {
        let mut piece = [0; 1024];
        assert!(client.read(&mut piece).await.unwrap() > 0, "the stream goes on");
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_read_is_closed_and_its_place_is_free() {
    let gate = gate(1);
    let (mut client, serving) = connect(&gate);
    ask(&mut client, "/endless").await;
    let began = Instant::now();
    serving.await.unwrap();
    assert_eq!(began.elapsed(), TIMES.stall);
    assert!(matches!(gate.admit([192, 0, 2, 1].into()), Some(Admission::Served(_))));
}

#[tokio::test(start_paused = true)]
async fn a_connection_too_many_is_told_so_and_ends() {
    let gate = gate(1);
    let (mut first, _serving) = connect(&gate);
    let (mut second, serving) = connect(&gate);
    ask(&mut second, "/quick").await;
    let answer = rest(&mut second).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(
        answer.contains("application/problem+json") && answer.contains("too many connections"),
        "{answer}"
    );
    serving.await.unwrap();
    ask(&mut first, "/quick").await;
    expect(&mut first, "quick").await;
    let (mut silent, serving) = connect(&gate);
    let began = Instant::now();
    assert_eq!(rest(&mut silent).await, "");
    assert_eq!(began.elapsed(), TIMES.head);
    serving.await.unwrap();
}

#[tokio::test]
async fn over_http2_a_long_poll_outlives_the_idle_time_and_the_connection_ends_after_it() {
    let gate = gate(4);
    let times = Times {
        head: Duration::from_secs(10),
        idle: Duration::from_millis(200),
        stall: Duration::from_secs(10),
    };
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let long_poll = || async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        "late"
    };
    let service = Router::new().route("/poll", get(long_poll)).into_make_service();
    let handle = Handle::new();
    let mut server = axum_server::from_tcp(listener)
        .unwrap()
        .acceptor(Acceptor::new(gate.clone(), times))
        .handle(handle.clone());
    limit_http(server.http_builder());
    let serving = tokio::spawn(server.serve(service));
    // The only way to fail is that a provider was installed before, which is just as good.
    rustls::crypto::ring::default_provider().install_default().ok();
    let client = reqwest::Client::builder().http2_prior_knowledge().no_proxy().build().unwrap();
    let answer = client.get(format!("http://{address}/poll")).send().await.unwrap();
    assert_eq!(answer.version(), axum::http::Version::HTTP_2);
    assert_eq!(answer.text().await.unwrap(), "late");
    let mut looks = tokio::time::interval(Duration::from_millis(20));
    for _ in 0..3000 {
        looks.tick().await;
        if gate.state().total == 0 {
            break;
        }
    }
    assert_eq!(gate.state().total, 0, "the idle connection was closed while its client kept it");
    handle.shutdown();
    serving.await.unwrap().unwrap();
}
