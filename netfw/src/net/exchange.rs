//! One netlink request and its answer, without a runtime: for threads that have none.

use std::io;

use nix::libc;
use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, Parseable as _},
    packet_route::{RouteNetlinkMessage, link::LinkMessage},
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

// Message types of every netlink protocol (linux/netlink.h).
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// Sends a route request in the calling thread's namespace and waits for the end of the answer.
/// `flags` must ask for an acknowledgement (`NLM_F_ACK`) or a dump. Returns the number of messages in
/// the answer.
pub(super) fn exchange(message: RouteNetlinkMessage, flags: u16) -> io::Result<usize> {
    let mut messages = 0;
    exchange_route(message, flags, |_| messages += 1)?;
    Ok(messages)
}

/// The interface of an index; None where there is none.
pub(super) fn get_link(ifindex: u32) -> io::Result<Option<LinkMessage>> {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    let mut found = None;
    let asked = exchange_route(
        RouteNetlinkMessage::GetLink(message),
        NLM_F_ACK,
        |payload| {
            found = Some(LinkMessage::parse(payload));
        },
    );
    match asked {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
        Ok(()) => found
            .transpose()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)),
    }
}

/// As [`exchange`], and gives the payload of each message of the answer to `visit`.
pub(super) fn exchange_route(
    message: RouteNetlinkMessage,
    flags: u16,
    visit: impl FnMut(&[u8]),
) -> io::Result<()> {
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | flags;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    exchange_bytes(NETLINK_ROUTE, &bytes, visit)
}

/// Sends a request of any netlink protocol, complete with its header, and gives the payload of each
/// message of the answer to `visit`.
pub(super) fn exchange_bytes(
    protocol: isize,
    request: &[u8],
    mut visit: impl FnMut(&[u8]),
) -> io::Result<()> {
    let socket = Socket::new(protocol)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(request, 0)?;
    loop {
        let (answer, _) = socket.recv_from_full()?;
        let mut rest = answer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            let payload = message.payload();
            match message.message_type() {
                // Both begin with a negative error number, or 0.
                ERROR | DONE => {
                    let code = payload.first_chunk().copied().unwrap_or_default();
                    return match i32::from_ne_bytes(code) {
                        code if code < 0 => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
                        _ => Ok(()),
                    };
                }
                _ => visit(payload),
            }
            let length = (message.length() as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}
