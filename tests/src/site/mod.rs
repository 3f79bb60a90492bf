//! Programs and devices, and a small world in the programs' maps: what [`names`] names, in both
//! families. Packets are run through the programs there by `BPF_PROG_TEST_RUN`.
//!
//! Published are, on any address of the node: 8080 and 8081 → `web`:80 (TCP, UDP and SCTP), and on
//! `node` alone 9090 → `peer`:90.
//!
//! Tests take turns to use one: to load the programs takes the verifier a second, to empty their maps
//! some milliseconds.

pub mod names;

use std::{
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{
        Array, HashMap, LpmTrie, MapData, PerCpuArray, PerCpuValues, RingBuf, lpm_trie::Key, xdp,
    },
    programs::{SchedClassifier, Xdp},
    util::nr_cpus,
};
use netfw_common::{
    addr::{Address, Be16, Ip4, Ip6},
    budget::Budget,
    event::{Event, FILTERS, Filter},
    flow::{Flow, holdings},
    fragment::{Datagram, FragmentKey, Held, HeldKey},
    record::{
        Allowed, Config, Counter, Endpoint, IsAllowed, Local, Mapping, MappingKey, Permit, Publish,
        PublishKey, Subnet, Uplink, allow, endpoint_flag, network_flag,
    },
    tuple::{Tuple, proto},
};

use self::names::{Family, family, ip, set_family};
use crate::testrun::TestDevices;

/// Loopback stands for the host side of `peer`'s veth pair: any device will do.
pub const PEER_IFINDEX: u32 = 1;
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];
const STRANGER_IFINDEX: u32 = 5000;

pub const WEB_COUNTER: u32 = 1;
pub const PUBLISH_COUNTER: u32 = 2;
pub const PEER_COUNTER: u32 = 3;

/// What the programs mark translated packets with.
pub const VOUCHER: u64 = 0x1234_5678_9abc_def0;

/// The counters that tests look at lie below.
const COUNTERS: u32 = 16;

/// Sites that are free.
static POOL: Mutex<Vec<Site>> = Mutex::new(Vec::new());

pub struct Site {
    pub ebpf: Ebpf,
    pub devices: TestDevices,
    /// Do the programs tell what becomes of each packet?
    pub traces: bool,
    events: RingBuf<MapData>,
}

/// MAC addresses of those in the table.
#[derive(Clone, Copy)]
pub struct Macs {
    pub client: [u8; 6],
    pub uplink: [u8; 6],
    pub gateway: [u8; 6],
    pub web: [u8; 6],
    pub peer: [u8; 6],
}

/// Entries in the flow tables of a test: so few that tests can fill them.
const FEW_FLOWS: u32 = 64;
const FEW_EMBRYOS: u32 = 1024;

impl Site {
    /// One that nobody uses, with small flow tables.
    pub fn take(traces: bool) -> Self {
        let mut free = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        let found = free.iter().position(|site| site.traces == traces);
        let found = found.map(|at| free.swap_remove(at));
        drop(free);
        found.unwrap_or_else(|| Self::load_with(Some((FEW_FLOWS, FEW_EMBRYOS)), traces))
    }

    /// A new one, with so many entries for flows and for embryos in each family, or as many as the
    /// agent has. Its maps are empty: [`reset`](Self::reset) fills them.
    pub fn load(tables: Option<(u32, u32)>) -> Self {
        Self::load_with(tables, false)
    }

    fn load_with(tables: Option<(u32, u32)>, traces: bool) -> Self {
        let devices = TestDevices::new();
        let mut ebpf = devices.enter(|_| load(tables, traces));
        let events = ebpf.take_map("EVENTS").expect("a map");
        Self {
            ebpf,
            devices,
            traces,
            events: events.try_into().expect("a ring"),
        }
    }

    /// Has the programs tell what suits the filters: these, and no others.
    pub fn listen(&mut self, filters: &[Filter]) {
        let map = self.ebpf.map_mut("FILTERS").expect("a map");
        let mut map: Array<&mut MapData, Filter> = Array::try_from(map).expect("an array");
        for number in 0..FILTERS {
            let filter = filters.get(number as usize).copied().unwrap_or_default();
            map.set(number, filter, 0).expect("a filter");
        }
        let map = self.ebpf.map_mut("LISTENERS").expect("a map");
        let mut map: Array<&mut MapData, u32> = Array::try_from(map).expect("an array");
        map.set(0, filters.len() as u32, 0).expect("a number");
        self.events();
    }

    /// How many events a filter has missed; all of them, for want of room, with [`FILTERS`].
    pub fn suppressed(&self, filter: u32) -> u64 {
        let map = self.ebpf.map("SUPPRESSED").expect("a map");
        let map: PerCpuArray<&MapData, u64> = PerCpuArray::try_from(map).expect("an array");
        map.get(&filter, 0).expect("a count").iter().sum()
    }

