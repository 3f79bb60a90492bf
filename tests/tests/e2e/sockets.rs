//! The node's own processes reach publishes at every address of the node, without a proxy.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use netfw_tests::{
    Agent, Lab, Namespace,
    topology::{NODE, NODE_OUTSIDE},
};

const PATIENCE: Duration = Duration::from_secs(5);

/// Answers each of `connections` with the address that it came from.
fn serve_tcp(web: &Namespace, connections: usize) -> thread::JoinHandle<()> {
    let listener = web.enter(|| TcpListener::bind("0.0.0.0:80").expect("port 80 is free"));
    thread::spawn(move || {
        for _ in 0..connections {
            let (mut connection, from) = listener.accept().expect("a connection");
            write!(connection, "{from}").expect("the client is there");
        }
    })
}

fn ask_tcp(from: &Namespace, to: &str) -> std::io::Result<(String, SocketAddr)> {
    let to: SocketAddr = to.parse().expect("an address");
    from.enter(|| {
        let mut connection = TcpStream::connect_timeout(&to, PATIENCE)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        let peer = connection.peer_addr()?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        Ok((answer, peer))
    })
}

#[test]
fn a_process_of_the_node_reaches_publishes_on_every_local_address() {
    let lab = Lab::new();
    let web = lab.container("web");
    let agent = Agent::start(&lab);
    let netns = web.path();
    let netns = netns.to_str().expect("a path of ours");
    agent.netfw(&["endpoint", "add", "web", "--netns", netns, "-p", "8080:80"]);
    let addresses = [
        "127.0.0.1:8080".to_owned(),
        "127.0.0.2:8080".to_owned(),
        format!("{NODE}:8080"),
        format!("{NODE_OUTSIDE}:8080"),
    ];
    let server = serve_tcp(&web, addresses.len());
    for address in &addresses {
        let (_, peer) = ask_tcp(&lab.node, address).unwrap_or_else(|e| panic!("{address}: {e}"));
        assert_eq!(
            peer.to_string(),
            *address,
            "getpeername tells what was asked for"
        );
    }
    server.join().expect("the server served");

    // What is not published is refused, as before.
    assert!(ask_tcp(&lab.node, "127.0.0.1:8081").is_err());
    // Other namespaces have a localhost of their own.
    assert!(ask_tcp(&lab.client, "127.0.0.1:8080").is_err());

    agent.netfw(&["unpublish", "web", "8080:80"]);
    assert!(ask_tcp(&lab.node, "127.0.0.1:8080").is_err());
}

#[test]
fn a_publish_on_localhost_is_the_nodes_alone() {
    let lab = Lab::new();
    let web = lab.container("web");
    let agent = Agent::start(&lab);
    let netns = web.path();
    let netns = netns.to_str().expect("a path of ours");
    agent.netfw(&[
        "endpoint",
        "add",
        "web",
        "--netns",
        netns,
        "-p",
        "127.0.0.1:8080:80",
    ]);
    let server = serve_tcp(&web, 1);
    ask_tcp(&lab.node, "127.0.0.1:8080").expect("published");
    server.join().expect("the server served");
    assert!(ask_tcp(&lab.node, &format!("{NODE}:8080")).is_err());
    assert!(ask_tcp(&lab.client, &format!("{NODE}:8080")).is_err());
    // Not even for one who routes localhost to the node.
    lab.client.sysctl("ipv4/conf/all/route_localnet", "1");
    lab.client.ip(&[
        "route",
        "add",
        "127.0.0.1/32",
        "via",
        &NODE.to_string(),
        "table",
        "77",
    ]);
    lab.client.ip(&[
        "rule",
        "add",
        "to",
        "127.0.0.1",
        "lookup",
        "77",
        "pref",
        "0",
    ]);
    assert!(ask_tcp(&lab.client, "127.0.0.1:8080").is_err());
}

#[test]
fn datagrams_of_the_node_come_back_from_where_they_were_sent() {
    let lab = Lab::new();
    let web = lab.container("web");
    let agent = Agent::start(&lab);
    let netns = web.path();
    let netns = netns.to_str().expect("a path of ours");
    agent.netfw(&[
        "endpoint",
        "add",
        "web",
        "--netns",
        netns,
        "-p",
        "5300:53/udp",
    ]);
    let server = web.enter(|| UdpSocket::bind("0.0.0.0:53").expect("port 53 is free"));
    let server = thread::spawn(move || {
        let mut buffer = [0; 64];
        for _ in 0..3 {
            let (len, from) = server.recv_from(&mut buffer).expect("a datagram");
            server.send_to(&buffer[..len], from).expect("a way back");
        }
    });
    lab.node.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut buffer = [0; 64];
        for to in ["127.0.0.1:5300".to_owned(), format!("{NODE}:5300")] {
            socket.send_to(b"hello", &to).expect("sent");
            let (len, from) = socket.recv_from(&mut buffer).expect("an answer");
            assert_eq!(&buffer[..len], b"hello");
            assert_eq!(from.to_string(), to);
        }
        socket.connect("127.0.0.1:5300").expect("connected");
        socket.send(b"again").expect("sent");
        let len = socket.recv(&mut buffer).expect("an answer");
        assert_eq!(&buffer[..len], b"again");
    });
    server.join().expect("the server served");
}
