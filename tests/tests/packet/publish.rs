//! Published ports: DNAT from the world, and the answers.

use netfw_common::drop::Drop;
use netfw_tests::packet::TTL;

use crate::rig::{At, PUBLISH_COUNTER, header_len, ping, tcp, udp, with_rig};

#[test]
fn a_connection_to_a_published_port_reaches_the_container_and_back() {
    with_rig(|rig| {
        for (step, packet, sent) in [
            (
                At::World,
                tcp("client:4000", "node:8080", "S"),
                ("client:4000", "web:80"),
            ),
            (
                At::Web,
                tcp("web:80", "client:4000", "S."),
                ("node:8080", "client:4000"),
            ),
            (
                At::World,
                tcp("client:4000", "node:8080", "."),
                ("client:4000", "web:80"),
            ),
            (
                At::World,
                tcp("client:4000", "node:8080", "P."),
                ("client:4000", "web:80"),
            ),
            (
                At::Web,
                tcp("web:80", "client:4000", "P."),
                ("node:8080", "client:4000"),
            ),
            (
                At::Web,
                tcp("web:80", "client:4000", "F."),
                ("node:8080", "client:4000"),
            ),
            (
                At::World,
                tcp("client:4000", "node:8080", "F."),
                ("client:4000", "web:80"),
            ),
            (
                At::Web,
                tcp("web:80", "client:4000", "."),
                ("node:8080", "client:4000"),
            ),
        ] {
            let (from, to) = rig.send(step, packet).sent();
            assert_eq!((from.as_str(), to.as_str()), sent);
        }
    });
}

#[test]
fn a_datagram_to_a_published_port_reaches_the_container_and_back() {
    with_rig(|rig| {
        let (from, to) = rig.send(At::World, udp("client:4000", "node:8080")).sent();
        assert_eq!((from.as_str(), to.as_str()), ("client:4000", "web:80"));
        let (from, to) = rig.send(At::Web, udp("web:80", "client:4000")).sent();
        assert_eq!((from.as_str(), to.as_str()), ("node:8080", "client:4000"));
    });
}

#[test]
fn a_router_takes_one_hop_and_writes_the_containers_link_layer() {
    with_rig(|rig| {
        let seen = rig.send(At::World, udp("client:4000", "node:8080")).seen();
        assert_eq!(seen.ttl, TTL - 1);
        let devices = rig.macs();
        assert_eq!(seen.macs, (devices.gateway, devices.web));
        let seen = rig.send(At::Web, udp("web:80", "client:4000")).seen();
        assert_eq!(seen.ttl, TTL - 1);
        // The first answer leaves by the kernel's neighbour code; the next by the header kept.
        let seen = rig.send(At::Web, udp("web:80", "client:4000")).seen();
        assert_eq!(seen.macs, (devices.uplink, devices.client));
    });
}

#[test]
fn a_publish_of_one_address_serves_that_alone() {
    with_rig(|rig| {
        let (_, to) = rig.send(At::World, udp("client:4000", "node:9090")).sent();
        assert_eq!(to, "peer:90");
        rig.send(At::World, udp("client:4000", "gateway:9090"))
            .passed();
    });
}

#[test]
fn a_publish_of_any_address_serves_every_address_of_the_node_and_no_other() {
    with_rig(|rig| {
        let (_, to) = rig
            .send(At::World, udp("client:4000", "gateway:8080"))
            .sent();
        assert_eq!(to, "web:80");
        rig.send(At::World, udp("client:4000", "10.1.0.99:8080"))
            .passed();
        rig.send(At::World, udp("client:4000", "10.1.0.255:8080"))
            .passed();
    });
}

#[test]
fn what_is_not_published_is_the_nodes() {
    with_rig(|rig| {
        rig.send(At::World, tcp("client:4000", "node:22", "S"))
            .passed();
        rig.send(At::World, udp("client:4000", "node:53")).passed();
        // No flow, and it opens none: the node's stack answers with a reset.
        rig.send(At::World, tcp("client:4000", "node:8080", "."))
            .passed();
        rig.send(At::World, tcp("client:4000", "node:8080", "S."))
            .passed();
        rig.send(At::World, tcp("client:4000", "node:8080", "R"))
            .passed();
        rig.send(At::World, tcp("client:4000", "node:8080", "SF"))
            .passed();
        assert_eq!(rig.entries(), (vec![], vec![]));
    });
}

#[test]
fn two_publishes_of_one_container_port_serve_one_client_port() {
    with_rig(|rig| {
        let first = rig.connect("client:4000", "node:8080", "web:80");
        let second = rig.connect("client:4000", "node:8081", "web:80");
        assert_eq!(first, "client:4000");
        assert_ne!(second, first, "else the answers could not be told apart");
        let (from, to) = rig.send(At::Web, tcp("web:80", &first, "P.")).sent();
        assert_eq!((from.as_str(), to.as_str()), ("node:8080", "client:4000"));
        let (from, to) = rig.send(At::Web, tcp("web:80", &second, "P.")).sent();
        assert_eq!((from.as_str(), to.as_str()), ("node:8081", "client:4000"));
    });
}

#[test]
fn direct_access_to_a_container_is_dropped() {
    with_rig(|rig| {
        for packet in [
            tcp("client:4000", "web:80", "S"),
            tcp("client:4000", "web:80", "."),
            udp("client:4000", "web:80"),
            udp("client:4000", "172.31.0.77:80"),
            ping("client", "web", 7),
            udp("client:4000", "web:80").fragment(0..8),
        ] {
            rig.send(At::World, packet).dropped(Drop::DirectAccess);
        }
    });
}

#[test]
fn localhost_is_not_reached_from_a_wire() {
    with_rig(|rig| {
        rig.publish("127.0.0.1", 7070, 6, ("web", 80), 0);
        for port in [7070, 8080] {
            let to = format!("127.0.0.1:{port}");
            rig.send(At::World, tcp("client:4000", &to, "S")).passed();
            rig.send(At::Peer, tcp("peer:4000", &to, "S"))
                .dropped(Drop::Martian);
        }
        rig.send(At::World, tcp("client:4000", "node:7070", "S"))
            .passed();
    });
}

#[test]
fn answers_without_a_flow_do_not_leave() {
    with_rig(|rig| {
        for flags in [".", "S.", "P.", "F.", "R"] {
            rig.send(At::Web, tcp("web:80", "client:4000", flags))
                .dropped(Drop::NoFlow);
        }
    });
}

#[test]
fn a_source_that_cannot_be_answered_opens_no_flow() {
    with_rig(|rig| {
        for source in [
            "node:4000",
            "gateway:4000",
            "web:4000",
            "127.0.0.1:4000",
            "224.0.0.1:4000",
            "0.0.0.0:4000",
        ] {
            rig.send(At::World, udp(source, "node:8080"))
                .dropped(Drop::Martian);
        }
        assert_eq!(rig.entries(), (vec![], vec![]));
    });
}

#[test]
fn packets_count_for_their_publish() {
    with_rig(|rig| {
        rig.send(At::World, udp("client:4000", "node:8080")).sent();
        rig.send(At::World, udp("client:4000", "node:8080")).sent();
        rig.send(At::Web, udp("web:80", "client:4000")).sent();
        let counter = rig.counter(PUBLISH_COUNTER);
        let bytes = header_len() + 8 + "netfw".len() as u64;
        assert_eq!((counter.rx_packets, counter.rx_bytes), (2, 2 * bytes));
        assert_eq!((counter.tx_packets, counter.tx_bytes), (1, bytes));
    });
}
