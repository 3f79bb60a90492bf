//! The wanted state: what the store keeps and what the node is reconciled with.
//!
//! These records are written to disk as JSON. A field that is added needs `#[serde(default)]`, so
//! that an older store is still read; a change of meaning raises [`super::store::VERSION`].

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use ipnet::{IpNet, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::{Place, ipam::Pool};
use crate::{
    mode,
    name::{Mac, Name, NameLink},
    net::Link,
    owner::Owner,
    publish::{Exposed, Families, Publish},
    rules::{Nat, Rules},
    source::Sources,
};

/// A network namespace's identity: device and inode of its nsfs file. It holds as long as the
/// namespace lives.
pub type NamespaceId = (u64, u64);

/// Which namespace an instance serves; there is one record a store.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Node {
    /// As `--netns` named it; none where the agent ran in the namespace it was started in.
    pub netns: Option<PathBuf>,
    pub id: NamespaceId,
    /// `/proc/sys/kernel/random/boot_id`: identities mean nothing after a reboot.
    pub boot: String,
    /// The /48 of which networks get their /64 (RFC 4193); chosen when it is needed first.
    #[serde(default)]
    pub prefix6: Option<Ipv6Net>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Network {
    pub name: Name,
    /// The number that the data plane knows the network by; from 1.
    pub number: u32,
    /// The bridge's interface name.
    pub bridge: String,
    /// The bridge's MAC address.
    pub mac: Mac,
    /// Its fields stand among the network's own, where they were before there was IPv6.
    #[serde(flatten)]
    pub v4: Option<Pool>,
    #[serde(default)]
    pub v6: Option<Pool>,
    /// None: the narrowest uplink's, when an interface is made.
    #[serde(default)]
    pub mtu: Option<u32>,
    #[serde(default)]
    pub rules: Rules,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its rules were changed, and flows of before may still go by the old ones.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unsettled: bool,
}

impl Network {
    /// IPv4's first.
    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.v4.iter().chain(&self.v6)
    }

    pub fn subnets(&self) -> impl Iterator<Item = IpNet> {
        self.pools().map(|pool| pool.subnet)
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(from = "StoredEndpoint")]
pub struct Endpoint {
    pub name: Name,
    pub mode: Mode,
    pub namespace: Target,
    /// In the order in which they were made, which says by which the container reaches the world (see
    /// [`Wanted::way_out`]). None where [`Endpoint::mode`] does without.
    pub attachments: Vec<Attachment>,
    /// Index into `COUNTERS`.
    pub counter: u32,
    pub publishes: Vec<Published>,
    /// What the container is said to serve.
    pub exposed: Vec<Exposed>,
    /// Who may use publishes that have no list of their own.
    pub allow_from: Sources,
    /// Names that it alone has for others.
    pub links: Vec<NameLink>,
    /// It is on its way out: the next start finishes the removal.
    pub removing: bool,
    /// What went by the name before, and is on its way out as well: this one is made when that has gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predecessor: Option<Box<Endpoint>>,
}

/// Where an endpoint's namespace has its interfaces from.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    #[default]
    Networks,
    None,
    Host,
    /// From that endpoint, whose namespace it shares.
    Container(Name),
}

/// An endpoint's interface in a network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attachment {
    pub network: Name,
    #[serde(default)]
    pub ip4: Option<Ipv4Addr>,
    #[serde(default)]
    pub ip6: Option<Ipv6Addr>,
    pub mac: Mac,
    /// Interface name of the host side of the veth pair.
    pub host_interface: String,
    /// Interface name in the container.
    pub interface: String,
    /// Other names that it has for everybody in the network.
    #[serde(default)]
    pub aliases: Vec<Name>,
    /// Whose it is, where a container runtime had it made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// Docker has the container reach the world by it (`ProgramExternalConnectivity`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub external: bool,
    /// As [`Endpoint::removing`].
    #[serde(default)]
    pub removing: bool,
}

