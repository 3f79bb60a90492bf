//! Small UDP packets through a contender, as fast as one core can.
//!
//! What makes the figures honest:
//! * One core does everything: an XDP program writes packets as live frames of
//!   `BPF_PROG_TEST_RUN` on a pinned thread and sends them out of the sender's veth; the kernel
//!   receives, translates and forwards them on that same core before it asks for more. The rate is
//!   the reciprocal of the whole cost per packet, generator and sink included (they are the same
//!   for all, and what "bare redirect" shows).
//! * The time is from batch to batch, as the program sees them: what the system call takes before
//!   and after them (25 ms, waiting for the most part) is nobody's.
//! * Counted is what arrives, not what was sent, and a round in which packets got lost on the way
//!   does not count.
//! * The flows are real: each was opened and answered before, so that every contender's state is
//!   that of a running service.
//! * Packets have valid checksums. That the receiver's were translated rightly is the tests' matter.

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunAttrs, TestRunOptions,
    maps::{Array, MapData, PerCpuArray, PerCpuValues},
    programs::{SchedClassifier, TcAttachType, Xdp, XdpMode},
    util::nr_cpus,
};
use netfw_tests::{
    Namespace,
    packet::Packet,
    testrun::ifindex,
    topology::{CLIENT, mac},
};

use crate::{
    contender::{Contender, SOURCES},
    cpu,
};

pub static PROGRAMS: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netfw-bench-ebpf"));

const FRAME: usize = 60;
/// The source port of the first flow; each has one of the next 2^14, then it begins anew.
const FIRST_PORT: u16 = 20_000;
/// Where packets that leave the container go to, on the client.
const FIRST_TARGET_PORT: u16 = 5000;
/// Frames between two looks at the receiver; a veth's ring has room for 256.
const BATCH: u32 = 64;
/// Frames per system call.
const REPEAT: u32 = 1 << 16;
/// How long a packet may take.
const LATE: Duration = Duration::from_millis(20);
/// Rounds that may lose packets before one that does is an error: a busy machine lets the thread wait
/// that forwards for the kernel, and a queue overflows.
const TRIES: u32 = 3;
/// Flows that are opened together: their second packets come before the first flows are forgotten
/// again, also where those of whom only one packet was seen have little room.
const WINDOW: u32 = 1 << 15;

/// Where packets go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From the client to a publish.
    In,
    /// The same, and each is answered.
    Both,
    /// To a publish of a container that takes frames by XDP, from the driver.
    ToDriver,
    /// From the container to the client, masqueraded.
    Out,
    /// From the client straight to the container's address, where nothing may pass.
    Direct,
}

/// The ends of the wire, as the programs number them.
#[derive(Clone, Copy)]
pub enum End {
    Container = 0,
    Client = 1,
}

/// The number of the next packet's flow, packets sent, and when the first batch and the last one began,
/// in ns.
type Run = [u64; 4];

/// A generator at one end of a contender, and sinks at both.
pub struct Frames<'a> {
    contender: &'a Contender,
    direction: Direction,
    flows: u32,
    ebpf: Ebpf,
    run: PerCpuArray<MapData, Run>,
    /// Of the sender's interface.
    ifindex: u32,
}

impl<'a> Frames<'a> {
    /// `flows` go round in turn; all are established, but for [`Direction::Direct`].
    pub fn new(contender: &'a Contender, direction: Direction, flows: u32) -> Result<Self> {
        let mut frames = Self::attach(contender, direction, flows)?;
        if direction != Direction::Direct {
            frames.open()?;
        }
        if direction == Direction::ToDriver {
            frames.count_by_xdp()?;
        }
        Ok(frames)
    }

