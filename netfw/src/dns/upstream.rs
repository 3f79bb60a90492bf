//! One of the node's resolvers: asking it, and whether it is dead.
//!
//! Each query has a socket of its own, connected, at a port that the kernel chooses at random, and an
//! id of its own: who cannot see the query has 2^32 of them to guess. The kernel drops what others
//! send, and says at once where nobody listens.
//!
//! A resolver that was asked and says nothing *at all* meanwhile rests: others are asked before it.
//! One slow answer is no sign, since a name may be hard to find. While it rests it is asked now and
//! then, with nobody waiting; once it answers it is as good as ever.

use std::{
    cell::RefCell,
    io::{self, Read as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hickory_proto::op::Query;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    net::{TcpStream, UdpSocket},
};

use super::message::{Transport, id, is_answer, set_id};

/// What is asked, and by which protocol.
#[derive(Debug)]
pub struct Question {
    /// The client's bytes.
    pub query: Vec<u8>,
    pub question: Query,
    pub transport: Transport,
}

#[derive(Debug)]
pub struct Upstream {
    pub addr: SocketAddr,
    health: Mutex<Health>,
}

#[derive(Debug)]
enum Health {
    Well { heard: Option<Instant> },
    Resting { until: Instant, length: Duration },
}

/// The longest rest.
const REST_MAX: Duration = Duration::from_secs(60);

impl Upstream {
    pub fn new(addr: SocketAddr) -> Self {
        Self {
            addr,
            health: Mutex::new(Health::Well { heard: None }),
        }
    }

    /// Asks, and waits for the answer, however long that takes. It bears the client's id.
    pub async fn ask(&self, question: &Question) -> io::Result<Vec<u8>> {
        let answered = match question.transport {
            Transport::Udp => self.ask_udp(question).await,
            Transport::Tcp => self.ask_tcp(question).await,
        };
        let mut answer = answered?;
        self.set(Health::Well {
            heard: Some(Instant::now()),
        });
        set_id(&mut answer, id(&question.query));
        Ok(answer)
    }

    async fn ask_udp(&self, question: &Question) -> io::Result<Vec<u8>> {
        thread_local! {
            /// As large as a datagram can be; one for each worker and not for each query.
            static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; 65536]);
        }
        let any: SocketAddr = match self.addr {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(self.addr).await?;
        let (query, id) = with_new_id(&question.query)?;
        socket.send(&query).await?;
        // What ICMP says of the address wakes as an error, and as nothing to be read.
        let heard = Interest::READABLE | Interest::ERROR;
        loop {
            let receive = || {
                BUFFER.with_borrow_mut(|buffer| {
                    let length = (&*SockRef::from(&socket)).read(buffer)?;
                    let message = &buffer[..length];
                    let meant = is_answer(message, id, &question.question);
                    Ok(meant.then(|| message.to_vec()))
                })
            };
            // None: somebody else's idea of an answer; ours may still come.
            if let Some(answer) = socket.async_io(heard, receive).await? {
                return Ok(answer);
            }
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

    fn set(&self, health: Health) {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = health;
    }

    pub fn is_resting(&self) -> bool {
        let health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(*health, Health::Resting { .. })
    }

    /// Asked at `asked`, it has not answered; if it has answered nobody since, it rests for so long.
    pub fn failed(&self, asked: Instant, rest: Duration) {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let Health::Well { heard } = *health else {
            return;
        };
        if heard.is_none_or(|heard| heard < asked) {
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
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
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

/// [`Upstream::ask`] without a borrow. None where nobody listens there, or there is no way to it.
pub async fn ask(
    upstream: Arc<Upstream>,
    question: Arc<Question>,
    rest: Duration,
) -> Option<Vec<u8>> {
    let asked = Instant::now();
    match upstream.ask(&question).await {
        Ok(answer) => Some(answer),
        Err(error) => {
            tracing::debug!(server = %upstream.addr, %error, "not asked");
            upstream.failed(asked, rest);
            None
        }
    }
}
