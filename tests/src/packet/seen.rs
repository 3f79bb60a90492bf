//! A packet as it came out of a program: taken apart by etherparse, and its checksums checked.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv6Header, NetSlice, SlicedPacket,
    TransportSlice, checksum::Sum16BitWords, defrag::IpDefragPool,
};

/// What a frame holds. Ports are 0 where there are none; for an ICMP echo both are its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Source and destination.
    pub macs: ([u8; 6], [u8; 6]),
    pub vlan: Option<u16>,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub protocol: u8,
    pub ttl: u8,
    pub is_fragment: bool,
    /// As it stands in the packet; `None` where there is none, or only in another fragment.
    pub transport_checksum: Option<u16>,
    /// All that follows the IP header and its extensions.
    pub ip_payload: Vec<u8>,
    /// What follows the transport header.
    pub payload: Vec<u8>,
    damage: Option<String>,
}

impl Seen {
    /// Panics where the bytes are no Ethernet frame with a whole IP packet.
    #[track_caller]
    pub fn parse(frame: &[u8]) -> Self {
        let packet = SlicedPacket::from_ethernet(frame)
            .unwrap_or_else(|error| panic!("{error}, in {frame:02x?}"));
        let ethernet = match &packet.link {
            Some(etherparse::LinkSlice::Ethernet2(ethernet)) => ethernet.to_header(),
            other => panic!("no Ethernet header: {other:?}"),
        };
        let mut damage = None;
        let (source, destination, protocol, ttl, ip_payload): (IpAddr, IpAddr, _, _, _) =
            match &packet.net {
                Some(NetSlice::Ipv4(ip)) => {
                    let header = ip.header();
                    let right = header.to_header().calc_header_checksum();
                    if header.header_checksum() != right {
                        damage = Some(format!(
                            "IPv4 header checksum {:#06x}, should be {right:#06x}",
                            header.header_checksum()
                        ));
                    }
                    (
                        header.source_addr().into(),
                        header.destination_addr().into(),
                        ip.payload_ip_number(),
                        header.ttl(),
                        ip.payload().payload,
                    )
                }
                Some(NetSlice::Ipv6(ip)) => (
                    ip.header().source_addr().into(),
                    ip.header().destination_addr().into(),
                    ip.payload().ip_number,
                    ip.header().hop_limit(),
                    ip.payload().payload,
                ),
                other => panic!("no IP packet: {other:?}"),
            };
        let mut seen = Self {
            macs: (ethernet.source, ethernet.destination),
            vlan: packet.vlan_ids().first().map(|id| id.value()),
            source: SocketAddr::new(source, 0),
            destination: SocketAddr::new(destination, 0),
            protocol: protocol.0,
            ttl,
            is_fragment: packet.is_ip_payload_fragmented(),
            transport_checksum: None,
            ip_payload: ip_payload.to_vec(),
            payload: Vec::new(),
            damage,
        };
        seen.look_at_transport(&packet);
        seen
    }

