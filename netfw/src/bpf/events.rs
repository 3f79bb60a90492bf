//! Events of single packets: who wants which, and the ring buffer that they come by.
//!
//! Filters lie in an array, which the programs go through for each event as long as `LISTENERS` says that
//! somebody listens. There is one reader, the agent, which knows by [`Event::filters`] for whom an event is.

use std::{
    os::fd::{AsRawFd, RawFd},
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{Array, MapData, PerCpuArray, RingBuf},
};
use netfw_common::event::{self, Event, FILTERS, Filter};
use nix::time::{ClockId, clock_gettime};

use super::{BpfError, table::take};

const EVENTS: &str = "EVENTS";
const FILTER_MAP: &str = "FILTERS";
const LISTENERS: &str = "LISTENERS";
const SUPPRESSED: &str = "SUPPRESSED";

/// The filters.
pub struct Filters {
    filters: Array<MapData, Filter>,
    listeners: Array<MapData, u32>,
    suppressed: PerCpuArray<MapData, u64>,
    used: u32,
}

impl Filters {
    /// Nobody's: whoever listened to an agent of before is gone.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, BpfError> {
        let mut filters = Self {
            filters: take(ebpf, FILTER_MAP)?,
            listeners: take(ebpf, LISTENERS)?,
            suppressed: take(ebpf, SUPPRESSED)?,
            used: 0,
        };
        filters.count()?;
        for number in 0..FILTERS {
            filters.write(number, &Filter::default())?;
        }
        Ok(filters)
    }

    /// The number under which events that suit the filter will come; None: there is no room for another.
    pub fn add(&mut self, filter: &Filter) -> Result<Option<u32>, BpfError> {
        let free = (0..FILTERS).find(|number| self.used >> number & 1 == 0);
        if let Some(number) = free {
            self.write(number, filter)?;
            self.used |= 1 << number;
            self.count()?;
        }
        Ok(free)
    }

    pub fn remove(&mut self, number: u32) -> Result<(), BpfError> {
        self.used &= !(1 << number);
        self.count()?;
        self.write(number, &Filter::default())
    }

    /// How many events were too many for a filter, and how many found no room in the ring, whoever wanted
    /// them; since the maps were made.
    pub fn suppressed(&self, number: u32) -> Result<(u64, u64), BpfError> {
        let sum = |number| {
            let values = self.suppressed.get(&number, 0);
            values
                .map(|values| values.iter().sum())
                .map_err(BpfError::map(SUPPRESSED, "read"))
        };
        Ok((sum(number)?, sum(FILTERS)?))
    }

    fn write(&mut self, number: u32, filter: &Filter) -> Result<(), BpfError> {
        self.filters
            .set(number, filter, 0)
            .map_err(BpfError::map(FILTER_MAP, "write"))
    }

    fn count(&mut self) -> Result<(), BpfError> {
        self.listeners
            .set(0, self.used.count_ones(), 0)
            .map_err(BpfError::map(LISTENERS, "write"))
    }
}

/// The events, as they come. Readable, as a file descriptor, where there are some.
pub struct PacketEvents(RingBuf<MapData>);

impl PacketEvents {
    /// Without what the last reader left.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, BpfError> {
        let mut events = Self(take(ebpf, EVENTS)?);
        // As many as there is room for: who fills it is not waited for.
        let room = event::RING as usize / size_of::<Event>();
        events.by_ref().take(room).for_each(drop);
        Ok(events)
    }
}

/// Those that are there.
impl Iterator for PacketEvents {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        let item = self.0.next()?;
        // Another version's, in programs that have not been swapped yet, might be shorter.
        if item.len() < size_of::<Event>() {
            return Some(Event::default());
        }
        // SAFETY: as many bytes as an event has, which is integers without padding; unaligned.
        Some(unsafe { item.as_ptr().cast::<Event>().read_unaligned() })
    }
}

impl AsRawFd for PacketEvents {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Since when `CLOCK_MONOTONIC`, by which events tell their time, counts: since 1970, in UTC.
pub fn epoch_of_events() -> Duration {
    let read = |clock| clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
    read(ClockId::CLOCK_REALTIME).saturating_sub(read(ClockId::CLOCK_MONOTONIC))
}
