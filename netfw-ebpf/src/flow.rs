//! Flows: finding them, following their state, making them.
//!
//! # Concurrency
//!
//! Any CPU may read and write an entry at any time; every field is a plain integer of its own, and
//! each write leaves an entry that makes sense. What must happen once is done by insertions with
//! `BPF_NOEXIST`:
//!
//! - the reply half is inserted first: that claims the reply tuple, and with it the port;
//! - the original half second: of two CPUs that see a flow's first packets, one wins, and the
//!   other takes back its claim and uses the winner's;
//! - a flow that becomes assured is inserted into the assured table before it leaves the embryos,
//!   and a claim among the embryos looks into the assured table again after it was made, so that
//!   no tuple can be claimed twice on the way between the tables.

use core::{
    cell::UnsafeCell,
    intrinsics::{AtomicOrdering, atomic_xadd},
    ptr::addr_of_mut,
};

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use netfw_common::{
    addr::{Address, Be16, MacPair},
    budget::Budget,
    drop::Drop,
    flow::{
        Flow, TICK_SHIFT, Timeouts, flag, further, holdings, is_assured, lag, next_query_state,
        next_tcp_state, state, tcp,
    },
    port,
    record::Config,
    tuple::{Tuple, proto, zone},
};

use crate::{
    family::Family,
    independent,
    maps::{BUDGETS, CONFIG},
    work::Work,
};

pub const BPF_NOEXIST: u64 = 1;
pub const EEXIST: i32 = -17;

/// The tick of now.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: a helper that the kernel replaces by a load (5.6).
    let jiffies = unsafe { bpf_jiffies64() } as u32;
    let clock = CLOCK.read();
    let tick = clock as u32;
    // 0: nobody has written it yet.
    if (clock >> 32) as u32 == jiffies && tick != 0 {
        return tick;
    }
    tick_at(jiffies)
}

/// The tick of now, kept for as long as the jiffies stay as they are: the coarse clock (5.11) moves
/// with them, and is exact to a few ms.
#[inline(never)]
fn tick_at(jiffies: u32) -> u32 {
    // SAFETY: a helper call.
    let ns = unsafe { bpf_ktime_get_coarse_ns() };
    let tick = (ns >> TICK_SHIFT) as u32;
    CLOCK.write(u64::from(jiffies) << 32 | u64::from(tick));
    tick
}

/// Jiffies (low bits) and the tick that they belong to, in one word that all CPUs read and write
/// whole.
struct Clock(UnsafeCell<u64>);

// SAFETY: a word, read and written by single instructions.
unsafe impl Sync for Clock {}

static CLOCK: Clock = Clock(UnsafeCell::new(0));

impl Clock {
    #[inline(always)]
    fn read(&self) -> u64 {
        // SAFETY: see `Sync`.
        unsafe { self.0.get().read_volatile() }
    }

    #[inline(always)]
    fn write(&self, clock: u64) {
        // SAFETY: see `Sync`.
        unsafe { self.0.get().write_volatile(clock) };
    }
}

/// Notes the time in the record of a packet that is to be looked up.
#[inline(always)]
pub fn set_now<A>(work: &mut Work<A>) {
    work.now = now();
    let epoch = CONFIG.get(0).map_or(0, |config| config.epoch);
    work.epoch = work.now.wrapping_add(epoch) as u16;
}

/// The settings.
#[inline(always)]
pub fn config() -> Config {
    match CONFIG.get(0) {
        Some(config) => *config,
        // Unreachable: an array of one has an element 0. The verifier wants to hear it.
        None => Config {
            port_min: 0,
            port_max: 0,
            timeouts: Timeouts {
                tcp_embryonic: 0,
                tcp_established: 0,
                tcp_closing: 0,
                udp_unreplied: 0,
                udp_replied: 0,
                icmp: 0,
            },
            epoch: 0,
            mappings: 0,
            max_queries: 0,
            max_flows: 0,
            max_unanswered: 0,
        },
    }
}

