//! Builds the packets that the tests send through the programs, and looks at those that come out.
//!
//! Headers, lengths and checksums are etherparse's: an independent implementation, so that an
//! error in netfw's own arithmetic cannot hide behind itself. One builder serves IPv4 and IPv6;
//! which one it is, the addresses say. Damage is asked for by name.

use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
};

use etherparse::{
    EtherType, Ethernet2Header, Icmpv4Type, Icmpv6Type, IpFragOffset, IpNumber, Ipv4Header,
    Ipv4Options, Ipv6FragmentHeader, Ipv6Header, SingleVlanHeader, TcpHeader, UdpHeader, VlanId,
};

pub use crate::packet::seen::{Damage, Seen, assert_checksums};

mod seen;

pub const TTL: u8 = 64;

#[derive(Clone, Debug)]
enum Transport {
    Udp,
    Tcp { flags: String, seq: u32, ack: u32 },
    Sctp { chunk: u8, tag: u32 },
    EchoRequest { id: u16, seq: u16 },
    EchoReply { id: u16, seq: u16 },
    IcmpError { kind: u8, code: u8, parameter: u32 },
    Raw(IpNumber),
}

/// An ICMP error, of either family (RFC 792, 1191, 4443).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// No route.
    Unreachable,
    PortUnreachable,
    Prohibited,
    /// Fragmentation needed, packet too big: with the MTU of the next hop.
    TooBig(u16),
    TimeExceeded,
    /// With a pointer to the byte.
    ParameterProblem(u8),
}

impl IcmpError {
    /// Type, code, and the four bytes behind the checksum.
    pub fn numbers(self, ipv4: bool) -> (u8, u8, u32) {
        match (self, ipv4) {
            (Self::Unreachable, true) => (3, 0, 0),
            (Self::Unreachable, false) => (1, 0, 0),
            (Self::PortUnreachable, true) => (3, 3, 0),
            (Self::PortUnreachable, false) => (1, 4, 0),
            (Self::Prohibited, true) => (3, 13, 0),
            (Self::Prohibited, false) => (1, 1, 0),
            (Self::TooBig(mtu), true) => (3, 4, mtu.into()),
            (Self::TooBig(mtu), false) => (2, 0, mtu.into()),
            (Self::TimeExceeded, true) => (11, 0, 0),
            (Self::TimeExceeded, false) => (3, 0, 0),
            (Self::ParameterProblem(at), true) => (12, 0, u32::from(at) << 24),
            (Self::ParameterProblem(at), false) => (4, 0, at.into()),
        }
    }
}

/// A packet to be; [`build`](Packet::build) gives its bytes, from the Ethernet header on.
#[derive(Clone, Debug)]
pub struct Packet {
    source: SocketAddr,
    destination: SocketAddr,
    transport: Transport,
    payload: Vec<u8>,
    macs: ([u8; 6], [u8; 6]),
    ttl: u8,
    tos: u8,
    vlan: Option<u16>,
    options: Vec<u8>,
    fragment: Option<Range<usize>>,
    id: u16,
    dont_fragment: bool,
    without_checksum: bool,
    bad_ip_checksum: bool,
    bad_transport_checksum: bool,
    trailer: usize,
}

impl Packet {
    fn new(source: SocketAddr, destination: SocketAddr, transport: Transport) -> Self {
        assert_eq!(
            source.is_ipv4(),
            destination.is_ipv4(),
            "{source} and {destination} are of one family"
        );
        Self {
            source,
            destination,
            transport,
            payload: b"netfw".to_vec(),
            macs: ([2, 0, 0, 0, 0, 0xa], [2, 0, 0, 0, 0, 0xb]),
            ttl: TTL,
            tos: 0,
            vlan: None,
            options: Vec::new(),
            fragment: None,
            id: 0x4e46,
            dont_fragment: true,
            without_checksum: false,
            bad_ip_checksum: false,
            bad_transport_checksum: false,
            trailer: 0,
        }
    }

    /// `Packet::udp("10.1.0.2:4000", "10.1.0.1:8080")`, `"[fd00:1::2]:4000"` for IPv6.
    #[track_caller]
    pub fn udp(source: &str, destination: &str) -> Self {
        Self::new(socket(source), socket(destination), Transport::Udp)
    }

