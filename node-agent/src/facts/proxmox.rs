//! A Proxmox VE: its version, and everything that its cluster has, in two calls.

use std::net::IpAddr;
use std::time::Duration;

use futures::StreamExt as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use url::{Host, Url};
use windlass_crds::facts::{ProxmoxFacts, ProxmoxResource, ProxmoxSpec};

use super::cut;
use super::logs::small_text;
use crate::client::Authority;

/// Nodes, guests and storages of one report.
const MOST_RESOURCES: usize = 500;
/// Of an answer no more than this is read.
const MOST_ANSWER: usize = 8 << 20;
/// How long the server may take to be connected to and to answer.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
struct Answer<T> {
    data: T,
}

#[derive(Deserialize)]
struct Version {
    version: String,
}

/// A resource as the API has it. Fields that a kind does not have are absent.
#[derive(Deserialize)]
struct Resource {
    #[serde(rename = "type")]
    kind: String,
    id: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    storage: Option<String>,
    #[serde(default)]
    node: Option<String>,
    #[serde(default)]
    status: Option<String>,
    #[serde(default)]
    cpu: Option<f64>,
    #[serde(default)]
    mem: Option<u64>,
    #[serde(default)]
    maxmem: Option<u64>,
    #[serde(default)]
    disk: Option<u64>,
    #[serde(default)]
    maxdisk: Option<u64>,
    #[serde(default)]
    uptime: Option<u64>,
}

/// Asks a Proxmox VE. The error is for people and holds nothing of the token.
pub(super) async fn look(spec: &ProxmoxSpec) -> Result<ProxmoxFacts, String> {
    let url = Url::parse(&spec.url).map_err(|error| format!("url `{}` is none: {error}", spec.url))?;
    let token = small_text(&spec.token_file)
        .await
        .map_err(|error| format!("tokenFile {} cannot be read: {error}", spec.token_file))?;
    let token = token.trim();
    if !token.contains('!') || !token.contains('=') || token.chars().any(char::is_control) {
        return Err(format!("tokenFile {} must hold USER@REALM!NAME=SECRET", spec.token_file));
    }
    let client = client(&url, spec).await?;
    let Version { version } = get(&client, &url, "version", token).await?;
    let resources: Vec<Resource> = get(&client, &url, "cluster/resources", token).await?;
    let mut resources: Vec<ProxmoxResource> = resources.into_iter().map(normal).collect();
    resources.sort_by(|one, other| (&one.kind, &one.id).cmp(&(&other.kind, &other.id)));
    resources.truncate(MOST_RESOURCES);
    Ok(ProxmoxFacts { url: spec.url.clone(), version: cut(&version), resources })
}

fn normal(resource: Resource) -> ProxmoxResource {
    let name = resource.name.or(resource.storage).or_else(|| resource.node.clone());
    ProxmoxResource {
        kind: cut(&resource.kind),
        id: cut(&resource.id),
        name: cut(&name.unwrap_or_default()),
        node: cut(&resource.node.unwrap_or_default()),
        status: cut(&resource.status.unwrap_or_default()),
        cpu: resource.cpu,
        memory_bytes: resource.mem,
        max_memory_bytes: resource.maxmem,
        disk_bytes: resource.disk,
        max_disk_bytes: resource.maxdisk,
        uptime_seconds: resource.uptime,
    }
}

