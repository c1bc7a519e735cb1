//! `windlass secret`.

use crate::world::World;

#[tokio::test]
async fn secrets_are_set_from_everywhere_and_shown_nowhere() {
    let world = World::new().await;
    let set = world.cli_with_input(&["secret", "set", "db", "password"], "hunter2-hunter2\n").await.ok();
    assert_eq!(set.stdout, "secret/db set: 1 key\n");
    let file = world.file("key.pem", "-----BEGIN-----\nabcdefgh\n");
    let named = format!("tls={file}");
    let literal = "user=admin-user";
    world
        .cli(&["secret", "set", "db", "--from-file", &file, "--from-file", &named, "--from-literal", literal])
        .await
        .ok();
    let listed = world.cli(&["secret", "list"]).await.ok();
    let rows: Vec<Vec<&str>> =
        listed.stdout.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
    let expected = [
        ["NAME", "KEY", "BYTES"],
        ["db", "key.pem", "25"],
        ["db", "password", "15"],
        ["db", "tls", "25"],
        ["db", "user", "10"],
    ];
    assert_eq!(rows, expected);
    for output in [&set, &listed, &world.cli(&["secret", "list", "-A", "-o", "json"]).await.ok()] {
        for value in ["hunter2", "abcdefgh", "admin-user"] {
            assert!(!output.stdout.contains(value) && !output.stderr.contains(value), "{output:?}");
        }
    }
    assert!(world.cli(&["secret", "list", "-n", "other"]).await.ok().stderr.contains("There are no secrets"));
    let deleted = world.cli(&["secret", "delete", "db", "tls", "user"]).await.ok();
    assert_eq!(deleted.stdout, "secret/db key tls deleted\nsecret/db key user deleted\n");
    assert_eq!(world.cli(&["secret", "delete", "db"]).await.ok().stdout, "secret/db deleted\n");
    world.cli(&["secret", "delete", "db"]).await.failed(1);
}

#[tokio::test]
async fn what_is_wrong_is_said_before_or_by_the_server_and_without_the_value() {
    let world = World::new().await;
    assert!(world.cli(&["secret", "set", "db"]).await.failed(2).contains("KEY"));
    assert!(
        world
            .cli(&["secret", "set", "db", "--from-literal", "hunter2"])
            .await
            .failed(2)
            .contains("KEY=VALUE")
    );
    let twice = ["secret", "set", "db", "--from-literal", "a=hunter2", "--from-literal", "a=hunter3"];
    let twice = world.cli(&twice).await.failed(2);
    assert!(twice.contains("`a` is given twice") && !twice.contains("hunter"), "{twice}");
    assert!(
        world.cli(&["secret", "set", "db", "--from-file", "/nowhere"]).await.failed(2).contains("/nowhere")
    );
    let short = world.cli_with_input(&["secret", "set", "db", "pin"], "123").await.failed(65);
    assert!(short.contains("at least 4"), "{short}");
    let large = world.cli_with_input(&["secret", "set", "db", "pin"], &"x".repeat(100_000)).await.failed(65);
    assert!(large.contains("at most 65536"), "{large}");
    let bad = world.cli_with_input(&["secret", "set", "db", "a/b"], "hunter2").await.failed(65);
    assert!(bad.contains("`a/b`") && !bad.contains("hunter2"), "{bad}");
}

#[tokio::test]
async fn a_new_key_is_made_and_taken_into_use() {
    let world = World::new().await;
    world.cli_with_input(&["secret", "set", "db", "password"], "hunter2-hunter2").await.ok();
    let key_file = world.folder.path().join("state/secrets.key").display().to_string();
    let made = world.cli(&["secret", "new-key", &key_file]).await.ok();
    let id = made.stdout.trim().rsplit(' ').next().unwrap().to_owned();
    let rotated = world.cli(&["secret", "rotate"]).await.ok();
    assert_eq!(rotated.stdout, format!("1 value put under the key {id}\n"));
    let listed = world.cli(&["secret", "list", "-o", "json"]).await.ok();
    assert!(listed.stdout.contains(&id), "{}", listed.stdout);
    let file = world.file("notes", "these are notes\n");
    let refused = world.cli(&["secret", "new-key", &file]).await.failed(1);
    assert!(refused.contains("no key of secrets in line 1"), "{refused}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "these are notes\n", "it is left as it was");
}

#[tokio::test]
async fn a_job_on_the_command_line_names_its_secrets() {
    let world = World::new().await;
    let run =
        ["run", "--detach", "--name", "j", "--secret", "TOKEN=github/token", "--secret", "@tls/key=web/key"];
    let run: Vec<&str> = run.iter().copied().chain(["--", "true"]).collect();
    world.cli(&run).await.ok();
    let job = world.cli(&["get", "job", "j", "-o", "json"]).await.ok();
    let job: serde_json::Value = serde_json::from_str(&job.stdout).unwrap();
    let expected = serde_json::json!([
        {"name": "github", "key": "token", "env": "TOKEN"}, {"name": "web", "key": "key", "file": "tls/key"},
    ]);
    assert_eq!(job["spec"]["steps"][0]["secrets"], expected);
    let refused = world.cli(&["run", "--secret", "TOKEN=github", "--", "true"]).await.failed(2);
    assert!(refused.contains("SECRET/KEY"), "{refused}");
}
