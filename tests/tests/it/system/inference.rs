//! The node's server of models, from the manifest to an answer inside a sandbox: a real server with a real model, and a strict
//! stand-in for Ollama.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use windlass_test_engines::{IMAGE, run, socket};
use windlass_test_inference::{LLAMA, MODEL_FILE, OLLAMA, client, make_llama, make_ollama, models, services};

use super::fleet::{Fleet, Process, wait_for};

mod ordinary_user;

const SOON: Duration = Duration::from_secs(90);

fn agent_with(fleet: &Fleet, name: &str, engine: &str) -> Process {
    let token = fleet.json(&["join-token", "create"]);
    let token = token["token"].as_str().expect("the token is text").to_owned();
    let socket = socket(engine).display().to_string();
    fleet.run_agent(name, &["--join", &token, &format!("--{engine}-socket"), &socket])
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port is free").port()
}

/// A node with this inference, in JSON.
fn node(name: &str, inference: &str) -> String {
    format!(
        "apiVersion: windlass.dev/v1alpha1\nkind: NodeConfig\nmetadata: {{name: {name}}}\nspec: {{inference: {inference}}}\n"
    )
}

fn llama(port: u16, fields: &str) -> String {
    llama_in(&models(), port, fields)
}

fn llama_in(folder: &Path, port: u16, fields: &str) -> String {
    format!(
        "{{engine: openaiCompatible, image: '{LLAMA}', port: {port}, modelVolume: '{}', models: [small], args: [-m, \
         /models/{MODEL_FILE}, --alias, small, -c, '512', -t, '1', --no-warmup]{fields}}}",
        folder.display()
    )
}

fn wait_for_condition(fleet: &Fleet, node: &str, name: &str, wanted: &str, word: &str, bound: Duration) {
    let deadline = Instant::now() + bound;
    loop {
        let found = fleet.condition(node, name);
        if found.as_ref().is_some_and(|(status, message)| status == wanted && message.contains(word)) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{name} of {node} is {found:?} and not {wanted} with `{word}` after {} s",
            bound.as_secs()
        );
        // The pause between two looks at a condition, not a wait for something to have happened.
        std::thread::park_timeout(Duration::from_millis(100));
    }
}

/// A job whose script the node's model is there for.
fn job(fleet: &Fleet, name: &str, sandbox: &str, script: &str) {
    let script = script.replace('\n', "\n      ");
    fleet.apply(&format!(
        "apiVersion: windlass.dev/v1alpha1\nkind: SandboxJob\nmetadata: {{name: {name}}}\nspec:\n  sandbox: {{network: \
         Restricted, inference: true{sandbox}}}\n  script:\n    interpreter: sh\n    source: |\n      {script}\n"
    ));
}

/// The JSON that a job has printed.
fn printed(fleet: &Fleet, name: &str) -> serde_json::Value {
    let logs = fleet.text(&["logs", name]);
    let start = logs.find('{').unwrap_or_else(|| panic!("{name} printed no JSON: {logs}"));
    let end = logs.rfind('}').unwrap_or_else(|| panic!("{name} printed no JSON: {logs}"));
    serde_json::from_str(&logs[start..=end]).unwrap_or_else(|error| panic!("{name}: {error}: {logs}"))
}

