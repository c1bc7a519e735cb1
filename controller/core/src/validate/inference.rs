//! The rules for a node's server of models.

use windlass_crds::ImageName;
use windlass_crds::image::ALLOWED_BY_DEFAULT;
use windlass_crds::inference::{InferenceEngine, InferenceSpec, InferenceVariant, split_model};
use windlass_crds::names::Quoted;
use windlass_crds::node_config::SandboxPolicy;
use windlass_crds::quantity::{Bytes, Cpu};

use super::facts::check_path;
use super::findings::{Findings, under};

/// What Windlass itself tells the server.
const OWN: [&str; 4] = ["OLLAMA_HOST", "OLLAMA_MODELS", "LLAMA_ARG_HOST", "LLAMA_ARG_PORT"];

pub(super) fn check(spec: &InferenceSpec, policy: &SandboxPolicy, at: &str, findings: &mut Findings) {
    let InferenceSpec {
        enabled: _,
        required: _,
        engine,
        url,
        ca_file,
        api_key_file,
        runtime,
        image,
        args,
        port,
        env,
        model_volume,
        variant,
        models,
        prune_models,
        memory,
        cpu,
    } = spec;
    match url {
        Some(url) => {
            if let Err(problem) = check_url(url) {
                findings.refuse(
                    format!("{at}.url"),
                    format!(
                        "{} {problem}; write it as `http://host:port` or `https://host:port`",
                        Quoted(url)
                    ),
                );
            }
            let of_a_container = [
                ("runtime", runtime.is_some()),
                ("image", image.is_some()),
                ("args", !args.is_empty()),
                ("port", port.is_some()),
                ("env", !env.is_empty()),
                ("modelVolume", model_volume.is_some()),
                ("variant", *variant != InferenceVariant::Cpu),
                ("pruneModels", *prune_models == Some(true)),
                ("memory", memory.is_some()),
                ("cpu", cpu.is_some()),
            ];
            for (field, _) in of_a_container.into_iter().filter(|(_, given)| *given) {
                let message = format!(
                    "is for a server that Windlass starts, and {at}.url names one that runs; remove one of the two"
                );
                findings.refuse(format!("{at}.{field}"), message);
            }
        }
        None => check_image(spec, policy, at, findings),
    }
    check_trust(url.as_deref(), ca_file.as_deref(), at, findings);
    for (field, path) in [("caFile", ca_file), ("apiKeyFile", api_key_file)] {
        if let Some(path) = path {
            check_path(path, &format!("{at}.{field}"), findings);
        }
    }
    if *engine == InferenceEngine::OpenaiCompatible && *prune_models == Some(true) {
        findings.refuse(
            format!("{at}.pruneModels"),
            "`true` means nothing with the engine `openaiCompatible`, which has no word for removing models; remove the field",
        );
    }
    findings.check_environment(env, &format!("{at}.env"));
    for name in env.keys().filter(|name| OWN.contains(&name.as_str())) {
        let message = format!("{} is set by Windlass; use {at}.port and {at}.modelVolume", Quoted(name));
        findings.refuse(under(&format!("{at}.env"), name), message);
    }
    if let Some(path) = model_volume
        && (path.split('/').any(|part| part == "..")
            || path.contains(':')
            || path.trim_matches('/').is_empty())
    {
        let message = format!("{} must be a folder, without `..` and `:`; correct the path", Quoted(path));
        findings.refuse(format!("{at}.modelVolume"), message);
    }
    if *memory == Some(Bytes::default()) {
        findings
            .refuse(format!("{at}.memory"), "`0` leaves nothing to run with; raise it or remove the field");
    }
    if *cpu == Some(Cpu::default()) {
        findings.refuse(format!("{at}.cpu"), "`0` leaves nothing to run with; raise it or remove the field");
    }
    check_models(models, at, findings);
}

fn check_image(spec: &InferenceSpec, policy: &SandboxPolicy, at: &str, findings: &mut Findings) {
    let field = format!("{at}.image");
    let Some(image) = &spec.image else {
        if spec.engine == InferenceEngine::OpenaiCompatible {
            findings.refuse(
                field,
                "is missing; the engine `openaiCompatible` has no usual image, so name one, or a server that runs by `url`",
            );
        }
        return;
    };
    let name: ImageName = match image.parse() {
        Ok(name) => name,
        Err(error) => return findings.refuse(field, format!("{} {error}", Quoted(image))),
    };
    let allowed: Vec<&str> = match policy.images.allowed.is_empty() {
        true => ALLOWED_BY_DEFAULT.to_vec(),
        false => policy.images.allowed.iter().map(String::as_str).collect(),
    };
    if !name.is_within(allowed.iter().copied()) {
        let message = format!(
            "{} is not within sandbox.images.allowed, which allows {}; add it there, or use another image",
            Quoted(image),
            allowed.join(", ")
        );
        findings.refuse(field, message);
    } else if policy.images.require_digest && name.digest.is_none() {
        let message = format!(
            "{} is not named by its digest, which sandbox.images.requireDigest wants; write `name@sha256:…`",
            Quoted(image)
        );
        findings.refuse(field, message);
    }
}

