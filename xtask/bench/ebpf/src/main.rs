//! What the bench needs in the kernel: a packet generator, the two ends that count what arrives,
//! the fastest forwarding and dropping there can be, as the limit to compare with, and programs to
//! time netfw's against ([`reference`]).
//!
//! The generator runs in `BPF_PROG_TEST_RUN` with live frames. The kernel hands the same pages
//! round again and again, with whatever the last receiver left in them: every packet is written
//! from scratch.
#![no_std]
#![no_main]

mod reference;

use aya_ebpf::{
    Global,
    bindings::{TC_ACT_OK, TC_ACT_SHOT, xdp_action},
    helpers::{bpf_ktime_get_ns, bpf_redirect, bpf_redirect_peer},
    macros::{classifier, map, xdp},
    maps::{Array, PerCpuArray},
    programs::{TcContext, XdpContext},
};

/// A frame of 60 bytes, 64 with the checksum that a wire would add, in words for a quick copy.
type Frame = [u32; 15];

/// An EtherType, and an IP protocol.
const IPV4: u16 = 0x0800;
const UDP: u8 = 17;

/// Offsets: Ethernet, IPv4 without options, UDP.
const ETHERTYPE: usize = 12;
const PROTOCOL: usize = 14 + 9;
const IP_CHECKSUM: usize = 14 + 10;
const SOURCE_ADDRESS: usize = 14 + 12;
const SOURCE_PORT: usize = 14 + 20;
const CHECKSUM: usize = SOURCE_PORT + 6;
const HEADERS: usize = SOURCE_PORT + 8;

/// Flows differ in so many low bits of their source port, and beyond that in the word at `FURTHER_AT`.
const PORT_BITS: u32 = 14;

/// The packet to send: the first flow's.
#[map]
static TEMPLATE: Array<Frame> = Array::with_max_entries(1, 0);

/// How far a run of the generator is, on each CPU: the number of the next packet's flow, packets sent,
/// and when the first batch and the last one began, in ns. User space sets all but the first to 0.
///
/// The system call that a run is takes some 25 ms before and after its packets, in which the kernel
/// changes its code for the program and waits for everybody to see it.
#[map]
static RUN: PerCpuArray<[u64; 4]> = PerCpuArray::with_max_entries(1, 0);

/// Packets after which the clock is looked at: a batch, see `BATCH` in user space.
const BATCH: u64 = 64;

/// The two ends.
const CONTAINER: u32 = 0;
const CLIENT: u32 = 1;

/// How many packets each end has received.
#[map]
static DELIVERED: PerCpuArray<u64> = PerCpuArray::with_max_entries(2, 0);

/// Whether an end sends back what it receives; otherwise it drops it.
#[map]
static REFLECTS: Array<u32> = Array::with_max_entries(2, 0);

/// Flows to send in turn.
#[unsafe(no_mangle)]
static FLOWS: Global<u32> = Global::new(1);

/// Offset of the word that tells apart flows that have the same source port: the low half of the
/// source address, or the destination port.
#[unsafe(no_mangle)]
static FURTHER_AT: Global<u32> = Global::new(0);

/// The device to whose peer `redirect` sends all, and the one that `redirect_out` sends out of.
#[unsafe(no_mangle)]
static REDIRECT_TO: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static REDIRECT_OUT: Global<u32> = Global::new(0);

/// Writes the next packet and sends it out.
#[xdp]
pub fn generate(ctx: XdpContext) -> u32 {
    let data = ctx.data();
    if data + size_of::<Frame>() > ctx.data_end() {
        return xdp_action::XDP_ABORTED;
    }
    let (Some(template), Some(run)) = (TEMPLATE.get_ptr(0), RUN.get_ptr_mut(0)) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: an entry of this CPU's own, and a program is not preempted by itself.
    let [next, sent, first, last] = unsafe { &mut *run };
    let number = *next as u32;
    let following = number.wrapping_add(1);
    *next = if following < FLOWS.load() {
        following.into()
    } else {
        0
    };
    if *sent % BATCH == 0 {
        // SAFETY: a helper without pointers.
        *last = unsafe { bpf_ktime_get_ns() };
        if *sent == 0 {
            *first = *last;
        }
    }
    *sent += 1;
    let port = (number & ((1 << PORT_BITS) - 1)) as u16;
    let further = (number >> PORT_BITS) as u16;
    let further_at = FURTHER_AT.load() as usize;
    // SAFETY: the bounds were checked above, and `further_at` is the loader's; live frames start 256
    // bytes into a page, so words are aligned, and the fields lie at even offsets.
    unsafe {
        // Not an assignment: that is a memmove, and a call, as the two could be one.
        core::ptr::copy_nonoverlapping(template, data as *mut Frame, 1);
        let field = |offset: usize| (data + offset) as *mut u16;
        add(field(SOURCE_PORT), port);
        add(field(further_at), further);
        let changed = u32::from(port) + u32::from(further);
        correct(field(CHECKSUM), changed);
        if further_at < SOURCE_PORT {
            correct(field(IP_CHECKSUM), further.into());
        }
    }
    xdp_action::XDP_TX
}

