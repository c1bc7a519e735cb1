//! Images as the system of units: their forms, their meaning, and that each is unpacked once.

mod hostile;
mod maker;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use tar::EntryType;
use windlass_sandbox::image::{Held, ImageLimits, Source, SystemImage};
use windlass_sandbox::{
    Driver, Entrypoint, Error, ImageProblem, Images, LocalImage, Network, SystemRoot, UnitSpec,
};

use crate::fixture::{Fixture, is_root};
use maker::{Image, Layer, Packed, archive_of, gzip, sha256};

fn local(source: Source, path: impl Into<PathBuf>) -> LocalImage {
    LocalImage { source, path: path.into(), name: None, digest: None }
}

/// Nothing removes it: far less is kept here than may be.
async fn ensure(fixture: &Fixture, image: &LocalImage) -> Result<SystemImage, Error> {
    fixture.native.images().ensure(image, None, |_| {}).await.map(|held| held.clone())
}

/// A unit that runs a shell's script in an image.
fn unit(fixture: &Fixture, name: &str, image: SystemImage, script: &str) -> UnitSpec {
    let mut unit = fixture.unit(name, &["sh", "-c", script]);
    unit.system = Some(SystemRoot::new(image));
    unit
}

/// What went wrong with an image: the kind, and the words.
#[track_caller]
fn trouble<T: std::fmt::Debug>(result: Result<T, Error>) -> (ImageProblem, String) {
    match result {
        Err(Error::Image { problem, message, .. }) => (problem, message),
        other => panic!("{other:?}"),
    }
}

/// What the cache of images holds.
fn cached(fixture: &Fixture) -> Vec<String> {
    let entries = fs::read_dir(fixture.dir.path().join("state/images")).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn every_form_of_an_image_is_a_units_system_and_all_are_one_image() {
    let fixture = Fixture::new().await;
    let dir = fixture.dir.path();
    let image = Image::busybox();
    image.docker_archive(&dir.join("docker.tar"), &["localhost/busybox:1"]);
    let mut forms = vec![local(Source::DockerArchive, dir.join("docker.tar"))];
    for (name, packed) in [("plain", Packed::Plain), ("gzip", Packed::Gzip), ("zstd", Packed::Zstd)] {
        let layout = dir.join(name);
        let digest = image.layout(&layout, packed, Some("localhost/busybox:1"));
        fs::write(dir.join(format!("{name}.tar")), archive_of(&layout)).unwrap();
        fs::write(dir.join(format!("{name}.tar.gz")), gzip(&archive_of(&layout))).unwrap();
        forms.push(LocalImage { digest: Some(digest), ..local(Source::OciLayout, &layout) });
        forms.push(local(Source::OciArchive, dir.join(format!("{name}.tar"))));
        forms.push(local(Source::OciArchive, dir.join(format!("{name}.tar.gz"))));
    }
    for (index, form) in forms.iter().enumerate() {
        let unpacked = ensure(&fixture, form).await.unwrap();
        assert_eq!(unpacked.id, image.id(), "{form}");
        let outcome = fixture.run(&unit(&fixture, &format!("form-{index}"), unpacked, "cat /marker")).await;
        assert_eq!(outcome.ok(), "from the image\n", "{form}");
    }
    assert_eq!(cached(&fixture), [image.id().trim_start_matches("sha256:")]);
    // A folder that somebody else has made, as it is.
    let root = dir.join("root");
    copy_tree(&ensure(&fixture, &forms[0]).await.unwrap().dir, &root);
    let given = ensure(&fixture, &local(Source::RootFolder, &root)).await.unwrap();
    assert_eq!(given.id, "");
    let outcome = fixture
        .run(&unit(&fixture, "root", given, "cat /marker; pwd; touch /workspace/x && echo written"))
        .await;
    assert_eq!(outcome.ok(), "from the image\n/workspace\nwritten\n");
}

#[tokio::test]
async fn what_somebody_has_mounted_in_a_root_folder_is_no_part_of_it() {
    if !is_root() {
        // Nobody else mounts anything here; root runs this test.
        return;
    }
    let fixture = Fixture::new().await;
    let dir = fixture.dir.path();
    Image::busybox().docker_archive(&dir.join("busybox.tar"), &[]);
    let root = dir.join("root");
    let unpacked = ensure(&fixture, &local(Source::DockerArchive, dir.join("busybox.tar"))).await.unwrap();
    copy_tree(&unpacked.dir, &root);
    let below = root.join("mnt");
    fs::create_dir_all(&below).unwrap();
    let mounted = Mounted::at(&below);
    fs::write(below.join("secret"), "of the host").unwrap();
    let given = ensure(&fixture, &local(Source::RootFolder, &root)).await.unwrap();
    let outcome = fixture.run(&unit(&fixture, "mounted", given, "ls -A /mnt; echo listed")).await;
    assert_eq!(outcome.ok(), "listed\n");
    drop(mounted);
}

/// A file system in memory; it goes with the value.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn at(place: &Path) -> Self {
        Self::with(place, "mode=0755")
    }

    fn with(place: &Path, options: &str) -> Self {
        let mut mount = std::process::Command::new("mount");
        let status = mount.args(["-t", "tmpfs", "-o", options, "none"]).arg(place).status().unwrap();
        assert!(status.success());
        Self(place.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let status = std::process::Command::new("umount").arg("--lazy").arg(&self.0).status();
        assert!(status.is_ok_and(|status| status.success()));
    }
}

