//! A restricted network from the manifest to `describe`, and over a kill of the agent.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::fleet::{Fleet, wait_for};

const SOON: Duration = Duration::from_secs(30);

/// A web server on loopback that answers everything with `hello`; gives its port and how often it did.
fn server() -> (u16, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    let answered = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&answered);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = [0; 4096];
            // Whoever asked may be gone.
            if stream.read(&mut head).is_ok_and(|length| length > 0)
                && stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n")
                    .is_ok()
            {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    (port, answered)
}

/// Lets jobs reach loopback of the node. Clients ask the proxy for it only with `--noproxy ''`: it is the sandbox's own name
/// too.
fn open_loopback(fleet: &Fleet, node: &str) {
    fleet.apply(&format!(
        "apiVersion: windlass.dev/v1alpha1\nkind: NodeConfig\nmetadata: {{name: {node}}}\nspec:\n  sandbox: {{egress: \
         ['*:1-65535', 127.0.0.0/8]}}\n"
    ));
    wait_for("the configuration is in force", SOON, || {
        let status = &fleet.json(&["get", "node", node])["status"];
        (status["appliedVersion"] == status["configVersion"] && status["configVersion"] != 1).then_some(())
    });
}

fn restricted(port: u16) -> String {
    format!("  sandbox: {{network: Restricted, egress: ['127.0.0.1:{port}']}}\n")
}

#[test]
fn a_step_reaches_what_its_rules_name_and_describe_says_what_it_did_not_and_why() {
    let fleet = Fleet::start();
    let _agent = fleet.agent("n1");
    let (port, answered) = server();
    open_loopback(&fleet, "n1");
    let script = format!(
        "curl -sS --noproxy '' http://127.0.0.1:{port}/\nfor i in 1 2 3; do curl -sS https://forbidden.example/ || true; done\n\
         curl -sS http://169.254.169.254/latest/"
    );
    fleet.script("fetch", &restricted(port), &script);
    fleet.wait_for_phase("fetch", "Succeeded", SOON);
    assert_eq!(answered.load(Ordering::Relaxed), 1);
    assert!(fleet.text(&["logs", "fetch"]).starts_with("hello\n"));
    let described = wait_for("the last sums have arrived", SOON, || {
        let text = fleet.text(&["describe", "job", "fetch"]);
        let line = |words: [&str; 3]| {
            text.lines().any(|line| words.iter().all(|word| line.contains(word))).then_some(())
        };
        line(["forbidden.example:443", "  3  ", "no rule allows it"])?;
        line(["169.254.169.254:80", "  1  ", "metadata"])?;
        Some(text)
    });
    assert!(described.contains("Not reached"), "{described}");
    assert!(described.contains(&format!("allowed by `127.0.0.1:{port}`")), "{described}");
}

#[test]
fn the_proxy_serves_again_when_its_agent_is_killed_and_started_again() {
    let fleet = Fleet::start();
    let mut agent = fleet.agent("n1");
    let (port, _) = server();
    open_loopback(&fleet, "n1");
    // One request goes out while the agent is dead: it waits.
    let script = format!(
        "ask() {{ curl -sS --noproxy '' --max-time 60 http://127.0.0.1:{port}/ && echo \"answer $1\"; }}\n\
         for i in $(seq 1 40); do ask $i; sleep 0.1; done\necho done"
    );
    fleet.script("steady", &restricted(port), &script);
    wait_for("the job has reached the server", SOON, || {
        fleet.text(&["logs", "steady"]).contains("answer 3\n").then_some(())
    });
    agent.kill();
    let _agent = fleet.run_agent("n1", &[]);
    let job = fleet.wait_for_phase("steady", "Succeeded", Duration::from_secs(60));
    assert_eq!(job["status"]["attempts"], 1, "{job}");
    let output = fleet.text(&["logs", "steady"]);
    // A connection that was open at the kill may have been cut; every one after it was served.
    let answers = output.matches("answer ").count();
    assert!(answers >= 38 && output.ends_with("answer 40\ndone\n"), "{output}");
}

#[test]
fn a_job_that_goes_beyond_its_node_is_told_the_rule() {
    let fleet = Fleet::start();
    let _agent = fleet.agent("n1");
    fleet.script("beyond", "  sandbox: {network: Restricted, egress: ['10.0.0.1:443']}\n", "true");
    let why = wait_for("the reason is known", SOON, || {
        let text = fleet.text(&["why", "beyond"]);
        text.contains("10.0.0.1:443").then_some(text)
    });
    assert!(why.contains("sandbox.egress"), "{why}");
    fleet.script("open", "  sandbox: {network: Open}\n", "true");
    let why = wait_for("the reason is known", SOON, || {
        let text = fleet.text(&["why", "open"]);
        text.contains("Open").then_some(text)
    });
    assert!(why.contains("sandbox.networks"), "{why}");
}
