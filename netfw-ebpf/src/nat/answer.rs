//! ICMP errors of the node's own: for packets that can go no further, as a router answers them.
//!
//! The stack cannot do it. Of a publish it knows nothing, so it would answer for a port of the
//! node; and IPv6 packets it only forwards where the whole node does.
//!
//! The packet at hand becomes the answer: what it has too much of is cut off, and headers are put
//! before the rest. It goes back to where it came from.

use core::ptr::null_mut;

use aya_ebpf::helpers::generated::bpf_csum_diff;
use netfw_common::{
    addr::{Be16, MacPair},
    csum::fold,
    drop::Drop,
};

use crate::{
    family::Family,
    maps::{ANSWERS, QUOTE},
    packet::{Packet, bounded},
    parse::{ETH_LEN, Ethernet},
    verdict::Verdict,
    work::{Work, fragment},
};

/// Errors per tick and CPU (RFC 1812 4.3.2.8, 4443 2.4 (f); Linux's `icmp_msgs_per_sec` is 1000). "Too
/// big" is beside it, as with Linux: nobody can use it up, and with it everybody's path MTU discovery.
const BUDGET: u32 = 1000;

/// What `bpf_csum_diff` takes at once (before kernel 6.13).
pub const PART: usize = 512;

/// What went wrong.
#[derive(Clone, Copy)]
pub enum Error {
    /// Time to live, or hop limit.
    TimeExceeded,
    /// The next hop takes packets of so many bytes.
    TooBig { mtu: u16 },
    /// No route.
    Unreachable,
    /// A route that forbids it.
    Prohibited,
}

/// An ICMP header (RFC 792, 1191, 4443).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Header {
    pub kind: u8,
    pub code: u8,
    pub checksum: u16,
    /// Where it speaks of an MTU, that.
    pub parameter: [Be16; 2],
}

/// Answers the packet at hand with `error`, from the address `from`; drops it for `reason` in any
/// case.
#[inline(always)]
pub fn refuse<P: Packet, F: Family>(
    packet: &mut P,
    work: &mut Work<F::Addr>,
    error: Error,
    from: F::Addr,
    reason: Drop,
) -> Verdict {
    work.outer = [from, work.key.src];
    work.answer = F::error(error);
    work.limited = !matches!(error, Error::TooBig { .. });
    if make::<P, F>(packet, work) {
        Verdict::Answer(reason)
    } else {
        Verdict::Drop(reason)
    }
}

/// May one more be sent in this tick?
#[inline(always)]
fn is_within_budget(now: u32) -> bool {
    let Some(spent) = ANSWERS.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: a per-CPU slot; nobody else writes it while this program runs.
    let spent = unsafe { &mut *spent };
    if spent[0] != now {
        *spent = [now, 0];
    }
    spent[1] += 1;
    spent[1] <= BUDGET
}

/// Makes `work.answer` of the packet, from and to `work.outer`.
#[inline(never)]
fn make<P: Packet, F: Family>(packet: &mut P, work: &mut Work<F::Addr>) -> bool {
    // Never about an error, nor about a part that nobody can know its flow by (RFC 1122 3.2.2).
    let mut kind = 0u8;
    let error = work.key.proto == F::ICMP
        && (!packet.load(work.transport(), &mut kind) || F::is_error(kind));
    if work.related
        || error
        || work.fragment == fragment::LATER
        || (work.limited && !is_within_budget(work.now))
    {
        return false;
    }
    let mut ethernet = Ethernet::default();
    if P::NETWORK == ETH_LEN && !packet.load(0, &mut ethernet) {
        return false;
    }
    // Whole words; the transport header's first eight bytes are always among them.
    let quote = work.len.min(F::QUOTE) & !3;
    if !packet.trim(P::NETWORK as u32 + quote) {
        return false;
    }
    let Some(sum) = sum::<P, F>(packet, work, quote) else {
        return false;
    };
    let room = (F::HEADER + size_of::<Header>()) as u32;
    if !packet.insert(room) {
        return false;
    }
    let mut header = work.answer;
    header.checksum = 0;
    // SAFETY: eight bytes without padding.
    let [a, b]: [u32; 2] = unsafe { core::mem::transmute(header) };
    let words = sum + u64::from(a) + u64::from(b);
    let [from, to] = work.outer;
    let length = quote + size_of::<Header>() as u32;
    header.checksum = !fold(words + F::icmp_pseudo(from, to, length));
    let macs = MacPair {
        dst: ethernet.src,
        src: ethernet.dst,
    };
    (P::NETWORK == 0 || packet.store(0, &macs))
        && F::store_header(packet, from, to, length)
        && packet.store(P::NETWORK + F::HEADER, &header)
}

/// The sum of the packet's first `len` bytes, a multiple of four, as they are when they leave.
#[inline(always)]
fn sum<P: Packet, F: Family>(packet: &P, work: &Work<F::Addr>, len: u32) -> Option<u64> {
    let quote = QUOTE.get_ptr_mut(0)?;
    // SAFETY: a per-CPU slot; nobody else writes it while this program runs.
    let parts = unsafe { &mut *quote };
    let mut sum = 0;
    let mut left = len;
    for (index, part) in parts.iter_mut().enumerate() {
        if left == 0 {
            break;
        }
        let size = left.min(PART as u32);
        let offset = P::NETWORK + index * PART;
        packet.copy(offset, part, size as usize)?;
        sum += sum_of(part, size)?;
        left -= size;
    }
    // Segments that were rolled up, and whatever a veth pair brings, have a checksum that a device on
    // the way out fills in, inside of the quote as well. Then all from the transport header on sums up
    // to the complement of what the field holds now.
    let mut field = 0u16;
    if let Some((at, pseudo)) = work.pseudo(P::NETWORK)
        && packet.load(at, &mut field)
        && field == pseudo
    {
        let header = sum_of(&mut parts[0], work.l4.saturating_sub(P::NETWORK as u32))?;
        sum = header + u64::from(!pseudo);
    }
    Some(sum)
}

/// The sum of a part's first `size` bytes.
#[inline(always)]
fn sum_of(part: &mut [u8; PART], size: u32) -> Option<u64> {
    // SAFETY: a helper call that reads from the part no more than it has.
    let sum = unsafe { bpf_csum_diff(null_mut(), 0, part.as_mut_ptr().cast(), words(size), 0) };
    u64::try_from(sum).ok()
}

/// The bytes of a part that are whole words; of none there are others.
#[inline(always)]
fn words(size: u32) -> u32 {
    bounded(size as usize, PART) & !3
}
