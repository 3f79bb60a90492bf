//! Internet checksum arithmetic (RFC 1071, 1624).
//!
//! Checksums are updated by difference and never recomputed, so that damage stays visible. Sums
//! are over 16-bit words as they lie in memory: the ones' complement sum does not depend on byte
//! order (RFC 1071 2(B)), so nothing is swapped.

/// Folds a sum into 16 bits (not complemented).
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}

/// As much as eight 32-bit words can sum up to; and 0 in ones' complement, as all multiples of 0xffff
/// are.
const ZERO: u64 = 8 * 0xffff_ffff;

/// A change of words: `new` minus `old` in ones' complement. Both are sums of up to eight 32-bit words
/// (or words of 16 bits, which are less).
///
/// Not folded, since that is most of the work: differences are added up, and [`update`] folds them.
#[inline(always)]
pub const fn difference(old: u64, new: u64) -> u64 {
    new + (ZERO - old)
}

/// The opposite of a sum of up to two differences.
#[inline(always)]
pub const fn negated(diff: u64) -> u64 {
    4 * ZERO - diff
}

/// The checksum field `csum` after words changed by `diff` (RFC 1624, equation 3).
#[inline(always)]
pub const fn update(csum: u16, diff: u64) -> u16 {
    !fold((csum ^ 0xffff) as u64 + diff)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// RFC 1071, word by word, as an independent reference.
    fn checksum(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_ne_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            if sum > 0xffff {
                sum = (sum & 0xffff) + 1;
            }
        }
        !(sum as u16)
    }

    fn sum32(bytes: &[u8]) -> u64 {
        bytes
            .chunks(4)
            .map(|four| u64::from(u32::from_ne_bytes(four.try_into().unwrap())))
            .sum()
    }

    proptest! {
        #[test]
        fn an_update_equals_a_recomputation(
            before in proptest::collection::vec(any::<u8>(), 40),
            change in proptest::collection::vec(any::<u8>(), 8),
            at in 0usize..8,
        ) {
            let mut after: Vec<u8> = before.clone();
            let at = at * 4;
            after[at..at + 8].copy_from_slice(&change);
            let diff = difference(sum32(&before[at..at + 8]), sum32(&change));
            let updated = update(checksum(&before), diff);
            // 0 and 0xffff are the same number in ones' complement; which of the two comes out
            // depends on the way there. Verification accepts both.
            let wanted = checksum(&after);
            prop_assert!(updated == wanted || (updated ^ wanted) == 0xffff && (updated == 0 || wanted == 0));
        }

        #[test]
        fn a_difference_and_its_opposite_change_nothing(
            csum in 1u16..0xffff,
            words in proptest::array::uniform4(any::<u32>()),
        ) {
            let [a, b, c, d] = words.map(u64::from);
            let diff = difference(a + b, c + d) + difference(a, d);
            let there = update(csum, diff);
            prop_assert_eq!(update(there, negated(diff)), csum);
            prop_assert_eq!(update(csum, diff + negated(diff)), csum);
        }

        #[test]
        fn damage_stays_visible(before in any::<[u8; 20]>(), damage in 1u16..0xffff, to in any::<u32>()) {
            let good = checksum(&before);
            let bad = !fold(u64::from(!good) + u64::from(damage));
            prop_assume!(good != bad);
            let mut after = before;
            after[4..8].copy_from_slice(&to.to_ne_bytes());
            let diff = difference(sum32(&before[4..8]), u64::from(to));
            let updated = update(bad, diff);
            let wanted = checksum(&after);
            prop_assert!(updated != wanted);
        }
    }

    #[test]
    fn fold_takes_the_largest_sums() {
        assert_eq!(fold(u64::MAX), 0xffff);
        assert_eq!(fold(0x1_0000), 1);
        assert_eq!(fold(0), 0);
    }
}
