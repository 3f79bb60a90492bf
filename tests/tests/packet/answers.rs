//! What the node answers as the router that it is: time exceeded, too big, unreachable.

use netfw_common::drop::Drop;
use netfw_tests::packet::{
    IcmpError::{self, *},
    Packet, Seen,
};

use crate::rig::{At, Family, Rig, error, family, named, ping, tcp, udp, with_rig};

/// Sends a packet, whose sender is told by `from`.
#[track_caller]
fn answered(rig: &mut Rig, at: At, packet: Packet, from: &str, told: IcmpError, reason: Drop) {
    let macs = rig.macs();
    let before = Seen::parse(&packet.clone().build());
    let answer = rig.send(at, packet).answered(reason);
    assert_eq!(named(answer.source), format!("{from}:0"));
    assert_eq!(answer.destination.ip(), before.source.ip());
    let ipv4 = family() == Family::V4;
    assert_eq!(answer.icmp_numbers(), told.numbers(ipv4));
    assert_eq!(answer.ttl, 64);
    assert_eq!(
        answer.macs,
        match at {
            At::World => (macs.uplink, macs.client),
            At::Web => (macs.gateway, macs.web),
            At::Peer => (macs.gateway, macs.peer),
            At::Egress | At::EgressOfWeb => unreachable!("nobody is answered there"),
        }
    );
    // As much as fits (RFC 1812 4.3.2.3, 4443 2.4 (c)), as it was received.
    let room = if ipv4 { 576 - 20 } else { 1280 - 40 };
    assert!(answer.ip_payload.len() <= room);
    let quote = answer.quote();
    assert_eq!(
        (quote.source, quote.destination, quote.ttl),
        (before.source, before.destination, before.ttl)
    );
    let known = answer.ip_payload.len() - 8 - (before.ip_len - before.ip_payload.len());
    assert_eq!(quote.ip_payload[..known], before.ip_payload[..known]);
    assert!(
        known + 3 >= before.ip_payload.len().min(room - 8 - 60),
        "{known} bytes"
    );
}

#[test]
fn time_exceeded_to_the_client_of_a_publish() {
    with_rig(|rig| {
        for ttl in [0, 1] {
            for packet in [
                udp("client:4000", "node:8080"),
                tcp("client:4000", "node:8080", "S"),
                udp("client:4000", "node:8080").payload(&[7; 1300]),
            ] {
                let packet = packet.ttl(ttl);
                answered(
                    rig,
                    At::World,
                    packet,
                    "node",
                    TimeExceeded,
                    Drop::TtlExceeded,
                );
            }
        }
        rig.send(At::World, udp("client:4000", "node:8080").ttl(2))
            .sent();
    });
}

#[test]
fn time_exceeded_to_a_container() {
    with_rig(|rig| {
        // Of a flow that exists, and of one that does not.
        rig.send(At::Web, udp("web:5353", "server:53")).sent();
        rig.connect("client:4000", "node:8080", "web:80");
        for packet in [
            udp("web:5353", "server:53"),
            udp("web:5354", "server:33434"),
            tcp("web:5354", "server:80", "S"),
            ping("web", "server", 7),
            tcp("web:80", "client:4000", "P."),
            // Towards a publish, by way of the node.
            udp("web:4000", "node:9090"),
        ] {
            let packet = packet.ttl(1);
            answered(
                rig,
                At::Web,
                packet,
                "gateway",
                TimeExceeded,
                Drop::TtlExceeded,
            );
        }
        // To the node itself it has come.
        rig.send(At::Web, udp("web:5353", "gateway:53").ttl(1))
            .passed();
        rig.send(At::Web, udp("web:5353", "node:53").ttl(1))
            .passed();
    });
}