#[test]
fn a_real_model_answers_a_step_and_a_node_that_needs_it_is_ready_as_soon_as_it_has_it() {
    make_llama("podman");
    let fleet = Fleet::start();
    // Somebody else has the port.
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = taken.local_addr().expect("it is bound").port();
    fleet.apply(&node("n", &llama(port, ", required: true")));
    let agent = agent_with(&fleet, "n", "podman");
    wait_for_condition(&fleet, "n", "Ready", "False", "inference is required", SOON);
    wait_for_condition(&fleet, "n", "InferenceReady", "False", &format!("port {port} of 127.0.0.1"), SOON);
    assert_eq!(services("podman"), Vec::<String>::new(), "nothing is left of what could not start");
    // A job waits, and says why.
    let ask = r#"curl -sS --fail-with-body "$OPENAI_BASE_URL/completions" -H 'content-type: application/json' \
  -d "{\"model\": \"$WINDLASS_INFERENCE_MODEL\", \"prompt\": \"The capital of France is\", \"max_tokens\": 8, \"temperature\": 0}""#;
    job(&fleet, "native", "", ask);
    wait_for("the reason names inference", SOON, || {
        let said = String::from_utf8_lossy(&fleet.cli(&["why", "native"]).stdout).into_owned();
        said.contains("n").then_some(()).filter(|()| said.contains("not ready") || said.contains("inference"))
    });
    drop(taken);
    wait_for_condition(&fleet, "n", "Ready", "True", "", SOON);
    wait_for_condition(&fleet, "n", "InferenceReady", "True", "1 model", SOON);

    fleet.wait_for_phase("native", "Succeeded", SOON);
    let answer = printed(&fleet, "native");
    assert!(answer["usage"]["completion_tokens"].as_u64() > Some(0), "{answer}");
    assert!(!answer["choices"][0]["text"].as_str().unwrap_or_default().is_empty(), "{answer}");
    // From inside a container too.
    let ask = r#"wget -Y off -qO- --header 'content-type: application/json' "$OPENAI_BASE_URL/completions" \
  --post-data '{"model": "small", "prompt": "One, two, three,", "max_tokens": 4, "temperature": 0}'"#;
    job(&fleet, "container", &format!(", runtime: podman, image: '{IMAGE}'"), ask);
    let ended = wait_for("the job has ended", SOON, || {
        let job = fleet.job("container");
        ["Succeeded", "Failed"].contains(&job["status"]["phase"].as_str()?).then_some(job)
    });
    assert_eq!(ended["status"]["phase"], "Succeeded", "{ended}: {}", fleet.text(&["logs", "container"]));
    assert!(printed(&fleet, "container")["usage"]["completion_tokens"].as_u64() > Some(0));
    // The server is open for questions, and for nothing else of the host.
    let probe = "curl -s -o /dev/null -w 'proxied %{http_code}\\n' --noproxy '' -x $WINDLASS_INFERENCE_URL $WINDLASS_INFERENCE_URL/v1/models\n\
                 curl -s -o /dev/null -w 'manage %{http_code}\\n' $WINDLASS_INFERENCE_URL/slots\n\
                 curl -s -o /dev/null -w 'host %{http_code}\\n' --noproxy '' -x $WINDLASS_INFERENCE_URL http://127.0.0.1:PORT/v1/models\n\
                 env | grep -c WINDLASS_INFERENCE";
    job(&fleet, "probe", "", &probe.replace("PORT", &port.to_string()));
    fleet.wait_for_phase("probe", "Succeeded", SOON);
    let logs = fleet.text(&["logs", "probe"]);
    assert!(
        logs.contains("proxied 200"),
        "a client that takes every address to its proxy finds it too: {logs}"
    );
    assert!(logs.contains("manage 403") && logs.contains("host 403"), "{logs}");
    // A model that the node does not have.
    fleet.apply(
        "apiVersion: windlass.dev/v1alpha1\nkind: SandboxJob\nmetadata: {name: other}\nspec:\n  requires: {model: huge}\n  \
         sandbox: {network: Restricted, inference: true}\n  command: ['true']\n",
    );
    wait_for("the reason names the model", SOON, || {
        let said = String::from_utf8_lossy(&fleet.cli(&["why", "other"]).stdout).into_owned();
        said.contains("requires.model huge: the node has small").then_some(())
    });
    let described = fleet.text(&["describe", "node", "n"]);
    assert!(described.contains("openaiCompatible") && described.contains("small"), "{described}");

    // Killed by hand, it comes back.
    let before = started("podman").expect("there is one server");
    let [container] = &services("podman")[..] else { panic!("there is one server") };
    run(client("podman").args(["kill", container]));
    wait_for("another server was started", SOON, || started("podman").filter(|now| *now != before));
    wait_for_condition(&fleet, "n", "Ready", "True", "", SOON);
    // Disabled, it is gone, and so is the condition.
    fleet.apply(&node("n", &llama(port, ", enabled: false")));
    wait_for("the server is gone", SOON, || services("podman").is_empty().then_some(()));
    wait_for("the condition is gone", SOON, || {
        fleet.condition("n", "InferenceReady").is_none().then_some(())
    });
    // A server that ends at once says why.
    fleet.apply(&node("n", &llama(port, "").replace(MODEL_FILE, "no-such-file.gguf")));
    wait_for_condition(&fleet, "n", "InferenceReady", "False", "its last words", SOON);
    fleet.apply(&node("n", &llama(port, "").replace(LLAMA, "localhost/no-such-image:1")));
    wait_for_condition(&fleet, "n", "InferenceReady", "False", "localhost/no-such-image:1", SOON);
    wait_for("nothing is left of either", SOON, || services("podman").is_empty().then_some(()));
    // With the agent goes what it runs.
    fleet.apply(&node("n", &llama(port, "")));
    wait_for_condition(&fleet, "n", "InferenceReady", "True", "1 model", SOON);
    drop(agent);
    assert_eq!(services("podman"), Vec::<String>::new());
}

