//! Runs TC and XDP programs on one packet with `BPF_PROG_TEST_RUN`, and real devices for that.
//!
//! The programs ask the kernel about the device that a packet came from (its address, routes,
//! neighbours), so the tests run in a namespace that has devices: [`TestDevices`]. The kernel
//! parses the Ethernet header, compares the destination MAC with the device's and sets
//! `pkt_type` accordingly, as on receipt: a packet for the stack needs the device's own MAC.
//!
//! A redirect shows as its verdict only; where to, the kernel keeps to itself. The end-to-end
//! tests show that.

use std::{
    borrow::Cow,
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::{
    TestRun, TestRunOptions,
    programs::{SchedClassifier, Xdp},
};
use nix::{errno::Errno, libc};

use crate::{
    netns::Namespace,
    topology::{mac, wire},
};

/// TC verdicts (include/uapi/linux/pkt_cls.h, TCX_* in bpf.h).
pub const TC_NEXT: u32 = u32::MAX;
pub const TC_OK: u32 = 0;
pub const TC_DROP: u32 = 2;
pub const TC_REDIRECT: u32 = 7;

/// XDP verdicts (include/uapi/linux/bpf.h).
pub const XDP_DROP: u32 = 1;
pub const XDP_PASS: u32 = 2;
pub const XDP_TX: u32 = 3;
pub const XDP_REDIRECT: u32 = 4;

/// Room for what a program may put before the packet.
const HEADROOM: usize = 256;

/// What a program did with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    pub verdict: u32,
    pub frame: Vec<u8>,
    /// What a TC program left in the packet's control block (`skb->cb`), where the kernel tells.
    pub cb: [u32; 5],
    /// How long it took, by the kernel's clock, which is asked once before and once after.
    pub took: Duration,
}

/// What a TC program is told beside the frame.
#[derive(Clone, Copy, Debug, Default)]
pub struct Metadata {
    /// Of the device at which it runs.
    pub ifindex: u32,
    /// Of the device on which the frame was received: 0 for one that the namespace sends itself.
    pub received_on: u32,
    /// What a program before it left there.
    pub cb: [u32; 5],
}

/// Length of `struct __sk_buff`.
const SKB: usize = 192;

/// Of its words of 32 bits, those that the kernel takes.
const INGRESS_IFINDEX: usize = 9;
const IFINDEX: usize = 10;
const CB: usize = 12;

impl Metadata {
    /// `struct __sk_buff`: the kernel refuses others than a few fields to be set.
    fn skb(&self) -> [u8; SKB] {
        let mut context = [0; SKB];
        let cb = (CB..).zip(self.cb);
        for (word, value) in [(INGRESS_IFINDEX, self.received_on), (IFINDEX, self.ifindex)]
            .into_iter()
            .chain(cb)
        {
            context[4 * word..][..4].copy_from_slice(&value.to_ne_bytes());
        }
        context
    }
}

/// A program that can be run on a packet.
pub trait RunOn {
    /// Runs it on `frame` as received on the device with index `ifindex`, of the namespace that
    /// the calling thread is in.
    fn run_on(&self, frame: &[u8], ifindex: u32) -> Result<Ran>;
}

impl RunOn for SchedClassifier {
    fn run_on(&self, frame: &[u8], ifindex: u32) -> Result<Ran> {
        let metadata = Metadata {
            ifindex,
            received_on: ifindex,
            ..Metadata::default()
        };
        run_tc(self, frame, &metadata)
    }
}

/// Runs a TC program on a frame.
pub fn run_tc(program: &SchedClassifier, frame: &[u8], metadata: &Metadata) -> Result<Ran> {
    let mut left = [0; SKB];
    let mut ran = run(program, frame, &metadata.skb(), Some(&mut left))?;
    for (to, word) in ran.cb.iter_mut().zip(left.chunks_exact(4).skip(CB)) {
        *to = u32::from_ne_bytes(word.try_into().expect("four bytes"));
    }
    Ok(ran)
}

