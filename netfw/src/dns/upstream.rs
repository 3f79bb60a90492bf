//! One of the node's resolvers: asking it, and whether it is dead.
//!
//! Each query has a socket of its own, connected, at a port that the kernel chooses at random, and an
//! id of its own: who cannot see the query has 2^32 of them to guess. The kernel says at once where
//! nobody listens.
//!
//! A resolver that was asked by UDP for some names, one after the other, and says nothing *at all*
//! meanwhile rests: others are asked before it. One slow answer is no sign, since a name may be hard to
//! find, and whoever asks for it could have the resolver rest for everybody. Nor is what fails by TCP, which
//! some do not speak, or for want of something here. While it rests it is asked now and then, with
//! nobody waiting; once it answers, be it late, it is as good as ever.

use std::{
    cell::RefCell,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hickory_proto::{op::Query, rr::Name};
use nix::sys::socket::{SockaddrStorage, recvfrom};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    net::{TcpStream, UdpSocket},
};

use super::message::{Sameness, Transport, id, is_answer, set_id};

/// What is asked, and by which protocol.
#[derive(Debug)]
pub struct Question {
    /// The client's bytes.
    pub query: Vec<u8>,
    pub question: Query,
    pub transport: Transport,
    pub sameness: Sameness,
}

#[derive(Debug)]
pub struct Upstream {
    pub addr: SocketAddr,
    health: Mutex<Health>,
}

#[derive(Debug)]
enum Health {
    Well {
        heard: Option<Instant>,
        /// Names that it was asked for, and has said nothing since.
        silent: Vec<Name>,
    },
    Resting {
        until: Instant,
        length: Duration,
    },
}

/// The longest rest.
const REST_MAX: Duration = Duration::from_secs(60);

/// It rests when it was silent about so many names.
pub const SILENT: usize = 3;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// So the network says (ICMP).
    #[error("it cannot be reached: {0}")]
    Unreachable(io::Error),
    #[error("by TCP: {0}")]
    Tcp(io::Error),
    /// It was not asked.
    #[error("not asked: {0}")]
    Local(io::Error),
}

impl Upstream {
    pub fn new(addr: SocketAddr) -> Self {
        Self {
            addr,
            health: Mutex::new(Health::Well {
                heard: None,
                silent: Vec::new(),
            }),
        }
    }

    /// Asks, and waits for the answer, however long that takes. It bears the client's id.
    pub async fn ask(&self, question: &Question) -> Result<Vec<u8>, Failure> {
        let mut answer = match question.transport {
            Transport::Udp => self.ask_udp(question).await?,
            Transport::Tcp => self.ask_tcp(question).await.map_err(Failure::Tcp)?,
        };
        *self.health() = Health::Well {
            heard: Some(Instant::now()),
            silent: Vec::new(),
        };
        set_id(&mut answer, id(&question.query));
        Ok(answer)
    }

    async fn ask_udp(&self, question: &Question) -> Result<Vec<u8>, Failure> {
        let (socket, id) = self.send(&question.query).await.map_err(Failure::Local)?;
        // What ICMP says of the address wakes as an error, and as nothing to be read.
        let heard = Interest::READABLE | Interest::ERROR;
        loop {
            let receive = || self.receive(&socket, id, &question.question);
            // None: somebody else's idea of an answer; ours may still come.
            let received = socket.async_io(heard, receive).await;
            if let Some(answer) = received.map_err(Failure::Unreachable)? {
                return Ok(answer);
            }
        }
    }

