//! The maps. User space sizes `FLOWS*` and `EMBRYOS*` when it loads the object, and pins all of
//! them under their names here; the records are netfw-common's.
//!
//! Flows are preallocated: an insertion in the packet path never waits for memory, and the memory
//! that a table takes is known when the agent starts.

use aya_ebpf::{
    macros::map,
    maps::{
        Array, DevMapHash, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf,
        SockMap,
    },
};
use netfw_common::{
    addr::{Ip4, Ip6},
    budget::Budget,
    drop::SLOTS,
    event::{self, Event, Filter},
    flow::{Flow4, Flow6, Timeouts, holdings},
    fragment::{Datagram, FragmentKey4, FragmentKey6, Held, HeldKey},
    port,
    record::{
        self, Allowed4, Allowed6, Config, Counter, DropKey, Endpoint, EndpointIfindex, IsAllowed,
        Local, Mapping4, Mapping6, MappingKey4, MappingKey6, Permit, Publish4, Publish6,
        PublishKey4, PublishKey6, Resolver, ResolverKey, SocketKey4, SocketKey6, SocketPeer4,
        SocketPeer6, Subnet, Uplink, allow,
    },
    taken,
    tuple::{Tuple4, Tuple6},
};

use crate::{nat::answer::PART, work::Work};

/// For insertions: whether there is one or not, and only where there is none (it fails with `EEXIST`).
pub const BPF_ANY: u64 = 0;
pub const BPF_NOEXIST: u64 = 1;
pub const EEXIST: i32 = -17;

/// Default sizes; the agent overrides those of the flow tables (two entries a flow), and of small LRUs
/// where there are many CPUs.
const FLOW_ENTRIES: u32 = 1 << 19;
const EMBRYO_ENTRIES: u32 = 1 << 17;
const PUBLISH_ENTRIES: u32 = 1 << 18;
const PERMIT_ENTRIES: u32 = 1 << 15;
const ENDPOINT_ENTRIES: u32 = 1 << 14;
const BUDGET_ENTRIES: u32 = 1 << 12;
const DATAGRAMS: u32 = 1 << 11;
const TALK_ENTRIES: u32 = 1 << 13;
const RESOLVER_ENTRIES: u32 = 1 << 13;

/// `BPF_F_NO_COMMON_LRU`: each CPU makes room among its own entries.
const PER_CPU_LRU: u32 = 2;

/// `BPF_F_NO_PREALLOC`: tables that are mostly empty and written by the agent alone.
const ON_DEMAND: u32 = 1;

#[map]
pub static FLOWS4: HashMap<Tuple4, Flow4> = HashMap::with_max_entries(FLOW_ENTRIES, 0);
#[map]
pub static FLOWS6: HashMap<Tuple6, Flow6> = HashMap::with_max_entries(FLOW_ENTRIES, ON_DEMAND);
#[map]
pub static EMBRYOS4: LruHashMap<Tuple4, Flow4> = LruHashMap::with_max_entries(EMBRYO_ENTRIES, 0);
#[map]
pub static EMBRYOS6: LruHashMap<Tuple6, Flow6> = LruHashMap::with_max_entries(EMBRYO_ENTRIES, 0);
/// How many entries of `FLOWS*` are whose: see [`holdings`].
#[map]
pub static HOLDINGS4: Array<u64> = Array::with_max_entries(holdings::ELEMENTS, 0);
#[map]
pub static HOLDINGS6: Array<u64> = Array::with_max_entries(holdings::ELEMENTS, 0);
/// What each container may begin; not pinned: other programs begin anew.
#[map]
pub static BUDGETS: LruHashMap<EndpointIfindex, Budget> =
    LruHashMap::with_max_entries(BUDGET_ENTRIES, 0);
#[map]
pub static PUBLISHES4: HashMap<PublishKey4, Publish4> =
    HashMap::with_max_entries(PUBLISH_ENTRIES, ON_DEMAND);
#[map]
pub static PUBLISHES6: HashMap<PublishKey6, Publish6> =
    HashMap::with_max_entries(PUBLISH_ENTRIES, ON_DEMAND);