/// Copies the whole, by words: between two places in maps, which might overlap for all that the
/// compiler knows, it would call a `memmove` that goes byte by byte. Nor does it keep what it copied
/// on the stack, for a comparison later.
///
/// The last word first: what its flags say of the others was so before those are read.
#[inline(always)]
fn copy<A>(from: *const Flow<A>, to: &mut Flow<A>) {
    let (from, to): (*const u64, *mut u64) = (from.cast(), core::ptr::from_mut(to).cast());
    for word in (0..size_of::<Flow<A>>() / size_of::<u64>()).rev() {
        // SAFETY: callers pass an element of a map or a reference; a flow is words without padding.
        // Volatile, lest the loop be taken for what it is.
        unsafe { to.add(word).write_volatile(from.add(word).read_volatile()) };
    }
}

/// A flow entry in its map, shared with every CPU.
#[derive(Clone, Copy)]
pub struct Entry<A>(*mut Flow<A>);

impl<A: Address> Entry<A> {
    #[inline(always)]
    fn flags(self) -> u8 {
        // SAFETY: see `set_seen`.
        unsafe { addr_of_mut!((*self.0).flags).read_volatile() }
    }

    #[inline(always)]
    pub fn copy_to(self, to: &mut Flow<A>) {
        copy(self.0, to);
    }

    /// Notes a packet.
    #[inline(always)]
    fn set_seen(self, now: u32) {
        // Field by field, here and below: no reference to the whole may exist while other CPUs write.
        // SAFETY: an element of a map, which lives as long as the program.
        unsafe { addr_of_mut!((*self.0).seen).write_volatile(now) };
    }

    #[inline(always)]
    fn set_state(self, state: u8) {
        // SAFETY: see `set_seen`.
        unsafe { addr_of_mut!((*self.0).state).write_volatile(state) };
    }

    #[inline(always)]
    fn counter(self) -> u16 {
        // SAFETY: see `set_seen`.
        unsafe { addr_of_mut!((*self.0).counter).read_volatile() }
    }

    /// Notes the tag that the direction's SCTP packets will have.
    #[inline(always)]
    fn set_tag(self, tag: u32) {
        // SAFETY: see `set_seen`.
        unsafe { addr_of_mut!((*self.0).end).write_volatile(tag) };
    }

    /// Notes how far the direction's segments have come: the sequence number behind the last, and what
    /// it acknowledged (0: not known).
    #[inline(always)]
    fn set_numbers(self, end: u32, ack: u32) {
        // SAFETY: see `set_seen`.
        unsafe {
            addr_of_mut!((*self.0).end).write_volatile(end);
            addr_of_mut!((*self.0).ack).write_volatile(ack);
        }
    }

    #[inline(always)]
    fn set_flags(self, flags: u8) {
        // SAFETY: see `set_seen`.
        unsafe { addr_of_mut!((*self.0).flags).write_volatile(flags) };
    }

    /// Keeps a way to the world for the rest of the tick.
    #[inline(always)]
    fn set_route(self, route: &Kept, epoch: u16) {
        let flags = self.flags();
        // The element may have gone to another flow since it was found.
        if flags & flag::TO_CONTAINER != 0 {
            return;
        }
        // Another CPU may be sending by this entry: while the fields change, none is cached.
        self.set_flags(flags & !flag::L2_CACHED);
        let Some(macs) = route.macs else {
            return;
        };
        // SAFETY: see `set_seen`.
        unsafe {
            addr_of_mut!((*self.0).ifindex).write_volatile(route.ifindex);
            addr_of_mut!((*self.0).mtu).write_volatile(route.mtu);
            addr_of_mut!((*self.0).macs).write_volatile(macs);
        }
        self.set_flags(flags | flag::L2_CACHED);
        self.set_routed(epoch);
    }

    /// Is the way to the world that `copy` holds still the entry's? See [`Self::set_route`].
    #[inline(always)]
    fn keeps_route_of(self, copy: &Flow<A>) -> bool {
        // SAFETY: see `set_seen`.
        let routed = unsafe { addr_of_mut!((*self.0).routed).read_volatile() };
        self.flags() & flag::L2_CACHED != 0 && routed == copy.routed
    }

    #[inline(always)]
    fn set_routed(self, epoch: u16) {
        // SAFETY: see `set_seen`.
        unsafe { addr_of_mut!((*self.0).routed).write_volatile(epoch) };
    }
}

/// A way to the world, to be kept in a flow.
pub struct Kept {
    pub ifindex: u32,
    pub mtu: u16,
    /// Where the neighbour is known.
    pub macs: Option<MacPair>,
}

