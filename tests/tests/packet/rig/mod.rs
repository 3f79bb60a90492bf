//! Runs each case on every hook and in every family: {IPv4, IPv6} × {TC alone, XDP with TC behind
//! it}. A case is written once, with the names of [`netfw_tests::site`].

pub mod told;

use std::{net::IpAddr, process::Command, time::Duration};

use aya::{
    Pod,
    maps::{HashMap, MapData, PerCpuArray},
    programs::{SchedClassifier, Xdp},
};
use netfw_common::{
    addr::{Address, Be32, Ip4, Ip6},
    drop::{Drop, SLOTS},
    event,
    flow::{Flow, Flow6, TICK_SHIFT, Timeouts},
    record::{Config, Counter, Local, Uplink, network_flag},
    tuple::{Tuple, Tuple6, proto},
};
use netfw_tests::{
    netns::enter,
    packet::{Packet, Seen},
    site::{PEER_IFINDEX, Site, names::set_family},
    tap::Tap,
    testrun::{
        Metadata, RunOn as _, TC_DROP, TC_NEXT, TC_REDIRECT, XDP_DROP, XDP_PASS, XDP_REDIRECT,
        run_summed, run_tc, tc_verdict,
    },
    wait_until,
};
use nix::time::{ClockId, clock_gettime};

pub use netfw_tests::site::{
    Macs, PEER_COUNTER, PUBLISH_COUNTER, WEB_COUNTER,
    names::{
        Family, at, error, family, header_len, icmp, ip, named, ping, pong, pseudo_sum, raw, sctp,
        tcp, udp,
    },
};

/// The hooks that a packet from the world meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// TC alone.
    Tc,
    /// XDP, and TC behind it for what XDP passes.
    Xdp,
}

/// With this set, every case is run by programs that trace, which must make no difference.
const TRACED: &str = "NETFW_TRACED";

/// Every way of a packet.
pub const PATHS: [(Family, Hook); 4] = [
    (Family::V4, Hook::Tc),
    (Family::V4, Hook::Xdp),
    (Family::V6, Hook::Tc),
    (Family::V6, Hook::Xdp),
];

/// Where a packet is received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// On the uplink.
    World,
    /// From the container `web`, or `peer`.
    Web,
    Peer,
    /// About to leave by the uplink: from the node itself, or from `web`, translated.
    Egress,
    EgressOfWeb,
}

/// What came of a packet.
#[derive(Debug)]
pub enum Outcome {
    /// Handed on, and not a byte changed.
    Passed,
    Dropped(Drop),
    /// A fragment, kept until the first one of its datagram comes.
    Held,
    /// Dropped, and its sender is told by this.
    Answered(Drop, Box<Seen>),
    /// Redirected. The checksums are as right as they were, and so is the payload.
    Sent(Box<Seen>),
    /// Redirected, and etherparse does not know what to make of it, before or after.
    Unreadable,
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

    /// A fragment, which may have no ports.
    #[track_caller]
    pub fn sent_on(self) {
        self.seen();
    }

    #[track_caller]
    pub fn held(self) {
        assert!(matches!(self, Self::Held), "not kept: {self:?}");
    }

    /// The answer.
    #[track_caller]
    pub fn answered(self, reason: Drop) -> Seen {
        match self {
            Self::Answered(found, seen) if found == reason => *seen,
            other => panic!("not answered as {reason:?}: {other:?}"),
        }
    }

    #[track_caller]
    pub fn dropped(self, reason: Drop) {
        assert!(
            matches!(self, Self::Dropped(found) if found == reason),
            "not dropped as {reason:?}: {self:?}"
        );
    }
}

/// What an error quotes is as right as it was.
#[track_caller]
fn check_quote(before: &Seen, after: &Seen) {
    let (Ok(was), Ok(is)) = (before.try_quote(), after.try_quote()) else {
        return;
    };
    // Of one cut short, the ports changed and the checksum that would make up for it is missing.
    // SCTP's in a quote is nobody's business, and left as it is.
    if was.ip_len <= before.ip_payload.len() - 8 && is.protocol != proto::SCTP {
        assert_eq!(is.damage, was.damage, "of the quote, {after:?}");
    }
    assert_eq!(is.payload, was.payload, "of the quote");
}

