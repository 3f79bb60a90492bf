//! Fragments: what is remembered of a datagram that comes in pieces, and the pieces that came before
//! the one with the ports.
//!
//! Only the first fragment has the transport header. What it says is kept for the others; those that
//! come before it wait, as copies, and are received once more behind it. Nothing is put together:
//! each fragment goes on by itself, and its receiver does that.

use crate::{
    addr::{Address, Be16, Ip4, Ip6},
    flow::ticks,
};

/// How long a datagram waits for its next piece: nf_conntrack's and the stack's 30 s.
pub const LIFE: u32 = ticks(30);

/// Ticks after which a piece that overlaps is not an attack but another datagram's, which has the
/// same identifier: IPv4 has 2^16 of them, and they come round in a second or two on a fast path.
/// Pieces of one datagram are sent in one go, so its copies and its overlaps come sooner.
pub const REUSE: u32 = 2;

/// The largest datagram that the offsets can name, in bytes.
pub const MOST_BYTES: u32 = 0xffff;

/// Words of 64 units in [`Datagram::received`].
pub const WORDS: usize = 128;

/// What the fragments of one datagram have in common (RFC 791 3.2, RFC 8200 4.5). Layout, no padding;
/// 16 bytes for IPv4, 40 for IPv6.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct FragmentKey<A> {
    pub src: A,
    pub dst: A,
    /// The identification, as on the wire.
    pub id: u32,
    /// IPv4: the protocol. IPv6: 0, for there it tells no datagrams apart.
    pub proto: u8,
    /// One of [`crate::tuple::zone`].
    pub zone: u8,
    /// As in [`crate::tuple::Tuple`].
    pub scope: u16,
}

pub type FragmentKey4 = FragmentKey<Ip4>;
pub type FragmentKey6 = FragmentKey<Ip6>;

const _: () = assert!(size_of::<FragmentKey4>() == 16 && size_of::<FragmentKey6>() == 40);

impl<A: Address> FragmentKey<A> {
    /// A number for the datagram, under which its pieces wait. Two datagrams that share one cost each
    /// other a place; a piece that is woken too early waits once more.
    #[inline(always)]
    pub fn hash(&self) -> u64 {
        /// 2^64 by the golden ratio, odd.
        const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
        let mix = |hash: u64, word: u64| {
            let product = (hash ^ word).wrapping_mul(SPREAD);
            product ^ product >> 32
        };
        let rest = u64::from(self.proto) | u64::from(self.zone) << 8 | u64::from(self.scope) << 16;
        let addresses = mix(mix(0, self.src.sum()), self.dst.sum());
        mix(addresses, u64::from(self.id) << 32 | rest)
    }
}

/// A datagram of which fragments have been seen. Map `FRAGMENTS4|6`: LRU hash; gone once all of it
/// has been seen.
///
/// Layout, no padding: 1040 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Datagram {
    /// A bit for each unit of 8 bytes that has gone on.
    pub received: [u64; WORDS],
    /// The tick of the last piece.
    pub seen: u32,
    /// Units that have gone on.
    pub units: u16,
    /// Units in all; 0 until the last fragment has come.
    pub total: u16,
    /// The ports of the first fragment's tuple, as in [`crate::tuple::Tuple`], and its protocol.
    pub sport: Be16,
    pub dport: Be16,
    pub proto: u8,
    /// Has the first fragment gone on (1)? Otherwise (0) pieces wait for it.
    pub known: u8,
    pub reserved: u16,
}

const _: () = assert!(size_of::<Datagram>() == 1040);

/// Which piece of which datagram waits. 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct HeldKey {
    /// [`FragmentKey::hash`].
    pub datagram: u64,
    /// [`place`] of the piece.
    pub place: u32,
    pub reserved: u32,
}

/// A frame that waits for its datagram's first fragment. Map `HELD`: LRU hash; 9032 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Held {
    /// The tick in which it came.
    pub since: u32,
    /// The interface on which it was received.
    pub ifindex: u32,
    /// Bytes of the frame.
    pub len: u32,
    pub frame: [u8; FRAME],
}

/// Bytes of the longest frame that can wait: jumbo frames.
pub const FRAME: usize = 9020;

const _: () = assert!(size_of::<Held>() == 9032 && size_of::<Held>().is_multiple_of(8));
const _: () = assert!(size_of::<HeldKey>() == 16);

/// Bytes of a datagram that share a place: of two pieces that begin there one can wait. Links take
/// packets of 576 bytes and more (RFC 791 3.2), so that pieces are longer.
const STRIDE: u32 = 512;

/// Places for a datagram's pieces; the first is the first fragment's alone.
pub const PLACES: u32 = MOST_BYTES.div_ceil(STRIDE) + 1;

/// The place of the piece that begins at `offset`.
#[inline(always)]
pub const fn place(offset: u32) -> u32 {
    offset.div_ceil(STRIDE)
}

