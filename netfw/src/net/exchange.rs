//! One netlink request and its answer, without a runtime: for threads that have none.

use std::io;

use nix::libc;
use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, Parseable as _},
    packet_route::{RouteNetlinkMessage, link::LinkMessage},
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

// Message types of every netlink protocol (linux/netlink.h).
const NOTHING: u16 = 1;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const OVERRUN: u16 = 4;
/// `NLM_F_DUMP_INTR`
pub(super) const DUMP_INTERRUPTED: u16 = 0x10;

/// How often a list is asked for that changes meanwhile.
pub(super) const TRIES: usize = 10;

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
/// message of the answer to `visit`. A list that changed while the kernel wrote it down is asked for again;
/// one that keeps changing is an error ([`io::ErrorKind::Interrupted`]).
pub(super) fn exchange_bytes(
    protocol: isize,
    request: &[u8],
    mut visit: impl FnMut(&[u8]),
) -> io::Result<()> {
    for _ in 0..TRIES {
        let answer = ask(protocol, request)?;
        if !answer.interrupted {
            answer.payloads.iter().for_each(|payload| visit(payload));
            return Ok(());
        }
    }
    Err(never_still())
}

/// A list changed whenever it was asked for.
pub(super) fn never_still() -> io::Error {
    io::Error::new(
        io::ErrorKind::Interrupted,
        format!("it changed while it was read, {TRIES} times"),
    )
}

#[derive(Default)]
struct Answer {
    payloads: Vec<Vec<u8>>,
    /// Not all of what there was, or some of it twice.
    interrupted: bool,
}

impl Answer {
    /// Takes what came at once; whether it was the end.
    fn take(&mut self, bytes: &[u8]) -> io::Result<bool> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            self.interrupted |= message.flags() & DUMP_INTERRUPTED != 0;
            let payload = message.payload();
            match message.message_type() {
                // Both begin with a negative error number, or 0.
                ERROR | DONE => {
                    let code = payload.first_chunk().copied().unwrap_or_default();
                    return match i32::from_ne_bytes(code) {
                        code if code < 0 => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
                        _ => Ok(true),
                    };
                }
                NOTHING => {}
                OVERRUN => return Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
                _ => self.payloads.push(payload.to_vec()),
            }
            let length = (message.length() as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
        }
        Ok(false)
    }
}

fn ask(protocol: isize, request: &[u8]) -> io::Result<Answer> {
    let socket = Socket::new(protocol)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(request, 0)?;
    let mut answer = Answer::default();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        if answer.take(&bytes)? {
            return Ok(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, flags: u16, payload: [u8; 4]) -> Vec<u8> {
        let mut bytes = 20u32.to_ne_bytes().to_vec();
        bytes.extend([kind, flags].iter().flat_map(|word| word.to_ne_bytes()));
        bytes.extend([0; 8]);
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn a_list_that_changed_meanwhile_is_known() {
        const OTHER: u16 = 16;
        let list = |flags| {
            let parts = [
                message(OTHER, 0, [1; 4]),
                message(NOTHING, 0, [2; 4]),
                message(OTHER, flags, [3; 4]),
            ];
            let mut answer = Answer::default();
            assert!(!answer.take(&parts.concat()).unwrap());
            assert!(answer.take(&message(DONE, 0, [0; 4])).unwrap());
            assert_eq!(answer.payloads, [[1; 4], [3; 4]]);
            answer.interrupted
        };
        assert!(!list(0));
        assert!(list(DUMP_INTERRUPTED));
        let error = |kind, payload| {
            let took = Answer::default().take(&message(kind, 0, payload));
            took.unwrap_err().raw_os_error()
        };
        assert_eq!(error(OVERRUN, [0; 4]), Some(libc::ENOBUFS));
        let refused = (-libc::EPERM).to_ne_bytes();
        assert_eq!(error(ERROR, refused), Some(libc::EPERM));
    }
}
