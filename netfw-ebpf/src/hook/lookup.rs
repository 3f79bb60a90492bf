//! Which socket a packet to the node is for: DNS queries to a network's gateway are for the agent,
//! whoever listens on port 53 (`0.0.0.0:53`, before or after). Everything else, and queries while no
//! agent runs, find the node's own sockets as ever.
//!
//! The kernel asks where it looks for a listening or an unconnected socket; so do the helpers by which
//! the other programs look for one. Hence the port comes first, which costs nothing.

use core::ptr::addr_of_mut;

use aya_ebpf::{bindings::sk_action::SK_PASS, macros::sk_lookup, programs::SkLookupContext};
use netfw_common::{
    addr::{Be32, Ip4, Ip6},
    record::{DNS_PORT, ResolverKey},
};

use crate::maps::{RESOLVER_SOCKETS, RESOLVERS};

#[sk_lookup]
pub fn netfw_resolver(ctx: SkLookupContext) -> u32 {
    choose(&ctx);
    SK_PASS
}

#[inline(always)]
fn choose(ctx: &SkLookupContext) {
    const AF_INET: u32 = 2;
    let lookup = ctx.lookup;
    // Each by itself, here and below: the verifier knows the fields of the context, not spans.
    // SAFETY: the kernel's context, valid for the program's run.
    let port = unsafe { addr_of_mut!((*lookup).local_port).read_volatile() };
    if port != u32::from(DNS_PORT) {
        return;
    }
    // SAFETY: as above.
    let (family, proto, ingress) = unsafe {
        (
            addr_of_mut!((*lookup).family).read_volatile(),
            addr_of_mut!((*lookup).protocol).read_volatile(),
            addr_of_mut!((*lookup).ingress_ifindex).read_volatile(),
        )
    };
    // Both families, and then a choice of values: were each read where it is wanted, the compiler would
    // choose an address and read once, which the verifier does not take. The other one reads as 0.
    // SAFETY: as above.
    let v4 = unsafe { addr_of_mut!((*lookup).local_ip4).read_volatile() };
    // SAFETY: as above.
    let word = |n: usize| unsafe { addr_of_mut!((*lookup).local_ip6[n]).read_volatile() };
    let v6 = [word(0), word(1), word(2), word(3)];
    let addr = if family == AF_INET {
        Ip6::from_mapped(Ip4(Be32::from_wire(v4)))
    } else {
        Ip6(v6.map(Be32::from_wire))
    };
    let key = ResolverKey { addr, proto };
    // SAFETY: integers, written by the agent alone.
    let Some(resolver) = (unsafe { RESOLVERS.get(&key) }) else {
        return;
    };
    if resolver.bridge == ingress {
        // A socket that is being closed is not there any more: then the node's own is asked.
        let _ = RESOLVER_SOCKETS.redirect_sk_lookup(ctx, resolver.socket, 0);
    }
}