    /// As [`Self::new`], with flows that nobody has opened.
    pub fn attach(contender: &'a Contender, direction: Direction, flows: u32) -> Result<Self> {
        let first = first_frame(contender, direction)?;
        let further_at: u32 = match direction {
            // The low half of the source address.
            Direction::In | Direction::Both | Direction::ToDriver | Direction::Direct => 14 + 14,
            // A container has one address: the destination port.
            Direction::Out => 14 + 20 + 2,
        };
        let mut ebpf = loader()
            .override_global("FLOWS", &flows, true)
            .override_global("FURTHER_AT", &further_at, true)
            .load(PROGRAMS)
            .context("loading the bench's programs")?;
        let mut template: Array<_, [u32; FRAME / 4]> =
            Array::try_from(ebpf.map_mut("TEMPLATE").context("map TEMPLATE")?)?;
        template.set(0, words(&first), 0)?;

        let (server, client) = (contender.server(), &contender.lab.client);
        for (program, namespace, link) in [
            ("container", server, contender.server_link()),
            ("client", client, "eth0"),
        ] {
            let sink = classifier(&mut ebpf, program)?;
            namespace
                .enter(|| sink.attach(link, TcAttachType::Ingress))
                .with_context(|| format!("attaching the sink to {link}"))?;
        }
        generator(&mut ebpf)?.load().context("the generator")?;
        let run = PerCpuArray::try_from(ebpf.take_map("RUN").context("map RUN")?)?;
        let frames = Self {
            ifindex: ifindex(sender(contender, direction), "eth0"),
            contender,
            direction,
            flows,
            ebpf,
            run,
        };
        Ok(frames)
    }

    /// From now on the container's packets are counted in its driver, not at TC.
    fn count_by_xdp(&mut self) -> Result<()> {
        let (server, link) = (self.contender.server(), self.contender.server_link());
        let sink: &mut Xdp = self
            .ebpf
            .program_mut("container_xdp")
            .context("program container_xdp")?
            .try_into()?;
        sink.load().context("loading container_xdp")?;
        server
            .enter(|| sink.attach(link, XdpMode::Driver))
            .with_context(|| format!("attaching the sink to {link} by XDP"))?;
        Ok(())
    }

    /// Sends for `duration`: packets per second that arrived, answers for [`Direction::Both`]. With
    /// [`Direction::Direct`] what was sent, and none may arrive.
    pub fn run(&mut self, duration: Duration) -> Result<f64> {
        let mut lost = String::new();
        for _ in 0..TRIES {
            let end = Instant::now() + duration;
            let (sent, arrived, took) = self.send_while(REPEAT, || Instant::now() < end)?;
            if self.direction == Direction::Direct {
                ensure!(arrived == 0, "{arrived} of {sent} packets arrived");
                return Ok(per_second(sent, took));
            }
            if are_enough(arrived, sent) {
                return Ok(per_second(arrived, took));
            }
            lost = format!("of {sent} packets only {arrived} arrived");
        }
        bail!(lost)
    }

    /// Sends `count` packets: how many arrived, and how long it took; no time where all are one batch.
    pub fn send(&mut self, count: u32) -> Result<(u64, Duration)> {
        let mut left = 1;
        let (_, arrived, took) = self.send_while(count, || {
            left -= 1;
            left >= 0
        })?;
        Ok((arrived, took))
    }

    /// Sends `repeat` packets again and again while `more` says so: how many were sent, how many
    /// arrived at the other end, and how long it took.
    fn send_while(
        &mut self,
        repeat: u32,
        more: impl FnMut() -> bool + Send,
    ) -> Result<(u64, u64, Duration)> {
        let end = self.far_end();
        let before = self.delivered(end)?;
        let sender = sender(self.contender, self.direction);
        let ifindex = self.ifindex;
        let generator = generator(&mut self.ebpf)?;
        let run = &mut self.run;
        let (sent, took) = sender.enter(|| generate(generator, run, ifindex, repeat, more))?;
        // The last batch is mostly received before the system call returns: same core, same softirq. On
        // a busy machine the kernel leaves it to a thread.
        let late = Instant::now() + LATE;
        let mut arrived = self.delivered(end)? - before;
        while arrived < sent && self.direction != Direction::Direct && Instant::now() < late {
            thread::sleep(Duration::from_millis(1));
            arrived = self.delivered(end)? - before;
        }
        Ok((sent, arrived, took))
    }

    /// Where what is counted arrives.
    fn far_end(&self) -> End {
        match self.direction {
            Direction::In | Direction::ToDriver | Direction::Direct => End::Container,
            Direction::Both | Direction::Out => End::Client,
        }
    }

