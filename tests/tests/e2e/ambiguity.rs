//! Where two talks look alike to somebody, each gets its own answers all the same: hairpin, one
//! port for two servers, one port for two clients, a port that is used again.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
};

use netfw_tests::{
    Namespace,
    programs::UdpEcho,
    sockets::{any, dial, exchange, is_connected, listen, set, tcp_from, udp_at, udp_to},
    topology::{CLIENT, CLIENT6, NODE, NODE_OUTSIDE, NODE6, NODE6_OUTSIDE, WORLD, WORLD6},
    wait::wait_for,
    wait_until,
};
use nix::{libc, sys::socket::sockopt};

use crate::setting::{SOON, Site, attach, on_each_hook, text};

/// 1 MiB.
const BLOCKS: u32 = 16;

/// The next connection, and whom it comes from.
#[track_caller]
fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    listener.accept().expect("a connection waits")
}

/// Asks a [`UdpEcho`] by a connected socket: whom it saw.
#[track_caller]
fn seen(socket: &UdpSocket, question: &str) -> SocketAddr {
    socket.send(question.as_bytes()).expect("sent");
    let mut answer = [0; 128];
    let length = socket.recv(&mut answer).expect("an answer");
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    let (peer, echoed) = answer.split_once(' ').expect("two words");
    assert_eq!(echoed, question);
    peer.parse().expect("an address and a port")
}

#[test]
fn one_client_port_for_two_ports_of_one_server() {
    let publishes = ["8080:80", "8081:80", "5300:53/udp", "5301:53/udp"];
    let publishes = publishes.map(|publish| publish.replace(":80", ":9000"));
    on_each_hook(&publishes.each_ref().map(String::as_str), |site| {
        two_publishes(&site);
    });
}

fn two_publishes(site: &Site) {
    let Site { lab, web, .. } = site;
    let listener = listen(web, 9000);
    for (node, client, own) in [(NODE, CLIENT, site.ip), (NODE6, CLIENT6, site.ip6)] {
        let connections = [8080, 8081].map(|port| {
            let near = tcp_from(&lab.client, 4000, (node, port)).expect("connected");
            let (far, from) = accept(&listener);
            assert_eq!(from.ip().to_canonical(), client);
            ([near, far], from.port())
        });
        assert_eq!(connections[0].1, 4000, "the first keeps its port");
        assert_ne!(connections[1].1, 4000);
        for (connection, _) in &connections {
            exchange(connection, BLOCKS);
        }

        let _echo = UdpEcho::start(web, (own, 53));
        let socket = udp_at(&lab.client, (any(node), 4000));
        for round in 0..10 {
            for port in [5300, 5301] {
                socket.connect((node, port)).expect("a route");
                let from = seen(&socket, &format!("{port} {round}"));
                assert_eq!(from.ip(), client);
                assert_eq!(from.port() == 4000, port == 5300, "{from}");
            }
        }
    }
}

#[test]
fn one_port_of_two_containers_to_one_server() {
    on_each_hook(&[], |site| two_containers(&site));
}

fn two_containers(site: &Site) {
    let Site {
        lab, web, agent, ..
    } = site;
    let app = lab.container("app");
    attach(agent, "app", &app, &[]);
    let listener = listen(&lab.world, 9000);
    for (world, node) in [(WORLD, NODE_OUTSIDE), (WORLD6, NODE6_OUTSIDE)] {
        let connections = [web, &app].map(|container| {
            let near = tcp_from(container, 5000, (world, 9000)).expect("connected");
            let (far, from) = accept(&listener);
            assert_eq!(from.ip().to_canonical(), node);
            ([near, far], from.port())
        });
        assert_ne!(connections[0].1, connections[1].1);
        for (connection, _) in &connections {
            exchange(connection, BLOCKS);
        }
        let _echo = UdpEcho::start(&lab.world, (world, 53));
        let sockets = [web, &app].map(|container| udp_to(container, 5000, (world, 53)));
        let first = sockets.each_ref().map(|socket| seen(socket, "first"));
        assert_ne!(first[0], first[1]);
        for _ in 0..10 {
            let again = sockets.each_ref().map(|socket| seen(socket, "again"));
            assert_eq!(first, again);
        }
    }
}