    /// What was told since the last time.
    pub fn events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(item) = self.events.next() {
            assert_eq!(item.len(), size_of::<Event>());
            // SAFETY: as many bytes as an event has, which is integers without padding.
            events.push(unsafe { item.as_ptr().cast::<Event>().read_unaligned() });
        }
        events
    }

    /// For the next.
    pub fn give_back(self) {
        POOL.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(self);
    }

    /// Empties all maps, and fills them with the world of [`names`], in both families.
    pub fn reset(&mut self) {
        self.clear_family::<Ip4>("4");
        self.clear_family::<Ip6>("6");
        self.clear::<u32, Endpoint>("ENDPOINTS");
        self.clear::<u32, Uplink>("UPLINKS");
        self.clear::<HeldKey, Held>("HELD");
        self.clear::<u32, Budget>("BUDGETS");
        let mut counters: PerCpuArray<&mut MapData, Counter> =
            PerCpuArray::try_from(self.ebpf.map_mut("COUNTERS").expect("a map")).expect("an array");
        let cpus = nr_cpus().expect("CPUs");
        for index in 0..COUNTERS {
            let zero = PerCpuValues::try_from(vec![Counter::default(); cpus]).expect("a CPU each");
            counters.set(index, zero, 0).expect("a counter");
        }
        self.configure(Config::default());
        let own = family();
        for family in [Family::V4, Family::V6] {
            set_family(family);
            self.populate_family();
        }
        set_family(own);
        self.populate();
    }

    fn clear_family<A: Address + Pod>(&mut self, digit: &str)
    where
        Tuple<A>: Pod,
        Flow<A>: Pod,
        PublishKey<A>: Pod,
        Publish<A>: Pod,
        FragmentKey<A>: Pod,
        MappingKey<A>: Pod,
        Mapping<A>: Pod,
        Allowed<A>: Pod,
    {
        for name in ["FLOWS", "EMBRYOS"] {
            self.clear::<Tuple<A>, Flow<A>>(&format!("{name}{digit}"));
        }
        let name = format!("HOLDINGS{digit}");
        let map = self.ebpf.map_mut(&name).expect("a map");
        let mut holdings: Array<&mut MapData, u64> = Array::try_from(map).expect("an array");
        for element in 0..holdings::ELEMENTS {
            if holdings.get(&element, 0).expect("a count") != 0 {
                holdings.set(element, 0, 0).expect("a count");
            }
        }
        self.clear::<FragmentKey<A>, [u8; size_of::<Datagram>()]>(&format!("FRAGMENTS{digit}"));
        self.clear::<Tuple<A>, u32>(&format!("TALKS{digit}"));
        self.clear::<PublishKey<A>, Publish<A>>(&format!("PUBLISHES{digit}"));
        let mut allowed: LpmTrie<&mut MapData, Allowed<A>, IsAllowed> = LpmTrie::try_from(
            self.ebpf
                .map_mut(&format!("ALLOWED{digit}"))
                .expect("a map"),
        )
        .expect("a trie");
        let keys: Vec<_> = allowed.keys().collect::<Result<_, _>>().expect("keys");
        for key in keys {
            allowed.remove(&key).expect("nobody else writes");
        }
        self.clear::<MappingKey<A>, Mapping<A>>(&format!("MAPPINGS{digit}"));
        self.clear::<Tuple<A>, Permit>(&format!("PERMITS{digit}"));
        self.clear::<A, u32>(&format!("ADDRESSES{digit}"));
        self.clear::<A, Local>(&format!("LOCALS{digit}"));
    }

    /// Ends the flows that are not assured.
    pub fn forget_embryos(&mut self) {
        self.clear::<Tuple<Ip4>, Flow<Ip4>>("EMBRYOS4");
        self.clear::<Tuple<Ip6>, Flow<Ip6>>("EMBRYOS6");
    }

    pub fn clear<K: Pod, V: Pod>(&mut self, map: &str) {
        let mut map: HashMap<&mut MapData, K, V> =
            HashMap::try_from(self.ebpf.map_mut(map).expect("a map")).expect("a hash");
        let keys: Vec<K> = map.keys().collect::<Result<_, _>>().expect("keys");
        for key in keys {
            // An LRU may have been faster.
            let _ = map.remove(&key);
        }
    }

    pub fn put<K: Pod, V: Pod>(&mut self, map: &str, key: K, value: V) {
        let mut map: HashMap<&mut MapData, K, V> =
            HashMap::try_from(self.ebpf.map_mut(map).expect("a map")).expect("a hash");
        map.insert(key, value, 0).expect("room");
    }

    pub fn remove<K: Pod, V: Pod>(&mut self, map: &str, key: K) {
        let mut map: HashMap<&mut MapData, K, V> =
            HashMap::try_from(self.ebpf.map_mut(map).expect("a map")).expect("a hash");
        map.remove(&key).expect("it was there");
    }

    pub fn configure(&mut self, config: Config) {
        let mut map: Array<&mut MapData, Config> =
            Array::try_from(self.ebpf.map_mut("CONFIG").expect("a map")).expect("an array");
        map.set(0, config, 0).expect("settings");
    }

    /// Who has which MAC address.
    pub fn macs(&self) -> Macs {
        Macs {
            client: self.devices.uplink.peer_mac,
            uplink: self.devices.uplink.mac,
            gateway: self.devices.veth.mac,
            web: self.devices.veth.peer_mac,
            peer: PEER_MAC,
        }
    }

    pub fn endpoints(&self) -> [Endpoint; 3] {
        let veth = self.devices.veth;
        let web = Endpoint {
            ifindex: veth.ifindex,
            bridge: veth.ifindex,
            network: 1,
            counter: WEB_COUNTER,
            ip4: four("web"),
            gateway4: four("gateway"),
            ip6: six("web"),
            gateway6: six("gateway"),
            mac: veth.peer_mac,
            gateway_mac: veth.mac,
            flags: network_flag::MASQUERADE | endpoint_flag::NAPI,
            mtu: 1500,
        };
        let peer = Endpoint {
            ifindex: PEER_IFINDEX,
            counter: PEER_COUNTER,
            ip4: four("peer"),
            ip6: six("peer"),
            mac: PEER_MAC,
            ..web
        };
        let stranger = Endpoint {
            ifindex: STRANGER_IFINDEX,
            network: 2,
            counter: 0,
            ip4: four("stranger"),
            gateway4: four("elsewhere"),
            ip6: six("stranger"),
            gateway6: six("elsewhere"),
            mac: [2, 0, 0, 0, 0, 9],
            ..web
        };
        [web, peer, stranger]
    }

    fn populate(&mut self) {
        for endpoint in self.endpoints() {
            self.put("ENDPOINTS", endpoint.ifindex, endpoint);
            self.put("ADDRESSES4", endpoint.ip4, endpoint.ifindex);
            self.put("ADDRESSES6", endpoint.ip6, endpoint.ifindex);
        }
        let uplink = self.devices.uplink;
        self.put(
            "UPLINKS",
            uplink.ifindex,
            Uplink {
                ip4: four("node"),
                ip6: six("node"),
                mtu: 1500,
                mac: uplink.mac,
                reserved: 0,
            },
        );
        let mut veths: xdp::DevMapHash<&mut MapData> =
            xdp::DevMapHash::try_from(self.ebpf.map_mut("VETHS").expect("a map")).expect("devices");
        for ifindex in [self.devices.veth.ifindex, PEER_IFINDEX] {
            veths
                .insert(ifindex, ifindex, None, 0)
                .expect("a device that exists");
        }
    }

    /// What lies in the maps of the family at hand.
    fn populate_family(&mut self) {
        for name in ["node", "gateway", "elsewhere"] {
            let local = Local { ifindex: 1 };
            match ip(name) {
                IpAddr::V4(addr) => self.put("LOCALS4", Ip4::from(addr), local),
                IpAddr::V6(addr) => self.put("LOCALS6", Ip6::from(addr), local),
            }
        }
        for (network, name) in [(1, "gateway"), (2, "elsewhere")] {
            self.set_subnet(name, network, network_flag::MASQUERADE);
        }
        for proto in [proto::TCP, proto::UDP, proto::SCTP] {
            for port in [8080, 8081] {
                self.publish("0.0.0.0", port, proto, ("web", 80), PUBLISH_COUNTER);
            }
            self.publish("node", 9090, proto, ("peer", 90), 4);
        }
    }

    /// The subnet of the network with this gateway, of the family at hand; `flags` are the network's.
    pub fn set_subnet(&mut self, gateway: &str, network: u32, flags: u32) {
        let subnet = Subnet { network, flags };
        match ip(gateway) {
            IpAddr::V4(addr) => self.put_subnet("SUBNETS4", 24, Ip4::from(addr), subnet),
            IpAddr::V6(addr) => self.put_subnet("SUBNETS6", 64, Ip6::from(addr), subnet),
        }
    }

    fn put_subnet<A: Pod>(&mut self, map: &str, prefix: u32, addr: A, subnet: Subnet) {
        let mut subnets: LpmTrie<&mut MapData, A, Subnet> =
            LpmTrie::try_from(self.ebpf.map_mut(map).expect("a map")).expect("a trie");
        subnets
            .insert(&Key::new(prefix, addr), subnet, 0)
            .expect("a subnet");
    }

    /// For everybody, in the family at hand.
    pub fn publish(&mut self, on: &str, port: u16, proto: u8, to: (&str, u16), counter: u32) {
        self.publish_for(allow::EVERYBODY, on, port, proto, to, counter);
    }

    /// Has a list of this number name `length` bits of what `name` names, in the family at hand; of an
    /// address of IPv6, as many bits more as it has more.
    pub fn allow(&mut self, list: u16, name: &str, length: u32) {
        match ip(name) {
            IpAddr::V4(addr) => {
                self.put_allowed("ALLOWED4", length, Allowed::new(list, Ip4::from(addr)))
            }
            IpAddr::V6(addr) => {
                self.put_allowed("ALLOWED6", 96 + length, Allowed::new(list, Ip6::from(addr)));
            }
        }
    }

    fn put_allowed<A: Pod>(&mut self, map: &str, length: u32, allowed: Allowed<A>)
    where
        Allowed<A>: Pod,
    {
        let mut trie: LpmTrie<&mut MapData, Allowed<A>, IsAllowed> =
            LpmTrie::try_from(self.ebpf.map_mut(map).expect("a map")).expect("a trie");
        let bits = Allowed::<A>::LIST_BITS + length;
        trie.insert(&Key::new(bits, allowed), IsAllowed::default(), 0)
            .expect("room");
    }

    /// In the family at hand, for those whom a list names.
    pub fn publish_for(
        &mut self,
        allow: u16,
        on: &str,
        port: u16,
        proto: u8,
        to: (&str, u16),
        counter: u32,
    ) {
        let (port, to_port) = (Be16::new(port), Be16::new(to.1));
        match (ip(on), ip(to.0)) {
            (IpAddr::V4(on), IpAddr::V4(to)) => self.put(
                "PUBLISHES4",
                PublishKey::<Ip4> {
                    addr: on.into(),
                    port,
                    proto,
                    reserved: 0,
                },
                Publish::<Ip4> {
                    addr: to.into(),
                    counter: counter as u16,
                    flags: 0,
                    port: to_port,
                    allow,
                },
            ),
            (IpAddr::V6(on), IpAddr::V6(to)) => self.put(
                "PUBLISHES6",
                PublishKey::<Ip6> {
                    addr: on.into(),
                    port,
                    proto,
                    reserved: 0,
                },
                Publish::<Ip6> {
                    addr: to.into(),
                    counter: counter as u16,
                    flags: 0,
                    port: to_port,
                    allow,
                },
            ),
            (on, to) => panic!("{on} and {to} are of two families"),
        }
    }
}

