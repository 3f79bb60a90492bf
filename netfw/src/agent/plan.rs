//! What a new network will be, or why it cannot be. Pure: the caller brings what is in the way.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv6Net};

use super::{error::NetworkError, ipam::Pool};
use crate::{
    api::types::NetworkRequest,
    net::{Address, Route, subnet},
    rules::{Nat, Rules},
};

/// RFC 791: the least that every link carries; RFC 8200: with IPv6.
pub const LEAST_MTU: u32 = 68;
pub const LEAST_MTU6: u32 = 1280;
const MOST_MTU: u32 = u16::MAX as u32;

/// What is in a new network's way, with a name for people.
pub struct Obstacle {
    pub net: IpNet,
    pub what: String,
}

/// What the node routes to or has an address in, and its resolvers.
pub fn of_node(
    routes: &[Route],
    addresses: &[Address],
    resolvers: impl Iterator<Item = IpAddr>,
) -> Vec<Obstacle> {
    let addresses = addresses.iter().filter_map(|a| {
        Some(Obstacle {
            net: IpNet::new(a.addr, a.prefix_len).ok()?.trunc(),
            what: format!("the node's address {}", a.addr),
        })
    });
    let routes = routes.iter().map(|r| Obstacle {
        net: r.dst,
        what: "a route of the node".into(),
    });
    let resolvers = resolvers.map(|server| Obstacle {
        net: server.into(),
        what: format!("the node's resolver {server}"),
    });
    addresses.chain(routes).chain(resolvers).collect()
}

/// What of the node counts for a new network.
pub struct Surroundings<'a> {
    pub obstacles: &'a [Obstacle],
    /// The /48 for IPv6 subnets.
    pub prefix6: Ipv6Net,
    /// Or why it has none.
    pub ipv6: &'a Result<(), String>,
}

/// The subnets and rules of a new network, or why it cannot be.
pub fn plan(
    request: &NetworkRequest,
    around: &Surroundings<'_>,
) -> Result<(Option<Pool>, Option<Pool>, Rules), NetworkError> {
    let rules = rules(request)?;
    let mut pools = [None, None];
    let six = request.ipv6 || request.subnets.iter().any(|net| net.addr().is_ipv6());
    if six && let Err(why) = around.ipv6 {
        return Err(NetworkError::NoIpv6(why.clone()));
    }
    for net in &request.subnets {
        let pool = &mut pools[usize::from(net.addr().is_ipv6())];
        if pool.is_some() {
            return Err(NetworkError::TwoSubnets {
                family: family(net.addr()),
            });
        }
        check_subnet(net)?;
        if let Some(other) = around
            .obstacles
            .iter()
            .find(|o| o.net.prefix_len() > 0 && subnet::overlap(&o.net, net))
        {
            return Err(NetworkError::Overlap {
                subnet: *net,
                other: other.net,
                what: other.what.clone(),
            });
        }
        *pool = Some(Pool::new(*net, None).map_err(|_| NetworkError::Small(*net))?);
    }
    let taken: Vec<IpNet> = around.obstacles.iter().map(|o| o.net).collect();
    let [v4, v6] = &mut pools;
    if request.subnets.is_empty() {
        let net = subnet::choose(&taken).ok_or(NetworkError::NoSubnet)?;
        *v4 = Some(Pool::new(net.into(), None)?);
    }
    if six && v6.is_none() {
        *v6 = Some(pool6(around.prefix6, &taken)?);
    }
    let mut named = [false; 2];
    for gateway in &request.gateways {
        let which = usize::from(gateway.is_ipv6());
        if std::mem::replace(&mut named[which], true) {
            return Err(NetworkError::TwoGateways {
                family: family(*gateway),
            });
        }
        let given = request.subnets.iter().any(|net| net.contains(gateway));
        let Some(pool) = &mut pools[which] else {
            return Err(NetworkError::Gateway {
                gateway: *gateway,
                subnet: None,
            });
        };
        if !given {
            let named = request.subnets.contains(&pool.subnet);
            return Err(match named {
                true => NetworkError::GatewayOutside {
                    gateway: *gateway,
                    subnet: pool.subnet,
                },
                false => NetworkError::Gateway {
                    gateway: *gateway,
                    subnet: Some(pool.subnet),
                },
            });
        }
        *pool = Pool::new(pool.subnet, Some(*gateway))?;
    }
    let [v4, v6] = pools;
    check_mtu(request.mtu, v6.is_some())?;
    Ok((v4, v6, rules))
}

