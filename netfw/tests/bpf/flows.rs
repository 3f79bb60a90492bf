//! The flow tables: walked, swept, counted.

use std::{
    collections::HashSet,
    path::Path,
    time::{Duration, Instant},
};

use aya::maps::{Array, Map, MapData};
use netfw::bpf::{BPFFS, DataPlane, Family, FlowWalk, Options, Part, Visit, now};
use netfw_common::{
    ABI,
    addr::{Be16, Ip4, Ip6},
    flow::{Flow, Flow4, flag, holdings, state},
    record::{Mapping, Mapping6, MappingKey, MappingKey6, side},
    tuple::{Tuple, Tuple4, proto, zone},
};

use crate::{instance::Instance, lab::root};

/// Both halves of a flow from client `n` to a container.
pub fn flow(n: u32, state: u8, seen: u32) -> [(Tuple4, Flow4); 2] {
    let client = Ip4::new((0x0b00_0000 + n).to_be_bytes());
    let key = Tuple4 {
        src: client,
        dst: Ip4::new([192, 0, 2, 1]),
        sport: Be16::new(40_000),
        dport: Be16::new(8080),
        proto: proto::TCP,
        zone: zone::WORLD,
        scope: 0,
    };
    let half = Flow4 {
        src: client,
        dst: Ip4::new([172, 18, 0, 2]),
        sport: key.sport,
        dport: Be16::new(80),
        flags: flag::TO_CONTAINER,
        state,
        seen,
        ..Default::default()
    };
    let reply = Flow4 {
        src: key.dst,
        dst: client,
        sport: key.dport,
        dport: key.sport,
        flags: flag::REPLY,
        ..half
    };
    [(key, half), (half.reverse_key(proto::TCP), reply)]
}

fn insert(plane: &mut DataPlane, flow: [(Tuple4, Flow4); 2]) {
    for (key, half) in flow {
        plane.insert_flow(&key, &half).unwrap();
    }
}

fn sweep_part<A: Family>(plane: &mut DataPlane, part: Part) -> usize {
    let mut swept = 0;
    loop {
        let (some, end) = plane.sweep::<A>(part).unwrap();
        swept += some;
        if end {
            return swept;
        }
    }
}

fn sweep_all(plane: &mut DataPlane) -> usize {
    [Part::Assured, Part::Embryos, Part::Mappings]
        .into_iter()
        .map(|part| sweep_part::<Ip4>(plane, part) + sweep_part::<Ip6>(plane, part))
        .sum()
}

/// How many entries there are.
fn count(plane: &mut DataPlane) -> usize {
    let mut seen = Seen::default();
    plane.visit_all(&mut seen).unwrap();
    seen.flows.len()
}

#[derive(Default)]
struct Seen {
    flows: HashSet<String>,
    mappings: HashSet<String>,
}

impl Visit for Seen {
    fn flow<A: Family>(&mut self, key: &Tuple<A>, _: &Flow<A>) -> bool {
        let ips = (key.src.ip(), key.dst.ip());
        let ports = (key.sport.get(), key.dport.get());
        self.flows.insert(format!("{ips:?} {ports:?} {}", key.zone));
        false
    }

    fn mapping<A: Family>(&mut self, key: &MappingKey<A>, _: &Mapping<A>) -> bool {
        let key = (key.addr.ip(), key.port.get(), key.proto, key.side);
        self.mappings.insert(format!("{key:?}"));
        false
    }
}

/// Takes the flows with this counter, and all mappings if it is 0.
struct Counter(u16);

impl Visit for Counter {
    fn flow<A: Family>(&mut self, _: &Tuple<A>, flow: &Flow<A>) -> bool {
        flow.counter == self.0
    }

    fn mapping<A: Family>(&mut self, _: &MappingKey<A>, _: &Mapping<A>) -> bool {
        self.0 == 0
    }

    fn permit<A: Family>(&mut self, _: &Tuple<A>) -> bool {
        self.0 == 0
    }
}

#[test]
fn only_what_is_over_is_swept() {
    if !root() {
        return;
    }
    let instance = Instance::new();
    let mut plane = DataPlane::load(&instance.options()).unwrap();
    let now = now();
    let old = now.wrapping_sub(10_000);
    insert(&mut plane, flow(1, state::ESTABLISHED, now));
    insert(&mut plane, flow(2, state::ESTABLISHED, old));
    insert(&mut plane, flow(3, state::NEW, now));
    insert(&mut plane, flow(4, state::NEW, old));
    // One half was refreshed a moment later than the other: it lives.
    let [(key, half), (reverse, reply)] = flow(5, state::ESTABLISHED, old);
    insert(
        &mut plane,
        [(key, half), (reverse, Flow4 { seen: now, ..reply })],
    );
    // An orphan: expired, its other half missing.
    let [(key, half), _] = flow(6, state::ESTABLISHED, old);
    plane.insert_flow(&key, &half).unwrap();

    assert_eq!(plane.flow_usage::<Ip4>(Part::Assured), (2, 1 << 12));
    assert_eq!(count(&mut plane), 2 + 2 + 2 + 2 + 2 + 1);
    assert_eq!(sweep_all(&mut plane), 3);
    assert_eq!(sweep_all(&mut plane), 0);
    assert_eq!(count(&mut plane), 2 + 2 + 2);
    // Either half says which flow it is.
    let [(key, half), _] = flow(7, state::ESTABLISHED, now);
    insert(&mut plane, flow(7, state::ESTABLISHED, now));
    plane
        .insert_flow(&key, &Flow4 { counter: 9, ..half })
        .unwrap();
    assert_eq!(plane.visit_all(&mut Counter(9)).unwrap(), 1);
    assert_eq!(plane.visit_all(&mut Counter(0)).unwrap(), 3);
    assert_eq!(count(&mut plane), 0);
    assert_eq!(plane.flow_usage::<Ip4>(Part::Assured).0, 0);
}