#[test]
fn models_of_ollama_are_fetched_used_and_removed_and_a_crash_of_the_agent_ends_nothing() {
    make_ollama("docker");
    let fleet = Fleet::start();
    let port = free_port();
    let ollama = |models: &str| format!("{{image: '{OLLAMA}', port: {port}, models: [{models}]}}");
    fleet.apply(&node("d", &ollama("'tiny:1', 'second:1'")));
    let mut agent = agent_with(&fleet, "d", "docker");
    wait_for_condition(&fleet, "d", "InferenceReady", "True", "2 models", SOON);
    let status = fleet.json(&["get", "node", "d"])["status"]["inference"].clone();
    assert_eq!(status["version"], "0.11.4", "{status}");
    assert_eq!(status["models"][1]["name"], "tiny:1", "{status}");
    let digest = status["models"][1]["digest"].as_str().expect("Ollama tells digests").to_owned();
    assert_eq!(digest, format!("sha256:{}", "1".repeat(64)));
    let percent = |log: &str| ["20", "60", "100"].iter().all(|step| log.contains(&format!("percent={step}")));
    assert!(percent(&agent.log()) || agent.log().contains("\"percent\":60"), "{}", agent.log());

    let chat = r#"curl -sS --fail-with-body "$OLLAMA_HOST/api/chat" -H 'content-type: application/json' \
  -d '{"model": "tiny:1", "stream": false, "messages": [{"role": "user", "content": "hello there"}]}'"#;
    job(&fleet, "chat", "", chat);
    fleet.wait_for_phase("chat", "Succeeded", SOON);
    let answer = printed(&fleet, "chat");
    assert_eq!(answer["message"]["content"], "you said: hello there");
    assert!(answer["eval_count"].as_u64() > Some(0));
    job(&fleet, "meddle", "", "curl -sS -X DELETE $OLLAMA_HOST/api/delete -d '{\"model\": \"tiny:1\"}'");
    fleet.wait_for_phase("meddle", "Succeeded", SOON);
    assert!(fleet.text(&["logs", "meddle"]).contains("not among what steps may ask"));

    // What is not listed any more goes; one that does not exist is named.
    fleet.apply(&node("d", &ollama("'tiny:1'")));
    wait_for_condition(&fleet, "d", "InferenceReady", "True", "1 model", SOON);
    fleet.apply(&node("d", &ollama("'tiny:1', 'nobody:7'")));
    wait_for_condition(&fleet, "d", "InferenceReady", "False", "check its name in inference.models", SOON);
    wait_for_condition(&fleet, "d", "Ready", "True", "", SOON);
    fleet.apply(&node("d", &ollama(&format!("'tiny:1@sha256:{}'", "3".repeat(64)))));
    wait_for_condition(&fleet, "d", "InferenceReady", "False", "inference.models names sha256:333", SOON);

    // kill -9 of the agent leaves the server alone, and the next run takes it up.
    fleet.apply(&node("d", &ollama("'tiny:1'")));
    wait_for_condition(&fleet, "d", "InferenceReady", "True", "1 model", SOON);
    let before = started("docker");
    assert!(before.is_some());
    agent.kill();
    let socket = socket("docker").display().to_string();
    let agent = fleet.run_agent("d", &["--docker-socket", &socket]);
    wait_for("the new run has found the server ready", SOON, || {
        agent.log().contains("the server of models is ready").then_some(())
    });
    assert_eq!(started("docker"), before, "it is the same container, and was not started again");
    let own = fleet.path("d").join("inference/models");
    assert!(!own.join("violations").exists(), "{}", read(&own.join("violations")));
    assert!(read(&own.join("requests")).contains("DELETE /api/delete"), "{}", read(&own.join("requests")));
    drop(agent);
    assert_eq!(services("docker"), Vec::<String>::new());
}