/// An [`Endpoint`] as it is read: in stores of version 1 it had one attachment, whose fields stood among
/// its own.
#[derive(Deserialize)]
struct StoredEndpoint {
    name: Name,
    #[serde(default)]
    mode: Mode,
    namespace: Target,
    #[serde(default)]
    attachments: Vec<Attachment>,
    #[serde(flatten)]
    only: Option<Attachment>,
    counter: u32,
    publishes: Vec<Published>,
    #[serde(default)]
    exposed: Vec<Exposed>,
    #[serde(default)]
    allow_from: Sources,
    #[serde(default)]
    links: Vec<NameLink>,
    #[serde(default)]
    removing: bool,
    #[serde(default)]
    predecessor: Option<Box<Endpoint>>,
}

impl From<StoredEndpoint> for Endpoint {
    fn from(stored: StoredEndpoint) -> Self {
        Self {
            name: stored.name,
            mode: stored.mode,
            namespace: stored.namespace,
            attachments: stored.only.into_iter().chain(stored.attachments).collect(),
            counter: stored.counter,
            publishes: stored.publishes,
            exposed: stored.exposed,
            allow_from: stored.allow_from,
            links: stored.links,
            removing: stored.removing,
            predecessor: stored.predecessor,
        }
    }
}

/// Of IP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// The container's network namespace.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Target {
    /// The file by which the namespace is opened; empty for the node's own.
    pub path: PathBuf,
    /// netfw made it (under the endpoint's name), and deletes it with the endpoint.
    pub made: bool,
    /// Set for namespaces named by a process: the number may be another process's by now.
    pub id: Option<NamespaceId>,
}

impl Target {
    /// Somebody else makes it.
    pub fn foreign(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            made: false,
            id: None,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Published {
    pub publish: Publish,
    /// Index into `COUNTERS`.
    pub counter: u32,
    /// Who may use it.
    #[serde(default)]
    pub allow_from: Sources,
    /// The container's runtime asked for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub runtime: bool,
}

#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Wanted {
    pub node: Option<Node>,
    pub networks: BTreeMap<Name, Network>,
    pub endpoints: BTreeMap<Name, Endpoint>,
    /// Attachments that somebody has deleted from the kernel: not in the store, a start makes them again.
    pub gone: BTreeSet<Place>,
}

impl Wanted {
    /// By which attachment the endpoint reaches the world in this family: that is where its default route
    /// leads, and its publishes are for. The first whose network has the family and leads out; or, where
    /// none leads out, the first that has it. Those that are gone come last.
    pub fn way_out<'a>(&self, endpoint: &'a Endpoint, family: Family) -> Option<&'a Attachment> {
        let all = endpoint.attached().filter(|a| a.has_family(family));
        // Of equals, the first.
        all.min_by_key(|a| {
            let place = (endpoint.name.clone(), a.network.clone());
            (self.gone.contains(&place), !self.leads_out(a))
        })
    }

    /// To which of the endpoint's attachments its publishes of this family lead: nobody gets into an
    /// internal network.
    pub fn way_in<'a>(&self, endpoint: &'a Endpoint, family: Family) -> Option<&'a Attachment> {
        self.way_out(endpoint, family).filter(|a| self.leads_out(a))
    }

    fn leads_out(&self, attachment: &Attachment) -> bool {
        let network = self.networks.get(&attachment.network);
        network.is_some_and(|network| !network.rules.internal)
    }

    /// The families in which an endpoint can have publishes.
    pub fn families(&self, endpoint: &Endpoint) -> Families {
        let has = |family| self.way_out(endpoint, family).is_some();
        Families {
            v4: has(Family::V4),
            v6: has(Family::V6),
        }
    }

    /// All attachments, and whose they are.
    pub fn attachments(&self) -> impl Iterator<Item = (&Endpoint, &Attachment)> {
        let endpoints = self.endpoints.values();
        endpoints.flat_map(|e| e.attachments.iter().map(move |a| (e, a)))
    }

    /// All counter indexes in use.
    pub fn counters(&self) -> impl Iterator<Item = u32> {
        self.endpoints.values().flat_map(Endpoint::counters)
    }

    /// Is there a network with endpoint-independent mappings?
    pub fn has_mappings(&self) -> bool {
        let mut networks = self.networks.values();
        networks.any(|network| network.rules.nat == Nat::EndpointIndependent)
    }
}

