//! IPv6 (RFC 8200).

use aya_ebpf::{
    bindings::{
        bpf_fib_lookup, bpf_sock, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
    },
    maps::{Array, HashMap, LruHashMap, lpm_trie},
};
use netfw_common::{
    addr::{Address as _, Be16, Be32, Ip6, Mac},
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

pub struct V6;

/// The fixed header.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Ipv6 {
    version_class_label: Be32,
    payload_len: Be16,
    next: u8,
    hop_limit: u8,
    src: Ip6,
    dst: Ip6,
}

impl Ipv6 {
    const LEN: usize = size_of::<Self>();
    /// Next header and hop limit, one word of the checksum.
    const NEXT: usize = 6;
    const ADDRESSES: usize = 8;
}

/// Extension headers (RFC 8200 4) that stand before the transport header.
mod extension {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const DESTINATION: u8 = 60;

    /// As many as are looked at. RFC 8200 4.1 gives a use for five.
    pub const MOST: u32 = 8;
    /// Where the transport header must begin, from the network header on.
    pub const REACH: u32 = 400;

    #[inline(always)]
    pub fn is(next: u8) -> bool {
        matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION)
    }
}

/// ICMPv6 errors (RFC 4443 3), their types and, of "unreachable", a code.
mod error {
    pub const UNREACHABLE: u8 = 1;
    pub const TOO_BIG: u8 = 2;
    pub const TIME_EXCEEDED: u8 = 3;
    pub const PARAMETER_PROBLEM: u8 = 4;

    pub const PROHIBITED: u8 = 1;
}

/// The first eight bytes of any of them. What the last six mean depends on the kind.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extension {
    next: u8,
    /// In units of 8 bytes, without the first.
    len: u8,
    /// Fragment header: offset in units of 8 bytes, two reserved bits, "more fragments".
    fragment: Be16,
    id: u32,
}

impl Extension {
    /// Bytes of the header, of which `kind` is the number.
    #[inline(always)]
    fn len(&self, kind: u8) -> u32 {
        if kind == extension::FRAGMENT {
            size_of::<Self>() as u32
        } else {
            (u32::from(self.len) + 1) * 8
        }
    }

    /// Routing header: addresses yet to be visited; `type, segments left` stand where a fragment
    /// header has its offset.
    fn segments_left(&self) -> u8 {
        self.fragment.get() as u8
    }
}

/// Walks to the transport header behind `next`; false where it cannot be found, or the packet is on
/// its way to somebody else first.
#[inline(never)]
fn walk<P: Packet>(packet: &P, work: &mut Work<Ip6>, first: u8) -> bool {
    let mut next = first;
    let mut at = Ipv6::LEN as u32;
    for _ in 0..extension::MOST {
        if !extension::is(next) {
            break;
        }
        let mut header = Extension::default();
        if at > extension::REACH || !packet.load(P::NETWORK + at as usize, &mut header) {
            return false;
        }
        if next == extension::FRAGMENT {
            // Whoever sends a fragment in a fragment means to hide something.
            if work.fragment != fragment::NONE {
                return false;
            }
            let offset = header.fragment.get() & !7;
            work.more_fragments = header.fragment.get() & 1 != 0;
            work.fragment = fragment::kind(offset, work.more_fragments);
            work.fragment_offset = offset;
            work.id = header.id;
            at += header.len(next);
            work.fragment_at = P::NETWORK as u32 + at;
            next = header.next;
            if offset != 0 {
                break;
            }
            continue;
        }
        if next == extension::ROUTING && header.segments_left() != 0 {
            return false;
        }
        at += header.len(next);
        next = header.next;
    }
    // Behind a later fragment's header is what its datagram goes on with.
    let more = extension::is(next) && work.fragment != fragment::LATER;
    if more || at > extension::REACH {
        return false;
    }
    work.key.proto = next;
    work.l4 = P::NETWORK as u32 + at;
    true
}

/// ICMPv6 types of neighbour discovery (RFC 4861 4).
mod discovery {
    pub const ROUTER_SOLICITATION: u8 = 133;
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
    pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    pub const REDIRECT: u8 = 137;
}

/// A neighbour advertisement (RFC 4861 4.4).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Discovery {
    kind: u8,
    code: u8,
    checksum: u16,
    flags: u32,
    /// The address that it speaks of.
    target: Ip6,
}

