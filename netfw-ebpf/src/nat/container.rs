//! What a container sends, on the host side of its veth pair.

use netfw_common::{
    addr::{Address as _, Be16, Mac, MacPair},
    drop::Drop,
    event::Why,
    flow::flag,
    record::{DNS_PORT, Endpoint, network_flag},
    tuple::{proto, zone},
};

use super::{
    answer::{self, Error},
    fragment,
    mapping::{self, Mapping},
    related, translate,
    world::{asks_for_publish, endpoint_at},
};
use crate::{
    event::{self, Direction, watch},
    family::Family,
    flow::{self, Miss},
    independent::{self, Asked},
    packet::Packet,
    parse::{self, Ethernet},
    redirect::{Query, Route, refuse, route, way_out},
    verdict::Verdict,
    work::Work,
};

/// Decides about an IP packet from `sender`, whose source MAC has been checked.
///
/// Nothing that the engine does not understand goes to the world: it is dropped and counted, and
/// what is handed on to the stack cannot leave an uplink ([`super::guard`]).
#[inline(always)]
pub fn receive<P: Packet, F: Family>(
    packet: &mut P,
    ethernet: &Ethernet,
    sender: &Endpoint,
) -> Verdict {
    let Some(work) = F::work() else {
        return Verdict::Drop(Drop::Malformed);
    };
    if F::parse(packet, work, zone::CONTAINER).is_err() {
        return Verdict::Drop(Drop::Malformed);
    }
    if let Some(verdict) = F::on_link(packet, work, sender) {
        return verdict;
    }
    if is_group(&ethernet.dst) {
        return Verdict::Pass;
    }

    let verdict = match flow_of::<P, F>(packet, ethernet, work, sender) {
        Ok(()) => send::<P, F>(packet, work, sender),
        Err(verdict) => verdict,
    };
    if work.is_first_fragment() {
        fragment::settle::<F>(work);
    }
    verdict
}

/// Puts the packet's flow into `work`, one that is made for it where it may open one. Otherwise
/// the verdict on a packet without a flow.
#[inline(always)]
fn flow_of<P: Packet, F: Family>(
    packet: &mut P,
    ethernet: &Ethernet,
    work: &mut Work<F::Addr>,
    sender: &Endpoint,
) -> Result<(), Verdict> {
    work.translatable = parse::transport::<P, F>(packet, work);
    flow::set_now(work);
    if work.is_fragment() {
        fragment::arrive::<P, F>(packet, work)?;
    }
    if work.translatable {
        match flow::lookup::<F>(work) {
            Ok(()) => {
                watch::note_flow(Why::Known, &work.flow);
                return Ok(());
            }
            Err(Miss::Refused(why)) => return Err(Verdict::Drop(why)),
            Err(Miss::Absent) => {}
        }
    } else if related::find::<P, F>(packet, work) {
        watch::note_flow(Why::Related, &work.flow);
        return Ok(());
    }

    if let Some(receiver) = endpoint_at::<F>(&work.key.dst) {
        return Err(neighbour::<P, F>(packet, ethernet, work, sender, receiver));
    }
    if F::is_local(&work.key.dst) {
        to_node::<P, F>(packet, work, sender)?;
    } else {
        to_world::<P, F>(packet, work, sender)?;
    }
    if !flow::may_begin(packet.ifindex(), work.now) {
        return Err(Verdict::Drop(Drop::Unanswered));
    }
    mapping::create::<P, F, true>(packet, work).map_err(|reason| {
        flow::give_back_to(packet.ifindex());
        // RFC 5508 REQ-8.
        let gateway = F::endpoint_gateway(sender);
        answer::refuse::<P, F>(packet, work, Error::Prohibited, gateway, reason)
    })
}

/// Prepares the flow of a packet to an address of the node, where it asks for a container.
#[inline(always)]
fn to_node<P: Packet, F: Family>(
    packet: &P,
    work: &mut Work<F::Addr>,
    sender: &Endpoint,
) -> Result<(), Verdict> {
    if work.opens && !is_query::<F>(work, sender) {
        match asks_for_container::<P, F>(packet, work, sender) {
            // No publish is in its own network.
            Asked::Container if sender.flags & network_flag::INTERNAL != 0 => {
                return Err(Verdict::Drop(Drop::Internal));
            }
            Asked::Container => {
                return hairpin::<P, F>(packet, work, sender).map_err(Verdict::Drop);
            }
            Asked::Filtered => return Err(Verdict::Drop(Drop::Filtered)),
            Asked::No => {}
        }
    }
    Err(match F::subnet(work.key.dst) {
        // Another network's gateway is part of that network.
        Some(subnet) if subnet.network != sender.network => Verdict::Drop(Drop::Isolated),
        _ => Verdict::Pass,
    })
}