/// May a network of these families have it?
pub fn check_mtu(mtu: Option<u32>, six: bool) -> Result<(), NetworkError> {
    let least = if six { LEAST_MTU6 } else { LEAST_MTU };
    match mtu {
        Some(mtu) if !(least..=MOST_MTU).contains(&mtu) => Err(NetworkError::Mtu {
            mtu,
            least,
            family: if six { "IPv6" } else { "IPv4" },
        }),
        _ => Ok(()),
    }
}

/// The next free /64 of the node's /48.
pub fn pool6(prefix: Ipv6Net, taken: &[IpNet]) -> Result<Pool, NetworkError> {
    let net = subnet::choose_within(prefix, taken).ok_or(NetworkError::NoSubnet6(prefix))?;
    Ok(Pool::new(net.into(), None)?)
}

/// What the request says of its network, unless it contradicts itself.
pub fn rules(request: &NetworkRequest) -> Result<Rules, NetworkError> {
    if request.filter.is_some() && request.nat != Nat::EndpointIndependent {
        return Err(NetworkError::Filter);
    }
    if request.internal && request.routed {
        return Err(NetworkError::InternalRouted);
    }
    // An answer to whoever came by a container's own address must come from there.
    let masquerade = request.masquerade && !request.routed;
    if request.nat == Nat::EndpointIndependent && !masquerade {
        return Err(NetworkError::NatWithoutMasquerade);
    }
    Ok(Rules {
        internal: request.internal,
        routed: request.routed,
        masquerade,
        nat: request.nat,
        filter: request.filter.unwrap_or_default(),
    })
}

/// Can containers live there at all?
fn check_subnet(net: &IpNet) -> Result<(), NetworkError> {
    if *net != net.trunc() {
        return Err(NetworkError::HostBits {
            subnet: *net,
            meant: net.trunc(),
        });
    }
    let special = |text: &str| {
        text.parse()
            .is_ok_and(|special: IpNet| subnet::overlap(&special, net))
    };
    let bad: &[(&str, &str)] = match net {
        IpNet::V4(_) => &[
            ("0.0.0.0/8", "\"this network\""),
            ("127.0.0.0/8", "loopback addresses"),
            ("169.254.0.0/16", "link-local addresses"),
            ("224.0.0.0/3", "multicast and reserved addresses"),
        ],
        IpNet::V6(_) => &[
            ("::/8", "loopback and reserved addresses"),
            ("fe80::/10", "link-local addresses"),
            ("ff00::/8", "multicast addresses"),
        ],
    };
    match bad.iter().find(|(text, _)| special(text)) {
        Some((_, what)) => Err(NetworkError::Special { subnet: *net, what }),
        // A gateway and a container.
        None if net.max_prefix_len() == net.prefix_len() => Err(NetworkError::Small(*net)),
        None => Ok(()),
    }
}

