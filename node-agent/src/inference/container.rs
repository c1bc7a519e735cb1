//! The container of a server of models: which engine, image, port and folder, and what a failed start means.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use windlass_crds::ImageName;
use windlass_crds::image::ALLOWED_BY_DEFAULT;
use windlass_crds::inference::{DEFAULT_PORT, InferenceEngine, InferenceVariant};
use windlass_crds::node_config::ImagePull;
use windlass_crds::protocol::{ImageRules, InferenceBackend};
use windlass_sandbox::engine::{
    Containers, Engines, ImageRequest, Pull, Reference, Service, ServiceGpus, ServiceState,
};
use windlass_sandbox::{Error as SandboxError, ImageProblem};

use super::Trouble;
use crate::capabilities::sha256_text;
use crate::executor::service::kind_of;

/// The name of the container within the state folder.
pub(super) const NAME: &str = "inference";
/// Ollama's image, by what computes.
const OLLAMA: &str = "docker.io/ollama/ollama:latest";
const OLLAMA_ROCM: &str = "docker.io/ollama/ollama:rocm";
/// Where the server finds its models.
const MODELS: &str = "/models";
/// Lines of a server's output that are told when it ends: enough for an error and what led to it.
const LAST_LINES: u32 = 8;
/// Characters of them.
const MAX_OUTPUT: usize = 1000;

/// The port that the server is to listen on.
pub(super) fn port(backend: &InferenceBackend) -> u16 {
    backend.port.unwrap_or(DEFAULT_PORT)
}

/// The engine that is to run the server.
pub(super) fn engine<'a>(
    backend: &InferenceBackend,
    engines: &'a Engines,
) -> Result<&'a Containers, Trouble> {
    let wanted = backend.runtime.map(kind_of);
    let found = match wanted {
        Some(kind) => engines.get(kind),
        None => engines.iter().next(),
    };
    found.ok_or_else(|| {
        let wanted = wanted.map_or("a container engine".to_owned(), |kind| kind.to_string());
        Trouble::new(
            "EngineUnavailable",
            format!(
                "the server needs {wanted}, and the agent has found none at its start; install it and start the agent again, or \
                 name a server that runs by inference.url"
            ),
        )
    })
}

/// The image by its full name.
pub(super) fn image(backend: &InferenceBackend, rules: &ImageRules) -> Result<ImageRequest, Trouble> {
    let usual = match backend.variant {
        InferenceVariant::Cpu | InferenceVariant::Cuda => OLLAMA,
        InferenceVariant::Rocm => OLLAMA_ROCM,
    };
    let text = match (&backend.image, backend.engine) {
        (Some(image), _) => image,
        (None, InferenceEngine::Ollama) => usual,
        (None, InferenceEngine::OpenaiCompatible) => {
            let message = "inference.image is missing; the engine `openaiCompatible` has no usual one";
            return Err(Trouble::new("ImageInvalid", message));
        }
    };
    let name: ImageName = text
        .parse()
        .map_err(|error| Trouble::new("ImageInvalid", format!("inference.image: `{text}` {error}")))?;
    let allowed: Vec<&str> = match rules.allowed.is_empty() {
        true => ALLOWED_BY_DEFAULT.to_vec(),
        false => rules.allowed.iter().map(String::as_str).collect(),
    };
    if !name.is_within(allowed.iter().copied()) {
        let message = format!(
            "inference.image: `{name}` is not within the node's sandbox.images.allowed, which allows {}",
            allowed.join(", ")
        );
        return Err(Trouble::new("PolicyRefused", message));
    }
    if rules.require_digest && name.digest.is_none() {
        let message = format!(
            "inference.image: `{name}` is not named by its digest (`name@sha256:…`), which the node's \
             sandbox.images.requireDigest wants"
        );
        return Err(Trouble::new("PolicyRefused", message));
    }
    Ok(ImageRequest {
        reference: Reference { name: name.name, tag: name.tag, digest: name.digest },
        pull: match rules.pull {
            // A server that runs is not replaced because a tag was moved; one that is started may as well be the newest.
            ImagePull::Always => Pull::Always,
            ImagePull::IfMissing => Pull::IfMissing,
            ImagePull::Never => Pull::Never,
        },
        auth_file: rules.auth_file.as_ref().map(Into::into),
    })
}