/// The link-local address that an interface makes of its MAC (RFC 4291, appendix A).
#[inline(always)]
fn link_local(mac: &Mac) -> Ip6 {
    let word = |a, b, c, d| Be32::from_wire(u32::from_ne_bytes([a, b, c, d]));
    Ip6([
        Be32::new(0xfe80_0000),
        Be32::new(0),
        word(mac[0] ^ 2, mac[1], mac[2], 0xff),
        word(0xfe, mac[3], mac[4], mac[5]),
    ])
}

/// What a container says to its link.
#[repr(u8)]
enum Chatter {
    /// A packet to be routed.
    None,
    Fair,
    Spoofed,
}

/// Judges what may be on a link, and no further: neighbour discovery and multicast. Containers are
/// no routers, and speak for no address but their own.
#[inline(never)]
fn link_chatter<P: Packet>(packet: &P, work: &Work<Ip6>, sender: &Endpoint) -> Chatter {
    use discovery::*;
    let (src, dst) = (work.key.src, work.key.dst);
    // A probe for an address that is not one's own yet (RFC 4862 5.4) comes from nobody.
    let local = src.is_link_local() || src == Ip6::ANY;
    let gateway = link_local(&sender.gateway_mac);
    if (!local && src != sender.ip6) || src == gateway {
        return Chatter::Spoofed;
    }
    if work.key.proto == proto::ICMPV6 && work.fragment != fragment::LATER {
        let mut header = Discovery::default();
        // Messages of other kinds may be shorter; nothing of theirs is looked at.
        packet.load(work.transport(), &mut header.kind);
        match header.kind {
            ROUTER_ADVERTISEMENT | REDIRECT => return Chatter::Spoofed,
            NEIGHBOUR_ADVERTISEMENT => {
                let own = packet.load(work.transport(), &mut header)
                    && (header.target == sender.ip6
                        || header.target.is_link_local() && header.target != gateway);
                return if own { Chatter::Fair } else { Chatter::Spoofed };
            }
            ROUTER_SOLICITATION | NEIGHBOUR_SOLICITATION => return Chatter::Fair,
            _ => {}
        }
    }
    if dst.is_link_scope() {
        Chatter::Fair
    } else if local {
        // A router forwards nothing from a link-local address (RFC 4291 2.5.6).
        Chatter::Spoofed
    } else {
        Chatter::None
    }
}

impl Family for V6 {
    type Addr = Ip6;

    const ETHERTYPE: Be16 = ethertype::IPV6;
    const AF: u8 = 10;
    const ICMP: u8 = proto::ICMPV6;
    const ECHO_REQUEST: u8 = 128;
    const ECHO_REPLY: u8 = 129;
    const ICMP_PSEUDO: bool = true;
    const PROTO_NAMES_DATAGRAM: bool = false;

