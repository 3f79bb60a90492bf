//! STUN (RFC 8489) as far as it takes to find out how a NAT behaves (RFC 5780): a server with two
//! addresses and two ports, and a client that asks it from behind the NAT.

use std::{
    fmt,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::Namespace;

/// The server's ports, the primary first.
pub const PORTS: [u16; 2] = [3478, 3479];

const REQUEST: u16 = 0x0001;
const RESPONSE: u16 = 0x0101;
const COOKIE: [u8; 4] = 0x2112_a442_u32.to_be_bytes();
const HEADER: usize = 20;

const CHANGE_REQUEST: u16 = 0x0003;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const OTHER_ADDRESS: u16 = 0x802c;

const CHANGE_IP: u8 = 0x04;
const CHANGE_PORT: u8 = 0x02;

/// How long the server's threads wait before they look whether they shall end.
const GLANCE: Duration = Duration::from_millis(50);
/// For an answer that must come.
const PATIENCE: Duration = Duration::from_secs(5);
/// For one that may be filtered.
const DOUBT: Duration = Duration::from_millis(300);

/// RFC 5780 4.3.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mapping {
    /// There is no NAT.
    None,
    EndpointIndependent,
    AddressDependent,
    AddressAndPortDependent,
}

/// RFC 5780 4.4.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filtering {
    EndpointIndependent,
    AddressDependent,
    AddressAndPortDependent,
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::None => "No NAT",
            Self::EndpointIndependent => "Endpoint-Independent Mapping",
            Self::AddressDependent => "Address-Dependent Mapping",
            Self::AddressAndPortDependent => "Address and Port-Dependent Mapping",
        })
    }
}

impl fmt::Display for Filtering {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::EndpointIndependent => "Endpoint-Independent Filtering",
            Self::AddressDependent => "Address-Dependent Filtering",
            Self::AddressAndPortDependent => "Address and Port-Dependent Filtering",
        })
    }
}

