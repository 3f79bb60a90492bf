//! Flows as user space sees them: looked at, removed, swept.
//!
//! A flow is two entries, one for each direction, which are removed together (netfw-common's
//! `flow`); so is an endpoint-independent mapping. Where a walk removes all of a kind, and so both halves
//! of each flow, it takes each half when it meets it. The programs create and refresh them at any time,
//! so nothing here may rely on an entry that was read a moment ago: before a flow is swept, both
//! halves are read once more. What remains is the time between that look and the deletion, some
//! microseconds in which a packet would have to revive a flow that has been silent for minutes; the
//! peers then see one packet lost.
//!
//! A table may hold millions of entries. So a walk is made in steps of some thousand
//! ([`DataPlane::visit`], [`DataPlane::sweep`]), and the caller may let others have the data plane
//! between them.

use std::collections::{BTreeSet, HashMap};

use netfw_common::{
    addr::{Ip4, Ip6},
    flow::{Flow, TICK_SHIFT, Timeouts, flag, is_assured},
    record::{Mapping, MappingKey, Permit, side},
    tuple::Tuple,
};
use nix::time::{ClockId, clock_gettime};

use super::{
    BpfError, DataPlane,
    family::Family,
    holdings::{Holdings, Tally},
    table::{Table, Walk},
};

/// Entries that [`DataPlane::flow_usage`] counts before it extrapolates: some 0.4 % off then.
const SAMPLE: usize = 1 << 16;

/// A half whose other half is missing is an orphan after this many ticks; before, the programs may be
/// about to insert it, or to move the flow between the tables.
const GRACE: u32 = 2;

/// The flow tables of both families.
pub struct Flows {
    pub v4: FlowTables<Ip4>,
    pub v6: FlowTables<Ip6>,
    /// As the programs have them.
    pub timeouts: Timeouts,
}

/// Those of one family.
pub struct FlowTables<A: Family> {
    /// Assured: a plain hash, which never evicts.
    assured: Table<Tuple<A>, Flow<A>>,
    /// Embryonic: an LRU, which makes room by itself.
    embryos: Table<Tuple<A>, Flow<A>>,
    holdings: Holdings,
    mappings: Table<MappingKey<A>, Mapping<A>>,
    permits: Table<Tuple<A>, Permit>,
    sweep: Position<A>,
}

/// The data plane's present tick.
pub fn now() -> u32 {
    // CLOCK_MONOTONIC exists on every Linux; it cannot fail.
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
    });
    (time >> TICK_SHIFT) as u32
}

/// Looks at every entry of the flow tables, and says which shall go.
pub trait Visit {
    /// Is the flow of this half to be removed?
    fn flow<A: Family>(&mut self, key: &Tuple<A>, flow: &Flow<A>) -> bool;

    /// Is the answer the same for both halves of any flow? Then each is removed as the walk meets it,
    /// many at once, and none is asked for the other.
    fn judges_halves_alike(&self) -> bool {
        false
    }

    /// Is the mapping of this side to be removed?
    fn mapping<A: Family>(&mut self, _key: &MappingKey<A>, _mapping: &Mapping<A>) -> bool {
        false
    }

    /// Is somebody not to send to a mapping any more, who has been sent to by it?
    fn permit<A: Family>(&mut self, _key: &Tuple<A>) -> bool {
        false
    }
}

/// Where a walk through the tables of both families stands.
#[derive(Default)]
pub struct FlowWalk {
    pub v4: Position<Ip4>,
    pub v6: Position<Ip6>,
    stage: usize,
    /// Flows and mappings removed so far.
    pub removed: usize,
}

/// Where a walk through the tables of one family stands.
pub struct Position<A: Family> {
    flows: [Walk<Tuple<A>, Flow<A>>; 2],
    mappings: Walk<MappingKey<A>, Mapping<A>>,
    permits: Walk<Tuple<A>, Permit>,
}

impl<A: Family> Default for Position<A> {
    fn default() -> Self {
        Self {
            flows: Default::default(),
            mappings: Walk::default(),
            permits: Walk::default(),
        }
    }
}

