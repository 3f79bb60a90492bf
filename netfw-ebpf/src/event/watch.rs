//! What somebody who listens is told of single packets: drops, and in programs that trace whatever
//! becomes of each.
//!
//! Nobody listens as a rule. A drop then costs a look at `LISTENERS`; a packet that goes on costs nothing,
//! since [`TRACES`] is a constant to the verifier, which removes what stands behind it. The agent has
//! programs with another constant run for as long as somebody traces.
//!
//! An event is made of the packet itself, read anew before it is decided about and behind that, and of what
//! the decisions note on the way. The packet is only ever read.

use core::ffi::c_void;

use aya_ebpf::{
    Global,
    helpers::generated::{bpf_for_each_map_elem, bpf_ktime_get_ns},
};
use netfw_common::{
    addr::{Address, Be16, Ip4, Ip6},
    drop::Drop,
    event::{Action, Ends, Event, FILTERS as ROOM, Filter, Hook, Why},
    flow::{Flow, TICK_SHIFT},
    tuple::{Tuple, proto, zone},
};

use crate::{
    family::{Family, V4, V6},
    maps::{ENDPOINTS, EVENT, EVENTS, FILTERS, LISTENERS, SUPPRESSED},
    nat::{
        answer,
        world::{endpoint_at, published},
    },
    packet::Packet,
    parse::{Arp, Icmp, ethertype},
    verdict::Verdict,
};

/// Are these programs told to trace?
#[unsafe(no_mangle)]
static TRACES: Global<u8> = Global::new(0);

/// Elements of `EVENT`: a packet may interrupt a system call, and wake a fragment that waited. One that is preempted by another's
/// may spoil the event, and nothing else.
const PACKET: u32 = 0;
const CALL: u32 = 1;
const WAITED: u32 = 2;

/// IPv6's fragment header (RFC 8200 4.5), and the bits of its second word that are the offset.
const FRAGMENT: u8 = 44;
const OFFSET: u16 = 0xfff8u16.to_be();

/// Do these programs tell what becomes of each packet? A constant: what depends on it is not there where
/// it is false.
#[inline(always)]
pub fn traces() -> bool {
    TRACES.load() != 0
}

/// Does anybody want to know of drops?
#[inline(always)]
fn is_heard() -> bool {
    LISTENERS.get(0).is_some_and(|listeners| *listeners != 0)
}

#[inline(always)]
fn record(which: u32) -> Option<&'static mut Event> {
    // SAFETY: a per-CPU slot; nobody else writes it while this program runs.
    EVENT.get_ptr_mut(which).map(|event| unsafe { &mut *event })
}

/// A packet has come to a program.
#[inline(always)]
pub fn begin<P: Packet>(packet: &P) {
    if traces() {
        start(packet);
    }
}

#[inline(never)]
fn start<P: Packet>(packet: &P) {
    if let Some(event) = record(PACKET) {
        *event = Event::default();
        describe::<P, false>(packet, event);
        event.before = event.after;
    }
}

/// Why the packet at hand will go where it goes.
#[inline(always)]
pub fn note(why: Why) {
    if traces()
        && let Some(event) = record(PACKET)
    {
        event.why = why as u8;
    }
}

/// The same, for one that goes by a flow.
#[inline(always)]
pub fn note_flow<A>(why: Why, flow: &Flow<A>) {
    if traces()
        && let Some(event) = record(PACKET)
    {
        event.why = why as u8;
        event.flow = flow.flags;
        event.state = flow.state;
        event.counter = flow.counter;
    }
}

/// A program has decided: tells whoever wants to know.
#[inline(always)]
pub fn end<P: Packet>(packet: &P, hook: Hook, verdict: &Verdict) {
    let (action, reason, to) = match *verdict {
        Verdict::Drop(reason) => (Action::Drop, reason as u32, 0),
        Verdict::Answer(reason) => (Action::Answer, reason as u32, 0),
        Verdict::Pass => (Action::Pass, 0, 0),
        Verdict::Held => (Action::Hold, 0, 0),
        Verdict::Peer { ifindex } => (Action::Container, 0, ifindex),
        Verdict::Redirect { ifindex } | Verdict::Neighbour { ifindex, .. } => {
            (Action::Out, 0, ifindex)
        }
    };
    let drops = matches!(verdict, Verdict::Drop(_) | Verdict::Answer(_));
    if traces() || (drops && is_heard()) {
        report(packet, hook as u8, action as u8, reason, to);
    }
}

/// The packet is received once more, without its tag.
#[inline(always)]
pub fn again<P: Packet>(packet: &P, hook: Hook) {
    if traces() {
        report(packet, hook as u8, Action::Again as u8, 0, 0);
    }
}

