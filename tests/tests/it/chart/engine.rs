//! Helm's engine, as `tests/chart/helm.py` gives it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};

/// The chart's folder.
pub(crate) fn chart() -> PathBuf {
    root().join("charts/windlass")
}

/// The project's folder.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the workspace").to_owned()
}

/// The python that has Helm's engine; it is set up where that was not done yet.
pub(crate) fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let made = Command::new(root().join("tests/chart/engine")).output().expect("the script runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        PathBuf::from(String::from_utf8_lossy(&made.stdout).trim())
    })
}

/// What the engine answers.
///
/// # Panics
/// Where it breaks; a refusal is an answer.
pub(crate) fn ask(request: &Value) -> Value {
    let mut child = Command::new(python())
        .arg(root().join("tests/chart/helm.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python runs");
    let mut input = child.stdin.take().expect("it is piped");
    input.write_all(request.to_string().as_bytes()).expect("the script reads its input");
    drop(input);
    let output = child.wait_with_output().expect("it is our child");
    assert!(output.status.success(), "{request}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("the script prints JSON")
}

/// The files of values that the chart is tried with: name and content.
pub(crate) fn cases() -> Vec<(String, String)> {
    let folder = chart().join("ci");
    let mut cases: Vec<_> = std::fs::read_dir(folder)
        .expect("the chart has cases")
        .map(|entry| entry.expect("it can be read").path())
        .map(|path| {
            let name = path.file_stem().expect("it is a file").to_string_lossy().into_owned();
            (name, std::fs::read_to_string(&path).expect("it can be read"))
        })
        .collect();
    cases.sort();
    assert!(cases.len() >= 8, "{}", cases.len());
    cases
}

/// The objects that the chart makes of values, for the release `windlass` in a namespace.
pub(crate) fn render(values: &str, namespace: &str) -> Vec<Value> {
    let answer = answer(values, namespace);
    let objects = answer["objects"].as_array();
    objects.unwrap_or_else(|| panic!("{values}: {}", answer["refused"])).clone()
}

/// What the engine says to values.
pub(crate) fn answer(values: &str, namespace: &str) -> Value {
    ask(&json!({
        "verb": "render", "chart": chart(), "values": values, "name": "windlass", "namespace": namespace,
    }))
}

/// The objects of a text of YAML.
pub(crate) fn parse(text: &str) -> Vec<Value> {
    let answer = ask(&json!({"verb": "parse", "text": text}));
    answer["objects"].as_array().unwrap_or_else(|| panic!("{answer}")).clone()
}

/// The objects of a kind.
pub(crate) fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

/// A text in JSON; empty where there is none.
pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A list in JSON; empty where there is none.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The specs of all pods that objects describe, with kind and name of what does.
pub(crate) fn pods(objects: &[Value]) -> Vec<(String, &Value)> {
    let spec = |object| match object {
        &Value::Null => None,
        object => match text(&object["kind"]) {
            "Pod" => Some(&object["spec"]),
            "StatefulSet" | "Deployment" | "DaemonSet" | "Job" => Some(&object["spec"]["template"]["spec"]),
            _ => None,
        },
    };
    let named = |object: &Value| format!("{}/{}", text(&object["kind"]), text(&object["metadata"]["name"]));
    objects.iter().filter_map(|object| Some((named(object), spec(object)?))).collect()
}
