//! What a unit sees and may do.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use windlass_sandbox::{Driver, EndReason, Error, Mount};

use crate::fixture::{Fixture, eventually, is_root, printed, suite_without_capabilities};

#[tokio::test]
async fn a_program_prints_and_ends_with_its_code() {
    let fixture = Fixture::new().await;
    for code in [0, 3, 255] {
        let unit = fixture.unit(&format!("code-{code}"), &["sh", "-c", &format!("echo hello; exit {code}")]);
        let outcome = fixture.run(&unit).await;
        assert_eq!(outcome.text(), "hello\n");
        assert_eq!((outcome.exit.reason, outcome.exit.code), (EndReason::Exited, Some(code)));
        assert!(outcome.exit.program_started && outcome.exit.proof.unwrap().holds());
        assert!(outcome.exit.started_at_ms.unwrap() <= outcome.exit.ended_at_ms);
    }
    let outcome = fixture.bash("kill -SEGV $$").await;
    assert_eq!((outcome.exit.reason, outcome.exit.signal), (EndReason::Signalled, Some(11)));
}

#[tokio::test]
async fn the_environment_is_exactly_what_is_given() {
    let fixture = Fixture::new().await;
    let mut unit = fixture.unit("env", &["env", "-0"]);
    unit.env.insert("GREETING".into(), "hello\nworld = ü".into());
    unit.env.insert("LANG".into(), "C".into());
    let text = fixture.run(&unit).await.ok();
    let mut lines: Vec<&str> = text.split_terminator('\0').collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "GREETING=hello\nworld = ü",
            "HOME=/home/job",
            "LANG=C",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "USER=job"
        ]
    );
}

#[tokio::test]
async fn it_is_an_unprivileged_user_without_any_capability() {
    let fixture = Fixture::new().await;
    let text = fixture.bash("id -u; id -g; id -un; hostname; umask; cat /proc/self/status").await.ok();
    assert!(text.starts_with("1000\n1000\njob\nwindlass\n0022\n"), "{text}");
    for field in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(text.contains(&format!("{field}:\t0000000000000000")), "{field} in {text}");
    }
    assert!(text.contains("NoNewPrivs:\t1") && text.contains("Seccomp:\t2"), "{text}");
    if is_root() {
        assert!(text.contains("Groups:\t \n"), "{text}");
    }
}

#[tokio::test]
async fn only_its_own_processes_are_seen_and_its_init_cannot_be_read() {
    let fixture = Fixture::new().await;
    let text = fixture.bash("cd /proc; ls -d [0-9]*; for f in environ mem maps fd; do cat 1/$f 2>/dev/null | head -c1; done; ls 1/fd 2>/dev/null; readlink 1/exe; true").await.ok();
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines.len() <= 4 && lines[0] == "1" && lines.iter().all(|line| line.parse::<u32>().is_ok()),
        "{text}"
    );
}