/// Is a datagram whose last piece came at `seen` over at `now`? `overlaps`: a piece has come that
/// overlaps it.
#[inline(always)]
pub const fn is_over(seen: u32, now: u32, overlaps: bool) -> bool {
    let age = now.wrapping_sub(seen);
    // It may lie a tick ahead: another CPU read the clock a moment later.
    age < u32::MAX / 2 && age > if overlaps { REUSE - 1 } else { LIFE }
}

/// The part of its datagram that a fragment is, in units of 8 bytes, the last one perhaps not full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Units {
    pub first: u32,
    /// Behind the last.
    pub end: u32,
}

impl Units {
    /// Of a fragment with `len` bytes at `offset`. None: there is no such fragment. An empty one, or
    /// one beyond the largest datagram, and but for the last all are whole units.
    #[inline(always)]
    pub const fn of(offset: u32, len: u32, more: bool) -> Option<Self> {
        if len == 0 || offset + len > MOST_BYTES || more && len % 8 != 0 {
            return None;
        }
        Some(Self {
            first: offset / 8,
            end: (offset + len).div_ceil(8),
        })
    }

    #[inline(always)]
    pub const fn count(self) -> u32 {
        self.end - self.first
    }

    /// The first word of [`Datagram::received`] that they lie in.
    #[inline(always)]
    pub const fn first_word(self) -> u32 {
        self.first / 64
    }

    /// Their bits in a word; 0 where they do not reach it.
    #[inline(always)]
    pub const fn mask(self, word: u32) -> u64 {
        Self::below(self.end, word) & !Self::below(self.first, word)
    }

    /// The bits of `word` for the units below `unit`.
    #[inline(always)]
    const fn below(unit: u32, word: u32) -> u64 {
        let bits = unit.saturating_sub(word * 64);
        if bits >= 64 {
            u64::MAX
        } else {
            (1 << bits) - 1
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{collections::HashSet, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    /// Unit by unit, as an independent reference.
    fn bits(units: Units) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        for unit in units.first..units.end {
            words[unit as usize / 64] |= 1 << (unit % 64);
        }
        words
    }

    proptest! {
        #[test]
        fn masks_are_the_units(offset in 0u32..8192, len in 1u32..=MOST_BYTES) {
            let offset = offset * 8;
            prop_assume!(offset + len <= MOST_BYTES);
            let units = Units::of(offset, len, false).unwrap();
            let masks: Vec<u64> = (0..WORDS as u32).map(|word| units.mask(word)).collect();
            prop_assert_eq!(&masks[..], &bits(units)[..]);
            let ones: u32 = masks.iter().map(|mask| mask.count_ones()).sum();
            prop_assert_eq!(ones, units.count());
            prop_assert!(masks[..units.first_word() as usize].iter().all(|&mask| mask == 0));
        }

        #[test]
        fn pieces_of_a_small_mtu_have_a_place_each(len in 512u32..1500) {
            let len = len & !7;
            let mut places = HashSet::new();
            for offset in (0..MOST_BYTES - 7).step_by(len as usize) {
                prop_assert!(place(offset) < PLACES);
                prop_assert!(places.insert(place(offset)), "{} is taken", offset);
            }
        }
    }

    #[test]
    fn the_first_place_is_the_first_fragments() {
        assert_eq!((place(0), place(8), place(512), place(520)), (0, 1, 1, 2));
        assert_eq!(place(65528), PLACES - 1);
    }

    #[test]
    fn fragments_that_cannot_be() {
        assert_eq!(Units::of(0, 0, true), None, "empty");
        assert_eq!(
            Units::of(0, 12, true),
            None,
            "the next one would overlap it"
        );
        assert_eq!(
            Units::of(65528, 8, false),
            None,
            "beyond the largest datagram"
        );
        let last = Units::of(65528, 7, false).unwrap();
        assert_eq!((last.first, last.end), (8191, 8192));
        assert_eq!(Units::of(8, 3, false).map(Units::count), Some(1));
    }

    #[test]
    fn an_identifier_is_used_again() {
        assert!(!is_over(100, 100, true) && !is_over(100, 101, true));
        assert!(is_over(100, 102, true) && !is_over(100, 102, false));
        assert!(!is_over(100, 100 + LIFE, false) && is_over(100, 101 + LIFE, false));
        assert!(!is_over(101, 100, true), "the clock of another CPU");
    }

    #[test]
    fn whatever_tells_datagrams_apart_is_in_the_hash() {
        let one = FragmentKey4 {
            src: Ip4::new([10, 1, 0, 2]),
            dst: Ip4::new([10, 1, 0, 1]),
            id: 7,
            proto: 17,
            zone: 0,
            scope: 0,
        };
        let others = [
            FragmentKey4 {
                src: one.dst,
                dst: one.src,
                ..one
            },
            FragmentKey4 { id: 8, ..one },
            FragmentKey4 { proto: 1, ..one },
            FragmentKey4 { zone: 1, ..one },
            FragmentKey4 { scope: 1, ..one },
        ];
        let hashes: HashSet<u64> = others.iter().chain([&one]).map(FragmentKey::hash).collect();
        assert_eq!(hashes.len(), others.len() + 1);
    }
}
