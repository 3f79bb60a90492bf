//! What only IPv6 has: extension headers, neighbour discovery, link-local addresses.

use netfw_common::drop::Drop;
use netfw_tests::packet::{IcmpError::TimeExceeded, Packet};

use crate::rig::{At, Family, Hook, Rig, error, ip, named, tcp, udp, with_rig_in};

/// IP protocol numbers.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION: u8 = 60;
const NO_NEXT: u8 = 59;

fn with_v6(test: impl Fn(&mut Rig) + Sync) {
    with_rig_in(Family::V6, test);
}

/// The packet with extension headers of `8 * units` bytes each, padded, between it and its network
/// header.
fn extended(packet: &Packet, headers: &[(u8, u8)]) -> Vec<u8> {
    let mut frame = packet.build();
    let mut next = frame[14 + 6];
    let mut chain = Vec::new();
    for (kind, units) in headers.iter().rev() {
        let mut header = vec![0; 8 * usize::from(*units)];
        (header[0], header[1]) = (next, units - 1);
        if *kind == ROUTING {
            // Type 4, and no segments left.
            header[2] = 4;
        } else {
            // PadN.
            (header[2], header[3]) = (1, units * 8 - 4);
        }
        chain.splice(0..0, header);
        next = *kind;
    }
    frame[14 + 6] = next;
    let len = u16::from_be_bytes([frame[18], frame[19]]) + chain.len() as u16;
    frame[18..20].copy_from_slice(&len.to_be_bytes());
    frame.splice(54..54, chain);
    frame
}

#[test]
fn extension_headers_are_walked() {
    with_v6(|rig| {
        let macs = rig.macs();
        for chain in [
            &[(HOP_BY_HOP, 1)][..],
            &[(DESTINATION, 2)],
            &[(ROUTING, 3)],
            &[(HOP_BY_HOP, 1), (ROUTING, 3), (DESTINATION, 8)],
            &[(DESTINATION, 31)],
        ] {
            let packet = udp("client:4000", "node:8080").macs(macs.client, macs.uplink);
            let (from, to) = rig.send_raw(At::World, &extended(&packet, chain)).sent();
            assert_eq!((&*from, &*to), ("client:4000", "web:80"));
            assert!(rig.hook() == Hook::Tc || !rig.was_for_xdp(), "XDP's");
            let packet = tcp("web:20000", "server:443", "S").macs(macs.web, macs.gateway);
            let (from, _) = rig.send_raw(At::Web, &extended(&packet, chain)).sent();
            assert_eq!(from, "node:20000");
        }
    });
}

#[test]
fn a_chain_that_cannot_be_walked_is_not_translated() {
    with_v6(|rig| {
        let macs = rig.macs();
        let mut unfinished_route = extended(
            &udp("client:4000", "node:8080").macs(macs.client, macs.uplink),
            &[(ROUTING, 3)],
        );
        unfinished_route[54 + 3] = 1;
        rig.send_raw(At::World, &unfinished_route).passed();
        for chain in [
            &[(DESTINATION, 60)][..],
            &[(DESTINATION, 1); 9],
            &[(DESTINATION, 1); 20],
        ] {
            let packet = udp("client:4000", "node:8080").macs(macs.client, macs.uplink);
            rig.send_raw(At::World, &extended(&packet, chain)).passed();
            let packet = udp("web:20000", "server:443").macs(macs.web, macs.gateway);
            let outcome = rig.send_raw(At::Web, &extended(&packet, chain));
            assert!(
                matches!(
                    outcome,
                    crate::rig::Outcome::Dropped(Drop::Malformed | Drop::Untranslatable)
                ),
                "{outcome:?}"
            );
        }
        rig.send(At::Web, crate::rig::raw("web", "server", NO_NEXT, &[]))
            .dropped(Drop::Untranslatable);
    });
}

/// A message of neighbour discovery: `kind`, and the target where it has one.
fn discovery(from: &str, to: &str, kind: u8, target: Option<&str>) -> Packet {
    let mut body = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    if let Some(target) = target {
        match ip(target) {
            std::net::IpAddr::V6(target) => body.extend(target.octets()),
            other => panic!("{other} is no IPv6 address"),
        }
    }
    crate::rig::raw(from, to, 58, &body).ttl(255)
}

#[test]
fn discovery_between_node_and_world_is_untouched() {
    with_v6(|rig| {
        for packet in [
            discovery("client", "node", 135, Some("node")),
            discovery("client", "node", 136, Some("client")),
            discovery("fe80::1", "fe80::9", 134, None),
        ] {
            rig.send(At::World, packet).passed();
        }
    });
}

