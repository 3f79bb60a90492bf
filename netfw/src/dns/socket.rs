//! Sockets that serve port 53 of a gateway without taking it.
//!
//! They are bound to the gateway's address and the bridge, at a port that the kernel chooses, and get
//! packets for port 53 by [`crate::bpf::Lookup`]. An address may not be there yet, or for a moment:
//! the agent puts back what somebody removes, and need not bind anew (`IP_FREEBIND`).
//!
//! Where the kernel does not take the program that hands packets over, they are bound to port 53
//! ([`Port::Dns`]), and all else is the same.
//!
//! A connection that is accepted has port 53 already, for that is what its client asked for. Answers by
//! UDP are whole datagrams, header included, sent through a raw socket: nothing else may send from a
//! port that another process holds. The kernel makes the IP header, and fragments where need be.

use std::{
    io,
    net::{IpAddr, SocketAddr, SocketAddrV6},
};

use netfw_common::{csum::fold, record::DNS_PORT, tuple::proto};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, SockFilter, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};

/// Room for queries that come faster than they are read, in bytes.
const BACKLOG: usize = 1 << 20;

/// What a socket is bound to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Port {
    /// One that the kernel chooses; port 53 may be another's.
    Any,
    /// Port 53, where [`crate::bpf::Lookup`] hands over nothing. It must be free.
    Dns,
}

