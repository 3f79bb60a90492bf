//! Endpoint-independent mappings (RFC 4787 REQ-1): one external port for an internal address and
//! port, whatever the destination, for containers of networks that ask for it.
//!
//! A mapping is two entries, one for each side. Flows are made by it, and once made they do without:
//! a packet of a flow comes here once a tick at most, to keep the mapping alive. Where its port is
//! another flow's towards some destination, the flow gets a port of its own: the requirement is
//! broken for that flow, rather than its packets lost.
//!
//! # Concurrency
//!
//! As of flows (`flow`). The external side is inserted first, with `BPF_NOEXIST`: that claims the
//! port. Then the internal one, likewise: of two CPUs with first packets of one internal port, one
//! wins, and the other's flow goes without (as they search alike, they mean the same port, but where
//! it is taken towards one of the destinations). The external side tells how old a mapping is; one
//! whose sides do not name each other counts as absent.

use core::ptr::{addr_of, addr_of_mut};

use netfw_common::{
    addr::{Address, Be16},
    flow::{flag, is_past, state},
    port,
    record::{Mapping, MappingKey, network_flag, side},
    tuple::{Tuple, proto, zone},
};

use crate::{
    family::Family,
    maps::{BPF_NOEXIST, EEXIST, config},
    nat::world::endpoint_at,
    packet::Packet,
    socket,
    work::Work,
};

/// One side of a mapping in its map, shared with every CPU.
struct Side<A>(*mut Mapping<A>);

impl<A: Address> Side<A> {
    #[inline(always)]
    fn of<F: Family<Addr = A>>(key: &MappingKey<A>) -> Option<Self> {
        F::mappings().get_ptr_mut(key).map(Self)
    }

    // Field by field: no reference to the whole may exist while other CPUs write.

    #[inline(always)]
    fn addr(&self) -> A {
        // SAFETY: an element of a map, which lives as long as the program.
        unsafe { addr_of!((*self.0).addr).read_volatile() }
    }

    #[inline(always)]
    fn port(&self) -> Be16 {
        // SAFETY: see `addr`.
        unsafe { addr_of!((*self.0).port).read_volatile() }
    }

    /// Of an external side.
    #[inline(always)]
    fn is_expired(&self, proto: u8, now: u32) -> bool {
        // SAFETY: see `addr`.
        let (seen, state) = unsafe {
            (
                addr_of!((*self.0).seen).read_volatile(),
                addr_of!((*self.0).state).read_volatile(),
            )
        };
        is_past(seen, now, config().timeouts.of_mapping(proto, state))
    }

    /// Does it name this side as its other one?
    #[inline(always)]
    fn names(&self, key: &MappingKey<A>) -> bool {
        self.addr() == key.addr && self.port() == key.port
    }

    #[inline(always)]
    fn set_seen(&self, now: u32) {
        // SAFETY: see `addr`.
        unsafe { addr_of_mut!((*self.0).seen).write_volatile(now) };
    }

    #[inline(always)]
    fn set_state(&self, state: u8) {
        // SAFETY: see `addr`.
        unsafe { addr_of_mut!((*self.0).state).write_volatile(state) };
    }
}

/// Names the mapping between the sender of the packet in `work` and `external`.
#[inline(always)]
fn name<A: Address>(work: &mut Work<A>, addr: A, port: Be16) {
    work.internal_key = MappingKey {
        addr: work.key.src,
        port: work.key.sport,
        proto: work.key.proto,
        side: side::INTERNAL,
    };
    work.external_key = MappingKey {
        addr,
        port,
        proto: work.key.proto,
        side: side::EXTERNAL,
    };
}

/// Finds the mapping of the packet's sender, and leaves the name of its external side in
/// `work.external_key`. One for an address that the node has lost counts as absent.
#[inline(never)]
pub fn find<F: Family>(work: &mut Work<F::Addr>) -> bool {
    name(work, F::Addr::ANY, Be16::new(0));
    let Some(inside) = Side::of::<F>(&work.internal_key) else {
        return false;
    };
    (work.external_key.addr, work.external_key.port) = (inside.addr(), inside.port());
    let Some(outside) = Side::of::<F>(&work.external_key) else {
        return false;
    };
    outside.names(&work.internal_key)
        && !outside.is_expired(work.key.proto, work.now)
        && F::is_local(&work.external_key.addr)
}