#[test]
fn a_server_that_runs_already_is_used_and_one_far_away_needs_the_nodes_leave() {
    let port = free_port();
    let folder = tempfile::tempdir().expect("a folder for the test");
    let program = super::fleet::windlass().with_file_name("windlass-test-ollama");
    let start = || {
        let mut command = Command::new(&program);
        command
            .arg("serve")
            .env("OLLAMA_HOST", format!("127.0.0.1:{port}"))
            .env("OLLAMA_MODELS", folder.path());
        Process::start(&mut command, folder.path().join("log"))
    };
    let fleet = Fleet::start();
    fleet.apply(&node(
        "u",
        &format!("{{url: 'http://localhost:{port}', models: ['tiny:1'], required: true}}"),
    ));
    let token = fleet.json(&["join-token", "create"]);
    let agent = fleet.run_agent("u", &["--join", token["token"].as_str().expect("the token is text")]);
    wait_for_condition(&fleet, "u", "Ready", "False", "does not answer", SOON);
    let server = start();
    let up = Instant::now();
    wait_for_condition(&fleet, "u", "Ready", "True", "", SOON);
    // Ten seconds are promised; as many again are for a machine that has other things to do.
    assert!(up.elapsed() < Duration::from_secs(20), "it took {:?}: {}", up.elapsed(), agent.log());
    job(&fleet, "tags", "", "curl -sS --fail-with-body $OLLAMA_HOST/api/tags");
    fleet.wait_for_phase("tags", "Succeeded", SOON);
    assert_eq!(printed(&fleet, "tags")["models"][0]["name"], "tiny:1");
    // A step that runs has it no more once it is disabled, though the server runs on.
    let asks = "while curl -sS --fail-with-body $OLLAMA_HOST/api/tags > answer; do echo used; sleep 1; done\ncat answer";
    job(&fleet, "asks", "", asks);
    wait_for("the step uses it", SOON, || fleet.text(&["logs", "asks"]).contains("used").then_some(()));
    let used = format!("{{url: 'http://localhost:{port}', models: ['tiny:1'], required: true");
    fleet.apply(&node("u", &format!("{used}, enabled: false}}")));
    fleet.wait_for_phase("asks", "Succeeded", SOON);
    assert!(fleet.text(&["logs", "asks"]).contains("was withdrawn"), "{}", fleet.text(&["logs", "asks"]));
    assert!(fleet.text(&["describe", "job", "asks"]).contains("InferenceWithdrawn"));
    fleet.apply(&node("u", &format!("{used}}}")));
    wait_for_condition(&fleet, "u", "Ready", "True", "", SOON);
    // The same for an address that is refused.
    job(&fleet, "asks-again", "", asks);
    wait_for("the step uses it", SOON, || fleet.text(&["logs", "asks-again"]).contains("used").then_some(()));
    fleet.apply(&node("u", "{url: 'http://93.184.216.34:1'}"));
    fleet.wait_for_phase("asks-again", "Succeeded", SOON);
    assert!(fleet.text(&["describe", "job", "asks-again"]).contains("InferenceWithdrawn"));
    fleet.apply(&node("u", &format!("{used}}}")));
    wait_for_condition(&fleet, "u", "Ready", "True", "", SOON);
    drop(server);
    wait_for_condition(&fleet, "u", "Ready", "False", "does not answer", SOON);
    // Documentation addresses are nobody's: nothing is sent there, for the policy comes first.
    fleet.apply(&node("u", "{url: 'http://93.184.216.34:1', required: true}"));
    wait_for_condition(&fleet, "u", "InferenceReady", "False", "sandbox.externalModels", SOON);
    drop(agent);
}

