//! The example for Compose, as somebody meets it who has just found it: images built from the repository's Dockerfiles, all parts
//! started by one command, in a Docker with a network of its own. Registries are not needed: the images that others have made are
//! made here of programs of this host.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use windlass_test_engines::Docker;
use windlass_test_postgres::{Server, program};

use super::bases::{Tree, context};
use super::system::fleet::wait_for;

const FILE: &str = "examples/compose/compose.yaml";
/// How long something may take that takes a few seconds, or a lease, on a machine that is not busy.
const SOON: Duration = Duration::from_secs(90);

/// Does what the image `postgres` promises: the user, the database and the password that the environment names.
const POSTGRES: &str = r#"#!/bin/bash
set -euo pipefail
data=/var/lib/postgresql/data
as_user() { setpriv --reuid 999 --regid 999 --clear-groups -- "$@"; }
if [ ! -s "$data/PG_VERSION" ]; then
    chown 999:999 "$data"
    as_user initdb --username "$POSTGRES_USER" --pwfile "$POSTGRES_PASSWORD_FILE" --auth-local trust \
        --auth-host scram-sha-256 --locale C --encoding UTF8 --pgdata "$data"
    echo "host all all all scram-sha-256" >>"$data/pg_hba.conf"
    as_user pg_ctl start --wait --pgdata "$data" --options "-c listen_addresses= -c unix_socket_directories=/tmp"
    as_user psql --host /tmp --username "$POSTGRES_USER" --dbname postgres --command "CREATE DATABASE $POSTGRES_DB"
    as_user pg_ctl stop --wait --pgdata "$data"
fi
exec setpriv --reuid 999 --regid 999 --clear-groups -- \
    postgres -D "$data" -c listen_addresses='*' -c unix_socket_directories=/tmp
"#;

/// What `debian:12-slim` with the agent's packages has, as far as the example, doctor and jobs here use it. There is nothing left to
/// be installed.
const PROGRAMS: [&str; 19] = [
    "/bin/sh",
    "/bin/bash",
    "/bin/cat",
    "/bin/chown",
    "/bin/cp",
    "/bin/dd",
    "/bin/grep",
    "/bin/hostname",
    "/bin/ls",
    "/bin/mkdir",
    "/bin/mv",
    "/bin/rm",
    "/bin/sleep",
    "/bin/true",
    "/usr/bin/base64",
    "/usr/bin/find",
    "/usr/bin/head",
    "/usr/bin/seq",
    "/usr/bin/tail",
];

/// The example, in a Docker of its own.
struct Example {
    docker: Docker,
    /// What of the repository the example needs.
    folder: TempDir,
}

impl Example {
    fn new() -> Self {
        let example =
            Self { docker: Docker::own(), folder: tempfile::tempdir().expect("a folder for the test") };
        let folder = example.folder.path();
        let debian = Tree::base(folder.join("debian"), &PROGRAMS)
            .text("etc/passwd", "root:x:0:0::/root:/bin/sh\n")
            .script("usr/bin/apt-get", "#!/bin/sh\nexit 0\n");
        for (tree, name) in
            [(Tree::builder(folder.join("builder")), "rust:1.95-bookworm"), (debian, "debian:12-slim")]
        {
            example.docker.import(&tree.pack(), name, &[]);
        }
        example.postgres();
        let source = folder.join("source");
        context(
            &source,
            &[
                "controller/Dockerfile",
                "controller/build-image",
                "node-agent/Dockerfile",
                FILE,
                "examples/compose/.env",
            ],
        );
        example
    }

