//! Makes flows: chooses the tuple that answers will have, claims it, and inserts both halves.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_for_each_map_elem;
use netfw_common::{
    addr::{Address, Be16, MacPair},
    drop::Drop,
    event::Why,
    flow::{Flow, flag, state},
    port,
    record::{Endpoint, PublishKey, endpoint_flag, network_flag},
    tuple::proto,
};

use crate::{
    event::watch,
    family::Family,
    flow::{self, Claim},
    independent,
    maps::{self, ATTEMPTS},
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
    /// [`flag::PUBLISHED`], [`flag::MAPPED`] or 0.
    pub flags: u8,
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
        flags: mapping.flags,
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
        flags: mapping.flags | flag::REPLY,
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
///
/// `OUT`: did a container open it, which may have endpoint-independent mappings? For what comes from
/// the world, the verifier need not go through what they take.
#[inline(always)]
pub fn create<P: Packet, F: Family, const OUT: bool>(
    packet: &P,
    work: &mut Work<F::Addr>,
) -> Result<(), Drop> {
    insert::<P, F, OUT>(packet, work)?;
    watch::note_flow(Why::New, &work.flow);
    F::log_opened(work);
    Ok(())
}

/// Chooses the source port, claims it, and inserts both halves.
#[inline(never)]
fn insert<P: Packet, F: Family, const OUT: bool>(
    packet: &P,
    work: &mut Work<F::Addr>,
) -> Result<(), Drop> {
    if proto::has_connections(work.key.proto) {
        flow::has_room::<F>(work.flow.counter)?;
    }
    let has_ports = proto::has_ports(work.key.proto);
    work.fallback = Be16::new(0);
    work.pressed = false;
    work.mapped = false;
    if OUT && work.rules & network_flag::ENDPOINT_INDEPENDENT != 0 && has_ports {
        independent::recall::<F>(work);
    } else {
        work.rules = 0;
    }
    if has_ports {
        find_port::<P, F, OUT>(packet, work)?;
    } else if !is_free::<P, F, OUT>(packet, work) {
        return Err(Drop::Ambiguous);
    }
    let mut claim = claim_port::<F, OUT>(work);
    if claim == Claim::Taken && has_ports {
        // Overtaken between the look and the claim: one port further, once.
        choose::<F, OUT>(work, port::TRIES);
        if is_free::<P, F, OUT>(packet, work) {
            claim = claim_port::<F, OUT>(work);
        }
    }
    match claim {
        Claim::Taken if has_ports => Err(Drop::PortsExhausted),
        Claim::Taken => Err(Drop::Ambiguous),
        Claim::Full => Err(Drop::TableFull),
        claim => flow::open::<F>(work, claim),
    }
}

/// Finds a source port that the flow can have, and leaves it in `work.flow`.
#[inline(always)]
fn find_port<P: Packet, F: Family, const OUT: bool>(
    packet: &P,
    work: &mut Work<F::Addr>,
) -> Result<(), Drop> {
    work.hash = port::hash(work.key.src.sum(), work.key.sport.get(), work.key.proto);
    if search::<P, F, OUT>(packet, work) {
        return Ok(());
    }
    // A flow that is over gives way.
    work.pressed = true;
    work.flow.sport = work.fallback;
    if work.fallback == Be16::new(0) || !is_free::<P, F, OUT>(packet, work) {
        return Err(Drop::PortsExhausted);
    }
    Ok(())
}

/// Claims the tuple that answers will have, and the mapping that its port makes.
#[inline(always)]
fn claim_port<F: Family, const OUT: bool>(work: &mut Work<F::Addr>) -> Claim {
    if OUT && work.rules != 0 {
        independent::claim::<F>(work);
    }
    flow::claim::<F>(work)
}

/// The ports to choose from. Where there are endpoint-independent mappings, the upper half is theirs:
/// each holds a port towards all destinations, so none may be some flow's towards one of them, and
/// nobody with mappings can take all ports from those without.
#[inline(always)]
fn range(mapped: bool) -> port::Range {
    let config = maps::config();
    let range = port::Range {
        min: config.port_min,
        max: config.port_max,
    };
    match (config.mappings != 0, mapped) {
        (false, _) => range,
        (true, false) => range.lower_half(),
        (true, true) => range.upper_half(),
    }
}

/// What [`attempt`] works with.
struct Search<'a, P, A> {
    packet: &'a P,
    work: &'a mut Work<A>,
    found: bool,
}

/// Looks for a source port that the flow can have, and leaves it in `work.flow`.
///
/// By a helper that calls back for each element of a map (5.13): the verifier goes through an
/// attempt once, and not for each.
#[inline(always)]
fn search<P: Packet, F: Family, const OUT: bool>(packet: &P, work: &mut Work<F::Addr>) -> bool {
    let mut search = Search {
        packet,
        work,
        found: false,
    };
    let callback: Callback<P, F::Addr> = attempt::<P, F, OUT>;
    // SAFETY: a helper call with a callback of its own kind, which gets what it is made for.
    unsafe {
        bpf_for_each_map_elem(
            (&raw const ATTEMPTS).cast_mut().cast(),
            callback as *mut c_void,
            (&raw mut search).cast(),
            0,
        );
    }
    search.found
}

type Callback<'a, P, A> =
    unsafe extern "C" fn(*mut c_void, *const u32, *mut c_void, *mut Search<'a, P, A>) -> i64;

/// One attempt at a source port, by its number; anything but 0 ends the search.
///
/// # Safety
///
/// `number` must be valid, `search` what [`search`] made, and nobody else's while this runs.
unsafe extern "C" fn attempt<P: Packet, F: Family, const OUT: bool>(
    _map: *mut c_void,
    number: *const u32,
    _element: *mut c_void,
    search: *mut Search<P, F::Addr>,
) -> i64 {
    // SAFETY: see above.
    let (number, search) = unsafe { (*number, &mut *search) };
    let work = &mut *search.work;
    choose::<F, OUT>(work, number);
    search.found = is_free::<P, F, OUT>(search.packet, work);
    i64::from(search.found)
}

/// The source port of an attempt. Out of line: no stack for it while the port is looked at.
#[inline(never)]
fn choose<F: Family, const OUT: bool>(work: &mut Work<F::Addr>, attempt: u32) {
    let port = work.key.sport;
    work.flow.sport = if attempt == 0 && OUT && work.mapped {
        work.mapped_port
    } else if attempt == 0 && !work.from_node {
        // A port that is the client's own is kept whatever it is, where no other is in its way.
        port
    } else {
        let mapped = OUT && work.rules != 0;
        Be16::new(range(mapped).candidate(port.get(), work.hash, attempt))
    };
}

/// Can the flow have the reply tuple that goes with its source port? Leaves it in
/// `work.reply_key`, and in `work.fallback` the first port whose holder is over.
#[inline(never)]
fn is_free<P: Packet, F: Family, const OUT: bool>(packet: &P, work: &mut Work<F::Addr>) -> bool {
    work.reply_key = work.flow.reverse_key(work.key.proto);
    if OUT && work.rules != 0 && !independent::is_free::<F>(work) {
        return false;
    }
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
    flow::is_free::<F>(work) && !(OUT && work.from_node && flow::has_group::<F>(work))
}
