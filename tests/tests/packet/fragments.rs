//! Datagrams in pieces: in any order, of any size, both ways.
//!
//! The pieces that come out are put together by etherparse, and the checksum of the whole verified.

use netfw_common::drop::Drop;
use netfw_tests::packet::{Packet, Seen};

use crate::rig::{
    At, Family, Outcome, Rig, named, ping, pong, raw, tcp, udp, with_rig, with_rig_in,
};

/// Bytes of the largest UDP payload: 64 KiB with headers.
const LARGEST: usize = 65507;
/// What fits into Ethernet's 1500 bytes in both families.
const PIECE: usize = 1448;

/// Bytes that are nowhere the same.
fn bytes(len: usize) -> Vec<u8> {
    (0..len as u32).map(|n| (n * 7 + n / 251) as u8).collect()
}

/// Sends pieces; the datagrams that their receiver makes of what comes out.
#[track_caller]
fn delivered(rig: &mut Rig, at: At, pieces: &[Packet]) -> Vec<Seen> {
    let frames: Vec<Vec<u8>> = rig
        .send_all(at, pieces)
        .into_iter()
        .map(|(outcome, frame)| match outcome {
            Outcome::Sent(_) => frame,
            other => panic!("not sent: {other:?}"),
        })
        .collect();
    let whole = Seen::whole(frames.iter().map(|frame| &frame[..]));
    for datagram in &whole {
        assert_eq!(datagram.damage, []);
    }
    whole
}

/// Sends a datagram in pieces and in one, in this order; as it comes out.
#[track_caller]
fn one(rig: &mut Rig, at: At, packet: &Packet, order: fn(&mut [Packet])) -> Seen {
    let mut pieces = packet.fragments(PIECE);
    order(&mut pieces);
    let [whole] = &delivered(rig, at, &pieces)[..] else {
        panic!("one datagram goes in, and comes out");
    };
    let sent = Seen::parse(&packet.build());
    assert!(whole.payload == sent.payload, "other bytes");
    whole.clone()
}

fn in_order(_: &mut [Packet]) {}

fn last_first(pieces: &mut [Packet]) {
    pieces.reverse();
}

/// The first one somewhere in the middle.
fn shuffled(pieces: &mut [Packet]) {
    let len = pieces.len();
    for n in 0..len {
        pieces.swap(n, (n * 31 + 17) % len);
    }
}

const ORDERS: [fn(&mut [Packet]); 3] = [in_order, last_first, shuffled];

/// Source and destination, in names.
fn ends(seen: &Seen) -> (String, String) {
    (named(seen.source), named(seen.destination))
}

/// What came of each piece.
#[track_caller]
fn outcomes(rig: &mut Rig, at: At, pieces: &[Packet]) -> Vec<Outcome> {
    let all = rig.send_all(at, pieces);
    all.into_iter().map(|(outcome, _)| outcome).collect()
}

#[test]
fn udp_to_a_publish_and_back() {
    with_rig(|rig| {
        for (n, order) in ORDERS.into_iter().enumerate() {
            let client = format!("client:{}", 4000 + n);
            let question = udp(&client, "node:8080").payload(&bytes(LARGEST));
            let (from, to) = ends(&one(rig, At::World, &question, order));
            assert_eq!((&from, &*to), (&client, "web:80"));
            let answer = udp("web:80", &client).payload(&bytes(LARGEST)).id(7);
            let (from, to) = ends(&one(rig, At::Web, &answer, order));
            assert_eq!((&*from, &to), ("node:8080", &client));
        }
    });
}

#[test]
fn udp_to_the_world_and_back() {
    with_rig(|rig| {
        for (n, order) in ORDERS.into_iter().enumerate() {
            let own = format!("web:{}", 5000 + n);
            let question = udp(&own, "server:53").payload(&bytes(LARGEST));
            let (from, to) = ends(&one(rig, At::Web, &question, order));
            assert!(from.starts_with("node:"));
            assert_eq!(to, "server:53");
            let answer = udp("server:53", &from).payload(&bytes(LARGEST)).id(7);
            let (from, to) = ends(&one(rig, At::World, &answer, order));
            assert_eq!((&*from, &to), ("server:53", &own));
        }
    });
}

#[test]
fn pings_of_60000_bytes() {
    with_rig(|rig| {
        for (n, order) in ORDERS.into_iter().enumerate() {
            let id = 700 + n as u16;
            let request = ping("web", "server", id).payload(&bytes(60000));
            let seen = one(rig, At::Web, &request, order);
            assert_eq!(ends(&seen).0, format!("node:{}", seen.source.port()));
            let reply = pong("server", "node", seen.source.port()).payload(&bytes(60000));
            let seen = one(rig, At::World, &reply, order);
            assert_eq!(ends(&seen).1, format!("web:{id}"));
        }
    });
}

