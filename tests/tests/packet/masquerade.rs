//! Containers to the world, from the node's address.

use netfw_common::drop::Drop;
use netfw_tests::packet::{IcmpError, Packet};

use crate::rig::{
    At, Family, Outcome, WEB_COUNTER, at, family, icmp, ping, pong, raw, tcp, udp, with_rig,
};

#[test]
fn a_connection_to_the_world_leaves_from_the_nodes_address() {
    with_rig(|rig| {
        let (from, to) = rig
            .send(At::Web, tcp("web:20000", "server:443", "S"))
            .sent();
        assert_eq!((from.as_str(), to.as_str()), ("node:20000", "server:443"));
        let (from, to) = rig
            .send(At::World, tcp("server:443", "node:20000", "S."))
            .sent();
        assert_eq!((from.as_str(), to.as_str()), ("server:443", "web:20000"));
        rig.send(At::Web, tcp("web:20000", "server:443", "."))
            .sent();
        let (from, to) = rig
            .send(At::World, tcp("server:443", "node:20000", "P."))
            .sent();
        assert_eq!((from.as_str(), to.as_str()), ("server:443", "web:20000"));
    });
}

#[test]
fn a_datagram_and_a_ping_to_the_world_come_back() {
    with_rig(|rig| {
        let (from, _) = rig.send(At::Web, udp("web:5353", "server:53")).sent();
        assert_eq!(from, "node:5353");
        let (_, to) = rig.send(At::World, udp("server:53", "node:5353")).sent();
        assert_eq!(to, "web:5353");

        let (from, _) = rig.send(At::Web, ping("web", "server", 7777)).sent();
        assert_eq!(from, "node:7777");
        let (_, to) = rig.send(At::World, pong("server", "node", 7777)).sent();
        assert_eq!(to, "web:7777");
    });
}

#[test]
fn without_masquerade_a_container_keeps_its_address_and_is_answered() {
    with_rig(|rig| {
        rig.keep_addresses();
        for port in ["web:20000", "web:50000"] {
            let (from, to) = rig.send(At::Web, tcp(port, "server:443", "S")).sent();
            assert_eq!((from.as_str(), to.as_str()), (port, "server:443"));
            let (from, to) = rig.send(At::World, tcp("server:443", port, "S.")).sent();
            assert_eq!((from.as_str(), to.as_str()), ("server:443", port));
            rig.send(At::Web, tcp(port, "server:443", ".")).sent();
        }
        rig.send(At::Web, ping("web", "server", 7777)).sent();
        let (_, to) = rig.send(At::World, pong("server", "web", 7777)).sent();
        assert_eq!(to, "web:7777");
        // Nobody else gets in.
        for packet in [
            tcp("server:444", "web:20000", "S."),
            tcp("client:443", "web:20000", "S"),
            udp("server:443", "web:20000"),
            ping("server", "web", 1),
        ] {
            rig.send(At::World, packet).dropped(Drop::DirectAccess);
        }
    });
}

#[test]
fn an_answer_in_pieces_to_a_container_s_own_address() {
    with_rig(|rig| {
        rig.keep_addresses();
        rig.send(At::Web, udp("web:5353", "server:53")).sent();
        let answer = udp("server:53", "web:5353").id(7).payload(&[7; 4000]);
        for reversed in [false, true] {
            let mut pieces = answer.clone().id(7 + u16::from(reversed)).fragments(1448);
            if reversed {
                pieces.reverse();
            }
            let outcomes = rig.send_all(At::World, &pieces);
            let sent = |(outcome, _): &&(Outcome, Vec<u8>)| matches!(outcome, Outcome::Sent(_));
            assert_eq!(outcomes.iter().filter(sent).count(), pieces.len());
        }
    });
}

#[test]
fn only_the_one_asked_may_answer() {
    with_rig(|rig| {
        rig.send(At::Web, udp("web:5353", "server:53")).sent();
        rig.send(At::World, udp("client:53", "node:5353")).passed();
        rig.send(At::World, udp("server:54", "node:5353")).passed();
        rig.send(At::World, tcp("server:53", "node:5353", "S"))
            .passed();
        rig.send(At::Web, ping("web", "server", 9)).sent();
        rig.send(At::World, pong("server", "node", 10)).passed();
        rig.send(At::World, pong("client", "node", 9)).passed();
        // A request that happens to have the id of a container's is for the node.
        rig.send(At::World, ping("server", "node", 9)).passed();
    });
}

