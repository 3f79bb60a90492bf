//! The programs, loaded for one test over maps of its own, and a world of names to speak of.
//!
//! | name | IPv4 | what |
//! |---|---|---|
//! | `client` | 10.1.0.2 | beyond the uplink |
//! | `node` | 10.1.0.1 | the uplink's address |
//! | `server` | 203.0.113.9 | in the outside world, behind the default route |
//! | `web` | 172.31.0.2 | a container |
//! | `peer` | 172.31.0.3 | a container of the same network |
//! | `gateway` | 172.31.0.1 | their network's gateway, an address of the node |
//! | `stranger` | 172.30.0.2 | a container of another network |
//! | `elsewhere` | 172.30.0.1 | that network's gateway |
//!
//! Published are, on any address of the node: 8080 and 8081 → `web`:80 (TCP and UDP), and on
//! `node` alone 9090 → `peer`:90.
//!
//! A packet is written once, with names; for which family it is sent is the rig's.

use std::{
    net::{IpAddr, Ipv4Addr},
    process::Command,
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap, LpmTrie, MapData, PerCpuArray, lpm_trie::Key},
    programs::SchedClassifier,
};
use netfw_common::{
    addr::{Be16, Ip4},
    drop::{Drop, SLOTS},
    flow::{Flow4, TICK_SHIFT, Timeouts},
    record::{
        Config, Counter, Endpoint, Local, Publish4, PublishKey4, Subnet, Uplink, network_flag,
    },
    tuple::{Tuple4, proto},
};
use netfw_tests::{
    packet::{Packet, Seen},
    testrun::{Device, RunOn as _, TC_DROP, TC_NEXT, TC_REDIRECT, TestDevices, tc_verdict},
    wait_until,
};
use nix::time::{ClockId, clock_gettime};

/// Loopback stands for the host side of `peer`'s veth pair: any device will do.
const PEER_IFINDEX: u32 = 1;
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];
const STRANGER_IFINDEX: u32 = 5000;

pub const WEB_COUNTER: u32 = 1;
pub const PUBLISH_COUNTER: u32 = 2;
pub const PEER_COUNTER: u32 = 3;

/// Where a packet is received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// On the uplink.
    World,
    /// From the container `web`, or `peer`.
    Web,
    Peer,
    /// About to leave by the uplink.
    Egress,
}

/// What came of a packet.
#[derive(Debug)]
pub enum Outcome {
    /// Handed on, and not a byte changed.
    Passed,
    Dropped(Drop),
    /// Redirected. The checksums are right, and the payload is what it was.
    Sent(Box<Seen>),
}

impl Outcome {
    /// The packet as sent: `(source, destination)` in names.
    #[track_caller]
    pub fn sent(self) -> (String, String) {
        match self {
            Self::Sent(seen) => (named(seen.source), named(seen.destination)),
            other => panic!("not sent: {other:?}"),
        }
    }

    #[track_caller]
    pub fn seen(self) -> Seen {
        match self {
            Self::Sent(seen) => *seen,
            other => panic!("not sent: {other:?}"),
        }
    }

    #[track_caller]
    pub fn passed(self) {
        assert!(matches!(self, Self::Passed), "not handed on: {self:?}");
    }

    #[track_caller]
    pub fn dropped(self, reason: Drop) {
        assert!(
            matches!(self, Self::Dropped(found) if found == reason),
            "not dropped as {reason:?}: {self:?}"
        );
    }
}

const NAMES: [(&str, Ipv4Addr); 8] = [
    ("client", Ipv4Addr::new(10, 1, 0, 2)),
    ("node", Ipv4Addr::new(10, 1, 0, 1)),
    ("server", Ipv4Addr::new(203, 0, 113, 9)),
    ("web", Ipv4Addr::new(172, 31, 0, 2)),
    ("peer", Ipv4Addr::new(172, 31, 0, 3)),
    ("gateway", Ipv4Addr::new(172, 31, 0, 1)),
    ("stranger", Ipv4Addr::new(172, 30, 0, 2)),
    ("elsewhere", Ipv4Addr::new(172, 30, 0, 1)),
];

/// `client:4000` as an address; what is no name stays.
pub fn at(text: &str) -> String {
    let (name, port) = text
        .split_once(':')
        .map_or((text, None), |(name, port)| (name, Some(port)));
    let addr = NAMES
        .iter()
        .find(|(known, _)| *known == name)
        .map_or(name.to_owned(), |(_, addr)| addr.to_string());
    port.map_or(addr.clone(), |port| format!("{addr}:{port}"))
}

