//! The ports that processes of the node may not bind, as bits ([`netfw_common::taken`]): of every publish
//! that is entered and reserved, and of no other.
//!
//! How many publishes a bit stands for is only known here, and counted from what is entered when the data
//! plane is loaded; so it does not matter how an agent before this one ended.

use std::{
    collections::{BTreeSet, HashSet},
    os::fd::AsFd as _,
};

use aya::{
    Ebpf,
    maps::{Array, IterableMap as _, MapData},
};
use netfw_common::{
    record::{Publish, PublishKey, publish_flag},
    taken,
};

use super::{BpfError, Family, sys, table::take};

pub struct Taken<A: Family> {
    name: &'static str,
    map: Array<MapData, u64>,
    /// Publishes of each bit, on so many addresses.
    counts: Vec<u32>,
    /// Those that count for no bit.
    unreserved: HashSet<PublishKey<A>>,
}

impl<A: Family> Taken<A> {
    /// With the bits of `entered`, whatever the map held before.
    pub fn take(
        ebpf: &mut Ebpf,
        entered: &[(PublishKey<A>, Publish<A>)],
    ) -> Result<Self, BpfError> {
        let mut taken = Self {
            name: A::NAMES.taken,
            map: take(ebpf, A::NAMES.taken)?,
            counts: vec![0; (taken::WORDS * u64::BITS) as usize],
            unreserved: HashSet::new(),
        };
        let reserved = taken.reserved(entered);
        taken.count(&reserved, |count| count + 1);
        taken.write(0..taken::WORDS)?;
        Ok(taken)
    }

    /// Those of publishes that were not there before.
    pub fn add(&mut self, new: &[(PublishKey<A>, Publish<A>)]) -> Result<(), BpfError> {
        let reserved = self.reserved(new);
        let words = self.count(&reserved, |count| count + 1);
        self.write(words)
    }

    /// Those of publishes that were there.
    pub fn remove(&mut self, keys: &[PublishKey<A>]) -> Result<(), BpfError> {
        let keys = keys.iter().filter(|key| !self.unreserved.remove(key));
        let reserved: Vec<_> = keys.copied().collect();
        let words = self.count(&reserved, |count| count.saturating_sub(1));
        self.write(words)
    }

    /// Those that are reserved; the others are noted.
    fn reserved(&mut self, entries: &[(PublishKey<A>, Publish<A>)]) -> Vec<PublishKey<A>> {
        let mut reserved = Vec::with_capacity(entries.len());
        for (key, publish) in entries {
            if publish.flags & publish_flag::UNRESERVED == 0 {
                reserved.push(*key);
            } else {
                self.unreserved.insert(*key);
            }
        }
        reserved
    }

    /// Changes the counts, and says of which words.
    fn count(&mut self, keys: &[PublishKey<A>], change: impl Fn(u32) -> u32) -> BTreeSet<u32> {
        let mut words = BTreeSet::new();
        for key in keys {
            let Some((word, bit)) = taken::bit(key.proto, key.port.get()) else {
                continue;
            };
            let index = word * u64::BITS + bit.trailing_zeros();
            if let Some(count) = self.counts.get_mut(index as usize) {
                *count = change(*count);
                words.insert(word);
            }
        }
        words
    }

    fn write(&mut self, words: impl IntoIterator<Item = u32>) -> Result<(), BpfError> {
        let indexes: Vec<u32> = words.into_iter().collect();
        let values: Vec<u64> = indexes.iter().map(|&word| self.word(word)).collect();
        match sys::update_batch(self.map.map().fd().as_fd(), &indexes, &values) {
            Ok(()) => Ok(()),
            Err((_, error)) if sys::lacks_batch(&error) => {
                let mut both = indexes.iter().zip(values);
                both.try_for_each(|(&word, value)| self.map.set(word, value, 0))
                    .map_err(BpfError::map(self.name, "write"))
            }
            Err((_, error)) => Err(BpfError::map(self.name, "write")(error.into())),
        }
    }

    fn word(&self, word: u32) -> u64 {
        let first = (word * u64::BITS) as usize;
        let counts = self.counts.iter().skip(first).take(u64::BITS as usize);
        counts
            .enumerate()
            .filter(|(_, count)| **count > 0)
            .fold(0, |bits, (bit, _)| bits | 1 << bit)
    }
}
