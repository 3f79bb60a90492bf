//! Endpoints: adding and removing.
//!
//! The order in [`Agent::connect`] is what keeps a container's own address off the wire: records
//! and programs are there before its interface has an address.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::MetadataExt,
    path::PathBuf,
};

use netfw_common::record as map;

use super::{
    Agent, AgentError, ipam,
    ipam::Pool,
    network::{DEFAULT_NETWORK, SETTINGS6},
    plan::family,
    purge::{Doomed, Then},
    record::{Endpoint, Network, Published, Target, alias, host_mac},
    store::Change,
};
use crate::{
    api::types::{self, EndpointRequest, NamespaceRequest},
    name::{Mac, Name},
    net::{Link, Namespace, NetError, Netlink, Veth, namespace, sysctl},
    publish::Families,
};

impl Agent {
    pub async fn add_endpoint(
        &mut self,
        request: EndpointRequest,
    ) -> Result<types::Endpoint, AgentError> {
        let name = request.name.clone();
        let mut taken_counters = Vec::new();
        let result = self.try_add(request, &mut taken_counters).await;
        if result.is_err() {
            for counter in taken_counters {
                self.counters.give_back(counter);
            }
        }
        result?;
        self.endpoint_view(&name)
    }

    async fn try_add(
        &mut self,
        request: EndpointRequest,
        counters: &mut Vec<u32>,
    ) -> Result<(), AgentError> {
        let (endpoint, network, target) = self.decide(&request, counters).await?;
        self.store
            .commit(&[Change::Network(&network), Change::Endpoint(&endpoint)])?;
        self.wanted
            .networks
            .insert(network.name.clone(), network.clone());
        self.wanted
            .endpoints
            .insert(endpoint.name.clone(), endpoint.clone());
        let opened = match target {
            Some(inside) => Ok(inside),
            None => Namespace::create(&endpoint.name).and_then(Inside::of),
        };
        let made = match opened {
            Ok(inside) => self.connect(&endpoint, &inside).await,
            Err(error) => Err(error.into()),
        };
        match made {
            Ok(ifindex) => {
                self.up.insert(endpoint.name.clone(), ifindex);
                self.flush_shadows(&endpoint.publishes);
                let ips: Vec<String> = endpoint.ips().map(|ip| ip.to_string()).collect();
                tracing::info!(endpoint = %endpoint.name, ips = %ips.join(", "), "added");
                Ok(())
            }
            Err(error) => {
                self.disconnect(&endpoint, Then::Nothing).await;
                if endpoint.namespace.made
                    && let Err(error) = Namespace::delete(&endpoint.name)
                {
                    tracing::warn!(endpoint = %endpoint.name, %error, "its namespace was not deleted");
                }
                self.wanted.endpoints.remove(&endpoint.name);
                self.store.commit(&[Change::NoEndpoint(&endpoint.name)])?;
                Err(error)
            }
        }
    }

    /// What the endpoint will be, or why it cannot be. Touches nothing.
    async fn decide(
        &mut self,
        request: &EndpointRequest,
        counters: &mut Vec<u32>,
    ) -> Result<(Endpoint, Network, Option<Inside>), AgentError> {
        let name = &request.name;
        if let Some(other) = self.wanted.endpoints.get(name) {
            let name = name.clone();
            return Err(if other.removing {
                AgentError::Removing(name)
            } else if self.up.contains_key(&name) {
                AgentError::EndpointExists(name)
            } else {
                AgentError::EndpointGone(name)
            });
        }
        let network = match &request.network {
            Some(network) => network.clone(),
            None => DEFAULT_NETWORK.parse().map_err(AgentError::Name)?,
        };
        let mut network = self
            .wanted
            .networks
            .get(&network)
            .cloned()
            .ok_or_else(|| self.no_network(&network))?;
        let (target, namespace) = self.target(name, request.namespace.as_ref())?;
        let inside = namespace.map(Inside::of).transpose()?;
        let mut interface = "eth0".into();
        if let Some(inside) = &inside {
            let links = inside.netlink.links().await?;
            self.check_not_attached(&target, inside, &links, &network)?;
            interface = free_interface(&links)?;
        }
        let (ip4, ip6) = self.addresses_for(request, &mut network)?;
        let first = ip4.map(IpAddr::V4).or(ip6.map(IpAddr::V6));
        let mac = match (request.mac, first) {
            (Some(mac), _) => mac,
            (None, Some(ip)) => ipam::mac_for(ip),
            // An IPv6 network of a time when the node had IPv6.
            (None, None) => {
                return Err(AgentError::Network(super::error::NetworkError::NoIpv6(
                    self.ipv6.clone().err().unwrap_or_default(),
                )));
            }
        };
        self.check_mac(mac, &network)?;
        let families = Families {
            v4: ip4.is_some(),
            v6: ip6.is_some(),
        };
        let publishes = self.resolve_publishes(&request.publish, families, &network)?;
        let host_interface = self.free_host_interface(name).await?;
        let counter = self.take_counter(counters)?;
        let mut published = Vec::with_capacity(publishes.len());
        for publish in publishes {
            let counter = self.take_counter(counters)?;
            published.push(Published { publish, counter });
        }
        let endpoint = Endpoint {
            name: name.clone(),
            network: network.name.clone(),
            namespace: target,
            ip4,
            ip6,
            mac,
            host_interface,
            interface,
            counter,
            publishes: published,
            removing: false,
        };
        Ok((endpoint, network, inside))
    }

