//! Addresses of containers: which is next, and why one that was asked for cannot be had.
//!
//! Pure: the caller brings what is taken. IPv4 and IPv6 addresses are numbers of 32 and 128 bits; the
//! rules differ in which of a subnet's are nobody's.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A network's subnet of one family, and what its containers get of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pool {
    pub subnet: IpNet,
    pub gateway: IpAddr,
    /// The address given out last: the search for the next starts behind it, so that an address
    /// rests as long as possible before somebody else gets it.
    pub last: IpAddr,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AddressError {
    #[error("{ip} does not lie in the subnet {subnet} of the network: ask for an address in it")]
    Outside { ip: IpAddr, subnet: IpNet },
    #[error("{ip} is the gateway of {subnet}: ask for another address")]
    Gateway { ip: IpAddr, subnet: IpNet },
    #[error("{ip} is the network address of {subnet}: ask for another address")]
    NetworkAddress { ip: IpAddr, subnet: IpNet },
    #[error(
        "{ip} is the anycast address of the routers of {subnet} (RFC 4291): ask for another address"
    )]
    Anycast { ip: IpAddr, subnet: IpNet },
    #[error("{ip} is the broadcast address of {subnet}: ask for another address")]
    Broadcast { ip: IpAddr, subnet: IpNet },
    #[error("{ip} is taken already: ask for another address, or for none to be given a free one")]
    Taken { ip: IpAddr },
    #[error("no address of {subnet} is free: remove endpoints that are no longer needed")]
    Full { subnet: IpNet },
}

impl Pool {
    /// With `gateway`, or the subnet's first address that can be one.
    pub fn new(subnet: IpNet, gateway: Option<IpAddr>) -> Result<Self, AddressError> {
        let subnet = subnet.trunc();
        let gateway = match gateway {
            Some(gateway) => gateway,
            None => (0..2)
                .map(|n| nth(&subnet, n))
                .find(|ip| host(*ip, &subnet).is_ok())
                .ok_or(AddressError::Full { subnet })?,
        };
        host(gateway, &subnet)?;
        Ok(Self {
            subnet,
            gateway,
            last: gateway,
        })
    }

    /// May a container have `ip`?
    pub fn check(&self, ip: IpAddr, taken: &BTreeSet<IpAddr>) -> Result<(), AddressError> {
        host(ip, &self.subnet)?;
        if ip == self.gateway {
            let subnet = self.subnet;
            return Err(AddressError::Gateway { ip, subnet });
        }
        if taken.contains(&ip) {
            return Err(AddressError::Taken { ip });
        }
        Ok(())
    }

    /// The first free address behind `last`, around the end of the subnet.
    pub fn next(&self, taken: &BTreeSet<IpAddr>) -> Result<IpAddr, AddressError> {
        let host_bits = self.subnet.max_prefix_len() - self.subnet.prefix_len();
        let size = 1u128.checked_shl(host_bits.into()).unwrap_or(u128::MAX);
        let offset = bits(self.last).wrapping_sub(bits(self.subnet.network()));
        let start = (offset % size) + 1;
        // Everything taken lies in the way at most once, so this ends early even in a /64.
        (0..size)
            .map(|n| nth(&self.subnet, (start + n) % size))
            .find(|ip| self.check(*ip, taken).is_ok())
            .ok_or(AddressError::Full {
                subnet: self.subnet,
            })
    }

    /// `ip` with the length of the subnet's prefix.
    pub fn on_link(&self, ip: IpAddr) -> IpNet {
        IpNet::new_assert(ip, self.subnet.prefix_len())
    }
}

/// Can `ip` be a host's in `subnet`?
fn host(ip: IpAddr, subnet: &IpNet) -> Result<(), AddressError> {
    let subnet = *subnet;
    if !subnet.contains(&ip) {
        return Err(AddressError::Outside { ip, subnet });
    }
    // RFC 3021, RFC 6164: a subnet of two addresses has neither.
    if subnet.max_prefix_len() - subnet.prefix_len() < 2 {
        return Ok(());
    }
    if ip == subnet.network() {
        return Err(match ip {
            IpAddr::V4(_) => AddressError::NetworkAddress { ip, subnet },
            IpAddr::V6(_) => AddressError::Anycast { ip, subnet },
        });
    }
    if ip.is_ipv4() && ip == subnet.broadcast() {
        return Err(AddressError::Broadcast { ip, subnet });
    }
    Ok(())
}

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

/// The subnet's address of that number, from 0; `n` lies within the subnet.
fn nth(subnet: &IpNet, n: u128) -> IpAddr {
    match subnet.network() {
        IpAddr::V4(ip) => Ipv4Addr::from(u32::from(ip).wrapping_add(n as u32)).into(),
        IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip).wrapping_add(n)).into(),
    }
}

