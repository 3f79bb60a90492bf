//! What names there are, and who may see them.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, OnceLock, PoisonError, RwLock},
};

use ipnet::IpNet;

use crate::name::Name;

/// Everything that has a name, as the agent sees it. Made anew for each change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Shared with the [`Names`] that are made of it.
    pub networks: Vec<Arc<Network>>,
}

impl View {
    pub fn of(networks: impl IntoIterator<Item = Network>) -> Self {
        Self {
            networks: networks.into_iter().map(Arc::new).collect(),
        }
    }
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

/// An endpoint's attachment to a network. One that is down has no addresses: its names are ours all
/// the same, and the world is not asked for them.
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

/// `--link ENDPOINT:ALIAS`. The endpoint may be down, or not there at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub alias: Name,
    pub endpoint: Name,
}

/// Holds the current names: read by every query, replaced by the agent.
#[derive(Debug, Default)]
pub struct Directory(RwLock<Arc<Latest>>);

/// A view, and what is made of it when somebody asks first: of a hundred endpoints that are added in a row,
/// nobody may ask before the last.
#[derive(Debug, Default)]
struct Latest {
    view: View,
    names: OnceLock<Arc<Names>>,
}

impl Directory {
    /// Most changes that the agent makes change no name: what is there already stays.
    pub fn set(&self, view: View) {
        if self.latest().view == view {
            return;
        }
        let names = OnceLock::new();
        let latest = Arc::new(Latest { view, names });
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = latest;
    }

    pub fn current(&self) -> Arc<Names> {
        let latest = self.latest();
        let names = || Arc::new(Names::new(latest.view.clone()));
        latest.names.get_or_init(names).clone()
    }

    fn latest(&self) -> Arc<Latest> {
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
    pub network: Arc<Network>,
    by_address: HashMap<IpAddr, usize>,
    /// By name in lower case, with and without the network's behind a dot.
    by_name: HashMap<String, Holders>,
}

/// The members that have a name.
#[derive(Debug)]
pub(super) struct Holders {
    rank: Rank,
    members: Vec<usize>,
}

/// Whose a name is that is several members': the first here; together those that have it alike.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Rank {
    /// An endpoint's own.
    Own,
    /// `ENDPOINT.NETWORK`, which may look like somebody's own.
    OwnLong,
    /// An alias, long or short.
    Alias,
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

    /// Is this wholly in a subnet of one network?
    pub(super) fn owns(&self, net: IpNet) -> bool {
        let mut networks = self.networks.iter();
        networks.any(|indexed| indexed.owns(net))
    }
}

