//! SCTP. The rig verifies the CRC32c of every packet that leaves, by an implementation of its own.

use netfw_common::{
    drop::Drop,
    flow::{
        sctp::{ABORT, DATA, INIT, INIT_ACK, SHUTDOWN, SHUTDOWN_ACK},
        state,
    },
};
use netfw_tests::packet::{
    IcmpError::{TooBig, Unreachable},
    Packet, Seen,
};

use crate::rig::{At, Hook, Rig, error, header_len, ip, named, raw, sctp, with_rig};

const SACK: u8 = 3;
const HEARTBEAT: u8 = 4;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
const SHUTDOWN_COMPLETE: u8 = 14;

/// Tags of the packets of the side that opens an association, and of those that answer.
const TO_SERVER: u32 = 0x5e5e_5e5e;
const TO_CLIENT: u32 = 0xc1c1_c1c1;

fn init(from: &str, to: &str) -> Packet {
    sctp(from, to, INIT, 0).initiate(TO_CLIENT)
}

fn init_ack(from: &str, to: &str) -> Packet {
    sctp(from, to, INIT_ACK, TO_CLIENT).initiate(TO_SERVER)
}

/// Opens an association from the world to a publish; what the container knows the client as.
#[track_caller]
fn associate(rig: &mut Rig, client: &str, publish: &str, server: &str) -> String {
    let (source, to) = rig.send(At::World, init(client, publish)).sent();
    assert_eq!(to, server);
    let (from, to) = rig.send(At::Web, init_ack(server, &source)).sent();
    assert_eq!((&*from, &*to), (publish, client));
    let cookie = sctp(client, publish, COOKIE_ECHO, TO_SERVER).payload(&[0xc0; 120]);
    rig.send(At::World, cookie).sent();
    let (from, to) = rig
        .send(At::Web, sctp(server, &source, COOKIE_ACK, TO_CLIENT))
        .sent();
    assert_eq!((&*from, &*to), (publish, client));
    source
}

/// The state of the one flow that there is.
#[track_caller]
fn state_of(rig: &Rig) -> u8 {
    let (assured, embryos) = rig.entries();
    let [(_, a), (_, b)] = [assured, embryos].concat()[..] else {
        panic!("two halves of one flow");
    };
    assert_eq!(a.state, b.state);
    a.state
}

#[test]
fn an_association_with_a_publish() {
    with_rig(|rig| {
        let source = associate(rig, "client:4000", "node:8080", "web:80");
        assert_eq!(source, "client:4000");
        assert_eq!(state_of(rig), state::ESTABLISHED);
        let data = sctp("client:4000", "node:8080", DATA, TO_SERVER);
        let (from, to) = rig.send(At::World, data).sent();
        assert_eq!((&*from, &*to), ("client:4000", "web:80"));
        assert!(rig.was_for_xdp());
        let answer = sctp("web:80", "client:4000", SACK, TO_CLIENT);
        let (from, to) = rig.send(At::Web, answer).sent();
        assert_eq!((&*from, &*to), ("node:8080", "client:4000"));
    });
}

#[test]
fn an_association_with_the_world() {
    with_rig(|rig| {
        for port in [20000, 50000] {
            let web = format!("web:{port}");
            let (from, to) = rig.send(At::Web, init(&web, "server:2905")).sent();
            assert_eq!(to, "server:2905");
            assert_eq!(from == "node:20000", port == 20000, "kept if in the range");
            let (_, to) = rig.send(At::World, init_ack("server:2905", &from)).sent();
            assert_eq!(to, web);
            for (chunk, tag) in [(COOKIE_ECHO, TO_SERVER), (DATA, TO_SERVER)] {
                let packet = sctp(&web, "server:2905", chunk, tag);
                assert_eq!(rig.send(At::Web, packet).sent().0, from);
            }
            let beat = sctp("server:2905", &from, HEARTBEAT, TO_CLIENT);
            assert_eq!(rig.send(At::World, beat).sent().1, web);
        }
    });
}

#[test]
fn a_packet_of_any_length_has_a_right_checksum() {
    with_rig(|rig| {
        associate(rig, "client:4000", "node:8080", "web:80");
        for len in (0..64).chain([100, 239, 240, 241, 495, 496, 1000, 1419]) {
            let packet = sctp("client:4000", "node:8080", DATA, TO_SERVER);
            rig.send(At::World, packet.payload(&vec![0xa5; len])).sent();
            let packet = sctp("web:80", "client:4000", DATA, TO_CLIENT);
            rig.send(At::Web, packet.payload(&vec![0x5a; len])).sent();
        }
        // Ethernet's padding is not part of the packet.
        let packet = sctp("client:4000", "node:8080", DATA, TO_SERVER).payload(b"");
        rig.send(At::World, packet.trailer(7)).sent();
    });
}

