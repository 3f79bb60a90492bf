//! Addresses of containers: which is next, and why one that was asked for cannot be had.
//!
//! Pure: the caller brings what is taken.

use std::{collections::BTreeSet, net::Ipv4Addr};

use ipnet::Ipv4Net;

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AddressError {
    #[error("{ip} does not lie in the subnet {subnet} of the network: ask for an address in it")]
    Outside { ip: Ipv4Addr, subnet: Ipv4Net },
    #[error("{ip} is the gateway of {subnet}: ask for another address")]
    Gateway { ip: Ipv4Addr, subnet: Ipv4Net },
    #[error("{ip} is the network address of {subnet}: ask for another address")]
    NetworkAddress { ip: Ipv4Addr, subnet: Ipv4Net },
    #[error("{ip} is the broadcast address of {subnet}: ask for another address")]
    Broadcast { ip: Ipv4Addr, subnet: Ipv4Net },
    #[error("{ip} is taken already: ask for another address, or for none to be given a free one")]
    Taken { ip: Ipv4Addr },
    #[error("no address of {subnet} is free: remove endpoints that are no longer needed")]
    Full { subnet: Ipv4Net },
}

/// May a container have `ip`?
pub fn check(
    ip: Ipv4Addr,
    subnet: Ipv4Net,
    gateway: Ipv4Addr,
    taken: &BTreeSet<Ipv4Addr>,
) -> Result<(), AddressError> {
    if !subnet.contains(&ip) {
        return Err(AddressError::Outside { ip, subnet });
    }
    if ip == gateway {
        return Err(AddressError::Gateway { ip, subnet });
    }
    // RFC 3021: a /31 has neither.
    if subnet.prefix_len() < 31 {
        if ip == subnet.network() {
            return Err(AddressError::NetworkAddress { ip, subnet });
        }
        if ip == subnet.broadcast() {
            return Err(AddressError::Broadcast { ip, subnet });
        }
    }
    if taken.contains(&ip) {
        return Err(AddressError::Taken { ip });
    }
    Ok(())
}

/// The first free address behind `last`, around the end of the subnet.
pub fn next(
    subnet: Ipv4Net,
    gateway: Ipv4Addr,
    taken: &BTreeSet<Ipv4Addr>,
    last: Ipv4Addr,
) -> Result<Ipv4Addr, AddressError> {
    let base = u32::from(subnet.network());
    let size = 1u64 << (32 - subnet.prefix_len());
    let start = u64::from(u32::from(last).wrapping_sub(base)) + 1;
    // Everything taken lies in the way at most once, so this ends early even in a /8.
    (0..size)
        .map(|n| Ipv4Addr::from(base + ((start + n) % size) as u32))
        .find(|ip| check(*ip, subnet, gateway, taken).is_ok())
        .ok_or(AddressError::Full { subnet })
}

/// The MAC address for a container's address: locally administered, and the same whenever the
/// address is given out again, so that nobody's neighbour cache is wrong then.
pub fn mac_for(ip: Ipv4Addr) -> crate::name::Mac {
    let [a, b, c, d] = ip.octets();
    crate::name::Mac([0x02, 0x6e, a, b, c, d])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(s: &str) -> Ipv4Net {
        s.parse().unwrap()
    }

    fn ip(s: &str) -> Ipv4Addr {
        s.parse().unwrap()
    }

    #[test]
    fn what_cannot_be_had() {
        let subnet = net("172.18.0.0/24");
        let gateway = ip("172.18.0.1");
        let taken = BTreeSet::from([ip("172.18.0.9")]);
        let check = |s: &str| check(ip(s), subnet, gateway, &taken);
        assert!(check("172.18.0.2").is_ok());
        assert!(matches!(
            check("172.18.1.0"),
            Err(AddressError::Outside { .. })
        ));
        assert!(matches!(
            check("172.18.0.1"),
            Err(AddressError::Gateway { .. })
        ));
        assert!(matches!(
            check("172.18.0.0"),
            Err(AddressError::NetworkAddress { .. })
        ));
        assert!(matches!(
            check("172.18.0.255"),
            Err(AddressError::Broadcast { .. })
        ));
        assert!(matches!(
            check("172.18.0.9"),
            Err(AddressError::Taken { .. })
        ));
    }

    #[test]
    fn an_address_rests_before_it_is_given_again() {
        let subnet = net("10.0.0.0/29");
        let gateway = ip("10.0.0.1");
        let mut last = gateway;
        let mut given = Vec::new();
        for _ in 0..6 {
            last = next(subnet, gateway, &BTreeSet::new(), last).unwrap();
            given.push(last.octets()[3]);
        }
        assert_eq!(given, [2, 3, 4, 5, 6, 2]);
    }

    #[test]
    fn a_full_subnet_says_so() {
        let subnet = net("10.0.0.0/30");
        let taken = BTreeSet::from([ip("10.0.0.2")]);
        assert!(matches!(
            next(subnet, ip("10.0.0.1"), &taken, ip("10.0.0.2")),
            Err(AddressError::Full { .. })
        ));
    }

    proptest! {
        #[test]
        fn what_is_given_may_be_had(
            addr in any::<u32>(),
            prefix in 20u8..=32,
            last in any::<u32>(),
            taken in proptest::collection::btree_set(0u32..4096, 0..64),
        ) {
            let subnet = Ipv4Net::new(addr.into(), prefix).unwrap().trunc();
            let base = u32::from(subnet.network());
            let gateway = Ipv4Addr::from(base.saturating_add(1));
            let taken = taken.into_iter().map(|n| Ipv4Addr::from(base.saturating_add(n))).collect();
            if let Ok(ip) = next(subnet, gateway, &taken, last.into()) {
                prop_assert_eq!(check(ip, subnet, gateway, &taken), Ok(()));
            }
        }
    }
}
