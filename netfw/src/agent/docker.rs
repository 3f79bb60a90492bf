//! Containers in Docker's networks, as [`crate::docker`] asks for them.
//!
//! dockerd makes a container's namespace only after it has been told which interface is for it, and configures
//! that itself: so the container's end of a veth pair waits in the node until dockerd takes it
//! ([`Agent::hold_out`]), and the agent does what is left to do inside once it sees it there
//! ([`Agent::adopt`]). Each start of a container is a new sandbox, and a new endpoint. What Docker gives out
//! anew (an address) is free by its own account; an endpoint whose sandbox is gone is one that dockerd did not
//! tell the end of.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use tokio::task::block_in_place;

use super::{
    Agent, AgentError, Place,
    attachment::Inside,
    endpoint::place,
    plan::pool6,
    record::{Attachment, Endpoint, Family, Network, Published, waiting_interface},
    store::Change,
};
use crate::{
    api::{
        owned::Owned,
        types::{
            ConnectRequest, EndpointRequest, FailureKind, NamespaceRequest, NetworkRequest,
            PublishRequest,
        },
    },
    mode::Mode,
    name::{Mac, Name, NameError},
    net::{Namespace, NetError, subnet},
    owner::{Owner, short},
    publish::Spec,
};

/// The label of networks that were made for Docker: its id of the network.
pub const LABEL: &str = "docker";

/// An endpoint of Docker's, about to join its container.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Joining {
    /// Docker's ids of its network, and of itself.
    pub network: String,
    pub endpoint: String,
    /// The file by which the container's namespace will be opened.
    pub sandbox: PathBuf,
    pub ip: Option<Ipv4Addr>,
    pub ip6: Option<Ipv6Addr>,
    pub mac: Option<Mac>,
    /// Its process.
    pub dockerd: Option<u32>,
}

/// What dockerd has to do with the container's end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Joined {
    /// What it is called in the node.
    pub interface: String,
    /// Of the network, where it leads out.
    pub gateways: Vec<IpAddr>,
}

#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    #[error(
        "netfw has no network for Docker's network {}, which somebody removed: remove it from Docker, too \
         (`docker network rm`), and create it again", short(.0)
    )]
    NoNetwork(String),
    #[error(
        "netfw knows of no endpoint {}: was it restarted this very moment? Start the container again", short(.0)
    )]
    NoEndpoint(String),
    #[error("{} is no sandbox of a container: {error}", .path.display())]
    Sandbox { path: PathBuf, error: String },
}

impl DockerError {
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::NoNetwork(_) | Self::NoEndpoint(_) => FailureKind::NotFound,
            Self::Sandbox { .. } => FailureKind::Invalid,
        }
    }
}

/// An attachment whose container's end waits in the node, for dockerd to take it.
pub struct Waiting {
    since: Instant,
    /// The process that asked for it.
    dockerd: Option<u32>,
}

impl Waiting {
    fn for_dockerd(dockerd: Option<u32>) -> Self {
        Self {
            since: Instant::now(),
            dockerd,
        }
    }

    /// Nobody will take it any more.
    fn is_over(&self) -> bool {
        /// dockerd has prepared all else when it asks; what is left is to start the container.
        const PATIENCE: Duration = Duration::from_secs(120);
        let died = |pid: u32| !Path::new(&format!("/proc/{pid}")).exists();
        self.since.elapsed() > PATIENCE || self.dockerd.is_some_and(died)
    }
}

impl Agent {
    /// Makes the network that `request` describes for Docker's network `id`, unless it is there already.
    pub async fn create_docker_network(
        &mut self,
        id: &str,
        mut request: NetworkRequest,
    ) -> Result<(), AgentError> {
        // Docker asks again where it heard no answer.
        if self.docker_network(id).is_ok() {
            return Ok(());
        }
        request.labels.insert(LABEL.into(), id.into());
        self.create_network(request).await.map(drop)
    }

    pub async fn remove_docker_network(&mut self, id: &str) -> Result<(), AgentError> {
        let Ok(network) = self.docker_network(id) else {
            return Ok(());
        };
        let name = network.name.clone();
        self.forget_lost_sandboxes().await?;
        self.remove_network(&name).await
    }

