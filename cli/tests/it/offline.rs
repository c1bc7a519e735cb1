//! What needs no server.

use std::path::Path;

use crate::world::{Output, bare, finish};

async fn cli(args: &[&str], home: &Path) -> Output {
    finish(bare(args, home)).await
}

#[tokio::test]
async fn manifests_are_validated_with_file_line_and_column() {
    let home = tempfile::tempdir().unwrap();
    let good = "apiVersion: windlass.dev/v1alpha1\nkind: SandboxJob\nmetadata: {generateName: a-}\nspec: {command: [ls]}\n";
    std::fs::write(
        home.path().join("good.yaml"),
        format!("{good}---\n{}", good.replace("generateName: a-", "name: b")),
    )
    .unwrap();
    let output = cli(&["validate", "-f", "good.yaml"], home.path()).await.ok();
    assert_eq!(output.stdout, "good.yaml:1: job/a-* is valid\ngood.yaml:6: job/b is valid\n");

    let bad = "apiVersion: windlass.dev/v1alpha1\nkind: SandboxJob\nmetadata:\n  name: Upper\nspec:\n  comand: [ls]\n  timeout: soon\n";
    std::fs::write(home.path().join("bad.yaml"), bad).unwrap();
    let output = cli(&["validate", "-f", "good.yaml", "-f", "bad.yaml"], home.path()).await;
    assert_eq!((output.code, output.stdout.as_str()), (Some(65), ""));
    for place in ["bad.yaml:6:3: spec.comand", "bad.yaml:7:12: spec.timeout"] {
        assert!(output.stderr.contains(place), "`{place}` in {}", output.stderr);
    }
    assert!(output.stderr.contains("command"), "the nearest field is named: {}", output.stderr);

    // What no schema says: a job needs something to do.
    std::fs::write(home.path().join("idle.yaml"), good.replace("{command: [ls]}", "{}")).unwrap();
    let idle = cli(&["validate", "-f", "idle.yaml"], home.path()).await.failed(65);
    assert!(idle.contains("idle.yaml:4:"), "{idle}");
    std::fs::write(home.path().join("binary.yaml"), b"a: \xff\0").unwrap();
    assert!(
        cli(&["validate", "-f", "binary.yaml"], home.path()).await.failed(65).contains("binary.yaml:1:4")
    );
}

#[tokio::test]
async fn settings_are_shown_with_their_origin_and_without_secrets() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join(".config/windlass");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("token"), "very-secret").unwrap();
    std::fs::write(
        folder.join("config.yaml"),
        "server: https://file.example\ntokenFile: token\nnamespace: ci\n",
    )
    .unwrap();
    let mut command = bare(&["config", "--namespace", "flag", "-o", "json"], home.path());
    command.env("WINDLASS_CA_FILE", "/env/ca.pem").env("WINDLASS_SERVER", "");
    let output = finish(command).await.ok();
    assert!(!output.stdout.contains("very-secret"));
    let rows: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    let row = |name: &str| {
        let rows = rows.as_array().unwrap();
        let row = rows.iter().find(|row| row["name"] == name).unwrap();
        (row["value"].as_str().unwrap().to_owned(), row["from"].as_str().unwrap().to_owned())
    };
    let file = folder.join("config.yaml").display().to_string();
    assert_eq!(row("server"), ("https://file.example/".into(), format!("the file {file}")));
    assert_eq!(row("caFile").1, "the environment variable WINDLASS_CA_FILE");
    assert_eq!(row("tokenFile").0, folder.join("token").display().to_string());
    assert_eq!(row("namespace"), ("flag".into(), "the flag --namespace".into()));

    let table = cli(&["config"], home.path()).await.ok().stdout;
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        (&rows[0][..], &rows[2][..]),
        (&["NAME", "VALUE", "FROM"][..], &["caFile", "-", "nobody"][..])
    );
    std::fs::write(folder.join("config.yaml"), "sever: https://file.example\n").unwrap();
    let wrong = cli(&["config"], home.path()).await.failed(2);
    assert!(wrong.contains("unknown field `sever`") && wrong.contains("line 1"), "{wrong}");
}

#[tokio::test]
async fn the_version_needs_no_server_and_names_one_that_does_not_answer() {
    let home = tempfile::tempdir().unwrap();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(cli(&["version"], home.path()).await.ok().stdout, format!("windlass {version}\n"));
    assert_eq!(cli(&["--version"], home.path()).await.ok().stdout, format!("windlass {version}\n"));
    let output = cli(&["version", "-o", "json", "--server", "http://127.0.0.1:1"], home.path()).await.ok();
    let versions: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(versions, serde_json::json!({"client": version}));
    assert!(output.stderr.contains("cannot be reached"), "{}", output.stderr);
}

#[tokio::test]
async fn completions_are_scripts_that_their_shell_accepts() {
    let home = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(cli(&["completion", shell], home.path()).await.ok().stdout.contains("join-token"), "{shell}");
    }
    let script = cli(&["completion", "bash"], home.path()).await.ok().stdout;
    let file = home.path().join("completion");
    std::fs::write(&file, script).unwrap();
    let mut check = tokio::process::Command::new("bash");
    check.arg("-n").arg(&file).kill_on_drop(true);
    finish(check).await.ok();
}

#[tokio::test]
async fn a_wrong_word_on_the_command_line_names_the_right_one() {
    let home = tempfile::tempdir().unwrap();
    let kind = cli(&["get", "jbos"], home.path()).await.failed(2);
    assert!(kind.contains("'jobs'") && kind.contains("nodes, jobs, templates, queues"), "{kind}");
    let verb = cli(&["aply"], home.path()).await.failed(2);
    assert!(verb.contains("'apply'"), "{verb}");
    let help = cli(&[], home.path()).await;
    assert_eq!(help.code, Some(2));
    assert!(help.stderr.contains("Usage: windlass"), "{}", help.stderr);
}