    /// `flags` as tcpdump writes them: `S` SYN, `.` ACK, `F` FIN, `R` RST, `P` PSH, `U` URG.
    #[track_caller]
    pub fn tcp(source: &str, destination: &str, flags: &str) -> Self {
        let transport = Transport::Tcp {
            flags: flags.to_owned(),
            seq: 1000,
            // Of a SYN, which has the same number.
            ack: if flags.contains('.') { 1001 } else { 0 },
        };
        let packet = Self::new(socket(source), socket(destination), transport);
        // Segments that open or end a connection carry no data.
        packet.payload(if flags.contains(['S', 'R']) {
            b""
        } else {
            b"netfw"
        })
    }

    /// A packet of one chunk, by its type, with a verification tag; the payload is what follows the
    /// head of the chunk.
    #[track_caller]
    pub fn sctp(source: &str, destination: &str, chunk: u8, tag: u32) -> Self {
        let transport = Transport::Sctp { chunk, tag };
        Self::new(socket(source), socket(destination), transport)
    }

    /// The payload of an INIT or INIT ACK: it asks for packets with this tag.
    pub fn initiate(self, tag: u32) -> Self {
        // A window of 64 KiB, ten streams each way, and the first number.
        let rest = [0, 1, 0, 0, 0, 10, 0, 10, 0, 0, 0, 1];
        self.payload(&[&tag.to_be_bytes()[..], &rest].concat())
    }

    /// An ICMP or ICMPv6 echo request.
    #[track_caller]
    pub fn ping(source: &str, destination: &str, id: u16) -> Self {
        let transport = Transport::EchoRequest { id, seq: 1 };
        Self::new(host(source), host(destination), transport)
    }

    /// The answer to one.
    #[track_caller]
    pub fn pong(source: &str, destination: &str, id: u16) -> Self {
        let transport = Transport::EchoReply { id, seq: 1 };
        Self::new(host(source), host(destination), transport)
    }

    /// An ICMP error that quotes an IP packet, or the beginning of one.
    #[track_caller]
    pub fn icmp_error(source: &str, destination: &str, error: IcmpError, quote: &[u8]) -> Self {
        let (source, destination) = (host(source), host(destination));
        let (kind, code, parameter) = error.numbers(source.is_ipv4());
        let transport = Transport::IcmpError {
            kind,
            code,
            parameter,
        };
        Self::new(source, destination, transport).payload(quote)
    }

    /// Any protocol; the payload is all that follows the IP header, checksum and all.
    #[track_caller]
    pub fn raw(source: &str, destination: &str, protocol: u8, payload: &[u8]) -> Self {
        let transport = Transport::Raw(IpNumber(protocol));
        Self::new(host(source), host(destination), transport).payload(payload)
    }

    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// Source and destination MAC address.
    pub fn macs(mut self, source: [u8; 6], destination: [u8; 6]) -> Self {
        self.macs = (source, destination);
        self
    }

    /// TTL, or hop limit.
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// The whole TOS byte (traffic class): DSCP and ECN.
    pub fn tos(mut self, tos: u8) -> Self {
        self.tos = tos;
        self
    }

    /// Sequence and acknowledgement number of a TCP segment.
    pub fn numbers(mut self, new_seq: u32, new_ack: u32) -> Self {
        match &mut self.transport {
            Transport::Tcp { seq, ack, .. } => (*seq, *ack) = (new_seq, new_ack),
            other => panic!("{other:?} has no sequence numbers"),
        }
        self
    }

    /// An 802.1Q tag in the frame.
    pub fn vlan(mut self, id: u16) -> Self {
        self.vlan = Some(id);
        self
    }

    /// IPv4 options; a multiple of four bytes.
    pub fn ip_options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    /// Only this part of the IP payload, as a fragment of the whole; more follow unless it
    /// reaches to the end. It starts at a multiple of eight bytes. The transport checksum is
    /// that of the whole.
    pub fn fragment(mut self, part: Range<usize>) -> Self {
        self.fragment = Some(part);
        self.dont_fragment = false;
        self
    }

    /// What names the datagram that it is a fragment of.
    pub fn id(mut self, id: u16) -> Self {
        self.id = id;
        self
    }

    /// The whole in fragments of at most `len` bytes each, a multiple of eight.
    pub fn fragments(&self, len: usize) -> Vec<Self> {
        let whole = self.transport().len();
        (0..whole)
            .step_by(len)
            .map(|start| self.clone().fragment(start..whole.min(start + len)))
            .collect()
    }

