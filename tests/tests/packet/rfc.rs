//! Requirements of RFC 4787, 5382 and 5508 that no other case shows; `docs/rfc-compliance.md` has them
//! all.

use netfw_common::{
    drop::Drop,
    record::network_flag::{ENDPOINT_INDEPENDENT, FILTER_NONE},
};
use netfw_tests::packet::{IcmpError::*, Packet};

use crate::rig::{
    At, Family, Rig, error, family, icmp, ip, named, pong, raw, tcp, udp, with_rig, with_rig_in,
};

/// RFC 4787 REQ-3a, the half of it that is not kept: below 1024 are the node's own services.
#[test]
fn a_well_known_source_port_is_moved_among_the_others() {
    with_rig(|rig| {
        for flags in [0, ENDPOINT_INDEPENDENT] {
            rig.rules(At::Web, flags);
            let (from, _) = rig.send(At::Web, udp("web:500", "server:500")).sent();
            let port: u16 = from.strip_prefix("node:").unwrap().parse().unwrap();
            assert!(port >= 1024, "{port}");
        }
    });
}

/// RFC 5508 REQ-3: the checksum is updated and not made anew, so whoever gets it drops it.
#[test]
fn damage_of_an_error_stays_visible() {
    with_rig(|rig| {
        rig.send(At::Web, udp("web:5353", "server:53")).sent();
        // The rig compares the state of the checksums before and after.
        for about in [
            udp("node:5353", "server:53"),
            // Nor is what is quoted looked at closely (REQ-3c).
            udp("node:5353", "server:53").bad_transport_checksum(),
        ] {
            let packet = error("router", "node", TimeExceeded, &about);
            rig.send(At::World, packet.clone()).seen();
            rig.send(At::World, packet.bad_transport_checksum()).seen();
        }
    });
}

/// RFC 5508 REQ-3d, RFC 4884: what follows the quote is no part of it.
#[test]
fn extensions_of_an_error_are_left_as_they_are() {
    with_rig(|rig| {
        rig.send(At::Web, udp("web:5353", "server:53")).sent();
        let mut quote = udp("node:5353", "server:53").payload(&[7; 40]).ip();
        quote.resize(128, 0);
        // An MPLS label stack (RFC 4950), as routers append it.
        let extension = [0x20, 0, 0x8f, 0xb4, 0, 8, 1, 1, 0x12, 0x34, 0x51, 0xff];
        quote.extend(extension);
        let (from, to) = (ip("router").to_string(), ip("node").to_string());
        let packet = Packet::icmp_error(&from, &to, TimeExceeded, &quote);
        let seen = rig.send(At::World, packet).seen();
        assert_eq!(named(seen.quote().source), "web:5353");
        assert!(seen.ip_payload.ends_with(&extension));
    });
}

/// RFC 4787 REQ-12, 5382 REQ-10.
#[test]
fn no_error_ends_a_mapping() {
    with_rig(|rig| {
        rig.rules(At::Web, ENDPOINT_INDEPENDENT | FILTER_NONE);
        let (own, _) = rig.send(At::Web, udp("web:20000", "server:53")).sent();
        let (tcp_own, _) = rig.send(At::Web, tcp("web:20000", "server:80", "S")).sent();
        for kind in [PortUnreachable, Prohibited, TooBig(1300), TimeExceeded] {
            for about in [udp(&own, "server:53"), tcp(&tcp_own, "server:80", "S")] {
                // From whomever (REQ-12a).
                for from in ["router", "server", "198.51.100.7"] {
                    rig.send(At::World, error(from, "node", kind, &about))
                        .seen();
                }
            }
        }
        let (_, to) = rig.send(At::World, udp("client:1", &own)).sent();
        assert_eq!(to, "web:20000");
        let (_, to) = rig.send(At::World, tcp("client:1", &tcp_own, "S")).sent();
        assert_eq!(to, "web:20000");
    });
}

