//! Which of the node's resolvers is asked, and when the next one is.
//!
//! The first is asked, and when it has said nothing for a while the next one too, and so on round the
//! list; the first answer counts, whoever sends it. A refusal (SERVFAIL, REFUSED, NOTIMP) has the next
//! one asked at once, and is handed on if none knows better. Queries are independent of each other:
//! one that waits for a dead resolver is in nobody's way.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::stream::{FuturesUnordered, StreamExt as _};

use super::{
    message::is_failure,
    resolv::{Config, File},
    upstream::{Question, Upstream, ask},
};

/// How patient a forwarder is.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Until the next resolver is asked too, where resolv.conf does not say. The C library's 5 s are
    /// for a client that gives up an address; nothing is given up here.
    pub step: Duration,
    /// For one query in all. Clients ask again, or give up, after 5 s.
    pub all: Duration,
    /// How long a dead resolver rests at first.
    pub rest: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            step: Duration::from_secs(2),
            all: Duration::from_secs(10),
            rest: Duration::from_secs(5),
        }
    }
}

#[derive(Debug)]
pub struct Forwarder {
    file: File,
    patience: Patience,
    upstreams: Mutex<HashMap<SocketAddr, Arc<Upstream>>>,
    turn: AtomicUsize,
}

/// What the C library has room for (MAXNS): nobody counts on more.
const SERVERS: usize = 3;

impl Forwarder {
    pub fn new(file: File, patience: Patience) -> Self {
        Self {
            file,
            patience,
            upstreams: Mutex::new(HashMap::new()),
            turn: AtomicUsize::new(0),
        }
    }

    /// Asks the node's resolvers, but none at the addresses `own`. None if there is none, or none of
    /// them answers.
    pub async fn forward(&self, question: Question, own: &HashSet<IpAddr>) -> Option<Vec<u8>> {
        let config = self.file.current();
        let servers = self.servers(&config, own);
        self.ask(Arc::new(question), &config, &servers).await
    }

    async fn ask(
        &self,
        question: Arc<Question>,
        config: &Config,
        servers: &[Arc<Upstream>],
    ) -> Option<Vec<u8>> {
        let rest = self.patience.rest;
        if servers.first().is_some_and(|server| !server.is_resting()) {
            for server in servers.iter().filter(|server| server.is_due()) {
                // Is it back? Nobody waits for that.
                let asked = ask(server.clone(), question.clone(), rest);
                tokio::spawn(tokio::time::timeout(self.patience.all, asked));
            }
        }
        let step = config.timeout.unwrap_or(self.patience.step);
        let end = Instant::now() + self.patience.all;
        let mut left = servers.len() * config.attempts;
        let mut round = servers.iter().cycle();
        let mut asked = FuturesUnordered::new();
        let mut refusal = None;
        loop {
            let server = if left > 0 { round.next() } else { None };
            if let Some(server) = server {
                left -= 1;
                asked.push(ask(server.clone(), question.clone(), rest));
            }
            let begun = Instant::now();
            let wait = step.min(end.saturating_duration_since(begun));
            match tokio::time::timeout(wait, asked.next()).await {
                Ok(Some(Some(answer))) if !is_failure(&answer) => return Some(answer),
                Ok(Some(Some(answer))) => refusal = Some(answer),
                Ok(Some(None)) => {}
                // All have been asked, and all have failed.
                Ok(None) => return refusal,
                Err(_) => {
                    if let Some(server) = server {
                        server.failed(begun, rest);
                    }
                    if left == 0 || Instant::now() >= end {
                        return refusal;
                    }
                }
            }
        }
    }

