//! Datagrams in pieces: all go the way of the first, which alone has the ports.
//!
//! The first fragment leaves its ports under what names the datagram, and finds or makes its flow as a
//! whole packet does. A later one is given the ports, and then goes as a whole packet does, but that it
//! has no transport header to be rewritten. One that comes before the first waits as a copy
//! ([`Verdict::Held`]).
//!
//! A piece that goes on wakes the one behind it, if that waits: it is received once more, on the
//! interface where it came in, and goes on and wakes the next. So all that wait follow the first, each
//! as soon as the one before it is there, and nothing else needs to know of them.
//!
//! A piece that overlaps one before it, or a first one without the whole of what NAT and filters look
//! at, is dropped (RFC 1858, 3128, 5722, 8200 4.5): what was first is what counts, here and at the
//! receiver, so nobody is shown one header and another one later. Where the first piece is dropped, the
//! others find no flow.
//!
//! # Concurrency
//!
//! Pieces of a datagram may be at several CPUs at once. A piece that waits is put into `HELD` first;
//! then it inserts the datagram's record, unless there is one. The first fragment inserts its own
//! record in any case, and looks for the piece behind it after that. Both take the lock of that entry.
//! If the piece was earlier, it is seen by whoever sees the first fragment's record, and so by the
//! piece before it; if it was later, it finds that record and waits no longer. To be removed from
//! `HELD` happens once.
//!
//! The first fragment's record is there before its flow is. Until it is settled, pieces at other CPUs
//! are received once more at once, which takes a moment.
//!
//! What the record says of the pieces are plain integers: two CPUs that write at once may lose a bit,
//! and with it an overlap among pieces that met. The receiver looks again.
//!
//! # Bounds
//!
//! Records and pieces that wait lie in LRU maps of fixed size, which a flood can only make forget.

use netfw_common::{
    addr::Address,
    drop::Drop,
    flow::Segment,
    fragment::{Datagram, FragmentKey, Held, HeldKey, Units, is_over},
};

use crate::{
    event::{self, watch},
    family::Family,
    maps::{BPF_ANY, BPF_NOEXIST, EEXIST, HELD, NEW_DATAGRAM, NEW_HELD},
    packet::Packet,
    parse::has_header,
    verdict::Verdict,
    work::Work,
};

/// What becomes of a fragment.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It goes the way of its datagram.
    On,
    /// So it does, and the one behind it may wait.
    Awaited,
    /// It waits for the first one.
    Held,
    /// It is part of another datagram than the one that was known.
    Stray,
    Bad,
    Lost,
}

/// For a fragment, before its flow is looked for: gives a later one the ports. `work.key` is what the
/// fragment itself tells.
#[inline(always)]
pub fn arrive<P: Packet, F: Family>(
    packet: &mut P,
    work: &mut Work<F::Addr>,
) -> Result<(), Verdict> {
    let fate = if work.is_later_fragment() {
        later::<P, F>(packet, work)
    } else {
        first::<P, F>(work)
    };
    Err(match fate {
        Fate::On => return Ok(()),
        Fate::Awaited if wake::<P, _>(packet, work) => return Ok(()),
        Fate::Held => Verdict::Held,
        Fate::Bad => Verdict::Drop(Drop::BadFragment),
        Fate::Awaited | Fate::Stray | Fate::Lost => Verdict::Drop(Drop::LostFragment),
    })
}

/// For a first fragment, when all has been done for it: the others may follow.
#[inline(never)]
pub fn settle<F: Family>(work: &Work<F::Addr>) {
    if let Some(datagram) = find_known::<F>(work) {
        datagram.settled.set(1);
    }
}

