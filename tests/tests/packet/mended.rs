//! Mended: each test is named after what went wrong once.

use netfw_common::{
    flow::{flag, state},
    tuple::zone,
};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::rig::{At, Family, at, family, icmp, raw, tcp, udp, with_rig, with_rig_in};

#[test]
fn closed_connections_do_not_fill_the_table() {
    with_rig(|rig| {
        for port in 4000..4032 {
            let client = format!("client:{port}");
            rig.connect(&client, "node:8080", "web:80");
            rig.send(At::World, tcp(&client, "node:8080", "F.")).sent();
            rig.send(At::Web, tcp("web:80", &client, "F.")).sent();
            rig.send(At::World, tcp(&client, "node:8080", ".")).sent();
        }
        rig.connect("client:5000", "node:8080", "web:80");
    });
}

#[test]
fn a_closed_connection_gives_its_port_back() {
    with_rig(|rig| {
        rig.configure(|config| (config.port_min, config.port_max) = (2000, 2001));
        for source in ["web:1", "web:2"] {
            let (from, _) = rig.send(At::Web, tcp(source, "server:443", "S")).sent();
            rig.send(At::World, tcp("server:443", &from, "S.")).sent();
            rig.send(At::Web, tcp(source, "server:443", ".")).sent();
            rig.send(At::Web, tcp(source, "server:443", "F.")).sent();
            rig.send(At::World, tcp("server:443", &from, "F.")).sent();
            rig.send(At::Web, tcp(source, "server:443", ".")).sent();
        }
        rig.send(At::Web, tcp("web:3", "server:443", "S")).sent();
    });
}

#[test]
fn an_orphan_takes_nobody_with_it() {
    with_rig(|rig| {
        rig.send(At::Web, udp("web:5353", "server:53")).sent();
        let (_, embryos) = rig.entries();
        let (key, _) = *embryos.iter().find(|(_, f)| f.has(flag::REPLY)).unwrap();
        rig.evict("EMBRYOS", key); // as the LRU may
        let (from, _) = rig.send(At::Peer, udp("peer:5353", "server:53")).sent();
        assert_eq!(from, "node:5353");
        // web speaks again: its orphan goes, peer's flow must stay.
        rig.send(At::Web, udp("web:5353", "server:53")).sent();
        let (_, to) = rig.send(At::World, udp("server:53", "node:5353")).sent();
        assert_eq!(to, "peer:5353");
    });
}

#[test]
fn an_assured_orphan_does_not_block_its_flow() {
    with_rig(|rig| {
        rig.connect("client:4000", "node:8080", "web:80");
        let (flows, _) = rig.entries();
        let (key, _) = *flows.iter().find(|(k, _)| k.zone == zone::WORLD).unwrap();
        rig.evict("FLOWS", key); // an agent killed between the two deletions
        rig.connect("client:4000", "node:8080", "web:80");
    });
}

#[test]
fn an_answer_to_the_nodes_own_query_is_the_nodes() {
    with_rig(|rig| {
        rig.publish("0.0.0.0", 45000, 17, ("web", 80), 2);
        let s = std::net::UdpSocket::bind(at("node:45000")).unwrap();
        s.connect(at("server:53")).unwrap();
        rig.send(At::World, udp("server:53", "node:45000")).passed();
    });
}

#[test]
fn a_new_connection_over_a_half_closed_one_lives_as_long() {
    with_rig(|rig| {
        rig.connect("client:4000", "node:8080", "web:80");
        rig.send(At::World, tcp("client:4000", "node:8080", "F."))
            .sent();
        // The server is gone; it comes back; the client uses its port again.
        rig.connect("client:4000", "node:8080", "web:80");
        let (flows, _) = rig.entries();
        assert!(
            flows.iter().all(|(_, f)| f.state == state::ESTABLISHED),
            "{flows:?}"
        );
    });
}

#[test]
fn metadata_services_are_masqueraded() {
    with_rig_in(Family::V4, |rig| {
        rig.send(At::Web, tcp("web:20000", "169.254.169.254:80", "S"))
            .sent();
    });
}

#[test]
fn forged_reset_and_syn_demote() {
    with_rig(|rig| {
        rig.connect("client:4000", "node:8080", "web:80");
        rig.send(At::World, tcp("client:4000", "node:8080", "R"))
            .sent();
        rig.send(At::World, tcp("client:4000", "node:8080", "S"))
            .sent();
        for _ in 0..3 {
            rig.send(At::World, tcp("client:4000", "node:8080", "P."))
                .sent();
            rig.send(At::Web, tcp("web:80", "client:4000", "P.")).sent();
        }
        assert_eq!(rig.entries().0.len(), 2, "still assured");
    });
}

#[test]
fn a_gateway_of_the_other_family_is_found() {
    with_rig_in(Family::V4, |rig| {
        rig.ip_cmd("route add 198.51.100.0/24 via inet6 fd00:1::2 dev up0");
        rig.send(At::Web, udp("web:5353", "198.51.100.7:53")).sent();
        let seen = rig.send(At::Web, udp("web:5353", "198.51.100.7:53")).seen();
        assert_eq!(seen.macs.1, rig.macs().client, "the gateway's");
    });
}

#[test]
fn a_publish_on_an_address_that_the_node_has_lost_serves_nobody() {
    with_rig(|rig| {
        rig.remove_local("node");
        rig.send(At::World, udp("client:4000", "node:9090"))
            .passed();
    });
}

#[test]
fn a_packet_behind_a_translated_error_is_no_error() {
    let mut cpus = CpuSet::new();
    cpus.set(0).expect("a first CPU");
    with_rig(|rig| {
        // What the programs know of a packet lies with the CPU.
        sched_setaffinity(Pid::from_raw(0), &cpus).expect("every machine has it");
        let (from, _) = rig.send(At::Web, udp("web:5353", "server:53")).sent();
        let kind = match family() {
            Family::V4 => 3,
            Family::V6 => 1,
        };
        let mut error = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        error.extend(udp(&from, "server:53").ip());
        let error = raw("router", "node", icmp(), &error);
        assert!(rig.send(At::World, error).seen().is_icmp_error());
        let (_, to) = rig.send(At::World, udp("server:53", &from)).sent();
        assert_eq!(to, "web:5353");
    });
}
