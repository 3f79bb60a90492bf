//! Fragments: what is remembered of a datagram that comes in pieces, and the pieces that came before
//! the one with the ports.
//!
//! Only the first fragment has the transport header. What it says is kept for the others; those that
//! come before it wait, as copies, and are received once more when it has come. Nothing is put
//! together: each fragment goes on by itself, and its receiver does that.

use core::cell::UnsafeCell;

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

/// Words of 64 units, 512 bytes, in the largest datagram.
const WORDS: usize = 128;

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

/// An integer in a map, which any CPU may read and write at any time.
#[repr(transparent)]
pub struct Shared<T>(UnsafeCell<T>);

// SAFETY: reads and writes are single instructions each, and any value is one that makes sense.
unsafe impl<T: Copy + Send> Sync for Shared<T> {}

impl<T: Copy> Shared<T> {
    #[inline(always)]
    pub fn get(&self) -> T {
        // SAFETY: see above. Volatile, because others write.
        unsafe { self.0.get().read_volatile() }
    }

    #[inline(always)]
    pub fn set(&self, value: T) {
        // SAFETY: as above.
        unsafe { self.0.get().write_volatile(value) };
    }
}

/// A datagram of which fragments have been seen. Map `FRAGMENTS4|6`: LRU hash; gone once all of it
/// has been seen.
///
/// Layout, no padding: 1080 bytes.
#[repr(C)]
pub struct Datagram {
    pub received: Received,
    /// The tick of the last piece.
    pub seen: Shared<u32>,
    /// Units that have gone on.
    pub sum: Shared<u32>,
    /// Units in all; 0 until the last fragment has come.
    pub total: Shared<u32>,
    /// The ports of the first fragment's tuple, as in [`crate::tuple::Tuple`], and its protocol.
    pub sport: Be16,
    pub dport: Be16,
    pub proto: u8,
    /// Has the first fragment come (1)? Otherwise (0) pieces wait for it.
    pub known: u8,
    /// Have pieces waited for it (1)?
    pub awaited: u8,
    /// Has all been done for it (1)? If not, its flow is being made.
    pub settled: Shared<u8>,
    pub reserved: [u8; 4],
}

const _: () = assert!(size_of::<Datagram>() == 1080);

impl Datagram {
    /// Notes that a piece goes on. Is it the last that was missing?
    #[inline(always)]
    pub fn add(&self, units: Units, more: bool, now: u32) -> bool {
        self.seen.set(now);
        let sum = self.sum.get() + units.count();
        self.sum.set(sum);
        if !more {
            self.total.set(units.end);
        }
        self.total.get() == sum
    }

    /// Is it over at `now`? `overlaps`: a piece has come that overlaps it.
    #[inline(always)]
    pub fn is_over(&self, now: u32, overlaps: bool) -> bool {
        is_over(self.seen.get(), now, overlaps)
    }
}

/// Which units have come. A piece changes the two words in which it begins and ends, and for all
/// between them a bit each; so no loop is needed, nor one by which the verifier would go.
#[repr(C)]
pub struct Received {
    /// A bit for each unit of the words that are not [full](Self::full).
    units: [Shared<u64>; WORDS],
    /// A bit for each word of which a unit has come.
    begun: [Shared<u64>; WORDS / 64],
    /// A bit for each word that has come whole with one piece.
    full: [Shared<u64>; WORDS / 64],
}

impl Received {
    /// Adds a piece. False where it overlaps what is there; a part of it may have been added then.
    #[inline(always)]
    pub fn add(&self, units: Units) -> bool {
        let (first, last) = (units.first / 64, (units.end - 1) / 64);
        let head = u64::MAX << (units.first % 64);
        let tail = u64::MAX >> (63 - (units.end - 1) % 64);
        if first == last {
            return self.add_to(first, head & tail);
        }
        self.add_to(first, head) && self.add_to(last, tail) && self.add_between(first, last)
    }

