//! A hash map of the data plane, read and written in batches.

use std::{
    hash::Hash,
    os::fd::{AsFd, BorrowedFd},
};

use aya::{
    Ebpf, Pod,
    maps::{self, IterableMap, Map, MapData, MapError},
};
use nix::libc;

use super::{BpfError, error::root_errno, sys};

/// A hash map of the data plane.
pub struct Table<K: Pod, V: Pod> {
    pub name: &'static str,
    pub max: u32,
    map: maps::HashMap<MapData, K, V>,
}

/// Entries read with one system call at first; one bucket must fit.
const READ: usize = 4096;

impl<K: Pod + Eq + Hash, V: Pod> Table<K, V> {
    pub fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Self, BpfError> {
        let map: maps::HashMap<MapData, K, V> = take(ebpf, name)?;
        let info = map.map().info().map_err(BpfError::map(name, "look at"))?;
        Ok(Self {
            name,
            max: info.max_entries(),
            map,
        })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.map.map().fd().as_fd()
    }

    pub fn get(&self, key: &K) -> Result<Option<V>, BpfError> {
        match self.map.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(BpfError::map(self.name, "read")(error)),
        }
    }

    pub fn insert(&mut self, key: &K, value: &V) -> Result<(), BpfError> {
        self.map
            .insert(key, value, 0)
            .map_err(|error| match root_errno(&error) {
                Some(libc::E2BIG) => self.full(1),
                _ => BpfError::map(self.name, "write")(error),
            })
    }

    /// Overwrites what is there; false where nothing is (any more).
    pub fn replace(&mut self, key: &K, value: &V) -> Result<bool, BpfError> {
        const BPF_EXIST: u64 = 2;
        match self.map.insert(key, value, BPF_EXIST) {
            Ok(()) => Ok(true),
            Err(error) if root_errno(&error) == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(BpfError::map(self.name, "write")(error)),
        }
    }

    /// Was it there?
    pub fn remove(&mut self, key: &K) -> Result<bool, BpfError> {
        match self.map.remove(key) {
            Ok(()) => Ok(true),
            Err(error) if root_errno(&error) == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(BpfError::map(self.name, "delete from")(error)),
        }
    }

    /// Inserts or overwrites all; where one fails, none of them. Returns the keys that were not there.
    pub fn insert_all(&mut self, entries: &[(K, V)]) -> Result<Vec<K>, BpfError> {
        // The kernel's batch tells only how far it came, so what to put back is read beforehand.
        let before: Vec<Option<V>> = entries
            .iter()
            .map(|(key, _)| self.get(key))
            .collect::<Result<_, _>>()?;
        let (keys, values): (Vec<K>, Vec<V>) = entries.iter().copied().unzip();
        let mut failure = None;
        match sys::update_batch(self.fd(), &keys, &values) {
            Ok(()) => {}
            Err((0, error)) if sys::lacks_batch(&error) => {
                failure = entries
                    .iter()
                    .find_map(|(key, value)| self.insert(key, value).err());
            }
            Err((_, error)) => {
                failure = Some(match error.raw_os_error() {
                    Some(libc::E2BIG) => self.full(entries.len()),
                    _ => BpfError::map(self.name, "write")(error.into()),
                });
            }
        }
        let Some(failure) = failure else {
            let added = keys
                .iter()
                .zip(before)
                .filter(|(_, before)| before.is_none());
            return Ok(added.map(|(key, _)| *key).collect());
        };
        for ((key, _), before) in entries.iter().zip(before) {
            let undone = match before {
                Some(value) => self.insert(key, &value),
                None => self.remove(key).map(drop),
            };
            if let Err(error) = undone {
                tracing::error!(%error, "undoing a failed write");
            }
        }
        Err(failure)
    }

    /// Has the kernel batch operations for it? It does without, one by one.
    pub fn has_batches(&self) -> bool {
        let mut walk = Walk::<K, V>::default();
        walk.room(READ);
        let read = sys::lookup_batch(self.fd(), None, &mut walk.keys, &mut walk.values);
        !read.is_err_and(|error: std::io::Error| sys::lacks_batch(&error))
    }

    fn full(&self, asked: usize) -> BpfError {
        BpfError::Full {
            map: self.name,
            asked,
            max: self.max,
        }
    }

    /// Removes all of them that are there. Goes on past errors and returns the first.
    pub fn remove_all(&mut self, keys: &[K]) -> Result<(), BpfError> {
        self.remove_each(keys, |_| {})
    }

    /// The same, and says which were there.
    pub fn remove_each(&mut self, keys: &[K], mut removed: impl FnMut(&K)) -> Result<(), BpfError> {
        let mut first = None;
        let mut rest = keys;
        while !rest.is_empty() {
            let (done, error) = match sys::delete_batch(self.fd(), rest) {
                Ok(()) => (rest.len(), None),
                Err((done, error)) => (done, Some(error)),
            };
            let (gone, more) = rest.split_at(done);
            gone.iter().for_each(&mut removed);
            rest = match error {
                None => more,
                // One that is not there ends a batch.
                Some(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                    more.get(1..).unwrap_or_default()
                }
                Some(_) => {
                    for key in more {
                        match self.remove(key) {
                            Ok(true) => removed(key),
                            Ok(false) => {}
                            Err(error) => {
                                first.get_or_insert(error);
                            }
                        }
                    }
                    break;
                }
            };
        }
        first.map_or(Ok(()), Err)
    }

    /// All entries. What is inserted or removed meanwhile may or may not be among them.
    pub fn entries(&self) -> Result<Vec<(K, V)>, BpfError> {
        let mut found = Vec::new();
        let mut walk = Walk::default();
        while !self.step(&mut walk, |key, value| found.push((*key, *value)))? {}
        Ok(found)
    }

    /// All entries that can be read: reading a map that is open fails only for want of memory, and
    /// what was read until then serves better than nothing.
    pub fn readable(&self) -> Vec<(K, V)> {
        let mut found = Vec::new();
        let mut walk = Walk::default();
        loop {
            match self.step(&mut walk, |key, value| found.push((*key, *value))) {
                Ok(false) => {}
                Ok(true) => return found,
                Err(error) => {
                    tracing::error!(%error, "reading a map");
                    return found;
                }
            }
        }
    }

    /// Reads on where `walk` stands, some thousand entries. True at the end; the walk then begins
    /// anew.
    pub fn step(
        &self,
        walk: &mut Walk<K, V>,
        mut visit: impl FnMut(&K, &V),
    ) -> Result<bool, BpfError> {
        loop {
            walk.room(READ);
            match sys::lookup_batch(self.fd(), walk.cursor, &mut walk.keys, &mut walk.values) {
                Ok((count, cursor)) => {
                    for (key, value) in walk.keys.iter().zip(&walk.values).take(count) {
                        visit(key, value);
                    }
                    walk.cursor = cursor;
                    return Ok(cursor.is_none());
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    walk.room(walk.keys.len() * 2);
                }
                Err(error) if sys::lacks_batch(&error) => {
                    // One by one, and the whole map: the agent has no business on kernels this old.
                    for entry in self.map.iter() {
                        let (key, value) = entry.map_err(BpfError::map(self.name, "read"))?;
                        visit(&key, &value);
                    }
                    walk.cursor = None;
                    return Ok(true);
                }
                Err(error) => return Err(BpfError::map(self.name, "read")(error.into())),
            }
        }
    }
}

