//! Time, in ticks.

use core::cell::UnsafeCell;

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use netfw_common::flow::TICK_SHIFT;

use crate::{maps::CONFIG, work::Work};

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
