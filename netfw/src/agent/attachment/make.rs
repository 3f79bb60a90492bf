//! Making an attachment in the kernel, and removing it.

use std::net::IpAddr;

use netfw_common::record as map;

use super::inside::{Has, Inside};
use crate::{
    agent::{
        Agent, AgentError, Place,
        endpoint::place,
        ipam::Pool,
        network::SETTINGS6,
        record::{Attachment, Endpoint, Family, alias, host_mac, is_object},
    },
    name::Name,
    net::{Link, Namespace, NetError, Netlink, Route, Veth, namespace::Beside, sysctl},
};

/// A container's interface on its way to being fit for IPv6, before it is up.
type Prepared = Beside<Result<Result<(), NetError>, NetError>>;

/// The indexes of a veth pair: in the node, and in the container.
#[derive(Clone, Copy)]
pub(in crate::agent) struct Ends {
    host: u32,
    peer: u32,
}

/// A veth pair that is down, of this index in the node.
pub(in crate::agent) struct Plugged {
    host: u32,
    prepared: Option<Prepared>,
}

impl Agent {
    /// Makes the veth pair and everything that belongs to it, but for routes ([`Agent::set_ways`]). The
    /// caller undoes it with [`Agent::detach`] where it fails, and waits until it can be used
    /// ([`Agent::wait_usable`]).
    pub(in crate::agent) async fn attach(
        &mut self,
        endpoint: &Endpoint,
        attachment: &Attachment,
        inside: &Inside,
    ) -> Result<Ends, AgentError> {
        let plugged = self.plug(endpoint, attachment, inside).await?;
        self.bring_up(endpoint, attachment, inside, plugged).await
    }

    /// The first half of [`Agent::attach`]: the veth pair, still down, and its records.
    pub(in crate::agent) async fn plug(
        &mut self,
        endpoint: &Endpoint,
        attachment: &Attachment,
        inside: &Inside,
    ) -> Result<Plugged, AgentError> {
        let host = self
            .create_pair(endpoint, attachment, &inside.namespace)
            .await?;
        // It takes the longer, the more namespaces there are.
        let prepared = self.prepare_ipv6(attachment, inside)?;
        self.register(endpoint, attachment, host)?;
        Ok(Plugged { host, prepared })
    }

    /// A veth pair whose other end waits in the node, down, for the runtime that takes it into the container
    /// and configures it there ([`Agent::adopt`]).
    pub(in crate::agent) async fn hold_out(
        &mut self,
        endpoint: &Endpoint,
        attachment: &Attachment,
    ) -> Result<(), AgentError> {
        let node = Namespace::current()?;
        let host = self.create_pair(endpoint, attachment, &node).await?;
        self.register(endpoint, attachment, host)?;
        self.dataplane
            .attach_container(host, &attachment.host_interface)?;
        self.netlink.set_up(host).await?;
        self.note_up(place(endpoint, attachment), host);
        Ok(())
    }

    /// A veth pair, down, its other end in `namespace`. Returns the index of the host side.
    async fn create_pair(
        &self,
        endpoint: &Endpoint,
        attachment: &Attachment,
        namespace: &Namespace,
    ) -> Result<u32, AgentError> {
        let bridge = self.bridge_of(attachment)?;
        let (host, _) = self
            .netlink
            .create_veth(Veth {
                host_name: &attachment.host_interface,
                host_mac: host_mac(&attachment.host_interface).0,
                peer_name: &attachment.interface,
                peer_mac: attachment.mac.0,
                peer_ns: namespace.as_fd(),
                mtu: self.mtu_of(self.network_of(attachment)?),
                master: bridge.ifindex,
                alias: &alias(&self.config.instance, &endpoint.name),
            })
            .await?;
        Ok(host)
    }

    /// A new pair's records, before it is up.
    fn register(
        &mut self,
        endpoint: &Endpoint,
        attachment: &Attachment,
        host: u32,
    ) -> Result<(), AgentError> {
        silence(self.conf6.as_ref(), &attachment.host_interface)?;
        let mtu = self.mtu_of(self.network_of(attachment)?);
        self.set_records(endpoint, attachment, host, mtu)
    }

