//! Tuples: what a packet says it is, and where it was received.

use core::ptr::{addr_of, addr_of_mut};

use crate::addr::{Address, Be16, Ip4, Ip6};

/// Where a packet was received: half of what names a flow, so that a stranger on an uplink can
/// never match a flow that a container opened, nor the other way round.
pub mod zone {
    /// From outside the node, on an uplink.
    pub const WORLD: u8 = 0;
    /// From a container, on the host side of its veth pair.
    pub const CONTAINER: u8 = 1;
}

/// IP protocol numbers that the engine knows.
pub mod proto {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMPV6: u8 = 58;
    pub const SCTP: u8 = 132;

    /// Has it ports, or what stands in for them?
    #[inline(always)]
    pub fn has_ports(proto: u8) -> bool {
        matches!(proto, TCP | UDP | SCTP | ICMP | ICMPV6)
    }

    /// Is it one without ports whose packets stay right where nothing but their addresses changes
    /// (GRE, ESP, IP in IP and so on)?
    ///
    /// Not so what signs the addresses (AH, 51) or has them in its checksum: DCCP (33), UDP-Lite (136),
    /// HIP (139), Shim6 (140), mobility (135), and OSPF (89), PIM (103) and VRRP (112) of IPv6. Nor
    /// extension headers of IPv6 (0, 43, 44, 60), behind which are no more than parts of a packet, and
    /// nothing at all (59).
    #[inline(always)]
    pub fn is_portless(proto: u8) -> bool {
        !has_ports(proto)
            && !matches!(
                proto,
                0 | 33 | 43 | 44 | 51 | 59 | 60 | 89 | 103 | 112 | 135 | 136 | 139 | 140
            )
    }

    /// Do its packets open and end connections, so that a flow's state follows theirs?
    #[inline(always)]
    pub fn has_connections(proto: u8) -> bool {
        proto == TCP || proto == SCTP
    }
}

/// The key of a flow entry: a packet as it is *received*, before any rewriting.
///
/// For an ICMP echo request `sport` holds the identifier and `dport` is 0; for an echo reply it
/// is the other way round. A request and its reply thus mirror each other as TCP's segments do.
/// Where a protocol has no ports, both are 0.
///
/// Layout, no padding: `src, dst, sport: be16, dport: be16, proto: u8, zone: u8, scope: u16`;
/// 16 bytes for IPv4, 40 for IPv6.
#[repr(C, align(4))]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct Tuple<A> {
    pub src: A,
    pub dst: A,
    pub sport: Be16,
    pub dport: Be16,
    pub proto: u8,
    /// One of [`zone`].
    pub zone: u8,
    /// Low bits of the index of the interface where it was received, if source or destination is
    /// link-local (IPv6) and it came from outside; otherwise 0. One `fe80::2` may live on each link.
    pub scope: u16,
}

pub type Tuple4 = Tuple<Ip4>;
pub type Tuple6 = Tuple<Ip6>;

const _: () = assert!(size_of::<Tuple4>() == 16 && size_of::<Tuple6>() == 40);

impl<A: Address> Tuple<A> {
    /// Both ports as they lie in a header, the source's first.
    #[inline(always)]
    pub fn ports(&self) -> u32 {
        // SAFETY: `sport` and `dport` are these four bytes, aligned as the tuple is.
        unsafe { addr_of!(self.sport).cast::<u32>().read() }
    }

    /// Writes both ports as they lie in a header: in one word, as who hashes the tuple right after
    /// this reads them. A CPU hands on what it has just written to those who read the same bytes;
    /// whoever reads more waits until all is in the cache.
    #[inline(always)]
    pub fn set_ports(&mut self, ports: u32) {
        // SAFETY: as above.
        unsafe { addr_of_mut!(self.sport).cast::<u32>().write(ports) };
    }

    /// Writes protocol and zone, and a scope of 0: in one word, as [`Self::set_ports`].
    #[inline(always)]
    pub fn set_kind(&mut self, proto: u8, zone: u8) {
        let word = u32::from_ne_bytes([proto, zone, 0, 0]);
        // SAFETY: `proto`, `zone` and `scope` are these four bytes, aligned as the tuple is.
        unsafe { addr_of_mut!(self.proto).cast::<u32>().write(word) };
    }

    /// The tuple with source and destination swapped, as received in `zone`.
    #[inline(always)]
    pub fn mirrored(&self, zone: u8) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            sport: self.dport,
            dport: self.sport,
            proto: self.proto,
            zone,
            scope: 0,
        }
    }
}