/// Who may use publishes that are not for everybody. The agent writes a list before a publish that
/// refers to it, and removes it after the last one.
#[map]
pub static ALLOWED4: LpmTrie<Allowed4, IsAllowed> =
    LpmTrie::with_max_entries(allow::ENTRIES, ON_DEMAND);
#[map]
pub static ALLOWED6: LpmTrie<Allowed6, IsAllowed> =
    LpmTrie::with_max_entries(allow::ENTRIES, ON_DEMAND);
/// Bits of the ports in `PUBLISHES*`: see [`taken`]. They are set after a publish is there, and cleared
/// after it is gone; the agent alone writes them.
#[map]
pub static TAKEN4: Array<u64> = Array::with_max_entries(taken::WORDS, 0);
#[map]
pub static TAKEN6: Array<u64> = Array::with_max_entries(taken::WORDS, 0);
#[map]
pub static ADDRESSES4: HashMap<Ip4, EndpointIfindex> =
    HashMap::with_max_entries(ENDPOINT_ENTRIES, ON_DEMAND);
#[map]
pub static ADDRESSES6: HashMap<Ip6, EndpointIfindex> =
    HashMap::with_max_entries(ENDPOINT_ENTRIES, ON_DEMAND);
#[map]
pub static SUBNETS4: LpmTrie<Ip4, Subnet> = LpmTrie::with_max_entries(4096, ON_DEMAND);
#[map]
pub static SUBNETS6: LpmTrie<Ip6, Subnet> = LpmTrie::with_max_entries(4096, ON_DEMAND);
#[map]
pub static LOCALS4: HashMap<Ip4, Local> = HashMap::with_max_entries(4096, ON_DEMAND);
#[map]
pub static LOCALS6: HashMap<Ip6, Local> = HashMap::with_max_entries(4096, ON_DEMAND);
/// Endpoint-independent mappings, of both sides.
#[map]
pub static MAPPINGS4: HashMap<MappingKey4, Mapping4> =
    HashMap::with_max_entries(PUBLISH_ENTRIES, ON_DEMAND);
#[map]
pub static MAPPINGS6: HashMap<MappingKey6, Mapping6> =
    HashMap::with_max_entries(PUBLISH_ENTRIES, ON_DEMAND);
/// Where one is pushed out, its remote is not let in until it is sent to again.
#[map]
pub static PERMITS4: LruHashMap<Tuple4, Permit> = LruHashMap::with_max_entries(PERMIT_ENTRIES, 0);
#[map]
pub static PERMITS6: LruHashMap<Tuple6, Permit> = LruHashMap::with_max_entries(PERMIT_ENTRIES, 0);
#[map]
pub static ENDPOINTS: HashMap<u32, Endpoint> =
    HashMap::with_max_entries(ENDPOINT_ENTRIES, ON_DEMAND);
/// The host sides of veth pairs that XDP may send frames to, under their own index.
#[map]
pub static VETHS: DevMapHash = DevMapHash::with_max_entries(ENDPOINT_ENTRIES, 0);
#[map]
pub static UPLINKS: HashMap<u32, Uplink> = HashMap::with_max_entries(1024, ON_DEMAND);
/// A pushed out entry costs a socket no more than the name by which it sees its peer.
#[map]
pub static SOCKETS4: LruHashMap<SocketKey4, SocketPeer4> = LruHashMap::with_max_entries(1 << 16, 0);
#[map]
pub static SOCKETS6: LruHashMap<SocketKey6, SocketPeer6> = LruHashMap::with_max_entries(1 << 16, 0);
/// Datagrams of which not all has come: 2 MiB for each family, on up to 8 CPUs.
#[map]
pub static FRAGMENTS4: LruHashMap<FragmentKey4, Datagram> =
    LruHashMap::with_max_entries(DATAGRAMS, 0);
#[map]
pub static FRAGMENTS6: LruHashMap<FragmentKey6, Datagram> =
    LruHashMap::with_max_entries(DATAGRAMS, 0);
