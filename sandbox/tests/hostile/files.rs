//! Traps in files: what a workspace may hold, and what becomes of one who opens something there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use windlass_sandbox::{Driver, Error, Mount};

use crate::case::{Node, bash, python, run};
use crate::fixture::{eventually, printed};

#[tokio::test]
async fn a_workspace_full_of_traps_is_removed_like_any_other() {
    let program = r#"
os.symlink("/etc/shadow", "link")
os.symlink("..", "up")
os.symlink("loop", "loop")
os.mkfifo("fifo")
socket.socket(socket.AF_UNIX).bind("socket")
write("file")
os.link("file", "second name")
attempt("hard link", lambda: os.link("/etc/passwd", "passwd"))
attempt("hard link of a program", lambda: os.link("/usr/bin/env", "env"))
attempt("block device", lambda: os.mknod("sda", stat.S_IFBLK | 0o666, os.makedev(8, 0)))
attempt("character device", lambda: os.mknod("mem", stat.S_IFCHR | 0o666, os.makedev(1, 1)))
attempt("set-user-id", lambda: os.chmod("file", 0o4755))
attempt("set-group-id", lambda: os.open("sgid", os.O_CREAT | os.O_WRONLY, 0o2755))
attempt("capability", lambda: os.setxattr("file", "security.capability", struct.pack("=5I", 0x2000001, 0x200000, 0, 0, 0)))
attempt("immutable", lambda: __import__("fcntl").ioctl(os.open("file", os.O_RDONLY), 0x40086602, struct.pack("=Q", 0x10)))
attempt("give away", lambda: os.chown("file", 0, 0))
os.makedirs("unreadable/below")
os.chmod("unreadable/below", 0)
os.chmod("unreadable", 0)
os.chmod(".", 0o500)
"#;
    // Across mounts there are no hard links, whosever the file is.
    let expected = "hard link EXDEV\nhard link of a program EXDEV\nblock device refused\ncharacter device refused\n\
                    set-user-id refused\nset-group-id refused\ncapability refused\nimmutable refused\ngive away EINVAL\n";
    run([
        python("traps", program).prints(expected),
        bash("odd names", "touch -- $'a\\nb' -rf '*' $'\\xff' \"$(printf 'x%.0s' {1..255})\"; ls | wc -l")
            .prints("6\n"),
        bash(
            "deep",
            "for i in $(seq 400); do mkdir $(printf 'd%.0s' {1..200}); cd d* || exit 0; done 2>/dev/null; echo deep",
        )
        .prints("deep\n"),
    ]
    .map(|case| case.with(|unit| unit.env.extend([("LC_ALL".to_owned(), "C.UTF-8".to_owned())]))))
    .await;
}

#[tokio::test]
async fn what_the_agent_writes_stays_in_the_workspace_while_the_job_swaps_its_folders_for_links() {
    let node = Node::new().await;
    let outside = node.fixture.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    let program = format!(
        r#"
os.makedirs("race")
os.symlink("{}", "trap")
print("ready", flush=True)
while not os.path.exists("stop"):
    libc.renameat2(-100, b"race", -100, b"trap", 2)
print("over")
"#,
        outside.display()
    );
    let case = python("swaps", &program).prints("ready\nover\n");
    node.run_among(case, 0, async |attempt| {
        printed(&node.fixture.native, &attempt.unit.id, "ready").await;
        let (mut written, mut refused) = (0, 0);
        let until = Instant::now() + Duration::from_secs(60);
        // Until both have been met: on a busy host the job may rest for thousands of writes.
        while written + refused < 3000 || (written.min(refused) == 0 && Instant::now() < until) {
            match attempt.workspace.write_file("race/file", b"of the agent", 0o644) {
                Ok(()) => written += 1,
                Err(Error::UnsafePath { .. } | Error::Io { .. }) => refused += 1,
                Err(error) => panic!("{error}"),
            }
        }
        attempt.workspace.write_file("stop", b"", 0o644).unwrap();
        assert!(written > 0 && refused > 0, "the race was run: {written} written, {refused} refused");
    })
    .await;
    let names: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["secret"]);
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret");
}

#[tokio::test]
async fn mounts_and_workspaces_whose_targets_are_links_are_refused() {
    let node = Node::new().await;
    let host = node.fixture.dir.path().join("shared");
    fs::create_dir(&host).unwrap();
    for (index, target) in ["trap", "trap/below", "../x", "/"].into_iter().enumerate() {
        let place = node.fixture.workspace.path().join("trap");
        if index == 0 {
            std::os::unix::fs::symlink("/usr", place).unwrap();
        }
        let mut unit = node.fixture.unit("mount", &["true"]);
        unit.mounts = vec![Mount { source: host.clone(), target: target.to_owned(), read_only: false }];
        let error = node.fixture.refusal(&unit).await;
        assert!(
            matches!(error, Error::Setup { .. } | Error::InvalidSpec { field: "mounts", .. }),
            "{target}: {error}"
        );
        node.fixture.native.cleanup(&unit.id).await.unwrap();
    }
}

#[tokio::test]
async fn nothing_of_the_agent_or_of_other_attempts_can_be_read() {
    let node = Node::new().await;
    let secret = node.fixture.workspace.path().join("secret");
    fs::write(&secret, "of another attempt").unwrap();
    let mut neighbour = node.fixture.unit("neighbour", &["sh", "-c", "echo ready; exec sleep 1000"]);
    neighbour.env.insert("SECRET".into(), "of another attempt".into());
    node.fixture.native.prepare(&neighbour).await.unwrap();
    node.fixture.native.start(&neighbour.id).await.unwrap();
    printed(&node.fixture.native, &neighbour.id, "ready").await;
    let program = format!(
        r#"
for place in ("{state}", "{dir}", "{secret}", "/root", "/home/" + "user", "/etc/shadow", "/etc/ssh", "/var/lib", "/boot", "/opt", "/srv",
              "/mnt", "/media", "/run/secrets", "/old_root", "/proc/1/root/etc", "/proc/1/cwd"):
    if os.path.exists(place): print("seen", place)
for pid in [name for name in os.listdir("/proc") if name.isdigit()]:
    if int(pid) not in (1, os.getpid()): print("process", pid)
for name in ("environ", "mem", "maps", "fd", "fdinfo", "cwd", "root", "exe", "auxv", "syscall", "stack", "io"):
    path = "/proc/1/" + name
    try:
        os.readlink(path) if os.path.islink(path) else os.listdir(path) if os.path.isdir(path) else open(path).read()
        print("read", name)
    except OSError: pass
for number in range(2, 400):
    try: os.kill(number, 0) if number != os.getpid() else None
    except ProcessLookupError: continue
    except PermissionError: print("foreign", number)
print(sorted(os.environ))
"#,
        state = node.fixture.dir.path().join("state").display(),
        dir = node.fixture.dir.path().display(),
        secret = secret.display(),
    );
    let spy = python("spy", &program).prints("['HOME', 'LANG', 'PATH', 'USER', 'WINDLASS_HOSTILE']\n");
    eventually("the neighbour and a spare", || node.fixture.children_of_launcher().len() == 2).await;
    node.run_among(spy, 1, async |_| {}).await;
    let now = windlass_sandbox::Stop {
        grace: std::time::Duration::ZERO,
        reason: windlass_sandbox::StopReason::Cancelled,
    };
    node.fixture.native.signal(&neighbour.id, now).await.unwrap();
    node.fixture.finish(&neighbour.id).await;
}