/// Looks for the mapping of the packet's sender, for the flow that is being made (`work.flow`).
#[inline(always)]
pub fn recall<F: Family>(work: &mut Work<F::Addr>) {
    work.mapped = find::<F>(work);
    work.mapped_port = work.external_key.port;
    // With several uplinks: a mapping belongs to the address that it was made for.
    if work.mapped && work.external_key.addr != work.flow.src {
        work.mapped = false;
        work.rules = 0;
    }
}

/// May the packet's sender have the port of `work.reply_key`: is it in no mapping of somebody else, and,
/// where a mapping is to be made, not the last of a group of which the sender has all?
#[inline(never)]
pub fn is_free<F: Family>(work: &mut Work<F::Addr>) -> bool {
    let (addr, port) = (work.reply_key.dst, work.reply_key.dport);
    name(work, addr, port);
    if let Some(outside) = Side::of::<F>(&work.external_key)
        && !outside.is_expired(work.key.proto, work.now)
    {
        return outside.names(&work.internal_key);
    }
    work.mapped || !has_group::<F>(work)
}

/// Has the packet's sender mappings at all other ports of the group that the one of `work.external_key`
/// is in? See [`port::fellow`].
#[inline(always)]
fn has_group<F: Family>(work: &mut Work<F::Addr>) -> bool {
    let port = work.external_key.port;
    for n in 1..port::GROUP {
        work.external_key.port = Be16::new(port::fellow(port.get(), n));
        let own = Side::of::<F>(&work.external_key).is_some_and(|outside| {
            outside.addr() == work.key.src && !outside.is_expired(work.key.proto, work.now)
        });
        if !own {
            return false;
        }
    }
    true
}

/// Makes the source of the flow that is being made the mapping of the packet's sender, or notes that
/// it is. A sender that has another is left with it.
#[inline(never)]
pub fn claim<F: Family>(work: &mut Work<F::Addr>) {
    if !work.mapped {
        work.mapped = insert::<F>(work);
        work.mapped_port = work.flow.sport;
    }
    if !work.mapped || work.flow.sport != work.mapped_port {
        return;
    }
    work.flow.flags |= flag::MAPPED;
    work.reply.flags |= flag::MAPPED;
    touch::<F>(work, true, None);
    if work.rules & network_flag::FILTER_ADDRESS != 0 {
        permit::<F>(work);
    }
}

/// Inserts both sides of a mapping; false where somebody was faster, or there is no room.
#[inline(never)]
fn insert<F: Family>(work: &mut Work<F::Addr>) -> bool {
    let (addr, port) = (work.flow.src, work.flow.sport);
    name(work, addr, port);
    let (internal, external) = (&work.internal_key, &work.external_key);
    if Side::of::<F>(external).is_some_and(|outside| {
        !outside.names(internal) && outside.is_expired(internal.proto, work.now)
    }) {
        let _ = F::mappings().remove(external);
    }
    // An old one has expired, or lost its other side: `find` has seen that it is none.
    if Side::of::<F>(internal).is_some_and(|inside| !inside.names(external)) {
        let _ = F::mappings().remove(internal);
    }
    work.side = Mapping {
        addr: internal.addr,
        port: internal.port,
        state: state::NEW,
        reserved: 0,
        seen: work.now,
    };
    match F::mappings().insert(external, &work.side, BPF_NOEXIST) {
        Ok(()) => {}
        // By another CPU, for the same sender?
        Err(EEXIST) if Side::of::<F>(external).is_some_and(|side| side.names(internal)) => {}
        Err(_) => return false,
    }
    (work.side.addr, work.side.port) = (external.addr, external.port);
    if F::mappings()
        .insert(internal, &work.side, BPF_NOEXIST)
        .is_ok()
        || Side::of::<F>(internal).is_some_and(|inside| inside.names(external))
    {
        return true;
    }
    let _ = F::mappings().remove(external);
    false
}

/// Keeps the mapping alive by which the packet in `work` came or goes, as its flow has come to `state`.
///
/// What a container sends does so, and what it is sent does not (RFC 4787 REQ-6): nobody outside can
/// hold on to a port. But a connection that the other side ends is over for the mapping, too.
#[inline(never)]
pub fn refresh<F: Family>(work: &mut Work<F::Addr>, state: u8) {
    let outbound = work.key.zone == zone::CONTAINER;
    touch::<F>(work, outbound, Some(state));
    if !outbound {
        return;
    }
    work.permit = permit_key(work, true);
    if let Some(permit) = F::permits().get_ptr_mut(&work.permit) {
        // SAFETY: an element of a map, which lives as long as the program.
        unsafe { permit.write_volatile(work.now) };
    }
}

