//! Containers in Docker's networks, as [`crate::docker`] asks for them.
//!
//! dockerd makes a container's namespace only after it has been told which interface is for it, and configures
//! that itself: so the container's end of a veth pair waits in the node until dockerd takes it
//! ([`Agent::hold_out`]), and the agent does what is left to do inside once it sees it there
//! ([`Agent::adopt`]). Each start of a container is a new sandbox, and a new endpoint. What Docker gives out
//! anew (a host port, an address) is free by its own account; an endpoint whose sandbox is gone is one that
//! dockerd could not tell the end of.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use ipnet::IpNet;
use tokio::task::block_in_place;

use super::{
    Agent, AgentError, Place,
    attachment::Inside,
    endpoint::place,
    plan::pool6,
    record::{Attachment, Endpoint, Network},
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
    net::subnet,
    owner::Owner,
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

/// An id as Docker shows it.
pub fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
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
        let (_, attachment) = self.docker_endpoint(&joining.endpoint)?;
        let network = self.network_of(attachment)?;
        let leads_out = !network.rules.internal;
        let pools = self.pools(network).filter(|_| leads_out);
        Ok(Joined {
            interface: attachment.interface.clone(),
            gateways: pools.map(|pool| pool.gateway).collect(),
        })
    }

    /// Takes the container out of the endpoint's network; nothing where it is in it no more.
    pub async fn leave(&mut self, endpoint: &str) -> Result<(), AgentError> {
        match self.docker_endpoint(endpoint) {
            Ok((endpoint, attachment)) => {
                let (name, network) = place(endpoint, attachment);
                self.detach_from(&network, &name).await
            }
            Err(_) => Ok(()),
        }
    }

    /// From now on the container's way to the world and back is by this endpoint's network, and `specs` are
    /// published there.
    pub fn open_ports(&mut self, endpoint: &str, specs: &[Spec]) -> Result<(), AgentError> {
        let (before, attachment) = self.docker_endpoint(endpoint)?;
        let (name, network) = place(before, attachment);
        let mut after = before.clone();
        after.attachments.sort_by_key(|a| a.network != network);
        if after != *before {
            self.store.commit(&[Change::Endpoint(&after)])?;
            self.wanted.endpoints.insert(name.clone(), after.clone());
            self.enter_publishes(&after, &after.publishes)?;
        }
        let publish = self.unpublished(&after, specs);
        if publish.is_empty() {
            return Ok(());
        }
        let request = PublishRequest {
            publish,
            allow_from: Default::default(),
        };
        self.publish(&name, &request).map(drop)
    }

    /// Ends all publishes of the endpoint's container.
    pub fn close_ports(&mut self, endpoint: &str) -> Result<(), AgentError> {
        let Ok((endpoint, _)) = self.docker_endpoint(endpoint) else {
            return Ok(());
        };
        let before = endpoint.clone();
        let gone = before.publishes.clone();
        match gone.is_empty() {
            true => Ok(()),
            false => self.withdraw_from(&before, &gone),
        }
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
    /// where it fails: the container works.
    pub(super) async fn adopt(&mut self) {
        let waiting: Vec<Place> = self
            .wanted
            .attachments()
            .filter(|(e, a)| a.is_waiting() && !a.removing && !e.removing)
            .map(|(e, a)| place(e, a))
            .collect();
        for (name, network) in waiting {
            let adopted = self.adopt_one(&name, &network).await;
            if let Err(error) = adopted {
                tracing::warn!(endpoint = %name, error = %crate::chain(&error), "not all is done inside");
            }
        }
    }

    async fn adopt_one(&mut self, name: &Name, network: &Name) -> Result<(), AgentError> {
        let place = (name.clone(), network.clone());
        let (Some(&host), Some(endpoint)) = (
            self.up.get(&place),
            self.wanted.endpoints.get(name).cloned(),
        ) else {
            return Ok(());
        };
        let Ok(namespace) = self.open_target(&endpoint) else {
            return Ok(());
        };
        let inside = Inside::of(namespace)?;
        let has = inside.look().await?;
        let mut links = has.links.iter();
        // dockerd names it, gives it its addresses and brings it up, in this order.
        let Some(link) = links.find(|l| l.peer == Some(host) && l.peer_elsewhere && l.up) else {
            return Ok(());
        };
        let mut after = endpoint;
        for attachment in &mut after.attachments {
            if attachment.network == *network {
                attachment.interface.clone_from(&link.name);
            }
        }
        self.store.commit(&[Change::Endpoint(&after)])?;
        self.wanted.endpoints.insert(name.clone(), after.clone());
        let id = inside.namespace.id();
        self.namespaces.insert(name.clone(), id);
        self.prepare_endpoint(&after, host, &inside.namespace);
        self.set_rules(&after, &inside, &has).await
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

    /// Has the container ended, and dockerd could not say so?
    pub(super) fn is_lost_sandbox(&self, endpoint: &Endpoint) -> bool {
        let waits = || endpoint.attached().any(Attachment::is_waiting);
        endpoint.is_configured_by_runtime()
            && (!waits() || !self.is_up(endpoint))
            && self.open_target(endpoint).is_err()
    }

    async fn forget_lost_sandboxes(&mut self) -> Result<(), AgentError> {
        let all = self.wanted.endpoints.values();
        let lost = all.filter(|e| !e.removing && self.is_lost_sandbox(e));
        let lost: Vec<Name> = lost.map(|e| e.name.clone()).collect();
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
    /// one with its address.
    async fn forget_predecessors(&mut self, joining: &Joining) -> Result<(), AgentError> {
        let is = |attachment: &Attachment| match &attachment.owner {
            Some(Owner::Docker {
                network, endpoint, ..
            }) => {
                let has =
                    |ip: Option<IpAddr>| ip.is_some_and(|ip| attachment.ips().any(|a| a == ip));
                *endpoint == joining.endpoint
                    || *network == joining.network
                        && (has(joining.ip.map(IpAddr::V4)) || has(joining.ip6.map(IpAddr::V6)))
            }
            _ => false,
        };
        let all = self.wanted.attachments();
        let before = all.filter(|(e, a)| is(a) && !e.removing && !a.removing);
        let before: Vec<Place> = before.map(|(e, a)| place(e, a)).collect();
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
fn sandbox_name(path: &std::path::Path) -> Result<Name, DockerError> {
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
