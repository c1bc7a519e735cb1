//! Servers that a sandbox is given at the proxy's own address.

use super::*;

#[tokio::test]
async fn a_server_of_the_host_is_reached_at_the_proxys_own_address_and_only_for_what_it_offers() {
    let server = Server::new(OK).await;
    let local = LocalServer {
        address: server.address,
        host: "models.test:7".to_owned(),
        prefix: "/base".to_owned(),
        tls: None,
        authorization: None,
        rule: "sandbox.inference".to_owned(),
        requests: &[("GET", "/v1/models"), ("POST", "/v1/completions")],
    };
    let world = World::with_local(&[], &[], Limits::default(), Some(local));
    let answer = world
        .exchange("GET /v1/models?a=1 HTTP/1.1\r\nHost: 127.0.0.1:3128\r\nOrigin: http://x\r\nConnection: close\r\n\r\n")
        .await;
    assert!(answer.contains("hello"), "{answer}");
    let seen = server.seen().concat();
    assert!(seen.starts_with("GET /base/v1/models?a=1 HTTP/1.1\r\n"), "{seen}");
    assert!(
        seen.contains("host: models.test:7\r\n") && !seen.to_ascii_lowercase().contains("origin"),
        "{seen}"
    );
    for refused in [
        "DELETE /v1/models",
        "POST /api/delete",
        "GET /v1/../v1/models",
        "GET //v1/models",
        "GET /v1%2fmodels",
    ] {
        let answer =
            world.exchange(format!("{refused} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await;
        assert!(
            answer.starts_with("HTTP/1.1 403") && answer.contains("not among what steps may ask"),
            "{refused}: {answer}"
        );
    }
    // Its address opens nothing else: whoever names a host needs a rule.
    let by_name = format!(
        "GET http://{0}/v1/models HTTP/1.1\r\nHost: {0}\r\nConnection: close\r\n\r\n",
        server.address
    );
    assert!(world.exchange(by_name).await.starts_with("HTTP/1.1 403"));
    assert_eq!(server.seen().len(), 1);
    let records = world.finish().await;
    let allowed = Outcome::Allowed { rule: "sandbox.inference".to_owned() };
    assert!(records.iter().any(|record| record.outcome == allowed && record.received > 0), "{records:?}");
}

#[tokio::test]
async fn a_server_of_the_host_that_is_withdrawn_is_cut_off_and_refused_until_it_is_given_again() {
    // It promises more than it sends, as a model does that is still at it.
    const HALF: &str = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf";
    let server = Server::new(HALF).await;
    let local = LocalServer {
        address: server.address,
        host: "models.test:7".to_owned(),
        prefix: String::new(),
        tls: None,
        authorization: None,
        rule: "sandbox.inference".to_owned(),
        requests: &[("GET", "/v1/models")],
    };
    let world = World::with_local(&[], &[], Limits::default(), Some(local.clone()));
    let request = "GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1:3128\r\n\r\n";
    let half = async || {
        let mut client = world.connect().await;
        client.write_all(request.as_bytes()).await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"half") {
            assert_ne!(client.read_buf(&mut seen).await.unwrap(), 0, "{}", String::from_utf8_lossy(&seen));
        }
        client
    };
    let mut open = half().await;
    world.served.offer_local(None);
    let rest = tokio::time::timeout(Duration::from_secs(30), read_to_end(&mut open)).await;
    assert_eq!(rest.expect("the answer is cut off"), "");
    let answer = world.exchange(request).await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("was withdrawn"), "{answer}");
    let by_address = "GET http://127.0.0.1:3128/v1/models HTTP/1.1\r\nHost: 127.0.0.1:3128\r\n\r\n";
    assert!(world.exchange(by_address).await.contains("was withdrawn"));
    world.served.offer_local(Some(local));
    drop(half().await);
    world.finish().await;
}

/// A server by TLS, whose certificate is its own authority, for `name`; and how it is to be verified under another name.
fn tls_server(name: &str, as_name: &str) -> (tokio_rustls::TlsAcceptor, Tls) {
    use tokio_rustls::rustls::{self, pki_types::PrivatePkcs8KeyDer};

    let provider = || Arc::new(rustls::crypto::ring::default_provider());
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let server = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key.into())
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tls = Tls::new(vec![certificate.to_vec()], as_name.to_owned().try_into().unwrap(), client);
    (Arc::new(server).into(), tls)
}

/// A proxy that gives the server at this address.
fn world_by_tls(address: SocketAddr, tls: Tls) -> World {
    let local = LocalServer {
        address,
        host: "models.test".to_owned(),
        prefix: String::new(),
        tls: Some(tls),
        authorization: Some("Bearer of-the-node".try_into().unwrap()),
        rule: "sandbox.inference".to_owned(),
        requests: &[("GET", "/v1/models")],
    };
    World::with_local(&[], &[], Limits::default(), Some(local))
}

const ASK_MODELS: &str = "GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1:3128\r\nAuthorization: Bearer of-the-step\r\nConnection: \
                          close\r\n\r\n";

#[tokio::test]
async fn a_server_by_tls_is_asked_with_the_nodes_key_and_not_with_the_steps() {
    let (acceptor, tls) = tls_server("models.test", "models.test");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = world_by_tls(listener.local_addr().unwrap(), tls);
    let serving = tokio::spawn(async move {
        let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut seen).await.unwrap(), 0);
        }
        stream.write_all(OK.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        String::from_utf8(seen).unwrap()
    });
    let answer = world.exchange(ASK_MODELS).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("hello"), "{answer}");
    let seen = serving.await.unwrap();
    assert!(seen.contains("host: models.test\r\n") && seen.contains("Bearer of-the-node"), "{seen}");
    assert!(!seen.contains("of-the-step") && !answer.contains("of-the-node"), "{seen} {answer}");
    world.finish().await;
}

#[tokio::test]
async fn a_server_by_tls_that_is_somebody_else_is_asked_nothing() {
    let (mine, wanted) = (tls_server("models.test", "models.test"), tls_server("models.test", "models.test"));
    let other_name = tls_server("other.test", "models.test");
    for ((acceptor, _), tls) in [(mine, wanted.1), (other_name.clone(), other_name.1)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let world = world_by_tls(listener.local_addr().unwrap(), tls);
        let serving = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            acceptor.accept(stream).await.map(drop)
        });
        let answer = world.exchange(ASK_MODELS).await;
        assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("certificate"), "{answer}");
        assert!(serving.await.unwrap().is_err(), "there was no handshake");
        let records = world.finish().await;
        let failed = |record: &Record| matches!(&record.outcome, Outcome::Failed { reason } if reason.contains("certificate"));
        assert!(records.iter().any(failed), "{records:?}");
    }
}

#[tokio::test]
async fn without_a_server_of_the_host_a_path_alone_is_a_broken_request() {
    let world = World::new(&[], &[]).await;
    let answer = world.exchange("GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("this is a proxy"), "{answer}");
    world.finish().await;
}
