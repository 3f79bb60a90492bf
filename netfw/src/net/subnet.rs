//! The choice of a subnet that is in nobody's way.
//!
//! In the order in which Docker offers its address pools, but for 172.17.0.0/16, which is left to
//! Docker itself, so that both can live on one node whichever comes first; then 10.0.0.0/8, which
//! Docker does not use, for nodes where all of those are taken.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};

/// The first of the candidates that overlaps none of `taken`: the /16s of 172.18.0.0 to
/// 172.31.0.0, the /20s of 192.168.0.0/16, the /16s of 10.0.0.0/8. Default routes are no obstacle
/// and may be among `taken`.
pub fn choose(taken: &[IpNet]) -> Option<Ipv4Net> {
    let taken: Vec<Ipv4Net> = taken
        .iter()
        .filter_map(|net| match net {
            IpNet::V4(net) if net.prefix_len() > 0 => Some(*net),
            _ => None,
        })
        .collect();
    candidates().find(|candidate| {
        !taken
            .iter()
            .any(|net| net.contains(candidate) || candidate.contains(net))
    })
}

fn candidates() -> impl Iterator<Item = Ipv4Net> {
    let net = |a, b, c, len| Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, 0), len);
    let classic = (18..=31).map(move |b| net(172, b, 0, 16));
    let small = (0..=15).map(move |n: u8| net(192, 168, n * 16, 20));
    let large = (0..=255).map(move |b| net(10, b, 0, 16));
    classic.chain(small).chain(large)
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