    /// UDP over IPv4 with checksum 0: none.
    pub fn udp_without_checksum(mut self) -> Self {
        self.without_checksum = true;
        self
    }

    /// SCTP with checksum 0: to be filled in by hardware, or none at all (RFC 9653).
    pub fn sctp_without_checksum(mut self) -> Self {
        self.without_checksum = true;
        self
    }

    pub fn bad_ip_checksum(mut self) -> Self {
        self.bad_ip_checksum = true;
        self
    }

    pub fn bad_transport_checksum(mut self) -> Self {
        self.bad_transport_checksum = true;
        self
    }

    /// Bytes behind the IP packet, as Ethernet pads short frames.
    pub fn trailer(mut self, bytes: usize) -> Self {
        self.trailer = bytes;
        self
    }

    /// The frame.
    pub fn build(&self) -> Vec<u8> {
        let ether_type = if self.source.is_ipv4() {
            EtherType::IPV4
        } else {
            EtherType::IPV6
        };
        let ethernet = Ethernet2Header {
            source: self.macs.0,
            destination: self.macs.1,
            ether_type: match self.vlan {
                Some(_) => EtherType::VLAN_TAGGED_FRAME,
                None => ether_type,
            },
        };
        let mut frame = ethernet.to_bytes().to_vec();
        if let Some(id) = self.vlan {
            let tag = SingleVlanHeader {
                vlan_id: VlanId::try_new(id).expect("a VLAN id has 12 bits"),
                ether_type,
                ..SingleVlanHeader::default()
            };
            frame.extend(tag.to_bytes());
        }
        frame.extend(self.ip());
        frame.resize(frame.len() + self.trailer, 0);
        frame
    }