/// A table of a family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    Assured,
    Embryos,
    Mappings,
    /// Who may send to mappings: an LRU, which makes room by itself.
    Permits,
}

/// The way of a walk through one family. A flow may move between the tables meanwhile, either way: on
/// this way it is met all the same, perhaps twice. Mappings first, since they make flows.
const WAY: [Part; 5] = [
    Part::Mappings,
    Part::Permits,
    Part::Embryos,
    Part::Assured,
    Part::Embryos,
];

impl Flows {
    pub fn take(ebpf: &mut aya::Ebpf) -> Result<Self, BpfError> {
        Ok(Self {
            v4: FlowTables::take(ebpf)?,
            v6: FlowTables::take(ebpf)?,
            timeouts: Timeouts::default(),
        })
    }

    /// Counts who has how many of the assured ones, where that is not known: an agent was killed while it removed
    /// some; or in any case, where an older layout's programs have been at work, which may not count.
    pub fn recount(&mut self, in_any_case: bool) -> Result<(), BpfError> {
        self.v4.recount(in_any_case)?;
        self.v6.recount(in_any_case)
    }

    /// A counter gets a new holder.
    pub fn clear_holdings(&mut self, counter: u32) -> Result<(), BpfError> {
        self.v4.holdings.clear(counter)?;
        self.v6.holdings.clear(counter)
    }
}

impl<A: Family> FlowTables<A> {
    fn take(ebpf: &mut aya::Ebpf) -> Result<Self, BpfError> {
        Ok(Self {
            assured: Table::take(ebpf, A::NAMES.flows)?,
            embryos: Table::take(ebpf, A::NAMES.embryos)?,
            holdings: Holdings::take(ebpf, A::NAMES.holdings)?,
            mappings: Table::take(ebpf, A::NAMES.mappings)?,
            permits: Table::take(ebpf, A::NAMES.permits)?,
            sweep: Position::default(),
        })
    }

    /// The half under `key`, and whether it is in the table of assured flows.
    fn get(&self, key: &Tuple<A>) -> Result<Option<(Flow<A>, bool)>, BpfError> {
        if let Some(flow) = self.assured.get(key)? {
            return Ok(Some((flow, true)));
        }
        Ok(self.embryos.get(key)?.map(|flow| (flow, false)))
    }

    /// The other half of a flow, unless its key is another flow's.
    fn other(&self, key: &Tuple<A>, half: &Flow<A>) -> Result<Option<(Flow<A>, bool)>, BpfError> {
        let found = self.get(&half.reverse_key(key.proto))?;
        Ok(found.filter(|(other, _)| half.is_half_of(key, other)))
    }

    fn delete(&mut self, key: &Tuple<A>, half: &Flow<A>, assured: bool) -> Result<bool, BpfError> {
        if !assured {
            return self.embryos.remove(key);
        }
        let there = self.assured.remove(key)?;
        if there {
            self.holdings.note(key.proto, half.counter);
        }
        Ok(there)
    }

    /// Counts who has how many of the assured, unless that is known. See [`Holdings`].
    fn recount(&mut self, in_any_case: bool) -> Result<(), BpfError> {
        if !in_any_case && self.holdings.are_exact()? {
            return Ok(());
        }
        let mut found = Tally::default();
        let mut walk = Walk::default();
        while !self
            .assured
            .step(&mut walk, |key, flow| found.note(key.proto, flow.counter))?
        {}
        self.holdings.set(&found)
    }

    /// Removes what `remove` does, and counts it.
    fn settled<T>(
        &mut self,
        remove: impl FnOnce(&mut Self) -> Result<T, BpfError>,
    ) -> Result<T, BpfError> {
        self.holdings.unsettle()?;
        let done = remove(self);
        let settled = self.holdings.settle();
        done.and_then(|done| settled.map(|()| done))
    }

