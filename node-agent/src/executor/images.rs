//! The images of an attempt: which there are, by whose leave, and fetching them while the attempt can still be stopped.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use windlass_crds::ImageName;
use windlass_crds::image::ALLOWED_BY_DEFAULT;
use windlass_crds::node_config::ImagePull;
use windlass_crds::protocol::{Assignment, SandboxRules};
use windlass_crds::sandbox_job::{Runtime, Step};
use windlass_sandbox::engine::{EngineKind, Image, ImageRequest, Pull, Reference};
use windlass_sandbox::{Error as SandboxError, ImageProblem};

use super::policy::{Refusal, Resolve};
use super::verdict::{Verdict, sandbox_verdict};
use super::{AttemptTask, steps, system};
use crate::backoff::Backoff;

/// Tries to fetch an image from a registry that cannot be reached.
const TRIES: u32 = 4;
/// Between two events that tell how fetching an image goes: people read them.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// The engine of a job; `None` for native ones.
pub(super) const fn engine(runtime: Runtime) -> Option<EngineKind> {
    match runtime {
        Runtime::Native => None,
        Runtime::Podman => Some(EngineKind::Podman),
        Runtime::Docker => Some(EngineKind::Docker),
    }
}

/// The image of a step, as the job names it.
pub(super) fn image_of<'a>(assignment: &'a Assignment, step: &'a Step) -> Option<&'a str> {
    let own = step.container.as_ref().and_then(|container| container.image.as_deref());
    own.or(assignment.spec.sandbox.image.as_deref())
}

/// Checks the images of a job against the node's rules.
///
/// # Errors
/// The rule that is broken, or that a name is none.
pub(super) fn check(
    assignment: &Assignment,
    rules: &SandboxRules,
    resolve: Resolve<'_>,
) -> Result<(), Refusal> {
    let rules = &rules.images;
    if engine(assignment.spec.sandbox.runtime).is_none() {
        for step in steps(assignment) {
            if let Some(text) = image_of(assignment, &step) {
                system::allowed(text, rules, resolve)?;
            }
        }
        return Ok(());
    }
    for step in steps(assignment) {
        let Some(text) = image_of(assignment, &step) else {
            let message = format!("step `{}` names no image", step.name);
            return Err(Refusal { rule: "policy.sandbox.images", message });
        };
        let name: ImageName = text.parse().map_err(|error| Refusal {
            rule: "policy.sandbox.images",
            message: format!("`{text}` {error}"),
        })?;
        let allowed: Vec<&str> = match rules.allowed.is_empty() {
            true => ALLOWED_BY_DEFAULT.to_vec(),
            false => rules.allowed.iter().map(String::as_str).collect(),
        };
        if !name.is_within(allowed.iter().copied()) {
            let message = format!("the job asks for `{name}`, the node allows {}", allowed.join(", "));
            return Err(Refusal { rule: "policy.sandbox.images.allowed", message });
        }
        if rules.require_digest && name.digest.is_none() {
            let message =
                format!("the job asks for `{name}`, which is not named by its digest (`name@sha256:…`)");
            return Err(Refusal { rule: "policy.sandbox.images.require_digest", message });
        }
    }
    Ok(())
}

impl AttemptTask {
    /// Fetches the images of all steps. What is unpacked for native ones takes no longer than the job may.
    pub(super) async fn fetch_images(&mut self, steps: &[Step]) -> Result<(), Verdict> {
        let until = Instant::now() + self.job_timeout;
        for step in steps {
            if self.image(step).await?.is_none() {
                self.system(step, until).await?;
            }
        }
        Ok(())
    }

    /// The image of a step, fetched if need be; `None` for a native one.
    pub(super) async fn image(
        &mut self,
        step: &Step,
    ) -> Result<Option<(EngineKind, String, Image)>, Verdict> {
        let Some(kind) = engine(self.assignment().spec.sandbox.runtime) else { return Ok(None) };
        let text = image_of(self.assignment(), step).unwrap_or_default();
        let name: ImageName =
            text.parse().map_err(|error| Verdict::failed("ImageInvalid", format!("`{text}` {error}")))?;
        let full = name.to_string();
        if let Some(image) = self.images.get(&full) {
            return Ok(Some((kind, full, image.clone())));
        }
        let Some(engine) = self.parts.engines.get(kind).cloned() else {
            return Err(Verdict::failed(
                "SandboxFailed",
                format!("this agent has found no {kind} at its start"),
            ));
        };
        let rules = &self.rules.images;
        let request = ImageRequest {
            reference: Reference { name: name.name, tag: name.tag, digest: name.digest },
            pull: match rules.pull {
                ImagePull::IfMissing => Pull::IfMissing,
                ImagePull::Always => Pull::Always,
                ImagePull::Never => Pull::Never,
            },
            auth_file: rules.auth_file.as_ref().map(Into::into),
        };
        let mut backoff = Backoff::for_controller();
        let mut tried = 1;
        let image = loop {
            match self.fetch_image(&engine, &request).await? {
                Ok(image) => break image,
                Err(SandboxError::Image { problem: ImageProblem::Unavailable, .. }) if tried < TRIES => {
                    tried += 1;
                    tokio::time::sleep(backoff.next(&*self.parts.ids)).await;
                }
                Err(error) => return Err(sandbox_verdict(&error, self.started.is_some())),
            }
        };
        self.images.insert(full.clone(), image.clone());
        Ok(Some((kind, full, image)))
    }