/// What the container is made from, as a hash. Models and whether the node needs them make no other container.
pub(super) fn made_from(backend: &InferenceBackend, request: &ImageRequest, volume: &Path) -> String {
    let InferenceBackend {
        enabled: _,
        required: _,
        engine,
        url: _,
        ca_file: _,
        api_key_file: _,
        runtime: _,
        image: _,
        args,
        port: _,
        env,
        model_volume: _,
        variant,
        models: _,
        prune_models: _,
        memory_bytes,
        cpu_millis,
    } = backend;
    let image = request.reference.to_string();
    let parts = serde_json::json!([
        engine,
        image,
        args,
        port(backend),
        env,
        volume,
        variant,
        memory_bytes,
        cpu_millis
    ]);
    sha256_text(parts.to_string().as_bytes())
}

/// The container itself.
pub(super) fn service(
    backend: &InferenceBackend,
    image: String,
    made_from: String,
    volume: PathBuf,
) -> Service {
    let port = port(backend);
    let mut env: BTreeMap<String, String> = backend.env.clone();
    env.entry("HOME".to_owned()).or_insert_with(|| MODELS.to_owned());
    let own = match backend.engine {
        InferenceEngine::Ollama => {
            [("OLLAMA_HOST", format!("127.0.0.1:{port}")), ("OLLAMA_MODELS", MODELS.to_owned())]
        }
        InferenceEngine::OpenaiCompatible => {
            [("LLAMA_ARG_HOST", "127.0.0.1".to_owned()), ("LLAMA_ARG_PORT", port.to_string())]
        }
    };
    env.extend(own.map(|(name, value)| (name.to_owned(), value)));
    Service {
        name: NAME.to_owned(),
        image,
        made_from,
        args: backend.args.clone(),
        env,
        folders: vec![(volume, MODELS.to_owned())],
        gpus: match backend.variant {
            InferenceVariant::Cpu => ServiceGpus::None,
            InferenceVariant::Cuda => ServiceGpus::Nvidia,
            InferenceVariant::Rocm => ServiceGpus::Amd,
        },
        memory_bytes: backend.memory_bytes,
        cpu_millis: backend.cpu_millis,
    }
}

/// The folder of the models: the one that is named, or `own`, made if it is missing.
pub(super) fn volume(backend: &InferenceBackend, own: &Path) -> Result<PathBuf, Trouble> {
    let trouble = |path: &Path, why: String| {
        Trouble::new(
            "VolumeUnusable",
            format!("the folder of models {} cannot be used: {why}", path.display()),
        )
    };
    let path = match &backend.model_volume {
        Some(path) => PathBuf::from(path),
        None => {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(own);
            made.map_err(|error| trouble(own, error.to_string()))?;
            own.to_owned()
        }
    };
    let real = std::fs::canonicalize(&path)
        .map_err(|error| trouble(&path, format!("{error}; make it, or correct inference.modelVolume")))?;
    if !real.is_dir() {
        return Err(trouble(&path, "it is no folder; correct inference.modelVolume".to_owned()));
    }
    Ok(real)
}

/// Whether the port is free.
pub(super) fn check_port(port: u16) -> Result<(), Trouble> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(_free) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Err(Trouble::new(
            "PortTaken",
            format!(
                "port {port} of 127.0.0.1 is in use by another program; end that, or choose another port with inference.port"
            ),
        )),
        Err(error) => {
            Err(Trouble::new("PortTaken", format!("port {port} of 127.0.0.1 cannot be listened on: {error}")))
        }
    }
}

/// What an error of an engine means.
pub(super) fn engine_trouble(error: &SandboxError) -> Trouble {
    let message = crate::error_chain(error);
    let reason = match error {
        SandboxError::EngineUnreachable { .. } => "EngineUnreachable",
        SandboxError::Image { problem, .. } => match problem {
            ImageProblem::NotFound => "ImageNotFound",
            ImageProblem::Unauthorized | ImageProblem::Credentials => "ImageUnauthorized",
            ImageProblem::Digest => "ImageDigest",
            ImageProblem::Invalid => "ImageInvalid",
            ImageProblem::Unavailable => "ImageUnavailable",
            ImageProblem::Unusable => "ImageUnusable",
        },
        _ => "StartFailed",
    };
    Trouble::new(reason, message)
}

