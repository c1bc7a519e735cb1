//! Layers of people who mean harm: nothing outside of the new root is read or changed, and what fails leaves nothing.

use std::fs;
use std::path::Path;

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
            Err(error) => {
                let (problem, message) = trouble(Err(error));
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
        (0..50).fold(Layer::new(), |layer, index| layer.file(&format!("x{index}/{below}f"), 0o644, ""));
    let large = Layer::new().file("large", 0o644, vec![0; (1 << 20) + 1]);
    // Each of two layers is small enough alone.
    let half = || Layer::new().file("half", 0o644, vec![0; 600 << 10]);
    for (layers, words) in [
        (vec![many], "has more than 2000 entries"),
        (vec![implied], "has more than 2000 entries"),
        (vec![large], "holds more than 1048576 bytes"),
        (vec![half(), half()], "holds more than 1048576 bytes"),
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