async fn client(url: &Url, spec: &ProxmoxSpec) -> Result<reqwest::Client, String> {
    let authorities = match (url.scheme(), &spec.ca_file) {
        ("https", Some(path)) => {
            let pem =
                small_text(path).await.map_err(|error| format!("caFile {path} cannot be read: {error}"))?;
            let authority = Authority::from_pem(&pem)
                .map_err(|error| format!("caFile {path}: {}", crate::error_chain(&error)))?;
            match authority {
                Authority::Known(certificates) => certificates,
                Authority::Pinned(_) => Vec::new(),
            }
        }
        ("https", None) => return Err("caFile is missing; with `https` it is needed".to_owned()),
        // A token in clear goes to nobody but this host.
        ("http", _) if is_here(url) => Vec::new(),
        _ => {
            return Err(format!(
                "url `{url}` must begin with `https://`; only this host is spoken to without"
            ));
        }
    };
    let tls = crate::client::plain_config(authorities).map_err(|error| error.to_string())?;
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(PATIENCE)
        .timeout(PATIENCE)
        .user_agent(concat!("windlass-agent/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| crate::error_chain(&error))
}

fn is_here(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => IpAddr::V4(address).is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::V6(address).is_loopback(),
        None => false,
    }
}

async fn get<T: DeserializeOwned>(
    client: &reqwest::Client,
    url: &Url,
    path: &str,
    token: &str,
) -> Result<T, String> {
    let base = url.as_str().trim_end_matches('/');
    let request = client
        .get(format!("{base}/api2/json/{path}"))
        .header(http::header::AUTHORIZATION, format!("PVEAPIToken={token}"));
    let response = request.send().await.map_err(|error| {
        let mut cause: &dyn std::error::Error = &error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        format!("{base} does not answer: {cause}")
    })?;
    match response.status() {
        status if status.is_success() => {}
        http::StatusCode::UNAUTHORIZED | http::StatusCode::FORBIDDEN => {
            return Err(format!(
                "{base} refuses the token of tokenFile for {path}; give it the role PVEAuditor"
            ));
        }
        status => return Err(format!("{base} answers {status} to {path}")),
    }
    let mut body = Vec::new();
    let mut chunks = response.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        body.extend_from_slice(&chunk.map_err(|error| crate::error_chain(&error))?);
        if body.len() > MOST_ANSWER {
            return Err(format!("the answer of {base} to {path} is too long"));
        }
    }
    let answer: Result<Answer<T>, _> = serde_json::from_slice(&body);
    answer
        .map(|answer| answer.data)
        .map_err(|error| format!("the answer of {base} to {path} cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::extract::Path;
    use axum::http::{HeaderMap, StatusCode};
    use axum::response::IntoResponse as _;
    use axum::routing::get;

    use super::*;

    /// As a cluster of one node with Proxmox VE 8.2 answers, cut to what tells something.
    const RESOURCES: &str = r#"{"data":[
        {"cgroup-mode":2,"cpu":0.0312,"disk":6442450944,"id":"node/pve1","level":"","maxcpu":8,"maxdisk":100861726720,
         "maxmem":33501757440,"mem":9395240960,"node":"pve1","status":"online","type":"node","uptime":864211},
        {"cpu":0.011,"disk":0,"diskread":1,"id":"qemu/100","maxcpu":2,"maxdisk":34359738368,"maxmem":4294967296,
         "mem":2147483648,"name":"git","node":"pve1","status":"running","template":0,"type":"qemu","uptime":1000,"vmid":100},
        {"content":"iso,backup","disk":6442450944,"id":"storage/pve1/local","maxdisk":100861726720,"node":"pve1",
         "plugintype":"dir","shared":0,"status":"available","storage":"local","type":"storage"},
        {"id":"sdn/pve1/localnetwork","node":"pve1","sdn":"localnetwork","status":"ok","type":"sdn"}]}"#;

    async fn stand_in() -> String {
        let answer = |Path(path): Path<String>, headers: HeaderMap| async move {
            if headers.get("authorization").is_none_or(|token| token != "PVEAPIToken=w@pve!t=0-1") {
                return StatusCode::UNAUTHORIZED.into_response();
            }
            match path.as_str() {
                "version" => r#"{"data":{"release":"8.2","repoid":"x","version":"8.2.4"}}"#.into_response(),
                "cluster/resources" => RESOURCES.into_response(),
                _ => StatusCode::NOT_FOUND.into_response(),
            }
        };
        let router = Router::new().route("/api2/json/{*path}", get(answer));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        url
    }

    fn spec(url: &str, token: &str) -> (tempfile::NamedTempFile, ProxmoxSpec) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), token).unwrap();
        let token_file = file.path().display().to_string();
        (file, ProxmoxSpec { url: url.to_owned(), token_file, ca_file: None })
    }

    #[tokio::test]
    async fn a_cluster_is_told_in_the_same_words_for_every_kind() {
        let url = stand_in().await;
        let (_file, spec) = spec(&url, "w@pve!t=0-1\n");
        let facts = look(&spec).await.unwrap();
        assert_eq!(facts.version, "8.2.4");
        let names: Vec<_> =
            facts.resources.iter().map(|one| (one.kind.as_str(), one.name.as_str())).collect();
        assert_eq!(names, [("node", "pve1"), ("qemu", "git"), ("sdn", "pve1"), ("storage", "local")]);
        let guest = &facts.resources[1];
        assert_eq!((guest.memory_bytes, guest.uptime_seconds), (Some(2_147_483_648), Some(1000)));
    }

    #[tokio::test]
    async fn what_goes_wrong_names_the_field_and_never_the_token() {
        let url = stand_in().await;
        let (_file, wrong) = spec(&url, "w@pve!t=other");
        let (_file, broken) = spec(&url, "secretword");
        let (_file, clear) = spec("http://pve.example:8006", "w@pve!t=0-1");
        let (_file, without) = spec("https://pve.example:8006", "w@pve!t=0-1");
        let (_file, nobody) = spec("http://127.0.0.1:1", "w@pve!t=0-1");
        for (spec, word) in [
            (wrong, "refuses the token"),
            (broken, "USER@REALM!NAME=SECRET"),
            (clear, "https://"),
            (without, "caFile"),
            (nobody, "does not answer"),
        ] {
            let error = look(&spec).await.unwrap_err();
            assert!(error.contains(word), "{error}");
            assert!(
                !error.contains("0-1") && !error.contains("secretword") && !error.contains("other"),
                "{error}"
            );
        }
    }
}
