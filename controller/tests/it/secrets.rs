//! Secrets over REST, in claims, in the database, and under keys that change.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use windlass_controller::backup::{self, Backup, PlaceArgs, Restore};
use windlass_controller::clock::{Clock, RandomIds, SystemClock};
use windlass_controller::kube::Reading;
use windlass_controller::metrics::Metrics;
use windlass_controller::secrets::{self, Delivery, Keyring, Secrets};
use windlass_controller::{Controller, ControllerArgs, Error};

use crate::startup::start;
use crate::world::World;

const VALUE: &str = "correct horse battery staple";

fn values(pairs: &[(&str, &str)]) -> Value {
    let values: serde_json::Map<String, Value> =
        pairs.iter().map(|(key, value)| ((*key).to_owned(), STANDARD.encode(value).into())).collect();
    json!({"values": values})
}

fn path(name: &str) -> String {
    format!("/v1/namespaces/default/secrets/{name}")
}

fn job(uses: &[(&str, &str)]) -> Value {
    let uses: Vec<Value> = uses
        .iter()
        .enumerate()
        .map(|(number, (name, key))| json!({"name": name, "key": key, "env": format!("V{number}")}))
        .collect();
    json!({"steps": [{"name": "plain", "command": ["true"]}, {"name": "uses", "command": ["true"], "secrets": uses}]})
}

#[tokio::test]
async fn a_secret_is_set_listed_and_deleted_and_never_shown() {
    let world = World::settled().await;
    let made = world.put(&path("db"), values(&[("password", VALUE), ("user", "admin-user")])).await;
    assert_eq!(made.status, 201, "{made:?}");
    world.clock.advance(std::time::Duration::from_secs(5));
    let again = world.put(&path("db"), values(&[("user", "another")])).await;
    assert_eq!(again.status, 200, "{again:?}");
    let found = world.get(&path("db")).await;
    let keys: Vec<_> =
        found.body["keys"].as_array().unwrap().iter().map(|key| (&key["key"], &key["bytes"])).collect();
    assert_eq!(keys, [(&json!("password"), &json!(28)), (&json!("user"), &json!(7))]);
    assert!(found.body["keys"][1]["updatedAt"].as_str() > found.body["keys"][1]["createdAt"].as_str());
    world.put("/v1/namespaces/other/secrets/db", values(&[("x", "xxxx")])).await;
    let all = world.get("/v1/secrets").await.body;
    let named: Vec<_> =
        all["items"].as_array().unwrap().iter().map(|item| item["namespace"].as_str().unwrap()).collect();
    assert_eq!(named, ["default", "other"]);
    for answer in [&made, &again, &found, &world.get("/v1/namespaces/default/secrets").await] {
        let text = answer.body.to_string();
        assert!(!text.contains(VALUE) && !text.contains(&STANDARD.encode(VALUE)), "{text}");
    }
    assert_eq!(world.delete(&format!("{}/keys/nothing", path("db"))).await.status, 404);
    assert_eq!(world.delete(&format!("{}/keys/user", path("db"))).await.status, 204);
    assert_eq!(world.get(&path("db")).await.body["keys"].as_array().unwrap().len(), 1);
    assert_eq!(world.delete(&path("db")).await.status, 204);
    for gone in [world.get(&path("db")).await, world.delete(&path("db")).await] {
        assert_eq!((gone.status, gone.body["code"].as_str()), (404, Some("not_found")));
    }
}

#[tokio::test]
async fn callers_without_a_token_and_nodes_reach_no_secret() {
    let world = World::settled().await;
    let node = world.node("n1").await;
    for token in ["wrong", node.token.as_str()] {
        for (method, body) in [("GET", None), ("PUT", Some(values(&[("a", "aaaa")]))), ("DELETE", None)] {
            assert_eq!(world.send(token, method, &path("s"), body.as_ref()).await.status, 401);
        }
        assert_eq!(world.send(token, "GET", "/v1/secrets", None).await.status, 401);
        assert_eq!(world.send(token, "POST", "/v1/secrets/rotate", None).await.status, 401);
    }
}