fn copy_tree(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn what_an_image_says_of_its_program_counts() {
    let fixture = Fixture::new().await;
    let dir = fixture.dir.path();
    let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:200:300:App:/app:/bin/sh\n";
    let layer = Layer::busybox().file("etc/passwd", 0o644, passwd).file("etc/group", 0o644, "apps:x:300:\n");
    let config = json!({"Entrypoint": ["sh", "-c"], "Cmd": ["id -un; id -u; id -g; pwd; echo $A $HOME $PATH; exit 3"],
                        "Env": ["PATH=/bin", "A=image", "HOME=/root"], "WorkingDir": "/srv/app", "User": "app"});
    let image = Image::of([layer]).configured(config);
    image.docker_archive(&dir.join("app.tar"), &[]);
    let image = ensure(&fixture, &local(Source::DockerArchive, dir.join("app.tar"))).await.unwrap();
    assert_eq!(image.config.working_dir.as_deref(), Some("/srv/app"));
    let with = |name: &str, entrypoint: Entrypoint, command: &[&str]| {
        let mut unit = fixture.unit(name, command);
        unit.cwd = "/srv/app".to_owned();
        unit.system = Some(SystemRoot { entrypoint, ..SystemRoot::new(image.clone()) });
        unit
    };
    let outcome = fixture.run(&with("own", Entrypoint::Image, &[])).await;
    assert_eq!(outcome.exit.code, Some(3), "{outcome:?}");
    assert_eq!(outcome.text(), "app\n200\n300\n/srv/app\nimage /home/job /bin\n");
    let outcome = fixture.run(&with("args", Entrypoint::Image, &["echo given"])).await;
    assert_eq!(outcome.ok(), "given\n");
    let given = Entrypoint::Given(vec!["/bin/cat".to_owned()]);
    assert_eq!(fixture.run(&with("given", given, &["/etc/group"])).await.ok(), "apps:x:300:\n");
    // The job says otherwise.
    let mut unit = with(
        "job",
        Entrypoint::Replaced,
        &["sh", "-c", "echo $A; id -u > /workspace/uid; cat /workspace/uid"],
    );
    unit.env.insert("A".to_owned(), "job".to_owned());
    assert_eq!(fixture.run(&unit).await.ok(), "job\n200\n");
    // What it has written belongs to the attempt's user outside, whatever its number inside.
    let written = fs::metadata(fixture.workspace.path().join("uid")).unwrap();
    assert_eq!((written.uid(), written.gid()), (fixture.identity.uid, fixture.identity.gid));
    // Root, which has no rights: neither of the image's files nor of the kernel.
    let mut unit = with(
        "root",
        Entrypoint::Replaced,
        &["sh", "-c", "id -u; grep CapEff /proc/self/status; hostname x || echo no"],
    );
    unit.system.as_mut().unwrap().root = true;
    let outcome = fixture.run(&unit).await;
    assert_eq!(outcome.ok(), "0\nCapEff:\t0000000000000000\nno\n");
}

#[tokio::test]
async fn an_image_is_isolated_as_the_hosts_system_is() {
    let fixture = Fixture::new().await;
    let dir = fixture.dir.path();
    // Where the sandbox lays its own, an image may have links and files.
    let layer = Layer::busybox()
        .file("etc/passwd", 0o644, "root:x:0:0::/:/bin/sh\n")
        .link("etc/resolv.conf", "/proc/1/environ")
        .link("etc/hosts", "../../../../etc/shadow")
        .link("tmp", "/bin")
        .file("run", 0o644, "no folder")
        .link("workspace", "/etc")
        .special("dev/mem", EntryType::Char)
        .dir("var/cache/");
    Image::of([layer]).docker_archive(&dir.join("odd.tar"), &[]);
    let image = ensure(&fixture, &local(Source::DockerArchive, dir.join("odd.tar"))).await.unwrap();
    let mode = fs::metadata(image.dir.join("bin/busybox")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o555, "no set-id bit is kept");
    let script = "for place in / /bin /etc /dev /proc /sys /var /home /etc/hosts /etc/passwd; do
          touch $place/x 2>/dev/null && echo wrote $place; { echo x >> $place; } 2>/dev/null && echo changed $place
        done
        for place in /tmp /var/tmp /run /home/job /workspace /dev/shm /var/cache; do touch $place/x || echo not $place; done
        ls /dev; id -un; hostname; cat /etc/hostname /etc/resolv.conf; grep -c windlass /etc/hosts; ls -A /sys /proc/driver
        cat /proc/sys/kernel/core_pattern > /dev/null && echo core; ls /usr /workspace";
    let mut unit = unit(&fixture, "odd", image, script);
    unit.system.as_mut().unwrap().scratch = vec!["/var/cache".to_owned()];
    let outcome = fixture.run(&unit).await;
    let text = outcome.text();
    let expected =
        "fd\nfull\nnull\nrandom\nshm\nstderr\nstdin\nstdout\nurandom\nzero\njob\nwindlass\nwindlass\n2\n";
    assert!(text.starts_with(expected), "{text}\n{}", String::from_utf8_lossy(&outcome.stderr));
    // Nothing of the host's own system.
    assert!(!text.contains("share"), "{text}");
    // Programs of scratch space and of the workspace can be executed, as without an image; of /proc and /dev they cannot.
    let script = "cat /bin/busybox > /tmp/sh && cat /bin/busybox > /dev/shm/sh && cd /tmp && busybox chmod +x sh /dev/shm/sh
        ./sh -c 'echo ran'; /dev/shm/sh -c 'echo ran too'; echo $?";
    let image = unit.system.clone().unwrap().image;
    let outcome = fixture.run(&crate::images::unit(&fixture, "exec", image.clone(), script)).await;
    let ran_everywhere = fixture.native.features().landlock.is_none();
    assert_eq!(
        outcome.text(),
        if ran_everywhere { "ran\nran too\n0\n" } else { "ran\n126\n" },
        "{outcome:?}"
    );
    // The proxy of a restricted network listens as ever.
    let mut restricted =
        crate::images::unit(&fixture, "net", image, "grep -c ':0C38 ' /proc/net/tcp; echo $http_proxy");
    restricted.network = Network::Restricted;
    assert_eq!(fixture.run(&restricted).await.ok(), "1\nhttp://127.0.0.1:3128\n");
}

#[tokio::test]
async fn what_cannot_be_had_of_an_image_is_refused() {
    let fixture = Fixture::new().await;
    let dir = fixture.dir.path();
    Image::busybox().docker_archive(&dir.join("a.tar"), &[]);
    let image = ensure(&fixture, &local(Source::DockerArchive, dir.join("a.tar"))).await.unwrap();
    let mut wanted = unit(&fixture, "scratch", image.clone(), "true");
    wanted.system.as_mut().unwrap().scratch = vec!["/srv/none".to_owned()];
    let error = fixture.refusal(&wanted).await;
    assert!(error.to_string().contains("/srv/none is not a folder of the image"), "{error}");
    // A program that it lacks ends as in a shell.
    let mut unit = fixture.unit("none", &["bash", "-c", "true"]);
    unit.system = Some(SystemRoot::new(image));
    let outcome = fixture.run(&unit).await;
    assert_eq!((outcome.exit.code, outcome.exit.program_started), (Some(127), false), "{outcome:?}");
}

#[tokio::test]
async fn layers_lie_over_each_other() {
    let fixture = Fixture::new().await;
    let dir = fixture.dir.path();
    let below = Layer::busybox()
        .file("a/kept", 0o644, "below")
        .file("a/replaced", 0o644, "below")
        .file("a/gone", 0o644, "below")
        .file("b/gone", 0o644, "below")
        .file("c/deep/er/gone", 0o644, "below")
        .file("d", 0o644, "a file")
        .dir("e/")
        .file("usr/lib/x", 0o644, "below")
        .link("lib", "usr/lib")
        .file("twice", 0o644, "one inode")
        .hard_link("again", "twice");
    let above = Layer::new()
        .file("a/.wh.gone", 0o644, "")
        .file("a/.wh.never-was", 0o644, "")
        .file("a/replaced", 0o644, "above")
        // What a layer brings is never taken away by the same layer, whatever comes first.
        .file("b/new", 0o644, "above")
        .file("b/.wh..wh..opq", 0o644, "")
        .file(".wh.c", 0o644, "")
        .file("c/new", 0o644, "above")
        .dir("d/")
        .file("d/inside", 0o644, "above")
        .file("e", 0o644, "a file now")
        .file("lib/y", 0o644, "through a link of the image")
        .file("twice", 0o644, "changed alone");
    Image::of([below, above]).docker_archive(&dir.join("layers.tar"), &[]);
    let image = ensure(&fixture, &local(Source::DockerArchive, dir.join("layers.tar"))).await.unwrap();
    let list = |path: &str| {
        let entries = fs::read_dir(image.dir.join(path)).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names.join(" ")
    };
    let read = |path: &str| fs::read_to_string(image.dir.join(path)).unwrap();
    assert_eq!(list("a"), "kept replaced");
    assert_eq!(read("a/replaced"), "above");
    assert_eq!((list("b"), list("c"), list("d")), ("new".to_owned(), "new".to_owned(), "inside".to_owned()));
    assert_eq!((read("e"), list("usr/lib")), ("a file now".to_owned(), "x y".to_owned()));
    assert_eq!((read("twice"), read("again")), ("changed alone".to_owned(), "one inode".to_owned()));
    let marker = fs::metadata(image.dir.join("a/kept")).unwrap();
    assert_eq!((marker.mtime(), marker.mode() & 0o7777), (1_000_000_000, 0o444));
    assert_eq!(marker.uid(), if is_root() { 0 } else { fixture.identity.uid }, "owners are left out");
}

#[tokio::test]
async fn an_image_is_unpacked_once_and_what_was_half_made_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let fixture = Fixture::new().await;
    let image = Image::busybox();
    let path = dir.path().join("a.tar");
    image.docker_archive(&path, &[]);
    let form = local(Source::DockerArchive, &path);
    // Wanted by many at once.
    let images = fixture.native.images();
    let all = (0..8).map(|_| images.ensure(&form, None, |_| {}));
    let all = futures::future::join_all(all).await;
    let first = all[0].as_ref().unwrap();
    assert!(all.iter().all(|image| **image.as_ref().unwrap() == **first));
    let inode = |image: &SystemImage| fs::metadata(image.dir.join("marker")).unwrap().ino();
    let before = inode(first);
    assert_eq!(inode(&ensure(&fixture, &form).await.unwrap()), before);
    // An attempt goes on with the image that it began with, also without its archive; another image is not it.
    Image::of([Layer::busybox()]).docker_archive(&path, &[]);
    let again = images.ensure(&form, Some(&first.id), |_| {}).await.unwrap();
    assert_eq!(again.id, first.id);
    let other = format!("sha256:{}", "0".repeat(64));
    let error = images.ensure(&form, Some(&other), |_| {}).await;
    assert_eq!(trouble(error).1, "was replaced by another one while the job ran");
    // A crash in the middle of unpacking.
    let state = fixture.dir.path().join("state");
    fs::create_dir_all(state.join("images/.unpack-7/root/etc")).unwrap();
    fs::create_dir_all(state.join("images/.gone-0/root")).unwrap();
    let Fixture { dir: kept, native, .. } = fixture;
    drop(native);
    let mut config = crate::fixture::config(kept.path());
    config.images = ImageLimits::default();
    let native = crate::fixture::reopened(config).await;
    assert_eq!(inode(&native.images().ensure(&form, Some(&first.id), |_| {}).await.unwrap()), before);
    let left = || [".unpack-7", ".gone-0"].iter().any(|name| state.join("images").join(name).exists());
    crate::fixture::eventually("what was left is removed", || !left()).await;
}

