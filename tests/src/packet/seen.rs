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
    /// Bytes of the IP packet.
    pub ip_len: usize,
    /// As it stands in the packet; `None` where there is none, or only in another fragment.
    pub transport_checksum: Option<u16>,
    /// All that follows the IP header and its extensions.
    pub ip_payload: Vec<u8>,
    /// What follows the transport header.
    pub payload: Vec<u8>,
    /// Its wrong checksums.
    pub damage: Vec<Damage>,
}

/// A wrong checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    pub what: &'static str,
    /// The sum of all that it covers, and of itself: 0 if it were right (RFC 1071). In network
    /// order. Of SCTP, the bits that are wrong.
    pub off: u32,
}

/// Takes a frame apart. To etherparse an IPv6 packet whose length is 0 goes on to the frame's end, as "BIG
/// TCP" does; it does so only where it is longer than that field can tell.
fn slice(frame: &[u8]) -> Result<SlicedPacket<'_>, String> {
    let whole = |frame| SlicedPacket::from_ethernet(frame).map_err(|error| error.to_string());
    let packet = whole(frame)?;
    let header = Ethernet2Header::LEN + 4 * packet.vlan_ids().len() + Ipv6Header::LEN;
    match &packet.net {
        Some(NetSlice::Ipv6(ip))
            if ip.header().payload_length() == 0
                && frame.len() <= header + usize::from(u16::MAX) =>
        {
            whole(&frame[..header])
        }
        _ => Ok(packet),
    }
}

impl Seen {
    /// Panics where the bytes are no Ethernet frame with a whole IP packet.
    #[track_caller]
    pub fn parse(frame: &[u8]) -> Self {
        Self::try_parse(frame).unwrap_or_else(|error| panic!("{error}, in {frame:02x?}"))
    }

    /// The error says why the bytes are no Ethernet frame with a whole IP packet.
    pub fn try_parse(frame: &[u8]) -> Result<Self, String> {
        let packet = slice(frame)?;
        let ethernet = match &packet.link {
            Some(etherparse::LinkSlice::Ethernet2(ethernet)) => ethernet.to_header(),
            other => return Err(format!("no Ethernet header: {other:?}")),
        };
        let mut damage = Vec::new();
        let (source, destination, protocol, ttl, ip_payload, ip_len): (IpAddr, IpAddr, _, _, _, _) =
            match &packet.net {
                Some(NetSlice::Ipv4(ip)) => {
                    let header = ip.header();
                    let off = Sum16BitWords::new()
                        .add_slice(header.slice())
                        .ones_complement();
                    if off != 0 {
                        damage.push(Damage {
                            what: "IPv4 header",
                            off: off.into(),
                        });
                    }
                    (
                        header.source_addr().into(),
                        header.destination_addr().into(),
                        ip.payload_ip_number(),
                        header.ttl(),
                        ip.payload().payload,
                        usize::from(header.total_len()),
                    )
                }
                Some(NetSlice::Ipv6(ip)) => (
                    ip.header().source_addr().into(),
                    ip.header().destination_addr().into(),
                    ip.payload().ip_number,
                    ip.header().hop_limit(),
                    ip.payload().payload,
                    40 + usize::from(ip.header().payload_length()),
                ),
                other => return Err(format!("no IP packet: {other:?}")),
            };
        let mut seen = Self {
            macs: (ethernet.source, ethernet.destination),
            vlan: packet.vlan_ids().first().map(|id| id.value()),
            source: SocketAddr::new(source, 0),
            destination: SocketAddr::new(destination, 0),
            protocol: protocol.0,
            ttl,
            is_fragment: packet.is_ip_payload_fragmented(),
            ip_len,
            transport_checksum: None,
            ip_payload: ip_payload.to_vec(),
            payload: Vec::new(),
            damage,
        };
        seen.look_at_transport(&packet);
        Ok(seen)
    }

    /// Does the checksum's field hold the sum of the pseudo-header, as it does where a device is still to
    /// fill it in? Of other packets one in 65536 looks so.
    pub fn looks_partial(&self) -> bool {
        let (source, destination) = (self.source.ip(), self.destination.ip());
        let protocol = IpNumber(self.protocol);
        let sum = pseudo_header(source, destination, protocol, self.ip_payload.len());
        self.transport_checksum == Some(!u16::from_be(sum.ones_complement()))
    }

