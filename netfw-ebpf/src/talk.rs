//! What the node itself says by protocols whose sockets no helper finds: SCTP, echo requests, and
//! protocols without ports (tunnels, IPsec, raw sockets).
//!
//! A container that spoke to the same peer from the node's address would be given the answers to the
//! node. For TCP and UDP a look for sockets prevents it; here the guard notes what leaves, and nobody
//! gets the tuple of a talk that is not over. Where a container was first, it gives way; also to a
//! datagram of the node, whose socket is newer than the container's flow.

use netfw_common::tuple::{Tuple, proto, zone};

use crate::{
    family::Family,
    flow,
    maps::{BPF_ANY, config},
};

/// Is it a protocol of this kind?
#[inline(always)]
pub fn is_of_kind<F: Family>(protocol: u8) -> bool {
    protocol == proto::SCTP || protocol == F::ICMP || proto::is_portless(protocol)
}

/// Do answers of this tuple belong to the node?
#[inline(always)]
pub fn is_nodes<F: Family>(answer: &Tuple<F::Addr>) -> bool {
    is_of_kind::<F>(answer.proto) && is_alive::<F>(answer, flow::now())
}

#[inline(always)]
fn is_alive<F: Family>(answer: &Tuple<F::Addr>, now: u32) -> bool {
    let timeouts = config().timeouts;
    let timeout = if answer.proto == F::ICMP {
        timeouts.icmp
    } else {
        timeouts.udp_replied
    };
    // SAFETY: an integer.
    let seen = unsafe { F::talks().get(answer) };
    seen.is_some_and(|&seen| {
        // Another CPU's clock may have run ahead.
        now.wrapping_sub(seen).cast_signed() <= timeout.cast_signed()
    })
}

/// Notes a packet of the node, by its tuple as it leaves.
#[inline(never)]
pub fn note<F: Family>(leaving: &Tuple<F::Addr>) {
    let answer = leaving.mirrored(zone::WORLD);
    let now = flow::now();
    let known = is_alive::<F>(&answer, now);
    let _ = F::talks().insert(&answer, &now, BPF_ANY);
    if !known {
        flow::evict_reply::<F>(&answer);
    }
}

/// Takes answers to a datagram of the node, by its tuple as it leaves, from a container that was first.
#[inline(never)]
pub fn take_back<F: Family>(leaving: &Tuple<F::Addr>) {
    let config = config();
    // No container has others.
    if (config.port_min..=config.port_max).contains(&leaving.sport.get()) {
        flow::evict_reply::<F>(&leaving.mirrored(zone::WORLD));
    }
}
