//! Path-MTU discovery: whoever sends what is too big for a link on the way is told, through
//! publish and masquerade, and a transfer goes on with packets that fit.

use std::net::{IpAddr, UdpSocket};

use netfw_tests::{
    Agent, Lab, Namespace,
    sockets::{
        any, connection, dont_fragment, exchange, listen, path_mtu, udp_at, udp_headers, udp_to,
    },
    topology::{
        CLIENT, CLIENT6, Distance, HOST, HOST6, NODE, NODE_OUTSIDE, NODE6, NODE6_OUTSIDE, WORLD,
        WORLD6,
    },
    wait_until,
};
use nix::errno::Errno;

use crate::setting::{SOON, Site, on_each_hook};

/// Of the narrow link; every other takes 1500 bytes.
const NARROW: u32 = 1300;

/// 4 MiB: they take no time where packets fit, and for ever where they do not.
const BLOCKS: u32 = 64;

/// The node as the distant host knows it, and the host.
const DISTANT: [(IpAddr, IpAddr); 2] = [(NODE_OUTSIDE, HOST), (NODE6_OUTSIDE, HOST6)];

fn narrowed(site: &Site) -> Distance {
    let distance = Distance::new(&site.lab);
    distance.narrow(NARROW);
    distance
}

/// As if nobody had sent a packet yet.
fn forget_mtus(namespace: &Namespace) {
    for family in ["-4", "-6"] {
        namespace.ip(&[family, "route", "flush", "cache"]);
    }
}

/// What the kernel of `namespace` knows of the way to `host`.
fn known_mtu(namespace: &Namespace, host: IpAddr) -> Option<u32> {
    let route = namespace.ip(&["route", "get", &host.to_string()]);
    let (_, behind) = route.split_once(" mtu ")?;
    behind.split(' ').next()?.trim().parse().ok()
}

/// Datagrams of `socket` that are one byte too big bring it an error, and then it knows what is not.
#[track_caller]
fn learns(socket: &UdpSocket, mtu: u32) {
    let peer = socket.peer_addr().expect("connected");
    let big = vec![0; mtu as usize + 1 - udp_headers(peer.ip())];
    wait_until(&format!("the way to {peer} to be known"), SOON, || {
        socket.send(&big).is_err_and(|error| {
            let raw = error.raw_os_error().map(Errno::from_raw);
            raw == Some(Errno::EMSGSIZE)
        })
    });
    assert_eq!(path_mtu(socket), mtu.cast_signed(), "to {peer}");
}

/// A datagram of `from` as big as the way takes comes to `to`.
#[track_caller]
fn fits(from: &UdpSocket, to: &UdpSocket) {
    let peer = from.peer_addr().expect("connected");
    // Of an error that came late.
    let _ = from.take_error();
    let fits = path_mtu(from).cast_unsigned() as usize - udp_headers(peer.ip());
    from.send(&vec![b'x'; fits]).expect("it fits");
    let received = to.recv(&mut [0; 16384]).expect("it arrives");
    assert_eq!(received, fits, "to {peer}");
}

/// Two sockets in a talk: of `client`, which asked `to`, and of `server`, which was asked at `port`.
/// What they send is not cut into fragments.
#[track_caller]
fn talk(client: &Namespace, to: (IpAddr, u16), server: &Namespace, port: u16) -> [UdpSocket; 2] {
    let server = udp_at(server, (any(to.0), port));
    let client = udp_to(client, 0, to);
    client.send(b"a question").expect("sent");
    let (_, from) = server.recv_from(&mut [0; 64]).expect("the question");
    server.connect(from).expect("a route");
    for socket in [&client, &server] {
        dont_fragment(socket);
    }
    [client, server]
}

#[test]
fn tracepath_finds_a_narrow_link() {
    on_each_hook(&["5300-5330:5300-5330/udp"], |site| tracepath(&site));
}

fn tracepath(site: &Site) {
    let distance = narrowed(site);
    for (node, host) in DISTANT {
        let told = site.web.run(&["tracepath", "-n", &host.to_string()]);
        assert!(told.contains("Resume: pmtu 1300 hops 5 "), "{told}");
        let port = ["tracepath", "-n", "-p", "5300", &node.to_string()];
        let told = distance.host.run(&port);
        // Three routers, the node, and the container behind it.
        assert!(told.contains("Resume: pmtu 1300 hops 5 "), "{told}");
    }
}

#[test]
fn transfers_fit_through_a_narrow_link_beyond_the_uplink() {
    on_each_hook(&["9000:9000"], |site| transfers(&site));
}

fn transfers(site: &Site) {
    let distance = narrowed(site);
    let inside = listen(&site.web, 9000);
    let outside = listen(&distance.host, 9000);
    for (node, host) in DISTANT {
        let publish = connection(&inside, &distance.host, (node, 9000));
        exchange(&publish, BLOCKS);
        assert_eq!(known_mtu(&site.web, host), Some(NARROW), "publish");
        // The host's as well: it would ask for small segments at once.
        for end in [&site.web, &distance.host] {
            forget_mtus(end);
        }
        let masquerade = connection(&outside, &site.web, (host, 9000));
        assert_eq!(known_mtu(&site.web, host), None);
        exchange(&masquerade, BLOCKS);
        assert_eq!(known_mtu(&site.web, host), Some(NARROW), "masquerade");
    }
}