/// Flow `n` of the holder with counter 9.
fn held(n: u32) -> [(Tuple4, Flow4); 2] {
    flow(n, state::ESTABLISHED, now()).map(|(key, half)| (key, Flow { counter: 9, ..half }))
}

fn holdings_of(instance: &Instance) -> Array<MapData, u64> {
    let pin = Path::new(BPFFS)
        .join(&instance.0)
        .join(format!("v{ABI}/maps/HOLDINGS4"));
    let map = Map::Array(MapData::from_pin(pin).unwrap());
    map.try_into().unwrap()
}

/// What is removed of flows without connections is told to the programs.
#[test]
fn removed_queries_are_counted() {
    if !root() {
        return;
    }
    let instance = Instance::new();
    let mut plane = DataPlane::load(&instance.options()).unwrap();
    insert(&mut plane, held(1));
    let [(key, half), (_, reply)] = held(2);
    let key = Tuple4 {
        proto: proto::UDP,
        ..key
    };
    let reverse = half.reverse_key(proto::UDP);
    insert(&mut plane, [(key, half), (reverse, reply)]);
    assert_eq!(plane.visit_all(&mut Counter(9)).unwrap(), 2);
    let counts = holdings_of(&instance);
    let count = |element| counts.get(&element, 0).unwrap();
    for (holder, removed) in [(holdings::ALL, 4), (holdings::QUERIES, 2), (9, 4), (8, 0)] {
        assert_eq!(count(holdings::removed(holder)), removed, "{holder}");
        assert_eq!(count(holdings::made(holder)), 0, "{holder}");
    }
    assert_eq!(count(holdings::EXACT), 1);
}

/// An agent that was killed before it had counted what it removed, and a counter with a new holder.
#[test]
fn holdings_are_counted_anew_where_they_are_not_right() {
    if !root() {
        return;
    }
    let instance = Instance::new();
    let mut plane = DataPlane::load(&instance.options()).unwrap();
    for n in 0..3 {
        insert(&mut plane, held(n));
    }
    drop(plane);
    let mut counts = holdings_of(&instance);
    let made = [(holdings::ALL, 20), (holdings::QUERIES, 2), (9, 8), (7, 4)];
    for (holder, entries) in made {
        counts.set(holdings::made(holder), entries, 0).unwrap();
    }
    let held = |holder| {
        let counts = holdings_of(&instance);
        let count = |element| counts.get(&element, 0).unwrap();
        count(holdings::made(holder)) - count(holdings::removed(holder))
    };
    // They are held for right.
    drop(DataPlane::load(&instance.options()).unwrap());
    assert_eq!(made.map(|(holder, _)| held(holder)), [20, 2, 8, 4]);
    counts.set(holdings::EXACT, 0, 0).unwrap();
    let mut plane = DataPlane::load(&instance.options()).unwrap();
    assert_eq!(made.map(|(holder, _)| held(holder)), [6, 0, 6, 0]);
    assert_eq!(counts.get(&holdings::EXACT, 0).unwrap(), 1);
    plane.reset_counter(9).unwrap();
    assert_eq!(held(9), 0);
}

#[test]
fn both_families_are_walked() {
    if !root() {
        return;
    }
    let instance = Instance::new();
    let mut plane = DataPlane::load(&instance.options()).unwrap();
    insert(&mut plane, flow(1, state::ESTABLISHED, now()));
    let client = Ip6::of("2001:db8::9".parse().unwrap()).unwrap();
    let node = Ip6::of("2001:db8::1".parse().unwrap()).unwrap();
    let container = Ip6::of("fd00::2".parse().unwrap()).unwrap();
    let key = Tuple {
        src: client,
        dst: node,
        sport: Be16::new(40_000),
        dport: Be16::new(8080),
        proto: proto::TCP,
        zone: zone::WORLD,
        scope: 0,
    };
    let half = Flow {
        src: client,
        dst: container,
        sport: key.sport,
        dport: Be16::new(80),
        flags: flag::TO_CONTAINER,
        state: state::NEW,
        seen: now(),
        ..Default::default()
    };
    let reply = Flow {
        src: node,
        dst: client,
        sport: key.dport,
        dport: key.sport,
        flags: flag::REPLY,
        ..half
    };
    plane.insert_flow(&key, &half).unwrap();
    plane
        .insert_flow(&half.reverse_key(proto::TCP), &reply)
        .unwrap();
    assert_eq!(count(&mut plane), 4);
    let mut walk = FlowWalk::default();
    let mut steps = 0;
    while !plane.visit(&mut walk, &mut Counter(0)).unwrap() {
        steps += 1;
        assert!(steps < 100, "it ends");
    }
    assert_eq!(walk.removed, 2);
    assert_eq!(count(&mut plane), 0);
}