    /// The IP packet alone, as ICMP errors quote it.
    pub fn ip(&self) -> Vec<u8> {
        let whole = self.transport();
        let part = self.fragment.clone().unwrap_or(0..whole.len());
        let more = part.end < whole.len();
        assert!(
            part.start.is_multiple_of(8) && part.end <= whole.len(),
            "{part:?} is no fragment of {} bytes",
            whole.len()
        );
        let offset = u16::try_from(part.start / 8)
            .ok()
            .and_then(|units| IpFragOffset::try_new(units).ok())
            .expect("a fragment offset has 13 bits");
        let payload = &whole[part];
        let mut bytes = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = Ipv4Header::new(
                    u16::try_from(payload.len()).expect("a packet fits in 64 KiB"),
                    self.ttl,
                    self.protocol(),
                    source.octets(),
                    destination.octets(),
                )
                .expect("a packet fits in 64 KiB");
                header.identification = self.id;
                header.dont_fragment = self.dont_fragment;
                header.more_fragments = more;
                header.fragment_offset = offset;
                header.options = Ipv4Options::try_from(&self.options[..])
                    .expect("IPv4 options are at most 40 bytes, a multiple of 4");
                header
                    .set_payload_len(payload.len())
                    .expect("a packet fits in 64 KiB");
                let mut bytes = header.to_bytes().to_vec();
                bytes[1] = self.tos;
                header = Ipv4Header::from_slice(&bytes).expect("a header of ours").0;
                let mut sum = header.calc_header_checksum();
                if self.bad_ip_checksum {
                    sum ^= 0x0100;
                }
                bytes[10..12].copy_from_slice(&sum.to_be_bytes());
                bytes
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let extension = self.fragment.as_ref().map(|_| Ipv6FragmentHeader {
                    next_header: self.protocol(),
                    fragment_offset: offset,
                    more_fragments: more,
                    identification: self.id.into(),
                });
                let extension = extension.map_or(Vec::new(), |header| header.to_bytes().to_vec());
                let header = Ipv6Header {
                    payload_length: u16::try_from(extension.len() + payload.len())
                        .expect("a packet fits in 64 KiB"),
                    next_header: if extension.is_empty() {
                        self.protocol()
                    } else {
                        IpNumber::IPV6_FRAGMENTATION_HEADER
                    },
                    hop_limit: self.ttl,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Ipv6Header::default()
                };
                let mut bytes = header.to_bytes().to_vec();
                // The traffic class lies across the first two bytes.
                bytes[0] |= self.tos >> 4;
                bytes[1] |= self.tos << 4;
                bytes.extend(extension);
                bytes
            }
            _ => unreachable!("checked by `new`"),
        };
        bytes.extend(payload);
        bytes
    }

    fn protocol(&self) -> IpNumber {
        match (&self.transport, self.source.is_ipv4()) {
            (Transport::Udp, _) => IpNumber::UDP,
            (Transport::Tcp { .. }, _) => IpNumber::TCP,
            (Transport::Sctp { .. }, _) => IpNumber::SCTP,
            (Transport::Raw(protocol), _) => *protocol,
            // The others are ICMP.
            (_, true) => IpNumber::ICMP,
            (_, false) => IpNumber::IPV6_ICMP,
        }
    }

    /// Transport header and payload.
    fn transport(&self) -> Vec<u8> {
        const FITS: &str = "a payload fits in 64 KiB";
        let addresses = (self.source.ip(), self.destination.ip());
        let (mut bytes, checksum_at) = match &self.transport {
            Transport::Udp => {
                let mut header = UdpHeader {
                    source_port: self.source.port(),
                    destination_port: self.destination.port(),
                    length: u16::try_from(8 + self.payload.len()).expect(FITS),
                    checksum: 0,
                };
                if !self.without_checksum {
                    header.checksum = match addresses {
                        (IpAddr::V4(source), IpAddr::V4(destination)) => header
                            .calc_checksum_ipv4_raw(
                                source.octets(),
                                destination.octets(),
                                &self.payload,
                            ),
                        (IpAddr::V6(source), IpAddr::V6(destination)) => header
                            .calc_checksum_ipv6_raw(
                                source.octets(),
                                destination.octets(),
                                &self.payload,
                            ),
                        _ => unreachable!("checked by `new`"),
                    }
                    .expect(FITS);
                }
                (header.to_bytes().to_vec(), 6)
            }
            Transport::Tcp { flags, seq, ack } => {
                let mut header =
                    TcpHeader::new(self.source.port(), self.destination.port(), *seq, 64240);
                header.acknowledgment_number = *ack;
                for flag in flags.chars() {
                    match flag {
                        'S' => header.syn = true,
                        '.' => header.ack = true,
                        'F' => header.fin = true,
                        'R' => header.rst = true,
                        'P' => header.psh = true,
                        'U' => header.urg = true,
                        other => panic!("{other:?} is no TCP flag"),
                    }
                }
                header.checksum = match addresses {
                    (IpAddr::V4(source), IpAddr::V4(destination)) => header.calc_checksum_ipv4_raw(
                        source.octets(),
                        destination.octets(),
                        &self.payload,
                    ),
                    (IpAddr::V6(source), IpAddr::V6(destination)) => header.calc_checksum_ipv6_raw(
                        source.octets(),
                        destination.octets(),
                        &self.payload,
                    ),
                    _ => unreachable!("checked by `new`"),
                }
                .expect(FITS);
                (header.to_bytes().to_vec(), 16)
            }
            Transport::Sctp { chunk, tag } => {
                let len = u16::try_from(4 + self.payload.len()).expect(FITS);
                let mut header = Vec::new();
                header.extend(self.source.port().to_be_bytes());
                header.extend(self.destination.port().to_be_bytes());
                header.extend(tag.to_be_bytes());
                header.extend([0; 4]);
                header.extend([*chunk, 0]);
                header.extend(len.to_be_bytes());
                if !self.without_checksum {
                    let sum = crc32c::crc32c_append(crc32c::crc32c(&header), &self.payload);
                    header[8..12].copy_from_slice(&sum.to_le_bytes());
                }
                (header, 8)
            }
            Transport::EchoRequest { id, seq } | Transport::EchoReply { id, seq } => {
                let request = matches!(self.transport, Transport::EchoRequest { .. });
                let kinds = if addresses.0.is_ipv4() {
                    (8, 0)
                } else {
                    (128, 129)
                };
                let kind = if request { kinds.0 } else { kinds.1 };
                let [a, b] = [*id, *seq].map(u16::to_be_bytes);
                let rest = [a[0], a[1], b[0], b[1]];
                (icmp_header(addresses, (kind, 0), rest, &self.payload), 2)
            }
            Transport::IcmpError {
                kind,
                code,
                parameter,
            } => {
                let rest = parameter.to_be_bytes();
                (
                    icmp_header(addresses, (*kind, *code), rest, &self.payload),
                    2,
                )
            }
            Transport::Raw(_) => (Vec::new(), usize::MAX),
        };
        if self.bad_transport_checksum {
            assert!(
                checksum_at != usize::MAX,
                "a raw packet has no known checksum"
            );
            bytes[checksum_at] ^= 0x01;
        }
        bytes.extend(&self.payload);
        bytes
    }
}