/// Why there is no flow to send by.
pub enum Miss {
    Absent,
    /// There is one, and it cannot become assured: why.
    Refused(Drop),
}

/// Both tables, one entry; and whether it is assured.
#[inline(always)]
fn find<F: Family>(key: &Tuple<F::Addr>) -> Option<(Entry<F::Addr>, bool)> {
    if let Some(entry) = F::flows().get_ptr_mut(key) {
        return Some((Entry(entry), true));
    }
    if let Some(entry) = F::embryos().get_ptr_mut(key) {
        return Some((Entry(entry), false));
    }
    // It may have become assured between the two looks.
    let entry = F::flows().get_ptr_mut(key)?;
    Some((Entry(entry), true))
}

/// Finds the flow of `work.key`, copies its entry into `work.flow`, and takes note of the packet.
///
/// For an assured flow in its steady state this is one map lookup; once a tick it is two, and once in
/// [`lag`] ticks the other half's.
#[inline(always)]
pub fn lookup<F: Family>(work: &mut Work<F::Addr>) -> Result<(), Miss> {
    let (entry, assured) = find::<F>(&work.key).ok_or(Miss::Absent)?;
    entry.copy_to(&mut work.flow);
    if work.flow.has(flag::L2_CACHED) && !entry.keeps_route_of(&work.flow) {
        // Another CPU was writing a new one.
        work.flow.flags &= !flag::L2_CACHED;
    }
    if work.flow.seen != work.now || !is_settled(work, assured) {
        return advance::<F>(work);
    }
    note_segment(work, entry);
    Ok(())
}

/// Is the packet at hand one that changes nothing in its flow?
#[inline(always)]
fn is_settled<A: Address>(work: &Work<A>, assured: bool) -> bool {
    let flow = &work.flow;
    if proto::has_connections(work.key.proto) {
        assured
            && flow.state == state::ESTABLISHED
            && work.flags & (tcp::SYN | tcp::FIN | tcp::RST) == 0
    } else {
        // That it could be assured is tried once a tick.
        assured
            || flow.state == state::ESTABLISHED
            || (flow.state == state::NEW && !flow.has(flag::REPLY))
    }
}

/// Notes how far a settled connection has come.
#[inline(always)]
fn note_segment<A: Address>(work: &Work<A>, entry: Entry<A>) {
    if work.key.proto == proto::TCP && work.segment.is_near(&work.flow) {
        let end = further(work.segment.end, work.flow.end);
        entry.set_numbers(end, work.segment.ack);
    }
}

/// What a packet changes in its flow.
///
/// Out of line, as all that is not on every packet's way: a call whose result is a small number
/// is where the verifier's paths come together again.
#[inline(never)]
fn advance<F: Family>(work: &mut Work<F::Addr>) -> Result<(), Miss> {
    let Some((entry, assured)) = find::<F>(&work.key) else {
        return Err(Miss::Absent);
    };
    let config = config();
    let behind = lag(config.timeouts.of(work.key.proto, work.flow.state));
    // In the same span of ticks: not expired, and the other half knows of the flow's life what it must.
    if assured
        && (work.flow.seen ^ work.now) & !behind == 0
        && !work.flow.has(flag::MAPPED)
        && is_settled(work, assured)
    {
        entry.set_seen(work.now);
        work.flow.seen = work.now;
        note_segment(work, entry);
        return Ok(());
    }
    work.flow
        .write_reverse_key(work.key.proto, &mut work.reply_key);
    let Some(other) = other_half::<F>(work) else {
        // An orphan: its other half was pushed out, and whatever lies there now is another's.
        remove::<F>(&work.key, assured);
        return Err(Miss::Absent);
    };
    if work
        .flow
        .is_expired(work.key.proto, work.now, &config.timeouts)
    {
        remove_both::<F>(work, assured);
        return Err(Miss::Absent);
    }

    let reply = work.flow.has(flag::REPLY);
    let old = work.flow.state;
    let new = if work.key.proto == proto::SCTP {
        if work.segment.is_tagged(work.flags, &work.flow, &work.other) {
            // Of an association that is, the tags do not change: only a forged packet would.
            if work.flags & tcp::SYN != 0 && old != state::ESTABLISHED {
                work.other.end = work.segment.ack;
                other.set_tag(work.segment.ack);
            }
            next_tcp_state(old, work.flags, reply)
        } else {
            old
        }
    } else if work.key.proto != proto::TCP {
        next_query_state(old, reply)
    } else if is_plausible(work) {
        set_numbers(work, entry, other);
        next_tcp_state(old, work.flags, reply)
    } else {
        old
    };

    if reply && new == state::REPLIED && old != new && !proto::has_connections(work.key.proto) {
        give_back(&work.flow);
    }
    for (half, entry) in [(&mut work.flow, entry), (&mut work.other, other)] {
        (half.seen, half.state) = (work.now, new);
        entry.set_seen(work.now);
        if new != old {
            entry.set_state(new);
        }
    }
    if work.flow.has(flag::MAPPED) {
        independent::refresh::<F>(work, new);
    }
    if is_assured(new) == assured {
        return Ok(());
    }
    if assured {
        retire::<F>(work);
        return Ok(());
    }
    assure::<F>(work)?;
    // Once: one that was over and goes on has been given back.
    if old == state::REPLIED && proto::has_connections(work.key.proto) {
        give_back(if reply { &work.flow } else { &work.other });
    }
    Ok(())
}

