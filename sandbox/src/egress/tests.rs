//! The proxy on loopback, with a resolver and servers of the tests' own.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::policy::tests::rule;
use super::*;

mod local;

/// Answers for each name in turn; the last one again and again. Notes what it is asked.
#[derive(Default)]
struct Names {
    answers: HashMap<&'static str, Vec<&'static str>>,
    asked: Mutex<Vec<String>>,
}

#[async_trait]
impl Resolver for Names {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let mut asked = self.asked.lock().unwrap();
        let before = asked.iter().filter(|other| *other == name).count();
        asked.push(name.to_owned());
        let answers = self.answers.get(name).ok_or(io::ErrorKind::NotFound)?;
        let answer = answers.get(before).or(answers.last()).expect("each name has an answer");
        Ok(answer.split(' ').map(|address| address.parse().unwrap()).collect())
    }
}

/// A proxy that is served, and what it has recorded.
struct World {
    proxy: SocketAddr,
    names: Arc<Names>,
    records: Arc<Mutex<Vec<Record>>>,
    end: oneshot::Sender<()>,
    serving: JoinHandle<io::Result<()>>,
    served: Arc<Proxy>,
}

impl World {
    async fn new(rules: &[String], answers: &[(&'static str, &[&'static str])]) -> Self {
        Self::with(rules, answers, Limits::default()).await
    }

    async fn with(rules: &[String], answers: &[(&'static str, &[&'static str])], limits: Limits) -> Self {
        Self::with_local(rules, answers, limits, None)
    }

    fn with_local(
        rules: &[String],
        answers: &[(&'static str, &[&'static str])],
        limits: Limits,
        local: Option<LocalServer>,
    ) -> Self {
        let answers = answers.iter().map(|(name, answers)| (*name, answers.to_vec())).collect();
        let names = Arc::new(Names { answers, asked: Mutex::default() });
        let policy = Policy { rules: rules.iter().map(|text| rule(text)).collect(), guarded: Vec::new() };
        let records = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&records);
        let sink = move |record| to.lock().unwrap().push(record);
        let proxy = Proxy::new(policy, limits, Arc::clone(&names) as Arc<dyn Resolver>, sink);
        let proxy = Arc::new(proxy.with_local(local));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (end, ended) = oneshot::channel::<()>();
        let serving = tokio::spawn(Arc::clone(&proxy).serve(listener, async { drop(ended.await) }));
        Self { proxy: address, names, records, end, serving, served: proxy }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.proxy).await.unwrap()
    }

    /// Sends something and reads everything that comes back until the proxy closes.
    async fn exchange(&self, request: impl AsRef<[u8]>) -> String {
        let mut client = self.connect().await;
        // The proxy may close before it has read everything.
        drop(client.write_all(request.as_ref()).await);
        let shown =
            String::from_utf8_lossy(&request.as_ref()[..request.as_ref().len().min(300)]).into_owned();
        tokio::time::timeout(Duration::from_secs(30), read_to_end(&mut client))
            .await
            .unwrap_or_else(|_| panic!("the proxy never closes after {shown}"))
    }

    /// Ends the proxy; gives what it has recorded, the last of each kind.
    async fn finish(self) -> Vec<Record> {
        drop(self.end);
        self.serving.await.unwrap().unwrap();
        let records = std::mem::take(&mut *self.records.lock().unwrap());
        let mut last: Vec<Record> = Vec::new();
        for record in records {
            let alike = |other: &Record| {
                (&other.host, other.port, &other.outcome) == (&record.host, record.port, &record.outcome)
            };
            last.retain(|other| !alike(other));
            last.push(record);
        }
        last
    }
}

async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset is an end like any other here.
    drop(stream.read_to_end(&mut bytes).await);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A server that notes what each connection sends and answers each head with `answer`.
struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn new(answer: &'static str) -> Self {
        Self::at("127.0.0.1:0", answer).await
    }

    async fn at(address: &str, answer: &'static str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let notes = Arc::clone(&notes);
                tokio::spawn(async move {
                    let index = {
                        let mut notes = notes.lock().unwrap();
                        notes.push(String::new());
                        notes.len() - 1
                    };
                    let mut buffer = [0; 4096];
                    let mut answered = 0;
                    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                        let heads = {
                            let mut notes = notes.lock().unwrap();
                            notes[index].push_str(&String::from_utf8_lossy(&buffer[..count]));
                            notes[index].matches("\r\n\r\n").count()
                        };
                        while answered < heads {
                            answered += 1;
                            stream.write_all(answer.as_bytes()).await.unwrap();
                        }
                    }
                });
            }
        });
        Self { address, seen }
    }

    fn port(&self) -> u16 {
        self.address.port()
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    /// Rules that open it by its name and its address.
    fn rules(&self, name: &str) -> Vec<String> {
        vec![format!("{name} at {}", self.port()), format!("{} at {}", self.address.ip(), self.port())]
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
const LOOPBACK: &[&str] = &["127.0.0.1"];

#[tokio::test]
async fn connect_tunnels_to_what_a_rule_names_and_counts_its_bytes() {
    let server = Server::new(OK).await;
    let world = World::new(&server.rules("a.test"), &[("a.test", LOOPBACK)]).await;
    let mut client = world.connect().await;
    let port = server.port();
    client
        .write_all(format!("CONNECT A.test.:{port} HTTP/1.1\r\nHost: a.test:{port}\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut head = [0; 12];
    client.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    while client.read_u8().await.unwrap() != b'\n' || client.read_u8().await.unwrap() != b'\r' {}
    client.read_u8().await.unwrap();
    client.write_all(b"any bytes\0\xff\r\n\r\n").await.unwrap();
    let mut answer = vec![0; OK.len()];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, OK.as_bytes());
    assert_eq!(server.seen().len(), 1);
    let records = world.finish().await;
    let [record] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!((record.protocol, record.host.as_str(), record.port), (Protocol::Connect, "a.test", port));
    assert_eq!(record.outcome, Outcome::Allowed { rule: format!("a.test at {port}") });
    assert_eq!(record.address, Some(IpAddr::from([127, 0, 0, 1])));
    assert_eq!((record.attempts, record.sent, record.received), (1, 15, OK.len() as u64));
    let mut rest = Vec::new();
    assert_eq!(client.read_to_end(&mut rest).await.unwrap_or(0), 0, "connections end with the proxy");
}

#[tokio::test]
async fn plain_requests_are_written_anew_and_each_of_a_connection_is_judged_for_itself() {
    let server = Server::new(OK).await;
    let world = World::new(&server.rules("a.test"), &[("a.test", LOOPBACK)]).await;
    let port = server.port();
    let requests = format!(
        "GET http://a.test:{port}/x?y=1 HTTP/1.1\r\nHost: A.TEST:{port}\r\nProxy-Connection: keep-alive\r\n\
         Connection: x-private\r\nX-Private: secret\r\nProxy-Authorization: Basic eDp5\r\nX-Kept: 1\r\n\r\n\
         POST http://a.test:{port}/post HTTP/1.1\r\nHost: a.test:{port}\r\nTransfer-Encoding: chunked\r\n\r\n\
         4\r\nbody\r\n0\r\n\r\n\
         GET http://b.test:{port}/ HTTP/1.1\r\nHost: b.test:{port}\r\n\r\n"
    );
    let answer = world.exchange(requests).await;
    assert_eq!(answer.matches("200 OK").count(), 2, "{answer}");
    assert_eq!(answer.matches("403 Forbidden").count(), 1, "{answer}");
    assert!(answer.contains(&format!("the rule `b.test:{port}` in sandbox.egress would")), "{answer}");
    let seen = server.seen();
    let [first, second] = seen.as_slice() else { panic!("each has a connection of its own: {seen:?}") };
    assert!(first.starts_with("GET /x?y=1 HTTP/1.1\r\n"), "{first}");
    assert!(first.contains(&format!("host: a.test:{port}\r\n")) && first.contains("x-kept: 1"), "{first}");
    for gone in ["secret", "proxy", "x-private"] {
        assert!(!first.to_ascii_lowercase().contains(gone), "{gone}: {first}");
    }
    assert!(second.starts_with("POST /post") && second.contains("4\r\nbody\r\n0\r\n"), "{second}");
    let asked = world.names.asked.lock().unwrap().clone();
    assert_eq!(asked, ["a.test", "a.test"], "a name that no rule allows is not looked up");
    assert_eq!(world.finish().await.len(), 2);
}

#[tokio::test]
async fn requests_that_could_be_read_in_two_ways_are_refused_and_recorded() {
    let server = Server::new(OK).await;
    let port = server.port();
    let url = format!("http://a.test:{port}/");
    let host = format!("Host: a.test:{port}\r\n");
    let post = |fields: &str| format!("POST {url} HTTP/1.1\r\n{host}{fields}\r\n\r\n0\r\n\r\n");
    let get = |target: &str, fields: &str| format!("GET {target} HTTP/1.1\r\n{fields}\r\n");
    for (request, expected) in [
        (get("/", &host), "must name a whole `http://` address"),
        (format!("OPTIONS * HTTP/1.1\r\n{host}\r\n"), "must name a whole"),
        (get(&url, "Host: b.test\r\n"), "Host is not the host of its address"),
        (get(&url, "Host: a.test\r\n"), "Host is not the host of its address"),
        (get(&url, &format!("{host}{host}")), "more than one Host"),
        (get(&url, ""), "has no Host"),
        (get(&format!("https://a.test:{port}/"), &host), "goes through CONNECT"),
        (get(&format!("ftp://a.test:{port}/"), &host), "only `http` is forwarded"),
        (get(&format!("http://x:y@a.test:{port}/"), &host), "a user name"),
        (get("http://a.test:0/", "Host: a.test:0\r\n"), "the port is not a number"),
        (get(&format!("http://0x7f.1:{port}/"), &format!("Host: 0x7f.1:{port}\r\n")), "four decimal numbers"),
        (get(&format!("http://2130706433:{port}/"), &format!("Host: 2130706433:{port}\r\n")), "four decimal"),
        (post("Transfer-Encoding: gzip, chunked"), "transfer encoding other than `chunked`"),
        (post("Transfer-Encoding: chunked\r\nConnection: transfer-encoding"), "Connection names a field"),
        (post("Content-Length: 5\r\nConnection: close, Content-Length"), "Connection names a field"),
        (format!("CONNECT a.test HTTP/1.1\r\n{host}\r\n"), "the port is not a number"),
        (format!("CONNECT a.test:0 HTTP/1.1\r\n{host}\r\n"), "the port is not a number"),
        (format!("CONNECT x@a.test:{port} HTTP/1.1\r\n{host}\r\n"), "a user name"),
        (format!("CONNECT 127.1:{port} HTTP/1.1\r\n{host}\r\n"), "four decimal numbers"),
        (format!("CONNECT a.test:{port} HTTP/1.1\r\n{host}Content-Length: 3\r\n\r\nabc"), "with a body"),
        (post("Content-Length: 1\r\nContent-Length: 2"), "the HTTP request is broken"),
        (format!("GET {url} HTTP/1.1\r\n{host} folded: x\r\n\r\n"), "the HTTP request is broken"),
        (format!("GET {url} HTTP/1.1\r\nHost : a.test:{port}\r\n\r\n"), "the HTTP request is broken"),
        ("\x16\x03\x01\x02\x00\x01\x00\x01".to_owned(), "the HTTP request is broken"),
        (get(&url, &format!("{host}X: {}\r\n", "x".repeat(70 << 10))), "the HTTP request is broken"),
    ] {
        let world = World::new(&server.rules("a.test"), &[("a.test", LOOPBACK)]).await;
        let answer = world.exchange(&request).await;
        let shown = &request[..request.len().min(300)];
        // An answer to a head that was not read to its end may be lost.
        let is_short = request.len() < Limits::default().head;
        assert!(answer.starts_with("HTTP/1.1 4") || !is_short, "{shown}\n{answer}");
        assert!(world.names.asked.lock().unwrap().is_empty(), "{shown}");
        let records = world.finish().await;
        let denied = records.iter().any(|record| match &record.outcome {
            Outcome::Denied { reason, .. } => reason.contains(expected),
            Outcome::Allowed { .. } | Outcome::Failed { .. } => false,
        });
        assert!(denied, "{shown}\n{records:?}");
    }
    assert_eq!(server.seen(), Vec::<String>::new(), "nothing of it reached the server");
}

#[tokio::test]
async fn a_length_that_contradicts_the_chunks_does_not_hide_a_second_request() {
    for lengths_first in [true, false] {
        let server = Server::new(OK).await;
        let world = World::new(&server.rules("a.test"), &[("a.test", LOOPBACK)]).await;
        let port = server.port();
        let hidden = format!("GET http://a.test:{port}/hidden HTTP/1.1\r\nHost: a.test:{port}\r\n\r\n");
        let fields =
            [format!("Content-Length: {}", hidden.len() + 5), "Transfer-Encoding: chunked".to_owned()];
        let [one, other] = if lengths_first { [0, 1] } else { [1, 0] };
        let request = format!(
            "POST http://a.test:{port}/ HTTP/1.1\r\nHost: a.test:{port}\r\n{}\r\n{}\r\n\r\n0\r\n\r\n{hidden}",
            fields[one], fields[other]
        );
        // It is read in one way, written anew without the length, and nothing after it is read.
        let answer = world.exchange(request).await;
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
        let seen = server.seen();
        assert!(seen.len() == 1 && seen[0].starts_with("POST / "), "{seen:?}");
        assert!(
            !seen[0].contains("hidden") && !seen[0].to_ascii_lowercase().contains("content-length"),
            "{seen:?}"
        );
        world.finish().await;
    }
}

#[tokio::test]
async fn a_name_that_changes_its_address_gains_nothing() {
    let good = Server::at("127.0.0.1:0", OK).await;
    let bad = Server::at(&format!("127.0.0.2:{}", good.port()), OK).await;
    let rules = good.rules("a.test");
    let port = good.port();
    let request = format!("GET http://a.test:{port}/ HTTP/1.0\r\n\r\n");
    // First as it should be, then elsewhere, then both, the forbidden one first.
    let answers: &[&str] = &["127.0.0.1", "127.0.0.2", "127.0.0.2 127.0.0.1"];
    let world = World::new(&rules, &[("a.test", answers)]).await;
    assert!(world.exchange(&request).await.contains("200 OK"));
    let denied = world.exchange(&request).await;
    assert!(denied.contains("403") && denied.contains("127.0.0.2 is the host itself"), "{denied}");
    assert!(world.exchange(&request).await.contains("200 OK"));
    assert_eq!(world.names.asked.lock().unwrap().len(), 3, "what was judged is not looked up again");
    assert_eq!(bad.seen(), Vec::<String>::new());
    let records = world.finish().await;
    let remedies: Vec<_> = records
        .iter()
        .filter_map(|record| match &record.outcome {
            Outcome::Denied { remedy, .. } => remedy.clone(),
            Outcome::Allowed { .. } | Outcome::Failed { .. } => None,
        })
        .collect();
    assert_eq!(remedies, [format!("127.0.0.2:{port}")]);
}

#[tokio::test]
async fn special_addresses_are_not_reached_by_any_name_or_spelling() {
    let server = Server::new(OK).await;
    let port = server.port();
    let rules = vec![format!("* at {port}"), "0.0.0.0/0".to_owned(), "::/0".to_owned()];
    for (host, answer) in [
        ("metadata.test", &["169.254.169.254"][..]),
        ("metadata6.test", &["fd00:ec2::254"]),
        ("private.test", &["10.0.0.1 172.16.0.1 192.168.0.1"]),
        ("local.test", &["127.0.0.1"]),
        ("local6.test", &["::1"]),
        ("mapped.test", &["::ffff:127.0.0.1"]),
        ("nat64.test", &["64:ff9b::7f00:1"]),
        ("sixtofour.test", &["2002:7f00:1::1"]),
        ("cgnat.test", &["100.64.0.1"]),
        ("any.test", &["0.0.0.0"]),
        ("multicast.test", &["224.0.0.1"]),
        ("127.0.0.1", &[]),
        ("169.254.169.254", &[]),
        ("[::1]", &[]),
        ("[::ffff:127.0.0.1]", &[]),
        ("[::127.0.0.1]", &[]),
        ("0.0.0.0", &[]),
    ] {
        let world = World::new(&rules, &[(host, answer)]).await;
        let answer = world.exchange(format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{host}: {answer}");
        let records = world.finish().await;
        assert!(
            matches!(&records[0].outcome, Outcome::Denied { remedy: Some(_), .. }) && records.len() == 1,
            "{host}: {records:?}"
        );
    }
    assert_eq!(server.seen(), Vec::<String>::new());
}

#[tokio::test]
async fn a_redirect_leads_no_further_than_the_rules() {
    let forbidden = Server::at("127.0.0.2:0", OK).await;
    let location: &'static str = Box::leak(
        format!(
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.2:{}/\r\nContent-Length: 0\r\n\r\n",
            forbidden.port()
        )
        .into_boxed_str(),
    );
    let server = Server::new(location).await;
    let world = World::new(&server.rules("a.test"), &[("a.test", LOOPBACK)]).await;
    let port = server.port();
    let answer = world.exchange(format!("GET http://a.test:{port}/ HTTP/1.0\r\n\r\n")).await;
    let (_, rest) = answer.split_once("ocation: ").unwrap();
    let target = rest.lines().next().unwrap();
    let answer = world.exchange(format!("GET {target} HTTP/1.0\r\n\r\n")).await;
    assert!(answer.contains("403 Forbidden"), "{answer}");
    assert_eq!(forbidden.seen(), Vec::<String>::new());
    world.finish().await;
}

fn socks(command: u8, kind: u8, host: &[u8], port: u16) -> Vec<u8> {
    let mut request = vec![5, 1, 0, 5, command, 0, kind];
    if kind == 3 {
        request.push(u8::try_from(host.len()).unwrap());
    }
    request.extend_from_slice(host);
    request.extend(port.to_be_bytes());
    request
}

#[tokio::test]
async fn socks_connects_by_name_and_address_and_does_nothing_else() {
    let server = Server::new(OK).await;
    let port = server.port();
    let world = World::new(&server.rules("a.test"), &[("a.test", LOOPBACK)]).await;
    for request in
        [socks(1, 3, b"a.test", port), socks(1, 1, &[127, 0, 0, 1], port), socks(1, 3, b"127.0.0.1", port)]
    {
        let mut client = world.connect().await;
        client.write_all(&request).await.unwrap();
        let mut answer = [0; 12];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, [5, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut hello = vec![0; OK.len()];
        client.read_exact(&mut hello).await.unwrap();
    }
    for (request, code) in [
        (socks(2, 3, b"a.test", port), 7),
        (socks(3, 3, b"a.test", port), 7),
        (socks(9, 3, b"a.test", port), 7),
        (socks(1, 2, b"", port), 8),
        (socks(1, 3, b"b.test", port), 2),
        (socks(1, 3, b"a.test", 0), 2),
        (socks(1, 3, b"a.test\0.b", port), 2),
        (socks(1, 3, "bücher.test".as_bytes(), port), 2),
        (socks(1, 3, b"0177.1", port), 2),
        (socks(1, 3, b"", port), 2),
        (socks(1, 1, &[127, 0, 0, 2], port), 2),
        (socks(1, 4, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 127, 0, 0, 1], port), 2),
    ] {
        let answer = {
            let mut client = world.connect().await;
            client.write_all(&request).await.unwrap();
            let mut bytes = Vec::new();
            drop(client.read_to_end(&mut bytes).await);
            bytes
        };
        assert_eq!(answer.get(..4), Some(&[5, 0, 5, code][..]), "{request:?}");
    }
    assert_eq!(world.exchange([5, 1, 2]).await.as_bytes().first(), Some(&5), "authentication is not spoken");
    assert_eq!(world.exchange([4, 1, 0, 80, 127, 0, 0, 1, 0]).await, "", "nor is SOCKS 4");
    let records = world.finish().await;
    let reasons: Vec<String> = records
        .iter()
        .filter_map(|record| match &record.outcome {
            Outcome::Denied { reason, .. } => Some(reason.clone()),
            Outcome::Allowed { .. } | Outcome::Failed { .. } => None,
        })
        .collect();
    for expected in
        ["BIND", "UDP", "authentication", "SOCKS 4", "no rule", "is the host itself", "four decimal"]
    {
        assert!(reasons.iter().any(|reason| reason.contains(expected)), "{expected}: {reasons:?}");
    }
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn a_step_that_has_transferred_all_it_may_gets_no_further() {
    let server = Server::new(OK).await;
    let limits = Limits { transfer: Some(100), ..Limits::default() };
    let world = World::with(&server.rules("a.test"), &[("a.test", LOOPBACK)], limits).await;
    let request = format!("GET http://a.test:{}/ HTTP/1.0\r\n\r\n", server.port());
    let mut answers = Vec::new();
    for _ in 0..6 {
        answers.push(world.exchange(&request).await);
    }
    assert!(answers[0].contains("hello"), "{answers:?}");
    assert!(
        answers[5].contains("403 Forbidden") && answers[5].contains("as many bytes as it may"),
        "{answers:?}"
    );
    assert!(server.seen().len() < 5);
    world.finish().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_and_silent_ones_end() {
    let server = Server::new(OK).await;
    let limits = Limits { connections: 1, idle: Duration::from_millis(300), ..Limits::default() };
    let world = World::with(&server.rules("a.test"), &[("a.test", LOOPBACK)], limits).await;
    let mut first = world.connect().await;
    first.write_all(&socks(1, 3, b"a.test", server.port())).await.unwrap();
    let mut answer = [0; 12];
    first.read_exact(&mut answer).await.unwrap();
    // The second is answered only once the first, which is silent, was ended.
    let request = format!("GET http://a.test:{}/ HTTP/1.0\r\n\r\n", server.port());
    assert!(world.exchange(request).await.contains("hello"));
    assert_eq!(first.read(&mut answer).await.unwrap_or(0), 0);
    world.finish().await;
}

#[tokio::test]
async fn a_server_that_switches_protocols_unasked_or_sends_endless_heads_is_an_error() {
    let endless: &'static str =
        Box::leak(format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(80 << 10)).into_boxed_str());
    for answer in [
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        endless,
        "nonsense\r\n\r\n",
    ] {
        let server = Server::new(answer).await;
        let world = World::new(&server.rules("a.test"), &[("a.test", LOOPBACK)]).await;
        let port = server.port();
        let request = format!(
            "GET http://a.test:{port}/ HTTP/1.1\r\nHost: a.test:{port}\r\nUpgrade: x\r\nConnection: upgrade, close\r\n\r\n"
        );
        let answer = world.exchange(request).await;
        assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
        assert!(!server.seen().concat().to_ascii_lowercase().contains("upgrade"));
        world.finish().await;
    }
}

#[tokio::test]
async fn a_host_that_does_not_answer_is_told_from_one_that_is_forbidden() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let rules = vec![format!("a.test at {free}"), format!("nowhere.test at {free}"), "127.0.0.1".to_owned()];
    let world = World::new(&rules, &[("a.test", LOOPBACK)]).await;
    let answer = world.exchange(format!("CONNECT a.test:{free} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("cannot be reached"), "{answer}");
    let answer = world.exchange(format!("CONNECT nowhere.test:{free} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("cannot be resolved"), "{answer}");
    let records = world.finish().await;
    assert!(records.iter().all(|record| matches!(record.outcome, Outcome::Failed { .. })), "{records:?}");
    assert_eq!(records.len(), 2);
}
