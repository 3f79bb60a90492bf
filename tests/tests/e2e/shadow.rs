//! A container that claims a port or an identifier first does not get what is for the node.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    time::Duration,
};

use netfw_tests::{
    programs::{Nginx, UdpEcho, ask_within, curl},
    topology::{CLIENT, CLIENT6, NODE, NODE6},
    wait_until,
};

use crate::setting::{SOON, Site};

const FAMILIES: [(IpAddr, IpAddr); 2] = [(NODE, CLIENT), (NODE6, CLIENT6)];

/// `curl` from a port of its own; its exit status.
fn curl_from(namespace: &netfw_tests::Namespace, port: &str, to: IpAddr, at: u16) -> Option<i32> {
    let url = format!("http://{}/", std::net::SocketAddr::new(to, at));
    let words = ["--silent", "--max-time", "3", "--local-port", port, &url];
    let status = namespace.command("curl").args(words).output();
    status.expect("curl can be started").status.code()
}

#[test]
fn a_server_that_starts_later() {
    let Site { lab, web, .. } = &Site::new(&[]);
    // curl binds to both families' port at once.
    let ports = [("5432", 4000), ("5433", 4001)];
    for ((_, client), (own, port)) in FAMILIES.into_iter().zip(ports) {
        // Refused: nobody is there yet.
        assert_eq!(curl_from(web, own, client, port), Some(7));
    }
    let server = Nginx::start(&lab.node, "node", &[5432, 5433]);
    for ((node, _), (own, port)) in FAMILIES.into_iter().zip(ports) {
        let own = own.parse().expect("a port");
        let asked = curl_from(&lab.client, &port.to_string(), node, own);
        assert_eq!(asked, Some(0), "{node}");
        assert_eq!(curl(&lab.client, node, own, "/"), Some(server.page(own)));
    }
}

#[test]
fn a_datagram_socket_that_is_opened_later() {
    let Site { lab, web, .. } = &Site::new(&[]);
    for (node, client) in FAMILIES {
        let any: IpAddr = if node.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let own = web.enter(|| UdpSocket::bind((any, 4500)).expect("free"));
        let peer = lab
            .client
            .enter(|| UdpSocket::bind((client, 4500)).expect("free"));
        own.set_read_timeout(Some(SOON)).expect("not 0");
        peer.set_read_timeout(Some(SOON)).expect("not 0");
        let mut buffer = [0; 64];
        for _ in 0..3 {
            own.send_to(b"hello", (client, 4500)).expect("sent");
            let (_, from) = peer.recv_from(&mut buffer).expect("masqueraded");
            assert_eq!(from, (node, 4500).into(), "the port is kept");
            peer.send_to(b"hello", from).expect("sent");
            own.recv_from(&mut buffer).expect("answered");
        }
        let _later = UdpEcho::start(&lab.node, (any, 4500));
        wait_until("the node's socket to be asked", SOON, || {
            // The container does not give up.
            own.send_to(b"hello", (client, 4500)).expect("sent");
            let soon = Duration::from_millis(300);
            ask_within(soon, &peer, (node, 4500), "x").is_some_and(|answer| answer.ends_with("x"))
        });
    }
}

#[test]
fn a_ping_with_the_same_identifier() {
    let Site { lab, web, .. } = &Site::new(&[]);
    for (_, client) in FAMILIES {
        let client = client.to_string();
        let words = ["ping", "-n", "-e", "3000", "-i", "0.2", "-W", "1"];
        let ping = |more: &[&'static str]| [&words[..], more].concat();
        let mut from_web = ping(&["-c", "1000"]);
        from_web.push(&client);
        let busy = web.spawn(&from_web);
        wait_until("the container to be answered", SOON, || {
            busy.stdout().contains("icmp_seq=3")
        });
        let mut from_node = ping(&["-c", "5"]);
        from_node.push(&client);
        let told = lab.node.run(&from_node);
        assert!(told.contains(" 0% packet loss"), "{told}");
        let answers = busy.stdout().lines().count();
        wait_until("the container to be answered still", SOON, || {
            busy.stdout().lines().count() > answers + 2
        });
    }
}
