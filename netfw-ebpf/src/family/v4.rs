//! IPv4 (RFC 791).

use aya_ebpf::{
    bindings::{
        bpf_fib_lookup, bpf_sock, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
    },
    maps::{Array, HashMap, LruHashMap, lpm_trie},
};
use netfw_common::{
    addr::{Address as _, Be16, Be32, Ip4},
    csum,
    drop::Drop,
    flow::Flow,
    fragment::{Datagram, FragmentKey},
    record::{
        Allowed, Endpoint, EndpointIfindex, Local, Mapping, MappingKey, Permit, Publish,
        PublishKey, SocketKey, SocketPeer, Subnet, Uplink,
    },
    tuple::{Tuple, proto},
};

use super::Family;
use crate::{
    maps,
    nat::answer::{Error, Header},
    packet::Packet,
    parse::{Malformed, ethertype},
    redirect::Query,
    verdict::Verdict,
    work::{Work, fragment},
};

pub struct V4;

/// The IPv4 header (RFC 791) without options.
#[repr(C)]
#[derive(Clone, Copy, Default)]
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
    const CHECKSUM: usize = 10;
    const ADDRESSES: usize = 12;

    /// Of the fragment field: "more fragments", and the offset in units of 8 bytes.
    const MORE: u16 = 0x2000;
    const OFFSET: u16 = 0x1fff;

    /// Of words, and not the other way round: so each is loaded once, and fields are cut out of it.
    #[inline(always)]
    fn of(words: [u32; 5]) -> Self {
        // SAFETY: both are 20 bytes without padding, and every value is one.
        unsafe { core::mem::transmute(words) }
    }

    #[inline(always)]
    fn words(&self) -> [u32; 5] {
        // SAFETY: as above.
        unsafe { core::mem::transmute(*self) }
    }
}

/// A header's words summed up; one that is right folds to 0xffff.
#[inline(always)]
fn sum([a, b, c, d, e]: [u32; 5]) -> u64 {
    u64::from(a) + u64::from(b) + u64::from(c) + u64::from(d) + u64::from(e)
}

/// ICMP errors (RFC 792, 1812 5.2.7), their types and, of "unreachable", codes.
mod error {
    pub const UNREACHABLE: u8 = 3;
    pub const TIME_EXCEEDED: u8 = 11;
    pub const PARAMETER_PROBLEM: u8 = 12;

    pub const FRAGMENTATION_NEEDED: u8 = 4;
    pub const PROHIBITED: u8 = 13;
}

/// The sum of `len` bytes of IPv4 options, if the frame has them.
#[inline(always)]
fn options_sum<P: Packet>(packet: &P, len: usize) -> Option<u64> {
    // The header's length field allows no more.
    let mut words = [0u32; 10];
    packet.copy(P::NETWORK + Ipv4::LEN, &mut words, len)?;
    Some(words.into_iter().map(u64::from).sum())
}

impl Family for V4 {
    type Addr = Ip4;

    const ETHERTYPE: Be16 = ethertype::IPV4;
    const AF: u8 = 2;
    const ICMP: u8 = proto::ICMP;
    const ECHO_REQUEST: u8 = 8;
    const ECHO_REPLY: u8 = 0;
    const ICMP_PSEUDO: bool = false;
    const PROTO_NAMES_DATAGRAM: bool = true;

