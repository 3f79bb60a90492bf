//! How much one asker may have in hand, so that none takes the agent from the others.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::round::PENDING;

/// What askers may have in hand at a time.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Queries that were forwarded and wait, in all and of one asker.
    pub queries: usize,
    pub queries_each: usize,
    /// Connections by TCP.
    pub connections: usize,
    pub connections_each: usize,
}

impl Limits {
    /// As many as the process may have files open for. A query that waits has a socket, and some more
    /// while a resolver is silent, [`PENDING`] at most, each at an ephemeral port of the node. There are
    /// 28,000 of those by default, and others want some. Two more for the connection that it may have
    /// come by, and all else that the agent has open.
    pub fn of_process() -> Self {
        const PER_QUERY: u64 = PENDING as u64 + 2;
        let queries = (open_files() / PER_QUERY).clamp(64, 2048) as usize;
        Self {
            queries,
            queries_each: queries / 8,
            connections: queries / 2,
            connections_each: queries / 32,
        }
    }
}

/// Raises the process's soft limit on open files as far as it may, within reason; what it is now.
fn open_files() -> u64 {
    const ENOUGH: u64 = 65536;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 1024;
    };
    let wanted = hard.min(ENOUGH);
    if soft < wanted && setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_ok() {
        wanted
    } else {
        soft
    }
}

/// Counts what is in hand, in all and by whom.
#[derive(Debug)]
pub struct Tally<K> {
    all: usize,
    each: usize,
    counts: Mutex<Counts<K>>,
}

#[derive(Debug)]
struct Counts<K> {
    all: usize,
    by: HashMap<K, usize>,
}

/// One thing in hand, for as long as it lives.
#[derive(Debug)]
pub struct Pass<K: Eq + Hash> {
    key: K,
    tally: Arc<Tally<K>>,
}

impl<K: Eq + Hash + Clone> Tally<K> {
    pub fn new(all: usize, each: usize) -> Arc<Self> {
        let counts = Mutex::new(Counts {
            all: 0,
            by: HashMap::new(),
        });
        Arc::new(Self { all, each, counts })
    }

    /// One more for `key`, unless that is too many.
    pub fn enter(self: &Arc<Self>, key: K) -> Option<Pass<K>> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let own = counts.by.get(&key).copied().unwrap_or(0);
        if counts.all >= self.all || own >= self.each {
            return None;
        }
        counts.all += 1;
        counts.by.insert(key.clone(), own + 1);
        drop(counts);
        Some(Pass {
            key,
            tally: self.clone(),
        })
    }
}

impl<K: Eq + Hash> Drop for Pass<K> {
    fn drop(&mut self) {
        let counts = self.tally.counts.lock();
        let mut counts = counts.unwrap_or_else(PoisonError::into_inner);
        counts.all -= 1;
        if let Some(own) = counts.by.get_mut(&self.key) {
            *own -= 1;
            if *own == 0 {
                counts.by.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_gets_more_than_their_part_nor_all_more_than_there_is() {
        let tally = Tally::new(3, 2);
        let first = tally.enter("a").unwrap();
        let second = tally.enter("a").unwrap();
        assert!(tally.enter("a").is_none(), "its part");
        let third = tally.enter("b").unwrap();
        assert!(tally.enter("c").is_none(), "all there is");
        drop(first);
        let fourth = tally.enter("c").unwrap();
        drop((second, third, fourth));
        let counts = tally.counts.lock().unwrap();
        assert_eq!(counts.all, 0);
        assert!(counts.by.is_empty());
    }

    #[test]
    fn limits_are_within_reason() {
        let limits = Limits::of_process();
        assert!(limits.queries >= 64 && limits.queries_each >= 8 && limits.connections_each >= 1);
    }
}
