//! The networks of real units: what gets out, and what does not, whatever it tries.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr as UnixAddress;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use windlass_sandbox::egress::{Limits, Outcome, Policy, Proxy, Record, Resolver, Rule, Target};
use windlass_sandbox::{Driver, Native, Network, Stop, StopReason, UnitId, UnitSpec};

use crate::fixture::{Fixture, Outcome as Ran, config, is_root, printed};

/// Every name is on this host.
struct Here;

#[async_trait]
impl Resolver for Here {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        if name.ends_with(".test") {
            Ok(vec![Ipv4Addr::LOCALHOST.into()])
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }
}

/// A web server on loopback with what lies in a folder. Tells which paths were asked for.
struct Site {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Site {
    async fn of(folder: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (folder, notes) = (folder.to_owned(), Arc::clone(&asked));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (folder, notes) = (folder.clone(), Arc::clone(&notes));
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let Ok(byte) = stream.read_u8().await else { return };
                        head.push(byte);
                    }
                    let head = String::from_utf8_lossy(&head).into_owned();
                    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                    notes.lock().unwrap().push(path.clone());
                    let file = path.split('?').next().unwrap_or_default().trim_start_matches('/');
                    let mut place: PathBuf = folder.join(file);
                    if place.is_dir() {
                        place.push("index.html");
                    }
                    let (status, body) = match std::fs::read(&place) {
                        Ok(body) => ("200 OK", body),
                        Err(_) => ("404 Not Found", b"no such file\n".to_vec()),
                    };
                    let kind = match place.extension().and_then(|end| end.to_str()) {
                        Some("html") => "text/html",
                        Some("json") => "application/json",
                        _ => "application/octet-stream",
                    };
                    let head = format!(
                        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                        body.len()
                    );
                    // Who asked may be gone.
                    let _gone = stream.write_all(head.as_bytes()).await;
                    let _gone = stream.write_all(&body).await;
                });
            }
        });
        Self { port, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// Rules that open it as `*.test`.
    fn rules(&self) -> Vec<Rule> {
        let port = self.port;
        let rule = |target, text: &str| Rule { target, ports: vec![port..=port], text: text.to_owned() };
        vec![
            rule(Target::Below("test".to_owned()), "*.test"),
            rule(Target::Network("127.0.0.1/32".parse().unwrap()), "127.0.0.1"),
        ]
    }
}

/// A unit's proxy while it is served.
struct Served {
    records: Arc<Mutex<Vec<Record>>>,
    end: oneshot::Sender<()>,
    serving: JoinHandle<io::Result<()>>,
}

impl Served {
    async fn of(native: &Native, id: &UnitId, rules: Vec<Rule>) -> Self {
        let listener = native.egress(id).await.unwrap().expect("a unit with a restricted network has one");
        let records = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&records);
        let policy = Policy { rules, guarded: Vec::new() };
        let sink = move |record| to.lock().unwrap().push(record);
        let proxy = Arc::new(Proxy::new(policy, Limits::default(), Arc::new(Here), sink));
        let (end, ended) = oneshot::channel::<()>();
        let serving = tokio::spawn(proxy.serve(listener, async { drop(ended.await) }));
        Self { records, end, serving }
    }

    async fn finish(self) -> Vec<Record> {
        drop(self.end);
        self.serving.await.unwrap().unwrap();
        std::mem::take(&mut *self.records.lock().unwrap())
    }
}

fn restricted(fixture: &Fixture, name: &str, command: &[&str]) -> UnitSpec {
    UnitSpec { network: Network::Restricted, ..fixture.unit(name, command) }
}

/// Runs a unit with its proxy served; gives what it did and what was recorded.
async fn run(fixture: &Fixture, unit: &UnitSpec, rules: Vec<Rule>) -> (Ran, Vec<Record>) {
    fixture.native.prepare(unit).await.unwrap();
    fixture.native.start(&unit.id).await.unwrap();
    let Some(_) = fixture.native.egress(&unit.id).await.unwrap() else {
        // It has ended already.
        return (fixture.finish(&unit.id).await, Vec::new());
    };
    let served = Served::of(&fixture.native, &unit.id, rules).await;
    let ran = fixture.finish(&unit.id).await;
    (ran, served.finish().await)
}