/// A server on two addresses, on [`PORTS`] of each.
pub struct Server {
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    #[track_caller]
    pub fn start(namespace: &Namespace, addresses: [IpAddr; 2]) -> Self {
        let at = |n: usize| SocketAddr::new(addresses[n / 2], PORTS[n % 2]);
        let sockets: Arc<[UdpSocket]> = (0..4)
            .map(|n| namespace.enter(|| UdpSocket::bind(at(n)).expect("the port is free")))
            .collect();
        let end = Arc::new(AtomicBool::new(false));
        let threads = (0..4)
            .map(|n| {
                let (sockets, end, other) = (sockets.clone(), end.clone(), at(n ^ 3));
                sockets[n].set_read_timeout(Some(GLANCE)).expect("not 0");
                thread::spawn(move || {
                    let mut buffer = [0; 1500];
                    while !end.load(Ordering::Relaxed) {
                        if let Ok((length, from)) = sockets[n].recv_from(&mut buffer)
                            && let Some((answer, change)) = serve(&buffer[..length], from, other)
                        {
                            let _ = sockets[n ^ change].send_to(&answer, from);
                        }
                    }
                })
            })
            .collect();
        Self { end, threads }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The response to a request, and by which other of the four sockets it goes: of two bits, the upper
/// is for the other address, the lower for the other port.
fn serve(request: &[u8], from: SocketAddr, other: SocketAddr) -> Option<(Vec<u8>, usize)> {
    let id = transaction(request, REQUEST)?;
    let flags = attribute(request, CHANGE_REQUEST).map_or(0, |value| value[3]);
    let change = usize::from(flags & CHANGE_IP != 0) * 2 + usize::from(flags & CHANGE_PORT != 0);
    let mut attributes = encode(XOR_MAPPED_ADDRESS, &address(from, Some(id)));
    attributes.extend(encode(OTHER_ADDRESS, &address(other, None)));
    Some((message(RESPONSE, id, &attributes), change))
}

fn message(kind: u16, id: &[u8], attributes: &[u8]) -> Vec<u8> {
    let length = attributes.len() as u16;
    [
        &kind.to_be_bytes()[..],
        &length.to_be_bytes(),
        &COOKIE,
        id,
        attributes,
    ]
    .concat()
}

/// The transaction's id, if it is a message of this kind.
fn transaction(message: &[u8], kind: u16) -> Option<&[u8]> {
    (message.starts_with(&kind.to_be_bytes()) && message.get(4..8)? == COOKIE)
        .then(|| message.get(8..HEADER))?
}

/// All attributes here are multiples of 4 long.
fn encode(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = value.len() as u16;
    [&kind.to_be_bytes()[..], &length.to_be_bytes(), value].concat()
}

fn attribute(message: &[u8], kind: u16) -> Option<&[u8]> {
    let mut rest = message.get(HEADER..)?;
    while let [k0, k1, l0, l1, tail @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*l0, *l1]));
        let value = tail.get(..length)?;
        if [*k0, *k1] == kind.to_be_bytes() {
            return Some(value);
        }
        rest = tail.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// An address attribute's value; XORed where there is an `id` (RFC 8489 14.2).
fn address(addr: SocketAddr, id: Option<&[u8]>) -> Vec<u8> {
    let (family, ip) = match addr.ip() {
        IpAddr::V4(ip) => (1, ip.octets().to_vec()),
        IpAddr::V6(ip) => (2, ip.octets().to_vec()),
    };
    let mut value = vec![0, family];
    value.extend(addr.port().to_be_bytes());
    value.extend(ip);
    if let Some(id) = id {
        xor(&mut value, id);
    }
    value
}

fn parse_address(value: &[u8], id: Option<&[u8]>) -> Option<SocketAddr> {
    let mut value = value.to_vec();
    if let Some(id) = id {
        xor(&mut value, id);
    }
    let port = u16::from_be_bytes([*value.get(2)?, *value.get(3)?]);
    let ip: IpAddr = match value.get(1)? {
        1 => Ipv4Addr::from(<[u8; 4]>::try_from(&value[4..]).ok()?).into(),
        2 => Ipv6Addr::from(<[u8; 16]>::try_from(&value[4..]).ok()?).into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

fn xor(value: &mut [u8], id: &[u8]) {
    let mask: Vec<u8> = COOKIE.iter().chain(id).copied().collect();
    // The port with the cookie's first half, the address with all of it and the id.
    let (port, ip) = value[2..].split_at_mut(2);
    for (byte, mask) in port.iter_mut().zip(&mask) {
        *byte ^= mask;
    }
    for (byte, mask) in ip.iter_mut().zip(&mask) {
        *byte ^= mask;
    }
}

/// Asks a [`Server`], from one socket for each question.
pub struct Client<'a> {
    namespace: &'a Namespace,
    /// The server's primary address.
    server: SocketAddr,
}

impl<'a> Client<'a> {
    pub fn new(namespace: &'a Namespace, server: IpAddr) -> Self {
        let server = SocketAddr::new(server, PORTS[0]);
        Self { namespace, server }
    }

    #[track_caller]
    fn socket(&self, port: u16) -> UdpSocket {
        let any: IpAddr = match self.server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        self.namespace
            .enter(|| UdpSocket::bind((any, port)).expect("a free port"))
    }

    /// The mapped address, and the server's other one; as `to` sees it.
    #[track_caller]
    fn bind(&self, socket: &UdpSocket, to: SocketAddr) -> (SocketAddr, SocketAddr) {
        ask(socket, to, 0, PATIENCE).unwrap_or_else(|| panic!("{to} does not answer"))
    }

    /// The tests of RFC 5780 4.3, from a port of the client's (0: any).
    #[track_caller]
    pub fn mapping(&self, port: u16) -> Mapping {
        let socket = self.socket(port);
        let (first, other) = self.bind(&socket, self.server);
        let own = self.namespace.enter(|| {
            let probe = UdpSocket::bind(SocketAddr::new(first.ip(), 0));
            probe.is_ok()
        });
        if own {
            return Mapping::None;
        }
        let (second, _) = self.bind(&socket, SocketAddr::new(other.ip(), self.server.port()));
        if second == first {
            return Mapping::EndpointIndependent;
        }
        let (third, _) = self.bind(&socket, other);
        if third == second {
            Mapping::AddressDependent
        } else {
            Mapping::AddressAndPortDependent
        }
    }

    /// The tests of RFC 5780 4.4.
    #[track_caller]
    pub fn filtering(&self) -> Filtering {
        let socket = self.socket(0);
        self.bind(&socket, self.server);
        let answers = |change| ask(&socket, self.server, change, DOUBT).is_some();
        if answers(CHANGE_IP | CHANGE_PORT) {
            Filtering::EndpointIndependent
        } else if answers(CHANGE_PORT) {
            Filtering::AddressDependent
        } else {
            Filtering::AddressAndPortDependent
        }
    }

    /// RFC 5780 3.4: does what is sent to the client's own mapped address, from another port, come back?
    /// And from which address does it seem to come, its own or a mapped one?
    #[track_caller]
    pub fn hairpinning(&self) -> Option<Hairpin> {
        let (one, two) = (self.socket(0), self.socket(0));
        let (mapped, _) = self.bind(&one, self.server);
        let (external, _) = self.bind(&two, self.server);
        one.set_read_timeout(Some(DOUBT)).expect("not 0");
        two.send_to(b"hairpin", mapped).ok()?;
        let mut buffer = [0; 16];
        let (_, from) = one.recv_from(&mut buffer).ok()?;
        Some(if from == external {
            Hairpin::ExternalSource
        } else {
            Hairpin::InternalSource
        })
    }
}

/// RFC 4787 6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hairpin {
    ExternalSource,
    InternalSource,
}

/// One transaction: the mapped address and the server's other one. None if no response comes in `time`.
fn ask(
    socket: &UdpSocket,
    to: SocketAddr,
    change: u8,
    time: Duration,
) -> Option<(SocketAddr, SocketAddr)> {
    static SERIAL: AtomicU16 = AtomicU16::new(1);
    let mut id = [0; 12];
    id[10..].copy_from_slice(&SERIAL.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    let request = message(REQUEST, &id, &encode(CHANGE_REQUEST, &[0, 0, 0, change]));
    socket.set_read_timeout(Some(time)).expect("not 0");
    socket.send_to(&request, to).ok()?;
    let mut buffer = [0; 1500];
    loop {
        let length = match socket.recv_from(&mut buffer) {
            Ok((length, _)) => length,
            // An error of an earlier question.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => continue,
            Err(_) => return None,
        };
        let response = &buffer[..length];
        if transaction(response, RESPONSE) == Some(&id) {
            return Some((
                parse_address(attribute(response, XOR_MAPPED_ADDRESS)?, Some(&id))?,
                parse_address(attribute(response, OTHER_ADDRESS)?, None)?,
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 5769 2.2 and 2.3: the sample responses.
    #[test]
    fn mapped_addresses_are_those_of_the_test_vectors() {
        let id = [
            0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae,
        ];
        let four = [0x00, 0x01, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43];
        let six = [
            0x00, 0x02, 0xa1, 0x47, 0x01, 0x13, 0xa9, 0xfa, 0xa5, 0xd3, 0xf1, 0x79, 0xbc, 0x25,
            0xf4, 0xb5, 0xbe, 0xd2, 0xb9, 0xd9,
        ];
        for (value, addr) in [
            (&four[..], "192.0.2.1:32853"),
            (&six, "[2001:db8:1234:5678:11:2233:4455:6677]:32853"),
        ] {
            let addr: SocketAddr = addr.parse().unwrap();
            assert_eq!(parse_address(value, Some(&id)), Some(addr));
            assert_eq!(address(addr, Some(&id)), value);
        }
    }

    #[test]
    fn a_request_says_from_where_it_wants_its_response() {
        let id = [7; 12];
        let (from, other) = (
            "10.2.0.1:5000".parse().unwrap(),
            "203.0.113.10:3479".parse().unwrap(),
        );
        for (change, socket) in [
            (0, 0),
            (CHANGE_PORT, 1),
            (CHANGE_IP, 2),
            (CHANGE_IP | CHANGE_PORT, 3),
        ] {
            let request = message(REQUEST, &id, &encode(CHANGE_REQUEST, &[0, 0, 0, change]));
            let (response, found) = serve(&request, from, other).unwrap();
            assert_eq!(found, socket);
            let value = attribute(&response, XOR_MAPPED_ADDRESS).unwrap();
            assert_eq!(parse_address(value, Some(&id)), Some(from));
        }
        assert!(serve(b"GET / HTTP/1.1\r\n\r\n..", from, other).is_none());
        assert!(serve(&[], from, other).is_none());
    }
}
