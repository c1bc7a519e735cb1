//! Ways into other namespaces, and out of those of a job.

use crate::case::{python, run};

#[tokio::test]
async fn no_namespace_is_made_or_entered() {
    let program = r#"
flags = dict(user=0x10000000, mnt=0x20000, pid=0x20000000, net=0x40000000, ipc=0x8000000, uts=0x4000000, cgroup=0x2000000, time=0x80)
for name, flag in flags.items():
    for how, answer in (("unshare", call(272, flag)), ("clone", call(56, flag | 17, 0) if name != "time" else "EPERM")):
        if answer != "EPERM": print(name, how, answer)
    own = os.open(f"/proc/self/ns/{name}", os.O_RDONLY)
    if (answer := call(308, own, flag)) != "EPERM": print(name, "setns", answer)
    try:
        os.open(f"/proc/1/ns/{name}", os.O_RDONLY)
        print(name, "of init opened")
    except PermissionError: pass
arguments = ctypes.create_string_buffer(struct.pack("=Q", 0x10000000) + bytes(80))
print("clone3", call(435, ctypes.addressof(arguments), 88))
# Should a filter have a gap: the kernel refuses them to this user namespace in any case.
print([open(f"/proc/sys/user/max_{name}_namespaces").read().strip() for name in flags if name != "mnt"])
print(open("/proc/self/uid_map").read().split()[0::2])
attempt("uid_map", lambda: write("/proc/self/uid_map", "0 0 1"))
attempt("setuid", lambda: os.setuid(0))
attempt("setgroups", lambda: os.setgroups([0]))
"#;
    run([python("namespaces", program).prints(
        "clone3 ENOSYS\n['0', '0', '0', '0', '0', '1', '0']\n['1000', '1']\nuid_map refused\nsetuid EINVAL\nsetgroups refused\n",
    )])
    .await;
}

#[tokio::test]
async fn every_mount_is_harmless_and_few_can_be_written() {
    let program = r#"
writable = []
mounts = [line.split() for line in open("/proc/self/mountinfo")]
places = {fields[0]: fields[4] for fields in mounts}
# Nobody gets to a mount with another one on its root.
covered = {fields[1] for fields in mounts if fields[4] == places.get(fields[1])}
for line in open("/proc/self/mountinfo"):
    before, after = line.split(" - ")
    fields = before.split()
    place, flags, kind = fields[4], fields[5].split(","), after.split()[0]
    if "nosuid" not in flags: print("set-id", line)
    if "nodev" not in flags and not (place.startswith("/dev/") or place.startswith("/proc/")): print("devices", line)
    if any(field.startswith(("shared:", "master:")) for field in fields[6:]): print("propagates", line)
    if kind not in ("tmpfs", "proc", "devtmpfs") and "ro" not in flags and place != "/workspace": print("writable", line)
    if "rw" in flags and os.path.isdir(place) and fields[0] not in covered: writable.append(place)
print(*sorted(writable))
for place in ("/", "/usr", "/etc", "/dev", "/proc", "/sys"):
    attempt(place, lambda: write(place + "/made"))
for place in ("/proc", "/usr", "/"):
    if (answer := call(165, 0, ctypes.addressof(ctypes.create_string_buffer(place.encode())), 0, 32, 0)) != "EPERM": print(answer)
"#;
    let refused = |place: &str, errno: &str| format!("{place} {errno}\n");
    let expected = "/dev/shm /home/job /run /tmp /workspace\n".to_owned()
        + &["/", "/usr", "/etc", "/dev"].map(|place| refused(place, "refused")).concat()
        + &refused("/proc", "ENOENT")
        + &refused("/sys", "refused");
    run([python("mounts", program).prints(expected)]).await;
}