/// May the TCP segment at hand change its flow's state?
#[inline(always)]
fn is_plausible<A: Address>(work: &Work<A>) -> bool {
    let (own, other) = (&work.flow, &work.other);
    work.segment
        .is_plausible(work.flags, is_containers(work), own, other)
}

/// Does a container send the packet at hand?
#[inline(always)]
fn is_containers<A>(work: &Work<A>) -> bool {
    work.key.zone == zone::CONTAINER
}

/// Notes how far the TCP segment at hand brings its flow, in both halves and their copies.
#[inline(always)]
fn set_numbers<A: Address>(work: &mut Work<A>, entry: Entry<A>, other: Entry<A>) {
    if work.flags & tcp::RST != 0 {
        return;
    }
    let ack = work.flags & tcp::ACK != 0;
    // A retransmission ends where its direction has been already; a SYN begins anew.
    work.flow.end = if work.flags & tcp::SYN == 0 && work.flow.end != 0 {
        further(work.segment.end, work.flow.end)
    } else {
        work.segment.end
    };
    work.flow.ack = if ack { work.segment.ack } else { 0 };
    entry.set_numbers(work.flow.end, work.flow.ack);
    if ack && work.flags & tcp::SYN != 0 && is_containers(work) {
        // What it answers begins there, whatever was before.
        (work.other.end, work.other.ack) = (work.segment.ack, 0);
        other.set_numbers(work.other.end, 0);
    }
}

/// The other half of `work.flow`, under `work.reply_key`; a copy goes to `work.other`. A flow on its
/// way between the tables has a half in each.
#[inline(always)]
fn other_half<F: Family>(work: &mut Work<F::Addr>) -> Option<Entry<F::Addr>> {
    let (other, _) = find::<F>(&work.reply_key)?;
    other.copy_to(&mut work.other);
    work.flow
        .is_half_of(&work.key, &work.other)
        .then_some(other)
}

/// Removes one entry. Someone else may be faster: gone is gone.
#[inline(always)]
fn remove<F: Family>(key: &Tuple<F::Addr>, assured: bool) {
    if !assured {
        let _ = F::embryos().remove(key);
    } else if let Some(entry) = F::flows().get_ptr_mut(key) {
        let holder = Entry(entry).counter();
        if F::flows().remove(key).is_ok() {
            count::<F>(holder, key.proto, -1);
        }
    }
}

/// Counts an entry that came to the assured ones, or went.
#[inline(never)]
fn count<F: Family>(holder: u16, proto: u8, change: i64) {
    let add = |holder: u32| {
        if let Some(made) = F::holdings().get_ptr_mut(holdings::made(holder)) {
            // What `AtomicI64` has for it is only for targets that compare and swap as well.
            // SAFETY: an element of a map, which lives as long as the program; all programs write it so.
            unsafe { atomic_xadd::<i64, i64, { AtomicOrdering::Relaxed }>(made.cast(), change) };
        }
    };
    add(holdings::ALL);
    if holder != 0 {
        add(holder.into());
    }
    if !proto::has_connections(proto) {
        add(holdings::QUERIES);
    }
}