#[test]
fn a_container_speaks_for_itself_alone() {
    with_v6(|rig| {
        for packet in [
            discovery("web", "ff02::1:ff00:1", 135, Some("gateway")),
            discovery("::", "ff02::1:ff00:2", 135, Some("web")),
            discovery("fe80::5", "ff02::2", 133, None),
            discovery("web", "gateway", 136, Some("web")),
            discovery("fe80::5", "gateway", 136, Some("fe80::5")),
            // Queries of multicast listeners, mDNS.
            udp("[fe80::5]:5353", "[ff02::fb]:5353"),
        ] {
            rig.send(At::Web, packet).passed();
        }
        let [a, b, c, d, e, f] = rig.macs().gateway;
        let gateway = format!(
            "fe80::{:02x}{b:02x}:{c:02x}ff:fe{d:02x}:{e:02x}{f:02x}",
            a ^ 2
        );
        for packet in [
            // Another's address, the gateway's, its link-local one.
            discovery("web", "gateway", 136, Some("peer")),
            discovery("web", "peer", 136, Some("gateway")),
            discovery("web", "peer", 136, Some(&gateway)),
            discovery(&gateway, "ff02::1:ff00:2", 135, Some("peer")),
            discovery("peer", "gateway", 136, Some("peer")),
            // It is no router.
            discovery("fe80::5", "ff02::1", 134, None),
            discovery("fe80::5", "web", 137, None),
        ] {
            rig.send(At::Web, packet).dropped(Drop::SpoofedAddress);
        }
    });
}

#[test]
fn a_long_chain_hides_nothing() {
    with_v6(|rig| {
        let macs = rig.macs();
        let forged = discovery("web", "peer", 136, Some("gateway"));
        let forged = forged.macs(macs.web, macs.gateway);
        for (headers, reason) in [(8, Drop::SpoofedAddress), (9, Drop::Malformed)] {
            rig.send_raw(
                At::Web,
                &extended(&forged, &vec![(DESTINATION, 1); headers]),
            )
            .dropped(reason);
        }
    });
}

/// The stack forwards what netfw cannot walk through.
#[test]
fn a_long_chain_is_no_way_into_a_container() {
    with_v6(|rig| {
        let macs = rig.macs();
        let packet = udp("client:4000", "web:80").macs(macs.client, macs.uplink);
        for headers in [0, 8, 9, 20] {
            rig.send_raw(
                At::World,
                &extended(&packet, &vec![(DESTINATION, 1); headers]),
            )
            .dropped(Drop::DirectAccess);
        }
        let mut unfinished = extended(&packet, &[(ROUTING, 3)]);
        unfinished[54 + 3] = 1;
        rig.send_raw(At::World, &unfinished)
            .dropped(Drop::DirectAccess);
    });
}

#[test]
fn a_router_of_the_link_tells_of_a_packet_that_went_further() {
    with_v6(|rig| {
        rig.send(At::Web, udp("web:5353", "server:53")).sent();
        let about = udp("node:5353", "server:53");
        let seen = rig
            .send(At::World, error("fe80::9", "node", TimeExceeded, &about))
            .seen();
        assert_eq!(named(seen.destination), "web:0");
    });
}

#[test]
fn a_quote_behind_many_headers_is_nobodys() {
    with_v6(|rig| {
        rig.send(At::Web, udp("web:5353", "server:53")).sent();
        let about = extended(&udp("node:5353", "server:53"), &[(DESTINATION, 30); 6]);
        let packet = Packet::icmp_error(
            &ip("router").to_string(),
            &ip("node").to_string(),
            TimeExceeded,
            &about[14..],
        );
        rig.send(At::World, packet).passed();
    });
}

#[test]
fn what_a_container_sends_from_its_link_stays_there() {
    with_v6(|rig| {
        for (from, to) in [
            ("[fd99::5]:1", "client:2"),
            ("[fe80::5]:1", "client:2"),
            ("[::]:1", "client:2"),
            ("[fd99::5]:1", "[fe80::1]:2"),
        ] {
            rig.send(At::Web, udp(from, to))
                .dropped(Drop::SpoofedAddress);
        }
    });
}

#[test]
fn a_neighbour_of_the_uplink_uses_a_publish_by_link_local_addresses() {
    with_v6(|rig| {
        rig.add_local(ip("fe80::1"));
        let packet = || udp("[fe80::9]:4000", "[fe80::1]:8080");
        let (from, to) = rig.send(At::World, packet()).sent();
        assert_eq!(to, "web:80");
        assert!(from.starts_with("gateway:"), "to be answered by {from}");
        for _ in 0..2 {
            let seen = rig.send(At::Web, udp("web:80", &from)).seen();
            assert_eq!(named(seen.source), "fe80::1:8080");
            assert_eq!(named(seen.destination), "fe80::9:4000");
            rig.send(At::World, packet()).sent();
        }
        // The same address on another link is somebody else.
        rig.send(At::Web, udp("web:80", "[fe80::9]:4000")).passed();
    });
}