impl Attachment {
    /// IPv4's first.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let (v4, v6) = (self.ip4.map(IpAddr::V4), self.ip6.map(IpAddr::V6));
        v4.into_iter().chain(v6)
    }

    pub fn has_family(&self, family: Family) -> bool {
        self.ips().any(|ip| Family::of(ip) == family)
    }

    /// Is its runtime still to take the container's end out of the node ([`Owner::configures`])?
    pub fn is_waiting(&self) -> bool {
        let number = self.interface.strip_prefix(WAITING);
        number.is_some() && number == self.host_interface.strip_prefix(HOST)
    }

    /// Does its runtime configure the container's end?
    pub fn is_configured_by_runtime(&self) -> bool {
        self.owner.as_ref().is_some_and(Owner::configures)
    }

    /// The container's table of routes for what it sends from this attachment's addresses: the number in
    /// the name of the host side, which is random, and nobody else's.
    pub fn table(&self) -> u32 {
        /// The kernel's own tables lie below.
        const LEAST: u32 = 1 << 12;
        let digits = self.host_interface.get(2..).unwrap_or_default();
        u32::from_str_radix(digits, 16).map_or(LEAST, |number| number | LEAST)
    }
}

impl Endpoint {
    /// As `--network` has it; of one in several networks, the first.
    pub fn mode(&self) -> mode::Mode {
        match (&self.mode, self.attached().next()) {
            (Mode::Networks, Some(attachment)) => mode::Mode::Network(attachment.network.clone()),
            (Mode::Networks | Mode::None, _) => mode::Mode::None,
            (Mode::Host, _) => mode::Mode::Host,
            (Mode::Container(other), _) => mode::Mode::Container(other.clone()),
        }
    }

    /// Who may use a publish of the endpoint's, where the agent's list is `default`: the nearest list that
    /// says something counts. Empty: everybody.
    pub fn sources<'a>(&'a self, published: &'a Published, default: &'a Sources) -> &'a Sources {
        published.allow_from.or(&self.allow_from).or(default)
    }

    /// Those of all its attachments.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> {
        self.attachments.iter().flat_map(Attachment::ips)
    }

    /// Does a container runtime make and remove it?
    pub fn is_runtimes(&self) -> bool {
        self.attachments.iter().any(|a| a.owner.is_some())
    }

    /// Does its container runtime bind the host ports of one of its publishes?
    pub fn is_bound(&self, published: &Published) -> bool {
        let mut owners = self.attachments.iter().filter_map(|a| a.owner.as_ref());
        published.runtime && owners.any(Owner::binds_ports)
    }

    /// Has it interfaces that its container runtime configures, and routes with them?
    pub fn is_configured_by_runtime(&self) -> bool {
        self.attachments
            .iter()
            .any(Attachment::is_configured_by_runtime)
    }

    /// Those that are not on their way out.
    pub fn attached(&self) -> impl Iterator<Item = &Attachment> {
        self.attachments.iter().filter(|a| !a.removing)
    }

    pub fn attachment(&self, network: &Name) -> Option<&Attachment> {
        self.attachments.iter().find(|a| a.network == *network)
    }

    /// It, on its way out.
    pub fn leaving(&self) -> Self {
        Self {
            removing: true,
            ..self.clone()
        }
    }

    /// It, and what has its name still.
    pub fn with_predecessor(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(self.predecessor.as_deref())
    }

    /// Its own, those of its publishes, and the same of what has its name still.
    pub fn counters(&self) -> impl Iterator<Item = u32> {
        self.with_predecessor().flat_map(|endpoint| {
            let publishes = endpoint.publishes.iter().map(|p| p.counter);
            std::iter::once(endpoint.counter).chain(publishes)
        })
    }
}

