//! Making a flow: claiming the tuple that its answers will have, then opening it.

use netfw_common::{
    addr::{Address, Be16},
    drop::Drop,
    flow::flag,
    port,
    tuple::Tuple,
};

use super::{
    entry::{Entry, copy},
    find, remove,
};
use crate::{
    family::Family,
    maps::{BPF_NOEXIST, EEXIST, config},
    work::Work,
};

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
