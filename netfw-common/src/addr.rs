//! Addresses and integers in network byte order, as types that host-order integers cannot be
//! mixed up with.

use core::fmt::Debug;

/// A 16-bit integer in network byte order: ports, checksums, EtherTypes.
#[repr(transparent)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Be16(u16);

impl Be16 {
    /// From a value in host byte order.
    pub const fn new(host: u16) -> Self {
        Self(host.to_be())
    }

    /// The value in host byte order.
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// From the integer whose memory holds the bytes as they are on the wire.
    pub const fn from_wire(raw: u16) -> Self {
        Self(raw)
    }

    /// The integer whose memory holds the bytes as they are on the wire.
    pub const fn wire(self) -> u16 {
        self.0
    }
}

impl Debug for Be16 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.get().fmt(f)
    }
}

/// A 32-bit integer in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Be32(u32);

impl Be32 {
    /// From a value in host byte order.
    pub const fn new(host: u32) -> Self {
        Self(host.to_be())
    }

    /// The value in host byte order.
    pub const fn get(self) -> u32 {
        u32::from_be(self.0)
    }

    /// From the integer whose memory holds the bytes as they are on the wire.
    pub const fn from_wire(raw: u32) -> Self {
        Self(raw)
    }

    /// The integer whose memory holds the bytes as they are on the wire.
    pub const fn wire(self) -> u32 {
        self.0
    }
}

/// A MAC address, as on the wire.
pub type Mac = [u8; 6];

/// The addresses of an Ethernet header, as on the wire: 12 bytes. Aligned, so that the programs
/// copy it by three words and not by twelve bytes.
#[repr(C, align(4))]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct MacPair {
    pub dst: Mac,
    pub src: Mac,
}

const _: () = assert!(size_of::<MacPair>() == 12);

/// An address of one family: what the engine asks of it.
///
/// Sealed by being implemented for [`Ip4`] and [`Ip6`] alone.
pub trait Address: Copy + Eq + Default + 'static {
    /// The unspecified address (`0.0.0.0`, `::`): in a publish it stands for any local address.
    const ANY: Self;

    /// `127.0.0.1`, `::1`.
    const LOOPBACK: Self;

    /// Ones' complement sum of the address's 16-bit words, not folded, for checksum differences.
    fn sum(&self) -> u64;

    /// Can a packet from this address be answered at all? False for unspecified, loopback,
    /// multicast, broadcast and reserved addresses (RFC 1122 3.2.1.3, RFC 6890), which a router
    /// must not forward ("martians").
    fn is_unicast(&self) -> bool;

    /// Does it name the host that speaks: `127.0.0.0/8`, `::1`?
    fn is_loopback(&self) -> bool;

    /// As an address of IPv6: one of IPv4 is mapped (`::ffff:a.b.c.d`).
    fn wide(self) -> Ip6;

    /// Is it the link's business rather than a router's: multicast, limited broadcast, and IPv6
    /// link-local? IPv4 link-local is routed all the same: clouds serve instance metadata at
    /// 169.254.169.254.
    fn is_link_scope(&self) -> bool;

    /// A unicast address that names a host on one link only (`fe80::/10`), and another one on the
    /// next? Never so for IPv4, which has no notion of it.
    fn is_link_local(&self) -> bool;
}

/// An IPv4 address, in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Ip4(pub Be32);

impl Ip4 {
    pub const fn new(octets: [u8; 4]) -> Self {
        Self(Be32::from_wire(u32::from_ne_bytes(octets)))
    }

    pub const fn octets(self) -> [u8; 4] {
        self.0.wire().to_ne_bytes()
    }
}

impl From<core::net::Ipv4Addr> for Ip4 {
    fn from(addr: core::net::Ipv4Addr) -> Self {
        Self::new(addr.octets())
    }
}

impl From<Ip4> for core::net::Ipv4Addr {
    fn from(addr: Ip4) -> Self {
        addr.octets().into()
    }
}