    /// Packets there and back in every flow, then another: established ones, in every contender's
    /// eyes. How long the sending took.
    pub fn open(&mut self) -> Result<Duration> {
        let answering = match self.direction {
            Direction::Out => End::Client,
            _ => End::Container,
        };
        self.reflect(answering, true)?;
        self.wait_for_neighbours()?;
        let mut took = Duration::ZERO;
        let mut first = 0;
        while first < self.flows {
            let window = WINDOW.min(self.flows - first);
            for _ in 0..2 {
                took += self
                    .open_window(first, window)
                    .with_context(|| format!("opening flows, after {first}"))?;
            }
            first += window;
        }
        self.reflect(answering, self.direction == Direction::Both)?;
        Ok(took)
    }

    /// A packet in each of `count` flows from `first` on: how long the sending took.
    fn open_window(&mut self, first: u32, count: u32) -> Result<Duration> {
        let (mut took, mut arrived) = (Duration::ZERO, 0);
        for _ in 0..TRIES {
            self.go_on_with(first)?;
            let (came, time) = self.send(count)?;
            (took, arrived) = (took + time, came);
            if are_enough(arrived, count.into()) {
                return Ok(took);
            }
        }
        bail!("of {count} packets only {arrived} arrived")
    }

    /// The next packet is to be of flow `number`.
    fn go_on_with(&mut self, number: u32) -> Result<()> {
        go_on_with(&mut self.run, number.into())
    }

    /// Sends single packets until they come through.
    pub fn wait_for_neighbours(&mut self) -> Result<()> {
        for _ in 0..100 {
            if self.send(1)?.0 > 0 {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(10));
        }
        bail!("nothing comes through")
    }

    /// Has an end send back the packets that it counts, or drop them.
    pub fn reflect(&mut self, end: End, on: bool) -> Result<()> {
        let map = self.ebpf.map_mut("REFLECTS").context("map REFLECTS")?;
        let mut reflects: Array<_, u32> = Array::try_from(map)?;
        Ok(reflects.set(end as u32, u32::from(on), 0)?)
    }

    /// Packets that an end has counted so far.
    pub fn delivered(&self, end: End) -> Result<u64> {
        let map: PerCpuArray<_, u64> =
            PerCpuArray::try_from(self.ebpf.map("DELIVERED").context("map DELIVERED")?)?;
        Ok(map.get(&(end as u32), 0)?.iter().sum())
    }
}

/// Have packets arrived, but for those that any network may lose?
pub fn are_enough(arrived: u64, sent: u64) -> bool {
    arrived * 100 >= sent * 99
}

fn per_second(count: u64, took: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "packets, far below 2^52")]
    let count = count as f64;
    count / took.as_secs_f64()
}

fn ratio(one: u64, other: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "packets, far below 2^52")]
    let ratio = one as f64 / other as f64;
    ratio
}

fn sender(contender: &Contender, direction: Direction) -> &Namespace {
    match direction {
        Direction::Out => contender.server(),
        _ => &contender.lab.client,
    }
}

/// Begins a run with flow `number`, on whatever CPU.
fn go_on_with(run: &mut PerCpuArray<MapData, Run>, number: u64) -> Result<()> {
    let cpus = nr_cpus().map_err(|(file, error)| anyhow::anyhow!("{file}: {error}"))?;
    let runs = PerCpuValues::try_from(vec![[number, 0, 0, 0]; cpus])?;
    Ok(run.set(0, runs, 0)?)
}

fn generate(
    generator: &Xdp,
    run: &mut PerCpuArray<MapData, Run>,
    ifindex: u32,
    repeat: u32,
    mut more: impl FnMut() -> bool,
) -> Result<(u64, Duration)> {
    let cpu = cpu::sender()?;
    cpu::pin(cpu)?;
    // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let length = u32::try_from(FRAME).context("a frame's length")?;
    let context: Vec<u8> = [0, length, 0, ifindex, 0, 0]
        .iter()
        .flat_map(|word: &u32| word.to_ne_bytes())
        .collect();
    let (mut all, mut took) = (0, Duration::ZERO);
    while more() {
        generator
            .test_run(TestRunOptions {
                data_in: Some(&[0; FRAME]),
                ctx_in: Some(&context),
                repeat,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::new()
            })
            .context("sending live frames (Linux 5.18 can)")?;
        let [next, sent, first, last] = run.get(&0, 0)?[cpu];
        go_on_with(run, next)?;
        all += sent;
        took += time_of_all(sent, last - first);
    }
    Ok((all, took))
}

