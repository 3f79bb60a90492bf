//! Nobody gets what is another's by claiming its tuple first ("port shadow"): not a container by the
//! source port or identifier of what it sends, not a stranger by what he sends to a publish.

use std::net::{SocketAddr, TcpListener, UdpSocket};

use netfw_common::drop::Drop;
use netfw_tests::packet::IcmpError;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket,
    sockopt::{BindToDevice, ReuseAddr},
};

use crate::rig::{At, Rig, at, error, ping, pong, tcp, udp, with_rig};

/// A socket of the node's, bound before anything else is said of it.
fn bound(kind: SockType, device: Option<&str>, to: SocketAddr) -> std::os::fd::OwnedFd {
    let family = match to {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let sock = socket(family, kind, SockFlag::SOCK_NONBLOCK, None).expect("a socket");
    if let Some(device) = device {
        setsockopt(&sock, BindToDevice, &device.into()).expect("a device");
    }
    setsockopt(&sock, ReuseAddr, &true).expect("an option");
    let raw = std::os::fd::AsRawFd::as_raw_fd(&sock);
    bind(raw, &SockaddrStorage::from(to)).expect("the port is free");
    sock
}

/// `node:4500` of `node:4500, …`.
#[track_caller]
fn source(rig: &mut Rig, from: At, packet: netfw_tests::packet::Packet) -> String {
    rig.send(from, packet).sent().0
}

#[test]
fn a_container_gets_no_port_that_the_node_uses() {
    with_rig(|rig| {
        let _listening = TcpListener::bind(at("node:5432")).unwrap();
        let _everywhere = UdpSocket::bind(at("0.0.0.0:4500")).unwrap();
        let connected = UdpSocket::bind(at("node:4501")).unwrap();
        connected.connect(at("server:53")).unwrap();
        // Its SYN is on the way, and will be for a while.
        let connecting = bound(SockType::Stream, None, at("node:5433"));
        let raw = std::os::fd::AsRawFd::as_raw_fd(&connecting);
        let _ = connect(raw, &SockaddrStorage::from(at("server:443")));
        for (packet, used) in [
            (tcp("web:5432", "client:4000", "S"), "node:5432"),
            (udp("web:4500", "client:4500"), "node:4500"),
            (udp("web:4501", "server:53"), "node:4501"),
            (tcp("web:5433", "server:443", "S"), "node:5433"),
            (udp("web:8080", "client:4000"), "node:8080"),
            (tcp("web:9090", "client:4000", "S"), "node:9090"),
        ] {
            assert_ne!(source(rig, At::Web, packet), used);
        }
        // Towards others they are nobody's.
        let other = source(rig, At::Web, udp("web:4501", "client:53"));
        assert_eq!(other, "node:4501");
        let other = source(rig, At::Web, tcp("web:5433", "client:443", "S"));
        assert_eq!(other, "node:5433");
    });
}

#[test]
fn a_server_of_the_node_that_starts_later_gets_its_connections() {
    with_rig(|rig| {
        let shadow = source(rig, At::Web, tcp("web:5432", "client:4000", "S"));
        assert_eq!(shadow, "node:5432");
        let listening = TcpListener::bind(at("0.0.0.0:5432")).unwrap();
        rig.send(At::World, tcp("client:4000", "node:5432", "S"))
            .passed();
        assert_eq!(rig.entries(), (vec![], vec![]), "the flow gave way");
        drop(listening);

        // With a friend outside who answers as if he were the client, the flow is a connection.
        rig.send(At::Web, tcp("web:5432", "client:4000", "S"))
            .sent();
        rig.send(At::World, tcp("client:4000", "node:5432", "S."))
            .sent();
        rig.send(At::Web, tcp("web:5432", "client:4000", "."))
            .sent();
        assert_eq!(rig.entries().0.len(), 2, "assured");
        let _listening = TcpListener::bind(at("0.0.0.0:5432")).unwrap();
        // A connection of a container's is not cut by a server that starts.
        rig.send(At::World, tcp("client:4000", "node:5432", "P."))
            .sent();
        rig.send(At::World, tcp("client:4000", "node:5432", "S"))
            .passed();
        assert_eq!(rig.entries(), (vec![], vec![]), "the flow gave way");
        let moved = source(rig, At::Web, tcp("web:5432", "client:4000", "S"));
        assert_ne!(moved, "node:5432");
    });
}

#[test]
fn without_a_server_a_simultaneous_open_goes_on() {
    with_rig(|rig| {
        rig.send(At::Web, tcp("web:5432", "client:4000", "S"))
            .sent();
        let (_, to) = rig
            .send(At::World, tcp("client:4000", "node:5432", "S"))
            .sent();
        assert_eq!(to, "web:5432");
    });
}

/// Not with the next tick: its answer is on the way.
#[test]
fn a_datagram_of_the_nodes_own_is_answered_to_the_node() {
    with_rig(|rig| {
        for _ in 0..2 {
            rig.send(At::Web, udp("web:4500", "server:53")).sent();
            rig.send(At::World, udp("server:53", "node:4500")).sent();
        }
        rig.send(At::Egress, udp("node:4500", "server:54")).passed();
        assert_eq!(rig.entries().0.len(), 2, "another talk");
        // A container's, translated, takes nothing back.
        rig.send(At::EgressOfWeb, udp("node:4500", "server:53"))
            .passed();
        assert_eq!(rig.entries().0.len(), 2);
        rig.send(At::Egress, udp("node:4500", "server:53")).passed();
        rig.send(At::World, udp("server:53", "node:4500")).passed();
        // Of a publish, which the node cannot speak for, nothing is taken.
        rig.send(At::World, udp("client:4000", "node:8080")).sent();
        rig.send(At::Egress, udp("node:8080", "client:4000"))
            .passed();
        let (_, to) = rig.send(At::World, udp("client:4000", "node:8080")).sent();
        assert_eq!(to, "web:80");
    });
}

#[test]
fn a_datagram_socket_of_the_node_that_is_opened_later_gets_its_datagrams() {
    with_rig(|rig| {
        for _ in 0..2 {
            rig.send(At::Web, udp("web:4500", "client:4500")).sent();
            rig.send(At::World, udp("client:4500", "node:4500")).sent();
        }
        assert_eq!(rig.entries().0.len(), 2, "assured");
        let _later = UdpSocket::bind(at("0.0.0.0:4500")).unwrap();
        rig.next_tick();
        // The container is the first to be seen in each tick.
        rig.send(At::Web, udp("web:4500", "client:4500")).sent();
        rig.send(At::World, udp("client:4500", "node:4500"))
            .passed();
        assert_eq!(rig.entries(), (vec![], vec![]), "the flow gave way");
        let moved = source(rig, At::Web, udp("web:4500", "client:4500"));
        assert_ne!(moved, "node:4500");
        let (_, to) = rig.send(At::World, udp("client:4500", &moved)).sent();
        assert_eq!(to, "web:4500");
    });
}

/// The look at sockets when a port is claimed is made on the container's interface.
#[test]
fn a_socket_that_is_bound_to_the_uplink_gets_its_datagrams() {
    with_rig(|rig| {
        let _bound = bound(SockType::Datagram, Some("up0"), at("0.0.0.0:4500"));
        rig.send(At::Web, udp("web:4500", "client:4500")).sent();
        rig.send(At::World, udp("client:4500", "node:4500"))
            .passed();
    });
}

#[test]
fn a_listener_that_is_bound_to_the_uplink_gets_its_connections() {
    with_rig(|rig| {
        let sock = bound(SockType::Stream, Some("up0"), at("0.0.0.0:5432"));
        nix::sys::socket::listen(&sock, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
        rig.send(At::Web, tcp("web:5432", "client:4000", "S"))
            .sent();
        rig.send(At::World, tcp("client:4000", "node:5432", "S"))
            .passed();
    });
}

#[test]
fn a_stranger_takes_no_answer_from_the_node_by_asking_a_publish_first() {
    with_rig(|rig| {
        rig.publish("0.0.0.0", 45000, 17, ("web", 80), 2);
        // Forged, before the kernel chooses that port.
        let (_, to) = rig.send(At::World, udp("server:53", "node:45000")).sent();
        assert_eq!(to, "web:80");
        let resolver = UdpSocket::bind(at("node:45000")).unwrap();
        resolver.connect(at("server:53")).unwrap();
        rig.next_tick();
        rig.send(At::World, udp("server:53", "node:45000")).passed();
        // All others ask the publish.
        let (_, to) = rig.send(At::World, udp("server:54", "node:45000")).sent();
        assert_eq!(to, "web:80");
    });
}

#[test]
fn a_ping_of_the_nodes_own_is_answered_to_the_node() {
    with_rig(|rig| {
        // First the node, then the container.
        rig.send(At::Egress, ping("node", "server", 2000)).passed();
        let other = source(rig, At::Web, ping("web", "server", 2000));
        assert_ne!(other, "node:2000");
        rig.send(At::World, pong("server", "node", 2000)).passed();
        let id = other.strip_prefix("node:").unwrap().parse().unwrap();
        let (_, to) = rig.send(At::World, pong("server", "node", id)).sent();
        assert_eq!(to, "web:2000");

        // First the container, then the node.
        for _ in 0..2 {
            assert_eq!(
                source(rig, At::Web, ping("web", "client", 3000)),
                "node:3000"
            );
            rig.send(At::World, pong("client", "node", 3000)).sent();
        }
        rig.send(At::Egress, ping("node", "client", 3000)).passed();
        let other = source(rig, At::Web, ping("web", "client", 3000));
        assert_ne!(other, "node:3000");
        rig.send(At::World, pong("client", "node", 3000)).passed();
        // A container's, translated, claims nothing.
        rig.send(At::Web, ping("web", "server", 4000)).sent();
        rig.send(At::EgressOfWeb, ping("node", "server", 4000))
            .passed();
        let (_, to) = rig.send(At::World, pong("server", "node", 4000)).sent();
        assert_eq!(to, "web:4000");
    });
}

#[test]
fn what_waits_for_an_answer_gives_way_to_nobody() {
    with_rig(|rig| {
        rig.configure(|config| (config.port_min, config.port_max) = (2000, 2001));
        for port in [2000, 2001] {
            let from = |name: &str| format!("{name}:{port}");
            rig.send(At::Peer, udp(&from("peer"), "server:53")).sent();
            rig.send(At::Peer, tcp(&from("peer"), "server:443", "S"))
                .sent();
            rig.send(At::Peer, ping("peer", "server", port)).sent();
        }
        for packet in [
            udp("web:2000", "server:53"),
            tcp("web:2000", "server:443", "S"),
            ping("web", "server", 2000),
        ] {
            rig.send(At::Web, packet).answered(Drop::PortsExhausted);
        }
        let (_, to) = rig.send(At::World, udp("server:53", "node:2000")).sent();
        assert_eq!(to, "peer:2000");
    });
}

#[test]
fn a_container_cannot_speak_of_anothers_flow() {
    with_rig(|rig| {
        rig.send(At::World, udp("client:4000", "node:8080")).sent();
        rig.send(At::Web, udp("web:5353", "server:53")).sent();
        for (to, about) in [
            ("client", udp("client:4000", "web:80")),
            ("server", udp("server:53", "web:5353")),
        ] {
            let forged = error("peer", to, IcmpError::PortUnreachable, &about);
            rig.send(At::Peer, forged).dropped(Drop::Untranslatable);
        }
    });
}

/// Sources that would make a publish's answers collide with what others send.
#[test]
fn a_stranger_cannot_pass_for_a_neighbour_or_the_node() {
    with_rig(|rig| {
        for forged in ["peer:4000", "stranger:4000", "gateway:4000", "node:4000"] {
            for packet in [udp(forged, "node:8080"), tcp(forged, "node:8080", "S")] {
                rig.send(At::World, packet).dropped(Drop::Martian);
            }
        }
        assert_eq!(rig.entries(), (vec![], vec![]));
    });
}