fn denials(records: &[Record]) -> Vec<String> {
    let text = |record: &Record| match &record.outcome {
        Outcome::Denied { reason, .. } => Some(format!("{}:{} {reason}", record.host, record.port)),
        Outcome::Allowed { .. } | Outcome::Failed { .. } => None,
    };
    records.iter().filter_map(text).collect()
}

#[tokio::test]
async fn nothing_gets_out_past_the_proxy_and_what_it_refuses_is_recorded() {
    let fixture = Fixture::new().await;
    let site = Site::of(fixture.dir.path()).await;
    // What must not be reached: a server of the host, as an agent's own API, and a socket for names.
    let secret = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let secret_port = secret.local_addr().unwrap().port();
    let dns = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let dns_port = dns.local_addr().unwrap().port();
    let folder = fixture.dir.path().join("state/units");
    let port = site.port;
    let program = format!(
        r#"
import errno, os, socket, struct
site, secret, dns = {port}, {secret_port}, {dns_port}

def attempt(name, action):
    try:
        result = action()
    except OSError as error:
        result = errno.errorcode.get(error.errno, type(error).__name__)
    print(name, result, flush=True)

def tcp(host, port, family=socket.AF_INET):
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(10)
        s.connect((host, port))
        return "connected"

def udp(host, port, family=socket.AF_INET):
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        s.sendto(b"\0" * 12, (host, port))
        return "sent"

def proxied(request):
    with socket.create_connection(("127.0.0.1", 3128), timeout=20) as s:
        s.sendall(request if isinstance(request, bytes) else request.encode())
        return s.recv(4096).decode("latin-1").split("\r\n")[0]

def connect(host): return lambda: proxied(f"CONNECT {{host}} HTTP/1.1\r\nHost: x\r\n\r\n")
def get(url, host): return lambda: proxied(f"GET {{url}} HTTP/1.1\r\nHost: {{host}}\r\n\r\n")
def socks(command, kind, host):
    def ask():
        with socket.create_connection(("127.0.0.1", 3128), timeout=20) as s:
            s.sendall(b"\x05\x01\x00" + bytes([5, command, 0, kind]) + host)
            answer = b""
            while len(answer) < 4: answer += s.recv(16) or b"----"
            return answer[3]
    return ask

attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) and "made")
attempt("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW) and "made")
attempt("vsock", lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) and "made")
attempt("direct", lambda: tcp("192.0.2.1", 80))
attempt("direct-host", lambda: tcp("127.0.0.1", secret))
attempt("direct-allowed", lambda: tcp("127.0.0.1", site))
attempt("direct-6", lambda: tcp("2001:db8::1", 80, socket.AF_INET6))
attempt("direct-local-6", lambda: tcp("::1", secret, socket.AF_INET6))
attempt("direct-mapped", lambda: tcp("::ffff:192.0.2.1", 80, socket.AF_INET6))
attempt("dns-tcp", lambda: tcp("192.0.2.53", 53))
attempt("dns-udp", lambda: udp("192.0.2.53", 53))
attempt("metadata", lambda: tcp("169.254.169.254", 80))
attempt("name", lambda: socket.getaddrinfo("allowed.test", 80) and "resolved")
attempt("broadcast", lambda: udp("255.255.255.255", 9))
attempt("interface", lambda: [name for _, name in socket.if_nameindex()])
attempt("supervisor", lambda: socket.socket(socket.AF_UNIX).connect("{folder}/bypass/egress"))
attempt("abstract", lambda: socket.socket(socket.AF_UNIX).connect("\0windlass-test-{port}"))
attempt("route", lambda: open("/proc/net/route").read().count("\n"))
attempt("second-listener", lambda: socket.create_server(("127.0.0.1", 3128)) and "made")

