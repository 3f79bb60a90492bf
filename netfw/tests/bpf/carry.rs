//! The data plane of an older layout, taken over. There is only one layout to make it of: its directory is
//! renamed to that of the one before.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use aya::maps::{Array, Map, MapData, MapInfo};
use netfw::{
    bpf::{Attachment, BPFFS, BpfError, Change, DataPlane, Options, Step, XdpMode, now},
    net::Netlink,
};
use netfw_common::{
    ABI,
    flow::{Flow4, holdings, state},
    tuple::Tuple4,
};

use crate::{
    flows::flow,
    instance::Instance,
    lab::{Lab, dummy_veth, root},
    life::{links, publish, publish_key},
};

fn layout(instance: &str, version: u32) -> PathBuf {
    Path::new(BPFFS).join(instance).join(format!("v{version}"))
}

/// Makes what is pinned an older netfw's.
fn age(instance: &str) {
    fs::rename(layout(instance, ABI), layout(instance, ABI - 1)).unwrap();
}

/// The numbers that the kernel gave the maps.
fn maps(instance: &str) -> BTreeMap<String, u32> {
    let entries = fs::read_dir(layout(instance, ABI).join("maps")).unwrap();
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            let info = MapInfo::from_pin(entry.path()).unwrap();
            (entry.file_name().into_string().unwrap(), info.id())
        })
        .collect()
}

#[test]
fn links_and_maps_go_on_in_the_new_layout() {
    if !root() {
        return;
    }
    for way in [Attachment::Tcx, Attachment::Clsact] {
        let node = Lab::new();
        let peer = Lab::new();
        let instance = Instance::new();
        // As if no record had changed.
        let options = Options {
            steps: &[],
            ..instance.options()
        };
        let within = peer.namespace.try_clone().unwrap();
        node.run(async move || {
            let netlink = Netlink::current().unwrap();
            let (host, _) = dummy_veth(&netlink, "nf-web", &within).await;
            let uplink = netlink.link("br0").await.unwrap().unwrap();
            netlink.set_up(uplink.index).await.unwrap();
            let mut plane = DataPlane::load(&options).unwrap();
            plane.attach_only(way);
            plane.attach_container(host, "nf-web").unwrap();
            plane.attach_uplink(uplink.index, "br0").unwrap();
            let generic = XdpMode::Generic;
            plane.attach_xdp(uplink.index, "br0", generic).unwrap();
            plane.attach_sockets().unwrap();
            let entry = (publish_key(8080), publish(80));
            plane.publish([entry]).unwrap();
            let before = (maps(&options.instance), links(&options.instance));
            drop(plane);

            age(&options.instance);
            assert!(DataPlane::exists(&options.instance));
            let plane = DataPlane::load(&options).unwrap();
            assert_eq!(plane.publishes(), [entry]);
            assert_eq!(plane.xdp_mode(uplink.index).unwrap(), Some(generic));
            assert!(!plane.lacks_program(host));
            assert!(!layout(&options.instance, ABI - 1).exists());
            let after = (maps(&options.instance), links(&options.instance));
            assert_eq!(before.0, after.0, "they are the same maps");
            assert_eq!(before.1.len(), after.1.len());
            for (name, before) in before.1 {
                match (before, after.1[&name]) {
                    (Some((link, program)), Some(after)) => {
                        assert_eq!(after.0, link, "{name} was swapped in place");
                        assert_ne!(after.1, program, "{name} has another program");
                    }
                    (before, after) => assert_eq!(before, after),
                }
            }
            drop(plane);
            DataPlane::remove(&options.instance).unwrap();
        });
    }
}

fn open(instance: &str, version: u32) -> aya::maps::HashMap<MapData, Tuple4, Flow4> {
    let path = layout(instance, version).join("maps/FLOWS4");
    let map = Map::HashMap(MapData::from_pin(path).unwrap());
    map.try_into().unwrap()
}

/// The instance of the test that runs [`later`].
static CONVERTED: OnceLock<String> = OnceLock::new();
const LATE: u32 = 7_777;

/// A flow's last use as another layout might write it. While it is at work, the old programs make another flow.
fn later(key: &[u8], value: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let instance = CONVERTED.get().unwrap();
    for (key, half) in flow(LATE, state::ESTABLISHED, 1) {
        open(instance, ABI - 1).insert(key, half, 0).unwrap();
    }
    let (mut changed, seen) = (value.to_vec(), std::mem::offset_of!(Flow4, seen));
    let word = u32::from_ne_bytes(value[seen..seen + 4].try_into().unwrap());
    changed[seen..seen + 4].copy_from_slice(&(word + 1000).to_ne_bytes());
    Some((key.into(), changed))
}