/// How long `sent` packets took, where `nanoseconds` lie between the beginnings of the first batch
/// and the last one.
fn time_of_all(sent: u64, nanoseconds: u64) -> Duration {
    let batch = u64::from(BATCH);
    match sent.saturating_sub(1) / batch * batch {
        0 => Duration::ZERO,
        timed => Duration::from_nanos(nanoseconds).mul_f64(ratio(sent, timed)),
    }
}

/// A loader with what every use of the programs sets alike.
pub fn loader() -> EbpfLoader<'static> {
    EbpfLoader::new()
}

fn generator(ebpf: &mut Ebpf) -> Result<&mut Xdp> {
    Ok(ebpf
        .program_mut("generate")
        .context("program generate")?
        .try_into()?)
}

/// A TC program, loaded.
pub fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program: &mut SchedClassifier = ebpf
        .program_mut(name)
        .with_context(|| format!("program {name}"))?
        .try_into()?;
    program.load().with_context(|| format!("loading {name}"))?;
    Ok(program)
}

/// The first flow's packet, which the generator makes all others from.
fn first_frame(contender: &Contender, direction: Direction) -> Result<[u8; FRAME]> {
    let (client, node) = (&contender.lab.client, &contender.lab.node);
    let server = contender.server();
    let to_node = (mac(client, "eth0"), mac(node, "up0"));
    let (source, destination, (from, to)) = match direction {
        Direction::In | Direction::Both | Direction::ToDriver => {
            let source = SocketAddr::new(IpAddr::V4(SOURCES), FIRST_PORT);
            (source, contender.udp.published, to_node)
        }
        Direction::Direct => {
            let source = SocketAddr::new(IpAddr::V4(SOURCES), FIRST_PORT);
            let target = match contender.kind.has_addresses() {
                true => SocketAddr::new(contender.server_address()?, contender.udp.served),
                false => contender.udp.published,
            };
            (source, target, to_node)
        }
        Direction::Out => {
            let target = SocketAddr::new(CLIENT, FIRST_TARGET_PORT);
            if contender.kind.has_addresses() {
                let source = SocketAddr::new(contender.server_address()?, FIRST_PORT);
                (source, target, (mac(server, "eth0"), gateway_mac(server)?))
            } else {
                let source = SocketAddr::new(IpAddr::V4(SOURCES), FIRST_PORT);
                (source, target, (mac(server, "eth0"), mac(client, "eth0")))
            }
        }
    };
    Packet::udp(&source.to_string(), &destination.to_string())
        .macs(from, to)
        .payload(&[0x5a; FRAME - 42])
        .build()
        .try_into()
        .map_err(|frame: Vec<u8>| anyhow::anyhow!("a frame of {} bytes", frame.len()))
}

/// The MAC address of the container's gateway, which it has sent to.
fn gateway_mac(server: &Namespace) -> Result<[u8; 6]> {
    let neighbours = server.ip(&["-4", "neigh", "show", "dev", "eth0"]);
    let text = neighbours
        .lines()
        .filter(|line| line.contains("lladdr"))
        .find_map(|line| line.split_whitespace().nth(2))
        .with_context(|| format!("no gateway among {neighbours:?}"))?;
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()
        .with_context(|| format!("a MAC address: {text}"))?;
    bytes
        .try_into()
        .map_err(|_| anyhow::anyhow!("{text} is no MAC address"))
}