/// One test on one path.
pub struct Rig {
    site: Site,
    hook: Hook,
    config: Config,
    /// Drops by reason that have been accounted for.
    drops: Vec<u64>,
    /// Was the last packet XDP's to decide about?
    by_xdp: bool,
    /// The site is not for others any more.
    spoilt: bool,
    /// The test looks itself at what is told.
    pub unchecked: bool,
    /// TC gets frames whose bytes a device has summed up, and the sum has to stay right.
    pub summed: bool,
    /// What TC is told of the control block (`skb->cb`).
    pub cb: [u32; 5],
    /// What it left there.
    pub cb_left: [u32; 5],
}

/// Runs `test` on every path.
#[track_caller]
pub fn with_rig(test: impl Fn(&mut Rig) + Sync) {
    on_paths(&PATHS, test);
}

/// Runs `test` in one family, for what the other does not have.
#[track_caller]
pub fn with_rig_in(only: Family, test: impl Fn(&mut Rig) + Sync) {
    let paths = PATHS.map(|(_, hook)| (only, hook));
    on_paths(&paths[..2], test);
}

/// Runs `test` on every path, by programs that trace.
#[track_caller]
pub fn with_traced_rig(test: impl Fn(&mut Rig) + Sync) {
    on_paths_by(&PATHS, true, test);
}

#[track_caller]
fn on_paths(paths: &[(Family, Hook)], test: impl Fn(&mut Rig) + Sync) {
    let traces = std::env::var_os(TRACED).is_some_and(|value| !value.is_empty());
    on_paths_by(paths, traces, test);
}

#[track_caller]
fn on_paths_by(paths: &[(Family, Hook)], traces: bool, test: impl Fn(&mut Rig) + Sync) {
    netfw_tests::require_root();
    for &(family, hook) in paths {
        println!("{family:?}, {hook:?}");
        let mut rig = Rig {
            site: Site::take(traces),
            hook,
            config: Config::default(),
            drops: vec![0; SLOTS as usize],
            by_xdp: false,
            spoilt: false,
            unchecked: false,
            summed: false,
            cb: [0; 5],
            cb_left: [0; 5],
        };
        let node = rig.site.devices.node.path();
        let rig = enter(&node, || {
            set_family(family);
            rig.site.reset();
            told::listen(&mut rig.site);
            rig.new_drops();
            test(&mut rig);
            assert_eq!(rig.new_drops(), [], "counted, but nothing was dropped");
            rig
        });
        if !rig.spoilt {
            rig.site.give_back();
        }
    }
}

/// Entries as IPv6 ones: IPv4 addresses are mapped into it.
type Entries = Vec<(Tuple6, Flow6)>;

/// An address in both of its forms.
trait Mapped: Address {
    fn widen(self) -> Ip6;
    fn narrow(wide: Ip6) -> Self;
}

impl Mapped for Ip4 {
    fn widen(self) -> Ip6 {
        Ip6([Be32::new(0), Be32::new(0), Be32::new(0xffff), self.0])
    }
    fn narrow(wide: Ip6) -> Self {
        Self(wide.0[3])
    }
}

impl Mapped for Ip6 {
    fn widen(self) -> Ip6 {
        self
    }
    fn narrow(wide: Ip6) -> Self {
        wide
    }
}

fn convert_key<A: Mapped, B: Mapped>(key: Tuple<A>) -> Tuple<B> {
    Tuple {
        src: B::narrow(key.src.widen()),
        dst: B::narrow(key.dst.widen()),
        sport: key.sport,
        dport: key.dport,
        proto: key.proto,
        zone: key.zone,
        scope: key.scope,
    }
}

fn convert<A: Mapped, B: Mapped>(flow: Flow<A>) -> Flow<B> {
    Flow {
        src: B::narrow(flow.src.widen()),
        dst: B::narrow(flow.dst.widen()),
        sport: flow.sport,
        dport: flow.dport,
        ifindex: flow.ifindex,
        macs: flow.macs,
        seen: flow.seen,
        end: flow.end,
        ack: flow.ack,
        counter: flow.counter,
        routed: flow.routed,
        mtu: flow.mtu,
        state: flow.state,
        flags: flow.flags,
    }
}

impl Rig {
    pub fn hook(&self) -> Hook {
        self.hook
    }

    pub fn publish(&mut self, on: &str, port: u16, proto: u8, to: (&str, u16), counter: u32) {
        self.site.publish(on, port, proto, to, counter);
    }

    /// See [`Site::allow`].
    pub fn allow(&mut self, list: u16, name: &str, length: u32) {
        self.site.allow(list, name, length);
    }

    /// TCP, UDP and SCTP, for whom a list names.
    pub fn publish_for(&mut self, list: u16, on: &str, port: u16, to: (&str, u16)) {
        for proto in [proto::TCP, proto::UDP, proto::SCTP] {
            self.site
                .publish_for(list, on, port, proto, to, PUBLISH_COUNTER);
        }
    }

