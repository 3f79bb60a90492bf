//! Flows as user space sees them: listed, removed, swept.
//!
//! A flow is two entries, one for each direction, which are removed together (netfw-common's
//! `flow`). The programs create and refresh them at any time, so nothing here may rely on an entry
//! that was read a moment ago: before a flow is swept, both halves are read once more. What remains
//! is the time between that look and the deletion, some microseconds in which a packet would have to
//! revive a flow that has been silent for minutes; the peers then see one packet lost.
//!
//! A table may hold millions of entries. Reading goes in batches of thousands, and [`DataPlane::sweep`]
//! walks on by one portion at each call.

use netfw_common::{
    addr::Ip4,
    flow::{Flow4, TICK_SHIFT, Timeouts, is_assured},
    tuple::Tuple4,
};
use nix::time::{ClockId, clock_gettime};

use super::{
    BpfError, DataPlane,
    maps::{Table, Walk},
};

/// Entries that one call of `sweep` looks at, in each table.
const PORTION: usize = 1 << 15;

/// Entries that `flow_usage` counts before it extrapolates: some 0.3 % off then.
const SAMPLE: usize = 1 << 17;

/// A half whose other half is missing is an orphan after this many ticks; before, the programs may be
/// about to insert it, or to move the flow between the tables.
const GRACE: u32 = 2;

type Entries = Table<Tuple4, Flow4>;

/// The flow tables.
pub struct Flows {
    /// Assured: a plain hash, which never evicts.
    assured: Entries,
    /// Embryonic: an LRU, which makes room by itself.
    embryos: Entries,
    sweeps: [Walk<Tuple4, Flow4>; 2],
    /// As the programs have them.
    pub timeouts: Timeouts,
}

/// The data plane's present tick.
pub fn now() -> u32 {
    // CLOCK_MONOTONIC exists on every Linux; it cannot fail.
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
    });
    (time >> TICK_SHIFT) as u32
}

impl Flows {
    pub fn take(ebpf: &mut aya::Ebpf) -> Result<Self, BpfError> {
        Ok(Self {
            assured: Table::take(ebpf, "FLOWS4")?,
            embryos: Table::take(ebpf, "EMBRYOS4")?,
            sweeps: Default::default(),
            timeouts: Timeouts::default(),
        })
    }

    /// The half under `key`, and whether it is in the table of assured flows.
    fn get(&self, key: &Tuple4) -> Result<Option<(Flow4, bool)>, BpfError> {
        if let Some(flow) = self.assured.get(key)? {
            return Ok(Some((flow, true)));
        }
        Ok(self.embryos.get(key)?.map(|flow| (flow, false)))
    }

    /// The other half of a flow, unless its key is another flow's.
    fn other(&self, key: &Tuple4, half: &Flow4) -> Result<Option<(Flow4, bool)>, BpfError> {
        let found = self.get(&half.reverse_key(key.proto))?;
        Ok(found.filter(|(other, _)| half.is_half_of(key, other)))
    }

    fn delete(&mut self, key: &Tuple4, assured: bool) -> Result<bool, BpfError> {
        if assured {
            self.assured.remove(key)
        } else {
            self.embryos.remove(key)
        }
    }

    /// Removes the flow of the half under `key`, if there is one and `is_over` says so of its halves.
    fn remove_if(
        &mut self,
        key: &Tuple4,
        is_over: impl FnOnce(&Flow4, Option<&Flow4>) -> bool,
    ) -> Result<bool, BpfError> {
        let Some((half, assured)) = self.get(key)? else {
            return Ok(false);
        };
        let other = self.other(key, &half)?;
        if !is_over(&half, other.as_ref().map(|(other, _)| other)) {
            return Ok(false);
        }
        // The other half goes first: a packet of the flow then finds this one without its
        // counterpart, which counts as absent.
        if let Some((_, assured)) = other {
            self.delete(&half.reverse_key(key.proto), assured)?;
        }
        self.delete(key, assured)
    }
}

impl DataPlane {
    /// Both directions of all flows that have not expired, assured ones first.
    pub fn flows(&self) -> Result<Vec<(Tuple4, Flow4)>, BpfError> {
        let (now, timeouts) = (now(), &self.flows.timeouts);
        let mut found = self.flows.assured.entries()?;
        found.extend(self.flows.embryos.entries()?);
        found.retain(|(key, flow)| !flow.is_expired(key.proto, now, timeouts));
        Ok(found)
    }