fn words(frame: &[u8; FRAME]) -> [u32; FRAME / 4] {
    let mut words = [0; FRAME / 4];
    for (word, bytes) in words.iter_mut().zip(frame.chunks_exact(4)) {
        *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    words
}

#[cfg(test)]
mod tests {
    use netfw_tests::{
        packet::{Seen, assert_checksums},
        testrun::{RunOn as _, TC_DROP, TestDevices, XDP_TX},
    };

    use super::*;

    /// Also shows that the tests' way to run one packet works, for TC and for XDP.
    #[test]
    fn the_generator_makes_whole_packets_and_the_sink_drops_them() {
        netfw_tests::require_root();
        let template: [u8; FRAME] = Packet::udp("10.1.0.2:20000", "10.1.0.1:53")
            .payload(&[0x5a; FRAME - 42])
            .build()
            .try_into()
            .expect("a frame of the generator's size");
        // Beyond the ports of one address: the last packets have another.
        let flows = (1_u32 << 14) + 2;
        TestDevices::new().enter(|devices| {
            for further_at in [28_u32, 36] {
                let mut ebpf = loader()
                    .override_global("FLOWS", &flows, true)
                    .override_global("FURTHER_AT", &further_at, true)
                    .load(PROGRAMS)
                    .expect("the programs are whole");
                let mut map: Array<_, [u32; FRAME / 4]> =
                    Array::try_from(ebpf.map_mut("TEMPLATE").expect("the map")).expect("an array");
                map.set(0, words(&template), 0).expect("an entry");

                let map = ebpf.take_map("RUN").expect("the map");
                let mut run = PerCpuArray::try_from(map).expect("an array");
                go_on_with(&mut run, u64::from(flows) - 3).expect("an entry");
                cpu::pin(cpu::sender().expect("a CPU")).expect("pinned");

                let generate = generator(&mut ebpf).expect("the program");
                generate.load().expect("the verifier lets it through");
                let mut flows = Vec::new();
                for _ in 0..4 {
                    let ran = generate
                        .run_on(&[0xff; FRAME], devices.uplink.ifindex)
                        .expect("a run");
                    assert_eq!(ran.verdict, XDP_TX);
                    assert_checksums(&ran.frame);
                    let seen = Seen::parse(&ran.frame);
                    flows.push((seen.source, seen.destination));
                }
                let cpu = cpu::sender().expect("a CPU");
                let [next, sent, first, last] = run.get(&0, 0).expect("an entry")[cpu];
                assert_eq!((next, sent), (1, 4), "it begins anew after the last flow");
                assert!(first > 0 && first == last, "one batch");
                let flow = |source: &str, destination: &str| {
                    (
                        source.parse().expect("an address"),
                        destination.parse().expect("an address"),
                    )
                };
                let further = match further_at {
                    28 => ("10.1.0.3", "10.1.0.1:53"),
                    _ => ("10.1.0.2", "10.1.0.1:54"),
                };
                let expected: Vec<(SocketAddr, SocketAddr)> = vec![
                    flow("10.1.0.2:36383", "10.1.0.1:53"),
                    flow(&format!("{}:20000", further.0), further.1),
                    flow(&format!("{}:20001", further.0), further.1),
                    flow("10.1.0.2:20000", "10.1.0.1:53"),
                ];
                assert_eq!(flows, expected);
            }
        });
    }

    #[test]
    fn the_last_batch_takes_as_long_as_the_others() {
        assert_eq!(time_of_all(64, 0), Duration::ZERO);
        assert_eq!(time_of_all(65, 640), Duration::from_nanos(650));
        assert_eq!(time_of_all(640, 5760), Duration::from_nanos(6400));
        assert_eq!(time_of_all(0, 0), Duration::ZERO);
    }

    #[test]
    fn a_sink_counts_and_drops_or_sends_back() {
        netfw_tests::require_root();
        TestDevices::new().enter(|devices| {
            let mut ebpf = loader().load(PROGRAMS).expect("the programs are whole");
            let (own, peer) = (devices.uplink.mac, devices.uplink.peer_mac);
            let frame = Packet::udp("10.1.0.2:1", "10.1.0.1:53")
                .macs(peer, own)
                .build();
            let sink = classifier(&mut ebpf, "container").expect("the program");
            let ran = sink.run_on(&frame, devices.uplink.ifindex).expect("a run");
            assert_eq!((ran.verdict, &ran.frame), (TC_DROP, &frame));

            let map = ebpf.map_mut("REFLECTS").expect("the map");
            let mut reflects: Array<_, u32> = Array::try_from(map).expect("an array");
            reflects.set(0, 1, 0).expect("an entry");
            let program = ebpf.program_mut("container").expect("the program");
            let sink: &mut SchedClassifier = program.try_into().expect("a classifier");
            let ran = sink.run_on(&frame, devices.uplink.ifindex).expect("a run");
            assert_eq!(ran.verdict, netfw_tests::testrun::TC_REDIRECT);
            assert_checksums(&ran.frame);
            let answer = Packet::udp("10.1.0.1:53", "10.1.0.2:1")
                .macs(own, peer)
                .build();
            assert_eq!(ran.frame, answer);
        });
    }
}
