//! A registry on loopback with one image, which can want credentials and can send what it does not promise.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// `user:password` in base64.
pub(crate) const AUTH: &str = "dXNlcjpwYXNzd29yZA==";

/// A registry that runs.
pub(crate) struct Registry {
    pub(crate) port: u16,
    /// The image's digest.
    pub(crate) digest: String,
    /// How many requests it has answered.
    pub(crate) asked: Arc<AtomicUsize>,
}

struct Content {
    manifest: Vec<u8>,
    blobs: Vec<(String, Vec<u8>)>,
    auth: bool,
    /// Sends another manifest than the digest names.
    forged: bool,
}

fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    format!("sha256:{}", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

impl Registry {
    /// With an image `test/app:1` that holds one file. `auth` wants credentials, `forged` sends what no digest names.
    pub(crate) async fn start(auth: bool, forged: bool) -> Self {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(3);
        header.set_mode(0o644);
        archive.append_data(&mut header, "hello", &b"hi\n"[..]).unwrap();
        let layer = archive.into_inner().unwrap();
        let mut zipped = GzEncoder::new(Vec::new(), Compression::fast());
        zipped.write_all(&layer).unwrap();
        let zipped = zipped.finish().unwrap();
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux", "config": {"Env": ["PATH=/bin", "FROM=registry"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        })
        .to_string()
        .into_bytes();
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "size": config.len(), "digest": digest(&config)},
            "layers": [{"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "size": zipped.len(), "digest": digest(&zipped)}],
        })
        .to_string()
        .into_bytes();
        let name = digest(&manifest);
        let blobs = vec![(digest(&config), config), (digest(&zipped), zipped)];
        let content = Arc::new(Content { manifest, blobs, auth, forged });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (content, counter) = (Arc::clone(&content), Arc::clone(&counter));
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let Ok(byte) = stream.read_u8().await else { return };
                        head.push(byte);
                    }
                    counter.fetch_add(1, Ordering::Relaxed);
                    let answer = answer(&content, &String::from_utf8_lossy(&head));
                    // Who asked may be gone.
                    let _gone = stream.write_all(&answer).await;
                });
            }
        });
        Self { port, digest: name, asked }
    }

    /// The name of the image, without tag and digest.
    pub(crate) fn image(&self) -> String {
        format!("127.0.0.1:{}/test/app", self.port)
    }
}

fn answer(content: &Content, head: &str) -> Vec<u8> {
    let mut words = head.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let shown = head.lines().any(|line| {
        line.to_ascii_lowercase().starts_with("authorization:") && line.ends_with(&format!("Basic {AUTH}"))
    });
    let json = "application/json";
    let error =
        |code: &str| format!("{{\"errors\":[{{\"code\":\"{code}\",\"message\":\"{code}\"}}]}}").into_bytes();
    let (status, kind, body) = if content.auth && !shown {
        ("401 Unauthorized", json, error("UNAUTHORIZED"))
    } else if path == "/v2/" {
        ("200 OK", json, b"{}".to_vec())
    } else if let Some(name) = path.strip_prefix("/v2/test/app/manifests/") {
        let known = name == "1" || name == digest(&content.manifest) || content.forged;
        if known {
            ("200 OK", "application/vnd.docker.distribution.manifest.v2+json", content.manifest.clone())
        } else {
            ("404 Not Found", json, error("MANIFEST_UNKNOWN"))
        }
    } else if let Some(name) = path.strip_prefix("/v2/test/app/blobs/") {
        match content.blobs.iter().find(|(known, _)| known == name) {
            Some((_, blob)) => ("200 OK", "application/octet-stream", blob.clone()),
            None => ("404 Not Found", json, error("BLOB_UNKNOWN")),
        }
    } else {
        ("404 Not Found", json, error("NAME_UNKNOWN"))
    };
    let mut answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nDocker-Distribution-Api-Version: registry/2.0\r\n\
         WWW-Authenticate: Basic realm=\"test\"\r\nConnection: close\r\n",
        body.len()
    );
    if path.contains("/manifests/") && status.starts_with("200") && !content.forged {
        answer.push_str(&format!("Docker-Content-Digest: {}\r\n", digest(&body)));
    }
    answer.push_str("\r\n");
    let mut answer = answer.into_bytes();
    if method != "HEAD" {
        answer.extend(body);
    }
    answer
}