#[test]
fn a_neighbours_publish_and_the_neighbour_itself() {
    with_rig(|rig| {
        for (n, order) in ORDERS.into_iter().enumerate() {
            let own = format!("peer:{}", 4000 + n);
            let question = udp(&own, "node:8080").payload(&bytes(20000));
            let (from, to) = ends(&one(rig, At::Peer, &question, order));
            assert_eq!((&from, &*to), (&own, "web:80"));
            // Only the first piece tells this from what web sends to peer by itself.
            let answer = udp("web:80", &own).payload(&bytes(20000));
            let (from, to) = ends(&one(rig, At::Web, &answer, order));
            assert_eq!((&*from, &to), ("node:8080", &own));
            let other = udp("web:81", &own).payload(&bytes(20000)).id(7);
            let (from, to) = ends(&one(rig, At::Web, &other, order));
            assert_eq!((&*from, &to), ("web:81", &own));
        }
    });
}

#[test]
fn datagrams_that_mingle() {
    with_rig(|rig| {
        for order in ORDERS {
            let datagrams = [
                udp("client:4000", "node:8080").id(1),
                udp("client:4001", "node:8081").id(2),
                udp("10.7.7.7:4000", "node:8080").id(1),
                udp("client:4002", "node:9090").id(3),
            ];
            let mut pieces = datagrams.map(|packet| {
                let mut pieces = packet.payload(&bytes(9000)).fragments(PIECE);
                order(&mut pieces);
                pieces
            });
            let mut all = Vec::new();
            while !pieces[0].is_empty() {
                all.extend(pieces.iter_mut().filter_map(Vec::pop));
            }
            let whole = delivered(rig, At::World, &all);
            let mut ends: Vec<_> = whole.iter().map(ends).collect();
            ends.sort();
            assert!(whole.iter().all(|seen| seen.payload == bytes(9000)));
            let to = |from: &str, to: &str| (from.to_owned(), to.to_owned());
            // 8081 leads where 8080 does, so one client may be told from another by its port alone.
            assert_eq!(ends.len(), 4);
            assert!(ends.contains(&to("client:4002", "peer:90")));
            assert!(ends.contains(&to("client:4001", "web:80")));
        }
    });
}

#[test]
fn a_tiny_last_piece() {
    with_rig(|rig| {
        for order in ORDERS {
            // Transport header and payload: one byte more than two pieces.
            let packet = udp("client:4000", "node:8080").payload(&bytes(2 * PIECE + 1 - 8));
            assert_eq!(packet.fragments(PIECE).len(), 3);
            one(rig, At::World, &packet, order);
        }
    });
}

#[test]
fn pieces_of_eight_bytes() {
    with_rig(|rig| {
        for order in ORDERS {
            let packet = udp("client:4000", "node:8080").payload(&bytes(200));
            let mut pieces = packet.fragments(8);
            order(&mut pieces);
            assert_eq!(delivered(rig, At::World, &pieces).len(), 1);
        }
    });
}

#[test]
fn udp_without_checksum_stays_so() {
    with_rig_in(Family::V4, |rig| {
        for order in ORDERS {
            let packet = udp("client:4000", "node:8080").payload(&bytes(4000));
            let seen = one(rig, At::World, &packet.udp_without_checksum(), order);
            assert_eq!(seen.transport_checksum, Some(0));
        }
    });
}

#[test]
fn a_segment_in_pieces() {
    with_rig(|rig| {
        rig.connect("client:4000", "node:8080", "web:80");
        for order in ORDERS {
            let segment = tcp("client:4000", "node:8080", "P.").payload(&bytes(4000));
            let (_, to) = ends(&one(rig, At::World, &segment, order));
            assert_eq!(to, "web:80");
        }
    });
}

#[test]
fn what_is_for_the_node_is_its_own() {
    with_rig(|rig| {
        for order in ORDERS {
            let mut pieces = udp("client:4000", "node:53")
                .payload(&bytes(6000))
                .fragments(PIECE);
            order(&mut pieces);
            let all = outcomes(rig, At::World, &pieces);
            assert_eq!(all.len(), pieces.len());
            all.into_iter().for_each(Outcome::passed);
        }
        // Somebody else's: the node may be a router.
        let far = udp("client:4000", "198.51.100.7:53").payload(&bytes(6000));
        for piece in far.fragments(PIECE).into_iter().rev() {
            rig.send(At::World, piece).passed();
        }
    });
}

#[test]
fn overlaps_are_dropped() {
    with_rig(|rig| {
        let packet = udp("client:4000", "node:8080").payload(&bytes(4000));
        let part = |part| packet.clone().fragment(part);
        rig.send(At::World, part(0..1000)).sent_on();
        // The first once more, one inside it, one that begins in it (RFC 1858 4.2), one that ends in
        // another.
        rig.send(At::World, part(2000..3000)).sent_on();
        for bad in [
            0..1000,
            0..8,
            8..16,
            992..1008,
            1000..2008,
            1904..3104,
            2992..4008,
        ] {
            rig.send(At::World, part(bad)).dropped(Drop::BadFragment);
        }
    });
}