    /// Removes the flows of which `select` takes either half. Returns how many flows.
    pub fn remove_flows(
        &mut self,
        mut select: impl FnMut(&Tuple4, &Flow4) -> bool,
    ) -> Result<usize, BpfError> {
        let mut selected = Vec::new();
        for table in [&self.flows.assured, &self.flows.embryos] {
            let mut walk = Walk::default();
            // No copy of a table that may hold millions, for the few that are meant.
            while !table.step(&mut walk, |key, flow| {
                if select(key, flow) {
                    selected.push(*key);
                }
            })? {}
        }
        let mut count = 0;
        for key in &selected {
            // Its other half may have been selected too, and gone.
            count += usize::from(self.flows.remove_if(key, |_, _| true)?);
        }
        Ok(count)
    }

    /// Writes back the entries that `change` has changed (it says so), where they still are. What a
    /// program writes to one in that moment may be lost: not for what programs depend on. Returns how
    /// many.
    pub fn change_flows(
        &mut self,
        mut change: impl FnMut(&mut Flow4) -> bool,
    ) -> Result<usize, BpfError> {
        let mut count = 0;
        for table in [&mut self.flows.assured, &mut self.flows.embryos] {
            let mut keys = Vec::new();
            let mut walk = Walk::default();
            while !table.step(&mut walk, |key, flow| {
                if change(&mut { *flow }) {
                    keys.push(*key);
                }
            })? {}
            for key in keys {
                // As it is now: the walk may have been long.
                if let Some(mut flow) = table.get(&key)?
                    && change(&mut flow)
                    && table.replace(&key, &flow)?
                {
                    count += 1;
                }
            }
        }
        Ok(count)
    }

    /// Frees the memory of expired flows. One call looks at a portion of the tables and goes on where
    /// the last one stopped, so it should be made every second or so: a million flows are then
    /// walked in a minute. Returns how many flows were removed.
    pub fn sweep(&mut self) -> Result<usize, BpfError> {
        let (now, timeouts) = (now(), self.flows.timeouts);
        let mut expired = Vec::new();
        let [first, second] = &mut self.flows.sweeps;
        for (table, walk) in [(&self.flows.assured, first), (&self.flows.embryos, second)] {
            let mut seen = 0;
            while seen < PORTION {
                let end = table.step(walk, |key, flow| {
                    seen += 1;
                    if flow.is_expired(key.proto, now, &timeouts) {
                        expired.push(*key);
                    }
                })?;
                if end {
                    break;
                }
            }
        }
        let mut count = 0;
        for key in expired {
            // Over: expired in both directions, or half missing for good.
            let is_expired = |half: &Flow4| half.is_expired(key.proto, now, &timeouts);
            let swept = self.flows.remove_if(&key, |half, other| {
                is_expired(half)
                    && match other {
                        Some(other) => is_expired(other),
                        None => now.wrapping_sub(half.seen) >= GRACE,
                    }
            })?;
            count += usize::from(swept);
        }
        Ok(count)
    }

    /// Assured flows that have not expired, and how many there is room for. Exact up to some ten
    /// thousand flows; beyond, estimated from a part of the table (entries are spread evenly by
    /// their hash), so that the answer never takes long.
    pub fn flow_usage(&self) -> (usize, usize) {
        let (now, timeouts) = (now(), &self.flows.timeouts);
        let table = &self.flows.assured;
        let (mut seen, mut used) = (0, 0);
        let mut walk = Walk::default();
        let mut share = 1.0;
        loop {
            let step = table.step(&mut walk, |key, flow| {
                seen += 1;
                used += usize::from(!flow.is_expired(key.proto, now, timeouts));
            });
            match step {
                Ok(true) => break,
                Ok(false) if seen < SAMPLE => {}
                Ok(false) => {
                    share = walk.progress(table.max);
                    break;
                }
                Err(error) => {
                    tracing::error!(%error, "counting the flows");
                    break;
                }
            }
        }
        let entries = (used as f64 / share).round() as usize;
        (entries.div_ceil(2), table.max as usize / 2)
    }

    /// Puts an entry where the programs would: for tests.
    #[doc(hidden)]
    pub fn insert_flow(&mut self, key: &Tuple4, flow: &Flow4) -> Result<(), BpfError> {
        if is_assured(flow.state) {
            self.flows.assured.insert(key, flow)
        } else {
            self.flows.embryos.insert(key, flow)
        }
    }

    /// Removes the flows from or to an address, whichever its place in them.
    pub fn remove_flows_of(&mut self, addr: Ip4) -> Result<usize, BpfError> {
        self.remove_flows(|key, flow| [key.src, key.dst, flow.src, flow.dst].contains(&addr))
    }
}
