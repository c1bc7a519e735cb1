//! Sockets that lead to the host or into its kernel.

use std::io::Write;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use windlass_sandbox::Network;

use crate::case::{Node, python, run};

#[tokio::test]
async fn only_ordinary_families_of_sockets_are_there() {
    // AF_PACKET, AF_VSOCK, AF_ALG, AF_BLUETOOTH, AF_TIPC, AF_CAN, AF_RDS, AF_KCM, AF_XDP, AF_NFC, AF_IB, AF_KEY, AF_RXRPC.
    let program = r#"
for family in (17, 40, 38, 31, 30, 29, 21, 41, 44, 39, 27, 15, 33):
    for kind in (1, 2, 3, 5):
        answer = call(41, family, kind, 0)
        if answer != "EPERM": print(family, kind, answer)
for name, *arguments in [
    ("raw", 2, 3, 1), ("raw 6", 10, 3, 58), ("SOCK_PACKET", 2, 10, 3), ("audit", 16, 3, 9), ("uevents", 16, 3, 15),
    ("netfilter", 16, 3, 12), ("generic", 16, 3, 16), ("crypto", 16, 3, 21), ("xfrm", 16, 3, 6), ("sock_diag", 16, 3, 4),
]:
    answer = call(41, *arguments)
    if answer != "EPERM": print(name, answer)
# Tables of packet filters, through a socket that is granted: only an administrator of the network sets them.
inet = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
attempt("iptables", lambda: inet.setsockopt(socket.IPPROTO_IP, 64, bytes(84)))
route = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
route.send(struct.pack("=IHHIIBxHiII", 32, 16, 5, 1, 0, 0, 0, 1, 0, 1))
print("link down", errno.errorcode[-struct.unpack_from("=i", route.recv(4096), 16)[0]])
"#;
    run([python("families", program).prints("iptables refused\nlink down EPERM\n")]).await;
}

#[tokio::test]
async fn sockets_of_the_host_are_out_of_reach() {
    let node = Node::new().await;
    let name = format!("windlass-host-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
    let abstract_socket = UnixListener::bind_addr(&address).unwrap();
    let path = node.fixture.dir.path().join("service");
    let path_socket = UnixListener::bind(&path).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = tcp.local_addr().unwrap().port();
    for socket in
        [abstract_socket.set_nonblocking(true), path_socket.set_nonblocking(true), tcp.set_nonblocking(true)]
    {
        socket.unwrap();
    }
    let program = format!(
        r#"
attempt("abstract", lambda: socket.socket(socket.AF_UNIX).connect("\0{name}"))
attempt("path", lambda: socket.socket(socket.AF_UNIX).connect("{}"))
attempt("tcp", lambda: socket.create_connection(("127.0.0.1", {port}), timeout=5))
for place in ("/run/docker.sock", "/var/run/docker.sock", "/run/containerd/containerd.sock", "/run/dbus/system_bus_socket",
              "/run/systemd/private", "/run/systemd/notify"):
    attempt("service", lambda: socket.socket(socket.AF_UNIX).connect(place))
"#,
        path.display()
    );
    let expected =
        "abstract ECONNREFUSED\npath ENOENT\ntcp ECONNREFUSED\n".to_owned() + &"service ENOENT\n".repeat(6);
    for network in [Network::None, Network::Restricted] {
        node.run(
            python("host's sockets", &program)
                .with(move |unit| unit.network = network)
                .prints(expected.clone()),
        )
        .await;
    }
    // With the network of the host its TCP services are in reach, but not its local sockets.
    let program = format!("attempt('abstract', lambda: socket.socket(socket.AF_UNIX).connect('\\0{name}'))");
    node.run(python("open", &program).with(|unit| unit.network = Network::Open).prints("abstract refused\n"))
        .await;
    for refused in [abstract_socket.accept().err(), path_socket.accept().err()] {
        assert_eq!(refused.unwrap().kind(), std::io::ErrorKind::WouldBlock);
    }
    assert_eq!(tcp.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    std::fs::remove_file(&path).unwrap();
}

#[tokio::test]
async fn a_socket_that_a_job_leaves_listening_is_gone_with_it() {
    let node = Node::new().await;
    let program = r#"
for address in ("\0windlass-left", "left", "/tmp/left"):
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen()
socket.create_server(("127.0.0.1", 4444))
if os.fork(): os._exit(0)
os.setsid()
time.sleep(1000)
"#;
    for _ in 0..2 {
        node.run(python("listens", program)).await;
    }
    let address = SocketAddr::from_abstract_name(b"windlass-left").unwrap();
    let refused =
        std::os::unix::net::UnixStream::connect_addr(&address).and_then(|mut line| line.write_all(b"x"));
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
}