impl Indexed {
    fn new(network: Arc<Network>) -> Self {
        let mut by_address = HashMap::new();
        let mut by_name: HashMap<String, Holders> = HashMap::new();
        let domain = network.name.to_ascii_lowercase();
        for (n, member) in network.members.iter().enumerate() {
            for &addr in &member.addresses {
                by_address.insert(addr, n);
            }
            let own = [(&member.endpoint, Rank::Own, Rank::OwnLong)].into_iter();
            let aliases = member.aliases.iter();
            for (name, short, long) in
                own.chain(aliases.map(|alias| (alias, Rank::Alias, Rank::Alias)))
            {
                let name = name.to_ascii_lowercase();
                for (key, rank) in [(format!("{name}.{domain}"), long), (name, short)] {
                    if !is_domain_name(&key) {
                        continue;
                    }
                    let members = Vec::new();
                    let holders = by_name.entry(key).or_insert(Holders { rank, members });
                    if rank < holders.rank {
                        (holders.rank, holders.members) = (rank, Vec::new());
                    }
                    // Its own name may be among its aliases.
                    if rank == holders.rank && holders.members.last() != Some(&n) {
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

    pub fn owns(&self, net: IpNet) -> bool {
        self.network
            .subnets
            .iter()
            .any(|subnet| subnet.contains(&net))
    }

    pub fn member_at(&self, addr: IpAddr) -> Option<&Member> {
        Some(&self.network.members[*self.by_address.get(&addr)?])
    }

    /// `name` in lower case, without the last dot.
    pub fn holders(&self, name: &str) -> Option<&Holders> {
        self.by_name.get(name)
    }

    /// The endpoint of this name, and nobody who has it for an alias.
    pub fn endpoint(&self, name: &Name) -> Option<&Holders> {
        let holders = self.holders(&name.to_ascii_lowercase())?;
        (holders.rank == Rank::Own).then_some(holders)
    }

    /// The addresses behind a name, of IPv4 or IPv6, beginning with any. Not the next one each time:
    /// some clients ask two servers at once, or for both families, and would find every second.
    pub fn addresses(&self, holders: &Holders, v6: bool) -> Vec<IpAddr> {
        let members = holders.members.iter().map(|&n| &self.network.members[n]);
        let mut found: Vec<IpAddr> = members
            .flat_map(|member| &member.addresses)
            .copied()
            .filter(|addr| addr.is_ipv6() == v6)
            .collect();
        if found.len() > 1 {
            // Without randomness, always the first.
            let first = getrandom::u32().unwrap_or(0) as usize % found.len();
            found.rotate_left(first);
        }
        found
    }
}

/// Can anybody ask for it? A [`Name`] may have dots where no domain name has them, and with its
/// network's behind it be too long (RFC 1035 2.3.4).
fn is_domain_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(|label| (1..=63).contains(&label.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(endpoint: &str, aliases: &[&str], addresses: &[&str]) -> Member {
        Member {
            endpoint: endpoint.parse().unwrap(),
            aliases: aliases.iter().map(|name| name.parse().unwrap()).collect(),
            addresses: addresses.iter().map(|addr| addr.parse().unwrap()).collect(),
            links: Vec::new(),
        }
    }

    fn view(members: Vec<Member>) -> View {
        View::of([Network {
            name: "Front".parse().unwrap(),
            internal: false,
            bridge: Bridge {
                ifindex: 7,
                name: "nf-test".into(),
            },
            gateways: Vec::new(),
            subnets: Vec::new(),
            members,
        }])
    }

    fn held_by(names: &Names, name: &str) -> Vec<String> {
        let indexed = &names.networks[0];
        let holders = indexed.holders(name);
        let members = holders.map_or(&[][..], |holders| &holders.members);
        let members = members.iter().map(|&n| &indexed.network.members[n]);
        members.map(|member| member.endpoint.to_string()).collect()
    }

    #[test]
    fn a_name_of_ones_own_is_no_other_s_alias() {
        let mut members = vec![
            member("thief", &["WEB", "web.front", "pool"], &[]),
            member("web", &["pool"], &[]),
            member("db.front", &[], &[]),
            member("db", &["pool", "DB"], &[]),
        ];
        for _ in 0..2 {
            let names = Names::new(view(members.clone()));
            assert_eq!(held_by(&names, "web"), ["web"]);
            assert_eq!(held_by(&names, "web.front"), ["web"]);
            assert_eq!(held_by(&names, "db.front"), ["db.front"]);
            assert_eq!(held_by(&names, "db"), ["db"]);
            for name in ["pool", "pool.front"] {
                assert_eq!(held_by(&names, name).len(), 3);
            }
            // In whatever order they come.
            members.reverse();
        }
    }

    #[test]
    fn what_cannot_be_asked_for_is_left_out() {
        let names = Names::new(view(vec![member("a..b", &["c."], &[])]));
        assert!(names.networks[0].by_name.is_empty());
        for (name, is) in [
            ("a.b", true),
            ("", false),
            ("a.", false),
            (".a", false),
            ("a..b", false),
            (&"x".repeat(63), true),
            (&"x".repeat(64), false),
            (&["x"; 127].join("."), true),
            (&["x"; 128].join("."), false),
        ] {
            assert_eq!(is_domain_name(name), is, "{name}");
        }
    }

    #[test]
    fn an_equal_view_changes_nothing() {
        let directory = Directory::default();
        let view = view(vec![member("web", &[], &["10.1.0.2"])]);
        directory.set(view.clone());
        let first = directory.current();
        directory.set(view);
        assert!(Arc::ptr_eq(&first, &directory.current()));
        directory.set(View::default());
        assert!(directory.current().networks.is_empty());
    }

    #[test]
    fn any_address_may_be_the_first() {
        let names = Names::new(view(vec![
            member("one", &["pool"], &["10.1.0.2", "fd01::2"]),
            member("two", &["pool"], &["10.1.0.3"]),
            member("three", &["pool"], &["10.1.0.4"]),
        ]));
        let indexed = &names.networks[0];
        let holders = indexed.holders("pool").unwrap();
        let mut first = HashSet::new();
        // That one is missed has a chance of 2^-580.
        for _ in 0..1000 {
            let mut found = indexed.addresses(holders, false);
            first.insert(found[0]);
            found.sort();
            let all = ["10.1.0.2", "10.1.0.3", "10.1.0.4"];
            assert_eq!(found, all.map(|addr| addr.parse::<IpAddr>().unwrap()));
        }
        assert_eq!(first.len(), 3);
        assert_eq!(indexed.addresses(holders, true).len(), 1);
    }
}
