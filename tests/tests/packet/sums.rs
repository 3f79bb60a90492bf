//! Sums of the whole frame. A device may give one with each packet it receives (`CHECKSUM_COMPLETE`);
//! the kernel goes by that and looks at no byte, so it must change as the bytes do. Kernels from 6.16 on
//! tell a test whether it did; others run this as any packet.

use netfw_common::flow::sctp::INIT;
use netfw_tests::packet::IcmpError;

use crate::rig::{At, error, ping, pong, sctp, tcp, udp, with_rig};

#[test]
fn a_sum_of_the_whole_frame_changes_with_its_bytes() {
    with_rig(|rig| {
        rig.summed = true;
        for (n, publish) in (0..).zip(["node:8080", "node:8081"]) {
            for (client, count) in [(4000, 3), (4001, 1)] {
                let client = format!("client:{client}");
                let question = udp(&client, publish);
                let (from, web) = rig.send(At::World, question.clone()).sent();
                rig.send(At::Web, udp(&web, &from)).sent();
                // The slow path, and then the other.
                for _ in 0..count {
                    rig.send(At::World, question.clone()).sent();
                }
                let (from, web) = rig.send(At::World, tcp(&client, publish, "S")).sent();
                rig.send(At::Web, tcp(&web, &from, "S.")).sent();
                let init = sctp(&client, publish, INIT, 0).initiate(1);
                rig.send(At::World, init.clone()).sent();
                rig.send(At::World, init.sctp_without_checksum()).seen();
            }
            for damaged in [
                udp("client:4002", publish).bad_transport_checksum(),
                udp("client:4002", publish).udp_without_checksum(),
                tcp("client:4002", publish, "S").bad_transport_checksum(),
            ] {
                rig.send(At::World, damaged).seen();
            }
            let id = 4000 + n;
            rig.send(At::Web, ping("web", "server", id)).sent();
            rig.send(At::World, pong("server", "node", id)).sent();
            let (from, to) = rig.send(At::Web, udp("web:4000", "server:53")).sent();
            rig.send(At::World, udp(&to, &from)).sent();
            let about = udp(&from, &to);
            for kind in [IcmpError::PortUnreachable, IcmpError::TooBig(1300)] {
                rig.send(At::World, error("router", "node", kind, &about))
                    .seen();
            }
        }
    });
}