#[test]
fn a_port_outside_the_range_is_moved_into_it_and_stays_for_other_destinations() {
    with_rig(|rig| {
        let (first, _) = rig.send(At::Web, udp("web:50000", "server:53")).sent();
        let port: u16 = first.strip_prefix("node:").unwrap().parse().unwrap();
        assert!((1024..=32767).contains(&port), "{port}");
        let (second, _) = rig.send(At::Web, udp("web:50000", "client:53")).sent();
        assert_eq!(first, second);
        let (other, _) = rig.send(At::Web, udp("web:50001", "server:53")).sent();
        assert_ne!(first, other);
    });
}

#[test]
fn two_containers_with_one_source_port_get_two() {
    with_rig(|rig| {
        let (first, _) = rig.send(At::Web, udp("web:5353", "server:53")).sent();
        let (second, _) = rig.send(At::Peer, udp("peer:5353", "server:53")).sent();
        assert_eq!(first, "node:5353");
        assert_ne!(second, first);
        let (_, to) = rig.send(At::World, udp("server:53", &second)).sent();
        assert_eq!(to, "peer:5353");
        let (_, to) = rig.send(At::World, udp("server:53", &first)).sent();
        assert_eq!(to, "web:5353");
    });
}

#[test]
fn a_published_port_is_not_taken() {
    with_rig(|rig| {
        for (source, published) in [("web:8080", "node:8080"), ("web:9090", "node:9090")] {
            let (from, _) = rig.send(At::Web, udp(source, "server:53")).sent();
            assert_ne!(from, published);
        }
        // Else the server could not reach the publish from that port.
        let (_, to) = rig.send(At::World, udp("server:53", "node:8080")).sent();
        assert_eq!(to, "web:80");
    });
}

#[test]
fn a_port_of_a_process_of_the_node_is_not_taken() {
    with_rig(|rig| {
        let udp_socket = std::net::UdpSocket::bind(at("0.0.0.0:0")).unwrap();
        let tcp_socket = std::net::TcpListener::bind(at("node:0")).unwrap();
        rig.configure(|config| config.port_max = 65535);
        let port = udp_socket.local_addr().unwrap().port();
        let (from, _) = rig
            .send(At::Web, udp(&format!("web:{port}"), "server:53"))
            .sent();
        assert_ne!(from, format!("node:{port}"));
        let port = tcp_socket.local_addr().unwrap().port();
        let (from, _) = rig
            .send(At::Web, tcp(&format!("web:{port}"), "server:53", "S"))
            .sent();
        assert_ne!(from, format!("node:{port}"));
        drop(tcp_socket);
        let (from, _) = rig
            .send(At::Web, tcp(&format!("web:{port}"), "client:53", "S"))
            .sent();
        assert_eq!(from, format!("node:{port}"), "free again");
    });
}

#[test]
fn where_every_port_is_taken_the_packet_is_dropped_and_its_sender_told() {
    with_rig(|rig| {
        rig.configure(|config| (config.port_min, config.port_max) = (2000, 2001));
        for source in ["web:1", "web:2"] {
            rig.send(At::Web, udp(source, "server:53")).sent();
        }
        let told = rig
            .send(At::Web, udp("web:3", "server:53"))
            .answered(Drop::PortsExhausted);
        let ipv4 = family() == Family::V4;
        assert_eq!(told.icmp_numbers(), IcmpError::Prohibited.numbers(ipv4));
        // Another destination has ports of its own.
        rig.send(At::Web, udp("web:3", "client:53")).sent();
        // And flows that exist go on.
        rig.send(At::Web, udp("web:1", "server:53")).sent();
    });
}

