//! Random packets, and good ones bent, through every hook.
//!
//! Whatever goes in, the rig holds the programs to what it does for each packet of every test: a
//! verdict of netfw's; what is handed on is untouched; a drop has one reason; what is sent has the
//! length that it had, and its checksums are as right or wrong as they were, those of a quoted packet
//! too; an answer is right in itself.
//!
//! `NETFW_FUZZ_SECONDS` says for how long (for each hook and family), `NETFW_FUZZ_SEED` where to
//! begin: `cargo xtask fuzz` sets both, and begins elsewhere each time; a test goes the same way each
//! time. What fails is printed, and belongs in [`REGRESSIONS`].

use std::{
    collections::BTreeMap,
    env,
    time::{Duration, Instant},
};

use fastrand::Rng;
use netfw_common::{drop::Drop as Reason, flow::sctp::INIT, tuple::proto};
use netfw_tests::packet::{
    IcmpError::{self, *},
    Packet,
};

use crate::rig::{
    At, Family, Outcome, Rig, error, family, icmp, ping, pong, raw, sctp, tcp, udp, with_rig,
};

/// Packets until all flows are forgotten, lest the table be full for good.
const ROUND: u32 = 4000;

/// Where a test begins.
const SEED: u64 = 1;

/// The kernel runs programs on no shorter frames of IPv6, and there are none on a wire.
const SHORTEST: usize = 54;

/// Of SCTP's packets.
const TAG: u32 = 0x7a67_7a67;

/// What failed once: where, and the frame without its MAC addresses.
const REGRESSIONS: &[(Family, At, &str)] = &[
    // Two headers of fragments.
    (
        Family::V6,
        At::World,
        "86dd6990000000102cfffd000001000000000000000000000002fd0000310000000000000000000000022c00000100004e4685ad2f91c059a7a5",
    ),
    // It ends where its header does, and the frame goes on.
    (
        Family::V6,
        At::Peer,
        "86dd6260000000001100fd00003100000000000000000000000320010db8cb007101000000000000000100350fa00009f51594",
    ),
    // The packet ends within the quoted header, and the frame goes on.
    (
        Family::V6,
        At::World,
        "86dd6000000000213a40fd000001000000000000000000000002fd0000010000000000000000000000010200317300006bc8\
         6000007f00190640fd000001000000000000000000000001fd0000010000000000000000000000021f900fa0000003e80000\
         07d05010faf0262400006e65746677",
    ),
    // Its checksum is what a device would have to fill in.
    (
        Family::V4,
        At::Web,
        "0800450000284e46400000067666ac1f00020a01000200500fa000000001\
         0000000050100000b63e0000",
    ),
];

#[test]
fn whatever_goes_in() {
    let number = |name: &str| env::var(name).ok().and_then(|value| value.parse().ok());
    let seconds = number("NETFW_FUZZ_SECONDS").unwrap_or(10);
    let seed = number("NETFW_FUZZ_SEED").unwrap_or(SEED);
    println!("seed {seed}");
    with_rig(|rig| {
        let mut rng = Rng::with_seed(seed);
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut came_of_it = BTreeMap::new();
        while Instant::now() < end {
            prepare(rig);
            for _ in 0..ROUND {
                let (at, frame) = some_frame(rig, &mut rng);
                let outcome = send(rig, at, &frame);
                *came_of_it.entry(outcome).or_insert(0) += 1;
            }
            rig.forget();
        }
        println!("{came_of_it:#?}");
        for outcome in ["Sent", "Passed", "Answered(TtlExceeded)", "Dropped(NoFlow)"] {
            assert!(came_of_it.contains_key(outcome), "no packet was {outcome}");
        }
    });
}

#[test]
fn regressions() {
    with_rig(|rig| {
        prepare(rig);
        for (family, at, hex) in REGRESSIONS {
            if *family == crate::rig::family() {
                let tail = hex
                    .as_bytes()
                    .chunks(2)
                    .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap());
                let (dst, src) = macs(rig, *at);
                let frame: Vec<u8> = dst.into_iter().chain(src).chain(tail).collect();
                send(rig, *at, &frame);
            }
        }
        if family() == Family::V6 {
            // The ports lie further on than XDP reads.
            let mut options: Vec<u8> = (0..800u32).map(|n| (n / 7) as u8).collect();
            options[..2].copy_from_slice(&[proto::UDP, 93]);
            let packet = raw("client", "web", 60, &options);
            rig.send(At::World, packet).dropped(Reason::DirectAccess);
        }
    });
}

