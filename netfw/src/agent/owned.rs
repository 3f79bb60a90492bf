//! Attachments of container runtimes, by the names that those have for them ([`Owner`]).
//!
//! A runtime's container is one endpoint, however many networks it is in: the first attachment adds it, the
//! last to go removes it.

use std::{collections::BTreeSet, net::IpAddr};

use netfw_common::addr::{Ip4, Ip6};
use tokio::task::block_in_place;

use super::{
    Agent, AgentError,
    endpoint::place,
    error::NetworkError,
    names,
    publish::keys,
    record::{self, Attachment, Endpoint},
};
use crate::{
    api::{
        owned::{
            AttachRequest, Attached, Checked, CollectRequest, Collected, LABEL, NetworkWish, Owned,
        },
        types::{ConnectRequest, EndpointRequest, NamespaceRequest, PublishRequest},
    },
    bpf,
    mode::Mode,
    name::{Name, parse_interface},
    net::Namespace,
    owner::Owner,
    publish::Spec,
};

impl Agent {
    pub async fn attach_owned(&mut self, request: AttachRequest) -> Result<Attached, AgentError> {
        let Owned { owner, interface } = &request.attachment;
        parse_interface(interface).map_err(|error| AgentError::Request(error.to_string()))?;
        let namespace = Namespace::at_path(&request.namespace)?;
        if let Some(endpoint) = self.container(owner)
            && self.is_stale(endpoint, &namespace).await?
        {
            let name = endpoint.name.clone();
            self.remove_owned(&name).await?;
            // Map operations block.
            block_in_place(|| self.purge_now())?;
        }
        if let Some((endpoint, _)) = self.owned(&request.attachment) {
            return Err(AgentError::OwnedExists {
                owner: owner.clone(),
                interface: interface.clone(),
                endpoint: endpoint.name.clone(),
            });
        }
        let created = self.ensure_wished(&request.network, owner).await?;
        let made = match self.container(owner).cloned() {
            None => self.add_owned(&request).await,
            Some(endpoint) => self.connect_owned(&endpoint, &namespace, &request).await,
        };
        let network = &request.network.name;
        match made {
            Ok(name) => self.attached(&name, network),
            Err(error) => {
                if created {
                    block_in_place(|| self.purge_now())?;
                    self.remove_network(network).await?;
                }
                Err(error)
            }
        }
    }

    /// Removes the attachment. Returns whose it was; None where there is none.
    pub async fn detach_owned(&mut self, asked: &Owned) -> Result<Option<Name>, AgentError> {
        let Some((endpoint, attachment)) = self.owned(asked) else {
            return Ok(None);
        };
        let (name, network) = place(endpoint, attachment);
        self.detach_from(&network, &name).await?;
        Ok(Some(name))
    }

    /// Takes a runtime's container out of a network of the runtime's; with the last of those it goes.
    pub(super) async fn detach_from(
        &mut self,
        network: &Name,
        name: &Name,
    ) -> Result<(), AgentError> {
        // What a person has connected it to goes with the container.
        let endpoint = self.wanted_endpoint(name)?;
        let owned = endpoint.attached().filter(|a| a.owner.is_some());
        match owned.count() {
            0 | 1 => self.remove_owned(name).await,
            _ => self.disconnect_endpoint(network, name).await,
        }
    }

    /// Removes a runtime's container, and before it what a person has put into its namespace: that goes too.
    pub(super) async fn remove_owned(&mut self, name: &Name) -> Result<(), AgentError> {
        let all = self.wanted.endpoints.values();
        let shares = |e: &&Endpoint| e.mode == record::Mode::Container(name.clone()) && !e.removing;
        let sharers: Vec<Name> = all.filter(shares).map(|e| e.name.clone()).collect();
        for sharer in &sharers {
            tracing::info!(endpoint = %sharer, container = %name, "goes with the container");
            self.remove_endpoint(sharer).await?;
        }
        if !sharers.is_empty() {
            // They have the namespace until their flows are gone.
            block_in_place(|| self.purge_now())?;
        }
        self.remove_endpoint(name).await
    }

    /// Removes all attachments to a runtime's network but those that it still has; goes on past errors.
    pub async fn collect_owned(&mut self, request: &CollectRequest) -> Collected {
        let all = self
            .wanted
            .attachments()
            .filter_map(|(endpoint, attachment)| {
                let owner = attachment.owner.clone()?;
                let goes = !endpoint.removing && !attachment.removing;
                let is_cni = matches!(owner, Owner::Cni { .. });
                (goes && is_cni && owner.network() == request.network).then(|| Owned {
                    owner,
                    interface: attachment.interface.clone(),
                })
            });
        let stale: Vec<Owned> = all.filter(|owned| !request.valid.contains(owned)).collect();
        let mut collected = Collected {
            removed: Vec::new(),
            failures: Vec::new(),
        };
        for owned in stale {
            match self.detach_owned(&owned).await {
                Ok(_) => collected.removed.push(owned),
                Err(error) => collected.failures.push(crate::chain(&error)),
            }
        }
        collected
    }

