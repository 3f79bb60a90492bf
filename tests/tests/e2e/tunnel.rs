//! Uplinks without Ethernet header.

use netfw_tests::{
    Lab,
    programs::{Drinker, Fountain, Nginx, UdpEcho, ask, curl, ping, udp_socket_for},
    topology::{End, set_up},
    tunnel::Tunnel,
    xdp::told,
};
use std::net::IpAddr;

use crate::setting::{Site, drops};

/// Addresses of the tunnel's ends: the node's, and somebody's behind it.
const NEAR: [&str; 2] = ["10.9.0.1", "fd00:9::1"];
const FAR: [&str; 2] = ["10.9.0.2", "fd00:9::2"];

fn addresses(texts: [&str; 2]) -> [IpAddr; 2] {
    texts.map(|text| text.parse().expect("an address"))
}

#[test]
fn a_tun_device_is_an_uplink_like_others() {
    let lab = Lab::new();
    let far = lab.container("far");
    let _tunnel = Tunnel::new((&lab.node, "tun0"), (&far, "tun0"));
    let ends: [End; 2] = [
        (&lab.node, "tun0", addresses(NEAR)),
        (&far, "tun0", addresses(FAR)),
    ];
    set_up(ends);
    let site = Site::in_lab(
        lab,
        &["--xdp", "native"],
        &["8080:80", "7000:7000", "9000:9000/udp"],
    );
    let (mode, why) = told(&site.agent, "tun0");
    assert_eq!((mode, &*why), (None, "no Ethernet header"));

    let _echoes = [site.ip, site.ip6].map(|ip| UdpEcho::start(&site.web, (ip, 9000)));
    let server = Nginx::start(&far, "far", &[80]);
    for (near, far_ip) in addresses(NEAR).into_iter().zip(addresses(FAR)) {
        // A publish: the container sees the client, and masquerade: the server sees the node.
        let page = curl(&far, near, 8080, "/in");
        assert_eq!(page, Some(site.nginx.page(80)), "{near}");
        let line = site.nginx.logged("/in");
        let from = |ip: IpAddr| format!("{ip} ");
        assert!(near.is_ipv6() || line.starts_with(&from(far_ip)), "{line}");
        let path = format!("/out{}", near.is_ipv6());
        let page = curl(&site.web, far_ip, 80, &path);
        assert_eq!(page, Some(server.page(80)), "{far_ip}");
        let line = server.logged(&path);
        assert!(line.starts_with(&from(near)), "{line}");

        let socket = udp_socket_for(&far, near);
        assert!(ask(&socket, (near, 9000), "x").is_some(), "{near}");
        assert!(ping(&site.web, far_ip), "{far_ip}");
        let _inside = Fountain::start(&site.web, 7000);
        Drinker::connect(&far, (near, 7000)).drink(512);
        let _outside = Fountain::start(&far, 7000);
        Drinker::connect(&site.web, (far_ip, 7000)).drink(512);
    }
    // Those of other uplinks are there as ever.
    assert!(curl(&site.lab.client, netfw_tests::topology::NODE, 8080, "/").is_some());
    assert_eq!(drops(&site.agent, "leak"), 0);
}