    /// Deletes those that are there still, with the counter of each. Their other halves, until they go too,
    /// are without counterpart, and count as absent.
    fn delete_halves(
        &mut self,
        assured: bool,
        halves: &HashMap<Tuple<A>, u16>,
    ) -> Result<(), BpfError> {
        let keys: Vec<_> = halves.keys().copied().collect();
        if !assured {
            return self.embryos.remove_all(&keys);
        }
        let (assured, holdings) = (&mut self.assured, &mut self.holdings);
        assured.remove_each(&keys, |key| holdings.note(key.proto, halves[key]))
    }

    /// Removes the flow of the half under `key`, if there is one and `is_over` says so of its halves.
    fn remove_if(
        &mut self,
        key: &Tuple<A>,
        is_over: impl FnOnce(&Flow<A>, Option<&Flow<A>>) -> bool,
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
        if let Some((other, assured)) = other {
            self.delete(&half.reverse_key(key.proto), &other, assured)?;
        }
        self.delete(key, &half, assured)
    }

    /// Removes the mapping of the side under `key`, if there is one and `is_over` says so of its
    /// sides.
    fn unmap_if(
        &mut self,
        key: &MappingKey<A>,
        is_over: impl FnOnce(&Mapping<A>, Option<&Mapping<A>>) -> bool,
    ) -> Result<bool, BpfError> {
        let Some(mapping) = self.mappings.get(key)? else {
            return Ok(false);
        };
        let other_key = MappingKey {
            addr: mapping.addr,
            port: mapping.port,
            side: key.side ^ side::INTERNAL ^ side::EXTERNAL,
            ..*key
        };
        let other = self.mappings.get(&other_key)?;
        let other = other.filter(|other| other.addr == key.addr && other.port == key.port);
        if !is_over(&mapping, other.as_ref()) {
            return Ok(false);
        }
        // The external side holds the port, and goes last: nobody else gets it before.
        let (first, last) = if key.side == side::INTERNAL {
            (Some(key), other.is_some().then_some(&other_key))
        } else {
            (other.is_some().then_some(&other_key), Some(key))
        };
        for key in first.into_iter().chain(last) {
            self.mappings.remove(key)?;
        }
        Ok(true)
    }