fn ip(name: &str) -> Ip4 {
    let addr: Ipv4Addr = at(name)
        .parse()
        .expect("a name of the table, or an address");
    addr.into()
}

fn named(addr: std::net::SocketAddr) -> String {
    let name = NAMES
        .iter()
        .find(|(_, known)| IpAddr::from(*known) == addr.ip())
        .map_or(addr.ip().to_string(), |(name, _)| (*name).to_owned());
    format!("{name}:{}", addr.port())
}

/// By how much a checksum is wrong, if one is.
fn off_by(seen: &Seen) -> Option<&str> {
    seen.damage()?.split(" off by ").nth(1)
}

pub fn tcp(from: &str, to: &str, flags: &str) -> Packet {
    Packet::tcp(&at(from), &at(to), flags)
}

pub fn udp(from: &str, to: &str) -> Packet {
    Packet::udp(&at(from), &at(to))
}

pub fn ping(from: &str, to: &str, id: u16) -> Packet {
    Packet::ping(&at(from), &at(to), id)
}

pub fn pong(from: &str, to: &str, id: u16) -> Packet {
    Packet::pong(&at(from), &at(to), id)
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

pub struct Rig {
    ebpf: Ebpf,
    uplink: Device,
    veth: Device,
    /// Drops by reason that have been accounted for.
    drops: Vec<u64>,
}

/// Runs `test` in a namespace with devices, programs and the world above.
#[track_caller]
pub fn with_rig(test: impl FnOnce(&mut Rig) + Send) {
    netfw_tests::require_root();
    let devices = TestDevices::new();
    devices.enter(|devices| {
        let mut rig = Rig::new(devices);
        test(&mut rig);
        assert_eq!(rig.new_drops(), [], "counted, but nothing was dropped");
    });
}

type Entries = Vec<(Tuple4, Flow4)>;

impl Rig {
    fn new(devices: &TestDevices) -> Self {
        let mut ebpf = EbpfLoader::new()
            .override_global("AYA_LOG_LEVEL", &0u8, false)
            .map_max_entries("FLOWS4", 64)
            .map_max_entries("EMBRYOS4", 1024)
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
        let mut rig = Self {
            ebpf,
            uplink: devices.uplink,
            veth: devices.veth,
            drops: vec![0; SLOTS as usize],
        };
        rig.populate();
        rig
    }

    fn populate(&mut self) {
        let (uplink, veth) = (self.uplink, self.veth);
        self.configure(|_| {});
        let web = Endpoint {
            ifindex: veth.ifindex,
            bridge: veth.ifindex,
            network: 1,
            counter: WEB_COUNTER,
            ip4: ip("web"),
            gateway4: ip("gateway"),
            mac: veth.peer_mac,
            gateway_mac: veth.mac,
            flags: network_flag::MASQUERADE,
            ..Default::default()
        };
        let peer = Endpoint {
            ifindex: PEER_IFINDEX,
            counter: PEER_COUNTER,
            ip4: ip("peer"),
            mac: PEER_MAC,
            ..web
        };
        let stranger = Endpoint {
            ifindex: STRANGER_IFINDEX,
            network: 2,
            counter: 0,
            ip4: ip("stranger"),
            gateway4: ip("elsewhere"),
            mac: [2, 0, 0, 0, 0, 9],
            ..web
        };
        for endpoint in [web, peer, stranger] {
            self.put("ENDPOINTS", endpoint.ifindex, endpoint);
            self.put("ADDRESSES4", endpoint.ip4, endpoint.ifindex);
        }
        for name in ["node", "gateway", "elsewhere"] {
            self.put("LOCALS4", ip(name), Local { ifindex: 1 });
        }
        let mut subnets: LpmTrie<&mut MapData, Ip4, Subnet> =
            LpmTrie::try_from(self.ebpf.map_mut("SUBNETS4").expect("a map")).expect("a trie");
        for (network, name) in [(1, "gateway"), (2, "elsewhere")] {
            let subnet = Subnet {
                network,
                flags: network_flag::MASQUERADE,
            };
            subnets
                .insert(&Key::new(24, ip(name)), subnet, 0)
                .expect("a subnet");
        }
        self.put(
            "UPLINKS",
            uplink.ifindex,
            Uplink {
                ip4: ip("node"),
                mtu: 1500,
                mac: uplink.mac,
                ..Default::default()
            },
        );
        for proto in [proto::TCP, proto::UDP] {
            for port in [8080, 8081] {
                self.publish("0.0.0.0", port, proto, ("web", 80), PUBLISH_COUNTER);
            }
            self.publish("node", 9090, proto, ("peer", 90), 4);
        }
    }

    pub fn publish(&mut self, on: &str, port: u16, proto: u8, to: (&str, u16), counter: u32) {
        let key = PublishKey4 {
            addr: ip(on),
            port: Be16::new(port),
            proto,
            reserved: 0,
        };
        let publish = Publish4 {
            addr: ip(to.0),
            counter,
            port: Be16::new(to.1),
            reserved: 0,
        };
        self.put("PUBLISHES4", key, publish);
    }

    /// Changes the settings, from the defaults.
    pub fn configure(&mut self, change: impl FnOnce(&mut Config)) {
        let mut config = Config::default();
        change(&mut config);
        let mut map: Array<&mut MapData, Config> =
            Array::try_from(self.ebpf.map_mut("CONFIG").expect("a map")).expect("an array");
        map.set(0, config, 0).expect("settings");
    }

    /// Makes every flow expire a tick after its last packet.
    pub fn timeouts(&mut self, ticks: u32) {
        self.configure(|config| {
            config.timeouts = Timeouts {
                tcp_embryonic: ticks,
                tcp_established: ticks,
                tcp_closing: ticks,
                udp_unreplied: ticks,
                udp_replied: ticks,
                icmp: ticks,
            };
        });
    }

    fn put<K: Pod, V: Pod>(&mut self, map: &str, key: K, value: V) {
        let mut map: HashMap<&mut MapData, K, V> =
            HashMap::try_from(self.ebpf.map_mut(map).expect("a map")).expect("a hash");
        map.insert(key, value, 0).expect("room");
    }

    /// As the agent does where `--uplink` does not name it.
    pub fn close_uplink(&mut self) {
        let map = self.ebpf.map_mut("UPLINKS").expect("a map");
        let mut map: HashMap<&mut MapData, u32, Uplink> = HashMap::try_from(map).expect("a hash");
        map.remove(&self.uplink.ifindex).expect("it was there");
    }

    /// Takes the route to a destination away.
    pub fn blackhole(&self, destination: &str) {
        let made = Command::new("ip")
            .args(["route", "add", "blackhole", destination])
            .status()
            .expect("iproute2 is there");
        assert!(made.success(), "no blackhole route to {destination}");
    }

    pub fn evict(&mut self, table: &str, key: Tuple4) {
        let map = self.ebpf.map_mut(table).expect("a map");
        let mut map: HashMap<&mut MapData, Tuple4, Flow4> = HashMap::try_from(map).expect("a hash");
        map.remove(&key).expect("it was there");
    }

    pub fn ip_cmd(&self, args: &str) {
        let made = Command::new("ip")
            .args(args.split(' '))
            .status()
            .expect("iproute2");
        assert!(made.success(), "ip {args}");
    }

    pub fn remove_local(&mut self, name: &str) {
        let map = self.ebpf.map_mut("LOCALS4").expect("a map");
        let mut map: HashMap<&mut MapData, Ip4, Local> = HashMap::try_from(map).expect("a hash");
        map.remove(&ip(name)).expect("it was there");
    }

    /// Sends a packet through the hook where it is received.
    #[track_caller]
    pub fn send(&mut self, at: At, packet: Packet) -> Outcome {
        let (program, ifindex, from, to) = match at {
            At::World => (
                "netfw_uplink",
                self.uplink.ifindex,
                self.uplink.peer_mac,
                self.uplink.mac,
            ),
            At::Web => (
                "netfw_container",
                self.veth.ifindex,
                self.veth.peer_mac,
                self.veth.mac,
            ),
            At::Peer => ("netfw_container", PEER_IFINDEX, PEER_MAC, self.veth.mac),
            At::Egress => (
                "netfw_guard",
                self.uplink.ifindex,
                self.uplink.mac,
                self.uplink.peer_mac,
            ),
        };
        self.run(program, ifindex, &packet.macs(from, to).build())
    }

    /// Sends bytes through the container's hook as `web` does.
    #[track_caller]
    pub fn send_raw(&mut self, at: At, frame: &[u8]) -> Outcome {
        match at {
            At::World => self.run("netfw_uplink", self.uplink.ifindex, frame),
            At::Web => self.run("netfw_container", self.veth.ifindex, frame),
            At::Peer => self.run("netfw_container", PEER_IFINDEX, frame),
            At::Egress => self.run("netfw_guard", self.uplink.ifindex, frame),
        }
    }

    #[track_caller]
    fn run(&mut self, program: &str, ifindex: u32, frame: &[u8]) -> Outcome {
        let program: &SchedClassifier = self
            .ebpf
            .program(program)
            .and_then(|program| program.try_into().ok())
            .expect("a program");
        let ran = program.run_on(frame, ifindex).expect("a test run");
        match ran.verdict {
            TC_NEXT => {
                assert_eq!(ran.frame, frame, "handed on, but changed");
                Outcome::Passed
            }
            TC_DROP => {
                let [reason] = self.new_drops()[..] else {
                    panic!("a drop has one reason");
                };
                Outcome::Dropped(reason)
            }
            TC_REDIRECT => {
                let before = Seen::parse(frame);
                let after = Seen::parse(&ran.frame);
                assert_eq!(ran.frame.len(), frame.len(), "no packet grows or shrinks");
                assert_eq!(off_by(&after), off_by(&before), "checksums, of {after:?}");
                assert_eq!(after.payload, before.payload);
                Outcome::Sent(Box::new(after))
            }
            other => panic!("no verdict of netfw's: {}", tc_verdict(other)),
        }
    }

    /// The reasons counted since the last time, each as often as it was.
    fn new_drops(&mut self) -> Vec<Drop> {
        let map: PerCpuArray<&MapData, u64> =
            PerCpuArray::try_from(self.ebpf.map("DROPS").expect("a map")).expect("an array");
        let now: Vec<u64> = (0..SLOTS)
            .map(|slot| map.get(&slot, 0).expect("a slot").iter().sum())
            .collect();
        let new = Drop::ALL
            .iter()
            .flat_map(|&reason| {
                let slot = reason as usize;
                (self.drops[slot]..now[slot]).map(move |_| reason)
            })
            .collect();
        self.drops = now;
        new
    }

    pub fn counter(&self, index: u32) -> Counter {
        let map: PerCpuArray<&MapData, Counter> =
            PerCpuArray::try_from(self.ebpf.map("COUNTERS").expect("a map")).expect("an array");
        let mut sum = Counter::default();
        for one in map.get(&index, 0).expect("a counter").iter() {
            sum += *one;
        }
        sum
    }

    /// Entries of the assured flows, and of the embryos.
    pub fn entries(&self) -> (Entries, Entries) {
        let [flows, embryos] = ["FLOWS4", "EMBRYOS4"].map(|name| {
            let map: HashMap<&MapData, Tuple4, Flow4> =
                HashMap::try_from(self.ebpf.map(name).expect("a map")).expect("a hash");
            map.iter()
                .collect::<Result<Vec<_>, _>>()
                .expect("nobody else writes")
        });
        (flows, embryos)
    }

    /// Sends a packet and keeps the bytes that come out.
    #[track_caller]
    pub fn frame(&mut self, at: At, packet: Packet, out: &mut Vec<u8>) {
        assert_eq!(at, At::World, "that is all a test has needed yet");
        let frame = packet.macs(self.uplink.peer_mac, self.uplink.mac).build();
        let program: &SchedClassifier = self
            .ebpf
            .program("netfw_uplink")
            .and_then(|program| program.try_into().ok())
            .expect("a program");
        let ran = program
            .run_on(&frame, self.uplink.ifindex)
            .expect("a test run");
        assert_eq!(ran.verdict, TC_REDIRECT);
        *out = ran.frame;
    }

    /// Who has which MAC address.
    pub fn macs(&self) -> Macs {
        Macs {
            client: self.uplink.peer_mac,
            uplink: self.uplink.mac,
            gateway: self.veth.mac,
            web: self.veth.peer_mac,
            peer: PEER_MAC,
        }
    }

    /// Waits until the data plane's clock has moved on by a tick (1.07 s).
    pub fn next_tick(&self) {
        // The programs' clock, which trails the precise one by some milliseconds.
        let tick = || {
            let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).expect("a clock");
            (nix::sys::time::TimeValLike::num_nanoseconds(&now) as u64) >> TICK_SHIFT
        };
        let start = tick();
        wait_until("the next tick", Duration::from_secs(5), || tick() > start);
    }

    /// Opens a TCP connection from the world to a publish, handshake and all; the container's end.
    #[track_caller]
    pub fn connect(&mut self, client: &str, publish: &str, server: &str) -> String {
        let (source, to) = self.send(At::World, tcp(client, publish, "S")).sent();
        assert_eq!(to, server);
        self.send(At::Web, tcp(server, &source, "S.")).sent();
        self.send(At::World, tcp(client, publish, ".")).sent();
        source
    }
}
