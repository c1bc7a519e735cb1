//! What a client says to the proxy, over a real connection: whatever it is, the proxy serves the next one, and nothing that
//! no rule allows is looked up or connected to.

#![no_main]

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use windlass_sandbox::egress::{Limits, Outcome, Policy, Proxy, Resolver};

/// A proxy without rules has no reason to ask.
struct Nobody;

#[async_trait::async_trait]
impl Resolver for Nobody {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        panic!("{name} was looked up");
    }
}

/// The proxy's address; it serves on a thread of its own for as long as the fuzzer runs.
fn proxy() -> SocketAddr {
    static PROXY: OnceLock<SocketAddr> = OnceLock::new();
    *PROXY.get_or_init(|| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        std::thread::spawn(move || {
            let proxy = Proxy::new(Policy::default(), Limits::default(), Arc::new(Nobody), |record| {
                assert!(!matches!(record.outcome, Outcome::Allowed { .. }), "{record:?}");
            });
            let serve = Arc::new(proxy).serve(listener, std::future::pending());
            runtime().block_on(serve).expect("the socket can be served");
        });
        address
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made")
}

/// Says `data`, then that there is no more, and reads to the end.
async fn say(data: &[u8]) -> io::Result<Vec<u8>> {
    let mut line = TcpStream::connect(proxy()).await?;
    // No port is kept waiting for what may still come.
    line.set_zero_linger()?;
    let mut answer = Vec::new();
    let said = async {
        line.write_all(data).await?;
        line.shutdown().await?;
        line.read_to_end(&mut answer).await
    };
    match tokio::time::timeout(Duration::from_secs(30), said).await {
        Ok(_ended) => Ok(answer),
        Err(_) => panic!("no end after {} bytes", data.len()),
    }
}

fuzz_target!(|data: &[u8]| {
    thread_local!(static RUNTIME: tokio::runtime::Runtime = runtime());
    RUNTIME.with(|runtime| {
        let answer = runtime.block_on(say(data)).expect("the proxy takes connections");
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
        assert!(!answer.starts_with(&[5, 0, 5, 0]), "a SOCKS connection was granted");
        std::hint::black_box(io::sink().write_all(&answer)).expect("a sink takes everything");
    });
});
