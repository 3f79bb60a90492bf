//! Why the agent refused a request or could not carry it out.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use ipnet::{IpNet, Ipv6Net};

use super::{
    capability::CapabilityError, docker::DockerError, ipam::AddressError, paths::LockError,
    store::StoreError,
};
use crate::{
    api::types::{FailureKind, Fault},
    bpf::BpfError,
    metrics::serve::ServeError,
    mode::Mode,
    name::{Name, NameError},
    net::{error::NetError, socket::Holder},
    owner::Owner,
    publish::{PortRange, Publish, Spec},
};

#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("the request cannot be read: {0}")]
    Request(String),
    #[error("the document cannot be applied, and nothing was changed:\n  {}", lines(.0))]
    Document(Vec<Fault>),
    #[error(
        "what the node has was changed since the plan was made: have it made again, and look at it"
    )]
    Outdated,
    #[error(transparent)]
    Name(NameError),
    #[error("there is no endpoint \"{0}\": `netfw endpoint ls` lists those that exist")]
    NoEndpoint(Name),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Mode(#[from] ModeError),
    #[error(transparent)]
    Docker(#[from] DockerError),
    #[error("an endpoint \"{0}\" exists already: choose another name, or remove it first")]
    EndpointExists(Name),
    #[error("an endpoint \"{0}\" exists and its namespace is gone: `netfw endpoint rm {0}` first")]
    EndpointGone(Name),
    #[error(
        "a network namespace \"{0}\" exists already: name it as the endpoint's (netns) to attach it, or choose another name"
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
    #[error(
        "{netns} has an interface {interface} already: ask for another name, or remove it first"
    )]
    InterfaceExists { interface: String, netns: PathBuf },
    #[error(
        "{interface} of container {} is attached already, as endpoint \"{endpoint}\": detach it first", owner.container()
    )]
    OwnedExists {
        owner: Owner,
        interface: String,
        endpoint: Name,
    },
    #[error(
        "endpoint \"{endpoint}\" is container {container} with another namespace, {netns}: detach that first"
    )]
    OtherNetns {
        container: String,
        endpoint: Name,
        netns: PathBuf,
    },
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error("an endpoint \"{0}\" is being removed: try again in a moment")]
    Removing(Name),
    #[error("{ip} is an address of the node: ask for another one")]
    NodeAddress { ip: IpAddr },
    #[error("{ip} cannot be given: network \"{network}\" has no {family} subnet{}", because(.why))]
    NoFamily {
        ip: IpAddr,
        network: Name,
        family: &'static str,
        why: Option<String>,
    },
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
        "{publish} cannot be published: the agent's own metrics are served at {metrics} (--metrics, or `metrics` in \
         the configuration): choose another port for one of them"
    )]
    MetricsPort {
        publish: Publish,
        metrics: SocketAddr,
    },
    #[error(
        "{spec} cannot be published: {ip} is no address of the node; it has {}", list(.has)
    )]
    NotLocal {
        spec: Spec,
        ip: IpAddr,
        has: Vec<IpAddr>,
    },
    #[error(
        "{spec} cannot be published: the endpoint has no {family} address, for its network \"{network}\" has none to give"
    )]
    PublishFamily {
        spec: Spec,
        family: &'static str,
        network: Name,
    },
    #[error("{spec} cannot be published: network \"{network}\" is internal, and nothing gets in")]
    PublishInternal { spec: Spec, network: Name },
    #[error("{spec} cannot be published: no free host port: name one, as in 8080:80")]
    NoFreePort { spec: Spec },
    #[error("{spec} cannot be published: none of the host ports {choice} is free")]
    NoFreePortOf { spec: Spec, choice: PortRange },
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
    #[error(
        "endpoint \"{0}\" is gone (its namespace or its interface was deleted): remove it, and add it again"
    )]
    Gone(Name),
    #[error("{netns} has no {interface} whose other end is {host_interface}")]
    NotInside {
        interface: String,
        netns: String,
        host_interface: String,
    },
    #[error("all {0} counters are in use: withdraw publishes or endpoints")]
    NoCounter(u32),
    #[error(
        "{} monitors and traces listen already: end one of them",
        netfw_common::event::FILTERS
    )]
    Listeners,
    #[error("no interface name netfwN is free for the bridge")]
    NoBridgeName,
    #[error(
        "instance \"{instance}\" serves another namespace ({netns}): `netfw down --instance {instance}` first, or choose another --instance"
    )]
    OtherNamespace { instance: Name, netns: String },
    #[error(
        "instance \"{other}\" serves this namespace ({interface} is its): two would take each other's packets; `netfw down --instance {other}` first, or serve another namespace"
    )]
    OtherInstance { other: String, interface: String },
    #[error("the group {0:?} (socket_group) does not exist")]
    NoGroup(String),
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(transparent)]
    Capability(#[from] CapabilityError),
    #[error(transparent)]
    Metrics(#[from] ServeError),
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
            | E::Document(_)
            | E::Name(_)
            | E::NodeNamespace(_)
            | E::NoFamily { .. }
            | E::PublishFamily { .. }
            | E::PublishInternal { .. }
            | E::MachineNamespace(_)
            | E::NotLocal { .. }
            | E::NoPublish
            | E::PublishTwice { .. }
            | E::Ambiguous { .. }
            | E::Address(
                AddressError::Outside { .. }
                | AddressError::Gateway { .. }
                | AddressError::NetworkAddress { .. }
                | AddressError::Anycast { .. }
                | AddressError::Broadcast { .. },
            ) => FailureKind::Invalid,
            E::Network(error) => error.kind(),
            E::Mode(error) => error.kind(),
            E::Docker(error) => error.kind(),
            E::Net(NetError::NotANamespace { .. }) => FailureKind::Invalid,
            E::NoEndpoint(_) | E::NotPublished { .. } => FailureKind::NotFound,
            E::Outdated
            | E::EndpointExists(_)
            | E::EndpointGone(_)
            | E::Removing(_)
            | E::NamespaceExists(_)
            | E::AlreadyAttached { .. }
            | E::InterfaceExists { .. }
            | E::OwnedExists { .. }
            | E::OtherNetns { .. }
            | E::Address(_)
            | E::NodeAddress { .. }
            | E::MacTaken { .. }
            | E::PublishTaken { .. }
            | E::PortHeld { .. }
            | E::MetricsPort { .. }
            | E::NoFreePort { .. }
            | E::Gone(_)
            | E::Listeners
            | E::OtherNamespace { .. }
            | E::OtherInstance { .. }
            | E::Lock(LockError::Held { .. })
            | E::Metrics(ServeError::Taken { .. } | ServeError::InTheWay { .. }) => {
                FailureKind::Conflict
            }
            _ => FailureKind::Internal,
        }
    }
}

