//! What people read when something is wrong, and the exit codes that programs see.

use crate::fake::{self, Fake};
use crate::world::{World, bare, finish};

#[tokio::test]
async fn nothing_configured_says_how_to_begin() {
    let home = tempfile::tempdir().unwrap();
    let stderr = finish(bare(&["get", "jobs"], home.path())).await.failed(2);
    assert!(stderr.contains("error: no server is configured"), "{stderr}");
    assert!(stderr.contains("hint: start one on this machine with `windlass dev`"), "{stderr}");
}

#[tokio::test]
async fn a_refused_connection_names_the_url_its_origin_and_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    // Bound and dropped: nobody listens there now.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("https://127.0.0.1:{port}");
    let stderr = finish(bare(&["get", "jobs", "--server", &url], home.path())).await.failed(69);
    assert!(stderr.contains(&format!("error: the server at {url}/ cannot be reached")), "{stderr}");
    assert!(stderr.contains("Connection refused"), "{stderr}");
    assert!(stderr.contains("the flag --server") && stderr.contains("windlass dev"), "{stderr}");
}

#[tokio::test]
async fn a_dev_that_has_died_is_told_from_a_wrong_address() {
    let home = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let folder = home.path().join(".local/state/windlass");
    std::fs::create_dir_all(&folder).unwrap();
    let token = home.path().join("token");
    std::fs::write(&token, "secret\n").unwrap();
    let text =
        format!("server: http://127.0.0.1:{port}\ncaFile: /none\ntokenFile: {}\npid: 1\n", token.display());
    std::fs::write(folder.join("dev.yaml"), text).unwrap();
    let stderr = finish(bare(&["get", "jobs"], home.path())).await.failed(69);
    assert!(stderr.contains("dev.yaml is not running any more: start it again"), "{stderr}");
    assert!(!stderr.contains("secret"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_and_a_wrong_authority_are_told_apart() {
    let world = World::new().await;
    let wrong = world.file("wrong-token", "nonsense\n");
    let stderr = world.cli(&["get", "jobs", "--token-file", &wrong]).await.failed(77);
    assert!(stderr.contains("token") && stderr.contains("--token-file"), "{stderr}");
    let empty = world.file("empty-token", " \n");
    assert!(
        world.cli(&["get", "jobs", "--token-file", &empty]).await.failed(2).contains("does not hold a token")
    );
    assert!(world.cli(&["get", "jobs", "--ca-file", &empty]).await.failed(2).contains("no certificate"));
    assert!(world.cli(&["get", "jobs", "--ca-file", "none.pem"]).await.failed(2).contains("none.pem"));

    let other = World::new().await;
    let stderr = world.cli(&["get", "jobs", "--ca-file", &other.ca_file]).await.failed(69);
    assert!(stderr.contains("the certificate of https://127.0.0.1"), "{stderr}");
    assert!(stderr.contains("belongs to another controller"), "{stderr}");
}

#[tokio::test]
async fn a_server_that_is_no_controller_is_recognised() {
    let html = "<html>\n<body>It works!\u{1b}[31m</body></html>";
    let fake = Fake::new(vec![fake::other("/v1/namespaces/default/jobs", 200, "text/html", html)]).await;
    let stderr = fake.cli(&["get", "jobs"]).await.failed(1);
    assert!(stderr.contains("in a way that a Windlass controller does not"), "{stderr}");
    assert!(stderr.contains("It works!␛[31m"), "{stderr}");
    let stderr = fake.cli(&["get", "nodes"]).await.failed(1);
    assert!(stderr.contains("answered 404"), "{stderr}");
    let stderr = fake.cli(&["get", "jobs", "-w"]).await.failed(1);
    assert!(stderr.contains("`text/html` where a stream of events"), "{stderr}");
}

#[tokio::test]
async fn a_refusal_prints_its_fields_one_a_line_and_a_defect_names_its_request() {
    let problem = |status: u16, code: &str| {
        serde_json::json!({
            "type": format!("urn:windlass:problem:{code}"), "title": "title", "status": status, "detail": "What happened.",
            "code": code, "request_id": "r-1",
            "errors": [{"field": "spec.a", "message": "is wrong"}, {"field": "spec.b", "message": "too"}],
        })
        .to_string()
    };
    let path = "/v1/namespaces/default/jobs";
    for (status, code, exit) in [
        (422, "invalid", 65),
        (403, "forbidden", 77),
        (503, "unavailable", 69),
        (500, "internal", 1),
        (409, "new", 1),
    ] {
        let answer = fake::other(path, status, "application/problem+json", &problem(status, code));
        let stderr = Fake::new(vec![answer]).await.cli(&["get", "jobs"]).await.failed(exit);
        assert!(stderr.starts_with("error: What happened\n  spec.a: is wrong\n  spec.b: too\n"), "{stderr}");
        assert_eq!(stderr.contains("r-1"), status >= 500, "{stderr}");
    }
}

#[tokio::test]
async fn a_newer_server_whose_objects_cannot_be_shown_says_what_helps() {
    let list = serde_json::json!({"items": [{"metadata": {"name": "a"}, "status": {"phase": "Dreaming"}}]});
    let fake = Fake::new(vec![fake::json("/v1/namespaces/default/jobs", &list)]).await;
    let stderr = fake.cli(&["get", "jobs"]).await.failed(1);
    assert!(stderr.contains("Dreaming") && stderr.contains("-o json"), "{stderr}");
    assert!(fake.cli(&["get", "jobs", "-o", "json"]).await.ok().stdout.contains("Dreaming"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_goes_away_is_no_error() {
    let world = World::new().await;
    let binary = env!("CARGO_BIN_EXE_windlass");
    let script = format!("{binary} explain job.spec | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}");
    let mut command = tokio::process::Command::new("bash");
    command.args(["-c", &script]).env("HOME", world.folder.path()).kill_on_drop(true);
    let output = finish(command).await.ok();
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("0\n", ""));
}