fn four(name: &str) -> Ip4 {
    let own = family();
    set_family(Family::V4);
    let addr = ip(name);
    set_family(own);
    match addr {
        IpAddr::V4(addr) => addr.into(),
        IpAddr::V6(_) => unreachable!("asked for the other"),
    }
}

fn six(name: &str) -> Ip6 {
    let own = family();
    set_family(Family::V6);
    let addr = ip(name);
    set_family(own);
    match addr {
        IpAddr::V6(addr) => addr.into(),
        IpAddr::V4(_) => unreachable!("asked for the other"),
    }
}

fn load(tables: Option<(u32, u32)>, traces: bool) -> Ebpf {
    let mut loader = EbpfLoader::new();
    loader.override_global("AYA_LOG_LEVEL", &0u8, false);
    loader.override_global("VOUCHER", &VOUCHER, true);
    let traces = u8::from(traces);
    loader.override_global("TRACES", &traces, true);
    if let Some((flows, embryos)) = tables {
        for (name, entries) in [
            ("FLOWS4", flows),
            ("FLOWS6", flows),
            ("EMBRYOS4", embryos),
            ("EMBRYOS6", embryos),
        ] {
            loader.map_max_entries(name, entries);
        }
    }
    let mut ebpf = loader
        .load(netfw::bpf::PROGRAMS_OBJECT)
        .expect("the object can be loaded");
    for name in ["netfw_uplink", "netfw_container", "netfw_guard"] {
        let program: &mut SchedClassifier = ebpf
            .program_mut(name)
            .and_then(|program| program.try_into().ok())
            .expect("a program of the object");
        program
            .load()
            .unwrap_or_else(|error| panic!("the kernel refuses {name}: {error:#}"));
    }
    let program: &mut Xdp = ebpf
        .program_mut("netfw_uplink_xdp")
        .and_then(|program| program.try_into().ok())
        .expect("a program of the object");
    program
        .load()
        .unwrap_or_else(|error| panic!("the kernel refuses the XDP program: {error:#}"));
    ebpf
}
