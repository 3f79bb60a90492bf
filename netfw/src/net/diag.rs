//! The sockets that hold ports, from the kernel's `sock_diag` (linux/inet_diag.h); and the end of
//! sockets whose peer is gone.
//!
//! Asked for listening sockets only, the kernel looks at nothing else. `/proc/net/tcp` walks the
//! table of *all* connections of the machine several times over: milliseconds for each publish.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::LazyLock,
};

use nix::libc;

use super::{
    attribute::Attributes,
    exchange::exchange_bytes,
    release,
    socket::{Entry, Protocol},
};

const NETLINK_SOCK_DIAG: isize = 4;
const TCPDIAG_GETSOCK: u16 = 18;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const INET_DIAG_SKV6ONLY: u16 = 11;

/// `1 << TCP_LISTEN`.
const LISTENING: u32 = 1 << 10;
/// `1 << TCP_BOUND_INACTIVE`: they may listen yet.
const BOUND: u32 = 1 << 13;
const ANY_STATE: u32 = u32::MAX;
/// All but those without a peer, or done with theirs: `TCP_TIME_WAIT`, `TCP_CLOSE`, `TCP_LISTEN`.
const CONNECTED: u32 = !(1 << 6 | 1 << 7 | LISTENING);

/// Length of `struct inet_diag_msg`.
const MESSAGE: usize = 72;

/// TCP sockets that listen or may do so yet, or bound UDP sockets, of the calling thread's namespace.
/// `ENOENT`, `EOPNOTSUPP`: the kernel cannot tell (built without `CONFIG_INET_DIAG`, or the module is missing).
pub(super) fn sockets(proto: Protocol) -> io::Result<Vec<Entry>> {
    let mut found = Vec::new();
    let mut ask =
        |request: &[u8]| exchange_bytes(NETLINK_SOCK_DIAG, request, |m| found.extend(parse(m)));
    let states = match proto {
        Protocol::Tcp => {
            let bound = if tells_bound() { BOUND } else { 0 };
            ask(&dump_tcp(LISTENING | bound))?;
            return Ok(found);
        }
        Protocol::Sctp => LISTENING,
        Protocol::Udp => ANY_STATE,
    };
    for family in [libc::AF_INET, libc::AF_INET6] {
        ask(&dump(family as u8, proto, states))?;
    }
    Ok(found)
}

/// Does the kernel tell of sockets that are bound and no more? From 6.8 on; asked before that, it walks the
/// table of all connections of the machine, and finds none.
pub fn tells_bound() -> bool {
    static TELLS: LazyLock<bool> =
        LazyLock::new(|| release::version().is_some_and(|version| version >= (6, 8)));
    *TELLS
}

/// Does the kernel tell of TCP sockets at all, and would it end one (`CONFIG_INET_DIAG`,
/// `CONFIG_INET_DIAG_DESTROY`)? Asked to end one of no address and no port, which nobody has.
pub fn abilities() -> (bool, bool) {
    let knows = |asked: io::Result<()>| match asked {
        Ok(()) => true,
        Err(error) => error.raw_os_error() == Some(libc::ENOENT),
    };
    let nobody = [0; size_of::<SocketId>()];
    let (family, ack) = (libc::AF_INET as u8, libc::NLM_F_ACK);
    let ask = |kind| {
        let request = request(kind, ack, family, Protocol::Tcp, LISTENING, &nobody);
        knows(exchange_bytes(NETLINK_SOCK_DIAG, &request, |_| {}))
    };
    (ask(SOCK_DIAG_BY_FAMILY), ask(SOCK_DESTROY))
}