/// The alias by which interfaces of an instance are known, whatever they are called.
pub fn alias(instance: &Name, object: &Name) -> String {
    format!("netfw:{instance}:{object}")
}

/// The instance that an interface with this alias belongs to, if it is any's.
pub fn instance_of(alias: Option<&str>) -> Option<&str> {
    let (instance, _) = alias?.strip_prefix("netfw:")?.split_once(':')?;
    Some(instance)
}

/// The object that an interface with this alias belongs to, if it is one of the instance's.
pub fn object_of<'a>(instance: &Name, alias: Option<&'a str>) -> Option<&'a str> {
    alias?
        .strip_prefix("netfw:")?
        .strip_prefix(instance.as_str())?
        .strip_prefix(':')
}

/// Is `link`, which has the right name, the interface that we made for `object`? The kernel takes
/// an alias only once the interface exists; whoever is killed between leaves one without, which is
/// known by its MAC address.
pub fn is_object(instance: &Name, link: &Link, object: &Name, mac: Mac) -> bool {
    match link.alias.as_deref() {
        None | Some("") => link.mac == Some(mac.0),
        alias => object_of(instance, alias) == Some(object.as_str()),
    }
}

/// What names of host sides begin with.
const HOST: &str = "nf";
/// And those of their other ends, while these wait in the node.
const WAITING: &str = "np";

/// `nf` and eight hex digits, chosen at random: short enough for IFNAMSIZ, and nobody else's.
pub fn new_host_interface(endpoint: &Name) -> String {
    use std::hash::{BuildHasher, RandomState};
    let number = RandomState::new().hash_one(endpoint) as u32;
    format!("{HOST}{number:08x}")
}

/// What the other end of a veth pair is called while it waits in the node for a container runtime.
pub fn waiting_interface(host_interface: &str) -> String {
    let number = host_interface.strip_prefix(HOST).unwrap_or_default();
    format!("{WAITING}{number}")
}

/// The MAC address of the host side of a veth pair: high, so that a bridge without one of its own
/// would not choose it.
pub fn host_mac(host_interface: &str) -> Mac {
    // FNV-1a: the value is compared with what another run of netfw, perhaps built by another
    // compiler, made of the name.
    let hash = host_interface
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    let [_, _, _, a, b, c, d, e] = hash.to_be_bytes();
    Mac([0xfe, a, b, c, d, e])
}

impl Wanted {
    /// Is this interface one of the instance's, whether or not it is still wanted?
    pub fn owns(&self, instance: &Name, link: &Link) -> bool {
        object_of(instance, link.alias.as_deref()).is_some()
            || self
                .networks
                .values()
                .any(|n| n.bridge == link.name && is_object(instance, link, &n.name, n.mac))
            || self.attachments().any(|(e, a)| {
                a.host_interface == link.name
                    && is_object(instance, link, &e.name, host_mac(&a.host_interface))
            })
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn an_alias_names_its_instance() {
        let instance: Name = "a".parse().unwrap();
        let alias = alias(&instance, &"web".parse().unwrap());
        assert_eq!(alias, "netfw:a:web");
        assert_eq!(object_of(&instance, Some(&alias)), Some("web"));
        assert_eq!(instance_of(Some(&alias)), Some("a"));
        assert_eq!(instance_of(Some("netfw demo")), None);
        assert_eq!(object_of(&instance, Some("netfw:ab:web")), None);
        assert_eq!(object_of(&instance, Some("other")), None);
        assert_eq!(object_of(&instance, None), None);
    }

    #[test]
    fn an_end_that_waits_is_known_by_its_name() {
        let host_interface = new_host_interface(&"web".parse().unwrap());
        let mut attachment = Attachment {
            network: "bridge".parse().unwrap(),
            ip4: None,
            ip6: None,
            mac: Mac([0; 6]),
            interface: waiting_interface(&host_interface),
            host_interface,
            aliases: Vec::new(),
            owner: None,
            external: false,
            removing: false,
        };
        assert!(attachment.is_waiting());
        attachment.interface = "eth0".into();
        assert!(!attachment.is_waiting());
    }
}
