//! Between containers, and to the node: delivery, isolation, spoofing.

use netfw_common::drop::Drop;
use netfw_tests::packet::TTL;

use crate::rig::{
    At, Family, PEER_COUNTER, WEB_COUNTER, ping, raw, tcp, udp, with_rig, with_rig_in,
};

#[test]
fn containers_of_one_network_reach_each_other_untranslated() {
    with_rig(|rig| {
        for packet in [
            tcp("web:4000", "peer:80", "S"),
            tcp("web:4000", "peer:80", "."),
            udp("web:4000", "peer:80"),
            udp("web:4000", "peer:80").payload(&[0; 64]).fragment(0..8),
            udp("web:4000", "peer:80").payload(&[0; 64]).fragment(8..72),
            ping("web", "peer", 7),
            raw("web", "peer", 47, &[0; 20]),
        ] {
            let before = netfw_tests::packet::Seen::parse(&packet.clone().build());
            let after = rig.send(At::Web, packet).seen();
            assert_eq!(
                (after.source, after.destination),
                (before.source, before.destination)
            );
            assert_eq!(after.ttl, TTL, "no router between them");
            assert_eq!(after.macs.1, rig.macs().peer);
        }
        assert_eq!(rig.counter(WEB_COUNTER).tx_packets, 7);
        assert_eq!(rig.counter(PEER_COUNTER).rx_packets, 7);
        assert_eq!(rig.entries(), (vec![], vec![]));
    });
}

#[test]
fn another_network_and_its_gateway_are_out_of_reach() {
    with_rig(|rig| {
        for to in ["stranger:80", "elsewhere:80", "172.30.0.77:80"] {
            rig.send(At::Web, udp("web:4000", to))
                .dropped(Drop::Isolated);
            rig.send(At::Web, tcp("web:4000", to, "S"))
                .dropped(Drop::Isolated);
        }
    });
}

#[test]
fn the_node_itself_answers_containers() {
    with_rig(|rig| {
        for packet in [
            tcp("web:4000", "gateway:53", "S"),
            tcp("web:4000", "gateway:53", "."),
            udp("web:4000", "gateway:53"),
            ping("web", "gateway", 7),
            udp("web:4000", "node:53"),
            // Somebody on the bridge whom netfw does not know.
            udp("web:4000", "172.31.0.99:53"),
        ] {
            rig.send(At::Web, packet).passed();
        }
    });
}

#[test]
fn multicast_and_broadcast_are_the_bridges() {
    with_rig_in(Family::V4, |rig| {
        rig.send(At::Web, udp("web:5353", "224.0.0.251:5353"))
            .passed();
        rig.send(At::Web, udp("web:68", "255.255.255.255:67"))
            .passed();
        let macs = rig.macs();
        let frame = udp("web:138", "172.31.0.255:138")
            .macs(macs.web, [0xff; 6])
            .build();
        rig.send_raw(At::Web, &frame).passed();
    });
}

#[test]
fn a_spoofed_address_is_dropped() {
    with_rig(|rig| {
        for from in [
            "peer:4000",
            "node:4000",
            "gateway:4000",
            "server:4000",
            "0.0.0.0:68",
        ] {
            rig.send(At::Web, udp(from, "server:53"))
                .dropped(Drop::SpoofedAddress);
            rig.send(At::Web, udp(from, "peer:53"))
                .dropped(Drop::SpoofedAddress);
        }
    });
}

#[test]
fn a_spoofed_flow_is_not_anothers() {
    with_rig(|rig| {
        rig.send(At::Web, udp("web:5353", "server:53")).sent();
        rig.send(At::Peer, udp("web:5353", "server:53"))
            .dropped(Drop::SpoofedAddress);
        // Nor can the world use it.
        rig.send(At::World, udp("web:5353", "server:53")).passed();
    });
}

#[test]
fn a_spoofed_mac_is_dropped() {
    with_rig(|rig| {
        let macs = rig.macs();
        let frame = udp("web:4000", "server:53")
            .macs(macs.peer, macs.gateway)
            .build();
        rig.send_raw(At::Web, &frame).dropped(Drop::SpoofedMac);
    });
}

#[test]
fn arp_may_tell_the_truth_only() {
    with_rig_in(Family::V4, |rig| {
        let macs = rig.macs();
        let arp = |sender_mac: [u8; 6], sender_ip: [u8; 4]| {
            let mut frame = Vec::new();
            frame.extend([0xff; 6]);
            frame.extend(macs.web);
            frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
            frame.extend(sender_mac);
            frame.extend(sender_ip);
            frame.extend([0; 6]);
            frame.extend([172, 31, 0, 1]);
            frame.resize(60, 0);
            frame
        };
        rig.send_raw(At::Web, &arp(macs.web, [172, 31, 0, 2]))
            .passed();
        rig.send_raw(At::Web, &arp(macs.web, [0, 0, 0, 0])).passed();
        rig.send_raw(At::Web, &arp(macs.web, [172, 31, 0, 1]))
            .dropped(Drop::SpoofedAddress);
        rig.send_raw(At::Web, &arp(macs.peer, [172, 31, 0, 2]))
            .dropped(Drop::SpoofedAddress);
    });
}