/// The MAC address for a container's address: locally administered, and the same whenever the
/// address is given out again, so that nobody's neighbour cache is wrong then.
pub fn mac_for(ip: IpAddr) -> crate::name::Mac {
    let (kind, [a, b, c, d]) = match ip {
        IpAddr::V4(ip) => (0x6e, ip.octets()),
        // Of the interface identifier; short ones are told apart by their lower half alone.
        IpAddr::V6(ip) => {
            let identifier = u128::from(ip) as u64;
            (
                0x6f,
                (((identifier >> 32) as u32).wrapping_mul(0x9e37_79b1) ^ identifier as u32)
                    .to_be_bytes(),
            )
        }
    };
    crate::name::Mac([0x02, kind, a, b, c, d])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(subnet: &str) -> Pool {
        Pool::new(subnet.parse().unwrap(), None).unwrap()
    }

    fn ip(s: &str) -> IpAddr {
        s.parse().unwrap()
    }

    #[test]
    fn what_cannot_be_had() {
        use AddressError as E;
        let pool4 = pool("172.18.0.0/24");
        let pool6 = pool("fd00:1::/64");
        let taken = BTreeSet::from([ip("172.18.0.9"), ip("fd00:1::9")]);
        for (pool, free) in [(&pool4, "172.18.0.2"), (&pool6, "fd00:1::2")] {
            assert_eq!(pool.check(ip(free), &taken), Ok(()));
        }
        // The last address of an IPv6 subnet is one like any other.
        assert_eq!(
            pool6.check(ip("fd00:1::ffff:ffff:ffff:ffff"), &taken),
            Ok(())
        );
        let error = |pool: &Pool, text| pool.check(ip(text), &taken).unwrap_err();
        assert!(matches!(error(&pool4, "172.18.1.0"), E::Outside { .. }));
        assert!(matches!(error(&pool4, "fd00:1::2"), E::Outside { .. }));
        assert!(matches!(error(&pool4, "172.18.0.1"), E::Gateway { .. }));
        assert!(matches!(
            error(&pool4, "172.18.0.0"),
            E::NetworkAddress { .. }
        ));
        assert!(matches!(error(&pool4, "172.18.0.255"), E::Broadcast { .. }));
        assert!(matches!(error(&pool4, "172.18.0.9"), E::Taken { .. }));
        assert!(matches!(error(&pool6, "fd00:2::2"), E::Outside { .. }));
        assert!(matches!(error(&pool6, "fd00:1::1"), E::Gateway { .. }));
        assert!(matches!(error(&pool6, "fd00:1::"), E::Anycast { .. }));
        assert!(matches!(error(&pool6, "fd00:1::9"), E::Taken { .. }));
    }

    #[test]
    fn the_gateway_is_the_first_address_or_the_one_asked_for() {
        for (subnet, gateway) in [
            ("172.18.0.0/16", "172.18.0.1"),
            ("10.0.0.0/31", "10.0.0.0"),
            ("fd00:1::/64", "fd00:1::1"),
            ("fd00:1::4/127", "fd00:1::4"),
        ] {
            assert_eq!(pool(subnet).gateway, ip(gateway), "{subnet}");
        }
        let asked = |gateway| Pool::new("10.0.0.0/24".parse().unwrap(), Some(ip(gateway)));
        assert_eq!(asked("10.0.0.254").unwrap().gateway, ip("10.0.0.254"));
        for wrong in ["10.0.1.1", "10.0.0.0", "10.0.0.255", "fd00::1"] {
            assert!(asked(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_address_rests_before_it_is_given_again() {
        let mut pool = pool("10.0.0.0/29");
        let mut given = Vec::new();
        for _ in 0..6 {
            pool.last = pool.next(&BTreeSet::new()).unwrap();
            given.push(bits(pool.last) & 0xff);
        }
        assert_eq!(given, [2, 3, 4, 5, 6, 2]);
    }

    #[test]
    fn addresses_are_short() {
        let mut pool = pool("fd00:1::/64");
        for want in ["fd00:1::2", "fd00:1::3", "fd00:1::4"] {
            pool.last = pool.next(&BTreeSet::new()).unwrap();
            assert_eq!(pool.last.to_string(), want);
        }
    }

    #[test]
    fn a_full_subnet_says_so() {
        for (subnet, only) in [("10.0.0.0/30", "10.0.0.2"), ("fd00::/127", "fd00::1")] {
            let pool = pool(subnet);
            assert_eq!(pool.next(&BTreeSet::new()), Ok(ip(only)));
            let taken = BTreeSet::from([ip(only)]);
            assert!(matches!(pool.next(&taken), Err(AddressError::Full { .. })));
        }
    }

    #[test]
    fn macs_are_unicast_and_differ() {
        let all = [
            "172.18.0.2",
            "172.18.0.3",
            "fd00:1::2",
            "fd00:1::3",
            "fd00:1::1:0:2",
        ];
        let macs: BTreeSet<_> = all.iter().map(|text| mac_for(ip(text))).collect();
        assert_eq!(macs.len(), all.len());
        assert_eq!(mac_for(ip("172.18.0.2")).to_string(), "02:6e:ac:12:00:02");
        assert!(macs.iter().all(|mac| mac.0[0] & 3 == 2));
    }

    proptest! {
        #[test]
        fn what_is_given_may_be_had(
            addr in any::<u32>(),
            prefix in 20u8..=32,
            last in any::<u32>(),
            taken in proptest::collection::btree_set(0u32..4096, 0..64),
        ) {
            let subnet = IpNet::new(Ipv4Addr::from(addr).into(), prefix).unwrap();
            if let Ok(pool) = Pool::new(subnet, None) {
                let taken = taken.iter().map(|n| nth(&pool.subnet, (*n).into())).collect();
                let pool = Pool { last: Ipv4Addr::from(last).into(), ..pool };
                if let Ok(ip) = pool.next(&taken) {
                    prop_assert_eq!(pool.check(ip, &taken), Ok(()));
                }
            }
        }

        #[test]
        fn what_is_given_may_be_had_of_ipv6(
            addr in any::<u128>(),
            prefix in 1u8..=128,
            last in any::<u128>(),
            taken in proptest::collection::btree_set(0u32..4096, 0..64),
        ) {
            let subnet = IpNet::new(Ipv6Addr::from(addr).into(), prefix).unwrap();
            if let Ok(pool) = Pool::new(subnet, None) {
                let taken = taken.iter().map(|n| nth(&pool.subnet, (*n).into())).collect();
                let pool = Pool { last: Ipv6Addr::from(last).into(), ..pool };
                if let Ok(ip) = pool.next(&taken) {
                    prop_assert_eq!(pool.check(ip, &taken), Ok(()));
                }
            }
        }
    }
}