#[test]
fn too_big_for_the_way_out() {
    with_rig(|rig| {
        rig.ip_cmd("link set up0 mtu 1400");
        let fits = 1400 - crate::rig::header_len() as usize - 8;
        let packet = |bytes| udp("web:5353", "server:53").payload(&vec![7; bytes]);
        let too_big = |rig: &mut Rig, bytes| {
            let told = TooBig(1400);
            answered(rig, At::Web, packet(bytes), "gateway", told, Drop::TooBig);
        };
        too_big(rig, 1450);
        // Nor does it go by the way that a smaller one found.
        for _ in 0..2 {
            rig.send(At::Web, packet(fits)).sent();
            too_big(rig, fits + 1);
        }
    });
}

#[test]
fn too_big_for_the_container() {
    with_rig(|rig| {
        rig.change_web(|web| web.mtu = 1400);
        let fits = 1400 - crate::rig::header_len() as usize - 8;
        for (at, from, node) in [
            (At::World, "client:4000", "node"),
            (At::Peer, "peer:4000", "gateway"),
        ] {
            let packet = |bytes| udp(from, "node:8080").payload(&vec![7; bytes]);
            rig.send(at, packet(fits)).sent();
            answered(rig, at, packet(fits + 1), node, TooBig(1400), Drop::TooBig);
        }
    });
}

#[test]
fn no_route() {
    with_rig(|rig| {
        let destination = match family() {
            Family::V4 => "198.51.100.0/24",
            Family::V6 => "2001:db8:c633::/48",
        };
        let packet = |port: u16| udp(&format!("web:{port}"), "198.51.100.7:53");
        rig.send(At::Web, packet(1000)).sent();
        for (kind, told) in [("unreachable", Unreachable), ("prohibit", Prohibited)] {
            rig.ip_cmd(&format!("route add {kind} {destination}"));
            answered(rig, At::Web, packet(1001), "gateway", told, Drop::NoRoute);
            // A flow that exists asks once a tick.
            rig.next_tick();
            answered(rig, At::Web, packet(1000), "gateway", told, Drop::NoRoute);
            rig.ip_cmd(&format!("route del {kind} {destination}"));
        }
        // A black hole swallows without a word.
        rig.ip_cmd(&format!("route add blackhole {destination}"));
        rig.send(At::Web, packet(1002)).dropped(Drop::NoRoute);
        rig.ip_cmd(&format!("route del blackhole {destination}"));
        rig.send(At::Web, packet(1002)).sent();
    });
}

#[test]
fn nobody_is_told_about_an_error_or_a_later_fragment() {
    with_rig(|rig| {
        rig.send(At::Web, udp("web:5353", "server:53")).sent();
        let about = udp("node:5353", "server:53");
        rig.send(
            At::World,
            error("router", "node", TimeExceeded, &about).ttl(1),
        )
        .dropped(Drop::TtlExceeded);
        // About nothing of ours, too.
        for reply in [udp("server:53", "web:5353"), udp("server:9", "web:9")] {
            rig.send(At::Web, error("web", "server", TimeExceeded, &reply).ttl(1))
                .dropped(Drop::TtlExceeded);
        }
    });
}

#[test]
fn no_more_than_a_thousand_a_second() {
    with_rig(|rig| {
        rig.next_tick();
        let mut told = 0;
        // All of them on one CPU, whatever it is; 3 ticks at most.
        for _ in 0..10_000 {
            let outcome = rig.send(At::Web, udp("web:5353", "server:53").ttl(1));
            told += u32::from(matches!(outcome, crate::rig::Outcome::Answered(..)));
        }
        let cpus = std::thread::available_parallelism().unwrap().get() as u32;
        assert!((1000..=4000 * cpus).contains(&told), "{told}");
        // Whoever used them up took nobody's path MTU with them.
        rig.change_web(|web| web.mtu = 1400);
        rig.send(At::Web, udp("web:5353", "server:53").ttl(1));
        let big = udp("client:4000", "node:8080").payload(&[7; 1400]);
        rig.send(At::World, big).answered(Drop::TooBig);
        rig.next_tick();
    });
}
