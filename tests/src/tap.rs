//! What a device receives, before any program or the stack sees it: as tcpdump shows it, in this
//! process.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, send, socket},
};

/// A socket that sees the frames which a device receives, and can send some.
#[derive(Debug)]
pub struct Tap(OwnedFd);

impl Tap {
    /// On the device with index `ifindex`, of the namespace that the calling thread is in.
    #[track_caller]
    pub fn on(ifindex: u32) -> Self {
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::EthAll,
        )
        .expect("a packet socket");
        // SAFETY: integers and arrays; zero is a valid value of each.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = ifindex as i32;
        // SAFETY: a system call with an address of the length that it is told.
        let bound = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as u32,
            )
        };
        assert_eq!(bound, 0, "binding to a device: {}", Errno::last());
        Self(socket)
    }

    /// Sends a frame, Ethernet header and all.
    #[track_caller]
    pub fn send(&self, frame: &[u8]) {
        let sent = send(self.0.as_raw_fd(), frame, MsgFlags::empty());
        assert_eq!(sent, Ok(frame.len()), "sending a frame");
    }

    /// The next frame, if there is one within `time`; those that the device sends are passed over.
    #[track_caller]
    pub fn next(&self, time: Duration) -> Option<Vec<u8>> {
        loop {
            let mut ready = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(time).expect("less than a month");
            if poll(&mut ready, timeout).expect("a socket can be polled") == 0 {
                return None;
            }
            let mut frame = vec![0; 1 << 16];
            // SAFETY: as above.
            let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            let mut from_len = size_of_val(&from) as u32;
            // SAFETY: a system call with buffers of the lengths that it is told.
            let len = unsafe {
                libc::recvfrom(
                    self.0.as_raw_fd(),
                    frame.as_mut_ptr().cast(),
                    frame.len(),
                    0,
                    (&raw mut from).cast(),
                    &raw mut from_len,
                )
            };
            let len = usize::try_from(len)
                .unwrap_or_else(|_| panic!("receiving: {}", io::Error::last_os_error()));
            if from.sll_pkttype != libc::PACKET_OUTGOING {
                frame.truncate(len);
                return Some(frame);
            }
        }
    }
}
