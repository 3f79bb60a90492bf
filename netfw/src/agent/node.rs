//! What the node's interfaces and addresses mean: which interfaces are uplinks, which addresses
//! are the node's own, how large a packet may be.
//!
//! Pure: [`observe`] looks at what netlink listed and decides; others act.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netfw_common::record;

use crate::net::{Address, Link};

/// Where no uplink says otherwise.
const DEFAULT_MTU: u32 = 1500;
/// RFC 791: every host can receive this much.
const LEAST_MTU: u32 = 576;

#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct View {
    /// By ifindex.
    pub uplinks: BTreeMap<u32, Uplink>,
    /// Named with `--uplink`, but there is no such interface.
    pub missing: Vec<String>,
    /// The node's addresses and the interfaces that have them.
    pub locals: HashMap<IpAddr, u32>,
    /// The narrowest uplink's.
    pub mtu: u32,
    /// Indexes of all interfaces.
    pub present: HashSet<u32>,
}

/// An interface that leads out of the node.
///
/// One that is not served is closed: no publish is reached through it and nothing masqueraded
/// leaves by it. The programs sit on it all the same, so that a node which forwards lets nobody
/// through to a container's own address, and no such address out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Uplink {
    pub name: String,
    /// Why it is not served.
    pub closed: Option<&'static str>,
    pub record: record::Uplink,
}

impl Uplink {
    /// Do its frames begin with an Ethernet header? Those of tunnels (tun, WireGuard) do not.
    pub fn is_ethernet(&self) -> bool {
        self.record.mac != [0; 6]
    }
}

const NOT_NAMED: &str = "not named with --uplink";

/// `named` are the interfaces that `--uplink` names; none: all but netfw's own.
pub fn observe(links: &[Link], addresses: &[Address], named: &[String]) -> View {
    let mut locals = HashMap::new();
    // Nobody may be answered from an address that turns out to be somebody else's.
    for address in addresses.iter().filter(|a| !a.tentative) {
        // Two interfaces may have one address: the first keeps it, so that nothing flaps.
        locals.entry(address.addr).or_insert(address.ifindex);
    }
    let uplinks: BTreeMap<u32, Uplink> = links
        .iter()
        .filter(|link| leads_out(link, links, named))
        .map(|link| {
            let record = record::Uplink {
                ip4: first4(link, addresses).map(Into::into).unwrap_or_default(),
                ip6: first6(link, addresses).map(Into::into).unwrap_or_default(),
                mtu: link.mtu,
                mac: link.mac.unwrap_or_default(),
                ..Default::default()
            };
            let closed = if !named.is_empty() && !named.contains(&link.name) {
                Some(NOT_NAMED)
            } else {
                None
            };
            let uplink = Uplink {
                name: link.name.clone(),
                closed,
                record,
            };
            (link.index, uplink)
        })
        .collect();
    let missing = named
        .iter()
        .filter(|name| !uplinks.values().any(|u| u.name == **name))
        .cloned()
        .collect();
    // Tunnels that exist in every namespace once their module is loaded (tunl0, sit0) are down.
    let mtu = links
        .iter()
        .filter(|link| link.up)
        .filter_map(|link| uplinks.get(&link.index))
        .filter(|uplink| uplink.closed.is_none())
        .map(|uplink| uplink.record.mtu)
        .min()
        .unwrap_or(DEFAULT_MTU)
        .clamp(LEAST_MTU, u32::from(u16::MAX));
    View {
        uplinks,
        missing,
        locals,
        mtu,
        present: links.iter().map(|link| link.index).collect(),
    }
}

/// The source for masquerade.
fn first4(link: &Link, addresses: &[Address]) -> Option<Ipv4Addr> {
    let mut own = globals(link, addresses).filter(|a| !a.secondary);
    own.find_map(|a| match a.addr {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    })
}

/// The source for masquerade: one for new connections, one that stays (temporary addresses hide a
/// host that moves; a node's flows outlive them), one that the world routes; then the first.
fn first6(link: &Link, addresses: &[Address]) -> Option<Ipv6Addr> {
    let own = globals(link, addresses).filter_map(|a| match a.addr {
        IpAddr::V6(ip) => Some((a, ip)),
        IpAddr::V4(_) => None,
    });
    let best = own
        .enumerate()
        .min_by_key(|(n, (a, ip))| (a.deprecated, a.secondary, ip.is_unique_local(), *n));
    best.map(|(_, (_, ip))| ip)
}

fn globals<'a>(link: &Link, addresses: &'a [Address]) -> impl Iterator<Item = &'a Address> {
    let index = link.index;
    addresses
        .iter()
        .filter(move |a| a.ifindex == index && a.scope_global && !a.tentative)
}

