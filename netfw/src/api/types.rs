//! What goes over the socket, and what `-o json` prints: the same types, the same names.
//!
//! Field names are snake_case and stable. Addresses and ports are in host view. Sums wrap never:
//! counters are 64 bits.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::owned::Owned;
use crate::{
    document::Document,
    mode::Mode,
    name::{Mac, Name, NameLink},
    owner::Owner,
    publish::{Exposed, PortRange, Protocol, Spec},
    rules::{Filter, Nat, Rules},
    source::Sources,
};

/// The answer to a request that failed; nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// A sentence for people.
    pub error: String,
    pub kind: FailureKind,
    /// What is wrong in a document, and where; there is more than one thing, perhaps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<Fault>,
}

/// What is wrong at one place of a document.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fault {
    /// Keys, and numbers in lists from 0: `["endpoints", "web", "publish", "0"]`.
    pub at: Vec<String>,
    /// A sentence for people.
    pub error: String,
}

impl std::fmt::Display for Fault {
    /// As TOML writes keys: `endpoints.web.publish[0]: …`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (n, part) in self.at.iter().enumerate() {
            let number = n > 2 && part.bytes().all(|b| b.is_ascii_digit());
            match part {
                part if number => write!(f, "[{part}]")?,
                part if part.contains('.') => write!(f, ".\"{part}\"")?,
                part if n == 0 => f.write_str(part)?,
                part => write!(f, ".{part}")?,
            }
        }
        write!(f, ": {}", self.error)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The request itself is wrong.
    Invalid,
    /// What it names does not exist.
    NotFound,
    /// Something is in the way: a name, an address or a port is taken.
    Conflict,
    /// The node refused, or netfw has a fault.
    Internal,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointRequest {
    pub name: Name,
    /// Default: `bridge`. A network, `none`, `host`, or `container:NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Mode>,
    /// None: a namespace of the endpoint's name is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<NamespaceRequest>,
    /// None: a free one is chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<Ipv4Addr>,
    /// None: a free one is chosen, where the network has IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip6: Option<Ipv6Addr>,
    /// None: one is derived from the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    #[serde(default)]
    pub publish: Vec<Spec>,
    /// Who may use publishes of the endpoint, these and later ones; empty: the agent's default.
    #[serde(default, skip_serializing_if = "Sources::is_empty")]
    pub allow_from: Sources,
    /// What the container is said to serve.
    #[serde(default)]
    pub expose: Vec<Exposed>,
    /// Publish that too, on free ports.
    #[serde(default)]
    pub publish_all: bool,
    /// Other names that it has for everybody in the network.
    #[serde(default)]
    pub aliases: Vec<Name>,
    /// Names that it alone has for others of the network.
    #[serde(default)]
    pub links: Vec<NameLink>,
    /// Whose the attachment is, where it is a container runtime's, and its interface's name. None: nobody's,
    /// and `eth0` or the next that is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owned: Option<Owned>,
}

/// To connect an endpoint to a further network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectRequest {
    pub endpoint: Name,
    /// These three as in [`EndpointRequest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<Ipv4Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip6: Option<Ipv6Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    #[serde(default)]
    pub aliases: Vec<Name>,
    /// As in [`EndpointRequest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owned: Option<Owned>,
}

/// Which existing network namespace.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamespaceRequest {
    /// A name under `/run/netns`.
    Name(String),
    /// An absolute path of a namespace file.
    Path(PathBuf),
    /// The network namespace of a process.
    Pid(u32),
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishRequest {
    pub publish: Vec<Spec>,
    /// Who may use these; empty: the endpoint's list.
    #[serde(default, skip_serializing_if = "Sources::is_empty")]
    pub allow_from: Sources,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnpublishRequest {
    pub publish: Vec<Spec>,
}

/// To bring the node to what a document wants.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyRequest {
    pub document: Document,
    /// Only make the plan.
    #[serde(default)]
    pub dry_run: bool,
    /// The plan that somebody has seen: where it would be another one by now, nothing is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<Vec<Step>>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Applied {
    /// In the order in which they are taken; none: all is as the document wants it.
    pub steps: Vec<Step>,
    /// Nothing was changed.
    pub dry_run: bool,
    /// What went wrong on the way, in sentences for people. The rest was done.
    #[serde(default)]
    pub failures: Vec<String>,
}

