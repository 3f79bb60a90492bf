//! From a frame to its headers: what every decision reads.
//!
//! A redirect skips what the stack checks on receipt, so the checks of `ip_rcv` are made here:
//! version, header and total length, header checksum (RFC 1122 3.2.1). What fails them is
//! [`Malformed`], and never translated.

use netfw_common::{
    addr::{Be16, Be32, Mac},
    flow::{Segment, sctp, tcp},
    tuple::proto,
};

use crate::{family::Family, packet::Packet, work::Work};

pub const ETH_LEN: usize = 14;

pub mod ethertype {
    use netfw_common::addr::Be16;

    pub const IPV4: Be16 = Be16::new(0x0800);
    pub const ARP: Be16 = Be16::new(0x0806);
    pub const IPV6: Be16 = Be16::new(0x86dd);
}

/// The Ethernet header.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Ethernet {
    pub dst: Mac,
    pub src: Mac,
    pub ethertype: Be16,
}

/// The packet fails the checks that the stack makes on receipt.
pub struct Malformed;

/// Reads the transport header into `work`; false where netfw does not translate it: what signs
/// or sums up its addresses in unknown ways, ICMP but echo, headers cut short.
///
/// The network header has been read. A fragment without transport header has been given what its
/// first one said ([`crate::nat::fragment::arrive`]).
#[inline(always)]
pub fn transport<P: Packet, F: Family>(packet: &P, work: &mut Work<F::Addr>) -> bool {
    (work.flags, work.opens, work.related) = (0, false, false);
    if work.is_later_fragment() {
        return true;
    }
    work.key.set_ports(0);
    // What follows the packet in its frame is padding.
    let room = (P::NETWORK as u32 + work.len).saturating_sub(work.l4);
    match work.key.proto {
        proto::TCP => {
            use tcp::{ACK, FIN, RST, SYN};
            let Some(header) = header::<P, Tcp, _>(packet, work, room) else {
                return false;
            };
            work.key.set_ports(header.ports);
            work.flags = header.flags;
            let phantom = u32::from(header.flags & SYN != 0) + u32::from(header.flags & FIN != 0);
            let payload = room.saturating_sub(u32::from(header.offset >> 4) * 4);
            let seq = header.sequence.get();
            work.segment = Segment {
                seq,
                end: seq.wrapping_add(payload).wrapping_add(phantom),
                ack: header.acknowledgment.get(),
            };
            work.opens = header.flags & (SYN | ACK | FIN | RST) == SYN;
        }
        proto::UDP => {
            let Some(header) = header::<P, Udp, _>(packet, work, room) else {
                return false;
            };
            work.key.set_ports(header.ports);
            work.opens = true;
        }
        proto::SCTP => {
            let Some(header) = header::<P, Sctp, _>(packet, work, room) else {
                return false;
            };
            work.key.set_ports(header.ports);
            work.segment.seq = header.tag.get();
            // Of packets rolled into one (GSO) the header alone is linear; they hold data.
            let chunk = packet.read::<Chunk>(work.transport() + Sctp::LEN);
            let kind = chunk.map_or(sctp::DATA, |chunk| chunk.kind);
            work.flags = sctp::flags(kind);
            if work.flags & tcp::SYN != 0 {
                let at = work.transport() + Sctp::LEN + size_of::<Chunk>();
                let Some(tag) = packet.read::<Be32>(at) else {
                    return false;
                };
                work.segment.ack = tag.get();
            }
            work.opens = kind == sctp::INIT && work.segment.seq == 0;
        }
        icmp if icmp == F::ICMP => {
            let Some(header) = header::<P, Icmp, _>(packet, work, room) else {
                return false;
            };
            if header.code == 0 && header.kind == F::ECHO_REQUEST {
                work.key.sport = header.id;
                work.opens = true;
            } else if header.code == 0 && header.kind == F::ECHO_REPLY {
                work.key.dport = header.id;
            } else {
                return false;
            }
        }
        other if proto::is_portless(other) => work.opens = true,
        _ => return false,
    }
    true
}

/// Does a first fragment hold what is looked at of the transport header (RFC 1858 3.1)?
#[inline(always)]
pub fn has_header<P: Packet, A>(work: &Work<A>) -> bool {
    let least = match work.key.proto {
        proto::TCP => size_of::<Tcp>() as u32,
        _ => Udp::LEN,
    };
    work.l4 + least <= P::NETWORK as u32 + work.len
}

/// The transport header, if it lies within the `room` that is left in the packet.
#[inline(always)]
fn header<P: Packet, T: Copy, A>(packet: &P, work: &Work<A>, room: u32) -> Option<T> {
    if room < size_of::<T>() as u32 {
        return None;
    }
    packet.read::<T>(work.transport())
}

/// The first 20 bytes of a TCP header (RFC 9293 3.1).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Tcp {
    pub ports: u32,
    pub sequence: Be32,
    pub acknowledgment: Be32,
    pub offset: u8,
    pub flags: u8,
    pub window: u16,
    pub checksum: u16,
    pub urgent: u16,
}

impl Tcp {
    pub const CHECKSUM: usize = 16;
}

/// A UDP header (RFC 768).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Udp {
    pub ports: u32,
    pub len: Be16,
    pub checksum: u16,
}

impl Udp {
    pub const LEN: u32 = 8;
    pub const CHECKSUM: usize = 6;
}

/// SCTP's common header (RFC 9260 3.1).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Sctp {
    pub ports: u32,
    pub tag: Be32,
    pub checksum: u32,
}

impl Sctp {
    pub const LEN: usize = size_of::<Self>();
    pub const CHECKSUM: usize = 8;
}

/// The head of an SCTP chunk (RFC 9260 3.2). An INIT's and an INIT ACK's tag follows.
#[repr(C)]
#[derive(Clone, Copy)]
struct Chunk {
    kind: u8,
    flags: u8,
    len: Be16,
}

/// An ICMP or ICMPv6 header of a query (RFC 792, 4443).
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Icmp {
    pub kind: u8,
    pub code: u8,
    pub checksum: u16,
    pub id: Be16,
    pub sequence: u16,
}

impl Icmp {
    pub const CHECKSUM: usize = 2;
    pub const ID: usize = 4;
}

/// An ARP packet for IPv4 over Ethernet (RFC 826).
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Arp {
    pub hardware: [u8; 8],
    pub sender_mac: Mac,
    pub sender_ip: [u8; 4],
    pub target_mac: Mac,
    pub target_ip: [u8; 4],
}