/// Two containers that have met by their mappings, `web:20000` and `peer:20001`; their names outside.
fn met(rig: &mut Rig) -> (String, String) {
    for container in [At::Web, At::Peer] {
        rig.rules(container, ENDPOINT_INDEPENDENT | FILTER_NONE);
    }
    let (web, _) = rig.send(At::Web, udp("web:20000", "server:53")).sent();
    let (peer, _) = rig.send(At::Peer, udp("peer:20001", "server:53")).sent();
    rig.send(At::Peer, udp("peer:20001", &web)).sent();
    (web, peer)
}

/// RFC 5508 REQ-7.
#[test]
fn an_error_finds_back_through_mappings_of_one_node() {
    with_rig(|rig| {
        let (web, peer) = met(rig);
        let packet = error("web", "node", PortUnreachable, &udp(&peer, "web:20000"));
        let seen = rig.send(At::Web, packet).seen();
        assert_eq!(named(seen.source), "node:0");
        assert_eq!(named(seen.destination), "peer:0");
        let quote = seen.quote();
        assert_eq!(named(quote.source), "peer:20001");
        assert_eq!(named(quote.destination), web);
    });
}

/// RFC 5382 REQ-8, REQ-8a.
#[test]
fn a_connection_through_mappings_of_one_node() {
    with_rig(|rig| {
        for container in [At::Web, At::Peer] {
            rig.rules(container, ENDPOINT_INDEPENDENT | FILTER_NONE);
        }
        let (web, _) = rig.send(At::Web, tcp("web:20000", "server:80", "S")).sent();
        let (peer, _) = rig
            .send(At::Peer, tcp("peer:20001", "server:80", "S"))
            .sent();
        let (from, to) = rig.send(At::Peer, tcp("peer:20001", &web, "S")).sent();
        assert_eq!((&from, &*to), (&peer, "web:20000"));
        let (from, to) = rig.send(At::Web, tcp("web:20000", &peer, "S.")).sent();
        assert_eq!((&from, &*to), (&web, "peer:20001"));
        rig.send(At::Peer, tcp("peer:20001", &web, ".")).sent();
        assert_eq!(rig.entries().0.len(), 2, "assured");
    });
}

/// RFC 5508 REQ-1: nobody else's queries are answered by a container.
#[test]
fn a_reply_without_a_query_reaches_nobody() {
    with_rig(|rig| {
        rig.rules(At::Web, ENDPOINT_INDEPENDENT | FILTER_NONE);
        rig.send(At::Web, udp("web:20000", "server:53")).sent();
        rig.send(At::World, pong("server", "node", 20000)).passed();
    });
}

/// RFC 5508 REQ-10c. IPv6 has none of them.
#[test]
fn obsolete_messages_are_not_translated() {
    const SOURCE_QUENCH: u8 = 4;
    const INFORMATION: u8 = 15;
    with_rig_in(Family::V4, |rig| {
        rig.send(At::Web, udp("web:5353", "server:53")).sent();
        let message = |kind: u8, quote: &[u8]| [&[kind, 0, 0, 0, 0, 0, 0, 0], quote].concat();
        let quench = message(SOURCE_QUENCH, &udp("node:5353", "server:53").ip());
        rig.send(At::World, raw("router", "node", icmp(), &quench))
            .passed();
        let quench = message(SOURCE_QUENCH, &udp("server:53", "web:5353").ip());
        for message in [quench, message(INFORMATION, &[])] {
            rig.send(At::Web, raw("web", "server", icmp(), &message))
                .dropped(Drop::Untranslatable);
        }
    });
}

/// RFC 5508 REQ-10d.
#[test]
fn the_ds_field_of_an_error_stays() {
    with_rig(|rig| {
        rig.send(At::Web, udp("web:5353", "server:53")).sent();
        let packet = error(
            "router",
            "node",
            TimeExceeded,
            &udp("node:5353", "server:53"),
        );
        for tos in [0, 0xc0, 0xb8] {
            let frame = rig.frame(packet.clone().tos(tos));
            let after = match family() {
                Family::V4 => frame[15],
                Family::V6 => frame[14] << 4 | frame[15] >> 4,
            };
            assert_eq!(after, tos);
        }
    });
}