    /// Changes the settings, from the defaults.
    pub fn configure(&mut self, change: impl FnOnce(&mut Config)) {
        self.config = Config {
            mappings: self.config.mappings,
            ..Config::default()
        };
        change(&mut self.config);
        self.site.configure(self.config);
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

    /// Changes what is known of `web`.
    pub fn change_web(&mut self, change: impl FnOnce(&mut netfw_common::record::Endpoint)) {
        let [mut web, ..] = self.site.endpoints();
        change(&mut web);
        self.site.put("ENDPOINTS", web.ifindex, web);
    }

    /// Gives `container` rules of its network beside those that it has.
    pub fn rules(&mut self, container: At, flags: u32) {
        let [web, peer, _] = self.site.endpoints();
        let mut endpoint = match container {
            At::Web => web,
            At::Peer => peer,
            other => panic!("no container: {other:?}"),
        };
        endpoint.flags |= flags;
        self.site.put("ENDPOINTS", endpoint.ifindex, endpoint);
        if flags & network_flag::ENDPOINT_INDEPENDENT != 0 {
            self.config.mappings = 1;
            self.site.configure(self.config);
        }
    }

    /// `web`'s network masquerades nobody (`--no-masquerade`).
    pub fn keep_addresses(&mut self) {
        self.change_web(|web| web.flags &= !network_flag::MASQUERADE);
        self.site.set_subnet("gateway", 1, 0);
    }

    /// As the agent does where `--uplink` does not name it.
    pub fn close_uplink(&mut self) {
        let ifindex = self.site.devices.uplink.ifindex;
        self.site.remove::<u32, Uplink>("UPLINKS", ifindex);
    }

    /// `table`: without the family's digit.
    pub fn evict(&mut self, table: &str, key: Tuple6) {
        match family() {
            Family::V4 => {
                let key = convert_key::<Ip6, Ip4>(key);
                self.site.remove::<_, Flow<Ip4>>(&format!("{table}4"), key);
            }
            Family::V6 => self.site.remove::<_, Flow6>(&format!("{table}6"), key),
        }
    }

    /// `ip` of the family at hand, in the node's namespace: the site serves no other test after this.
    pub fn ip_cmd(&mut self, args: &str) {
        self.spoilt = true;
        let family = match family() {
            Family::V4 => "-4",
            Family::V6 => "-6",
        };
        let made = Command::new("ip")
            .arg(family)
            .args(args.split(' '))
            .status()
            .expect("iproute2");
        assert!(made.success(), "ip {args}");
    }

    pub fn remove_local(&mut self, name: &str) {
        match ip(name) {
            IpAddr::V4(addr) => self.site.remove::<_, Local>("LOCALS4", Ip4::from(addr)),
            IpAddr::V6(addr) => self.site.remove::<_, Local>("LOCALS6", Ip6::from(addr)),
        }
    }

    pub fn add_local(&mut self, addr: IpAddr) {
        let local = Local { ifindex: 1 };
        match addr {
            IpAddr::V4(addr) => self.site.put("LOCALS4", Ip4::from(addr), local),
            IpAddr::V6(addr) => self.site.put("LOCALS6", Ip6::from(addr), local),
        }
    }

    /// Sends a packet through the hooks where it is received.
    #[track_caller]
    pub fn send(&mut self, at: At, packet: Packet) -> Outcome {
        let macs = self.macs();
        let (from, to) = match at {
            At::World => (macs.client, macs.uplink),
            At::Web => (macs.web, macs.gateway),
            At::Peer => (macs.peer, macs.gateway),
            At::Egress | At::EgressOfWeb => (macs.uplink, macs.client),
        };
        self.send_raw(at, &packet.macs(from, to).build())
    }

    /// Sends bytes through the hooks where they are received.
    #[track_caller]
    pub fn send_raw(&mut self, at: At, frame: &[u8]) -> Outcome {
        self.run(at, frame).0
    }

    /// Sends packets one after the other, and whatever they wake; what came of each, and its bytes.
    /// Those that are kept are not among them, but woken later they are.
    #[track_caller]
    pub fn send_all(&mut self, at: At, packets: &[Packet]) -> Vec<(Outcome, Vec<u8>)> {
        /// For softirqs of a busy machine.
        const SOON: Duration = Duration::from_millis(300);
        let macs = self.macs();
        let (from, to, ifindex) = match at {
            At::World => (macs.client, macs.uplink, self.site.devices.uplink.ifindex),
            At::Web => (macs.web, macs.gateway, self.site.devices.veth.ifindex),
            At::Peer => (macs.peer, macs.gateway, PEER_IFINDEX),
            At::Egress | At::EgressOfWeb => panic!("nothing is kept there"),
        };
        let tap = Tap::on(ifindex);
        let mut kept: Vec<Vec<u8>> = Vec::new();
        let mut all = Vec::new();
        for (number, packet) in packets.iter().enumerate() {
            let mut frame = packet.clone().macs(from, to).build();
            let mut ran = self.run(at, &frame);
            // What is late comes behind the next packet.
            let time = if number + 1 == packets.len() {
                SOON
            } else {
                Duration::ZERO
            };
            loop {
                match ran {
                    (Outcome::Held, _) => kept.push(frame),
                    ran => all.push(ran),
                }
                let woken = loop {
                    if kept.is_empty() {
                        break None;
                    }
                    match tap.next(time) {
                        // Others speak on the link, too.
                        Some(frame) if !kept.contains(&frame) => {}
                        woken => break woken,
                    }
                };
                let Some(woken) = woken else { break };
                kept.retain(|other| *other != woken);
                ran = self.run_tc(at, &woken);
                frame = woken;
            }
        }
        all
    }

    /// Sends a packet from the world; the bytes that come out.
    #[track_caller]
    pub fn frame(&mut self, packet: Packet) -> Vec<u8> {
        let macs = self.macs();
        let frame = packet.macs(macs.client, macs.uplink).build();
        let (outcome, bytes) = self.run(At::World, &frame);
        outcome.seen();
        bytes
    }

    /// Was the last packet decided about by XDP? Always so where there is no XDP to ask.
    pub fn was_for_xdp(&self) -> bool {
        self.hook == Hook::Tc || self.by_xdp
    }

    #[track_caller]
    fn run(&mut self, at: At, frame: &[u8]) -> (Outcome, Vec<u8>) {
        self.by_xdp = false;
        if at == At::World && self.hook == Hook::Xdp {
            let ifindex = self.site.devices.uplink.ifindex;
            let program: &Xdp = self
                .site
                .ebpf
                .program("netfw_uplink_xdp")
                .and_then(|program| program.try_into().ok())
                .expect("a program");
            let ran = program.run_on(frame, ifindex).expect("a test run");
            self.by_xdp = ran.verdict != XDP_PASS;
            match ran.verdict {
                XDP_PASS => {
                    assert_eq!(ran.frame, frame, "passed by XDP, but changed");
                    self.check_told(event::Hook::Xdp, ifindex, frame, &Outcome::Passed);
                }
                XDP_DROP | XDP_REDIRECT => {
                    let outcome = match ran.verdict {
                        XDP_DROP => self.drop_of(),
                        _ => self.redirected(frame, &ran.frame),
                    };
                    self.check_told(event::Hook::Xdp, ifindex, frame, &outcome);
                    return (outcome, ran.frame);
                }
                other => panic!("no XDP verdict of netfw's: {other}"),
            }
        }
        self.run_tc(at, frame)
    }

    #[track_caller]
    fn run_tc(&mut self, at: At, frame: &[u8]) -> (Outcome, Vec<u8>) {
        let devices = &self.site.devices;
        let (uplink, veth) = (devices.uplink.ifindex, devices.veth.ifindex);
        let (program, ifindex, received_on) = match at {
            At::World => ("netfw_uplink", uplink, uplink),
            At::Web => ("netfw_container", veth, veth),
            At::Peer => ("netfw_container", PEER_IFINDEX, PEER_IFINDEX),
            At::Egress => ("netfw_guard", uplink, 0),
            At::EgressOfWeb => ("netfw_guard", uplink, veth),
        };
        let program: &SchedClassifier = self
            .site
            .ebpf
            .program(program)
            .and_then(|program| program.try_into().ok())
            .expect("a program");
        let metadata = Metadata {
            ifindex,
            received_on,
            cb: self.cb,
        };
        let summed = self
            .summed
            .then(|| run_summed(program, frame, &metadata).expect("a right sum"));
        let ran = summed
            .flatten()
            .unwrap_or_else(|| run_tc(program, frame, &metadata).expect("a test run"));
        self.cb_left = ran.cb;
        let outcome = match ran.verdict {
            TC_NEXT => {
                assert_eq!(ran.frame, frame, "handed on, but changed");
                Outcome::Passed
            }
            TC_DROP => self.drop_of(),
            TC_REDIRECT => self.redirected(frame, &ran.frame),
            other => panic!("no verdict of netfw's: {}", tc_verdict(other)),
        };
        let hook = match at {
            At::World => event::Hook::Uplink,
            At::Web | At::Peer => event::Hook::Container,
            At::Egress | At::EgressOfWeb => event::Hook::Guard,
        };
        self.check_told(hook, ifindex, frame, &outcome);
        (outcome, ran.frame)
    }

    #[track_caller]
    fn drop_of(&mut self) -> Outcome {
        match self.new_drops()[..] {
            [] => Outcome::Held,
            [reason] => Outcome::Dropped(reason),
            ref reasons => panic!("a drop has one reason: {reasons:?}"),
        }
    }

    #[track_caller]
    fn redirected(&mut self, frame: &[u8], sent: &[u8]) -> Outcome {
        if let [reason] = self.new_drops()[..] {
            let after = Seen::parse(sent);
            let partial = Seen::try_parse(frame).is_ok_and(|before| before.looks_partial());
            assert!(partial || after.damage.is_empty(), "of an answer {after:?}");
            return Outcome::Answered(reason, Box::new(after));
        }
        assert_eq!(sent.len(), frame.len(), "no packet grows or shrinks");
        let (before, after) = match (Seen::try_parse(frame), Seen::try_parse(sent)) {
            (Ok(before), Ok(after)) => (before, after),
            (Err(before), Err(after)) => {
                assert_eq!(before, after, "another damage than before");
                return Outcome::Unreadable;
            }
            (before, after) => panic!("before: {before:?}, after: {after:?}"),
        };
        assert_eq!(after.damage, before.damage, "of {after:?}");
        if after.is_icmp_error() {
            check_quote(&before, &after);
        } else {
            assert_eq!(after.payload, before.payload);
        }
        Outcome::Sent(Box::new(after))
    }

    /// The reasons counted since the last time, each as often as it was.
    fn new_drops(&mut self) -> Vec<Drop> {
        let map: PerCpuArray<&MapData, u64> =
            PerCpuArray::try_from(self.site.ebpf.map("DROPS").expect("a map")).expect("an array");
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
            PerCpuArray::try_from(self.site.ebpf.map("COUNTERS").expect("a map"))
                .expect("an array");
        let mut sum = Counter::default();
        for one in map.get(&index, 0).expect("a counter").iter() {
            sum += *one;
        }
        sum
    }

    /// Entries of the assured flows, and of the embryos.
    pub fn entries(&self) -> (Entries, Entries) {
        match family() {
            Family::V4 => (self.table::<Ip4>("FLOWS4"), self.table::<Ip4>("EMBRYOS4")),
            Family::V6 => (self.table::<Ip6>("FLOWS6"), self.table::<Ip6>("EMBRYOS6")),
        }
    }

    fn table<A: Mapped>(&self, name: &str) -> Entries
    where
        Tuple<A>: Pod,
        Flow<A>: Pod,
    {
        let map: HashMap<&MapData, Tuple<A>, Flow<A>> =
            HashMap::try_from(self.site.ebpf.map(name).expect("a map")).expect("a hash");
        map.iter()
            .map(|entry| {
                let (key, flow) = entry.expect("nobody else writes");
                (convert_key(key), convert(flow))
            })
            .collect()
    }

    /// Makes all flows look as if their last packet had come so many ticks earlier.
    pub fn age(&mut self, ticks: u32) {
        match family() {
            Family::V4 => self.age_table::<Ip4>("FLOWS4", ticks),
            Family::V6 => self.age_table::<Ip6>("FLOWS6", ticks),
        }
    }

    fn age_table<A: Mapped>(&mut self, name: &str, ticks: u32)
    where
        Tuple<A>: Pod,
        Flow<A>: Pod,
    {
        let map = self.site.ebpf.map_mut(name).expect("a map");
        let mut map: HashMap<&mut MapData, Tuple<A>, Flow<A>> =
            HashMap::try_from(map).expect("a hash");
        let entries: Vec<_> = map.iter().collect::<Result<_, _>>().expect("entries");
        for (key, mut flow) in entries {
            flow.seen = flow.seen.wrapping_sub(ticks);
            map.insert(key, flow, 0).expect("an entry can be replaced");
        }
    }

    /// Ends all flows.
    pub fn forget(&mut self) {
        self.site.reset();
        self.new_drops();
    }

    /// Who has which MAC address.
    pub fn macs(&self) -> Macs {
        self.site.macs()
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
