//! SCTP with a real stack at both ends, and protocols without ports.

use std::{net::IpAddr, time::Duration};

use netfw_tests::{
    raw::RawSocket,
    sctp::{Association, ECHO, echo_server},
    topology::{CLIENT, FAR, FAR6, NODE, NODE_OUTSIDE, NODE6, NODE6_OUTSIDE, WORLD, WORLD6},
    wait_until,
};
use serde_json::Value;

use crate::setting::{SOON, Site, attach, drops};

const GRE: u8 = 47;
const ESP: u8 = 50;
const IN_VAIN: Duration = Duration::from_millis(300);

/// Talks on it, by messages of all lengths.
#[track_caller]
fn talk(association: &mut Association) {
    for length in 1..70 {
        let line = "x".repeat(length);
        assert_eq!(association.ask(&line).as_ref(), Some(&line));
    }
}

/// The flows of SCTP, as `flow ls` tells, but for those of attempts before the server was there.
fn flows(site: &Site) -> Vec<Value> {
    let Value::Array(mut flows) = site.agent.json(&["flow", "ls"]) else {
        panic!("no list");
    };
    flows.retain(|flow| flow["protocol"] == "sctp" && flow["state"] != "close");
    flows
}

#[test]
fn an_association_with_a_publish() {
    let site = &Site::new(&["2905:7/sctp"]);
    let _server = echo_server(&site.web);
    for node in [NODE, NODE6] {
        let mut association = Association::open(&site.lab.client, (node, 2905));
        talk(&mut association);
        let [flow] = &flows(site)[..] else {
            panic!("one flow: {:?}", flows(site));
        };
        assert_eq!(flow["state"], "established", "{flow}");
        assert_eq!(flow["original"]["dport"], 2905, "{flow}");
        assert_eq!(flow["reply"]["sport"], ECHO, "{flow}");
        assert_eq!(flow["origin"], "publish", "{flow}");
        assert!(association.close(), "in good order");
        wait_until("the end to be noticed", SOON, || {
            flows(site).iter().all(|flow| flow["state"] == "time_wait")
        });
        site.agent.netfw(&["flow", "flush"]);
    }
    assert_eq!(site.lab.node.run(&["conntrack", "-L"]).trim(), "");
}

#[test]
fn an_association_with_the_world() {
    let site = &Site::new(&[]);
    let _server = echo_server(&site.lab.world);
    for (to, node) in [(WORLD, NODE_OUTSIDE), (WORLD6, NODE6_OUTSIDE)] {
        let mut association = Association::open(&site.web, (to, ECHO));
        talk(&mut association);
        let [flow] = &flows(site)[..] else {
            panic!("one flow: {:?}", flows(site));
        };
        assert_eq!(flow["reply"]["dst"], node.to_string(), "{flow}");
        assert!(association.close(), "in good order");
        site.agent.netfw(&["flow", "flush"]);
    }
}

#[test]
fn an_association_with_a_neighbours_publish() {
    let site = &Site::new(&["2905:7/sctp"]);
    let _server = echo_server(&site.web);
    let second = site.lab.container("second");
    attach(&site.agent, "second", &second, &[]);
    for node in [NODE, NODE6] {
        let mut association = Association::open(&second, (node, 2905));
        talk(&mut association);
        assert!(association.close(), "in good order");
    }
}

/// Whom `from` hears from, once `to` has been asked and answers.
#[track_caller]
fn exchange(from: &RawSocket, to: &RawSocket, at: IpAddr, seen_as: IpAddr) {
    from.send(at, b"a question");
    let (peer, question) = to.receive(SOON).expect("it arrives");
    assert_eq!((peer, &*question), (seen_as, &b"a question"[..]));
    to.send(peer, b"an answer");
    let (peer, answer) = from.receive(SOON).expect("it comes back");
    assert_eq!((peer, &*answer), (at, &b"an answer"[..]));
}

#[test]
fn a_protocol_without_ports_is_one_containers() {
    let site = &Site::new(&[]);
    let second = site.lab.container("second");
    attach(&site.agent, "second", &second, &[]);
    for protocol in [GRE, ESP] {
        for (to, node) in [(WORLD, NODE_OUTSIDE), (WORLD6, NODE6_OUTSIDE)] {
            let world = RawSocket::new(&site.lab.world, to, protocol);
            let own = RawSocket::new(&site.web, to, protocol);
            for _ in 0..3 {
                exchange(&own, &world, to, node);
            }
            let before = drops(&site.agent, "ambiguous");
            let others = RawSocket::new(&second, to, protocol);
            others.send(to, b"me too");
            assert_eq!(world.receive(IN_VAIN), None);
            assert_eq!(drops(&site.agent, "ambiguous"), before + 1);
        }
    }
    // Another destination is another matter.
    let world = RawSocket::new(&site.lab.client, CLIENT, GRE);
    exchange(&RawSocket::new(&second, CLIENT, GRE), &world, CLIENT, NODE);
    let listed = site.agent.netfw(&["flow", "ls"]);
    assert!(
        listed.contains(&format!("{WORLD} -> {NODE_OUTSIDE} ")),
        "{listed}"
    );
}

#[test]
fn a_tunnel_of_the_node_is_nobody_elses() {
    let site = &Site::new(&[]);
    for (to, node) in [(FAR, NODE_OUTSIDE), (FAR6, NODE6_OUTSIDE)] {
        let world = RawSocket::new(&site.lab.world, to, GRE);
        let container = RawSocket::new(&site.web, to, GRE);
        container.send(to, b"me first");
        assert!(world.receive(SOON).is_some());
        // The node's packets have the source that the container's are given.
        let own = RawSocket::new(&site.lab.node, to, GRE);
        own.send(to, b"a question");
        let (peer, _) = world.receive(SOON).expect("it arrives");
        assert_eq!(peer, node);
        world.send(peer, b"an answer");
        assert!(own.receive(SOON).is_some(), "it comes back to the node");
        assert_eq!(container.receive(IN_VAIN), None);
        container.send(to, b"me again");
        assert_eq!(world.receive(IN_VAIN), None);
    }
    assert_eq!(drops(&site.agent, "ambiguous"), 2);
}
