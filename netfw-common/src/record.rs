//! The records of the maps other than flows: what the agent writes and the programs read.

use crate::{
    addr::{Be16, Be32, Ip4, Ip6, Mac},
    flow::{Timeouts, is_past},
};

/// One attachment of a container, under the ifindex of the host side of its veth pair.
///
/// Map `ENDPOINTS`: hash, key `u32` ifindex (host order).
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Host side of the veth pair; the key again, for those who come by address.
    pub ifindex: u32,
    /// The network's bridge: packets of the endpoint are routed as if received there.
    pub bridge: u32,
    /// The network's number: endpoints of one network reach each other.
    pub network: u32,
    /// Index into `COUNTERS`.
    pub counter: u32,
    /// The container's address, or 0.
    pub ip4: Ip4,
    /// The network's gateway address, or 0.
    pub gateway4: Ip4,
    /// The container's address, or `::`.
    pub ip6: Ip6,
    pub gateway6: Ip6,
    /// The container's MAC address.
    pub mac: Mac,
    /// The bridge's MAC address.
    pub gateway_mac: Mac,
    /// Of [`network_flag`] and [`endpoint_flag`].
    pub flags: u32,
    /// The largest IP packet that the veth pair takes, in bytes.
    pub mtu: u32,
}

const _: () = assert!(size_of::<Endpoint>() == 76);

/// Bits of [`Endpoint::flags`] and [`Subnet::flags`]: the rules of the network.
pub mod network_flag {
    /// Packets to the world get the node's address as source.
    pub const MASQUERADE: u32 = 1 << 0;
    /// Own addresses may be reached from outside.
    pub const ROUTED: u32 = 1 << 1;
    /// No way out or in.
    pub const INTERNAL: u32 = 1 << 2;
    /// Masquerade maps an internal address and port to one external port, whatever the destination
    /// (RFC 4787 REQ-1). Without it, to one per destination where need be.
    pub const ENDPOINT_INDEPENDENT: u32 = 1 << 3;
    /// Whoever knows the external port of such a mapping may send to it (endpoint-independent
    /// filtering, RFC 4787 5).
    pub const FILTER_NONE: u32 = 1 << 4;
    /// Whoever has been sent to by its owner may, from any port (address-dependent filtering).
    /// Neither of the two: from that port only (address and port-dependent).
    pub const FILTER_ADDRESS: u32 = 1 << 5;
}

/// Bits of [`Endpoint::flags`] that are the endpoint's own.
pub mod endpoint_flag {
    /// The container's end of the veth pair runs NAPI, and the host side is in `VETHS`: frames can
    /// be sent to it by XDP.
    pub const NAPI: u32 = 1 << 16;
}

/// Map `ADDRESSES4|6`: hash, key the container's address, value the ifindex under which its
/// [`Endpoint`] lies.
pub type EndpointIfindex = u32;

/// What a packet must be addressed to for a publish. `addr` is the unspecified address where the
/// publish is for any local address of the node. 8 bytes for IPv4, 20 for IPv6.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct PublishKey<A> {
    pub addr: A,
    pub port: Be16,
    pub proto: u8,
    pub reserved: u8,
}

pub type PublishKey4 = PublishKey<Ip4>;
pub type PublishKey6 = PublishKey<Ip6>;

const _: () = assert!(size_of::<PublishKey4>() == 8 && size_of::<PublishKey6>() == 20);

/// Where a published port leads. Map `PUBLISHES4|6`: hash, one entry per host port.
/// 12 bytes for IPv4, 24 for IPv6.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Publish<A> {
    /// The container's address; its endpoint is found under it.
    pub addr: A,
    /// Index into `COUNTERS`.
    pub counter: u16,
    /// Of [`publish_flag`].
    pub flags: u16,
    pub port: Be16,
    /// Who may use it: the number of a list of sources ([`Allowed`]), or one of [`allow`].
    pub allow: u16,
}

pub type Publish4 = Publish<Ip4>;
pub type Publish6 = Publish<Ip6>;

const _: () = assert!(size_of::<Publish4>() == 12 && size_of::<Publish6>() == 24);

/// Bits of [`Publish::flags`].
pub mod publish_flag {
    /// Processes of the node may bind the host port: the container runtime does, to keep it from others.
    pub const UNRESERVED: u16 = 1 << 0;
}

/// Values of [`Publish::allow`] that are no list's number.
pub mod allow {
    /// What the field was before there were lists.
    pub const EVERYBODY: u16 = 0;
    /// Where the list names nobody of the publish's family.
    pub const NOBODY: u16 = u16::MAX;

    /// Prefixes that all lists of a family have room for.
    pub const ENTRIES: u32 = 1 << 17;
}

/// Sources that a list names: a prefix of addresses. Map `ALLOWED4|6`: LPM trie, key prefix length (that
/// of the addresses, and [`Allowed::LIST_BITS`]) and this; the value ([`IsAllowed`]) says no more.
/// 8 bytes for IPv4, 20 for IPv6.
///
/// A list is complete before a publish refers to it, and does not change afterwards.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Allowed<A> {
    /// The number of the list, as in [`Publish::allow`].
    pub list: Be32,
    pub addr: A,
}