/// How many uncompressed archives there are at most at one time while something goes on, and what that gives.
async fn uncompressed_at_once<T>(fixture: &Fixture, work: impl Future<Output = T>) -> (usize, T) {
    let nameless = fixture.dir.path().join("state/images/#").into_os_string().into_string().unwrap();
    let (done, ended) = std::sync::mpsc::channel::<()>();
    let watcher = tokio::task::spawn_blocking(move || {
        let mut most = 0;
        while ended.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            let open =
                fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
            most = most.max(open.filter(|file| file.to_string_lossy().starts_with(&nameless)).count());
        }
        most
    });
    let result = work.await;
    drop(done);
    (watcher.await.unwrap(), result)
}

/// Is told nothing.
fn quiet(line: String) {
    std::panic::panic_any(line);
}

/// An image with some bytes of its own, and its compressed archive.
fn compressed(dir: &Path, name: &str) -> (Image, LocalImage) {
    let path = dir.join(format!("{name}.tar.gz"));
    let large = vec![name.as_bytes()[0]; 8 << 20];
    let image = Image::of([Layer::busybox().file("name", 0o644, name).file("large", 0o644, large)]);
    image.docker_archive(&path, &[]);
    fs::write(&path, gzip(&fs::read(&path).unwrap())).unwrap();
    (image, local(Source::DockerArchive, path))
}

