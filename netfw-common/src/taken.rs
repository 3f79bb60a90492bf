//! Which ports processes of the node may not bind because they are published, and not by a container runtime that
//! binds them itself: a bit for each, in words,
//! for each protocol that the kernel asks programs about (`bind` of SCTP has no hook).
//!
//! A bit says that some address has a publish there, which is all that a socket of every address needs
//! to know. Of which address, the publishes themselves say.

use crate::tuple::proto;

const WORDS_EACH: u32 = (1 << 16) / u64::BITS;

const PROTOCOLS: [u8; 2] = [proto::TCP, proto::UDP];

/// Words of a family's map.
pub const WORDS: u32 = PROTOCOLS.len() as u32 * WORDS_EACH;

/// The word that has a port's bit, and the bit there. None for protocols that have no bits.
#[inline(always)]
pub fn bit(proto: u8, port: u16) -> Option<(u32, u64)> {
    let block = match proto {
        proto::TCP => 0,
        proto::UDP => WORDS_EACH,
        _ => return None,
    };
    let port = u32::from(port);
    Some((block + port / u64::BITS, 1 << (port % u64::BITS)))
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_port_has_a_bit_of_its_own() {
        let mut seen = HashSet::new();
        for proto in PROTOCOLS {
            for port in 0..=u16::MAX {
                let (word, bit) = bit(proto, port).unwrap();
                assert!(word < WORDS && bit.is_power_of_two());
                assert!(seen.insert((word, bit)), "{proto} {port}");
            }
        }
        assert_eq!(seen.len() as u32, WORDS * u64::BITS);
        assert_eq!(bit(proto::SCTP, 80), None);
        assert_eq!(bit(proto::ICMP, 80), None);
    }
}
