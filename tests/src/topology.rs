//! [`Lab`]: what every end-to-end test stands on.
//!
//! ```text
//!   client                      node                          world
//!   eth0 10.1.0.2/24 ────── up0 10.1.0.1/24
//!        fd00:1::2/64           fd00:1::1/64
//!                           up1 10.2.0.1/24 ────────── eth0 10.2.0.2/24
//!                               fd00:2::1/64                fd00:2::2/64
//!                               default via world        lo 203.0.113.10/32, 2001:db8::10/128
//! ```
//!
//! Client and world know their own link and nothing else: a container's address that reaches them
//! untranslated finds no way back, and a test that must not see it fails. The addresses are the
//! same in every lab; only the namespaces' names differ.
//!
//! Container namespaces are empty but for `lo`; netfw attaches them.
//!
//! [`Distance`] is what may lie behind the world: two routers more, and a host.
//!
//! ```text
//!   world               router                last                  host
//!   eth1 10.3.0.1 ───── eth0 10.3.0.2
//!                       eth1 10.4.0.1 ─────── eth0 10.4.0.2
//!                                             eth1 10.5.0.1 ─────── eth0 10.5.0.2
//! ```
//!
//! IPv6 addresses there are as above: fd00:3::1 where IPv4 has 10.3.0.1.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use crate::{files, netns::Namespace, wait::wait_until};

pub const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 2));
/// The node as the client knows it: where published ports are.
pub const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1));
/// The node as the world knows it: what masqueraded packets come from.
pub const NODE_OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 2, 0, 1));
pub const WORLD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 2, 0, 2));
/// An address of the world's that is reached through a gateway.
pub const FAR: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10));

pub const CLIENT6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2));
pub const NODE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1));
pub const NODE6_OUTSIDE: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 1));
pub const WORLD6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 2));
pub const FAR6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10));

/// The host behind a [`Distance`].
pub const HOST: IpAddr = on_link(5, 2)[0];
pub const HOST6: IpAddr = on_link(5, 2)[1];

/// The `n`th address of each family on a link.
pub const fn on_link(link: u8, n: u8) -> [IpAddr; 2] {
    [
        IpAddr::V4(Ipv4Addr::new(10, link, 0, n)),
        IpAddr::V6(Ipv6Addr::new(0xfd00, link as u16, 0, 0, 0, 0, 0, n as u16)),
    ]
}

/// Dropped in this order, the node first: its agent's links go with it.
pub struct Lab {
    pub node: Namespace,
    pub client: Namespace,
    pub world: Namespace,
}

impl Lab {
    /// For a test, which has not opened any file or socket yet, see [`files::own_table`].
    pub fn new() -> Self {
        files::own_table();
        Self::lay_out()
    }

    /// As [`new`](Self::new), for a thread that goes on sharing its open files.
    pub fn lay_out() -> Self {
        let lab = Self {
            node: Namespace::new("node"),
            client: Namespace::new("client"),
            world: Namespace::new("world"),
        };
        lab.node.sysctl("ipv4/ip_forward", "0");
        lab.node.sysctl("ipv6/conf/all/forwarding", "0");
        for end in [&lab.client, &lab.node, &lab.world] {
            trust(end);
        }
        wire(
            (&lab.node, "up0", [NODE, NODE6]),
            (&lab.client, "eth0", [CLIENT, CLIENT6]),
        );
        wire(
            (&lab.node, "up1", [NODE_OUTSIDE, NODE6_OUTSIDE]),
            (&lab.world, "eth0", [WORLD, WORLD6]),
        );
        default_route(&lab.node, [WORLD, WORLD6]);
        for far in [FAR, FAR6] {
            lab.world
                .ip(&["addr", "add", &far.to_string(), "dev", "lo"]);
        }
        lab
    }

    /// An empty namespace for netfw to attach.
    pub fn container(&self, name: &str) -> Namespace {
        Namespace::new(name)
    }

