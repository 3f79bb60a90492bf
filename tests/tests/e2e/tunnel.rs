//! Uplinks without Ethernet header.

use netfw_tests::{
    Lab, Namespace,
    programs::{Drinker, Fountain, Nginx, UdpEcho, ask, curl, ping, udp_socket_for},
    sockets::{connection, exchange, listen},
    topology::set_up,
    tunnel::Tunnel,
    xdp::told,
};
use nix::errno::Errno;
use std::net::IpAddr;

use crate::{
    icmp::fails,
    path_mtu::{fits, in_a_network_of, learns, talk},
    setting::{Site, drops},
};

/// Addresses of the tunnel's ends: the node's, and somebody's behind it.
const NEAR: [&str; 2] = ["10.9.0.1", "fd00:9::1"];
const FAR: [&str; 2] = ["10.9.0.2", "fd00:9::2"];

fn addresses(texts: [&str; 2]) -> [IpAddr; 2] {
    texts.map(|text| text.parse().expect("an address"))
}

/// A node with a tunnel to `far`, which takes no more than `mtu` bytes.
fn tunnel(lab: &Lab, far: &Namespace, mtu: u32) -> Tunnel {
    let tunnel = Tunnel::new((&lab.node, "tun0"), (far, "tun0"));
    set_up([
        (&lab.node, "tun0", addresses(NEAR)),
        (far, "tun0", addresses(FAR)),
    ]);
    for end in [&lab.node, far] {
        end.ip(&["link", "set", "tun0", "mtu", &mtu.to_string()]);
    }
    tunnel
}

#[test]
fn errors_go_through_a_tunnel_too() {
    const MTU: u32 = 1400;
    const SMALL: u32 = 1300;
    let lab = Lab::new();
    let far = lab.container("far");
    let _tunnel = tunnel(&lab, &far, MTU);
    let site = Site::in_lab(lab, &[], &["5301:5301/udp", "9001:9001"]);
    let Site {
        lab, web, agent, ..
    } = &site;
    let small = in_a_network_of(agent, lab, SMALL, &["9000:9000", "5300:5300/udp"]);
    let inside = listen(&small, 9000);
    let outside = listen(&far, 9000);
    for (near, there) in addresses(NEAR).into_iter().zip(addresses(FAR)) {
        // Of the container, of the world, and the node's own on both sides.
        fails("publish", &far, (near, 5301), 64, Errno::ECONNREFUSED);
        fails("masquerade", web, (there, 5301), 64, Errno::ECONNREFUSED);
        fails(
            "from the node, outside",
            &far,
            (near, 5301),
            1,
            Errno::EHOSTUNREACH,
        );
        fails(
            "from the node, inside",
            web,
            (there, 5301),
            1,
            Errno::EHOSTUNREACH,
        );

        let [client, server] = talk(web, (there, 5302), &far, 5302);
        learns(&client, MTU);
        fits(&client, &server);
        let [client, server] = talk(&far, (near, 5300), &small, 5300);
        learns(&client, SMALL);
        fits(&client, &server);
        exchange(&connection(&inside, &far, (near, 9000)), 16);
        exchange(&connection(&outside, web, (there, 9000)), 16);
    }
}

#[test]
fn a_tun_device_is_an_uplink_like_others() {
    let lab = Lab::new();
    let far = lab.container("far");
    let _tunnel = tunnel(&lab, &far, 1500);
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
