//! An endpoint's interface in a network: deciding, making and removing it; connecting an endpoint to
//! further networks, and disconnecting it.
//!
//! The order in [`Agent::attach`] is what keeps a container's own address off the wire: records and
//! programs are there before its interface has an address.
//!
//! A container in several networks has one default route of each family ([`Wanted::way_out`]). What it
//! sends from another attachment's address (answers, most of it) leaves by that attachment, by a rule of
//! its own: replies go the way that the question came.
//!
//! [`Wanted::way_out`]: super::record::Wanted::way_out

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::MetadataExt,
    path::Path,
};

use netfw_common::record as map;

use super::{
    Agent, AgentError, Place,
    endpoint::place,
    error::NetworkError,
    ipam::{self, Pool},
    names,
    network::SETTINGS6,
    plan::family,
    purge::{Doomed, Then},
    record::{Attachment, Endpoint, Family, Mode, Network, alias, host_mac, new_host_interface},
    store::Change,
};
use crate::{
    api::{
        owned::Owned,
        types::{self, ConnectRequest},
    },
    name::{Mac, Name, NameLink},
    net::{Link, Namespace, NetError, Netlink, Route, Veth, namespace::Beside, sysctl},
};

/// What of an attachment somebody wants to choose.
pub(super) struct Asked {
    pub ip4: Option<Ipv4Addr>,
    pub ip6: Option<Ipv6Addr>,
    pub mac: Option<Mac>,
    pub aliases: Vec<Name>,
    /// Of what name the interface shall be, and whose. None: `eth0` or the next that is free, and nobody's.
    pub owned: Option<Owned>,
}

/// A container's interface on its way to being fit for IPv6, before it is up.
type Prepared = Beside<Result<Result<(), NetError>, NetError>>;

/// The indexes of a veth pair: in the node, and in the container.
#[derive(Clone, Copy)]
pub(super) struct Ends {
    host: u32,
    peer: u32,
}

/// A veth pair that is down, of this index in the node.
pub(super) struct Plugged {
    host: u32,
    prepared: Option<Prepared>,
}

/// A container's namespace, and a netlink socket in it.
pub(super) struct Inside {
    pub namespace: Namespace,
    pub netlink: Netlink,
}

impl Inside {
    /// Begins to make a namespace that has no name yet ([`Namespace::leave`]).
    pub(super) fn begin() -> Result<Beside<Result<Self, NetError>>, NetError> {
        let runtime = tokio::runtime::Handle::current();
        Beside::start(move || {
            let _entered = runtime.enter();
            let namespace = Namespace::leave()?;
            let netlink = Netlink::current()?;
            Ok(Self { namespace, netlink })
        })
    }

    pub(super) fn bind(self, name: &Name) -> Result<Self, NetError> {
        let namespace = self.namespace.bind(name)?;
        Ok(Self { namespace, ..self })
    }

    pub(super) fn of(namespace: Namespace) -> Result<Self, NetError> {
        let netlink = Netlink::within(&namespace)?;
        Ok(Self { namespace, netlink })
    }

    pub(super) async fn raise_loopback(&self) -> Result<(), NetError> {
        match self.netlink.link("lo").await? {
            Some(lo) if !lo.up => self.netlink.set_up(lo.index).await,
            _ => Ok(()),
        }
    }
}

