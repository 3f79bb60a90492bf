//! Which index into `COUNTERS` an endpoint or a publish gets.
//!
//! Index 0 is nobody's. The search goes round, so that an index rests before it is used again: a
//! packet that is under way while its flow is removed may still count on it.

use std::collections::HashSet;

pub use netfw_common::record::COUNTERS as ENTRIES;

#[derive(Clone, Debug)]
pub struct Indexes {
    used: HashSet<u32>,
    last: u32,
    entries: u32,
}

impl Indexes {
    pub fn new(used: impl IntoIterator<Item = u32>, entries: u32) -> Self {
        let used: HashSet<u32> = used.into_iter().collect();
        let last = used.iter().copied().max().unwrap_or(0);
        Self {
            used,
            last,
            entries,
        }
    }

    /// None when all are taken.
    pub fn take(&mut self) -> Option<u32> {
        if self.used.len() as u32 + 1 >= self.entries {
            return None;
        }
        loop {
            self.last = if self.last + 1 >= self.entries {
                1
            } else {
                self.last + 1
            };
            if self.used.insert(self.last) {
                return Some(self.last);
            }
        }
    }

    pub fn give_back(&mut self, index: u32) {
        self.used.remove(&index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_but_zero_are_given_once() {
        let mut indexes = Indexes::new([2, 5], 8);
        let mut got: Vec<_> = std::iter::from_fn(|| indexes.take()).collect();
        assert_eq!(got, [6, 7, 1, 3, 4]);
        indexes.give_back(7);
        got = std::iter::from_fn(|| indexes.take()).collect();
        assert_eq!(got, [7]);
    }
}
