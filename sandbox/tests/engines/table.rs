//! One table over all runtimes: a unit means the same, whoever carries it out.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use windlass_sandbox::egress::{self, Policy, Proxy, Resolver, Rule, Target};
use windlass_sandbox::{EndReason, Handed, Limit, LimitName, Mount, Network};

use crate::world::{World, printed};

/// What a script comes to: code, standard output, standard error.
const RESULTS: &[(&str, &str, i32, &str, &str)] = &[
    ("plain", "echo out; echo err >&2", 0, "out\n", "err\n"),
    ("code", "exit 7", 7, "", ""),
    ("cwd", "pwd; touch here; ls", 0, "/workspace\nhere\n", ""),
    ("pipe", "printf 'a\\nb\\n' | grep b", 0, "b\n", ""),
    (
        "status",
        "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'",
        0,
        "CapEff:0000000000000000\nCapBnd:0000000000000000\nNoNewPrivs:1\nSeccomp:2\n",
        "",
    ),
    ("root", "touch /etc/x /usr/x /x 2>/dev/null; ls /etc/x /usr/x /x 2>/dev/null; true", 0, "", ""),
    ("scratch", "touch /tmp/x /run/x $HOME/x && ls /tmp", 0, "x\n", ""),
    ("loopback", "sed -n 's/^ *\\([a-z0-9]*\\):.*/\\1/p' /proc/net/dev", 0, "lo\n", ""),
    ("namespaces", "unshare -U true 2>/dev/null && echo made; true", 0, "", ""),
    ("files", "ulimit -n", 0, "77\n", ""),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_script_comes_to_the_same() {
    for runtime in World::new().runtimes().await {
        let world = World::new();
        for (name, script, code, stdout, stderr) in RESULTS {
            let mut unit = world.script(&runtime, name, script);
            unit.limits.open_files = 77;
            let ran = runtime.run(&unit).await;
            let what = format!("{name} by {}: {ran:?}", runtime.name());
            assert_eq!((ran.exit.reason, ran.exit.code), (EndReason::Exited, Some(*code)), "{what}");
            assert_eq!((&*ran.stdout, &*ran.stderr), (*stdout, *stderr), "{what}");
            assert!(ran.exit.program_started && ran.exit.proof.as_ref().unwrap().holds(), "{what}");
            assert!(ran.exit.teardown.is_empty(), "{what}");
            assert_eq!(ran.exit.stdout.bytes, stdout.len() as u64, "{what}");
        }
        runtime.driver.cleanup(&world.script(&runtime, "plain", "").id).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_is_what_is_declared_and_little_else() {
    let world = World::new();
    for runtime in world.runtimes().await {
        let mut unit = world.unit(&runtime, "env", &["env"]);
        unit.env =
            BTreeMap::from([("A".to_owned(), "1 $B\n2".to_owned()), ("LANG".to_owned(), "x".to_owned())]);
        unit.hostname = "some-job".to_owned();
        let ran = runtime.run(&unit).await;
        let text = ran.ok();
        assert!(text.contains("A=1 $B\n2\n") && text.contains("LANG=x\n"), "{text}");
        assert!(text.contains("HOME=/home/job\n") && text.contains("USER=job\n"), "{text}");
        let known =
            ["A", "2", "LANG", "HOME", "USER", "PATH", "HOSTNAME", "container", "TERM", "PWD", "SHLVL"];
        for line in text.lines() {
            let name = line.split('=').next().unwrap();
            assert!(known.contains(&name), "{name} by {}", runtime.name());
        }
        let name = runtime.run(&world.unit(&runtime, "host", &["cat", "/proc/sys/kernel/hostname"])).await;
        assert_eq!(name.ok(), "windlass\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_handed_over_is_read_by_the_unit_alone_and_is_in_none_of_its_records() {
    for runtime in World::new().runtimes().await {
        let world = World::new();
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let files = memory.path().join("files");
        std::fs::create_dir_all(files.join("d")).unwrap();
        std::fs::write(files.join("d/key"), "s3cret-file\n").unwrap();
        for (path, mode) in [("d/key", 0o400), ("d", 0o500), ("", 0o500)] {
            let path = files.join(path);
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            std::os::unix::fs::chown(&path, Some(world.identity.uid), Some(world.identity.gid)).unwrap();
        }
        let environment = memory.path().join("environment");
        std::fs::write(&environment, "HANDED=s3cret-variable=x\nand more\0A=over\0").unwrap();
        let script = "cat /run/windlass/secrets/d/key; echo \"$HANDED\" $A; \
                      for path in new d/new d/key; do (echo x > /run/windlass/secrets/$path) 2>/dev/null && echo wrote $path; done; \
                      rm -f /run/windlass/secrets/d/key 2>/dev/null && echo removed; true";
        let mut unit = world.script(&runtime, "handed", script);
        unit.env = BTreeMap::from([("A".to_owned(), "under".to_owned())]);
        unit.handed = Handed { folder: Some(files.clone()), environment: Some(environment) };
        runtime.driver.prepare(&unit).await.unwrap();
        let leaks = files_with(world.dir.path(), b"s3cret-");
        assert!(leaks.is_empty(), "{leaks:?} by {}", runtime.name());
        let ran = runtime.run(&unit).await;
        assert_eq!(ran.ok(), "s3cret-file\ns3cret-variable=x\nand more over\n", "{}", runtime.name());
        runtime.driver.cleanup(&unit.id).await.unwrap();
        let plain =
            runtime.run(&world.script(&runtime, "plain", "ls /run/windlass 2>&1; echo $HANDED")).await;
        assert!(!plain.stdout.contains("s3cret"), "{plain:?}");
        let leaks = files_with(world.dir.path(), b"s3cret-");
        assert!(leaks.is_empty(), "{leaks:?} by {}", runtime.name());
    }
}

/// The files below a folder that hold these bytes.
fn files_with(folder: &std::path::Path, bytes: &[u8]) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let kind = path.symlink_metadata().unwrap().file_type();
        if kind.is_dir() {
            found.extend(files_with(&path, bytes));
        } else if kind.is_file() {
            let content = std::fs::read(&path).unwrap();
            found.extend(content.windows(bytes.len()).any(|window| window == bytes).then_some(path));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_in_the_workspace_belongs_to_the_attempt() {
    for runtime in World::new().runtimes().await {
        let world = World::new();
        let data = world.dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("in"), "in\n").unwrap();
        let mut unit =
            world.script(&runtime, "own", "mkdir -p a/b && echo x > a/b/c && ln -s c a/b/l && cat in/it/in");
        unit.mounts = vec![Mount { source: data.clone(), target: "in/it".to_owned(), read_only: true }];
        assert_eq!(runtime.run(&unit).await.ok(), "in\n");
        let mut writes = world.script(&runtime, "writes", "touch in/it/new");
        writes.mounts = unit.mounts.clone();
        let refused = runtime.run(&writes).await;
        assert_ne!(refused.exit.code, Some(0), "{refused:?}");
        let mut pending = vec![world.workspace.path().to_owned()];
        let mut seen = 0;
        while let Some(path) = pending.pop() {
            seen += 1;
            let meta = path.symlink_metadata().unwrap();
            let owner = (meta.uid(), meta.gid());
            assert_eq!(
                owner,
                (world.identity.uid, world.identity.gid),
                "{} by {}",
                path.display(),
                runtime.name()
            );
            if meta.is_dir() {
                pending.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
        }
        assert!(seen >= 7, "{seen} entries by {}", runtime.name());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_is_reached_is_the_reason() {
    let world = World::new();
    for runtime in world.runtimes().await {
        let enforces = |limit: LimitName| match &runtime.containers {
            Some(containers) => containers.info().limits().contains(&limit),
            None => limit != LimitName::Memory || rustix::process::geteuid().is_root(),
        };
        let mut memory = world.script(
            &runtime,
            "memory",
            "dd if=/dev/zero of=/dev/null bs=300M count=1; sleep 5; echo after",
        );
        memory.limits.memory_bytes = Some(Limit::named(48 << 20));
        if enforces(LimitName::Memory) {
            let ran = runtime.run(&memory).await;
            assert_eq!(ran.exit.reason, EndReason::OOMKilled, "{}: {ran:?}", runtime.name());
        } else if runtime.kind.is_some() {
            let error = runtime.driver.prepare(&memory).await.unwrap_err();
            assert_eq!(error.kind(), "unenforceable", "{error}");
            assert!(error.to_string().contains("unenforced: [memory]"), "{error}");
        }
        // The shell ends at the first refusal, so a part of it tries while the whole counts for a while.
        let script = "(i=0; while [ $i -lt 40 ]; do sleep 20 & i=$((i+1)); done) 2>/dev/null; \
                      i=0; while [ $i -lt 1000000 ]; do i=$((i+1)); done; exit 1";
        let mut pids = world.script(&runtime, "pids", script);
        pids.limits.pids = Some(Limit::named(12));
        let ran = runtime.run(&pids).await;
        let by_cgroup = ran.exit.reason == EndReason::PidsLimit;
        let by_rlimit = ran.exit.reason == EndReason::Exited && ran.exit.code != Some(0);
        assert!(by_cgroup || by_rlimit, "{}: {ran:?}", runtime.name());
        if runtime.kind.is_some() && rustix::process::geteuid().is_root() {
            assert!(by_cgroup, "{}: {ran:?}", runtime.name());
        }
        let mut disk = world.script(
            &runtime,
            "disk",
            "for i in 1 2 3; do dd if=/dev/zero of=big$i bs=1M count=6 2>/dev/null; done; sleep 60",
        );
        disk.limits.disk_bytes = Some(Limit::named(8 << 20));
        let ran = runtime.run(&disk).await;
        // A native unit's file is cut short too, by an rlimit.
        assert_eq!(ran.exit.reason, EndReason::DiskLimit, "{}: {ran:?}", runtime.name());
        for number in 1..=3 {
            // The unit may have been ended before it made the last.
            let _missing = std::fs::remove_file(world.workspace.path().join(format!("big{number}")));
        }
        let mut long = world.script(&runtime, "long", "trap '' TERM; echo begun; sleep 60; sleep 60");
        long.timeout = Some(Duration::from_millis(1500));
        long.grace = Duration::from_millis(200);
        let ran = runtime.run(&long).await;
        assert_eq!(
            (ran.exit.reason, ran.exit.code),
            (EndReason::Timeout, None),
            "{}: {ran:?}",
            runtime.name()
        );
        let proof = ran.exit.proof.unwrap();
        assert!(
            proof.holds() && proof.term_sent_at_ms.is_some() && proof.kill_sent_at_ms.is_some(),
            "{proof:?}"
        );
        let mut cap = world.script(&runtime, "cap", "yes 0123456789 | head -n 1000");
        cap.output_cap = 100;
        let ran = runtime.run(&cap).await;
        assert_eq!((ran.exit.stdout.bytes, ran.exit.stdout.truncated), (11_000, true), "{}", runtime.name());
        assert!(ran.stdout.len() <= 100);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_not_there_or_cannot_run_is_told_as_a_shell_would() {
    let world = World::new();
    std::fs::write(world.workspace.path().join("plain"), "no program").unwrap();
    for runtime in world.runtimes().await {
        for (name, program, code) in [("none", "no-such-program", 127), ("plain", "/workspace/plain", 126)] {
            let ran = runtime.run(&world.unit(&runtime, name, &[program])).await;
            assert_eq!(
                (ran.exit.reason, ran.exit.code),
                (EndReason::Exited, Some(code)),
                "{}: {ran:?}",
                runtime.name()
            );
            assert!(ran.exit.message.as_ref().unwrap().contains(program), "{ran:?}");
            assert!(!ran.exit.program_started);
        }
    }
}

/// Every name that ends in `.test` is on this host.
struct Here;

#[async_trait]
impl Resolver for Here {
    async fn resolve(&self, name: &str) -> std::io::Result<Vec<std::net::IpAddr>> {
        if name.ends_with(".test") {
            Ok(vec![std::net::Ipv4Addr::LOCALHOST.into()])
        } else {
            Err(std::io::ErrorKind::NotFound.into())
        }
    }
}

/// A web server on loopback that says hello to everybody; gives its port.
async fn site() -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { break };
                head.push(byte);
            }
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n";
            // Who asked may be gone.
            let _gone = stream.write_all(answer.as_bytes()).await;
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restricted_network_reaches_what_the_rules_name_from_the_first_instruction() {
    let world = World::new();
    let port = site().await;
    for runtime in world.runtimes().await {
        let script = format!(
            "sed -n 's/^ *\\([a-z0-9]*\\):.*/\\1/p' /proc/net/dev; wget -q -O - http://a.test:{port}/ && \
             ! wget -q -O - http://b.other:{port}/ 2>/dev/null && echo done"
        );
        let mut unit = world.script(&runtime, "net", &script);
        unit.network = Network::Restricted;
        unit.hostname = "job".to_owned();
        let prepared = runtime.driver.prepare(&unit).await.unwrap();
        assert!(prepared.isolation.iter().any(|word| word == "egress proxy"), "{prepared:?}");
        runtime.driver.start(&unit.id).await.unwrap();
        let listener = runtime.driver.egress(&unit.id).await.unwrap();
        let listener = listener.unwrap_or_else(|| panic!("{} has a socket for the proxy", runtime.name()));
        let rule = |target, text: &str| Rule { target, ports: vec![port..=port], text: text.to_owned() };
        let rules = vec![
            rule(Target::Below("test".to_owned()), "*.test"),
            rule(Target::Network("127.0.0.1/32".parse().unwrap()), "127.0.0.1"),
        ];
        let records = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&records);
        let policy = Policy { rules, guarded: Vec::new() };
        let sink = move |record| to.lock().unwrap().push(record);
        let proxy = Arc::new(Proxy::new(policy, egress::Limits::default(), Arc::new(Here), sink));
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let serving = tokio::spawn(proxy.serve(listener, async { drop(ended.await) }));
        let ran = crate::world::finish(&*runtime.driver, &unit.id).await;
        drop(end);
        serving.await.unwrap().unwrap();
        assert_eq!(ran.ok(), "lo\nhello\ndone\n", "{}", runtime.name());
        assert!(ran.exit.teardown.is_empty(), "{ran:?}");
        assert!(records.lock().unwrap().len() >= 2, "{}: {:?}", runtime.name(), records.lock().unwrap());
        assert!(runtime.driver.egress(&unit.id).await.unwrap().is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn output_arrives_while_the_program_runs() {
    let world = World::new();
    for runtime in world.runtimes().await {
        let unit =
            world.script(&runtime, "live", "echo first; while [ ! -e go ]; do sleep 0.05; done; echo second");
        runtime.driver.prepare(&unit).await.unwrap();
        runtime.driver.start(&unit.id).await.unwrap();
        printed(&*runtime.driver, &unit.id, "first\n").await;
        world.workspace.write_file("go", b"", 0o644).unwrap();
        let ran = crate::world::finish(&*runtime.driver, &unit.id).await;
        assert_eq!(ran.ok(), "first\nsecond\n");
        std::fs::remove_file(world.workspace.path().join("go")).unwrap();
    }
}