/// A header with type, code and the four bytes behind the checksum.
fn icmp_header(
    addresses: (IpAddr, IpAddr),
    (kind, code): (u8, u8),
    rest: [u8; 4],
    payload: &[u8],
) -> Vec<u8> {
    const FITS: &str = "a payload fits in 64 KiB";
    let checksum = if let (IpAddr::V6(source), IpAddr::V6(destination)) = addresses {
        let kind = Icmpv6Type::Unknown {
            type_u8: kind,
            code_u8: code,
            bytes5to8: rest,
        };
        kind.calc_checksum(source.octets(), destination.octets(), payload)
            .expect(FITS)
    } else {
        let kind = Icmpv4Type::Unknown {
            type_u8: kind,
            code_u8: code,
            bytes5to8: rest,
        };
        kind.calc_checksum(payload)
    };
    let sum = checksum.to_be_bytes();
    [&[kind, code], &sum[..], &rest[..]].concat()
}

#[track_caller]
fn socket(text: &str) -> SocketAddr {
    text.parse()
        .unwrap_or_else(|_| panic!("{text:?} is no ADDRESS:PORT"))
}

#[track_caller]
fn host(text: &str) -> SocketAddr {
    let address: IpAddr = text
        .parse()
        .unwrap_or_else(|_| panic!("{text:?} is no address"));
    SocketAddr::new(address, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Packet> {
        let pairs = [
            ("10.1.0.2", "10.1.0.1", "10.1.0.2:4000", "10.1.0.1:8080"),
            ("fd00::2", "fd00::1", "[fd00::2]:4000", "[fd00::1]:8080"),
        ];
        pairs
            .into_iter()
            .flat_map(|(from, to, source, destination)| {
                [
                    Packet::udp(source, destination),
                    Packet::tcp(source, destination, "S"),
                    Packet::tcp(source, destination, "P.").payload(b"odd"),
                    Packet::ping(from, to, 7),
                    Packet::pong(from, to, 7),
                    Packet::sctp(source, destination, 1, 0).initiate(77),
                    Packet::sctp(source, destination, 0, 77).payload(b"odd"),
                ]
            })
            .collect()
    }

    #[test]
    fn what_is_built_is_whole() {
        for packet in samples() {
            assert_checksums(&packet.build());
            assert_checksums(&packet.clone().vlan(5).build());
            assert_checksums(&packet.clone().tos(0xff).ttl(1).trailer(12).build());
            if packet.source.is_ipv4() {
                assert_checksums(&packet.clone().ip_options(&[1, 1, 1, 0]).build());
            }
        }
    }

    #[test]
    fn damage_is_seen() {
        for packet in samples() {
            let broken = packet.clone().bad_transport_checksum().build();
            assert!(!Seen::parse(&broken).damage.is_empty(), "{packet:?}");
            if packet.source.is_ipv4() {
                let broken = packet.clone().bad_ip_checksum().build();
                assert!(!Seen::parse(&broken).damage.is_empty(), "{packet:?}");
            }
        }
    }

    #[test]
    fn fragments_make_up_the_whole() {
        for packet in samples() {
            let packet = packet.payload(&[7; 40]);
            let whole = packet.transport();
            let [first, second] =
                [0..24, 24..whole.len()].map(|part| packet.clone().fragment(part).build());
            let (first, second) = (Seen::parse(&first), Seen::parse(&second));
            assert!(first.is_fragment && second.is_fragment);
            assert_eq!([first.ip_payload, second.ip_payload].concat(), whole);
        }
    }

    #[test]
    fn fragments_are_put_together() {
        for packet in samples() {
            let packet = packet.payload(&[7; 3000]);
            let mut frames: Vec<Vec<u8>> =
                packet.fragments(1000).iter().map(Packet::build).collect();
            assert_eq!(frames.len(), 4);
            assert_eq!(Seen::whole(frames[..3].iter().map(|f| &f[..])), []);
            frames.rotate_left(1);
            let whole = Seen::whole(frames.iter().map(|frame| &frame[..]));
            let wanted = Seen::parse(&packet.build());
            assert_eq!(whole, [wanted]);
        }
    }
}