fn leads_out(link: &Link, links: &[Link], uplinks: &[String]) -> bool {
    // A port of a bridge or bond sees frames before its master does, but the node's routing knows
    // the master only; a member of a VRF is routed by itself. Interfaces of any instance of netfw
    // are no way to the world.
    let is_own = |link: &Link| {
        let alias = link.alias.as_deref();
        alias.is_some_and(|alias| alias.starts_with("netfw:"))
    };
    // The other end of a veth pair may wait here for the container that it is for.
    let peer = link.peer.filter(|_| !link.peer_elsewhere);
    let waits = || links.iter().any(|l| Some(l.index) == peer && is_own(l));
    let own = is_own(link) || waits();
    let master = links.iter().find(|other| Some(other.index) == link.master);
    let port = link.master.is_some() && master.and_then(|m| m.kind.as_deref()) != Some("vrf");
    !link.loopback && !own && (!port || uplinks.contains(&link.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(ifindex: u32, addr: &str) -> Address {
        Address::example(ifindex, addr, 24)
    }

    fn lab() -> (Vec<Link>, Vec<Address>) {
        let links = vec![
            Link {
                loopback: true,
                ..Link::example(1, "lo")
            },
            Link::example(2, "eth0"),
            Link {
                mtu: 1400,
                ..Link::example(3, "wg0")
            },
            Link {
                up: false,
                mtu: 1280,
                ..Link::example(4, "tunl0")
            },
            Link {
                alias: Some("netfw:x:bridge".into()),
                ..Link::example(5, "netfw0")
            },
            Link {
                alias: Some("netfw:x:web".into()),
                master: Some(5),
                ..Link::example(6, "nf1")
            },
            Link::example(7, "docker0"),
            Link {
                master: Some(7),
                ..Link::example(8, "veth1")
            },
        ];
        let addresses = vec![
            address(1, "127.0.0.1"),
            address(2, "192.0.2.1"),
            Address {
                secondary: true,
                ..address(2, "192.0.2.2")
            },
            address(5, "172.18.0.1"),
            Address {
                scope_global: false,
                ..address(2, "fe80::1")
            },
            address(2, "fd00::1"),
            Address {
                secondary: true,
                ..address(2, "2001:db8::7")
            },
            address(2, "2001:db8::1"),
            Address {
                tentative: true,
                ..address(2, "2001:db8::9")
            },
        ];
        (links, addresses)
    }

    fn served(view: &View) -> Vec<&str> {
        let served = view.uplinks.values().filter(|u| u.closed.is_none());
        served.map(|u| u.name.as_str()).collect()
    }

    #[test]
    fn an_interface_without_ethernet_header_is_served() {
        let tunnel = Link {
            mac: None,
            ..Link::example(2, "tun0")
        };
        let view = observe(&[tunnel], &[], &[]);
        assert_eq!(view.uplinks[&2].closed, None);
        assert!(!view.uplinks[&2].is_ethernet());
        assert_eq!(view.uplinks[&2].record.mac, [0; 6]);
    }

    #[test]
    fn the_source_for_ipv6_is_one_that_stays_and_that_the_world_routes() {
        let temporary = |text| Address {
            secondary: true,
            ..address(2, text)
        };
        let deprecated = |text| Address {
            deprecated: true,
            ..address(2, text)
        };
        for (addresses, want) in [
            (vec![], "::"),
            (vec![address(3, "2001:db8::1")], "::"),
            (vec![address(2, "fd00::1")], "fd00::1"),
            (
                vec![address(2, "fd00::1"), temporary("2001:db8::2")],
                "fd00::1",
            ),
            (
                vec![address(2, "fd00::1"), address(2, "2001:db8::2")],
                "2001:db8::2",
            ),
            (
                vec![temporary("2001:db8::1"), deprecated("2001:db8::2")],
                "2001:db8::1",
            ),
            (vec![deprecated("2001:db8::2")], "2001:db8::2"),
        ] {
            let view = observe(&[Link::example(2, "eth0")], &addresses, &[]);
            let found = Ipv6Addr::from(view.uplinks[&2].record.ip6);
            assert_eq!(found.to_string(), want, "{addresses:?}");
        }
    }

    #[test]
    fn a_member_of_a_vrf_is_an_uplink_and_a_port_of_a_bridge_is_not() {
        for (kind, is_uplink) in [("vrf", true), ("bridge", false), ("bond", false)] {
            let master = Link {
                kind: Some(kind.into()),
                ..Link::example(2, "master")
            };
            let member = Link {
                master: Some(2),
                ..Link::example(3, "eth0")
            };
            let view = observe(&[master, member], &[], &[]);
            assert_eq!(view.uplinks.contains_key(&3), is_uplink, "{kind}");
        }
    }

    #[test]
    fn everything_that_leads_out_is_an_uplink() {
        let (links, addresses) = lab();
        let view = observe(&links, &addresses, &[]);
        assert_eq!(served(&view), ["eth0", "wg0", "tunl0", "docker0"]);
        assert_eq!(
            view.uplinks[&2].record.ip4,
            Ipv4Addr::new(192, 0, 2, 1).into()
        );
        assert_eq!(view.mtu, 1400, "what is down does not count");
        assert_eq!(
            view.uplinks[&2].record.ip6,
            "2001:db8::1".parse::<Ipv6Addr>().unwrap().into()
        );
        assert_eq!(view.locals.len(), 8, "all but the tentative one");
        assert_eq!(view.locals[&IpAddr::from([172, 18, 0, 1])], 5);
        assert_eq!(view.locals[&"fe80::1".parse::<IpAddr>().unwrap()], 2);
        assert!(view.missing.is_empty());
    }

    #[test]
    fn named_uplinks_only_and_a_typo_is_seen() {
        let (links, addresses) = lab();
        let named = ["eth0".into(), "eht1".into(), "netfw0".into()];
        let view = observe(&links, &addresses, &named);
        assert_eq!(served(&view), ["eth0"]);
        let closed = view.uplinks.values().filter(|u| u.closed.is_some());
        let closed: Vec<_> = closed.map(|u| u.name.as_str()).collect();
        assert_eq!(closed, ["wg0", "tunl0", "docker0"]);
        assert_eq!(view.missing, ["eht1", "netfw0"]);
        assert_eq!(view.mtu, 1500);
    }

    #[test]
    fn a_node_without_uplinks_has_an_mtu_all_the_same() {
        assert_eq!(observe(&[], &[], &[]).mtu, DEFAULT_MTU);
    }
}
