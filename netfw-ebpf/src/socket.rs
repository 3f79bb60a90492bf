//! Sockets of the node that a packet would meet.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::BPF_F_CURRENT_NETNS,
    helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
};
use netfw_common::tuple::{Tuple, proto};

use crate::{family::Family, packet::Packet};

const CURRENT_NETNS: u64 = BPF_F_CURRENT_NETNS as i64 as u64;

/// Does the node hold a socket that would take this TCP or UDP packet?
#[inline(always)]
pub fn exists<P: Packet, F: Family>(packet: &P, tuple: &Tuple<F::Addr>) -> bool {
    let (mut sock, size) = F::socket(tuple);
    let ctx = packet.context();
    // SAFETY: helper calls; a socket that was found is released at once.
    unsafe {
        let found = match tuple.proto {
            proto::TCP => bpf_skc_lookup_tcp(ctx, &mut sock, size, CURRENT_NETNS, 0),
            proto::UDP => bpf_sk_lookup_udp(ctx, &mut sock, size, CURRENT_NETNS, 0),
            _ => return false,
        };
        if found.is_null() {
            return false;
        }
        bpf_sk_release(found.cast::<c_void>());
    }
    true
}

/// Does the node hold a connected UDP socket that waits for this datagram? `ctx` is a packet's or
/// a socket's.
#[inline(always)]
pub fn is_awaited<F: Family>(ctx: *mut c_void, tuple: &Tuple<F::Addr>) -> bool {
    /// `BPF_TCP_ESTABLISHED`, of UDP sockets too.
    const CONNECTED: u32 = 1;
    let (mut sock, size) = F::socket(tuple);
    // SAFETY: as in `exists`.
    unsafe {
        let found = bpf_sk_lookup_udp(ctx, &mut sock, size, CURRENT_NETNS, 0);
        if found.is_null() {
            return false;
        }
        let state = (*found).state;
        bpf_sk_release(found.cast::<c_void>());
        state == CONNECTED
    }
}