    /// Writes back the entries that `change` has changed (it says so), where they still are. What a
    /// program writes to one in that moment may be lost: not for what programs depend on. Returns how
    /// many.
    fn change(&mut self, mut change: impl FnMut(&mut Flow<A>) -> bool) -> Result<usize, BpfError> {
        let mut count = 0;
        for part in WAY {
            let table = match part {
                Part::Assured => &mut self.assured,
                Part::Embryos => &mut self.embryos,
                Part::Mappings | Part::Permits => continue,
            };
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

    /// One step of a walk: the number of flows or mappings removed, and whether it was the last.
    fn step(
        &mut self,
        part: Part,
        position: &mut Position<A>,
        visit: &mut impl Visit,
    ) -> Result<(usize, bool), BpfError> {
        let mut removed = 0;
        let [first, second] = &mut position.flows;
        let (table, walk) = match part {
            Part::Assured => (&self.assured, first),
            Part::Embryos => (&self.embryos, second),
            Part::Mappings => {
                let mut selected = Vec::new();
                let end = self.mappings.step(&mut position.mappings, |key, mapping| {
                    if visit.mapping(key, mapping) {
                        selected.push(*key);
                    }
                })?;
                for key in &selected {
                    removed += usize::from(self.unmap_if(key, |_, _| true)?);
                }
                return Ok((removed, end));
            }
            Part::Permits => {
                let mut selected = Vec::new();
                let end = self.permits.step(&mut position.permits, |key, _| {
                    if visit.permit(key) {
                        selected.push(*key);
                    }
                })?;
                self.permits.remove_all(&selected)?;
                return Ok((0, end));
            }
        };
        // No copy of a table that may hold millions, for the few that are meant.
        let mut selected = HashMap::new();
        let mut originals = 0;
        let end = table.step(walk, |key, flow| {
            if visit.flow(key, flow) {
                selected.insert(*key, flow.counter);
                originals += usize::from(!flow.has(flag::REPLY));
            }
        })?;
        if selected.is_empty() {
            return Ok((0, end));
        }
        if visit.judges_halves_alike() {
            self.settled(|tables| tables.delete_halves(part == Part::Assured, &selected))?;
            return Ok((originals, end));
        }
        self.settled(|tables| {
            for key in selected.keys() {
                // Its other half may have been selected too, and gone.
                removed += usize::from(tables.remove_if(key, |_, _| true)?);
            }
            Ok((removed, end))
        })
    }

    /// One step of the sweep through a table.
    fn sweep(&mut self, part: Part, timeouts: &Timeouts) -> Result<(usize, bool), BpfError> {
        let now = now();
        let mut count = 0;
        let [first, second] = &mut self.sweep.flows;
        let (table, walk) = match part {
            Part::Assured => (&self.assured, first),
            Part::Embryos => (&self.embryos, second),
            Part::Mappings => {
                let mut expired = Vec::new();
                let walk = &mut self.sweep.mappings;
                let end = self.mappings.step(walk, |key, mapping| {
                    if mapping.is_expired(key.proto, now, timeouts) {
                        expired.push(*key);
                    }
                })?;
                for key in &expired {
                    let is_expired = |side: &Mapping<A>| side.is_expired(key.proto, now, timeouts);
                    // The external side tells for both.
                    let swept = self.unmap_if(key, |mapping, other| match key.side {
                        side::EXTERNAL => is_expired(mapping),
                        _ => other.is_none_or(is_expired),
                    })?;
                    count += usize::from(swept);
                }
                return Ok((count, end));
            }
            Part::Permits => return Ok((0, true)),
        };
        let mut expired = Vec::new();
        let end = table.step(walk, |key, flow| {
            if flow.is_expired(key.proto, now, timeouts) {
                expired.push(*key);
            }
        })?;
        if expired.is_empty() {
            return Ok((0, end));
        }
        self.settled(|tables| {
            for key in &expired {
                // Over: expired in both directions, or half missing for good.
                let is_expired = |half: &Flow<A>| half.is_expired(key.proto, now, timeouts);
                let swept = tables.remove_if(key, |half, other| {
                    is_expired(half)
                        && match other {
                            Some(other) => is_expired(other),
                            None => is_older(half.seen, now, GRACE - 1),
                        }
                })?;
                count += usize::from(swept);
            }
            Ok((count, end))
        })
    }

    /// Assured flows that have not expired, or mappings, and how many there is room for.
    fn usage(&self, timeouts: &Timeouts, part: Part) -> (usize, usize) {
        let now = now();
        match part {
            Part::Mappings => usage(&self.mappings, |_, _| true),
            Part::Permits => usage(&self.permits, |_, _| true),
            Part::Assured => usage(&self.assured, |key, flow| {
                !flow.is_expired(key.proto, now, timeouts)
            }),
            Part::Embryos => usage(&self.embryos, |key, flow| {
                !flow.is_expired(key.proto, now, timeouts)
            }),
        }
    }
}

/// Has it not been `seen` for more than `ticks`? Another CPU's clock may have run ahead.
fn is_older(seen: u32, now: u32, ticks: u32) -> bool {
    let age = now.wrapping_sub(seen);
    age.cast_signed() > 0 && age > ticks
}

/// Pairs of entries that count, and room for pairs. Exact up to some ten thousand; beyond, estimated
/// from a part of the table (entries are spread evenly by their hash), so that the answer never takes
/// long.
fn usage<K: aya::Pod + Eq + std::hash::Hash, V: aya::Pod>(
    table: &Table<K, V>,
    counts: impl Fn(&K, &V) -> bool,
) -> (usize, usize) {
    let (mut seen, mut used) = (0, 0);
    let mut walk = Walk::default();
    let mut share = 1.0;
    loop {
        let step = table.step(&mut walk, |key, value| {
            seen += 1;
            used += usize::from(counts(key, value));
        });
        match step {
            Ok(true) => break,
            Ok(false) if seen < SAMPLE => {}
            Ok(false) => {
                share = walk.progress(table.max);
                break;
            }
            Err(error) => {
                tracing::error!(%error, "counting the entries of a table");
                break;
            }
        }
    }
    let entries = (used as f64 / share).round() as usize;
    (entries.div_ceil(2), table.max as usize / 2)
}

impl DataPlane {
    /// One step of a walk through all flows and mappings of both families. True at the end.
    pub fn visit(&mut self, walk: &mut FlowWalk, visit: &mut impl Visit) -> Result<bool, BpfError> {
        match walk.stage {
            stage if stage < WAY.len() => self.visit_family::<Ip4>(WAY[stage], walk, visit),
            stage => match WAY.get(stage - WAY.len()) {
                Some(part) => self.visit_family::<Ip6>(*part, walk, visit),
                None => Ok(true),
            },
        }
    }

    fn visit_family<A: Family>(
        &mut self,
        part: Part,
        walk: &mut FlowWalk,
        visit: &mut impl Visit,
    ) -> Result<bool, BpfError> {
        let tables = A::flows_mut(&mut self.flows);
        let (removed, end) = tables.step(part, A::position(walk), visit)?;
        walk.removed += removed;
        walk.stage += usize::from(end);
        Ok(walk.stage == 2 * WAY.len())
    }

    /// The whole walk at once. Returns how many flows and mappings were removed.
    pub fn visit_all(&mut self, visit: &mut impl Visit) -> Result<usize, BpfError> {
        let mut walk = FlowWalk::default();
        while !self.visit(&mut walk, visit)? {}
        Ok(walk.removed)
    }

    /// Takes the flag from flows of a family into these interfaces. Returns how many halves had it.
    pub(super) fn clear_napi_in_flows<A: Family>(
        &mut self,
        ifindexes: &BTreeSet<u32>,
    ) -> Result<usize, BpfError> {
        A::flows_mut(&mut self.flows).change(|flow| {
            let has = flow.has(flag::TO_CONTAINER)
                && flow.has(flag::NAPI)
                && ifindexes.contains(&flow.ifindex);
            if has {
                flow.flags &= !flag::NAPI;
            }
            has
        })
    }

    /// Frees the memory of expired flows and mappings: one step through one table, from where the
    /// last one stopped. Returns how many were removed, and whether this was the table's end.
    pub fn sweep<A: Family>(&mut self, part: Part) -> Result<(usize, bool), BpfError> {
        let timeouts = self.flows.timeouts;
        A::flows_mut(&mut self.flows).sweep(part, &timeouts)
    }

    /// Assured flows (or mappings) of a family, and how many there is room for.
    pub fn flow_usage<A: Family>(&self, part: Part) -> (usize, usize) {
        A::flows(&self.flows).usage(&self.flows.timeouts, part)
    }

    /// Puts an entry where the programs would: for tests.
    #[doc(hidden)]
    pub fn insert_flow<A: Family>(
        &mut self,
        key: &Tuple<A>,
        flow: &Flow<A>,
    ) -> Result<(), BpfError> {
        let flows = A::flows_mut(&mut self.flows);
        if is_assured(flow.state) {
            flows.assured.insert(key, flow)
        } else {
            flows.embryos.insert(key, flow)
        }
    }

    /// Puts one side of a mapping where the programs would: for tests.
    #[doc(hidden)]
    pub fn insert_mapping<A: Family>(
        &mut self,
        key: &MappingKey<A>,
        mapping: &Mapping<A>,
    ) -> Result<(), BpfError> {
        A::flows_mut(&mut self.flows).mappings.insert(key, mapping)
    }

    /// Lets somebody send to a mapping as the programs would: for tests.
    #[doc(hidden)]
    pub fn insert_permit<A: Family>(
        &mut self,
        key: &Tuple<A>,
        permit: Permit,
    ) -> Result<(), BpfError> {
        A::flows_mut(&mut self.flows).permits.insert(key, &permit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_is_exact_and_survives_clock_skew() {
        assert!(!is_older(100, 110, 10));
        assert!(is_older(100, 111, 10));
        assert!(!is_older(100, 99, 10), "another CPU's clock ran ahead");
        assert!(is_older(u32::MAX - 5, 10, 10));
    }
}
