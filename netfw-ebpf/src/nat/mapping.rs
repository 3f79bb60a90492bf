//! Makes flows: chooses the tuple that answers will have, claims it, and inserts both halves.

use netfw_common::{
    addr::{Address, Be16, MacPair},
    drop::Drop,
    flow::{Flow, flag, state},
    port,
    record::{Endpoint, PublishKey, endpoint_flag},
    tuple::proto,
};

use crate::{
    family::Family,
    flow::{self, Claim},
    packet::Packet,
    socket, talk,
    work::Work,
};

/// What a new flow does to the packets of its original direction.
pub struct Mapping<'a, A> {
    pub src: A,
    pub dst: A,
    /// Port (or ICMP identifier) of the destination after translation.
    pub dport: Be16,
    /// Index of the counter.
    pub counter: u32,
    /// [`flag::PUBLISHED`] or 0.
    pub published: u8,
    /// The container that the original direction leads into, if it does.
    pub to: Option<&'a Endpoint>,
    /// The container that the reply direction leads into, if it does.
    pub back: Option<&'a Endpoint>,
    /// The source becomes an address of the node, which other sockets and publishes use as well.
    pub source_is_node: bool,
}

/// An entry's part that says how packets leave into `endpoint`.
#[inline(always)]
fn lead_into<A: Address>(flow: &mut Flow<A>, endpoint: &Endpoint) {
    flow.ifindex = endpoint.ifindex;
    flow.macs = MacPair {
        dst: endpoint.mac,
        src: endpoint.gateway_mac,
    };
    flow.mtu = endpoint.mtu.min(u32::from(u16::MAX)) as u16;
    flow.flags |= flag::TO_CONTAINER | flag::L2_CACHED;
    if endpoint.flags & endpoint_flag::NAPI != 0 {
        flow.flags |= flag::NAPI;
    }
}

/// Writes both halves of the packet's flow to `work`, for [`create`]: all but its source port.
#[inline(always)]
pub fn prepare<P: Packet, F: Family>(
    packet: &P,
    work: &mut Work<F::Addr>,
    mapping: &Mapping<F::Addr>,
) {
    work.flow = Flow {
        src: mapping.src,
        dst: mapping.dst,
        sport: work.key.sport,
        dport: mapping.dport,
        seen: work.now,
        counter: mapping.counter as u16,
        state: state::NEW,
        flags: mapping.published,
        ..Default::default()
    };
    work.reply = Flow {
        src: work.key.dst,
        dst: work.key.src,
        sport: work.key.dport,
        dport: work.key.sport,
        seen: work.now,
        counter: mapping.counter as u16,
        state: state::NEW,
        flags: mapping.published | flag::REPLY,
        ..Default::default()
    };
    if let Some(endpoint) = mapping.to {
        lead_into(&mut work.flow, endpoint);
    }
    match mapping.back {
        Some(endpoint) => lead_into(&mut work.reply, endpoint),
        // A peer on the link is answered there.
        None if work.key.src.is_link_local() => work.reply.ifindex = packet.ifindex(),
        None => {}
    }
    if work.key.proto == proto::TCP {
        work.flow.end = work.segment.end;
    }
    if work.key.proto == proto::SCTP {
        work.reply.end = work.segment.ack;
    }
    work.from_node = mapping.source_is_node;
}

/// Makes the flow that was prepared, and leaves its entry in `work.flow`. One call of it in a program
/// is enough: to the verifier each is a program of its own.
#[inline(always)]
pub fn create<P: Packet, F: Family>(packet: &P, work: &mut Work<F::Addr>) -> Result<(), Drop> {
    insert::<P, F>(packet, work)?;
    F::log_opened(work);
    Ok(())
}

/// Chooses the source port, claims it, and inserts both halves.
#[inline(never)]
fn insert<P: Packet, F: Family>(packet: &P, work: &mut Work<F::Addr>) -> Result<(), Drop> {
    work.fallback = Be16::new(0);
    work.pressed = false;
    let has_ports = proto::has_ports(work.key.proto);
    if has_ports {
        search::<P, F>(packet, work)?;
    } else if !is_free::<P, F>(packet, work) {
        return Err(Drop::Ambiguous);
    }
    let mut claim = flow::claim::<F>(work);
    if claim == Claim::Taken && has_ports {
        // Overtaken between the look and the claim: one port further, once.
        let next = range().candidate(work.key.sport.get(), work.hash, port::TRIES);
        work.flow.sport = Be16::new(next);
        if is_free::<P, F>(packet, work) {
            claim = flow::claim::<F>(work);
        }
    }
    match claim {
        Claim::Taken if has_ports => Err(Drop::PortsExhausted),
        Claim::Taken => Err(Drop::Ambiguous),
        Claim::Full => Err(Drop::TableFull),
        claim => flow::open::<F>(work, claim),
    }
}

/// The ports to choose from.
#[inline(always)]
fn range() -> port::Range {
    let config = flow::config();
    port::Range {
        min: config.port_min,
        max: config.port_max,
    }
}

/// Looks for a source port that the flow can have, and leaves it in `work.flow`.
#[inline(always)]
fn search<P: Packet, F: Family>(packet: &P, work: &mut Work<F::Addr>) -> Result<(), Drop> {
    let range = range();
    work.hash = port::hash(work.key.src.sum(), work.key.sport.get(), work.key.proto);
    for attempt in 0..port::TRIES {
        let port = work.key.sport;
        // A port that is the client's own is kept whatever it is, where no other is in its way.
        work.flow.sport = if attempt == 0 && !work.from_node {
            port
        } else {
            Be16::new(range.candidate(port.get(), work.hash, attempt))
        };
        if is_free::<P, F>(packet, work) {
            return Ok(());
        }
    }
    // A flow that is over gives way.
    work.pressed = true;
    work.flow.sport = work.fallback;
    if work.fallback == Be16::new(0) || !is_free::<P, F>(packet, work) {
        return Err(Drop::PortsExhausted);
    }
    Ok(())
}

/// Can the flow have the reply tuple that goes with its source port? Leaves it in
/// `work.reply_key`, and in `work.fallback` the first port whose holder is over.
#[inline(never)]
fn is_free<P: Packet, F: Family>(packet: &P, work: &mut Work<F::Addr>) -> bool {
    work.reply_key = work.flow.reverse_key(work.key.proto);
    let reply = &work.reply_key;
    // Would answers go to a publish or a socket of the node?
    if work.from_node && matches!(reply.proto, proto::TCP | proto::UDP | proto::SCTP) {
        let mut key = PublishKey {
            addr: reply.dst,
            port: reply.dport,
            proto: reply.proto,
            reserved: 0,
        };
        if F::publishes().get_ptr(key).is_some() {
            return false;
        }
        key.addr = F::Addr::ANY;
        if F::publishes().get_ptr(key).is_some() || socket::exists::<P, F>(packet, reply) {
            return false;
        }
    }
    if work.from_node && talk::is_nodes::<F>(reply) {
        return false;
    }
    flow::is_free::<F>(work)
}
