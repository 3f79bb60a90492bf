//! The maps, typed: what the agent writes for the programs to read, and what they count.
//!
//! The agent is the only writer of all of these (flows aside); the programs see each entry whole or
//! not at all. Where one wish needs several entries, they are written in an order in which a packet
//! never finds a reference to what is not there yet.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use aya::{
    Ebpf,
    maps::{
        Array, LpmTrie, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues,
        xdp::DevMapHash,
    },
};
use ipnet::IpNet;
use netfw_common::{
    addr::{Ip4, Ip6},
    drop::Drop,
    record::{
        Config, Counter, DropKey, Endpoint, Local, Publish, PublishKey, SocketKey, SocketPeer,
        Subnet, Uplink, endpoint_flag,
    },
};
use nix::libc;

use super::{
    BpfError, DataPlane,
    allow::Lists,
    error::root_errno,
    family::Family,
    table::{Table, take},
    taken::Taken,
};

/// All maps but the flow tables.
pub struct Maps {
    pub v4: FamilyMaps<Ip4>,
    pub v6: FamilyMaps<Ip6>,
    pub(super) endpoints: Table<u32, Endpoint>,
    uplinks: Table<u32, Uplink>,
    pub(super) veths: DevMapHash<MapData>,
    counters: PerCpuArray<MapData, Counter>,
    drops: PerCpuArray<MapData, u64>,
    drops_of: PerCpuHashMap<MapData, DropKey, u64>,
    config: Settings,
}

/// Those that each family has for itself.
pub struct FamilyMaps<A: Family> {
    addresses: Table<A, u32>,
    publishes: Table<PublishKey<A>, Publish<A>>,
    pub(super) allowed: Lists<A>,
    /// The ports of `publishes`.
    taken: Taken<A>,
    locals: Table<A, Local>,
    subnets: LpmTrie<MapData, A, Subnet>,
    /// What sockets of the node asked for that were connected to a container.
    pub(super) sockets: Table<SocketKey<A>, SocketPeer<A>>,
}

impl Maps {
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, BpfError> {
        Ok(Self {
            v4: FamilyMaps::take(ebpf)?,
            v6: FamilyMaps::take(ebpf)?,
            endpoints: Table::take(ebpf, "ENDPOINTS")?,
            uplinks: Table::take(ebpf, "UPLINKS")?,
            veths: take(ebpf, "VETHS")?,
            counters: take(ebpf, "COUNTERS")?,
            drops: take(ebpf, "DROPS")?,
            drops_of: take(ebpf, "DROPS_OF")?,
            config: Settings(Arc::new(Mutex::new(take(ebpf, CONFIG)?))),
        })
    }
}

const CONFIG: &str = "CONFIG";

impl<A: Family> FamilyMaps<A> {
    fn take(ebpf: &mut Ebpf) -> Result<Self, BpfError> {
        let publishes: Table<PublishKey<A>, Publish<A>> = Table::take(ebpf, A::NAMES.publishes)?;
        let entered = publishes.entries()?;
        Ok(Self {
            addresses: Table::take(ebpf, A::NAMES.addresses)?,
            allowed: Lists::take(ebpf, &publishes)?,
            taken: Taken::take(ebpf, &entered)?,
            publishes,
            locals: Table::take(ebpf, A::NAMES.locals)?,
            subnets: take(ebpf, A::NAMES.subnets)?,
            sockets: Table::take(ebpf, A::NAMES.sockets)?,
        })
    }

    fn publish(&mut self, entries: &[(PublishKey<A>, Publish<A>)]) -> Result<(), BpfError> {
        let new: HashSet<_> = self.publishes.insert_all(entries)?.into_iter().collect();
        let is_new = |(key, _): &&(PublishKey<A>, Publish<A>)| new.contains(key);
        let new: Vec<_> = entries.iter().filter(is_new).copied().collect();
        let taken = self.taken.add(&new);
        if taken.is_err() {
            let keys: Vec<_> = new.iter().map(|(key, _)| *key).collect();
            let _ = self.unpublish(&keys);
        }
        taken
    }

    fn unpublish(&mut self, keys: &[PublishKey<A>]) -> Result<(), BpfError> {
        let mut gone = Vec::new();
        let removed = self.publishes.remove_each(keys, |key| gone.push(*key));
        removed.and(self.taken.remove(&gone))
    }

    /// The endpoint's address of this family, if it has one.
    fn claim(&mut self, endpoint: &Endpoint) -> Result<(), BpfError> {
        match A::of_endpoint(endpoint) {
            addr if addr == A::ANY => Ok(()),
            addr => self.addresses.insert(&addr, &endpoint.ifindex),
        }
    }

    /// Takes an endpoint's address away, unless another endpoint has it by now.
    fn release(&mut self, endpoint: &Endpoint) -> Result<(), BpfError> {
        let addr = A::of_endpoint(endpoint);
        if addr != A::ANY && self.addresses.get(&addr)? == Some(endpoint.ifindex) {
            self.addresses.remove(&addr)?;
        }
        Ok(())
    }