    /// The query by UDP; where its answer will come in, and with which id.
    async fn send(&self, query: &[u8]) -> io::Result<(UdpSocket, u16)> {
        let any: SocketAddr = match self.addr {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(self.addr).await?;
        let (query, id) = with_new_id(query)?;
        socket.send(&query).await?;
        Ok((socket, id))
    }

    /// What has come, if it is the answer. The kernel drops what others send once the socket is
    /// connected; what came before it was is still there.
    fn receive(
        &self,
        socket: &UdpSocket,
        id: u16,
        question: &Query,
    ) -> io::Result<Option<Vec<u8>>> {
        thread_local! {
            /// As large as a datagram can be; one for each worker and not for each query.
            static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; 65536]);
        }
        BUFFER.with_borrow_mut(|buffer| {
            let (length, from) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), buffer)?;
            let message = &buffer[..length];
            let meant =
                from.is_some_and(|from| self.is_at(&from)) && is_answer(message, id, question);
            Ok(meant.then(|| message.to_vec()))
        })
    }

    fn is_at(&self, from: &SockaddrStorage) -> bool {
        match self.addr {
            SocketAddr::V4(addr) => from
                .as_sockaddr_in()
                .is_some_and(|from| (from.ip(), from.port()) == (*addr.ip(), addr.port())),
            SocketAddr::V6(addr) => from
                .as_sockaddr_in6()
                .is_some_and(|from| (from.ip(), from.port()) == (*addr.ip(), addr.port())),
        }
    }

    async fn ask_tcp(&self, question: &Question) -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(self.addr).await?;
        stream.set_nodelay(true)?;
        let (query, id) = with_new_id(&question.query)?;
        stream.write_all(&framed(&query)).await?;
        let length = stream.read_u16().await?;
        let mut answer = vec![0; length.into()];
        stream.read_exact(&mut answer).await?;
        if is_answer(&answer, id, &question.question) {
            Ok(answer)
        } else {
            Err(io::Error::other("the answer is to another question"))
        }
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_resting(&self) -> bool {
        matches!(*self.health(), Health::Resting { .. })
    }

    /// Asked at `asked` for this name, it has said nothing, not even to others. If it is not the first
    /// such name, it rests for so long.
    pub fn silent(&self, asked: Instant, name: &Name, rest: Duration) {
        let mut health = self.health();
        let Health::Well { heard, silent } = &mut *health else {
            return;
        };
        if heard.is_some_and(|heard| heard >= asked) || silent.contains(name) {
            return;
        }
        silent.push(name.clone());
        if silent.len() >= SILENT {
            tracing::info!(server = %self.addr, "a resolver does not answer: others are asked first");
            *health = Health::Resting {
                until: Instant::now() + rest,
                length: rest,
            };
        }
    }

    /// Is it time to see whether it is back? True for one caller; unless it answers, it rests again,
    /// and for twice as long.
    pub fn is_due(&self) -> bool {
        let mut health = self.health();
        let Health::Resting { until, length } = &mut *health else {
            return false;
        };
        let now = Instant::now();
        if now < *until {
            return false;
        }
        *length = (*length * 2).min(REST_MAX);
        *until = now + *length;
        true
    }
}

/// The query under an id that nobody can guess.
fn with_new_id(query: &[u8]) -> io::Result<(Vec<u8>, u16)> {
    let id = getrandom::u32().map_err(io::Error::other)? as u16;
    let mut query = query.to_vec();
    set_id(&mut query, id);
    Ok((query, id))
}

/// A message as TCP carries it, its length in front (RFC 1035 4.2.2). Messages are never longer than
/// that can say.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let mut bytes = Vec::with_capacity(message.len() + 2);
    bytes.extend(length.to_be_bytes());
    bytes.extend(&message[..length.into()]);
    bytes
}