#[inline(never)]
fn report<P: Packet>(packet: &P, hook: u8, action: u8, reason: u32, to: u32) {
    let Some(event) = record(PACKET) else {
        return;
    };
    if traces() {
        if action == Action::Container as u8 || action == Action::Out as u8 {
            describe::<P, false>(packet, event);
        }
        event.traced = 1;
    } else {
        *event = Event::default();
        if action == Action::Answer as u8 {
            describe::<P, true>(packet, event);
        } else {
            describe::<P, false>(packet, event);
        }
        event.before = event.after;
    }
    event.hook = hook;
    event.action = action;
    event.reason = reason as u8;
    event.to = to;
    tell(PACKET);
}

/// A fragment that waited in vain is dropped: `len` bytes of a frame that came in on `ifindex`, of the
/// datagram whose tuple this is.
#[inline(never)]
pub fn lost<P: Packet, A: Address>(key: &Tuple<A>, ifindex: u32, len: u32) {
    if !is_heard() {
        return;
    }
    let Some(event) = record(WAITED) else {
        return;
    };
    *event = Event::default();
    event.after.src = key.src.wide();
    event.after.dst = key.dst.wide();
    event.before = event.after;
    event.ethertype = if event.after.src.mapped().is_some() {
        ethertype::IPV4
    } else {
        ethertype::IPV6
    };
    event.proto = key.proto;
    event.ifindex = ifindex;
    event.len = len.saturating_sub(P::NETWORK as u32);
    let hook = match (key.zone, P::NETWORK) {
        (zone::CONTAINER, _) => Hook::Container,
        (_, 0) => Hook::Tunnel,
        _ => Hook::Uplink,
    };
    event.hook = hook as u8;
    event.action = Action::Drop as u8;
    event.reason = Drop::LostFragment as u8;
    event.traced = traces().into();
    own(event);
    tell(WAITED);
}

/// Writes what the packet is to `event`, its ends to `event.after`. `QUOTED`: it is an answer of ours, and
/// meant is the packet that it quotes.
#[inline(always)]
fn describe<P: Packet, const QUOTED: bool>(packet: &P, event: &mut Event) {
    event.ifindex = packet.ifindex();
    event.ethertype = packet.protocol();
    own(event);
    match event.ethertype {
        ethertype::IPV4 => describe_ip::<P, V4, QUOTED>(packet, event),
        ethertype::IPV6 => describe_ip::<P, V6, QUOTED>(packet, event),
        ethertype::ARP => describe_arp(packet, event),
        _ => {}
    }
    // "BIG TCP" is beyond the field's reach.
    if event.len == 0 || packet.len() > usize::from(u16::MAX) {
        event.len = packet.len() as u32;
    }
}

/// What a container sends is its own.
#[inline(always)]
fn own(event: &mut Event) {
    // SAFETY: integers, written by the agent alone.
    if let Some(sender) = unsafe { ENDPOINTS.get(event.ifindex) } {
        event.endpoint = sender.counter;
    }
}

#[inline(never)]
fn describe_ip<P: Packet, F: Family, const QUOTED: bool>(packet: &P, event: &mut Event) {
    let at = if QUOTED {
        F::HEADER + size_of::<answer::Header>()
    } else {
        0
    };
    let mut key = Tuple::default();
    let Some((mut l4, mut whole)) = F::glance(packet, at, &mut key) else {
        return;
    };
    if F::AF == V6::AF && key.proto == FRAGMENT {
        let mut fragment = [0u16; 4];
        whole = packet.load_network(l4, &mut fragment) && fragment[1] & OFFSET == 0;
        [key.proto, _] = fragment[0].to_ne_bytes();
        l4 += size_of_val(&fragment);
    }
    let mut len = Be16::new(0);
    if packet.load_network(at + F::LENGTH, &mut len) {
        event.len = u32::from(len.get()) + F::LENGTH_LACKS;
    }
    event.proto = key.proto;
    if !whole {
        // The ports are in the first part.
    } else if key.proto == F::ICMP {
        let mut header = Icmp::default();
        if packet.load_network(l4, &mut header) {
            (event.icmp_type, event.icmp_code) = (header.kind, header.code);
            if header.kind == F::ECHO_REQUEST {
                key.sport = header.id;
            } else if header.kind == F::ECHO_REPLY {
                key.dport = header.id;
            }
        }
    } else if matches!(key.proto, proto::TCP | proto::UDP | proto::SCTP) {
        let mut ports = [Be16::new(0); 2];
        if packet.load_network(l4, &mut ports) {
            [key.sport, key.dport] = ports;
        }
    }
    event.after = Ends {
        src: key.src.wide(),
        dst: key.dst.wide(),
        sport: key.sport,
        dport: key.dport,
    };
    if event.endpoint == 0 {
        event.endpoint = endpoint_of::<F>(&key);
    }
}

