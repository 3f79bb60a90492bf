//! The last look at what leaves an uplink.

use netfw_common::drop::Drop;

use crate::rig::{At, ping, tcp, udp, with_rig};

#[test]
fn no_containers_address_leaves() {
    with_rig(|rig| {
        for packet in [
            udp("web:4000", "server:53"),
            tcp("web:80", "client:4000", "."),
            ping("peer", "server", 7),
            udp("172.31.0.200:4000", "server:53"),
            udp("stranger:4000", "server:53").fragment(0..8),
        ] {
            rig.send(At::Egress, packet).dropped(Drop::Leak);
        }
    });
}

#[test]
fn a_packet_that_was_translated_need_not_be_looked_at_again() {
    with_rig(|rig| {
        let out = || udp("web:4000", "server:53");
        let leak = || udp("web:4000", "server:53");
        // The first packet of a flow leaves through the kernel's neighbour code.
        for _ in 0..2 {
            rig.send(At::Web, out()).seen();
        }
        let marked = rig.cb_left;
        assert_ne!(marked, [0; 5]);
        rig.cb = marked;
        rig.send(At::Egress, leak()).passed();
        for (word, bit) in [(0, 1), (0, 1 << 31), (1, 1), (1, 1 << 31)] {
            rig.cb = marked;
            rig.cb[word] ^= bit;
            rig.send(At::Egress, leak()).dropped(Drop::Leak);
        }
    });
}

#[test]
fn only_what_was_translated_is_marked() {
    with_rig(|rig| {
        for packet in [
            udp("web:4000", "peer:53"),
            udp("web:4000", "gateway:53"),
            udp("stranger:4000", "server:53"),
        ] {
            rig.send(At::Web, packet);
            assert_eq!(rig.cb_left, [0; 5]);
        }
    });
}

#[test]
fn the_nodes_own_packets_leave() {
    with_rig(|rig| {
        for packet in [
            udp("node:4000", "server:53"),
            udp("gateway:4000", "server:53"),
            udp("10.9.9.9:4000", "server:53"),
        ] {
            rig.send(At::Egress, packet).passed();
        }
    });
}
