//! ICMP errors that others send about packets of ours.

use netfw_common::drop::Drop;
use netfw_tests::packet::{
    IcmpError::{self, *},
    Packet,
};

use crate::rig::{At, Family, Rig, error, named, ping, pong, tcp, udp, with_rig, with_rig_in};

const ERRORS: [IcmpError; 6] = [
    Unreachable,
    PortUnreachable,
    Prohibited,
    TooBig(1300),
    TimeExceeded,
    ParameterProblem(40),
];

/// Sends an error, which must arrive as it is, but for `from`, `to` and what is quoted:
/// `(source, destination)`.
#[track_caller]
fn arrives(rig: &mut Rig, at: At, packet: Packet, from: &str, to: &str, quoted: (&str, &str)) {
    let macs = rig.macs();
    let before = netfw_tests::packet::Seen::parse(&packet.clone().build());
    let after = rig.send(at, packet).seen();
    assert_eq!(named(after.source), format!("{from}:0"));
    assert_eq!(named(after.destination), format!("{to}:0"));
    assert_eq!(after.icmp_numbers(), before.icmp_numbers());
    assert_eq!(after.ttl, before.ttl - 1);
    let quote = after.quote();
    assert_eq!(
        (&*named(quote.source), &*named(quote.destination)),
        quoted,
        "the quote"
    );
    if to == "web" {
        assert_eq!(after.macs, (macs.gateway, macs.web));
    }
}

#[test]
fn about_a_masqueraded_packet_reaches_the_container() {
    with_rig(|rig| {
        let out = |rig: &mut Rig, packet| rig.send(At::Web, packet).sent().0;
        let [tcp_port, udp_port, id] = [
            out(rig, tcp("web:40000", "server:443", "S")),
            out(rig, udp("web:40000", "server:53")),
            out(rig, ping("web", "server", 40000)),
        ];
        for kind in ERRORS {
            for (about, to) in [
                (tcp(&tcp_port, "server:443", "S"), "server:443"),
                (udp(&udp_port, "server:53"), "server:53"),
            ] {
                let packet = error("router", "node", kind, &about);
                let quoted = ("web:40000", to);
                arrives(rig, At::World, packet, "router", "web", quoted);
            }
            let number = id.strip_prefix("node:").unwrap().parse().unwrap();
            let packet = error("router", "node", kind, &ping("node", "server", number));
            let quoted = ("web:40000", "server:40000");
            arrives(rig, At::World, packet, "router", "web", quoted);
        }
    });
}

#[test]
fn about_an_answer_of_a_publish_reaches_the_container() {
    with_rig(|rig| {
        rig.connect("client:4000", "node:8080", "web:80");
        rig.send(At::World, udp("client:4000", "node:8080")).sent();
        for kind in ERRORS {
            for about in [
                tcp("node:8080", "client:4000", "P."),
                udp("node:8080", "client:4000"),
            ] {
                let packet = error("router", "node", kind, &about);
                let quoted = ("web:80", "client:4000");
                arrives(rig, At::World, packet, "router", "web", quoted);
            }
        }
    });
}

#[test]
fn from_a_container_reaches_the_client() {
    with_rig(|rig| {
        rig.connect("client:4000", "node:8080", "web:80");
        rig.send(At::World, udp("client:4000", "node:8080")).sent();
        for kind in ERRORS {
            for about in [
                tcp("client:4000", "web:80", "P."),
                udp("client:4000", "web:80"),
            ] {
                let packet = error("web", "client", kind, &about);
                let quoted = ("client:4000", "node:8080");
                arrives(rig, At::Web, packet, "node", "client", quoted);
            }
        }
    });
}

#[test]
fn from_a_container_about_an_answer_that_it_no_longer_wants_reaches_the_server() {
    with_rig(|rig| {
        rig.send(At::Web, udp("web:5353", "server:53")).sent();
        let packet = error(
            "web",
            "server",
            PortUnreachable,
            &udp("server:53", "web:5353"),
        );
        let quoted = ("server:53", "node:5353");
        arrives(rig, At::Web, packet, "node", "server", quoted);
    });
}

#[test]
fn in_a_hairpin() {
    with_rig(|rig| {
        rig.send(At::Peer, udp("peer:4000", "node:8080")).sent();
        let packet = error("web", "peer", PortUnreachable, &udp("peer:4000", "web:80"));
        let quoted = ("peer:4000", "node:8080");
        arrives(rig, At::Web, packet, "node", "peer", quoted);
        // Its own publish: what it refuses it had asked for itself.
        rig.send(At::Web, udp("web:4000", "node:8080")).sent();
        let about = udp("gateway:4000", "web:80");
        let packet = error("web", "gateway", PortUnreachable, &about);
        let quoted = ("web:4000", "node:8080");
        arrives(rig, At::Web, packet, "node", "web", quoted);
    });
}

