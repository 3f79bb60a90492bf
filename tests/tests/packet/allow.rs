//! Publishes that are for some sources alone.

use netfw_common::{
    drop::Drop,
    flow::sctp::INIT,
    record::{allow, network_flag},
};
use netfw_tests::packet::{
    IcmpError::{PortUnreachable, Unreachable},
    Packet,
};

use crate::rig::{
    At, Family, Hook, Outcome, Rig, error, named, ping, sctp, tcp, udp, with_rig, with_rig_in,
};

/// A list, by whatever number.
const LIST: u16 = 0x0203;

/// Publishes 7000 → `web`:80 for `client` alone.
fn for_client(rig: &mut Rig) {
    rig.allow(LIST, "client", 32);
    rig.publish_for(LIST, "0.0.0.0", 7000, ("web", 80));
}

/// What opens a flow, of each protocol.
fn openers(from: &str, to: &str) -> [Packet; 3] {
    [
        tcp(from, to, "S"),
        udp(from, to),
        sctp(from, to, INIT, 0).initiate(7),
    ]
}

#[track_caller]
fn refused(rig: &mut Rig, at: At, from: &str, to: &str) {
    for packet in openers(from, to) {
        rig.send(at, packet).dropped(Drop::NotAllowed);
        // Before the kernel makes a packet of it.
        assert!(at != At::World || rig.was_for_xdp(), "{from}");
    }
}

#[test]
fn who_is_named_gets_in_and_others_do_not() {
    with_rig(|rig| {
        for_client(rig);
        for other in ["10.1.0.3:4000", "server:4000", "10.7.7.7:4000"] {
            refused(rig, At::World, other, "node:7000");
            refused(rig, At::World, other, "gateway:7000");
        }
        assert_eq!(rig.entries(), (vec![], vec![]));
        for packet in openers("client:4000", "node:7000") {
            let (from, to) = rig.send(At::World, packet).sent();
            assert_eq!((&*from, &*to), ("client:4000", "web:80"));
        }
        let source = rig.connect("client:4001", "node:7000", "web:80");
        let (from, to) = rig.send(At::Web, tcp("web:80", &source, "P.")).sent();
        assert_eq!((&*from, &*to), ("node:7000", "client:4001"));
        // Others are for everybody.
        rig.send(At::World, udp("server:4000", "node:8080")).sent();
    });
}

#[test]
fn prefixes_name_all_that_lies_in_them() {
    with_rig(|rig| {
        rig.allow(LIST, "10.1.0.0", 24);
        rig.allow(LIST, "server", 32);
        // Within the other one.
        rig.allow(LIST, "10.1.0.64", 26);
        rig.publish_for(LIST, "node", 7000, ("web", 80));
        for (n, from) in ["client", "10.1.0.77", "10.1.0.99", "server"]
            .iter()
            .enumerate()
        {
            let from = format!("{from}:{}", 4000 + n);
            rig.send(At::World, udp(&from, "node:7000")).sent();
        }
        for other in ["router:4000", "10.7.7.7:4000"] {
            refused(rig, At::World, other, "node:7000");
        }
    });
}

#[test]
fn a_list_is_for_the_publishes_that_go_by_it() {
    with_rig(|rig| {
        // Numbers that have a byte, or a prefix of bits, in common.
        let lists = [1, 2, 3, 0x0100, 0x0101, 0x0201, 0xfffe];
        for (n, list) in lists.into_iter().enumerate() {
            let (own, port) = (format!("10.1.0.{}", 10 + n), 7000 + n as u16);
            rig.allow(list, &own, 32);
            rig.publish_for(list, "0.0.0.0", port, ("web", 80));
        }
        for n in 0..lists.len() {
            for m in 0..lists.len() {
                let (from, to) = (
                    format!("10.1.0.{}:4000", 10 + n),
                    format!("node:{}", 7000 + m),
                );
                let outcome = rig.send(At::World, udp(&from, &to));
                if n == m {
                    outcome.sent();
                } else {
                    outcome.dropped(Drop::NotAllowed);
                }
            }
        }
    });
}

#[test]
fn a_list_without_anybody_closes() {
    with_rig(|rig| {
        rig.publish_for(allow::NOBODY, "0.0.0.0", 7000, ("web", 80));
        rig.publish_for(LIST, "0.0.0.0", 7001, ("web", 80));
        for port in [7000, 7001] {
            refused(rig, At::World, "client:4000", &format!("node:{port}"));
            refused(rig, At::Peer, "peer:4000", &format!("node:{port}"));
        }
    });
}

#[test]
fn what_opens_no_flow_is_no_business_of_a_list() {
    with_rig(|rig| {
        for_client(rig);
        for packet in [
            tcp("server:4000", "node:7000", "."),
            tcp("server:4000", "node:7000", "R"),
            tcp("server:4000", "node:22", "S"),
            ping("server", "node", 7),
        ] {
            rig.send(At::World, packet).passed();
        }
        rig.send(At::World, udp("node:4000", "node:7000"))
            .dropped(Drop::Martian);
        rig.send(At::World, udp("server:4000", "web:80"))
            .dropped(Drop::DirectAccess);
    });
}

