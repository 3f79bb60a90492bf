//! The choice of a subnet that is in nobody's way.
//!
//! IPv4: in the order in which Docker offers its address pools, but for 172.17.0.0/16, which is left
//! to Docker itself, so that both can live on one node whichever comes first; then 10.0.0.0/8, which
//! Docker does not use, for nodes where all of those are taken.
//!
//! IPv6: /64s of one random /48 per node, as RFC 4193 wants it: nobody else has it, so nodes can be
//! joined later.

use std::{
    hash::{BuildHasher, RandomState},
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Would an address lie in both?
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// The first of the candidates that overlaps none of `taken`: the /16s of 172.18.0.0 to
/// 172.31.0.0, the /20s of 192.168.0.0/16, the /16s of 10.0.0.0/8. Default routes are no obstacle
/// and may be among `taken`.
pub fn choose(taken: &[IpNet]) -> Option<Ipv4Net> {
    candidates().find(|candidate| {
        let candidate = IpNet::V4(*candidate);
        !taken
            .iter()
            .any(|net| net.prefix_len() > 0 && overlap(net, &candidate))
    })
}

fn candidates() -> impl Iterator<Item = Ipv4Net> {
    let net = |a, b, c, len| Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, 0), len);
    let classic = (18..=31).map(move |b| net(172, b, 0, 16));
    let small = (0..=15).map(move |n: u8| net(192, 168, n * 16, 20));
    let large = (0..=255).map(move |b| net(10, b, 0, 16));
    classic.chain(small).chain(large)
}

/// A /48 of unique local addresses with a random global ID (RFC 4193 3.2).
pub fn random_prefix() -> Ipv6Net {
    // SipHash under a key from the operating system: nobody can tell it in advance.
    let random = RandomState::new().hash_one("netfw's unique local addresses");
    let [_, _, _, a, b, c, d, e] = random.to_be_bytes();
    let pair = |high, low| u16::from_be_bytes([high, low]);
    let addr = Ipv6Addr::new(pair(0xfd, a), pair(b, c), pair(d, e), 0, 0, 0, 0, 0);
    Ipv6Net::new_assert(addr, 48)
}

/// The first /64 of `prefix`, a /48, that overlaps none of `taken`. What is wider than the /48 (a
/// site that routes all of `fd00::/8`) is no obstacle: the random prefix is the node's all the same.
pub fn choose_within(prefix: Ipv6Net, taken: &[IpNet]) -> Option<Ipv6Net> {
    let base = u128::from(prefix.network());
    (0..1 << 16)
        .map(|n| Ipv6Net::new_assert((base | n << 64).into(), 64))
        .find(|candidate| {
            let candidate = IpNet::V6(*candidate);
            !taken
                .iter()
                .any(|net| net.prefix_len() >= prefix.prefix_len() && overlap(net, &candidate))
        })
}

/// The link-local address that an interface with this MAC address has (RFC 4291 appendix A).
pub fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let octets = [
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ];
    octets.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn the_first_free_one() {
        for (taken, want) in [
            (&[][..], Some("172.18.0.0/16")),
            (&["0.0.0.0/0", "::/0"], Some("172.18.0.0/16")),
            (&["172.17.0.0/16"], Some("172.18.0.0/16")),
            (&["172.18.7.1/32"], Some("172.19.0.0/16")),
            (&["172.16.0.0/12"], Some("192.168.0.0/20")),
            (
                &["172.16.0.0/12", "192.168.1.0/24"],
                Some("192.168.16.0/20"),
            ),
            (&["172.16.0.0/12", "192.168.0.0/16"], Some("10.0.0.0/16")),
            (&["172.16.0.0/12", "192.168.0.0/16", "10.0.0.0/8"], None),
            (&["128.0.0.0/1", "0.0.0.0/1"], None),
        ] {
            let want = want.map(|net| net.parse().unwrap());
            assert_eq!(choose(&nets(taken)), want, "{taken:?}");
        }
    }

    #[test]
    fn a_prefix_is_random_and_unique_local() {
        let (a, b) = (random_prefix(), random_prefix());
        assert_ne!(a, b);
        for prefix in [a, b] {
            assert!(prefix.network().octets()[0] == 0xfd && prefix.prefix_len() == 48);
            assert_eq!(prefix, prefix.trunc());
        }
    }

    #[test]
    fn the_first_free_64() {
        let prefix = "fd12:3456:789a::/48".parse().unwrap();
        for (taken, want) in [
            (&[][..], Some("fd12:3456:789a::/64")),
            (
                &["::/0", "fd00::/8", "10.0.0.0/8"],
                Some("fd12:3456:789a::/64"),
            ),
            (&["fd12:3456:789a::/64"], Some("fd12:3456:789a:1::/64")),
            (&["fd12:3456:789a::7/128"], Some("fd12:3456:789a:1::/64")),
            (&["fd12:3456:789a::/48"], None),
        ] {
            let want = want.map(|net| net.parse().unwrap());
            assert_eq!(choose_within(prefix, &nets(taken)), want, "{taken:?}");
        }
    }

    #[test]
    fn a_link_local_address_is_its_mac() {
        let address = link_local([0x02, 0x6e, 0xac, 0x12, 0x00, 0x01]);
        assert_eq!(address.to_string(), "fe80::6e:acff:fe12:1");
    }

    proptest! {
        #[test]
        fn it_never_overlaps(taken in prop::collection::vec((any::<u32>(), 1u8..=32), 0..40)) {
            // Mostly within the private ranges, where it matters.
            let taken: Vec<IpNet> = taken
                .iter()
                .map(|&(addr, len)| {
                    let addr = match addr % 3 {
                        0 => 0x0a00_0000 | addr >> 8,
                        1 => 0xac10_0000 | addr >> 12,
                        _ => 0xc0a8_0000 | addr >> 16,
                    };
                    IpNet::V4(Ipv4Net::new_assert(addr.into(), len.max(8)).trunc())
                })
                .collect();
            if let Some(chosen) = choose(&taken) {
                for net in &taken {
                    let IpNet::V4(net) = net else { continue };
                    prop_assert!(chosen.broadcast() < net.network() || net.broadcast() < chosen.network());
                }
            }
        }
    }
}
