//! Address families: what differs between IPv4 and IPv6, so that the engine does not.

use aya_ebpf::maps::{HashMap, LruHashMap, lpm_trie};
use netfw_common::{
    addr::{Address, Be16, Ip4},
    csum,
    flow::Flow,
    record::{Endpoint, EndpointIfindex, Local, Publish, PublishKey, Subnet, Uplink},
    tuple::Tuple,
};

use crate::{
    maps,
    packet::Packet,
    parse::{ETH_LEN, Malformed},
    redirect::{Query, Route},
    work::Work,
};

/// One address family.
pub trait Family {
    type Addr: Address;

    /// The record of the packet at hand.
    fn work() -> Option<&'static mut Work<Self::Addr>>;

    /// Reads and checks the network header.
    fn parse<P: Packet>(packet: &P, work: &mut Work<Self::Addr>) -> Result<(), Malformed>;

    /// Writes the addresses of `to` and one TTL less, and updates the header's checksum where it
    /// has one. `changed` is the difference of the addresses. False where the frame is too short,
    /// which `parse` has ruled out.
    fn rewrite<P: Packet>(packet: &mut P, to: &Flow<Self::Addr>, changed: u32) -> bool;

    /// Asks the node's routing tables.
    fn route<P: Packet>(packet: &P, query: &Query<Self::Addr>) -> Route<Self::Addr>;

    /// Does the node hold a socket that would take a packet like this?
    fn has_socket<P: Packet>(packet: &P, tuple: &Tuple<Self::Addr>) -> bool;

    /// Does the node hold a connected UDP socket that waits for this datagram?
    fn has_connected_socket<P: Packet>(packet: &P, tuple: &Tuple<Self::Addr>) -> bool;

    /// Logs the flow that was made for the packet in `work`.
    fn log_opened(work: &Work<Self::Addr>);

    fn endpoint_address(endpoint: &Endpoint) -> Self::Addr;
    fn endpoint_gateway(endpoint: &Endpoint) -> Self::Addr;
    fn uplink_address(uplink: &Uplink) -> Self::Addr;

    fn flows() -> &'static HashMap<Tuple<Self::Addr>, Flow<Self::Addr>>;
    fn embryos() -> &'static LruHashMap<Tuple<Self::Addr>, Flow<Self::Addr>>;
    fn publishes() -> &'static HashMap<PublishKey<Self::Addr>, Publish<Self::Addr>>;
    fn addresses() -> &'static HashMap<Self::Addr, EndpointIfindex>;
    fn locals() -> &'static HashMap<Self::Addr, Local>;

    /// The subnet of one of netfw's networks that holds `addr`.
    fn subnet(addr: Self::Addr) -> Option<Subnet>;

    /// Is it an address of the node itself?
    #[inline(always)]
    fn is_local(addr: &Self::Addr) -> bool {
        Self::locals().get_ptr(addr).is_some()
    }
}

pub struct V4;

/// The IPv4 header (RFC 791) without options.
#[repr(C)]
#[derive(Clone, Copy)]
struct Ipv4 {
    version_ihl: u8,
    tos: u8,
    len: Be16,
    id: u16,
    fragment: Be16,
    ttl: u8,
    proto: u8,
    checksum: u16,
    src: Ip4,
    dst: Ip4,
}

impl Ipv4 {
    const LEN: usize = size_of::<Self>();
    const TTL: usize = 8;

    /// "More fragments" and the offset.
    const FRAGMENT: u16 = 0x3fff;

    /// The header's words summed up; a header that is right folds to 0xffff.
    #[inline(always)]
    fn sum(&self) -> u64 {
        // SAFETY: both are 20 bytes without padding.
        let words: [u32; 5] = unsafe { core::mem::transmute(*self) };
        let [a, b, c, d, e] = words;
        u64::from(a) + u64::from(b) + u64::from(c) + u64::from(d) + u64::from(e)
    }
}

/// The sum of `len` bytes of IPv4 options, if the frame has them.
#[inline(always)]
fn options_sum<P: Packet>(packet: &P, len: usize) -> Option<u64> {
    // The header's length field allows no more.
    let mut words = [0u32; 10];
    packet.copy(ETH_LEN + Ipv4::LEN, &mut words, len)?;
    Some(words.into_iter().map(u64::from).sum())
}

impl Family for V4 {
    type Addr = Ip4;