    pub fn docker_network(&self, id: &str) -> Result<&Network, DockerError> {
        let mut all = self.wanted.networks.values();
        all.find(|n| n.labels.get(LABEL).is_some_and(|of| of == id))
            .ok_or_else(|| DockerError::NoNetwork(id.into()))
    }

    /// Makes the interface by which a container will be in the network; a container is one endpoint, in
    /// however many networks.
    pub async fn join(&mut self, joining: Joining) -> Result<Joined, AgentError> {
        let network = self.docker_network(&joining.network)?.name.clone();
        let container = sandbox_name(&joining.sandbox)?;
        if let Ok(namespace) = Namespace::at_path(&joining.sandbox) {
            self.foreign(joining.sandbox.clone(), &namespace)?;
        }
        self.forget_lost_sandboxes().await?;
        self.forget_predecessors(&joining).await?;
        let owned = Some(Owned {
            owner: Owner::Docker {
                container: container.to_string(),
                network: joining.network,
                endpoint: joining.endpoint.clone(),
            },
            // Docker gives it one.
            interface: String::new(),
        });
        let name: Name = format!("docker-{container}")
            .parse()
            .map_err(AgentError::Name)?;
        if self.wanted.endpoints.contains_key(&name) {
            let connect = ConnectRequest {
                endpoint: name,
                ip: joining.ip,
                ip6: joining.ip6,
                mac: joining.mac,
                aliases: Vec::new(),
                owned,
            };
            self.connect_endpoint(&network, connect).await?;
        } else {
            self.add_endpoint(EndpointRequest {
                name,
                network: Some(Mode::Network(network)),
                namespace: Some(NamespaceRequest::Path(joining.sandbox)),
                ip: joining.ip,
                ip6: joining.ip6,
                mac: joining.mac,
                publish: Vec::new(),
                allow_from: Default::default(),
                expose: Vec::new(),
                publish_all: false,
                aliases: Vec::new(),
                links: Vec::new(),
                owned,
            })
            .await?;
        }
        self.joined(&joining.endpoint, joining.dockerd)
    }

    /// As [`Agent::join`], of an endpoint that has left: dockerd has it join again without creating it anew
    /// where it changes what a running container has.
    pub async fn join_again(
        &mut self,
        id: &str,
        sandbox: PathBuf,
        dockerd: Option<u32>,
    ) -> Result<Joined, AgentError> {
        let (_, attachment) = self.docker_endpoint(id)?;
        let Some(owner) = &attachment.owner else {
            return Err(DockerError::NoEndpoint(id.into()).into());
        };
        if owner.container() != sandbox_name(&sandbox)?.as_str() {
            let joining = Joining {
                network: owner.network().to_owned(),
                endpoint: id.to_owned(),
                sandbox,
                ip: attachment.ip4,
                ip6: attachment.ip6,
                mac: Some(attachment.mac),
                dockerd,
            };
            return self.join(joining).await;
        }
        self.hand_out(id, dockerd)?;
        self.joined(id, dockerd)
    }

    fn joined(&mut self, id: &str, dockerd: Option<u32>) -> Result<Joined, AgentError> {
        let (endpoint, attachment) = self.docker_endpoint(id)?;
        let network = self.network_of(attachment)?;
        let leads_out = !network.rules.internal;
        let pools = self.pools(network).filter(|_| leads_out);
        let joined = Joined {
            interface: waiting_interface(&attachment.host_interface),
            gateways: pools.map(|pool| pool.gateway).collect(),
        };
        let place = place(endpoint, attachment);
        self.waiting.insert(place, Waiting::for_dockerd(dockerd));
        Ok(joined)
    }

    /// dockerd is about to put the container's end back into the node, where it waits for what comes: to be
    /// deleted, most of the time.
    pub fn leave(&mut self, id: &str, dockerd: Option<u32>) -> Result<(), AgentError> {
        match self.docker_endpoint(id) {
            Ok(_) => self.hand_out(id, dockerd),
            Err(_) => Ok(()),
        }
    }