/// Is it for the network's name server? That port of the gateway is nobody's publish: a container that
/// serves names to the world must not get what its neighbours ask the agent, who may be asking it.
#[inline(always)]
fn is_query<F: Family>(work: &Work<F::Addr>, sender: &Endpoint) -> bool {
    work.key.dport.get() == DNS_PORT
        && matches!(work.key.proto, proto::TCP | proto::UDP)
        && work.key.dst == F::endpoint_gateway(sender)
}

/// Prepares the flow of a packet to the world, where it may go there.
#[inline(always)]
fn to_world<P: Packet, F: Family>(
    packet: &mut P,
    work: &mut Work<F::Addr>,
    sender: &Endpoint,
) -> Result<(), Verdict> {
    match F::subnet(work.key.dst) {
        // Somebody on the bridge whom netfw does not know.
        Some(subnet) if subnet.network == sender.network => return Err(Verdict::Pass),
        Some(_) => return Err(Verdict::Drop(Drop::Isolated)),
        None => {}
    }
    if sender.flags & network_flag::INTERNAL != 0 {
        return Err(Verdict::Drop(Drop::Internal));
    }
    if !work.key.dst.is_unicast() {
        return Err(Verdict::Drop(Drop::Martian));
    }
    if sender.flags & network_flag::MASQUERADE == 0 {
        // Reached from outside in any case, or not to be followed: the stack's to route.
        let followed = sender.flags & network_flag::ROUTED == 0 && work.translatable && work.opens;
        if !followed || work.ttl <= 1 {
            return Err(Verdict::Pass);
        }
        // It keeps its address, and has a flow for the sake of the answers.
        return outgoing::<P, F>(packet, work, sender);
    }
    if work.ttl <= 1 {
        return Err(time_exceeded::<P, F>(packet, work, sender));
    }
    if !work.translatable {
        return Err(Verdict::Drop(Drop::Untranslatable));
    }
    if !work.opens {
        return Err(Verdict::Drop(Drop::NoFlow));
    }
    outgoing::<P, F>(packet, work, sender)
}

/// Broadcast or multicast, by the Ethernet header.
#[inline(always)]
fn is_group(mac: &Mac) -> bool {
    mac[0] & 1 != 0
}

/// A packet of the flow in `work`.
#[inline(always)]
fn send<P: Packet, F: Family>(
    packet: &mut P,
    work: &mut Work<F::Addr>,
    sender: &Endpoint,
) -> Verdict {
    let to_container = work.flow.has(flag::TO_CONTAINER);
    if work.ttl <= 1 {
        return time_exceeded::<P, F>(packet, work, sender);
    }
    if to_container && let Some(mtu) = translate::too_big::<P, F>(packet, work) {
        let gateway = F::endpoint_gateway(sender);
        let error = Error::TooBig { mtu };
        return answer::refuse::<P, F>(packet, work, error, gateway, Drop::TooBig);
    }
    let verdict = if to_container {
        Verdict::Peer {
            ifindex: work.flow.ifindex,
        }
    } else {
        match way_out::<P, F>(packet, work, sender) {
            Ok(verdict) => verdict,
            Err(verdict) => return verdict,
        }
    };
    match translate::apply::<P, F>(packet, work) {
        Ok(()) => verdict,
        Err(reason) => Verdict::Drop(reason),
    }
}

/// As a router, which the gateway is.
#[inline(always)]
fn time_exceeded<P: Packet, F: Family>(
    packet: &mut P,
    work: &mut Work<F::Addr>,
    sender: &Endpoint,
) -> Verdict {
    let gateway = F::endpoint_gateway(sender);
    answer::refuse::<P, F>(
        packet,
        work,
        Error::TimeExceeded,
        gateway,
        Drop::TtlExceeded,
    )
}

/// To a container of the same network, past the bridge, untranslated.
#[inline(always)]
fn neighbour<P: Packet, F: Family>(
    packet: &mut P,
    ethernet: &Ethernet,
    work: &Work<F::Addr>,
    sender: &Endpoint,
    receiver: &Endpoint,
) -> Verdict {
    if sender.network != receiver.network {
        return Verdict::Drop(Drop::Isolated);
    }
    // Sent to itself by way of the node: no bridge would give it back.
    if sender.ifindex == receiver.ifindex {
        return Verdict::Drop(Drop::Martian);
    }
    let macs = MacPair {
        dst: receiver.mac,
        src: sender.gateway_mac,
    };
    if ethernet.dst != receiver.mac && !packet.set_ethernet::<F>(macs) {
        return Verdict::Drop(Drop::Malformed);
    }
    watch::note(Why::Neighbour);
    event::count(sender.counter, Direction::Tx, work.len.into());
    event::count(receiver.counter, Direction::Rx, work.len.into());
    Verdict::Peer {
        ifindex: receiver.ifindex,
    }
}