    /// The namespace, opened; none where it is to be made.
    fn target(
        &self,
        name: &Name,
        request: Option<&NamespaceRequest>,
    ) -> Result<(Target, Option<Namespace>), AgentError> {
        let Some(request) = request else {
            let path = PathBuf::from(namespace::DIRECTORY).join(name.as_str());
            if path.symlink_metadata().is_ok() {
                return Err(AgentError::NamespaceExists(name.clone()));
            }
            let target = Target {
                path,
                made: true,
                id: None,
            };
            return Ok((target, None));
        };
        let (path, namespace) = match request {
            NamespaceRequest::Name(name) => (
                PathBuf::from(namespace::DIRECTORY).join(name),
                Namespace::named(name)?,
            ),
            NamespaceRequest::Path(path) => (path.clone(), Namespace::at_path(path)?),
            NamespaceRequest::Pid(pid) => (
                PathBuf::from(format!("/proc/{pid}/ns/net")),
                Namespace::of_pid(*pid)?,
            ),
        };
        if self.wanted.node.as_ref().map(|n| n.id) == Some(namespace.id()) {
            return Err(AgentError::NodeNamespace(path));
        }
        if Namespace::of_machine().is_some_and(|machine| machine == namespace) {
            return Err(AgentError::MachineNamespace(path));
        }
        let target = Target {
            id: path.starts_with("/proc").then_some(namespace.id()),
            path,
            made: false,
        };
        Ok((target, Some(namespace)))
    }

    /// `links` are what the namespace has. Only who has the other end of one is asked for its
    /// namespace: with a thousand endpoints, looking at all their files takes milliseconds.
    fn check_not_attached(
        &self,
        target: &Target,
        inside: &Inside,
        links: &[Link],
        network: &Network,
    ) -> Result<(), AgentError> {
        let others = self
            .up
            .iter()
            .filter(|(_, host)| links.iter().any(|link| link.peer == Some(**host)));
        let mut others = others.filter_map(|(name, _)| self.wanted.endpoints.get(name));
        let same = |e: &&Endpoint| {
            e.network == network.name
                && std::fs::metadata(&e.namespace.path)
                    .is_ok_and(|file| (file.dev(), file.ino()) == inside.namespace.id())
        };
        match others.find(same) {
            Some(endpoint) => Err(AgentError::AlreadyAttached {
                netns: target.path.clone(),
                network: network.name.clone(),
                endpoint: endpoint.name.clone(),
            }),
            None => Ok(()),
        }
    }