/// Flows for packets to belong to, and a publish that is not for everybody.
fn prepare(rig: &mut Rig) {
    rig.allow(7, "client", 32);
    rig.publish_for(7, "0.0.0.0", 7000, ("web", 80));
    rig.connect("client:4000", "node:8080", "web:80");
    for (at, packet) in [
        (At::World, udp("client:4000", "node:8080")),
        (At::Web, udp("web:5000", "server:53")),
        (At::Web, tcp("web:5000", "server:53", "S")),
        (At::Web, ping("web", "server", 5000)),
        (
            At::World,
            sctp("client:4000", "node:8080", INIT, 0).initiate(TAG),
        ),
        (
            At::Web,
            sctp("web:5000", "server:53", INIT, 0).initiate(TAG),
        ),
        (At::Web, raw("web", "server", 47, &[7; 40])),
        (At::Peer, udp("peer:5000", "node:8080")),
        (At::Web, udp("web:5000", "node:8080")),
    ] {
        rig.send(at, packet).sent();
    }
}

/// Sends it, and prints it where the rig does not like what comes of it. What came of it.
fn send(rig: &mut Rig, at: At, frame: &[u8]) -> String {
    struct Witness<'a>(At, &'a [u8]);
    impl Drop for Witness<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                let hex: String = self.1[12..]
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect();
                eprintln!("(Family::{:?}, At::{:?}, \"{hex}\"),", family(), self.0);
            }
        }
    }
    let witness = Witness(at, frame);
    let outcome = rig.send_raw(at, frame);
    drop(witness);
    match outcome {
        Outcome::Answered(reason, _) => format!("Answered({reason:?})"),
        Outcome::Dropped(reason) => format!("Dropped({reason:?})"),
        Outcome::Sent(_) => "Sent".to_owned(),
        Outcome::Passed | Outcome::Held | Outcome::Unreadable => format!("{outcome:?}"),
    }
}

/// Destination and source of a frame received there.
fn macs(rig: &Rig, at: At) -> ([u8; 6], [u8; 6]) {
    let macs = rig.macs();
    match at {
        At::World => (macs.uplink, macs.client),
        At::Web => (macs.gateway, macs.web),
        At::Peer => (macs.gateway, macs.peer),
        At::Egress | At::EgressOfWeb => (macs.client, macs.uplink),
    }
}

fn some_frame(rig: &Rig, rng: &mut Rng) -> (At, Vec<u8>) {
    let at = *pick(
        rng,
        &[
            At::World,
            At::World,
            At::World,
            At::Web,
            At::Web,
            At::Peer,
            At::Egress,
            At::EgressOfWeb,
        ],
    );
    let (dst, src) = macs(rig, at);
    let mut frame = if rng.u8(..) < 8 {
        let mut noise = vec![0; rng.usize(SHORTEST..200)];
        rng.fill(&mut noise);
        noise[..6].copy_from_slice(&dst);
        noise[6..12].copy_from_slice(&src);
        noise[12..14].copy_from_slice(match family() {
            Family::V4 => &[0x08, 0x00],
            Family::V6 => &[0x86, 0xdd],
        });
        noise
    } else {
        some_packet(rng, at).macs(src, dst).build()
    };
    for _ in 0..*pick(rng, &[0, 1, 1, 2, 3, 6]) {
        bend(rng, &mut frame);
    }
    frame.resize(frame.len().max(SHORTEST), 0);
    // Else nothing that is bent in its header would be looked at.
    if family() == Family::V4 && rng.u8(..) < 200 {
        mend_header(&mut frame);
    }
    (at, frame)
}

fn pick<'a, T>(rng: &mut Rng, of: &'a [T]) -> &'a T {
    &of[rng.usize(..of.len())]
}

/// What packets of the flows of [`prepare`] look like where they are received.
fn flows(at: At) -> &'static [(&'static str, &'static str)] {
    match at {
        At::World => &[("client:4000", "node:8080"), ("server:53", "node:5000")],
        At::Web => &[
            ("web:80", "client:4000"),
            ("web:80", "peer:5000"),
            ("web:5000", "server:53"),
            ("web:5000", "node:8080"),
        ],
        At::Peer => &[("peer:5000", "node:8080")],
        At::Egress | At::EgressOfWeb => &[("node:5000", "server:53")],
    }
}