/// Notes in `work` which part of which datagram the fragment is; false where there is no such part.
#[inline(always)]
fn identify<P: Packet, F: Family>(work: &mut Work<F::Addr>) -> bool {
    let proto = if F::PROTO_NAMES_DATAGRAM {
        work.key.proto
    } else {
        0
    };
    work.datagram = FragmentKey {
        src: work.key.src,
        dst: work.key.dst,
        id: work.id,
        proto,
        zone: work.key.zone,
        scope: work.key.scope,
    };
    work.datagram_hash = work.datagram.hash();
    let len = (P::NETWORK as u32 + work.len).saturating_sub(work.fragment_at);
    let offset = work.fragment_offset.into();
    match Units::of(offset, len, work.more_fragments) {
        Some(units) => {
            work.units = units;
            true
        }
        None => false,
    }
}

/// The datagram's record, if there is one.
#[inline(always)]
fn find<F: Family>(work: &Work<F::Addr>) -> Option<&'static Datagram> {
    let record = F::fragments().get_ptr(&work.datagram)?;
    // SAFETY: an element of a map, which lives as long as the program; what changes in it is
    // `Shared`. It may go to another datagram meanwhile: that costs one of them a piece.
    Some(unsafe { &*record })
}

/// The same, where the first fragment has come.
#[inline(always)]
fn find_known<F: Family>(work: &Work<F::Addr>) -> Option<&'static Datagram> {
    find::<F>(work).filter(|datagram| datagram.known != 0)
}

/// The datagram is complete, or over.
#[inline(always)]
fn forget<F: Family>(work: &Work<F::Addr>) {
    let _ = F::fragments().remove(&work.datagram);
}

/// The record of the first fragment in `work` (`known`), or of one that waits for it, to be inserted.
#[inline(always)]
fn record<A>(work: &Work<A>, known: bool) -> Option<&'static mut Datagram> {
    let record = NEW_DATAGRAM.get_ptr_mut(0)?;
    // SAFETY: a per-CPU slot; nobody else writes it while this program runs.
    let record = unsafe { &mut *record };
    (record.sport, record.dport) = (work.key.sport, work.key.dport);
    (record.proto, record.known, record.awaited) = (work.key.proto, known.into(), 0);
    record.seen.set(work.now);
    Some(record)
}

/// A fragment other than the first.
#[inline(never)]
fn later<P: Packet, F: Family>(packet: &mut P, work: &mut Work<F::Addr>) -> Fate {
    if !identify::<P, F>(work) {
        return Fate::Bad;
    }
    if let Some(datagram) = find_known::<F>(work) {
        let fate = join::<P, F>(packet, work, datagram);
        if fate != Fate::Stray {
            return fate;
        }
        forget::<F>(work);
    }
    // In this order: see above.
    if !hold::<P, _>(packet, work) {
        return Fate::Lost;
    }
    if let Some(record) = record(work, false) {
        let _ = F::fragments().insert(&work.datagram, &*record, BPF_NOEXIST);
    }
    match find_known::<F>(work) {
        Some(datagram)
            if HELD
                .remove(held_key::<P, _>(work, work.units.first))
                .is_ok() =>
        {
            join::<P, F>(packet, work, datagram)
        }
        _ => Fate::Held,
    }
}

/// A fragment of a datagram whose first has come: gives it the ports.
#[inline(never)]
fn join<P: Packet, F: Family>(
    packet: &mut P,
    work: &mut Work<F::Addr>,
    datagram: &Datagram,
) -> Fate {
    // The flow is being made, by another CPU. Nothing takes it a tick.
    if datagram.settled.get() == 0 && datagram.seen.get() == work.now {
        return if packet.receive_copy(packet.ifindex()) {
            Fate::Held
        } else {
            Fate::Lost
        };
    }
    let overlaps = !datagram.received.add(work.units);
    if datagram.is_over(work.now, overlaps) {
        return Fate::Stray;
    }
    if overlaps {
        return Fate::Bad;
    }
    (work.key.sport, work.key.dport) = (datagram.sport, datagram.dport);
    work.key.proto = datagram.proto;
    // TCP: where it lies in the stream is not known.
    work.segment = Segment::default();
    let fate = if datagram.awaited == 0 {
        Fate::On
    } else {
        Fate::Awaited
    };
    if datagram.add(work.units, work.more_fragments, work.now) {
        forget::<F>(work);
    }
    fate
}

