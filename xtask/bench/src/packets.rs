//! Small UDP packets per second that one core brings into a container.
//!
//! What makes the figure honest:
//! * One core does everything: an XDP program writes packets as live frames of
//!   `BPF_PROG_TEST_RUN` on a pinned thread and sends them out of the client's veth; the kernel
//!   receives, translates and forwards them on that same core before it asks for more. The rate is
//!   the reciprocal of the whole cost per packet, generator and sink included (they are the same
//!   for all, and what "bare redirect" shows).
//! * Counted is what arrives in the container, not what was sent, and a round in which packets got
//!   lost on the way fails.
//! * The flows are real: 256 of them, each opened by a datagram that the container answered
//!   before, so that every contender's state is that of a running service.
//! * Packets have valid checksums, and the one the sink gets was translated by the contender; its
//!   being right is what the tests are for.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunAttrs, TestRunOptions,
    maps::{Array, PerCpuArray},
    programs::{SchedClassifier, TcAttachType, Xdp, XdpMode, tc::SchedClassifierLinkId},
};
use netfw_tests::{
    packet::Packet,
    testrun::ifindex,
    topology::{CLIENT, mac},
};

use crate::{
    contender::{Contender, HOST_SIDE, Kind},
    cpu,
};

static PROGRAMS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netfw-bench-ebpf"));

const FRAME: usize = 60;
const FIRST_PORT: u16 = 20_000;
const FLOWS: u16 = 256;
/// Frames between two looks at the receiver; a veth's ring has room for 256.
const BATCH: u32 = 64;
/// Frames per system call.
const REPEAT: u32 = 1 << 16;

pub struct Lane {
    contender: Contender,
    ebpf: Ebpf,
    /// Of the client's interface.
    ifindex: u32,
    _sink: SchedClassifierLinkId,
}

impl Lane {
    pub fn new(contender: Contender) -> Result<Self> {
        if contender.kind.has_addresses() {
            open_flows(&contender)?;
        }
        let lab = &contender.lab;
        let redirect_to = match contender.kind {
            Kind::Redirect | Kind::RedirectXdp => ifindex(&lab.node, HOST_SIDE),
            _ => 0,
        };
        let mut ebpf = EbpfLoader::new()
            .override_global("FIRST_PORT", &FIRST_PORT, true)
            .override_global("FLOW_MASK", &(FLOWS - 1), true)
            .override_global("REDIRECT_TO", &redirect_to, true)
            .load(PROGRAMS)
            .context("loading the bench's programs")?;

        let mut template: Array<_, [u32; FRAME / 4]> =
            Array::try_from(ebpf.map_mut("TEMPLATE").context("map TEMPLATE")?)?;
        template.set(0, words(&first_frame(&contender)?), 0)?;

        let link = contender.container_link()?;
        let sink = classifier(&mut ebpf, "sink")?;
        let _sink = contender
            .container
            .enter(|| sink.attach(&link, TcAttachType::Ingress))
            .context("attaching the sink")?;
        if contender.kind == Kind::Redirect {
            let redirect = classifier(&mut ebpf, "redirect")?;
            lab.node
                .enter(|| redirect.attach("up0", TcAttachType::Ingress))
                .context("attaching the redirect")?;
        }
        if contender.kind == Kind::RedirectXdp {
            let redirect: &mut Xdp = ebpf
                .program_mut("redirect_xdp")
                .context("program redirect_xdp")?
                .try_into()?;
            redirect.load().context("loading redirect_xdp")?;
            lab.node
                .enter(|| redirect.attach("up0", XdpMode::Driver))
                .context("attaching the redirect by XDP")?;
        }
        generator(&mut ebpf)?.load().context("the generator")?;
        Ok(Self {
            ifindex: ifindex(&lab.client, "eth0"),
            contender,
            ebpf,
            _sink,
        })
    }

    /// Packets per second that arrived in the container.
    pub fn run(&mut self, duration: Duration) -> Result<f64> {
        let before = self.delivered()?;
        let (sent, took) = {
            let ifindex = self.ifindex;
            let generator = generator(&mut self.ebpf)?;
            self.contender
                .lab
                .client
                .enter(|| generate(generator, ifindex, duration))?
        };
        // The last batch is received before the system call returns: same core, same softirq.
        let delivered = self.delivered()? - before;
        ensure!(
            delivered * 100 >= sent * 99,
            "of {sent} packets only {delivered} arrived"
        );
        #[expect(
            clippy::cast_precision_loss,
            reason = "counts of packets are far below 2^52"
        )]
        let rate = delivered as f64 / took.as_secs_f64();
        Ok(rate)
    }

    fn delivered(&self) -> Result<u64> {
        let map: PerCpuArray<_, u64> =
            PerCpuArray::try_from(self.ebpf.map("DELIVERED").context("map DELIVERED")?)?;
        Ok(map.get(&0, 0)?.iter().sum())
    }
}