impl<A> Allowed<A> {
    /// Bits of the key that are the list's number.
    pub const LIST_BITS: u32 = 32;

    #[inline(always)]
    pub const fn new(list: u16, addr: A) -> Self {
        Self {
            list: Be32::new(list as u32),
            addr,
        }
    }
}

pub type Allowed4 = Allowed<Ip4>;
pub type Allowed6 = Allowed<Ip6>;

const _: () = assert!(size_of::<Allowed4>() == 8 && size_of::<Allowed6>() == 20);

/// Being there is all: a trie has no values of 0 bytes.
pub type IsAllowed = u32;

/// A network's subnet. Map `SUBNETS4|6`: LPM trie, key prefix length and network address.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Subnet {
    /// The network's number.
    pub network: u32,
    /// Of [`network_flag`].
    pub flags: u32,
}

/// An interface that leads to the world. Map `UPLINKS`: hash, key `u32` ifindex (host order).
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Uplink {
    /// The source for masquerade where the kernel's `bpf_fib_lookup` cannot tell (before 6.7):
    /// the first global address, or 0.
    pub ip4: Ip4,
    pub ip6: Ip6,
    /// MTU in bytes, without link-layer header.
    pub mtu: u32,
    /// Own MAC address; zero on interfaces without one.
    pub mac: Mac,
    pub reserved: u16,
}

const _: () = assert!(size_of::<Uplink>() == 32);

/// An address of the node itself. Map `LOCALS4|6`: hash, key the address.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Local {
    /// The interface that has it.
    pub ifindex: u32,
}

/// A socket of the node that speaks to a container in place of the publish it asked for. Map
/// `SOCKETS4|6`: LRU hash, the value is the [`SocketPeer`] that it asked for. 16 bytes for IPv4, 28
/// for IPv6.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct SocketKey<A> {
    /// `SO_COOKIE`, in two words so that nothing is padded: names a socket as long as the machine
    /// runs.
    pub cookie: [u32; 2],
    /// Whom it speaks to.
    pub peer: SocketPeer<A>,
}

/// An address and a port. 8 bytes for IPv4, 20 for IPv6.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct SocketPeer<A> {
    pub addr: A,
    pub port: Be16,
    pub reserved: u16,
}

pub type SocketKey4 = SocketKey<Ip4>;
pub type SocketPeer4 = SocketPeer<Ip4>;
pub type SocketKey6 = SocketKey<Ip6>;
pub type SocketPeer6 = SocketPeer<Ip6>;

const _: () = assert!(size_of::<SocketKey4>() == 16 && size_of::<SocketPeer4>() == 8);
const _: () = assert!(size_of::<SocketKey6>() == 28 && size_of::<SocketPeer6>() == 20);

/// One side of an endpoint-independent mapping. Map `MAPPINGS4|6`: hash; a mapping is two entries,
/// inserted and removed together like a flow's. 8 bytes for IPv4, 20 for IPv6.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct MappingKey<A> {
    pub addr: A,
    /// Port or ICMP identifier.
    pub port: Be16,
    pub proto: u8,
    /// One of [`side`].
    pub side: u8,
}

pub type MappingKey4 = MappingKey<Ip4>;
pub type MappingKey6 = MappingKey<Ip6>;

const _: () = assert!(size_of::<MappingKey4>() == 8 && size_of::<MappingKey6>() == 20);

/// What a [`MappingKey`] names.
pub mod side {
    /// The container's address and port; the value is the node's.
    pub const INTERNAL: u8 = 0;
    /// The node's address and port; the value is the container's.
    pub const EXTERNAL: u8 = 1;
}

/// The other side of the mapping. 12 bytes for IPv4, 24 for IPv6.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Mapping<A> {
    pub addr: A,
    pub port: Be16,
    /// What the flow that was last heard of has seen ([`crate::flow::state`]): TCP's timeout goes by
    /// it. Kept up to date in the external side alone, as `seen` is.
    pub state: u8,
    pub reserved: u8,
    /// The tick in which a packet of the container last used it.
    pub seen: u32,
}

impl<A> Mapping<A> {
    /// Expired means absent, as of flows.
    #[inline(always)]
    pub fn is_expired(&self, proto: u8, now: u32, timeouts: &Timeouts) -> bool {
        is_past(self.seen, now, timeouts.of_mapping(proto, self.state))
    }
}

/// Whom a container with an endpoint-independent mapping has sent to, where flows do not tell: those
/// of whom any port may send to it ([`network_flag::FILTER_ADDRESS`]), and other mappings of the
/// node. Map `PERMITS4|6`: LRU hash; the value is the tick (`u32`) in which it last sent. The key is
/// the [`crate::tuple::Tuple`] of what may come, as the container will see it, with 0 for the remote
/// port where any will do.
pub type Permit = u32;