/// How many entries of the assured ones are this holder's.
#[inline(always)]
fn held<F: Family>(holder: u32) -> i64 {
    let count = |element| F::holdings().get(element).copied().unwrap_or(0);
    count(holdings::made(holder)).wrapping_sub(count(holdings::removed(holder))) as i64
}

/// Have flows without connections their share of the assured ones?
#[inline(never)]
fn are_queries_full<F: Family>() -> bool {
    held::<F>(holdings::QUERIES) >= config().max_queries.into()
}

/// Is there room for a connection that is about to begin? To whom it is refused later, its peers hold it for
/// established.
#[inline(always)]
pub fn has_room<F: Family>(holder: u16) -> Result<(), Drop> {
    if held::<F>(holdings::ALL) >= config().max_flows.into() {
        Err(Drop::TableFull)
    } else if !may_have_more::<F>(holder) {
        Err(Drop::FlowShare)
    } else {
        Ok(())
    }
}

/// May the endpoint or publish of this counter have another flow, or are the others to find room?
#[inline(never)]
fn may_have_more<F: Family>(holder: u16) -> bool {
    let free = i64::from(config().max_flows) - held::<F>(holdings::ALL);
    // What is nobody's is not limited.
    holder == 0 || holdings::may_have_more(held::<F>(holder.into()), free)
}

/// Removes the flow of `work.key` and `work.reply_key`, whose halves belong together.
#[inline(always)]
fn remove_both<F: Family>(work: &Work<F::Addr>, assured: bool) {
    remove::<F>(&work.key, assured);
    remove::<F>(&work.reply_key, assured);
}

/// Moves a flow from the embryos to the assured. One without connection may stay where it is: the next
/// packet that is pushed out there is no loss to its peers.
#[inline(always)]
fn assure<F: Family>(work: &Work<F::Addr>) -> Result<(), Miss> {
    let query = !proto::has_connections(work.key.proto);
    if query && are_queries_full::<F>() {
        return Ok(());
    }
    if !may_have_more::<F>(work.flow.counter) {
        return refused(query, Drop::FlowShare);
    }
    for (key, half) in [(&work.key, &work.flow), (&work.reply_key, &work.other)] {
        match F::flows().insert(key, half, BPF_NOEXIST) {
            Ok(()) => count::<F>(half.counter, key.proto, 1),
            // Another CPU is doing the same.
            Err(EEXIST) => {}
            Err(_) => {
                // The table is full. Neither half may stay alone.
                remove_both::<F>(work, true);
                return refused(query, Drop::TableFull);
            }
        }
    }
    remove_both::<F>(work, false);
    Ok(())
}

/// What has no connection goes on among the embryos.
#[inline(always)]
const fn refused(query: bool, why: Drop) -> Result<(), Miss> {
    if query {
        Ok(())
    } else {
        Err(Miss::Refused(why))
    }
}

/// Moves a flow that is over from the assured to the embryos, where it may be pushed out.
#[inline(always)]
fn retire<F: Family>(work: &Work<F::Addr>) {
    for (key, half) in [(&work.key, &work.flow), (&work.reply_key, &work.other)] {
        let _ = F::embryos().insert(key, half, BPF_NOEXIST);
    }
    remove_both::<F>(work, true);
}

/// Removes the flow of `work.key`, whose entry is in `work.flow`.
#[inline(always)]
pub fn forget<F: Family>(work: &mut Work<F::Addr>) {
    work.reply_key = work.flow.reverse_key(work.key.proto);
    for assured in [true, false] {
        remove_both::<F>(work, assured);
    }
}

/// Notes in the flow of `work.key` that sockets were looked for in this tick.
#[inline(always)]
pub fn note_look<F: Family>(work: &Work<F::Addr>) {
    if let Some((entry, _)) = find::<F>(&work.key) {
        entry.set_routed(work.epoch);
    }
}

