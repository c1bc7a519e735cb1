//! The rules that hold between crates (CONTRIBUTING.md), read from the workspace itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use strum::IntoEnumIterator;
use windlass_crds::sandbox_job::{Network, Runtime};

/// Which crates of ours each crate may use; everything else is forbidden.
const ARROWS: &[(&str, &[&str])] = &[
    ("windlass-crds", &[]),
    ("windlass-core", &["windlass-crds"]),
    ("windlass-store", &["windlass-crds"]),
    ("windlass-controller", &["windlass-core", "windlass-crds", "windlass-store"]),
    ("windlass-launcher", &[]),
    ("windlass-sandbox", &["windlass-launcher"]),
    ("windlass-agent", &["windlass-crds", "windlass-sandbox"]),
];

/// What a crate must not use, directly: the reason why it is a crate of its own.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("windlass-crds", &["tokio", "sqlx", "axum", "reqwest"]),
    ("windlass-core", &["tokio", "sqlx", "axum", "reqwest", "kube", "rand"]),
    ("windlass-store", &["axum", "reqwest", "kube"]),
    ("windlass-controller", &["sqlx"]),
    ("windlass-launcher", &["tokio", "reqwest"]),
    ("windlass-sandbox", &["sqlx", "axum", "reqwest", "kube"]),
    ("windlass-agent", &["sqlx"]),
];

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs, it has built this test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON")
}

/// The normal dependencies of each crate of the workspace.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().expect("packages is a list");
    let text = |value: &Value| value.as_str().expect("names are text").to_owned();
    packages
        .iter()
        .map(|package| {
            let all = package["dependencies"].as_array().expect("dependencies is a list");
            let normal = all.iter().filter(|dependency| dependency["kind"].is_null());
            (text(&package["name"]), normal.map(|dependency| text(&dependency["name"])).collect())
        })
        .collect()
}

#[test]
fn crates_use_only_the_crates_that_the_arrows_allow() {
    let dependencies = dependencies();
    for (name, allowed) in ARROWS {
        let used = &dependencies[*name];
        for ours in used.iter().filter(|used| used.starts_with("windlass")) {
            assert!(allowed.contains(&ours.as_str()), "{name} must not use {ours}");
        }
    }
}

#[test]
fn crates_keep_away_from_what_they_exist_to_forbid() {
    let dependencies = dependencies();
    for (name, forbidden) in FORBIDDEN {
        for other in *forbidden {
            assert!(!dependencies[*name].contains(*other), "{name} must not use {other}");
        }
    }
}

/// The names of tests in a document, `module::name`; one may be cut short by `…`, and `module::*` is all of a module.
fn named_tests(document: &str) -> Vec<(&str, &str)> {
    let quoted = document.split('`').skip(1).step_by(2);
    quoted.filter_map(|words| words.rsplit(' ').next()?.rsplit_once("::")).collect()
}

#[test]
fn every_test_that_a_table_of_guarantees_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above");
    let suites = ["native", "hostile"].map(|suite| root.join("sandbox/tests").join(suite));
    for document in ["docs/isolation.md", "docs/limits.md"] {
        let text = std::fs::read_to_string(root.join(document)).expect("the document is there");
        let named = named_tests(&text);
        assert!(named.len() > 10, "{document} says how its promises are proven");
        for (module, name) in named {
            let files = suites.iter().map(|suite| suite.join(module.replace("::", "/")).with_extension("rs"));
            let functions = match name.strip_suffix('…') {
                Some(beginning) => format!("fn {beginning}"),
                None if name == "*" => "fn ".to_owned(),
                None => format!("fn {name}("),
            };
            let found = files.filter_map(|file| std::fs::read_to_string(file).ok());
            let found =
                found.filter(|source| source.contains("#[tokio::test]") || source.contains("#[test]"));
            assert!(
                found.into_iter().any(|source| source.contains(&functions)),
                "{document}: {module}::{name}"
            );
        }
    }
}

#[test]
fn the_readme_says_what_there_is_and_where_it_is_told() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above");
    let readme = std::fs::read_to_string(root.join("README.md")).expect("the document is there");
    let (_, has) = readme.split_once("This version has:").expect("it says so");
    let schema = std::fs::read_to_string(root.join("crds/yaml/sandboxjobs.yaml")).expect("it is generated");
    let rule =
        schema.lines().find(|line| line.contains("exactly one of `command`")).expect("steps have a rule");
    let kinds = rule.split('`').skip(1).step_by(2).map(ToOwned::to_owned);
    let runtimes = Runtime::iter().map(|runtime| runtime.to_string());
    let networks = Network::iter().map(|network| network.to_string());
    for word in kinds.chain(runtimes).chain(networks) {
        assert!(has.contains(&format!("`{word}`")), "the README does not say that there is `{word}`");
    }
    for document in std::fs::read_dir(root.join("docs")).expect("there are documents") {
        let name = document.expect("it can be listed").file_name().into_string().expect("its name is text");
        let named = !name.ends_with(".md") || readme.contains(&format!("`{name}`"));
        assert!(named, "the README does not name docs/{name}");
    }
}

#[test]
fn every_crate_obeys_the_workspace_lints() {
    let metadata = metadata();
    for package in metadata["packages"].as_array().expect("packages is a list") {
        let manifest = package["manifest_path"].as_str().expect("a path is text");
        let text = std::fs::read_to_string(manifest).expect("cargo has read it too");
        assert!(
            text.contains("[lints]\nworkspace = true"),
            "{manifest} must have `[lints] workspace = true`"
        );
    }
}

#[test]
fn unsafe_code_lives_in_the_launcher_alone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the workspace");
    let mut pending = vec![root.to_owned()];
    let mut looked_at = 0;
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(&folder).expect("the folder is there") {
            let path = entry.expect("the entry can be read").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() && !name.starts_with('.') && name != "target" && name != "launcher" {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") && name != "architecture.rs"
            {
                looked_at += 1;
                let text = std::fs::read_to_string(&path).expect("sources are text");
                for word in ["unsafe {", "unsafe fn", "unsafe impl"] {
                    assert!(!text.contains(word), "{} has `{word}`", path.display());
                }
            }
        }
    }
    assert!(looked_at > 50, "the walk must have found the sources, not {looked_at} files");
}