/// The counter of the endpoint that a packet is for or from, or whose publish it asks for; or 0.
#[inline(always)]
fn endpoint_of<F: Family>(key: &Tuple<F::Addr>) -> u32 {
    let published = || published::<F>(key.dst, key.dport, key.proto).map(|publish| &publish.addr);
    endpoint_at::<F>(&key.dst)
        .or_else(|| endpoint_at::<F>(&key.src))
        .or_else(|| endpoint_at::<F>(published()?))
        .map_or(0, |endpoint| endpoint.counter)
}

#[inline(never)]
fn describe_arp<P: Packet>(packet: &P, event: &mut Event) {
    let mut arp = Arp::default();
    if packet.load_network(0, &mut arp) {
        event.after.src = Ip6::from_mapped(Ip4::new(arp.sender_ip));
        event.after.dst = Ip6::from_mapped(Ip4::new(arp.target_ip));
    }
}

/// A process of the node asked for `asked`, from `from`, and was given `given`.
#[inline(always)]
pub fn called<F: Family>(
    hook: Hook,
    proto: u8,
    from: (F::Addr, Be16),
    asked: (F::Addr, Be16),
    given: (F::Addr, Be16),
) {
    if !traces() {
        return;
    }
    let Some(event) = record(CALL) else {
        return;
    };
    *event = Event::default();
    let ends = |to: (F::Addr, Be16)| Ends {
        src: from.0.wide(),
        dst: to.0.wide(),
        sport: from.1,
        dport: to.1,
    };
    (event.before, event.after) = (ends(asked), ends(given));
    event.ethertype = F::ETHERTYPE;
    event.proto = proto;
    event.hook = hook as u8;
    event.traced = 1;
    if asked != given {
        event.action = Action::Connected as u8;
        event.why = Why::Published as u8;
        event.endpoint = endpoint_at::<F>(&given.0).map_or(0, |endpoint| endpoint.counter);
    }
    tell(CALL);
}

/// What [`ask`] works with.
struct Asking<'a> {
    event: &'a mut Event,
    tick: u32,
}

/// Sends the event to those who want it. A global function, as the kernel calls what has a name for others:
/// the verifier goes through it once for all, and not on each way that leads here.
#[inline(never)]
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
extern "C" fn tell(which: u32) -> u32 {
    let Some(event) = record(which) else {
        return 0;
    };
    // SAFETY: a helper call.
    event.time = unsafe { bpf_ktime_get_ns() };
    event.filters = 0;
    let mut asking = Asking {
        tick: (event.time >> TICK_SHIFT) as u32,
        event,
    };
    let callback: Callback = ask;
    // SAFETY: a helper call with a callback of its own kind, which gets what it is made for.
    unsafe {
        bpf_for_each_map_elem(
            (&raw const FILTERS).cast_mut().cast(),
            callback as *mut c_void,
            (&raw mut asking).cast(),
            0,
        );
    }
    let event: &Event = asking.event;
    if event.filters != 0 && EVENTS.output::<Event>(event, 0).is_err() {
        suppress(ROOM);
    }
    event.filters
}

type Callback = unsafe extern "C" fn(*mut c_void, *const u32, *mut Filter, *mut Asking) -> i64;

/// Asks one filter.
///
/// # Safety
///
/// `number` and `filter` must be valid, `asking` what [`tell`] made, and nobody else's while this runs.
unsafe extern "C" fn ask(
    _map: *mut c_void,
    number: *const u32,
    filter: *mut Filter,
    asking: *mut Asking,
) -> i64 {
    // SAFETY: see above. Other CPUs may write what they count, each in one instruction: one more event or
    // less than was allowed does no harm.
    let (number, filter, asking) = unsafe { (*number, &mut *filter, &mut *asking) };
    if filter.suits(asking.event) {
        if filter.tick != asking.tick {
            (filter.tick, filter.sent) = (asking.tick, 0);
        }
        if filter.sent < filter.rate {
            filter.sent += 1;
            asking.event.filters |= 1 << (number & (u32::BITS - 1));
        } else {
            suppress(number);
        }
    }
    0
}

/// One more event of a filter that was not sent; of all of them: for want of room.
#[inline(always)]
fn suppress(number: u32) {
    if let Some(suppressed) = SUPPRESSED.get_ptr_mut(number) {
        // SAFETY: a per-CPU slot; nobody else writes it while this program runs.
        unsafe { *suppressed += 1 };
    }
}