    /// Makes the image of PostgreSQL.
    fn postgres(&self) {
        let setting = |name: &str| {
            Server::shared().psql("postgres", &format!("SELECT setting FROM pg_config WHERE name = '{name}'"))
        };
        let (share, libraries) = (setting("SHAREDIR"), setting("PKGLIBDIR"));
        let programs = ["initdb", "postgres", "pg_ctl", "psql", "pg_isready"].map(program);
        let folder = programs[0].parent().expect("it is in a folder").display().to_string();
        let mut files: Vec<String> = programs.iter().map(|path| path.display().to_string()).collect();
        files.extend(["plpgsql", "dict_snowball"].map(|name| format!("{libraries}/{name}.so")));
        files.extend(["/bin/sh", "/bin/bash", "/bin/chown", "/usr/bin/setpriv"].map(str::to_owned));
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        let tree = Tree::new(self.folder.path().join("postgres"))
            .programs(&files)
            .folder(&share)
            .script("usr/bin/start", POSTGRES)
            .text("etc/passwd", "root:x:0:0::/root:/bin/sh\npostgres:x:999:999::/tmp:/bin/sh\n");
        tree.file(Path::new("/usr/share/zoneinfo/UTC"));
        let path = format!("ENV PATH={folder}:/usr/bin:/bin");
        self.docker.import(&tree.pack(), "postgres:17", &["ENTRYPOINT [\"/usr/bin/start\"]", &path]);
    }

    /// Compose, of whichever generation is installed.
    fn compose(&self, arguments: &[&str]) -> Output {
        let plugin = Command::new("docker").args(["compose", "version"]).output();
        let mut command = match plugin {
            Ok(output) if output.status.success() => {
                let mut docker = Command::new("docker");
                docker.arg("compose");
                docker
            }
            Ok(_) | Err(_) => Command::new("docker-compose"),
        };
        command.args(["-f", FILE]).args(arguments).env("DOCKER_HOST", self.docker.host());
        command.current_dir(self.folder.path().join("source"));
        command.output().expect("Compose is installed (Debian: docker-compose)")
    }

    /// Runs Compose, which must succeed.
    #[track_caller]
    fn run(&self, arguments: &[&str]) {
        let output = self.compose(arguments);
        assert!(output.status.success(), "{arguments:?}: {}\n{}", said(&output), self.logs());
    }

    /// The command line in the controller's container. Docker is quicker at this than Compose.
    fn windlass(&self, arguments: &[&str], input: &str) -> Output {
        let controllers = self.containers("controller");
        let mut all = vec!["exec", "--interactive"];
        all.extend(controllers.iter().map(String::as_str));
        all.push("windlass");
        all.extend(arguments);
        self.docker.piped(&all, input)
    }

    /// What it prints as JSON; null where it fails, as it does while the controller is away.
    fn get(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["get", "-o", "json"];
        all.extend(arguments);
        serde_json::from_slice(&self.windlass(&all, "").stdout).unwrap_or_default()
    }

    /// Hands in a job of one command in a shell.
    fn job(&self, name: &str, command: &str) {
        let manifest = format!(
            "apiVersion: windlass.dev/v1alpha1\nkind: SandboxJob\nmetadata: {{name: {name}}}\nspec:\n  command: [sh, -c, '{command}']\n"
        );
        let output = self.windlass(&["apply", "-f", "-"], &manifest);
        assert!(output.status.success(), "{}", said(&output));
    }

    /// Waits until a job satisfies something.
    fn wait_for_job(&self, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        wait_for(&format!("{name} {what}"), SOON, || {
            let job = self.get(&["job", name]);
            holds(&job["status"]).then_some(job["status"].clone())
        })
    }

    /// The lines that a job has printed in all its attempts.
    fn lines(&self, name: &str) -> Vec<String> {
        let output = self.windlass(&["logs", name], "");
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
    }

    /// The names of nodes that are ready.
    fn ready(&self) -> BTreeSet<String> {
        let nodes = self.get(&["nodes"]);
        let nodes = nodes.as_array().or(nodes["items"].as_array()).cloned().unwrap_or_default();
        let is_ready = |node: &&Value| {
            let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
        };
        let name = |node: &Value| node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        nodes.iter().filter(is_ready).map(name).collect()
    }

    /// The ids of the containers of a service, in short as Docker shows them and as hosts are named.
    fn containers(&self, service: &str) -> BTreeSet<String> {
        let filter = format!("label=com.docker.compose.service={service}");
        let ids = self.docker.text(&["ps", "--all", "--quiet", "--filter", &filter]);
        ids.lines().map(str::to_owned).collect()
    }

