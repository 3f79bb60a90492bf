//! Which of the node's resolvers is asked, and when the next one is.
//!
//! The first is asked, and when it has said nothing for a while the next one too, and so on round the
//! list; the first answer counts, whoever sends it. When all were asked as often as they are to be, an
//! answer may still come. A refusal (SERVFAIL, REFUSED, NOTIMP) has the next one asked at once, and is
//! handed on if none knows better; who refused is asked no more. Queries are independent of each other:
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
use hickory_proto::op::ResponseCode;
use tokio::{
    sync::Semaphore,
    time::{timeout, timeout_at},
};

use super::{
    failures::Failures,
    message::{Transport, failure},
    resolv::{Config, File},
    round::Round,
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

impl Patience {
    /// Until the next of so many is asked: each is, once, before the end.
    fn step(&self, config: &Config, servers: usize) -> Duration {
        let step = config.timeout.unwrap_or(self.step).min(STEP_MAX);
        step.min(self.all / servers.max(1) as u32)
    }
}

#[derive(Debug)]
pub struct Forwarder {
    file: File,
    patience: Patience,
    upstreams: Mutex<HashMap<SocketAddr, Arc<Upstream>>>,
    turn: AtomicUsize,
    failures: Failures,
    /// Queries that are answered, and listen on for who is late.
    late: Arc<Semaphore>,
}

/// The longest step: clients give up, or ask again, after five seconds, and there should be an answer
/// by then from the second resolver.
const STEP_MAX: Duration = Duration::from_secs(3);

/// So many answered queries may listen on. It is enough that some do.
const LATE: usize = 16;

/// What the C library has room for (MAXNS): nobody counts on more.
const SERVERS: usize = 3;

impl Forwarder {
    pub fn new(file: File, patience: Patience) -> Self {
        Self {
            file,
            patience,
            upstreams: Mutex::new(HashMap::new()),
            turn: AtomicUsize::new(0),
            failures: Failures::default(),
            late: Arc::new(Semaphore::new(LATE)),
        }
    }

    /// Asks the node's resolvers, but none at the addresses `own`. Where none of them answers, or the
    /// same was asked a moment ago and failed, what to say.
    pub async fn forward(
        &self,
        mut question: Question,
        own: &HashSet<IpAddr>,
    ) -> Result<Vec<u8>, ResponseCode> {
        if let Some(code) = self.failures.find(&question.sameness, Instant::now()) {
            return Err(code);
        }
        let config = self.file.current();
        let servers = self.servers(&config, own);
        if servers.is_empty() {
            return Err(ResponseCode::ServFail);
        }
        if config.use_vc {
            question.transport = Transport::Tcp;
        }
        let sameness = question.sameness.clone();
        let told = self.ask(Arc::new(question), &config, &servers).await;
        let failed = match &told {
            Some(answer) => failure(answer),
            None => Some(ResponseCode::ServFail),
        };
        if let Some(code) = failed {
            self.failures.add(sameness, code, Instant::now());
        }
        told.ok_or(ResponseCode::ServFail)
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
                tokio::spawn(timeout(self.patience.all, asked));
            }
        }
        let step = self.patience.step(config, servers.len());
        let end = Instant::now() + self.patience.all;
        let mut round = Round::new(servers.len(), config.attempts);
        let mut asked = FuturesUnordered::new();
        let mut refusal = None;
        let told = loop {
            if refusal.is_some() {
                // It is as good as what one that is dead would say.
                round.drop_all(|n| servers[n].is_resting());
            }
            let now = Instant::now();
            let next = round.next(asked.len(), now);
            if let Some(n) = next {
                let answer = ask(servers[n].clone(), question.clone(), rest);
                asked.push(async move { (n, answer.await) });
            } else if round.is_over() {
                break refusal;
            }
            // When all were asked, it is the answer that is waited for. Somebody who has a refusal
            // already need not wait for that.
            let until = match round.may_ask(asked.len()) || refusal.is_some() {
                true => end.min(now + step),
                false => end,
            };
            match timeout_at(until.into(), asked.next()).await {
                Ok(Some((n, Some(answer)))) => {
                    if failure(&answer).is_none() {
                        break Some(answer);
                    }
                    refusal = Some(answer);
                    round.drop_all(|server| server == n);
                }
                Ok(Some((n, None))) => round.ended(n),
                Ok(None) => break refusal,
                Err(_) => {
                    let now = Instant::now();
                    // By TCP it may be the connection that fails.
                    if question.transport == Transport::Udp {
                        for (n, asked) in round.asked_before(now.checked_sub(step)) {
                            servers[n].silent(asked, &question.question.name, rest);
                        }
                    }
                    if now >= end || (refusal.is_some() && !round.may_ask(asked.len())) {
                        break refusal;
                    }
                }
            }
        };
        // Who is late is not dead.
        if !asked.is_empty()
            && let Ok(permit) = self.late.clone().try_acquire_owned()
        {
            tokio::spawn(async move {
                let all = asked.for_each(|_| std::future::ready(()));
                let _ = timeout_at(end.into(), all).await;
                drop(permit);
            });
        }
        told
    }

    /// In the order in which they are to be asked: those that rest at the end.
    fn servers(&self, config: &Config, own: &HashSet<IpAddr>) -> Vec<Arc<Upstream>> {
        let mut known = self
            .upstreams
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let now: Vec<SocketAddr> = config.servers_now().collect();
        // What is not listed any more is forgotten.
        known.retain(|addr, _| now.contains(addr));
        let mut servers: Vec<_> = now
            .into_iter()
            .filter(|server| !own.contains(&server.ip().to_canonical()))
            .take(SERVERS)
            .map(|addr| {
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
        op::Message,
        rr::{RData, RecordType, rdata::A},
    };
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, UdpSocket},
        task::JoinHandle,
    };

    use super::*;
    use crate::dns::{
        message::{Asked, id, set_id, tests::query},
        upstream::{SILENT, framed},
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

    /// How long it takes to answer: no time.
    const AT_ONCE: Duration = Duration::ZERO;

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
        asked.answer(code, records)
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
        slow(addr, says, AT_ONCE).await
    }

    async fn slow(addr: &str, says: Says, after: Duration) -> Fake {
        let socket = UdpSocket::bind(addr).await.unwrap();
        let addr = socket.local_addr().unwrap();
        let seen = Arc::new(AtomicUsize::new(0));
        let task = {
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                    // Another test sends answers to all ports.
                    if Asked::read(&buffer[..length], Transport::Udp).is_err() {
                        continue;
                    }
                    seen.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(after).await;
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

    /// For tests that want no second ask however busy the machine is.
    fn patient() -> Forwarder {
        let file = File::new(Path::new("/nonexistent").into());
        Forwarder::new(file, Patience::default())
    }

    fn config(servers: &[&Fake]) -> Config {
        Config::of(servers.iter().map(|fake| fake.addr))
    }

    fn question(transport: Transport) -> Question {
        question_of("www.example.org.", transport)
    }

    fn question_of(name: &str, transport: Transport) -> Question {
        let query = query(name, RecordType::A, Some(1232));
        let asked = Asked::read(&query, transport).unwrap();
        Question {
            sameness: asked.sameness(&query),
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

    async fn forward_name(forwarder: &Forwarder, config: &Config, n: usize) -> Option<Message> {
        let servers = forwarder.servers(config, &HashSet::new());
        let question = question_of(&format!("n{n}.example.org."), Transport::Udp);
        let answer = forwarder.ask(Arc::new(question), config, &servers).await?;
        Some(Message::from_vec(&answer).unwrap())
    }

    #[tokio::test]
    async fn a_silent_one_rests_and_is_asked_again_with_nobody_waiting() {
        let silent = fake("127.0.0.1:0", nothing).await;
        let good = fake("127.0.0.1:0", two).await;
        let (forwarder, config) = (forwarder(), config(&[&silent, &good]));
        let upstream = forwarder.servers(&config, &HashSet::new())[0].clone();
        // The same name, again and again, says nothing of it.
        for n in [0, 0, 0, 0, 1] {
            assert_eq!(address(forward_name(&forwarder, &config, n).await), 2);
            assert!(!upstream.is_resting());
        }
        assert_eq!(address(forward_name(&forwarder, &config, 2).await), 2);
        assert!(upstream.is_resting());
        let asked = silent.seen();
        // From now on nobody waits for it.
        let servers = forwarder.servers(&config, &HashSet::new());
        assert_eq!([servers[0].addr, servers[1].addr], [good.addr, silent.addr]);
        tokio::time::sleep(PATIENCE.rest).await;
        assert_eq!(address(forward_name(&forwarder, &config, 3).await), 2);
        let deadline = Instant::now() + Duration::from_secs(5);
        while silent.seen() == asked {
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
        put_to_rest(&upstream, Duration::ZERO);
        assert_eq!(address(forward(&forwarder, &config).await), 2);
        rested(&upstream).await;
        assert_eq!(address(forward(&forwarder, &config).await), 1);
    }

    fn put_to_rest(upstream: &Upstream, rest: Duration) {
        silent_since(upstream, Instant::now(), rest);
        assert!(upstream.is_resting());
    }

    fn silent_since(upstream: &Upstream, since: Instant, rest: Duration) {
        for n in 0..SILENT {
            let question = question_of(&format!("n{n}."), Transport::Udp);
            upstream.silent(since, &question.question.name, rest);
        }
    }

    async fn rested(upstream: &Upstream) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while upstream.is_resting() {
            assert!(Instant::now() < deadline, "it still rests");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn one_that_is_late_is_not_dead() {
        // It answers when the other has answered already.
        let late = slow("127.0.0.1:0", one, PATIENCE.step * 4).await;
        let good = fake("127.0.0.1:0", two).await;
        let (forwarder, config) = (forwarder(), config(&[&late, &good]));
        let upstream = forwarder.servers(&config, &HashSet::new())[0].clone();
        let begun = Instant::now();
        assert_eq!(address(forward(&forwarder, &config).await), 2);
        // It seems so, by what others have asked meanwhile.
        silent_since(&upstream, begun, Duration::from_secs(60));
        rested(&upstream).await;
    }

    #[tokio::test]
    async fn an_answer_may_come_when_nobody_is_left_to_be_asked() {
        let late = slow("127.0.0.1:0", one, PATIENCE.step * 3).await;
        let mut config = config(&[&late]);
        config.attempts = 1;
        assert_eq!(address(forward(&forwarder(), &config).await), 1);
        assert_eq!(late.seen(), 1);
    }

    #[test]
    fn each_is_asked_in_time() {
        let patience = Patience::default();
        for (timeout, servers, step) in [
            (None, 1, 2000),
            (None, 3, 2000),
            (Some(1), 1, 1000),
            (Some(30), 1, 3000),
            (Some(30), 3, 3000),
            (Some(30), 5, 2000),
            (Some(30), 0, 3000),
        ] {
            let mut config = Config::parse("");
            config.timeout = timeout.map(Duration::from_secs);
            let found = patience.step(&config, servers);
            assert_eq!(found, Duration::from_millis(step), "{timeout:?} {servers}");
        }
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
        assert_eq!(address(forward(&patient(), &config).await), 2);
        assert_eq!(good.seen(), 1);
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
    async fn who_has_refused_is_asked_no_more() {
        let (first, second) = (
            fake("127.0.0.1:0", refuses).await,
            fake("127.0.0.1:0", refuses).await,
        );
        let mut config = config(&[&first, &second]);
        config.attempts = 5;
        let told = forward(&patient(), &config).await.unwrap();
        assert_eq!(told.metadata.response_code, ResponseCode::Refused);
        assert_eq!((first.seen(), second.seen()), (1, 1));
    }

    #[tokio::test]
    async fn with_a_refusal_in_hand_nobody_waits_for_one_that_rests() {
        let refusing = fake("127.0.0.1:0", refuses).await;
        let silent = fake("127.0.0.1:0", nothing).await;
        let (forwarder, config) = (patient(), config(&[&silent, &refusing]));
        let upstream = forwarder.servers(&config, &HashSet::new())[0].clone();
        put_to_rest(&upstream, Duration::from_secs(60));
        let told = forward(&forwarder, &config).await.unwrap();
        assert_eq!(told.metadata.response_code, ResponseCode::Refused);
        assert_eq!((refusing.seen(), silent.seen()), (1, 0));
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
                let question = Arc::new(question(Transport::Udp));
                let answer = forwarder.ask(question, &fine, &fine_servers).await;
                assert!(answer.is_some());
            }
        };
        tokio::select! {
            _ = waiting => panic!("those who ask the dead one are done first"),
            () = others => {}
        }
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
        let own = HashSet::new();
        let told = forwarder.forward(question(Transport::Udp), &own).await;
        assert_eq!(told, Err(ResponseCode::ServFail));
        let known = forwarder.upstreams.lock().unwrap();
        assert!(known.contains_key(&"127.77.77.77:53".parse().unwrap()));
    }

    #[tokio::test]
    async fn what_failed_a_moment_ago_is_not_asked_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        fs::write(&path, "nameserver 127.77.77.77\n").unwrap();
        let forwarder = Forwarder::new(File::new(path), PATIENCE);
        let asked = question(Transport::Udp).sameness;
        forwarder
            .failures
            .add(asked, ResponseCode::Refused, Instant::now());
        let own = HashSet::new();
        let told = forwarder.forward(question(Transport::Udp), &own).await;
        // Nobody listens there: asked, it would be SERVFAIL.
        assert_eq!(told, Err(ResponseCode::Refused));
        let other = question_of("other.", Transport::Udp);
        let sameness = other.sameness.clone();
        let told = forwarder.forward(other, &own).await;
        assert_eq!(told, Err(ResponseCode::ServFail));
        let known = forwarder.failures.find(&sameness, Instant::now());
        assert_eq!(known, Some(ResponseCode::ServFail));
    }
}