fn generate(generator: &Xdp, ifindex: u32, duration: Duration) -> Result<(u64, Duration)> {
    cpu::pin(cpu::sender()?)?;
    // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let length = u32::try_from(FRAME).context("a frame's length")?;
    let context: Vec<u8> = [0, length, 0, ifindex, 0, 0]
        .iter()
        .flat_map(|word: &u32| word.to_ne_bytes())
        .collect();
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < duration {
        generator
            .test_run(TestRunOptions {
                data_in: Some(&[0; FRAME]),
                ctx_in: Some(&context),
                repeat: REPEAT,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::new()
            })
            .context("sending live frames (Linux 5.18 can)")?;
        sent += u64::from(REPEAT);
    }
    Ok((sent, start.elapsed()))
}

fn generator(ebpf: &mut Ebpf) -> Result<&mut Xdp> {
    Ok(ebpf
        .program_mut("generate")
        .context("program generate")?
        .try_into()?)
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program: &mut SchedClassifier = ebpf
        .program_mut(name)
        .with_context(|| format!("program {name}"))?
        .try_into()?;
    program.load().with_context(|| format!("loading {name}"))?;
    Ok(program)
}

/// The packet with source port 0, which the generator makes all others from.
fn first_frame(contender: &Contender) -> Result<[u8; FRAME]> {
    let lab = &contender.lab;
    Packet::udp(
        &SocketAddr::new(CLIENT, 0).to_string(),
        &contender.udp.0.to_string(),
    )
    .macs(mac(&lab.client, "eth0"), mac(&lab.node, "up0"))
    .payload(&[0x5a; FRAME - 42])
    .build()
    .try_into()
    .map_err(|frame: Vec<u8>| anyhow::anyhow!("a frame of {} bytes", frame.len()))
}

fn words(frame: &[u8; FRAME]) -> [u32; FRAME / 4] {
    let mut words = [0; FRAME / 4];
    for (word, bytes) in words.iter_mut().zip(frame.chunks_exact(4)) {
        *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    words
}

/// One datagram there and back in every flow: established ones, in every contender's eyes.
fn open_flows(contender: &Contender) -> Result<()> {
    const PATIENCE: Duration = Duration::from_millis(200);
    let (target, port) = contender.udp;
    let server = contender
        .container
        .enter(|| UdpSocket::bind(("0.0.0.0", port)))
        .with_context(|| format!("UDP port {port} in the container"))?;
    server.set_read_timeout(Some(PATIENCE))?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 64];
            while !done.load(Ordering::Relaxed) {
                if let Ok((length, from)) = server.recv_from(&mut buffer) {
                    // Lost or refused: the client asks again.
                    let _ = server.send_to(&buffer[..length], from);
                }
            }
        });
        let opened = contender.lab.client.enter(|| {
            (0..FLOWS).try_for_each(|n| {
                let socket = UdpSocket::bind((CLIENT, FIRST_PORT + n))?;
                socket.connect(target)?;
                socket.set_read_timeout(Some(PATIENCE))?;
                let mut buffer = [0; 64];
                // The first one may wait for ARP.
                let answered = (0..10)
                    .any(|_| socket.send(b"open").is_ok() && socket.recv(&mut buffer).is_ok());
                ensure!(
                    answered,
                    "no answer from {target} to port {}",
                    FIRST_PORT + n
                );
                Ok(())
            })
        });
        done.store(true, Ordering::Relaxed);
        opened
    })
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
        let template: [u8; FRAME] = Packet::udp("10.1.0.2:0", "10.1.0.1:53")
            .payload(&[0x5a; FRAME - 42])
            .build()
            .try_into()
            .expect("a frame of the generator's size");
        TestDevices::new().enter(|devices| {
            let mut ebpf = EbpfLoader::new()
                .override_global("FIRST_PORT", &FIRST_PORT, true)
                .override_global("FLOW_MASK", &(FLOWS - 1), true)
                .load(PROGRAMS)
                .expect("the programs are whole");
            let mut map: Array<_, [u32; FRAME / 4]> =
                Array::try_from(ebpf.map_mut("TEMPLATE").expect("the map")).expect("an array");
            map.set(0, words(&template), 0).expect("an entry");

            let generate = generator(&mut ebpf).expect("the program");
            generate.load().expect("the verifier lets it through");
            let mut ports = Vec::new();
            for _ in 0..3 {
                let ran = generate
                    .run_on(&[0xff; FRAME], devices.uplink.ifindex)
                    .expect("a run");
                assert_eq!(ran.verdict, XDP_TX);
                assert_checksums(&ran.frame);
                let seen = Seen::parse(&ran.frame);
                assert_eq!(seen.destination, "10.1.0.1:53".parse().expect("an address"));
                ports.push(seen.source.port() - FIRST_PORT);
            }
            ports.dedup();
            assert!(ports.len() > 1, "one flow only: {ports:?}");

            let sink = classifier(&mut ebpf, "sink").expect("the program");
            let frame = Packet::udp("10.1.0.2:1", "10.1.0.1:53")
                .macs(devices.uplink.peer_mac, devices.uplink.mac)
                .build();
            let ran = sink.run_on(&frame, devices.uplink.ifindex).expect("a run");
            assert_eq!((ran.verdict, ran.frame), (TC_DROP, frame));
        });
    }
}
