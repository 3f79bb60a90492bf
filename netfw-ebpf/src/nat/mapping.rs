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
    socket,
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

/// Makes the flow of the packet in `work`, and leaves its entry in `work.flow`.
#[inline(always)]
pub fn create<P: Packet, F: Family>(
    packet: &P,
    work: &mut Work<F::Addr>,
    mapping: &Mapping<F::Addr>,
) -> Result<(), Drop> {
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
    work.from_node = mapping.source_is_node;
    insert::<P, F>(packet, work)?;
    F::log_opened(work);
    Ok(())
}

/// Chooses the source port, claims it, and inserts both halves.
#[inline(never)]
fn insert<P: Packet, F: Family>(packet: &P, work: &mut Work<F::Addr>) -> Result<(), Drop> {
    let config = flow::config();
    work.hash = port::hash(work.key.src.sum(), work.key.sport.get(), work.key.proto);
    let range = port::Range {
        min: config.port_min,
        max: config.port_max,
    };

    for round in 0..2 {
        work.pressed = round > 0;
        let mut found = false;
        for attempt in 0..port::TRIES {
            let port = work.key.sport;
            // A port that is the client's own is kept whatever it is, where no other is in its way.
            work.flow.sport = if attempt == 0 && !work.from_node {
                port
            } else {
                Be16::new(range.candidate(port.get(), work.hash, attempt))
            };
            if is_free::<P, F>(packet, work) {
                found = true;
                break;
            }
        }
        if !found {
            continue;
        }
        match flow::claim::<F>(work) {
            // Overtaken between the look and the claim.
            Claim::Taken => {}
            Claim::Full => return Err(Drop::TableFull),
            claim => return flow::open::<F>(work, claim),
        }
    }
    Err(Drop::PortsExhausted)
}

/// Can the flow have the reply tuple that goes with its source port? Leaves it in
/// `work.reply_key`.
#[inline(never)]
fn is_free<P: Packet, F: Family>(packet: &P, work: &mut Work<F::Addr>) -> bool {
    work.reply_key = work.flow.reverse_key(work.key.proto);
    let reply = &work.reply_key;
    // Would answers go to a publish or a socket of the node?
    if work.from_node && (reply.proto == proto::TCP || reply.proto == proto::UDP) {
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
    flow::is_free::<F>(work)
}