#[test]
fn a_wrong_checksum_stays_wrong() {
    with_rig(|rig| {
        // The rig compares by how much it is, before and after.
        let packet = init("client:4000", "node:8080").bad_transport_checksum();
        let seen = rig.send(At::World, packet).seen();
        assert_eq!(seen.damage.len(), 1);
    });
}

/// It is filled in by hardware, or nobody wants one.
#[test]
fn a_checksum_of_zero_stays() {
    with_rig(|rig| {
        associate(rig, "client:4000", "node:8080", "web:80");
        let packet = sctp("client:4000", "node:8080", DATA, TO_SERVER).sctp_without_checksum();
        let seen = rig.send(At::World, packet).seen();
        assert_eq!(named(seen.destination), "web:80");
        assert_eq!(seen.ip_payload[8..12], [0; 4]);
        // XDP would lose the kernel's note that it is to be filled in.
        assert!(rig.hook() == Hook::Tc || !rig.was_for_xdp(), "XDP's");
        let packet = sctp("web:80", "client:4000", DATA, TO_CLIENT).sctp_without_checksum();
        let seen = rig.send(At::Web, packet).seen();
        assert_eq!(seen.ip_payload[8..12], [0; 4]);
    });
}

#[test]
fn nothing_but_an_init_opens_a_flow() {
    with_rig(|rig| {
        for chunk in [DATA, INIT_ACK, ABORT, SHUTDOWN, COOKIE_ECHO, COOKIE_ACK] {
            let packet = sctp("client:4000", "node:8080", chunk, TO_SERVER).initiate(1);
            rig.send(At::World, packet).passed();
            let packet = sctp("web:20000", "server:2905", chunk, TO_SERVER).initiate(1);
            rig.send(At::Web, packet).dropped(Drop::NoFlow);
        }
        // An INIT has no tag (RFC 9260 8.5.1), but asks for one.
        let tagged = sctp("web:20000", "server:2905", INIT, 7).initiate(1);
        rig.send(At::Web, tagged).dropped(Drop::NoFlow);
        let short = sctp("web:20000", "server:2905", INIT, 0).payload(&[0; 3]);
        rig.send(At::Web, short).dropped(Drop::Untranslatable);
        let shorter = raw("web", "server", 132, &[0; 11]);
        rig.send(At::Web, shorter).dropped(Drop::Untranslatable);
        let short = sctp("client:4000", "node:8080", INIT, 0).payload(&[0; 3]);
        rig.send(At::World, short).passed();
    });
}

#[test]
fn a_shutdown_ends_it() {
    with_rig(|rig| {
        associate(rig, "client:4000", "node:8080", "web:80");
        let from_client = |chunk| sctp("client:4000", "node:8080", chunk, TO_SERVER);
        let from_web = |chunk| sctp("web:80", "client:4000", chunk, TO_CLIENT);
        rig.send(At::World, from_client(SHUTDOWN)).sent();
        assert_eq!(state_of(rig), state::FIN_ORIGINAL);
        rig.send(At::Web, from_web(SHUTDOWN_ACK)).sent();
        assert_eq!(state_of(rig), state::TIME_WAIT);
        rig.send(At::World, from_client(SHUTDOWN_COMPLETE)).sent();
        assert_eq!(state_of(rig), state::TIME_WAIT);
        // And the port is good for another.
        associate(rig, "client:4000", "node:8080", "web:80");
        assert_eq!(state_of(rig), state::ESTABLISHED);
    });
}

#[test]
fn an_abort_ends_it_if_it_has_the_tag() {
    with_rig(|rig| {
        let abort = |tag| sctp("client:4000", "node:8080", ABORT, tag);
        associate(rig, "client:4000", "node:8080", "web:80");
        for tag in [0, 1, TO_SERVER ^ 1] {
            rig.send(At::World, abort(tag)).sent();
            assert_eq!(state_of(rig), state::ESTABLISHED, "{tag:#x}");
        }
        // A forged INIT does not make known what the tags are.
        let forged = sctp("client:4000", "node:8080", INIT, 0).initiate(1);
        rig.send(At::World, forged).sent();
        rig.send(At::World, abort(1)).sent();
        assert_eq!(state_of(rig), state::ESTABLISHED);

        rig.send(At::World, abort(TO_SERVER)).sent();
        assert_eq!(state_of(rig), state::CLOSE);
        associate(rig, "client:4000", "node:8080", "web:80");
        // Somebody who lost its memory reflects the tag of what it got (RFC 9260 8.4).
        rig.send(At::World, abort(TO_CLIENT)).sent();
        assert_eq!(state_of(rig), state::CLOSE);
    });
}

