//! What the programs count, what they log, and what they tell whoever listens ([`watch`]).
//!
//! Logs are aya-log's: with the level at 0, as the agent loads the programs unless asked, the
//! verifier removes the calls as dead code.

pub mod watch;

use aya_log_ebpf::debug;
use netfw_common::{
    addr::{Ip4, Ip6},
    drop::Drop,
    record::{Counter, DropKey, Endpoint},
};

use crate::{
    maps::{COUNTERS, DROPS, DROPS_OF},
    work::Work,
};

/// Logs the flow that was made for the packet in `work`.
#[inline(never)]
pub fn opened4(work: &Work<Ip4>) {
    let (key, flow) = (&work.key, &work.flow);
    debug!(
        (),
        "new flow: protocol {} {:i}:{} -> {:i}:{} becomes {:i}:{} -> {:i}:{}",
        key.proto,
        key.src.octets(),
        key.sport.get(),
        key.dst.octets(),
        key.dport.get(),
        flow.src.octets(),
        flow.sport.get(),
        flow.dst.octets(),
        flow.dport.get()
    );
}

/// The same for IPv6.
#[inline(never)]
pub fn opened6(work: &Work<Ip6>) {
    let (key, flow) = (&work.key, &work.flow);
    debug!(
        (),
        "new flow: protocol {} [{:i}]:{} -> [{:i}]:{} becomes [{:i}]:{} -> [{:i}]:{}",
        key.proto,
        key.src.octets(),
        key.sport.get(),
        key.dst.octets(),
        key.dport.get(),
        flow.src.octets(),
        flow.sport.get(),
        flow.dst.octets(),
        flow.dport.get()
    );
}

/// One more packet dropped for `reason`, of the endpoint that sent it, if one did.
#[inline(always)]
pub fn dropped(reason: Drop, ifindex: u32, sender: Option<&Endpoint>) {
    debug!((), "drop on interface {}: {}", ifindex, reason.name());
    if let Some(sender) = sender {
        count_of(reason, sender);
    }
    if let Some(slot) = DROPS.get_ptr_mut(reason as u32) {
        // SAFETY: a per-CPU slot; nobody else writes it while this program runs.
        unsafe { *slot += 1 };
    }
}

/// Where the map is full, or memory is short, it is not counted for the endpoint.
#[inline(never)]
fn count_of(reason: Drop, sender: &Endpoint) {
    let key = DropKey {
        endpoint: sender.counter,
        reason: reason as u32,
    };
    match DROPS_OF.get_ptr_mut(key) {
        // SAFETY: a per-CPU slot; nobody else writes it while this program runs.
        Some(slot) => unsafe { *slot += 1 },
        None => {
            let _ = DROPS_OF.insert(key, 1, 0);
        }
    }
}

/// Which way a packet counts, seen from the container.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Rx,
    Tx,
}

/// One more packet of `bytes` for the publish or endpoint with this index.
#[inline(always)]
pub fn count(index: u32, direction: Direction, bytes: u64) {
    let Some(slot) = COUNTERS.get_ptr_mut(index) else {
        return;
    };
    let slot: *mut Counter = slot;
    // SAFETY: a per-CPU slot; nobody else writes it while this program runs.
    unsafe {
        match direction {
            Direction::Rx => {
                (*slot).rx_packets += 1;
                (*slot).rx_bytes += bytes;
            }
            Direction::Tx => {
                (*slot).tx_packets += 1;
                (*slot).tx_bytes += bytes;
            }
        }
    }
}