    /// Default routes by way of the node for the client and the world.
    pub fn route_through_node(&self) {
        default_route(&self.client, [NODE, NODE6]);
        default_route(&self.world, [NODE_OUTSIDE, NODE6_OUTSIDE]);
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

/// Routers behind the world, which becomes one as well.
pub struct Distance {
    pub router: Namespace,
    pub last: Namespace,
    pub host: Namespace,
}

impl Distance {
    #[track_caller]
    pub fn new(lab: &Lab) -> Self {
        let distance = Self {
            router: Namespace::new("router"),
            last: Namespace::new("last"),
            host: Namespace::new("host"),
        };
        let Self { router, last, host } = &distance;
        for router in [&lab.world, router, last] {
            forward(router);
        }
        for end in [router, last, host] {
            trust(end);
        }
        for end in [&lab.world, router, last, host] {
            complain(end);
        }
        let links = [(&lab.world, router), (router, last), (last, host)];
        for (link, (near, far)) in (3..).zip(links) {
            let end = (near, "eth1", on_link(link, 1));
            wire(end, (far, "eth0", on_link(link, 2)));
            default_route(far, on_link(link, 1));
        }
        // Towards the host; what lies on a link is known there.
        for (near, link) in [(&lab.world, 3), (router, 4)] {
            for (network, gateway) in ["10.4.0.0/15", "fd00:4::/31"].iter().zip(on_link(link, 2)) {
                near.ip(&["route", "add", network, "via", &gateway.to_string()]);
            }
        }
        distance
    }

    /// The link between the routers takes no more than `mtu` bytes.
    pub fn narrow(&self, mtu: u32) {
        for (router, device) in [(&self.router, "eth1"), (&self.last, "eth0")] {
            router.ip(&["link", "set", device, "mtu", &mtu.to_string()]);
        }
    }
}

/// Makes a namespace a router.
#[track_caller]
pub fn forward(router: &Namespace) {
    router.sysctl("ipv4/ip_forward", "1");
    router.sysctl("ipv6/conf/all/forwarding", "1");
}

/// Has a namespace send as many ICMP errors as there are reasons for.
#[track_caller]
pub fn complain(end: &Namespace) {
    end.sysctl("ipv4/icmp_ratelimit", "0");
    end.sysctl("ipv6/icmp/ratelimit", "0");
}

/// A new namespace copies the machine's settings; the lab must not depend on those.
fn trust(end: &Namespace) {
    for which in ["all", "default"] {
        end.sysctl(&format!("ipv4/conf/{which}/rp_filter"), "0");
        // No duplicate detection: an address is usable as soon as it is there.
        end.sysctl(&format!("ipv6/conf/{which}/accept_dad"), "0");
    }
}

/// An interface of a namespace's, and its addresses.
pub type End<'a> = (&'a Namespace, &'a str, [IpAddr; 2]);

/// A veth pair between two namespaces, both ends up and with their addresses.
pub fn wire(left: End, right: End) {
    left.0.ip(&[
        "link",
        "add",
        left.1,
        "type",
        "veth",
        "peer",
        "name",
        right.1,
        "netns",
        right.0.name(),
    ]);
    set_up([left, right]);
}

/// The two ends of a wire that is there: up and with their addresses.
pub fn set_up(ends: [End; 2]) {
    for (end, name, addresses) in ends {
        for address in addresses {
            let prefix = if address.is_ipv4() { 24 } else { 64 };
            let mut words = vec!["addr".to_owned(), "add".to_owned()];
            words.extend([format!("{address}/{prefix}"), "dev".into(), name.into()]);
            if address.is_ipv6() {
                words.push("nodad".into());
            }
            end.ip(&words.iter().map(String::as_str).collect::<Vec<_>>());
        }
        end.ip(&["link", "set", name, "up"]);
    }
    // The kernel notes the carrier when it comes to it; until then routes are `linkdown`.
    for (end, name, _) in ends {
        let what = format!("{name} to be up");
        wait_until(&what, Duration::from_secs(10), || {
            let shown = end.ip(&["-o", "link", "show", name]);
            // A tun device does not say.
            shown.contains(" state UP ") || shown.contains(" state UNKNOWN ")
        });
    }
}

pub fn default_route(namespace: &Namespace, gateways: [IpAddr; 2]) {
    for gateway in gateways {
        let family = if gateway.is_ipv4() { "-4" } else { "-6" };
        let gateway = gateway.to_string();
        namespace.ip(&[family, "route", "add", "default", "via", &gateway]);
    }
}

/// The MAC address of a link.
#[track_caller]
pub fn mac(namespace: &Namespace, link: &str) -> [u8; 6] {
    let shown = namespace.ip(&["-o", "link", "show", link]);
    let text = shown
        .split_once("link/ether ")
        .and_then(|(_, rest)| rest.split(' ').next())
        .unwrap_or_else(|| panic!("{link} has no MAC address: {shown}"));
    let mut mac = [0; 6];
    for (byte, digits) in mac.iter_mut().zip(text.split(':')) {
        *byte = u8::from_str_radix(digits, 16).unwrap_or_else(|_| panic!("{text} is no MAC"));
    }
    mac
}
