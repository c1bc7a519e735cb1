//! SOCKS 5 (RFC 1928): CONNECT with names or addresses, without authentication.

use std::net::{Ipv4Addr, Ipv6Addr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::host::{BadHost, Host};
use super::journal::Protocol;
use super::policy::Denial;
use super::proxy::{Error, Proxy, Request};

/// The first byte of a client.
pub(super) const VERSION: u8 = 5;
/// That of a client of the version before.
pub(super) const OLD_VERSION: u8 = 4;

/// Methods of authentication.
const NONE: u8 = 0;
const NONE_ACCEPTABLE: u8 = 0xff;

/// Answers.
mod reply {
    pub(super) const SUCCEEDED: u8 = 0;
    pub(super) const FAILED: u8 = 1;
    pub(super) const NOT_ALLOWED: u8 = 2;
    pub(super) const HOST_UNREACHABLE: u8 = 4;
    pub(super) const REFUSED: u8 = 5;
    pub(super) const NO_SUCH_COMMAND: u8 = 7;
    pub(super) const NO_SUCH_ADDRESS: u8 = 8;
}

/// What a client's request comes to.
enum Asked {
    For(Host, u16),
    /// It is refused with this answer.
    Refused(u8, Denial),
}

/// Serves one client.
pub(super) async fn serve(proxy: &Proxy, mut client: TcpStream) {
    // A client that says nothing, or goes away, has asked for nothing.
    let Ok(Ok(asked)) = timeout(proxy.limits().patience, read(&mut client)).await else { return };
    let answer = match asked {
        Asked::Refused(code, denial) => {
            proxy.malformed(Protocol::Socks, denial);
            code
        }
        Asked::For(host, port) => {
            let opened = proxy.open(&Request { protocol: Protocol::Socks, host, port }).await;
            match opened {
                Ok(outside) => {
                    if client.write_all(&message(reply::SUCCEEDED)).await.is_ok() {
                        proxy.tunnel(client, outside).await;
                    }
                    return;
                }
                Err(Error::Denied { .. }) => reply::NOT_ALLOWED,
                Err(Error::Unresolved(_)) => reply::HOST_UNREACHABLE,
                Err(Error::Unreachable { source, .. }) => match source.kind() {
                    std::io::ErrorKind::ConnectionRefused => reply::REFUSED,
                    _ => reply::FAILED,
                },
            }
        }
    };
    // The client may be gone.
    let _gone = client.write_all(&message(answer)).await;
    let _gone = client.shutdown().await;
}

/// An answer. The address in it is of no use to anybody, and tells nothing of the outside.
fn message(code: u8) -> [u8; 10] {
    [VERSION, code, 0, 1, 0, 0, 0, 0, 0, 0]
}

/// Greets the client and reads what it asks for.
async fn read(client: &mut TcpStream) -> std::io::Result<Asked> {
    let [_version, count] = array(client).await?;
    let mut methods = vec![0; usize::from(count)];
    client.read_exact(&mut methods).await?;
    if !methods.contains(&NONE) {
        client.write_all(&[VERSION, NONE_ACCEPTABLE]).await?;
        return Ok(Asked::Refused(
            reply::FAILED,
            Denial::Protocol("SOCKS with authentication is not spoken"),
        ));
    }
    client.write_all(&[VERSION, NONE]).await?;
    let [version, command, _reserved, kind] = array(client).await?;
    if version != VERSION {
        return Ok(Asked::Refused(reply::FAILED, Denial::Protocol("the SOCKS request is broken")));
    }
    let host = match kind {
        1 => Ok(Host::Address(Ipv4Addr::from(array::<4>(client).await?).into())),
        3 => {
            let [length] = array(client).await?;
            let mut name = vec![0; usize::from(length)];
            client.read_exact(&mut name).await?;
            std::str::from_utf8(&name).map_err(|_| BadHost::Characters).and_then(Host::parse)
        }
        4 => Ok(Host::Address(Ipv6Addr::from(array::<16>(client).await?).into())),
        _ => {
            let denial = Denial::Protocol("the SOCKS request has an unknown kind of address");
            return Ok(Asked::Refused(reply::NO_SUCH_ADDRESS, denial));
        }
    };
    let port = u16::from_be_bytes(array(client).await?);
    match command {
        1 => {}
        2 => {
            let denial =
                Denial::Protocol("SOCKS BIND is not spoken: nobody outside can connect to a sandbox");
            return Ok(Asked::Refused(reply::NO_SUCH_COMMAND, denial));
        }
        3 => {
            let denial = Denial::Protocol("SOCKS UDP is not spoken: only TCP leaves a sandbox");
            return Ok(Asked::Refused(reply::NO_SUCH_COMMAND, denial));
        }
        _ => {
            let denial = Denial::Protocol("the SOCKS request has an unknown command");
            return Ok(Asked::Refused(reply::NO_SUCH_COMMAND, denial));
        }
    }
    Ok(match host {
        Ok(_) if port == 0 => Asked::Refused(reply::NOT_ALLOWED, BadHost::Port.into()),
        Ok(host) => Asked::For(host, port),
        Err(bad) => Asked::Refused(reply::NOT_ALLOWED, bad.into()),
    })
}

async fn array<const N: usize>(client: &mut TcpStream) -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    client.read_exact(&mut bytes).await?;
    Ok(bytes)
}
