//! Networks: what they are made of, and making and removing them.
//!
//! What a network will be is decided by [`plan`], which is pure; a bridge is made, or mended, by
//! [`Agent::ensure_bridge`].

use std::{collections::HashSet, net::IpAddr};

use ipnet::{IpNet, Ipv6Net};
use netfw_common::record::Subnet;

use super::{
    Agent, AgentError, Bridge,
    error::NetworkError,
    ipam::{self, Pool},
    plan::{self, LEAST_MTU, LEAST_MTU6, Obstacle, Surroundings, plan, pool6},
    record::{Network, alias, is_object},
    store::Change,
};
use crate::{
    api::types::{self, NetworkRequest},
    dns::resolv,
    mode::RESERVED,
    name::Name,
    net::{NetError, subnet, sysctl},
    rules::Rules,
};

/// The network that every endpoint joins unless it names another.
pub const DEFAULT_NETWORK: &str = "bridge";

impl Agent {
    pub async fn create_network(
        &mut self,
        request: NetworkRequest,
    ) -> Result<types::NetworkDetails, AgentError> {
        let name = request.name.clone();
        if self.wanted.networks.contains_key(&name) {
            return Err(NetworkError::Exists(name).into());
        }
        if RESERVED.contains(&name.as_str()) {
            return Err(NetworkError::Reserved(name).into());
        }
        let obstacles = self.obstacles().await?;
        let prefix6 = self.prefix6()?;
        let around = Surroundings {
            obstacles: &obstacles,
            prefix6,
            ipv6: &self.ipv6,
        };
        let (v4, v6, rules) = plan(&request, &around)?;
        let network = self.new_network(name.clone(), v4, v6, rules).await?;
        let network = Network {
            mtu: request.mtu,
            labels: request.labels,
            ..network
        };
        self.store.commit(&[Change::Network(&network)])?;
        self.wanted.networks.insert(name.clone(), network);
        let made = match self.dataplane.set_mappings(self.wanted.has_mappings()) {
            Ok(()) => self.ensure_bridge(&name).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = made {
            self.store.commit(&[Change::NoNetwork(&name)])?;
            if let Err(error) = self.dismantle(&name).await {
                tracing::warn!(network = %name, error = %crate::chain(&error), "undoing");
            }
            return Err(error);
        }
        tracing::info!(network = %name, "created");
        self.network_details(&name)
    }

    pub async fn remove_network(&mut self, name: &Name) -> Result<(), AgentError> {
        if !self.wanted.networks.contains_key(name) {
            return Err(self.no_network(name));
        }
        if name.as_str() == DEFAULT_NETWORK {
            return Err(NetworkError::Default.into());
        }
        let endpoints: Vec<Name> = self.members(name).map(|(e, _)| e.name.clone()).collect();
        if !endpoints.is_empty() {
            return Err(NetworkError::InUse {
                network: name.clone(),
                endpoints,
            }
            .into());
        }
        // From here on a start would not make it again, and remove what is left of it.
        self.store.commit(&[Change::NoNetwork(name)])?;
        let done = self.dismantle(name).await;
        tracing::info!(network = %name, "removed");
        done
    }

    async fn dismantle(&mut self, name: &Name) -> Result<(), AgentError> {
        let Some(network) = self.wanted.networks.remove(name) else {
            return Ok(());
        };
        let set = self.dataplane.set_mappings(self.wanted.has_mappings());
        let taken = self.take_down_network(&network).await;
        Ok(set?).and(taken)
    }

    /// Takes the bridge and the subnets away, past errors; returns the first.
    pub(super) async fn take_down_network(&mut self, network: &Network) -> Result<(), AgentError> {
        let mut first = Ok(());
        if let Some(bridge) = self.bridges.remove(&network.name) {
            first = self.netlink.delete_link(bridge.ifindex).await;
        }
        let mut first = first.map_err(AgentError::from);
        for subnet in network.subnets() {
            let removed = self.dataplane.remove_subnet(subnet);
            first = first.and(removed.map_err(AgentError::from));
        }
        first
    }

    pub(super) fn no_network(&self, name: &Name) -> AgentError {
        NetworkError::None {
            name: name.clone(),
            has: self.wanted.networks.keys().cloned().collect(),
        }
        .into()
    }

    async fn new_network(
        &self,
        name: Name,
        v4: Option<Pool>,
        v6: Option<Pool>,
        rules: Rules,
    ) -> Result<Network, AgentError> {
        let links = self.netlink.links().await?;
        let names = links.iter().map(|l| l.name.as_str());
        // One that is wanted may be missing at this moment.
        let wanted = self.wanted.networks.values().map(|n| n.bridge.as_str());
        let gateway = [&v4, &v6].into_iter().flatten().next();
        let gateway = gateway.map_or(IpAddr::V4([0; 4].into()), |pool| pool.gateway);
        let numbers = self.wanted.networks.values().map(|n| n.number);
        Ok(Network {
            number: 1 + numbers.max().unwrap_or(0),
            bridge: free_bridge_name(names.chain(wanted))?,
            mac: ipam::mac_for(gateway),
            name,
            v4,
            v6,
            mtu: None,
            rules,
            labels: Default::default(),
            unsettled: false,
        })
    }

    /// The default network, with a subnet of each family that the node has.
    pub(super) async fn ensure_default_network(&mut self) -> Result<(), AgentError> {
        let name: Name = DEFAULT_NETWORK.parse().map_err(AgentError::Name)?;
        let known = self.wanted.networks.get(&name).cloned();
        let lacks_ipv6 = known.as_ref().is_none_or(|n| n.v6.is_none()) && self.ipv6.is_ok();
        if known.is_some() && !lacks_ipv6 {
            return Ok(());
        }
        let obstacles = self.obstacles().await?;
        let taken: Vec<IpNet> = obstacles.iter().map(|o| o.net).collect();
        let v6 = match lacks_ipv6 {
            true => Some(pool6(self.prefix6()?, &taken)?),
            false => None,
        };
        let network = match known {
            Some(known) => Network { v6, ..known },
            None => {
                let v4 = subnet::choose(&taken).ok_or(NetworkError::NoSubnet)?;
                let v4 = Pool::new(v4.into(), None).map_err(NetworkError::from)?;
                self.new_network(name.clone(), Some(v4), v6, Rules::default())
                    .await?
            }
        };
        self.store.commit(&[Change::Network(&network)])?;
        let subnets: Vec<String> = network.subnets().map(|net| net.to_string()).collect();
        tracing::info!(network = %name, subnets = %subnets.join(", "), bridge = %network.bridge, "chose subnets");
        self.wanted.networks.insert(name, network);
        Ok(())
    }

    /// The node's /48, chosen once.
    pub(super) fn prefix6(&mut self) -> Result<Ipv6Net, AgentError> {
        let Some(node) = &self.wanted.node else {
            return Err(AgentError::Fault("the store knows no node".into()));
        };
        if let Some(prefix) = node.prefix6 {
            return Ok(prefix);
        }
        let prefix = subnet::random_prefix();
        let mut node = node.clone();
        node.prefix6 = Some(prefix);
        self.store.commit(&[Change::Node(&node)])?;
        self.wanted.node = Some(node);
        Ok(prefix)
    }

    /// Every network there is, and what of the node is in the way.
    pub(super) async fn obstacles(&self) -> Result<Vec<Obstacle>, AgentError> {
        let networks = self.wanted.networks.values().flat_map(|network| {
            network.subnets().map(|net| Obstacle {
                net,
                what: format!("network \"{}\"", network.name),
            })
        });
        Ok(networks.chain(self.obstacles_of_node().await?).collect())
    }

    /// What the node routes to or has an address in, and its resolvers; but for what belongs to networks.
    pub(super) async fn obstacles_of_node(&self) -> Result<Vec<Obstacle>, AgentError> {
        let ours = |ifindex| self.bridges.values().any(|b| Some(b.ifindex) == ifindex);
        let mut routes = self.netlink.routes().await?;
        routes.retain(|route| !ours(route.oif));
        let mut addresses = self.netlink.addresses().await?;
        addresses.retain(|address| !ours(Some(address.ifindex)));
        let resolvers = resolv::Config::of_file(&self.config.resolv_conf).servers;
        Ok(plan::of_node(
            &routes,
            &addresses,
            resolvers.iter().map(|server| server.ip()),
        ))
    }

    /// The subnets that are in use: not those of IPv6 where the node has none.
    pub(super) fn pools<'a>(&'a self, network: &'a Network) -> impl Iterator<Item = &'a Pool> {
        let ipv6 = self.ipv6.is_ok();
        network
            .pools()
            .filter(move |pool| ipv6 || pool.gateway.is_ipv4())
    }

    /// The MTU of the network's interfaces.
    pub(super) fn mtu_of(&self, network: &Network) -> u32 {
        let least = if network.v6.is_some() {
            LEAST_MTU6
        } else {
            LEAST_MTU
        };
        network.mtu.unwrap_or(self.mtu.max(least))
    }

    /// The bridge with its addresses and its rules, made or kept.
    pub(super) async fn ensure_bridge(&mut self, name: &Name) -> Result<(), AgentError> {
        let mut network = self.wanted.networks[name].clone();
        let instance = &self.config.instance;
        let alias = alias(instance, name);
        let found = self.netlink.link(&network.bridge).await?;
        let ifindex = match found {
            Some(link) if is_object(instance, &link, name, network.mac) => {
                if link.alias.as_ref() != Some(&alias) {
                    self.netlink.set_alias(link.index, &alias).await?;
                }
                link.index
            }
            found => {
                if found.is_some() {
                    // Somebody took the name since.
                    let links = self.netlink.links().await?;
                    network.bridge = free_bridge_name(links.iter().map(|l| l.name.as_str()))?;
                    self.store.commit(&[Change::Network(&network)])?;
                    self.wanted.networks.insert(name.clone(), network.clone());
                }
                let mtu = self.mtu_of(&network);
                self.netlink
                    .create_bridge(&network.bridge, network.mac.0, mtu, &alias)
                    .await?
            }
        };
        self.bridges.insert(name.clone(), Bridge { ifindex });
        let pools: Vec<Pool> = self.pools(&network).copied().collect();
        // Before the bridge comes up: whatever it gets is routed by the programs' rules only.
        let subnet = Subnet {
            network: network.number,
            flags: network.rules.flags(),
        };
        for pool in &pools {
            self.dataplane.set_subnet(pool.subnet, subnet)?;
        }
        // What is set here goes with the bridge, so there is nothing to put back.
        let set = |family: &str, key: &str, value: &str| {
            sysctl::set(
                &format!("net/{family}/conf/{}/{key}", network.bridge),
                value,
            )
            .map(drop)
        };
        let six = pools.iter().any(|pool| pool.gateway.is_ipv6());
        if six {
            for (key, value) in SETTINGS6 {
                set("ipv6", key, value)?;
            }
            // In place of the kernel's, which has to wait for a carrier and for duplicates.
            set("ipv6", "addr_gen_mode", "1")?;
        }
        self.netlink.set_up(ifindex).await?;
        for pool in &pools {
            let address = pool.on_link(pool.gateway);
            self.netlink.add_address(ifindex, address).await?;
        }
        if six {
            let own = IpNet::new_assert(subnet::link_local(network.mac.0).into(), 64);
            self.netlink.add_address(ifindex, own).await?;
        }
        Ok(self.set_forwarding(&network)?)
    }

    /// `net.FAMILY.conf.BRIDGE.forwarding`, of the families that the network has. The stack has it for IPv4
    /// in any case.
    fn forwarding(&self, network: &Network) -> impl Iterator<Item = String> {
        let six = self.pools(network).any(|pool| pool.gateway.is_ipv6());
        let families = ["ipv4"].into_iter().chain(six.then_some("ipv6"));
        families.map(|family| format!("net/{family}/conf/{}/forwarding", network.bridge))
    }

    /// bpf_fib_lookup asks as if the packet had come in by the bridge.
    pub(super) fn set_forwarding(&self, network: &Network) -> Result<(), NetError> {
        for key in self.forwarding(network) {
            sysctl::set(&key, "1")?;
        }
        Ok(())
    }

    pub(super) fn forwards(&self, network: &Network) -> bool {
        let mut keys = self.forwarding(network);
        keys.all(|key| sysctl::get(&key).is_ok_and(|value| value != "0"))
    }
}

/// Of an interface that shall have our addresses and routes, and nobody's else.
pub const SETTINGS6: [(&str, &str); 3] =
    [("disable_ipv6", "0"), ("accept_ra", "0"), ("autoconf", "0")];

/// Whether the calling thread's namespace has IPv6, or why not.
pub fn ipv6() -> Result<(), String> {
    match sysctl::get("net/ipv6/conf/all/disable_ipv6") {
        Ok(value) if value == "0" => Ok(()),
        Ok(_) => Err("net.ipv6.conf.all.disable_ipv6 is 1".into()),
        Err(NetError::System { .. }) => {
            Err("this kernel has no IPv6, or it was started with ipv6.disable=1".into())
        }
        Err(error) => Err(crate::chain(&error)),
    }
}

/// What has the node's stack forward packets between interfaces, of IPv4 and of IPv6.
pub const FORWARDING: [&str; 2] = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];

/// Why routed networks are not reached, by one of [`FORWARDING`]; None where they are.
pub fn unforwarded(key: &str) -> Option<String> {
    let off = sysctl::get(key).is_ok_and(|value| value == "0");
    off.then(|| {
        let key = key.replace('/', ".");
        format!(
            "routed networks are not reached from outside: {key} is 0, and the node forwards nothing to them"
        )
    })
}

pub(super) fn free_bridge_name<'a>(
    taken: impl Iterator<Item = &'a str>,
) -> Result<String, AgentError> {
    let taken: HashSet<&str> = taken.collect();
    (0..10_000)
        .map(|n| format!("netfw{n}"))
        .find(|name| !taken.contains(name.as_str()))
        .ok_or(AgentError::NoBridgeName)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_free_bridge_name() {
        assert_eq!(free_bridge_name([].into_iter()).unwrap(), "netfw0");
        assert_eq!(
            free_bridge_name(["lo", "netfw0", "netfw2"].into_iter()).unwrap(),
            "netfw1"
        );
    }
}