#[test]
fn datagrams_learn_of_a_narrow_link_beyond_the_uplink() {
    on_each_hook(&["5300:5300/udp"], |site| datagrams(&site));
}

fn datagrams(site: &Site) {
    let distance = narrowed(site);
    for (node, host) in DISTANT {
        let [client, server] = talk(&site.web, (host, 53), &distance.host, 53);
        learns(&client, NARROW);
        fits(&client, &server);
        forget_mtus(&site.web);
        // What the container answers to a publish's client.
        let [client, server] = talk(&distance.host, (node, 5300), &site.web, 5300);
        learns(&server, NARROW);
        fits(&server, &client);
    }
}

/// A container whose network takes no more than `mtu` bytes.
fn in_a_network_of(agent: &Agent, lab: &Lab, mtu: u32, publishes: &[&str]) -> Namespace {
    let mtu = mtu.to_string();
    agent.netfw(&["network", "create", "other", "--ipv6", "--mtu", &mtu]);
    let container = lab.container("other");
    let mut words = vec!["endpoint", "add", "other", "--network", "other"];
    words.extend(["--netns", container.name()]);
    for publish in publishes {
        words.extend(["-p", publish]);
    }
    agent.netfw(&words);
    container
}

/// Has `namespace` announce on its routes that it takes segments of this size, as if its narrow
/// link were not its own.
fn announce_segments(namespace: &Namespace, size: u32) {
    for family in ["-4", "-6"] {
        for route in namespace.ip(&[family, "route"]).lines() {
            let mut words = vec![family, "route", "change"];
            words.extend(route.split_whitespace());
            let size = size.to_string();
            words.extend(["advmss", &size]);
            namespace.ip(&words);
        }
    }
}

#[test]
fn a_narrow_link_before_the_container_is_made_known() {
    on_each_hook(&[], |site| before_the_container(&site));
}

fn before_the_container(site: &Site) {
    let Site {
        lab, agent, web, ..
    } = site;
    let small = in_a_network_of(agent, lab, NARROW, &["9000:9000", "5300:5300/udp"]);
    announce_segments(&small, 1440);
    let listener = listen(&small, 9000);
    let outside = listen(&lab.world, 9000);
    for (node, world) in [(NODE, WORLD), (NODE6, WORLD6)] {
        exchange(&connection(&listener, &lab.client, (node, 9000)), BLOCKS);
        assert_eq!(known_mtu(&lab.client, node), Some(NARROW), "publish");
        exchange(&connection(&outside, &small, (world, 9000)), BLOCKS);
        // A container of another network, whose own link is wider.
        exchange(&connection(&listener, web, (node, 9000)), BLOCKS);
        assert_eq!(known_mtu(web, node), Some(NARROW), "hairpin");
        for end in [&lab.client, web] {
            forget_mtus(end);
        }

        for from in [&lab.client, web] {
            let [client, server] = talk(from, (node, 5300), &small, 5300);
            learns(&client, NARROW);
            fits(&client, &server);
        }
        // Answers to what was masqueraded.
        let [client, server] = talk(&small, (world, 53), &lab.world, 53);
        learns(&server, NARROW);
        fits(&server, &client);
    }
}

#[test]
fn jumbo_frames_pass_and_are_refused_where_the_next_link_is_small() {
    on_each_hook(&[], |site| jumbo(&site));
}

fn jumbo(site: &Site) {
    const JUMBO: u32 = 9000;
    let Site { lab, agent, .. } = site;
    for (end, device) in [(&lab.node, "up1"), (&lab.world, "eth0")] {
        end.ip(&["link", "set", device, "mtu", &JUMBO.to_string()]);
    }
    let large = in_a_network_of(agent, lab, JUMBO, &["9000:9000"]);
    announce_segments(&lab.client, 8900);
    let inside = listen(&large, 9000);
    for (outside, [there, node], mtu) in [
        (&lab.world, [WORLD, NODE_OUTSIDE], JUMBO),
        (&lab.world, [WORLD6, NODE6_OUTSIDE], JUMBO),
        (&lab.client, [CLIENT, NODE], 1500),
        (&lab.client, [CLIENT6, NODE6], 1500),
    ] {
        let [client, server] = talk(&large, (there, 53), outside, 53);
        learns(&client, mtu);
        fits(&client, &server);
        fits(&server, &client);
        drop((client, server));
        let listener = listen(outside, 9001);
        exchange(&connection(&listener, &large, (there, 9001)), BLOCKS);
        forget_mtus(&large);
        exchange(&connection(&inside, outside, (node, 9000)), BLOCKS);
        assert_eq!(known_mtu(&large, there).unwrap_or(JUMBO), mtu, "{there}");
    }
}
