//! P3p: the proxy of a restricted network, beside the host's network without it: what a connection takes longer, and how much goes
//! through.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use anyhow::Context as _;
use windlass_sandbox::egress::{Limits, Policy, Proxy, Rule, SystemResolver, Target};
use windlass_sandbox::{Network, UnitSpec};

use crate::bench::Bench;
use crate::rounds::{Measured, Rounds, interleave, reason, subject};
use crate::sandbox::Ours;
use crate::table::{Aim, Comparison, Table, Unit};

/// How much is sent for a rate, in MiB.
const BULK: usize = 256;

/// Prints milliseconds for each of some connections, from the begin to the answer's end, and then MiB a second of a long answer.
/// Arguments: the server's port, how many connections, how many MiB, and the proxy's port or 0 for none.
const CLIENT: &str = r#"
import socket, sys, time
port, connections, bulk, proxy = map(int, sys.argv[1:])
def connect():
    stream = socket.create_connection(("127.0.0.1", proxy or port))
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if proxy:
        stream.sendall(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += stream.recv(4096)
        assert b" 200 " in head.split(b"\r\n")[0], head
    return stream
def ask(mib):
    with connect() as stream:
        stream.sendall(f"{mib}\n".encode())
        left, buffer = max(mib << 20, 1), bytearray(1 << 20)
        while left:
            count = stream.recv_into(buffer)
            assert count, "the answer was cut off"
            left -= count
took = []
for _ in range(connections):
    began = time.monotonic()
    ask(0)
    took.append((time.monotonic() - began) * 1000)
began = time.monotonic()
ask(bulk)
print(*took, bulk / (time.monotonic() - began))
"#;

/// Adds the row.
pub(crate) fn measure(bench: &Bench, table: &mut Table) {
    let connections = bench.scale.latencies * 2;
    let ours = Ours::open(bench, "p3p").map_err(reason);
    let port = serve().map_err(reason);
    let both: Measured<(&Ours<'_>, u16)> =
        ours.as_ref().map_err(Clone::clone).and_then(|ours| port.map(|port| (ours, port)));
    let side = |network: Network, of: fn(&[f64], f64) -> Vec<f64>| {
        both.clone().map(|(ours, port)| {
            subject(move || {
                let (latencies, rate) = asked(ours, port, connections, network)?;
                Ok(of(&latencies, rate))
            })
        })
    };
    let latencies: fn(&[f64], f64) -> Vec<f64> = |latencies, _| latencies.to_vec();
    let rate: fn(&[f64], f64) -> Vec<f64> = |_, rate| vec![rate];
    let [through, direct, through_rate, direct_rate]: [Measured<Rounds>; 4] = interleave(
        "P3p",
        [
            side(Network::Restricted, latencies),
            side(Network::Open, latencies),
            side(Network::Restricted, rate),
            side(Network::Open, rate),
        ],
    );
    let mut comparison = Comparison {
        row: "P3p",
        metric: "connection, question and answer through the proxy",
        peer: "without it",
        unit: Unit::Milliseconds,
        aim: Aim::None,
        note: "from a step with a restricted network, and from one with the host's".to_owned(),
    };
    table.rounds(&comparison, &through, &direct);
    comparison.metric = "answer of 256 MiB through the proxy";
    comparison.unit = Unit::MiBPerSecond;
    comparison.note.clear();
    table.rounds(&comparison, &through_rate, &direct_rate);
}

/// What a step with this network has measured.
fn asked(
    ours: &Ours<'_>,
    port: u16,
    connections: usize,
    network: Network,
) -> anyhow::Result<(Vec<f64>, f64)> {
    let (proxy, at) = match network {
        Network::Restricted => (Some(proxy(port)?), windlass_sandbox::egress::PORT),
        Network::Open | Network::None => (None, 0),
    };
    let arguments = [port.to_string(), connections.to_string(), BULK.to_string(), at.to_string()];
    let command: Vec<&str> =
        ["python3", "-c", CLIENT].into_iter().chain(arguments.iter().map(String::as_str)).collect();
    let unit = UnitSpec { network, ..ours.unit(&command)? };
    let printed = ours.printed(&unit, proxy)?;
    let numbers: Result<Vec<f64>, _> = printed.split_whitespace().map(str::parse).collect();
    let mut numbers = numbers.with_context(|| format!("the client printed {printed:?}"))?;
    let rate = numbers.pop().context("the client printed nothing")?;
    Ok((numbers, rate))
}

/// A proxy that lets through to the server and nowhere else.
fn proxy(port: u16) -> anyhow::Result<Arc<Proxy>> {
    let rule = Rule {
        target: Target::Network("127.0.0.1/32".parse()?),
        ports: vec![port..=port],
        text: format!("127.0.0.1:{port}"),
    };
    let policy = Policy { rules: vec![rule], guarded: Vec::new() };
    Ok(Arc::new(Proxy::new(policy, Limits::default(), Arc::new(SystemResolver), |_| {})))
}

/// A server on loopback that answers a number with as many MiB, and 0 with a byte. It ends with this process.
fn serve() -> anyhow::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Who hangs up gets no answer, and says so.
            thread::spawn(move || answer(&stream).ok());
        }
    });
    Ok(port)
}

fn answer(mut stream: &TcpStream) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let piece = vec![b'x'; 1 << 20];
    match line.trim().parse::<usize>()? {
        0 => stream.write_all(b"x")?,
        count => (0..count).try_for_each(|_| stream.write_all(&piece))?,
    }
    Ok(())
}