#[test]
fn nobody_has_all_ports_towards_a_peer() {
    with_rig(|rig| {
        // A group of ports, and the same of identifiers.
        let opening: [fn(&str, u16) -> Packet; 3] = [
            |host, port| udp(&format!("{host}:{port}"), "server:53"),
            |host, port| tcp(&format!("{host}:{port}"), "server:53", "S"),
            |host, id| ping(host, "server", id),
        ];
        for open in opening {
            for own in [2048, 2176, 2240] {
                let (from, _) = rig.send(At::Web, open("web", own)).sent();
                assert_eq!(from, format!("node:{own}"));
            }
            let (from, _) = rig.send(At::Web, open("web", 2112)).sent();
            assert_ne!(from, "node:2112");
            // Ports in a row are of as many groups.
            for own in [2049, 2050, 2051, 2052] {
                let (from, _) = rig.send(At::Web, open("web", own)).sent();
                assert_eq!(from, format!("node:{own}"));
            }
            let (from, _) = rig.send(At::Peer, open("peer", 2112)).sent();
            assert_eq!(from, "node:2112");
        }
        // Towards another it has nothing.
        let (from, _) = rig.send(At::Web, udp("web:2112", "client:53")).sent();
        assert_eq!(from, "node:2112");
    });
}

#[test]
fn connections_that_are_over_take_no_port_from_their_container() {
    with_rig(|rig| {
        for own in [2048, 2112, 2176] {
            let (own, outside) = (format!("web:{own}"), format!("node:{own}"));
            for (at, from, to, flags) in [
                (At::Web, own.as_str(), "server:53", "S"),
                (At::World, "server:53", outside.as_str(), "S."),
                (At::Web, &own, "server:53", "F."),
                (At::World, "server:53", &outside, "F."),
                (At::Web, &own, "server:53", "."),
            ] {
                rig.send(at, tcp(from, to, flags)).sent();
            }
        }
        let (from, _) = rig.send(At::Web, tcp("web:2240", "server:53", "S")).sent();
        assert_eq!(from, "node:2240");
    });
}

#[test]
fn a_published_range_leaves_ports_for_masquerade() {
    with_rig(|rig| {
        for port in 20_000..30_000 {
            rig.publish("0.0.0.0", port, 6, ("web", port), 0);
        }
        for port in 40_000..40_100 {
            let packet = tcp(&format!("web:{port}"), "server:443", "S");
            let (from, _) = rig.send(At::Web, packet).sent();
            let port: u16 = from.strip_prefix("node:").unwrap().parse().unwrap();
            assert!(!(20_000..30_000).contains(&port));
        }
    });
}

#[test]
fn what_cannot_be_translated_does_not_leave() {
    with_rig(|rig| {
        for packet in [
            raw("web", "server", 51, &[0; 20]),
            raw("web", "server", 132, &[0; 11]),
            // An ICMP error, and a segment cut short.
            raw("web", "server", icmp(), &[3, 1, 0, 0, 0, 0, 0, 0]),
            raw("web", "server", 6, &[0; 12]),
        ] {
            rig.send(At::Web, packet).dropped(Drop::Untranslatable);
        }
        for packet in [
            pong("web", "server", 7),
            tcp("web:20000", "server:443", "."),
        ] {
            rig.send(At::Web, packet).dropped(Drop::NoFlow);
        }
    });
}

#[test]
fn an_address_that_the_node_has_lost_is_not_sent_from() {
    with_rig(|rig| {
        rig.send(At::Web, udp("web:5353", "server:53")).sent();
        rig.remove_local("node");
        rig.next_tick();
        rig.send(At::Web, udp("web:5353", "server:53"))
            .dropped(Drop::NoRoute);
    });
}

#[test]
fn an_interface_that_is_not_served_is_closed() {
    with_rig(|rig| {
        rig.close_uplink();
        rig.send(At::Web, udp("web:5353", "server:53"))
            .answered(Drop::NoRoute);
        rig.send(At::World, udp("client:4000", "node:8080"))
            .passed();
        rig.send(At::World, udp("client:4000", "web:80"))
            .dropped(Drop::DirectAccess);
    });
}

#[test]
fn packets_count_for_their_endpoint() {
    with_rig(|rig| {
        rig.send(At::Web, udp("web:5353", "server:53")).sent();
        rig.send(At::World, udp("server:53", "node:5353")).sent();
        rig.send(At::World, udp("server:53", "node:5353")).sent();
        let counter = rig.counter(WEB_COUNTER);
        assert_eq!((counter.tx_packets, counter.rx_packets), (1, 2));
    });
}