    /// One of each family that the network has.
    fn addresses_for(
        &self,
        request: &EndpointRequest,
        network: &mut Network,
    ) -> Result<(Option<Ipv4Addr>, Option<Ipv6Addr>), AgentError> {
        let (asked4, asked6) = (request.ip.map(IpAddr::V4), request.ip6.map(IpAddr::V6));
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

    /// Addresses for endpoints of a time when their network, or the node, had no IPv6.
    pub(super) fn complete_addresses(&mut self) -> Result<(), AgentError> {
        if self.ipv6.is_err() {
            return Ok(());
        }
        let names: Vec<Name> = self.wanted.endpoints.keys().cloned().collect();
        for name in names {
            let mut endpoint = self.wanted.endpoints[&name].clone();
            let mut network = self.network_of(&endpoint)?.clone();
            let (None, Some(pool)) = (endpoint.ip6, &mut network.v6) else {
                continue;
            };
            let taken = self.taken_addresses(&network.name);
            let IpAddr::V6(ip) = pool.next(&taken)? else {
                continue;
            };
            pool.last = ip.into();
            endpoint.ip6 = Some(ip);
            self.store
                .commit(&[Change::Network(&network), Change::Endpoint(&endpoint)])?;
            tracing::info!(endpoint = %name, %ip, "got an IPv6 address");
            self.wanted.networks.insert(network.name.clone(), network);
            self.wanted.endpoints.insert(name, endpoint);
        }
        Ok(())
    }

    pub(super) fn taken_addresses(&self, network: &Name) -> BTreeSet<IpAddr> {
        self.members(network).flat_map(Endpoint::ips).collect()
    }

    /// The network's endpoints, those included that are being removed.
    pub(super) fn members<'a>(&'a self, network: &Name) -> impl Iterator<Item = &'a Endpoint> {
        self.wanted
            .endpoints
            .values()
            .filter(move |e| e.network == *network)
    }

    pub(super) fn network_of(&self, endpoint: &Endpoint) -> Result<&Network, AgentError> {
        let network = self.wanted.networks.get(&endpoint.network);
        network.ok_or_else(|| self.no_network(&endpoint.network))
    }

    fn check_mac(&self, mac: Mac, network: &Network) -> Result<(), AgentError> {
        let taken = |owner: String| AgentError::MacTaken { mac, owner };
        if mac == network.mac {
            return Err(taken(format!("the bridge {}", network.bridge)));
        }
        match self
            .wanted
            .endpoints
            .values()
            .find(|e| e.mac == mac && e.network == network.name)
        {
            Some(other) => Err(taken(format!("endpoint \"{}\"", other.name))),
            None => Ok(()),
        }
    }

    pub(super) fn take_counter(&mut self, taken: &mut Vec<u32>) -> Result<u32, AgentError> {
        let counter = self
            .counters
            .take()
            .ok_or(AgentError::NoCounter(super::counter::ENTRIES - 1))?;
        taken.push(counter);
        self.dataplane.reset_counter(counter)?;
        Ok(counter)
    }

    /// `nf` and eight hex digits: short enough for IFNAMSIZ, and nobody else's.
    async fn free_host_interface(&self, name: &Name) -> Result<String, AgentError> {
        use std::hash::{BuildHasher, RandomState};
        for _ in 0..16 {
            let hash = RandomState::new().hash_one(name) as u32;
            let candidate = format!("nf{hash:08x}");
            let wanted = self
                .wanted
                .endpoints
                .values()
                .any(|e| e.host_interface == candidate);
            if !wanted && self.netlink.link(&candidate).await?.is_none() {
                return Ok(candidate);
            }
        }
        Err(AgentError::Fault(
            "sixteen random interface names in a row were taken".into(),
        ))
    }

    /// Makes the veth pair and everything that belongs to it. The caller undoes it with
    /// [`Agent::disconnect`] where it fails.
    pub(super) async fn connect(
        &mut self,
        endpoint: &Endpoint,
        inside: &Inside,
    ) -> Result<u32, AgentError> {
        let bridge = self.bridge_of(endpoint)?;
        let mtu = self.mtu_of(self.network_of(endpoint)?);
        let (ifindex, _) = self
            .netlink
            .create_veth(Veth {
                host_name: &endpoint.host_interface,
                host_mac: host_mac(&endpoint.host_interface).0,
                peer_name: &endpoint.interface,
                peer_mac: endpoint.mac.0,
                peer_ns: inside.namespace.as_fd(),
                mtu,
                master: bridge.ifindex,
                alias: &alias(&self.config.instance, &endpoint.name),
            })
            .await?;
        silence(self.conf6.as_ref(), &endpoint.host_interface)?;
        self.set_records(endpoint, ifindex, mtu)?;
        self.dataplane
            .attach_container(ifindex, &endpoint.host_interface)?;
        let peer = self.configure_container(endpoint, ifindex, inside).await?;
        self.wait_usable(endpoint, ifindex, peer, &inside.netlink)
            .await?;
        self.prepare_endpoint(endpoint, ifindex, &inside.namespace);
        Ok(ifindex)
    }

    /// The endpoint's and its publishes' entries in the maps.
    pub(super) fn set_records(
        &mut self,
        endpoint: &Endpoint,
        ifindex: u32,
        mtu: u32,
    ) -> Result<(), AgentError> {
        let bridge = self.bridge_of(endpoint)?;
        let network = self.network_of(endpoint)?;
        let mut record = map::Endpoint {
            ifindex,
            bridge: bridge.ifindex,
            network: network.number,
            counter: endpoint.counter,
            mac: endpoint.mac.0,
            gateway_mac: network.mac.0,
            flags: network.rules.flags(),
            mtu,
            ..Default::default()
        };
        for pool in self.pools(network) {
            match pool.gateway {
                IpAddr::V4(gateway) => {
                    record.ip4 = endpoint.ip4.map(Into::into).unwrap_or_default();
                    record.gateway4 = gateway.into();
                }
                IpAddr::V6(gateway) => {
                    record.ip6 = endpoint.ip6.map(Into::into).unwrap_or_default();
                    record.gateway6 = gateway.into();
                }
            }
        }
        self.dataplane.set_endpoint(&record)?;
        self.enter_publishes(endpoint, &endpoint.publishes)
    }

    /// Inside: addresses, up, and default routes where there are none. Idempotent. `host_ifindex` is
    /// the other end. Returns the index of this one.
    pub(super) async fn configure_container(
        &self,
        endpoint: &Endpoint,
        host_ifindex: u32,
        inside: &Inside,
    ) -> Result<u32, AgentError> {
        let network = self.network_of(endpoint)?;
        let Inside { namespace, netlink } = inside;
        // A name may stand for another namespace by now, with an interface of the same name.
        let link = netlink
            .link(&endpoint.interface)
            .await?
            .filter(|link| link.peer == Some(host_ifindex))
            .ok_or_else(|| AgentError::NotInside {
                interface: endpoint.interface.clone(),
                netns: namespace.label().to_owned(),
                host_interface: endpoint.host_interface.clone(),
            })?;
        let mut given = Vec::new();
        for pool in self.pools(network) {
            let own = endpoint
                .ips()
                .find(|ip| ip.is_ipv4() == pool.gateway.is_ipv4());
            given.extend(own.map(|ip| (pool, ip)));
        }
        if !link.up {
            if given.iter().any(|(_, ip)| ip.is_ipv6()) {
                // Before it is up, or a router's advertisement could come first.
                prepare_ipv6(namespace, &endpoint.interface)?;
            }
            netlink.set_up(link.index).await?;
        }
        let routes = netlink.routes().await?;
        for &(pool, ip) in &given {
            netlink.add_address(link.index, pool.on_link(ip)).await?;
            let has_default = routes
                .iter()
                .any(|r| r.dst.prefix_len() == 0 && r.dst.addr().is_ipv4() == ip.is_ipv4());
            if !has_default {
                netlink.add_default_route(link.index, pool.gateway).await?;
            }
        }
        Ok(link.index)
    }

    /// Waits until the container can send and be sent to: whoever waits for it uses it at once. `host` and
    /// `peer` are the two ends.
    async fn wait_usable(
        &self,
        endpoint: &Endpoint,
        host: u32,
        peer: u32,
        inside: &Netlink,
    ) -> Result<(), AgentError> {
        let mut usable = inside.wait_operational(peer).await?;
        usable &= self.netlink.wait_operational(host).await?;
        for ip in endpoint.ips().filter(IpAddr::is_ipv6) {
            usable &= inside.wait_local(ip).await;
        }
        if !usable {
            tracing::warn!(endpoint = %endpoint.name, "it may lose what it sends first");
        }
        Ok(())
    }

    /// Takes the endpoint out of the kernel, whatever of it is there; goes on past errors. Its flows
    /// are left to a purge, at whose end `then` is done.
    pub(super) async fn disconnect(&mut self, endpoint: &Endpoint, then: Then) {
        let report = |what: &str, error: &dyn std::fmt::Display| {
            tracing::warn!(endpoint = %endpoint.name, %error, "{what}");
        };
        let known = self.up.remove(&endpoint.name);
        // First the way in, then the flows, so that no new ones appear behind our back.
        if let Err(error) = self.withdraw_publishes(&endpoint.publishes) {
            report("its publishes were not withdrawn", &error);
        }
        self.hang_up(endpoint, &endpoint.publishes);
        let found = match self.netlink.link(&endpoint.host_interface).await {
            Ok(link) => link.map(|l| l.index),
            Err(error) => {
                report("its interface was not found", &error);
                None
            }
        };
        for ifindex in found.into_iter().chain(known.filter(|k| Some(*k) != found)) {
            match self.netlink.delete_link(ifindex).await {
                Ok(()) => {
                    self.deleted.insert(ifindex);
                }
                Err(error) => report("its veth pair was not deleted", &error),
            }
            if let Err(error) = self.dataplane.remove_endpoint(ifindex) {
                report("its entry was not removed", &error);
            }
            self.forget_prepared(ifindex);
            if let Err(error) = self.dataplane.detach(ifindex) {
                report("its program was not detached", &error);
            }
        }
        self.purge(Doomed::endpoint(endpoint), then);
    }

    pub async fn remove_endpoint(&mut self, name: &Name) -> Result<(), AgentError> {
        let mut endpoint = self.wanted_endpoint(name)?.clone();
        endpoint.removing = true;
        self.store.commit(&[Change::Endpoint(&endpoint)])?;
        self.wanted.endpoints.insert(name.clone(), endpoint);
        self.finish_removal(name).await
    }

    /// From marked to gone, but for its flows; name, addresses and counters are kept until those are
    /// gone too. What cannot be removed from the kernel is reported and left.
    pub(super) async fn finish_removal(&mut self, name: &Name) -> Result<(), AgentError> {
        let endpoint = self
            .wanted
            .endpoints
            .get(name)
            .cloned()
            .ok_or_else(|| AgentError::NoEndpoint(name.clone()))?;
        self.disconnect(&endpoint, Then::Forget(name.clone())).await;
        Ok(())
    }

    /// An endpoint of which nothing is left in the kernel but, perhaps, its namespace.
    pub(super) fn forget_endpoint(&mut self, name: &Name) -> Result<(), AgentError> {
        let Some(endpoint) = self.wanted.endpoints.get(name).cloned() else {
            return Ok(());
        };
        let deleted = if endpoint.namespace.made {
            Namespace::delete(name)
        } else {
            Ok(())
        };
        self.store.commit(&[Change::NoEndpoint(name)])?;
        self.wanted.endpoints.remove(name);
        for counter in endpoint.counters() {
            self.counters.give_back(counter);
        }
        tracing::info!(endpoint = %name, "removed");
        Ok(deleted?)
    }

    /// Opens the endpoint's namespace, if it is still the one that was attached.
    pub(super) fn open_target(&self, endpoint: &Endpoint) -> Result<Namespace, AgentError> {
        let namespace = Namespace::at_path(&endpoint.namespace.path)?;
        match endpoint.namespace.id {
            Some(id) if id != namespace.id() => Err(AgentError::Gone(endpoint.name.clone())),
            _ => Ok(namespace),
        }
    }
}