/// A step that failed, and why.
pub type Failure = (&'static str, io::Error);

fn step(call: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |error| (call, error)
}

/// Is it an address of the node's? A link-local one, on the interface with this index.
pub fn is_own(addr: IpAddr, ifindex: u32) -> bool {
    let at: SocketAddr = match addr.to_canonical() {
        IpAddr::V4(addr) => (addr, 0).into(),
        IpAddr::V6(addr) => SocketAddrV6::new(addr, 0, 0, ifindex).into(),
    };
    // The kernel binds to no other.
    std::net::UdpSocket::bind(at).is_ok()
}

/// For queries by UDP. Needs a tokio runtime, as all of these do.
pub fn udp(gateway: IpAddr, bridge: &str, port: Port) -> Result<UdpSocket, Failure> {
    let socket = open(gateway, bridge, port, Type::DGRAM, Protocol::UDP)?;
    // Past what net.core.rmem_max allows others.
    setsockopt(&socket, sockopt::RcvBufForce, &BACKLOG)
        .map_err(|errno| ("set SO_RCVBUFFORCE", errno.into()))?;
    UdpSocket::from_std(socket.into()).map_err(step("poll a socket"))
}

/// For connections.
pub fn tcp(gateway: IpAddr, bridge: &str, port: Port) -> Result<TcpListener, Failure> {
    let socket = open(gateway, bridge, port, Type::STREAM, Protocol::TCP)?;
    socket.listen(128).map_err(step("listen"))?;
    TcpListener::from_std(socket.into()).map_err(step("poll a socket"))
}

fn open(
    gateway: IpAddr,
    bridge: &str,
    port: Port,
    kind: Type,
    protocol: Protocol,
) -> Result<Socket, Failure> {
    let (port, call) = match port {
        Port::Any => (0, "bind a socket"),
        Port::Dns => (DNS_PORT, "bind port 53"),
    };
    let addr = SocketAddr::new(gateway, port);
    let socket = Socket::new(Domain::for_address(addr), kind, Some(protocol))
        .map_err(step("open a socket"))?;
    socket
        .set_nonblocking(true)
        .map_err(step("set O_NONBLOCK"))?;
    socket
        .bind_device(Some(bridge.as_bytes()))
        .map_err(step("set SO_BINDTODEVICE"))?;
    match gateway {
        IpAddr::V4(_) => socket.set_freebind_v4(true),
        IpAddr::V6(_) => socket.set_freebind_v6(true),
    }
    .map_err(step("set IP_FREEBIND"))?;
    if port != 0 && kind == Type::STREAM {
        // Connections of an earlier run may linger.
        socket
            .set_reuse_address(true)
            .map_err(step("set SO_REUSEADDR"))?;
    }
    socket.bind(&addr.into()).map_err(step(call))?;
    Ok(socket)
}

/// Sends from port 53 of a gateway.
#[derive(Debug)]
pub struct Replies {
    socket: Socket,
    gateway: IpAddr,
}

impl Replies {
    pub fn new(gateway: IpAddr, bridge: &str) -> Result<Self, Failure> {
        let socket = open(gateway, bridge, Port::Any, Type::RAW, Protocol::UDP)?;
        // A raw socket gets a copy of all that comes in for its address: it is not for reading.
        const RETURN: u16 = 0x06;
        let nothing = [SockFilter::new(RETURN, 0, 0, 0)];
        socket
            .attach_filter(&nothing)
            .map_err(step("set SO_ATTACH_FILTER"))?;
        Ok(Self { socket, gateway })
    }

    /// Never waits: like any datagram it may be lost.
    pub fn send(&self, payload: &[u8], mut to: SocketAddr) -> io::Result<()> {
        let datagram = datagram(self.gateway, to, payload)?;
        // To a raw socket that would be the protocol.
        to.set_port(0);
        self.socket
            .send_to(&datagram, &SockAddr::from(to))
            .map(drop)
    }
}

/// A UDP datagram from port 53, its checksum filled in (RFC 768, RFC 8200 8.1).
fn datagram(from: IpAddr, to: SocketAddr, payload: &[u8]) -> io::Result<Vec<u8>> {
    const HEADER: usize = 8;
    let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let length = u16::try_from(HEADER + payload.len()).map_err(too_long)?;
    let mut bytes = Vec::with_capacity(length.into());
    bytes.extend(DNS_PORT.to_be_bytes());
    bytes.extend(to.port().to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(payload);
    let pseudo = sum_of(from) + sum_of(to.ip()) + u64::from(proto::UDP) + u64::from(length);
    // 0 would mean that there is none.
    let checksum = match !fold(pseudo + sum(&bytes)) {
        0 => 0xffff,
        checksum => checksum,
    };
    bytes[6..8].copy_from_slice(&checksum.to_be_bytes());
    Ok(bytes)
}

fn sum_of(addr: IpAddr) -> u64 {
    match addr {
        IpAddr::V4(addr) => sum(&addr.octets()),
        IpAddr::V6(addr) => sum(&addr.octets()),
    }
}

/// Of 16-bit words in network order, a last odd byte filled up with 0.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<2>();
    let last = rest.first().map_or(0, |&byte| u64::from(byte) << 8);
    let words = words
        .iter()
        .map(|&word| u64::from(u16::from_be_bytes(word)));
    words.sum::<u64>() + last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_the_node_s_own() {
        for (addr, is) in [
            ("127.0.0.1", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("192.0.2.1", false),
            ("2001:db8::1", false),
            ("fe80::77", false),
        ] {
            assert_eq!(is_own(addr.parse().unwrap(), 1), is, "{addr}");
        }
    }

    #[test]
    fn datagrams_have_a_right_checksum() {
        for (from, to) in [
            ("10.1.0.1", "10.1.0.2:40000"),
            ("fd00::1", "[fd00::2]:40000"),
        ] {
            let from: IpAddr = from.parse().unwrap();
            let to: SocketAddr = to.parse().unwrap();
            for payload in [
                &b""[..],
                &b"x"[..],
                &b"odd"[..],
                &b"even"[..],
                &[0xff; 1001][..],
            ] {
                let bytes = datagram(from, to, payload).unwrap();
                assert_eq!(bytes[..4], [0, 53, 0x9c, 0x40]);
                assert_eq!(bytes[8..], *payload);
                // What a receiver does: the sum with the checksum is all ones.
                let pseudo = sum_of(from) + sum_of(to.ip()) + 17 + bytes.len() as u64;
                assert_eq!(fold(pseudo + sum(&bytes)), 0xffff, "{from} {payload:?}");
            }
        }
        assert!(
            datagram(
                "::1".parse().unwrap(),
                "[::1]:1".parse().unwrap(),
                &[0; 65528]
            )
            .is_err()
        );
    }

    #[test]
    fn a_checksum_of_zero_is_sent_as_ones() {
        let from: IpAddr = "0.0.0.0".parse().unwrap();
        let to: SocketAddr = "0.0.0.0:0".parse().unwrap();
        // Protocol, twice the length and the port make 90 (17 + 2 * 10 + 53).
        let payload = (0xffff_u16 - 90).to_be_bytes();
        assert_eq!(datagram(from, to, &payload).unwrap()[6..8], [0xff, 0xff]);
    }
}