    /// Adds units of one word.
    #[inline(always)]
    fn add_to(&self, word: u32, units: u64) -> bool {
        // The mask changes nothing; the verifier wants to see it.
        let word = word as usize & (WORDS - 1);
        let (half, bit) = (word / 64, 1 << (word % 64));
        let old = self.units[word].get();
        let begun = self.begun[half].get();
        if old & units != 0 || self.full[half].get() & bit != 0 {
            return false;
        }
        self.units[word].set(old | units);
        self.begun[half].set(begun | bit);
        true
    }

    /// Adds the whole words between two.
    #[inline(always)]
    fn add_between(&self, first: u32, last: u32) -> bool {
        for half in 0..WORDS / 64 {
            let base = half as u32 * 64;
            let words = below(last, base) & !below(first + 1, base);
            let begun = self.begun[half].get();
            if begun & words != 0 {
                return false;
            }
            self.begun[half].set(begun | words);
            let full = self.full[half].get();
            self.full[half].set(full | words);
        }
        true
    }
}

/// The bits of a word of 64, of which the first stands for `base`, for what is below `end`.
#[inline(always)]
const fn below(end: u32, base: u32) -> u64 {
    let bits = end.saturating_sub(base);
    if bits >= 64 {
        u64::MAX
    } else {
        (1 << bits) - 1
    }
}

/// Which piece of which datagram waits. 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct HeldKey {
    /// [`FragmentKey::hash`].
    pub datagram: u64,
    /// The unit with which the piece begins.
    pub first: u32,
    /// Where its network header begins: a frame cannot be made one of another kind of link.
    pub network: u32,
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

/// Is a datagram whose last piece came at `seen` over at `now`? `overlaps`: a piece has come that
/// overlaps it.
#[inline(always)]
pub const fn is_over(seen: u32, now: u32, overlaps: bool) -> bool {
    let age = now.wrapping_sub(seen);
    // It may lie a tick ahead: another CPU read the clock a moment later.
    age < u32::MAX / 2 && age > if overlaps { REUSE - 1 } else { LIFE }
}

/// The part of its datagram that a fragment is, in units of 8 bytes, the last one perhaps not full.
#[repr(C)]
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
        if len == 0 || offset + len > MOST_BYTES || more && !len.is_multiple_of(8) {
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
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{collections::HashSet, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a set of units.
        #[test]
        fn overlaps_are_found(pieces in proptest::collection::vec((0u32..1100, 1u32..600), 1..20)) {
            // SAFETY: integers.
            let received: Received = unsafe { core::mem::zeroed() };
            let mut reference = HashSet::new();
            for (first, len) in pieces {
                let units = Units { first, end: first + len };
                let overlaps = (first..first + len).any(|unit| reference.contains(&unit));
                prop_assert_eq!(received.add(units), !overlaps);
                if overlaps {
                    return Ok(());
                }
                reference.extend(first..first + len);
            }
        }

        /// In any order, with pieces of one length each.
        #[test]
        fn a_datagram_is_complete_once(len in 1u32..1200, bytes in 9u32..=MOST_BYTES, seed in any::<u64>()) {
            // SAFETY: integers.
            let datagram: Datagram = unsafe { core::mem::zeroed() };
            let mut pieces: Vec<Units> = (0..bytes)
                .step_by(len as usize * 8)
                .map(|offset| Units::of(offset, (bytes - offset).min(len * 8), false).unwrap())
                .collect();
            let last = pieces[pieces.len() - 1];
            pieces.sort_by_key(|units| u64::from(units.first + 1).wrapping_mul(seed | 1));
            for (n, units) in pieces.iter().enumerate() {
                prop_assert!(datagram.received.add(*units));
                let complete = datagram.add(*units, *units != last, 7);
                prop_assert_eq!(complete, n == pieces.len() - 1);
            }
            for units in pieces {
                prop_assert!(!datagram.received.add(units), "{:?} once more", units);
            }
        }
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