    /// From now on the container's end is expected in the node.
    fn hand_out(&mut self, id: &str, dockerd: Option<u32>) -> Result<(), AgentError> {
        let (endpoint, attachment) = self.docker_endpoint(id)?;
        let place = place(endpoint, attachment);
        let mut after = endpoint.clone();
        for attachment in &mut after.attachments {
            if attachment.network == place.1 {
                attachment.interface = waiting_interface(&attachment.host_interface);
            }
        }
        self.store.commit(&[Change::Endpoint(&after)])?;
        self.wanted.endpoints.insert(place.0.clone(), after);
        self.waiting.insert(place, Waiting::for_dockerd(dockerd));
        Ok(())
    }

    /// Removes what Docker's endpoint is; nothing where it is none any more.
    pub async fn delete_docker_endpoint(&mut self, id: &str) -> Result<(), AgentError> {
        match self.docker_endpoint(id) {
            Ok((endpoint, attachment)) => {
                let (name, network) = place(endpoint, attachment);
                self.waiting.remove(&(name.clone(), network.clone()));
                self.detach_from(&network, &name).await
            }
            Err(_) => Ok(()),
        }
    }

    /// From now on the container's way to the world and back is by this endpoint's network, and `specs` are
    /// published there.
    pub async fn open_ports(&mut self, id: &str, specs: &[Spec]) -> Result<(), AgentError> {
        self.forget_lost_sandboxes().await?;
        let (before, attachment) = self.docker_endpoint(id)?;
        let (name, network) = place(before, attachment);
        let mut after = before.clone();
        for attachment in &mut after.attachments {
            attachment.external |= attachment.network == network;
        }
        after.attachments.sort_by_key(|a| a.network != network);
        // Those of this network: the container may be leaving others.
        let families = (attachment.ip4.is_some(), attachment.ip6.is_some());
        let of_families = |spec: &Spec| Spec {
            host_ip: spec.host_ip.or(match families {
                (true, false) => Some(Ipv4Addr::UNSPECIFIED.into()),
                (false, true) => Some(Ipv6Addr::UNSPECIFIED.into()),
                _ => None,
            }),
            ..*spec
        };
        self.reorder(&after)?;
        let mut publish = Vec::new();
        for spec in specs.iter().map(of_families) {
            // Whole, where nothing of it is there: it has one port in both families.
            match after.publishes.iter().any(|p| spec.names(&p.publish)) {
                true => publish.extend(self.unpublished(&after, &[spec])),
                false => publish.push(spec),
            }
        }
        if publish.is_empty() {
            return Ok(());
        }
        let request = PublishRequest {
            publish,
            allow_from: Default::default(),
        };
        self.publish_for(&name, &request, true).map(drop)
    }

    /// The container's way is not by this endpoint's network any more. What Docker has published ends in each
    /// family for which it has named no other.
    pub fn close_ports(&mut self, id: &str) -> Result<(), AgentError> {
        let Ok((before, attachment)) = self.docker_endpoint(id) else {
            return Ok(());
        };
        let (_, network) = place(before, attachment);
        let mut after = before.clone();
        for attachment in &mut after.attachments {
            attachment.external &= attachment.network != network;
        }
        after.attachments.sort_by_key(|a| !a.external);
        self.reorder(&after)?;
        let has_way = |p: &&Published| {
            let family = Family::of(p.publish.host_ip);
            let mut ways = after.attached().filter(|a| a.external);
            ways.any(|a| a.has_family(family))
        };
        let ends = |p: &&Published| p.runtime && !has_way(p);
        let gone: Vec<Published> = after.publishes.iter().filter(ends).cloned().collect();
        match gone.is_empty() {
            true => Ok(()),
            false => self.withdraw_from(&after, &gone),
        }
    }

    /// The endpoint's attachments in another order, which says where its publishes lead.
    fn reorder(&mut self, after: &Endpoint) -> Result<(), AgentError> {
        if self.wanted.endpoints.get(&after.name) == Some(after) {
            return Ok(());
        }
        self.store.commit(&[Change::Endpoint(after)])?;
        self.wanted
            .endpoints
            .insert(after.name.clone(), after.clone());
        self.enter_publishes(after, &after.publishes)
    }