    /// Puts fragments together, as their receiver does: the datagrams that become complete.
    #[track_caller]
    pub fn whole<'a>(frames: impl IntoIterator<Item = &'a [u8]>) -> Vec<Self> {
        let mut pool = IpDefragPool::<(), ()>::new();
        let mut complete = Vec::new();
        for frame in frames {
            let packet = slice(frame).unwrap_or_else(|error| panic!("{error}, in {frame:02x?}"));
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
            // A fragment, which etherparse leaves alone.
            _ if self.is_fragment => return,
            _ if self.protocol == IpNumber::SCTP.0 => return self.look_at_sctp(),
            _ => {
                self.payload.clone_from(&self.ip_payload);
                return;
            }
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
        self.damage.extend(wrong);
    }

    /// SCTP, which etherparse does not know. The chunks are the payload.
    fn look_at_sctp(&mut self) {
        let Some((header, chunks)) = self.ip_payload.split_first_chunk::<12>() else {
            return;
        };
        let [a, b, c, d, _, _, _, _, checksum @ ..] = *header;
        self.source.set_port(u16::from_be_bytes([a, b]));
        self.destination.set_port(u16::from_be_bytes([c, d]));
        self.payload = chunks.to_vec();
        let stands = u32::from_le_bytes(checksum);
        let mut bytes = self.ip_payload.clone();
        bytes[8..12].fill(0);
        let off = stands ^ crc32c::crc32c(&bytes);
        // 0 is none: it is filled in later, or never (RFC 9653).
        if off != 0 && stands != 0 {
            self.damage.push(Damage { what: "SCTP", off });
        }
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

    /// What an ICMP error quotes; of a quote cut short, zeros stand for what is missing.
    #[track_caller]
    pub fn quote(&self) -> Self {
        assert!(self.is_icmp_error(), "quotes nothing: {self:?}");
        self.try_quote()
            .unwrap_or_else(|error| panic!("{error}, quoted in {self:?}"))
    }

    /// The error says why the message quotes no IP packet.
    pub fn try_quote(&self) -> Result<Self, String> {
        let mut quote = self.ip_payload.get(8..).unwrap_or_default().to_vec();
        let (len, transport, ethertype) = match quote[..] {
            [head, _, a, b, ..] if head >> 4 == 4 => (
                u16::from_be_bytes([a, b]).into(),
                usize::from(head & 0xf) * 4,
                [0x08, 0x00],
            ),
            [head, _, _, _, a, b, ..] if head >> 4 == 6 => (
                40 + usize::from(u16::from_be_bytes([a, b])),
                40,
                [0x86, 0xdd],
            ),
            _ => return Err("no IP header".to_owned()),
        };
        if quote.len() <= transport + 12 {
            // Where a TCP header would have its length, and nothing of interest is otherwise.
            quote.resize(transport + 12, 0);
            quote.push(0x50);
        }
        quote.resize(len, 0);
        Self::try_parse(&[&[0; 12], &ethertype[..], &quote].concat())
    }

    /// Type, code, and the four bytes behind the checksum of an ICMP message.
    pub fn icmp_numbers(&self) -> (u8, u8, u32) {
        let [kind, code, _, _, a, b, c, d, ..] = self.ip_payload[..] else {
            panic!("no ICMP message: {self:?}");
        };
        (kind, code, u32::from_be_bytes([a, b, c, d]))
    }
}

/// Panics where a checksum of the frame's IP packet is wrong. UDP over IPv4 with checksum 0 counts
/// as whole; where it must have one, compare [`Seen::transport_checksum`] too.
#[track_caller]
pub fn assert_checksums(frame: &[u8]) {
    let seen = Seen::parse(frame);
    assert!(seen.damage.is_empty(), "{seen:?}");
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
) -> Option<Damage> {
    let what = match protocol {
        IpNumber::UDP => "UDP",
        IpNumber::TCP => "TCP",
        IpNumber::ICMP => "ICMP",
        IpNumber::IPV6_ICMP => "ICMPv6",
        _ => return None,
    };
    if protocol == IpNumber::UDP && stands == 0 {
        let off = 0;
        return source.is_ipv6().then_some(Damage {
            what: "UDP over IPv6 must have one",
            off,
        });
    }
    // ICMP over IPv4 alone has no pseudo-header.
    let sum = if protocol == IpNumber::ICMP {
        Sum16BitWords::new()
    } else {
        pseudo_header(source, destination, protocol, payload.len())
    };
    let off = sum.add_slice(payload).ones_complement();
    (off != 0).then_some(Damage {
        what,
        off: off.into(),
    })
}

/// RFC 9293 3.1, 8200 8.1.
fn pseudo_header(
    source: IpAddr,
    destination: IpAddr,
    protocol: IpNumber,
    length: usize,
) -> Sum16BitWords {
    let mut sum = Sum16BitWords::new();
    sum = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => sum
            .add_4bytes(source.octets())
            .add_4bytes(destination.octets()),
        (IpAddr::V6(source), IpAddr::V6(destination)) => sum
            .add_16bytes(source.octets())
            .add_16bytes(destination.octets()),
        _ => unreachable!("addresses of one header"),
    };
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    sum.add_4bytes(length).add_2bytes([0, protocol.0])
}
