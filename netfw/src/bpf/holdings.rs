//! Who has how much of the flow table: the agent's side of the count, which the programs go by.

use std::collections::HashMap;

use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use netfw_common::{flow::holdings, tuple::proto};

use super::{BpfError, table::take};

/// See [`holdings`].
pub struct Holdings {
    name: &'static str,
    map: Array<MapData, u64>,
}

/// Entries that were removed, by holder.
#[derive(Default)]
pub struct Removed(HashMap<u32, u64>);

impl Removed {
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
        })
    }

    pub fn count(&mut self, removed: Removed) -> Result<(), BpfError> {
        for (holder, more) in removed.0 {
            let element = holdings::removed(holder);
            let before = self.map.get(&element, 0);
            let count = before
                .map_err(BpfError::map(self.name, "read"))?
                .wrapping_add(more);
            let written = self.map.set(element, count, 0);
            written.map_err(BpfError::map(self.name, "write"))?;
        }
        Ok(())
    }
}
