//! Protocols without ports: masqueraded by address.

use netfw_common::{
    drop::Drop,
    flow::state,
    tuple::{proto, zone},
};
use netfw_tests::packet::IcmpError::{TimeExceeded, TooBig};

use crate::rig::{At, Family, Hook, error, family, ip, raw, with_rig};

const IP_IN_IP: u8 = 4;
const IPV6_IN_IP: u8 = 41;
const GRE: u8 = 47;
const ESP: u8 = 50;
const L2TP: u8 = 115;

const OTHERS: [u8; 5] = [IP_IN_IP, IPV6_IN_IP, GRE, ESP, L2TP];

/// What the protocol carries is nobody's business.
const BYTES: &[u8] = b"what it carries";

#[test]
fn a_container_speaks_and_is_answered() {
    with_rig(|rig| {
        for protocol in OTHERS {
            let seen = rig
                .send(At::Web, raw("web", "server", protocol, BYTES))
                .seen();
            assert_eq!(seen.source.ip(), ip("node"), "{protocol}");
            let seen = rig
                .send(At::World, raw("server", "node", protocol, BYTES))
                .seen();
            assert_eq!(seen.destination.ip(), ip("web"), "{protocol}");
            assert_eq!(seen.macs, (rig.macs().gateway, rig.macs().web));
            // What it carries may have a checksum that only TC knows to be yet to be filled in.
            assert!(rig.hook() == Hook::Tc || !rig.was_for_xdp(), "XDP's");
        }
        // Of anybody else it is the node's.
        rig.send(At::World, raw("client", "node", GRE, BYTES))
            .passed();
    });
}

#[test]
fn one_container_for_one_destination() {
    with_rig(|rig| {
        for protocol in OTHERS {
            rig.send(At::Web, raw("web", "server", protocol, BYTES))
                .sent();
            rig.send(At::Peer, raw("peer", "server", protocol, BYTES))
                .answered(Drop::Ambiguous);
            rig.send(At::Web, raw("web", "server", protocol, BYTES))
                .sent();
        }
        rig.send(At::Peer, raw("peer", "router", GRE, BYTES)).sent();
        let seen = rig
            .send(At::World, raw("router", "node", GRE, BYTES))
            .seen();
        assert_eq!(seen.destination.ip(), ip("peer"));
    });
}

#[test]
fn who_fell_silent_gives_way() {
    with_rig(|rig| {
        rig.timeouts(1);
        rig.send(At::Web, raw("web", "server", GRE, BYTES)).sent();
        rig.next_tick();
        rig.next_tick();
        rig.send(At::Peer, raw("peer", "server", GRE, BYTES)).sent();
        let seen = rig
            .send(At::World, raw("server", "node", GRE, BYTES))
            .seen();
        assert_eq!(seen.destination.ip(), ip("peer"));
    });
}

/// What the node says itself, by a tunnel or with IPsec, is nobody else's.
#[test]
fn a_talk_of_the_node_is_not_taken() {
    with_rig(|rig| {
        for protocol in OTHERS {
            rig.send(At::Egress, raw("node", "server", protocol, BYTES))
                .passed();
            rig.send(At::Web, raw("web", "server", protocol, BYTES))
                .answered(Drop::Ambiguous);
            rig.send(At::World, raw("server", "node", protocol, BYTES))
                .passed();
            rig.send(At::Web, raw("web", "router", protocol, BYTES))
                .sent();
        }
    });
}

#[test]
fn a_talk_of_the_node_takes_its_own_back() {
    with_rig(|rig| {
        rig.send(At::Web, raw("web", "server", GRE, BYTES)).sent();
        // The container's own packets, once they are translated.
        rig.send(At::EgressOfWeb, raw("node", "server", GRE, BYTES))
            .passed();
        rig.send(At::World, raw("server", "node", GRE, BYTES))
            .sent();
        rig.send(At::Egress, raw("node", "server", GRE, BYTES))
            .passed();
        assert_eq!(rig.entries(), (vec![], vec![]));
        rig.send(At::World, raw("server", "node", GRE, BYTES))
            .passed();
        rig.send(At::Web, raw("web", "server", GRE, BYTES))
            .answered(Drop::Ambiguous);
    });
}

#[test]
fn a_talk_of_the_node_that_is_over_is_in_nobodys_way() {
    with_rig(|rig| {
        rig.timeouts(1);
        rig.send(At::Egress, raw("node", "server", GRE, BYTES))
            .passed();
        rig.next_tick();
        rig.next_tick();
        rig.send(At::Web, raw("web", "server", GRE, BYTES)).sent();
    });
}

#[test]
fn its_flow_has_no_ports_and_udps_states() {
    with_rig(|rig| {
        rig.send(At::Web, raw("web", "server", ESP, BYTES)).sent();
        rig.send(At::World, raw("server", "node", ESP, BYTES))
            .sent();
        let (assured, embryos) = rig.entries();
        assert_eq!((assured.len(), embryos.len()), (0, 2));
        for (key, flow) in embryos {
            assert_eq!((key.sport.get(), key.dport.get()), (0, 0));
            assert_eq!((flow.sport.get(), flow.dport.get()), (0, 0));
            assert_eq!(flow.state, state::REPLIED);
            assert!([zone::WORLD, zone::CONTAINER].contains(&key.zone));
        }
        rig.send(At::Web, raw("web", "server", ESP, BYTES)).sent();
        assert_eq!(rig.entries().0.len(), 2, "assured");
    });
}

#[test]
fn errors_about_it_arrive() {
    with_rig(|rig| {
        rig.send(At::Web, raw("web", "server", GRE, BYTES)).sent();
        for kind in [TooBig(1300), TimeExceeded] {
            let about = raw("node", "server", GRE, BYTES);
            let seen = rig
                .send(At::World, error("router", "node", kind, &about))
                .seen();
            assert_eq!(seen.destination.ip(), ip("web"));
            let quote = seen.quote();
            assert_eq!(
                (quote.source.ip(), quote.destination.ip()),
                (ip("web"), ip("server"))
            );
            let about = raw("node", "server", ESP, BYTES);
            rig.send(At::World, error("router", "node", kind, &about))
                .passed();
        }
    });
}

#[test]
fn what_would_break_does_not_leave() {
    with_rig(|rig| {
        let other_icmp = match family() {
            Family::V4 => proto::ICMPV6,
            Family::V6 => proto::ICMP,
        };
        let dccp_ah_none_ospf_mobility_lite_hip = [33, 51, 59, 89, 135, 136, 139];
        for protocol in dccp_ah_none_ospf_mobility_lite_hip {
            rig.send(At::Web, raw("web", "server", protocol, &[0; 24]))
                .dropped(Drop::Untranslatable);
        }
        rig.send(At::Web, raw("web", "server", other_icmp, &[0; 24]))
            .dropped(Drop::Untranslatable);
    });
}

#[test]
fn between_containers_and_with_the_node_it_is_left_alone() {
    with_rig(|rig| {
        let seen = rig.send(At::Web, raw("web", "peer", GRE, BYTES)).seen();
        assert_eq!(seen.source.ip(), ip("web"));
        rig.send(At::Web, raw("web", "gateway", GRE, BYTES))
            .passed();
        rig.send(At::Web, raw("web", "node", GRE, BYTES)).passed();
        rig.send(At::World, raw("client", "web", GRE, BYTES))
            .dropped(Drop::DirectAccess);
    });
}
