//! Flows: embryos and assured ones, timeouts, full tables.

use netfw_common::{
    drop::Drop,
    flow::{flag, state},
};

use crate::rig::{At, tcp, udp, with_rig};

#[test]
fn a_handshake_makes_a_flow_assured_and_nothing_less_does() {
    with_rig(|rig| {
        let sizes = |rig: &crate::rig::Rig| {
            let (flows, embryos) = rig.entries();
            (flows.len(), embryos.len())
        };
        rig.send(At::World, tcp("client:4000", "node:8080", "S"))
            .sent();
        assert_eq!(sizes(rig), (0, 2));
        rig.send(At::World, tcp("client:4000", "node:8080", "S"))
            .sent();
        // A forged acknowledgement without an answer from the container.
        rig.send(At::World, tcp("client:4000", "node:8080", "."))
            .sent();
        assert_eq!(sizes(rig), (0, 2));
        rig.send(At::Web, tcp("web:80", "client:4000", "S.")).sent();
        assert_eq!(sizes(rig), (0, 2));
        rig.send(At::World, tcp("client:4000", "node:8080", "."))
            .sent();
        assert_eq!(sizes(rig), (2, 0));
    });
}

#[test]
fn both_halves_tell_the_same() {
    with_rig(|rig| {
        rig.connect("client:4000", "node:8080", "web:80");
        rig.send(At::World, tcp("client:4000", "node:8080", "F."))
            .sent();
        let (flows, _) = rig.entries();
        let [(key, one), (_, other)] = flows[..] else {
            panic!("two halves, not {flows:?}");
        };
        assert!(one.is_half_of(&key, &other));
        assert_eq!(one.state, state::FIN_ORIGINAL);
        assert_eq!((one.state, one.seen), (other.state, other.seen));
        assert_eq!(one.flags & flag::PUBLISHED, other.flags & flag::PUBLISHED);
    });
}

#[test]
fn a_talk_of_datagrams_makes_a_flow_assured_and_an_answer_alone_does_not() {
    with_rig(|rig| {
        rig.send(At::World, udp("client:4000", "node:8080")).sent();
        assert_eq!(rig.entries().1.len(), 2);
        rig.send(At::Web, udp("web:80", "client:4000")).sent();
        rig.send(At::Web, udp("web:80", "client:4000")).sent();
        let (flows, embryos) = rig.entries();
        assert_eq!((flows.len(), embryos.len()), (0, 2));
        assert!(embryos.iter().all(|(_, flow)| flow.state == state::REPLIED));
        rig.send(At::World, udp("client:4000", "node:8080")).sent();
        let (flows, embryos) = rig.entries();
        assert_eq!((flows.len(), embryos.len()), (2, 0));
    });
}

#[test]
fn expired_means_absent() {
    with_rig(|rig| {
        rig.timeouts(1);
        rig.connect("client:4000", "node:8080", "web:80");
        rig.next_tick();
        rig.send(At::World, tcp("client:4000", "node:8080", "."))
            .sent();
        rig.next_tick();
        rig.next_tick();
        // Nobody swept; but the flow is gone for both sides.
        rig.send(At::Web, tcp("web:80", "client:4000", "."))
            .dropped(Drop::NoFlow);
        rig.send(At::World, tcp("client:4000", "node:8080", "."))
            .passed();
        assert_eq!(rig.entries(), (vec![], vec![]));
    });
}

#[test]
fn a_packet_of_either_direction_keeps_a_flow() {
    with_rig(|rig| {
        rig.timeouts(2);
        rig.connect("client:4000", "node:8080", "web:80");
        for _ in 0..4 {
            rig.next_tick();
            rig.send(At::World, tcp("client:4000", "node:8080", "."))
                .sent();
        }
        rig.send(At::Web, tcp("web:80", "client:4000", ".")).sent();
    });
}

#[test]
fn a_client_reuses_its_port_right_after_closing() {
    with_rig(|rig| {
        rig.connect("client:4000", "node:8080", "web:80");
        rig.send(At::World, tcp("client:4000", "node:8080", "F."))
            .sent();
        rig.send(At::Web, tcp("web:80", "client:4000", "F.")).sent();
        rig.send(At::World, tcp("client:4000", "node:8080", "."))
            .sent();
        let (flows, embryos) = rig.entries();
        assert_eq!((flows.len(), embryos.len()), (0, 2), "over");
        rig.send(At::World, tcp("client:4000", "node:8080", "S"))
            .sent();
        rig.send(At::Web, tcp("web:80", "client:4000", "S.")).sent();
        rig.send(At::World, tcp("client:4000", "node:8080", "."))
            .sent();
        assert_eq!(rig.entries().0.len(), 2);
    });
}

#[test]
fn a_forged_reset_does_not_end_a_flow() {
    with_rig(|rig| {
        rig.connect("client:4000", "node:8080", "web:80");
        rig.send(At::World, tcp("client:4000", "node:8080", "R"))
            .sent();
        rig.send(At::Web, tcp("web:80", "client:4000", "P.")).sent();
        let (flows, _) = rig.entries();
        assert!(
            flows
                .iter()
                .all(|(_, flow)| flow.state == state::ESTABLISHED)
        );
    });
}

#[test]
fn a_refused_connection_is_soon_forgotten() {
    with_rig(|rig| {
        rig.send(At::World, tcp("client:4000", "node:8080", "S"))
            .sent();
        rig.send(At::Web, tcp("web:80", "client:4000", "R.").numbers(0, 1001))
            .sent();
        let (_, embryos) = rig.entries();
        assert!(embryos.iter().all(|(_, flow)| flow.state == state::REFUSED));
        // The client may try again at once.
        rig.connect("client:4000", "node:8080", "web:80");
        let (flows, _) = rig.entries();
        assert!(
            flows
                .iter()
                .all(|(_, flow)| flow.state == state::ESTABLISHED)
        );
    });
}

#[test]
fn a_full_table_refuses_new_flows_and_keeps_the_old() {
    with_rig(|rig| {
        // Room for 64 entries.
        for port in 4000..4032 {
            rig.connect(&format!("client:{port}"), "node:8080", "web:80");
        }
        rig.send(At::World, tcp("client:5000", "node:8080", "S"))
            .sent();
        rig.send(At::Web, tcp("web:80", "client:5000", "S.")).sent();
        rig.send(At::World, tcp("client:5000", "node:8080", "."))
            .dropped(Drop::TableFull);
        assert_eq!(rig.entries().0.len(), 64, "no half of the refused one");
        for port in 4000..4032 {
            let client = format!("client:{port}");
            rig.send(At::World, tcp(&client, "node:8080", ".")).sent();
            rig.send(At::Web, tcp("web:80", &client, ".")).sent();
        }
    });
}

#[test]
fn a_flood_pushes_out_embryos_only() {
    with_rig(|rig| {
        rig.connect("client:4000", "node:8080", "web:80");
        for port in 1..=u16::MAX {
            rig.send(
                At::World,
                tcp(&format!("10.7.7.7:{port}"), "node:8080", "S"),
            )
            .sent();
        }
        rig.send(At::World, tcp("client:4000", "node:8080", "."))
            .sent();
        rig.send(At::Web, tcp("web:80", "client:4000", ".")).sent();
        assert_eq!(rig.entries().0.len(), 2);
        // And a new connection completes.
        rig.connect("client:4001", "node:8080", "web:80");
    });
}
