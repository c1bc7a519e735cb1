//! Images that lie on the node, as the system of native steps: by whose leave, and unpacking them while the attempt can still be
//! stopped.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use windlass_crds::protocol::ImageRules;
use windlass_crds::sandbox_job::{ContainerUser, Step};
use windlass_crds::{HostImage, HostImageKind};
use windlass_sandbox::image::{Held, Source};
use windlass_sandbox::{Entrypoint, Error as SandboxError, Images, LocalImage, SystemRoot};

use super::AttemptTask;
use super::images::image_of;
use super::policy::{Refusal, Resolve};
use super::verdict::{Verdict, sandbox_verdict};

/// How long unpacking is not worth a word: people read them.
const TELL_AFTER: Duration = Duration::from_secs(1);

/// The image that a text names, where it really is, if the node allows it.
///
/// # Errors
/// The rule that is broken, or that the text names none.
pub(super) fn allowed(text: &str, rules: &ImageRules, resolve: Resolve<'_>) -> Result<LocalImage, Refusal> {
    const RULE: &str = "policy.sandbox.images.folders";
    let refuse = |rule, message| Err(Refusal { rule, message });
    let image: HostImage = match text.parse() {
        Ok(image) => image,
        Err(error) => return refuse("policy.sandbox.images", format!("`{text}` {error}")),
    };
    // Only then is the file system asked: a refusal must not tell whether other paths exist.
    let named: Vec<&String> =
        rules.folders.iter().filter(|folder| Path::new(&image.path).starts_with(folder)).collect();
    if named.is_empty() {
        let folders = match rules.folders.is_empty() {
            true => "none; list its folder in the node's sandbox.images.folders".to_owned(),
            false => format!("what is in {}", rules.folders.join(", ")),
        };
        return refuse(RULE, format!("the job asks for `{text}`, the node allows {folders}"));
    }
    if rules.require_digest && image.digest.is_none() {
        let message = format!("the job asks for `{text}`, which is not named by its digest (`…@sha256:…`)");
        return refuse("policy.sandbox.images.require_digest", message);
    }
    let path = match resolve(Path::new(&image.path)) {
        Ok(path) => path,
        // Said by who opens it, as trouble with the image.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => PathBuf::from(&image.path),
        Err(error) => return refuse(RULE, format!("`{text}` cannot be found: {error}")),
    };
    if !named.iter().any(|folder| resolve(Path::new(folder)).is_ok_and(|folder| path.starts_with(folder))) {
        return refuse(RULE, format!("`{text}` leads out of what the node allows, to another folder"));
    }
    let source = match image.kind {
        HostImageKind::DockerArchive => Source::DockerArchive,
        HostImageKind::OciArchive => Source::OciArchive,
        HostImageKind::OciLayout => Source::OciLayout,
        HostImageKind::RootFolder => Source::RootFolder,
    };
    Ok(LocalImage { source, path, name: image.name, digest: image.digest })
}

impl AttemptTask {
    /// What a native step sees as its system, unpacked if need be; `None` for the node's own. Unpacking it, and waiting for that,
    /// takes no longer than the step may, nor goes on when the job's time is over.
    pub(super) async fn system(
        &mut self,
        step: &Step,
        job_until: Instant,
    ) -> Result<Option<SystemRoot>, Verdict> {
        let Some(text) = image_of(self.assignment(), step).map(str::to_owned) else { return Ok(None) };
        let resolve = |path: &Path| std::fs::canonicalize(path);
        let image = allowed(&text, &self.rules.images, &resolve)
            .map_err(|refusal| Verdict::failed("PolicyRefused", refusal.to_string()))?;
        let Some(images) = self.parts.images.clone() else {
            return Err(Verdict::failed("SandboxFailed", "this agent has no native sandbox"));
        };
        let until = step.timeout.map_or(job_until, |span| job_until.min(Instant::now() + span.get()));
        let unpacked = self
            .unpack(&images, &image, &text, until)
            .await?
            .map_err(|error| sandbox_verdict(&error, self.started.is_some()))?
            .ok_or_else(|| match step.timeout {
                Some(span) if until < job_until => {
                    let span = span.get().as_secs_f64();
                    let message = format!(
                        "step `{}`: {image} was not unpacked within its timeout of {span} s",
                        step.name
                    );
                    Verdict::failed("ImageUnavailable", message)
                }
                Some(_) | None => self.job_over(),
            })?;
        let mut system = SystemRoot::new(unpacked.clone());
        if !unpacked.id.is_empty() {
            self.systems.insert(text, unpacked);
        }
        if let Some(container) = &step.container {
            system.entrypoint = container.entrypoint.clone().map_or(Entrypoint::Image, Entrypoint::Given);
            system.scratch.clone_from(&container.tmpfs);
            system.root = match container.user {
                ContainerUser::Job => false,
                ContainerUser::Root => true,
            };
        }
        Ok(Some(system))
    }