#[test]
fn flows_that_there_are_go_on() {
    with_rig(|rig| {
        let source = rig.connect("server:4000", "node:8080", "web:80");
        rig.send(At::World, udp("server:4000", "node:8080")).sent();
        rig.send(At::Web, udp("web:80", "server:4000")).sent();
        rig.allow(LIST, "client", 32);
        rig.publish_for(LIST, "0.0.0.0", 8080, ("web", 80));
        for packet in [
            tcp("server:4000", "node:8080", "P."),
            tcp("server:4000", "node:8080", "S"),
            udp("server:4000", "node:8080"),
        ] {
            let (_, to) = rig.send(At::World, packet).sent();
            assert_eq!(to, "web:80");
        }
        rig.send(At::Web, tcp("web:80", &source, "P.")).sent();
        refused(rig, At::World, "server:4001", "node:8080");
    });
}

#[test]
fn datagrams_in_pieces() {
    with_rig(|rig| {
        for_client(rig);
        let pieces = |from: &str, id| {
            let datagram = udp(from, "node:7000").id(id).payload(&[7; 4000]);
            datagram.fragments(1448)
        };
        for (id, reversed) in [(1, false), (2, true)] {
            for (from, may) in [("client:4000", true), ("server:4000", false)] {
                let mut all = pieces(from, id);
                if reversed {
                    all.reverse();
                }
                let outcomes = rig.send_all(At::World, &all);
                assert_eq!(outcomes.len(), all.len());
                let reasons = outcomes
                    .iter()
                    .filter(|(outcome, _)| matches!(outcome, Outcome::Dropped(Drop::NotAllowed)));
                let sent = outcomes
                    .iter()
                    .filter(|(outcome, _)| matches!(outcome, Outcome::Sent(_)));
                // The others are nobody's: their datagram is never whole.
                let want = if may { (0, all.len()) } else { (1, 0) };
                assert_eq!((reasons.count(), sent.count()), want, "{from} {outcomes:?}");
            }
        }
    });
}

#[test]
fn errors_come_from_whoever_is_on_the_way() {
    with_rig(|rig| {
        for_client(rig);
        rig.send(At::World, udp("client:4000", "node:7000")).sent();
        let about = udp("node:7000", "client:4000");
        let seen = rig
            .send(At::World, error("router", "node", Unreachable, &about))
            .seen();
        assert_eq!(named(seen.destination), "web:0");
        let about = udp("client:4000", "web:80");
        let seen = rig
            .send(At::Web, error("web", "client", PortUnreachable, &about))
            .seen();
        assert_eq!(named(seen.source), "node:0");
        // Of no flow.
        let about = udp("node:7000", "server:4000");
        rig.send(At::World, error("server", "node", Unreachable, &about))
            .passed();
    });
}

#[test]
fn a_neighbour_is_judged_by_its_own_address() {
    with_rig(|rig| {
        for_client(rig);
        for on in ["node:7000", "gateway:7000"] {
            refused(rig, At::Peer, "peer:4000", on);
            refused(rig, At::Web, "web:4000", on);
        }
        rig.allow(LIST, "peer", 32);
        let (from, to) = rig
            .send(At::Peer, tcp("peer:4000", "node:7000", "S"))
            .sent();
        assert_eq!((&*from, &*to), ("peer:4000", "web:80"));
        refused(rig, At::Web, "web:4000", "node:7000");
        rig.allow(LIST, "web", 32);
        let (from, to) = rig.send(At::Web, tcp("web:4000", "node:7000", "S")).sent();
        assert_eq!((&*from, &*to), ("gateway:4000", "web:80"));
        // No publish, and no list.
        rig.send(At::Peer, udp("peer:4000", "web:80")).sent();
    });
}

#[test]
fn a_peer_on_the_link_has_a_link_local_address() {
    with_rig_in(Family::V6, |rig| {
        for_client(rig);
        rig.send(At::World, udp("[fe80::2]:4000", "node:7000"))
            .dropped(Drop::NotAllowed);
        rig.allow(LIST, "fe80::2", 32);
        let (from, to) = rig
            .send(At::World, udp("[fe80::2]:4000", "node:7000"))
            .sent();
        assert_eq!((&*from, &*to), ("gateway:4000", "web:80"));
    });
}

/// Whoever was refused last is let in by the mapping of a container's.
#[test]
fn a_mapping_has_no_list() {
    with_rig(|rig| {
        for_client(rig);
        let rules = network_flag::ENDPOINT_INDEPENDENT | network_flag::FILTER_NONE;
        rig.rules(At::Web, rules);
        let (outside, _) = rig.send(At::Web, udp("web:30000", "server:53")).sent();
        rig.send(At::World, udp("router:4000", "node:7000"))
            .dropped(Drop::NotAllowed);
        let (_, to) = rig.send(At::World, udp("router:4000", &outside)).sent();
        assert_eq!(to, "web:30000");
    });
}

#[test]
fn what_xdp_leaves_to_tc_is_refused_there() {
    with_rig_in(Family::V4, |rig| {
        for_client(rig);
        let options = [7, 7, 4, 0, 0, 0, 0, 1];
        let packet = udp("server:4000", "node:7000").ip_options(&options);
        rig.send(At::World, packet).dropped(Drop::NotAllowed);
        let packet = udp("client:4000", "node:7000").ip_options(&options);
        rig.send(At::World, packet).sent();
        assert!(rig.hook() == Hook::Tc || !rig.was_for_xdp(), "XDP's");
    });
}