/// Serves a model by TLS with a certificate of a new authority, which it puts into the folder as `ca.pem`, to whoever has the key.
/// What it is asked with is in `asked` there. Lives as long as the test.
fn serve_by_tls(folder: &Path, key: &'static str) -> u16 {
    use axum::http::{HeaderMap, StatusCode, header::AUTHORIZATION};

    rustls::crypto::ring::default_provider().install_default().ok();
    let made =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate can be made");
    std::fs::write(folder.join("ca.pem"), made.cert.pem()).expect("the folder can be written");
    let asked = folder.join("asked");
    let allow = move |headers: &HeaderMap| {
        let told =
            headers.get(AUTHORIZATION).and_then(|told| told.to_str().ok()).unwrap_or_default().to_owned();
        let mut file =
            std::fs::OpenOptions::new().create(true).append(true).open(&asked).expect("it can be written");
        std::io::Write::write_all(&mut file, format!("{told}\n").as_bytes()).expect("it can be written");
        if told == format!("Bearer {key}") { Ok(()) } else { Err(StatusCode::UNAUTHORIZED) }
    };
    let also = allow.clone();
    let router = axum::Router::new()
        .route(
            "/v1/models",
            axum::routing::get(async move |headers: HeaderMap| {
                also(&headers).map(|()| r#"{"data": [{"id": "far"}]}"#)
            }),
        )
        .route(
            "/v1/completions",
            axum::routing::post(async move |headers: HeaderMap, body: String| {
                allow(&headers)?;
                let wanted: serde_json::Value =
                    serde_json::from_str(&body).map_err(|_| StatusCode::BAD_REQUEST)?;
                let answer = format!("you said: {}", wanted["prompt"].as_str().unwrap_or_default());
                Ok::<_, StatusCode>(serde_json::json!({"choices": [{"text": answer}]}).to_string())
            }),
        );
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.set_nonblocking(true).expect("it is a socket");
    let port = listener.local_addr().expect("it is bound").port();
    let (certificate, private) = (made.cert.der().to_vec(), made.signing_key.serialize_der());
    std::thread::spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("it can be built");
        runtime.block_on(async {
            let tls = axum_server::tls_rustls::RustlsConfig::from_der(vec![certificate], private).await;
            let server = axum_server::from_tcp_rustls(listener, tls.expect("it was just made"));
            server.expect("it listens").serve(router.into_make_service()).await.expect("it serves");
        });
    });
    port
}

#[test]
fn a_server_by_tls_is_used_with_a_key_that_the_step_does_not_see_and_only_if_it_is_who_it_must_be() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let (mine, others) = (folder.path().join("mine"), folder.path().join("others"));
    for folder in [&mine, &others] {
        std::fs::create_dir(folder).expect("the folder can be made");
    }
    let port = serve_by_tls(&mine, "key-of-the-node");
    serve_by_tls(&others, "none");
    let key = mine.join("key");
    std::fs::write(&key, "key-of-the-node\n").expect("the folder can be written");
    let by = |authority: &Path| {
        format!(
            "{{engine: openaiCompatible, url: 'https://localhost:{port}', required: true, caFile: {}, apiKeyFile: {}}}",
            authority.join("ca.pem").display(),
            key.display()
        )
    };
    let fleet = Fleet::start();
    fleet.apply(&node("t", &by(&others)));
    let token = fleet.json(&["join-token", "create"]);
    let agent = fleet.run_agent("t", &["--join", token["token"].as_str().expect("the token is text")]);
    wait_for_condition(&fleet, "t", "Ready", "False", "inference is required", SOON);
    let refused = "none of the authorities in inference.caFile has signed it";
    wait_for_condition(&fleet, "t", "InferenceReady", "False", refused, SOON);
    assert_eq!(read(&mine.join("asked")), "", "nothing was said to somebody else");

    fleet.apply(&node("t", &by(&mine)));
    wait_for_condition(&fleet, "t", "InferenceReady", "True", "1 model", SOON);
    let ask = r#"env; curl -sS --fail-with-body "$OPENAI_BASE_URL/completions" -H "authorization: Bearer $OPENAI_API_KEY" \
  -d "{\"model\": \"$WINDLASS_INFERENCE_MODEL\", \"prompt\": \"hello there\"}""#;
    job(&fleet, "ask", "", ask);
    fleet.wait_for_phase("ask", "Succeeded", SOON);
    let logs = fleet.text(&["logs", "ask"]);
    assert!(
        logs.contains("you said: hello there") && logs.contains("WINDLASS_INFERENCE_MODEL=far"),
        "{logs}"
    );
    assert!(!logs.contains("key-of-the-node") && !agent.log().contains("key-of-the-node"), "{logs}");
    assert!(read(&mine.join("asked")).lines().all(|told| told == "Bearer key-of-the-node"));

    // Another key is taken up without a change of the configuration.
    std::fs::write(&key, "another\n").expect("the folder can be written");
    wait_for_condition(
        &fleet,
        "t",
        "InferenceReady",
        "False",
        "another key than the one of inference.apiKeyFile",
        SOON,
    );
    std::fs::write(&key, "key-of-the-node\n").expect("the folder can be written");
    wait_for_condition(&fleet, "t", "InferenceReady", "True", "1 model", SOON);
    drop(agent);
}

/// Which server runs, and since when; `None` while there is none.
fn started(engine: &str) -> Option<String> {
    let servers = services(engine);
    let [container] = &servers[..] else { return None };
    let format = "{{.Id}} {{.State.StartedAt}}";
    let output =
        client(engine).args(["inspect", "--format", format, container]).output().expect("the client runs");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