/// Ends those of the sockets, by their cookie and peer, that are connected: their processes get
/// `ECONNABORTED`. Returns how many. `EOPNOTSUPP`: the kernel cannot (`CONFIG_INET_DIAG_DESTROY`).
pub fn abort(proto: Protocol, sockets: &HashSet<(u64, SocketAddr)>) -> io::Result<usize> {
    let mut count = 0;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut found = Vec::new();
        let all = dump(family as u8, proto, CONNECTED);
        exchange_bytes(NETLINK_SOCK_DIAG, &all, |message| {
            found.extend(connection(message).filter(|(socket, _)| sockets.contains(socket)));
        })?;
        for (_, id) in found {
            let request = request(SOCK_DESTROY, libc::NLM_F_ACK, family as u8, proto, 0, &id);
            match exchange_bytes(NETLINK_SOCK_DIAG, &request, |_| {}) {
                Ok(()) => count += 1,
                // It was closed meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(count)
}

/// `struct inet_diag_sockid`: the ports (network order), the addresses, an interface, and the cookie.
type SocketId = [u8; 48];

/// Asks for all sockets.
fn dump(family: u8, proto: Protocol, states: u32) -> [u8; 72] {
    let everything = [0; size_of::<SocketId>()];
    let (kind, flags) = (SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP);
    request(kind, flags, family, proto, states, &everything)
}

/// Asks for the TCP sockets of both families at once, which only the older form of request can. TCP's tables
/// have tens of thousands of places, and to walk them is what takes the time.
///
/// `struct nlmsghdr` (16 bytes), then `struct inet_diag_req`: families and lengths (4), a socket's id (48),
/// states (u32, host order), and a word without meaning.
fn dump_tcp(states: u32) -> [u8; 76] {
    let mut bytes = [0; 76];
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    bytes[..4].copy_from_slice(&76u32.to_ne_bytes());
    bytes[4..6].copy_from_slice(&TCPDIAG_GETSOCK.to_ne_bytes());
    bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    bytes[68..72].copy_from_slice(&states.to_ne_bytes());
    bytes
}

/// `struct nlmsghdr` (16 bytes), then `struct inet_diag_req_v2` (56).
fn request(
    kind: u16,
    flags: libc::c_int,
    family: u8,
    proto: Protocol,
    states: u32,
    id: &SocketId,
) -> [u8; 72] {
    let mut bytes = [0; 72];
    bytes[..4].copy_from_slice(&72u32.to_ne_bytes());
    bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
    let flags = (libc::NLM_F_REQUEST | flags) as u16;
    bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    bytes[16] = family;
    bytes[17] = proto.number();
    bytes[20..24].copy_from_slice(&states.to_ne_bytes());
    bytes[24..].copy_from_slice(id);
    bytes
}

/// A socket's cookie and peer, of a `struct inet_diag_msg`: family at 0, at 4 the socket's id.
fn connection(message: &[u8]) -> Option<((u64, SocketAddr), SocketId)> {
    let id: SocketId = *message.get(4..)?.first_chunk()?;
    let addr = address(*message.first()?, &id[20..])?;
    let port = u16::from_be_bytes([id[2], id[3]]);
    let [low, high] = [40, 44].map(|at| {
        let word = id[at..].first_chunk().copied().unwrap_or_default();
        u64::from(u32::from_ne_bytes(word))
    });
    // A socket of IPv6 has IPv4 addresses in its own form.
    let peer = SocketAddr::new(addr.to_canonical(), port);
    Some(((low | high << 32, peer), id))
}

/// An address of a family, in network byte order.
fn address(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    match libc::c_int::from(family) {
        libc::AF_INET => Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?).into()),
        libc::AF_INET6 => Some(Ipv6Addr::from(*bytes.first_chunk::<16>()?).into()),
        _ => None,
    }
}

/// `struct inet_diag_msg`: family, …, at 4 the source port and at 8 the source address in network
/// byte order, at 68 the inode in host order; then attributes.
fn parse(message: &[u8]) -> Option<Entry> {
    let (head, attributes) = message.split_first_chunk::<MESSAGE>()?;
    Some(Entry {
        addr: address(head[0], &head[8..])?,
        port: u16::from_be_bytes(*head[4..].first_chunk()?),
        inode: u32::from_ne_bytes(*head[68..].first_chunk()?).into(),
        v6only: Attributes::of(attributes)
            .get(INET_DIAG_SKV6ONLY)
            .is_some_and(|value| value.starts_with(&[1])),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn any_message_is_parsed_or_not(bytes: Vec<u8>) {
            let _ = (parse(&bytes), connection(&bytes));
        }
    }
}