/// Does the packet ask for a container, by a publish of the node or by a mapping? Leaves it in
/// `work.target`.
#[inline(always)]
fn asks_for_container<P: Packet, F: Family>(
    packet: &P,
    work: &mut Work<F::Addr>,
    sender: &Endpoint,
) -> Asked {
    const RULES: u32 = network_flag::MASQUERADE | network_flag::INTERNAL;
    if asks_for_publish::<F>(work) {
        work.rules = 0;
        return Asked::Container;
    }
    // Mappings are a matter between those who are masqueraded, or the world.
    if sender.flags & RULES != network_flag::MASQUERADE {
        return Asked::No;
    }
    // To its neighbour it is who it is to the world (RFC 4787 REQ-9).
    work.rules = sender.flags;
    work.mapped =
        sender.flags & network_flag::ENDPOINT_INDEPENDENT != 0 && independent::find::<F>(work);
    (work.remote, work.remote_port) = if work.mapped {
        (work.external_key.addr, work.external_key.port)
    } else {
        (work.key.dst, Be16::new(0))
    };
    independent::is_asked_for::<P, F>(packet, work)
}

/// Prepares a new flow to a publish or a mapping of the node, which leads back into a container.
///
/// Out of line, as `outward` is: what they have on the stack must not take of it what the search for
/// a port needs.
#[inline(never)]
fn hairpin<P: Packet, F: Family>(
    packet: &P,
    work: &mut Work<F::Addr>,
    sender: &Endpoint,
) -> Result<(), Drop> {
    let target = &work.target;
    if target.refused {
        return Err(Drop::NotAllowed);
    }
    let server = endpoint_at::<F>(&target.addr).ok_or(Drop::NoEndpoint)?;
    let mapped = target.flags & flag::MAPPED != 0;
    // A container that saw its own address as source would answer itself.
    let own = server.ifindex == sender.ifindex;
    let mapping = Mapping {
        src: if mapped {
            work.remote
        } else if own {
            F::endpoint_gateway(sender)
        } else {
            work.key.src
        },
        dst: target.addr,
        dport: target.port,
        counter: target.counter,
        flags: target.flags,
        to: Some(server),
        back: Some(sender),
        source_is_node: mapped || own,
    };
    mapping::prepare::<P, F>(packet, work, &mapping);
    Ok(())
}

/// A new flow to the world, from the node's address where the network is masqueraded.
#[inline(always)]
fn outgoing<P: Packet, F: Family>(
    packet: &mut P,
    work: &mut Work<F::Addr>,
    sender: &Endpoint,
) -> Result<(), Verdict> {
    let query = Query {
        bridge: sender.bridge,
        src: work.key.src,
        dst: work.key.dst,
        sport: work.key.sport,
        dport: work.key.dport,
        proto: work.key.proto,
        tos: work.tos,
        len: packet.wire_len(work.len, work.transport(), work.key.proto),
        source: true,
    };
    let via = match route::<P, F>(packet, &query) {
        Route::Via(via) => via,
        other => {
            let gateway = F::endpoint_gateway(sender);
            return Err(refuse::<P, F>(packet, work, &other, gateway));
        }
    };
    let Some(source) = via.source else {
        return Err(Verdict::Drop(Drop::NoRoute));
    };
    let masqueraded = sender.flags & network_flag::MASQUERADE != 0;
    work.remote = if masqueraded { source } else { work.key.src };
    work.rules = sender.flags;
    outward::<P, F>(packet, work, sender);
    Ok(())
}

/// Prepares a new flow from `work.remote`, an address of the node or the container's own, to the world.
#[inline(never)]
fn outward<P: Packet, F: Family>(packet: &P, work: &mut Work<F::Addr>, sender: &Endpoint) {
    let mapping = Mapping {
        src: work.remote,
        dst: work.key.dst,
        dport: work.key.dport,
        counter: sender.counter,
        flags: 0,
        to: None,
        back: Some(sender),
        source_is_node: sender.flags & network_flag::MASQUERADE != 0,
    };
    mapping::prepare::<P, F>(packet, work, &mapping);
}
