//! Address families: what differs between IPv4 and IPv6, so that the engine does not.

mod v4;
mod v6;

use aya_ebpf::{
    bindings::{bpf_fib_lookup, bpf_sock, bpf_sock_tuple},
    maps::{Array, HashMap, LruHashMap},
};
use netfw_common::{
    addr::{Address, Be16},
    flow::Flow,
    fragment::{Datagram, FragmentKey},
    record::{
        Endpoint, EndpointIfindex, Local, Mapping, MappingKey, Permit, Publish, PublishKey,
        SocketKey, SocketPeer, Subnet, Uplink,
    },
    tuple::Tuple,
};

pub use self::{v4::V4, v6::V6};
use crate::{
    nat::answer::{Error, Header},
    packet::Packet,
    parse::Malformed,
    redirect::Query,
    verdict::Verdict,
    work::Work,
};

/// One address family.
pub trait Family {
    type Addr: Address;

    /// Of the Ethernet header.
    const ETHERTYPE: Be16;
    /// `AF_INET` or `AF_INET6`.
    const AF: u8;
    /// The protocol number of its ICMP, and the types of echo.
    const ICMP: u8;
    const ECHO_REQUEST: u8;
    const ECHO_REPLY: u8;
    /// Does its ICMP's checksum cover a pseudo-header (RFC 4443 2.3)?
    const ICMP_PSEUDO: bool;

    /// Is the protocol a part of what names a datagram that comes in pieces?
    const PROTO_NAMES_DATAGRAM: bool;

    /// The record of the packet at hand.
    fn work() -> Option<&'static mut Work<Self::Addr>>;

    /// Reads and checks the network header, and what stands between it and the transport's, of a
    /// packet that was received in `zone` (one of [`netfw_common::tuple::zone`]).
    fn parse<P: Packet>(packet: &P, work: &mut Work<Self::Addr>, zone: u8)
    -> Result<(), Malformed>;

    /// Reads addresses and protocol from a header at `at`, counted from the packet's own network header,
    /// into `key`, and checks nothing. Returns where, counted likewise, the transport header begins, and
    /// whether it is there, as in the parts of an IPv4 datagram but the first it is not; None where there is
    /// no header to be read.
    fn glance<P: Packet>(
        packet: &P,
        at: usize,
        key: &mut Tuple<Self::Addr>,
    ) -> Option<(usize, bool)>;

    /// The header's field that tells the packet's length, and what it does not count.
    const LENGTH: usize;
    const LENGTH_LACKS: u32;

    /// The verdict on what a container sends that is its link's business alone, or from an address
    /// that it does not have; None: a packet to be routed.
    fn on_link<P: Packet>(
        packet: &P,
        work: &Work<Self::Addr>,
        sender: &Endpoint,
    ) -> Option<Verdict>;

    /// Writes the addresses of `to` and one TTL less, and updates the header's checksum where it
    /// has one. `changed` is the difference of the addresses. Returns what no checksum in the header
    /// makes up for; None where the frame is too short, which `parse` has ruled out.
    fn rewrite<P: Packet>(packet: &mut P, to: &Flow<Self::Addr>, changed: u64) -> Option<u64>;

    /// Bytes of a header of ours.
    const HEADER: usize;
    /// Bytes of a packet that an ICMP error quotes at most, so that it fits every link (RFC 1812
    /// 4.3.2.3, 4443 2.4 (c)).
    const QUOTE: u32;

    /// Is this type of ICMP message an error that quotes a packet, and a router's to translate?
    fn is_error(kind: u8) -> bool;

    /// Type, code and parameter of an error.
    fn error(error: Error) -> Header;

    /// Reads the network header that an ICMP error quotes at [`Work::quoted`]: its addresses, swapped,
    /// go to `work.key`, and where its transport header begins to `work.quote_l4`. Returns the
    /// protocol; None where there is nothing that could be known again.
    fn parse_quote<P: Packet>(packet: &P, work: &mut Work<Self::Addr>) -> Option<u8>;

    /// Writes the addresses of `work.flow`, swapped, into the quoted header. `changed` is their
    /// difference. Returns the difference of the whole header.
    fn rewrite_quote<P: Packet>(
        packet: &mut P,
        work: &Work<Self::Addr>,
        changed: u64,
    ) -> Option<u64>;

    /// The pseudo-header's part in the checksum of an ICMP message of `len` bytes.
    fn icmp_pseudo(from: Self::Addr, to: Self::Addr, len: u32) -> u64;

    /// Writes the network header of an ICMP message of `len` bytes.
    fn store_header<P: Packet>(packet: &mut P, from: Self::Addr, to: Self::Addr, len: u32) -> bool;

    /// Writes addresses, length and traffic class of a question to the routing tables.
    fn ask(query: &Query<Self::Addr>, fib: &mut bpf_fib_lookup);

    /// The source address that the routing tables prefer.
    fn preferred_source(fib: &bpf_fib_lookup) -> Self::Addr;

    /// An address as a next hop: in network order, an IPv4 address is the first word.
    fn next_hop(addr: Self::Addr) -> [u32; 4];

    /// A tuple as the socket helpers take it, and its size there.
    fn socket(tuple: &Tuple<Self::Addr>) -> (bpf_sock_tuple, u32);

    /// The address that a socket is bound to, or the unspecified one.
    ///
    /// # Safety
    /// `sock` is a program's, valid for its run.
    unsafe fn bound(sock: *const bpf_sock) -> Self::Addr;

    /// Logs the flow that was made for the packet in `work`.
    fn log_opened(work: &Work<Self::Addr>);

    fn endpoint_gateway(endpoint: &Endpoint) -> Self::Addr;
    fn uplink_address(uplink: &Uplink) -> Self::Addr;

    fn flows() -> &'static HashMap<Tuple<Self::Addr>, Flow<Self::Addr>>;
    fn holdings() -> &'static Array<u64>;
    fn embryos() -> &'static LruHashMap<Tuple<Self::Addr>, Flow<Self::Addr>>;
    fn publishes() -> &'static HashMap<PublishKey<Self::Addr>, Publish<Self::Addr>>;
    fn taken() -> &'static Array<u64>;
    fn addresses() -> &'static HashMap<Self::Addr, EndpointIfindex>;
    fn locals() -> &'static HashMap<Self::Addr, Local>;
    fn mappings() -> &'static HashMap<MappingKey<Self::Addr>, Mapping<Self::Addr>>;
    fn permits() -> &'static LruHashMap<Tuple<Self::Addr>, Permit>;
    fn talks() -> &'static LruHashMap<Tuple<Self::Addr>, u32>;
    fn sockets() -> &'static LruHashMap<SocketKey<Self::Addr>, SocketPeer<Self::Addr>>;
    fn fragments() -> &'static LruHashMap<FragmentKey<Self::Addr>, Datagram>;

    /// Does the list of this number ([`netfw_common::record::Allowed`]) name the source `addr`?
    fn allows(list: u16, addr: Self::Addr) -> bool;

    /// The subnet of one of netfw's networks that holds `addr`.
    fn subnet(addr: Self::Addr) -> Option<Subnet>;

    /// Is it an address of the node itself?
    #[inline(always)]
    fn is_local(addr: &Self::Addr) -> bool {
        Self::locals().get_ptr(addr).is_some()
    }
}
