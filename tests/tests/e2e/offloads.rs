//! Packets with their checksums yet to be computed and their segments yet to be cut, by whichever
//! device on the way does not leave it to the next one.

use std::net::UdpSocket;

use netfw_tests::{
    Namespace,
    sockets::{any, burst, connection, exchange, listen, set, udp_at, udp_to},
    topology::{NODE, NODE6, WORLD, WORLD6, complain},
};
use nix::{errno::Errno, sys::socket::sockopt};

use crate::{
    icmp::fails,
    setting::{Site, text},
};

/// 1 MiB.
const BLOCKS: u32 = 16;

/// Two sockets in a talk: of `client`, which asked `to`, and of `server`, which was asked at `port`.
#[track_caller]
fn talk(client: &Namespace, to: (std::net::IpAddr, u16), server: &Namespace) -> [UdpSocket; 2] {
    let server = udp_at(server, (any(to.0), to.1));
    let client = udp_to(client, 0, to);
    client.send(b"a question").expect("sent");
    let (_, from) = server.recv_from(&mut [0; 64]).expect("the question");
    server.connect(from).expect("a route");
    [client, server]
}

/// Everything that a packet can be, both ways, through publish and masquerade.
#[track_caller]
fn everything_arrives(site: &Site, what: &str) {
    println!("{what}");
    let Site { lab, web, .. } = site;
    let (inside, outside) = (listen(web, 9000), listen(&lab.world, 9000));
    for (node, world) in [(NODE, WORLD), (NODE6, WORLD6)] {
        exchange(&connection(&inside, &lab.client, (node, 9000)), BLOCKS);
        exchange(&connection(&outside, web, (world, 9000)), BLOCKS);
        for [client, server] in [
            talk(&lab.client, (node, 5300), web),
            talk(web, (world, 5300), &lab.world),
        ] {
            for (from, to) in [(&client, &server), (&server, &client)] {
                for (rolled, size, count) in [
                    (false, 1200, 40),
                    (true, 1200, 40),
                    (false, 1, 60),
                    (false, 1400, 2),
                ] {
                    set(to, sockopt::UdpGroSegment, &rolled);
                    burst(from, to, size, count);
                }
            }
        }
        // The answers of the container, and those of the node itself.
        for (hops, error) in [(64, Errno::ECONNREFUSED), (1, Errno::EHOSTUNREACH)] {
            fails(what, &lab.client, (node, 5301), hops, error);
            fails(what, web, (world, 5301), hops, error);
        }
    }
}

#[test]
fn whoever_computes_checksums_and_cuts_segments() {
    let site = Site::new(&["9000:9000", "5300-5301:5300-5301/udp"]);
    let Site { lab, web, .. } = &site;
    for end in [web, &lab.world] {
        complain(end);
    }
    let endpoint = site.agent.json(&["endpoint", "inspect", "web"]);
    let host = text(&endpoint["host_interface"]);
    let ends = [
        (&lab.client, "eth0"),
        (&lab.node, "up0"),
        (&lab.node, "up1"),
        (&lab.world, "eth0"),
        (&lab.node, host),
        (web, "eth0"),
    ];
    let turn = |(end, device): (&Namespace, &str), feature: &str, state: &str| {
        end.run(&["ethtool", "-K", device, feature, state]);
    };
    everything_arrives(&site, "as it is");
    for feature in ["tx", "gso", "gro"] {
        let before = if feature == "gro" { "off" } else { "on" };
        let after = if feature == "gro" { "on" } else { "off" };
        for end in ends {
            turn(end, feature, after);
            everything_arrives(&site, &format!("{feature} {after} at {}", end.1));
            turn(end, feature, before);
        }
        for end in ends {
            turn(end, feature, after);
        }
        everything_arrives(&site, &format!("{feature} {after} everywhere"));
        if feature != "gro" {
            for end in ends {
                turn(end, feature, before);
            }
        }
    }
    // What the uplinks roll up, single segments to begin with.
    for end in [ends[0], ends[3], ends[5]] {
        turn(end, "tx", "off");
    }
    for feature in ["rx-udp-gro-forwarding", "rx-gro-list"] {
        for end in ends {
            turn(end, feature, "on");
        }
        everything_arrives(&site, feature);
        for end in ends {
            turn(end, feature, "off");
        }
    }
}
