//! What the programs count.

use netfw_common::{drop::Drop, record::Counter};

use crate::maps::{COUNTERS, DROPS};

/// One more packet dropped for `reason`.
#[inline(always)]
pub fn dropped(reason: Drop) {
    if let Some(slot) = DROPS.get_ptr_mut(reason as u32) {
        // SAFETY: a per-CPU slot; nobody else writes it while this program runs.
        unsafe { *slot += 1 };
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
