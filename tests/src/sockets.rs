//! Sockets with what the standard library has no words for: a source port that was asked for,
//! the path's MTU, traffic classes, segmentation. Both families alike.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
    time::Duration,
};

use netfw::net::release;
use nix::{
    errno::Errno,
    libc,
    sys::{
        socket::{
            AddressFamily, SetSockOpt, SockFlag, SockType, SockaddrStorage, bind, connect,
            setsockopt, socket, sockopt,
        },
        time::TimeVal,
    },
};

use crate::{netns::Namespace, wait::wait_for};

/// For a connection, and for each read and write on one.
pub const PATIENCE: Duration = Duration::from_secs(10);

mod option {
    use nix::{getsockopt_impl, libc, setsockopt_impl, sockopt_impl};

    sockopt_impl!(
        MtuDiscover,
        SetOnly,
        libc::IPPROTO_IP,
        libc::IP_MTU_DISCOVER,
        libc::c_int
    );
    sockopt_impl!(
        MtuDiscover6,
        SetOnly,
        libc::IPPROTO_IPV6,
        libc::IPV6_MTU_DISCOVER,
        libc::c_int
    );
    sockopt_impl!(
        Mtu6,
        GetOnly,
        libc::IPPROTO_IPV6,
        libc::IPV6_MTU,
        libc::c_int
    );
}

