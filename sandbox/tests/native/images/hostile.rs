//! Layers of people who mean harm: nothing outside of the new root is read or changed, and what fails leaves nothing.

use std::fs;
use std::path::Path;

use serde_json::json;
use tar::EntryType;
use windlass_sandbox::ImageProblem;
use windlass_sandbox::image::Source;

use super::maker::{Image, Layer};
use super::{cached, ensure, local, trouble};
use crate::fixture::Fixture;

/// A file outside, which must stay as it is.
const CANARY: &str = "the host's own";

/// A file of another folder, and a fixture.
struct Case {
    fixture: Fixture,
    outside: tempfile::TempDir,
}

impl Case {
    async fn new() -> Self {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("canary"), CANARY).unwrap();
        Self { fixture: Fixture::new().await, outside }
    }

    fn outside(&self) -> String {
        self.outside.path().to_str().unwrap().to_owned()
    }

    /// Unpacks layers; what is outside must not have changed.
    async fn unpack(&self, layers: Vec<Layer>) -> Result<std::path::PathBuf, String> {
        let path = self.fixture.dir.path().join("hostile.tar");
        Image::of(layers).docker_archive(&path, &[]);
        let unpacked = ensure(&self.fixture, &local(Source::DockerArchive, &path)).await;
        let entries = fs::read_dir(self.outside.path()).unwrap().count();
        assert_eq!(entries, 1, "something was made outside");
        assert_eq!(fs::read_to_string(self.outside.path().join("canary")).unwrap(), CANARY);
        match unpacked {
            Ok(image) => Ok(image.dir),
            failed => {
                let (problem, message) = trouble(failed);
                assert_eq!(problem, ImageProblem::Unusable, "{message}");
                Err(message)
            }
        }
    }
}

#[tokio::test]
async fn paths_that_lead_out_are_refused() {
    let case = Case::new().await;
    let up = |path: &str| format!("{}{path}", "../".repeat(12));
    let canary = up(&format!("{}/canary", case.outside()));
    for (layer, words) in [
        (Layer::new().file("../x", 0o644, "bad"), "contains '..'"),
        (Layer::new().file("a/../../x", 0o644, "bad"), "contains '..'"),
        (Layer::new().file("/../x", 0o644, "bad"), "contains '..'"),
        (Layer::new().dir("../x/"), "contains '..'"),
        (Layer::new().link("../x", "y"), "contains '..'"),
        (Layer::new().special("../x", EntryType::Char), "contains '..'"),
        (Layer::new().hard_link("x", &canary), "contains '..'"),
        (Layer::new().hard_link("x", &format!("{}/canary", case.outside())), "what the image does not have"),
        (Layer::new().hard_link("x", ""), "is a link whose target is empty"),
        (Layer::new().link("x", ""), "is a link whose target is empty"),
        (Layer::new().file("", 0o644, "bad"), ""),
        (Layer::new().file("./", 0o644, "bad"), "would replace the root"),
        (Layer::new().link("/", "y"), "would replace the root"),
        (Layer::new().dir("a/").hard_link("b", "a"), "is a hard link to a folder"),
        (Layer::new().file("../.wh.canary", 0o644, ""), "contains '..'"),
        (Layer::new().file("a/.wh.", 0o644, ""), "takes away what is no entry"),
        (Layer::new().file(".wh..", 0o644, ""), "takes away what is no entry"),
        (Layer::new().file(".wh...", 0o644, ""), "takes away what is no entry"),
        (
            Layer::new().file("f", 0o644, "").file("f/x", 0o644, ""),
            "goes through something that is not a folder",
        ),
        (Layer::new().link("l", "nowhere").file("l/x", 0o644, ""), "goes through a symbolic link to nothing"),
        (Layer::new().link("l", "l").file("l/x", 0o644, ""), "too many symbolic links"),
        (Layer::new().link("etc", "/proc"), ""),
        (Layer::new().file("etc", 0o644, ""), "has something at /etc"),
        (Layer::new().special("x", EntryType::new(b'Z')), "is of an unknown kind"),
    ] {
        let message = case.unpack(vec![Layer::new().dir("a/"), layer]).await.unwrap_err();
        assert!(message.contains(words), "{words}: {message}");
    }
    assert_eq!(cached(&case.fixture), Vec::<String>::new());
}