#[tokio::test]
async fn a_compressed_archive_is_uncompressed_once_until_it_is_another_one() {
    let fixture = Fixture::new().await;
    let images = fixture.native.images();
    let (image, form) = compressed(fixture.dir.path(), "a");
    let all = futures::future::join_all((0..8).map(|_| images.ensure(&form, None, |_| {})));
    let (most, all) = uncompressed_at_once(&fixture, all).await;
    assert_eq!(most, 1, "all wait for one");
    assert!(all.iter().all(|held| held.as_ref().unwrap().id == image.id()));
    // Unless it was written a moment before it was looked at, it is known from then on.
    ensure(&fixture, &form).await.unwrap();
    let held = images.ensure(&form, None, quiet).await.unwrap();
    assert_eq!(held.id, image.id());
    images.ensure(&form, Some(&image.id()), quiet).await.unwrap();
    let other = format!("sha256:{}", "0".repeat(64));
    let error = images.ensure(&form, Some(&other), quiet).await;
    assert_eq!(trouble(error).1, "was replaced by another one while the job ran");
    // What is asked of it is asked each time.
    let insisting = LocalImage { digest: Some(other.clone()), ..form.clone() };
    assert_eq!(trouble(ensure(&fixture, &insisting).await).0, ImageProblem::Digest);
    // Another image in the same file, and the same one that is not there any more.
    let (second, replaced) = compressed(fixture.dir.path(), "b");
    fs::copy(&replaced.path, &form.path).unwrap();
    assert_eq!(ensure(&fixture, &form).await.unwrap().id, second.id());
    let error = images.ensure(&form, Some(&other), |_| {}).await;
    assert_eq!(trouble(error).1, "was replaced by another one while the job ran");
    ensure(&fixture, &form).await.unwrap();
    fs::remove_dir_all(folder(&ensure(&fixture, &form).await.unwrap())).unwrap();
    assert_eq!(fs::read(ensure(&fixture, &form).await.unwrap().dir.join("name")).unwrap(), b"b");
}

