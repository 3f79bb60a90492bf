//! What XDP decides about by itself, and what it leaves to TC. That either does the same is what
//! every other case shows.

use netfw_common::record::endpoint_flag;
use netfw_tests::packet::IcmpError::TimeExceeded;

use crate::rig::{At, Family, Hook, Rig, error, family, pong, tcp, udp, with_rig};

#[track_caller]
fn by_xdp(rig: &mut Rig, packet: netfw_tests::packet::Packet) {
    rig.send(At::World, packet).sent();
    assert!(rig.was_for_xdp(), "left to TC");
}

#[track_caller]
fn by_tc(rig: &mut Rig, packet: netfw_tests::packet::Packet) {
    rig.send(At::World, packet).sent();
    assert!(rig.hook() == Hook::Tc || !rig.was_for_xdp(), "XDP's");
}

#[test]
fn new_flows_and_old_ones_are_its_own() {
    with_rig(|rig| {
        by_xdp(rig, udp("client:4000", "node:8080"));
        by_xdp(rig, udp("client:4000", "node:8080"));
        by_xdp(rig, tcp("client:4000", "node:8080", "S"));
        rig.send(At::Web, tcp("web:80", "client:4000", "S.")).sent();
        by_xdp(rig, tcp("client:4000", "node:8080", "."));
        by_xdp(rig, tcp("client:4000", "node:8080", "P."));
        by_xdp(rig, tcp("client:4000", "node:8080", "F."));
        rig.send(At::Web, udp("web:5353", "server:53")).sent();
        by_xdp(rig, udp("server:53", "node:5353"));
        rig.send(At::Web, crate::rig::ping("web", "server", 7777))
            .sent();
        by_xdp(rig, pong("server", "node", 7777));
    });
}

#[test]
fn drops_are_its_own() {
    with_rig(|rig| {
        rig.send(At::World, udp("client:4000", "web:80"))
            .dropped(netfw_common::drop::Drop::DirectAccess);
        assert!(rig.was_for_xdp());
    });
}

#[test]
fn what_it_cannot_do_is_for_tc() {
    with_rig(|rig| {
        if family() == Family::V4 {
            by_tc(rig, udp("client:4000", "node:8080").ip_options(&[1; 8]));
        }
        rig.send(At::Web, udp("web:5353", "server:53")).sent();
        by_tc(
            rig,
            error(
                "router",
                "node",
                TimeExceeded,
                &udp("node:5353", "server:53"),
            ),
        );
    });
}

/// A veth peer on the same machine leaves the checksum to a device that never comes: what XDP sees
/// then is the sum of the pseudo-header alone, and to fold anything into that would break it.
#[test]
fn a_checksum_yet_to_be_computed_is_for_tc() {
    with_rig(|rig| {
        by_xdp(rig, udp("client:4000", "node:8080"));
        let macs = rig.macs();
        let mut frame = udp("client:4000", "node:8080")
            .macs(macs.client, macs.uplink)
            .build();
        let at = frame.len() - b"netfw".len() - 2;
        let sum = crate::rig::pseudo_sum("client", "node", 17, 13);
        frame[at..at + 2].copy_from_slice(&sum);
        rig.send_raw(At::World, &frame).seen();
        assert!(rig.hook() == Hook::Tc || !rig.was_for_xdp(), "XDP's");
    });
}

#[test]
fn a_container_that_takes_no_frames_from_xdp_gets_them_from_tc() {
    with_rig(|rig| {
        rig.change_web(|web| web.flags &= !endpoint_flag::NAPI);
        by_tc(rig, udp("client:4000", "node:8080"));
        by_tc(rig, udp("client:4000", "node:8080"));
    });
}