attempt("c-other-name", connect("forbidden.example:443"))
attempt("c-other-port", connect(f"allowed.test:{{secret}}"))
attempt("c-address", connect("192.0.2.1:443"))
attempt("c-agent", connect(f"127.0.0.1:{{secret}}"))
attempt("c-agent-6", connect(f"[::1]:{{secret}}"))
attempt("c-mapped", connect(f"[::ffff:127.0.0.1]:{{site}}"))
attempt("c-metadata", connect("169.254.169.254:80"))
attempt("c-octal", connect(f"0177.0.0.1:{{site}}"))
attempt("c-integer", connect(f"2130706433:{{site}}"))
attempt("c-bare", connect(f"test:{{site}}"))
attempt("c-user", connect(f"allowed.test@forbidden.example:443"))
attempt("g-host", get(f"http://allowed.test:{{site}}/", "forbidden.example"))
attempt("g-origin", get("/", f"allowed.test:{{site}}"))
attempt("g-https", get(f"https://allowed.test:{{site}}/", f"allowed.test:{{site}}"))
attempt("smuggled", lambda: proxied(f"POST http://allowed.test:{{site}}/ HTTP/1.1\r\nHost: allowed.test:{{site}}\r\n"
    f"Content-Length: 4\r\nContent-Length: 0\r\n\r\n0\r\n\r\nGET http://forbidden.example/ HTTP/1.1\r\n\r\n"))
attempt("s-bind", socks(2, 1, bytes(4) + struct.pack(">H", 80)))
attempt("s-udp", socks(3, 1, bytes(4) + struct.pack(">H", 53)))
attempt("s-address", socks(1, 1, bytes([127, 0, 0, 1]) + struct.pack(">H", secret)))
attempt("s-name", socks(1, 3, bytes([17]) + b"forbidden.example" + struct.pack(">H", 443)))
"#,
        folder = folder.display()
    );
    let abstract_name = format!("windlass-test-{port}");
    let address = UnixAddress::from_abstract_name(abstract_name.as_bytes()).unwrap();
    let host_socket = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
    let unit = restricted(&fixture, "bypass", &["python3", "-c", &program]);
    let (ran, records) = run(&fixture, &unit, site.rules()).await;
    let text = ran.ok();
    let found: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once(' ')).collect();
    let expected = [
        ("raw", "EPERM"),
        ("packet", "EPERM"),
        ("vsock", "EPERM"),
        ("direct", "ENETUNREACH"),
        ("direct-host", "ECONNREFUSED"),
        ("direct-allowed", "ECONNREFUSED"),
        ("direct-6", "ENETUNREACH"),
        ("direct-local-6", "ECONNREFUSED"),
        ("direct-mapped", "ENETUNREACH"),
        ("dns-tcp", "ENETUNREACH"),
        ("dns-udp", "ENETUNREACH"),
        ("metadata", "ENETUNREACH"),
        ("name", "gaierror"),
        ("broadcast", "ENETUNREACH"),
        ("interface", "['lo']"),
        ("supervisor", "ENOENT"),
        ("abstract", "ECONNREFUSED"),
        ("route", "1"),
        ("second-listener", "EADDRINUSE"),
        ("c-other-name", "HTTP/1.1 403 Forbidden"),
        ("c-other-port", "HTTP/1.1 403 Forbidden"),
        ("c-address", "HTTP/1.1 403 Forbidden"),
        ("c-agent", "HTTP/1.1 403 Forbidden"),
        ("c-agent-6", "HTTP/1.1 403 Forbidden"),
        ("c-mapped", "HTTP/1.1 403 Forbidden"),
        ("c-metadata", "HTTP/1.1 403 Forbidden"),
        ("c-octal", "HTTP/1.1 400 Bad Request"),
        ("c-integer", "HTTP/1.1 400 Bad Request"),
        ("c-bare", "HTTP/1.1 403 Forbidden"),
        ("c-user", "HTTP/1.1 400 Bad Request"),
        ("g-host", "HTTP/1.1 400 Bad Request"),
        ("g-origin", "HTTP/1.1 400 Bad Request"),
        ("g-https", "HTTP/1.1 400 Bad Request"),
        ("smuggled", "HTTP/1.1 400 Bad Request"),
        ("s-bind", "7"),
        ("s-udp", "7"),
        ("s-address", "2"),
        ("s-name", "2"),
    ];
    assert_eq!(found, expected);
    // Everything that was asked of the proxy is on record.
    let denials = denials(&records);
    for expected in [
        "forbidden.example:443 no rule allows it",
        &format!("allowed.test:{secret_port} no rule allows it"),
        "192.0.2.1:443 192.0.2.1 is set aside",
        &format!("127.0.0.1:{secret_port} 127.0.0.1 is the host itself"),
        &format!("[::1]:{secret_port} ::1 is the host itself"),
        &format!("[::ffff:127.0.0.1]:{port} ::ffff:127.0.0.1 belongs to this host"),
        "169.254.169.254:80 169.254.169.254 is a cloud's metadata",
        &format!("test:{port} no rule allows it"),
        ":0 the address is not written as four",
        ":0 a user name",
        &format!("allowed.test:{port} the request's Host is not"),
        ":0 this is a proxy",
        ":0 only `http` is forwarded",
        ":0 the HTTP request is broken",
        ":0 SOCKS BIND",
        ":0 SOCKS UDP",
    ] {
        assert!(denials.iter().any(|denial| denial.starts_with(expected)), "{expected}: {denials:#?}");
    }
    assert!(records.iter().all(|record| !matches!(record.outcome, Outcome::Allowed { .. })), "{records:?}");
    assert_eq!(site.asked(), Vec::<String>::new());
    drop((secret, dns, host_socket));
}