#[tokio::test]
async fn no_more_archives_lie_uncompressed_on_the_disk_than_are_unpacked() {
    let fixture = Fixture::new().await;
    let images = fixture.native.images();
    let forms: Vec<_> =
        "abcdefghij".chars().map(|name| compressed(fixture.dir.path(), &name.to_string())).collect();
    let all = futures::future::join_all(forms.iter().map(|(_, form)| images.ensure(form, None, |_| {})));
    let (most, all) = uncompressed_at_once(&fixture, all).await;
    assert!((1..=4).contains(&most), "{most}");
    for (held, (image, _)) in all.iter().zip(&forms) {
        assert_eq!(held.as_ref().unwrap().id, image.id());
    }
}

#[tokio::test]
async fn a_folder_that_has_lost_its_record_is_no_image() {
    let fixture = Fixture::new().await;
    let path = fixture.dir.path().join("a.tar");
    Image::busybox().docker_archive(&path, &[]);
    let form = local(Source::DockerArchive, path);
    let dir = folder(&ensure(&fixture, &form).await.unwrap());
    fs::remove_dir_all(dir.join("root")).unwrap();
    fs::remove_file(dir.join("record.json")).unwrap();
    let again = ensure(&fixture, &form).await.unwrap();
    let marker = fs::metadata(again.dir.join("marker")).unwrap().ino();
    assert_eq!(ensure(&fixture, &form).await.unwrap(), again);
    assert_eq!(fs::metadata(again.dir.join("marker")).unwrap().ino(), marker, "it is whole, and stays");
    crate::fixture::eventually("the damaged one is removed", || cached(&fixture).len() == 1).await;
}

/// Images in which a file says how they are called, the oldest first, held as if attempts had them.
async fn named_images(fixture: &Fixture, names: &[&str]) -> Vec<(LocalImage, Held)> {
    let mut images = Vec::new();
    for (name, seconds) in names.iter().zip(1_000_000_000..) {
        let path = fixture.dir.path().join(format!("{name}.tar"));
        Image::of([Layer::busybox().file("name", 0o644, name)]).docker_archive(&path, &[]);
        let form = local(Source::DockerArchive, path);
        let held = fixture.native.images().ensure(&form, None, |_| {}).await.unwrap();
        let used = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        fs::File::open(folder(&held)).unwrap().set_modified(used).unwrap();
        images.push((form, held));
    }
    images
}

fn folder(image: &SystemImage) -> PathBuf {
    image.dir.parent().unwrap().to_owned()
}

#[tokio::test]
async fn images_that_nobody_uses_are_removed_when_room_is_wanted() {
    let fixture = Fixture::with(|config| config.images.kept = 0).await;
    let mut images = named_images(&fixture, &["old", "used", "new"]).await;
    // One of them belongs to a unit that is prepared, one to an attempt that has prepared none yet.
    let (_, new) = images.pop().unwrap();
    let (_, used) = images.pop().unwrap();
    let (old_form, old_held) = images.pop().unwrap();
    let old = old_held.clone();
    let unit = unit(&fixture, "user", used.clone(), "cat /name");
    fixture.native.prepare(&unit).await.unwrap();
    let used_folder = folder(&used);
    drop(used);
    assert_eq!(fixture.native.images().collect().unwrap(), 0);
    drop(old_held);
    assert_eq!(fixture.native.images().collect().unwrap(), 1);
    assert!(!folder(&old).exists() && used_folder.exists() && folder(&new).exists());
    fixture.native.start(&unit.id).await.unwrap();
    assert_eq!(fixture.finish(&unit.id).await.ok(), "used");
    fixture.native.cleanup(&unit.id).await.unwrap();
    assert_eq!(fixture.native.images().collect().unwrap(), 1);
    // And is unpacked again when somebody wants it.
    assert_eq!(*fixture.native.images().ensure(&old_form, None, |_| {}).await.unwrap(), old);
    assert!(folder(&new).exists());
}