#[tokio::test]
async fn links_lead_nowhere_but_into_the_image() {
    let case = Case::new().await;
    let outside = case.outside();
    let up = format!("{}{}", "../".repeat(12), outside.trim_start_matches('/'));
    let layers = vec![
        Layer::new()
            // Both lead to a folder of that name in the image, where there is none yet.
            .dir(outside.trim_start_matches('/'))
            .link("absolute", &outside)
            .link("relative", &up)
            .link("hidden", &format!("{outside}/canary")),
        Layer::new()
            .file("absolute/canary", 0o644, "in the image")
            .file("relative/second", 0o644, "in the image")
            // Written over a link, not through it.
            .file("hidden", 0o644, "in the image")
            .hard_link("hard", "absolute/canary"),
        Layer::new().file("absolute/.wh.canary", 0o644, "").file("relative/.wh..wh..opq", 0o644, ""),
    ];
    let root = case.unpack(layers).await.unwrap();
    let inside = root.join(outside.trim_start_matches('/'));
    assert_eq!(fs::read_dir(&inside).unwrap().count(), 0, "both were taken away in the image");
    assert_eq!(fs::read_to_string(root.join("hard")).unwrap(), "in the image");
    assert!(fs::symlink_metadata(root.join("hidden")).unwrap().is_file());
    // Absolute paths of entries begin at the image's root.
    let path = format!("{outside}/made");
    let root = case.unpack(vec![Layer::new().file(&path, 0o644, "in the image")]).await.unwrap();
    assert!(root.join(path.trim_start_matches('/')).is_file());
}

#[tokio::test]
async fn devices_and_rights_are_left_out() {
    let case = Case::new().await;
    let layer = Layer::new()
        .special("null", EntryType::Char)
        .special("sda", EntryType::Block)
        .special("fifo", EntryType::Fifo)
        .file("program", 0o6755, "x")
        .file("secret", 0o000, "x");
    let root = case.unpack(vec![layer]).await.unwrap();
    assert!(!root.join("null").exists() && !root.join("sda").exists() && root.join("fifo").exists());
    let mode = |name: &str| {
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(root.join(name)).unwrap().permissions())
            & 0o7777
    };
    assert_eq!((mode("program"), mode("secret")), (0o555, 0o444));
    assert_eq!(mode("."), 0o755);
}

#[tokio::test]
async fn what_comes_with_an_entry_changes_neither_its_place_nor_its_rights() {
    let case = Case::new().await;
    // Capabilities of a file: a version, and all of them, permitted and effective.
    let capabilities = b"\x01\0\0\x02\xff\xff\xff\xff\0\0\0\0\xff\xff\xff\xff\0\0\0\0";
    let layer = Layer::new()
        .noted(&[("SCHILY.xattr.security.capability", capabilities), ("SCHILY.xattr.user.note", b"kept?")])
        .file("program", 0o755, "x")
        .noted(&[("uid", b"0"), ("gid", b"0"), ("mtime", b"9223372036854775807")])
        .file("owned", 0o644, "x")
        .noted(&[("path", b"a/path of its own")])
        .file("short", 0o644, "x");
    let root = case.unpack(vec![layer]).await.unwrap();
    for attribute in ["security.capability", "user.note"] {
        let found = rustix::fs::getxattr(root.join("program"), attribute, &mut [0; 64][..]);
        assert!(
            matches!(found, Err(rustix::io::Errno::NODATA | rustix::io::Errno::NOTSUP)),
            "{attribute}: {found:?}"
        );
    }
    assert!(root.join("a/path of its own").is_file() && !root.join("short").exists());
    for (key, value, words) in [
        ("path", &b"../x"[..], "contains '..'"),
        ("path", b"a/\0/x", "contains NUL"),
        ("linkpath", b"a\0b", "contains NUL"),
    ] {
        let layer = Layer::new().noted(&[(key, value)]).link("x", "y");
        let message = case.unpack(vec![layer]).await.unwrap_err();
        assert!(message.contains(words), "{words}: {message}");
    }
    let long = [b'a'; 5000];
    for (key, words) in [("path", "longer than 4096"), ("linkpath", "too long")] {
        let layer = Layer::new().noted(&[(key, &long)]).link("x", "y");
        let message = case.unpack(vec![layer]).await.unwrap_err();
        assert!(message.contains(words), "{words}: {message}");
    }
}

#[tokio::test]
async fn a_name_that_comes_again_means_the_last_one() {
    let case = Case::new().await;
    let outside = case.outside();
    let layer = Layer::new()
        .file("a", 0o644, "first")
        .dir("a/")
        .file("a/inside", 0o644, "x")
        .link("a", &outside)
        .file("a", 0o644, "last")
        // A folder in place of a link, not behind it.
        .link("b", &outside)
        .dir("b/")
        .file("b/inside", 0o644, "x")
        .special("c", EntryType::Fifo)
        .file("c", 0o644, "no longer a FIFO")
        .file("d", 0o644, "x")
        .special("d", EntryType::Char);
    let root = case.unpack(vec![layer]).await.unwrap();
    assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "last");
    assert!(fs::symlink_metadata(root.join("b")).unwrap().is_dir() && root.join("b/inside").is_file());
    assert_eq!(fs::read_to_string(root.join("c")).unwrap(), "no longer a FIFO");
    assert!(!root.join("d").exists());
    // Names that are no text are names.
    let layer = Layer::new().file(b"caf\xe9/\xff", 0o644, "x");
    let root = case.unpack(vec![layer]).await.unwrap();
    use std::os::unix::ffi::OsStrExt;
    assert!(root.join(std::ffi::OsStr::from_bytes(b"caf\xe9/\xff")).is_file());
}

