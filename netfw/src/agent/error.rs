//! Why the agent refused a request or could not carry it out.

use std::{net::Ipv4Addr, path::PathBuf};

use super::{ipam::AddressError, paths::LockError, store::StoreError};
use crate::{
    api::types::FailureKind,
    bpf::BpfError,
    name::{Name, NameError},
    net::{error::NetError, socket::Holder},
    publish::{Publish, Spec},
};

#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("the request cannot be read: {0}")]
    Request(String),
    #[error(transparent)]
    Name(NameError),
    #[error("there is no endpoint \"{0}\": `netfw endpoint ls` lists those that exist")]
    NoEndpoint(Name),
    #[error("there is no network \"{0}\": \"bridge\" is the one that exists")]
    NoNetwork(Name),
    #[error("an endpoint \"{0}\" exists already: choose another name, or remove it first")]
    EndpointExists(Name),
    #[error("an endpoint \"{0}\" exists and its namespace is gone: `netfw endpoint rm {0}` first")]
    EndpointGone(Name),
    #[error(
        "a network namespace \"{0}\" exists already: attach it with --netns {0}, or choose another name"
    )]
    NamespaceExists(Name),
    #[error("{0} is the namespace that the agent serves: a container needs one of its own")]
    NodeNamespace(PathBuf),
    #[error(
        "{0} is the machine's own namespace, where no container lives: give the endpoint one of its own, or none to have one made"
    )]
    MachineNamespace(PathBuf),
    #[error(
        "{netns} is attached to network \"{network}\" already, as endpoint \"{endpoint}\": two interfaces in one subnet would answer for each other"
    )]
    AlreadyAttached {
        netns: PathBuf,
        network: Name,
        endpoint: Name,
    },
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error("{ip} is an address of the node: ask for another one")]
    NodeAddress { ip: Ipv4Addr },
    #[error("{mac} is the MAC address of {owner} already: ask for another, or for none")]
    MacTaken {
        mac: crate::name::Mac,
        owner: String,
    },
    #[error(
        "{publish} cannot be published: endpoint \"{endpoint}\" has {existing} published already"
    )]
    PublishTaken {
        publish: Publish,
        existing: Publish,
        endpoint: Name,
    },
    #[error("{publish} cannot be published: the same request publishes {existing}")]
    PublishTwice { publish: Publish, existing: Publish },
    #[error("{publish} cannot be published: {}", held(.holder))]
    PortHeld { publish: Publish, holder: Holder },
    #[error(
        "{spec} cannot be published: {ip} is no address of the node; it has {}", list(.has)
    )]
    NotLocal {
        spec: Spec,
        ip: Ipv4Addr,
        has: Vec<Ipv4Addr>,
    },
    #[error("{spec} cannot be published: no free host port: name one, as in 8080:80")]
    NoFreePort { spec: Spec },
    #[error("no publish was named")]
    NoPublish,
    #[error(
        "endpoint \"{endpoint}\" does not publish {spec}; it publishes {}", list(.has)
    )]
    NotPublished {
        spec: Spec,
        endpoint: Name,
        has: Vec<Publish>,
    },
    #[error(
        "{spec} is ambiguous: endpoint \"{endpoint}\" publishes {}", list(.has)
    )]
    Ambiguous {
        spec: Spec,
        endpoint: Name,
        has: Vec<Publish>,
    },
    #[error("endpoint \"{0}\" is gone (its namespace was deleted): remove it, and add it again")]
    Gone(Name),
    #[error("{netns} has no {interface} whose other end is {host_interface}")]
    NotInside {
        interface: String,
        netns: String,
        host_interface: String,
    },
    #[error("all {0} counters are in use: withdraw publishes or endpoints")]
    NoCounter(u32),
    #[error("no subnet is free: every private range overlaps a route of the node")]
    NoSubnet,
    #[error("no interface name netfwN is free for the bridge")]
    NoBridgeName,
    #[error(
        "instance \"{instance}\" serves another namespace ({netns}): `netfw down --instance {instance}` first, or choose another --instance"
    )]
    OtherNamespace { instance: Name, netns: String },
    #[error("the group {0:?} (socket_group) does not exist")]
    NoGroup(String),
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Bpf(#[from] BpfError),
    #[error("netfw has a fault: {0}")]
    Fault(String),
}

impl AgentError {
    pub fn kind(&self) -> FailureKind {
        use AgentError as E;
        match self {
            E::Request(_)
            | E::Name(_)
            | E::NodeNamespace(_)
            | E::MachineNamespace(_)
            | E::NotLocal { .. }
            | E::NoPublish
            | E::PublishTwice { .. }
            | E::Ambiguous { .. }
            | E::Address(
                AddressError::Outside { .. }
                | AddressError::Gateway { .. }
                | AddressError::NetworkAddress { .. }
                | AddressError::Broadcast { .. },
            ) => FailureKind::Invalid,
            E::NoEndpoint(_) | E::NoNetwork(_) | E::NotPublished { .. } => FailureKind::NotFound,
            E::EndpointExists(_)
            | E::EndpointGone(_)
            | E::NamespaceExists(_)
            | E::AlreadyAttached { .. }
            | E::Address(_)
            | E::NodeAddress { .. }
            | E::MacTaken { .. }
            | E::PublishTaken { .. }
            | E::PortHeld { .. }
            | E::NoFreePort { .. }
            | E::Gone(_)
            | E::OtherNamespace { .. }
            | E::Lock(LockError::Held { .. }) => FailureKind::Conflict,
            _ => FailureKind::Internal,
        }
    }
}

fn held(holder: &Holder) -> String {
    let who = match (&holder.command, holder.pid) {
        (Some(command), Some(pid)) => format!("{command} (process {pid})"),
        (None, Some(pid)) => format!("process {pid}"),
        _ => "a socket of the node".into(),
    };
    format!(
        "{who} holds {}:{}/{}: stop it, or choose another port",
        holder.addr, holder.port, holder.proto
    )
}

fn list<T: ToString>(items: &[T]) -> String {
    if items.is_empty() {
        return "nothing".into();
    }
    let items: Vec<_> = items.iter().map(T::to_string).collect();
    items.join(", ")
}
