//! The sockets that hold ports, from the kernel's `sock_diag` (linux/inet_diag.h).
//!
//! Asked for listening sockets only, the kernel looks at nothing else. `/proc/net/tcp` walks the
//! table of *all* connections of the machine several times over: milliseconds for each publish.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use nix::libc;

use super::{
    exchange::exchange_bytes,
    socket::{Entry, Protocol},
};

const NETLINK_SOCK_DIAG: isize = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_SKV6ONLY: u16 = 11;

/// `1 << TCP_LISTEN`.
const LISTENING: u32 = 1 << 10;
const ANY_STATE: u32 = u32::MAX;

/// Length of `struct inet_diag_msg`.
const MESSAGE: usize = 72;

/// Listening TCP sockets, or bound UDP sockets, of the calling thread's namespace. `ENOENT`: the
/// kernel cannot tell (built without `CONFIG_INET_DIAG`, or the module is missing).
pub(super) fn sockets(proto: Protocol, family: libc::c_int) -> io::Result<Vec<Entry>> {
    let states = match proto {
        Protocol::Tcp | Protocol::Sctp => LISTENING,
        Protocol::Udp => ANY_STATE,
    };
    let mut found = Vec::new();
    exchange_bytes(
        NETLINK_SOCK_DIAG,
        &request(family as u8, proto.number(), states),
        |message| found.extend(parse(message)),
    )?;
    Ok(found)
}

/// `struct nlmsghdr` (16 bytes), then `struct inet_diag_req_v2` (56) with an empty socket id: all.
fn request(family: u8, proto: u8, states: u32) -> [u8; 72] {
    let mut bytes = [0; 72];
    bytes[..4].copy_from_slice(&72u32.to_ne_bytes());
    bytes[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    bytes[16] = family;
    bytes[17] = proto;
    bytes[20..24].copy_from_slice(&states.to_ne_bytes());
    bytes
}

/// `struct inet_diag_msg`: family, …, at 4 the source port and at 8 the source address in network
/// byte order, at 68 the inode in host order; then attributes.
fn parse(message: &[u8]) -> Option<Entry> {
    let (head, attributes) = message.split_first_chunk::<MESSAGE>()?;
    let addr: [u8; 16] = *head[8..].first_chunk()?;
    let addr = match libc::c_int::from(head[0]) {
        libc::AF_INET => IpAddr::from(Ipv4Addr::from(*addr.first_chunk::<4>()?)),
        libc::AF_INET6 => IpAddr::from(Ipv6Addr::from(addr)),
        _ => return None,
    };
    Some(Entry {
        addr,
        port: u16::from_be_bytes(*head[4..].first_chunk()?),
        inode: u32::from_ne_bytes(*head[68..].first_chunk()?).into(),
        v6only: attribute(attributes, INET_DIAG_SKV6ONLY) == Some(1),
    })
}

/// The first byte of an attribute: length (u16, with header) and type (u16), both host order.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<u8> {
    while let Some((&[l0, l1, t0, t1], value)) = bytes.split_first_chunk::<4>() {
        if u16::from_ne_bytes([t0, t1]) == wanted {
            return value.first().copied();
        }
        let length = usize::from(u16::from_ne_bytes([l0, l1])).max(4);
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn any_message_is_parsed_or_not(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }

    #[test]
    fn attributes_are_found() {
        let bytes = [5, 0, 8, 0, 7, 0, 0, 0, 5, 0, 11, 0, 1, 0, 0, 0];
        if cfg!(target_endian = "little") {
            assert_eq!(attribute(&bytes, INET_DIAG_SKV6ONLY), Some(1));
            assert_eq!(attribute(&bytes, 8), Some(7));
            assert_eq!(attribute(&bytes, 9), None);
        }
    }
}
