//! Who has how much of the flow table: the agent's side of the count, which the programs go by.

use std::{collections::HashMap, os::fd::AsFd as _};

use aya::{
    Ebpf,
    maps::{Array, IterableMap as _, MapData},
};
use netfw_common::{flow::holdings, tuple::proto};

use super::{BpfError, sys, table::take};

/// See [`holdings`].
pub struct Holdings {
    name: &'static str,
    map: Array<MapData, u64>,
    /// What was removed, and is to be counted by [`Self::settle`].
    removed: Tally,
}

/// Entries by holder.
#[derive(Default)]
pub struct Tally(HashMap<u32, u64>);

impl Tally {
    /// Notes an entry of this protocol and counter.
    pub fn note(&mut self, proto: u8, counter: u16) {
        let query = (!proto::has_connections(proto)).then_some(holdings::QUERIES);
        let holder = (counter != 0).then_some(counter.into());
        for holder in [Some(holdings::ALL), holder, query].into_iter().flatten() {
            *self.0.entry(holder).or_default() += 1;
        }
    }
}

impl Holdings {
    pub fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Self, BpfError> {
        Ok(Self {
            name,
            map: take(ebpf, name)?,
            removed: Tally::default(),
        })
    }

    /// Before entries are removed: an agent that is killed before they are counted leaves it to the next one to
    /// count all.
    pub fn unsettle(&mut self) -> Result<(), BpfError> {
        self.write(holdings::EXACT, 0)
    }

    /// Notes an entry that was removed, between [`Self::unsettle`] and [`Self::settle`].
    pub fn note(&mut self, proto: u8, counter: u16) {
        self.removed.note(proto, counter);
    }

    /// Counts what was noted.
    pub fn settle(&mut self) -> Result<(), BpfError> {
        for (holder, more) in std::mem::take(&mut self.removed).0 {
            let element = holdings::removed(holder);
            self.write(element, self.read(element)?.wrapping_add(more))?;
        }
        self.write(holdings::EXACT, 1)
    }

    /// Are the counts those of the table? Not where an agent has removed entries and not counted them, nor where
    /// they are newer than the table.
    pub fn are_exact(&self) -> Result<bool, BpfError> {
        Ok(self.read(holdings::EXACT)? == 1)
    }

    /// Makes the counts what was found in the table. What programs inserted and removed while it was walked (a
    /// second, where there are a million) may be counted or not.
    pub fn set(&mut self, found: &Tally) -> Result<(), BpfError> {
        let all = self.read_all()?;
        for holder in 0..=holdings::QUERIES {
            let [made, removed] = [holdings::made(holder), holdings::removed(holder)];
            let held = found.0.get(&holder).copied().unwrap_or(0);
            let want = all[made as usize].wrapping_sub(held);
            if all[removed as usize] != want {
                self.write(removed, want)?;
            }
        }
        self.write(holdings::EXACT, 1)
    }

    /// A new holder begins with nothing.
    pub fn clear(&mut self, holder: u32) -> Result<(), BpfError> {
        let made = self.read(holdings::made(holder))?;
        self.write(holdings::removed(holder), made)
    }

    fn read_all(&self) -> Result<Vec<u64>, BpfError> {
        let map = self.map.map().fd().as_fd();
        let mut keys = vec![0u32; holdings::ELEMENTS as usize];
        let mut values = vec![0u64; keys.len()];
        match sys::lookup_batch(map, None, &mut keys, &mut values) {
            Ok(_) => Ok(values),
            // One by one.
            Err(error) if sys::lacks_batch(&error) => {
                (0..holdings::ELEMENTS).map(|n| self.read(n)).collect()
            }
            Err(error) => Err(BpfError::map(self.name, "read")(error.into())),
        }
    }

    fn read(&self, element: u32) -> Result<u64, BpfError> {
        let read = self.map.get(&element, 0);
        read.map_err(BpfError::map(self.name, "read"))
    }

    fn write(&mut self, element: u32, count: u64) -> Result<(), BpfError> {
        let written = self.map.set(element, count, 0);
        written.map_err(BpfError::map(self.name, "write"))
    }
}
