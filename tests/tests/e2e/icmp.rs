//! ICMP errors reach whom they are for: traceroute sees every hop, a connected socket is refused.

use std::net::IpAddr;

use netfw_tests::{
    Namespace,
    sockets::{any, limit_hops, tcp_from, udp_at, udp_to},
    topology::{
        Distance, HOST, HOST6, NODE, NODE_OUTSIDE, NODE6, NODE6_OUTSIDE, WORLD, WORLD6, on_link,
    },
};
use nix::errno::Errno;

use crate::setting::{Site, attach, on_each_hook, text};

/// Who answers on the way, hop by hop, as traceroute finds them.
#[track_caller]
fn hops(from: &Namespace, options: &[&str], to: IpAddr) -> Vec<String> {
    let to = to.to_string();
    let mut words = vec!["traceroute", "-n", "-q1", "-w5"];
    words.extend(options);
    words.push(&to);
    let told = from.run(&words);
    let lines = told.lines().skip(1);
    lines
        .filter_map(|line| line.split_whitespace().nth(1))
        .map(str::to_owned)
        .collect()
}

#[test]
fn traceroute_shows_the_node_and_the_hops_after_it() {
    on_each_hook(&[], |site| traceroute_out(&site));
}

fn traceroute_out(site: &Site) {
    let _distance = Distance::new(&site.lab);
    let endpoint = site.agent.json(&["endpoint", "inspect", "web"]);
    for (family, gateway, host) in [("-4", "gateway", HOST), ("-6", "gateway6", HOST6)] {
        let index = usize::from(host.is_ipv6());
        let routers = [2, 3, 4, 5].map(|link| on_link(link, 2)[index].to_string());
        let mut way = vec![text(&endpoint[gateway]).to_owned()];
        way.extend(routers);
        for method in ["-I", "-U", "-T"] {
            assert_eq!(hops(&site.web, &[family, method], host), way, "{method}");
        }
        // As ever: a port of its own for each packet, where nobody listens.
        assert_eq!(hops(&site.web, &[family], host), way);
    }
}

#[test]
fn traceroute_to_a_publish_shows_the_node_and_ends_in_the_container() {
    on_each_hook(&["8080:80", "5300:5300/udp"], |site| traceroute_in(&site));
}

fn traceroute_in(site: &Site) {
    let distance = Distance::new(&site.lab);
    for (family, node) in [("-4", NODE_OUTSIDE), ("-6", NODE6_OUTSIDE)] {
        let index = usize::from(node.is_ipv6());
        let routers = [5, 4, 3].map(|link| on_link(link, 1)[index].to_string());
        let mut way = routers.to_vec();
        // The node as a router, and the container by the node's name.
        way.extend([node.to_string(), node.to_string()]);
        for probe in [["-T", "-p", "8080"], ["-U", "-p", "5300"]] {
            let options = [&[family], &probe[..]].concat();
            assert_eq!(hops(&distance.host, &options, node), way, "{probe:?}");
        }
        // The node itself, where nothing is published.
        let options = [family, "-U", "-p", "5301"];
        assert_eq!(hops(&distance.host, &options, node), way[..4]);
    }
}

/// A datagram brings its connected socket this error.
#[track_caller]
pub fn fails(what: &str, from: &Namespace, to: (IpAddr, u16), hops: u8, error: Errno) {
    let socket = udp_to(from, 0, to);
    limit_hops(&socket, hops);
    socket.send(b"is anybody there?").expect("sent");
    let answer = socket.recv(&mut [0; 64]);
    let raw = answer.err().and_then(|error| error.raw_os_error());
    assert_eq!(raw.map(Errno::from_raw), Some(error), "{what}: {to:?}");
}

#[test]
fn a_connected_socket_is_refused_where_nobody_listens() {
    on_each_hook(&["5300:5300/udp", "9000:9000"], |site| {
        nobody_listens(&site)
    });
}

fn nobody_listens(site: &Site) {
    let Site {
        lab, web, agent, ..
    } = site;
    let app = lab.container("app");
    attach(agent, "app", &app, &[]);
    let nodes = [(NODE, WORLD, site.ip), (NODE6, WORLD6, site.ip6)];
    for (node, world, own) in nodes {
        for (what, from, to) in [
            ("publish", &lab.client, node),
            ("masquerade", web, world),
            ("a neighbour's publish", &app, node),
            ("its own publish", web, node),
            ("a neighbour", &app, own),
        ] {
            fails(what, from, (to, 5300), 64, Errno::ECONNREFUSED);
        }
        // A TCP connection by a reset, as well.
        for (from, to) in [(&lab.client, node), (web, world), (&app, node), (web, node)] {
            let refused = tcp_from(from, 0, (to, 9000)).expect_err("nobody is there");
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        }
        // Nothing is left in the way of who comes later.
        let bound = udp_at(web, (any(node), 5300));
        let client = udp_to(&lab.client, 0, (node, 5300));
        client.send(b"now?").expect("sent");
        let (_, from) = bound.recv_from(&mut [0; 64]).expect("the question");
        bound.send_to(b"yes", from).expect("sent");
        assert_eq!(client.recv(&mut [0; 64]).expect("an answer"), 3);
    }
}
