//! Images: what is fetched, from where and as whom, and what is said when it cannot be.

use std::sync::atomic::Ordering;

use windlass_sandbox::engine::{EngineKind, Pull};
use windlass_sandbox::image::Source;
use windlass_sandbox::{Error, ImageProblem, LocalImage, SystemRoot};

use crate::registry::{AUTH, Registry};
use crate::world::{Runtime, World, request, socket};

/// What kind of trouble an error is, and its text.
fn trouble(error: &Error) -> (ImageProblem, String) {
    let Error::Image { problem, .. } = error else { panic!("{error:?}") };
    (*problem, error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_fetched_once_with_progress_and_is_the_one_of_its_digest() {
    let world = World::new();
    for runtime in world.engines().await {
        let registry = Registry::start(false, false).await;
        let containers = runtime.containers.unwrap();
        let pinned = request(&format!("{}@{}", registry.image(), registry.digest));
        let mut lines = Vec::new();
        let image = containers.ensure_image(&pinned, &mut |line| lines.push(line)).await.unwrap();
        assert!(!lines.is_empty(), "{} tells how it goes", containers.kind());
        assert!(image.env.contains(&"FROM=registry".to_owned()), "{image:?}");
        assert!(image.digests.iter().any(|name| name.ends_with(&registry.digest)), "{image:?}");
        let asked = registry.asked.load(Ordering::Relaxed);
        assert_eq!(containers.ensure_image(&pinned, &mut |_| {}).await.unwrap().id, image.id);
        assert_eq!(registry.asked.load(Ordering::Relaxed), asked, "it is there already");
        let mut tagged = request(&format!("{}:1", registry.image()));
        tagged.pull = Pull::Always;
        assert_eq!(containers.ensure_image(&tagged, &mut |_| {}).await.unwrap().id, image.id);
        assert!(registry.asked.load(Ordering::Relaxed) > asked);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_come_from_the_nodes_file() {
    let world = World::new();
    for runtime in world.engines().await {
        let registry = Registry::start(true, false).await;
        let containers = runtime.containers.unwrap();
        let mut wanted = request(&format!("{}:1", registry.image()));
        let without = containers.ensure_image(&wanted, &mut |_| {}).await.unwrap_err();
        let (problem, text) = trouble(&without);
        assert_eq!(problem, ImageProblem::Unauthorized, "{text}");
        assert!(text.contains("sandbox.images.authFile"), "{text}");
        let file = world.dir.path().join("auth.json");
        let write = |auth: &str| {
            let text =
                format!("{{\"auths\": {{\"127.0.0.1:{}\": {{\"auth\": \"{auth}\"}}}}}}", registry.port);
            std::fs::write(&file, text).unwrap();
        };
        // user:wrong
        write("dXNlcjp3cm9uZw==");
        wanted.auth_file = Some(file.clone());
        let (problem, text) = trouble(&containers.ensure_image(&wanted, &mut |_| {}).await.unwrap_err());
        assert_eq!(problem, ImageProblem::Unauthorized, "{text}");
        assert!(text.contains("correct them") && !text.contains("wrong"), "{text}");
        write("no base64!");
        let (problem, _) = trouble(&containers.ensure_image(&wanted, &mut |_| {}).await.unwrap_err());
        assert_eq!(problem, ImageProblem::Credentials);
        write(AUTH);
        containers.ensure_image(&wanted, &mut |_| {}).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_fetched_is_told_by_kind() {
    let world = World::new();
    let none = windlass_test_process::free_port();
    for runtime in world.engines().await {
        let (registry, forged) = (Registry::start(false, false).await, Registry::start(false, true).await);
        let containers = runtime.containers.unwrap();
        let zeros = format!("sha256:{}", "0".repeat(64));
        for (name, expected) in [
            (format!("{}:2", registry.image()), ImageProblem::NotFound),
            (format!("{}@{zeros}", registry.image()), ImageProblem::NotFound),
            (format!("{}@{zeros}", forged.image()), ImageProblem::Digest),
            (format!("127.0.0.1:{none}/test/app:1"), ImageProblem::Unavailable),
            ("localhost/no-such-image:1".to_owned(), ImageProblem::NotFound),
        ] {
            let error = containers.ensure_image(&request(&name), &mut |_| {}).await.unwrap_err();
            let (problem, text) = trouble(&error);
            assert_eq!(problem, expected, "{}: {text}", containers.kind());
            assert!(text.contains(&name), "{text}");
        }
        let mut never = request(&format!("{}:1", registry.image()));
        never.pull = Pull::Never;
        let (problem, text) = trouble(&containers.ensure_image(&never, &mut |_| {}).await.unwrap_err());
        assert_eq!(problem, ImageProblem::NotFound);
        assert!(text.contains("pull: Never"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_engines_save_is_a_native_units_system() {
    let world = World::new();
    let native = world.native().await;
    let mut ids = Vec::new();
    for kind in world.engines().await.iter().filter_map(|runtime| runtime.kind) {
        let host = format!("unix://{}", socket(kind).display());
        let forms: &[(&str, Source)] = match kind {
            EngineKind::Podman => {
                &[("docker-archive", Source::DockerArchive), ("oci-archive", Source::OciArchive)]
            }
            EngineKind::Docker => &[("", Source::DockerArchive)],
        };
        for (form, source) in forms {
            let path = world.dir.path().join(format!("{kind}-{form}.tar"));
            let mut save = std::process::Command::new(kind.to_string());
            match kind {
                EngineKind::Podman => save.args(["--remote", "--url", &host, "save", "--format", form]),
                EngineKind::Docker => save.args(["-H", &host, "save"]),
            };
            windlass_test_engines::run(save.arg("-o").arg(&path).arg(windlass_test_engines::IMAGE));
            let name = Some(windlass_test_engines::IMAGE.to_owned());
            let image = LocalImage { source: *source, path, name, digest: None };
            let unpacked = native.images().ensure(&image, None, |_| {}).await.unwrap();
            assert!(unpacked.config.env.contains(&"PATH=/bin".to_owned()), "{unpacked:?}");
            let runtime = Runtime::native(native.clone());
            let script = "[ -x /bin/busybox ] && [ ! -e /usr/bin ] && pwd";
            let mut unit = world.script(&runtime, &format!("{kind}-{form}"), script);
            unit.system = Some(SystemRoot::new(unpacked.clone()));
            assert_eq!(runtime.run(&unit).await.ok(), "/workspace\n", "{image}");
            ids.push((kind, unpacked.id.clone()));
        }
    }
    // Both forms of one engine are one image.
    let of_podman: Vec<&String> =
        ids.iter().filter(|(kind, _)| *kind == EngineKind::Podman).map(|(_, id)| id).collect();
    assert_eq!(of_podman[0], of_podman[1]);
}
