//! Logs and inputs in a bucket, on a server that speaks S3.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::super::system::fleet::{Fleet, Process, wait_for, windlass};
use super::engine::python;

const SOON: Duration = Duration::from_secs(60);

/// A server with the bucket `fleet`.
struct Buckets {
    url: String,
    server: Process,
}

impl Buckets {
    fn start(folder: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = port.expect("a port is free").port();
        let program = python().with_file_name("moto_server");
        let mut command = Command::new(program);
        command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        let server = Process::start(&mut command, folder.join("buckets.log"));
        let buckets = Self { url: format!("http://127.0.0.1:{port}"), server };
        wait_for("the bucket is made", SOON, || {
            let made = buckets.curl(&["--request", "PUT", "--fail"], "fleet");
            made.0.then_some(())
        });
        buckets
    }

    /// Whether a request of an operator succeeds, and its answer.
    fn curl(&self, arguments: &[&str], path: &str) -> (bool, String) {
        let output = Command::new("curl")
            .args(["--silent", "--max-time", "20"])
            .args(arguments)
            .arg(format!("{}/{path}", self.url))
            .output()
            .expect("curl is installed");
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The keys in the bucket.
    fn keys(&self) -> Vec<String> {
        let (_, list) = self.curl(&[], "fleet?list-type=2");
        let keys = list.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next());
        keys.map(str::to_owned).collect()
    }

    fn environment(&self) -> [(&str, &str); 5] {
        [
            ("AWS_ENDPOINT", &self.url),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
        ]
    }
}

#[test]
fn logs_and_inputs_are_kept_in_a_bucket_and_backed_up_from_it() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let mut buckets = Buckets::start(folder.path());
    let fleet = Fleet::with_environment(&["--bodies", "s3://fleet/windlass"], &buckets.environment());
    let _agent = fleet.agent("n1");
    let input = fleet.path("input");
    std::fs::create_dir(&input).expect("the folder can be written");
    // More than one part of an upload, and nothing that shrinks.
    let noise: Vec<u8> = (0..12_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    std::fs::write(input.join("noise"), &noise).expect("the folder can be written");
    let ran = fleet.text(&[
        "run",
        "--name",
        "counts",
        "--input",
        "input",
        "--",
        "sh",
        "-c",
        "wc -c <input/noise; seq 100000",
    ]);
    assert!(ran.starts_with("12582912\n") && ran.ends_with("100000\n"), "{}", &ran[..ran.len().min(200)]);
    let keys = buckets.keys();
    for part in ["windlass/inputs/", "windlass/logs/"] {
        assert!(keys.iter().any(|key| key.starts_with(part)), "{keys:?}");
    }
    assert!(!fleet.path("controller/bodies").exists());
    let logs = fleet.text(&["logs", "counts"]);
    assert!(logs.ends_with("100000\n"));

    let state = fleet.path("controller");
    let controller = |arguments: &[&str], target: &Path| {
        Command::new(windlass())
            .args(arguments)
            .arg("--state-dir")
            .arg(target)
            .envs(buckets.environment())
            .output()
            .expect("the program runs")
    };
    let file = fleet.path("backup");
    let file = file.to_str().expect("paths are text");
    let output = controller(&["backup", file, "--bodies", "s3://fleet/windlass"], &state);
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains(" 0 bodies") && !said.contains("were gone"), "{said}");
    let other = fleet.path("other");
    let output = controller(&["restore", file, "--bodies", "s3://fleet/other"], &other);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("leave --bodies away"), "{said}");
    let output = controller(&["restore", file], &other);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(other.join("bodies/inputs").is_dir() && other.join("bodies/logs").is_dir());

    buckets.server.kill();
    let ready = || {
        let output = Command::new("curl")
            .args(["--silent", "--max-time", "60", "--cacert"])
            .arg(state.join("pki/ca.crt"))
            .arg(format!("{}/readyz", fleet.url))
            .output()
            .expect("curl is installed");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let said = ready();
    assert!(said.starts_with("bodies: could not write the body `ping`"), "{said}");
}