impl Agent {
    pub async fn connect_endpoint(
        &mut self,
        network: &Name,
        request: ConnectRequest,
    ) -> Result<types::Endpoint, AgentError> {
        let name = &request.endpoint.clone();
        let before = self.wanted_endpoint(name)?.clone();
        let mut network = self
            .wanted
            .networks
            .get(network)
            .cloned()
            .ok_or_else(|| self.no_network(network))?;
        if before.mode != Mode::Networks {
            return Err(NetworkError::NotAttachable(name.clone()).into());
        }
        match before.attachment(&network.name) {
            Some(attachment) if attachment.removing => {
                return Err(AgentError::Removing(name.clone()));
            }
            Some(_) => {
                return Err(NetworkError::Connected {
                    endpoint: name.clone(),
                    network: network.name,
                }
                .into());
            }
            None => {}
        }
        if !self.is_up(&before) {
            return Err(AgentError::Gone(name.clone()));
        }
        let inside = Inside::of(self.open_target(&before)?)?;
        let asked = Asked {
            ip4: request.ip,
            ip6: request.ip6,
            mac: request.mac,
            aliases: request.aliases,
            owned: request.owned,
        };
        let path = &before.namespace.path;
        let attachment = self
            .decide_attachment(name, &asked, &mut network, Some(&inside), path)
            .await?;
        let mut after = before.clone();
        after.attachments.push(attachment.clone());
        self.store
            .commit(&[Change::Network(&network), Change::Endpoint(&after)])?;
        self.wanted
            .networks
            .insert(network.name.clone(), network.clone());
        self.wanted.endpoints.insert(name.clone(), after.clone());
        let made = async {
            let ends = self.attach(&after, &attachment, &inside).await?;
            self.set_ways(&after, &inside).await?;
            self.wait_usable(name, &attachment, ends, &inside.netlink)
                .await
        };
        if let Err(error) = made.await {
            self.detach(&after, &attachment).await;
            self.store.commit(&[Change::Endpoint(&before)])?;
            self.wanted.endpoints.insert(name.clone(), before.clone());
            // They may have followed already.
            let entered = self.enter_publishes(&before, &before.publishes);
            let mut leaving = after;
            for attachment in &mut leaving.attachments {
                attachment.removing |= attachment.network == network.name;
            }
            for undone in [entered, self.set_ways(&leaving, &inside).await] {
                if let Err(error) = undone {
                    tracing::error!(endpoint = %name, error = %crate::chain(&error), "undoing");
                }
            }
            self.purge(Doomed::addresses(attachment.ips()), Then::Nothing);
            return Err(error);
        }
        self.write_files(&after);
        tracing::info!(endpoint = %name, network = %network.name, "connected");
        self.endpoint_view(name)
    }

    pub async fn disconnect_endpoint(
        &mut self,
        network: &Name,
        name: &Name,
    ) -> Result<(), AgentError> {
        let endpoint = self.wanted_endpoint(name)?;
        if !self.wanted.networks.contains_key(network) {
            return Err(self.no_network(network));
        }
        match endpoint.attachment(network) {
            None => {
                return Err(NetworkError::NotConnected {
                    endpoint: name.clone(),
                    network: network.clone(),
                    has: endpoint.attached().map(|a| a.network.clone()).collect(),
                }
                .into());
            }
            Some(attachment) if attachment.removing => {
                return Err(AgentError::Removing(name.clone()));
            }
            Some(_) if endpoint.attached().count() == 1 => {
                return Err(NetworkError::Last {
                    endpoint: name.clone(),
                    network: network.clone(),
                }
                .into());
            }
            Some(_) => {}
        }
        let mut endpoint = endpoint.clone();
        for attachment in &mut endpoint.attachments {
            attachment.removing |= attachment.network == *network;
        }
        self.store.commit(&[Change::Endpoint(&endpoint)])?;
        self.wanted.endpoints.insert(name.clone(), endpoint);
        self.finish_disconnect(network, name).await
    }

    /// From marked to gone, but for its flows: see [`Agent::finish_removal`].
    pub(super) async fn finish_disconnect(
        &mut self,
        network: &Name,
        name: &Name,
    ) -> Result<(), AgentError> {
        let endpoint = self.wanted.endpoints.get(name).cloned();
        let endpoint = endpoint.ok_or_else(|| AgentError::NoEndpoint(name.clone()))?;
        let Some(attachment) = endpoint.attachment(network).cloned() else {
            return Ok(());
        };
        let report = |what: &str, error: &AgentError| {
            tracing::warn!(endpoint = %name, error = %crate::chain(error), "{what}");
        };
        // To another attachment, where there is one.
        if let Err(error) = self.enter_publishes(&endpoint, &endpoint.publishes) {
            report("its publishes lead to where it was", &error);
        }
        let ips: Vec<IpAddr> = attachment.ips().collect();
        self.hang_up(name, &ips, &endpoint.publishes);
        self.detach(&endpoint, &attachment).await;
        // What its namespace has of it, if that is still there.
        if let Ok(inside) = self.open_target(&endpoint)
            && let Ok(inside) = Inside::of(inside)
            && let Err(error) = self.set_ways(&endpoint, &inside).await
        {
            report("its routes are not as they should be", &error);
        }
        self.write_files(&endpoint);
        let then = Then::Detach {
            endpoint: name.clone(),
            network: network.clone(),
        };
        self.purge(Doomed::addresses(ips), then);
        Ok(())
    }

    /// An attachment of which nothing is left in the kernel.
    pub(super) fn forget_attachment(
        &mut self,
        name: &Name,
        network: &Name,
    ) -> Result<(), AgentError> {
        let Some(mut endpoint) = self.wanted.endpoints.get(name).cloned() else {
            return Ok(());
        };
        endpoint
            .attachments
            .retain(|a| a.network != *network || !a.removing);
        self.store.commit(&[Change::Endpoint(&endpoint)])?;
        self.wanted.endpoints.insert(name.clone(), endpoint);
        tracing::info!(endpoint = %name, %network, "disconnected");
        Ok(())
    }