pub type Mapping4 = Mapping<Ip4>;
pub type Mapping6 = Mapping<Ip6>;

const _: () = assert!(size_of::<Mapping4>() == 12 && size_of::<Mapping6>() == 24);

/// The port of DNS, host order.
pub const DNS_PORT: u16 = 53;

/// What a packet to [`DNS_PORT`] must be addressed to for one of the agent's name servers. Map
/// `RESOLVERS`: hash, not pinned. 20 bytes.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct ResolverKey {
    /// A network's gateway address; one of IPv4 as a mapped one.
    pub addr: Ip6,
    /// The IP protocol number.
    pub proto: u32,
}

const _: () = assert!(size_of::<ResolverKey>() == 20);

/// The socket of a name server. 8 bytes.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Resolver {
    /// The network's bridge: what comes in elsewhere is not meant.
    pub bridge: u32,
    /// Index into `RESOLVER_SOCKETS`.
    pub socket: u32,
}

const _: () = assert!(size_of::<Resolver>() == 8);

/// Settings. Map `CONFIG`: array of one.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// Ports for masquerade, first and last, host order.
    pub port_min: u16,
    pub port_max: u16,
    pub timeouts: Timeouts,
    /// Raised by the agent whenever addresses, routes or neighbours of the node change: ways to the
    /// world that were looked up before are asked for again.
    pub epoch: u32,
    /// Not 0 where a network of the node has endpoint-independent mappings: the ports' upper half is
    /// theirs then.
    pub mappings: u32,
    /// Entries of the table of assured flows that are for flows without connections (UDP and such) at
    /// most: connections always find room, whatever datagrams a flood makes somebody answer.
    pub max_queries: u32,
    /// Room in the table of assured flows, entries: of each family.
    pub max_flows: u32,
    /// Flows that a container may begin in a tick without an answer: see [`crate::budget`].
    pub max_unanswered: u32,
}

const _: () = assert!(size_of::<Config>() == 48);

impl Default for Config {
    fn default() -> Self {
        Self {
            port_min: 1024,
            port_max: 32767,
            timeouts: Timeouts::default(),
            epoch: 0,
            mappings: 0,
            max_queries: u32::MAX,
            max_flows: u32::MAX,
            max_unanswered: u32::MAX,
        }
    }
}

/// Entries of the map `COUNTERS`.
pub const COUNTERS: u32 = 1 << 15;

/// Packets and bytes (IP, without link-layer header) of a publish or an endpoint. Map `COUNTERS`:
/// per-CPU array. Index 0 belongs to nobody.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counter {
    /// Into the container.
    pub rx_packets: u64,
    pub rx_bytes: u64,
    /// Out of the container.
    pub tx_packets: u64,
    pub tx_bytes: u64,
}

/// Drops of what one endpoint sent. Map `DROPS_OF`: per-CPU hash, value `u64` packets. 8 bytes.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct DropKey {
    /// Index of the endpoint's own counter.
    pub endpoint: u32,
    /// A [`crate::drop::Drop`].
    pub reason: u32,
}

const _: () = assert!(size_of::<DropKey>() == 8);

impl core::ops::AddAssign for Counter {
    fn add_assign(&mut self, other: Self) {
        self.rx_packets += other.rx_packets;
        self.rx_bytes += other.rx_bytes;
        self.tx_packets += other.tx_packets;
        self.tx_bytes += other.tx_bytes;
    }
}

#[cfg(feature = "user")]
mod pod {
    use super::*;
    use crate::{
        budget::Budget,
        flow::Flow,
        fragment::{FragmentKey, Held, HeldKey},
        tuple::Tuple,
    };

    // SAFETY (all of these): `repr(C)` or transparent over integers, without padding, as the size
    // assertions beside each record say; any bytes are a valid value.
    macro_rules! pod {
        ($($t:ty),*) => { $(
            // SAFETY: see above.
            unsafe impl aya::Pod for $t {}
        )* };
    }
    pod!(
        Ip4,
        Ip6,
        Endpoint,
        Subnet,
        Uplink,
        Local,
        Budget,
        Config,
        Counter,
        DropKey,
        Tuple<Ip4>,
        Tuple<Ip6>,
        Flow<Ip4>,
        Flow<Ip6>,
        PublishKey<Ip4>,
        PublishKey<Ip6>,
        Publish<Ip4>,
        Publish<Ip6>,
        Allowed<Ip4>,
        Allowed<Ip6>,
        MappingKey<Ip4>,
        MappingKey<Ip6>,
        Mapping<Ip4>,
        Mapping<Ip6>,
        SocketKey<Ip4>,
        SocketKey<Ip6>,
        SocketPeer<Ip4>,
        SocketPeer<Ip6>,
        FragmentKey<Ip4>,
        FragmentKey<Ip6>,
        HeldKey,
        Held,
        ResolverKey,
        Resolver
    );
}