/// The port of a bridge has no use for addresses of its own. Without, it says nothing into the
/// container, and the node's addresses do not change with every endpoint. `conf6` is the node's
/// `net/ipv6/conf`, if it has one.
fn silence(conf6: Option<&sysctl::Directory>, host_interface: &str) -> Result<(), NetError> {
    let Some(conf6) = conf6 else {
        return Ok(());
    };
    match conf6.set(&format!("{host_interface}/disable_ipv6"), "1") {
        // Too small an MTU for IPv6.
        Err(error) if error.is_gone() => Ok(()),
        done => done.map(drop),
    }
}

/// Inside, only our address and our default route count.
fn prepare_ipv6(namespace: &Namespace, interface: &str) -> Result<(), NetError> {
    let interface = interface.to_owned();
    namespace.run(move || {
        let directory = sysctl::Directory::open(&format!("net/ipv6/conf/{interface}"))?;
        for (key, value) in SETTINGS6 {
            directory.set(key, value)?;
        }
        Ok(())
    })?
}

/// A container's namespace, and a netlink socket in it.
pub(super) struct Inside {
    namespace: Namespace,
    netlink: Netlink,
}

impl Inside {
    pub(super) fn of(namespace: Namespace) -> Result<Self, NetError> {
        let netlink = Netlink::within(&namespace)?;
        Ok(Self { namespace, netlink })
    }
}

/// `eth0`, or the next that is not among a namespace's interfaces.
fn free_interface(links: &[Link]) -> Result<String, AgentError> {
    (0..1000)
        .map(|n| format!("eth{n}"))
        .find(|name| !links.iter().any(|l| l.name == *name))
        .ok_or_else(|| AgentError::Fault("a thousand interfaces named ethN".into()))
}
