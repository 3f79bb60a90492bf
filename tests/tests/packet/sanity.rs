//! A redirect skips what the stack checks on receipt: the engine has to refuse what `ip_rcv` and
//! a forwarding router refuse, and to leave damage visible.

use netfw_common::drop::Drop;

use crate::rig::{At, Family, family, tcp, udp, with_rig, with_rig_in};

#[test]
fn broken_packets_are_not_translated() {
    with_rig_in(Family::V4, |rig| {
        rig.send(At::World, udp("client:4000", "node:8080")).sent();
        let macs = rig.macs();
        let good = |from, to, macs: ([u8; 6], [u8; 6])| udp(from, to).macs(macs.0, macs.1).build();
        let to_node = good("client:4000", "node:8080", (macs.client, macs.uplink));
        let to_world = good("web:80", "client:4000", (macs.web, macs.gateway));
        let bend = |frame: &[u8], at: usize, value: u8| {
            let mut bent = frame.to_vec();
            bent[at] = value;
            bent
        };
        for (what, at, value) in [
            ("version", 14, 0x65),
            ("header length below 20", 14, 0x44),
            ("header length beyond the packet", 14, 0x4f),
            ("total length beyond the frame", 17, 0xff),
            ("total length below the header", 17, 10),
            ("header checksum", 24, 0x99),
        ] {
            println!("{what}");
            rig.send_raw(At::World, &bend(&to_node, at, value)).passed();
            rig.send_raw(At::Web, &bend(&to_world, at, value))
                .dropped(Drop::Malformed);
        }
    });
}

#[test]
fn a_frame_for_another_mac_is_not_ours() {
    with_rig(|rig| {
        let macs = rig.macs();
        for dst in [[2, 0, 0, 0, 0, 0x77], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
            let frame = udp("client:4000", "node:8080")
                .macs(macs.client, dst)
                .build();
            rig.send_raw(At::World, &frame).passed();
        }
    });
}

#[test]
fn a_tagged_frame_is_not_ours() {
    with_rig(|rig| {
        rig.send(At::World, udp("client:4000", "node:8080").vlan(7))
            .passed();
    });
}

#[test]
fn damage_stays_visible() {
    with_rig(|rig| {
        // The rig compares the state of the checksums before and after.
        rig.send(
            At::World,
            udp("client:4000", "node:8080").bad_transport_checksum(),
        )
        .seen();
        rig.send(
            At::World,
            tcp("client:4001", "node:8080", "S").bad_transport_checksum(),
        )
        .seen();
        if family() == Family::V4 {
            rig.send(At::World, udp("client:4000", "node:8080").bad_ip_checksum())
                .passed();
        }
    });
}

#[test]
fn udp_without_checksum_stays_without() {
    with_rig_in(Family::V4, |rig| {
        let seen = rig
            .send(
                At::World,
                udp("client:4000", "node:8080").udp_without_checksum(),
            )
            .seen();
        assert_eq!(seen.transport_checksum, Some(0));
    });
}

#[test]
fn a_udp_checksum_never_comes_out_as_zero() {
    with_rig(|rig| {
        // Among 2^16 payloads there is one for every checksum.
        for word in 0..=u16::MAX {
            let packet = udp("client:4000", "node:8080").payload(&word.to_be_bytes());
            let seen = rig.send(At::World, packet).seen();
            assert_ne!(seen.transport_checksum, Some(0), "{word}");
        }
    });
}

#[test]
fn ip_options_tos_and_padding_survive() {
    with_rig_in(Family::V4, |rig| {
        let options = [7, 7, 4, 0, 0, 0, 0, 1];
        let packet = udp("client:4000", "node:8080")
            .ip_options(&options)
            .tos(0xb9)
            .trailer(7);
        let frame = rig.frame(packet);
        assert_eq!(frame[15], 0xb9);
        assert_eq!(frame[34..42], options);
        let longest = [1; 40];
        rig.send(
            At::World,
            udp("client:4000", "node:8080").ip_options(&longest),
        )
        .sent();
        rig.send(
            At::World,
            udp("client:4000", "node:8080")
                .ip_options(&longest)
                .bad_ip_checksum(),
        )
        .passed();
    });
}