    /// The other half: its program, and up.
    pub(in crate::agent) async fn bring_up(
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

    pub(in crate::agent) fn note_up(&mut self, place: Place, ifindex: u32) {
        self.wanted.gone.remove(&place);
        self.up.insert(place, ifindex);
    }

    /// The attachment's entry in the maps, and those of the endpoint's publishes.
    pub(in crate::agent) fn set_records(
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

    /// Inside, only our address and our default route count; who asks for the container's own address there gets it by
    /// `lo`, which whoever made the namespace may have kept from IPv6. None where there is no IPv6.
    fn prepare_ipv6(
        &self,
        attachment: &Attachment,
        inside: &Inside,
    ) -> Result<Option<Prepared>, AgentError> {
        let interface = attachment.interface.clone();
        if !self.given(attachment)?.any(|(_, ip)| ip.is_ipv6()) {
            return Ok(None);
        }
        Ok(Some(inside.namespace.start(move || {
            let conf6 = sysctl::Directory::open("net/ipv6/conf")?;
            for (key, value) in SETTINGS6 {
                conf6.set(&format!("{interface}/{key}"), value)?;
            }
            conf6.set("lo/disable_ipv6", "0").map(drop)
        })?))
    }

    /// Inside: addresses, and up. Idempotent. `host_ifindex` is the other end; `prepared` is where its
    /// preparing has begun. Returns the index of this end.
    pub(in crate::agent) async fn configure_container(
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
        if link.mac != Some(attachment.mac.0) {
            netlink.set_mac(link.index, attachment.mac.0).await?;
        }
        for (pool, ip) in self.given(attachment)? {
            netlink.add_address(link.index, pool.on_link(ip)).await?;
        }
        Ok(link.index)
    }

    /// Inside: a default route of each family, where it belongs and unless there is one of somebody else's
    /// or the runtime's to set; and, of an endpoint in several networks, a rule for each of its addresses.
    /// Idempotent.
    pub(in crate::agent) async fn set_ways(
        &self,
        endpoint: &Endpoint,
        inside: &Inside,
    ) -> Result<(), AgentError> {
        let has = inside.look().await?;
        self.set_rules(endpoint, inside, &has).await?;
        match endpoint.is_configured_by_runtime() {
            true => Ok(()),
            false => self.set_default_routes(endpoint, inside, &has).await,
        }
    }

    /// Inside: of what index is the attachment's interface? None where it is not there.
    fn index_inside(
        &self,
        endpoint: &Endpoint,
        attachment: &Attachment,
        links: &[Link],
    ) -> Option<u32> {
        let host = self.up.get(&place(endpoint, attachment))?;
        let link = links.iter().find(|link| link.peer == Some(*host))?;
        Some(link.index)
    }

    pub(in crate::agent) async fn set_rules(
        &self,
        endpoint: &Endpoint,
        inside: &Inside,
        Has { links, routes }: &Has,
    ) -> Result<(), AgentError> {
        let netlink = &inside.netlink;
        let index = |attachment| self.index_inside(endpoint, attachment, links);
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
        Ok(())
    }

    pub(in crate::agent) async fn set_default_routes(
        &self,
        endpoint: &Endpoint,
        inside: &Inside,
        Has { links, routes }: &Has,
    ) -> Result<(), AgentError> {
        let netlink = &inside.netlink;
        let index = |attachment| self.index_inside(endpoint, attachment, links);
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
    pub(in crate::agent) async fn wait_usable(
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
    pub(in crate::agent) async fn detach(&mut self, endpoint: &Endpoint, attachment: &Attachment) {
        let report = |what: &str, error: &dyn std::fmt::Display| {
            tracing::warn!(endpoint = %endpoint.name, %error, "{what}");
        };
        let place = place(endpoint, attachment);
        self.wanted.gone.remove(&place);
        let known = self.up.remove(&place);
        if let Err(error) = self.delete_rules(endpoint, attachment).await {
            report("its rules in the container were not deleted", &error);
        }
        let (name, mac) = (&endpoint.name, host_mac(&attachment.host_interface));
        let found = match self.netlink.link(&attachment.host_interface).await {
            // What goes by its name may be somebody else's.
            Ok(link) => link
                .filter(|link| is_object(&self.config.instance, link, name, mac))
                .map(|link| link.index),
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