    /// Sees to it that an image is unpacked, and tells how that goes where it takes long. `None` where it was not done in time.
    async fn unpack(
        &mut self,
        images: &Images,
        image: &LocalImage,
        text: &str,
        until: Instant,
    ) -> Result<Result<Option<Held>, SandboxError>, Verdict> {
        let mut control = self.control.clone();
        let known = self.systems.get(text).map(|held| held.id.clone());
        let began = Instant::now();
        if began >= until {
            return Ok(Ok(None));
        }
        let mut told = false;
        let (lines, mut news) = mpsc::unbounded_channel();
        let progress = move |line: String| {
            // Nobody listens any more when the attempt has been stopped.
            let _stopped = lines.send(line);
        };
        let ensure = images.ensure(image, known.as_deref(), progress);
        tokio::pin!(ensure);
        let done = loop {
            // Cancel-safe: the work goes on where it was, a line that was not taken stays, and the others only look. Dropping the
            // work stops it, unless others wait for it too.
            tokio::select! {
                biased;
                verdict = self.stop_or_lease_end(&mut control) => return Err(verdict),
                Some(line) = news.recv() => if began.elapsed() >= TELL_AFTER {
                    told = true;
                    self.event("info", "ImageUnpacking", format!("{image}: {line}"));
                    self.commit().await;
                },
                done = &mut ensure => break done,
                () = tokio::time::sleep_until(until) => return Ok(Ok(None)),
            }
        };
        if let (Ok(unpacked), true) = (&done, told) {
            let took = began.elapsed().as_secs_f64();
            self.event(
                "info",
                "ImageUnpacked",
                format!("{image} is there after {took:.1} s: {}", unpacked.id),
            );
        }
        Ok(done.map(Some))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str, folders: &[&str], require_digest: bool) -> Result<PathBuf, Refusal> {
        let folders = folders.iter().map(|&folder| folder.to_owned()).collect();
        let rules = ImageRules { folders, require_digest, ..ImageRules::default() };
        // `/srv/images/out` leads out of its folder, `/srv/images/in` does not.
        let resolve = |path: &Path| match path.to_str() {
            Some("/srv/images/out") => Ok("/etc".into()),
            Some("/srv/images/in") => Ok("/srv/images/real".into()),
            Some("/srv/images/missing") => Err(std::io::ErrorKind::NotFound.into()),
            Some("/srv/images/shut") => Err(std::io::ErrorKind::PermissionDenied.into()),
            _ => Ok(path.to_owned()),
        };
        allowed(text, &rules, &resolve).map(|image| image.path)
    }

    #[test]
    fn an_image_must_lie_in_an_allowed_folder_and_stay_there() {
        let folder = &["/srv/images"][..];
        assert_eq!(checked("oci:/srv/images/a", folder, false), Ok("/srv/images/a".into()));
        assert_eq!(checked("oci:/srv/images/in", folder, false), Ok("/srv/images/real".into()));
        assert_eq!(checked("oci:/srv/images/missing", folder, false), Ok("/srv/images/missing".into()));
        for (text, folders, expected) in [
            ("oci:/srv/images/a", &[][..], "list its folder in the node's sandbox.images.folders"),
            ("oci:/srv/imagesx/a", folder, "the node allows what is in /srv/images"),
            ("rootfs:/", folder, "the node allows what is in /srv/images"),
            ("oci:/srv/images/out", folder, "leads out of what the node allows"),
            ("oci:/srv/images/shut", folder, "cannot be found: permission denied"),
        ] {
            let refusal = checked(text, folders, false).unwrap_err();
            assert_eq!(refusal.rule, "policy.sandbox.images.folders");
            assert!(refusal.message.contains(expected), "{refusal}");
        }
        assert!(
            checked("debian:12", folder, false).unwrap_err().message.contains("the runtime `native` takes")
        );
    }

    #[test]
    fn a_node_can_insist_on_digests() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let folder = &["/srv/images"][..];
        checked(&format!("oci:/srv/images/a@{digest}"), folder, true).unwrap();
        for text in ["oci:/srv/images/a", "rootfs:/srv/images/root"] {
            let refusal = checked(text, folder, true).unwrap_err();
            assert_eq!(refusal.rule, "policy.sandbox.images.require_digest");
        }
    }
}