    #[inline(always)]
    fn work() -> Option<&'static mut Work<Ip4>> {
        // SAFETY: this run of the program owns the record, see `Work`.
        maps::WORK4.get_ptr_mut(0).map(|work| unsafe { &mut *work })
    }

    #[inline(always)]
    fn parse<P: Packet>(packet: &P, work: &mut Work<Ip4>) -> Result<(), Malformed> {
        let header: Ipv4 = packet.read(ETH_LEN).ok_or(Malformed)?;
        let header_len = usize::from(header.version_ihl & 0xf) * 4;
        // "BIG TCP": a super-packet beyond the field's reach says 0 (kernel 6.3, b1a78b9b9886).
        let len = match usize::from(header.len.get()) {
            0 if packet.len() > ETH_LEN + usize::from(u16::MAX) => packet.len() - ETH_LEN,
            len => len,
        };
        if header.version_ihl >> 4 != 4
            || header_len < Ipv4::LEN
            || len < header_len
            || packet.len() < ETH_LEN + len
        {
            return Err(Malformed);
        }
        let mut sum = header.sum();
        if header_len > Ipv4::LEN {
            sum += options_sum(packet, header_len - Ipv4::LEN).ok_or(Malformed)?;
        }
        if csum::fold(sum) != 0xffff {
            return Err(Malformed);
        }
        work.key.src = header.src;
        work.key.dst = header.dst;
        work.key.proto = header.proto;
        work.key.scope = 0;
        work.ttl = header.ttl;
        work.fragment = header.fragment.get() & Ipv4::FRAGMENT != 0;
        work.l4 = (ETH_LEN + header_len) as u32;
        work.len = len as u32;
        Ok(())
    }

    #[inline(always)]
    fn rewrite<P: Packet>(packet: &mut P, to: &Flow<Ip4>, changed: u32) -> bool {
        /// The header from the TTL on.
        #[repr(C)]
        #[derive(Clone, Copy)]
        struct Tail {
            ttl: u8,
            proto: u8,
            checksum: u16,
            src: Ip4,
            dst: Ip4,
        }
        let Some(old) = packet.read::<Tail>(ETH_LEN + Ipv4::TTL) else {
            return false;
        };
        let ttl = old.ttl.wrapping_sub(1);
        let word = |ttl| u64::from(u16::from_ne_bytes([ttl, old.proto]));
        let ttl_changed = csum::difference(word(old.ttl), word(ttl));
        // Two folded differences: their sum stays far below 2^32.
        let checksum = csum::update(old.checksum, changed + ttl_changed);
        packet.write(
            ETH_LEN + Ipv4::TTL,
            Tail {
                ttl,
                proto: old.proto,
                checksum,
                src: to.src,
                dst: to.dst,
            },
        )
    }

    #[inline(always)]
    fn route<P: Packet>(packet: &P, query: &Query<Ip4>) -> Route<Ip4> {
        crate::redirect::route4(packet, query)
    }

    #[inline(always)]
    fn has_socket<P: Packet>(packet: &P, tuple: &Tuple<Ip4>) -> bool {
        packet.has_socket4(tuple)
    }

    #[inline(always)]
    fn has_connected_socket<P: Packet>(packet: &P, tuple: &Tuple<Ip4>) -> bool {
        packet.has_connected_socket4(tuple)
    }

    #[inline(always)]
    fn log_opened(work: &Work<Ip4>) {
        crate::event::opened4(work);
    }

    #[inline(always)]
    fn endpoint_address(endpoint: &Endpoint) -> Ip4 {
        endpoint.ip4
    }

    #[inline(always)]
    fn endpoint_gateway(endpoint: &Endpoint) -> Ip4 {
        endpoint.gateway4
    }

    #[inline(always)]
    fn uplink_address(uplink: &Uplink) -> Ip4 {
        uplink.ip4
    }

    #[inline(always)]
    fn flows() -> &'static HashMap<Tuple<Ip4>, Flow<Ip4>> {
        &maps::FLOWS4
    }

    #[inline(always)]
    fn embryos() -> &'static LruHashMap<Tuple<Ip4>, Flow<Ip4>> {
        &maps::EMBRYOS4
    }

    #[inline(always)]
    fn publishes() -> &'static HashMap<PublishKey<Ip4>, Publish<Ip4>> {
        &maps::PUBLISHES4
    }

    #[inline(always)]
    fn addresses() -> &'static HashMap<Ip4, EndpointIfindex> {
        &maps::ADDRESSES4
    }

    #[inline(always)]
    fn locals() -> &'static HashMap<Ip4, Local> {
        &maps::LOCALS4
    }

    #[inline(always)]
    fn subnet(addr: Ip4) -> Option<Subnet> {
        maps::SUBNETS4.get(lpm_trie::Key::new(32, addr)).copied()
    }
}