/// As [`run_tc`], with a frame of which the device has summed up every byte behind the Ethernet
/// header (`CHECKSUM_COMPLETE`). An error where the sum is not that of the frame's bytes any more;
/// None where the kernel cannot do this (before 6.16).
pub fn run_summed(
    program: &SchedClassifier,
    frame: &[u8],
    metadata: &Metadata,
) -> Result<Option<Ran>> {
    const BPF_PROG_TEST_RUN: libc::c_int = 10;
    const BPF_F_TEST_SKB_CHECKSUM_COMPLETE: u32 = 1 << 2;

    /// What `bpf(2)` takes for it, up to the last field that is not 0.
    #[repr(C)]
    struct Attr {
        prog_fd: u32,
        retval: u32,
        data_size_in: u32,
        data_size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
        ctx_size_in: u32,
        ctx_size_out: u32,
        ctx_in: u64,
        ctx_out: u64,
        flags: u32,
        cpu: u32,
    }

    let context = metadata.skb();
    let mut out = vec![0_u8; frame.len() + HEADROOM];
    let mut attr = Attr {
        prog_fd: u32::try_from(program.fd()?.as_fd().as_raw_fd()).context("a descriptor")?,
        retval: 0,
        data_size_in: u32::try_from(frame.len()).context("a frame fits in 4 GiB")?,
        data_size_out: u32::try_from(out.len()).context("a frame fits in 4 GiB")?,
        data_in: frame.as_ptr().addr() as u64,
        data_out: out.as_mut_ptr().addr() as u64,
        repeat: 1,
        duration: 0,
        ctx_size_in: size_of_val(&context) as u32,
        ctx_size_out: 0,
        ctx_in: context.as_ptr().addr() as u64,
        ctx_out: 0,
        flags: BPF_F_TEST_SKB_CHECKSUM_COMPLETE,
        cpu: 0,
    };
    let (at, size) = (&raw mut attr, size_of::<Attr>());
    // SAFETY: the attribute and the buffers that it names live until the call is over.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, at, size) };
    match Errno::result(result) {
        Ok(_) => {}
        Err(Errno::EINVAL) => return Ok(None),
        Err(error) => return Err(io::Error::from(error)).context("BPF_PROG_TEST_RUN, summed up"),
    }
    out.truncate(attr.data_size_out as usize);
    Ok(Some(Ran {
        verdict: attr.retval,
        frame: out,
        cb: [0; 5],
        took: Duration::from_nanos(attr.duration.into()),
    }))
}

impl RunOn for Xdp {
    fn run_on(&self, frame: &[u8], ifindex: u32) -> Result<Ran> {
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index,
        // egress_ifindex. data_end must be the length of the packet.
        let length = u32::try_from(frame.len()).context("a frame fits in 4 GiB")?;
        let context: Vec<u8> = [0, length, 0, ifindex, 0, 0]
            .iter()
            .flat_map(|word: &u32| word.to_ne_bytes())
            .collect();
        run(self, frame, &context, None)
    }
}

fn run<P>(program: &P, frame: &[u8], context: &[u8], left: Option<&mut [u8]>) -> Result<Ran>
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = aya::TestRunResult>,
{
    let mut out = vec![0; frame.len() + HEADROOM];
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(context),
            ctx_out: left,
            ..TestRunOptions::new()
        })
        .with_context(|| format!("BPF_PROG_TEST_RUN with {} bytes", frame.len()))?;
    out.truncate(result.data_size_out as usize);
    Ok(Ran {
        verdict: result.return_value,
        frame: out,
        cb: [0; 5],
        took: result.duration,
    })
}

/// The device's end of a veth pair: what a program is told and what it can look up.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    pub ifindex: u32,
    pub mac: [u8; 6],
    /// At the other end.
    pub peer_mac: [u8; 6],
    pub peer_ifindex: u32,
}

