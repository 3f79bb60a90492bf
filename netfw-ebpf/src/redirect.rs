//! Where a translated packet leaves.
//!
//! Into a container it is always the same veth pair. Towards the world the node's routing tables
//! decide, asked as if the packet came in on the network's bridge; the answer (interface and
//! Ethernet header) is kept in the flow for one tick. Once a tick, then, each flow follows routes,
//! neighbours and addresses that changed, without anybody having to tell the programs. The packet
//! that asks leaves through the kernel's neighbour code, which keeps the neighbour entry alive.

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_SRC, bpf_fib_lookup,
    },
    helpers::generated::bpf_fib_lookup as fib_lookup,
};
use netfw_common::{
    addr::{Be32, Ip4, Mac},
    flow::flag,
};

use crate::{
    family::{Family, V4},
    flow,
    maps::UPLINKS,
    packet::Packet,
    verdict::Verdict,
    work::Work,
};

const AF_INET: u8 = 2;
const EINVAL: i64 = 22;

/// A question to the routing tables.
pub struct Query<A> {
    /// The bridge of the container's network: rules and `rp_filter` see the packet come from there.
    pub bridge: u32,
    /// The container's address.
    pub src: A,
    pub dst: A,
    /// Wanted: the node's address towards `dst`.
    pub source: bool,
}

/// The answer.
pub enum Route<A> {
    Via(Via<A>),
    /// No route, or one that forbids it.
    None,
    /// Out of an interface that netfw does not serve.
    Closed,
}

pub struct Via<A> {
    pub ifindex: u32,
    /// The gateway, or the destination where it is on the link.
    pub next_hop: A,
    /// The node's address towards the destination, where asked for and there is one.
    pub source: Option<A>,
    /// Destination and source MAC, where the neighbour is known.
    pub ethernet: Option<(Mac, Mac)>,
}

/// [`Family::route`] for IPv4.
#[inline(always)]
pub fn route4<P: Packet>(packet: &P, query: &Query<Ip4>) -> Route<Ip4> {
    // SAFETY: integers and arrays; zero is a valid value of each.
    let mut fib: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    fib.family = AF_INET;
    fib.ifindex = query.bridge;
    fib.__bindgen_anon_3.ipv4_src = query.src.0.wire();
    fib.__bindgen_anon_4.ipv4_dst = query.dst.0.wire();
    let size = size_of::<bpf_fib_lookup>() as i32;
    let ctx = packet.context();

    let flags = if query.source { BPF_FIB_LOOKUP_SRC } else { 0 };
    // SAFETY: a helper call with a parameter block of its own size.
    let mut found = unsafe { fib_lookup(ctx, &mut fib, size, flags) };
    let mut preferred_source = query.source;
    if found == -EINVAL && query.source {
        // Before 6.7 (dab4e1f06cab) the kernel cannot tell the source.
        preferred_source = false;
        // SAFETY: as above.
        found = unsafe { fib_lookup(ctx, &mut fib, size, 0) };
    }
    let known = found == i64::from(BPF_FIB_LKUP_RET_SUCCESS);
    if !known && found != i64::from(BPF_FIB_LKUP_RET_NO_NEIGH) {
        return Route::None;
    }
    // SAFETY: records are plain integers; the agent replaces them whole.
    let Some(uplink) = (unsafe { UPLINKS.get(fib.ifindex) }) else {
        return Route::Closed;
    };
    let source = if preferred_source {
        // SAFETY: a union of integers.
        Ip4(Be32::from_wire(unsafe { fib.__bindgen_anon_3.ipv4_src }))
    } else {
        V4::uplink_address(uplink)
    };
    Route::Via(Via {
        ifindex: fib.ifindex,
        // SAFETY: a union of integers.
        next_hop: Ip4(Be32::from_wire(unsafe { fib.__bindgen_anon_4.ipv4_dst })),
        source: (source.0.wire() != 0).then_some(source),
        ethernet: known.then_some((fib.dmac, fib.smac)),
    })
}

/// The way to the world of the flow in `work`: the one kept, or, for the first packet of a tick, a
/// new one. None where there is no way any more.
#[inline(always)]
pub fn way_out<P: Packet, F: Family>(
    packet: &P,
    work: &mut Work<F::Addr>,
    bridge: u32,
) -> Option<Verdict> {
    if work.flow.has(flag::L2_CACHED) && work.flow.routed == work.now as u16 {
        return Some(Verdict::Redirect {
            ifindex: work.flow.ifindex,
        });
    }
    let query = Query {
        bridge,
        src: work.key.src,
        dst: work.flow.dst,
        source: false,
    };
    let Route::Via(via) = F::route(packet, &query) else {
        return None;
    };
    // An address that the node no longer has must not be sent from (the answers would go astray).
    if !F::is_local(&work.flow.src) {
        return None;
    }
    flow::keep_route::<F>(work, via.ifindex, via.ethernet);
    // The kernel writes the Ethernet header.
    work.flow.flags &= !flag::L2_CACHED;
    Some(F::neighbour(via.ifindex, via.next_hop))
}
