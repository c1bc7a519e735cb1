//! Declaring, listing, describing and deleting objects.

use serde_json::Value;

use crate::world::{Act, World};

const JOB: &str = "apiVersion: windlass.dev/v1alpha1\nkind: SandboxJob\nmetadata:\n  name: hello\n  labels:\n    team: core\nspec:\n  command: [echo, hello]\n";
const NODE: &str =
    "apiVersion: windlass.dev/v1alpha1\nkind: NodeConfig\nmetadata:\n  name: n1\nspec:\n  concurrency: 3\n";
const TEMPLATE: &str = "apiVersion: windlass.dev/v1alpha1\nkind: JobTemplate\nmetadata:\n  name: report\nspec:\n  version: \"1\"\n  description: Makes a report.\n  parameters:\n  - name: since\n    required: true\n  job:\n    command: [echo, '${{ params.since }}']\n";

fn lines(text: &str) -> Vec<Vec<&str>> {
    text.lines().map(|line| line.split_whitespace().collect()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn applying_twice_changes_nothing_and_a_change_is_told() {
    let world = World::new().await;
    let folder = "manifests";
    world.file("manifests/1.yaml", JOB);
    world.file("manifests/2.yaml", &format!("{NODE}---\n{TEMPLATE}"));
    let first = world.cli(&["apply", "-f", folder]).await.ok();
    assert_eq!(first.stdout, "job/hello created\nnode/n1 created\ntemplate/report created\n");
    assert_eq!(first.stderr, "");
    let again = world.cli(&["apply", "-f", folder]).await.ok();
    assert_eq!(again.stdout, "job/hello unchanged\nnode/n1 unchanged\ntemplate/report unchanged\n");
    world.file("manifests/2.yaml", &NODE.replace('3', "5"));
    let changed = world.cli(&["apply", "-f", "manifests/2.yaml"]).await.ok();
    assert_eq!(changed.stdout, "node/n1 configured\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_from_standard_input_goes_to_the_namespace_of_the_flag() {
    let world = World::new().await;
    let applied = world.cli_with_input(&["apply", "-f", "-", "-n", "ci"], JOB).await.ok();
    assert_eq!(applied.stdout, "job/hello created\n");
    let listed = world.cli(&["get", "jobs", "-A"]).await.ok();
    assert_eq!(lines(&listed.stdout)[1][..2], ["ci", "hello"]);
    let nothing = world.cli(&["get", "jobs"]).await.ok();
    assert_eq!(nothing.stdout, "");
    assert!(nothing.stderr.contains("no such jobs in the namespace default"), "{}", nothing.stderr);

    let elsewhere = JOB.replace("  name: hello", "  namespace: other\n  name: hello");
    let refused = world.cli_with_input(&["apply", "-f", "-", "-n", "ci"], &elsewhere).await.failed(65);
    assert!(refused.contains("stdin:4:14: metadata.namespace"), "{refused}");
    assert!(refused.contains("is for the namespace `other`, but --namespace names `ci`"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_applied_when_one_manifest_is_invalid() {
    let world = World::new().await;
    let good = world.file("good.yaml", JOB);
    let bad = world.file("bad.yaml", &JOB.replace("command", "comand"));
    let refused = world.cli(&["apply", "-f", &good, "-f", &bad]).await.failed(65);
    assert!(refused.contains(&format!("{bad}:8:3: spec.comand")), "{refused}");
    assert_eq!(world.cli(&["get", "jobs", "-o", "name"]).await.ok().stdout, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_refused_object_does_not_keep_the_others_out() {
    let world = World::new().await;
    let file = world.file("all.yaml", JOB);
    world.cli(&["apply", "-f", &file]).await.ok();
    let file = world.file("all.yaml", &format!("{}---\n{NODE}", JOB.replace("hello]", "other]")));
    let output = world.cli(&["apply", "-f", &file]).await;
    assert_eq!(output.code, Some(65), "{output:?}");
    assert_eq!(output.stdout, "node/n1 created\n");
    assert!(output.stderr.contains("job/hello was not applied"), "{}", output.stderr);
    assert!(output.stderr.contains("spec.steps"), "the immutable field is named: {}", output.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_printed_in_every_form() {
    let world = World::new().await;
    let file =
        world.file("all.yaml", &format!("{JOB}---\n{}", JOB.replace("hello", "bye").replace("core", "web")));
    world.cli(&["apply", "-f", &file]).await.ok();

    let table = world.cli(&["get", "sj"]).await.ok().stdout;
    assert_eq!(lines(&table)[0], ["NAME", "QUEUE", "PHASE", "NODE", "EXIT", "DURATION", "AGE"]);
    assert_eq!(lines(&table).len(), 3);
    let selected = world.cli(&["get", "jobs", "-l", "team=web", "-o", "name"]).await.ok().stdout;
    assert_eq!(selected, "job/bye\n");
    let none = world.cli(&["get", "jobs", "--phase", "succeeded,failed", "-o", "name"]).await.ok().stdout;
    assert_eq!(none, "");
    let queue = world.cli(&["get", "jobs", "--queue", "default", "-o", "json"]).await.ok().stdout;
    let list: Value = serde_json::from_str(&queue).unwrap();
    assert_eq!(
        (list["kind"].as_str(), list["items"].as_array().map(Vec::len)),
        (Some("SandboxJobList"), Some(2))
    );

    let one = world.cli(&["get", "job/hello", "-o", "json"]).await.ok().stdout;
    let one: Value = serde_json::from_str(&one).unwrap();
    assert_eq!(one["metadata"]["name"], "hello");
    let yaml = world.cli(&["get", "job", "hello", "-o", "yaml"]).await.ok().stdout;
    let same: Value = serde_saphyr::from_str(&yaml).unwrap();
    assert_eq!(same, one);

    let queues = world.cli(&["get", "q"]).await.ok().stdout;
    assert_eq!(lines(&queues)[1][..2], ["default", "2"]);
    let both = world.cli(&["get", "job/hello", "queue/default", "-o", "name"]).await.ok().stdout;
    assert_eq!(both, "job/hello\nqueue/default\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_said_and_what_is_there_is_printed() {
    let world = World::new().await;
    let file = world.file("job.yaml", JOB);
    world.cli(&["apply", "-f", &file]).await.ok();
    let output = world.cli(&["get", "jobs", "hello", "missing", "-o", "name"]).await;
    assert_eq!((output.code, output.stdout.as_str()), (Some(1), "job/hello\n"));
    assert!(output.stderr.contains("error: ") && output.stderr.contains("missing"), "{}", output.stderr);
    let watch = world.cli(&["get", "templates", "-w"]).await.failed(2);
    assert!(watch.contains("only jobs and nodes can be watched"), "{watch}");
    let queue = world.cli(&["describe", "queue", "none"]).await.failed(1);
    assert!(queue.contains("there is no queue `none`"), "{queue}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_prints_what_there_is_and_each_change_in_line() {
    let world = World::new().await;
    let file = world.file("job.yaml", JOB);
    world.cli(&["apply", "-f", &file]).await.ok();
    let mut watch = world.start(&["get", "jobs", "-w"]);
    watch.stdout_has("Queued").await;
    world.cli(&["cancel", "hello"]).await.ok();
    watch.stdout_has("Cancelled").await;
    world.cli(&["delete", "job", "hello"]).await.ok();
    watch.stdout_has("deleted").await;
    watch.interrupt();
    let output = watch.end().await;
    assert_eq!(output.code, None, "an interrupt ends it as it ends any program");
    let starts: Vec<usize> = output
        .stdout
        .lines()
        .map(|line| {
            ["PHASE", "Queued", "Cancelled", "deleted"].iter().find_map(|word| line.find(word)).unwrap()
        })
        .collect();
    assert!(starts.iter().all(|start| *start == starts[0]), "{}", output.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_description_tells_why_a_job_waits_and_what_became_of_it() {
    let world = World::new().await;
    let file = world.file("all.yaml", &format!("{JOB}---\n{TEMPLATE}"));
    world.cli(&["apply", "-f", &file]).await.ok();
    let waiting = world.cli(&["describe", "job", "hello"]).await.ok().stdout;
    assert!(waiting.contains("Phase:          Queued"), "{waiting}");
    assert!(waiting.contains("there is no node yet"), "{waiting}");
    assert!(waiting.contains("team=core"), "{waiting}");

    let mut node = world.node("n1").await;
    node.perform(&[Act::Stdout(b"hello\n".to_vec()), Act::Event("the disk is nearly full"), Act::Exit(3)])
        .await;
    world.cli(&["wait", "job/hello", "--for", "condition=Failed", "--timeout", "30s"]).await.ok();
    let failed = world.cli(&["describe", "job/hello", "node/n1", "template/report", "queue/default"]).await;
    let parts = [
        "Phase:          Failed",
        "Exit code:      3",
        "Attempts",
        "Steps",
        "Conditions",
        "the disk is nearly full",
    ];
    for expected in parts {
        assert!(failed.stdout.contains(expected), "`{expected}` in {}", failed.stdout);
    }
    assert!(failed.stdout.contains("debian 12 amd64 (kernel 6.1)"), "{}", failed.stdout);
    assert!(failed.stdout.contains("1 wanted, 1 acknowledged, 1 in force"), "{}", failed.stdout);
    assert!(
        failed.stdout.contains("Makes a report.") && failed.stdout.contains("since"),
        "{}",
        failed.stdout
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_is_final_and_can_be_told_to_ignore_what_is_gone() {
    let world = World::new().await;
    let file = world.file("all.yaml", &format!("{JOB}---\n{NODE}---\n{TEMPLATE}"));
    world.cli(&["apply", "-f", &file]).await.ok();
    let deleted = world.cli(&["delete", "-f", &file]).await.ok().stdout;
    assert_eq!(deleted, "job/hello deleted\nnode/n1 deleted\ntemplate/report deleted\n");
    let gone = world.cli(&["delete", "job", "hello"]).await.failed(1);
    assert!(gone.contains("hello"), "{gone}");
    world.cli(&["delete", "job", "hello", "--ignore-not-found"]).await.ok();
    let queue = world.cli(&["delete", "queue", "default"]).await.failed(2);
    assert!(queue.contains("a queue cannot be deleted"), "{queue}");
    let unnamed = world.cli(&["delete", "jobs"]).await.failed(2);
    assert!(unnamed.contains("needs a name"), "{unnamed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_of_a_long_list_is_read() {
    let world = World::new().await;
    let jobs: Vec<String> =
        (0..1100).map(|index| JOB.replace("hello\n", &format!("job-{index}\n"))).collect();
    let list = world.file("list.yaml", &jobs.join("---\n"));
    world.cli(&["apply", "-f", &list]).await.ok();
    let names = world.cli(&["get", "jobs", "-o", "name"]).await.ok().stdout;
    let mut names: Vec<&str> = names.lines().collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 1100);
}