/// Notes a packet in the mapping of its container, where there is one.
#[inline(always)]
fn touch<F: Family>(work: &mut Work<F::Addr>, outbound: bool, state: Option<u8>) {
    let (addr, port) = (work.flow.src, work.flow.sport);
    name(work, addr, port);
    let (internal, external) = (&mut work.internal_key, &mut work.external_key);
    if !outbound {
        (internal.addr, internal.port) = (work.flow.dst, work.flow.dport);
        (external.addr, external.port) = (work.key.dst, work.key.dport);
    }
    let Some(outside) = Side::of::<F>(external) else {
        return;
    };
    // It may have expired under its flow, and the port gone to another.
    if !outside.names(internal) {
        return;
    }
    if let Some(state) = state {
        outside.set_state(state);
    }
    if outbound {
        outside.set_seen(work.now);
    }
}

/// Names the destination of the packet in `work` as one that may send to its source, from any port
/// or from the one that is sent to.
#[inline(always)]
fn permit_key<A: Address>(work: &Work<A>, any_port: bool) -> Tuple<A> {
    let mut key = work.key.mirrored(zone::WORLD);
    if any_port {
        key.sport = Be16::new(0);
    }
    key
}

/// Lets the packet's destination send to the mapping of its sender.
#[inline(always)]
fn permit<F: Family>(work: &mut Work<F::Addr>) {
    work.permit = permit_key(work, work.rules & network_flag::FILTER_ADDRESS != 0);
    let _ = F::permits().insert(&work.permit, &work.now, 0);
}

/// What a packet wants of a mapping.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Nothing.
    No,
    /// Its container, which is in `work.target`.
    Container,
    /// Its container, whose network does not let the sender in.
    Filtered,
}

/// Is the packet addressed to a mapping? To its owner, the sender is `work.remote`.
#[inline(never)]
pub fn is_asked_for<P: Packet, F: Family>(packet: &P, work: &mut Work<F::Addr>) -> Asked {
    // A request of echo has its sender's identifier, and asks for nobody behind it. SCTP's sockets of
    // the node cannot be found.
    if work.key.proto != proto::TCP && work.key.proto != proto::UDP || config().mappings == 0 {
        return Asked::No;
    }
    let (addr, port) = (work.key.dst, work.key.dport);
    name(work, addr, port);
    let Some(outside) = Side::of::<F>(&work.external_key) else {
        return Asked::No;
    };
    (work.target.addr, work.target.port) = (outside.addr(), outside.port());
    if outside.is_expired(work.key.proto, work.now) || !F::is_local(&work.key.dst) {
        return Asked::No;
    }
    let Some(owner) = endpoint_at::<F>(&work.target.addr) else {
        return Asked::No;
    };
    work.target.counter = owner.counter;
    work.target.flags = flag::PUBLISHED | flag::MAPPED;
    work.target.refused = false;
    // A process of the node may have bound the port since.
    if socket::exists::<P, F>(packet, &work.key) {
        return Asked::No;
    }
    // Two containers that send to each other: the first packet is not let in, but the second is.
    if work.mapped {
        permit::<F>(work);
    }
    if is_let_in::<F>(work, owner.flags) {
        Asked::Container
    } else {
        Asked::Filtered
    }
}

/// May `work.remote` send to the mapping of `work.target`, whose network has these rules?
#[inline(always)]
fn is_let_in<F: Family>(work: &mut Work<F::Addr>, rules: u32) -> bool {
    if rules & network_flag::FILTER_NONE != 0 {
        return true;
    }
    work.permit = Tuple {
        src: work.remote,
        dst: work.target.addr,
        sport: if rules & network_flag::FILTER_ADDRESS != 0 {
            Be16::new(0)
        } else {
            work.remote_port
        },
        dport: work.target.port,
        proto: work.key.proto,
        zone: zone::WORLD,
        scope: 0,
    };
    let Some(permit) = F::permits().get_ptr(&work.permit) else {
        return false;
    };
    // SAFETY: an element of a map, which lives as long as the program.
    let seen = unsafe { permit.read_volatile() };
    let timeout = config().timeouts.of(work.key.proto, state::ESTABLISHED);
    !is_past(seen, work.now, timeout)
}