/// Adds to a number in network order.
///
/// # Safety
///
/// `field` is in the packet, and aligned.
#[inline(always)]
unsafe fn add(field: *mut u16, number: u16) {
    // SAFETY: the caller's.
    unsafe { *field = u16::from_be(*field).wrapping_add(number).to_be() };
}

/// Makes a checksum right again after words that it covers grew by `difference` in all (RFC 1624,
/// eqn. 3).
///
/// # Safety
///
/// `field` is in the packet, and aligned.
#[inline(always)]
unsafe fn correct(field: *mut u16, difference: u32) {
    // SAFETY: the caller's.
    unsafe {
        let mut sum = u32::from(!u16::from_be(*field)) + difference;
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        *field = match !(sum as u16) {
            0 => u16::MAX,
            other => other.to_be(),
        };
    }
}

/// Ingress of the container's interface.
#[classifier]
pub fn container(ctx: TcContext) -> i32 {
    arrive(&ctx, CONTAINER)
}

/// Ingress of the client's interface.
#[classifier]
pub fn client(ctx: TcContext) -> i32 {
    arrive(&ctx, CLIENT)
}

/// Counts a UDP packet, then drops it or sends it back: what a program would do with it is the same
/// for all and not what is measured. Everything else goes on: ARP, and other loads' TCP.
#[inline(always)]
fn arrive(ctx: &TcContext, end: u32) -> i32 {
    // SAFETY: the kernel's context, valid for the program's run.
    if unsafe { (*ctx.skb.skb).protocol } != u32::from(IPV4.to_be()) {
        return TC_ACT_OK;
    }
    let data = ctx.data();
    if data + HEADERS > ctx.data_end() {
        return TC_ACT_OK;
    }
    // SAFETY: the bounds were checked.
    if unsafe { *((data + PROTOCOL) as *const u8) } != UDP {
        return TC_ACT_OK;
    }
    if let Some(delivered) = DELIVERED.get_ptr_mut(end) {
        // SAFETY: an entry of this CPU's own.
        unsafe { *delivered += 1 };
    }
    if REFLECTS.get(end).is_none_or(|&reflects| reflects == 0) {
        return TC_ACT_SHOT;
    }
    // SAFETY: the bounds were checked. The checksums cover sums of what changes places.
    unsafe {
        let mac = |offset: usize| (data + offset) as *mut [u16; 3];
        swap(mac(0), mac(6));
        let address = |offset: usize| (data + offset) as *mut [u16; 2];
        swap(address(SOURCE_ADDRESS), address(SOURCE_ADDRESS + 4));
        let port = |offset: usize| (data + offset) as *mut u16;
        swap(port(SOURCE_PORT), port(SOURCE_PORT + 2));
        bpf_redirect((*ctx.skb.skb).ifindex, 0) as i32
    }
}

/// The container's interface, for one that takes frames from the driver (AF_XDP, a filter of its own):
/// counts and drops UDP packets before the kernel makes an skb of them.
#[xdp]
pub fn container_xdp(ctx: XdpContext) -> u32 {
    let data = ctx.data();
    if data + HEADERS > ctx.data_end() {
        return xdp_action::XDP_PASS;
    }
    // SAFETY: the bounds were checked.
    let (kind, protocol) = unsafe {
        (
            ((data + ETHERTYPE) as *const u16).read_unaligned(),
            *((data + PROTOCOL) as *const u8),
        )
    };
    if kind != IPV4.to_be() || protocol != UDP {
        return xdp_action::XDP_PASS;
    }
    if let Some(delivered) = DELIVERED.get_ptr_mut(CONTAINER) {
        // SAFETY: an entry of this CPU's own.
        unsafe { *delivered += 1 };
    }
    xdp_action::XDP_DROP
}

/// # Safety
///
/// Both point into the packet, at different fields.
#[inline(always)]
unsafe fn swap<T: Copy>(one: *mut T, other: *mut T) {
    // SAFETY: the caller's.
    unsafe {
        let (left, right) = (one.read_unaligned(), other.read_unaligned());
        one.write_unaligned(right);
        other.write_unaligned(left);
    }
}

/// The limit: into the container without a look at the packet.
#[classifier]
pub fn redirect(_ctx: TcContext) -> i32 {
    // SAFETY: a helper without pointers.
    unsafe { bpf_redirect_peer(REDIRECT_TO.load(), 0) as i32 }
}

/// The limit on the way out.
#[classifier]
pub fn redirect_out(_ctx: TcContext) -> i32 {
    // SAFETY: a helper without pointers.
    unsafe { bpf_redirect(REDIRECT_OUT.load(), 0) as i32 }
}

/// The limit by XDP.
#[xdp]
pub fn redirect_xdp(_ctx: XdpContext) -> u32 {
    // SAFETY: a helper without pointers.
    unsafe { bpf_redirect(REDIRECT_TO.load(), 0) as u32 }
}

/// The limit of turning packets away: not one is looked at.
#[classifier]
pub fn drop(_ctx: TcContext) -> i32 {
    TC_ACT_SHOT
}

/// The same by XDP.
#[xdp]
pub fn drop_xdp(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
