//! Carries out what a flow says: rewrites a packet and counts it.

use core::hint::black_box;

use netfw_common::{
    addr::Address as _, crc32c, csum::difference, drop::Drop, flow::flag, tuple::proto,
};

use super::related;
use crate::{
    event::{self, Direction},
    family::Family,
    packet::Packet,
    parse::{Icmp, Sctp, Tcp, Udp},
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
    // Here and now: later, the compiler would keep all parts of the sums on the stack until then.
    let addresses = black_box(difference(
        from.src.sum() + from.dst.sum(),
        to.src.sum() + to.dst.sum(),
    ));
    let ports = difference(from.ports().into(), to.ports().into());

    let short = Err(Drop::Malformed);
    // By how much the packet's bytes change in all.
    let Some(mut changed) = F::rewrite(packet, to, addresses) else {
        return short;
    };
    let l4 = work.transport();
    match from.proto {
        // Its checksum is in the first fragment, and the difference with it.
        _ if work.is_later_fragment() => {}
        proto::TCP => {
            if !packet.write(l4, to.ports()) {
                return short;
            }
            let at = l4 + Tcp::CHECKSUM;
            changed += packet.update_l4_checksum::<F>(work, at, addresses, ports, false);
        }
        proto::UDP => {
            if !packet.write(l4, to.ports()) {
                return short;
            }
            let at = l4 + Udp::CHECKSUM;
            changed += packet.update_l4_checksum::<F>(work, at, addresses, ports, true);
        }
        // By how much the checksum changes is a matter of the whole's length, which is not known.
        proto::SCTP if work.is_first_fragment() && from.ports() != to.ports() => {
            return Err(Drop::Untranslatable);
        }
        proto::SCTP => {
            let Some(more) = rewrite_sctp::<P, F>(packet, work) else {
                return short;
            };
            changed += more;
        }
        // The identifier is a request's source "port" and a reply's destination "port".
        icmp if icmp == F::ICMP => {
            let pseudo = if F::ICMP_PSEUDO { addresses } else { 0 };
            let mut header = ports;
            if work.related {
                header = work.quote_change.into();
            } else if !packet.write(l4 + Icmp::ID, if work.opens { to.sport } else { to.dport }) {
                return short;
            }
            let at = l4 + Icmp::CHECKSUM;
            changed += packet.update_l4_checksum::<F>(work, at, pseudo, header, false);
        }
        // No ports, and no checksum over the addresses.
        _ => {}
    }

    packet.changed(changed);

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

/// Writes the ports of an SCTP packet, and mends its checksum. Returns by how much its bytes changed.
///
/// One of 0 stays: it is yet to be filled in, by hardware or where there is none by the kernel
/// (`CHECKSUM_PARTIAL` with `csum_not_inet`: `sctp_packet_pack` leaves 0, in each part of a GSO packet
/// too), or the peers do without (RFC 9653). One packet in 2^32 has it by chance, and is lost.
#[inline(always)]
fn rewrite_sctp<P: Packet, F: Family>(packet: &mut P, work: &Work<F::Addr>) -> Option<u64> {
    let l4 = work.transport();
    let [old, _, checksum] = packet.read::<[u32; 3]>(l4)?;
    let new = work.flow.ports();
    if !packet.write(l4, new) {
        return None;
    }
    let word = |a, b| u64::from(a) + u64::from(b);
    if old == new || checksum == 0 {
        return Some(difference(old.into(), new.into()));
    }
    let len = work.len + P::NETWORK as u32 - work.l4;
    let mended = checksum ^ crc_change(u32::from_le(old ^ new), len).to_le();
    packet
        .write(l4 + Sctp::CHECKSUM, mended)
        .then(|| difference(word(old, checksum), word(new, mended)))
}

/// [`crc32c::change`]. A global function, as the kernel calls what has a name for others: the verifier
/// goes through it once for all, and not on each way that leads here.
#[inline(never)]
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
extern "C" fn crc_change(bits: u32, len: u32) -> u32 {
    crc32c::change(bits, len)
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
