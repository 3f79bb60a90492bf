//! What comes from the world, on an uplink.

use netfw_common::{
    addr::{Address, Be16},
    drop::Drop,
    event::Why,
    flow::{flag, tcp},
    record::{Endpoint, Publish, PublishKey, Subnet, allow, network_flag},
    tuple::{proto, zone},
};

use super::{
    answer::{self, Error},
    fragment,
    mapping::{self, Mapping},
    related, translate,
};
use crate::{
    event::watch,
    family::Family,
    flow::{self, Miss},
    independent::{self, Asked},
    maps::{ENDPOINTS, UPLINKS},
    packet::Packet,
    parse, socket,
    verdict::Verdict,
    work::{Target, Work},
};

/// Decides about an IP packet. What is not netfw's goes on untouched: broken packets to the stack,
/// which counts them as everybody expects, and everything of the node's own.
#[inline(always)]
pub fn receive<P: Packet, F: Family>(packet: &mut P) -> Verdict {
    let Some(work) = F::work() else {
        return Verdict::Pass;
    };
    flow::set_now(work);
    if !packet.is_for_us(work) {
        watch::note(Why::NotForUs);
        return Verdict::Pass;
    }
    work.key.dst = F::Addr::ANY;
    if F::parse(packet, work, zone::WORLD).is_err() {
        // What cannot be walked through, the stack may forward all the same.
        return stray::<P, F>(work);
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

/// Puts the packet's flow into `work`, one that is made for it where it asks for a container.
/// Otherwise the verdict on a packet without a flow.
#[inline(always)]
fn flow_of<P: Packet, F: Family>(packet: &mut P, work: &mut Work<F::Addr>) -> Result<(), Verdict> {
    if work.key.src.is_link_local() || work.key.dst.is_link_local() {
        work.key.scope = packet.ifindex() as u16;
    }
    work.translatable = parse::transport::<P, F>(packet, work);
    if work.is_fragment() {
        // What else is not for the node has no flow.
        let is_answer = || F::subnet(work.key.dst).is_some_and(|subnet| keeps_addresses(&subnet));
        if !P::FRAGMENTS || !F::is_local(&work.key.dst) && !is_answer() {
            return Err(stray::<P, F>(work));
        }
        fragment::arrive::<P, F>(packet, work)?;
    }
    if work.translatable {
        match flow::lookup::<F>(work) {
            Ok(()) if is_overtaken::<P, F>(packet, work) => {
                watch::note(Why::Socket);
                flow::forget::<F>(work);
            }
            Ok(()) => {
                watch::note_flow(Why::Known, &work.flow);
                return Ok(());
            }
            Err(Miss::Refused(why)) => return Err(Verdict::Drop(why)),
            Err(Miss::Absent) => {}
        }
        // An interface that the agent does not serve is closed.
        if work.opens && F::is_local(&work.key.dst) && is_served(packet) {
            match asks_for_container::<P, F>(packet, work) {
                Asked::Container => return dnat::<P, F>(packet, work).map_err(Verdict::Drop),
                Asked::Filtered => return Err(Verdict::Drop(Drop::Filtered)),
                Asked::No => {}
            }
        }
    } else if related::find::<P, F>(packet, work) {
        watch::note_flow(Why::Related, &work.flow);
        return Ok(());
    }
    Err(stray::<P, F>(work))
}

/// Is it an interface that the agent serves?
#[inline(always)]
fn is_served<P: Packet>(packet: &P) -> bool {
    let served = UPLINKS.get_ptr(packet.ifindex()).is_some();
    if !served {
        watch::note(Why::Closed);
    }
    served
}

/// Is that a network whose containers go to the world by their own addresses, and are answered there?
#[inline(always)]
fn keeps_addresses(subnet: &Subnet) -> bool {
    const OTHERS: u32 = network_flag::MASQUERADE | network_flag::ROUTED | network_flag::INTERNAL;
    subnet.flags & OTHERS == 0
}

/// The verdict on a packet that has no flow.
#[inline(always)]
fn stray<P: Packet, F: Family>(work: &Work<F::Addr>) -> Verdict {
    match F::subnet(work.key.dst) {
        // A piece of an answer, for all that is known where pieces are not looked at.
        Some(subnet) if !P::FRAGMENTS && keeps_addresses(&subnet) => Verdict::Pass,
        Some(subnet) if subnet.flags & network_flag::ROUTED == 0 && !F::is_local(&work.key.dst) => {
            Verdict::Drop(Drop::DirectAccess)
        }
        _ => Verdict::Pass,
    }
}

/// Is the packet for a socket of the node that was opened after the flow in `work` was made, or that
/// only a look from here finds, because it is bound to this interface? Else whoever made the flow
/// would get what is sent to that socket.
///
/// Asked of what opens a connection, and of datagrams once a tick.
#[inline(always)]
fn is_overtaken<P: Packet, F: Family>(packet: &P, work: &mut Work<F::Addr>) -> bool {
    let due = match work.key.proto {
        proto::TCP => work.flags & tcp::SYN != 0,
        // Not by the flow's last packet, which may be the container's.
        proto::UDP => work.flow.routed != work.epoch,
        _ => false,
    };
    due && is_for_socket::<P, F>(packet, work)
}

#[inline(never)]
fn is_for_socket<P: Packet, F: Family>(packet: &P, work: &mut Work<F::Addr>) -> bool {
    let datagram = work.key.proto == proto::UDP;
    if datagram {
        flow::note_look::<F>(work);
    }
    // What came in through a mapping is no publish's.
    if !work.flow.has(flag::PUBLISHED) || work.flow.has(flag::MAPPED) {
        return socket::exists::<P, F>(packet, &work.key);
    }
    // A published port is the publish's, but for an answer that somebody waits for.
    datagram && socket::is_awaited::<F>(packet.context(), &work.key)
}

/// Into the container.
#[inline(always)]
fn deliver<P: Packet, F: Family>(packet: &mut P, work: &mut Work<F::Addr>) -> Verdict {
    if packet.is_left::<F>(work) {
        watch::note(Why::Left);
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

/// Does the packet ask for a container, by a publish or by a mapping? Leaves it in `work.target`.
#[inline(always)]
fn asks_for_container<P: Packet, F: Family>(packet: &P, work: &mut Work<F::Addr>) -> Asked {
    if asks_for_publish::<F>(work) {
        // An answer that a process of the node waits for is no question to a container, though the
        // kernel chose a published port for the process.
        let awaited =
            work.key.proto == proto::UDP && socket::is_awaited::<F>(packet.context(), &work.key);
        if awaited {
            watch::note(Why::Socket);
            return Asked::No;
        }
        return Asked::Container;
    }
    work.mapped = false;
    (work.remote, work.remote_port) = (work.key.src, work.key.sport);
    independent::is_asked_for::<P, F>(packet, work)
}

/// A new flow to a publish, or to a mapping.
#[inline(always)]
fn dnat<P: Packet, F: Family>(packet: &P, work: &mut Work<F::Addr>) -> Result<(), Drop> {
    let src = work.key.src;
    if !src.is_unicast() || F::is_local(&src) || F::subnet(src).is_some() {
        return Err(Drop::Martian);
    }
    let target = &work.target;
    if target.refused {
        return Err(Drop::NotAllowed);
    }
    let endpoint = endpoint_at::<F>(&target.addr).ok_or(Drop::NoEndpoint)?;
    // On the container's link nobody has that address: the gateway stands for who has it on ours.
    let elsewhere = src.is_link_local();
    let mapping = Mapping {
        src: if elsewhere {
            F::endpoint_gateway(endpoint)
        } else {
            src
        },
        dst: target.addr,
        dport: target.port,
        counter: target.counter,
        flags: target.flags,
        to: Some(endpoint),
        back: None,
        source_is_node: elsewhere,
    };
    mapping::prepare::<P, F>(packet, work, &mapping);
    mapping::create::<P, F, false>(packet, work)
}

/// Does the packet ask for a publish? Leaves its container in `work.target`, and whether the sender may
/// not have it. Loopback addresses are not for packets: on a wire they are martians.
#[inline(always)]
pub fn asks_for_publish<F: Family>(work: &mut Work<F::Addr>) -> bool {
    let key = &work.key;
    if key.dst.is_loopback() {
        return false;
    }
    let Some(publish) = published::<F>(key.dst, key.dport, key.proto) else {
        return false;
    };
    work.target = Target {
        addr: publish.addr,
        counter: publish.counter.into(),
        port: publish.port,
        flags: flag::PUBLISHED,
        refused: publish.allow != allow::EVERYBODY && !is_allowed::<F>(work, publish.allow.into()),
    };
    true
}

/// Does this list name the packet's sender? Out of line: once for all programs of a family, and no stack of
/// theirs.
#[inline(never)]
fn is_allowed<F: Family>(work: &Work<F::Addr>, list: u32) -> bool {
    F::allows(list as u16, work.key.src)
}

/// The publish for a destination, which is an address of the node.
#[inline(always)]
pub fn published<F: Family>(
    addr: F::Addr,
    port: Be16,
    proto: u8,
) -> Option<&'static Publish<F::Addr>> {
    // The node may have lost the address.
    publish_at::<F>(addr, port, proto).filter(|_| F::is_local(&addr) || addr.is_loopback())
}

/// The publish on an address, or on any, whoever has that address.
#[inline(always)]
pub fn publish_at<F: Family>(
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
    let found = unsafe { F::publishes().get(wanted) };
    if found.is_some() {
        return found;
    }
    wanted.addr = F::Addr::ANY;
    // SAFETY: as above.
    unsafe { F::publishes().get(wanted) }
}

/// The endpoint that has this address.
#[inline(always)]
pub fn endpoint_at<F: Family>(addr: &F::Addr) -> Option<&'static Endpoint> {
    // SAFETY: integers, written by the agent alone.
    unsafe { ENDPOINTS.get(F::addresses().get(addr)?) }
}