    /// In the order in which they are to be asked: those that rest at the end.
    fn servers(&self, config: &Config, own: &HashSet<IpAddr>) -> Vec<Arc<Upstream>> {
        let mut known = self
            .upstreams
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // What is not listed any more is forgotten.
        known.retain(|addr, _| config.servers.contains(addr));
        let mut servers: Vec<_> = config
            .servers
            .iter()
            .filter(|server| !own.contains(&server.ip().to_canonical()))
            .take(SERVERS)
            .map(|&addr| {
                let upstream = known.entry(addr);
                upstream
                    .or_insert_with(|| Arc::new(Upstream::new(addr)))
                    .clone()
            })
            .collect();
        drop(known);
        if config.rotate && !servers.is_empty() {
            let first = self.turn.fetch_add(1, Ordering::Relaxed) % servers.len();
            servers.rotate_left(first);
        }
        servers.sort_by_key(|server| server.is_resting());
        servers
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use hickory_proto::{
        op::{Message, ResponseCode},
        rr::{RData, RecordType, rdata::A},
    };
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, UdpSocket},
        task::JoinHandle,
    };

    use super::*;
    use crate::dns::{
        message::{Asked, Transport, id, set_id, tests::query},
        upstream::framed,
    };

    const PATIENCE: Patience = Patience {
        step: Duration::from_millis(300),
        all: Duration::from_secs(3),
        rest: Duration::from_millis(1500),
    };

    /// A resolver on loopback.
    struct Fake {
        addr: SocketAddr,
        seen: Arc<AtomicUsize>,
        task: JoinHandle<()>,
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    /// What it says by UDP; nothing, if empty.
    type Says = fn(&[u8]) -> Vec<Vec<u8>>;

    fn told(query: &[u8], code: ResponseCode, last: u8) -> Vec<u8> {
        let records = match code {
            ResponseCode::NoError => vec![RData::A(A::new(192, 0, 2, last))],
            _ => Vec::new(),
        };
        let asked = Asked::read(query, Transport::Udp).unwrap();
        asked.answer(query, code, records)
    }

    fn one(query: &[u8]) -> Vec<Vec<u8>> {
        vec![told(query, ResponseCode::NoError, 1)]
    }

    fn two(query: &[u8]) -> Vec<Vec<u8>> {
        vec![told(query, ResponseCode::NoError, 2)]
    }

    fn nothing(_: &[u8]) -> Vec<Vec<u8>> {
        Vec::new()
    }

    fn refuses(query: &[u8]) -> Vec<Vec<u8>> {
        vec![told(query, ResponseCode::Refused, 0)]
    }

    async fn fake(addr: &str, says: Says) -> Fake {
        let socket = UdpSocket::bind(addr).await.unwrap();
        let addr = socket.local_addr().unwrap();
        let seen = Arc::new(AtomicUsize::new(0));
        let task = {
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                    seen.fetch_add(1, Ordering::Relaxed);
                    for answer in says(&buffer[..length]) {
                        let _ = socket.send_to(&answer, from).await;
                    }
                }
            })
        };
        Fake { addr, seen, task }
    }

    impl Fake {
        fn seen(&self) -> usize {
            self.seen.load(Ordering::Relaxed)
        }
    }

    fn forwarder() -> Forwarder {
        let file = File::new(Path::new("/nonexistent").into());
        Forwarder::new(file, PATIENCE)
    }

    fn config(servers: &[&Fake]) -> Config {
        Config {
            servers: servers.iter().map(|fake| fake.addr).collect(),
            timeout: None,
            attempts: 2,
            rotate: false,
        }
    }

    fn question(transport: Transport) -> Question {
        let query = query("www.example.org.", RecordType::A, Some(1232));
        let asked = Asked::read(&query, transport).unwrap();
        Question {
            question: asked.question,
            query,
            transport,
        }
    }

    async fn forward(forwarder: &Forwarder, config: &Config) -> Option<Message> {
        forward_by(forwarder, config, Transport::Udp).await
    }

    async fn forward_by(
        forwarder: &Forwarder,
        config: &Config,
        transport: Transport,
    ) -> Option<Message> {
        let servers = forwarder.servers(config, &HashSet::new());
        let question = Arc::new(question(transport));
        let answer = forwarder.ask(question, config, &servers).await?;
        assert_eq!(id(&answer), 0x1234, "the client's id");
        Some(Message::from_vec(&answer).unwrap())
    }

    fn address(message: Option<Message>) -> u8 {
        match message.expect("an answer").answers[0].data {
            RData::A(A(addr)) => addr.octets()[3],
            ref other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn the_first_is_asked_with_the_clients_bytes_under_another_id() {
        fn echo(query: &[u8]) -> Vec<Vec<u8>> {
            let mut sent = query.to_vec();
            assert_ne!(id(&sent), 0x1234, "one chance in 65536");
            set_id(&mut sent, 0x1234);
            assert_eq!(sent, question(Transport::Udp).query);
            one(query)
        }
        for addr in ["127.0.0.1:0", "[::1]:0"] {
            let (first, second) = (fake(addr, echo).await, fake(addr, two).await);
            let config = config(&[&first, &second]);
            assert_eq!(address(forward(&forwarder(), &config).await), 1);
            assert_eq!(second.seen(), 0);
        }
    }

    #[tokio::test]
    async fn a_silent_one_rests_and_is_asked_again_with_nobody_waiting() {
        let silent = fake("127.0.0.1:0", nothing).await;
        let good = fake("127.0.0.1:0", two).await;
        let (forwarder, config) = (forwarder(), config(&[&silent, &good]));
        let begun = Instant::now();
        assert_eq!(address(forward(&forwarder, &config).await), 2);
        assert!(begun.elapsed() >= PATIENCE.step);
        // From now on there is no delay.
        for _ in 0..20 {
            let begun = Instant::now();
            assert_eq!(address(forward(&forwarder, &config).await), 2);
            assert!(begun.elapsed() < PATIENCE.step, "{:?}", begun.elapsed());
        }
        assert_eq!(silent.seen(), 1);
        tokio::time::sleep(PATIENCE.rest).await;
        let begun = Instant::now();
        assert_eq!(address(forward(&forwarder, &config).await), 2);
        assert!(begun.elapsed() < PATIENCE.step);
        let deadline = Instant::now() + Duration::from_secs(5);
        while silent.seen() < 2 {
            assert!(Instant::now() < deadline, "it is not asked again");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn one_that_is_back_is_the_first_again() {
        let (first, second) = (
            fake("127.0.0.1:0", one).await,
            fake("127.0.0.1:0", two).await,
        );
        let (forwarder, config) = (forwarder(), config(&[&first, &second]));
        let upstream = forwarder.servers(&config, &HashSet::new())[0].clone();
        upstream.failed(Instant::now(), Duration::ZERO);
        assert_eq!(address(forward(&forwarder, &config).await), 2);
        let deadline = Instant::now() + Duration::from_secs(5);
        while upstream.is_resting() {
            assert!(Instant::now() < deadline, "it still rests");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(address(forward(&forwarder, &config).await), 1);
    }

    #[tokio::test]
    async fn where_nobody_listens_the_next_is_asked_at_once() {
        let gone = fake("127.0.0.1:0", one).await;
        let good = fake("127.0.0.1:0", two).await;
        let config = config(&[&gone, &good]);
        let addr = gone.addr;
        drop(gone);
        let free = Instant::now() + Duration::from_secs(5);
        while std::net::UdpSocket::bind(addr).is_err() {
            assert!(Instant::now() < free, "the socket stays open");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let begun = Instant::now();
        assert_eq!(address(forward(&forwarder(), &config).await), 2);
        assert!(begun.elapsed() < PATIENCE.step);
    }

    #[tokio::test]
    async fn a_refusal_is_handed_on_if_none_knows_better() {
        let refusing = fake("127.0.0.1:0", refuses).await;
        let good = fake("127.0.0.1:0", two).await;
        let both = config(&[&refusing, &good]);
        assert_eq!(address(forward(&forwarder(), &both).await), 2);
        let alone = forward(&forwarder(), &config(&[&refusing])).await.unwrap();
        assert_eq!(alone.metadata.response_code, ResponseCode::Refused);
    }

    #[tokio::test]
    async fn what_is_no_answer_is_passed_over() {
        fn confused(query: &[u8]) -> Vec<Vec<u8>> {
            let mut wrong_id = told(query, ResponseCode::NoError, 66);
            wrong_id[1] ^= 1;
            let mut other = super::super::message::tests::query("evil.", RecordType::A, None);
            set_id(&mut other, id(query));
            let other = told(&other, ResponseCode::NoError, 66);
            vec![
                wrong_id,
                other,
                query.to_vec(),
                vec![0],
                told(query, ResponseCode::NoError, 1),
            ]
        }
        let server = fake("127.0.0.1:0", confused).await;
        assert_eq!(address(forward(&forwarder(), &config(&[&server])).await), 1);
    }

    #[tokio::test]
    async fn answers_from_elsewhere_are_never_seen() {
        let server = fake("127.0.0.1:0", nothing).await;
        let forged = {
            let question = question(Transport::Udp);
            told(&question.query, ResponseCode::NoError, 66)
        };
        let (forwarder, config) = (forwarder(), config(&[&server]));
        let spray = tokio::spawn(async move {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            for port in (32768..61000).step_by(7) {
                let _ = socket.send_to(&forged, ("127.0.0.1", port)).await;
            }
        });
        assert!(forward(&forwarder, &config).await.is_none());
        spray.await.unwrap();
    }

    #[tokio::test]
    async fn a_truncated_answer_stays_so_and_tcp_is_asked_by_tcp() {
        fn cut(query: &[u8]) -> Vec<Vec<u8>> {
            let mut answer = told(query, ResponseCode::NoError, 1);
            answer[2] |= 2;
            vec![answer]
        }
        let udp = fake("127.0.0.1:0", cut).await;
        let listener = TcpListener::bind(udp.addr).await.unwrap();
        let tcp = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut query = vec![0; stream.read_u16().await.unwrap().into()];
                stream.read_exact(&mut query).await.unwrap();
                let answer = told(&query, ResponseCode::NoError, 9);
                stream.write_all(&framed(&answer)).await.unwrap();
            }
        });
        let (forwarder, config) = (forwarder(), config(&[&udp]));
        let by_udp = forward(&forwarder, &config).await.unwrap();
        assert!(by_udp.metadata.truncation);
        let by_tcp = forward_by(&forwarder, &config, Transport::Tcp).await;
        assert!(!by_tcp.as_ref().unwrap().metadata.truncation);
        assert_eq!(address(by_tcp), 9);
        tcp.abort();
    }

    #[tokio::test]
    async fn a_dead_one_delays_nobody_else() {
        let dead = fake("127.0.0.1:0", nothing).await;
        let good = fake("127.0.0.1:0", one).await;
        let forwarder = forwarder();
        let (lost, fine) = (config(&[&dead]), config(&[&good]));
        // In `servers` each call forgets what it does not list.
        let lost_servers = forwarder.servers(&lost, &HashSet::new());
        let fine_servers = forwarder.servers(&fine, &HashSet::new());
        let waiting: FuturesUnordered<_> = (0..100)
            .map(|_| forwarder.ask(Arc::new(question(Transport::Udp)), &lost, &lost_servers))
            .collect();
        let waiting = waiting.collect::<Vec<_>>();
        let others = async {
            for _ in 0..200 {
                let begun = Instant::now();
                let question = Arc::new(question(Transport::Udp));
                let answer = forwarder.ask(question, &fine, &fine_servers).await;
                assert!(answer.is_some() && begun.elapsed() < PATIENCE.step);
            }
        };
        let (waited, ()) = tokio::join!(waiting, others);
        assert!(waited.iter().all(Option::is_none));
    }

    #[tokio::test]
    async fn none_of_our_own_addresses_is_asked() {
        let forwarder = forwarder();
        let config = Config::parse(
            "nameserver 10.1.0.1\nnameserver 192.0.2.1\nnameserver 10.2.0.1\n\
             nameserver fd00::1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n",
        );
        let own = ["10.1.0.1", "10.2.0.1", "fd00::1"].map(|addr| addr.parse().unwrap());
        let servers = forwarder.servers(&config, &HashSet::from(own));
        let asked: Vec<_> = servers
            .iter()
            .map(|server| server.addr.to_string())
            .collect();
        assert_eq!(asked, ["192.0.2.1:53", "192.0.2.2:53", "192.0.2.3:53"]);
        let none = forwarder.servers(&Config::parse("nameserver 10.1.0.1"), &HashSet::from(own));
        let question = Arc::new(question(Transport::Udp));
        assert!(forwarder.ask(question, &config, &none).await.is_none());
    }

    #[tokio::test]
    async fn rotation() {
        let forwarder = forwarder();
        let config = Config::parse("nameserver 192.0.2.1\nnameserver 192.0.2.2\noptions rotate\n");
        let first = || {
            forwarder.servers(&config, &HashSet::new())[0]
                .addr
                .to_string()
        };
        assert_eq!(
            [first(), first(), first()],
            ["192.0.2.1:53", "192.0.2.2:53", "192.0.2.1:53"]
        );
    }

    #[tokio::test]
    async fn the_file_is_what_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        // Nobody listens on port 53 of this address: refused at once.
        fs::write(&path, "nameserver 127.77.77.77\noptions attempts:1\n").unwrap();
        let forwarder = Forwarder::new(File::new(path), PATIENCE);
        let question = question(Transport::Udp);
        assert!(forwarder.forward(question, &HashSet::new()).await.is_none());
        let known = forwarder.upstreams.lock().unwrap();
        assert!(known.contains_key(&"127.77.77.77:53".parse().unwrap()));
    }
}
