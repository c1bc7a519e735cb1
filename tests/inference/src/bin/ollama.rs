//! A stand-in for Ollama, as far as Windlass speaks to it. What Ollama would not be asked so is noted in the file `violations`
//! of its folder of models, and refused.
//!
//! It knows the models `tiny:1` and `second:1`, which it fetches in steps; each that it has is a file in its folder.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

/// Models that there are to fetch: name, digest, bytes.
const REGISTRY: [(&str, &str, u64); 2] = [
    ("tiny:1", "1111111111111111111111111111111111111111111111111111111111111111", 1000),
    ("second:1", "2222222222222222222222222222222222222222222222222222222222222222", 3000),
];

struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

struct Server {
    models: PathBuf,
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let setting = |name: &str| match settings().remove(name) {
        Some(value) => value,
        None => panic!("{name} is set"),
    };
    let server = Server { models: PathBuf::from(setting("OLLAMA_MODELS")) };
    let host = setting("OLLAMA_HOST");
    if arguments != ["serve"] || !host.starts_with("127.0.0.1:") {
        server.violation(&format!("started with {arguments:?} at {host}"));
    }
    let listener = TcpListener::bind(&host).expect("the port is free");
    for stream in listener.incoming().flatten() {
        server.attend(&stream).unwrap_or_else(|error| server.note("trouble", &error.to_string()));
    }
}

fn settings() -> BTreeMap<String, String> {
    env::vars().collect()
}

impl Server {
    fn note(&self, file: &str, line: &str) {
        let opened = fs::OpenOptions::new().create(true).append(true).open(self.models.join(file));
        opened.and_then(|mut file| writeln!(file, "{line}")).expect("the folder of models can be written");
    }

    fn violation(&self, line: &str) {
        self.note("violations", line);
    }

    fn attend(&self, stream: &TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let Some(request) = read(&mut reader)? else { return Ok(()) };
        let mut out = stream.try_clone()?;
        let Request { method, path, headers, body } = request;
        self.note("requests", &format!("{method} {path}"));
        let is_json = headers.get("content-type").is_some_and(|kind| kind == "application/json");
        let parsed: Option<Value> = serde_json::from_slice(&body).ok();
        match (method.as_str(), path.as_str(), parsed) {
            ("GET", "/api/version", None) => answer(&mut out, 200, &json!({"version": "0.11.4"})),
            ("GET", "/api/tags", None) => answer(&mut out, 200, &json!({"models": self.tags()})),
            ("POST", "/api/pull", Some(body)) if is_json => self.pull(&mut out, &body),
            ("DELETE", "/api/delete", Some(body)) if is_json => self.delete(&mut out, &body),
            ("POST", "/api/chat", Some(body)) if is_json => self.chat(&mut out, &body),
            (_, _, parsed) => {
                self.violation(&format!("{method} {path} {headers:?} {parsed:?}"));
                answer(&mut out, 404, &json!({"error": "not found"}))
            }
        }
    }

    fn tags(&self) -> Vec<Value> {
        let has = |(name, _, _): &&(&str, &str, u64)| self.file(name).exists();
        let tag = |(name, digest, size): &(&str, &str, u64)| {
            json!({
                "name": name, "model": name, "modified_at": "2026-01-01T00:00:00Z", "size": size, "digest": digest,
                "details": {"format": "gguf", "family": "test", "parameter_size": "1M", "quantization_level": "Q4_K_M"}
            })
        };
        REGISTRY.iter().filter(has).map(tag).collect()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.models.join(name.replace([':', '/'], "_"))
    }

    fn pull(&self, out: &mut TcpStream, body: &Value) -> std::io::Result<()> {
        let (Some(name), Some(true), 2) = (
            body["model"].as_str(),
            body["stream"].as_bool(),
            body.as_object().map_or(0, serde_json::Map::len),
        ) else {
            self.violation(&format!("POST /api/pull {body}"));
            return answer(out, 400, &json!({"error": "missing request body"}));
        };
        out.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n",
        )?;
        line(out, &json!({"status": "pulling manifest"}))?;
        match REGISTRY.iter().find(|(known, _, _)| *known == name) {
            None => line(out, &json!({"error": "pull model manifest: file does not exist"}))?,
            Some((_, digest, total)) => {
                let status = format!("pulling {}", &digest[..12]);
                let digest = format!("sha256:{digest}");
                line(out, &json!({"status": status, "digest": digest, "total": total}))?;
                for tenth in 1..=10 {
                    // A download takes a while; nobody waits for it to take so long.
                    std::thread::sleep(Duration::from_millis(20));
                    let completed = total * tenth / 10;
                    line(
                        out,
                        &json!({"status": status, "digest": digest, "total": total, "completed": completed}),
                    )?;
                }
                line(out, &json!({"status": "verifying sha256 digest"}))?;
                fs::write(self.file(name), "{}")?;
                line(out, &json!({"status": "success"}))?;
            }
        }
        out.write_all(b"0\r\n\r\n")
    }

    fn delete(&self, out: &mut TcpStream, body: &Value) -> std::io::Result<()> {
        let (Some(name), 1) = (body["model"].as_str(), body.as_object().map_or(0, serde_json::Map::len))
        else {
            self.violation(&format!("DELETE /api/delete {body}"));
            return answer(out, 400, &json!({"error": "missing request body"}));
        };
        match fs::remove_file(self.file(name)) {
            Ok(()) => out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
            Err(_) => answer(out, 404, &json!({"error": format!("model '{name}' not found")})),
        }
    }

    fn chat(&self, out: &mut TcpStream, body: &Value) -> std::io::Result<()> {
        let model = body["model"].as_str().unwrap_or_default();
        let last = body["messages"].as_array().and_then(|messages| messages.last());
        let Some(content) =
            last.filter(|last| last["role"] == "user").and_then(|last| last["content"].as_str())
        else {
            self.violation(&format!("POST /api/chat {body}"));
            return answer(out, 400, &json!({"error": "messages are missing"}));
        };
        if !self.file(model).exists() {
            return answer(out, 404, &json!({"error": format!("model '{model}' not found")}));
        }
        let words = content.split_whitespace().count();
        answer(
            out,
            200,
            &json!({
                "model": model, "created_at": "2026-01-01T00:00:00Z", "done": true, "done_reason": "stop",
                "message": {"role": "assistant", "content": format!("you said: {content}")},
                "prompt_eval_count": words, "eval_count": words + 2
            }),
        )
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> std::io::Result<Option<Request>> {
    let mut first = String::new();
    if reader.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let mut words = first.split_whitespace();
    let (method, path) =
        (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut field = String::new();
        reader.read_line(&mut field)?;
        let Some((name, value)) = field.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    if headers.get("transfer-encoding").is_some_and(|encoding| encoding == "chunked") {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size)?;
            let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
            let start = body.len();
            body.resize(start + size, 0);
            reader.read_exact(&mut body[start..])?;
            reader.read_line(&mut String::new())?;
            if size == 0 {
                break;
            }
        }
    }
    Ok(Some(Request { method, path, headers, body }))
}

/// A line of a chunked answer.
fn line(out: &mut TcpStream, value: &Value) -> std::io::Result<()> {
    let text = format!("{value}\n");
    write!(out, "{:x}\r\n{text}\r\n", text.len())?;
    out.flush()
}

fn answer(out: &mut TcpStream, status: u16, value: &Value) -> std::io::Result<()> {
    let text = value.to_string();
    write!(
        out,
        "HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    )
}