/// Finds the flow of `work.key` and copies its entry into `work.flow`, for an ICMP error that speaks
/// of it: nothing is noted.
#[inline(always)]
pub fn find_for_error<F: Family>(work: &mut Work<F::Addr>) -> bool {
    let Some((entry, _)) = find::<F>(&work.key) else {
        return false;
    };
    entry.copy_to(&mut work.flow);
    work.flow
        .write_reverse_key(work.key.proto, &mut work.reply_key);
    other_half::<F>(work).is_some()
        && !work
            .flow
            .is_expired(work.key.proto, work.now, &config().timeouts)
}

/// Keeps the way to the world that was found for the flow of `work.key`, for the rest of the tick.
#[inline(always)]
pub fn keep_route<F: Family>(work: &Work<F::Addr>, route: &Kept) {
    if let Some((entry, _)) = find::<F>(&work.key) {
        entry.set_route(route, work.epoch);
    }
}

/// May the container behind `ifindex` begin another flow? It counts as begun then. See
/// [`netfw_common::budget`].
#[inline(never)]
pub fn may_begin(ifindex: u32, now: u32) -> bool {
    let Some(entry) = BUDGETS.get_ptr_mut(ifindex) else {
        let _ = BUDGETS.insert(ifindex, Budget::first(now), 0);
        return true;
    };
    // SAFETY: an element of a map, which lives as long as the program.
    let budget = unsafe { entry.read_volatile() };
    let Some(budget) = budget.begin(now, config().max_unanswered) else {
        return false;
    };
    // SAFETY: as above.
    unsafe { entry.write_volatile(budget) };
    true
}

/// What the container behind `ifindex` has begun is no burden: it may begin another one.
#[inline(never)]
pub fn give_back_to(ifindex: u32) {
    if let Some(entry) = BUDGETS.get_ptr_mut(ifindex) {
        // SAFETY: as in `may_begin`.
        unsafe { entry.write_volatile(entry.read_volatile().give_back()) };
    }
}

/// As [`give_back_to`], by the flow's reply half, which leads to whoever has begun it.
#[inline(always)]
fn give_back<A: Address>(reply: &Flow<A>) {
    if reply.has(flag::TO_CONTAINER) {
        give_back_to(reply.ifindex);
    }
}

/// A claim on a reply tuple, and what came of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// Claimed; ours.
    Ours,
    /// Held by the same flow, which another CPU is making.
    Shared,
    /// Somebody else's.
    Taken,
    /// No memory.
    Full,
}

/// May the flow that is being made have `work.reply_key`: does nobody need it?
///
/// A cheap look before [`claim`]: an insertion into the embryos may push another one out, even
/// where it fails.
#[inline(always)]
pub fn is_free<F: Family>(work: &mut Work<F::Addr>) -> bool {
    match find::<F>(&work.reply_key) {
        Some((holder, _)) => {
            holder.copy_to(&mut work.other);
            if work.fallback == Be16::new(0) && work.other.is_closed() {
                work.fallback = work.flow.sport;
            }
            is_ours(work) || gives_way(work)
        }
        None => true,
    }
}

/// Has the container that the flow is being made for all other ports of the group that its port is in,
/// towards this peer? See [`port::fellow`]. What is over does not count: it gives way to others.
#[inline(never)]
pub fn has_group<F: Family>(work: &mut Work<F::Addr>) -> bool {
    let port = work.reply_key.dport;
    let mut all = true;
    for n in 1..port::GROUP {
        work.reply_key.dport = Be16::new(port::fellow(port.get(), n));
        if !is_own::<F>(work) {
            all = false;
            break;
        }
    }
    work.reply_key.dport = port;
    all
}

/// Does `work.reply_key` lead to the container that the flow is being made for, by a flow that goes on?
#[inline(never)]
fn is_own<F: Family>(work: &mut Work<F::Addr>) -> bool {
    let Some((holder, _)) = find::<F>(&work.reply_key) else {
        return false;
    };
    holder.copy_to(&mut work.other);
    let holder = &work.other;
    holder.has(flag::TO_CONTAINER)
        && holder.ifindex == work.reply.ifindex
        && !holder.is_closed()
        && !holder.is_expired(work.key.proto, work.now, &config().timeouts)
}

/// Is the holder of `work.reply_key` (in `work.other`) the reply half of the flow that is being made,
/// by another CPU?
#[inline(always)]
fn is_ours<A: Address>(work: &Work<A>) -> bool {
    let holder = &work.other;
    let reply = &work.reply;
    holder.src == reply.src
        && holder.dst == reply.dst
        && holder.sport == reply.sport
        && holder.dport == reply.dport
        && holder.has(flag::REPLY)
        // Of two links, each has its own peers.
        && (holder.ifindex == reply.ifindex || !reply.dst.is_link_local())
}

