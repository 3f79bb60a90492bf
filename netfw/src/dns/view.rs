//! What names there are, and who may see them.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use ipnet::IpNet;

use crate::name::Name;

/// Everything that has a name, as the agent sees it. Made anew for each change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    pub networks: Vec<Network>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    pub name: Name,
    /// Without a way out: nothing is forwarded for it.
    pub internal: bool,
    pub bridge: Bridge,
    /// Where it is served, of both families.
    pub gateways: Vec<IpAddr>,
    pub subnets: Vec<IpNet>,
    pub members: Vec<Member>,
}

/// The interface that a network's queries come in on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    pub ifindex: u32,
    pub name: String,
}

/// An endpoint's attachment to a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub endpoint: Name,
    /// Other names that it has in this network, for everybody there.
    pub aliases: Vec<Name>,
    /// Of both families.
    pub addresses: Vec<IpAddr>,
    /// Names that it alone has for others.
    pub links: Vec<Link>,
}

/// `--link ENDPOINT:ALIAS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub alias: Name,
    pub endpoint: Name,
}

/// Holds the current names: read by every query, replaced by the agent.
#[derive(Debug, Default)]
pub struct Directory(RwLock<Arc<Names>>);

impl Directory {
    pub fn set(&self, view: View) {
        let names = Arc::new(Names::new(view));
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = names;
    }

    pub fn current(&self) -> Arc<Names> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// A [`View`], ready to be looked into.
#[derive(Debug, Default)]
pub struct Names {
    pub(super) networks: Vec<Indexed>,
    by_network: HashMap<Name, usize>,
    /// The networks of each endpoint.
    by_endpoint: HashMap<Name, Vec<usize>>,
    gateways: HashSet<IpAddr>,
}

#[derive(Debug)]
pub(super) struct Indexed {
    pub network: Network,
    by_address: HashMap<IpAddr, usize>,
    /// By name in lower case, with and without the network's behind a dot.
    by_name: HashMap<String, Holders>,
}

/// The members that have a name.
#[derive(Debug, Default)]
pub(super) struct Holders {
    members: Vec<usize>,
    /// How often they were asked for, for addresses of IPv4 and of IPv6: each has its turns, since
    /// clients ask for both at a time.
    turns: [AtomicUsize; 2],
}

impl Names {
    pub fn new(view: View) -> Self {
        let mut names = Self::default();
        for (n, network) in view.networks.into_iter().enumerate() {
            names.gateways.extend(&network.gateways);
            names.by_network.insert(network.name.clone(), n);
            for member in &network.members {
                let attached = names.by_endpoint.entry(member.endpoint.clone());
                attached.or_default().push(n);
            }
            names.networks.push(Indexed::new(network));
        }
        names
    }

    /// Our own addresses, to which nothing may be forwarded.
    pub fn gateways(&self) -> &HashSet<IpAddr> {
        &self.gateways
    }

    pub(super) fn network(&self, name: &Name) -> Option<usize> {
        self.by_network.get(name).copied()
    }

    /// The networks of an endpoint.
    pub(super) fn networks_of(&self, endpoint: &Name) -> &[usize] {
        self.by_endpoint.get(endpoint).map_or(&[], Vec::as_slice)
    }

    /// Is the address in a subnet of any network?
    pub(super) fn owns(&self, addr: IpAddr) -> bool {
        let mut networks = self.networks.iter();
        networks.any(|indexed| {
            indexed
                .network
                .subnets
                .iter()
                .any(|net| net.contains(&addr))
        })
    }
}

impl Indexed {
    fn new(network: Network) -> Self {
        let mut by_address = HashMap::new();
        let mut by_name: HashMap<String, Holders> = HashMap::new();
        let domain = network.name.to_ascii_lowercase();
        for (n, member) in network.members.iter().enumerate() {
            for &addr in &member.addresses {
                by_address.insert(addr, n);
            }
            for name in std::iter::once(&member.endpoint).chain(&member.aliases) {
                let short = name.to_ascii_lowercase();
                for key in [format!("{short}.{domain}"), short] {
                    let holders = by_name.entry(key).or_default();
                    // Its own name may be among its aliases.
                    if holders.members.last() != Some(&n) {
                        holders.members.push(n);
                    }
                }
            }
        }
        Self {
            network,
            by_address,
            by_name,
        }
    }

    pub fn member_at(&self, addr: IpAddr) -> Option<&Member> {
        Some(&self.network.members[*self.by_address.get(&addr)?])
    }

    /// `name` in lower case, without the last dot.
    pub fn holders(&self, name: &str) -> Option<&Holders> {
        self.by_name.get(name)
    }

    /// The addresses behind a name, of IPv4 or IPv6. Another one is the first each time.
    pub fn addresses(&self, holders: &Holders, v6: bool) -> Vec<IpAddr> {
        let members = holders.members.iter().map(|&n| &self.network.members[n]);
        let mut found: Vec<IpAddr> = members
            .flat_map(|member| &member.addresses)
            .copied()
            .filter(|addr| addr.is_ipv6() == v6)
            .collect();
        if found.len() > 1 {
            let turn = holders.turns[usize::from(v6)].fetch_add(1, Ordering::Relaxed);
            let first = turn % found.len();
            found.rotate_left(first);
        }
        found
    }
}
