//! What is told of packets to whoever listens. That each drop, in whatever test, is told of once and as it
//! was is the rig's to check ([`crate::rig::told`]); here is what else is in an event, and who gets which.

use netfw_common::{
    drop::Drop,
    event::{Action, Event, Filter, Side, Why, wants},
    flow::flag,
    record::network_flag,
    tuple::proto,
};
use netfw_tests::packet::{IcmpError::PortUnreachable, Packet};

use crate::rig::{
    At, Outcome, PEER_COUNTER, Rig, WEB_COUNTER, error, icmp, ip, ping, raw, tcp, udp, with_rig,
    with_traced_rig,
};

/// A list that names nobody.
const LIST: u16 = 5;

/// What a packet is dropped for, and whose it is.
type Case = (At, Packet, Drop, u32);

fn cases() -> Vec<Case> {
    let (nobody, web) = (0, WEB_COUNTER);
    vec![
        (
            At::World,
            udp("client:4000", "web:80"),
            Drop::DirectAccess,
            web,
        ),
        (
            At::World,
            udp("client:4000", "172.31.0.99:80"),
            Drop::DirectAccess,
            nobody,
        ),
        (
            At::World,
            tcp("client:4000", "node:7000", "S"),
            Drop::NotAllowed,
            web,
        ),
        (
            At::World,
            tcp("gateway:4000", "node:8080", "S"),
            Drop::Martian,
            web,
        ),
        (
            At::World,
            udp("client:4000", "node:7100"),
            Drop::NoEndpoint,
            nobody,
        ),
        (
            At::World,
            udp("client:4000", "node:8080").ttl(1),
            Drop::TtlExceeded,
            web,
        ),
        (
            At::Web,
            udp("peer:4000", "server:53"),
            Drop::SpoofedAddress,
            web,
        ),
        (At::Web, udp("web:4000", "stranger:53"), Drop::Isolated, web),
        (
            At::Web,
            tcp("web:4000", "server:80", "."),
            Drop::NoFlow,
            web,
        ),
        (
            At::Web,
            raw("web", "server", 51, &[0; 24]),
            Drop::Untranslatable,
            web,
        ),
        (
            At::Web,
            ping("web", "server", 9).ttl(1),
            Drop::TtlExceeded,
            web,
        ),
        (
            At::Peer,
            udp("peer:4000", "node:7000"),
            Drop::NotAllowed,
            PEER_COUNTER,
        ),
        (At::Egress, udp("web:4000", "server:53"), Drop::Leak, web),
    ]
}

fn prepare(rig: &mut Rig) {
    rig.publish_for(LIST, "0.0.0.0", 7000, ("web", 80));
    rig.publish("0.0.0.0", 7100, proto::UDP, ("172.31.0.77", 80), 0);
}

#[track_caller]
fn reason_of(outcome: Outcome) -> Option<Drop> {
    match outcome {
        Outcome::Dropped(reason) | Outcome::Answered(reason, _) => Some(reason),
        _ => None,
    }
}

#[test]
fn a_drop_is_told_with_whose_it_is() {
    with_rig(|rig| {
        prepare(rig);
        rig.unchecked = true;
        for (at, packet, reason, endpoint) in cases() {
            rig.told();
            let outcome = rig.send(at, packet);
            let (told, _) = rig.told();
            let [event] = told[..] else {
                panic!("{reason:?}: {told:?}");
            };
            assert_eq!(reason_of(outcome), Some(reason));
            assert_eq!((event.drop(), event.endpoint), (Some(reason), endpoint));
            assert!(event.time > 0);
        }
    });
}

#[test]
fn a_ping_that_is_dropped_is_told_with_type_and_identifier() {
    with_rig(|rig| {
        rig.unchecked = true;
        rig.send(At::Web, ping("web", "stranger", 77))
            .dropped(Drop::Isolated);
        let event = rig.told().0[0];
        assert_eq!((event.proto, event.before.sport.get()), (icmp(), 77));
        let request = if icmp() == proto::ICMP { 8 } else { 128 };
        assert_eq!((event.icmp_type, event.icmp_code), (request, 0));
    });
}

/// The events of a packet, by the filters.
fn told(rig: &mut Rig, filters: &[Filter], at: At, packet: &Packet) -> Vec<Event> {
    rig.listen(filters);
    rig.send(at, packet.clone());
    rig.events()
}

