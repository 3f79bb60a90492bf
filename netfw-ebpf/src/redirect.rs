//! Where a translated packet leaves.
//!
//! Into a container it is always the same veth pair. Towards the world the node's routing tables
//! decide, asked as if the packet came in on the network's bridge; the answer (interface and
//! Ethernet header) is kept in the flow for one tick. Once a tick, then, each flow follows routes,
//! neighbours and addresses that changed, without anybody having to tell the programs. The packet
//! that asks leaves through the kernel's neighbour code, which keeps the neighbour entry alive.

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_PROHIBIT, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_SRC, bpf_fib_lookup,
    },
    helpers::generated::bpf_fib_lookup as fib_lookup,
};
use netfw_common::{
    addr::{Address, Be16, MacPair},
    drop::Drop,
    flow::flag,
    record::Endpoint,
};

use crate::{
    family::Family,
    flow::{self, Kept},
    maps::UPLINKS,
    nat::answer::{self, Error},
    packet::Packet,
    verdict::Verdict,
    work::Work,
};

const EINVAL: i64 = 22;

/// A question to the routing tables.
pub struct Query<A> {
    /// The bridge of the container's network: rules see the packet come from there.
    pub bridge: u32,
    /// The container's address.
    pub src: A,
    pub dst: A,
    /// Rules and routes of several paths may ask for these, too.
    pub sport: Be16,
    pub dport: Be16,
    pub proto: u8,
    pub tos: u8,
    /// Bytes of the IP packet as it will be on the wire: of a segment, for those yet to be cut.
    pub len: u16,
    /// Wanted: the node's address towards `dst`.
    pub source: bool,
}

/// The answer.
pub enum Route<A> {
    Via(Via<A>),
    /// The packet is too big for the way out.
    TooBig {
        mtu: u16,
    },
    /// No route.
    None,
    /// One that forbids it, or swallows it without a word.
    Prohibited,
    Blackhole,
    /// Out of an interface that netfw does not serve.
    Closed,
}

pub struct Via<A> {
    pub way: Kept,
    pub next_hop: NextHop,
    /// The node's address towards the destination, where asked for and there is one.
    pub source: Option<A>,
}

/// The gateway, or the destination where it is on the link. A gateway of an IPv4 route may be an
/// IPv6 address (RFC 5549).
#[derive(Clone, Copy)]
pub struct NextHop {
    pub family: u32,
    /// Network order; an IPv4 address is the first.
    pub addr: [u32; 4],
}

/// Asks the node's routing tables.
#[inline(always)]
pub fn route<P: Packet, F: Family>(packet: &P, query: &Query<F::Addr>) -> Route<F::Addr> {
    // SAFETY: integers and arrays; zero is a valid value of each.
    let mut fib: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    fib.family = F::AF;
    fib.l4_protocol = query.proto;
    fib.sport = query.sport.wire();
    fib.dport = query.dport.wire();
    fib.ifindex = query.bridge;
    fib.__bindgen_anon_1.tot_len = query.len;
    F::ask(query, &mut fib);
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
    if found == i64::from(BPF_FIB_LKUP_RET_FRAG_NEEDED) {
        return Route::TooBig {
            // SAFETY: a union of integers. The kernel tells it since 5.12.
            mtu: unsafe { fib.__bindgen_anon_1.mtu_result },
        };
    }
    if found == i64::from(BPF_FIB_LKUP_RET_PROHIBIT) {
        return Route::Prohibited;
    }
    if found == i64::from(BPF_FIB_LKUP_RET_BLACKHOLE) {
        return Route::Blackhole;
    }
    let resolved = found == i64::from(BPF_FIB_LKUP_RET_SUCCESS);
    if !resolved && found != i64::from(BPF_FIB_LKUP_RET_NO_NEIGH) {
        return Route::None;
    }
    // SAFETY: records are plain integers; the agent replaces them whole.
    let Some(uplink) = (unsafe { UPLINKS.get(fib.ifindex) }) else {
        return Route::Closed;
    };
    let source = if preferred_source {
        F::preferred_source(&fib)
    } else {
        F::uplink_address(uplink)
    };
    // Before 6.4 (1fcc064b305a) neighbours count as resolved that have never answered.
    let known = resolved && fib.dmac != [0; 6];
    Route::Via(Via {
        way: Kept {
            ifindex: fib.ifindex,
            // SAFETY: a union of integers. The kernel tells the route's MTU here since 5.12.
            mtu: unsafe { fib.__bindgen_anon_1.mtu_result },
            macs: known.then_some(MacPair {
                dst: fib.dmac,
                src: fib.smac,
            }),
        },
        next_hop: NextHop {
            family: u32::from(fib.family),
            // SAFETY: a union of integers; of an IPv4 address the kernel left the rest alone.
            addr: unsafe { fib.__bindgen_anon_4.ipv6_dst },
        },
        source: (source != F::Addr::ANY).then_some(source),
    })
}

/// The verdict on a packet that has no way out, from `gateway`, its sender's.
#[inline(always)]
pub fn refuse<P: Packet, F: Family>(
    packet: &mut P,
    work: &mut Work<F::Addr>,
    route: &Route<F::Addr>,
    gateway: F::Addr,
) -> Verdict {
    let (error, reason) = match route {
        Route::TooBig { mtu } => (Error::TooBig { mtu: *mtu }, Drop::TooBig),
        Route::None => (Error::Unreachable, Drop::NoRoute),
        Route::Prohibited | Route::Closed => (Error::Prohibited, Drop::NoRoute),
        Route::Via(_) | Route::Blackhole => return Verdict::Drop(Drop::NoRoute),
    };
    answer::refuse::<P, F>(packet, work, error, gateway, reason)
}

/// The way to the world of the flow in `work`: the one kept, or, for the first packet of a tick and
/// for those too big for it, a new one.
#[inline(always)]
pub fn way_out<P: Packet, F: Family>(
    packet: &mut P,
    work: &mut Work<F::Addr>,
    sender: &Endpoint,
) -> Result<Verdict, Verdict> {
    let len = packet.wire_len(work.len, work.transport(), work.key.proto);
    let flow = &work.flow;
    if flow.has(flag::L2_CACHED) && flow.routed == work.epoch && len <= flow.mtu {
        return Ok(Verdict::Redirect {
            ifindex: flow.ifindex,
        });
    }
    if flow.dst.is_link_local() {
        // No table knows which link.
        return Ok(Verdict::Neighbour {
            ifindex: flow.ifindex,
            next_hop: NextHop {
                family: u32::from(F::AF),
                addr: F::next_hop(flow.dst),
            },
        });
    }
    let query = Query {
        bridge: sender.bridge,
        src: work.key.src,
        dst: flow.dst,
        sport: work.key.sport,
        dport: flow.dport,
        proto: work.key.proto,
        tos: work.tos,
        len,
        source: false,
    };
    let via = match route::<P, F>(packet, &query) {
        Route::Via(via) => via,
        other => {
            let gateway = F::endpoint_gateway(sender);
            return Err(refuse::<P, F>(packet, work, &other, gateway));
        }
    };
    // An address that the node no longer has must not be sent from (the answers would go astray).
    if work.flow.src != work.key.src && !F::is_local(&work.flow.src) {
        return Err(Verdict::Drop(Drop::NoRoute));
    }
    flow::keep_route::<F>(work, &via.way);
    // The kernel writes the Ethernet header.
    work.flow.flags &= !flag::L2_CACHED;
    Ok(Verdict::Neighbour {
        ifindex: via.way.ifindex,
        next_hop: via.next_hop,
    })
}