/// [`Upstream::ask`] without a borrow. None where there will be no answer.
pub async fn ask(
    upstream: Arc<Upstream>,
    question: Arc<Question>,
    rest: Duration,
) -> Option<Vec<u8>> {
    let asked = Instant::now();
    match upstream.ask(&question).await {
        Ok(answer) => Some(answer),
        Err(failure) => {
            tracing::debug!(server = %upstream.addr, %failure, "no answer");
            if matches!(failure, Failure::Unreachable(_)) {
                upstream.silent(asked, &question.question.name, rest);
            }
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::{op::ResponseCode, rr::RecordType};

    use super::*;
    use crate::dns::message::{Asked, tests::query};

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn question(name: &str, transport: Transport) -> Question {
        let query = query(name, RecordType::A, None);
        let asked = Asked::read(&query, transport).unwrap();
        Question {
            sameness: asked.sameness(&query),
            question: asked.question,
            query,
            transport,
        }
    }

    #[test]
    fn one_that_is_silent_about_several_names_rests() {
        let upstream = Upstream::new("127.0.0.1:53".parse().unwrap());
        let (asked, rest) = (Instant::now(), Duration::from_secs(5));
        for text in ["slow.example.", "SLOW.example.", "two.example."] {
            upstream.silent(asked, &name(text), rest);
            assert!(!upstream.is_resting(), "{text}");
        }
        upstream.silent(asked, &name("three.example."), rest);
        assert!(upstream.is_resting());
        assert!(!upstream.is_due(), "it has just begun");
    }

    #[test]
    fn one_that_has_answered_somebody_does_not_rest() {
        let upstream = Upstream::new("127.0.0.1:53".parse().unwrap());
        let asked = Instant::now();
        *upstream.health() = Health::Well {
            heard: Some(asked),
            silent: Vec::new(),
        };
        for n in 0..10 {
            let name = name(&format!("n{n}.example."));
            upstream.silent(asked, &name, Duration::from_secs(5));
        }
        assert!(!upstream.is_resting());
    }

    #[tokio::test]
    async fn what_fails_by_tcp_or_here_says_nothing_of_the_resolver() {
        // It speaks UDP, and no TCP.
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let upstream = Arc::new(Upstream::new(server.local_addr().unwrap()));
        // There is no such interface.
        let nowhere: SocketAddr = "[fe80::1%4294967295]:53".parse().unwrap();
        let nowhere = Arc::new(Upstream::new(nowhere));
        for n in 0..10 {
            let name = format!("n{n}.example.");
            for (upstream, transport) in [(&upstream, Transport::Tcp), (&nowhere, Transport::Udp)] {
                let question = Arc::new(question(&name, transport));
                let told = ask(upstream.clone(), question, Duration::from_secs(5)).await;
                assert!(told.is_none());
                assert!(!upstream.is_resting());
            }
        }
    }

    #[tokio::test]
    async fn where_nobody_listens_is_silence() {
        let gone = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let upstream = Arc::new(Upstream::new(gone.local_addr().unwrap()));
        drop(gone);
        for n in 0..SILENT {
            assert!(!upstream.is_resting());
            let question = Arc::new(question(&format!("n{n}.example."), Transport::Udp));
            let told = ask(upstream.clone(), question, Duration::from_secs(5)).await;
            assert!(told.is_none());
        }
        assert!(upstream.is_resting());
    }

    #[tokio::test]
    async fn what_came_before_the_socket_was_connected_is_not_the_answer() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let server = UdpSocket::bind(any).await.unwrap();
            let stranger = UdpSocket::bind(any).await.unwrap();
            let socket = UdpSocket::bind(any).await.unwrap();
            let at = socket.local_addr().unwrap();
            let query = query("web.", RecordType::A, None);
            let asked = Asked::read(&query, Transport::Udp).unwrap();
            let answer = asked.answer(ResponseCode::NoError, Vec::new());
            stranger.send_to(&answer, at).await.unwrap();
            let upstream = Upstream::new(server.local_addr().unwrap());
            socket.connect(upstream.addr).await.unwrap();
            server.send_to(&answer, at).await.unwrap();
            socket.readable().await.unwrap();
            let receive = || upstream.receive(&socket, 0x1234, &asked.question).unwrap();
            assert_eq!(receive(), None, "the stranger's");
            assert_eq!(receive(), Some(answer));
        }
    }
}
