//! Large datagrams, which IP cuts into pieces. Real stacks cut them and put them together; what comes
//! in another order is made here.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use netfw_tests::{
    Namespace,
    packet::Packet,
    programs::{UdpEcho, ask, udp_socket_for},
    tap::Tap,
    testrun::ifindex,
    topology::{
        CLIENT, CLIENT6, FAR, FAR6, NODE, NODE_OUTSIDE, NODE6, NODE6_OUTSIDE, WORLD, WORLD6, mac,
    },
};

use crate::setting::{SOON, Site, attach, drops};

const LARGE: usize = 60000;

/// What fits into 1500 bytes in both families.
const PIECE: usize = 1448;

/// A message that is nowhere the same.
fn message() -> String {
    (0..LARGE as u32)
        .map(|n| char::from(b'a' + ((n * 7 + n / 251) % 26) as u8))
        .collect()
}

/// Three echo requests with as much.
fn ping(from: &Namespace, to: IpAddr) -> String {
    let to = to.to_string();
    let size = LARGE.to_string();
    from.run(&["ping", "-n", "-c3", "-i0.2", "-W3", "-s", &size, &to])
}

/// Whom a server saw, that was asked once with a large message, and answered with it.
#[track_caller]
fn asked(from: &Namespace, to: (IpAddr, u16)) -> SocketAddr {
    let message = message();
    let answer = ask(&udp_socket_for(from, to.0), to, &message);
    let answer = answer.unwrap_or_else(|| panic!("no answer from {to:?}"));
    let (peer, rest) = answer.split_once(' ').expect("PEER MESSAGE");
    assert!(rest == message, "other bytes");
    peer.parse().expect("an address")
}

#[track_caller]
fn nothing_was_lost(site: &Site) {
    for reason in ["bad-fragment", "lost-fragment", "untranslatable", "no-flow"] {
        assert_eq!(drops(&site.agent, reason), 0, "{reason}");
    }
}

#[test]
fn pings_of_60000_bytes() {
    let site = Site::new(&[]);
    for to in [WORLD, FAR, WORLD6, FAR6, NODE, NODE6] {
        let said = ping(&site.web, to);
        assert!(said.contains("60008 bytes from"), "{said}");
    }
    for to in [NODE, NODE6] {
        let said = ping(&site.lab.client, to);
        assert!(said.contains("60008 bytes from"), "{said}");
    }
    nothing_was_lost(&site);
}

#[test]
fn datagrams_of_60000_bytes() {
    let site = Site::new(&["8080:80/udp"]);
    let Site {
        agent, lab, web, ..
    } = &site;
    let app = lab.container("app");
    attach(agent, "app", &app, &[]);
    let _inside = [site.ip, site.ip6].map(|addr| UdpEcho::start(web, (addr, 80)));
    let _outside = [WORLD, WORLD6].map(|addr| UdpEcho::start(&lab.world, (addr, 53)));

    for (node, client) in [(NODE, CLIENT), (NODE6, CLIENT6)] {
        assert_eq!(asked(&lab.client, (node, 8080)).ip(), client);
        // A neighbour's publish, and its own.
        asked(&app, (node, 8080));
        asked(web, (node, 8080));
    }
    for own in [site.ip, site.ip6] {
        asked(&app, (own, 80));
    }
    for (to, node) in [(WORLD, NODE_OUTSIDE), (WORLD6, NODE6_OUTSIDE)] {
        assert_eq!(asked(web, (to, 53)).ip(), node);
    }
    nothing_was_lost(&site);
}

/// One end of a link, which sends frames of its own making.
struct Sender<'a> {
    namespace: &'a Namespace,
    macs: ([u8; 6], [u8; 6]),
}

impl Sender<'_> {
    /// Sends a large UDP datagram in pieces, the first one last, and whatever comes in between as
    /// `order` says.
    #[track_caller]
    fn send(&self, from: SocketAddr, to: SocketAddr, id: u16, order: fn(&mut [Packet])) {
        let packet = Packet::udp(&from.to_string(), &to.to_string())
            .macs(self.macs.0, self.macs.1)
            .payload(message().as_bytes())
            .id(id);
        let mut pieces = packet.fragments(PIECE);
        order(&mut pieces);
        let device = ifindex(self.namespace, "eth0");
        self.namespace.enter(|| {
            let tap = Tap::on(device);
            for piece in pieces {
                tap.send(&piece.build());
            }
        });
    }
}

/// The next datagram, and who sent it.
#[track_caller]
fn received(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    socket.set_read_timeout(Some(SOON)).expect("not 0");
    let mut buffer = vec![0; 1 << 16];
    let (len, from) = socket.recv_from(&mut buffer).expect("a datagram");
    buffer.truncate(len);
    (buffer, from)
}

fn last_first(pieces: &mut [Packet]) {
    pieces.reverse();
}

/// As by two ways of which one is slower.
fn every_second(pieces: &mut [Packet]) {
    let len = pieces.len();
    let (late, soon): (Vec<_>, Vec<_>) = (0..len).partition(|n| n % 2 == 0);
    let all: Vec<_> = soon
        .iter()
        .chain(&late)
        .map(|&n| pieces[n].clone())
        .collect();
    pieces.clone_from_slice(&all);
}

#[test]
fn pieces_in_another_order() {
    let site = Site::new(&["8080:80/udp"]);
    let Site { lab, web, .. } = &site;
    let client = Sender {
        namespace: &lab.client,
        macs: (mac(&lab.client, "eth0"), mac(&lab.node, "up0")),
    };
    let world = Sender {
        namespace: &lab.world,
        macs: (mac(&lab.world, "eth0"), mac(&lab.node, "up1")),
    };
    let container = Sender {
        namespace: web,
        macs: (mac(web, "eth0"), mac(&lab.node, "netfw0")),
    };
    let bind = |namespace: &Namespace, addr: IpAddr, port: u16| {
        namespace.enter(|| UdpSocket::bind((addr, port)).expect("the port is free"))
    };
    let message = message();
    for (n, order) in [last_first, every_second].into_iter().enumerate() {
        let id = 100 + n as u16;
        for (own, client_at, node, world_at, outside) in [
            (site.ip, CLIENT, NODE, WORLD, NODE_OUTSIDE),
            (site.ip6, CLIENT6, NODE6, WORLD6, NODE6_OUTSIDE),
        ] {
            // To a publish, and back.
            let inside = bind(web, own, 80);
            let asker = bind(&lab.client, client_at, 4000);
            client.send((client_at, 4000).into(), (node, 8080).into(), id, order);
            let (bytes, from) = received(&inside);
            assert!(bytes == message.as_bytes() && from == (client_at, 4000).into());
            container.send((own, 80).into(), (client_at, 4000).into(), id, order);
            let (bytes, from) = received(&asker);
            assert!(bytes == message.as_bytes() && from == (node, 8080).into());

            // To the world, and back.
            let asker = bind(web, own, 5353);
            let server = bind(&lab.world, world_at, 53);
            container.send((own, 5353).into(), (world_at, 53).into(), id, order);
            let (bytes, from) = received(&server);
            assert!(bytes == message.as_bytes() && from.ip() == outside);
            world.send((world_at, 53).into(), from, id, order);
            let (bytes, from) = received(&asker);
            assert!(bytes == message.as_bytes() && from == (world_at, 53).into());
        }
    }
    nothing_was_lost(&site);
}