    /// What the attachment is, and what of it somebody has undone on the node. What is inside the container is for
    /// whoever asks to look at.
    pub async fn check_owned(&self, asked: &Owned) -> Result<Checked, AgentError> {
        let Some((endpoint, attachment)) = self.owned(asked) else {
            return Ok(Checked {
                attached: None,
                faults: Vec::new(),
            });
        };
        let mut faults = Vec::new();
        match self.up.get(&place(endpoint, attachment)) {
            None => faults.push("its namespace or its veth pair was deleted".to_owned()),
            Some(&host) => {
                self.check_host_side(attachment, host, &mut faults).await?;
                self.check_records(endpoint, attachment, host, &mut faults);
                if let Err(error) = self.open_target(endpoint) {
                    faults.push(crate::chain(&error));
                }
            }
        }
        Ok(Checked {
            attached: Some(self.attached(&endpoint.name, &attachment.network)?),
            faults,
        })
    }

    /// Has the container come back, in the namespace `now`, without its runtime having told that it was gone?
    async fn is_stale(&self, endpoint: &Endpoint, now: &Namespace) -> Result<bool, AgentError> {
        let was = self.namespaces.get(&endpoint.name).copied();
        let there = self.open_target(endpoint).map(|n| n.id()).ok();
        if was != Some(now.id()) {
            return Ok(there.is_none() || there != was);
        }
        // The number may be another namespace's by now; of the old one no interface is left then.
        for attachment in endpoint.attached() {
            if self
                .netlink
                .link(&attachment.host_interface)
                .await?
                .is_some()
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn attached(&self, endpoint: &Name, network: &Name) -> Result<Attached, AgentError> {
        let record = self.wanted.networks.get(network);
        let record = record.ok_or_else(|| self.no_network(network))?;
        Ok(Attached {
            endpoint: self.endpoint_view(endpoint)?,
            network: self.network_of_record(record),
        })
    }

    fn owned(&self, asked: &Owned) -> Option<(&Endpoint, &Attachment)> {
        self.wanted.attachments().find(|(endpoint, attachment)| {
            attachment.owner.as_ref() == Some(&asked.owner)
                && attachment.interface == asked.interface
                && !endpoint.removing
                && !attachment.removing
        })
    }

    /// The endpoint that a runtime's container is.
    fn container(&self, owner: &Owner) -> Option<&Endpoint> {
        let of = |a: &Attachment| a.owner.as_ref().is_some_and(|o| o.is_same_container(owner));
        let mut all = self.wanted.endpoints.values().filter(|e| !e.removing);
        all.find(|e| e.attached().any(of))
    }

    /// The network as it is wished for, made where there is none. One that was made for the same runtime's
    /// network, and is empty, is made anew where the wish is another one by now. Returns whether it was made.
    async fn ensure_wished(
        &mut self,
        wish: &NetworkWish,
        owner: &Owner,
    ) -> Result<bool, AgentError> {
        if let Some(record) = self.wanted.networks.get(&wish.name) {
            let network = self.network_of_record(record);
            let Some(what) = wish.unfulfilled(&network) else {
                return Ok(false);
            };
            let label = network.labels.get(LABEL).map(String::as_str);
            let own = label == Some(owner.network());
            if !own || network.endpoints > 0 {
                let members = self.members(&wish.name).filter(|_| own);
                return Err(NetworkError::Differs {
                    endpoints: members.map(|(e, _)| e.name.clone()).collect(),
                    network: network.name,
                    what,
                }
                .into());
            }
            self.remove_network(&wish.name).await?;
        }
        self.create_network(wish.request(owner)).await?;
        Ok(true)
    }

    async fn add_owned(&mut self, request: &AttachRequest) -> Result<Name, AgentError> {
        let network = &request.network.name;
        let taken = |name: &Name| {
            let mut all = self.wanted.endpoints.keys();
            all.any(|other| other.eq_ignore_ascii_case(name))
                || names::check(&self.wanted, name, &request.aliases, network).is_err()
        };
        let names = &request.names;
        let free = names.iter().find(|name| !taken(name)).or(names.last());
        let Some(name) = free.cloned() else {
            return Err(AgentError::Request("no name for the endpoint".into()));
        };
        self.add_endpoint(EndpointRequest {
            name: name.clone(),
            network: Some(Mode::Network(request.network.name.clone())),
            namespace: Some(NamespaceRequest::Path(request.namespace.clone())),
            ip: request.ip,
            ip6: request.ip6,
            mac: request.mac,
            publish: request.publish.clone(),
            allow_from: request.allow_from.clone(),
            expose: Vec::new(),
            publish_all: false,
            aliases: request.aliases.clone(),
            links: Vec::new(),
            owned: Some(request.attachment.clone()),
        })
        .await?;
        Ok(name)
    }

    async fn connect_owned(
        &mut self,
        before: &Endpoint,
        namespace: &Namespace,
        request: &AttachRequest,
    ) -> Result<Name, AgentError> {
        let name = before.name.clone();
        if self.open_target(before).ok().as_ref() != Some(namespace) {
            return Err(AgentError::OtherNetns {
                container: request.attachment.owner.container().to_owned(),
                endpoint: name,
                netns: before.namespace.path.clone(),
            });
        }
        let network = &request.network.name;
        let connect = ConnectRequest {
            endpoint: name.clone(),
            ip: request.ip,
            ip6: request.ip6,
            mac: request.mac,
            aliases: request.aliases.clone(),
            owned: Some(request.attachment.clone()),
        };
        self.connect_endpoint(network, connect).await?;
        let publish = self.unpublished(self.wanted_endpoint(&name)?, &request.publish);
        if publish.is_empty() {
            return Ok(name);
        }
        let publish = PublishRequest {
            publish,
            allow_from: request.allow_from.clone(),
        };
        if let Err(error) = self.publish_for(&name, &publish, true) {
            self.disconnect_endpoint(network, &name).await?;
            return Err(error);
        }
        Ok(name)
    }

    /// What of `specs` the endpoint has not published yet, on whichever addresses it can be.
    pub(super) fn unpublished(&self, endpoint: &Endpoint, specs: &[Spec]) -> Vec<Spec> {
        let families = self.wanted.families(endpoint);
        let has = |spec: &Spec| endpoint.publishes.iter().any(|p| spec.names(&p.publish));
        let on_each = |spec: &Spec| match spec.host_ip {
            Some(_) => vec![*spec],
            None => {
                let host_ips = spec.host_ips(families).map(Some);
                host_ips.map(|host_ip| Spec { host_ip, ..*spec }).collect()
            }
        };
        let mut all: Vec<Spec> = specs.iter().flat_map(on_each).collect();
        all.retain(|spec| !has(spec));
        all
    }

    /// The host side of its veth pair, and what that hangs on.
    async fn check_host_side(
        &self,
        attachment: &Attachment,
        host: u32,
        faults: &mut Vec<String>,
    ) -> Result<(), AgentError> {
        let links = self.netlink.links().await?;
        let name = &attachment.host_interface;
        let network = self.network_of(attachment)?;
        let bridge = self.bridges.get(&network.name).map(|b| b.ifindex);
        let of = |index: Option<u32>| links.iter().find(|link| Some(link.index) == index);
        match of(bridge) {
            None => faults.push(format!("the bridge {} is gone", network.bridge)),
            Some(link) if !link.up => faults.push(format!("the bridge {} is down", network.bridge)),
            Some(_) => {}
        }
        let has: BTreeSet<IpAddr> = self
            .netlink
            .addresses()
            .await?
            .iter()
            .map(|a| a.addr)
            .collect();
        for pool in self
            .pools(network)
            .filter(|pool| !has.contains(&pool.gateway))
        {
            let (bridge, gateway) = (&network.bridge, pool.gateway);
            faults.push(format!("the bridge {bridge} has no address {gateway}"));
        }
        let Some(link) = of(Some(host)) else {
            faults.push(format!("the node has no interface {name}"));
            return Ok(());
        };
        if !link.up {
            faults.push(format!("{name} is down"));
        }
        if link.master != bridge {
            faults.push(format!(
                "{name} is no port of the bridge {}",
                network.bridge
            ));
        }
        if self.dataplane.lacks_program(host) {
            faults.push(format!("{name} is without netfw's program"));
        }
        Ok(())
    }

    /// What the programs know.
    fn check_records(
        &self,
        endpoint: &Endpoint,
        attachment: &Attachment,
        host: u32,
        faults: &mut Vec<String>,
    ) {
        let records = self.dataplane.endpoints();
        let right = records.iter().any(|record| {
            record.ifindex == host
                && record.mac == attachment.mac.0
                && record.ip4 == attachment.ip4.map(Into::into).unwrap_or_default()
        });
        if !right {
            faults.push("the programs do not know it".into());
        }
        self.check_publishes::<Ip4>(endpoint, faults);
        self.check_publishes::<Ip6>(endpoint, faults);
    }

    fn check_publishes<A: bpf::Family>(&self, endpoint: &Endpoint, faults: &mut Vec<String>) {
        let family = super::record::Family::of(A::ANY.ip());
        // Those rest.
        if self.wanted.way_in(endpoint, family).is_none() || endpoint.publishes.is_empty() {
            return;
        }
        let there = self.dataplane.publishes::<A>();
        for published in &endpoint.publishes {
            let is_there = |key| {
                there
                    .iter()
                    .any(|(k, value)| *k == key && u32::from(value.counter) == published.counter)
            };
            if !keys::<A>(std::slice::from_ref(published)).all(is_there) {
                faults.push(format!("{} is not published", published.publish));
            }
        }
    }
}
