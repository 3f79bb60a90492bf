//! Flows: finding them and following their state; making them ([`claim`]), and what each may have of them
//! ([`share`]).
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

mod claim;
mod clock;
mod entry;
mod share;

use netfw_common::{
    addr::Address,
    drop::Drop,
    flow::{flag, further, is_assured, lag, next_query_state, next_tcp_state, state, tcp},
    tuple::{Tuple, proto, zone},
};

pub use self::{
    claim::{Claim, claim, evict_reply, has_group, is_free, open},
    clock::{now, set_now},
    entry::Kept,
    share::{give_back_to, has_room, may_begin},
};
use self::{
    entry::Entry,
    share::{are_queries_full, count, give_back, may_have_more},
};
use crate::{
    family::Family,
    independent,
    maps::{BPF_NOEXIST, EEXIST, config},
    work::Work,
};

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