    /// Makes the node's own addresses exactly these of `want` that are of this family.
    fn set_locals(&mut self, want: &HashMap<IpAddr, u32>) -> Result<(), BpfError> {
        let have: HashMap<A, Local> = self.locals.entries()?.into_iter().collect();
        let want: HashMap<A, Local> = want
            .iter()
            .filter_map(|(&ip, &ifindex)| Some((A::of(ip)?, Local { ifindex })))
            .collect();
        // New ones first: an address that moves is never missing.
        for (addr, local) in &want {
            if have.get(addr) != Some(local) {
                self.locals.insert(addr, local)?;
            }
        }
        for addr in have.keys().filter(|addr| !want.contains_key(*addr)) {
            self.locals.remove(addr)?;
        }
        Ok(())
    }

    fn locals(&self) -> impl Iterator<Item = (IpAddr, u32)> + use<A> {
        let entries = self.locals.readable();
        entries
            .into_iter()
            .map(|(addr, local)| (addr.ip(), local.ifindex))
    }

    /// Nothing to do where the subnet is of the other family.
    fn set_subnet(&mut self, net: &IpNet, subnet: Subnet) -> Result<(), BpfError> {
        match A::key_of(net) {
            None => Ok(()),
            Some(key) => self
                .subnets
                .insert(&key, subnet, 0)
                .map_err(BpfError::map(A::NAMES.subnets, "write")),
        }
    }

    fn remove_subnet(&mut self, net: &IpNet) -> Result<(), BpfError> {
        match A::key_of(net).map(|key| self.subnets.remove(&key)) {
            Some(Err(error)) if root_errno(&error) != Some(libc::ENOENT) => {
                Err(BpfError::map(A::NAMES.subnets, "delete from")(error))
            }
            _ => Ok(()),
        }
    }

    fn subnets(&self) -> impl Iterator<Item = (IpNet, Subnet)> {
        self.subnets.iter().filter_map(|entry| {
            let (key, subnet) = entry
                .inspect_err(|error| tracing::error!(%error, map = A::NAMES.subnets, "reading"))
                .ok()?;
            // The kernel refuses longer prefixes than the key has bits.
            let length = key.prefix_len().min(A::BITS.into()) as u8;
            Some((IpNet::new_assert(key.data().ip(), length), subnet))
        })
    }
}

