//! Endpoint-independent mappings, and who may send to them.

use netfw_common::{
    drop::Drop,
    record::network_flag::{ENDPOINT_INDEPENDENT, FILTER_ADDRESS, FILTER_NONE},
    tuple::proto,
};

use crate::rig::{At, Rig, at, ping, pong, tcp, udp, with_rig};

/// The mapping that a datagram of `web` makes, or has: `node:PORT`.
#[track_caller]
fn mapping(rig: &mut Rig, source: &str, to: &str) -> String {
    let from = if source.starts_with("web") {
        At::Web
    } else {
        At::Peer
    };
    rig.send(from, udp(source, to)).sent().0
}

fn port(addr: &str) -> u16 {
    addr.split_once(':').unwrap().1.parse().unwrap()
}

#[test]
fn one_port_towards_all_destinations() {
    with_rig(|rig| {
        rig.rules(At::Web, ENDPOINT_INDEPENDENT);
        for source in ["web:5353", "web:20000", "web:50000"] {
            let first = mapping(rig, source, "server:53");
            for other in ["server:54", "client:53", "router:1"] {
                assert_eq!(mapping(rig, source, other), first);
            }
            let (tcp_port, _) = rig.send(At::Web, tcp(source, "server:53", "S")).sent();
            let (other, _) = rig.send(At::Web, tcp(source, "client:80", "S")).sent();
            assert_eq!(tcp_port, other);
            let (id, _) = rig
                .send(At::Web, ping("web", "server", port(source)))
                .sent();
            let (other, _) = rig
                .send(At::Web, ping("web", "client", port(source)))
                .sent();
            assert_eq!(id, other);
            rig.send(At::World, pong("client", "node", port(&id)))
                .sent();
        }
    });
}

#[test]
fn mappings_leave_half_of_the_ports_to_others() {
    with_rig(|rig| {
        rig.rules(At::Web, ENDPOINT_INDEPENDENT);
        rig.configure(|config| (config.port_min, config.port_max) = (5000, 5007));
        for source in 5000..5004 {
            let found = mapping(rig, &format!("web:{source}"), "server:53");
            assert!((5004..=5007).contains(&port(&found)), "{found}");
        }
        rig.send(At::Web, udp("web:5004", "client:53"))
            .answered(Drop::PortsExhausted);
        for source in 6000..6004 {
            let found = mapping(rig, &format!("peer:{source}"), "server:53");
            assert!((5000..=5003).contains(&port(&found)), "{found}");
        }
    });
}

#[test]
fn nobody_has_all_mappings() {
    with_rig(|rig| {
        for container in [At::Web, At::Peer] {
            rig.rules(container, ENDPOINT_INDEPENDENT);
        }
        // A group of ports, whatever they are sent to.
        for (own, to) in [
            (20480, "server:53"),
            (20544, "client:1"),
            (20672, "router:2"),
        ] {
            let found = mapping(rig, &format!("web:{own}"), to);
            assert_eq!(found, format!("node:{own}"));
        }
        let found = mapping(rig, "web:20608", "server:54");
        assert_ne!(found, "node:20608");
        assert_eq!(mapping(rig, "web:20608", "client:53"), found);
        assert_eq!(mapping(rig, "web:20480", "client:53"), "node:20480");
        assert_eq!(mapping(rig, "peer:20608", "server:53"), "node:20608");
    });
}

#[test]
fn nobody_else_gets_the_port_of_a_mapping() {
    with_rig(|rig| {
        rig.rules(At::Web, ENDPOINT_INDEPENDENT);
        let own = mapping(rig, "web:20000", "server:53");
        assert_eq!(own, "node:20000");
        // Of a network that masquerades as usual, towards another destination: it has the lower half.
        let usual = port(&mapping(rig, "peer:20000", "client:53"));
        assert!((1024..16896).contains(&usual), "{usual}");
        rig.rules(At::Peer, ENDPOINT_INDEPENDENT);
        let other = mapping(rig, "peer:20000", "router:53");
        assert_ne!(other, own);
        assert_eq!(mapping(rig, "peer:20000", "server:54"), other);
        assert_eq!(mapping(rig, "web:20000", "client:53"), own);
    });
}

