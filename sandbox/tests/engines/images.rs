//! Images: what is fetched, from where and as whom, and what is said when it cannot be.

use std::sync::atomic::Ordering;

use windlass_sandbox::engine::Pull;
use windlass_sandbox::{Error, ImageProblem};

use crate::registry::{AUTH, Registry};
use crate::world::{World, request};

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