/// Why a server that was started does not run any more.
pub(super) async fn ended(engine: &Containers, state: &ServiceState) -> Trouble {
    let output = match engine.service_output(NAME, LAST_LINES).await {
        Ok(output) => output,
        Err(error) => format!("(its output cannot be read: {error})"),
    };
    let output = tail(&output);
    let code = state.exit_code.map_or("an unknown code".to_owned(), |code| format!("code {code}"));
    if state.oom_killed {
        let message = "the server was ended because it used more memory than it may; raise inference.memory, or use a smaller model";
        return Trouble::new("OOMKilled", message);
    }
    let error = state.error.as_ref().map_or_else(String::new, |error| format!(" ({error})"));
    let said =
        if output.is_empty() { "it said nothing".to_owned() } else { format!("its last words: {output}") };
    Trouble::new("Exited", format!("the server ended with {code}{error}; {said}"))
}

/// The end of a text as one line.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let text: String = lines.join(" | ").chars().filter(|c| !c.is_control()).collect();
    let surplus = text.chars().count().saturating_sub(MAX_OUTPUT);
    text.chars().skip(surplus).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::tests::backend;

    #[test]
    fn the_image_is_the_usual_one_of_what_computes_and_within_the_policy() {
        let rules = ImageRules::default();
        let name =
            |backend: &InferenceBackend| image(backend, &rules).map(|image| image.reference.to_string());
        let mut wanted = backend();
        assert_eq!(name(&wanted).unwrap(), "docker.io/ollama/ollama:latest");
        wanted.variant = InferenceVariant::Rocm;
        assert_eq!(name(&wanted).unwrap(), "docker.io/ollama/ollama:rocm");
        wanted.engine = InferenceEngine::OpenaiCompatible;
        assert_eq!(name(&wanted).unwrap_err().reason, "ImageInvalid");
        wanted.image = Some("registry.example/x".to_owned());
        assert_eq!(name(&wanted).unwrap_err().reason, "PolicyRefused");
        wanted.image = Some("localhost/x:1".to_owned());
        let digests = ImageRules { require_digest: true, ..ImageRules::default() };
        assert_eq!(image(&wanted, &digests).unwrap_err().reason, "PolicyRefused");
    }

    #[test]
    fn a_server_is_made_anew_for_what_it_is_made_from_and_for_nothing_else() {
        let rules = ImageRules::default();
        let hash = |wanted: &InferenceBackend| {
            made_from(wanted, &image(wanted, &rules).unwrap(), Path::new("/state/models"))
        };
        let first = backend();
        let more = InferenceBackend { models: vec!["a".to_owned()], required: true, ..backend() };
        assert_eq!(hash(&first), hash(&more));
        let moved = InferenceBackend { port: Some(1), ..backend() };
        assert_ne!(hash(&first), hash(&moved));
        assert_eq!(hash(&first), hash(&InferenceBackend { port: Some(DEFAULT_PORT), ..backend() }));
    }

    #[test]
    fn a_server_is_told_where_to_listen_and_what_is_declared_cannot_change_that() {
        let mut wanted = backend();
        wanted.env =
            [("OLLAMA_HOST", "0.0.0.0"), ("A", "b")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let made = service(&wanted, "id".to_owned(), "hash".to_owned(), "/state/models".into());
        assert_eq!((made.env["OLLAMA_HOST"].as_str(), made.env["A"].as_str()), ("127.0.0.1:11434", "b"));
        assert_eq!(made.folders, [(PathBuf::from("/state/models"), "/models".to_owned())]);
    }

    #[test]
    fn a_port_that_another_program_has_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let trouble = check_port(port).unwrap_err();
        assert!(trouble.reason == "PortTaken" && trouble.message.contains(&port.to_string()), "{trouble:?}");
        drop(taken);
        assert_eq!(check_port(port), Ok(()));
    }

    #[test]
    fn a_folder_that_is_none_is_named_and_the_agents_own_is_made() {
        let state = tempfile::tempdir().unwrap();
        let own = state.path().join("inference/models");
        assert_eq!(volume(&backend(), &own).unwrap(), std::fs::canonicalize(&own).unwrap());
        let wanted = InferenceBackend { model_volume: Some("/nonexistent/models".to_owned()), ..backend() };
        let trouble = volume(&wanted, &own).unwrap_err();
        assert!(
            trouble.reason == "VolumeUnusable" && trouble.message.contains("/nonexistent/models"),
            "{trouble:?}"
        );
    }

    #[test]
    fn last_words_are_one_line_of_bounded_length() {
        assert_eq!(tail("a\n\n  b \u{1b}[0m\n"), "a | b [0m");
        assert_eq!(tail(&"x".repeat(5000)).len(), MAX_OUTPUT);
    }
}