#[test]
fn a_refusal_is_soon_forgotten() {
    with_rig(|rig| {
        rig.send(At::World, init("client:4000", "node:8080")).sent();
        let refusal = sctp("web:80", "client:4000", ABORT, TO_CLIENT);
        rig.send(At::Web, refusal).sent();
        assert_eq!(state_of(rig), state::REFUSED);
    });
}

#[test]
fn a_container_reaches_publishes() {
    with_rig(|rig| {
        let (from, to) = rig.send(At::Peer, init("peer:4000", "node:8080")).sent();
        assert_eq!((&*from, &*to), ("peer:4000", "web:80"));
        let (from, to) = rig.send(At::Web, init_ack("web:80", "peer:4000")).sent();
        assert_eq!((&*from, &*to), ("node:8080", "peer:4000"));
        // Its own.
        let (from, to) = rig.send(At::Web, init("web:4000", "node:8080")).sent();
        assert_eq!((&*from, &*to), ("gateway:4000", "web:80"));
        let (from, to) = rig.send(At::Web, init_ack("web:80", "gateway:4000")).sent();
        assert_eq!((&*from, &*to), ("node:8080", "web:4000"));
    });
}

#[test]
fn flows_do_not_meet() {
    with_rig(|rig| {
        // One client port, two publishes of one container port.
        let first = associate(rig, "client:4000", "node:8080", "web:80");
        let second = associate(rig, "client:4000", "node:8081", "web:80");
        assert_ne!(first, second);
        // One port of two containers, to one server.
        let (first, _) = rig.send(At::Web, init("web:20000", "server:2905")).sent();
        let (second, _) = rig.send(At::Peer, init("peer:20000", "server:2905")).sent();
        assert_ne!(first, second);
        // A publish is in nobody's way.
        let (from, _) = rig.send(At::Web, init("web:8080", "server:2905")).sent();
        assert_ne!(from, "node:8080");
    });
}

/// No helper finds the node's sockets: the guard notes who talks.
#[test]
fn a_port_of_the_node_is_not_taken() {
    with_rig(|rig| {
        rig.send(At::Egress, init_ack("node:2905", "client:4000"))
            .passed();
        let (from, _) = rig.send(At::Web, init("web:2905", "client:4000")).sent();
        assert_ne!(from, "node:2905");
        let (from, _) = rig.send(At::Web, init("web:2905", "client:4001")).sent();
        assert_eq!(from, "node:2905");
        // What the guard sees of a container's own changes nothing.
        rig.send(At::EgressOfWeb, init("node:2905", "client:4001"))
            .passed();
        let (_, to) = rig
            .send(At::World, init_ack("client:4001", "node:2905"))
            .sent();
        assert_eq!(to, "web:2905");
        // But a published port is the publish's.
        associate(rig, "client:4002", "node:8080", "web:80");
        rig.send(At::Egress, init_ack("node:8080", "client:4002"))
            .passed();
        let data = sctp("client:4002", "node:8080", DATA, TO_SERVER);
        assert_eq!(rig.send(At::World, data).sent().1, "web:80");
    });
}

#[test]
fn an_error_about_it_arrives() {
    with_rig(|rig| {
        let (from, _) = rig.send(At::Web, init("web:50000", "server:2905")).sent();
        associate(rig, "client:4000", "node:8080", "web:80");
        let eight = header_len() as usize + 8;
        for (about, quoted) in [
            (init(&from, "server:2905"), ("web:50000", "server:2905")),
            (
                sctp("node:8080", "client:4000", DATA, TO_CLIENT),
                ("web:80", "client:4000"),
            ),
        ] {
            let whole = about.ip();
            for quote in [&whole[..eight], &whole[..eight + 4], &whole] {
                for kind in [Unreachable, TooBig(1300)] {
                    let (router, node) = (ip("router").to_string(), ip("node").to_string());
                    let packet = Packet::icmp_error(&router, &node, kind, quote);
                    let seen: Seen = rig.send(At::World, packet).seen();
                    assert_eq!(seen.destination.ip(), ip("web"));
                    let quote = seen.quote();
                    assert_eq!((&*named(quote.source), &*named(quote.destination)), quoted);
                }
            }
        }
        let about = sctp("client:4000", "web:80", DATA, TO_SERVER);
        let seen = rig
            .send(At::Web, error("web", "client", Unreachable, &about))
            .seen();
        assert_eq!(named(seen.quote().destination), "node:8080");
    });
}
