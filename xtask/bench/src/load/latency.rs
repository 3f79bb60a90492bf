//! How long a question and its answer take over an established TCP connection: the median, and the
//! slowest of a hundred and of a thousand; on an idle node, and while others send small UDP packets
//! through it.
//!
//! Client and server block in `read`, each on a CPU of its own, so that each message wakes somebody
//! up: most of the time is the scheduler's, the same for all. The others' packets ([`Stream`]) come in
//! bursts at a fixed pace from the client's CPU, where they are also forwarded: messages wait behind
//! whole bursts, for as long as the contender takes for them.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Lane, Load, accept_within, heading};
use crate::{
    contender::{Contender, Kind},
    cpu,
    frames::{Direction, End, Frames},
    plan::Plan,
    report::{Better, Heading, stats},
};

/// What is asked, and what is answered.
const MESSAGE: usize = 64;

/// A message takes no longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Questions before those that count: the connection is past its slow start, and caches are warm.
const WARM_UP: usize = 200;

/// Packets of a burst, and bursts begin so far apart: 80,000 packets a second, an eighth to a half of
/// what a core forwards.
const BURST: usize = 32;
const PACE: Duration = Duration::from_micros(400);

/// What of the packets must have been sent and have arrived.
const LEAST: f64 = 0.9;

struct Latency {
    loaded: bool,
    duration: Duration,
}

pub fn loads(plan: &Plan) -> Vec<Box<dyn Load>> {
    [false, true]
        .into_iter()
        .map(|loaded| -> Box<dyn Load> {
            Box::new(Latency {
                loaded,
                duration: plan.latency,
            })
        })
        .collect()
}

/// Names, words, and which part of the answers is no slower.
const QUANTILES: [(&str, &str, f64); 3] = [
    ("p50", "median", 0.5),
    ("p99", "99 %", 0.99),
    ("p999", "99.9 %", 0.999),
];

impl Load for Latency {
    fn name(&self) -> &'static str {
        "latency"
    }

    fn measures(&self) -> Vec<Heading> {
        let (prefix, when) = match self.loaded {
            true => ("latency-loaded", "beside 80,000 packets/s"),
            false => ("latency", "idle"),
        };
        QUANTILES
            .iter()
            .map(|(id, words, _)| {
                let title = format!("Request and response over TCP, {when}: {words}");
                heading(&format!("{prefix}-{id}"), &title, "µs", Better::Lower, None)
            })
            .collect()
    }

    fn at(&self) -> Option<u64> {
        None
    }

    fn suits(&self, kind: Kind) -> bool {
        kind.has_addresses()
    }

    fn lane<'a>(&self, contender: &'a Contender) -> Result<Box<dyn Lane + 'a>> {
        let served = contender.tcp.served;
        let listener = contender
            .server()
            .enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, served)))
            .with_context(|| format!("listening on port {served}"))?;
        accept_within(&listener, PATIENCE)?;
        let stream = self.loaded.then(|| Stream::new(contender)).transpose()?;
        Ok(Box::new(Running {
            contender,
            listener,
            stream,
            duration: self.duration,
        }))
    }

    fn seconds(&self) -> f64 {
        self.duration.as_secs_f64()
    }
}

struct Running<'a> {
    contender: &'a Contender,
    listener: TcpListener,
    stream: Option<Stream<'a>>,
    duration: Duration,
}

impl Lane for Running<'_> {
    fn run(&mut self) -> Result<Vec<f64>> {
        let published = self.contender.tcp.published;
        let mut client = self
            .contender
            .lab
            .client
            .enter(|| TcpStream::connect_timeout(&published, PATIENCE))
            .with_context(|| format!("connecting to {published}"))?;
        let (mut server, _) = self.listener.accept().context("accepting")?;
        for end in [&client, &server] {
            end.set_nodelay(true)?;
            end.set_read_timeout(Some(PATIENCE))?;
        }
        let (from, to) = (cpu::sender()?, cpu::server()?);
        let over = AtomicBool::new(false);
        let (duration, stream) = (self.duration, &mut self.stream);
        let mut times = thread::scope(|scope| {
            let answering = scope.spawn(|| cpu::pin(to).and_then(|()| answer(&mut server)));
            let streaming = stream
                .as_mut()
                .map(|stream| scope.spawn(|| stream.send_until(&over)));
            let asking = scope.spawn(move || {
                cpu::pin(from)?;
                // Closes the connection, which ends the answering.
                ask(&mut client, duration)
            });
            let asked = asking.join();
            over.store(true, Ordering::Relaxed);
            let streamed = streaming.map_or(Ok(Ok(())), thread::ScopedJoinHandle::join);
            match (asked, answering.join(), streamed) {
                (Ok(asked), Ok(answered), Ok(streamed)) => {
                    answered.context("answering")?;
                    streamed.context("packets meanwhile")?;
                    asked.context("asking")
                }
                _ => bail!("a thread panicked"),
            }
        })?;
        QUANTILES
            .iter()
            .map(|&(_, _, part)| {
                let time = stats::quantile(&mut times, part).context("nothing was answered")?;
                Ok(microseconds(time))
            })
            .collect()
    }
}