#[test]
fn a_port_of_a_publish_or_of_a_process_is_no_mapping() {
    with_rig(|rig| {
        rig.rules(At::Web, ENDPOINT_INDEPENDENT);
        rig.publish("node", 20000, proto::UDP, ("peer", 90), 4);
        assert_ne!(mapping(rig, "web:20000", "server:53"), "node:20000");
        rig.configure(|config| config.port_max = 65535);
        let socket = std::net::UdpSocket::bind(at("node:0")).unwrap();
        let taken = socket.local_addr().unwrap().port();
        let found = mapping(rig, &format!("web:{taken}"), "server:53");
        assert_ne!(port(&found), taken);
    });
}

/// Flows that were there before the first network with mappings have no half of the ports.
#[test]
fn a_flow_whose_tuple_is_taken_goes_by_another_port() {
    with_rig(|rig| {
        let taken = mapping(rig, "peer:20000", "server:53");
        rig.rules(At::Web, ENDPOINT_INDEPENDENT | FILTER_NONE);
        let own = mapping(rig, "web:20000", "client:53");
        assert_eq!(own, taken);
        let other = mapping(rig, "web:20000", "server:53");
        assert_ne!(other, own);
        let (_, to) = rig.send(At::World, udp("server:53", &other)).sent();
        assert_eq!(to, "web:20000");
        let (_, to) = rig.send(At::World, udp("server:53", &own)).sent();
        assert_eq!(to, "peer:20000");
        assert_eq!(mapping(rig, "web:20000", "server:54"), own);
    });
}

#[test]
fn without_a_filter_anybody_may_send_to_a_mapping() {
    with_rig(|rig| {
        rig.rules(At::Web, ENDPOINT_INDEPENDENT | FILTER_NONE);
        let own = mapping(rig, "web:20000", "server:53");
        for stranger in ["server:99", "client:4000", "router:1"] {
            let (from, to) = rig.send(At::World, udp(stranger, &own)).sent();
            assert_eq!((from.as_str(), to.as_str()), (stranger, "web:20000"));
            // The answer leaves from where the question went.
            let (from, to) = rig.send(At::Web, udp("web:20000", stranger)).sent();
            assert_eq!((from, to.as_str()), (own.clone(), stranger));
        }
        let (own, _) = rig.send(At::Web, tcp("web:20000", "server:80", "S")).sent();
        let (_, to) = rig.send(At::World, tcp("client:4000", &own, "S")).sent();
        assert_eq!(to, "web:20000");
        let (from, _) = rig
            .send(At::Web, tcp("web:20000", "client:4000", "S."))
            .sent();
        assert_eq!(from, own);
        // There is no such mapping.
        rig.send(At::World, udp("client:4000", "node:20001"))
            .passed();
        // What is no question opens no flow.
        rig.send(At::World, tcp("client:5000", &own, ".")).passed();
    });
}

#[test]
fn by_address_whoever_was_sent_to_may_send_from_any_port() {
    with_rig(|rig| {
        rig.rules(At::Web, ENDPOINT_INDEPENDENT | FILTER_ADDRESS);
        let own = mapping(rig, "web:20000", "server:53");
        rig.send(At::World, udp("client:53", &own))
            .dropped(Drop::Filtered);
        let (from, to) = rig.send(At::World, udp("server:99", &own)).sent();
        assert_eq!((from.as_str(), to.as_str()), ("server:99", "web:20000"));
        // Each mapping has its own.
        let other = mapping(rig, "web:20001", "client:53");
        rig.send(At::World, udp("server:99", &other))
            .dropped(Drop::Filtered);
        rig.send(At::World, udp("client:99", &other)).sent();
    });
}

#[test]
fn by_address_and_port_whoever_was_sent_to_may_send() {
    with_rig(|rig| {
        rig.rules(At::Web, ENDPOINT_INDEPENDENT);
        let own = mapping(rig, "web:20000", "server:53");
        for stranger in ["server:54", "client:53"] {
            rig.send(At::World, udp(stranger, &own))
                .dropped(Drop::Filtered);
        }
        rig.send(At::World, udp("server:53", &own)).sent();
    });
}