    /// Sees to it that an image is there, and tells how fetching it goes.
    async fn fetch_image(
        &mut self,
        engine: &windlass_sandbox::engine::Containers,
        request: &ImageRequest,
    ) -> Result<Result<Image, SandboxError>, Verdict> {
        let mut control = self.control.clone();
        let began = Instant::now();
        let mut told_at: Option<Instant> = None;
        let (lines, mut told) = mpsc::unbounded_channel();
        let mut progress = move |line: String| {
            // Nobody listens any more when the attempt has been stopped.
            let _stopped = lines.send(line);
        };
        let fetch = engine.ensure_image(request, &mut progress);
        tokio::pin!(fetch);
        loop {
            enum News {
                Done(Result<Image, SandboxError>),
                Line(String),
            }
            // Cancel-safe: the fetch goes on where it was, a line that was not taken stays, and the first only looks.
            let news = tokio::select! {
                biased;
                verdict = self.stop_or_lease_end(&mut control) => return Err(verdict),
                Some(line) = told.recv() => News::Line(line),
                done = &mut fetch => News::Done(done),
            };
            match news {
                News::Line(line) => {
                    if told_at.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
                        told_at = Some(Instant::now());
                        self.event("info", "ImagePulling", format!("{}: {line}", request.reference));
                        self.commit().await;
                    }
                }
                News::Done(done) => {
                    if let (Ok(image), Some(_)) = (&done, told_at) {
                        let took = began.elapsed().as_secs_f64();
                        let message =
                            format!("{} is there after {took:.1} s: {}", request.reference, image.id);
                        self.event("info", "ImagePulled", message);
                    }
                    return Ok(done);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use windlass_crds::protocol::ImageRules;
    use windlass_crds::sandbox_job::ContainerStep;

    use super::*;
    use crate::testing::assignment;

    fn checked(image: &str, rules: ImageRules) -> Result<(), Refusal> {
        let mut assignment = assignment("uid", 1, &["true"]);
        assignment.spec.sandbox.runtime = Runtime::Podman;
        assignment.spec.sandbox.image = Some(image.to_owned());
        check(&assignment, &SandboxRules { images: rules, ..SandboxRules::default() }, &|path| {
            Ok(path.to_owned())
        })
    }

    #[test]
    fn images_come_from_where_the_node_allows_and_by_default_from_two_places() {
        let digest = format!("sha256:{}", "a".repeat(64));
        checked("debian:12", ImageRules::default()).unwrap();
        checked("localhost/mine", ImageRules::default()).unwrap();
        let refusal = checked("registry.example/a/b:1", ImageRules::default()).unwrap_err();
        assert_eq!(refusal.rule, "policy.sandbox.images.allowed");
        assert!(
            refusal.message.contains("registry.example/a/b:1") && refusal.message.contains("docker.io"),
            "{refusal}"
        );
        let only = |names: &[&str]| ImageRules {
            allowed: names.iter().map(|&name| name.to_owned()).collect(),
            ..ImageRules::default()
        };
        checked("registry.example/a/b:1", only(&["registry.example/a"])).unwrap();
        checked("debian", only(&["registry.example/a"])).unwrap_err();
        let pinned = || ImageRules { require_digest: true, ..ImageRules::default() };
        assert_eq!(checked("debian:12", pinned()).unwrap_err().rule, "policy.sandbox.images.require_digest");
        checked(&format!("debian@{digest}"), pinned()).unwrap();
        assert!(checked("no image", ImageRules::default()).unwrap_err().message.contains("no image"));
    }

    #[test]
    fn the_image_of_a_step_is_its_own_or_the_sandboxs() {
        let mut assignment = assignment("uid", 1, &["true"]);
        let own = ContainerStep { image: Some("b".to_owned()), ..ContainerStep::default() };
        let step = Step { container: Some(own), ..Step::default() };
        assert_eq!(image_of(&assignment, &Step::default()), None);
        assignment.spec.sandbox.image = Some("a".to_owned());
        assert_eq!(image_of(&assignment, &Step::default()), Some("a"));
        assert_eq!(image_of(&assignment, &step), Some("b"));
    }
}