impl Address for Ip4 {
    const ANY: Self = Self(Be32::new(0));
    const LOOPBACK: Self = Self::new([127, 0, 0, 1]);

    #[inline(always)]
    fn wide(self) -> Ip6 {
        Ip6::from_mapped(self)
    }

    #[inline(always)]
    fn sum(&self) -> u64 {
        u64::from(self.0.wire())
    }

    #[inline(always)]
    fn is_unicast(&self) -> bool {
        let host = self.0.get();
        let top = host >> 24;
        top != 0 && top != 127 && top < 224
    }

    #[inline(always)]
    fn is_loopback(&self) -> bool {
        self.0.get() >> 24 == 127
    }

    #[inline(always)]
    fn is_link_scope(&self) -> bool {
        let host = self.0.get();
        host >> 28 == 0xe || host == u32::MAX
    }

    #[inline(always)]
    fn is_link_local(&self) -> bool {
        false
    }
}

/// An IPv6 address, in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, Default, Eq, PartialOrd, Ord, Debug)]
pub struct Ip6(pub [Be32; 4]);

/// Without branches and without a call of `memcmp`: in the programs that is a loop, and each of its
/// steps a path of its own to the verifier.
impl PartialEq for Ip6 {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let ([a, b, c, d], [e, f, g, h]) = (self.0, other.0);
        (a.wire() ^ e.wire())
            | (b.wire() ^ f.wire())
            | (c.wire() ^ g.wire())
            | (d.wire() ^ h.wire())
            == 0
    }
}

impl core::hash::Hash for Ip6 {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl Ip6 {
    pub const fn new(octets: [u8; 16]) -> Self {
        let o = octets;
        const fn word(a: u8, b: u8, c: u8, d: u8) -> Be32 {
            Be32::from_wire(u32::from_ne_bytes([a, b, c, d]))
        }
        Self([
            word(o[0], o[1], o[2], o[3]),
            word(o[4], o[5], o[6], o[7]),
            word(o[8], o[9], o[10], o[11]),
            word(o[12], o[13], o[14], o[15]),
        ])
    }

    pub fn octets(self) -> [u8; 16] {
        let mut out = [0; 16];
        for (word, four) in self.0.iter().zip(out.chunks_exact_mut(4)) {
            four.copy_from_slice(&word.wire().to_ne_bytes());
        }
        out
    }

    /// The second last word of an IPv4-mapped address, `::ffff:a.b.c.d` (RFC 4291 2.5.5.2).
    const MAPPED: Be32 = Be32::new(0xffff);

    /// An IPv4 address as a socket of IPv6 has it.
    #[inline(always)]
    pub const fn from_mapped(addr: Ip4) -> Self {
        Self([Be32::new(0), Be32::new(0), Self::MAPPED, addr.0])
    }

    /// The IPv4 address that this one stands for, if it does.
    #[inline(always)]
    pub fn mapped(self) -> Option<Ip4> {
        let [a, b, c, d] = self.0;
        (a.wire() | b.wire() | (c.wire() ^ Self::MAPPED.wire()) == 0).then_some(Ip4(d))
    }
}

impl From<core::net::Ipv6Addr> for Ip6 {
    fn from(addr: core::net::Ipv6Addr) -> Self {
        Self::new(addr.octets())
    }
}

impl From<Ip6> for core::net::Ipv6Addr {
    fn from(addr: Ip6) -> Self {
        addr.octets().into()
    }
}

impl Address for Ip6 {
    const ANY: Self = Self([Be32::new(0); 4]);
    const LOOPBACK: Self = Self([Be32::new(0), Be32::new(0), Be32::new(0), Be32::new(1)]);

    #[inline(always)]
    fn wide(self) -> Ip6 {
        self
    }

    #[inline(always)]
    fn sum(&self) -> u64 {
        let [a, b, c, d] = self.0;
        u64::from(a.wire()) + u64::from(b.wire()) + u64::from(c.wire()) + u64::from(d.wire())
    }