    #[inline(always)]
    fn work() -> Option<&'static mut Work<Ip6>> {
        // SAFETY: this run of the program owns the record, see `Work`.
        maps::WORK6.get_ptr_mut(0).map(|work| unsafe { &mut *work })
    }

    #[inline(always)]
    fn parse<P: Packet>(packet: &P, work: &mut Work<Ip6>, zone: u8) -> Result<(), Malformed> {
        let header: Ipv6 = packet.read(P::NETWORK).ok_or(Malformed)?;
        let head = header.version_class_label.get();
        // "BIG TCP" has a length of 0, before 6.18 (RFC 2675) with a hop-by-hop option.
        let len = match usize::from(header.payload_len.get()) {
            0 if packet.len() > P::NETWORK + Ipv6::LEN + usize::from(u16::MAX) => {
                packet.len() - P::NETWORK
            }
            len => len + Ipv6::LEN,
        };
        if head >> 28 != 6 || packet.len() < P::NETWORK + len {
            return Err(Malformed);
        }
        work.key.src = header.src;
        work.key.dst = header.dst;
        work.key.set_kind(header.next, zone);
        work.ttl = header.hop_limit;
        work.tos = (head >> 20) as u8;
        work.more_fragments = false;
        work.fragment = fragment::NONE;
        work.l4 = (P::NETWORK + Ipv6::LEN) as u32;
        work.len = len as u32;
        match header.next {
            proto::TCP | proto::UDP | proto::ICMPV6 => Ok(()),
            next if walk(packet, work, next) => Ok(()),
            _ => Err(Malformed),
        }
    }

    #[inline(always)]
    fn on_link<P: Packet>(packet: &P, work: &Work<Ip6>, sender: &Endpoint) -> Option<Verdict> {
        match link_chatter(packet, work, sender) {
            Chatter::None => None,
            Chatter::Fair => Some(Verdict::Pass),
            Chatter::Spoofed => Some(Verdict::Drop(Drop::SpoofedAddress)),
        }
    }

    #[inline(always)]
    fn glance<P: Packet>(packet: &P, at: usize, key: &mut Tuple<Ip6>) -> Option<(usize, bool)> {
        let mut header = Ipv6::default();
        if !packet.load_network(at, &mut header) {
            return None;
        }
        (key.src, key.dst, key.proto) = (header.src, header.dst, header.next);
        // In front of what a tunnel carries Linux says how deep tunnels may be nested (RFC 2473 4.1).
        let (l4, mut option) = (at + Ipv6::LEN, Extension::default());
        if header.next == extension::DESTINATION && packet.load_network(l4, &mut option) {
            key.proto = option.next;
            return Some((l4 + option.len(header.next) as usize, true));
        }
        Some((l4, true))
    }

    #[inline(always)]
    fn rewrite<P: Packet>(packet: &mut P, to: &Flow<Ip6>, changed: u64) -> Option<u64> {
        let [next, hops] = packet.read::<[u8; 2]>(P::NETWORK + Ipv6::NEXT)?;
        let left = hops.wrapping_sub(1);
        let word = |hops| u64::from(u16::from_ne_bytes([next, hops]));
        // One address after the other: both at once would not fit into the registers.
        let at = P::NETWORK + Ipv6::ADDRESSES;
        let written = packet.write(P::NETWORK + Ipv6::NEXT, [next, left])
            && packet.write(at, to.src)
            && packet.write(at + size_of::<Ip6>(), to.dst);
        written.then(|| changed + csum::difference(word(hops), word(left)))
    }

    const LENGTH: usize = 4;
    const LENGTH_LACKS: u32 = Ipv6::LEN as u32;

    const HEADER: usize = Ipv6::LEN;
    const QUOTE: u32 = 1280 - 48;

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(kind, error::UNREACHABLE..=error::PARAMETER_PROBLEM)
    }

    #[inline(always)]
    fn error(error: Error) -> Header {
        let (kind, code, mtu) = match error {
            Error::TimeExceeded => (error::TIME_EXCEEDED, 0, 0),
            Error::TooBig { mtu } => (error::TOO_BIG, 0, mtu),
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
    fn parse_quote<P: Packet>(packet: &P, work: &mut Work<Ip6>) -> Option<u8> {
        let mut header = Ipv6::default();
        if !packet.load(work.quoted(), &mut header) || header.version_class_label.get() >> 28 != 6 {
            return None;
        }
        (work.key.src, work.key.dst) = (header.dst, header.src);
        work.quote_l4 = work.quote + Ipv6::LEN as u32;
        let mut next = header.next;
        for _ in 0..extension::MOST {
            if !extension::is(next) {
                return Some(next);
            }
            let mut header = Extension::default();
            if !packet.load(work.quoted_transport(), &mut header) {
                return None;
            }
            // Only a first part has ports.
            if next == extension::FRAGMENT && header.fragment.get() & !7 != 0 {
                return None;
            }
            work.quote_l4 += header.len(next);
            next = header.next;
        }
        None
    }

    #[inline(always)]
    fn rewrite_quote<P: Packet>(packet: &mut P, work: &Work<Ip6>, changed: u64) -> Option<u64> {
        // One by one, from where they lie: a copy of both would take too much of the stack.
        let at = work.quoted() + Ipv6::ADDRESSES;
        let stored =
            packet.store(at, &work.flow.dst) && packet.store(at + size_of::<Ip6>(), &work.flow.src);
        stored.then_some(changed)
    }

    #[inline(always)]
    fn icmp_pseudo(from: Ip6, to: Ip6, len: u32) -> u64 {
        // RFC 8200 8.1.
        from.sum() + to.sum() + u64::from(len.to_be()) + u64::from(u32::from(proto::ICMPV6).to_be())
    }

    #[inline(always)]
    fn store_header<P: Packet>(packet: &mut P, from: Ip6, to: Ip6, len: u32) -> bool {
        let header = Ipv6 {
            version_class_label: Be32::new(6 << 28),
            payload_len: Be16::new(len as u16),
            next: proto::ICMPV6,
            hop_limit: 64,
            src: from,
            dst: to,
        };
        packet.store(P::NETWORK, &header)
    }

    #[inline(always)]
    fn ask(query: &Query<Ip6>, fib: &mut bpf_fib_lookup) {
        // Network order: class and label of the header.
        fib.__bindgen_anon_2.flowinfo = Be32::new(u32::from(query.tos) << 20).wire();
        fib.__bindgen_anon_3.ipv6_src = query.src.0.map(Be32::wire);
        fib.__bindgen_anon_4.ipv6_dst = query.dst.0.map(Be32::wire);
    }

    #[inline(always)]
    fn preferred_source(fib: &bpf_fib_lookup) -> Ip6 {
        // SAFETY: a union of integers.
        Ip6(unsafe { fib.__bindgen_anon_3.ipv6_src }.map(Be32::from_wire))
    }

    #[inline(always)]
    fn next_hop(addr: Ip6) -> [u32; 4] {
        addr.0.map(Be32::wire)
    }

    #[inline(always)]
    fn socket(tuple: &Tuple<Ip6>) -> (bpf_sock_tuple, u32) {
        let ipv6 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
            saddr: tuple.src.0.map(Be32::wire),
            daddr: tuple.dst.0.map(Be32::wire),
            sport: tuple.sport.wire(),
            dport: tuple.dport.wire(),
        };
        let size = size_of_val(&ipv6) as u32;
        let sock = bpf_sock_tuple {
            __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv6 },
        };
        (sock, size)
    }

    #[inline(always)]
    unsafe fn bound(sock: *const bpf_sock) -> Ip6 {
        // SAFETY: the caller's.
        let words = unsafe { (*sock).src_ip6 };
        Ip6(words.map(Be32::from_wire))
    }

    #[inline(always)]
    fn log_opened(work: &Work<Ip6>) {
        crate::event::opened6(work);
    }

    #[inline(always)]
    fn endpoint_gateway(endpoint: &Endpoint) -> Ip6 {
        endpoint.gateway6
    }

    #[inline(always)]
    fn uplink_address(uplink: &Uplink) -> Ip6 {
        uplink.ip6
    }

    #[inline(always)]
    fn flows() -> &'static HashMap<Tuple<Ip6>, Flow<Ip6>> {
        &maps::FLOWS6
    }

    #[inline(always)]
    fn holdings() -> &'static Array<u64> {
        &maps::HOLDINGS6
    }

    #[inline(always)]
    fn embryos() -> &'static LruHashMap<Tuple<Ip6>, Flow<Ip6>> {
        &maps::EMBRYOS6
    }

    #[inline(always)]
    fn publishes() -> &'static HashMap<PublishKey<Ip6>, Publish<Ip6>> {
        &maps::PUBLISHES6
    }

    #[inline(always)]
    fn taken() -> &'static Array<u64> {
        &maps::TAKEN6
    }

    #[inline(always)]
    fn addresses() -> &'static HashMap<Ip6, EndpointIfindex> {
        &maps::ADDRESSES6
    }

    #[inline(always)]
    fn locals() -> &'static HashMap<Ip6, Local> {
        &maps::LOCALS6
    }

    #[inline(always)]
    fn mappings() -> &'static HashMap<MappingKey<Ip6>, Mapping<Ip6>> {
        &maps::MAPPINGS6
    }

    #[inline(always)]
    fn permits() -> &'static LruHashMap<Tuple<Ip6>, Permit> {
        &maps::PERMITS6
    }

    #[inline(always)]
    fn talks() -> &'static LruHashMap<Tuple<Ip6>, u32> {
        &maps::TALKS6
    }

    #[inline(always)]
    fn sockets() -> &'static LruHashMap<SocketKey<Ip6>, SocketPeer<Ip6>> {
        &maps::SOCKETS6
    }

    #[inline(always)]
    fn fragments() -> &'static LruHashMap<FragmentKey<Ip6>, Datagram> {
        &maps::FRAGMENTS6
    }

    #[inline(always)]
    fn allows(list: u16, addr: Ip6) -> bool {
        const BITS: u32 = Allowed::<Ip6>::LIST_BITS + 128;
        let key = lpm_trie::Key::new(BITS, Allowed::new(list, addr));
        maps::ALLOWED6.get(key).is_some()
    }

    #[inline(always)]
    fn subnet(addr: Ip6) -> Option<Subnet> {
        maps::SUBNETS6.get(lpm_trie::Key::new(128, addr)).copied()
    }
}