#[tokio::test]
async fn nothing_of_the_host_can_be_written_and_its_private_paths_do_not_exist() {
    let fixture = Fixture::new().await;
    let state = fixture.dir.path().display();
    let script = format!(
        "for f in / /usr /usr/bin /etc /etc/passwd /dev /sys /proc/sys/kernel/hostname /home /var; do
           if [ -d $f ]; then touch $f/x; else echo x >> $f; fi 2>/dev/null && echo written $f
         done
         for f in /root /home/* /opt /srv /mnt /media /boot /etc/shadow /etc/ssh /var/lib /work {state} /old_root; do
           [ $f = /home/job ] || ! [ -e $f ] || echo seen $f
         done
         mount -t tmpfs none /tmp 2>/dev/null && echo mounted
         mknod /tmp/sda b 8 0 2>/dev/null && echo device
         ls /dev | tr '\\n' ' '; ls /sys; cat /proc/kallsyms /proc/keys /proc/kcore | head -c 1; true"
    );
    assert_eq!(fixture.bash(&script).await.ok(), "fd full null random shm stderr stdin stdout urandom zero ");
}

#[tokio::test]
async fn nothing_below_proc_can_be_written_not_even_what_is_a_process_own() {
    let fixture = Fixture::new().await;
    // Everything that a process may usually write of itself, with what is in it, so that nothing changes if it works.
    let program = r#"
import ctypes, errno, os
before = open("/proc/self/oom_score_adj").read()
names = []
for folder in ("/proc/self", "/proc/self/task/self", "/proc/self/attr", "/proc/self/net", "/proc"):
    folder = folder.replace("task/self", f"task/{os.getpid()}")
    if os.path.isdir(folder):
        names += [f"{folder}/{name}" for name in os.listdir(folder)]
for folder, _, files in os.walk("/proc/sys"):
    names += [f"{folder}/{name}" for name in files]
opened = 0
for name in names:
    if not os.path.isfile(name) or os.path.islink(name): continue
    try:
        os.close(os.open(name, os.O_WRONLY))
        print("opened", name)
    except OSError as error:
        opened += error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
for value in ("-1000", "0", before.strip()):
    try:
        with open("/proc/self/oom_score_adj", "w") as file: file.write(value)
        print("wrote", value)
    except OSError: pass
print(opened > 100, before == "500\n", open("/proc/self/oom_score_adj").read() == before)
# What a program has to tell of itself it can still tell.
ctypes.CDLL(None).prctl(15, b"renamed", 0, 0, 0)
print(open("/proc/self/comm").read().strip(), flush=True)
open("/dev/stdout", "w").write("through /dev/stdout\n")
"#;
    let expected = "True True True\nrenamed\nthrough /dev/stdout\n";
    assert_eq!(fixture.python(program).await.ok(), expected);
}

#[tokio::test]
async fn what_the_kernel_counts_for_the_host_user_too_is_bounded_for_each_unit() {
    let fixture = Fixture::new().await;
    let program = r#"
import ctypes, errno, os, signal
libc = ctypes.CDLL(None, use_errno=True)
def until_refused(most, take):
    for count in range(most):
        if take(count) < 0: return count, errno.errorcode[ctypes.get_errno()]
    return most, "no end"
print(*until_refused(200, lambda _: libc.inotify_init1(0)))
for fd in range(4, 19): os.close(fd)
os.chdir("/tmp")
def watch(count):
    name = str(count).encode()
    os.mkdir(name)
    return libc.inotify_add_watch(3, name, 0x100)
print(*until_refused(20000, watch))
queued = signal.SIGRTMIN
signal.pthread_sigmask(signal.SIG_BLOCK, [queued])
print(*until_refused(20000, lambda count: libc.sigqueue(os.getpid(), int(queued), count)))
for kind in ("user", "pid", "net", "ipc", "uts", "time", "cgroup"):
    print(kind, open(f"/proc/sys/user/max_{kind}_namespaces").read().strip(), end=" ")
"#;
    let counted = fixture.python(program).await.ok();
    let (instances, rest) = counted.split_once('\n').unwrap();
    let (watches, rest) = rest.split_once(" ENOSPC\n").unwrap();
    assert_eq!(instances, "16 EMFILE");
    assert_eq!(rest, "4096 EAGAIN\nuser 0 pid 0 net 0 ipc 0 uts 0 time 0 cgroup 1 ");
    // A host with little memory allows all its users fewer watches than one job may have, and others have some of them.
    let host = fs::read_to_string("/proc/sys/fs/inotify/max_user_watches").unwrap();
    let (watches, host): (u32, u32) = (watches.parse().unwrap(), host.trim().parse().unwrap());
    assert!(
        watches == 16384 || (host <= 16384 && watches <= host && watches > host / 2),
        "{watches} of {host}"
    );
}

#[tokio::test]
async fn workspace_and_scratch_are_writable_and_only_the_workspace_is_shared() {
    let fixture = Fixture::new().await;
    let write = "for d in /workspace /tmp /run /dev/shm $HOME; do echo x > $d/left || exit 1; done; pwd; echo ok > /dev/stdout";
    let text = fixture.run(&fixture.unit("one", &["bash", "-c", write])).await.ok();
    assert_eq!(text, "/workspace\nok\n");
    let look = "ls /workspace /tmp /run /dev/shm $HOME | grep left";
    assert_eq!(fixture.run(&fixture.unit("two", &["bash", "-c", look])).await.ok(), "left\n");
    assert_eq!(fs::read_to_string(fixture.workspace.path().join("left")).unwrap(), "x\n");
    let text = fixture.bash("stat -c %u /workspace/left; head -c 600M /dev/zero > /tmp/big; true").await;
    assert!(text.ok().starts_with("1000\n"));
    assert!(String::from_utf8_lossy(&text.stderr).contains("No space left"), "{text:?}");
}

#[tokio::test]
async fn no_file_gets_a_set_id_bit_by_whatever_call() {
    let fixture = Fixture::new().await;
    let program = r#"
import os, stat, errno
os.umask(0)
file = "/workspace/id"
open(file, "w").close()
fd = os.open(file, os.O_RDWR)
def attempt(name, make, path=None):
    try:
        made = make()
    except OSError as error:
        print(name, errno.errorcode[error.errno])
        return
    mode = os.fstat(made).st_mode if path is None else os.stat(path).st_mode
    print(name, oct(stat.S_IMODE(mode)))
for mode in (0o755, 0o4755, 0o2755):
    attempt("chmod", lambda: os.chmod(file, mode), file)
    attempt("fchmod", lambda: os.fchmod(fd, mode), file)
    attempt("open", lambda: os.open(f"/workspace/open{mode}", os.O_CREAT | os.O_WRONLY, mode))
    attempt("tmpfile", lambda: os.open("/tmp", os.O_TMPFILE | os.O_WRONLY, mode))
    attempt("mknod", lambda: os.mknod(f"/workspace/node{mode}", mode | stat.S_IFREG), f"/workspace/node{mode}")
    attempt("mkdir", lambda: os.mkdir(f"/workspace/dir{mode}", mode), f"/workspace/dir{mode}")
"#;
    let text = fixture.python(program).await.ok();
    let calls = ["chmod", "fchmod", "open", "tmpfile", "mknod"];
    let with = |outcome: &str| calls.iter().map(|call| format!("{call} {outcome}\n")).collect::<String>();
    let refused = with("EPERM") + "mkdir 0o755\n";
    assert_eq!(text, with("0o755") + "mkdir 0o755\n" + &refused + &refused);
}

#[tokio::test]
async fn what_the_agent_inherited_ends_at_the_launcher() {
    let dir = tempfile::tempdir().unwrap();
    let inherited = fs::File::create(dir.path().join("inherited")).unwrap();
    rustix::io::fcntl_setfd(&inherited, rustix::io::FdFlags::empty()).unwrap();
    let fixture = Fixture::new().await;
    let launcher = fixture.native.spawner_pid();
    eventually(
        "the launcher to have only its standard descriptors, its lines, and what sandboxes begin with",
        || {
            let open = fs::read_dir(format!("/proc/{launcher}/fd")).unwrap().map(|entry| entry.unwrap());
            let others =
                open.filter(|entry| !["0", "1", "2"].iter().any(|known| entry.file_name() == *known));
            let others: Vec<_> = others.filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
            let is_its_own = |place: &PathBuf| {
                let place = place.to_string_lossy();
                place == "/" || ["socket:", "mnt:", "net:"].iter().any(|kind| place.starts_with(kind))
            };
            !others.is_empty() && others.iter().all(is_its_own)
        },
    )
    .await;
}

#[tokio::test]
async fn a_unit_with_all_the_mounts_it_may_have_holds_nothing_of_its_supervisor() {
    if !is_root() {
        // An ordinary user's supervisor opens no mounts, and its user cannot look at the init.
        return;
    }
    let fixture = Fixture::new().await;
    let host = fixture.dir.path().join("shared");
    fs::create_dir(&host).unwrap();
    let mut unit = fixture.unit("many", &["bash", "-c", "echo ready; sleep 100"]);
    let mount = |index| Mount { source: host.clone(), target: format!("/many/{index}"), read_only: true };
    unit.mounts = (0..64).map(mount).collect();
    fixture.native.prepare(&unit).await.unwrap();
    fixture.native.start(&unit.id).await.unwrap();
    printed(&fixture.native, &unit.id, "ready").await;
    let record = fixture.dir.path().join("state/units/many/supervisor.json");
    let record: serde_json::Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
    let held = fs::read_dir(format!("/proc/{}/fd", record["init"]["pid"])).unwrap();
    let state = fixture.dir.path().join("state");
    for held in held {
        let target = fs::read_link(held.unwrap().path()).unwrap();
        assert!(!target.starts_with(&state), "{}", target.display());
    }
    let now = windlass_sandbox::Stop {
        grace: std::time::Duration::ZERO,
        reason: windlass_sandbox::StopReason::Cancelled,
    };
    fixture.native.signal(&unit.id, now).await.unwrap();
    fixture.finish(&unit.id).await;
}

#[tokio::test]
async fn there_is_no_network_but_a_working_loopback() {
    let fixture = Fixture::new().await;
    let program = r#"
import socket, threading
print(sorted(name for _, name in socket.if_nameindex()))
server = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=lambda: server.accept()[0].sendall(b"pong")).start()
print(socket.create_connection(server.getsockname()).recv(4).decode())
for address in [("192.0.2.1", 80), ("1.1.1.1", 53), ("10.0.0.1", 80)]:
    try:
        socket.create_connection(address, timeout=5)
        print("connected")
    except OSError as error:
        print(error.errno)
"#;
    // 101 is ENETUNREACH.
    assert_eq!(fixture.python(program).await.ok(), "['lo']\npong\n101\n101\n101\n");
}

#[tokio::test]
async fn standard_input_is_empty_and_no_other_descriptor_or_terminal_is_there() {
    let fixture = Fixture::new().await;
    let script = "wc -c; for f in /proc/self/fd/*; do echo ${f##*/}; done | grep -vE '^(255|3)$'; (: < /dev/tty) 2>/dev/null || echo no terminal; readlink /proc/self/fd/0; ps -o sid= -p $$ 2>/dev/null | grep -c 0";
    let text = fixture.bash(script).await.text();
    assert!(text.starts_with("0\n0\n1\n2\nno terminal\n/dev/null\n"), "{text}");
}

