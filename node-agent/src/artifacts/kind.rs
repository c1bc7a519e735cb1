//! What an artifact is, by its name and its content.

use windlass_crds::protocol::ArtifactKind;

/// How much of the beginning of a file is looked at.
pub(super) const HEAD: usize = 512;

/// The kind of a file. `is_text` tells that no byte of it is NUL; `head` is its beginning.
///
/// A name alone makes nothing a picture or an archive, and content alone makes nothing a document: both must agree. SVG is no
/// picture here, because it can hold programs.
pub(super) fn of(name: &str, head: &[u8], is_text: bool) -> ArtifactKind {
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension).to_ascii_lowercase();
    match extension.as_str() {
        "md" | "markdown" if is_text => ArtifactKind::Markdown,
        "json" if is_text && begins_json(head) => ArtifactKind::Json,
        "diff" | "patch" if is_text => ArtifactKind::Diff,
        "url" | "link" if is_text && leads_somewhere(head) => ArtifactKind::Link,
        "png" if head.starts_with(b"\x89PNG\r\n\x1a\n") => ArtifactKind::Image,
        "jpg" | "jpeg" if head.starts_with(b"\xff\xd8\xff") => ArtifactKind::Image,
        "gif" if head.starts_with(b"GIF87a") || head.starts_with(b"GIF89a") => ArtifactKind::Image,
        "webp" if head.starts_with(b"RIFF") && head.get(8..12) == Some(b"WEBP") => ArtifactKind::Image,
        "zip" if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") => ArtifactKind::Zip,
        _ => ArtifactKind::File,
    }
}

/// Whether a text can be a JSON document, by its first character.
fn begins_json(head: &[u8]) -> bool {
    let first = head.trim_ascii_start().first();
    first.is_some_and(|first| matches!(first, b'{' | b'[' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n'))
}

/// Whether a text is the URL of something on the web, alone or as in a shortcut of Windows.
fn leads_somewhere(head: &[u8]) -> bool {
    let text = String::from_utf8_lossy(head);
    let is_url = |line: &str| line.starts_with("https://") || line.starts_with("http://");
    text.lines().any(|line| is_url(line.trim()) || line.strip_prefix("URL=").is_some_and(is_url))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_and_content_must_agree() {
        let png: &[u8] = b"\x89PNG\r\n\x1a\n\0\0";
        for (name, head, is_text, kind) in [
            ("a/README.MD", &b"# hi"[..], true, ArtifactKind::Markdown),
            ("a.md", b"x", false, ArtifactKind::File),
            ("a.json", b" \n{\"a\": 1}", true, ArtifactKind::Json),
            ("a.json", b"<html>", true, ArtifactKind::File),
            ("a.json", b"", true, ArtifactKind::File),
            ("a.patch", b"--- a\n+++ b\n", true, ArtifactKind::Diff),
            ("a.png", png, false, ArtifactKind::Image),
            ("a.png", b"<script>", true, ArtifactKind::File),
            ("a.txt", png, false, ArtifactKind::File),
            ("a.jpeg", b"\xff\xd8\xff\xe0", false, ArtifactKind::Image),
            ("a.gif", b"GIF89a", true, ArtifactKind::Image),
            ("a.webp", b"RIFF\0\0\0\0WEBP", false, ArtifactKind::Image),
            ("a.svg", b"<svg/>", true, ArtifactKind::File),
            ("a.zip", b"PK\x03\x04", false, ArtifactKind::Zip),
            ("a.zip", b"PK", true, ArtifactKind::File),
            ("site.url", b"[InternetShortcut]\r\nURL=https://example.org/\r\n", true, ArtifactKind::Link),
            ("site.link", b"https://example.org/\n", true, ArtifactKind::Link),
            ("site.link", b"javascript:alert(1)\n", true, ArtifactKind::File),
            ("md", b"x", true, ArtifactKind::File),
        ] {
            assert_eq!(of(name, head, is_text), kind, "{name} {head:?}");
        }
    }
}