/// The first fragment.
#[inline(never)]
fn first<P: Packet, F: Family>(work: &mut Work<F::Addr>) -> Fate {
    if !identify::<P, F>(work) || !has_header::<P, _>(work) {
        return Fate::Bad;
    }
    if let Some(datagram) = find_known::<F>(work) {
        if !datagram.is_over(work.now, true) {
            return Fate::Bad;
        }
        forget::<F>(work);
    }
    let Some(record) = record(work, true) else {
        return Fate::On;
    };
    let key = &work.datagram;
    let awaited = F::fragments().insert(key, &*record, BPF_NOEXIST) == Err(EEXIST);
    if awaited {
        record.awaited = 1;
        let _ = F::fragments().insert(key, &*record, BPF_ANY);
    }
    if let Some(datagram) = find::<F>(work) {
        datagram.received.add(work.units);
        datagram.add(work.units, true, work.now);
    }
    if awaited { Fate::Awaited } else { Fate::On }
}

/// Under what the piece of the datagram that begins with a unit waits.
#[inline(always)]
fn held_key<P: Packet, A>(work: &Work<A>, first: u32) -> HeldKey {
    HeldKey {
        datagram: work.datagram_hash,
        first,
        network: P::NETWORK as u32,
    }
}

/// A copy of the frame at hand, if it is not too long for that.
#[inline(always)]
fn copy<P: Packet, A>(packet: &P, work: &Work<A>) -> Option<&'static Held> {
    let copy = NEW_HELD.get_ptr_mut(0)?;
    // SAFETY: a per-CPU slot; nobody else writes it while this program runs.
    let copy = unsafe { &mut *copy };
    let len = packet.len();
    (copy.since, copy.ifindex, copy.len) = (work.now, packet.ifindex(), len as u32);
    if len > copy.frame.len() {
        return None;
    }
    packet.copy(0, &mut copy.frame, len)?;
    Some(copy)
}

/// Keeps a copy of the fragment. False where there is no room, or one like it that waits already.
#[inline(never)]
fn hold<P: Packet, A>(packet: &P, work: &Work<A>) -> bool {
    let key = held_key::<P, _>(work, work.units.first);
    // SAFETY: an element of a map, which lives as long as the program; plain integers.
    if let Some(held) = unsafe { HELD.get(&key) }
        && !is_over(held.since, work.now, true)
    {
        return false;
    }
    copy(packet, work).is_some_and(|copy| HELD.insert(&key, copy, BPF_ANY).is_ok())
}

/// Has the piece behind this one received once more, if it waits. That goes by way of the packet at
/// hand: false where it could not be made again what it was.
#[inline(never)]
fn wake<P: Packet, A: Address>(packet: &mut P, work: &Work<A>) -> bool {
    let key = held_key::<P, _>(work, work.units.end);
    // SAFETY: an element of a map, which lives as long as the program; plain integers. Another piece
    // may be written there meanwhile: then this one is not there any more to be removed.
    let Some(held) = (unsafe { HELD.get(&key) }) else {
        return true;
    };
    // What waits longer is of another datagram, whose first one was lost.
    let (ifindex, held_len) = (held.ifindex, held.len);
    let expired = is_over(held.since, work.now, true);
    let Some(own) = copy(packet, work) else {
        return true;
    };
    let made = packet.replace(&held.frame, held.len as usize);
    // Whoever removes it has it.
    if HELD.remove(&key).is_ok() && (!made || expired || !packet.receive_copy(ifindex)) {
        event::dropped(Drop::LostFragment, ifindex, None);
        watch::lost::<P, _>(&work.key, ifindex, held_len);
    }
    packet.replace(&own.frame, own.len as usize)
}