/// Runs on the host what prepares a site.
fn prepare(folder: &Path, script: &str) {
    let output = std::process::Command::new("bash")
        .args(["-euc", script])
        .current_dir(folder)
        .env("HOME", folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A file, a package for pip, a repository for git, and a package's description for npm.
const SITE: &str = r#"
echo hello > file.txt
mkdir -p simple/tiny && cat > wheel.py <<'END'
import zipfile
with zipfile.ZipFile("simple/tiny/tiny-1.0-py3-none-any.whl", "w") as wheel:
    wheel.writestr("tiny.py", "answer = 42\n")
    wheel.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
    wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr("tiny-1.0.dist-info/RECORD", "")
END
/usr/bin/python3 wheel.py
echo '<a href="tiny-1.0-py3-none-any.whl">tiny-1.0-py3-none-any.whl</a>' > simple/tiny/index.html
git init -q -b main work && cd work && echo source > source.txt && git add . &&
  git -c user.name=a -c user.email=a@a.test commit -qm first && cd .. &&
  git clone -q --bare work repo.git && git -C repo.git update-server-info
echo '{"name":"small","dist-tags":{"latest":"1.2.3"},"versions":{"1.2.3":{"name":"small","version":"1.2.3"}}}' > small
"#;

/// Runs a script with the proxy of a site; gives what it printed.
async fn client(script: &str) -> String {
    let fixture = Fixture::new().await;
    let folder = fixture.dir.path().join("site");
    std::fs::create_dir(&folder).unwrap();
    prepare(&folder, SITE);
    let site = Site::of(&folder).await;
    let mut unit = restricted(&fixture, "client", &["bash", "-euc", script]);
    unit.env.insert("SITE".into(), format!("http://files.test:{}", site.port));
    let (ran, records) = run(&fixture, &unit, site.rules()).await;
    let text = ran.ok();
    assert!(!site.asked().is_empty());
    assert!(records.iter().any(|record| matches!(record.outcome, Outcome::Allowed { .. })), "{records:?}");
    text
}

#[tokio::test]
async fn curl_works_with_an_allowed_host_by_request_tunnel_and_socks() {
    let script = "curl -sS $SITE/file.txt; curl -sSp $SITE/file.txt
        curl -sS --proxy socks5h://$WINDLASS_EGRESS_PROXY $SITE/file.txt
        curl -sS -o /dev/null -w '%{http_code}\\n' http://forbidden.example/";
    assert_eq!(client(script).await, "hello\nhello\nhello\n403\n");
}

#[tokio::test]
async fn wget_works_with_an_allowed_host() {
    assert_eq!(
        client("wget -qO- $SITE/file.txt; wget -qO- http://forbidden.example/ || echo $?").await,
        "hello\n8\n"
    );
}

#[tokio::test]
async fn git_works_with_an_allowed_host() {
    assert_eq!(client("git clone -q $SITE/repo.git cloned && cat cloned/source.txt").await, "source\n");
}

#[tokio::test]
async fn pip_works_with_an_allowed_host() {
    let script =
        "python3 -m pip install -q --disable-pip-version-check --break-system-packages --no-cache-dir \
        --target packages --trusted-host files.test --index-url $SITE/simple/ tiny
        PYTHONPATH=packages python3 -c 'import tiny; print(tiny.answer)'";
    assert_eq!(client(script).await, "42\n");
}

#[tokio::test]
async fn python_works_with_an_allowed_host() {
    let script = r#"python3 - <<'END'
import os, urllib.error, urllib.request
print(urllib.request.urlopen(os.environ["SITE"] + "/file.txt").read().decode().strip())
try:
    urllib.request.urlopen("http://forbidden.example/")
except urllib.error.HTTPError as error:
    print(error.code, "no rule allows it" in error.read().decode())
END"#;
    assert_eq!(client(script).await, "hello\n403 True\n");
}

#[tokio::test]
async fn node_works_with_an_allowed_host() {
    // Newer ones read the environment by themselves; every one can be told.
    let script = r#"node - <<'END'
const http = require("http");
const proxy = new URL(process.env.HTTP_PROXY);
const get = (url) => http.get({ host: proxy.hostname, port: proxy.port, path: url, headers: { Host: new URL(url).host } },
  (answer) => answer.setEncoding("utf8").on("data", (text) => console.log(answer.statusCode, text.trim())));
get(process.env.SITE + "/file.txt");
END
npm view --registry $SITE/ small version"#;
    assert_eq!(client(script).await, "200 hello\n1.2.3\n");
}

#[tokio::test]
async fn a_connection_in_the_first_instruction_is_served_200_times_of_200() {
    let fixture = Fixture::new().await;
    std::fs::write(fixture.dir.path().join("file.txt"), "hello\n").unwrap();
    let site = Site::of(fixture.dir.path()).await;
    let script = format!(
        "exec 3<>/dev/tcp/127.0.0.1/3128 && printf 'GET http://a.test:{}/file.txt HTTP/1.0\\r\\n\\r\\n' >&3 && \
         read -r answer <&3 && [[ $answer == *'200 OK'* ]]",
        site.port
    );
    let mut served = 0;
    for round in 0..200 {
        let unit = restricted(&fixture, &format!("first-{round}"), &["bash", "-c", &script]);
        let (ran, _) = run(&fixture, &unit, site.rules()).await;
        ran.ok();
        served += 1;
        fixture.native.cleanup(&unit.id).await.unwrap();
    }
    assert_eq!((served, site.asked().len()), (200, 200));
}

#[tokio::test]
async fn the_next_agent_serves_the_same_socket_and_connections_wait_for_it() {
    let fixture = Fixture::new().await;
    std::fs::write(fixture.dir.path().join("file.txt"), "hello\n").unwrap();
    let site = Site::of(fixture.dir.path()).await;
    let script = format!(
        "ask() {{ curl -sS --max-time 60 http://a.test:{}/file.txt; }}; ask; read -r < go; ask; echo over",
        site.port
    );
    let unit = restricted(&fixture, "taken-up", &["bash", "-c", &format!("mkfifo go; {script}")]);
    fixture.native.prepare(&unit).await.unwrap();
    fixture.native.start(&unit.id).await.unwrap();
    let served = Served::of(&fixture.native, &unit.id, site.rules()).await;
    printed(&fixture.native, &unit.id, "hello").await;
    // The agent goes, and the program asks while nobody serves.
    served.finish().await;
    let Fixture { dir, native, workspace, .. } = fixture;
    drop(native);
    let gate = workspace.path().join("go");
    let opened = tokio::task::spawn_blocking(move || std::fs::write(gate, "now\n"));
    opened.await.unwrap().unwrap();
    let native = loop {
        match Native::open(config(dir.path())).await {
            Err(windlass_sandbox::Error::InUse { .. }) => tokio::task::yield_now().await,
            opened => break opened.unwrap(),
        }
    };
    let served = Served::of(&native, &unit.id, site.rules()).await;
    let exit = native.wait(&unit.id).await.unwrap();
    assert!(exit.succeeded(), "{exit:?}");
    let (stdout, _) = crate::fixture::read_all(&native, &unit.id).await;
    assert_eq!(String::from_utf8(stdout).unwrap(), "hello\nhello\nover\n");
    assert_eq!(served.finish().await.len(), 2, "the attempt, and its bytes");
    assert!(native.egress(&unit.id).await.unwrap().is_none(), "it has ended");
}

#[tokio::test]
async fn each_unit_has_a_proxy_of_its_own_and_others_have_none() {
    let fixture = Fixture::new().await;
    std::fs::write(fixture.dir.path().join("file.txt"), "hello\n").unwrap();
    let site = Site::of(fixture.dir.path()).await;
    let wait = "mkfifo /workspace/$0; read -r < /workspace/$0";
    let allowed = restricted(&fixture, "allowed", &["bash", "-c", wait, "one"]);
    fixture.native.prepare(&allowed).await.unwrap();
    fixture.native.start(&allowed.id).await.unwrap();
    let served = Served::of(&fixture.native, &allowed.id, site.rules()).await;

    let ask = format!("curl -sS -o /dev/null -w '%{{http_code}}' http://a.test:{}/file.txt", site.port);
    let (ran, records) =
        run(&fixture, &restricted(&fixture, "other", &["bash", "-c", &ask]), Vec::new()).await;
    assert_eq!((ran.ok().as_str(), denials(&records).len()), ("403", 1));
    let none = fixture.unit("none", &["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/3128"]);
    let ran = fixture.run(&none).await;
    assert!(!ran.exit.succeeded());
    assert!(fixture.native.egress(&none.id).await.unwrap().is_none());

    let gate = fixture.workspace.path().join("one");
    crate::fixture::eventually("the unit to wait", || gate.exists()).await;
    tokio::task::spawn_blocking(move || std::fs::write(gate, "go\n")).await.unwrap().unwrap();
    fixture.finish(&allowed.id).await.ok();
    assert_eq!(served.finish().await, []);
    assert_eq!(site.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn an_open_network_is_the_hosts_with_its_names_and_without_its_local_sockets_and_privileges() {
    let fixture = Fixture::new().await;
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = server.local_addr().unwrap();
    let name = format!("windlass-open-{}", address.port());
    let place = UnixAddress::from_abstract_name(name.as_bytes()).unwrap();
    let _host_socket = std::os::unix::net::UnixListener::bind_addr(&place).unwrap();
    let program = format!(
        r#"
import fcntl, os, socket, struct
def attempt(name, action):
    try: print(name, action())
    except OSError as error: print(name, error.strerror)
attempt("tcp", lambda: socket.create_connection(("127.0.0.1", {port})) and "connected")
attempt("abstract", lambda: socket.socket(socket.AF_UNIX).connect("\0{name}"))
attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
def down():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    fcntl.ioctl(s, 0x8914, struct.pack("16sh14x", b"lo", 0))
attempt("down", down)
attempt("pair", lambda: socket.socketpair() and "made")
print(sorted(name for _, name in socket.if_nameindex()))
print(open("/etc/resolv.conf").read(), end="")
print([name for name in os.environ if "proxy" in name.lower()])
"#,
        port = address.port()
    );
    let mut unit = fixture.unit("open", &["python3", "-c", &program]);
    unit.network = Network::Open;
    let prepared = fixture.native.prepare(&unit).await.unwrap();
    assert!(!prepared.isolation.contains(&"net namespace".to_owned()));
    let ran = fixture.run(&unit).await;
    let text = ran.ok();
    let mut interfaces: Vec<String> = std::fs::read_dir("/sys/class/net")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "bonding_masters")
        .collect();
    interfaces.sort();
    let interfaces = interfaces.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
    let resolver = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let refused = "Operation not permitted";
    let expected = format!(
        "tcp connected\nabstract {refused}\nraw {refused}\ndown {refused}\npair made\n[{interfaces}]\n{resolver}[]\n"
    );
    assert_eq!(text, expected);
    assert!(fixture.native.egress(&unit.id).await.unwrap().is_none());
    assert!(is_root() || fixture.identity == windlass_sandbox::Identity::caller());
}

/// Tells the cookie of its network, which the kernel gives to no other one, and what it has seen; then runs `body`.
fn with_cookie(body: &str) -> String {
    format!(
        r#"
import socket
pair = socket.socketpair()
print(pair[0].getsockopt(socket.SOL_SOCKET, 71, 8).hex())
loopback = [line for line in open("/proc/net/dev") if "lo:" in line][0].split()[1:]
assert set(loopback) == {{"0"}}, loopback
{body}
"#
    )
}

#[tokio::test]
async fn a_network_serves_another_unit_only_if_no_socket_but_local_pairs_of_streams_were_made_in_it() {
    let fixture = Fixture::new().await;
    let cookie = async |name: String, body: &str| {
        let program = with_cookie(body);
        let unit = fixture.unit(&name, &["python3", "-c", &program]);
        let text = fixture.run(&unit).await.ok();
        fixture.native.cleanup(&unit.id).await.unwrap();
        text.lines().next().unwrap().to_owned()
    };
    let mut quiet = Vec::new();
    for index in 0..10 {
        quiet.push(cookie(format!("quiet-{index}"), "").await);
    }
    let different = |cookies: &[String]| cookies.iter().collect::<BTreeSet<_>>().len();
    if is_root() {
        assert!(different(&quiet) < quiet.len(), "none of them served twice: {quiet:?}");
    } else {
        assert_eq!(different(&quiet), quiet.len(), "an ordinary user cannot lend one");
    }
    let ways = [
        // What holds the network, such as an open file of /proc/net, could be passed on through it.
        "socket.socket(socket.AF_UNIX).close()",
        "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
        "socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)",
        "socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()",
        "socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()",
        "s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); socket.create_connection(s.getsockname())",
        "import subprocess; subprocess.run(['python3', '-c', 'import socket; socket.socket()'], check=True)",
        "import os\nif os.fork() == 0:\n    os.setsid(); socket.socket(); os._exit(0)\nos.wait()",
    ];
    let mut loud = Vec::new();
    for (index, way) in ways.iter().enumerate() {
        loud.push(cookie(format!("loud-{index}"), way).await);
    }
    assert_eq!(different(&loud), loud.len(), "{loud:?}");
    for index in 0..6 {
        let after = cookie(format!("after-{index}"), "").await;
        assert!(!loud.contains(&after), "unit {index} after them got a network of theirs");
    }
}

#[tokio::test]
async fn units_that_run_at_the_same_time_never_share_a_network() {
    let fixture = Fixture::new().await;
    for round in 0..4 {
        let units: Vec<_> = (0..6)
            .map(|index| {
                let program = with_cookie("print('ready', flush=True)\nimport time; time.sleep(100)");
                fixture.unit(&format!("unit-{round}-{index}"), &["python3", "-u", "-c", &program])
            })
            .collect();
        let mut cookies = BTreeSet::new();
        for unit in &units {
            fixture.native.prepare(unit).await.unwrap();
            fixture.native.start(&unit.id).await.unwrap();
        }
        for unit in &units {
            let mut reader = fixture.native.output(&unit.id, 0);
            let mut text = String::new();
            while !text.ends_with("ready\n") {
                text.push_str(&String::from_utf8(reader.next().await.unwrap().unwrap().bytes).unwrap());
            }
            assert!(cookies.insert(text.lines().next().unwrap().to_owned()), "{text} is shared");
        }
        let stop = Stop { grace: Duration::ZERO, reason: StopReason::Cancelled };
        for unit in &units {
            fixture.native.signal(&unit.id, stop).await.unwrap();
            fixture.native.wait(&unit.id).await.unwrap();
            fixture.native.cleanup(&unit.id).await.unwrap();
        }
    }
}
