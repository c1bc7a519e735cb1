//! The server of models of an ordinary user's agent, in that user's own Podman.

use std::path::PathBuf;

use windlass_test_engines::{Rootless, program, run};
use windlass_test_inference::{make_llama_in, make_ollama_in, services_in};

use super::*;

/// A user that is no other test's, and the first of its further users.
const USER: (u32, u32) = (54_323, 800_000);

/// An agent of the user, with its Podman.
fn agent(fleet: &Fleet, rootless: &Rootless, state: &Path) -> Process {
    let program = rootless.program(&super::super::fleet::windlass(), "windlass");
    let token = fleet.json(&["join-token", "create"]);
    let mut command = rootless.command(&program);
    command
        .args(["agent", "--name", "r", "--join", token["token"].as_str().expect("the token is text")])
        .arg("--state-dir")
        .arg(state)
        .arg("--podman-socket")
        .arg(rootless.socket());
    Process::start(&mut command, fleet.path("r.log"))
}

/// The folder with the small model, as a file of the user's.
fn models_of(rootless: &Rootless) -> PathBuf {
    let folder = rootless.own_folder("models");
    let copy = folder.join(MODEL_FILE);
    // The user's own command, so that it is the user's file.
    let mut command = rootless.command(Path::new("/bin/sh"));
    command.args(["-c", "cat > \"$1\"", "sh"]).arg(&copy);
    let model = std::fs::File::open(models().join(MODEL_FILE)).expect("the model is there");
    run(command.stdin(model));
    folder
}

#[test]
fn an_ordinary_user_has_a_real_model_answer_from_a_podman_without_root_and_nothing_of_it_is_roots() {
    let rootless = Rootless::start(USER.0, USER.1);
    let servers = || services_in(program("podman", &rootless.socket()));
    make_llama_in("podman", &rootless.socket());
    make_ollama_in("podman", &rootless.socket());
    let (folder, state) = (models_of(&rootless), rootless.own_folder("state"));
    let fleet = Fleet::start();
    let port = free_port();
    let llama = |fields: &str| llama_in(&folder, port, fields);
    fleet.apply(&node("r", &llama(", required: true")));
    let agent = agent(&fleet, &rootless, &state);
    wait_for_condition(&fleet, "r", "InferenceReady", "True", "1 model", SOON);
    wait_for_condition(&fleet, "r", "Ready", "True", "", SOON);
    assert_eq!(servers().len(), 1);
    let ask = r#"curl -sS --fail-with-body "$OPENAI_BASE_URL/completions" -H 'content-type: application/json' \
  -d "{\"model\": \"$WINDLASS_INFERENCE_MODEL\", \"prompt\": \"The capital of France is\", \"max_tokens\": 8, \"temperature\": 0}""#;
    job(&fleet, "ask", "", ask);
    fleet.wait_for_phase("ask", "Succeeded", SOON);
    let answer = printed(&fleet, "ask");
    assert!(!answer["choices"][0]["text"].as_str().unwrap_or_default().is_empty(), "{answer}");

    fleet.apply(&node("r", &llama(", enabled: false")));
    wait_for("the server is gone", SOON, || servers().is_empty().then_some(()));
    assert_eq!(rootless.of_root(&folder), Vec::<String>::new());

    // One that writes its models itself, into the agent's own folder.
    let ollama = format!("{{image: '{OLLAMA}', port: {port}, models: ['tiny:1']");
    fleet.apply(&node("r", &format!("{ollama}}}")));
    wait_for_condition(&fleet, "r", "InferenceReady", "True", "1 model", SOON);
    fleet.apply(&node("r", &format!("{ollama}, enabled: false}}")));
    wait_for("the server is gone", SOON, || servers().is_empty().then_some(()));
    let written = std::fs::read_dir(state.join("inference/models")).expect("the agent has made it");
    assert!(written.count() > 0, "the server has written there");
    assert_eq!(rootless.of_root(&state), Vec::<String>::new());
    drop(agent);
}
