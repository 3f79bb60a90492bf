//! ICMP errors: they belong to the flow of the packet that they quote, and go where its sender is.
//!
//! What is quoted is the packet as it was on the link where the error arises, so its quote mirrors
//! what answers to it look like there: swapped, it is the key of the flow's other direction, and what
//! that entry makes of answers the quote is given, swapped again. An error changes nothing in a flow
//! (RFC 5508 REQ-6, 5927), and one whose flow does not exist is nobody's (REQ-4).

use core::hint::black_box;

use netfw_common::{
    addr::{Address as _, Be16},
    csum::{difference, fold, update},
    tuple::{proto, zone},
};

use crate::{
    family::Family,
    flow,
    packet::Packet,
    parse::{Icmp, Tcp, Udp},
    work::{Work, fragment},
};

/// Bytes of an ICMP error before the quote (RFC 792, 4443 3).
const HEADER: u32 = 8;

/// Finds the flow that the ICMP error at hand speaks of; false where the packet is none, or quotes
/// nothing of ours. `work.key.zone` says where it was received.
///
/// From then on `work.key` is the tuple by which the flow was found, and `work.outer` holds the
/// addresses of the error itself. Where none was found, `work.key` is the error's own.
#[inline(never)]
pub fn find<P: Packet, F: Family>(packet: &P, work: &mut Work<F::Addr>) -> bool {
    if work.key.proto != F::ICMP || work.fragment != fragment::NONE {
        return false;
    }
    let mut kind = 0u8;
    if !packet.load(work.transport(), &mut kind) || !F::is_error(kind) {
        return false;
    }
    work.outer = [work.key.src, work.key.dst];
    work.related = set_key::<P, F>(packet, work)
        // Whoever was sent to by us is told; nobody else (RFC 5508 REQ-3, -5).
        && work.outer[1] == work.key.dst
        // Containers are no routers: they speak of what they were sent themselves.
        && (work.key.zone == zone::WORLD || work.outer[0] == work.key.src)
        && flow::find_for_error::<F>(work);
    if !work.related {
        [work.key.src, work.key.dst] = work.outer;
        work.key.proto = F::ICMP;
        (work.key.sport, work.key.dport) = (Be16::new(0), Be16::new(0));
    }
    work.related
}

/// Makes `work.key` of what is quoted, mirrored; false where nothing could be known again.
#[inline(always)]
fn set_key<P: Packet, F: Family>(packet: &P, work: &mut Work<F::Addr>) -> bool {
    // `l4` is bounded by `Work::transport` wherever it is used; the quote lies behind it.
    work.quote = work.l4 + HEADER;
    let Some(protocol) = F::parse_quote(packet, work) else {
        return false;
    };
    // Eight bytes of the transport header are in every quote (RFC 792, 1812 4.3.2.3), and nothing
    // that lies behind the packet in its frame.
    let end = work.quote_l4 + HEADER;
    if end > P::NETWORK as u32 + work.len || end > Work::<F::Addr>::MAX_QUOTE as u32 {
        return false;
    }
    // The error's own peer may have been on a link, and that of its flow not, or the other way round.
    let on_link = work.key.src.is_link_local() || work.key.dst.is_link_local();
    work.key.scope = if work.key.zone == zone::WORLD && on_link {
        packet.ifindex() as u16
    } else {
        0
    };
    let mut ports = [Be16::new(0); 2];
    let at = work.quoted_transport();
    if protocol == F::ICMP {
        let mut header = Icmp::default();
        if !packet.load(at, &mut header) {
            return false;
        }
        if header.kind == F::ECHO_REQUEST {
            ports[0] = header.id;
        } else if header.kind == F::ECHO_REPLY {
            ports[1] = header.id;
        } else {
            return false;
        }
    } else if matches!(protocol, proto::TCP | proto::UDP | proto::SCTP)
        && !packet.load(at, &mut ports)
    {
        return false;
    }
    // `parse_quote` left the quoted addresses in `work.key`, swapped.
    (work.key.sport, work.key.dport) = (ports[1], ports[0]);
    work.key.proto = protocol;
    true
}

/// Rewrites what is quoted. Leaves the error's own addresses, old and new, in `work.key` and
/// `work.flow`, and what its checksum has to make up for in `work.quote_change`.
#[inline(never)]
pub fn rewrite<P: Packet, F: Family>(packet: &mut P, work: &mut Work<F::Addr>) -> bool {
    let protocol = work.key.proto;
    // Here and now: later, the compiler would keep all parts of the sums on the stack until then.
    let addresses = black_box(difference(
        work.key.src.sum() + work.key.dst.sum(),
        work.flow.src.sum() + work.flow.dst.sum(),
    ));
    let ports = difference(
        u64::from(work.key.sport.wire()) + u64::from(work.key.dport.wire()),
        u64::from(work.flow.sport.wire()) + u64::from(work.flow.dport.wire()),
    );
    // The header's checksum makes up for the addresses, where it has one.
    let mut change = match F::rewrite_quote(packet, work, addresses) {
        Some(change) => change,
        None => return false,
    };

    let at = work.quoted_transport();
    let (checksum, pseudo) = match protocol {
        proto::TCP => (Tcp::CHECKSUM, addresses),
        proto::UDP => (Udp::CHECKSUM, addresses),
        icmp if icmp == F::ICMP => (Icmp::CHECKSUM, if F::ICMP_PSEUDO { addresses } else { 0 }),
        // A quote of SCTP keeps its checksum: it could not be checked but over the whole packet.
        _ => (0, 0),
    };
    let written = if protocol == F::ICMP {
        // The identifier: of a request its source "port", seen from the other side.
        let id = if work.key.dport != Be16::new(0) {
            work.flow.dport
        } else {
            work.flow.sport
        };
        packet.store(at + Icmp::ID, &id)
    } else if matches!(protocol, proto::TCP | proto::UDP | proto::SCTP) {
        packet.store(at, &[work.flow.dport, work.flow.sport])
    } else {
        true
    };
    if !written {
        return false;
    }
    change += ports;
    // Eight bytes of a TCP header are a whole quote, and end before the checksum.
    let end = P::NETWORK + work.len as usize;
    let mut old = 0u16;
    if checksum != 0 && at + checksum + 2 <= end && packet.load(at + checksum, &mut old) {
        // UDP without checksum stays so.
        if protocol != proto::UDP || old != 0 {
            let mut new = update(old, pseudo + ports);
            if protocol == proto::UDP && new == 0 {
                new = 0xffff;
            }
            packet.store(at + checksum, &new);
            change += difference(old.into(), new.into());
        }
    }
    work.quote_change = fold(change);

    // The error comes from who was sent to, by the name that the other side has for it; or from a
    // router on the way, by its own.
    if work.outer[0] != work.key.src {
        work.flow.src = work.outer[0];
    }
    work.key.src = work.outer[0];
    work.key.dst = work.outer[1];
    work.key.proto = F::ICMP;
    true
}
