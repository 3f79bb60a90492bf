//! Links, addresses, routes and bridges' tables as netfw looks at them, out of rtnetlink's messages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rtnetlink::packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
    link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State},
    neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// None on interfaces without a link layer of Ethernet's kind.
    pub mac: Option<[u8; 6]>,
    /// Bytes, without link-layer header.
    pub mtu: u32,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// `veth`, `bridge`, …; None for a device that no rtnetlink request made.
    pub kind: Option<String>,
    pub alias: Option<String>,
    /// The bridge (or bond, …) that it is a port of.
    pub master: Option<u32>,
    pub loopback: bool,
    pub point_to_point: bool,
    /// `IFF_NOARP`: no neighbour resolution.
    pub no_arp: bool,
    /// `IFLA_LINK`: a veth's other end (an index of *its* namespace), a VLAN's base.
    pub peer: Option<u32>,
    /// `IFLA_LINK_NETNSID`: that is in another namespace.
    pub peer_elsewhere: bool,
    /// `IFLA_OPERSTATE` is up: what is sent by it leaves.
    pub operational: bool,
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            up: flags.contains(LinkFlags::Up),
            kind: None,
            alias: None,
            master: None,
            loopback: flags.contains(LinkFlags::Loopback),
            point_to_point: flags.contains(LinkFlags::Pointopoint),
            no_arp: flags.contains(LinkFlags::Noarp),
            peer: None,
            peer_elsewhere: false,
            operational: false,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok(),
                LinkAttribute::OperState(state) => link.operational = state == State::Up,
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::Controller(index) => link.master = Some(index),
                LinkAttribute::LinkNetNsId(_) => link.peer_elsewhere = true,
                LinkAttribute::Link(index) => link.peer = Some(index).filter(|&i| i != 0),
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        if let LinkInfo::Kind(kind) = info {
                            link.kind = Some(kind.to_string());
                        }
                    }
                }
                _ => {}
            }
        }
        link
    }
}

#[cfg(test)]
impl Link {
    /// One that is up, and nobody's.
    pub fn example(index: u32, name: &str) -> Self {
        Self {
            index,
            name: name.into(),
            mac: Some([2, 0, 0, 0, 0, index as u8]),
            mtu: 1500,
            up: true,
            kind: None,
            alias: None,
            master: None,
            loopback: false,
            point_to_point: false,
            no_arp: false,
            peer: None,
            peer_elsewhere: false,
            operational: true,
        }
    }
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub ifindex: u32,
    pub addr: IpAddr,
    pub prefix_len: u8,
    pub scope_global: bool,
    /// IPv4: another address of the same subnet was there first. IPv6, where the kernel uses the
    /// same bit: a temporary address (RFC 8981).
    pub secondary: bool,
    /// Its lifetime is over for new connections.
    pub deprecated: bool,
    /// Not usable, for now or for good: duplicate address detection goes on, or found somebody.
    pub tentative: bool,
}

#[cfg(test)]
impl Address {
    /// A usable one.
    pub fn example(ifindex: u32, addr: &str, prefix_len: u8) -> Self {
        Self {
            ifindex,
            addr: addr.parse().unwrap(),
            prefix_len,
            scope_global: true,
            secondary: false,
            deprecated: false,
            tentative: false,
        }
    }
}

impl Address {
    /// None where the message holds no address.
    pub(super) fn from_message(message: &AddressMessage) -> Option<Self> {
        let mut local = None;
        let mut address = None;
        // All flags that matter here are among the header's, which has eight bits; the attribute has
        // them all.
        let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
        for attribute in &message.attributes {
            match attribute {
                // On point-to-point interfaces IFA_ADDRESS is the other side's.
                AddressAttribute::Local(addr) => local = Some(*addr),
                AddressAttribute::Address(addr) => address = Some(*addr),
                AddressAttribute::Flags(all) => flags |= *all,
                _ => {}
            }
        }
        Some(Self {
            ifindex: message.header.index,
            addr: local.or(address)?,
            prefix_len: message.header.prefix_len,
            scope_global: message.header.scope == AddressScope::Universe,
            secondary: flags.contains(AddressFlags::Secondary),
            deprecated: flags.contains(AddressFlags::Deprecated),
            // An optimistic address is used while it is looked for (RFC 4429).
            tentative: flags.contains(AddressFlags::Dadfailed)
                || flags.contains(AddressFlags::Tentative)
                    && !flags.contains(AddressFlags::Optimistic),
        })
    }
}

/// A unicast route of any table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// `0.0.0.0/0` or `::/0` for a default route.
    pub dst: IpNet,
    pub table: u32,
    /// None for routes with several next hops.
    pub oif: Option<u32>,
    /// The next hop, where there is one; of routes that the kernel told of.
    pub via: Option<IpAddr>,
}

impl Route {
    /// The table that is asked unless a rule says otherwise (RT_TABLE_MAIN).
    pub const MAIN: u32 = 254;

    /// To `dst` on the link of an interface.
    pub fn to(dst: IpNet, oif: u32, table: u32) -> Self {
        let oif = Some(oif);
        Self {
            dst,
            table,
            oif,
            via: None,
        }
    }

    /// The default route of the family of `ip`.
    pub fn default_of(ip: IpAddr, oif: u32, table: u32) -> Self {
        let dst = match ip {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        Self::to(IpNet::new_assert(dst, 0), oif, table)
    }

    /// None for what is not a unicast route of IP.
    pub(super) fn from_message(message: &RouteMessage) -> Option<Self> {
        if message.header.kind != RouteType::Unicast {
            return None;
        }
        let mut dst = match message.header.address_family {
            AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            _ => return None,
        };
        let mut table = u32::from(message.header.table);
        let mut oif = None;
        let mut via = None;
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(addr)) => dst = (*addr).into(),
                RouteAttribute::Destination(RouteAddress::Inet6(addr)) => dst = (*addr).into(),
                // The header's field has 8 bits only.
                RouteAttribute::Table(number) => table = *number,
                RouteAttribute::Oif(index) => oif = Some(*index),
                RouteAttribute::Gateway(RouteAddress::Inet(addr)) => via = Some((*addr).into()),
                RouteAttribute::Gateway(RouteAddress::Inet6(addr)) => via = Some((*addr).into()),
                _ => {}
            }
        }
        Some(Self {
            dst: IpNet::new(dst, message.header.destination_prefix_length).ok()?,
            table,
            oif,
            via,
        })
    }
}

/// An entry of a bridge's table of MAC addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Forwarding {
    pub mac: [u8; 6],
    /// Of the port itself (`NUD_PERMANENT`): what is for it is for the node.
    pub own: bool,
}

impl Forwarding {
    /// None where it is not the bridge's, but what the port's own device listens to.
    pub fn from_message(message: &NeighbourMessage) -> Option<Self> {
        if message.header.flags.contains(NeighbourFlags::Own) {
            return None;
        }
        let mac = message.attributes.iter().find_map(|a| match a {
            NeighbourAttribute::LinkLayerAddress(mac) => <[u8; 6]>::try_from(&mac[..]).ok(),
            _ => None,
        })?;
        Some(Self {
            mac,
            own: message.header.state == NeighbourState::Permanent,
        })
    }
}