#[tokio::test]
async fn how_much_is_kept_can_be_changed_while_images_are_there() {
    let fixture = Fixture::new().await;
    let images = fixture.native.images();
    let folders: Vec<PathBuf> = named_images(&fixture, &["oldest", "older", "new"])
        .await
        .into_iter()
        .map(|(_, held)| folder(&held))
        .collect();
    let there = || folders.iter().map(|folder| folder.exists()).collect::<Vec<_>>();
    assert_eq!((images.collect().unwrap(), there()), (0, vec![true; 3]), "they are far from the usual limit");
    let record = fs::read(folders[2].join("record.json")).unwrap();
    let one = serde_json::from_slice::<serde_json::Value>(&record).unwrap()["bytes"].as_u64().unwrap();
    // Whoever has unpacked one lets go of it a moment after it was given.
    let left = async |wanted: [bool; 3]| {
        let collected = || images.collect().is_ok() && there() == wanted;
        crate::fixture::eventually("those that are too much are removed", collected).await;
    };
    images.keep(Some(one * 2 + one / 2));
    left([false, true, true]).await;
    images.keep(None);
    assert_eq!(images.collect().unwrap(), 0);
    images.keep(Some(0));
    left([false; 3]).await;
}

#[tokio::test]
async fn idle_images_give_way_on_a_full_disk_and_used_ones_do_not() {
    let fixture = Fixture::with(|config| config.images.leave_free = 0).await;
    let mut images = named_images(&fixture, &["oldest", "idle", "used"]).await;
    let used = images.pop().unwrap().1;
    let idle: Vec<PathBuf> = images.into_iter().map(|(_, held)| folder(&held)).collect();
    let path = fixture.dir.path().join("more.tar");
    Image::of([Layer::busybox()]).docker_archive(&path, &[]);
    // No disk has so much free: all that is idle goes, and then it is said.
    let state = fixture.dir.path().join("state");
    let limits = ImageLimits { leave_free: u64::MAX, ..ImageLimits::default() };
    let images = Images::open(state.join("images"), state.join("units"), limits).unwrap();
    let _of_an_attempt =
        images.ensure(&local(Source::DockerArchive, "/nowhere"), Some(&used.id), |_| {}).await.unwrap();
    let (problem, message) = trouble(images.ensure(&local(Source::DockerArchive, &path), None, |_| {}).await);
    assert_eq!(problem, ImageProblem::Unavailable);
    assert!(
        message.contains("are free on the disk of") && message.contains("no image there is idle"),
        "{message}"
    );
    assert!(folder(&used).exists() && idle.iter().all(|folder| !folder.exists()));
    assert_eq!(cached(&fixture).len(), 1, "nothing is left of what failed");
    // So it does where an archive is uncompressed first.
    fs::write(&path, gzip(&fs::read(&path).unwrap())).unwrap();
    let (_, message) = trouble(images.ensure(&local(Source::DockerArchive, &path), None, |_| {}).await);
    assert!(message.contains("no image there is idle"), "{message}");
}

#[tokio::test]
async fn no_more_idle_images_go_than_the_disk_needs_and_the_longest_unused_go_first() {
    if !is_root() {
        // Nobody else mounts anything here; root runs this test.
        return;
    }
    let fixture = Fixture::new().await;
    let disk = fixture.dir.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let mounted = Mounted::with(&disk, "size=40m");
    let limits = ImageLimits { leave_free: 8 << 20, ..ImageLimits::default() };
    let images = Images::open(disk.join("images"), fixture.dir.path().join("state/units"), limits).unwrap();
    let mut folders = Vec::new();
    for (name, seconds) in ["oldest", "idle", "wanted"].iter().zip(1_000_000_000..) {
        let path = fixture.dir.path().join(format!("{name}.tar"));
        let layer = Layer::new().file("name", 0o644, name).file("large", 0o644, vec![1; 12 << 20]);
        Image::of([layer]).docker_archive(&path, &[]);
        let image = images.ensure(&local(Source::DockerArchive, path), None, |_| {}).await.unwrap();
        let used = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        fs::File::open(folder(&image)).unwrap().set_modified(used).unwrap();
        folders.push(folder(&image));
    }
    // The last was begun while enough was free, so what was written to it made it scarce.
    let path = fixture.dir.path().join("last.tar");
    Image::of([Layer::new().file("name", 0o644, "last")]).docker_archive(&path, &[]);
    images.ensure(&local(Source::DockerArchive, path), None, |_| {}).await.unwrap();
    assert_eq!(folders.iter().map(|folder| folder.exists()).collect::<Vec<_>>(), [false, true, true]);
    drop(images);
    drop(mounted);
}