    pub fn docker_endpoint(&self, id: &str) -> Result<(&Endpoint, &Attachment), DockerError> {
        let is = |a: &Attachment| matches!(&a.owner, Some(Owner::Docker { endpoint, .. }) if endpoint == id);
        self.wanted
            .attachments()
            .find(|(e, a)| is(a) && !e.removing && !a.removing)
            .ok_or_else(|| DockerError::NoEndpoint(id.into()))
    }

    /// Addresses of the subnet that attachments have, those on their way out included; and the gateway.
    pub fn given_of(&self, subnet: &IpNet) -> (Vec<IpAddr>, Option<IpAddr>) {
        let mut networks = self.wanted.networks.values();
        let network = networks.find(|n| n.subnets().any(|own| own == *subnet));
        let Some(network) = network else {
            return (Vec::new(), None);
        };
        let mut pools = network.pools();
        let gateway = pools.find(|pool| pool.subnet == *subnet);
        let taken = self.taken_addresses(&network.name);
        (
            taken.into_iter().filter(|ip| subnet.contains(ip)).collect(),
            gateway.map(|pool| pool.gateway),
        )
    }

    /// A subnet that is free, but for those that are `promised`.
    pub async fn choose_subnet(
        &mut self,
        six: bool,
        promised: impl Iterator<Item = IpNet>,
    ) -> Result<IpNet, AgentError> {
        let prefix = self.prefix6()?;
        let obstacles = self.obstacles().await?;
        let taken: Vec<IpNet> = obstacles.iter().map(|o| o.net).chain(promised).collect();
        Ok(match six {
            true => pool6(prefix, &taken)?.subnet,
            false => subnet::choose(&taken)
                .ok_or(super::error::NetworkError::NoSubnet)?
                .into(),
        })
    }

    /// What is left to do inside, where dockerd has taken an interface into its container. Told in the log
    /// where it fails: the next look tries again.
    pub(super) async fn adopt(&mut self) {
        let waiting: Vec<Place> = self
            .wanted
            .attachments()
            .filter(|(e, a)| a.is_waiting() && !a.removing && !e.removing)
            .map(|(e, a)| place(e, a))
            .collect();
        self.waiting.retain(|place, _| waiting.contains(place));
        for place in waiting {
            if let Err(error) = self.adopt_one(&place).await {
                let (endpoint, error) = (&place.0, crate::chain(&error));
                tracing::warn!(%endpoint, error, "not all is done inside");
            }
        }
    }

    async fn adopt_one(&mut self, place: &Place) -> Result<(), AgentError> {
        let (name, network) = place;
        let (Some(&host), Some(mut endpoint)) =
            (self.up.get(place), self.wanted.endpoints.get(name).cloned())
        else {
            return Ok(());
        };
        let Ok(namespace) = self.open_target(&endpoint) else {
            return Ok(());
        };
        self.foreign(endpoint.namespace.path.clone(), &namespace)?;
        let inside = Inside::of(namespace)?;
        let has = inside.look().await?;
        let mut all = endpoint.attachments.iter_mut();
        let Some(attachment) = all.find(|a| a.network == *network) else {
            return Ok(());
        };
        let mut links = has.links.iter();
        // dockerd names it, gives it its addresses and brings it up, in this order.
        let Some(link) = links.find(|link| {
            let is_other_end = link.peer == Some(host) && link.peer_elsewhere;
            is_other_end && link.mac == Some(attachment.mac.0) && link.up
        }) else {
            return Ok(());
        };
        attachment.interface.clone_from(&link.name);
        self.set_rules(&endpoint, &inside, &has).await?;
        self.store.commit(&[Change::Endpoint(&endpoint)])?;
        self.namespaces.insert(name.clone(), inside.namespace.id());
        self.prepare_endpoint(&endpoint, host, &inside.namespace);
        self.wanted.endpoints.insert(name.clone(), endpoint);
        self.waiting.remove(place);
        Ok(())
    }

    /// Is one of these the host side of a pair whose other end a runtime is to take?
    pub(super) fn is_awaited(&self, mut ifindexes: impl Iterator<Item = u32>) -> bool {
        let waiting: Vec<u32> = self
            .wanted
            .attachments()
            .filter(|(_, a)| a.is_waiting())
            .filter_map(|(e, a)| self.up.get(&place(e, a)).copied())
            .collect();
        ifindexes.any(|ifindex| waiting.contains(&ifindex))
    }