    /// What an attachment of `name` to `network` will be, or why it cannot be; takes addresses of
    /// `network`, and touches nothing else. `inside` is none where the namespace is to be made.
    pub(super) async fn decide_attachment(
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
                None => free_interface(names)?,
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
        Ok(Attachment {
            network: network.name.clone(),
            ip4,
            ip6,
            mac,
            host_interface: self.free_host_interface(name).await?,
            interface,
            aliases: asked.aliases.clone(),
            owner: asked.owned.as_ref().map(|owned| owned.owner.clone()),
            removing: false,
        })
    }

    /// Who is attached to the network from this very namespace. `links` are what the namespace has. Only who
    /// has the other end of one is asked for its namespace: with a thousand endpoints, looking at all their
    /// files takes milliseconds.
    pub(super) fn attached_from(
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
    pub(super) fn complete_addresses(&mut self) -> Result<(), AgentError> {
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

    pub(super) fn taken_addresses(&self, network: &Name) -> BTreeSet<IpAddr> {
        self.members(network).flat_map(|(_, a)| a.ips()).collect()
    }

    /// The network's endpoints and their attachments to it, those included that are being removed.
    pub(super) fn members(&self, network: &Name) -> impl Iterator<Item = (&Endpoint, &Attachment)> {
        self.wanted
            .attachments()
            .filter(move |(_, a)| a.network == *network)
    }

    pub(super) fn network_of(&self, attachment: &Attachment) -> Result<&Network, AgentError> {
        let network = self.wanted.networks.get(&attachment.network);
        network.ok_or_else(|| self.no_network(&attachment.network))
    }

    /// Links lead to endpoints of the same network.
    pub(super) fn check_links(
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

    /// Makes the veth pair and everything that belongs to it, but for routes ([`Agent::set_ways`]). The
    /// caller undoes it with [`Agent::detach`] where it fails, and waits until it can be used
    /// ([`Agent::wait_usable`]).
    pub(super) async fn attach(
        &mut self,
        endpoint: &Endpoint,
        attachment: &Attachment,
        inside: &Inside,
    ) -> Result<Ends, AgentError> {
        let plugged = self.plug(endpoint, attachment, inside).await?;
        self.bring_up(endpoint, attachment, inside, plugged).await
    }

    /// The first half of [`Agent::attach`]: the veth pair, still down, and its records.
    pub(super) async fn plug(
        &mut self,
        endpoint: &Endpoint,
        attachment: &Attachment,
        inside: &Inside,
    ) -> Result<Plugged, AgentError> {
        let bridge = self.bridge_of(attachment)?;
        let mtu = self.mtu_of(self.network_of(attachment)?);
        let (host, _) = self
            .netlink
            .create_veth(Veth {
                host_name: &attachment.host_interface,
                host_mac: host_mac(&attachment.host_interface).0,
                peer_name: &attachment.interface,
                peer_mac: attachment.mac.0,
                peer_ns: inside.namespace.as_fd(),
                mtu,
                master: bridge.ifindex,
                alias: &alias(&self.config.instance, &endpoint.name),
            })
            .await?;
        // It takes the longer, the more namespaces there are.
        let prepared = self.prepare_ipv6(attachment, inside)?;
        silence(self.conf6.as_ref(), &attachment.host_interface)?;
        self.set_records(endpoint, attachment, host, mtu)?;
        Ok(Plugged { host, prepared })
    }

    /// The other half: its program, and up.
    pub(super) async fn bring_up(
        &mut self,
        endpoint: &Endpoint,
        attachment: &Attachment,
        inside: &Inside,
        Plugged { host, prepared }: Plugged,
    ) -> Result<Ends, AgentError> {
        // On an interface that is down: on one that is up the kernel waits until no packet is on its way
        // (`qdisc_graft` → `dev_deactivate` → `synchronize_net`), for a millisecond.
        self.dataplane
            .attach_container(host, &attachment.host_interface)?;
        self.netlink.set_up(host).await?;
        let peer = self
            .configure_container(attachment, host, inside, prepared)
            .await?;
        self.prepare_endpoint(endpoint, host, &inside.namespace);
        let id = inside.namespace.id();
        self.namespaces.insert(endpoint.name.clone(), id);
        self.note_up(place(endpoint, attachment), host);
        Ok(Ends { host, peer })
    }

    pub(super) fn note_up(&mut self, place: Place, ifindex: u32) {
        self.wanted.gone.remove(&place);
        self.up.insert(place, ifindex);
    }

    /// The attachment's entry in the maps, and those of the endpoint's publishes.
    pub(super) fn set_records(
        &mut self,
        endpoint: &Endpoint,
        attachment: &Attachment,
        ifindex: u32,
        mtu: u32,
    ) -> Result<(), AgentError> {
        let bridge = self.bridge_of(attachment)?;
        let network = self.network_of(attachment)?;
        let mut record = map::Endpoint {
            ifindex,
            bridge: bridge.ifindex,
            network: network.number,
            counter: endpoint.counter,
            mac: attachment.mac.0,
            gateway_mac: network.mac.0,
            flags: network.rules.flags(),
            mtu,
            ..Default::default()
        };
        for pool in self.pools(network) {
            match pool.gateway {
                IpAddr::V4(gateway) => {
                    record.ip4 = attachment.ip4.map(Into::into).unwrap_or_default();
                    record.gateway4 = gateway.into();
                }
                IpAddr::V6(gateway) => {
                    record.ip6 = attachment.ip6.map(Into::into).unwrap_or_default();
                    record.gateway6 = gateway.into();
                }
            }
        }
        self.dataplane.set_endpoint(&record)?;
        self.enter_publishes(endpoint, &endpoint.publishes)
    }

    /// The subnets of the attachment's network that are in use, and its addresses in them.
    fn given<'a>(
        &'a self,
        attachment: &'a Attachment,
    ) -> Result<impl Iterator<Item = (&'a Pool, IpAddr)>, AgentError> {
        let network = self.network_of(attachment)?;
        Ok(self.pools(network).filter_map(|pool| {
            let same = |ip: &IpAddr| ip.is_ipv4() == pool.gateway.is_ipv4();
            Some((pool, attachment.ips().find(same)?))
        }))
    }

    /// Inside, only our address and our default route count. None where there is no IPv6.
    fn prepare_ipv6(
        &self,
        attachment: &Attachment,
        inside: &Inside,
    ) -> Result<Option<Prepared>, AgentError> {
        let directory = format!("net/ipv6/conf/{}", attachment.interface);
        if !self.given(attachment)?.any(|(_, ip)| ip.is_ipv6()) {
            return Ok(None);
        }
        Ok(Some(inside.namespace.start(move || {
            let directory = sysctl::Directory::open(&directory)?;
            for (key, value) in SETTINGS6 {
                directory.set(key, value)?;
            }
            Ok(())
        })?))
    }

    /// Inside: addresses, and up. Idempotent. `host_ifindex` is the other end; `prepared` is where its
    /// preparing has begun. Returns the index of this end.
    pub(super) async fn configure_container(
        &self,
        attachment: &Attachment,
        host_ifindex: u32,
        inside: &Inside,
        prepared: Option<Prepared>,
    ) -> Result<u32, AgentError> {
        let Inside { namespace, netlink } = inside;
        // A name may stand for another namespace by now, with an interface of the same name.
        let link = netlink
            .link(&attachment.interface)
            .await?
            .filter(|link| link.peer == Some(host_ifindex))
            .ok_or_else(|| AgentError::NotInside {
                interface: attachment.interface.clone(),
                netns: namespace.label().to_owned(),
                host_interface: attachment.host_interface.clone(),
            })?;
        if !link.up {
            // First, or a router's advertisement could come before.
            let prepared = match prepared {
                None => self.prepare_ipv6(attachment, inside)?,
                begun => begun,
            };
            if let Some(prepared) = prepared {
                prepared.wait()??;
            }
            netlink.set_up(link.index).await?;
        }
        for (pool, ip) in self.given(attachment)? {
            netlink.add_address(link.index, pool.on_link(ip)).await?;
        }
        Ok(link.index)
    }

    /// Inside: a default route of each family, where it belongs and unless there is one of somebody else's;
    /// and, of an endpoint in several networks, a rule for each of its addresses. Idempotent.
    pub(super) async fn set_ways(
        &self,
        endpoint: &Endpoint,
        inside: &Inside,
    ) -> Result<(), AgentError> {
        let netlink = &inside.netlink;
        let links = netlink.links().await?;
        let routes = netlink.routes().await?;
        let index = |attachment: &Attachment| {
            let host = self.up.get(&place(endpoint, attachment));
            let link = links.iter().find(|link| link.peer == host.copied());
            host.and(link).map(|link| link.index)
        };
        // What is in one network has never had rules, or had them deleted when it left the others.
        let several = endpoint.attachments.len() > 1;
        let left_alone = endpoint.attached().count() == 1;
        for attachment in endpoint.attached().filter(|_| several) {
            let table = attachment.table();
            if left_alone {
                for route in routes.iter().filter(|route| route.table == table) {
                    netlink.delete_route(route).await?;
                }
            }
            for (pool, ip) in self.given(attachment)? {
                if left_alone {
                    netlink.delete_source_rule(ip, table).await?;
                } else if let Some(index) = index(attachment) {
                    let subnet = Route::to(pool.subnet, index, table);
                    netlink.add_route(&subnet, None).await?;
                    netlink
                        .add_route(&Route::default_of(ip, index, table), Some(pool.gateway))
                        .await?;
                    netlink.add_source_rule(ip, table).await?;
                }
            }
        }
        for family in [Family::V4, Family::V6] {
            let way = self.wanted.way_out(endpoint, family);
            let ours = |route: &Route| {
                let mut all = endpoint.attachments.iter();
                all.find(|a| index(a).is_some() && index(a) == route.oif)
            };
            let mut is_there = false;
            let defaults = routes.iter().filter(|route| {
                route.table == Route::MAIN
                    && route.dst.prefix_len() == 0
                    && Family::of(route.dst.addr()) == family
            });
            for default in defaults {
                match ours(default) {
                    Some(other) if way.is_none_or(|way| way.network != other.network) => {
                        netlink.delete_route(default).await?;
                    }
                    _ => is_there = true,
                }
            }
            let Some(way) = way.filter(|_| !is_there) else {
                continue;
            };
            let Some(index) = index(way) else { continue };
            for (pool, ip) in self.given(way)? {
                if Family::of(ip) == family {
                    let route = Route::default_of(ip, index, Route::MAIN);
                    netlink.add_route(&route, Some(pool.gateway)).await?;
                }
            }
        }
        Ok(())
    }

    /// Waits until the container can send and be sent to: whoever waits for it uses it at once. The kernel
    /// brings it about in its own time, so there is less to wait for when all else is done.
    pub(super) async fn wait_usable(
        &self,
        endpoint: &Name,
        attachment: &Attachment,
        ends: Ends,
        inside: &Netlink,
    ) -> Result<(), AgentError> {
        let mut usable = inside.wait_operational(ends.peer).await?;
        usable &= self.netlink.wait_operational(ends.host).await?;
        for ip in attachment.ips().filter(IpAddr::is_ipv6) {
            usable &= inside.wait_local(ip).await;
        }
        if !usable {
            tracing::warn!(%endpoint, "it may lose what it sends first");
        }
        Ok(())
    }

    /// Takes the attachment out of the kernel, whatever of it is there; goes on past errors. Publishes and
    /// flows are the caller's matter.
    pub(super) async fn detach(&mut self, endpoint: &Endpoint, attachment: &Attachment) {
        let report = |what: &str, error: &dyn std::fmt::Display| {
            tracing::warn!(endpoint = %endpoint.name, %error, "{what}");
        };
        let place = place(endpoint, attachment);
        self.wanted.gone.remove(&place);
        let known = self.up.remove(&place);
        if let Err(error) = self.delete_rules(endpoint, attachment).await {
            report("its rules in the container were not deleted", &error);
        }
        let found = match self.netlink.link(&attachment.host_interface).await {
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
    }

    /// What [`Agent::set_ways`] made for this attachment and does not go with its interface.
    async fn delete_rules(
        &self,
        endpoint: &Endpoint,
        attachment: &Attachment,
    ) -> Result<(), AgentError> {
        // A namespace that goes takes them along.
        if endpoint.attachments.len() < 2 || (endpoint.removing && endpoint.namespace.made) {
            return Ok(());
        }
        let Ok(namespace) = self.open_target(endpoint) else {
            return Ok(());
        };
        let netlink = Netlink::within(&namespace)?;
        for ip in attachment.ips() {
            netlink.delete_source_rule(ip, attachment.table()).await?;
        }
        Ok(())
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

/// `eth0`, or the next that is not taken.
pub(super) fn free_interface<'a>(
    taken: impl Iterator<Item = &'a str>,
) -> Result<String, AgentError> {
    let taken: BTreeSet<&str> = taken.collect();
    (0..1000)
        .map(|n| format!("eth{n}"))
        .find(|name| !taken.contains(name.as_str()))
        .ok_or_else(|| AgentError::Fault("a thousand interfaces named ethN".into()))
}