#[tokio::test]
async fn an_image_is_unpacked_while_another_one_takes_long_and_who_leaves_ends_it_for_nobody_else() {
    let fixture = Fixture::new().await;
    let dir = fixture.dir.path();
    // Many times as large as the other one.
    let slow = dir.join("slow.tar");
    let large = (0..8).fold(Layer::busybox(), |layer, index| {
        layer.file(format!("large-{index}"), 0o644, vec![index; 4 << 20])
    });
    Image::of([large]).docker_archive(&slow, &[]);
    let quick = dir.join("quick.tar");
    Image::busybox().docker_archive(&quick, &[]);
    let (slow, quick) = (local(Source::DockerArchive, slow), local(Source::DockerArchive, quick));
    let images = fixture.native.images().clone();
    let begun = |images: Images, image: LocalImage| {
        let (tell, told) = tokio::sync::oneshot::channel();
        let tell = std::sync::Mutex::new(Some(tell));
        let work = tokio::spawn(async move {
            let progress = move |_: String| {
                if let Some(tell) = tell.lock().unwrap().take() {
                    tell.send(()).unwrap();
                }
            };
            images.ensure(&image, None, progress).await
        });
        (work, told)
    };
    let (first, told) = begun(images.clone(), slow.clone());
    told.await.unwrap();
    let (second, told) = begun(images.clone(), slow.clone());
    told.await.unwrap();
    ensure(&fixture, &quick).await.unwrap();
    assert!(!first.is_finished() && !second.is_finished(), "the quick one did not wait for it");
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    second.await.unwrap().unwrap();
    // One that everybody has left stops and leaves nothing.
    let other = dir.join("other.tar");
    let large = Layer::busybox().file("large", 0o644, vec![9; 32 << 20]);
    Image::of([large]).docker_archive(&other, &[]);
    let (only, told) = begun(images.clone(), local(Source::DockerArchive, other));
    told.await.unwrap();
    only.abort();
    assert!(only.await.unwrap_err().is_cancelled());
    crate::fixture::eventually("nothing is left of it", || cached(&fixture).len() == 2).await;
}

#[tokio::test]
async fn the_folder_that_an_image_names_is_there_as_with_engines() {
    let fixture = Fixture::new().await;
    for (index, (named, expected)) in [
        ("srv/app", "/srv/app"),
        ("/a/../new/./folder/", "/new/folder"),
        ("/tmp/deep/er", "/tmp/deep/er"),
        ("/workspace/out", "/workspace/out"),
    ]
    .into_iter()
    .enumerate()
    {
        let path = fixture.dir.path().join(format!("{index}.tar"));
        let image = Image::of([Layer::busybox()]).configured(json!({"WorkingDir": named}));
        image.docker_archive(&path, &[]);
        let image = ensure(&fixture, &local(Source::DockerArchive, path)).await.unwrap();
        let mut unit = fixture.unit(&format!("dir-{index}"), &["sh", "-c", "pwd"]);
        unit.cwd = image.config.working_dir.clone().unwrap();
        unit.system = Some(SystemRoot::new(image));
        assert_eq!(fixture.run(&unit).await.ok(), format!("{expected}\n"));
    }
}

#[test]
fn an_image_can_be_read_whatever_the_agent_keeps_from_others_by_default() {
    let thread = std::thread::spawn(|| {
        // For this thread and those that it starts.
        #[expect(
            deprecated,
            reason = "its heir is unsafe for the sake of descriptors, which stay shared here"
        )]
        rustix::thread::unshare(rustix::thread::UnshareFlags::FS).unwrap();
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let fixture = Fixture::new().await;
            let path = fixture.dir.path().join("a.tar");
            let layer = Layer::busybox().file("implied/folder/x", 0o600, "read\n");
            Image::of([layer]).configured(json!({"WorkingDir": "/made/too"})).docker_archive(&path, &[]);
            let image = ensure(&fixture, &local(Source::DockerArchive, path)).await.unwrap();
            let script = "cat /implied/folder/x; ls /made; cat /etc/passwd > /dev/null && ls -d /home/job";
            let outcome = fixture.run(&unit(&fixture, "umask", image, script)).await;
            assert_eq!(outcome.ok(), "read\ntoo\n/home/job\n");
        });
    });
    thread.join().unwrap();
}

