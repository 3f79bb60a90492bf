//! Tags that name no VLAN (VID 0, as some switches and drivers send for a priority): such a frame is
//! an untagged one to the kernel, and neither a way around netfw nor out of its reach.

use std::net::{IpAddr, UdpSocket};

use netfw_tests::{
    Namespace,
    packet::Packet,
    sockets::udp_at,
    tap::Tap,
    topology::{CLIENT, CLIENT6, NODE, NODE6, WORLD, WORLD6, mac},
    wait_until,
};
use nix::net::if_::if_nametoindex;

use crate::setting::{SOON, Site, drops};

/// 802.1Q; and what a second one in front of it looks like.
const TAG: [u8; 4] = [0x81, 0, 0, 0];

/// Sends a datagram by `from`'s `eth0`, in a frame to the node's `link` with so many tags.
#[track_caller]
fn send(site: &Site, from: &Namespace, link: &str, tags: usize, ends: [(IpAddr, u16); 2]) {
    let [source, destination] = ends.map(|end| std::net::SocketAddr::from(end).to_string());
    let packet = Packet::udp(&source, &destination)
        .macs(mac(from, "eth0"), mac(&site.lab.node, link))
        .build();
    let (macs, rest) = packet.split_at(12);
    let frame = [macs, &TAG.repeat(tags)[..], rest].concat();
    from.enter(|| {
        let index = if_nametoindex("eth0").expect("an interface");
        Tap::on(index).send(&frame);
    });
}

/// Whom the next datagram comes from.
#[track_caller]
fn next(at: &UdpSocket) -> (IpAddr, u16) {
    let (_, from) = at.recv_from(&mut [0; 64]).expect("a datagram");
    (from.ip(), from.port())
}

#[test]
fn a_tag_of_no_vlan_changes_nothing() {
    let site = Site::new(&["5300:53/udp"]);
    let Site {
        lab, web, agent, ..
    } = &site;
    for (client, node, world, own) in [
        (CLIENT, NODE, WORLD, site.ip),
        (CLIENT6, NODE6, WORLD6, site.ip6),
    ] {
        let (inside, outside) = (udp_at(web, (own, 53)), udp_at(&lab.world, (world, 53)));
        for tags in 0..2 {
            let port = 4000 + tags as u16;
            let asking = [(client, port), (node, 5300)];
            send(&site, &lab.client, "up0", tags, asking);
            assert_eq!(next(&inside), (client, port));
            send(&site, web, "netfw0", tags, [(own, port), (world, 53)]);
            assert_ne!(next(&outside).0, own, "masqueraded");

            for (reason, from, link, ends) in [
                ("spoofed-address", web, "netfw0", [(client, 9), (world, 53)]),
                (
                    "direct-access",
                    &lab.client,
                    "up0",
                    [(client, 9), (own, 53)],
                ),
            ] {
                let before = drops(agent, reason);
                send(&site, from, link, tags, ends);
                let more = || drops(agent, reason) == before + 1;
                wait_until(&format!("{reason} behind {tags} tags"), SOON, more);
            }
        }
        // Two are one too many, to whomever it is sent.
        for (from, link, ends) in [
            (web, "netfw0", [(own, 4002), (world, 53)]),
            (&lab.client, "up0", [(client, 4002), (own, 53)]),
        ] {
            let before = drops(agent, "malformed");
            send(&site, from, link, 2, ends);
            let more = || drops(agent, "malformed") == before + 1;
            wait_until("a frame with two tags to be dropped", SOON, more);
        }
    }
}