/// Where a walk through a [`Table`] stands, and its buffers.
pub struct Walk<K, V> {
    cursor: sys::Cursor,
    keys: Vec<K>,
    values: Vec<V>,
}

impl<K, V> Default for Walk<K, V> {
    fn default() -> Self {
        Self {
            cursor: None,
            keys: Vec::new(),
            values: Vec::new(),
        }
    }
}

impl<K: Pod, V: Pod> Walk<K, V> {
    /// The part of the map that has been walked, in (0, 1]. A hash map has as many buckets as
    /// entries, rounded up to a power of two (htab_map_alloc).
    pub fn progress(&self, max_entries: u32) -> f64 {
        let buckets = f64::from(max_entries.max(1)).log2().ceil().exp2();
        match self.cursor {
            Some(next) if next > 0 => (f64::from(next) / buckets).min(1.0),
            _ => 1.0,
        }
    }

    fn room(&mut self, entries: usize) {
        if self.keys.len() < entries {
            // Any value will do: it is overwritten before it is read.
            self.keys.resize(entries, sys::zeroed());
            self.values.resize(entries, sys::zeroed());
        }
    }
}

pub fn take<T: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, BpfError> {
    ebpf.take_map(name)
        .ok_or(BpfError::Lacks { kind: "map", name })?
        .try_into()
        .map_err(BpfError::map(name, "open"))
}
