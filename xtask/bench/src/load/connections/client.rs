//! An HTTP client that opens connections as fast as one thread can: epoll, edge-triggered, and no
//! system call that it can do without, so that little of its core is its own.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddrV4, TcpStream},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use netfw_tests::topology::CLIENT;
use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        socket::{
            AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket,
            sockopt,
        },
    },
};

/// Source addresses, from the client's own on.
pub const SOURCES: u8 = 16;
const FIRST_PORT: u16 = 2000;
const PORTS: u32 = 60_000;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n";

/// A connection that has taken longer when the round ends has failed.
const PATIENCE: Duration = Duration::from_secs(1);

pub struct Client {
    target: SocketAddrV4,
    /// Numbers the connections; names their source address and port.
    next: u32,
}

#[derive(Clone, Copy, Default)]
pub struct Counts {
    pub done: u32,
    pub failed: u32,
}

struct Connection {
    stream: TcpStream,
    since: Instant,
    asked: bool,
    answer: Vec<u8>,
}

enum Progress {
    Waiting,
    Done,
}

impl Client {
    pub fn new(target: SocketAddrV4) -> Self {
        Self { target, next: 0 }
    }

    /// Keeps `at_once` connections going for `duration`, in the namespace of the calling thread.
    pub fn run(&mut self, at_once: usize, duration: Duration) -> Result<Counts> {
        let end = Instant::now() + duration;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll_create1")?;
        let mut connections = (0..at_once)
            .map(|slot| self.open(&epoll, slot))
            .collect::<Result<Vec<_>>>()?;
        let mut counts = Counts::default();
        let mut events = [EpollEvent::empty(); 64];
        while Instant::now() < end {
            let ready = match epoll.wait(&mut events, EpollTimeout::from(10_u8)) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => 0,
                Err(error) => return Err(error).context("epoll_wait"),
            };
            for event in &events[..ready] {
                let slot = usize::try_from(event.data()).context("a slot's number")?;
                match connections[slot].proceed() {
                    Ok(Progress::Waiting) => continue,
                    Ok(Progress::Done) => counts.done += 1,
                    Err(_) => counts.failed += 1,
                }
                // Closes the old one, which takes it out of the epoll set.
                connections[slot] = self.open(&epoll, slot)?;
            }
        }
        let stuck = connections
            .iter()
            .filter(|connection| connection.since.elapsed() > PATIENCE);
        counts.failed += u32::try_from(stuck.count()).context("a count of connections")?;
        Ok(counts)
    }

    fn open(&mut self, epoll: &Epoll, slot: usize) -> Result<Connection> {
        let (address, port) = (
            self.next % u32::from(SOURCES),
            self.next / u32::from(SOURCES),
        );
        self.next = self.next.wrapping_add(1);
        let port = FIRST_PORT + u16::try_from(port % PORTS).context("a port")?;
        let from = SocketAddrV4::new(source(u8::try_from(address).context("an address")?), port);

        let socket = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None,
        )
        .context("socket")?;
        setsockopt(&socket, sockopt::ReuseAddr, &true).context("SO_REUSEADDR")?;
        bind(socket.as_raw_fd(), &SockaddrIn::from(from))
            .with_context(|| format!("bind to {from}"))?;
        match connect(socket.as_raw_fd(), &SockaddrIn::from(self.target)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(error) => bail!("connect from {from} to {}: {error}", self.target),
        }
        let wanted = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        epoll
            .add(&socket, EpollEvent::new(wanted, slot as u64))
            .context("epoll_ctl")?;
        Ok(Connection {
            stream: TcpStream::from(socket),
            since: Instant::now(),
            asked: false,
            answer: Vec::with_capacity(512),
        })
    }
}

impl Connection {
    /// Does what can be done without waiting.
    fn proceed(&mut self) -> Result<Progress> {
        if !self.asked {
            match self.stream.write(REQUEST) {
                Ok(length) => ensure!(length == REQUEST.len(), "a request of {length} bytes"),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Ok(Progress::Waiting);
                }
                Err(error) => return Err(error).context("asking"),
            }
            self.asked = true;
            // The answer's coming is another edge.
            return Ok(Progress::Waiting);
        }
        match self.stream.read_to_end(&mut self.answer) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Progress::Waiting),
            Err(error) => return Err(error).context("reading the answer"),
        }
        ensure!(
            self.answer.starts_with(b"HTTP/1.1 200"),
            "no HTTP answer in {} bytes",
            self.answer.len()
        );
        Ok(Progress::Done)
    }
}

/// The client's own address, or the `n`th after it.
pub fn source(n: u8) -> Ipv4Addr {
    match CLIENT {
        IpAddr::V4(first) => {
            let [a, b, c, d] = first.octets();
            Ipv4Addr::new(a, b, c, d + n)
        }
        IpAddr::V6(_) => unreachable!("the lab's CLIENT is its IPv4 address"),
    }
}