#[test]
fn entries_are_rewritten_where_a_record_changed() {
    const CHANGED: &[Step] = &[
        Step {
            to: ABI,
            map: "FLOWS4",
            change: Change::Entries(later),
        },
        Step {
            to: ABI,
            map: "FRAGMENTS4",
            change: Change::Anew,
        },
    ];
    if !root() {
        return;
    }
    let instance = Instance::new();
    CONVERTED.set(instance.0.clone()).unwrap();
    let options = Options {
        steps: CHANGED,
        ..instance.options()
    };
    let mut plane = DataPlane::load(&options).unwrap();
    let seen = now();
    let flows: Vec<_> = (0..500)
        .map(|n| flow(n, state::ESTABLISHED, seen))
        .collect();
    for (key, half) in flows.iter().flatten() {
        plane.insert_flow(key, half).unwrap();
    }
    let before = maps(&instance.0);
    drop(plane);
    age(&instance.0);

    let plane = DataPlane::load(&options).unwrap();
    let after = maps(&instance.0);
    for (name, id) in before {
        let anew = ["FLOWS4", "FRAGMENTS4"].contains(&name.as_str());
        assert_eq!(after[&name] != id, anew, "{name}");
    }
    let table = open(&instance.0, ABI);
    for (key, half) in flows.iter().flatten() {
        let now = table.get(key, 0).unwrap();
        assert_eq!((now.seen, now.dport), (half.seen + 1000, half.dport));
    }
    for (key, _) in flow(LATE, state::ESTABLISHED, 1) {
        let made_meanwhile = table.get(&key, 0).unwrap();
        assert_eq!(made_meanwhile.seen, 1001);
    }
    assert!(!layout(&instance.0, ABI - 1).exists());
    drop(plane);
}

/// The layout before had no such counts.
#[test]
fn flows_that_nobody_had_counted_are_counted() {
    if !root() {
        return;
    }
    let instance = Instance::new();
    let options = instance.options();
    let mut plane = DataPlane::load(&options).unwrap();
    for n in 0..500 {
        for (key, half) in flow(n, state::ESTABLISHED, now()) {
            plane.insert_flow(&key, &half).unwrap();
        }
    }
    drop(plane);
    age(&instance.0);
    for map in ["HOLDINGS4", "HOLDINGS6"] {
        fs::remove_file(layout(&instance.0, ABI - 1).join("maps").join(map)).unwrap();
    }
    let plane = DataPlane::load(&options).unwrap();
    let path = layout(&instance.0, ABI).join("maps/HOLDINGS4");
    let map = Map::Array(MapData::from_pin(path).unwrap());
    let counts: Array<MapData, u64> = map.try_into().unwrap();
    let count = |element| counts.get(&element, 0).unwrap();
    let all = holdings::ALL;
    let held = count(holdings::made(all)).wrapping_sub(count(holdings::removed(all)));
    assert_eq!(held, 1000);
    drop(plane);
}

/// Killed on the way, or with what cannot be taken over: the older one stays, and the next start goes on.
#[test]
fn what_fails_leaves_the_older_layout() {
    if !root() {
        return;
    }
    let instance = Instance::new();
    let options = instance.options();
    let mut plane = DataPlane::load(&options).unwrap();
    plane.publish([(publish_key(8080), publish(80))]).unwrap();
    drop(plane);
    age(&instance.0);
    let other = Options {
        max_flows: 99,
        ..options.clone()
    };
    let error = DataPlane::load(&other).map(drop).unwrap_err();
    assert!(matches!(error, BpfError::FlowRoom { .. }), "{error}");
    assert!(!layout(&instance.0, ABI).exists());
    // Of two, one has moved some of its pins already.
    let own = layout(&instance.0, ABI);
    for part in ["maps", "links"] {
        fs::create_dir_all(own.join(part)).unwrap();
    }
    let older = layout(&instance.0, ABI - 1).join("maps");
    let publishes = MapData::from_pin(older.join("PUBLISHES4")).unwrap();
    publishes.pin(own.join("maps/PUBLISHES4")).unwrap();
    let plane = DataPlane::load(&options).unwrap();
    assert_eq!(plane.publishes(), [(publish_key(8080), publish(80))]);
    drop(plane);
    assert!(!older.exists());

    // From before anything was released.
    fs::rename(&own, layout(&instance.0, 1)).unwrap();
    let error = DataPlane::load(&options).map(drop).unwrap_err();
    assert!(
        matches!(error, BpfError::OtherLayout { newer: false, .. }),
        "{error}"
    );
}