    #[inline(always)]
    fn work() -> Option<&'static mut Work<Ip4>> {
        // SAFETY: this run of the program owns the record, see `Work`.
        maps::WORK4.get_ptr_mut(0).map(|work| unsafe { &mut *work })
    }

    #[inline(always)]
    fn parse<P: Packet>(packet: &P, work: &mut Work<Ip4>, zone: u8) -> Result<(), Malformed> {
        let words = packet.read(P::NETWORK).ok_or(Malformed)?;
        let header = Ipv4::of(words);
        let header_len = usize::from(header.version_ihl & 0xf) * 4;
        // "BIG TCP": a super-packet beyond the field's reach says 0 (kernel 6.3, b1a78b9b9886).
        let len = match usize::from(header.len.get()) {
            0 if packet.len() > P::NETWORK + usize::from(u16::MAX) => packet.len() - P::NETWORK,
            len => len,
        };
        if header.version_ihl >> 4 != 4
            || header_len < Ipv4::LEN
            || len < header_len
            || packet.len() < P::NETWORK + len
        {
            return Err(Malformed);
        }
        let mut sum = sum(words);
        if header_len > Ipv4::LEN {
            sum += options_sum(packet, header_len - Ipv4::LEN).ok_or(Malformed)?;
        }
        if csum::fold(sum) != 0xffff {
            return Err(Malformed);
        }
        work.key.src = header.src;
        work.key.dst = header.dst;
        work.key.set_kind(header.proto, zone);
        work.ttl = header.ttl;
        work.tos = header.tos;
        work.l4 = (P::NETWORK + header_len) as u32;
        work.len = len as u32;
        work.fragment = fragment::NONE;
        let fragment = header.fragment.get();
        if fragment & (Ipv4::MORE | Ipv4::OFFSET) != 0 {
            let offset = fragment & Ipv4::OFFSET;
            work.more_fragments = fragment & Ipv4::MORE != 0;
            work.fragment = fragment::kind(offset, work.more_fragments);
            work.fragment_offset = offset * 8;
            work.fragment_at = work.l4;
            work.id = header.id.into();
        }
        Ok(())
    }

    #[inline(always)]
    fn glance<P: Packet>(packet: &P, at: usize, key: &mut Tuple<Ip4>) -> Option<(usize, bool)> {
        let mut header = Ipv4::default();
        if !packet.load_network(at, &mut header) {
            return None;
        }
        (key.src, key.dst, key.proto) = (header.src, header.dst, header.proto);
        let l4 = at + usize::from(header.version_ihl & 0xf) * 4;
        Some((l4, header.fragment.get() & Ipv4::OFFSET == 0))
    }

    #[inline(always)]
    fn rewrite<P: Packet>(packet: &mut P, to: &Flow<Ip4>, changed: u64) -> Option<u64> {
        // TTL and protocol, the checksum, and what follows them.
        let [lives, checksum] = packet.read::<[u16; 2]>(P::NETWORK + Ipv4::TTL)?;
        let [ttl, proto] = lives.to_ne_bytes();
        let left = u16::from_ne_bytes([ttl.wrapping_sub(1), proto]);
        let changed = changed + csum::difference(lives.into(), left.into());
        let written = packet.write(
            P::NETWORK + Ipv4::TTL,
            [left, csum::update(checksum, changed)],
        ) && packet.write(P::NETWORK + Ipv4::ADDRESSES, [to.src, to.dst]);
        written.then_some(0)
    }

    #[inline(always)]
    fn on_link<P: Packet>(_: &P, work: &Work<Ip4>, sender: &Endpoint) -> Option<Verdict> {
        if work.key.src != sender.ip4 {
            return Some(Verdict::Drop(Drop::SpoofedAddress));
        }
        work.key.dst.is_link_scope().then_some(Verdict::Pass)
    }

    const LENGTH: usize = 2;
    const LENGTH_LACKS: u32 = 0;

    const HEADER: usize = Ipv4::LEN;
    const QUOTE: u32 = 576 - 28;

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(
            kind,
            error::UNREACHABLE | error::TIME_EXCEEDED | error::PARAMETER_PROBLEM
        )
    }

    #[inline(always)]
    fn error(error: Error) -> Header {
        let (kind, code, mtu) = match error {
            Error::TimeExceeded => (error::TIME_EXCEEDED, 0, 0),
            Error::TooBig { mtu } => (error::UNREACHABLE, error::FRAGMENTATION_NEEDED, mtu),
            Error::Unreachable => (error::UNREACHABLE, 0, 0),
            Error::Prohibited => (error::UNREACHABLE, error::PROHIBITED, 0),
        };
        Header {
            kind,
            code,
            checksum: 0,
            parameter: [Be16::new(0), Be16::new(mtu)],
        }
    }

    #[inline(always)]
    fn parse_quote<P: Packet>(packet: &P, work: &mut Work<Ip4>) -> Option<u8> {
        let mut header = Ipv4::default();
        if !packet.load(work.quoted(), &mut header) {
            return None;
        }
        let header_len = u32::from(header.version_ihl & 0xf) * 4;
        // Only a first part has ports.
        if header.version_ihl >> 4 != 4
            || header_len < Ipv4::LEN as u32
            || header.fragment.get() & Ipv4::OFFSET != 0
        {
            return None;
        }
        (work.key.src, work.key.dst) = (header.dst, header.src);
        work.quote_l4 = work.quote + header_len;
        Some(header.proto)
    }

    #[inline(always)]
    fn rewrite_quote<P: Packet>(packet: &mut P, work: &Work<Ip4>, changed: u64) -> Option<u64> {
        let mut old = 0u16;
        if !packet.load(work.quoted() + Ipv4::CHECKSUM, &mut old) {
            return None;
        }
        let new = csum::update(old, changed);
        let written = packet.store(work.quoted() + Ipv4::CHECKSUM, &new)
            && packet.store(
                work.quoted() + Ipv4::ADDRESSES,
                &[work.flow.dst, work.flow.src],
            );
        written.then(|| changed + csum::difference(old.into(), new.into()))
    }

    #[inline(always)]
    fn icmp_pseudo(_: Ip4, _: Ip4, _: u32) -> u64 {
        0
    }

    #[inline(always)]
    fn store_header<P: Packet>(packet: &mut P, from: Ip4, to: Ip4, len: u32) -> bool {
        /// Of errors, as Linux sends them: "internetwork control" (RFC 1812 4.3.2.5).
        const TOS: u8 = 0xc0;
        const DONT_FRAGMENT: u16 = 0x4000;
        let mut header = Ipv4 {
            version_ihl: 0x45,
            tos: TOS,
            len: Be16::new(Ipv4::LEN as u16 + len as u16),
            id: 0,
            fragment: Be16::new(DONT_FRAGMENT),
            ttl: 64,
            proto: proto::ICMP,
            checksum: 0,
            src: from,
            dst: to,
        };
        header.checksum = !csum::fold(sum(header.words()));
        packet.store(P::NETWORK, &header)
    }

    #[inline(always)]
    fn ask(query: &Query<Ip4>, fib: &mut bpf_fib_lookup) {
        fib.__bindgen_anon_2.tos = query.tos;
        fib.__bindgen_anon_3.ipv4_src = query.src.0.wire();
        fib.__bindgen_anon_4.ipv4_dst = query.dst.0.wire();
    }

    #[inline(always)]
    fn preferred_source(fib: &bpf_fib_lookup) -> Ip4 {
        // SAFETY: a union of integers.
        Ip4(Be32::from_wire(unsafe { fib.__bindgen_anon_3.ipv4_src }))
    }

    #[inline(always)]
    fn next_hop(addr: Ip4) -> [u32; 4] {
        [addr.0.wire(), 0, 0, 0]
    }

    #[inline(always)]
    fn socket(tuple: &Tuple<Ip4>) -> (bpf_sock_tuple, u32) {
        let ipv4 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
            saddr: tuple.src.0.wire(),
            daddr: tuple.dst.0.wire(),
            sport: tuple.sport.wire(),
            dport: tuple.dport.wire(),
        };
        let size = size_of_val(&ipv4) as u32;
        let sock = bpf_sock_tuple {
            __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv4 },
        };
        (sock, size)
    }

    #[inline(always)]
    unsafe fn bound(sock: *const bpf_sock) -> Ip4 {
        // SAFETY: the caller's.
        Ip4(Be32::from_wire(unsafe { (*sock).src_ip4 }))
    }

    #[inline(always)]
    fn log_opened(work: &Work<Ip4>) {
        crate::event::opened4(work);
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
    fn holdings() -> &'static Array<u64> {
        &maps::HOLDINGS4
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
    fn taken() -> &'static Array<u64> {
        &maps::TAKEN4
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
    fn mappings() -> &'static HashMap<MappingKey<Ip4>, Mapping<Ip4>> {
        &maps::MAPPINGS4
    }

    #[inline(always)]
    fn permits() -> &'static LruHashMap<Tuple<Ip4>, Permit> {
        &maps::PERMITS4
    }

    #[inline(always)]
    fn talks() -> &'static LruHashMap<Tuple<Ip4>, u32> {
        &maps::TALKS4
    }

    #[inline(always)]
    fn sockets() -> &'static LruHashMap<SocketKey<Ip4>, SocketPeer<Ip4>> {
        &maps::SOCKETS4
    }

    #[inline(always)]
    fn fragments() -> &'static LruHashMap<FragmentKey<Ip4>, Datagram> {
        &maps::FRAGMENTS4
    }

    #[inline(always)]
    fn allows(list: u16, addr: Ip4) -> bool {
        const BITS: u32 = Allowed::<Ip4>::LIST_BITS + 32;
        let key = lpm_trie::Key::new(BITS, Allowed::new(list, addr));
        maps::ALLOWED4.get(key).is_some()
    }

    #[inline(always)]
    fn subnet(addr: Ip4) -> Option<Subnet> {
        maps::SUBNETS4.get(lpm_trie::Key::new(32, addr)).copied()
    }
}
