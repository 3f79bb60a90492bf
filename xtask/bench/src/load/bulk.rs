//! Bulk TCP: from the client to the container, from the container to the client, and between two
//! containers of one network. One connection, the sender on one CPU and the receiver on the other.
//!
//! Counted is what the receiver has read. TCP over veth moves super-packets of up to 64 KiB as long as
//! nobody takes the offloads away, and the cost per packet all but vanishes. XDP does: a veth whose
//! peer has a program loses TSO, as XDP has no frames of more than a page. So **netfw-xdp** sends
//! towards the container in frames of the MTU, and far less of it. That is why `--xdp auto` takes TC on
//! veths.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use netfw_tests::{Namespace, topology::CLIENT};

use super::{Lane, Load, accept_within, heading};
use crate::{
    contender::{Contender, Kind},
    cpu,
    plan::Plan,
    report::{Better, Heading},
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    In,
    Out,
    Between,
}

struct Bulk {
    direction: Direction,
    duration: Duration,
}

/// The client's port, for what leaves the container.
const PORT: u16 = 5001;

/// As much as iperf3 writes at once.
const CHUNK: usize = 128 << 10;

/// Nothing moves for so long: it is stuck.
const PATIENCE: Duration = Duration::from_secs(5);

pub fn loads(plan: &Plan) -> Vec<Box<dyn Load>> {
    [Direction::In, Direction::Out, Direction::Between]
        .into_iter()
        .map(|direction| -> Box<dyn Load> {
            Box::new(Bulk {
                direction,
                duration: plan.bulk,
            })
        })
        .collect()
}

impl Load for Bulk {
    fn name(&self) -> &'static str {
        "bulk"
    }

    fn measures(&self) -> Vec<Heading> {
        let (id, title) = match self.direction {
            Direction::In => ("bulk-in", "Bulk TCP to a publish"),
            Direction::Out => ("bulk-out", "Bulk TCP from a container, masqueraded"),
            Direction::Between => ("bulk-between", "Bulk TCP between two containers"),
        };
        vec![heading(id, title, "Gbit/s", Better::Higher, None)]
    }

    fn at(&self) -> Option<u64> {
        None
    }

    fn suits(&self, kind: Kind) -> bool {
        kind.has_addresses() && (self.direction != Direction::Between || kind.has_container())
    }

    fn lane<'a>(&self, contender: &'a Contender) -> Result<Box<dyn Lane + 'a>> {
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let (client, server) = (&contender.lab.client, contender.server());
        let served = contender.tcp.served;
        let (sender, receiver, target) = match self.direction {
            Direction::In => (client, server, contender.tcp.published),
            Direction::Out => (server, client, SocketAddr::new(CLIENT, PORT)),
            Direction::Between => (
                contender.neighbour()?,
                server,
                SocketAddr::new(contender.server_address()?, served),
            ),
        };
        let port = match self.direction {
            Direction::Out => PORT,
            _ => served,
        };
        let listener = receiver
            .enter(|| TcpListener::bind((any, port)))
            .with_context(|| format!("listening on port {port}"))?;
        accept_within(&listener, PATIENCE)?;
        Ok(Box::new(Running {
            sender,
            listener,
            target,
            duration: self.duration,
        }))
    }

    fn seconds(&self) -> f64 {
        WARM_UP.as_secs_f64() + self.duration.as_secs_f64()
    }
}

/// Until windows and buffers have grown.
const WARM_UP: Duration = Duration::from_millis(100);

struct Running<'a> {
    sender: &'a Namespace,
    listener: TcpListener,
    target: SocketAddr,
    duration: Duration,
}

impl Lane for Running<'_> {
    fn run(&mut self) -> Result<Vec<f64>> {
        let (from, to) = (cpu::sender()?, cpu::server()?);
        let target = self.target;
        // Connected before anybody accepts: the listener's queue takes it, and errors are told here.
        let mut stream = self
            .sender
            .enter(|| TcpStream::connect_timeout(&target, PATIENCE))
            .with_context(|| format!("connecting to {target}"))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let (mut accepted, _) = self.listener.accept().context("accepting")?;
        accepted.set_read_timeout(Some(PATIENCE))?;
        let enough = AtomicBool::new(false);
        thread::scope(|scope| {
            let sending = scope.spawn(|| {
                cpu::pin(from)?;
                send(&mut stream, &enough)
            });
            let receiving = scope.spawn(|| {
                let received = cpu::pin(to).and_then(|()| receive(&mut accepted, self.duration));
                enough.store(true, Ordering::Relaxed);
                // What is under way is lost, and a sender that waits is told.
                drop(accepted);
                received
            });
            let received = receiving.join();
            let sent = sending.join();
            match (received, sent) {
                (Ok(received), Ok(sent)) => {
                    sent.context("sending")?;
                    Ok(vec![received.context("receiving")?])
                }
                _ => bail!("a thread panicked"),
            }
        })
    }
}

/// Sends until the receiver has `enough`, and closes.
fn send(stream: &mut TcpStream, enough: &AtomicBool) -> Result<()> {
    let chunk = vec![0x5a; CHUNK];
    while !enough.load(Ordering::Relaxed) {
        match stream.write_all(&chunk) {
            Ok(()) => {}
            // The receiver, having enough, has closed.
            Err(_) if enough.load(Ordering::Relaxed) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Receives for `duration`, once it is warm: Gbit/s.
fn receive(stream: &mut TcpStream, duration: Duration) -> Result<f64> {
    let mut chunk = vec![0; CHUNK];
    let mut read_for = |duration: Duration| -> Result<(usize, Duration)> {
        let start = Instant::now();
        let mut all = 0;
        while start.elapsed() < duration {
            let length = stream.read(&mut chunk)?;
            ensure!(length > 0, "the sender closed the connection");
            all += length;
        }
        Ok((all, start.elapsed()))
    };
    read_for(WARM_UP)?;
    let (bytes, took) = read_for(duration)?;
    Ok(gigabits(bytes) / took.as_secs_f64())
}

fn gigabits(bytes: usize) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 bytes")]
    let bytes = bytes as f64;
    bytes * 8.0 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gigabit_has_eight_bits_to_the_byte() {
        assert_eq!(gigabits(125_000_000), 1.0);
    }

    #[test]
    fn what_is_sent_is_counted_where_it_arrives() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let target = listener.local_addr().expect("bound");
        let mut stream = TcpStream::connect(target).expect("connected");
        let (mut accepted, _) = listener.accept().expect("accepted");
        let enough = AtomicBool::new(false);
        thread::scope(|scope| {
            let sending = scope.spawn(|| send(&mut stream, &enough));
            let rate = receive(&mut accepted, Duration::from_millis(50));
            enough.store(true, Ordering::Relaxed);
            drop(accepted);
            assert!(rate.expect("received") > 0.0);
            sending.join().expect("no panic").expect("sent");
        });
    }

    #[test]
    fn a_sender_that_closes_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let stream = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let (mut accepted, _) = listener.accept().expect("accepted");
        drop(stream);
        assert!(receive(&mut accepted, Duration::from_secs(1)).is_err());
    }
}
