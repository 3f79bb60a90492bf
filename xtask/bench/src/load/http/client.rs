//! An HTTP client that opens connections, or asks on those it has, as fast as one thread can: epoll,
//! edge-triggered, and no system call that it can do without, so that little of its core is its own.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
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

const CLOSING: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n";
const KEEPING: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n";

/// What the server answers with, and how an answer ends.
pub const BODY: &str = "netfw\n";
const END: &[u8] = b"\r\n\r\nnetfw\n";

/// A request that has taken longer when the round ends has failed.
const PATIENCE: Duration = Duration::from_secs(1);

pub struct Client {
    target: SocketAddrV4,
    /// Many requests on a connection; otherwise one.
    keeps: bool,
    /// Numbers the connections; names their source address and port.
    next: u32,
}

/// Requests that were answered, and those that were not.
#[derive(Clone, Copy, Default)]
pub struct Counts {
    pub done: u32,
    pub failed: u32,
}

struct Connection {
    stream: TcpStream,
    keeps: bool,
    /// When it was opened, or the last request made.
    since: Instant,
    asked: bool,
    answer: Vec<u8>,
}

enum Progress {
    Waiting,
    Done,
}

impl Client {
    pub fn new(target: SocketAddrV4, keeps: bool) -> Self {
        Self {
            target,
            keeps,
            next: 0,
        }
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
                    Ok(Progress::Done) => {
                        counts.done += 1;
                        if self.keeps && connections[slot].ask_again().is_ok() {
                            continue;
                        }
                    }
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
            keeps: self.keeps,
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
            // The answer's coming is another edge.
            self.asked = self.ask()?;
            return Ok(Progress::Waiting);
        }
        let read = match self.keeps {
            // A short read has taken all there is, and what comes later is another edge.
            true => self.read_some(),
            false => self.stream.read_to_end(&mut self.answer).map(|_| true),
        };
        match read {
            Ok(true) => {}
            Ok(false) => return Ok(Progress::Waiting),
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

    /// Reads once: is the answer complete?
    fn read_some(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 512];
        let length = self.stream.read(&mut bytes)?;
        if length == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.answer.extend_from_slice(&bytes[..length]);
        Ok(self.answer.ends_with(END))
    }

    /// Was there room for the request?
    fn ask(&mut self) -> Result<bool> {
        let request = if self.keeps { KEEPING } else { CLOSING };
        match self.stream.write(request) {
            Ok(length) => ensure!(length == request.len(), "a request of {length} bytes"),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error).context("asking"),
        }
        Ok(true)
    }

    /// On the same connection.
    fn ask_again(&mut self) -> Result<()> {
        self.answer.clear();
        self.since = Instant::now();
        ensure!(self.ask()?, "no room for a request");
        Ok(())
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