#[tokio::test]
async fn what_cannot_be_kept_is_refused_by_name_and_changes_nothing() {
    let world = World::settled().await;
    let large = "x".repeat((64 << 10) + 1);
    let many: Vec<(String, String)> = (0..65).map(|n| (format!("k{n}"), "xxxx".to_owned())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    for (name, body, part) in [
        ("s", values(&[]), "names no key"),
        ("s", values(&[("ok", "xxxx"), ("bad key", "xxxx")]), "the key `bad key`"),
        (
            "s",
            values(&[("ok", "xxxx"), ("short", "abc")]),
            "values.short: has 3 bytes; a secret needs at least 4",
        ),
        ("s", values(&[("ok", "xxxx"), ("large", &large)]), "values.large: has 65537 bytes, at most 65536"),
        ("s", values(&many), "names 65 keys"),
        ("Not-a-name", values(&[("ok", "xxxx")]), "name: `Not-a-name`"),
    ] {
        let refused = world.put(&path(name), body).await;
        assert_eq!(refused.status, 422, "{refused:?}");
        assert!(refused.body.to_string().contains(part), "{} lacks {part}", refused.body);
    }
    for wrong in [
        json!({"values": {"k": "hunter2!"}}),
        json!({"values": {"k": ["hunter2"]}}),
        json!({"values": "hunter2"}),
        json!({"values": [{"k": "hunter2"}]}),
    ] {
        let refused = world.put(&path("s"), wrong).await;
        assert!([400, 422].contains(&refused.status), "{refused:?}");
        let said = refused.body.to_string();
        assert!(said.contains("base64") && !said.contains("hunter2"), "{said}");
    }
    assert_eq!(world.get(&path("s")).await.status, 404, "nothing was half applied");
    assert_eq!(world.put(&path("s"), values(&many[..40])).await.status, 201);
    let more: Vec<_> = many[40..].iter().map(|(key, value)| (*key, *value)).collect();
    let refused = world.put(&path("s"), values(&more)).await;
    assert!(refused.body["detail"].as_str().unwrap().contains("would have 65 keys"), "{}", refused.body);
}

#[tokio::test]
async fn only_the_claim_of_the_job_that_names_a_secret_has_it() {
    let world = World::settled().await;
    world.put(&path("db"), values(&[("password", VALUE), ("other", "not this one")])).await;
    world.put("/v1/namespaces/other/secrets/db", values(&[("password", "of another namespace")])).await;
    world.job("with", job(&[("db", "password"), ("db", "password"), ("db", "missing"), ("gone", "x")])).await;
    let agent = world.node("n1").await;
    let claimed = agent.claim("r1", 1).await;
    let given = &claimed[0]["secrets"];
    assert_eq!(given.as_array().unwrap().len(), 3, "each once: {given}");
    let of = |name: &str, key: &str| {
        given.as_array().unwrap().iter().find(|value| value["name"] == name && value["key"] == key).unwrap()
    };
    assert_eq!(of("db", "password")["value"], STANDARD.encode(VALUE));
    assert!(
        of("db", "missing")["problem"].as_str().unwrap().contains("Secret `default/db` has no key `missing`")
    );
    assert!(of("gone", "x")["problem"].as_str().unwrap().contains("there is no Secret `default/gone`"));
    assert!(of("gone", "x")["problem"].as_str().unwrap().contains("windlass secret set -n default gone x"));
    assert_eq!(agent.claim("r1", 1).await[0]["secrets"], *given, "the same request, the same answer");
    world.job("without", json!({"command": ["true"]})).await;
    let plain = agent.claim("r2", 1).await;
    assert_eq!((plain[0]["name"].as_str(), plain[0].get("secrets")), (Some("without"), None));
    for path in [
        "/v1/jobs",
        "/v1/namespaces/default/jobs/with",
        "/v1/namespaces/default/jobs/with/attempts",
        "/v1/namespaces/default/jobs/with/result",
        "/v1/namespaces/default/jobs/with/events",
        "/v1/namespaces/default/jobs/with/placement",
        "/v1/nodes",
        "/v1/nodes/n1/attempts",
        "/v1/events",
        "/v1/secrets",
        "/metrics",
    ] {
        let answer = world.get(path).await;
        assert_eq!(answer.status, 200, "{path}");
        let text = answer.body.to_string();
        assert!(!text.contains(VALUE) && !text.contains(&STANDARD.encode(VALUE)), "{path}: {text}");
    }
    let metrics = world.get("/metrics").await.body.to_string();
    assert!(metrics.contains("windlass_secrets_total{outcome=\\\"missing\\\"} 4"), "{metrics}");
}

#[tokio::test]
async fn more_than_one_job_may_have_is_told_in_its_place() {
    let world = World::settled().await;
    let large = "x".repeat(60 << 10);
    world.put(&path("s"), values(&[("a", &large), ("b", &large), ("c", &large)])).await;
    world.job("j", job(&[("s", "a"), ("s", "b"), ("s", "c")])).await;
    let agent = world.node("n1").await;
    let given = agent.claim("r1", 1).await[0]["secrets"].clone();
    assert!(given[0]["value"].is_string() && given[1]["value"].is_string(), "{given}");
    assert!(
        given[2]["problem"].as_str().unwrap().contains("131072 bytes that one job is given"),
        "{}",
        given[2]
    );
}

#[tokio::test]
async fn a_value_opens_only_in_its_own_place_and_only_with_its_key() {
    let world = World::settled().await;
    world.put(&path("a"), values(&[("k", VALUE)])).await;
    let mut row = world.store.secret_values("default", "a").await.unwrap().remove(0);
    let sealed = String::from_utf8_lossy(&row.value.sealed).into_owned();
    assert!(!sealed.contains("horse"), "{sealed}");
    // Somebody who can write the database puts it where another job can name it.
    row.value.entry = "stolen".into();
    world.store.put_secret(world.clock.now(), ("other", "a"), vec![row.value], 9).await.unwrap();
    let spec = json!({"command": ["true"], "secrets": [{"name": "a", "key": "stolen", "env": "V"}]});
    let spec: windlass_crds::SandboxJobSpec = serde_json::from_value(spec).unwrap();
    let delivered = |keys: Keyring| {
        let (store, clock, spec) = (world.store.clone(), world.clock.clone(), spec.clone());
        async move {
            let secrets =
                Secrets::new(store, clock, std::sync::Arc::new(RandomIds::seeded(5)), Metrics::new(), keys);
            deliver(&secrets, "other", &spec).await
        }
    };
    let keys = Keyring::of_text(crate::world::SECRETS_KEY).unwrap();
    assert!(delivered(keys).await.contains("is damaged in the database"));
    assert!(delivered(Keyring::none()).await.contains("which this controller does not have"));
}

async fn deliver(secrets: &Secrets, namespace: &str, spec: &windlass_crds::SandboxJobSpec) -> String {
    let delivery =
        secrets.deliver("none", namespace, spec, &Reading::new(&CancellationToken::new())).await.unwrap();
    let Delivery::Given { mut secrets, .. } = delivery else {
        panic!("nothing is asked of a cluster: {delivery:?}")
    };
    secrets.remove(0).problem.expect("it cannot be opened")
}

#[tokio::test]
async fn a_controller_without_a_key_says_so() {
    let world = World::without_key().await;
    let refused = world.put(&path("s"), values(&[("k", VALUE)])).await;
    assert_eq!(refused.status, 409, "{refused:?}");
    assert!(refused.body["detail"].as_str().unwrap().contains("--secrets-key-file"), "{}", refused.body);
}

fn args(folder: &Path) -> ControllerArgs {
    ControllerArgs::new(folder.to_owned(), ([127, 0, 0, 1], 0).into())
}

/// A client of a controller.
struct Client<'a> {
    controller: &'a Controller,
    http: reqwest::Client,
    token: String,
}