    /// Puts fragments together, as their receiver does: the datagrams that become complete.
    #[track_caller]
    pub fn whole<'a>(frames: impl IntoIterator<Item = &'a [u8]>) -> Vec<Self> {
        let mut pool = IpDefragPool::<(), ()>::new();
        let mut complete = Vec::new();
        for frame in frames {
            let packet = SlicedPacket::from_ethernet(frame)
                .unwrap_or_else(|error| panic!("{error}, in {frame:02x?}"));
            let added = pool
                .process_sliced_packet(&packet, (), ())
                .unwrap_or_else(|error| panic!("{error}, in {frame:02x?}"));
            if let Some(whole) = added {
                let part = Self::parse(frame);
                complete.push(Self::parse(&part.around(whole.ip_number, &whole.payload)));
            }
        }
        complete
    }

    /// A frame of its own for a payload.
    fn around(&self, protocol: IpNumber, payload: &[u8]) -> Vec<u8> {
        const FITS: &str = "a packet fits in 64 KiB";
        let (ether_type, header) = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let length = payload.len().try_into().expect(FITS);
                let (source, destination) = (source.octets(), destination.octets());
                let header = Ipv4Header::new(length, self.ttl, protocol, source, destination);
                let mut header = header.expect(FITS);
                header.header_checksum = header.calc_header_checksum();
                (EtherType::IPV4, header.to_bytes().to_vec())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let header = Ipv6Header {
                    payload_length: payload.len().try_into().expect(FITS),
                    next_header: protocol,
                    hop_limit: self.ttl,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Ipv6Header::default()
                };
                (EtherType::IPV6, header.to_bytes().to_vec())
            }
            _ => unreachable!("of one packet"),
        };
        let ethernet = Ethernet2Header {
            source: self.macs.0,
            destination: self.macs.1,
            ether_type,
        };
        [&ethernet.to_bytes()[..], &header, payload].concat()
    }

    fn look_at_transport(&mut self, packet: &SlicedPacket<'_>) {
        let (ports, checksum, payload) = match &packet.transport {
            Some(TransportSlice::Udp(udp)) => (
                (udp.source_port(), udp.destination_port()),
                udp.checksum(),
                udp.payload(),
            ),
            Some(TransportSlice::Tcp(tcp)) => (
                (tcp.source_port(), tcp.destination_port()),
                tcp.checksum(),
                tcp.payload(),
            ),
            Some(TransportSlice::Icmpv4(icmp)) => {
                let id = echo_id(matches!(icmp.type_u8(), 0 | 8), icmp.bytes5to8());
                ((id, id), icmp.checksum(), icmp.payload())
            }
            Some(TransportSlice::Icmpv6(icmp)) => {
                let id = echo_id(matches!(icmp.type_u8(), 128 | 129), icmp.bytes5to8());
                ((id, id), icmp.checksum(), icmp.payload())
            }
            // Another protocol, or a fragment, which etherparse leaves alone.
            _ => return,
        };
        self.source.set_port(ports.0);
        self.destination.set_port(ports.1);
        self.transport_checksum = Some(checksum);
        self.payload = payload.to_vec();
        let wrong = transport_damage(
            self.source.ip(),
            self.destination.ip(),
            IpNumber(self.protocol),
            &self.ip_payload,
            checksum,
        );
        self.damage = self.damage.take().or(wrong);
    }

    /// An ICMP message that quotes a packet.
    pub fn is_icmp_error(&self) -> bool {
        let kind = self.ip_payload.first();
        match IpNumber(self.protocol) {
            IpNumber::ICMP => matches!(kind, Some(3 | 11 | 12)),
            IpNumber::IPV6_ICMP => matches!(kind, Some(1..=4)),
            _ => false,
        }
    }

    /// The first wrong checksum, in words. UDP over IPv4 may have none (0).
    pub fn damage(&self) -> Option<&str> {
        self.damage.as_deref()
    }
}

/// Panics where a checksum of the frame's IP packet is wrong. UDP over IPv4 with checksum 0 counts
/// as whole; where it must have one, compare [`Seen::transport_checksum`] too.
#[track_caller]
pub fn assert_checksums(frame: &[u8]) {
    let seen = Seen::parse(frame);
    if let Some(damage) = seen.damage() {
        panic!("{damage}, in {seen:?}");
    }
}

fn echo_id(is_echo: bool, bytes: [u8; 4]) -> u16 {
    if is_echo {
        u16::from_be_bytes([bytes[0], bytes[1]])
    } else {
        0
    }
}

/// The checksum over pseudo-header and payload comes out as 0 where it is right (RFC 1071).
fn transport_damage(
    source: IpAddr,
    destination: IpAddr,
    protocol: IpNumber,
    payload: &[u8],
    stands: u16,
) -> Option<String> {
    let name = match protocol {
        IpNumber::UDP => "UDP",
        IpNumber::TCP => "TCP",
        IpNumber::ICMP => "ICMP",
        IpNumber::IPV6_ICMP => "ICMPv6",
        _ => return None,
    };
    if protocol == IpNumber::UDP && stands == 0 {
        return source
            .is_ipv6()
            .then(|| "UDP over IPv6 without a checksum".to_owned());
    }
    let length = u32::try_from(payload.len())
        .unwrap_or(u32::MAX)
        .to_be_bytes();
    let mut sum = Sum16BitWords::new();
    // ICMP over IPv4 alone has no pseudo-header.
    if protocol != IpNumber::ICMP {
        sum = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => sum
                .add_4bytes(source.octets())
                .add_4bytes(destination.octets()),
            (IpAddr::V6(source), IpAddr::V6(destination)) => sum
                .add_16bytes(source.octets())
                .add_16bytes(destination.octets()),
            _ => return Some("addresses of two families".to_owned()),
        };
        sum = sum.add_4bytes(length).add_2bytes([0, protocol.0]);
    }
    let off = sum.add_slice(payload).ones_complement();
    (off != 0).then(|| format!("{name} checksum {stands:#06x} is off by {off:#06x}"))
}