impl DataPlane {
    /// The endpoint, and its addresses. Overwrites what was there under its interface; but whether
    /// XDP may send to it is `VETHS`' to say, and not the caller's ([`Self::set_napi`]).
    pub fn set_endpoint(&mut self, endpoint: &Endpoint) -> Result<(), BpfError> {
        let mut endpoint = *endpoint;
        if self.has_napi(endpoint.ifindex) {
            endpoint.flags |= endpoint_flag::NAPI;
        }
        let endpoint = &endpoint;
        let maps = &mut self.maps;
        let before = maps.endpoints.get(&endpoint.ifindex)?;
        maps.endpoints.insert(&endpoint.ifindex, endpoint)?;
        let claimed = maps
            .v4
            .claim(endpoint)
            .and_then(|()| maps.v6.claim(endpoint));
        if let Err(error) = claimed {
            let _ = maps.release(endpoint);
            let _ = match before {
                Some(before) => maps
                    .endpoints
                    .insert(&before.ifindex, &before)
                    .and_then(|()| maps.v4.claim(&before))
                    .and_then(|()| maps.v6.claim(&before)),
                None => maps.endpoints.remove(&endpoint.ifindex).map(drop),
            };
            return Err(error);
        }
        if let Some(before) = before {
            if before.ip4 != endpoint.ip4 {
                maps.v4.release(&before)?;
            }
            if before.ip6 != endpoint.ip6 {
                maps.v6.release(&before)?;
            }
        }
        Ok(())
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

    /// All of them, or none: where one does not fit, the map is as it was before. A list that no publish
    /// goes by afterwards is gone. Once they are there, no process of the node can bind their ports.
    pub fn publish<A: Family>(
        &mut self,
        entries: impl IntoIterator<Item = (PublishKey<A>, Publish<A>)>,
    ) -> Result<(), BpfError> {
        let entries: Vec<_> = entries.into_iter().collect();
        let maps = A::maps_mut(&mut self.maps);
        let written = maps.publish(&entries);
        match written {
            Ok(()) => maps.allowed.note_all(&entries),
            Err(_) => maps.allowed.sweep(),
        }
        written
    }

    /// Those that are there. Their counters' owner then says so to [`Self::disallow`].
    pub fn unpublish<A: Family>(
        &mut self,
        keys: impl IntoIterator<Item = PublishKey<A>>,
    ) -> Result<(), BpfError> {
        let keys: Vec<_> = keys.into_iter().collect();
        A::maps_mut(&mut self.maps).unpublish(&keys)
    }

    pub fn publishes<A: Family>(&self) -> Vec<(PublishKey<A>, Publish<A>)> {
        A::maps(&self.maps).publishes.readable()
    }

    /// Host ports that there is room for, in each family.
    pub fn publish_room(&self) -> u32 {
        self.maps.v4.publishes.max
    }

    pub fn set_subnet(&mut self, net: impl Into<IpNet>, subnet: Subnet) -> Result<(), BpfError> {
        let net = net.into();
        self.maps.v4.set_subnet(&net, subnet)?;
        self.maps.v6.set_subnet(&net, subnet)
    }

    pub fn remove_subnet(&mut self, net: impl Into<IpNet>) -> Result<(), BpfError> {
        let net = net.into();
        self.maps.v4.remove_subnet(&net)?;
        self.maps.v6.remove_subnet(&net)
    }

    pub fn subnets(&self) -> Vec<(IpNet, Subnet)> {
        let (v4, v6) = (self.maps.v4.subnets(), self.maps.v6.subnets());
        v4.chain(v6).collect()
    }

    /// Makes the node's own addresses exactly these, each with the interface that has it.
    pub fn set_locals(&mut self, want: &HashMap<IpAddr, u32>) -> Result<(), BpfError> {
        self.maps.v4.set_locals(want)?;
        self.maps.v6.set_locals(want)
    }

    pub fn locals(&self) -> Vec<(IpAddr, u32)> {
        self.maps.v4.locals().chain(self.maps.v6.locals()).collect()
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

    /// The settings; the epoch is not among them, and goes on from what it was.
    pub fn set_config(&mut self, config: &Config) -> Result<(), BpfError> {
        self.maps.config.change(|now| {
            *now = Config {
                epoch: now.epoch.wrapping_add(1),
                ..*config
            };
        })?;
        self.flows.timeouts = config.timeouts;
        Ok(())
    }

    /// Are there networks with endpoint-independent mappings, which need ports of their own?
    pub fn set_mappings(&mut self, are_there: bool) -> Result<(), BpfError> {
        self.maps
            .config
            .change(|config| config.mappings = are_there.into())
    }

    /// For whoever is told of changes, to raise without waiting for whoever has the data plane.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.maps.config.clone())
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

    /// For a new endpoint or publish. Packets that are counted at this very moment may be lost or kept.
    pub fn reset_counter(&mut self, index: u32) -> Result<(), BpfError> {
        let failed = || BpfError::map("COUNTERS", "write");
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| failed()(error.into()))?;
        let zeros = PerCpuValues::try_from(vec![Counter::default(); cpus])
            .map_err(|error| failed()(error.into()))?;
        self.maps.counters.set(index, zeros, 0).map_err(failed())?;
        self.flows.clear_holdings(index)?;
        self.forget_drops_of(index)
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

    /// Packets dropped of what endpoints sent, by the index of the endpoint's counter. Endpoints that met no
    /// drop are not there.
    pub fn drops_of_endpoints(&self) -> Result<Vec<(DropKey, u64)>, BpfError> {
        self.maps
            .drops_of
            .iter()
            .map(|entry| {
                let (key, values) = entry.map_err(BpfError::map("DROPS_OF", "read"))?;
                Ok((key, values.iter().sum()))
            })
            .collect()
    }

    /// Whatever was counted for the endpoint with this counter is forgotten.
    pub fn forget_drops_of(&mut self, endpoint: u32) -> Result<(), BpfError> {
        for reason in Drop::ALL {
            let key = DropKey {
                endpoint,
                reason: *reason as u32,
            };
            match self.maps.drops_of.remove(&key) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) if root_errno(&error) == Some(libc::ENOENT) => {}
                Err(error) => return Err(BpfError::map("DROPS_OF", "delete from")(error)),
            }
        }
        Ok(())
    }
}

impl Maps {
    fn release(&mut self, endpoint: &Endpoint) -> Result<(), BpfError> {
        self.v4.release(endpoint)?;
        self.v6.release(endpoint)
    }
}

/// The settings, which one changes at a time: each writes all of them.
#[derive(Clone)]
struct Settings(Arc<Mutex<Array<MapData, Config>>>);

impl Settings {
    fn change(&self, change: impl FnOnce(&mut Config)) -> Result<(), BpfError> {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut config = map.get(&0, 0).map_err(BpfError::map(CONFIG, "read"))?;
        change(&mut config);
        map.set(0, config, 0)
            .map_err(BpfError::map(CONFIG, "write"))
    }
}

/// The number by which the programs know that a way to the world that they looked up may be another
/// by now.
pub struct Epoch(Settings);

impl Epoch {
    pub fn raise(&self) -> Result<(), BpfError> {
        self.0
            .change(|config| config.epoch = config.epoch.wrapping_add(1))
    }
}
