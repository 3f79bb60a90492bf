//! From the store to a running node: load, look, make what is missing, remove what is not wanted.
//!
//! It runs at every start, whatever the last agent left: nothing (first start, reboot), everything
//! (restart; then no packet notices), or half of a change (killed).

use std::{
    collections::HashSet,
    path::Path,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use netfw_common::addr::{Ip4, Ip6};

use super::{
    Agent, AgentError, Bridge, Place,
    attachment::Inside,
    config::Config,
    counter::{self, Indexes},
    endpoint::place,
    network, node,
    purge::{Doomed, Then},
    record::{self, Attachment, Node, Wanted, alias, host_mac, instance_of, is_object, object_of},
    store::{Change, Store},
};
use crate::{
    bpf::{self, DataPlane, Family, Options},
    name::Name,
    net::{Link, Namespace, NetError, Netlink, sysctl::Directory},
};

impl Agent {
    /// Runs in the node's namespace.
    pub async fn start(config: Config, store_path: &Path) -> Result<Self, AgentError> {
        // Before anything is written.
        DataPlane::check_layout(&config.instance)?;
        let netlink = Netlink::current()?;
        check_other_instances(&config.instance, &netlink.links().await?)?;
        if DataPlane::exists(config.instance.as_str()) {
            Store::must_exist(store_path)?;
        }
        let mut store = Store::open(store_path)?;
        let mut wanted = store.load()?;
        let mut node = this_node(&config)?;
        node.prefix6 = wanted.node.as_ref().and_then(|before| before.prefix6);
        if let Some(before) = &wanted.node {
            check_same_node(&config, before, &node)?;
        }
        if wanted.node.as_ref() != Some(&node) {
            store.commit(&[Change::Node(&node)])?;
            wanted.node = Some(node);
        }
        let dataplane = DataPlane::load(&options(&config, &wanted))?;
        let counters = Indexes::new(wanted.counters(), counter::ENTRIES);
        let mut agent = Self {
            config,
            store,
            wanted,
            netlink,
            dataplane,
            counters,
            waiting: Default::default(),
            bridges: Default::default(),
            up: Default::default(),
            deleted: Default::default(),
            uplinks: Default::default(),
            xdp: Default::default(),
            missing_uplinks: Vec::new(),
            locals: Default::default(),
            conf6: Directory::open("net/ipv6/conf").ok(),
            ipv6: network::ipv6(),
            namespaces: Default::default(),
            lost: Default::default(),
            patience: Default::default(),
            unfiltered: Default::default(),
            purges: Vec::new(),
            later: Vec::new(),
            purger: Default::default(),
            names: Default::default(),
            sockets: Ok(()),
            mtu: 0,
            events: Default::default(),
            started: Instant::now(),
        };
        agent.reconcile().await?;
        Ok(agent)
    }

    async fn reconcile(&mut self) -> Result<(), AgentError> {
        if let Err(why) = &self.ipv6 {
            tracing::info!(why, "the node has no IPv6");
        }
        self.finish_removals().await?;
        self.purge_now()?;
        let links = self.netlink.links().await?;
        self.remove_strangers(&links).await;
        // Again: the names of those removed are free now.
        let links = self.netlink.links().await?;
        self.mtu = node::observe(&links, &[], &self.config.uplinks).mtu;
        self.ensure_default_network().await?;
        self.complete_addresses()?;
        for name in self.wanted.networks.keys().cloned().collect::<Vec<_>>() {
            self.ensure_bridge(&name).await?;
        }
        self.attach_guards(&links);
        self.start_names();
        self.ensure_endpoints().await?;
        self.adopt().await;
        self.purge_unsettled();
        self.sweep_lost(Duration::ZERO).await?;
        self.report_held();
        self.set_names();
        self.forget_strangers()?;
        self.purge_now()?;
        // Without cgroups the node's own processes do without; the world and containers do not care.
        self.sockets = self
            .dataplane
            .attach_sockets()
            .map_err(|error| crate::chain(&error));
        if let Err(error) = &self.sockets {
            tracing::warn!(%error, "processes of the node do not reach publishes");
        }
        // Last: from here on packets of the world reach containers, and everything is there.
        self.observe().await?;
        self.purge_now()?;
        // Addresses may have gone while no agent looked.
        self.purge_later(Doomed::Foreign);
        self.flush_all_shadows();
        Ok(())
    }

    /// The last agent may have ended before it had forgotten what its newest publishes shadow.
    fn flush_all_shadows(&mut self) {
        let endpoints = self.wanted.endpoints.values();
        let published: Vec<_> = endpoints.flat_map(|e| &e.publishes).cloned().collect();
        self.flush_shadows(&published);
    }

    /// Before any container can send, what leaves an uplink is watched. Where that fails,
    /// [`Agent::observe`] says so, and does not serve it.
    fn attach_guards(&mut self, links: &[Link]) {
        for (ifindex, uplink) in node::observe(links, &[], &self.config.uplinks).uplinks {
            if let Err(error) = self.dataplane.attach_guard(ifindex, &uplink.name) {
                tracing::debug!(uplink = %uplink.name, %error, "no guard yet");
            }
        }
    }

    /// Removals that the last agent began.
    async fn finish_removals(&mut self) -> Result<(), AgentError> {
        let half: Vec<Name> = self
            .wanted
            .endpoints
            .values()
            .filter(|e| e.removing || e.predecessor.is_some())
            .map(|e| e.name.clone())
            .collect();
        for name in half {
            tracing::info!(endpoint = %name, "finishing its removal");
            self.finish_removal(&name).await?;
        }
        let half: Vec<Place> = self
            .wanted
            .attachments()
            .filter(|(e, a)| a.removing && !e.removing)
            .map(|(e, a)| place(e, a))
            .collect();
        for (name, network) in half {
            tracing::info!(endpoint = %name, %network, "finishing its disconnection");
            self.finish_disconnect(&network, &name).await?;
        }
        Ok(())
    }

    /// Interfaces with our alias that nothing wanted accounts for.
    async fn remove_strangers(&self, links: &[Link]) {
        for link in links {
            let Some(object) = object_of(&self.config.instance, link.alias.as_deref()) else {
                // Half made, if at all; a name alone is no proof that it is ours.
                continue;
            };
            let wanted = match link.kind.as_deref() {
                Some("bridge") => self
                    .wanted
                    .networks
                    .values()
                    .any(|n| n.name.as_str() == object && n.bridge == link.name),
                _ => self
                    .wanted
                    .attachments()
                    .any(|(e, a)| e.name.as_str() == object && a.host_interface == link.name),
            };
            if !wanted {
                tracing::info!(interface = %link.name, %object, "removing an interface that nothing wants");
                if let Err(error) = self.netlink.delete_link(link.index).await {
                    tracing::warn!(interface = %link.name, %error, "not removed");
                }
            }
        }
    }

    pub(super) async fn ensure_endpoints(&mut self) -> Result<(), AgentError> {
        let links = self.netlink.links().await?;
        let names: Vec<Name> = self.wanted.endpoints.keys().cloned().collect();
        for name in names {
            let endpoint = self.wanted.endpoints[&name].clone();
            if !endpoint.removing {
                // Told in the log, and by its state.
                let _ = self.ensure_endpoint(&endpoint, &links).await;
            }
        }
        Ok(())
    }

    /// What is missing of an endpoint. Its trouble (its namespace is gone) is not the others': it is logged,
    /// all else is made, and the first error returned.
    pub(super) async fn ensure_endpoint(
        &mut self,
        endpoint: &record::Endpoint,
        links: &[Link],
    ) -> Result<(), AgentError> {
        if endpoint.predecessor.is_some() {
            return Err(AgentError::Removing(endpoint.name.clone()));
        }
        let mut first = Ok(());
        if endpoint.mode == record::Mode::None
            && let Err(error) = self.ensure_namespace(endpoint)
        {
            tracing::warn!(endpoint = %endpoint.name, error = %crate::chain(&error), "gone");
            first = Err(error);
        }
        for attachment in endpoint.attached() {
            let kept = links.iter().find(|l| {
                l.name == attachment.host_interface
                    && is_object(
                        &self.config.instance,
                        l,
                        &endpoint.name,
                        host_mac(&attachment.host_interface),
                    )
            });
            let result = match kept {
                Some(link) => self.resume(endpoint, attachment, link).await,
                None => self.recreate(endpoint, attachment).await,
            };
            if let Err(error) = result {
                let place = place(endpoint, attachment);
                self.up.remove(&place);
                self.wanted.gone.insert(place);
                tracing::warn!(
                    endpoint = %endpoint.name,
                    network = %attachment.network,
                    error = %crate::chain(&error),
                    "gone"
                );
                first = first.and(Err(error));
            }
        }
        // What the container made of its interfaces since is its own business.
        if let Ok(Ok(inside)) = self.open_target(endpoint).map(Inside::of)
            && endpoint.attached().next().is_some()
            && let Err(error) = self.set_ways(endpoint, &inside).await
        {
            tracing::warn!(endpoint = %endpoint.name, error = %crate::chain(&error), "its routes are left as they are");
            first = first.and(Err(error));
        }
        self.write_files(endpoint);
        first
    }

    /// An attachment whose veth pair is there: make sure of the rest.
    async fn resume(
        &mut self,
        endpoint: &record::Endpoint,
        attachment: &Attachment,
        link: &Link,
    ) -> Result<(), AgentError> {
        let bridge = self.bridge_of(attachment)?;
        let inside = self.open_target(endpoint).map(Inside::of);
        if let Ok(Ok(inside)) = &inside {
            // Whatever fails below is tried again while it has this namespace.
            let id = inside.namespace.id();
            self.namespaces.insert(endpoint.name.clone(), id);
        }
        if link.master != Some(bridge.ifindex) {
            // Taken out of it, or the bridge was made anew: no flow goes by it.
            self.netlink.set_master(link.index, bridge.ifindex).await?;
        }
        // Killed between making the pair and giving it its alias?
        let alias = alias(&self.config.instance, &endpoint.name);
        if link.alias.as_ref() != Some(&alias) {
            self.netlink.set_alias(link.index, &alias).await?;
        }
        self.set_records(endpoint, attachment, link.index, link.mtu)?;
        self.dataplane.attach_container(link.index, &link.name)?;
        if !link.up {
            self.netlink.set_up(link.index).await?;
        }
        // Killed between making the pair and giving it its address?
        let configured = match inside {
            // That is the runtime's, and it may be about it.
            _ if attachment.is_configured_by_runtime() => Ok(()),
            Ok(Ok(inside)) => self
                .configure_container(attachment, link.index, &inside, None)
                .await
                .map(drop),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Ok(()),
        };
        if let Err(error) = configured {
            tracing::warn!(endpoint = %endpoint.name, error = %crate::chain(&error), "left as it is");
        }
        self.note_up(place(endpoint, attachment), link.index);
        Ok(())
    }

    /// The endpoint's namespace, made anew where netfw made it and it is gone (after a reboot).
    fn ensure_namespace(&self, endpoint: &record::Endpoint) -> Result<Namespace, AgentError> {
        match self.open_target(endpoint) {
            Err(AgentError::Net(error)) if endpoint.namespace.made && error.is_gone() => {}
            // Killed between making the file and binding the namespace to it.
            Err(AgentError::Net(NetError::NotANamespace { .. }))
                if endpoint.namespace.made && Namespace::is_bare(&endpoint.name) =>
            {
                Namespace::delete(&endpoint.name)?;
            }
            other => return other,
        }
        Ok(Namespace::create(&endpoint.name)?)
    }

    async fn recreate(
        &mut self,
        endpoint: &record::Endpoint,
        attachment: &Attachment,
    ) -> Result<(), AgentError> {
        let namespace = self.ensure_namespace(endpoint)?;
        let made = async {
            let inside = Inside::of(namespace)?;
            inside.raise_loopback().await?;
            let ends = self.attach(endpoint, attachment, &inside).await?;
            if attachment.is_configured_by_runtime() {
                // It set them once, and does not look again.
                let has = inside.look().await?;
                self.set_default_routes(endpoint, &inside, &has).await?;
            }
            self.wait_usable(&endpoint.name, attachment, ends, &inside.netlink)
                .await
        };
        let made = made.await;
        if made.is_err() {
            self.take_down(endpoint, attachment).await;
        }
        made
    }

    /// Takes an attachment that stays wanted out of the kernel, with what was sent by it.
    pub(super) async fn take_down(&mut self, endpoint: &record::Endpoint, attachment: &Attachment) {
        let ips: Vec<_> = attachment.ips().collect();
        self.hang_up(&endpoint.name, &ips, &endpoint.publishes);
        self.detach(endpoint, attachment).await;
        // Not by its addresses: when the walk begins, it may be up again and have new ones.
        self.purge(Doomed::Unowned, Then::Nothing);
    }

    /// Entries of the maps that nothing wanted accounts for, and flows that they made.
    pub(super) fn forget_strangers(&mut self) -> Result<(), AgentError> {
        let up: HashSet<u32> = self.up.values().copied().collect();
        for endpoint in self.dataplane.endpoints() {
            if !up.contains(&endpoint.ifindex) {
                self.dataplane.remove_endpoint(endpoint.ifindex)?;
            }
        }
        self.forget_publishes::<Ip4>()?;
        self.forget_publishes::<Ip6>()?;
        let networks = self.wanted.networks.values();
        let subnets: HashSet<IpNet> = networks
            .flat_map(|network| self.pools(network).map(|pool| pool.subnet))
            .collect();
        for (subnet, _) in self.dataplane.subnets() {
            if !subnets.contains(&subnet) {
                self.dataplane.remove_subnet(subnet)?;
            }
        }
        self.purge(Doomed::Unowned, Then::Nothing);
        Ok(())
    }

    fn forget_publishes<A: Family>(&mut self) -> Result<(), AgentError> {
        let up = self.wanted.endpoints.values().filter(|e| self.is_up(e));
        let wanted: HashSet<_> = up
            .flat_map(|endpoint| super::publish::keys::<A>(&endpoint.publishes))
            .collect();
        let published = self.dataplane.publishes::<A>();
        let keys = published.into_iter().map(|(key, _)| key);
        let strangers: Vec<_> = keys.filter(|key| !wanted.contains(key)).collect();
        self.dataplane.unpublish(strangers)?;
        let all = self.wanted.endpoints.values();
        let up = all.filter(|endpoint| self.is_up(endpoint));
        let counters: HashSet<u32> = up.flat_map(record::Endpoint::counters).collect();
        self.dataplane
            .disallow_others::<A>(|counter| counters.contains(&counter));
        Ok(())
    }

    pub(super) fn bridge_of(&self, attachment: &Attachment) -> Result<Bridge, AgentError> {
        self.bridges
            .get(&attachment.network)
            .copied()
            .ok_or_else(|| self.no_network(&attachment.network))
    }
}

/// What the data plane is loaded with.
pub(super) fn options(config: &Config, wanted: &Wanted) -> Options {
    Options {
        instance: config.instance.to_string(),
        max_flows: config.max_flows,
        max_embryos: config.max_embryos,
        log_level: config.program_log.then_some(log::Level::Debug),
        config: netfw_common::record::Config {
            mappings: wanted.has_mappings().into(),
            ..config.dataplane
        },
        steps: bpf::STEPS,
    }
}

fn this_node(config: &Config) -> Result<Node, AgentError> {
    Ok(Node {
        netns: config.netns.clone(),
        id: Namespace::current()?.id(),
        boot: boot()?,
        prefix6: None,
    })
}

/// Which boot of which machine this is: [`Node::boot`].
pub fn boot() -> Result<String, AgentError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let boot = std::fs::read_to_string(path).map_err(|source| AgentError::Io {
        path: path.to_owned(),
        source,
    })?;
    Ok(boot.trim().to_owned())
}

/// Every data plane takes each packet for itself, and knows no ports but those that it gave away.
fn check_other_instances(own: &Name, links: &[Link]) -> Result<(), AgentError> {
    let others = links.iter().filter_map(|link| {
        let other = instance_of(link.alias.as_deref())?;
        (other != own.as_str()).then(|| AgentError::OtherInstance {
            other: other.to_owned(),
            interface: link.name.clone(),
        })
    });
    others.into_iter().next().map_or(Ok(()), Err)
}

/// An instance's pins, bridges and veths lie in one namespace; another agent must not take its
/// name for another one while that one lives.
fn check_same_node(config: &Config, before: &Node, now: &Node) -> Result<(), AgentError> {
    if before.boot != now.boot || before.id == now.id {
        return Ok(());
    }
    match super::down::locate(before) {
        Some(other) => Err(AgentError::OtherNamespace {
            instance: config.instance.clone(),
            netns: other.label().to_owned(),
        }),
        // Deleted. Its pins may remain; the data plane drops what lies on vanished interfaces.
        None => Ok(()),
    }
}
