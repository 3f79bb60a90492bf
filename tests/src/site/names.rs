//! Names for addresses, so that a packet is written once and sent over both families.
//!
//! | name | IPv4 | IPv6 | what |
//! |---|---|---|---|
//! | `client` | 10.1.0.2 | fd00:1::2 | beyond the uplink |
//! | `node` | 10.1.0.1 | fd00:1::1 | the uplink's address |
//! | `server` | 203.0.113.9 | 2001:db8:cb00:7109::1 | in the outside world, behind the default route |
//! | `router` | 203.0.113.1 | 2001:db8:cb00:7101::1 | on the way to it |
//! | `web` | 172.31.0.2 | fd00:31::2 | a container |
//! | `peer` | 172.31.0.3 | fd00:31::3 | a container of the same network |
//! | `gateway` | 172.31.0.1 | fd00:31::1 | their network's gateway, an address of the node |
//! | `stranger` | 172.30.0.2 | fd00:30::2 | a container of another network |
//! | `elsewhere` | 172.30.0.1 | fd00:30::1 | that network's gateway |
//!
//! IPv4 addresses that have no name have a counterpart all the same: see [`counterpart`].

use std::{
    cell::Cell,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use etherparse::checksum::Sum16BitWords;
use netfw_common::tuple::proto;

use crate::packet::{IcmpError, Packet};

/// What a test runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

thread_local! {
    /// Of the packets that the functions here make.
    static FAMILY: Cell<Family> = const { Cell::new(Family::V4) };
}

pub fn set_family(family: Family) {
    FAMILY.set(family);
}

pub fn family() -> Family {
    FAMILY.get()
}

const NAMES: [(&str, Ipv4Addr); 9] = [
    ("client", Ipv4Addr::new(10, 1, 0, 2)),
    ("node", Ipv4Addr::new(10, 1, 0, 1)),
    ("server", Ipv4Addr::new(203, 0, 113, 9)),
    ("router", Ipv4Addr::new(203, 0, 113, 1)),
    ("web", Ipv4Addr::new(172, 31, 0, 2)),
    ("peer", Ipv4Addr::new(172, 31, 0, 3)),
    ("gateway", Ipv4Addr::new(172, 31, 0, 1)),
    ("stranger", Ipv4Addr::new(172, 30, 0, 2)),
    ("elsewhere", Ipv4Addr::new(172, 30, 0, 1)),
];

/// The IPv6 address that stands where an IPv4 one does: of the same network, or of the same kind.
fn counterpart(addr: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = addr.octets().map(u16::from);
    let hex = |n: u16| n / 100 * 256 + n / 10 % 10 * 16 + n % 10;
    match (a, b) {
        (0, 0) => Ipv6Addr::UNSPECIFIED,
        (127, _) => Ipv6Addr::LOCALHOST,
        (172 | 10, 1 | 30 | 31) => {
            let network = if a == 10 { b } else { hex(b) };
            Ipv6Addr::new(0xfd00, network, 0, 0, 0, 0, c, hex(d))
        }
        _ if addr.is_multicast() || addr.is_broadcast() => {
            Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, c, d)
        }
        _ => Ipv6Addr::new(0x2001, 0xdb8, a << 8 | b, c << 8 | d, 0, 0, 0, 1),
    }
}

/// An address of the family at hand.
pub fn ip(text: &str) -> IpAddr {
    let four = NAMES.iter().find(|(name, _)| *name == text);
    let addr = four.map_or_else(
        || text.parse().expect("a name of the table, or an address"),
        |(_, addr)| IpAddr::V4(*addr),
    );
    match (addr, family()) {
        (IpAddr::V4(addr), Family::V6) => counterpart(addr).into(),
        (addr, _) => addr,
    }
}

/// `client:4000`, `10.7.7.7:1` or `[fe80::2]:1` as an address of the family at hand.
pub fn at(text: &str) -> SocketAddr {
    if let Ok(addr @ SocketAddr::V6(_)) = text.parse() {
        return addr;
    }
    let (name, port) = text.split_once(':').expect("NAME:PORT");
    SocketAddr::new(ip(name), port.parse().expect("a port"))
}

/// `client:4000`.
pub fn named(addr: SocketAddr) -> String {
    let name = NAMES
        .iter()
        .find(|(name, _)| ip(name) == addr.ip())
        .map_or(addr.ip().to_string(), |(name, _)| (*name).to_owned());
    format!("{name}:{}", addr.port())
}

pub fn tcp(from: &str, to: &str, flags: &str) -> Packet {
    Packet::tcp(&at(from).to_string(), &at(to).to_string(), flags)
}

pub fn udp(from: &str, to: &str) -> Packet {
    Packet::udp(&at(from).to_string(), &at(to).to_string())
}

pub fn sctp(from: &str, to: &str, chunk: u8, tag: u32) -> Packet {
    Packet::sctp(&at(from).to_string(), &at(to).to_string(), chunk, tag)
}

pub fn ping(from: &str, to: &str, id: u16) -> Packet {
    Packet::ping(&ip(from).to_string(), &ip(to).to_string(), id)
}

pub fn pong(from: &str, to: &str, id: u16) -> Packet {
    Packet::pong(&ip(from).to_string(), &ip(to).to_string(), id)
}

/// An ICMP error about a packet, quoted whole.
pub fn error(from: &str, to: &str, error: IcmpError, about: &Packet) -> Packet {
    let (from, to) = (ip(from).to_string(), ip(to).to_string());
    Packet::icmp_error(&from, &to, error, &about.ip())
}

pub fn raw(from: &str, to: &str, protocol: u8, payload: &[u8]) -> Packet {
    Packet::raw(
        &ip(from).to_string(),
        &ip(to).to_string(),
        protocol,
        payload,
    )
}

/// The protocol number of the family's ICMP.
pub fn icmp() -> u8 {
    match family() {
        Family::V4 => proto::ICMP,
        Family::V6 => proto::ICMPV6,
    }
}

/// Bytes of the network header.
pub fn header_len() -> u64 {
    match family() {
        Family::V4 => 20,
        Family::V6 => 40,
    }
}

/// The checksum of a packet of `len` bytes (without its network header) whose sender leaves it to
/// the device: that of the pseudo-header alone, not inverted.
pub fn pseudo_sum(from: &str, to: &str, protocol: u8, len: u16) -> [u8; 2] {
    let sum = match (ip(from), ip(to)) {
        (IpAddr::V4(from), IpAddr::V4(to)) => Sum16BitWords::new()
            .add_4bytes(from.octets())
            .add_4bytes(to.octets()),
        (IpAddr::V6(from), IpAddr::V6(to)) => Sum16BitWords::new()
            .add_16bytes(from.octets())
            .add_16bytes(to.octets()),
        (from, to) => panic!("{from} and {to} are of two families"),
    };
    let sum = sum.add_2bytes([0, protocol]).add_2bytes(len.to_be_bytes());
    (!sum.ones_complement()).to_ne_bytes()
}