#[test]
fn a_mapping_goes_with_both_sides_and_not_before_its_time() {
    if !root() {
        return;
    }
    let instance = Instance::new();
    let mut plane = DataPlane::load(&instance.options()).unwrap();
    let inside = Ip6::of("fd00::2".parse().unwrap()).unwrap();
    let outside = Ip6::of("2001:db8::1".parse().unwrap()).unwrap();
    let mut map = |port: u16, proto: u8, age: u32| {
        let seen = now().wrapping_sub(age);
        let port = Be16::new(port);
        for (side, addr, other) in [
            (side::INTERNAL, inside, outside),
            (side::EXTERNAL, outside, inside),
        ] {
            let key = MappingKey6 {
                addr,
                port,
                proto,
                side,
            };
            let mapping = Mapping6 {
                addr: other,
                port,
                state: state::ESTABLISHED,
                reserved: 0,
                // Kept up to date in this side alone.
                seen: if side == side::EXTERNAL { seen } else { 0 },
            };
            plane.insert_mapping(&key, &mapping).unwrap();
        }
    };
    map(1000, proto::UDP, 10);
    map(1001, proto::UDP, 1000);
    map(1002, proto::TCP, 1000);
    map(1003, proto::TCP, 100_000);
    let sides = |plane: &mut DataPlane| {
        let mut seen = Seen::default();
        plane.visit_all(&mut seen).unwrap();
        seen.mappings.len()
    };
    assert_eq!(sides(&mut plane), 8);
    assert_eq!(plane.flow_usage::<Ip6>(Part::Mappings).0, 4);
    assert_eq!(sweep_all(&mut plane), 2, "one of UDP, one of TCP");
    assert_eq!(sides(&mut plane), 4);
    let permit = Tuple::<Ip6> {
        dst: inside,
        ..Default::default()
    };
    plane.insert_permit(&permit, now()).unwrap();
    assert_eq!(plane.flow_usage::<Ip6>(Part::Permits).0, 1);
    plane.visit_all(&mut Counter(0)).unwrap();
    assert_eq!(sides(&mut plane), 0);
    assert_eq!(plane.flow_usage::<Ip6>(Part::Permits).0, 0);
}

#[test]
fn a_million_flows_do_not_stall() {
    if !root() || std::env::var_os("NETFW_TEST_LARGE").is_none() {
        eprintln!("skipped: needs root and NETFW_TEST_LARGE=1");
        return;
    }
    let instance = Instance::new();
    let options = Options {
        max_flows: 1 << 20,
        ..instance.options()
    };
    let started = Instant::now();
    let mut plane = DataPlane::load(&options).unwrap();
    eprintln!("load with room for 2^20 flows: {:?}", started.elapsed());
    let now = now();
    let started = Instant::now();
    for n in 0..1_000_000 {
        let age = if n % 10 == 0 { 10_000 } else { 100 };
        insert(
            &mut plane,
            flow(n, state::ESTABLISHED, now.wrapping_sub(age)),
        );
    }
    eprintln!("insert a million one by one: {:?}", started.elapsed());
    let started = Instant::now();
    let used = plane.flow_usage::<Ip4>(Part::Assured);
    eprintln!("usage {used:?}: {:?}", started.elapsed());
    assert!(used.0.abs_diff(900_000) < 9_000, "{used:?}");
    let started = Instant::now();
    let mut longest = Duration::ZERO;
    let mut removed = 0;
    loop {
        let one = Instant::now();
        let (some, end) = plane.sweep::<Ip4>(Part::Assured).unwrap();
        longest = longest.max(one.elapsed());
        removed += some;
        if end {
            break;
        }
    }
    eprintln!(
        "swept {removed} in {:?}, longest step {longest:?}",
        started.elapsed()
    );
    assert_eq!(removed, 100_000);
    // What `unpublish` and `endpoint rm` do, for nothing and for everything.
    for (counter, want) in [(77, 0), (0, 900_000)] {
        let started = Instant::now();
        let mut longest = Duration::ZERO;
        let mut walk = FlowWalk::default();
        loop {
            let one = Instant::now();
            let end = plane.visit(&mut walk, &mut Counter(counter)).unwrap();
            longest = longest.max(one.elapsed());
            if end {
                break;
            }
        }
        eprintln!(
            "removed {} in {:?}, longest step {longest:?}",
            walk.removed,
            started.elapsed()
        );
        assert_eq!(walk.removed, want);
        assert!(longest < Duration::from_millis(100), "{longest:?}");
    }
}