/// RFC 5382 REQ-4: the answer would end a simultaneous open. RFC 5382 REQ-2: which works.
#[test]
fn an_unsolicited_syn_has_no_answer_and_may_be_met_by_another() {
    with_rig(|rig| {
        rig.rules(At::Web, ENDPOINT_INDEPENDENT);
        let (own, _) = rig.send(At::Web, tcp("web:20000", "server:80", "S")).sent();
        rig.send(At::World, tcp("client:4000", &own, "S"))
            .dropped(Drop::Filtered);
        rig.send(At::Web, tcp("web:20000", "client:4000", "S"))
            .sent();
        let (_, to) = rig.send(At::World, tcp("client:4000", &own, "S")).sent();
        assert_eq!(to, "web:20000");
        rig.send(At::World, tcp("client:4000", &own, "S.")).sent();
        let (from, _) = rig
            .send(At::Web, tcp("web:20000", "client:4000", "S."))
            .sent();
        assert_eq!(from, own);
    });
}

#[test]
fn what_a_container_sends_keeps_its_mapping_and_what_it_is_sent_does_not() {
    with_rig(|rig| {
        rig.rules(At::Web, ENDPOINT_INDEPENDENT | FILTER_NONE);
        rig.timeouts(2);
        let own = mapping(rig, "web:20000", "server:53");
        for _ in 0..4 {
            rig.next_tick();
            assert_eq!(mapping(rig, "web:20000", "server:53"), own);
        }
        rig.send(At::World, udp("client:1", &own)).sent();
        for _ in 0..4 {
            rig.next_tick();
            rig.send(At::World, udp("server:53", &own)).sent();
        }
        rig.send(At::World, udp("client:2", &own)).passed();
        // And the port is another's to take.
        rig.rules(At::Peer, ENDPOINT_INDEPENDENT);
        assert_eq!(mapping(rig, "peer:20000", "client:53"), own);
        assert_ne!(mapping(rig, "web:20000", "client:54"), own);
        let (_, to) = rig.send(At::World, udp("server:53", &own)).sent();
        assert_eq!(to, "web:20000", "the flow goes on");
    });
}

/// Else the connections of a busy client would hold a port each for two hours.
#[test]
fn a_mapping_of_a_connection_that_is_over_does_not_stay() {
    with_rig(|rig| {
        rig.rules(At::Web, ENDPOINT_INDEPENDENT | FILTER_NONE);
        rig.configure(|config| config.timeouts.tcp_closing = 1);
        let (own, _) = rig.send(At::Web, tcp("web:20000", "server:80", "S")).sent();
        rig.send(At::World, tcp("server:80", &own, "S.")).sent();
        rig.send(At::Web, tcp("web:20000", "server:80", ".")).sent();
        rig.next_tick();
        rig.next_tick();
        rig.send(At::World, tcp("client:1", &own, "S")).sent();
        rig.send(At::World, tcp("server:80", &own, "F.")).sent();
        rig.send(At::Web, tcp("web:20000", "server:80", "F."))
            .sent();
        rig.send(At::World, tcp("server:80", &own, ".")).sent();
        rig.next_tick();
        rig.next_tick();
        rig.send(At::World, tcp("client:2", &own, "S")).passed();
    });
}

#[test]
fn a_publish_or_a_process_that_came_later_comes_first() {
    with_rig(|rig| {
        rig.rules(At::Web, ENDPOINT_INDEPENDENT | FILTER_NONE);
        let own = mapping(rig, "web:20000", "server:53");
        let socket = std::net::UdpSocket::bind(at("node:20000")).unwrap();
        rig.send(At::World, udp("client:1", &own)).passed();
        drop(socket);
        rig.publish("node", 20000, proto::UDP, ("peer", 90), 4);
        let (_, to) = rig.send(At::World, udp("client:1", &own)).sent();
        assert_eq!(to, "peer:90");
    });
}