#[test]
fn who_does_not_listen_is_not_told() {
    with_rig(|rig| {
        rig.unchecked = true;
        let packet = &udp("client:4000", "web:80");
        let side = |name: &str, port: u16| {
            let addr = match ip(name) {
                std::net::IpAddr::V4(ip) => netfw_common::addr::Ip6::from_mapped(ip.into()),
                std::net::IpAddr::V6(ip) => ip.into(),
            };
            let ones = netfw_common::addr::Be32::new(u32::MAX);
            Side {
                addr,
                mask: netfw_common::addr::Ip6([ones; 4]),
                port: netfw_common::addr::Be16::new(port),
                port_mask: u16::MAX,
            }
        };
        let all = Filter::ALL_DROPS;
        let wanted = |filter: Filter| (filter, 1);
        let not = |filter: Filter| (filter, 0);
        for (filter, events) in [
            wanted(all),
            wanted(Filter {
                endpoint: WEB_COUNTER,
                ..all
            }),
            wanted(Filter {
                from: side("client", 4000),
                to: side("web", 80),
                ..all
            }),
            wanted(Filter {
                reasons: 1 << Drop::DirectAccess as u32,
                ..all
            }),
            not(Filter {
                reasons: !(1 << Drop::DirectAccess as u32),
                ..all
            }),
            not(Filter {
                endpoint: PEER_COUNTER,
                ..all
            }),
            not(Filter {
                from: side("client", 4001),
                ..all
            }),
            not(Filter {
                to: side("peer", 80),
                ..all
            }),
            not(Filter {
                proto: proto::TCP,
                proto_mask: 0xff,
                ..all
            }),
            not(Filter {
                wants: wants::TRACES,
                ..all
            }),
        ] {
            // Beside one that gets nothing.
            let filters = [
                Filter {
                    wants: wants::NOTHING,
                    ..all
                },
                filter,
            ];
            let told = told(rig, &filters, At::World, packet);
            assert_eq!(told.len(), events, "{filter:?}");
            assert!(told.iter().all(|event| event.filters == 0b10));
        }
        assert_eq!(told(rig, &[], At::World, packet), []);
        assert_eq!(told(rig, &[all, all], At::World, packet)[0].filters, 0b11);
    });
}

#[test]
fn a_flood_is_told_of_so_often_and_no_more() {
    with_rig(|rig| {
        rig.unchecked = true;
        let few = Filter {
            rate: 3,
            ..Filter::ALL_DROPS
        };
        rig.listen(&[few]);
        let before = rig.suppressed(0);
        for _ in 0..20 {
            rig.send(At::World, udp("client:4000", "web:80"))
                .dropped(Drop::DirectAccess);
        }
        let told = rig.events().len() as u64;
        // A tick may have begun meanwhile, or a few.
        assert!((3..20).contains(&told), "{told}");
        assert_eq!(told + rig.suppressed(0) - before, 20);
    });
}

#[test]
fn what_programs_decide_is_told_with_why() {
    with_traced_rig(|rig| {
        let to_peer = udp("web:5000", "peer:80");
        let asked = udp("client:4000", "node:8080");
        let answer = udp("web:80", "client:4000");
        let unreachable = error(
            "client",
            "node",
            PortUnreachable,
            &udp("node:8080", "client:4000"),
        );
        rig.unchecked = true;
        for (at, packet, why, action, reply) in [
            (At::World, asked.clone(), Why::New, Action::Container, false),
            (At::World, asked, Why::Known, Action::Container, false),
            (At::Web, answer, Why::Known, Action::Out, true),
            (
                At::World,
                unreachable,
                Why::Related,
                Action::Container,
                false,
            ),
            (At::Web, to_peer, Why::Neighbour, Action::Container, false),
            (
                At::Web,
                tcp("web:5000", "server:80", "S"),
                Why::New,
                Action::Out,
                false,
            ),
            (
                At::Web,
                udp("web:5000", "node:53"),
                Why::NotOurs,
                Action::Pass,
                false,
            ),
            (
                At::World,
                udp("client:4000", "node:53"),
                Why::NotOurs,
                Action::Pass,
                false,
            ),
            (
                At::World,
                udp("client:4000", "node:53").vlan(7),
                Why::NotOurs,
                Action::Pass,
                false,
            ),
            (
                At::Egress,
                udp("node:53", "client:4000"),
                Why::NoLeak,
                Action::Pass,
                false,
            ),
        ] {
            rig.told();
            rig.send(at, packet);
            let (_, told) = rig.told();
            let event = told.last().expect("an event");
            let flow = (event.flow & flag::REPLY != 0, event.counter != 0);
            assert_eq!(
                (event.why, event.action),
                (why as u8, action as u8),
                "{why:?}, {action:?}: {told:?}"
            );
            let by_flow = matches!(why, Why::New | Why::Known | Why::Related);
            assert_eq!(flow, (reply, by_flow), "{event:?}");
            assert_eq!(
                event.to != 0,
                matches!(action, Action::Container | Action::Out)
            );
        }
        rig.close_uplink();
        rig.told();
        rig.send(At::World, udp("client:4001", "node:8080"))
            .passed();
        // XDP may know the uplink's address for the rest of the tick.
        let (_, told) = rig.told();
        let last = told.last().expect("an event");
        assert_eq!(last.why, Why::Closed as u8, "{told:?}");
    });
}

/// A bit of each kind of packet, checked by the rig as in any other test: tracing makes no difference.
#[test]
fn tracing_changes_nothing() {
    with_traced_rig(|rig| {
        prepare(rig);
        for (at, packet, reason, _) in cases() {
            assert_eq!(reason_of(rig.send(at, packet)), Some(reason));
        }
        let source = rig.connect("client:4000", "node:8080", "web:80");
        let (client, node) = rig.send(At::Web, tcp("web:80", &source, ".")).sent();
        assert_eq!(
            (client.as_str(), node.as_str()),
            ("node:8080", "client:4000")
        );
        let (from, _) = rig.send(At::Web, udp("web:5000", "server:53")).sent();
        assert_eq!(from, "node:5000");
        rig.send(At::World, udp("server:53", "node:5000")).sent();
        rig.send(At::Web, udp("web:5000", "peer:53")).sent();
        rig.rules(At::Web, network_flag::INTERNAL);
        rig.send(At::Web, udp("web:5001", "server:53"))
            .dropped(Drop::Internal);
    });
}
