//! The rules for what a node tells of its host.

use windlass_crds::Span;
use windlass_crds::facts::{FactsSpec, LogFile, ProxmoxSpec};
use windlass_crds::names::Quoted;
use windlass_crds::quantity::Bytes;

use super::findings::Findings;

/// Looking costs the node some milliseconds, and the database a row.
const LEAST_EVERY: Span = Span::from_secs(10);
const MOST_EVERY: Span = Span::from_secs(86_400);
/// So that all files of a node together stay far below what one report may hold.
const MOST_BYTES: u64 = 64 << 10;

pub(super) fn check(spec: &FactsSpec, at: &str, findings: &mut Findings) {
    let FactsSpec { every, steps: _, logs, proxmox } = spec;
    findings.check_span(format!("{at}.every"), *every, LEAST_EVERY, MOST_EVERY);
    for (index, LogFile { path, max_bytes }) in logs.iter().enumerate() {
        let field = format!("{at}.logs[{index}]");
        check_path(path, &format!("{field}.path"), findings);
        if logs[..index].iter().any(|earlier| earlier.path == *path) {
            let message = format!("{} is listed twice; remove one of them", Quoted(path));
            findings.refuse(format!("{field}.path"), message);
        }
        if let Some(bytes) = max_bytes
            && !(1..=MOST_BYTES).contains(&bytes.get())
        {
            let message = format!("`{bytes}` is not between 1 and {}; correct it", Bytes::new(MOST_BYTES));
            findings.refuse(format!("{field}.maxBytes"), message);
        }
    }
    if let Some(ProxmoxSpec { url, token_file, ca_file }) = proxmox {
        let field = format!("{at}.proxmox");
        check_path(token_file, &format!("{field}.tokenFile"), findings);
        if let Some(ca_file) = ca_file {
            check_path(ca_file, &format!("{field}.caFile"), findings);
        }
        let (_, rest) = url.split_once("://").unwrap_or_default();
        if rest.is_empty() || rest.contains(['@', '?', '#']) || rest.chars().any(char::is_whitespace) {
            let message = format!("{} names no host; write it as `https://host:8006`", Quoted(url));
            findings.refuse(format!("{field}.url"), message);
        }
        if url.starts_with("https://") && ca_file.is_none() {
            let message = "is missing; with `https` the node must know by whom the certificate is signed";
            findings.refuse(format!("{field}.caFile"), message);
        }
    }
}

pub(super) fn check_path(path: &str, at: &str, findings: &mut Findings) {
    if path.split('/').any(|part| part == "..") {
        findings.refuse(at, format!("{} holds `..`; write the path without it", Quoted(path)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(json: &str) -> Vec<String> {
        let spec: FactsSpec = serde_json::from_str(json).unwrap();
        let mut findings = Findings::default();
        check(&spec, "f", &mut findings);
        findings.finish().into_iter().map(|error| format!("{}: {}", error.field, error.message)).collect()
    }

    #[test]
    fn each_mistake_names_its_field() {
        let good = r#"{"every": "1m", "steps": true, "logs": [{"path": "/var/log/syslog", "maxBytes": "32Ki"}],
            "proxmox": {"url": "https://pve.example:8006", "tokenFile": "/etc/t", "caFile": "/etc/ca.pem"}}"#;
        assert_eq!(found(good), Vec::<String>::new());
        for (json, field) in [
            (r#"{"every": "1s"}"#, "f.every"),
            (r#"{"logs": [{"path": "/a/../b"}]}"#, "f.logs[0].path"),
            (r#"{"logs": [{"path": "/a"}, {"path": "/a"}]}"#, "f.logs[1].path"),
            (r#"{"logs": [{"path": "/a", "maxBytes": "1Mi"}]}"#, "f.logs[0].maxBytes"),
            (r#"{"proxmox": {"url": "https://a", "tokenFile": "/t"}}"#, "f.proxmox.caFile"),
            (r#"{"proxmox": {"url": "http://u@a", "tokenFile": "/t"}}"#, "f.proxmox.url"),
        ] {
            let found = found(json);
            assert!(found.len() == 1 && found[0].starts_with(field), "{json}: {found:?}");
        }
    }
}
