//! Lists of sources, and the publishes that go by them.

use ipnet::IpNet;
use netfw::bpf::{BpfError, DataPlane};
use netfw_common::{
    addr::{Be16, Ip4, Ip6},
    record::{Publish4, PublishKey4, allow},
    tuple::proto,
};

use crate::{instance::Instance, lab::root};

fn nets(all: &[&str]) -> Vec<IpNet> {
    all.iter().map(|net| net.parse().unwrap()).collect()
}

/// A range of some ports.
fn entries(counter: u32, allow: u16) -> Vec<(PublishKey4, Publish4)> {
    (0..3)
        .map(|n| {
            let key = PublishKey4 {
                port: Be16::new(8000 + 10 * counter as u16 + n),
                proto: proto::TCP,
                ..Default::default()
            };
            let value = Publish4 {
                counter: counter as u16,
                allow,
                ..Default::default()
            };
            (key, value)
        })
        .collect()
}

/// Prefixes of IPv4.
fn used(plane: &DataPlane) -> usize {
    plane.allowed_usage::<Ip4>().0
}

#[test]
fn publishes_with_the_same_sources_share_a_list_and_it_goes_with_the_last() {
    if !root() {
        return;
    }
    let instance = Instance::new();
    let mut plane = DataPlane::load(&instance.options()).unwrap();
    let two = nets(&["10.0.0.0/8", "192.0.2.7/32", "fd00::/8"]);
    let list = plane.allow::<Ip4>(two.clone()).unwrap();
    assert!(list != allow::EVERYBODY && list != allow::NOBODY);
    plane.publish(entries(1, list)).unwrap();
    assert_eq!(used(&plane), 2);

    // In another order, and one twice.
    let same = nets(&["192.0.2.7/32", "10.0.0.0/8", "10.0.0.0/8"]);
    assert_eq!(plane.allow::<Ip4>(same.clone()).unwrap(), list);
    plane.publish(entries(2, list)).unwrap();
    assert_eq!(used(&plane), 2);
    let other = plane.allow::<Ip4>(nets(&["10.0.0.0/9"])).unwrap();
    assert_ne!(other, list);
    plane.publish(entries(3, other)).unwrap();
    assert_eq!(used(&plane), 3);

    // Nobody of the family: no entry says so.
    let nobody = plane.allow::<Ip4>(nets(&["fd00::/8"])).unwrap();
    assert_eq!(nobody, allow::NOBODY);
    plane.publish(entries(4, nobody)).unwrap();
    let six = plane.allow::<Ip6>(two).unwrap();
    assert!(six != allow::NOBODY);
    assert_eq!(used(&plane), 3);

    plane.disallow::<Ip4>([1, 1, 4]);
    assert_eq!(used(&plane), 3, "another has it");
    plane.disallow::<Ip4>([2]);
    assert_eq!(used(&plane), 1);
    // From one list to another, and to none.
    let list = plane.allow::<Ip4>(same).unwrap();
    plane.publish(entries(3, list)).unwrap();
    assert_eq!(used(&plane), 2);
    plane.publish(entries(3, allow::EVERYBODY)).unwrap();
    assert_eq!(used(&plane), 0);
}

#[test]
fn lists_outlive_the_agent() {
    if !root() {
        return;
    }
    let instance = Instance::new();
    let options = instance.options();
    let sources = nets(&["10.0.0.0/8", "192.0.2.0/24"]);
    let mut plane = DataPlane::load(&options).unwrap();
    let list = plane.allow::<Ip4>(sources.clone()).unwrap();
    plane.publish(entries(1, list)).unwrap();
    plane.publish(entries(2, list)).unwrap();
    // Nobody goes by it yet, as where the agent is killed in between.
    let unused = plane.allow::<Ip4>(nets(&["10.9.0.0/16"])).unwrap();
    drop(plane);

    let mut plane = DataPlane::load(&options).unwrap();
    assert_eq!(used(&plane), 3);
    assert_eq!(plane.allow::<Ip4>(sources.clone()).unwrap(), list, "kept");
    let new = plane.allow::<Ip4>(nets(&["10.8.0.0/16"])).unwrap();
    assert!(new != list && new != unused);
    plane.publish(entries(1, new)).unwrap();
    plane.disallow_others::<Ip4>(|counter| counter <= 2);
    assert_eq!(used(&plane), 3, "1's and 2's");
    plane.disallow_others::<Ip4>(|counter| counter == 1);
    assert_eq!(used(&plane), 1);
}

#[test]
fn where_there_is_no_room_nothing_is_left() {
    if !root() {
        return;
    }
    let instance = Instance::new();
    let mut plane = DataPlane::load(&instance.options()).unwrap();
    let many = |count: u32| {
        (0..count).map(|n| {
            IpNet::from(std::net::IpAddr::from(
                n.wrapping_add(1 << 24).to_be_bytes(),
            ))
        })
    };
    let (_, room) = plane.allowed_usage::<Ip4>();
    let list = plane.allow::<Ip4>(many(1000)).unwrap();
    plane.publish(entries(1, list)).unwrap();
    let error = plane.allow::<Ip4>(many(room as u32)).unwrap_err();
    assert!(matches!(error, BpfError::Full { .. }), "{error}");
    assert_eq!(used(&plane), 1000);
    let list = plane.allow::<Ip4>(many(room as u32 - 1000)).unwrap();
    plane.publish(entries(2, list)).unwrap();
    assert_eq!(used(&plane), room);
    plane.disallow_others::<Ip4>(|_| false);
    assert_eq!(used(&plane), 0);
}