/// Why a network is not, or cannot be removed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("there is no network \"{name}\"; there is {}", list(.has))]
    None { name: Name, has: Vec<Name> },
    #[error("a network \"{0}\" exists already: choose another name, or remove it first")]
    Exists(Name),
    #[error(
        "a network cannot be called \"{0}\": as an endpoint's network, that stands for something else"
    )]
    Reserved(Name),
    #[error("network \"bridge\" is the one that endpoints join by default, and cannot be removed")]
    Default,
    #[error("network \"{network}\" cannot be removed: it has the endpoints {}: remove them first", list(.endpoints))]
    InUse { network: Name, endpoints: Vec<Name> },
    #[error(
        "network \"{network}\" is not as the configuration wants it: {what}; {}, or name another network",
        changeable(.network, .endpoints)
    )]
    Differs {
        network: Name,
        what: String,
        /// Those in the way of making it anew; empty where it is not the configuration's to change.
        endpoints: Vec<Name>,
    },
    #[error("endpoint \"{endpoint}\" is in network \"{network}\" already")]
    Connected { endpoint: Name, network: Name },
    #[error("endpoint \"{endpoint}\" is not in network \"{network}\"; it is in {}", list(.has))]
    NotConnected {
        endpoint: Name,
        network: Name,
        has: Vec<Name>,
    },
    #[error(
        "network \"{network}\" is the last that endpoint \"{endpoint}\" is in: connect it to another one \
         first, or remove the endpoint"
    )]
    Last { endpoint: Name, network: Name },
    #[error(
        "name {alias}: endpoint \"{owner}\" of network \"{network}\" has that one already: choose another"
    )]
    AliasTaken {
        alias: Name,
        owner: Name,
        network: Name,
    },
    #[error(
        "endpoint \"{0}\" joins no network: it was added with --network host, none or container"
    )]
    NotAttachable(Name),
    #[error(
        "subnet {subnet} overlaps {other} ({what}): choose another one, or none to be given a free one"
    )]
    Overlap {
        subnet: IpNet,
        other: IpNet,
        what: String,
    },
    #[error("{subnet} is an address with the length of a prefix: the subnet is {meant}")]
    HostBits { subnet: IpNet, meant: IpNet },
    #[error("{subnet} cannot be a network's: it holds {what}")]
    Special { subnet: IpNet, what: &'static str },
    #[error("{0} has no room for a gateway and a container: choose a wider subnet")]
    Small(IpNet),
    #[error("two {family} subnets: a network has one of each family at most")]
    TwoSubnets { family: &'static str },
    #[error("two {family} gateways: a network has one of each family at most")]
    TwoGateways { family: &'static str },
    #[error("gateway {gateway} does not lie in subnet {subnet}")]
    GatewayOutside { gateway: IpAddr, subnet: IpNet },
    #[error("gateway {gateway} lies in no subnet that was named{}", chosen(.subnet))]
    Gateway {
        gateway: IpAddr,
        subnet: Option<IpNet>,
    },
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error("an MTU of {mtu} is not possible: with {family}, {least} to 65535 bytes are")]
    Mtu {
        mtu: u32,
        least: u32,
        family: &'static str,
    },
    #[error(
        "filter says who may use endpoint-independent mappings: it needs nat endpoint-independent"
    )]
    Filter,
    #[error(
        "nat endpoint-independent says how masquerade maps: it cannot be used without masquerade, nor with routed, which has none"
    )]
    NatWithoutMasquerade,
    #[error(
        "internal (no way in or out) and routed (a way in for everybody) contradict each other"
    )]
    InternalRouted,
    #[error("the node has no IPv6: {0}")]
    NoIpv6(String),
    #[error("no subnet is free: every private range overlaps a route of the node: name one")]
    NoSubnet,
    #[error("no /64 of the node's {0} is free: name a subnet")]
    NoSubnet6(Ipv6Net),
    #[error(
        "network \"bridge\" has IPv6 wherever the node has: leave this out, or give endpoints a network of their own"
    )]
    DefaultIpv6,
}

