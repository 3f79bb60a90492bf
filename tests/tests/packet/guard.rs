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