#[tokio::test]
async fn what_is_wrong_with_an_image_is_said() {
    let fixture = Fixture::new().await;
    let dir = fixture.dir.path();
    let path = |name: &str| dir.join(name);
    let image = Image::busybox();
    image.docker_archive(&path("good.tar"), &["localhost/a:1"]);
    let layout = path("layout");
    let digest = image.layout(&layout, Packed::Gzip, Some("localhost/a:1"));
    Image::of([Layer::busybox()]).layout(&layout, Packed::Gzip, Some("localhost/b:1"));
    let mut foreign = Image::busybox();
    foreign.architecture = "s390x".to_owned();
    foreign.docker_archive(&path("foreign.tar"), &[]);
    fs::write(path("text.tar"), "no archive of any kind, but long enough to be read as one\n".repeat(50))
        .unwrap();
    fs::write(path("xz.tar"), b"\xfd7zXZ\0and more").unwrap();
    fs::create_dir(path("empty")).unwrap();
    fs::write(path("empty/index.json"), r#"{"manifests": []}"#).unwrap();
    std::os::unix::fs::symlink(path("good.tar"), path("link.tar")).unwrap();
    let good = fs::read(path("good.tar")).unwrap();
    fs::write(path("short.tar"), &good[..good.len() / 2]).unwrap();
    let damaged = path("damaged");
    image.layout(&damaged, Packed::Plain, None);
    let blob = damaged.join("blobs/sha256").join(sha256(&image.layers[0]));
    let mut bytes = fs::read(&blob).unwrap();
    // In the middle of a program.
    let middle = bytes.len() / 3;
    bytes[middle] ^= 1;
    fs::write(&blob, bytes).unwrap();
    let artifact = path("artifact");
    image.layout_with(&artifact, Packed::Plain, None, |manifest| {
        manifest["config"]["mediaType"] = "application/vnd.example.thing+json".into();
    });
    let encrypted = path("encrypted");
    image.layout_with(&encrypted, Packed::Plain, None, |manifest| {
        manifest["layers"][0]["mediaType"] = "application/vnd.oci.image.layer.v1.tar+encrypted".into();
    });
    let stranger = path("stranger.tar");
    Image::busybox().configured(json!({"User": "nobody-here"})).docker_archive(&stranger, &[]);
    let named =
        |source, name: &str, of: &str| LocalImage { name: Some(of.to_owned()), ..local(source, path(name)) };
    let pinned = |source, name: &str, digest: &str| LocalImage {
        digest: Some(digest.to_owned()),
        ..local(source, path(name))
    };
    let zeros = format!("sha256:{}", "0".repeat(64));
    use Source::{DockerArchive, OciArchive, OciLayout, RootFolder};
    let (not_found, invalid, wrong_digest, unusable) =
        (ImageProblem::NotFound, ImageProblem::Invalid, ImageProblem::Digest, ImageProblem::Unusable);
    for (image, problem, words) in [
        (local(DockerArchive, path("missing.tar")), not_found, "is not on the node"),
        (local(OciLayout, path("missing")), not_found, "is not on the node"),
        (local(DockerArchive, path("link.tar")), unusable, "is behind a symbolic link"),
        (local(DockerArchive, layout.clone()), unusable, "is not a regular file"),
        (local(OciLayout, path("good.tar")), unusable, "is no folder"),
        (
            local(OciArchive, path("good.tar")),
            unusable,
            "has no index.json, as an OCI layout has one; it is a `docker-archive:`",
        ),
        (local(OciLayout, path("empty")), not_found, "holds no image"),
        (local(OciLayout, layout.clone()), invalid, "holds several images; put one of these behind the path"),
        (
            named(OciLayout, "layout", "localhost/c:1"),
            not_found,
            "no image `localhost/c:1`; it holds localhost/a:1, localhost/b:1",
        ),
        (named(DockerArchive, "good.tar", "localhost/a:2"), not_found, "it holds localhost/a:1"),
        (pinned(DockerArchive, "good.tar", &zeros), wrong_digest, "is another one than sha256:000"),
        (
            local(DockerArchive, path("foreign.tar")),
            unusable,
            "is made for linux/s390x, and this node is linux/",
        ),
        (local(DockerArchive, path("text.tar")), unusable, "is no archive of an image"),
        (local(DockerArchive, path("xz.tar")), unusable, "compressed with xz; gzip and zstd are supported"),
        (local(DockerArchive, path("short.tar")), unusable, ""),
        (local(OciLayout, damaged), wrong_digest, "it was damaged or changed"),
        (
            local(OciLayout, artifact),
            unusable,
            "media type \"application/vnd.example.thing+json\"; it is no image",
        ),
        (local(OciLayout, encrypted), unusable, "tar+encrypted"),
        (
            local(DockerArchive, stranger),
            unusable,
            "wants the user `nobody-here`, who is not in its /etc/passwd",
        ),
        (local(RootFolder, path("empty")), unusable, "mkdir -p "),
        (named(RootFolder, "empty", "a"), invalid, "has no names"),
        (pinned(RootFolder, "empty", &zeros), wrong_digest, "has no digest"),
    ] {
        let (found, message) = trouble(ensure(&fixture, &image).await);
        assert_eq!(found, problem, "{image}: {message}");
        assert!(message.contains(words), "{image}: {message}");
    }
    assert_eq!(cached(&fixture), Vec::<String>::new(), "nothing is left of what failed");
    for good in [
        named(OciLayout, "layout", "localhost/a:1"),
        pinned(OciLayout, "layout", &digest),
        pinned(DockerArchive, "good.tar", &image_id()),
    ] {
        let name = LocalImage { name: Some("localhost/a:1".to_owned()), ..good };
        assert_eq!(ensure(&fixture, &name).await.unwrap().id, image_id());
    }
}

fn image_id() -> String {
    Image::busybox().id()
}
