//! What each may have: flows of the assured ones, and flows begun without an answer.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use netfw_common::{
    addr::Address,
    budget::Budget,
    drop::Drop,
    flow::{Flow, flag, holdings},
    tuple::proto,
};

use crate::{
    family::Family,
    maps::{BUDGETS, config},
};

/// Counts an entry that came to the assured ones, or went.
#[inline(never)]
pub(super) fn count<F: Family>(holder: u16, proto: u8, change: i64) {
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
pub(super) fn are_queries_full<F: Family>() -> bool {
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
pub(super) fn may_have_more<F: Family>(holder: u16) -> bool {
    let free = i64::from(config().max_flows) - held::<F>(holdings::ALL);
    // What is nobody's is not limited.
    holder == 0 || holdings::may_have_more(held::<F>(holder.into()), free)
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
pub(super) fn give_back<A: Address>(reply: &Flow<A>) {
    if reply.has(flag::TO_CONTAINER) {
        give_back_to(reply.ifindex);
    }
}
