//! Sockets of any IP protocol, for those that have no ports.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{FromRawFd as _, OwnedFd},
    time::Duration,
};

use nix::libc;

use crate::netns::Namespace;

/// Bytes of an IPv4 header, which such a socket receives.
const IPV4_HEADER: usize = 20;

pub struct RawSocket {
    /// What it sends and receives goes by the calls that UDP's goes by.
    socket: UdpSocket,
    ipv4: bool,
}

impl RawSocket {
    /// A socket for `protocol` in the family of `like`.
    pub fn new(namespace: &Namespace, like: IpAddr, protocol: u8) -> Self {
        let domain = if like.is_ipv4() {
            libc::AF_INET
        } else {
            libc::AF_INET6
        };
        let socket = namespace.enter(|| {
            let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
            // SAFETY: a system call without pointers.
            let fd = unsafe { libc::socket(domain, kind, libc::c_int::from(protocol)) };
            assert!(fd >= 0, "a raw socket: {}", io::Error::last_os_error());
            // SAFETY: it is open, and nobody else's.
            UdpSocket::from(unsafe { OwnedFd::from_raw_fd(fd) })
        });
        Self {
            socket,
            ipv4: like.is_ipv4(),
        }
    }

    pub fn send(&self, to: IpAddr, payload: &[u8]) {
        self.socket
            .send_to(payload, SocketAddr::new(to, 0))
            .expect("there is a route");
    }

    /// The next packet: whom it is from, and what follows its IP header. None if there is none soon.
    pub fn receive(&self, within: Duration) -> Option<(IpAddr, Vec<u8>)> {
        self.socket.set_read_timeout(Some(within)).expect("not 0");
        let mut buffer = [0; 2048];
        let (length, from) = self.socket.recv_from(&mut buffer).ok()?;
        let skipped = if self.ipv4 { IPV4_HEADER } else { 0 };
        Some((from.ip(), buffer[skipped..length].to_vec()))
    }
}