#[tokio::test]
async fn the_programs_that_steps_are_written_for_work() {
    let fixture = Fixture::new().await;
    let script = r#"set -e
python3 -c 'import subprocess, multiprocessing, threading, ssl; print(subprocess.check_output(["echo", "py"]).decode().strip()); p = multiprocessing.Pool(2); print(p.map(abs, [-1, -2])); p.close()'
git init -q . && git -c user.name=j -c user.email=j@x commit -q --allow-empty -m first && git log --format=%s
if command -v node >/dev/null; then node -e 'const w = require("worker_threads"); new w.Worker("1", {eval: true}).on("exit", () => require("fs").writeFileSync("n", "node\n"))'; cat n; else echo node; fi
printf '#include <stdio.h>\nint main(){puts("gcc");}' > a.c
if command -v gcc >/dev/null; then gcc a.c -o a && ./a; else echo gcc; fi
cp /bin/true /tmp/t && /tmp/t && mkdir d && mv a.c d/ 2>/dev/null; ls /proc/self/task | wc -l | grep -q 1
"#;
    assert_eq!(fixture.bash(script).await.ok(), "py\n[1, 2]\nfirst\nnode\ngcc\n");
}

#[tokio::test]
async fn mounts_appear_where_they_are_asked_for_and_obey_read_only() {
    let fixture = Fixture::new().await;
    let host = fixture.dir.path().join("host");
    fs::create_dir(&host).unwrap();
    fs::set_permissions(&host, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    fs::write(host.join("file"), "data").unwrap();
    let mut unit = fixture.unit("mounts", &["bash", "-c", "cat ro/file /data/one; echo new > /rw/made; touch ro/x /data/one 2>/dev/null && echo written; umount ro 2>/dev/null && echo unmounted; true"]);
    let mount = |source: &std::path::Path, target: &str, read_only| Mount {
        source: source.to_owned(),
        target: target.to_owned(),
        read_only,
    };
    unit.mounts = vec![
        mount(&host, "ro", true),
        mount(&host, "/rw", false),
        mount(&host.join("file"), "/data/one", true),
    ];
    assert_eq!(fixture.run(&unit).await.ok(), "datadata");
    assert_eq!(fs::read_to_string(host.join("made")).unwrap(), "new\n");
}

#[tokio::test]
async fn links_in_a_mounts_way_are_refused() {
    let fixture = Fixture::new().await;
    let host = fixture.dir.path().join("host");
    fs::create_dir(&host).unwrap();
    symlink(&host, fixture.dir.path().join("link")).unwrap();
    symlink("/etc", fixture.workspace.path().join("trap")).unwrap();
    let cases = [(fixture.dir.path().join("link"), "data"), (host.clone(), "trap"), (host, "trap/below")];
    for (index, (source, target)) in cases.into_iter().enumerate() {
        let mut unit = fixture.unit(&format!("link-{index}"), &["true"]);
        unit.mounts = vec![Mount { source, target: target.into(), read_only: true }];
        let error = fixture.refusal(&unit).await;
        assert!(matches!(&error, Error::Setup { message, .. } if message.contains("attach")), "{error}");
        let exit = fixture.native.wait(&unit.id).await.unwrap();
        assert_eq!((exit.reason, exit.program_started), (EndReason::SetupFailed, false));
    }
}

#[tokio::test]
async fn a_command_that_cannot_run_ends_as_in_a_shell() {
    let fixture = Fixture::new().await;
    fixture.workspace.write_file("plain", b"text", 0o644).unwrap();
    fixture.workspace.write_file("garbage", &[0x7f, 1, 2, 3], 0o755).unwrap();
    for (index, (command, code, message)) in [
        ("no-such-command", 127, "command not found"),
        ("/no/such/file", 127, "command not found"),
        ("./plain", 126, "Permission denied"),
        ("/usr", 126, "Permission denied"),
        ("./garbage", 126, "Exec format error"),
    ]
    .into_iter()
    .enumerate()
    {
        let outcome = fixture.run(&fixture.unit(&format!("bad-{index}"), &[command])).await;
        assert_eq!((outcome.exit.reason, outcome.exit.code), (EndReason::Exited, Some(code)), "{command}");
        assert!(
            outcome.exit.message.as_ref().is_some_and(|text| text.contains(message)),
            "{:?}",
            outcome.exit
        );
        assert!(!outcome.exit.program_started);
        fixture.native.start(&fixture.unit(&format!("bad-{index}"), &[command]).id).await.unwrap();
    }
}

#[tokio::test]
async fn a_set_up_that_fails_names_its_step() {
    let fixture = Fixture::new().await;
    let mut unit = fixture.unit("cwd", &["true"]);
    unit.cwd = "no/such/folder".into();
    let error = fixture.refusal(&unit).await;
    assert_eq!(
        error.to_string(),
        "sandbox of unit cwd could not be made: change into /workspace/no/such/folder: No such file or directory (os error 2)"
    );
}

#[tokio::test]
async fn an_identity_that_is_not_the_callers_to_give_is_refused() {
    let fixture = Fixture::new().await;
    let mut unit = fixture.unit("identity", &["true"]);
    unit.identity.uid = if is_root() { 0 } else { 1 };
    assert!(matches!(fixture.refusal(&unit).await, Error::InvalidSpec { field: "identity", .. }));
}

#[test]
fn root_without_the_means_to_make_something_for_all_sandboxes_makes_each_by_itself() {
    if !is_root() {
        // An ordinary user has none of them anyway.
        return;
    }
    let tests = ["it_is_an_unprivileged_user", "nothing_gets_out_past_the_proxy", "verbs_can_be_repeated"];
    for capability in ["net_admin", "sys_chroot"] {
        suite_without_capabilities(&[capability], &tests);
    }
}