impl<'a> Client<'a> {
    fn of(controller: &'a Controller) -> Self {
        rustls::crypto::ring::default_provider().install_default().ok();
        let ca = std::fs::read(controller.ca_file()).unwrap();
        let ca = reqwest::Certificate::from_pem_bundle(&ca).unwrap();
        let http = reqwest::Client::builder().tls_certs_only(ca).no_proxy().build().unwrap();
        let token = std::fs::read_to_string(controller.admin_token_file()).unwrap().trim().to_owned();
        Self { controller, http, token }
    }

    async fn send(&self, method: reqwest::Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let url = format!("{}{path}", self.controller.url());
        let mut request = self.http.request(method, url).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        (status, response.json().await.unwrap_or(Value::Null))
    }
}

/// Starts a controller, does something with it, and stops it in order.
async fn with_controller<T>(
    args: &ControllerArgs,
    work: impl AsyncFnOnce(Client<'_>) -> T,
) -> Result<T, Error> {
    let stop = CancellationToken::new();
    let controller = start(args, &stop).await?;
    let done = work(Client::of(&controller)).await;
    stop.cancel();
    controller.stopped().await?;
    Ok(done)
}

/// Whether any file below a folder holds a text.
fn holds(folder: &Path, text: &str) -> bool {
    std::fs::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return holds(&path, text);
        }
        let content = std::fs::read(&path).unwrap();
        content.windows(text.len()).any(|window| window == text.as_bytes())
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_made_changed_and_missed() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let args = args(&state);
    let set = async |client: Client<'_>| {
        let (status, body) =
            client.send(reqwest::Method::PUT, &path("s"), Some(values(&[("k", VALUE)]))).await;
        assert_eq!(status, 201, "{body}");
    };
    with_controller(&args, set).await.unwrap();
    assert!(!holds(&state, VALUE) && !holds(&state, &STANDARD.encode(VALUE)));
    let key_file = state.join("secrets.key");
    let old = std::fs::read_to_string(&key_file).unwrap();

    // Rotation under the running controller.
    let rotate = async |client: Client<'_>| {
        let id = secrets::add_key(&key_file, &RandomIds::from_os()).unwrap();
        let (status, body) = client.send(reqwest::Method::POST, "/v1/secrets/rotate", None).await;
        assert_eq!((status, body), (200, json!({"key": id, "values": 1})));
        let (_, secret) = client.send(reqwest::Method::GET, &path("s"), None).await;
        assert_eq!(secret["keys"][0]["sealedUnder"], id);
        let (_, again) = client.send(reqwest::Method::POST, "/v1/secrets/rotate", None).await;
        assert_eq!(again["values"], 0);
        // Another controller may have put everything under a key that this one has not met.
        let newest = secrets::add_key(&key_file, &RandomIds::from_os()).unwrap();
        let (status, _) = client.send(reqwest::Method::PUT, &path("s"), Some(values(&[("k", VALUE)]))).await;
        assert_eq!(status, 200);
        let (_, secret) = client.send(reqwest::Method::GET, &path("s"), None).await;
        assert_eq!(secret["keys"][0]["sealedUnder"], newest);
    };
    with_controller(&args, rotate).await.unwrap();
    let both = std::fs::read_to_string(&key_file).unwrap();
    let new = both.lines().next().unwrap().to_owned();

    // The old key alone is the wrong one, and no key is none.
    std::fs::write(&key_file, &old).unwrap();
    let wrong = start(&args, &CancellationToken::new()).await.err().unwrap();
    let wrong = format!("{wrong}: {}", std::error::Error::source(&wrong).unwrap());
    assert!(
        wrong.contains("1 secret values under the key") && wrong.contains("secrets.key does not have it"),
        "{wrong}"
    );
    std::fs::remove_file(&key_file).unwrap();
    let missing = start(&args, &CancellationToken::new()).await.err().unwrap();
    let missing = std::error::Error::source(&missing).unwrap().to_string();
    assert!(
        missing.contains("secrets.key, is missing") && missing.contains("--discard-unreadable-secrets"),
        "{missing}"
    );
    assert!(!key_file.exists(), "none is made in place of one that is needed");

    // Elsewhere, as a file that is named or a credential.
    let elsewhere = folder.path().join("credentials");
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::write(elsewhere.join("windlass-secrets-key"), &new).unwrap();
    let read = async |client: Client<'_>| client.send(reqwest::Method::GET, &path("s"), None).await.0;
    let credential = ControllerArgs { credentials_directory: Some(elsewhere.clone()), ..args.clone() };
    assert_eq!(with_controller(&credential, read).await.unwrap(), 200);
    let named =
        ControllerArgs { secrets_key_file: Some(elsewhere.join("windlass-secrets-key")), ..args.clone() };
    assert_eq!(with_controller(&named, read).await.unwrap(), 200);

    // Given up.
    let discard = ControllerArgs { discard_unreadable_secrets: true, ..args.clone() };
    assert_eq!(with_controller(&discard, read).await.unwrap(), 404);
    assert!(key_file.exists());
    let again = async |client: Client<'_>| {
        client.send(reqwest::Method::PUT, &path("s"), Some(values(&[("k", VALUE)]))).await.0
    };
    assert_eq!(with_controller(&args, again).await.unwrap(), 201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_keeps_secrets_sealed_and_its_restore_needs_their_key() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    let file = folder.path().join("backup.tar.gz");
    let set = async |client: Client<'_>| {
        let (status, _) = client.send(reqwest::Method::PUT, &path("s"), Some(values(&[("k", VALUE)]))).await;
        assert_eq!(status, 201);
        let place = PlaceArgs::new(from.clone());
        let backup = Backup { place: &place, file: &file, secrets: true };
        backup::create(&backup, &SystemClock).await.unwrap()
    };
    let taken = with_controller(&args(&from), set).await.unwrap();
    assert_eq!(taken.1.tables["secret_values"], 1);
    let unpacked = folder.path().join("unpacked");
    std::fs::create_dir(&unpacked).unwrap();
    let packed = std::fs::File::open(&file).unwrap();
    tar::Archive::new(flate2::read::GzDecoder::new(packed)).unpack(&unpacked).unwrap();
    let key = std::fs::read_to_string(from.join("secrets.key")).unwrap();
    for text in [VALUE, &STANDARD.encode(VALUE), key.split(' ').next().unwrap()] {
        assert!(!holds(&unpacked, text), "{text} is in the backup");
    }
    let place = PlaceArgs::new(to.clone());
    let restore = Restore { place: &place, file: &file, replace: false, hold: None };
    backup::restore(&restore, &SystemClock, &RandomIds::from_os()).await.unwrap();
    let missing = start(&args(&to), &CancellationToken::new()).await.err().unwrap();
    assert!(
        std::error::Error::source(&missing).unwrap().to_string().contains("put that key back"),
        "{missing}"
    );
    std::fs::copy(from.join("secrets.key"), to.join("secrets.key")).unwrap();
    let rotate = async |client: Client<'_>| {
        secrets::add_key(&to.join("secrets.key"), &RandomIds::from_os()).unwrap();
        client.send(reqwest::Method::POST, "/v1/secrets/rotate", None).await
    };
    let (status, rotated) = with_controller(&args(&to), rotate).await.unwrap();
    assert_eq!((status, &rotated["values"]), (200, &json!(1)), "the restored value opens: {rotated}");
}