/// Every address of a family.
pub fn any(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// A UDP socket of `namespace` at `port` (0: any), connected to `to`. It waits for answers as long
/// as [`PATIENCE`].
#[track_caller]
pub fn udp_to(namespace: &Namespace, port: u16, to: (IpAddr, u16)) -> UdpSocket {
    let socket = udp_at(namespace, (any(to.0), port));
    socket.connect(to).expect("there is a route");
    socket
}

/// A UDP socket of `namespace`. It waits for datagrams as long as [`PATIENCE`].
#[track_caller]
pub fn udp_at(namespace: &Namespace, at: (IpAddr, u16)) -> UdpSocket {
    let socket = once_free(namespace, at, || UdpSocket::bind(at));
    socket.set_read_timeout(Some(PATIENCE)).expect("not 0");
    socket
}

/// A process that another test starts holds all our sockets until it is what it is to be: what we
/// have closed can be in use for a moment.
#[track_caller]
fn once_free<S: Send>(
    namespace: &Namespace,
    at: (IpAddr, u16),
    bind: impl Fn() -> io::Result<S> + Sync,
) -> S {
    wait_for(&format!("{at:?} to be free"), PATIENCE, || {
        namespace.enter(&bind).ok()
    })
}

/// Its packets are never cut into fragments, neither here nor on the way.
#[track_caller]
pub fn dont_fragment(socket: &UdpSocket) {
    if is_ipv4(socket) {
        set(socket, option::MtuDiscover, &libc::IP_PMTUDISC_DO);
    } else {
        set(socket, option::MtuDiscover6, &libc::IPV6_PMTUDISC_DO);
    }
}

/// Gives its packets a traffic class (IPv4: type of service).
#[track_caller]
pub fn mark(socket: &UdpSocket, class: u8) {
    if is_ipv4(socket) {
        set(socket, sockopt::Ipv4Tos, &class.into());
    } else {
        set(socket, sockopt::Ipv6TClass, &class.into());
    }
}

/// Its packets go over so many routers, and it is told where that was too far.
#[track_caller]
pub fn limit_hops(socket: &UdpSocket, hops: u8) {
    if is_ipv4(socket) {
        set(socket, sockopt::Ipv4RecvErr, &true);
        set(socket, sockopt::Ipv4Ttl, &hops.into());
    } else {
        set(socket, sockopt::Ipv6RecvErr, &true);
        set(socket, sockopt::Ipv6Ttl, &hops.into());
    }
}

/// What the kernel takes for the MTU of the way to where `socket` is connected to.
#[track_caller]
pub fn path_mtu(socket: &UdpSocket) -> i32 {
    let mtu = if is_ipv4(socket) {
        nix::sys::socket::getsockopt(socket, sockopt::IpMtu)
    } else {
        nix::sys::socket::getsockopt(socket, option::Mtu6)
    };
    mtu.expect("the socket is connected")
}

/// What a datagram without extras has before its payload.
pub fn udp_headers(family: IpAddr) -> usize {
    if family.is_ipv4() { 20 + 8 } else { 40 + 8 }
}

#[track_caller]
pub fn set<O: SetSockOpt>(socket: &impl AsFd, option: O, value: &O::Val) {
    setsockopt(socket, option, value).expect("the kernel has this option");
}

fn is_ipv4(socket: &UdpSocket) -> bool {
    socket.local_addr().expect("bound").is_ipv4()
}

/// Sends `count` datagrams of `size` bytes, from the kernel's view one packet until a device cuts it
/// (UDP_SEGMENT of udp(7)), and has `to` read them. Each byte must arrive as it was.
#[track_caller]
pub fn burst(from: &UdpSocket, to: &UdpSocket, size: usize, count: usize) {
    set(from, sockopt::UdpGsoSegment, &(size as i32));
    let bytes = &block(size as u32)[..size * count];
    match from.send(bytes) {
        // Before 6.11 it leaves only by an interface that computes checksums.
        Err(error)
            if error.raw_os_error() == Some(libc::EIO) && release::version() < Some((6, 11)) =>
        {
            set(from, sockopt::UdpGsoSegment, &0);
            for datagram in bytes.chunks(size) {
                from.send(datagram).expect("one datagram");
            }
        }
        sent => assert_eq!(sent.expect("one packet"), bytes.len()),
    }
    let mut received: Vec<u8> = Vec::new();
    let mut part = vec![0; BLOCK];
    while received.len() < bytes.len() {
        let read = to.recv(&mut part);
        let read = read.unwrap_or_else(|error| {
            panic!("{error} after {} of {} bytes", received.len(), bytes.len())
        });
        assert_eq!(read % size, 0, "whole datagrams");
        received.extend(&part[..read]);
    }
    assert!(received == bytes, "datagrams were changed or in disorder");
}

/// A TCP socket of `namespace` that owns `port` there, and can share it with connections that are
/// over or lead elsewhere.
#[track_caller]
fn tcp_at(namespace: &Namespace, like: IpAddr, port: u16) -> OwnedFd {
    let family = match like {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let made = namespace.enter(|| {
        let made = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&made, sockopt::ReuseAddr, &true)?;
        let patience = TimeVal::new(PATIENCE.as_secs().cast_signed(), 0);
        setsockopt(&made, sockopt::SendTimeout, &patience)?;
        setsockopt(&made, sockopt::ReceiveTimeout, &patience)?;
        let at = SocketAddr::new(any(like), port);
        let raw = made.as_raw_fd();
        bind(raw, &SockaddrStorage::from(at))?;
        nix::Result::Ok(made)
    });
    made.unwrap_or_else(|error| panic!("a socket at port {port}: {error}"))
}

/// A TCP connection from `port` (0: any) of `namespace` to `to`.
#[track_caller]
pub fn tcp_from(namespace: &Namespace, port: u16, to: (IpAddr, u16)) -> io::Result<TcpStream> {
    let made = tcp_at(namespace, to.0, port);
    let raw = made.as_raw_fd();
    connect(raw, &SockaddrStorage::from(SocketAddr::from(to)))?;
    Ok(made.into())
}

/// As [`tcp_from`], but begun only: [`is_connected`] tells when it is one.
#[track_caller]
pub fn dial(namespace: &Namespace, port: u16, to: (IpAddr, u16)) -> TcpStream {
    let stream = TcpStream::from(tcp_at(namespace, to.0, port));
    stream.set_nonblocking(true).expect("a socket");
    let to = SockaddrStorage::from(SocketAddr::from(to));
    let begun = connect(stream.as_raw_fd(), &to);
    assert_eq!(begun, Err(Errno::EINPROGRESS), "{to}");
    stream
}

/// Has what was dialled become a connection? If so, it waits again, as others do.
pub fn is_connected(stream: &TcpStream) -> bool {
    stream.peer_addr().is_ok() && stream.set_nonblocking(false).is_ok()
}

/// A listener of `namespace` at each of its addresses, of both families.
#[track_caller]
pub fn listen(namespace: &Namespace, port: u16) -> TcpListener {
    let at = (Ipv6Addr::UNSPECIFIED.into(), port);
    once_free(namespace, at, || TcpListener::bind(at))
}

/// The two ends of a connection: from `client` to `to`, where `listener` takes it.
#[track_caller]
pub fn connection(listener: &TcpListener, client: &Namespace, to: (IpAddr, u16)) -> [TcpStream; 2] {
    let near = tcp_from(client, 0, to).unwrap_or_else(|error| panic!("{to:?}: {error}"));
    let (far, _) = listener.accept().expect("the client is connected");
    for end in [&near, &far] {
        end.set_read_timeout(Some(PATIENCE)).expect("not 0");
        end.set_write_timeout(Some(PATIENCE)).expect("not 0");
    }
    [near, far]
}

/// Sends `blocks` of 64 KiB both ways at once; each byte must arrive as it was. A connection on which
/// nothing moves for [`PATIENCE`] fails.
#[track_caller]
pub fn exchange([one, other]: &[TcpStream; 2], blocks: u32) {
    std::thread::scope(|scope| {
        for (from, to) in [(one, other), (other, one)] {
            scope.spawn(move || send(from, blocks));
            scope.spawn(move || receive(to, blocks));
        }
    });
}

const BLOCK: usize = 64 * 1024;

/// No two blocks are alike, nor two parts of one.
fn block(number: u32) -> Vec<u8> {
    let words = (0..BLOCK / 4).map(|word| (word as u32).wrapping_mul(0x9e37_79b9) ^ number);
    words.flat_map(u32::to_be_bytes).collect()
}

fn send(mut stream: &TcpStream, blocks: u32) {
    for number in 0..blocks {
        let sent = io::Write::write_all(&mut stream, &block(number));
        sent.unwrap_or_else(|error| panic!("block {number} cannot be sent: {error}"));
    }
}

fn receive(mut stream: &TcpStream, blocks: u32) {
    let mut bytes = vec![0; BLOCK];
    for number in 0..blocks {
        let read = io::Read::read_exact(&mut stream, &mut bytes);
        read.unwrap_or_else(|error| panic!("block {number} does not arrive: {error}"));
        assert!(bytes == block(number), "block {number} was changed");
    }
}
