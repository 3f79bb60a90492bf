//! Traffic that goes on until it is told to end, and then says what it missed: datagrams and pings by their
//! numbers, and one connection after the other. Bulk TCP is [`Drinking`](crate::programs::Drinking).

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::sys::{
    signal::Signal,
    socket::{setsockopt, sockopt},
};

use crate::{
    netns::{Namespace, Running},
    wait::{wait_at_most, wait_until},
};

const SOON: Duration = Duration::from_secs(10);
/// How often a thread looks whether it is to end.
const GLANCE: Duration = Duration::from_millis(50);
/// Room for what arrives while the receiver waits for a CPU.
const BACKLOG: usize = 8 << 20;

/// Sleeps until the `n`th event of so many a second since `start` is due.
pub fn pace(start: Instant, n: u64, per_second: u64) {
    let due = start + Duration::from_nanos(n * 1_000_000_000 / per_second);
    thread::sleep(due.saturating_duration_since(Instant::now()));
}

/// What a thread looks at to know whether it is to end: it is when this goes, also by a panic.
pub(crate) struct End(Arc<AtomicBool>);

impl End {
    /// And what the thread looks at.
    pub(crate) fn new() -> (Self, Arc<AtomicBool>) {
        let told = Arc::new(AtomicBool::new(false));
        (Self(told.clone()), told)
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Datagrams with a number each, counted up from 0.
pub struct Numbered {
    end: End,
    received: Arc<AtomicU64>,
    sender: JoinHandle<u64>,
    receiver: JoinHandle<Vec<u64>>,
    done: End,
}

impl Numbered {
    /// From `from` to `to`, which is where `receiver` receives by `port`; so many a second.
    #[track_caller]
    pub fn start(
        from: &Namespace,
        to: (IpAddr, u16),
        (receiver, port): (&Namespace, u16),
        per_second: u64,
    ) -> Self {
        let inbox = receiver.enter(|| UdpSocket::bind(("::", port)).expect("the port is free"));
        setsockopt(&inbox, sockopt::RcvBufForce, &BACKLOG).expect("we are root");
        inbox.set_read_timeout(Some(GLANCE)).expect("not 0");
        let outbox = crate::programs::udp_socket_for(from, to.0);
        let received = Arc::new(AtomicU64::new(0));
        let ((done, told), count) = (End::new(), received.clone());
        let receiver = thread::spawn(move || {
            let mut seen = Vec::new();
            let mut number = [0; 8];
            while !told.load(Ordering::Relaxed) {
                if inbox.recv(&mut number).is_ok_and(|length| length == 8) {
                    seen.push(u64::from_be_bytes(number));
                    count.store(seen.len() as u64, Ordering::Relaxed);
                }
            }
            seen
        });
        let (end, told) = End::new();
        let sender = thread::spawn(move || {
            let start = Instant::now();
            for number in 0u64.. {
                if told.load(Ordering::Relaxed) {
                    return number;
                }
                outbox
                    .send_to(&number.to_be_bytes(), to)
                    .unwrap_or_else(|error| panic!("datagram {number} is not sent: {error}"));
                pace(start, number, per_second);
            }
            unreachable!("a u64 ends in some thousand years");
        });
        Self {
            end,
            received,
            sender,
            receiver,
            done,
        }
    }

    /// Ends it: how many were sent, and those that did not arrive, or twice. Waits for the last one.
    pub fn finish(self) -> (u64, Vec<u64>) {
        drop(self.end);
        let sent = self.sender.join().expect("all were sent");
        wait_at_most(SOON / 5, || {
            (self.received.load(Ordering::Relaxed) >= sent).then_some(())
        });
        drop(self.done);
        let mut times = vec![0u32; sent as usize];
        for number in self.receiver.join().expect("it receives") {
            times[number as usize] += 1;
        }
        let wrong = (0..sent).filter(|&n| times[n as usize] != 1);
        (sent, wrong.collect())
    }
}

/// Echo requests, counted up from 1 by `ping`.
pub struct Pings(Running);

impl Pings {
    /// From `from` to `to`, so long apart.
    #[track_caller]
    pub fn start(from: &Namespace, to: IpAddr, apart: Duration) -> Self {
        let (apart, to) = (apart.as_secs_f64().to_string(), to.to_string());
        Self(from.spawn(&["ping", "-n", "-i", &apart, &to]))
    }

    /// Ends them: panics unless all are answered, in whatever order. One may be on its way at the end, and its
    /// answer with it: the last one that was answered is the last that counts, whatever `ping` sums up.
    #[track_caller]
    pub fn finish(mut self) {
        let before = self.answered().len();
        wait_until("pings to be answered still", SOON, || {
            self.answered().len() > before + 1
        });
        self.0.signal(Signal::SIGINT);
        self.0.wait(SOON);
        let mut answered = self.answered();
        answered.sort_unstable();
        let all = 1..=answered.len() as u64;
        assert!(answered.into_iter().eq(all), "{}", self.0.stdout());
    }

    fn answered(&self) -> Vec<u64> {
        let told = self.0.stdout();
        let numbers = told
            .lines()
            .filter_map(|line| line.split_once(" icmp_seq=")?.1.split_once(" ttl="));
        numbers
            .filter_map(|(number, _)| number.parse().ok())
            .collect()
    }
}

/// A TCP server (IPv4 and IPv6) that greets whoever connects, and hangs up.
pub struct Greeter {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

const GREETING: &[u8] = b"good day\n";

impl Greeter {
    #[track_caller]
    pub fn start(namespace: &Namespace, port: u16) -> Self {
        let listener =
            namespace.enter(|| TcpListener::bind(("::", port)).expect("the port is free"));
        let end = Arc::new(AtomicBool::new(false));
        let told = end.clone();
        let thread = thread::spawn(move || {
            // The last connection is our own, to wake it.
            for stream in listener.incoming() {
                if told.load(Ordering::Relaxed) {
                    return;
                }
                if let Ok(mut stream) = stream {
                    let _ = stream.write_all(GREETING);
                }
            }
        });
        let wake = namespace.enter(|| TcpStream::connect(("127.0.0.1", port)));
        drop(wake.expect("it listens"));
        Self {
            end,
            thread: Some(thread),
        }
    }

    /// Ends with the next connection, which `wake` makes.
    pub fn finish(mut self, namespace: &Namespace, port: u16) {
        self.end.store(true, Ordering::Relaxed);
        let _ = namespace.enter(|| TcpStream::connect(("127.0.0.1", port)));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// New connections to a [`Greeter`], so many a second.
pub struct Connections {
    end: End,
    threads: Vec<JoinHandle<Calls>>,
}

/// What became of connections.
#[derive(Default, Debug)]
pub struct Calls {
    pub made: u64,
    /// What went wrong, and with which one.
    pub failed: Vec<String>,
    pub slowest: Duration,
}

impl Connections {
    /// A thread each takes its turn: one that waits for a lost SYN does not stop the others.
    const CALLERS: u64 = 8;

    #[track_caller]
    pub fn start(from: &Namespace, to: (IpAddr, u16), per_second: u64) -> Self {
        let (end, told) = End::new();
        let threads = (0..Self::CALLERS).map(|_| {
            let (told, path) = (told.clone(), from.path());
            thread::spawn(move || {
                crate::netns::enter(&path, || call(to, per_second / Self::CALLERS, &told))
            })
        });
        Self {
            threads: threads.collect(),
            end,
        }
    }

    pub fn finish(self) -> Calls {
        drop(self.end);
        let all = self.threads.into_iter();
        all.map(|thread| thread.join().expect("it notes what fails"))
            .fold(Calls::default(), |mut sum, calls| {
                sum.made += calls.made;
                sum.failed.extend(calls.failed);
                sum.slowest = sum.slowest.max(calls.slowest);
                sum
            })
    }
}

fn call(to: (IpAddr, u16), per_second: u64, end: &AtomicBool) -> Calls {
    let mut calls = Calls::default();
    let start = Instant::now();
    while !end.load(Ordering::Relaxed) {
        let began = Instant::now();
        let greeted = || {
            let mut stream = TcpStream::connect_timeout(&to.into(), SOON)?;
            stream.set_read_timeout(Some(SOON))?;
            let mut greeting = Vec::new();
            stream.read_to_end(&mut greeting)?;
            Ok::<_, std::io::Error>(greeting)
        };
        match greeted() {
            Ok(greeting) if greeting == GREETING => {}
            Ok(other) => calls.failed.push(format!("{}: {other:?}", calls.made)),
            Err(error) => calls.failed.push(format!("{}: {error}", calls.made)),
        }
        calls.made += 1;
        calls.slowest = calls.slowest.max(began.elapsed());
        pace(start, calls.made, per_second);
    }
    calls
}
