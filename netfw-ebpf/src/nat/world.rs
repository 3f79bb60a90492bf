//! What comes from the world, on an uplink.

use netfw_common::{
    addr::{Address, Be16},
    drop::Drop,
    flow::flag,
    record::{Endpoint, Publish, PublishKey, network_flag},
    tuple::{proto, zone},
};

use super::{
    answer::{self, Error},
    fragment,
    mapping::{self, Mapping},
    related, translate,
};
use crate::{
    family::Family,
    flow::{self, Miss},
    maps::{ENDPOINTS, UPLINKS},
    packet::Packet,
    parse, socket,
    verdict::Verdict,
    work::Work,
};

/// Decides about an IP packet. What is not netfw's goes on untouched: broken packets to the stack,
/// which counts them as everybody expects, and everything of the node's own.
#[inline(always)]
pub fn receive<P: Packet, F: Family>(packet: &mut P) -> Verdict {
    if !packet.is_for_us() {
        return Verdict::Pass;
    }
    let Some(work) = F::work() else {
        return Verdict::Pass;
    };
    if F::parse(packet, work).is_err() {
        return Verdict::Pass;
    }
    let verdict = match flow_of::<P, F>(packet, work) {
        Ok(()) => deliver::<P, F>(packet, work),
        Err(verdict) => verdict,
    };
    if P::FRAGMENTS && work.is_first_fragment() {
        fragment::settle::<F>(work);
    }
    verdict
}

/// Puts the packet's flow into `work`, one that is made for it where it asks for a publish.
/// Otherwise the verdict on a packet without a flow.
#[inline(always)]
fn flow_of<P: Packet, F: Family>(packet: &mut P, work: &mut Work<F::Addr>) -> Result<(), Verdict> {
    if work.key.src.is_link_local() || work.key.dst.is_link_local() {
        work.key.scope = packet.ifindex() as u16;
    }
    work.translatable = parse::transport::<P, F>(packet, work);
    work.key.zone = zone::WORLD;
    flow::set_now(work);
    if work.is_fragment() {
        // What is not for the node has no flow.
        if !P::FRAGMENTS || !F::is_local(&work.key.dst) {
            return Err(stray::<F>(work));
        }
        fragment::arrive::<P, F>(packet, work)?;
    }
    if work.translatable {
        match flow::lookup::<F>(work) {
            Ok(()) => return Ok(()),
            Err(Miss::TableFull) => return Err(Verdict::Drop(Drop::TableFull)),
            Err(Miss::Absent) => {}
        }
        // An interface that the agent does not serve is closed.
        if work.opens
            && UPLINKS.get_ptr(packet.ifindex()).is_some()
            && let Some(publish) = asked_for::<F>(work)
            // An answer that a process of the node waits for is no question to a container, though
            // the kernel chose a published port for the process.
            && !(work.key.proto == proto::UDP && socket::is_awaited::<P, F>(packet, &work.key))
        {
            return dnat::<P, F>(packet, work, publish).map_err(Verdict::Drop);
        }
    } else if related::find::<P, F>(packet, work) {
        return Ok(());
    }
    Err(stray::<F>(work))
}

/// The verdict on a packet that has no flow.
#[inline(always)]
fn stray<F: Family>(work: &Work<F::Addr>) -> Verdict {
    match F::subnet(work.key.dst) {
        Some(subnet) if subnet.flags & network_flag::ROUTED == 0 && !F::is_local(&work.key.dst) => {
            Verdict::Drop(Drop::DirectAccess)
        }
        _ => Verdict::Pass,
    }
}

/// Into the container.
#[inline(always)]
fn deliver<P: Packet, F: Family>(packet: &mut P, work: &mut Work<F::Addr>) -> Verdict {
    if packet.is_left::<F>(work) {
        return Verdict::Pass;
    }
    if work.ttl <= 1 {
        let own = work.key.dst;
        return answer::refuse::<P, F>(packet, work, Error::TimeExceeded, own, Drop::TtlExceeded);
    }
    if let Some(mtu) = translate::too_big::<P, F>(packet, work) {
        let (own, error) = (work.key.dst, Error::TooBig { mtu });
        return answer::refuse::<P, F>(packet, work, error, own, Drop::TooBig);
    }
    if !work.flow.has(flag::TO_CONTAINER) {
        // Nothing makes such a flow: what comes from the world leads into a container.
        return Verdict::Pass;
    }
    match translate::apply::<P, F>(packet, work) {
        Ok(()) => Verdict::Peer {
            ifindex: work.flow.ifindex,
        },
        Err(reason) => Verdict::Drop(reason),
    }
}

/// A new flow to a publish.
#[inline(always)]
fn dnat<P: Packet, F: Family>(
    packet: &P,
    work: &mut Work<F::Addr>,
    publish: &Publish<F::Addr>,
) -> Result<(), Drop> {
    let src = work.key.src;
    if !src.is_unicast() || F::is_local(&src) || F::subnet(src).is_some() {
        return Err(Drop::Martian);
    }
    let endpoint = endpoint_at::<F>(&publish.addr).ok_or(Drop::NoEndpoint)?;
    let mapping = Mapping {
        src,
        dst: publish.addr,
        dport: publish.port,
        counter: publish.counter,
        published: flag::PUBLISHED,
        to: Some(endpoint),
        back: None,
        source_is_node: false,
    };
    mapping::prepare::<P, F>(packet, work, &mapping);
    mapping::create::<P, F>(packet, work)
}

/// The publish that a packet asks for. Loopback addresses are not for packets: on a wire they are
/// martians.
#[inline(always)]
pub fn asked_for<F: Family>(work: &Work<F::Addr>) -> Option<&'static Publish<F::Addr>> {
    let key = &work.key;
    if key.dst.is_loopback() {
        return None;
    }
    published::<F>(key.dst, key.dport, key.proto)
}

/// The publish for a destination, which is an address of the node.
#[inline(always)]
pub fn published<F: Family>(
    addr: F::Addr,
    port: Be16,
    proto: u8,
) -> Option<&'static Publish<F::Addr>> {
    let mut wanted = PublishKey {
        addr,
        port,
        proto,
        reserved: 0,
    };
    // SAFETY: integers; a publish is replaced whole, and removed before its endpoint is.
    let mut found = unsafe { F::publishes().get(wanted) };
    if found.is_none() {
        wanted.addr = F::Addr::ANY;
        // SAFETY: as above.
        found = unsafe { F::publishes().get(wanted) };
    }
    // The node may have lost the address.
    found.filter(|_| F::is_local(&addr) || addr.is_loopback())
}

/// The endpoint that has this address.
#[inline(always)]
pub fn endpoint_at<F: Family>(addr: &F::Addr) -> Option<&'static Endpoint> {
    // SAFETY: integers, written by the agent alone.
    unsafe { ENDPOINTS.get(F::addresses().get(addr)?) }
}
