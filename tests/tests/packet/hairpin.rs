//! Containers that use publishes of their own node.

use netfw_common::{drop::Drop, record::network_flag, tuple::proto};

use crate::rig::{At, tcp, udp, with_rig};

#[test]
fn an_internal_network_has_no_way_into_others_by_a_publish() {
    with_rig(|rig| {
        rig.rules(At::Peer, network_flag::INTERNAL);
        for packet in [
            tcp("peer:4000", "node:8080", "S"),
            udp("peer:4000", "gateway:8080"),
        ] {
            rig.send(At::Peer, packet).dropped(Drop::Internal);
        }
    });
}

#[test]
fn a_neighbours_publish_keeps_the_source() {
    with_rig(|rig| {
        for on in ["node:8080", "gateway:8080"] {
            let (from, to) = rig.send(At::Peer, tcp("peer:4000", on, "S")).sent();
            assert_eq!(to, "web:80");
            let (back, client) = rig.send(At::Web, tcp("web:80", &from, "S.")).sent();
            assert_eq!((back.as_str(), client.as_str()), (on, "peer:4000"));
            rig.send(At::Peer, tcp("peer:4000", on, ".")).sent();
        }
        let (first, _) = rig.send(At::Peer, udp("peer:4000", "node:8080")).sent();
        assert_eq!(first, "peer:4000");
    });
}

#[test]
fn its_own_publish_comes_from_the_gateway() {
    with_rig(|rig| {
        let (from, to) = rig.send(At::Web, tcp("web:4000", "node:8080", "S")).sent();
        assert_eq!((from.as_str(), to.as_str()), ("gateway:4000", "web:80"));
        let (back, client) = rig
            .send(At::Web, tcp("web:80", "gateway:4000", "S."))
            .sent();
        assert_eq!((back.as_str(), client.as_str()), ("node:8080", "web:4000"));
        let (from, to) = rig.send(At::Web, tcp("web:4000", "node:8080", ".")).sent();
        assert_eq!((from.as_str(), to.as_str()), ("gateway:4000", "web:80"));
    });
}

#[test]
fn the_gateways_name_server_is_nobodys_publish() {
    with_rig(|rig| {
        for proto in [proto::TCP, proto::UDP] {
            rig.publish("0.0.0.0", 53, proto, ("web", 80), 2);
        }
        rig.send(At::Peer, udp("peer:4000", "gateway:53")).passed();
        rig.send(At::Peer, tcp("peer:4000", "gateway:53", "S"))
            .passed();
        let (_, to) = rig.send(At::Peer, udp("peer:4000", "node:53")).sent();
        assert_eq!(to, "web:80");
    });
}

#[test]
fn link_layer_of_a_hairpin() {
    with_rig(|rig| {
        let macs = rig.macs();
        let seen = rig
            .send(At::Peer, tcp("peer:4000", "node:8080", "S"))
            .seen();
        assert_eq!(seen.macs, (macs.gateway, macs.web));
        let seen = rig.send(At::Web, tcp("web:80", "peer:4000", "S.")).seen();
        assert_eq!(seen.macs, (macs.gateway, macs.peer));
    });
}
