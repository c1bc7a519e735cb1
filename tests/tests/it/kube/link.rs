//! A way to the API server that can be cut, and be slow.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Forwards a port of 127.0.0.1, until it is cut.
pub(crate) struct Link {
    port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    cut: bool,
    connections: Vec<TcpStream>,
}

impl Link {
    pub(crate) fn to(target: u16) -> Self {
        Self::slow(target, Duration::ZERO)
    }

    /// What the API server says arrives this much later.
    pub(crate) fn slow(target: u16, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let state: Arc<Mutex<State>> = Arc::default();
        let shared = state.clone();
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let mut state = shared.lock().expect("nobody panics with it");
                if state.cut {
                    continue;
                }
                let Ok(far) = TcpStream::connect(("127.0.0.1", target)) else { continue };
                for (from, to, delay) in [(&near, &far, Duration::ZERO), (&far, &near, delay)] {
                    let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { continue };
                    std::thread::spawn(move || forward(from, to, delay));
                }
                state.connections.extend([near, far]);
            }
        });
        Self { port, state }
    }

    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// Ends every connection and refuses new ones.
    pub(crate) fn cut(&self) {
        let mut state = self.state.lock().expect("nobody panics with it");
        state.cut = true;
        for connection in state.connections.drain(..) {
            // It may have ended by itself.
            connection.shutdown(Shutdown::Both).ok();
        }
    }

    pub(crate) fn mend(&self) {
        self.state.lock().expect("nobody panics with it").cut = false;
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        // Not a wait for something: this is the slowness that is asked for.
        std::thread::park_timeout(delay);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    to.shutdown(Shutdown::Both).ok();
}