/// Fragments that wait for the first of their datagram, of both families: 4.5 MiB, on up to 16 CPUs.
#[map]
pub static HELD: LruHashMap<HeldKey, Held> = LruHashMap::with_max_entries(512, PER_CPU_LRU);
/// Not pinned: what is to be inserted into the maps of fragments. The bits of the datagram stay 0.
#[map]
pub static NEW_DATAGRAM: PerCpuArray<Datagram> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static NEW_HELD: PerCpuArray<Held> = PerCpuArray::with_max_entries(1, 0);
/// Talks of the node: see [`crate::talk`]. Answers' tuples, and the tick of the last packet. Not pinned:
/// the next packet makes a new one.
#[map]
pub static TALKS4: LruHashMap<Tuple4, u32> = LruHashMap::with_max_entries(TALK_ENTRIES, 0);
#[map]
pub static TALKS6: LruHashMap<Tuple6, u32> = LruHashMap::with_max_entries(TALK_ENTRIES, 0);
/// Not pinned and never shared: see [`Work`].
#[map]
pub static WORK4: PerCpuArray<Work<Ip4>> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static WORK6: PerCpuArray<Work<Ip6>> = PerCpuArray::with_max_entries(1, 0);
/// Holds nothing: an element for each attempt at a port, to count them. Not pinned.
#[map]
pub static ATTEMPTS: Array<u32> = Array::with_max_entries(port::TRIES, 0);
/// Tick, and ICMP errors that were sent in it. Not pinned.
#[map]
pub static ANSWERS: PerCpuArray<[u32; 2]> = PerCpuArray::with_max_entries(1, 0);
/// The quote of such an error, for its checksum: as much as any has. Not pinned.
#[map]
pub static QUOTE: PerCpuArray<[[u8; PART]; 3]> = PerCpuArray::with_max_entries(1, 0);
/// The agent's name servers. Neither is pinned: they go with the agent, and names with them.
#[map]
pub static RESOLVERS: HashMap<ResolverKey, Resolver> =
    HashMap::with_max_entries(RESOLVER_ENTRIES, ON_DEMAND);
#[map]
pub static RESOLVER_SOCKETS: SockMap = SockMap::with_max_entries(RESOLVER_ENTRIES, 0);
#[map]
pub static COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(record::COUNTERS, 0);
#[map]
pub static DROPS: PerCpuArray<u64> = PerCpuArray::with_max_entries(SLOTS, 0);
/// Drops of what endpoints sent, for each that met one. An entry goes with its endpoint.
#[map]
pub static DROPS_OF: PerCpuHashMap<DropKey, u64> =
    PerCpuHashMap::with_max_entries(ENDPOINT_ENTRIES, ON_DEMAND);
/// What those who listen are told, who they are, and how many listen. The agent writes a filter before it
/// counts it, and reads events.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(event::RING, 0);
#[map]
pub static FILTERS: Array<Filter> = Array::with_max_entries(event::FILTERS, 0);
#[map]
pub static LISTENERS: Array<u32> = Array::with_max_entries(1, 0);
/// Events that were too many for each filter, and those that found no room.
#[map]
pub static SUPPRESSED: PerCpuArray<u64> = PerCpuArray::with_max_entries(event::FILTERS + 1, 0);
/// The event of the packet at hand, and others: see [`crate::event::watch`]. Not pinned.
#[map]
pub static EVENT: PerCpuArray<Event> = PerCpuArray::with_max_entries(3, 0);
#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, 0);

/// The settings.
#[inline(always)]
pub fn config() -> Config {
    match CONFIG.get(0) {
        Some(config) => *config,
        // Unreachable: an array of one has an element 0. The verifier wants to hear it.
        None => Config {
            port_min: 0,
            port_max: 0,
            timeouts: Timeouts {
                tcp_embryonic: 0,
                tcp_established: 0,
                tcp_closing: 0,
                udp_unreplied: 0,
                udp_replied: 0,
                icmp: 0,
            },
            epoch: 0,
            mappings: 0,
            max_queries: 0,
            max_flows: 0,
            max_unanswered: 0,
        },
    }
}