#[test]
fn pieces_that_waited_do_not_overlap_either() {
    with_rig(|rig| {
        let packet = udp("client:4000", "node:8080").payload(&bytes(4000));
        let part = |part| packet.clone().fragment(part);
        rig.send(At::World, part(8..1000)).held();
        let all = outcomes(rig, At::World, &[part(1000..2000), part(0..1000)]);
        // What waited behind the first wakes; what overlaps it waits in vain.
        assert_eq!(all.len(), 2);
        all.into_iter().for_each(Outcome::sent_on);
        rig.send(At::World, part(8..1000))
            .dropped(Drop::BadFragment);
    });
}

/// A link pads short frames: neither the piece that waits nor the one that wakes it is another then.
#[test]
fn padding_stays() {
    with_rig(|rig| {
        let packet = udp("client:4000", "node:8080")
            .payload(&bytes(16))
            .trailer(12);
        let pieces = [packet.clone().fragment(8..24), packet.fragment(0..8)];
        let all = rig.send_all(At::World, &pieces);
        assert_eq!(all.len(), 2);
        for ((outcome, frame), piece) in all.into_iter().zip(pieces.iter().rev()) {
            outcome.sent_on();
            assert_eq!(frame.len(), piece.build().len());
        }
    });
}

#[test]
fn headers_are_whole_in_the_first_piece() {
    with_rig(|rig| {
        for short in [0..8, 0..16] {
            let packet = || tcp("client:4000", "node:8080", "S").payload(&bytes(100));
            let piece = packet().fragment(short.clone());
            rig.send(At::World, piece).dropped(Drop::BadFragment);
            let packet = || tcp("web:4000", "server:80", "S").payload(&bytes(100));
            let piece = packet().fragment(short);
            rig.send(At::Web, piece).dropped(Drop::BadFragment);
        }
        assert_eq!(rig.entries(), (vec![], vec![]));
        // Eight bytes are enough for others.
        for (id, packet) in [
            (1, udp("web:4000", "server:53")),
            (2, ping("web", "server", 7)),
        ] {
            rig.send(At::Web, packet.id(id).fragment(0..8)).sent_on();
        }
    });
}

#[test]
fn pieces_that_cannot_be() {
    with_rig(|rig| {
        let large = raw("client", "node", 17, &bytes(70000));
        // Beyond 64 KiB; not of whole units, though more follow.
        for part in [65528..65536, 65000..66000, 8..20] {
            rig.send(At::World, large.clone().fragment(part))
                .dropped(Drop::BadFragment);
        }
    });
}

#[test]
fn an_identifier_is_used_again() {
    with_rig(|rig| {
        let one = udp("client:4000", "node:8080")
            .payload(&bytes(3000))
            .fragments(PIECE);
        let two = udp("client:4001", "node:9090")
            .payload(&bytes(3000))
            .fragments(PIECE);
        // The last piece is lost.
        assert_eq!(outcomes(rig, At::World, &one[..2]).len(), 2);
        rig.next_tick();
        rig.next_tick();
        rig.next_tick();
        let whole = delivered(rig, At::World, &two);
        assert_eq!(
            whole.iter().map(ends).collect::<Vec<_>>(),
            [("client:4001".into(), "peer:90".into())]
        );
        // At once, where all had come: in whatever order.
        let mut pieces = one;
        last_first(&mut pieces);
        assert_eq!(ends(&delivered(rig, At::World, &pieces)[0]).1, "web:80");
    });
}

/// A piece whose first one was lost is not another datagram's, which comes with the same identifier
/// seconds later.
#[test]
fn what_waited_in_vain_wakes_for_nobody() {
    with_rig(|rig| {
        let datagram = |byte| {
            let packet = udp("client:4000", "node:8080").payload(&[byte; 3000]);
            packet.fragments(PIECE)
        };
        rig.send(At::World, datagram(1).remove(1)).held();
        for byte in 2..4 {
            for _ in 0..3 {
                rig.next_tick();
            }
            let all = rig.send_all(At::World, &datagram(byte));
            // What waited is dropped, once, as the next first one wakes it; and that goes on.
            let dropped = matches!(all[0].0, Outcome::Answered(Drop::LostFragment, _));
            assert_eq!(dropped, byte == 2, "{:?}", all[0].0);
            let frames = all.iter().filter_map(|(outcome, frame)| match outcome {
                Outcome::Sent(_) | Outcome::Answered(Drop::LostFragment, _) => Some(&frame[..]),
                _ => None,
            });
            let whole = Seen::whole(frames);
            assert_eq!(whole.len(), 1);
            assert!(whole[0].payload.iter().all(|&is| is == byte));
        }
    });
}

#[test]
fn nobody_waits_for_a_first_piece_that_was_dropped() {
    with_rig(|rig| {
        let packet = udp("web:4000", "stranger:80").payload(&bytes(4000));
        for piece in packet.fragments(PIECE) {
            rig.send(At::Web, piece).dropped(Drop::Isolated);
        }
    });
}

#[test]
fn a_piece_waits_once() {
    with_rig(|rig| {
        let packet = udp("client:4000", "node:8080").payload(&bytes(2000));
        let piece = || packet.clone().fragment(1000..2008);
        rig.send(At::World, piece()).held();
        rig.send(At::World, piece()).dropped(Drop::LostFragment);
    });
}
