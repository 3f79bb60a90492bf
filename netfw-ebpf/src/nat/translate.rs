//! Carries out what a flow says: rewrites a packet and counts it.

use netfw_common::{addr::Address as _, csum::difference, drop::Drop, flow::flag, tuple::proto};

use super::related;
use crate::{
    event::{self, Direction},
    family::Family,
    packet::Packet,
    parse::{Icmp, Tcp, Udp},
    work::Work,
};

/// Rewrites the packet's addresses, ports (or ICMP identifier), TTL, checksums and, where the flow
/// knows it, the Ethernet header; then counts it.
#[inline(always)]
pub fn apply<P: Packet, F: Family>(packet: &mut P, work: &mut Work<F::Addr>) -> Result<(), Drop> {
    if work.related && !related::rewrite::<P, F>(packet, work) {
        return Err(Drop::Malformed);
    }
    let (from, to) = (&work.key, &work.flow);
    let addresses = difference(from.src.sum() + from.dst.sum(), to.src.sum() + to.dst.sum());
    // Equal sums that are differently spelled have a difference of 0xffff, which changes nothing.
    let ports = difference(
        u64::from(from.sport.wire()) + u64::from(from.dport.wire()),
        u64::from(to.sport.wire()) + u64::from(to.dport.wire()),
    );

    let short = Err(Drop::Malformed);
    if !F::rewrite(packet, to, addresses) {
        return short;
    }
    let l4 = work.transport();
    match from.proto {
        // Its checksum is in the first fragment, and the difference with it.
        _ if work.is_later_fragment() => {}
        proto::TCP => {
            if !packet.write(l4, [to.sport, to.dport]) {
                return short;
            }
            packet.update_l4_checksum(l4 + Tcp::CHECKSUM, addresses, ports, false);
        }
        proto::UDP => {
            if !packet.write(l4, [to.sport, to.dport]) {
                return short;
            }
            packet.update_l4_checksum(l4 + Udp::CHECKSUM, addresses, ports, true);
        }
        // The identifier is a request's source "port" and a reply's destination "port".
        icmp if icmp == F::ICMP => {
            let pseudo = if F::ICMP_PSEUDO { addresses } else { 0 };
            if work.related {
                let change = work.quote_change;
                packet.update_l4_checksum(l4 + Icmp::CHECKSUM, pseudo, change, false);
            } else {
                let id = if work.opens { to.sport } else { to.dport };
                if !packet.write(l4 + Icmp::ID, id) {
                    return short;
                }
                packet.update_l4_checksum(l4 + Icmp::CHECKSUM, pseudo, ports, false);
            }
        }
        // `parse::transport` lets nothing else through.
        _ => return Err(Drop::Untranslatable),
    }

    if to.flags & flag::L2_CACHED != 0 && !packet.set_ethernet::<F>(to.macs) {
        return short;
    }
    let published = to.flags & flag::PUBLISHED != 0;
    let reply = to.flags & flag::REPLY != 0;
    let direction = if published == reply {
        Direction::Tx
    } else {
        Direction::Rx
    };
    event::count(to.counter.into(), direction, work.len.into());
    Ok(())
}

/// The MTU of the container that the flow in `work` leads into, where the packet is too big for it.
#[inline(always)]
pub fn too_big<P: Packet, F: Family>(packet: &P, work: &Work<F::Addr>) -> Option<u16> {
    let mtu = work.flow.mtu;
    if work.len <= u32::from(mtu) || mtu == 0 {
        return None;
    }
    // Segments that were rolled into one count as they are on the wire.
    (packet.wire_len(work.len, work.transport(), work.key.proto) > mtu).then_some(mtu)
}