/// A namespace like a node's: an uplink and a container's host side, both with a peer that is up.
///
/// | device | addresses | peer, in a namespace of its own |
/// |---|---|---|
/// | `up0` | 10.1.0.1/24, fd00:1::1/64 | 10.1.0.2, fd00:1::2; default gateway |
/// | `ct0` | 172.31.0.1/24, fd00:31::1/64 | 172.31.0.2, fd00:31::2 |
///
/// The neighbours are known for good, so that `bpf_fib_lookup` finds their MACs at once.
pub struct TestDevices {
    pub node: Namespace,
    pub outside: Namespace,
    pub container: Namespace,
    pub uplink: Device,
    pub veth: Device,
}

impl TestDevices {
    pub fn new() -> Self {
        let [node, outside, container] = ["node", "outside", "container"].map(Namespace::new);
        let address = |text: &str| text.parse().expect("an address");
        wire(
            (&node, "up0", [address("10.1.0.1"), address("fd00:1::1")]),
            (
                &outside,
                "eth0",
                [address("10.1.0.2"), address("fd00:1::2")],
            ),
        );
        wire(
            (&node, "ct0", [address("172.31.0.1"), address("fd00:31::1")]),
            (
                &container,
                "eth0",
                [address("172.31.0.2"), address("fd00:31::2")],
            ),
        );
        for family in ["ipv4", "ipv6"] {
            // Forwarding is what makes `bpf_fib_lookup` answer; per device, as netfw sets it.
            for device in ["up0", "ct0"] {
                node.sysctl(&format!("{family}/conf/{device}/forwarding"), "1");
            }
        }
        let uplink = device(&node, "up0", &outside);
        let veth = device(&node, "ct0", &container);
        for (name, peer, addresses) in [
            ("up0", uplink.peer_mac, ["10.1.0.2", "fd00:1::2"]),
            ("ct0", veth.peer_mac, ["172.31.0.2", "fd00:31::2"]),
        ] {
            let peer: Vec<String> = peer.iter().map(|byte| format!("{byte:02x}")).collect();
            for address in addresses {
                node.ip(&[
                    "neigh",
                    "replace",
                    address,
                    "lladdr",
                    &peer.join(":"),
                    "dev",
                    name,
                    "nud",
                    "permanent",
                ]);
            }
        }
        node.ip(&["route", "add", "default", "via", "10.1.0.2"]);
        node.ip(&["-6", "route", "add", "default", "via", "fd00:1::2"]);
        Self {
            node,
            outside,
            container,
            uplink,
            veth,
        }
    }

    /// Runs `work` in the node's namespace: load the programs and run them there.
    #[track_caller]
    pub fn enter<T: Send>(&self, work: impl FnOnce(&Self) -> T + Send) -> T {
        self.node.enter(|| work(self))
    }
}

impl Default for TestDevices {
    fn default() -> Self {
        Self::new()
    }
}

fn device(node: &Namespace, name: &str, peer: &Namespace) -> Device {
    Device {
        ifindex: ifindex(node, name),
        mac: mac(node, name),
        peer_mac: mac(peer, "eth0"),
        peer_ifindex: ifindex(peer, "eth0"),
    }
}

/// The index of a link.
#[track_caller]
pub fn ifindex(namespace: &Namespace, link: &str) -> u32 {
    let shown = namespace.ip(&["-o", "link", "show", link]);
    shown
        .split(':')
        .next()
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("{link} has no index: {shown}"))
}

/// The name of a verdict, for messages: `REDIRECT (7)`.
pub fn tc_verdict(verdict: u32) -> Cow<'static, str> {
    match verdict {
        TC_NEXT => "NEXT".into(),
        TC_OK => "OK".into(),
        TC_DROP => "DROP".into(),
        TC_REDIRECT => "REDIRECT".into(),
        other => format!("verdict {other}").into(),
    }
}
