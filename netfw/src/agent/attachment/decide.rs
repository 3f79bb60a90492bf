//! What an attachment will be: addresses, MAC, names of interfaces. Touches nothing.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::MetadataExt,
    path::Path,
};

use super::Inside;
use crate::{
    agent::{
        Agent, AgentError,
        endpoint::place,
        error::NetworkError,
        ipam::{self, Pool},
        names,
        plan::family,
        record::{Attachment, Endpoint, Network, new_host_interface, waiting_interface},
        store::Change,
    },
    api::owned::Owned,
    name::{Mac, Name, NameLink},
    net::Link,
};

/// What of an attachment somebody wants to choose.
pub(in crate::agent) struct Asked {
    pub ip4: Option<Ipv4Addr>,
    pub ip6: Option<Ipv6Addr>,
    pub mac: Option<Mac>,
    pub aliases: Vec<Name>,
    /// Of what name the interface shall be, and whose. None: `eth0` or the next that is free, and nobody's.
    pub owned: Option<Owned>,
}

impl Asked {
    /// By the runtime that has it made, inside.
    pub fn is_configured_by_runtime(&self) -> bool {
        let owned = self.owned.as_ref();
        owned.is_some_and(|owned| owned.owner.configures())
    }
}

impl Agent {
    /// What an attachment of `name` to `network` will be, or why it cannot be; takes addresses of
    /// `network`, and touches nothing else. `inside` is none where the namespace is to be made, by us or by a
    /// runtime.
    pub(in crate::agent) async fn decide_attachment(
        &self,
        name: &Name,
        asked: &Asked,
        network: &mut Network,
        inside: Option<&Inside>,
        path: &Path,
    ) -> Result<Attachment, AgentError> {
        names::check(&self.wanted, name, &asked.aliases, &network.name)?;
        let mut interface = "eth0".into();
        if let Some(inside) = inside {
            let links = inside.netlink.links().await?;
            if let Some(other) = self.attached_from(inside, &links, &network.name) {
                return Err(AgentError::AlreadyAttached {
                    netns: path.to_owned(),
                    network: network.name.clone(),
                    endpoint: other.name.clone(),
                });
            }
            let mut names = links.iter().map(|link| link.name.as_str());
            interface = match &asked.owned {
                // Docker counts its own and does not look.
                None if self.is_docker_s(name) => free_interface("nf", names)?,
                None => free_interface("eth", names)?,
                Some(Owned { interface, .. }) if names.any(|name| name == interface) => {
                    return Err(AgentError::InterfaceExists {
                        interface: interface.clone(),
                        netns: path.to_owned(),
                    });
                }
                Some(Owned { interface, .. }) => interface.clone(),
            };
        }
        let (ip4, ip6) = self.addresses_for(asked, network)?;
        let first = ip4.map(IpAddr::V4).or(ip6.map(IpAddr::V6));
        let mac = match (asked.mac, first) {
            (Some(mac), _) => mac,
            (None, Some(ip)) => ipam::mac_for(ip),
            // An IPv6 network of a time when the node had IPv6.
            (None, None) => {
                let why = self.ipv6.clone().err().unwrap_or_default();
                return Err(NetworkError::NoIpv6(why).into());
            }
        };
        self.check_mac(mac, network)?;
        let host_interface = self.free_host_interface(name).await?;
        if asked.is_configured_by_runtime() {
            interface = waiting_interface(&host_interface);
        }
        Ok(Attachment {
            network: network.name.clone(),
            ip4,
            ip6,
            mac,
            host_interface,
            interface,
            aliases: asked.aliases.clone(),
            owner: asked.owned.as_ref().map(|owned| owned.owner.clone()),
            external: false,
            removing: false,
        })
    }

    fn is_docker_s(&self, endpoint: &Name) -> bool {
        let endpoint = self.wanted.endpoints.get(endpoint);
        endpoint.is_some_and(Endpoint::is_configured_by_runtime)
    }

    /// Who is attached to the network from this very namespace. `links` are what the namespace has. Only who
    /// has the other end of one is asked for its namespace: with a thousand endpoints, looking at all their
    /// files takes milliseconds.
    pub(in crate::agent) fn attached_from(
        &self,
        inside: &Inside,
        links: &[Link],
        network: &Name,
    ) -> Option<&Endpoint> {
        let others = self.up.iter().filter(|((_, of), host)| {
            of == network && links.iter().any(|link| link.peer == Some(**host))
        });
        let mut others = others.filter_map(|((name, _), _)| self.wanted.endpoints.get(name));
        others.find(|e| {
            std::fs::metadata(&e.namespace.path)
                .is_ok_and(|file| (file.dev(), file.ino()) == inside.namespace.id())
        })
    }

    /// One of each family that the network has.
    fn addresses_for(
        &self,
        asked: &Asked,
        network: &mut Network,
    ) -> Result<(Option<Ipv4Addr>, Option<Ipv6Addr>), AgentError> {
        let (asked4, asked6) = (asked.ip4.map(IpAddr::V4), asked.ip6.map(IpAddr::V6));
        let pools: Vec<Pool> = self.pools(network).copied().collect();
        for ip in asked4.into_iter().chain(asked6) {
            if !pools.iter().any(|p| p.gateway.is_ipv4() == ip.is_ipv4()) {
                return Err(AgentError::NoFamily {
                    ip,
                    network: network.name.clone(),
                    family: family(ip),
                    why: self.ipv6.clone().err().filter(|_| ip.is_ipv6()),
                });
            }
        }
        let taken = self.taken_addresses(&network.name);
        let (mut ip4, mut ip6) = (None, None);
        for pool in pools {
            let own = if pool.gateway.is_ipv4() {
                &mut network.v4
            } else {
                &mut network.v6
            };
            let asked = if pool.gateway.is_ipv4() {
                asked4
            } else {
                asked6
            };
            match self.address_for(asked, &pool, own, &taken)? {
                IpAddr::V4(ip) => ip4 = Some(ip),
                IpAddr::V6(ip) => ip6 = Some(ip),
            }
        }
        Ok((ip4, ip6))
    }

