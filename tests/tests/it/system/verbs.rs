//! The command line against a real controller and agent.

use std::process::Stdio;
use std::time::Duration;

use super::fleet::{Fleet, wait_for, windlass};

const SOON: Duration = Duration::from_secs(30);

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn run_prints_what_the_job_prints_and_ends_as_it_ends() {
    let fleet = Fleet::start();
    let _agent = fleet.agent("n1");
    let output = fleet.cli(&["run", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "out\n");
    assert!(text(&output.stderr).contains("err\n"));
    let output = fleet.cli(&["run", "--timeout", "1s", "--", "sleep", "60"]);
    assert_eq!(output.status.code(), Some(124), "{}", text(&output.stderr));
    let output = fleet.cli(&["run", "--", "no-such-program"]);
    assert_eq!(output.status.code(), Some(127), "{}", text(&output.stderr));
    let mut running = fleet
        .command()
        .args(["run", "--name", "slow", "--", "sleep", "60"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command runs");
    wait_for("the job runs", SOON, || {
        let output = fleet.cli(&["get", "job", "slow", "-o", "json"]);
        text(&output.stdout).contains("\"Running\"").then_some(())
    });
    fleet.text(&["cancel", "slow"]);
    let code = wait_for("the command has ended", SOON, || running.try_wait().expect("it is ours"));
    assert_eq!(code.code(), Some(130));
}

#[test]
fn every_byte_of_output_arrives() {
    let fleet = Fleet::start();
    let _agent = fleet.agent("n1");
    let source = "import sys\nsys.stdout.buffer.write(bytes(range(256)) * 1000)";
    let output = fleet.cli(&["run", "--", "python3", "-c", source]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let expected: Vec<u8> = (0..1000).flat_map(|_| 0..=255u8).collect();
    assert!(output.stdout == expected, "{} bytes arrived", output.stdout.len());
}

#[test]
fn a_flood_of_output_is_cut_and_said_so_and_harms_nobody() {
    let fleet = Fleet::start();
    let _agent = fleet.agent("n1");
    fleet.script("flood", "", "head -c 1000000000 /dev/zero | tr '\\0' 'x'\necho end >&2");
    let job = fleet.wait_for_phase("flood", "Succeeded", Duration::from_secs(120));
    let usage = &job["status"]["steps"][0]["usage"];
    assert_eq!(usage["stdoutBytes"], 1_000_000_000_u64);
    assert_eq!(usage["stdoutTruncated"], true);
    assert_eq!(fleet.text(&["logs", "flood", "--stream", "stderr"]), "end\n");
    let output = fleet.cli(&["run", "--", "echo", "next"]);
    assert_eq!(text(&output.stdout), "next\n");
}

#[test]
fn memory_and_process_limits_end_with_their_name() {
    let fleet = Fleet::start();
    let _agent = fleet.agent("n1");
    fleet.script(
        "memory",
        "  sandbox: {resources: {memory: 64Mi}}\n",
        "exec python3 -c 'x = bytearray(1 << 30)'",
    );
    let job = fleet.wait_for_phase("memory", "Failed", SOON);
    assert_eq!(job["status"]["steps"][0]["reason"], "OOMKilled", "{job}");
    let output = fleet.cli(&["run", "--", "echo", "next"]);
    assert_eq!(text(&output.stdout), "next\n");
}

#[test]
fn a_system_call_that_is_never_allowed_ends_the_job_and_is_named() {
    let fleet = Fleet::start();
    let _agent = fleet.agent("n1");
    // 169 is `reboot`.
    fleet.script(
        "denied",
        "",
        "python3 -c 'import ctypes; ctypes.CDLL(None).syscall(169, 0, 0, 0)'\necho on",
    );
    let job = fleet.wait_for_phase("denied", "Failed", SOON);
    assert_eq!(job["status"]["reason"], "SeccompDenied", "{job}");
    assert_eq!(job["status"]["steps"][0]["reason"], "SeccompDenied", "{job}");
    let described = fleet.text(&["describe", "job", "denied"]);
    assert!(described.contains("made system call reboot, which is never allowed"), "{described}");
    assert_eq!(fleet.text(&["logs", "denied"]), "");
    let output = fleet.cli(&["run", "--", "echo", "next"]);
    assert_eq!(text(&output.stdout), "next\n");
}

#[test]
fn wait_apply_delete_and_describe_do_what_they_say() {
    let fleet = Fleet::start();
    let _agent = fleet.agent("n1");
    fleet.script("one", "", "echo hello");
    fleet.text(&["wait", "--for=condition=Complete", "--timeout=30s", "job/one"]);
    let described = fleet.text(&["describe", "job", "one"]);
    for word in ["one", "Succeeded", "n1", "main"] {
        assert!(described.contains(word), "{word} in {described}");
    }
    assert_eq!(fleet.text(&["logs", "one"]), "hello\n");
    fleet.script("big", "  requires: {cpu: 4096}\n", "true");
    let described = fleet.text(&["describe", "job", "big"]);
    assert!(described.contains("4096 of cpu are needed"), "it says why it waits: {described}");
    fleet.text(&["delete", "job", "one", "big"]);
    let gone = fleet.cli(&["get", "job", "one"]);
    assert_eq!(gone.status.code(), Some(1), "{}", text(&gone.stderr));
    let failed = fleet.cli(&["apply", "-f", "/nowhere.yaml"]);
    assert_eq!(failed.status.code(), Some(65), "{}", text(&failed.stderr));
}

#[test]
fn one_folder_and_one_port_serve_one_controller() {
    let fleet = Fleet::start();
    let state = fleet.path("controller");
    let second = |arguments: &[&str]| {
        let output = std::process::Command::new(windlass()).arg("controller").args(arguments).output();
        let output = output.expect("the command runs");
        assert_eq!(output.status.code(), Some(1));
        text(&output.stderr)
    };
    let state = state.to_str().expect("the path is text");
    let message = second(&["--state-dir", state, "--listen", "127.0.0.1:0"]);
    assert!(message.contains(state) && message.contains("another"), "{message}");
    let other = fleet.path("other");
    let address = fleet.url.trim_start_matches("https://");
    let message = second(&["--state-dir", other.to_str().expect("text"), "--listen", address]);
    assert!(message.contains(address) && message.contains("--listen"), "{message}");
}

#[test]
fn an_uploaded_folder_is_in_the_workspace() {
    let fleet = Fleet::start();
    let _agent = fleet.agent("n1");
    let folder = fleet.path("folder");
    std::fs::create_dir_all(folder.join("sub")).expect("the folder can be made");
    std::fs::write(folder.join("sub/file"), "content").expect("the file can be written");
    let input = format!("data={}", folder.display());
    let output = fleet.cli(&["run", "--input", &input, "--", "cat", "/workspace/data/sub/file"]);
    assert_eq!(text(&output.stdout), "content", "{}", text(&output.stderr));
}
