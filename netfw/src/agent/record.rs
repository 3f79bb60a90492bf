//! The wanted state: what the store keeps and what the node is reconciled with.
//!
//! These records are written to disk as JSON. A field that is added needs `#[serde(default)]`, so
//! that an older store is still read; a change of meaning raises [`super::store::VERSION`].

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use ipnet::{IpNet, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::ipam::Pool;
use crate::{
    name::{Mac, Name},
    net::Link,
    publish::{Families, Publish},
    rules::{Nat, Rules},
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
pub struct Endpoint {
    pub name: Name,
    pub network: Name,
    pub namespace: Target,
    #[serde(default)]
    pub ip4: Option<Ipv4Addr>,
    #[serde(default)]
    pub ip6: Option<Ipv6Addr>,
    pub mac: Mac,
    /// Interface name of the host side of the veth pair.
    pub host_interface: String,
    /// Interface name in the container.
    pub interface: String,
    /// Index into `COUNTERS`.
    pub counter: u32,
    pub publishes: Vec<Published>,
    /// It is on its way out: the next start finishes the removal.
    #[serde(default)]
    pub removing: bool,
}

/// The container's network namespace.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Target {
    /// The file by which the namespace is opened.
    pub path: PathBuf,
    /// netfw made it (under the endpoint's name), and deletes it with the endpoint.
    pub made: bool,
    /// Set for namespaces named by a process: the number may be another process's by now.
    pub id: Option<NamespaceId>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Published {
    pub publish: Publish,
    /// Index into `COUNTERS`.
    pub counter: u32,
}

#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Wanted {
    pub node: Option<Node>,
    pub networks: BTreeMap<Name, Network>,
    pub endpoints: BTreeMap<Name, Endpoint>,
}

impl Wanted {
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

impl Endpoint {
    /// IPv4's first.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let (v4, v6) = (self.ip4.map(IpAddr::V4), self.ip6.map(IpAddr::V6));
        v4.into_iter().chain(v6)
    }

    pub fn families(&self) -> Families {
        Families {
            v4: self.ip4.is_some(),
            v6: self.ip6.is_some(),
        }
    }

    /// Its own, and those of its publishes.
    pub fn counters(&self) -> impl Iterator<Item = u32> {
        let publishes = self.publishes.iter().map(|p| p.counter);
        std::iter::once(self.counter).chain(publishes)
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
            || self.endpoints.values().any(|e| {
                e.host_interface == link.name
                    && is_object(instance, link, &e.name, host_mac(&e.host_interface))
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
}