#[test]
fn a_ping_from_outside_is_for_the_node_whatever_its_id() {
    with_rig(|rig| {
        rig.rules(At::Web, ENDPOINT_INDEPENDENT | FILTER_NONE);
        let (id, _) = rig.send(At::Web, ping("web", "server", 20000)).sent();
        rig.send(At::World, ping("client", "node", port(&id)))
            .passed();
    });
}

#[test]
fn a_network_that_has_no_way_out_has_none_through_a_mapping() {
    with_rig(|rig| {
        rig.rules(At::Web, ENDPOINT_INDEPENDENT | FILTER_NONE);
        let own = mapping(rig, "web:20000", "server:53");
        rig.rules(At::Peer, netfw_common::record::network_flag::INTERNAL);
        rig.send(At::Peer, udp("peer:4000", &own)).passed();
    });
}

/// RFC 4787 REQ-9, external source IP address and port.
#[test]
fn neighbours_meet_by_their_mappings() {
    with_rig(|rig| {
        for container in [At::Web, At::Peer] {
            rig.rules(container, ENDPOINT_INDEPENDENT | FILTER_NONE);
        }
        let web = mapping(rig, "web:20000", "server:53");
        let peer = mapping(rig, "peer:50000", "server:53");
        let (from, to) = rig.send(At::Peer, udp("peer:50000", &web)).sent();
        assert_eq!((from, to.as_str()), (peer.clone(), "web:20000"));
        let (from, to) = rig.send(At::Web, udp("web:20000", &peer)).sent();
        assert_eq!((from, to.as_str()), (web.clone(), "peer:50000"));
        // One that has no mapping yet gets one.
        let (from, _) = rig.send(At::Peer, udp("peer:50001", &web)).sent();
        assert_eq!(mapping(rig, "peer:50001", "server:53"), from);
        // To its own, by another port and by the same.
        let (from, to) = rig.send(At::Web, udp("web:20001", &web)).sent();
        assert_eq!((from.as_str(), to.as_str()), ("node:20001", "web:20000"));
        for _ in 0..3 {
            let (from, to) = rig.send(At::Web, udp("web:20000", &web)).sent();
            assert_eq!((from, to.as_str()), (web.clone(), "web:20000"));
        }
    });
}

#[test]
fn a_neighbour_that_masquerades_as_usual_comes_from_the_node() {
    with_rig(|rig| {
        rig.rules(At::Web, ENDPOINT_INDEPENDENT | FILTER_NONE);
        let web = mapping(rig, "web:20000", "server:53");
        let (from, to) = rig.send(At::Peer, udp("peer:4000", &web)).sent();
        assert_eq!((from.as_str(), to.as_str()), ("node:4000", "web:20000"));
        let (from, to) = rig.send(At::Web, udp("web:20000", &from)).sent();
        assert_eq!((from, to.as_str()), (web, "peer:4000"));
    });
}

#[test]
fn neighbours_that_filter_meet_once_both_have_sent() {
    with_rig(|rig| {
        for filter in [0, FILTER_ADDRESS] {
            for container in [At::Web, At::Peer] {
                rig.rules(container, ENDPOINT_INDEPENDENT | filter);
            }
            let ports = if filter == 0 {
                (20000, 20001)
            } else {
                (20002, 20003)
            };
            let (web_own, peer_own) = (format!("web:{}", ports.0), format!("peer:{}", ports.1));
            let web = mapping(rig, &web_own, "server:53");
            let peer = mapping(rig, &peer_own, "server:53");
            rig.send(At::Peer, udp(&peer_own, &web))
                .dropped(Drop::Filtered);
            let (from, to) = rig.send(At::Web, udp(&web_own, &peer)).sent();
            assert_eq!((&from, &to), (&web, &peer_own));
            let (from, to) = rig.send(At::Peer, udp(&peer_own, &web)).sent();
            assert_eq!((&from, &to), (&peer, &web_own));
        }
        // Whom it has not sent to, it does not know.
        rig.send(At::Peer, udp("peer:20009", "node:20000"))
            .dropped(Drop::Filtered);
    });
}