impl NetworkError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::None { .. } | Self::NotConnected { .. } => FailureKind::NotFound,
            Self::Connected { .. }
            | Self::Last { .. }
            | Self::AliasTaken { .. }
            | Self::NotAttachable(_) => FailureKind::Conflict,
            Self::Exists(_)
            | Self::Default
            | Self::InUse { .. }
            | Self::Overlap { .. }
            | Self::NoIpv6(_)
            | Self::NoSubnet
            | Self::NoSubnet6(_) => FailureKind::Conflict,
            _ => FailureKind::Invalid,
        }
    }
}

/// Of endpoints that join no network.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ModeError {
    #[error(
        "network mode {0} and publishing do not go together: {why}; publish from a network, or have the process \
         listen on the node itself", why = whose(.0)
    )]
    Publish(Mode),
    #[error("network mode {0} takes neither address nor MAC: {why}", why = whose(.0))]
    Address(Mode),
    #[error("network mode {0} takes neither aliases nor links: {why}", why = whose(.0))]
    Names(Mode),
    #[error("network mode {0} takes neither netns nor pid: {why}", why = whose(.0))]
    Namespace(Mode),
    #[error("network mode {0} takes no networks: {why}", why = whose(.0))]
    Networks(Mode),
    #[error(
        "an endpoint in no network has nothing: name one, leave this out for \"bridge\", or say network_mode = \"none\""
    )]
    NoNetworks,
    #[error("say either netns, a name or an absolute path, or pid")]
    TwoNamespaces,
    #[error("endpoint \"{other}\" is none to share with: it is not in the document")]
    NotNamed { other: Name },
    #[error("endpoint \"{0}\" cannot share its own namespace: name another one")]
    Own(Name),
    #[error(
        "endpoint \"{other}\" shares the namespace of \"{whose}\" itself: say container:{whose}"
    )]
    Chain { other: Name, whose: Name },
    #[error(
        "endpoint \"{endpoint}\" cannot be removed: its namespace is shared by {}: remove them first",
        list(.sharers)
    )]
    Shared { endpoint: Name, sharers: Vec<Name> },
    #[error("{spec} cannot be published: endpoint \"{endpoint}\" has network mode {mode}: {why}", why = whose(.mode))]
    NoPublish {
        spec: Spec,
        endpoint: Name,
        mode: Mode,
    },
}

impl ModeError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Shared { .. } | Self::NoPublish { .. } => FailureKind::Conflict,
            _ => FailureKind::Invalid,
        }
    }
}

/// Why such an endpoint has nothing to be chosen.
fn whose(mode: &Mode) -> String {
    match mode {
        Mode::None => "it has no interface".into(),
        Mode::Host => "it uses the node's own addresses and ports".into(),
        Mode::Container(other) => format!("addresses and ports are those of endpoint \"{other}\""),
        Mode::Network(network) => format!("it is in network \"{network}\""),
    }
}

fn chosen(subnet: &Option<IpNet>) -> String {
    match subnet {
        Some(subnet) => format!(
            " ({subnet} would be chosen, and may be another one next time): name the subnet with --subnet"
        ),
        None => ": name its subnet with --subnet".into(),
    }
}

fn because(why: &Option<String>) -> String {
    why.as_ref()
        .map_or_else(String::new, |why| format!(" ({why})"))
}

fn changeable(network: &Name, endpoints: &[Name]) -> String {
    match endpoints {
        [] => format!("others made it: `netfw network rm {network}` first"),
        all => format!("it has the endpoints {}: remove them first", list(all)),
    }
}

fn held(holder: &Holder) -> String {
    let who = match (&holder.command, holder.pid) {
        (Some(command), Some(pid)) => format!("{command} (process {pid})"),
        (None, Some(pid)) => format!("process {pid}"),
        _ => "a socket of the node".into(),
    };
    format!(
        "{who} holds {}/{}: stop it, or choose another port",
        SocketAddr::new(holder.addr, holder.port),
        holder.proto
    )
}

fn lines(faults: &[Fault]) -> String {
    let lines: Vec<String> = faults.iter().map(Fault::to_string).collect();
    lines.join("\n  ")
}

fn list<T: ToString>(items: &[T]) -> String {
    if items.is_empty() {
        return "nothing".into();
    }
    let items: Vec<_> = items.iter().map(T::to_string).collect();
    items.join(", ")
}