pub fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Filter;

    fn around<'a>(obstacles: &'a [Obstacle], ipv6: &'a Result<(), String>) -> Surroundings<'a> {
        Surroundings {
            obstacles,
            prefix6: "fd12:3456:789a::/48".parse().unwrap(),
            ipv6,
        }
    }

    fn obstacles() -> Vec<Obstacle> {
        [
            ("172.18.0.0/16", "network \"bridge\""),
            ("fd12:3456:789a::/64", "network \"bridge\""),
            ("10.1.0.0/24", "a route of the node"),
            ("0.0.0.0/0", "a route of the node"),
            ("::/0", "a route of the node"),
        ]
        .map(|(net, what)| Obstacle {
            net: net.parse().unwrap(),
            what: what.into(),
        })
        .into()
    }

    /// `subnets`, `gateways` and the rest of a request.
    fn request(subnets: &[&str], gateways: &[&str]) -> NetworkRequest {
        NetworkRequest {
            subnets: subnets.iter().map(|net| net.parse().unwrap()).collect(),
            gateways: gateways.iter().map(|ip| ip.parse().unwrap()).collect(),
            ..crate::document::Network::default().request("n".parse().unwrap())
        }
    }

    fn planned(request: &NetworkRequest) -> Result<Vec<String>, NetworkError> {
        let (v4, v6, _) = plan(request, &around(&obstacles(), &Ok(())))?;
        let pools = v4.iter().chain(&v6);
        Ok(pools
            .map(|pool| format!("{} {}", pool.subnet, pool.gateway))
            .collect())
    }

    #[test]
    fn what_a_network_gets() {
        let dual = |subnets: &[&str]| NetworkRequest {
            ipv6: true,
            ..request(subnets, &[])
        };
        for (request, want) in [
            (request(&[], &[]), &["172.19.0.0/16 172.19.0.1"] as &[&str]),
            (
                dual(&[]),
                &[
                    "172.19.0.0/16 172.19.0.1",
                    "fd12:3456:789a:1::/64 fd12:3456:789a:1::1",
                ],
            ),
            (
                dual(&["10.9.0.0/24"]),
                &[
                    "10.9.0.0/24 10.9.0.1",
                    "fd12:3456:789a:1::/64 fd12:3456:789a:1::1",
                ],
            ),
            (
                request(&["2001:db8:1::/64"], &[]),
                &["2001:db8:1::/64 2001:db8:1::1"],
            ),
            (
                request(&["fd00::/64", "10.9.0.0/24"], &["10.9.0.254", "fd00::fe"]),
                &["10.9.0.0/24 10.9.0.254", "fd00::/64 fd00::fe"],
            ),
        ] {
            assert_eq!(planned(&request).unwrap(), want, "{request:?}");
        }
    }

    #[test]
    fn what_cannot_be() {
        use NetworkError as E;
        let error =
            |subnets: &[&str], gateways: &[&str]| planned(&request(subnets, gateways)).unwrap_err();
        for overlapping in [
            "172.18.5.0/24",
            "172.16.0.0/12",
            "10.1.0.128/25",
            "fd12::/16",
        ] {
            assert!(
                matches!(error(&[overlapping], &[]), E::Overlap { .. }),
                "{overlapping}"
            );
        }
        assert!(matches!(error(&["10.9.0.7/24"], &[]), E::HostBits { .. }));
        for special in [
            "127.1.0.0/16",
            "224.0.0.0/24",
            "0.0.0.0/0",
            "::/0",
            "fe80:1::/64",
            "ff02::/64",
            "169.254.7.0/24",
        ] {
            assert!(
                matches!(error(&[special], &[]), E::Special { .. }),
                "{special}"
            );
        }
        assert!(matches!(error(&["10.9.0.0/32"], &[]), E::Small(_)));
        assert!(matches!(error(&["fd00::1/128"], &[]), E::Small(_)));
        let two = ["10.8.0.0/24", "10.9.0.0/24"];
        assert!(matches!(error(&two, &[]), E::TwoSubnets { family: "IPv4" }));
        let net = ["10.9.0.0/24"];
        let outside = error(&net, &["10.8.0.1"]);
        assert!(matches!(outside, E::GatewayOutside { .. }), "{outside}");
        let other = error(&net, &["fd00::1"]);
        assert!(matches!(other, E::Gateway { .. }), "{other}");
        assert!(matches!(error(&[], &["172.19.0.9"]), E::Gateway { .. }));
        assert!(matches!(error(&net, &["10.9.0.0"]), E::Address(_)));
        assert!(matches!(
            error(&net, &["10.9.0.2", "10.9.0.3"]),
            E::TwoGateways { family: "IPv4" }
        ));
        let none = Err("it is off".to_owned());
        for request in [
            request(&["fd00::/64"], &[]),
            NetworkRequest {
                ipv6: true,
                ..request(&[], &[])
            },
        ] {
            let refused = plan(&request, &around(&[], &none)).unwrap_err();
            assert!(matches!(refused, E::NoIpv6(_)), "{refused}");
        }
    }

    #[test]
    fn rules_that_contradict_each_other() {
        use NetworkError as E;
        let refused = |change: &dyn Fn(&mut NetworkRequest)| {
            let mut request = request(&[], &[]);
            change(&mut request);
            planned(&request).err()
        };
        assert!(matches!(
            refused(&|r| r.filter = Some(Filter::AddressDependent)),
            Some(E::Filter)
        ));
        assert!(matches!(
            refused(&|r| (r.internal, r.routed) = (true, true)),
            Some(E::InternalRouted)
        ));
        assert!(matches!(
            refused(&|r| (r.nat, r.masquerade) = (Nat::EndpointIndependent, false)),
            Some(E::NatWithoutMasquerade)
        ));
        assert!(matches!(
            refused(&|r| (r.nat, r.routed) = (Nat::EndpointIndependent, true)),
            Some(E::NatWithoutMasquerade)
        ));
        for (mtu, ipv6, fine) in [
            (67, false, false),
            (68, false, true),
            (1279, true, false),
            (1280, true, true),
            (65535, true, true),
            (65536, false, false),
        ] {
            let found = refused(&|r| (r.mtu, r.ipv6) = (Some(mtu), ipv6));
            assert_eq!(found.is_none(), fine, "{mtu} {ipv6}: {found:?}");
        }
    }
}
