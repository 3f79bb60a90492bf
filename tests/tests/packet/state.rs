//! Flows: embryos and assured ones, timeouts, full tables.

use netfw_common::{
    drop::Drop,
    flow::{flag, state},
    tuple::proto,
};

use netfw_tests::packet::Packet;

use crate::rig::{At, Rig, tcp, udp, with_rig};

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
fn the_other_half_is_looked_for_once_in_a_while() {
    use netfw_common::flow::lag;
    /// More than the shortest that is long enough for a lag.
    const TIMEOUT: u32 = 100;
    const MOST: u32 = lag(TIMEOUT);
    with_rig(|rig| {
        for protocol in [proto::TCP, proto::UDP] {
            rig.forget();
            rig.timeouts(TIMEOUT);
            let (ask, answer): (Packet, Packet) = if protocol == proto::TCP {
                rig.connect("client:4000", "node:8080", "web:80");
                (
                    tcp("client:4000", "node:8080", "."),
                    tcp("web:80", "client:4000", "."),
                )
            } else {
                let (ask, answer) = (
                    udp("client:4000", "node:8080"),
                    udp("web:80", "client:4000"),
                );
                rig.send(At::World, ask.clone()).sent();
                rig.send(At::Web, answer.clone()).sent();
                rig.send(At::World, ask.clone()).sent();
                (ask, answer)
            };
            let halves = |rig: &Rig| -> [u32; 2] {
                let (flows, _) = rig.entries();
                let [one, two] = &flows[..] else {
                    panic!("two halves: {flows:?}")
                };
                let mut both = [
                    (one.1.has(flag::REPLY), one.1.seen),
                    (two.1.has(flag::REPLY), two.1.seen),
                ];
                both.sort();
                both.map(|(_, seen)| seen)
            };
            for ticks in 1..=MOST {
                // Long ago: both are written.
                rig.age(MOST + 1);
                rig.send(At::World, ask.clone()).sent();
                let [original, reply] = halves(rig);
                assert_eq!(original, reply);
                // A moment ago: the packet's own half is, and the other may fall behind so far.
                rig.age(ticks);
                rig.send(At::World, ask.clone()).sent();
                let [original, reply] = halves(rig);
                assert!(original - reply <= MOST, "{ticks}: {original} {reply}");
            }
            // It is no less alive.
            rig.age(TIMEOUT - 1);
            rig.send(At::Web, answer).sent();
            rig.age(TIMEOUT + MOST + 2);
            if protocol == proto::TCP {
                rig.send(At::World, ask).passed();
                assert_eq!(rig.entries(), (vec![], vec![]));
            }
        }
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

/// A talk of the client's datagrams from a port of its own.
fn talk(rig: &mut crate::rig::Rig, port: u16) {
    let client = format!("client:{port}");
    rig.send(At::World, udp(&client, "node:8080")).sent();
    rig.send(At::Web, udp("web:80", &client)).sent();
    rig.send(At::World, udp(&client, "node:8080")).sent();
}

#[test]
fn datagrams_leave_room_for_connections() {
    with_rig(|rig| {
        // Of the 64 entries, 32.
        rig.configure(|config| config.max_queries = 32);
        for port in 4000..4024 {
            talk(rig, port);
        }
        assert_eq!(rig.entries().0.len(), 32);
        for port in 5000..5016 {
            rig.connect(&format!("client:{port}"), "node:8080", "web:80");
        }
        assert_eq!(rig.entries().0.len(), 64);
        // Those that found no room go on where they are, also in the next tick.
        for _ in 0..2 {
            (4000..4024).for_each(|port| talk(rig, port));
            rig.next_tick();
        }
        rig.configure(|config| {
            config.max_queries = 2;
            (config.timeouts.udp_replied, config.timeouts.udp_unreplied) = (1, 1);
        });
        rig.next_tick();
        rig.next_tick();
        // Expired ones make room.
        for port in 4000..4020 {
            talk(rig, port);
        }
        let (flows, _) = rig.entries();
        let talks = flows.iter().filter(|(key, _)| key.proto == proto::UDP);
        assert_eq!(talks.count(), 2);
    });
}

#[test]
fn a_full_table_is_no_end_to_talks() {
    with_rig(|rig| {
        for port in 4000..4032 {
            rig.connect(&format!("client:{port}"), "node:8080", "web:80");
        }
        for _ in 0..3 {
            talk(rig, 5000);
            rig.next_tick();
        }
        assert_eq!(rig.entries().0.len(), 64);
    });
}

#[test]
fn nobody_has_all_of_the_table() {
    with_rig(|rig| {
        // The 64 entries that there are: whoever asks for more has all but two.
        rig.configure(|config| config.max_flows = 64);
        rig.publish("node", 8081, proto::TCP, ("peer", 80), 7);
        for port in 4000..4031 {
            rig.connect(&format!("client:{port}"), "node:8080", "web:80");
        }
        assert_eq!(rig.entries().0.len(), 62);
        // The client is to ask again; it does not learn of it when it holds it for established.
        let peers = |rig: &mut Rig, flags: [&str; 3]| {
            for (at, (from, to), flags) in [
                (At::World, ("client:5000", "node:8081"), flags[0]),
                (At::Peer, ("peer:80", "client:5000"), flags[1]),
                (At::World, ("client:5000", "node:8081"), flags[2]),
            ] {
                rig.send(at, tcp(from, to, flags)).sent();
            }
        };
        peers(rig, ["S", "S.", "."]);
        rig.send(At::World, tcp("client:4031", "node:8080", "S"))
            .dropped(Drop::TableFull);
        peers(rig, ["F.", "F.", "."]);
        assert_eq!(rig.entries().0.len(), 62);
        rig.send(At::World, tcp("client:4031", "node:8080", "S"))
            .sent();
        rig.configure(|config| config.max_flows = 63);
        rig.send(At::World, tcp("client:4032", "node:8080", "S"))
            .dropped(Drop::FlowShare);
        // Nor does a flow that was let in earlier take what is left.
        rig.send(At::Web, tcp("web:80", "client:4031", "S.")).sent();
        rig.send(At::World, tcp("client:4031", "node:8080", "."))
            .dropped(Drop::FlowShare);
        // The old ones go on, and each that ends makes room for another.
        for port in 4000..4020 {
            let client = format!("client:{port}");
            rig.send(At::World, tcp(&client, "node:8080", "F.")).sent();
            rig.send(At::Web, tcp("web:80", &client, "F.")).sent();
        }
        rig.connect("client:6000", "node:8080", "web:80");
    });
}

#[test]
fn what_nobody_answers_is_limited_for_each_container() {
    with_rig(|rig| {
        rig.configure(|config| config.max_unanswered = 8);
        for port in 4000..4008 {
            rig.send(At::Web, tcp(&format!("web:{port}"), "client:80", "S"))
                .sent();
        }
        rig.send(At::Web, tcp("web:4008", "client:80", "S"))
            .dropped(Drop::Unanswered);
        rig.send(At::Web, udp("web:4008", "client:53"))
            .dropped(Drop::Unanswered);
        // Another container is not concerned, nor is what was begun.
        rig.send(At::Peer, udp("peer:4008", "client:53")).sent();
        rig.send(At::Web, tcp("web:4000", "client:80", "S")).sent();
        // What is answered gives one back, and so does a connection once it is established.
        rig.send(At::World, tcp("client:80", "node:4000", "S."))
            .sent();
        rig.send(At::Web, tcp("web:4009", "client:80", "S"))
            .dropped(Drop::Unanswered);
        rig.send(At::Web, tcp("web:4000", "client:80", ".")).sent();
        rig.send(At::Web, udp("web:4009", "client:53")).sent();
        rig.send(At::World, udp("client:53", "node:4009")).sent();
        rig.send(At::Web, tcp("web:4009", "client:80", "S")).sent();
        // One that is refused stays a burden for a while.
        rig.send(At::World, tcp("client:80", "node:4001", "R."))
            .sent();
        rig.send(At::Web, tcp("web:4010", "client:80", "S"))
            .dropped(Drop::Unanswered);
        // Nor is more given back for one that seems to end, and goes on: it takes no peer for that.
        for flags in ["R", "."] {
            rig.send(At::Web, tcp("web:4000", "client:80", flags))
                .sent();
        }
        rig.send(At::Web, tcp("web:4010", "client:80", "S"))
            .dropped(Drop::Unanswered);
        rig.next_tick();
        rig.send(At::Web, tcp("web:4010", "client:80", "S")).sent();
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

/// A connection of client:4000 to node:8080, `.` and data on it: `own` numbers of the next segment.
fn established(rig: &mut crate::rig::Rig) {
    rig.send(
        At::World,
        tcp("client:4000", "node:8080", "S").numbers(999, 0),
    )
    .sent();
    rig.send(
        At::Web,
        tcp("web:80", "client:4000", "S.").numbers(4999, 1000),
    )
    .sent();
    let segment = tcp("client:4000", "node:8080", "P.").payload(&[7; 100]);
    rig.send(At::World, segment.numbers(1000, 5000)).sent();
    let segment = tcp("web:80", "client:4000", "P.").payload(&[7; 1000]);
    rig.send(At::Web, segment.numbers(5000, 1100)).sent();
}

#[track_caller]
fn is_in(rig: &crate::rig::Rig, wanted: u8) {
    let (flows, embryos) = rig.entries();
    let states: Vec<u8> = flows.iter().chain(&embryos).map(|(_, f)| f.state).collect();
    assert_eq!(states, [wanted; 2]);
}

#[test]
fn a_guessed_reset_or_fin_does_not_end_a_flow() {
    with_rig(|rig| {
        established(rig);
        // Of the client the next byte is 1100, and the container's is 6000.
        for guess in [0, 999, 1000, 1099, 1101, 5000, u32::MAX / 2] {
            let forged = tcp("client:4000", "node:8080", "R").numbers(guess, 0);
            rig.send(At::World, forged).sent();
            is_in(rig, state::ESTABLISHED);
        }
        for guess in [10_000_000, u32::MAX / 2] {
            let forged = tcp("client:4000", "node:8080", "F.").numbers(guess, 6000);
            rig.send(At::World, forged).sent();
            is_in(rig, state::ESTABLISHED);
        }
        let real = tcp("client:4000", "node:8080", "R").numbers(1100, 0);
        rig.send(At::World, real).sent();
        is_in(rig, state::CLOSE);
    });
}

/// A SYN may name any number; what its sender counts on is that the flow goes by it.
#[test]
fn no_number_is_learnt_from_a_stranger() {
    with_rig(|rig| {
        established(rig);
        for (flags, seq, ack) in [
            ("S", 77_000_000, 0),
            ("S.", 77_000_000, 42_000_000),
            (".", 1100, 77_000_000),
        ] {
            for (flags, seq, ack) in [(flags, seq, ack), ("R", seq + 1, 0), ("R", seq, 0)] {
                // That one would be right.
                if (flags, seq) != ("R", 1100) {
                    let forged = tcp("client:4000", "node:8080", flags).numbers(seq, ack);
                    rig.send(At::World, forged).sent();
                    is_in(rig, state::ESTABLISHED);
                }
            }
        }
        let real = tcp("client:4000", "node:8080", "R").numbers(1100, 0);
        rig.send(At::World, real).sent();
        is_in(rig, state::CLOSE);
    });
}

/// Whoever answers a SYN knows its number; afterwards there is nothing to be known, and to be guessed.
#[test]
fn a_connection_is_answered_once() {
    with_rig(|rig| {
        let own = |flags| tcp("web:20000", "server:443", flags);
        let world = |flags| tcp("server:443", "node:20000", flags);
        rig.send(At::Web, own("S").numbers(99, 0)).sent();
        for guess in [0, 99, 101, u32::MAX] {
            let forged = world("S.").numbers(77_000_000, guess);
            rig.send(At::World, forged).sent();
        }
        rig.send(At::World, world("S.").numbers(299, 100)).sent();
        rig.send(At::Web, own(".").numbers(100, 300)).sent();
        rig.send(At::Web, own("P.").numbers(100, 300)).sent();
        is_in(rig, state::ESTABLISHED);
        for ack in [100, 105] {
            let forged = world("S.").numbers(77_000_000, ack);
            rig.send(At::World, forged).sent();
            let forged = world("R").numbers(77_000_001, 0);
            rig.send(At::World, forged).sent();
            is_in(rig, state::ESTABLISHED);
        }
        // A retransmission is behind what comes next.
        rig.send(At::World, world("P.").numbers(300, 105)).sent();
        rig.send(At::World, world("P.").numbers(305, 105)).sent();
        rig.send(At::World, world("P.").numbers(300, 105)).sent();
        rig.send(At::World, world("R").numbers(310, 0)).sent();
        is_in(rig, state::CLOSE);
    });
}

/// The container lost its side of a connection without a word, and the client opens it anew.
#[test]
fn a_new_connection_over_a_lost_one_has_its_own_numbers() {
    with_rig(|rig| {
        established(rig);
        let client = |flags| tcp("client:4000", "node:8080", flags);
        let server = |flags| tcp("web:80", "client:4000", flags);
        for (at, packet) in [
            (At::World, client("S").numbers(77_000_000, 0)),
            (At::Web, server("S.").numbers(88_000_000, 77_000_001)),
            (At::World, client(".").numbers(77_000_001, 88_000_001)),
            (At::Web, server("F.").numbers(88_000_001, 77_000_001)),
            (At::World, client("F.").numbers(77_000_001, 88_000_002)),
        ] {
            rig.send(at, packet).sent();
        }
        is_in(rig, state::TIME_WAIT);
    });
}

#[test]
fn a_reset_that_the_peer_did_not_believe_did_not_happen() {
    with_rig(|rig| {
        established(rig);
        let reset = tcp("client:4000", "node:8080", "R").numbers(1100, 0);
        rig.send(At::World, reset).sent();
        is_in(rig, state::CLOSE);
        // The container's stack has answered it by a challenge (RFC 5961 3.2), and talks on.
        let segment = tcp("web:80", "client:4000", "P.").numbers(6000, 1100);
        rig.send(At::Web, segment).sent();
        is_in(rig, state::ESTABLISHED);
        assert_eq!(rig.entries().0.len(), 2, "assured again");
    });
}

#[test]
fn both_sides_reset_from_either_end() {
    with_rig(|rig| {
        established(rig);
        let reset = tcp("web:80", "client:4000", "R.").numbers(6000, 1100);
        rig.send(At::Web, reset).sent();
        is_in(rig, state::CLOSE);
    });
}

/// RFC 5382 REQ-2, RFC 9293 figure 8.
#[test]
fn a_simultaneous_open_is_a_connection() {
    with_rig(|rig| {
        let segment = |flags| tcp("web:20000", "server:20000", flags);
        let answer = |flags| tcp("server:20000", "node:20000", flags);
        rig.send(At::Web, segment("S").numbers(100, 0)).sent();
        rig.send(At::World, answer("S").numbers(300, 0)).sent();
        rig.send(At::Web, segment("S.").numbers(100, 301)).sent();
        rig.send(At::World, answer("S.").numbers(300, 101)).sent();
        rig.send(At::Web, segment("P.").numbers(101, 301)).sent();
        is_in(rig, state::ESTABLISHED);
        rig.send(At::World, answer("P.").numbers(301, 106)).sent();
    });
}

#[test]
fn what_answers_an_old_connection_is_not_the_new_ones() {
    with_rig(|rig| {
        established(rig);
        for (at, packet) in [
            (
                At::World,
                tcp("client:4000", "node:8080", "F.").numbers(1095, 6000),
            ),
            (
                At::Web,
                tcp("web:80", "client:4000", "F.").numbers(5995, 1101),
            ),
            (
                At::World,
                tcp("client:4000", "node:8080", ".").numbers(1101, 6001),
            ),
        ] {
            rig.send(at, packet.payload(b"closed")).sent();
        }
        is_in(rig, state::TIME_WAIT);
        // The port is used again, far from the old numbers.
        rig.send(
            At::World,
            tcp("client:4000", "node:8080", "S").numbers(77_000_000, 0),
        )
        .sent();
        // What was under way of the old connection neither assures nor ends the new one.
        rig.send(
            At::Web,
            tcp("web:80", "client:4000", "F.").numbers(5995, 1101),
        )
        .sent();
        rig.send(
            At::World,
            tcp("client:4000", "node:8080", "R").numbers(1101, 0),
        )
        .sent();
        rig.send(
            At::Web,
            tcp("web:80", "client:4000", "S.").numbers(88_000_000, 77_000_001),
        )
        .sent();
        rig.send(
            At::World,
            tcp("client:4000", "node:8080", ".").numbers(77_000_001, 88_000_001),
        )
        .sent();
        is_in(rig, state::ESTABLISHED);
        assert_eq!(rig.entries().0.len(), 2, "assured");
    });
}