fn some_packet(rng: &mut Rng, at: At) -> Packet {
    let ports = [53, 80, 90, 443, 4000, 5000, 7000, 8080, 8081, 9090];
    let hosts = [
        "client", "node", "server", "router", "web", "peer", "gateway", "stranger",
    ];
    let from = match at {
        At::World => *pick(rng, &["client", "client", "server", "router"]),
        At::Web => "web",
        At::Peer => "peer",
        At::Egress | At::EgressOfWeb => *pick(rng, &["node", "web"]),
    };
    let to = *pick(rng, &hosts);
    let [mut source, mut destination] =
        [from, to].map(|host| format!("{host}:{}", pick(rng, &ports)));
    if rng.bool() {
        let (one, other) = *pick(rng, flows(at));
        (source, destination) = (one.to_owned(), other.to_owned());
    }
    let id = *pick(rng, &ports);
    let flags = *pick(
        rng,
        &["S", "S.", ".", "P.", "F.", "R", "R.", "SF", "", "SFRPU."],
    );
    let mut payload = vec![0; *pick(rng, &[0, 1, 5, 64, 333, 1400])];
    rng.fill(&mut payload);
    let mut packet = match rng.u8(..12) {
        0..3 => udp(&source, &destination),
        3..6 => tcp(&source, &destination, flags).numbers(rng.u32(..), rng.u32(..)),
        10..12 => {
            let tag = *pick(rng, &[0, TAG]);
            let packet = sctp(&source, &destination, rng.u8(..16), tag);
            if rng.u8(..) < 20 {
                packet.sctp_without_checksum()
            } else {
                packet
            }
        }
        6 => ping(from, to, id),
        7 => pong(from, to, id),
        8 => {
            let kinds = [
                Unreachable,
                PortUnreachable,
                Prohibited,
                TooBig(rng.u16(..)),
                TimeExceeded,
                ParameterProblem(rng.u8(..)),
            ];
            let kind = *pick(rng, &kinds);
            return some_error(rng, from, to, kind, (&destination, &source));
        }
        _ => {
            // IP in IP, GRE, ESP, AH; and extension headers.
            let protocols = [
                proto::TCP,
                proto::UDP,
                proto::SCTP,
                icmp(),
                4,
                47,
                50,
                51,
                0,
                43,
                44,
                59,
                60,
            ];
            let protocol = *pick(rng, &protocols);
            raw(from, to, protocol, &payload)
        }
    };
    packet = packet
        .payload(&payload)
        .tos(rng.u8(..))
        .ttl(*pick(rng, &[0, 1, 2, 64, 255]));
    if family() == Family::V4 && rng.u8(..) < 20 {
        let options: Vec<u8> = vec![1; 4 * rng.usize(1..=10)];
        packet = packet.ip_options(&options);
    }
    if payload.len() >= 64 && rng.u8(..) < 40 {
        let start = 8 * rng.usize(0..4);
        packet = packet.fragment(start..start + 8 * rng.usize(1..4));
    }
    packet
}

/// About a packet of that direction, as a rule.
fn some_error(rng: &mut Rng, from: &str, to: &str, kind: IcmpError, about: (&str, &str)) -> Packet {
    let about = match rng.u8(..6) {
        4 => sctp(about.0, about.1, INIT, 0).initiate(TAG),
        5 => raw("node", "server", 47, &[7; 40]),
        0 => tcp(about.0, about.1, "."),
        1 => ping("node", "server", 5000),
        2 => udp("node:5000", "server:53"),
        _ => udp(about.0, about.1),
    };
    error(from, to, kind, &about)
}

/// Damages it somewhere, mostly where headers are.
fn bend(rng: &mut Rng, frame: &mut Vec<u8>) {
    let len = frame.len();
    let somewhere = rng.usize(14..len.clamp(15, 120)).min(len - 1);
    match rng.u8(..12) {
        0..3 => frame[somewhere] = rng.u8(..),
        3..5 => frame[somewhere] ^= 1 << rng.u8(..8),
        // Version and header length.
        5 => frame[14] = rng.u8(..),
        // Lengths, next header, protocol.
        6 => frame[(14 + rng.usize(2..10)).min(len - 1)] = rng.u8(..),
        7 if len > SHORTEST => frame.truncate(rng.usize(SHORTEST..len)),
        8 => frame.extend(std::iter::repeat_n(0, rng.usize(..60))),
        9 => {
            // A tag.
            frame.splice(12..12, [0x81, 0x00, 0x00, rng.u8(..)]);
        }
        10 => frame[rng.usize(..14)] = rng.u8(..),
        _ => {
            let value = *pick(rng, &[0, 0xff, 0x7f, 0x80]);
            frame[somewhere] = value;
        }
    }
}

/// Makes the checksum of an IPv4 header right, if there is one.
fn mend_header(frame: &mut [u8]) {
    let Some(head) = frame.get(14) else {
        return;
    };
    let len = usize::from(head & 0xf) * 4;
    if len < 20 || frame.len() < 14 + len {
        return;
    }
    let header = &mut frame[14..14 + len];
    header[10..12].fill(0);
    let sum = etherparse::checksum::Sum16BitWords::new()
        .add_slice(header)
        .ones_complement();
    header[10..12].copy_from_slice(&sum.to_ne_bytes());
}