/// One difference between what is there and what is wanted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Step {
    pub action: Action,
    pub object: Object,
    /// Null where the step is about a network.
    pub endpoint: Option<Name>,
    /// Null where it is about an endpoint or a publish.
    pub network: Option<Name>,
    /// Null where it is about none.
    pub publish: Option<crate::publish::Publish>,
    /// What it has, or what becomes of it; for people.
    pub what: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Remove,
    Add,
    /// In place: flows go on.
    Change,
    /// Removed and added: flows end.
    Replace,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Object {
    Network,
    Endpoint,
    /// An endpoint's interface in a network.
    Attachment,
    Publish,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointState {
    Up,
    /// Its namespace or its veth pair was deleted: `endpoint rm` clears it away.
    Gone,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Endpoint {
    pub name: Name,
    pub state: EndpointState,
    /// The first of [`Endpoint::networks`], as are the fields from here to `gateway6`, and those of
    /// interfaces; or `none`, `host`, `container:NAME`, and then those are null.
    pub network: Mode,
    /// Null in a network without IPv4, as are the next two.
    pub ip: Option<Ipv4Addr>,
    /// Of the subnet.
    pub prefix_len: Option<u8>,
    pub gateway: Option<IpAddr>,
    /// Null in a network without IPv6, as are the next two.
    pub ip6: Option<Ipv6Addr>,
    pub prefix_len6: Option<u8>,
    pub gateway6: Option<IpAddr>,
    pub mac: Option<Mac>,
    /// File by which the container's network namespace is opened.
    pub netns: PathBuf,
    /// The namespace was made for this endpoint, and goes with it.
    pub netns_made: bool,
    /// Interface in the container.
    pub interface: Option<String>,
    /// Host side of the veth pair, on the node.
    pub host_interface: Option<String>,
    /// Index of the host side, while it is up.
    pub host_ifindex: Option<u32>,
    /// Its own list of sources, for publishes that have none; empty: the agent's default.
    #[serde(default)]
    pub allow_from: Sources,
    /// All networks that it is in, in the order in which it came into them.
    #[serde(default)]
    pub networks: Vec<Attachment>,
    pub publishes: Vec<Publish>,
    /// What the container is said to serve, published or not.
    #[serde(default)]
    pub exposed: Vec<Exposed>,
    /// Names that it alone has for others.
    #[serde(default)]
    pub links: Vec<NameLink>,
    /// What does not work as its user may expect; sentences for people.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// An endpoint's interface in a network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attachment {
    pub network: Name,
    /// The bridge that the host side is a port of.
    pub bridge: Option<String>,
    pub state: EndpointState,
    /// As of [`Endpoint`].
    pub ip: Option<Ipv4Addr>,
    pub prefix_len: Option<u8>,
    pub gateway: Option<IpAddr>,
    pub ip6: Option<Ipv6Addr>,
    pub prefix_len6: Option<u8>,
    pub gateway6: Option<IpAddr>,
    pub mac: Mac,
    pub interface: String,
    pub host_interface: String,
    pub host_ifindex: Option<u32>,
    /// Other names that it has in this network.
    #[serde(default)]
    pub aliases: Vec<Name>,
    /// The container's default route of IPv4 leads here, and its publishes are for this address.
    pub default_route: bool,
    /// The same of IPv6.
    pub default_route6: bool,
    /// Whose it is, where a container runtime had it made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// How it is plugged in; only where one endpoint is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wiring: Option<Wiring>,
}

/// What `bridge link`, `bridge fdb` and `/sys/class/net/*/ifindex` tell of an attachment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Wiring {
    /// Of the interface in the container, the host side's other end.
    pub ifindex: Option<u32>,
    /// Of the bridge that the host side is a port of.
    pub bridge_ifindex: Option<u32>,
    /// What the bridge knows to be behind that port.
    pub macs: Vec<KnownMac>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KnownMac {
    pub mac: Mac,
    /// The host side's own, rather than learned from packets.
    pub own: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Publish {
    pub protocol: Protocol,
    /// `0.0.0.0`, `::`: any local address of the family.
    pub host_ip: IpAddr,
    pub host_ports: PortRange,
    pub container_ports: PortRange,
    /// Who may use it, by whichever list counts: its own, the endpoint's or the agent's; empty:
    /// everybody.
    #[serde(default)]
    pub allow_from: Sources,
}

impl Publish {
    pub fn new(p: crate::publish::Publish, allow_from: Sources) -> Self {
        Self {
            protocol: p.protocol,
            host_ip: p.host_ip,
            host_ports: p.host_ports,
            container_ports: p.container_ports,
            allow_from,
        }
    }
}

impl From<Publish> for crate::publish::Publish {
    fn from(p: Publish) -> Self {
        Self {
            protocol: p.protocol,
            host_ip: p.host_ip,
            host_ports: p.host_ports,
            container_ports: p.container_ports,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Network {
    pub name: Name,
    /// The bridge's interface name.
    pub bridge: String,
    /// Null in a network without IPv4, as is the gateway.
    pub subnet: Option<IpNet>,
    pub gateway: Option<IpAddr>,
    /// Null in a network without IPv6, as is the gateway.
    pub subnet6: Option<IpNet>,
    pub gateway6: Option<IpAddr>,
    pub mac: Mac,
    /// Of the bridge and of interfaces to come, in bytes.
    pub mtu: u32,
    #[serde(flatten)]
    pub rules: Rules,
    /// What its maker noted of it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    pub endpoints: usize,
}

/// A network and who is in it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NetworkDetails {
    #[serde(flatten)]
    pub network: Network,
    pub members: Vec<Member>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Member {
    pub name: Name,
    pub ip: Option<Ipv4Addr>,
    pub ip6: Option<Ipv6Addr>,
    pub mac: Mac,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkRequest {
    pub name: Name,
    /// One of each family at most; none: a free one of IPv4 is chosen.
    #[serde(default)]
    pub subnets: Vec<IpNet>,
    /// Of the subnets that are named; else their first addresses.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// A free subnet of IPv6 is chosen, unless one is named.
    #[serde(default)]
    pub ipv6: bool,
    #[serde(default)]
    pub internal: bool,
    #[serde(default)]
    pub routed: bool,
    #[serde(default = "yes")]
    pub masquerade: bool,
    #[serde(default)]
    pub nat: Nat,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Filter>,
    /// None: the narrowest uplink's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

fn yes() -> bool {
    true
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tuple {
    pub src: IpAddr,
    pub dst: IpAddr,
    /// ICMP: the identifier in a request, 0 in a reply.
    pub sport: u16,
    /// ICMP: the identifier in a reply, 0 in a request.
    pub dport: u16,
}

/// A flow, as the side that opened it and the side that answers put it on the wire.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Flow {
    /// `tcp`, `udp`, `sctp`, `icmp`, `icmpv6`, or a number.
    pub protocol: String,
    /// nf_conntrack's names: `new`, `syn_recv`, `established`, `fin_wait`, `time_wait`, `close`.
    pub state: String,
    /// Neither a flood nor a full table can push the flow out.
    pub assured: bool,
    /// Seconds until it is forgotten if no packet comes.
    pub timeout: u64,
    pub original: Tuple,
    pub reply: Tuple,
    /// What made the flow: `publish`, `masquerade`, or `mapping` (it came in through the
    /// endpoint-independent mapping of a container).
    pub origin: String,
    pub endpoint: Option<Name>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Flushed {
    /// Flows forgotten.
    pub flows: usize,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub instance: Name,
    pub pid: u32,
    /// The namespace that is served, as `--netns` named it; null: the agent's own.
    pub netns: Option<PathBuf>,
    /// Seconds since the agent started.
    pub uptime: u64,
    pub uplinks: Vec<Uplink>,
    pub networks: Vec<Network>,
    pub endpoints: usize,
    pub endpoints_gone: usize,
    pub publishes: usize,
    /// Host ports that the publishes take.
    pub published_ports: u64,
    /// Assured flows of both families, and how many there is room for.
    pub flows: u64,
    pub flows_max: u64,
    /// How full what can be full is, each family for itself.
    #[serde(default)]
    pub tables: Vec<Table>,
    /// Why the node has no IPv6; null: it has.
    #[serde(default)]
    pub ipv6_missing: Option<String>,
    /// What is amiss, and what to do; sentences for people.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Packets dropped, for whatever reason.
    pub dropped: u64,
    /// The reasons that were met.
    pub drops: Vec<DropStats>,
    pub programs: Vec<Program>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Table {
    /// `flows4`, `flows6` (assured flows), `mappings4`, `mappings6` (of endpoint-independent NAT),
    /// `publishes4`, `publishes6` (host ports), `allowed4`, `allowed6` (prefixes in lists of sources).
    pub name: String,
    pub used: u64,
    pub max: u64,
}

/// An eBPF program. Runs are counted only while somebody has the kernel do so
/// (`sysctl kernel.bpf_stats_enabled=1`, or `netfw demo`).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Program {
    pub name: String,
    pub runs: u64,
    /// Of all runs together.
    pub run_time_ns: u64,
    /// Null before kernel 5.16.
    pub verified_instructions: Option<u32>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Uplink {
    pub name: String,
    /// Null: `--uplink` names it, and it does not exist (yet).
    pub ifindex: Option<u32>,
    /// `tcx` or `clsact`; null where the programs are not attached.
    pub hook: Option<String>,
    /// Do publishes and masquerade work through it? One that is not served is closed: containers
    /// and what lies beyond it cannot reach each other.
    pub served: bool,
    /// Why it is not served.
    pub error: Option<String>,
    /// `native` or `generic`: how XDP runs on it beside the hook, by the kernel's word. Null where it
    /// does not.
    #[serde(default)]
    pub xdp: Option<String>,
    /// Why so, or why it does not.
    #[serde(default)]
    pub xdp_why: Option<String>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Counter {
    /// Into the container.
    pub rx_packets: u64,
    /// IP bytes, without link-layer header.
    pub rx_bytes: u64,
    /// Out of the container.
    pub tx_packets: u64,
    pub tx_bytes: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Stats {
    pub endpoints: Vec<EndpointStats>,
    /// Every reason there is, also those never met.
    pub drops: Vec<DropStats>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EndpointStats {
    pub name: Name,
    /// Everything, what its publishes carried included.
    pub total: Counter,
    pub publishes: Vec<PublishStats>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PublishStats {
    pub publish: Publish,
    pub counter: Counter,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DropStats {
    /// A stable name, as in `spoofed-address`.
    pub reason: String,
    pub description: String,
    pub packets: u64,
    /// The endpoints that sent them, if endpoints did.
    #[serde(default)]
    pub senders: Vec<EndpointDrops>,
}

/// What was dropped of an endpoint's packets.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EndpointDrops {
    pub name: Name,
    pub packets: u64,
}
