//! `HttpClient` over real TLS.

use std::time::Duration;

use futures::TryStreamExt as _;
use windlass_agent::{Authority, ClientError, ControllerClient, HttpClient, Identity, JoinToken, Session};
use windlass_crds::protocol::{
    AgentCapability, Bootstrap, CapabilityReport, ClaimRequest, Compute, NodeIdentity, Platform,
    RegisterRequest, VERSION,
};

use crate::controller::{Controller, SECRET};

fn request(psk: Option<&str>) -> RegisterRequest {
    let identity = Identity::ephemeral("node-1", &[1; 32]).unwrap();
    let now = jiff::Timestamp::from_second(1_800_000_000).unwrap();
    RegisterRequest {
        psk: psk.map(str::to_owned),
        capability: CapabilityReport {
            version: VERSION,
            reported_at: now,
            node: NodeIdentity { node_slug: "node-1".to_owned(), name: None, labels: Default::default() },
            platform: Platform {
                os: "linux".to_owned(),
                distro: None,
                arch: "amd64".to_owned(),
                kernel_version: None,
            },
            compute: Compute { cpu_model: None, cpu_cores: 1, ram_mb: 1, storage_free_mb: None },
            container_runtime: None,
            inference: None,
            gpu: None,
            sandbox: None,
            agent: Some(AgentCapability { boot_id: "boot".to_owned(), ..AgentCapability::default() }),
            worker_api: None,
            tls: None,
        },
        proof: Some(identity.prove("boot", now)),
    }
}

fn session(bootstrap: Bootstrap) -> Session {
    Session {
        node_uid: bootstrap.node_uid,
        token: bootstrap.auth.node_jwt,
        issued_at: bootstrap.issued_at,
        expires_at: bootstrap.auth.expires_at,
        endpoints: bootstrap.orchestrator.endpoints,
    }
}

fn claim() -> ClaimRequest {
    ClaimRequest {
        version: VERSION,
        request_id: "r".to_owned(),
        boot_id: "boot".to_owned(),
        max: 1,
        wait_seconds: 0,
        held: Vec::new(),
    }
}

#[tokio::test]
async fn a_join_token_is_all_it_takes_to_trust_the_controller() {
    let controller = Controller::start().await;
    let token: JoinToken = controller.token().parse().unwrap();
    let client = HttpClient::new(&token.url, &Authority::Pinned(token.authority)).unwrap();
    assert_eq!(client.found_authority(), None);
    let session = session(client.register(&request(Some(SECRET))).await.unwrap());
    let found = client.found_authority().unwrap();
    let Authority::Known(known) = Authority::from_pem(controller.ca_pem()).unwrap() else { panic!() };
    assert_eq!(found, known[0]);

    // From now on the authority itself is known.
    let client = HttpClient::new(&token.url, &Authority::Known(known)).unwrap();
    let configuration = client.configuration(&session, None, Duration::ZERO).await.unwrap().unwrap();
    assert_eq!(configuration["config_version"], "1");
    assert_eq!(client.configuration(&session, Some(1), Duration::ZERO).await.unwrap(), None);
    assert!(client.claim(&session, &claim()).await.unwrap().assignments.is_empty());
}

#[tokio::test]
async fn a_controller_with_another_authority_is_not_talked_to() {
    let controller = Controller::start().await;
    let mut wrong = controller.ca_hash();
    wrong[0] ^= 1;
    let impostor = Controller::start().await;
    let known = Authority::from_pem(impostor.ca_pem()).unwrap();
    for authority in [Authority::Pinned(wrong), Authority::Pinned(impostor.ca_hash()), known] {
        let client = HttpClient::new(&controller.url(), &authority).unwrap();
        let error = client.register(&request(Some(SECRET))).await.unwrap_err();
        assert_eq!(error.kind(), "unreachable");
        let mut chain = String::new();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            chain.push_str(&format!("{error}\n"));
            cause = error.source();
        }
        assert!(chain.contains("certificate"), "{chain}");
        assert_eq!(client.found_authority(), None);
    }
    assert!(controller.state().registrations.is_empty(), "the secret was not shown");
}

#[tokio::test]
async fn a_certificate_of_the_right_authority_for_another_name_is_refused() {
    let controller = Controller::start().await;
    let mut elsewhere = controller.url();
    elsewhere.set_host(Some("localhost")).unwrap();
    let client = HttpClient::new(&elsewhere, &Authority::Pinned(controller.ca_hash())).unwrap();
    let error = client.register(&request(Some(SECRET))).await.unwrap_err();
    assert_eq!(error.kind(), "unreachable");
    assert!(controller.state().registrations.is_empty());
}

#[tokio::test]
async fn refusals_carry_status_code_and_detail() {
    let controller = Controller::start().await;
    let client = HttpClient::new(&controller.url(), &Authority::Pinned(controller.ca_hash())).unwrap();
    let error = client.register(&request(Some("wrong"))).await.unwrap_err();
    assert!(error.is_unauthorized());
    assert!(!error.to_string().contains("wrong"), "{error}");
    assert!(error.to_string().contains("a detail"), "{error}");

    let session = session(client.register(&request(Some(SECRET))).await.unwrap());
    let bad = Session { token: "other".to_owned(), ..session };
    assert!(client.claim(&bad, &claim()).await.unwrap_err().is_unauthorized());
}

#[tokio::test]
async fn a_controller_that_is_not_there_is_unreachable_and_plain_http_is_refused() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    drop(listener);
    let client = HttpClient::new(&url.parse().unwrap(), &Authority::Pinned([0; 32])).unwrap();
    let error = client.register(&request(None)).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    let plain = HttpClient::new(&"http://127.0.0.1:1".parse().unwrap(), &Authority::Pinned([0; 32])).unwrap();
    assert_eq!(plain.register(&request(None)).await.unwrap_err().kind(), "unreachable");
}

#[tokio::test]
async fn an_input_arrives_as_a_stream() {
    let controller = Controller::start().await;
    let content = vec![7; 3 << 20];
    controller.change(|state| state.inputs.insert("sha256:abc".to_owned(), content.clone()));
    let client = HttpClient::new(&controller.url(), &Authority::Pinned(controller.ca_hash())).unwrap();
    let session = session(client.register(&request(Some(SECRET))).await.unwrap());
    let chunks: Vec<bytes::Bytes> =
        client.input(&session, "sha256:abc").await.unwrap().try_collect().await.unwrap();
    assert!(chunks.len() > 1);
    assert_eq!(chunks.concat(), content);
    let missing = client.input(&session, "sha256:def").await.err().unwrap();
    assert!(missing.is_not_found());
}
