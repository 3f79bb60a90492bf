//! What the bench needs in the kernel: a packet generator, a sink that counts, and the fastest
//! forwarding there can be, as the limit to compare with.
//!
//! The generator runs in `BPF_PROG_TEST_RUN` with live frames. The kernel hands the same pages
//! round again and again, with whatever the last receiver left in them: every packet is written
//! from scratch.
#![no_std]
#![no_main]

use aya_ebpf::{
    Global,
    bindings::{TC_ACT_OK, TC_ACT_SHOT, xdp_action},
    helpers::{bpf_redirect, bpf_redirect_peer},
    macros::{classifier, map, xdp},
    maps::{Array, PerCpuArray},
    programs::{TcContext, XdpContext},
};

/// A frame of 60 bytes, 64 with the checksum that a wire would add, in words for a quick copy.
type Frame = [u32; 15];

/// An EtherType.
const IPV4: u16 = 0x0800;

/// Where the UDP source port and checksum are: Ethernet, IPv4 without options, UDP.
const SOURCE_PORT: usize = 14 + 20;
const CHECKSUM: usize = SOURCE_PORT + 6;

/// The packet to send, with source port 0 and the UDP checksum that goes with it.
#[map]
static TEMPLATE: Array<Frame> = Array::with_max_entries(1, 0);

/// How many the generator has sent.
#[map]
static SENT: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// How many the sink has received.
#[map]
static DELIVERED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Source ports go from this one …
#[unsafe(no_mangle)]
static FIRST_PORT: Global<u16> = Global::new(0);

/// … over so many, in turn; a power of two less one.
#[unsafe(no_mangle)]
static FLOW_MASK: Global<u16> = Global::new(0);

/// The device to whose peer `redirect` sends all.
#[unsafe(no_mangle)]
static REDIRECT_TO: Global<u32> = Global::new(0);

/// Writes the next packet and sends it out.
#[xdp]
pub fn generate(ctx: XdpContext) -> u32 {
    let data = ctx.data();
    if data + size_of::<Frame>() > ctx.data_end() {
        return xdp_action::XDP_ABORTED;
    }
    let (Some(template), Some(sent)) = (TEMPLATE.get_ptr(0), SENT.get_ptr_mut(0)) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: an entry of this CPU's own, and a program is not preempted by itself.
    let number = unsafe {
        *sent += 1;
        *sent
    };
    let port = FIRST_PORT
        .load()
        .wrapping_add(number as u16 & FLOW_MASK.load());
    // SAFETY: the bounds were checked above; live frames start 256 bytes into a page, so words are
    // aligned; ports and checksum lie inside the frame, at even offsets.
    unsafe {
        // Not an assignment: that is a memmove, and a call, as the two could be one.
        core::ptr::copy_nonoverlapping(template, data as *mut Frame, 1);
        *((data + SOURCE_PORT) as *mut u16) = port.to_be();
        let checksum = (data + CHECKSUM) as *mut u16;
        // RFC 1624, eqn. 3, from port 0.
        let mut sum = u32::from(!u16::from_be(*checksum)) + u32::from(port);
        sum = (sum & 0xffff) + (sum >> 16);
        *checksum = match !(sum as u16) {
            0 => u16::MAX,
            other => other.to_be(),
        };
    }
    xdp_action::XDP_TX
}

/// Counts and drops, as soon as the container has the packet: what a server would do with it is
/// the same for all and not what is measured. ARP goes on: the node must not forget its neighbour.
#[classifier]
pub fn sink(ctx: TcContext) -> i32 {
    // SAFETY: the kernel's context, valid for the program's run.
    if unsafe { (*ctx.skb.skb).protocol } != u32::from(IPV4.to_be()) {
        return TC_ACT_OK;
    }
    if let Some(delivered) = DELIVERED.get_ptr_mut(0) {
        // SAFETY: an entry of this CPU's own.
        unsafe { *delivered += 1 };
    }
    TC_ACT_SHOT
}

/// The limit: into the container without a look at the packet.
#[classifier]
pub fn redirect(_ctx: TcContext) -> i32 {
    // SAFETY: a helper without pointers.
    unsafe { bpf_redirect_peer(REDIRECT_TO.load(), 0) as i32 }
}

/// The same by XDP.
#[xdp]
pub fn redirect_xdp(_ctx: XdpContext) -> u32 {
    // SAFETY: a helper without pointers.
    unsafe { bpf_redirect(REDIRECT_TO.load(), 0) as u32 }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