    /// The names of all volumes.
    fn volumes(&self) -> Vec<String> {
        self.docker.text(&["volume", "ls", "--quiet"]).lines().map(str::to_owned).collect()
    }

    /// Asserts that nothing runs, and no network is left.
    fn assert_is_down(&self) {
        assert_eq!(self.docker.text(&["ps", "--all", "--quiet"]), "");
        let networks = self.docker.text(&["network", "ls", "--format", "{{.Name}}"]);
        assert_eq!(networks.lines().collect::<BTreeSet<_>>(), BTreeSet::from(["bridge", "host", "none"]));
    }

    fn logs(&self) -> String {
        said(&self.compose(&["logs", "--no-color", "--tail", "30"]))
    }
}

/// Everything that a command has said.
fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn one_command_makes_a_fleet_that_outlives_its_parts_and_another_leaves_nothing_of_it() {
    let example = Example::new();
    example.run(&["up", "-d", "--build", "--scale", "agent=3"]);
    let agents = example.containers("agent");
    assert_eq!(agents.len(), 3, "{agents:?}");
    wait_for("all agents are nodes by the names of their containers", SOON, || {
        (example.ready() == agents).then_some(())
    });

    // The sandbox has everything there that it promises.
    let doctor = example.compose(&["exec", "-T", "agent", "windlass", "doctor"]);
    let told = said(&doctor);
    assert!(doctor.status.success() && told.contains("a cgroup for the memory limit"), "{told}");
    let ran = example.windlass(&["run", "--", "sh", "-c", "echo hello; cat /proc/self/status"], "");
    let printed = said(&ran);
    assert!(ran.status.success() && printed.contains("hello"), "{printed}");
    assert!(printed.contains("CapBnd:\t0000000000000000"), "{printed}");

    // A container that is killed gives its job to another one, and is the node that it was when it is back.
    example.job("moves", "echo begins; sleep 5; echo ends");
    let status = example.wait_for_job("moves", "runs", |status| status["phase"] == "Running");
    let killed = status["node"].as_str().expect("it runs somewhere").to_owned();
    example.docker.text(&["kill", &killed]);
    let status = example.wait_for_job("moves", "has ended", |status| status["phase"] == "Succeeded");
    assert_ne!(status["node"], killed.as_str());
    assert_eq!(status["attempts"], 2, "{status}");
    example.docker.text(&["start", &killed]);
    wait_for("the killed one is back", SOON, || (example.ready() == agents).then_some(()));

    // Neither the database nor the controller is missed by what runs meanwhile.
    example.job("stays", "for i in $(seq 100); do echo line $i; sleep 0.1; done");
    example.wait_for_job("stays", "runs", |status| status["phase"] == "Running");
    example.run(&["restart", "postgres", "controller"]);
    let status = example.wait_for_job("stays", "has ended", |status| status["logsComplete"] == true);
    assert_eq!((&status["phase"], &status["attempts"]), (&"Succeeded".into(), &1.into()), "{status}");
    let lines: Vec<_> = (1..=100).map(|n| format!("line {n}")).collect();
    assert_eq!(example.lines("stays"), lines);
    assert_eq!(example.lines("moves").last().map(String::as_str), Some("ends"));

    // The same command once more changes nothing.
    example.run(&["up", "-d", "--scale", "agent=3"]);
    assert_eq!(example.containers("agent"), agents);
    assert_eq!(example.ready(), agents);

    // What was acknowledged is in the named volumes, which only `--volumes` removes.
    example.run(&["down"]);
    example.assert_is_down();
    let left = example.volumes();
    example.run(&["up", "-d"]);
    assert_eq!(example.get(&["job", "stays"])["status"]["phase"], "Succeeded");
    assert_eq!(example.lines("stays"), lines);
    example.run(&["down", "--volumes"]);
    example.assert_is_down();
    let (named, of_agents): (Vec<_>, Vec<_>) =
        left.into_iter().partition(|name| name.starts_with("windlass_"));
    assert_eq!((named.len(), of_agents.len()), (5, 3), "{named:?} {of_agents:?}");
    assert_eq!(
        example.volumes(),
        of_agents,
        "those of the agents that `down` has removed without their volumes"
    );
}