#[tokio::test]
async fn the_places_of_the_sandbox_are_its_own_whatever_a_layer_does_to_them() {
    let case = Case::new().await;
    let outside = case.outside();
    let mut odd = Layer::busybox();
    for place in
        ["dev", "proc", "sys", "tmp", "run", "workspace", "etc/hosts", "etc/hostname", "etc/resolv.conf"]
    {
        odd = odd.link(place, &outside);
    }
    let odd = odd.special("etc/passwd", EntryType::Fifo).dir("etc/group/").file("etc/group/x", 0o644, "");
    // Below what was made in one layer, everything is taken away by the next.
    let away = Layer::new().file(".wh..wh..opq", 0o644, "").file(".wh.bin", 0o644, "");
    let again = Layer::busybox().link("home", "var").dir("var/");
    for layers in [vec![odd], vec![Layer::busybox(), away, Layer::busybox()]] {
        let path = case.fixture.dir.path().join("places.tar");
        Image::of(layers).docker_archive(&path, &[]);
        let image = ensure(&case.fixture, &local(Source::DockerArchive, &path)).await.unwrap();
        let script = "for place in /dev /proc /sys /tmp /run /workspace; do [ ! -h $place ] || echo link $place; done
            ls /proc/self/status; cat /etc/hostname; : > /dev/null; touch /tmp/x /run/x /workspace/x; ls -A /sys";
        let name = format!("places-{}", image.id.trim_start_matches("sha256:").get(..8).unwrap());
        let unit = super::unit(&case.fixture, &name, image, script);
        let outcome = case.fixture.run(&unit).await;
        assert_eq!(outcome.ok(), "/proc/self/status\nwindlass\n");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "nothing was made behind the links");
    }
    let message = case.unpack(vec![again]).await.unwrap_err();
    assert!(message.contains("has something at /home/job that is no folder"), "{message}");
}

#[tokio::test]
async fn odd_configurations_are_refused_in_words() {
    let fixture = Fixture::new().await;
    let path = fixture.dir.path().join("odd.tar");
    let passwd = "max:x:4294967295:0::/:/bin/sh\nover:x:4294967296:0::/:/bin/sh\n";
    for (config, words) in [
        (json!({"User": "4294967295"}), "the user `4294967295`"),
        (json!({"User": "4294967296"}), "the user `4294967296`"),
        (json!({"User": "-1"}), "the user `-1`"),
        (json!({"User": "max"}), "the user `max`"),
        (json!({"User": "over"}), "the user `over`"),
        (json!({"User": "1:99999999999"}), "the group `99999999999`"),
        (json!({"User": "1:staff"}), "the group `staff`"),
        (json!({"User": "../etc"}), "the user `../etc`"),
        (json!({"Env": ["A=\0"]}), "NUL"),
        (json!({"Cmd": ["a\0"]}), "NUL"),
        (json!({"WorkingDir": "/a\0"}), "NUL"),
        (json!({"WorkingDir": "bin/busybox/x"}), "that is not a folder"),
        (json!({"Cmd": "no list"}), "that is not understood"),
    ] {
        let layer = Layer::busybox().file("etc/passwd", 0o644, passwd);
        Image::of([layer]).configured(config.clone()).docker_archive(&path, &[]);
        let (problem, message) = trouble(ensure(&fixture, &local(Source::DockerArchive, &path)).await);
        assert_eq!(problem, ImageProblem::Unusable, "{config}: {message}");
        assert!(message.contains(words), "{config}: {message}");
    }
    // Numbers of the whole range are users like others.
    let image = Image::of([Layer::busybox()]).configured(json!({"User": "4294967294:4294967294"}));
    image.docker_archive(&path, &[]);
    let image = ensure(&fixture, &local(Source::DockerArchive, &path)).await.unwrap();
    let outcome = fixture.run(&super::unit(&fixture, "largest", image, "id -u; id -g")).await;
    assert_eq!(outcome.ok(), "4294967294\n4294967294\n");
    let many = std::iter::repeat_with(Layer::new).take(257);
    Image::of(many).docker_archive(&path, &[]);
    let (_, message) = trouble(ensure(&fixture, &local(Source::DockerArchive, &path)).await);
    assert!(message.contains("at most 256"), "{message}");
    assert_eq!(cached(&fixture).len(), 1);
}

