//! The maps, typed: what the agent writes for the programs to read, and what they count.
//!
//! The agent is the only writer of all of these (flows aside); the programs see each entry whole or
//! not at all. Where one wish needs several entries, they are written in an order in which a packet
//! never finds a reference to what is not there yet.

use std::{
    collections::HashMap,
    hash::Hash,
    net::Ipv4Addr,
    os::fd::{AsFd, BorrowedFd},
};

use aya::{
    Ebpf, Pod,
    maps::{
        self, IterableMap, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuValues,
        lpm_trie::Key, xdp::DevMapHash,
    },
};
use ipnet::Ipv4Net;
use netfw_common::{
    addr::{Address, Ip4},
    drop::Drop,
    record::{
        Config, Counter, Endpoint, Local, Publish4, PublishKey4, Subnet, Uplink, endpoint_flag,
    },
};
use nix::libc;

use super::{BpfError, DataPlane, error::root_errno, sys};

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
                Some(libc::E2BIG) => BpfError::Full {
                    map: self.name,
                    asked: 1,
                    max: self.max,
                },
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

    /// Inserts or overwrites all; where one fails, none of them.
    pub fn insert_all(&mut self, entries: &[(K, V)]) -> Result<(), BpfError> {
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
                    Some(libc::E2BIG) => BpfError::Full {
                        map: self.name,
                        asked: entries.len(),
                        max: self.max,
                    },
                    _ => BpfError::map(self.name, "write")(error.into()),
                });
            }
        }
        let Some(failure) = failure else {
            return Ok(());
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

    /// Removes all of them that are there. Goes on past errors and returns the first.
    pub fn remove_all(&mut self, keys: &[K]) -> Result<(), BpfError> {
        let mut first = None;
        let mut rest = keys;
        while !rest.is_empty() {
            match sys::delete_batch(self.fd(), rest) {
                Ok(()) => break,
                // One that is not there ends a batch.
                Err((done, error)) if error.raw_os_error() == Some(libc::ENOENT) => {
                    rest = rest.get(done + 1..).unwrap_or_default();
                }
                Err((done, _)) => {
                    rest = rest.get(done..).unwrap_or_default();
                    for key in rest {
                        if let Err(error) = self.remove(key) {
                            first.get_or_insert(error);
                        }
                    }
                    break;
                }
            }
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

fn take<T: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, BpfError> {
    ebpf.take_map(name)
        .ok_or(BpfError::Lacks { kind: "map", name })?
        .try_into()
        .map_err(BpfError::map(name, "open"))
}

/// All maps but the flow tables.
pub struct Maps {
    pub(super) endpoints: Table<u32, Endpoint>,
    addresses: Table<Ip4, u32>,
    publishes: Table<PublishKey4, Publish4>,
    locals: Table<Ip4, Local>,
    uplinks: Table<u32, Uplink>,
    pub(super) veths: DevMapHash<MapData>,
    subnets: LpmTrie<MapData, Ip4, Subnet>,
    counters: PerCpuArray<MapData, Counter>,
    drops: PerCpuArray<MapData, u64>,
    config: maps::Array<MapData, Config>,
}

impl Maps {
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, BpfError> {
        Ok(Self {
            endpoints: Table::take(ebpf, "ENDPOINTS")?,
            addresses: Table::take(ebpf, "ADDRESSES4")?,
            publishes: Table::take(ebpf, "PUBLISHES4")?,
            locals: Table::take(ebpf, "LOCALS4")?,
            uplinks: Table::take(ebpf, "UPLINKS")?,
            veths: take(ebpf, "VETHS")?,
            subnets: take(ebpf, "SUBNETS4")?,
            counters: take(ebpf, "COUNTERS")?,
            drops: take(ebpf, "DROPS")?,
            config: take(ebpf, "CONFIG")?,
        })
    }
}

impl DataPlane {
    /// The endpoint, and its address. Overwrites what was there under its interface; but whether XDP
    /// may send to it is `VETHS`' to say, and not the caller's ([`Self::set_napi`]).
    pub fn set_endpoint(&mut self, endpoint: &Endpoint) -> Result<(), BpfError> {
        let mut endpoint = *endpoint;
        if self.has_napi(endpoint.ifindex) {
            endpoint.flags |= endpoint_flag::NAPI;
        }
        let endpoint = &endpoint;
        let maps = &mut self.maps;
        let before = maps.endpoints.get(&endpoint.ifindex)?;
        maps.endpoints.insert(&endpoint.ifindex, endpoint)?;
        if endpoint.ip4 != Ip4::ANY
            && let Err(error) = maps.addresses.insert(&endpoint.ip4, &endpoint.ifindex)
        {
            let _ = match before {
                Some(before) => maps.endpoints.insert(&before.ifindex, &before),
                None => maps.endpoints.remove(&endpoint.ifindex).map(drop),
            };
            return Err(error);
        }
        match before {
            Some(before) if before.ip4 != endpoint.ip4 => maps.release(&before),
            _ => Ok(()),
        }
    }

    /// Nothing to do where there is none.
    pub fn remove_endpoint(&mut self, ifindex: u32) -> Result<(), BpfError> {
        if let Some(endpoint) = self.maps.endpoints.get(&ifindex)? {
            self.maps.release(&endpoint)?;
            self.maps.endpoints.remove(&ifindex)?;
        }
        // Nothing is there any more where the interface is gone.
        self.clear_napi(ifindex)
    }

    pub fn endpoints(&self) -> Vec<Endpoint> {
        let entries = self.maps.endpoints.readable();
        entries.into_iter().map(|(_, endpoint)| endpoint).collect()
    }

    /// All of them, or none: where one does not fit, the map is as it was before.
    pub fn publish(
        &mut self,
        entries: impl IntoIterator<Item = (PublishKey4, Publish4)>,
    ) -> Result<(), BpfError> {
        let entries: Vec<_> = entries.into_iter().collect();
        self.maps.publishes.insert_all(&entries)
    }

    /// Those that are there.
    pub fn unpublish(
        &mut self,
        keys: impl IntoIterator<Item = PublishKey4>,
    ) -> Result<(), BpfError> {
        let keys: Vec<_> = keys.into_iter().collect();
        self.maps.publishes.remove_all(&keys)
    }

    pub fn publishes(&self) -> Vec<(PublishKey4, Publish4)> {
        self.maps.publishes.readable()
    }

    pub fn set_subnet(&mut self, net: Ipv4Net, subnet: Subnet) -> Result<(), BpfError> {
        self.maps
            .subnets
            .insert(&key(net), subnet, 0)
            .map_err(BpfError::map("SUBNETS4", "write"))
    }

    pub fn remove_subnet(&mut self, net: Ipv4Net) -> Result<(), BpfError> {
        match self.maps.subnets.remove(&key(net)) {
            Err(error) if root_errno(&error) != Some(libc::ENOENT) => {
                Err(BpfError::map("SUBNETS4", "delete from")(error))
            }
            _ => Ok(()),
        }
    }

    pub fn subnets(&self) -> Vec<(Ipv4Net, Subnet)> {
        self.maps
            .subnets
            .iter()
            .filter_map(|entry| {
                let (key, subnet) = entry
                    .inspect_err(|error| tracing::error!(%error, map = "SUBNETS4", "reading"))
                    .ok()?;
                // The kernel refuses longer prefixes than the key has bits.
                let length = key.prefix_len().min(32) as u8;
                Some((Ipv4Net::new_assert(key.data().into(), length), subnet))
            })
            .collect()
    }

    /// Makes the node's own addresses exactly these, each with the interface that has it.
    pub fn set_locals(&mut self, want: &HashMap<Ipv4Addr, u32>) -> Result<(), BpfError> {
        let locals = &mut self.maps.locals;
        let have: HashMap<Ip4, Local> = locals.entries()?.into_iter().collect();
        let want: HashMap<Ip4, Local> = want
            .iter()
            .map(|(&addr, &ifindex)| (addr.into(), Local { ifindex }))
            .collect();
        // New ones first: an address that moves is never missing.
        for (addr, local) in &want {
            if have.get(addr) != Some(local) {
                locals.insert(addr, local)?;
            }
        }
        for addr in have.keys().filter(|addr| !want.contains_key(*addr)) {
            locals.remove(addr)?;
        }
        Ok(())
    }

    pub fn locals(&self) -> Vec<(Ipv4Addr, u32)> {
        let entries = self.maps.locals.readable();
        entries
            .into_iter()
            .map(|(addr, local)| (addr.into(), local.ifindex))
            .collect()
    }

    pub fn set_uplink(&mut self, ifindex: u32, uplink: &Uplink) -> Result<(), BpfError> {
        self.maps.uplinks.insert(&ifindex, uplink)
    }

    pub fn remove_uplink(&mut self, ifindex: u32) -> Result<(), BpfError> {
        self.maps.uplinks.remove(&ifindex).map(drop)
    }

    pub fn uplinks(&self) -> Vec<(u32, Uplink)> {
        self.maps.uplinks.readable()
    }

    pub fn set_config(&mut self, config: &Config) -> Result<(), BpfError> {
        self.maps
            .config
            .set(0, config, 0)
            .map_err(BpfError::map("CONFIG", "write"))?;
        self.flows.timeouts = config.timeouts;
        Ok(())
    }

    /// Packets and bytes, summed over the CPUs.
    pub fn counter(&self, index: u32) -> Result<Counter, BpfError> {
        let values = self
            .maps
            .counters
            .get(&index, 0)
            .map_err(BpfError::map("COUNTERS", "read"))?;
        let mut sum = Counter::default();
        for value in values.iter() {
            sum += *value;
        }
        Ok(sum)
    }

    /// Packets that are counted at this very moment may be lost or kept.
    pub fn reset_counter(&mut self, index: u32) -> Result<(), BpfError> {
        let failed = || BpfError::map("COUNTERS", "write");
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| failed()(error.into()))?;
        let zeros = PerCpuValues::try_from(vec![Counter::default(); cpus])
            .map_err(|error| failed()(error.into()))?;
        self.maps.counters.set(index, zeros, 0).map_err(failed())
    }

    /// Packets dropped for each reason, summed over the CPUs.
    pub fn drops(&self) -> Result<Vec<(Drop, u64)>, BpfError> {
        Drop::ALL
            .iter()
            .map(|&reason| {
                let values = self
                    .maps
                    .drops
                    .get(&(reason as u32), 0)
                    .map_err(BpfError::map("DROPS", "read"))?;
                Ok((reason, values.iter().sum()))
            })
            .collect()
    }
}

impl Maps {
    /// Takes an endpoint's address away, unless another endpoint has it by now.
    fn release(&mut self, endpoint: &Endpoint) -> Result<(), BpfError> {
        if endpoint.ip4 != Ip4::ANY && self.addresses.get(&endpoint.ip4)? == Some(endpoint.ifindex)
        {
            self.addresses.remove(&endpoint.ip4)?;
        }
        Ok(())
    }
}

fn key(net: Ipv4Net) -> Key<Ip4> {
    Key::new(u32::from(net.prefix_len()), net.network().into())
}