    /// Endpoints whose container has ended, or has come to nothing, and dockerd did not say so.
    pub(super) async fn lost_sandboxes(&mut self) -> Result<Vec<Name>, AgentError> {
        let is_gone = |endpoint: &Endpoint| match self.open_target(endpoint) {
            Err(AgentError::Net(error)) => {
                error.is_gone() || matches!(error, NetError::NotANamespace { .. })
            }
            // Whatever else is in the way says nothing of the container.
            _ => false,
        };
        let all = self.wanted.endpoints.values();
        let gone: Vec<Endpoint> = all
            .filter(|e| e.is_configured_by_runtime() && !e.removing && is_gone(e))
            .cloned()
            .collect();
        let mut lost = Vec::new();
        for endpoint in gone {
            if self.is_left(&endpoint).await? {
                lost.push(endpoint.name);
            }
        }
        Ok(lost)
    }

    /// Of an endpoint whose sandbox has no name: is nothing of it in a container, nor about to be?
    async fn is_left(&mut self, endpoint: &Endpoint) -> Result<bool, AgentError> {
        for attachment in endpoint.attached() {
            if self.is_inside(endpoint, attachment).await? {
                return Ok(false);
            }
            if attachment.is_waiting() {
                let place = place(endpoint, attachment);
                // After a start nobody knows for how long it has waited.
                let waiting = self.waiting.entry(place);
                if !waiting.or_insert(Waiting::for_dockerd(None)).is_over() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Is the container's end in a namespace that lives, and is not the node's?
    async fn is_inside(
        &self,
        endpoint: &Endpoint,
        attachment: &Attachment,
    ) -> Result<bool, AgentError> {
        let waits = waiting_interface(&attachment.host_interface);
        let is_up = self.up.contains_key(&place(endpoint, attachment));
        Ok(is_up && self.netlink.link(&waits).await?.is_none())
    }

    pub async fn forget_lost_sandboxes(&mut self) -> Result<(), AgentError> {
        let lost = self.lost_sandboxes().await?;
        for name in &lost {
            tracing::info!(endpoint = %name, "removed: its sandbox is gone");
            self.remove_owned(name).await?;
        }
        if !lost.is_empty() {
            block_in_place(|| self.purge_now())?;
        }
        Ok(())
    }

    /// Who has what Docker gives to another now: the same endpoint, of a time when nobody heard the answer, or
    /// one with its address that is in no container any more.
    async fn forget_predecessors(&mut self, joining: &Joining) -> Result<(), AgentError> {
        let mut before: Vec<Place> = Vec::new();
        for (e, a) in self.wanted.attachments() {
            let Some(Owner::Docker {
                network, endpoint, ..
            }) = &a.owner
            else {
                continue;
            };
            let has = |ip: Option<IpAddr>| ip.is_some_and(|ip| a.ips().any(|own| own == ip));
            let same_address = *network == joining.network
                && (has(joining.ip.map(IpAddr::V4)) || has(joining.ip6.map(IpAddr::V6)));
            let goes = *endpoint == joining.endpoint
                || same_address && !a.is_waiting() && !self.is_inside(e, a).await?;
            if goes && !e.removing && !a.removing {
                before.push(place(e, a));
            }
        }
        for (name, network) in &before {
            tracing::info!(endpoint = %name, %network, "leaves: Docker has given to another what it had");
            self.detach_from(network, name).await?;
        }
        if !before.is_empty() {
            block_in_place(|| self.purge_now())?;
        }
        Ok(())
    }
}

/// dockerd calls it by the first digits of the sandbox's id.
fn sandbox_name(path: &Path) -> Result<Name, DockerError> {
    let wrong = |error: String| DockerError::Sandbox {
        path: path.to_owned(),
        error,
    };
    if !path.is_absolute() {
        return Err(wrong("an absolute path is".into()));
    }
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| wrong("it has no name".into()))?;
    name.parse()
        .map_err(|error: NameError| wrong(error.to_string()))
}
