//! The choice of a source port for masquerade.
//!
//! The port that the container chose is kept where it lies in the range; otherwise the search
//! starts at a port that only the internal endpoint (protocol, address, port) decides, so that one
//! internal port keeps one external port towards all destinations for as long as it is free
//! (endpoint-independent mapping, as far as a port-restricted NAT goes).

/// Ports tried before the packet is dropped. With half of the range taken, all tries fail once in
/// 2^32 packets.
pub const TRIES: u32 = 32;

/// From one try to the next. A prime above every range's size, so that tries meet each port once;
/// far, so that they leave a block of ports that is published as a range.
const STRIDE: u64 = 2_654_435_761;

/// Ports come in groups of so many, of which nobody has all.
pub const GROUP: u16 = 4;

/// How far the ports of a group are apart: a published range takes whole groups, but at its ends; and who
/// binds some ports in a row has each in a group of its own.
const APART: u32 = 6;

/// The `n`th other port (1 to [`GROUP`] - 1) of the group that `port` is in.
///
/// A container takes a port only while one of these is not its own, so it has three quarters at most, and the
/// rest is enough for others: [`TRIES`] candidates find none of a quarter once in 10,000 times.
#[inline(always)]
pub const fn fellow(port: u16, n: u16) -> u16 {
    port ^ (n << APART)
}

/// Ports to choose from, first and last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub min: u16,
    pub max: u16,
}

impl Range {
    /// The `attempt`th port to try (from 0) for a packet from source port `port`, with `hash` of the
    /// internal endpoint. Always within the range, which must not be empty; attempts below the
    /// range's size never name a port twice, except that the kept port may come up again.
    #[inline(always)]
    pub fn candidate(self, port: u16, hash: u32, attempt: u32) -> u16 {
        if attempt == 0 && self.contains(port) {
            return port;
        }
        let size = self.size();
        let start = if self.contains(port) {
            (port - self.min) as u32
        } else {
            scale(hash, size)
        };
        let offset = u64::from(start) + u64::from(attempt) * STRIDE;
        self.min + (offset % u64::from(size)) as u16
    }

    /// Both halves. Neither is empty: of a single port, both are that port.
    #[inline(always)]
    pub fn lower_half(self) -> Self {
        Self {
            min: self.min,
            max: self.min + (self.size() / 2).max(1) as u16 - 1,
        }
    }

    #[inline(always)]
    pub fn upper_half(self) -> Self {
        Self {
            min: self.min + (self.size() / 2) as u16,
            max: self.max,
        }
    }

    #[inline(always)]
    pub fn contains(self, port: u16) -> bool {
        self.min <= port && port <= self.max
    }

    /// At least 1, whatever the fields say.
    #[inline(always)]
    pub fn size(self) -> u32 {
        (self.max.saturating_sub(self.min)) as u32 + 1
    }
}

/// `hash` scaled to below `size` (the kernel's `reciprocal_scale`).
#[inline(always)]
const fn scale(hash: u32, size: u32) -> u32 {
    ((hash as u64 * size as u64) >> 32) as u32
}

/// Mixes the internal endpoint into 32 bits (MurmurHash3's finaliser: every input bit changes
/// every output bit with probability near 1/2).
#[inline(always)]
pub const fn hash(addr_sum: u64, port: u16, proto: u8) -> u32 {
    let mut h =
        (addr_sum ^ (addr_sum >> 32)) as u32 ^ ((port as u32) << 8) ^ ((proto as u32) << 24);
    h ^= h >> 16;
    h = h.wrapping_mul(0x85eb_ca6b);
    h ^= h >> 13;
    h = h.wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn candidates_stay_in_the_range(min in 1u16.., span in 0u16..40000, port in any::<u16>(), hash in any::<u32>()) {
            let range = Range { min, max: min.saturating_add(span) };
            for attempt in 0..TRIES {
                prop_assert!(range.contains(range.candidate(port, hash, attempt)));
            }
        }

        #[test]
        fn halves_of_a_range(min in 1u16.., half in 1u16..15000) {
            let min = min.min(35000);
            let range = Range { min, max: min + 2 * half - 1 };
            let halves = (range.lower_half(), range.upper_half());
            prop_assert_eq!(halves.0, Range { min, max: min + half - 1 });
            prop_assert_eq!(halves.1, Range { min: min + half, max: range.max });
            let odd = Range { min, max: min + 2 * half };
            let halves = (odd.lower_half(), odd.upper_half());
            prop_assert_eq!((halves.0.min, halves.1.max), (min, odd.max));
            prop_assert_eq!(halves.0.max + 1, halves.1.min);
        }

        #[test]
        fn candidates_differ(port in any::<u16>(), hash in any::<u32>()) {
            let range = Range { min: 1024, max: 32767 };
            let all: HashSet<u16> = (0..TRIES).map(|n| range.candidate(port, hash, n)).collect();
            prop_assert_eq!(all.len(), TRIES as usize);
        }

        #[test]
        fn a_port_in_the_range_is_kept(port in 1024u16..=32767, hash in any::<u32>()) {
            let range = Range { min: 1024, max: 32767 };
            prop_assert_eq!(range.candidate(port, hash, 0), port);
        }
    }

    #[test]
    fn a_group_is_the_same_to_each_of_its_ports() {
        for port in 1024..=32767 {
            let group = |port| {
                let fellows = (1..GROUP).map(|n| fellow(port, n));
                HashSet::from_iter(fellows.chain([port]))
            };
            let all: HashSet<u16> = group(port);
            assert_eq!(all.len(), GROUP.into());
            for &other in &all {
                assert_eq!(group(other), all, "{port}");
                // Both halves of the default range have whole groups.
                assert_eq!(other < 16896, port < 16896, "{port}");
                assert!((1024..=32767).contains(&other), "{port}");
            }
        }
    }

    #[test]
    fn halves_of_a_single_port() {
        let range = Range { min: 7, max: 7 };
        assert_eq!((range.lower_half(), range.upper_half()), (range, range));
    }

    #[test]
    fn a_published_range_does_not_catch_the_search() {
        let range = Range {
            min: 1024,
            max: 32767,
        };
        let published = 20_000..30_000;
        for port in 40_000..50_000 {
            let free = (0..TRIES)
                .map(|attempt| range.candidate(port, hash(0x0a00_0001, port, 6), attempt))
                .position(|port| !published.contains(&port));
            assert!(free.is_some_and(|tries| tries < 12), "{port}: {free:?}");
        }
    }

    #[test]
    fn neighbours_start_far_apart() {
        let range = Range {
            min: 1024,
            max: 32767,
        };
        let starts: HashSet<u16> = (40000..40100)
            .map(|port| range.candidate(port, hash(0x0a00_0001, port, 17), 0))
            .collect();
        assert!(starts.len() > 95);
    }
}