    #[inline(always)]
    fn is_unicast(&self) -> bool {
        let [a, b, c, d] = self.0;
        let loopback_or_any = a.get() | b.get() | c.get() == 0 && d.get() <= 1;
        !loopback_or_any && a.get() >> 24 != 0xff
    }

    #[inline(always)]
    fn is_loopback(&self) -> bool {
        let [a, b, c, d] = self.0;
        a.get() | b.get() | c.get() == 0 && d.get() == 1
    }

    #[inline(always)]
    fn is_link_scope(&self) -> bool {
        let top = self.0[0].get();
        top >> 24 == 0xff || self.is_link_local()
    }

    #[inline(always)]
    fn is_link_local(&self) -> bool {
        self.0[0].get() >> 22 == 0xfe80 >> 6
    }
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn martians_are_not_unicast() {
        for (addr, unicast) in [
            ("0.0.0.0", false),
            ("0.1.2.3", false),
            ("127.0.0.1", false),
            ("127.255.255.255", false),
            ("224.0.0.1", false),
            ("239.1.1.1", false),
            ("240.0.0.1", false),
            ("255.255.255.255", false),
            ("10.0.0.1", true),
            ("128.0.0.1", true),
            ("223.255.255.1", true),
            ("1.0.0.0", true),
        ] {
            let parsed: Ipv4Addr = addr.parse().unwrap();
            assert_eq!(Ip4::from(parsed).is_unicast(), unicast, "{addr}");
        }
        for (addr, unicast) in [
            ("::", false),
            ("::1", false),
            ("ff02::1", false),
            ("fd00::1", true),
        ] {
            let parsed: Ipv6Addr = addr.parse().unwrap();
            assert_eq!(Ip6::from(parsed).is_unicast(), unicast, "{addr}");
        }
    }

    #[test]
    fn link_scope() {
        for (addr, link) in [
            ("224.0.0.251", true),
            ("255.255.255.255", true),
            ("169.254.169.254", false),
            ("10.1.2.3", false),
        ] {
            let parsed: Ipv4Addr = addr.parse().unwrap();
            assert_eq!(Ip4::from(parsed).is_link_scope(), link, "{addr}");
        }
        for (addr, link) in [
            ("fe80::1", true),
            ("febf::1", true),
            ("fec0::1", false),
            ("ff05::2", true),
        ] {
            let parsed: Ipv6Addr = addr.parse().unwrap();
            assert_eq!(Ip6::from(parsed).is_link_scope(), link, "{addr}");
        }
    }

    #[test]
    fn octets_survive() {
        let four: Ipv4Addr = "192.0.2.77".parse().unwrap();
        assert_eq!(Ipv4Addr::from(Ip4::from(four)), four);
        let six: Ipv6Addr = "2001:db8::42:7".parse().unwrap();
        assert_eq!(Ipv6Addr::from(Ip6::from(six)), six);
    }

    #[test]
    fn mapped_addresses_stand_for_those_of_ipv4() {
        let four: Ipv4Addr = "192.0.2.77".parse().unwrap();
        let mapped = Ip6::from(four.to_ipv6_mapped());
        assert_eq!(Ip6::from_mapped(four.into()), mapped);
        assert_eq!(mapped.mapped(), Some(four.into()));
        for other in [
            "::192.0.2.77",
            "::fffe:192.0.2.77",
            "1::ffff:192.0.2.77",
            "::1",
        ] {
            let parsed: Ipv6Addr = other.parse().unwrap();
            assert_eq!(Ip6::from(parsed).mapped(), None, "{other}");
        }
    }

    #[test]
    fn loopback_is_a_loopback_address() {
        assert_eq!(Ip4::LOOPBACK, Ipv4Addr::LOCALHOST.into());
        assert_eq!(Ip6::LOOPBACK, Ipv6Addr::LOCALHOST.into());
        assert!(Ip4::LOOPBACK.is_loopback() && Ip6::LOOPBACK.is_loopback());
    }
}
