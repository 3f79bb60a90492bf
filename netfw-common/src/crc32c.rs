//! CRC32c, SCTP's checksum (RFC 9260 6.8, appendix A), changed without reading the packet.
//!
//! A CRC is linear over GF(2): where bits of a message change, its CRC changes by what those bits
//! alone, in a message of zeros, contribute; how the CRC is begun and ended cancels out. Four bytes
//! `d` with `n` bytes from their start to the message's end contribute `d · x^(8n)` modulo the
//! polynomial. As with Internet checksums, damage stays visible.
//!
//! Polynomials are reflected, as usual for this CRC: the lowest bit of a number is the highest power.

/// x^32 is this, modulo the polynomial.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// 1, the zeroth power.
const ONE: u32 = 1 << 31;

/// x^(8n), and x^(8·256·n), for n from 0 to 255: two products give every length below 2^16.
static POWERS: [[u32; 256]; 2] = [powers(8), powers(8 * 256)];

/// The powers 0, `step`, 2·`step` and so on of x.
const fn powers(step: u32) -> [u32; 256] {
    let mut base = ONE;
    let mut bit = 0;
    while bit < step {
        base = times_x(base);
        bit += 1;
    }
    let mut powers = [ONE; 256];
    let mut n = 1;
    while n < powers.len() {
        powers[n] = product(powers[n - 1], base);
        n += 1;
    }
    powers
}

#[inline(always)]
const fn times_x(a: u32) -> u32 {
    // No branch: to the verifier each would be two ways.
    (a >> 1) ^ (POLYNOMIAL & (a & 1).wrapping_neg())
}

#[inline(always)]
const fn product(a: u32, b: u32) -> u32 {
    let (mut left, mut power, mut sum) = (a, b, 0);
    let mut bit = 0;
    while bit < 32 {
        sum ^= power & (left >> 31).wrapping_neg();
        left <<= 1;
        power = times_x(power);
        bit += 1;
    }
    sum
}

/// By which bits the CRC of a message changes, of which the first four bytes change by `bits`, as a
/// little-endian number. `len` is the message's length in bytes, at least 4 and below 2^16.
///
/// SCTP's checksum field holds the CRC as a little-endian number.
#[inline(always)]
pub fn change(bits: u32, len: u32) -> u32 {
    let [low, high, ..] = len.to_le_bytes();
    let [bytes, pages] = &POWERS;
    product(
        product(bits, bytes[usize::from(low)]),
        pages[usize::from(high)],
    )
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use crc32c::crc32c;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_change_equals_a_recomputation(
            before in proptest::collection::vec(any::<u8>(), 4..2000),
            to in any::<[u8; 4]>(),
        ) {
            let mut after: Vec<u8> = before.clone();
            after[..4].copy_from_slice(&to);
            let bits = u32::from_le_bytes(before[..4].try_into().unwrap()) ^ u32::from_le_bytes(to);
            let changed = change(bits, before.len() as u32);
            prop_assert_eq!(crc32c(&before) ^ changed, crc32c(&after));
        }
    }

    #[test]
    fn every_length_is_right() {
        let mut zeros = std::vec![0u8; 0xffff];
        let mut ones = zeros.clone();
        ones[..4].copy_from_slice(&0xdead_beef_u32.to_le_bytes());
        for len in (4..0xffff)
            .step_by(251)
            .chain([4, 255, 256, 257, 0xff00, 0xffff])
        {
            let wanted = crc32c(&zeros[..len]) ^ crc32c(&ones[..len]);
            assert_eq!(change(0xdead_beef, len as u32), wanted, "{len}");
        }
        // Nothing changed, nothing to change.
        zeros.truncate(64);
        assert_eq!(change(0, 64), 0);
    }
}