    fn address_for(
        &self,
        asked: Option<IpAddr>,
        pool: &Pool,
        own: &mut Option<Pool>,
        taken: &BTreeSet<IpAddr>,
    ) -> Result<IpAddr, AgentError> {
        let Some(ip) = asked else {
            let ip = pool.next(taken)?;
            *own = Some(Pool { last: ip, ..*pool });
            return Ok(ip);
        };
        pool.check(ip, taken)?;
        if self.locals.contains_key(&ip) {
            return Err(AgentError::NodeAddress { ip });
        }
        Ok(ip)
    }

    /// Addresses for attachments of a time when their network, or the node, had no IPv6.
    pub(in crate::agent) fn complete_addresses(&mut self) -> Result<(), AgentError> {
        if self.ipv6.is_err() {
            return Ok(());
        }
        let all: Vec<(Name, Name)> = self
            .wanted
            .attachments()
            .filter(|(_, a)| a.ip6.is_none() && !a.removing)
            .map(|(e, a)| place(e, a))
            .collect();
        for (name, network) in all {
            let Some(mut network) = self.wanted.networks.get(&network).cloned() else {
                continue;
            };
            let Some(pool) = &mut network.v6 else {
                continue;
            };
            let IpAddr::V6(ip) = pool.next(&self.taken_addresses(&network.name))? else {
                continue;
            };
            pool.last = ip.into();
            let mut endpoint = self.wanted.endpoints[&name].clone();
            for attachment in &mut endpoint.attachments {
                if attachment.network == network.name {
                    attachment.ip6 = Some(ip);
                }
            }
            self.store
                .commit(&[Change::Network(&network), Change::Endpoint(&endpoint)])?;
            tracing::info!(endpoint = %name, %ip, "got an IPv6 address");
            self.wanted.networks.insert(network.name.clone(), network);
            self.wanted.endpoints.insert(name, endpoint);
        }
        Ok(())
    }

    pub(in crate::agent) fn taken_addresses(&self, network: &Name) -> BTreeSet<IpAddr> {
        self.members(network).flat_map(|(_, a)| a.ips()).collect()
    }

    /// The network's endpoints and their attachments to it, those included that are being removed.
    pub(in crate::agent) fn members(
        &self,
        network: &Name,
    ) -> impl Iterator<Item = (&Endpoint, &Attachment)> {
        self.wanted
            .attachments()
            .filter(move |(_, a)| a.network == *network)
    }

    pub(in crate::agent) fn network_of(
        &self,
        attachment: &Attachment,
    ) -> Result<&Network, AgentError> {
        let network = self.wanted.networks.get(&attachment.network);
        network.ok_or_else(|| self.no_network(&attachment.network))
    }

    /// Links lead to endpoints of the same network.
    pub(in crate::agent) fn check_links(
        &self,
        links: &[NameLink],
        network: &Network,
    ) -> Result<(), AgentError> {
        for link in links {
            let other = self.wanted_endpoint(&link.endpoint)?;
            if !other.attached().any(|a| a.network == network.name) {
                return Err(NetworkError::NotConnected {
                    endpoint: other.name.clone(),
                    network: network.name.clone(),
                    has: other.attached().map(|a| a.network.clone()).collect(),
                }
                .into());
            }
        }
        Ok(())
    }

    fn check_mac(&self, mac: Mac, network: &Network) -> Result<(), AgentError> {
        let taken = |owner: String| AgentError::MacTaken { mac, owner };
        if mac == network.mac {
            return Err(taken(format!("the bridge {}", network.bridge)));
        }
        match self.members(&network.name).find(|(_, a)| a.mac == mac) {
            Some((other, _)) => Err(taken(format!("endpoint \"{}\"", other.name))),
            None => Ok(()),
        }
    }

    async fn free_host_interface(&self, name: &Name) -> Result<String, AgentError> {
        for _ in 0..16 {
            let candidate = new_host_interface(name);
            let mut all = self.wanted.attachments();
            let wanted = all.any(|(_, a)| a.host_interface == candidate);
            if !wanted && self.netlink.link(&candidate).await?.is_none() {
                return Ok(candidate);
            }
        }
        Err(AgentError::Fault(
            "sixteen random interface names in a row were taken".into(),
        ))
    }
}

/// `eth0`, or the next that is not taken; so of any prefix.
pub(in crate::agent) fn free_interface<'a>(
    prefix: &str,
    taken: impl Iterator<Item = &'a str>,
) -> Result<String, AgentError> {
    let taken: BTreeSet<&str> = taken.collect();
    (0..1000)
        .map(|n| format!("{prefix}{n}"))
        .find(|name| !taken.contains(name.as_str()))
        .ok_or_else(|| AgentError::Fault(format!("a thousand interfaces named {prefix}N")))
}