#[test]
fn a_quote_cut_short_is_enough() {
    with_rig(|rig| {
        rig.send(At::Web, tcp("web:20000", "server:443", "S"))
            .sent();
        rig.send(At::Web, udp("web:5353", "server:53")).sent();
        for (about, quoted) in [
            (
                tcp("node:20000", "server:443", "P.").payload(&[7; 999]),
                ("web:20000", "server:443"),
            ),
            (
                udp("node:5353", "server:53").payload(&[7; 999]),
                ("web:5353", "server:53"),
            ),
        ] {
            let whole = about.ip();
            let header = whole.len() - 999 - if quoted.1.ends_with("443") { 20 } else { 8 };
            // Eight bytes of the transport header are all that RFC 792 asks for.
            for bytes in [8, 9, 20, 33, 500] {
                let cut = &whole[..header + bytes];
                let (from, to) = (crate::rig::ip("router"), crate::rig::ip("node"));
                let packet =
                    Packet::icmp_error(&from.to_string(), &to.to_string(), TimeExceeded, cut);
                arrives(rig, At::World, packet, "router", "web", quoted);
            }
            for bytes in [0, 3] {
                let cut = &whole[..header + bytes];
                let (from, to) = (crate::rig::ip("router"), crate::rig::ip("node"));
                let packet =
                    Packet::icmp_error(&from.to_string(), &to.to_string(), TimeExceeded, cut);
                rig.send(At::World, packet).passed();
            }
        }
    });
}

#[test]
fn a_quoted_datagram_without_checksum_stays_without() {
    with_rig_in(Family::V4, |rig| {
        rig.send(At::Web, udp("web:5353", "server:53").udp_without_checksum())
            .sent();
        let about = udp("node:5353", "server:53").udp_without_checksum();
        let seen = rig
            .send(At::World, error("router", "node", TimeExceeded, &about))
            .seen();
        assert_eq!(seen.quote().transport_checksum, Some(0));
    });
}

#[test]
fn a_quoted_packet_with_options_is_known() {
    with_rig_in(Family::V4, |rig| {
        rig.send(At::Web, udp("web:5353", "server:53")).sent();
        let about = udp("node:5353", "server:53").ip_options(&[7, 7, 4, 0, 0, 0, 0, 1]);
        let packet = error("router", "node", TimeExceeded, &about);
        let quoted = ("web:5353", "server:53");
        arrives(rig, At::World, packet, "router", "web", quoted);
    });
}

#[test]
fn about_nothing_of_ours_is_nobodys() {
    with_rig(|rig| {
        rig.send(At::Web, udp("web:5353", "server:53")).sent();
        for kind in ERRORS {
            for packet in [
                // Another port, destination, protocol; another direction.
                error("router", "node", kind, &udp("node:5354", "server:53")),
                error("router", "node", kind, &udp("node:5353", "client:53")),
                error("router", "node", kind, &tcp("node:5353", "server:53", "S")),
                error("router", "node", kind, &udp("server:53", "node:5353")),
                error("router", "node", kind, &pong("node", "server", 5353)),
                // To another address than the quoted packet came from.
                error("router", "gateway", kind, &udp("node:5353", "server:53")),
            ] {
                rig.send(At::World, packet).passed();
            }
            for about in [udp("server:53", "web:5354"), udp("web:5353", "server:53")] {
                rig.send(At::Web, error("web", "server", kind, &about))
                    .dropped(Drop::Untranslatable);
            }
            // About a flow of its neighbour.
            rig.send(
                At::Peer,
                error("peer", "server", kind, &udp("server:53", "web:5353")),
            )
            .dropped(Drop::Untranslatable);
        }
    });
}

#[test]
fn about_an_error_goes_nowhere() {
    with_rig(|rig| {
        rig.send(At::Web, udp("web:5353", "server:53")).sent();
        let inner = error(
            "node",
            "server",
            PortUnreachable,
            &udp("server:53", "node:5353"),
        );
        rig.send(At::World, error("router", "node", TimeExceeded, &inner))
            .passed();
    });
}

#[test]
fn changes_nothing_in_a_flow() {
    with_rig(|rig| {
        rig.connect("client:4000", "node:8080", "web:80");
        rig.send(At::Web, udp("web:5353", "server:53")).sent();
        let before = rig.entries();
        rig.next_tick();
        for kind in ERRORS {
            rig.send(
                At::World,
                error(
                    "router",
                    "node",
                    kind,
                    &tcp("node:8080", "client:4000", "."),
                ),
            )
            .sent();
            rig.send(
                At::World,
                error("router", "node", kind, &udp("node:5353", "server:53")),
            )
            .sent();
            rig.send(
                At::Web,
                error("web", "client", kind, &tcp("client:4000", "web:80", ".")),
            )
            .sent();
        }
        let mut after = rig.entries();
        for entries in [&mut after.0, &mut after.1] {
            for (_, flow) in entries.iter_mut() {
                // The way out may have been asked for again.
                flow.routed = 0;
            }
        }
        let mut before = before;
        for entries in [&mut before.0, &mut before.1] {
            for (_, flow) in entries.iter_mut() {
                flow.routed = 0;
            }
        }
        let sorted = |mut entries: Vec<_>| {
            entries.sort_by_key(|(key, _): &(netfw_common::tuple::Tuple6, _)| {
                (key.zone, key.sport.get())
            });
            entries
        };
        assert_eq!(
            (sorted(before.0), sorted(before.1)),
            (sorted(after.0), sorted(after.1))
        );
    });
}