/// Answers until the other end closes.
fn answer(stream: &mut TcpStream) -> Result<()> {
    let mut message = [0; MESSAGE];
    loop {
        match stream.read(&mut message)? {
            0 => return Ok(()),
            // So small a message is one segment, and was written at once.
            MESSAGE => stream.write_all(&message)?,
            length => bail!("a message of {length} bytes"),
        }
    }
}

/// Asks for `duration`: how long each answer took, in ns.
fn ask(stream: &mut TcpStream, duration: Duration) -> Result<Vec<u64>> {
    let mut message = [0x5a; MESSAGE];
    let mut ask_once = || -> Result<u64> {
        let start = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        Ok(u64::try_from(start.elapsed().as_nanos())?)
    };
    for _ in 0..WARM_UP {
        ask_once()?;
    }
    let mut times = Vec::with_capacity(1 << 18);
    let end = Instant::now() + duration;
    while Instant::now() < end {
        times.push(ask_once()?);
    }
    Ok(times)
}

fn microseconds(nanoseconds: u64) -> f64 {
    Duration::from_nanos(nanoseconds).as_secs_f64() * 1e6
}

/// Others' packets: small ones of an established UDP flow, from the client to the container, which
/// counts and drops them.
///
/// They are sent by a socket and not by [`Frames`]' generator, which takes 25 ms to begin.
struct Stream<'a> {
    socket: UdpSocket,
    frames: Frames<'a>,
}

impl<'a> Stream<'a> {
    fn new(contender: &'a Contender) -> Result<Self> {
        // For its ends, which count; of its packets those that find the neighbours suffice.
        let mut frames = Frames::attach(contender, Direction::In, 1)?;
        frames.wait_for_neighbours()?;
        let published = contender.udp.published;
        let socket = contender
            .lab
            .client
            .enter(|| {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.connect(published)?;
                anyhow::Ok(socket)
            })
            .with_context(|| format!("a socket towards {published}"))?;
        let mut stream = Self { socket, frames };
        stream.establish()?;
        Ok(stream)
    }

    /// Questions and answers, until the flow is that of a talk that goes on.
    fn establish(&mut self) -> Result<()> {
        self.frames.reflect(End::Container, true)?;
        for _ in 0..3 {
            let before = self.frames.delivered(End::Client)?;
            self.socket.send(&[0; 18]).context("sending a datagram")?;
            let end = Instant::now() + PATIENCE;
            while self.frames.delivered(End::Client)? == before {
                ensure!(Instant::now() < end, "no answer came");
                thread::sleep(Duration::from_millis(1));
            }
        }
        self.frames.reflect(End::Container, false)
    }

    /// Sends burst after burst until it is `over`.
    fn send_until(&mut self, over: &AtomicBool) -> Result<()> {
        cpu::pin(cpu::sender()?)?;
        // As packets do that come from a wire: they ask nobody for a CPU.
        cpu::hurry()?;
        let before = self.frames.delivered(End::Container)?;
        let start = Instant::now();
        let (mut sent, mut next) = (0_usize, start);
        while !over.load(Ordering::Relaxed) {
            for _ in 0..BURST {
                self.socket.send(&[0; 18]).context("sending a datagram")?;
            }
            sent += BURST;
            next += PACE;
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        let bursts = start.elapsed().as_secs_f64() / PACE.as_secs_f64();
        let arrived = self.frames.delivered(End::Container)? - before;
        check(sent, arrived, bursts)
    }
}

/// Was the pace kept, and did the packets arrive?
fn check(sent: usize, arrived: u64, bursts: f64) -> Result<()> {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 packets")]
    let (foreseen, sent, arrived) = (bursts * BURST as f64, sent as f64, arrived as f64);
    ensure!(
        sent >= foreseen * LEAST,
        "of {foreseen:.0} packets only {sent} could be sent"
    );
    ensure!(
        arrived >= sent * LEAST,
        "of {sent} packets only {arrived} arrived"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_answered_until_the_client_has_enough() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let target = listener.local_addr().expect("bound");
        let mut client = TcpStream::connect(target).expect("connected");
        let (mut server, _) = listener.accept().expect("accepted");
        thread::scope(|scope| {
            let answering = scope.spawn(|| answer(&mut server));
            let times = ask(&mut client, Duration::from_millis(20)).expect("answers");
            assert!(!times.is_empty() && times.iter().all(|&time| time > 0));
            drop(client);
            answering.join().expect("no panic").expect("a clean end");
        });
    }

    #[test]
    fn a_stream_that_is_slow_or_lost_is_no_load() {
        assert!(check(1000 * BURST, 31_900, 1000.0).is_ok());
        assert!(check(500 * BURST, 16_000, 1000.0).is_err());
        assert!(check(1000 * BURST, 20_000, 1000.0).is_err());
    }
}