#[test]
fn both_ends_may_open_a_connection_at_once() {
    on_each_hook(&[], |site| simultaneous_open(&site));
}

fn simultaneous_open(site: &Site) {
    let Site {
        lab, web, agent, ..
    } = site;
    // The world hears no SYN, as if its own crossed it on the way.
    let deaf = "add table inet t
        add chain inet t in { type filter hook input priority 0; }
        add rule inet t in tcp dport 7000 tcp flags & (syn | ack) == syn drop";
    lab.world.run(&["nft", deaf]);
    for (world, node) in [(WORLD, NODE_OUTSIDE), (WORLD6, NODE6_OUTSIDE)] {
        let near = dial(web, 5000, (world, 7000));
        let outside = || {
            let flows = agent.json(&["flow", "ls"]);
            let flows = flows.as_array().expect("a list").clone();
            let mut flows = flows.into_iter().map(|flow| flow["reply"].clone());
            let reply = flows.find(|reply| reply["src"] == world.to_string())?;
            reply["dport"].as_u64()
        };
        wait_until("the flow", SOON, || outside().is_some());
        let port = outside().and_then(|port| port.try_into().ok());
        let far = dial(&lab.world, 7000, (node, port.expect("a port")));
        wait_until("the connection", SOON, || {
            is_connected(&near) && is_connected(&far)
        });
        exchange(&[near, far], BLOCKS);
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// The server closes first: it waits for stragglers, and the client does not.
    Server,
    /// The client resets the connection.
    Reset,
}

#[test]
fn a_port_may_be_used_again_right_after_closing() {
    on_each_hook(&["9000:9000"], |site| port_again(&site));
}

fn port_again(site: &Site) {
    let Site {
        lab, web, agent, ..
    } = site;
    let app = lab.container("app");
    attach(agent, "app", &app, &[]);
    let (inside, outside) = (listen(web, 9000), listen(&lab.world, 9000));
    for (node, world) in [(NODE, WORLD), (NODE6, WORLD6)] {
        for (what, listener, client, to) in [
            ("publish", &inside, &lab.client, node),
            ("masquerade", &outside, web, world),
            ("hairpin", &inside, &app, node),
            ("its own publish", &inside, web, node),
        ] {
            for end in [End::Server, End::Reset] {
                for round in 0..20u32 {
                    let near = tcp_from_free(client, 6000, (to, 9000));
                    let near = near.unwrap_or_else(|e| panic!("{what} {end:?} {round}: {e}"));
                    talk_and_close(near, accept(listener).0, round, end);
                }
            }
        }
    }
}

/// From a port that may have been used a moment ago: the kernel lets go of it when it hears that the
/// last FIN has arrived.
fn tcp_from_free(from: &Namespace, port: u16, to: (IpAddr, u16)) -> io::Result<TcpStream> {
    wait_for("the port", SOON, || match tcp_from(from, port, to) {
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => None,
        done => Some(done),
    })
}

/// One question, one answer, then the end.
#[track_caller]
fn talk_and_close(mut near: TcpStream, mut far: TcpStream, round: u32, end: End) {
    let mut heard = [0; 4];
    far.set_read_timeout(Some(SOON)).expect("not 0");
    near.write_all(&round.to_be_bytes()).expect("sent");
    far.read_exact(&mut heard).expect("the question");
    assert_eq!(heard, round.to_be_bytes());
    far.write_all(&heard).expect("sent");
    heard = [0; 4];
    near.read_exact(&mut heard).expect("the answer");
    assert_eq!(heard, round.to_be_bytes());
    if end == End::Reset {
        let at_once = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        set(&near, sockopt::Linger, &at_once);
        drop(near);
        assert!(far.read(&mut heard).is_err(), "reset");
    } else {
        drop(far);
        assert_eq!(near.read(&mut heard).expect("the end"), 0);
    }
}

#[test]
fn a_publish_that_moved_answers_from_where_it_is_now() {
    on_each_hook(&[], |site| moved(&site));
}

fn moved(site: &Site) {
    let Site {
        lab, web, agent, ..
    } = site;
    let app = lab.container("app");
    attach(agent, "app", &app, &[]);
    let publish = "5300:53/udp";
    let inspect = agent.json(&["endpoint", "inspect", "app"]);
    let address = |key: &str| -> IpAddr { text(&inspect[key]).parse().expect("an address") };
    for (node, one, other) in [
        (NODE, site.ip, address("ip")),
        (NODE6, site.ip6, address("ip6")),
    ] {
        let sockets = [(web, one), (&app, other)].map(|(end, ip)| udp_at(end, (ip, 53)));
        let client = udp_to(&lab.client, 4000, (node, 5300));
        for _ in 0..3 {
            for (name, server) in ["web", "app"].into_iter().zip(&sockets) {
                agent.netfw(&["publish", name, publish]);
                for _ in 0..3 {
                    client.send(name.as_bytes()).expect("sent");
                    let mut question = [0; 64];
                    let (length, from) = server.recv_from(&mut question).expect("a question");
                    assert_eq!(&question[..length], name.as_bytes());
                    server.send_to(b"answer", from).expect("sent");
                    client.recv(&mut question).expect("an answer");
                }
                agent.netfw(&["unpublish", name, publish]);
            }
        }
    }
}

#[test]
fn every_local_address_leads_to_a_publish_also_from_inside() {
    let site = Site::new(&["9000:9000", "5300:53/udp"]);
    let Site {
        lab, web, agent, ..
    } = &site;
    let (app, far) = (lab.container("app"), lab.container("far"));
    attach(agent, "app", &app, &[]);
    agent.netfw(&["network", "create", "other", "--ipv6"]);
    let words = ["endpoint", "add", "far", "--network", "other", "--netns"];
    agent.netfw(&[&words[..], &[far.name()]].concat());
    for address in ["192.0.2.7/32", "2001:db8:7::7/128"] {
        lab.node.ip(&["addr", "add", address, "dev", "lo"]);
    }
    for (address, nodad) in [
        ("10.2.0.7/24", &[] as &[&str]),
        ("fd00:2::7/64", &["nodad"]),
    ] {
        let words = ["addr", "add", address, "dev", "up1"];
        lab.node.ip(&[&words, nodad].concat());
    }
    let listener = listen(web, 9000);
    let echoes = [site.ip, site.ip6].map(|ip| UdpEcho::start(web, (ip, 53)));
    for (name, container) in [("web", web), ("app", &app), ("far", &far)] {
        let endpoint = agent.json(&["endpoint", "inspect", name]);
        let address = |key: &str| -> IpAddr { text(&endpoint[key]).parse().expect("an address") };
        let locals4 = [NODE, NODE_OUTSIDE, ip("192.0.2.7"), ip("10.2.0.7")];
        let locals6 = [NODE6, NODE6_OUTSIDE, ip("2001:db8:7::7"), ip("fd00:2::7")];
        for (own, gateway, locals) in [
            (address("ip"), address("gateway"), locals4),
            (address("ip6"), address("gateway6"), locals6),
        ] {
            // A host that answered itself would do so directly, so it sees the gateway.
            let expected = if name == "web" { gateway } else { own };
            for local in locals.into_iter().chain([gateway]) {
                wait_until(&format!("{local} to be known"), SOON, || {
                    tcp_from(container, 0, (local, 9000)).is_ok_and(|stream| {
                        drop((stream, accept(&listener)));
                        true
                    })
                });
                let near = tcp_from(container, 0, (local, 9000)).expect("connected");
                let (server, from) = accept(&listener);
                assert_eq!(from.ip().to_canonical(), expected, "{name} by {local}");
                exchange(&[near, server], 1);
                let socket = udp_to(container, 0, (local, 5300));
                for _ in 0..3 {
                    assert_eq!(seen(&socket, "x").ip(), expected, "{name} by {local}");
                }
            }
        }
    }
    drop(echoes);
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}
