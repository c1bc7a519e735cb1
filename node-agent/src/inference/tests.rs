//! What steps and reports are told.

use windlass_crds::inference::{InferenceEngine, InferenceVariant, Model};
use windlass_crds::protocol::InferenceBackend;

use super::*;

/// A server of Ollama as it is usually.
pub(super) fn backend() -> InferenceBackend {
    InferenceBackend {
        enabled: true,
        required: false,
        engine: InferenceEngine::Ollama,
        url: None,
        ca_file: None,
        api_key_file: None,
        runtime: None,
        image: None,
        args: Vec::new(),
        port: None,
        env: std::collections::BTreeMap::new(),
        model_volume: None,
        variant: InferenceVariant::Cpu,
        models: Vec::new(),
        prune_models: None,
        memory_bytes: None,
        cpu_millis: None,
    }
}

fn with_models(names: &[&str]) -> InferenceHandle {
    let handle = InferenceHandle::new();
    let model = |name: &&str| Model { name: (*name).to_owned(), ..Model::default() };
    let status = InferenceStatus {
        ready: true,
        models: names.iter().map(model).collect(),
        ..InferenceStatus::default()
    };
    let endpoint = Endpoint {
        configured: place::Place::of(&InferenceBackend { url: Some("http://h:7/x".to_owned()), ..backend() }),
        address: ([127, 0, 0, 1], 7).into(),
        host: "h:7".to_owned(),
        prefix: "/x".to_owned(),
        tls: None,
        authorization: None,
    };
    handle
        .state
        .send_replace(State { told: Some(told(status, true, false, true)), endpoint: Some(endpoint) });
    handle
}

#[tokio::test]
async fn a_step_is_told_the_proxys_address_and_the_model() {
    let handle = with_models(&["a:1", "b:1"]);
    assert_eq!(handle.unusable(), None);
    let value = |model, name: &str| {
        handle.environment(model).into_iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    };
    assert_eq!(value(None, "OPENAI_BASE_URL").as_deref(), Some("http://127.0.0.1:3128/v1"));
    assert_eq!(value(None, "OLLAMA_HOST").as_deref(), Some("http://127.0.0.1:3128"));
    assert_eq!(value(None, "WINDLASS_INFERENCE_MODEL").as_deref(), Some("a:1"));
    assert_eq!(value(Some("b:1"), "WINDLASS_INFERENCE_MODEL").as_deref(), Some("b:1"));
    let server = handle.local_server().await.unwrap();
    assert_eq!((server.prefix.as_str(), server.rule.as_str()), ("/x", "sandbox.inference"));
    assert!(server.requests.iter().all(|(method, _)| ["GET", "HEAD", "POST"].contains(method)));
    for changing in ["/api/pull", "/api/delete", "/api/create", "/api/copy", "/api/push"] {
        assert!(server.requests.iter().all(|(_, path)| !path.starts_with(changing)), "{changing}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_withdrawn_is_noticed_and_one_that_stays_is_not() {
    let handle = with_models(&["a:1"]);
    let given = handle.local_server().await;
    let wait = tokio::time::timeout(std::time::Duration::from_secs(60), handle.other_than(given.as_ref()));
    assert!(wait.await.is_err(), "nothing has changed");
    handle.state.send_replace(State::default());
    assert_eq!(handle.other_than(given.as_ref()).await, None);
}

#[tokio::test(start_paused = true)]
async fn without_a_server_a_step_is_told_why_and_waits_no_longer_than_it_must() {
    let handle = InferenceHandle::new();
    assert!(handle.unusable().unwrap().contains("not configured"));
    assert_eq!(handle.local_server().await, None);
}

#[test]
fn addresses_of_the_host_and_of_private_networks_are_near() {
    for near in ["127.0.0.1", "::1", "10.1.2.3", "192.168.1.1", "fd00::1"] {
        assert!(is_near(near.parse().unwrap()), "{near}");
    }
    assert!(!is_near("93.184.216.34".parse().unwrap()));
}