#[tokio::test]
async fn bombs_are_refused_and_leave_nothing() {
    let fixture = Fixture::with(|config| {
        config.images.entries = 2000;
        config.images.bytes = 1 << 20;
    })
    .await;
    let path = fixture.dir.path().join("bomb.tar");
    let many = (0..2001).fold(Layer::new(), |layer, index| layer.dir(&format!("d{index}/")));
    // Folders that no entry names are folders too.
    let below = "d/".repeat(45);
    let implied =
        (0..50).fold(Layer::new(), |layer, index| layer.file(format!("x{index}/{below}f"), 0o644, ""));
    let large = Layer::new().file("large", 0o644, vec![0; (1 << 20) + 1]);
    // Each of two layers is small enough alone.
    let half = || Layer::new().file("half", 0o644, vec![0; 600 << 10]);
    for (layers, words) in [
        (vec![many], "has more than 2000 entries"),
        (vec![implied], "has more than 2000 entries"),
        (vec![large], "holds more than 1048576 bytes"),
        (vec![half(), half()], "holds more than 1048576 bytes"),
        (vec![Layer::new().sparse("sparse", 1 << 62)], "holds more than 1048576 bytes"),
    ] {
        Image::of(layers).docker_archive(&path, &[]);
        let (problem, message) = trouble(ensure(&fixture, &local(Source::DockerArchive, &path)).await);
        assert_eq!(problem, ImageProblem::Unusable);
        assert!(message.contains(words), "{message}");
    }
    // Very deep folders, by way of links that make short names of long ones.
    let deep = "d/".repeat(45);
    let mut layers = vec![Layer::new().dir(&deep).link("l0", &deep)];
    for level in 1..20 {
        let below = format!("l{}/{deep}", level - 1);
        layers.push(Layer::new().dir(&below).link(&format!("l{level}"), &below));
    }
    layers.push(Layer::new().file(".wh.d", 0o644, "").file("end", 0o644, "x"));
    Image::of(layers).docker_archive(&path, &[]);
    let image = ensure(&fixture, &local(Source::DockerArchive, &path)).await.unwrap();
    assert!(!image.dir.join("d").exists() && image.dir.join("end").exists());
    // Layers of a layout that unpack to more than may be, as files and as padding.
    for (index, layers) in [
        vec![Layer::new().file("large", 0o644, vec![0; 8 << 20]).bytes()],
        vec![vec![0; 32 << 20]],
        // Several times the same one, which is small enough alone.
        vec![vec![0; 4 << 20]; 5],
    ]
    .into_iter()
    .enumerate()
    {
        let layout = fixture.dir.path().join(format!("layout-{index}"));
        let image = Image { layers, ..Image::busybox() };
        image.layout(&layout, super::Packed::Gzip, None);
        let (_, message) = trouble(ensure(&fixture, &local(Source::OciLayout, &layout)).await);
        assert!(message.contains("holds more than 1048576 bytes"), "{message}");
    }
    // What is compressed a thousand times is no larger than it says it is.
    let bytes = super::maker::gzip(&vec![0; 64 << 20]);
    fs::write(&path, &bytes).unwrap();
    let (_, message) = trouble(ensure(&fixture, &local(Source::OciArchive, &path)).await);
    assert!(message.contains("is larger than 1048576 bytes once it is uncompressed"), "{message}");
    assert_eq!(cached(&fixture).len(), 1);
}

#[tokio::test]
async fn parts_of_a_layout_cannot_lie_outside_of_it() {
    let fixture = Fixture::new().await;
    let dir = fixture.dir.path();
    let layout = dir.join("layout");
    Image::busybox().layout(&layout, super::Packed::Plain, None);
    let blob = fs::read_dir(layout.join("blobs/sha256")).unwrap().next().unwrap().unwrap().path();
    let moved = dir.join("moved");
    fs::rename(&blob, &moved).unwrap();
    std::os::unix::fs::symlink(&moved, &blob).unwrap();
    let (problem, message) = trouble(ensure(&fixture, &local(Source::OciLayout, &layout)).await);
    assert_eq!(problem, ImageProblem::Unusable);
    assert!(message.contains("leads out of its folder"), "{message}");
    fs::remove_file(&blob).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &blob, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
    let (_, message) = trouble(ensure(&fixture, &local(Source::OciLayout, &layout)).await);
    assert!(message.contains("that is not a regular file"), "{message}");
    assert!(Path::new(&layout).exists());
}