/// Has the holder of a tuple (in `work.other`) no more claim to it? One that is over gives way where
/// no port is free otherwise: a new connection from it is told from the old by its sequence numbers.
#[inline(always)]
fn gives_way<A: Address>(work: &Work<A>) -> bool {
    let holder = &work.other;
    holder.is_expired(work.key.proto, work.now, &config().timeouts)
        || (work.pressed && holder.is_closed())
}

/// Removes the holder of `work.reply_key` (in `work.other`), and its other half if that is still its
/// own.
#[inline(never)]
fn evict<F: Family>(work: &mut Work<F::Addr>, assured: bool) {
    work.other
        .write_reverse_key(work.key.proto, &mut work.holder_key);
    // The judgement on the holder has been made: its copy makes room for its half.
    copy(&work.other, &mut work.flow_of_holder);
    if let Some((other, _)) = find::<F>(&work.holder_key) {
        other.copy_to(&mut work.other);
        if work.flow_of_holder.is_half_of(&work.reply_key, &work.other) {
            remove::<F>(&work.holder_key, assured);
        }
    }
    remove::<F>(&work.reply_key, assured);
}

/// Takes this tuple of answers away from the container that has it by masquerade. A published port is
/// the publish's.
#[inline(always)]
pub fn evict_reply<F: Family>(answer: &Tuple<F::Addr>) {
    if let Some(work) = F::work()
        && let Some((holder, assured)) = find::<F>(answer)
    {
        holder.copy_to(&mut work.other);
        if !work.other.has(flag::PUBLISHED) {
            work.key.proto = answer.proto;
            work.reply_key = *answer;
            evict::<F>(work, assured);
        }
    }
}

/// Claims `work.reply_key`, the tuple that answers will have, for `work.reply`.
#[inline(never)]
pub fn claim<F: Family>(work: &mut Work<F::Addr>) -> Claim {
    match F::embryos().insert(&work.reply_key, &work.reply, BPF_NOEXIST) {
        Ok(()) => {}
        Err(EEXIST) => {
            let Some(holder) = F::embryos().get_ptr_mut(&work.reply_key) else {
                return Claim::Taken;
            };
            Entry(holder).copy_to(&mut work.other);
            if !gives_way(work) {
                return if is_ours(work) {
                    Claim::Shared
                } else {
                    Claim::Taken
                };
            }
            evict::<F>(work, false);
            if F::embryos()
                .insert(&work.reply_key, &work.reply, BPF_NOEXIST)
                .is_err()
            {
                return Claim::Taken;
            }
        }
        Err(_) => return Claim::Full,
    }
    // An assured flow that expired makes room, and so does one of which half is missing; one that
    // was on its way from the embryos does not.
    let Some(holder) = F::flows().get_ptr_mut(&work.reply_key) else {
        return Claim::Ours;
    };
    Entry(holder).copy_to(&mut work.other);
    work.other
        .write_reverse_key(work.key.proto, &mut work.holder_key);
    let orphan = find::<F>(&work.holder_key).is_none();
    if orphan || gives_way(work) {
        evict::<F>(work, true);
        return Claim::Ours;
    }
    let _ = F::embryos().remove(&work.reply_key);
    Claim::Taken
}

/// Inserts the original half, `work.flow` under `work.key`, once the reply half is claimed. Where
/// another CPU was faster, takes back the claim and copies the winner's entry into `work.flow`.
#[inline(never)]
pub fn open<F: Family>(work: &mut Work<F::Addr>, claim: Claim) -> Result<(), Drop> {
    let _ = F::embryos().insert(&work.key, &work.flow, BPF_NOEXIST);
    let (winner, _) = find::<F>(&work.key).ok_or(Drop::TableFull)?;
    winner.copy_to(&mut work.flow);
    work.flow
        .write_reverse_key(work.key.proto, &mut work.holder_key);
    if claim == Claim::Ours && work.holder_key != work.reply_key {
        let _ = F::embryos().remove(&work.reply_key);
    }
    Ok(())
}