/// Whoever is spoken to by TLS needs somebody to vouch for him, and nobody else does.
fn check_trust(url: Option<&str>, ca_file: Option<&str>, at: &str, findings: &mut Findings) {
    let by_tls = url.is_some_and(|url| url.starts_with("https://"));
    let message = match (by_tls, ca_file) {
        (true, None) => format!(
            "is missing; {at}.url begins with `https://`, so name a file of the node with the certificates of the authorities that \
             vouch for it, such as `/etc/ssl/certs/ca-certificates.crt`"
        ),
        (false, Some(_)) => {
            format!(
                "is for a server by TLS, which needs {at}.url with `https://`; remove one of the two or correct it"
            )
        }
        (true, Some(_)) | (false, None) => return,
    };
    findings.refuse(format!("{at}.caFile"), message);
}

fn check_models(models: &[String], at: &str, findings: &mut Findings) {
    findings.check_unique(models, &format!("{at}.models"));
    for (index, entry) in models.iter().enumerate() {
        let (name, digest) = split_model(entry);
        let hex = digest.map(|digest| digest.trim_start_matches("sha256:"));
        let problem = if name.is_empty()
            || name.contains('@')
            || name.chars().any(|c| c.is_whitespace() || c.is_control())
        {
            Some("names no model; write it as the server does, such as `gemma3:270m`")
        } else if hex.is_some_and(|hex| {
            hex.len() != 64 || !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        }) {
            Some("has a digest that is none; write `sha256:` and 64 lower-case hexadecimal digits")
        } else {
            None
        };
        if let Some(problem) = problem {
            findings.refuse(format!("{at}.models[{index}]"), format!("{} {problem}", Quoted(entry)));
        }
    }
}

/// Whether a text is the address of an HTTP server, by TLS or not: a host, and what may follow it.
fn check_url(url: &str) -> Result<(), &'static str> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let rest = rest.ok_or("is no address of HTTP")?;
    if rest.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("holds a space");
    }
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if path.contains(['?', '#']) || authority.contains(['?', '#']) {
        return Err("has a query or a fragment");
    }
    if authority.contains('@') {
        return Err("holds a user, which would be seen by whoever reads the manifest");
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    if host.is_empty() {
        return Err("names no host");
    }
    match port.map(str::parse::<u16>) {
        Some(Ok(0) | Err(_)) => Err("has a port that is none"),
        Some(Ok(_)) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(json: &str) -> Vec<String> {
        let spec: InferenceSpec = serde_json::from_str(json).unwrap();
        let mut findings = Findings::default();
        check(&spec, &SandboxPolicy::default(), "i", &mut findings);
        findings.finish().into_iter().map(|error| format!("{}: {}", error.field, error.message)).collect()
    }

    #[test]
    fn what_a_node_can_do_is_accepted() {
        for json in [
            "{}",
            r#"{"models": ["gemma3:270m", "a/b"], "port": 1, "variant": "cuda", "pruneModels": true}"#,
            r#"{"url": "http://127.0.0.1:11434", "models": ["a"]}"#,
            r#"{"url": "http://[::1]:80/llm", "engine": "openaiCompatible"}"#,
            r#"{"url": "https://models.example", "caFile": "/etc/ca.pem", "apiKeyFile": "/etc/key"}"#,
            r#"{"apiKeyFile": "/etc/key"}"#,
            r#"{"engine": "openaiCompatible", "image": "localhost/llama:1", "args": ["-m", "/models/x.gguf"]}"#,
        ] {
            assert_eq!(found(json), Vec::<String>::new(), "{json}");
        }
    }

    #[test]
    fn each_mistake_names_its_field_and_the_way_out() {
        for (json, field, word) in [
            (r#"{"engine": "openaiCompatible"}"#, "i.image", "is missing"),
            (r#"{"image": "registry.example/x"}"#, "i.image", "sandbox.images.allowed"),
            (r#"{"image": "A"}"#, "i.image", "lower-case"),
            (r#"{"url": "http://:80"}"#, "i.url", "names no host"),
            (r#"{"url": "http://a:99999"}"#, "i.url", "port"),
            (r#"{"url": "http://u:p@a"}"#, "i.url", "user"),
            (r#"{"url": "http://a", "image": "localhost/a"}"#, "i.image", "i.url names one that runs"),
            (r#"{"url": "ftp://a"}"#, "i.url", "no address of HTTP"),
            (r#"{"url": "https://a"}"#, "i.caFile", "is missing"),
            (r#"{"url": "http://a", "caFile": "/ca"}"#, "i.caFile", "is for a server by TLS"),
            (r#"{"caFile": "/ca"}"#, "i.caFile", "is for a server by TLS"),
            (r#"{"url": "https://a", "caFile": "/a/../ca"}"#, "i.caFile", "holds `..`"),
            (r#"{"apiKeyFile": "/a/../key"}"#, "i.apiKeyFile", "holds `..`"),
            (r#"{"models": ["a b"]}"#, "i.models[0]", "names no model"),
            (r#"{"models": ["a@sha256:12"]}"#, "i.models[0]", "64 lower-case"),
            (r#"{"models": ["a", "a"]}"#, "i.models[1]", "a"),
            (r#"{"env": {"OLLAMA_HOST": "x"}}"#, "i.env.OLLAMA_HOST", "i.port"),
            (r#"{"modelVolume": "/a/../b"}"#, "i.modelVolume", "without `..`"),
            (
                r#"{"engine": "openaiCompatible", "image": "localhost/a", "pruneModels": true}"#,
                "i.pruneModels",
                "means nothing",
            ),
        ] {
            let found = found(json);
            assert!(
                found.iter().any(|error| error.starts_with(field) && error.contains(word)),
                "{json}: {found:?}"
            );
        }
    }
}
