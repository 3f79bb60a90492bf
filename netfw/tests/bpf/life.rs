//! The data plane's life, in namespaces of its own, and its maps.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    time::{Duration, Instant},
};

use aya::programs::links::{FdLink, PinnedLink};
use netfw::{
    bpf::{Attachment, BPFFS, BpfError, DataPlane, Options},
    net::Netlink,
};
use netfw_common::{
    addr::{Be16, Ip4, Ip6},
    record::{
        Counter, Endpoint, Publish, Publish4, PublishKey, PublishKey4, Subnet, Uplink, allow,
    },
    tuple::proto,
};

use crate::{
    instance::Instance,
    lab::{Lab, dummy_veth, root},
};

#[test]
fn the_data_plane_outlives_its_agent_and_goes_without_a_trace() {
    if !root() {
        return;
    }
    for way in [Attachment::Tcx, Attachment::Clsact] {
        let node = Lab::new();
        let peer = Lab::new();
        let instance = Instance::new();
        let options = instance.options();
        let within = peer.namespace.try_clone().unwrap();
        node.run(async move || {
            let netlink = Netlink::current().unwrap();
            let (host, _) = dummy_veth(&netlink, "nf-web", &within).await;
            let uplink = netlink.link("br0").await.unwrap().unwrap();
            netlink.set_up(uplink.index).await.unwrap();

            assert!(!DataPlane::exists(&options.instance));
            let started = Instant::now();
            let mut plane = DataPlane::load(&options).unwrap();
            eprintln!("load: {:?}", started.elapsed());
            assert!(DataPlane::exists(&options.instance));
            plane.attach_only(way);
            let started = Instant::now();
            assert_eq!(plane.attach_container(host, "nf-web").unwrap(), way);
            eprintln!("{way}: attach one: {:?}", started.elapsed());
            let started = Instant::now();
            assert_eq!(plane.attach_uplink(uplink.index, "br0").unwrap(), way);
            eprintln!("{way}: attach two more: {:?}", started.elapsed());
            let mut want = vec![host, uplink.index];
            want.sort_unstable();
            assert_eq!(plane.attached(), want);
            assert!(matches!(
                plane.attach_container(host, "br0"),
                Err(BpfError::NoInterface { .. })
            ));
            let key = publish_key(8080);
            plane.publish([(key, publish(80))]).unwrap();
            let before = links(&options.instance);
            drop(plane);

            // The next agent: same links, other programs, maps as they were.
            let mut plane = DataPlane::load(&options).unwrap();
            plane.attach_only(way);
            assert_eq!(plane.publishes(), [(key, publish(80))]);
            plane.attach_container(host, "nf-web").unwrap();
            plane.attach_uplink(uplink.index, "br0").unwrap();
            assert_eq!(plane.attached(), want);
            let after = links(&options.instance);
            assert_eq!(after.len(), before.len());
            for (name, before) in before {
                match (before, after[&name]) {
                    (Some((link, program)), Some(after)) => {
                        assert_eq!(after.0, link, "the link was swapped in place");
                        assert_ne!(after.1, program, "the program is another");
                    }
                    (before, after) => assert_eq!(before, after),
                }
            }

            // Another size is refused, and the way out is named.
            let other = Options {
                max_flows: 99,
                ..options.clone()
            };
            let error = DataPlane::load(&other).map(drop).unwrap_err();
            eprintln!("{error}");
            assert!(matches!(
                error,
                BpfError::FlowRoom {
                    option: "max_flows",
                    found: 4096,
                    wanted: 99,
                    ..
                }
            ));

            // An interface that goes takes its programs along.
            netlink.delete_link(host).await.unwrap();
            let deadline = Instant::now() + Duration::from_secs(5);
            while plane.attached() != [uplink.index] {
                assert!(Instant::now() < deadline, "{:?}", plane.attached());
                std::thread::yield_now();
            }
            plane.detach(host).unwrap();
            drop(plane);
            DataPlane::remove(&options.instance).unwrap();
            DataPlane::remove(&options.instance).unwrap();
            assert!(!DataPlane::exists(&options.instance));
            assert!(!Path::new(BPFFS).join(&options.instance).exists());
            let added_again = aya::programs::tc::qdisc_add_clsact("br0");
            assert!(added_again.is_ok(), "{way}: a queueing discipline was left");
            for direction in [
                aya::programs::TcAttachType::Ingress,
                aya::programs::TcAttachType::Egress,
            ] {
                for name in ["netfw_uplink", "netfw_guard"] {
                    let left = aya::programs::tc::qdisc_detach_program("br0", direction, name);
                    assert!(left.is_err(), "{way}: a filter of {name} was left");
                }
                if let Ok((_, programs)) =
                    aya::programs::SchedClassifier::query_tcx("br0", direction)
                {
                    assert!(
                        programs.is_empty(),
                        "{way}: programs left: {}",
                        programs.len()
                    );
                }
            }
        });
    }
}

#[test]
fn a_container_has_a_filter_unless_it_has_a_link() {
    if !root() {
        return;
    }
    let node = Lab::new();
    let peer = Lab::new();
    let instance = Instance::new();
    let options = instance.options();
    let within = peer.namespace.try_clone().unwrap();
    node.run(async move || {
        let netlink = Netlink::current().unwrap();
        let (host, _) = dummy_veth(&netlink, "nf-web", &within).await;
        let attach = |way: Option<Attachment>| {
            let mut plane = DataPlane::load(&options).unwrap();
            if let Some(way) = way {
                plane.attach_only(way);
            }
            let attached = plane.attach_container(host, "nf-web").unwrap();
            assert_eq!(plane.attached(), [host]);
            (plane, attached)
        };
        let (mut plane, way) = attach(None);
        assert_eq!(way, Attachment::Clsact);
        assert!(!plane.lacks_program(host));
        tc("qdisc del dev nf-web clsact");
        assert!(plane.lacks_program(host));
        plane.attach_container(host, "nf-web").unwrap();
        assert!(!plane.lacks_program(host));
        plane.detach(host).unwrap();
        assert!(plane.attached().is_empty());
        drop(plane);
        // An earlier version's, where the kernel has TCX: swapped, and not joined by a filter.
        attach(Some(Attachment::Tcx));
        let (plane, way) = attach(None);
        assert_eq!(way, Attachment::Tcx);
        assert!(!plane.lacks_program(host));
        let names: Vec<_> = links(&options.instance).into_keys().collect();
        assert_eq!(names, [format!("{host}-container")]);
    });
}

/// What pins tell of may not be there: an agent was killed before it was made, or somebody took it away. And
/// what is there may be somebody's.
#[test]
fn pins_without_filters_and_filters_of_others() {
    if !root() {
        return;
    }
    for theirs in [false, true] {
        let node = Lab::new();
        let peer = Lab::new();
        let instance = Instance::new();
        let options = instance.options();
        let within = peer.namespace.try_clone().unwrap();
        node.run(async move || {
            let netlink = Netlink::current().unwrap();
            let (host, _) = dummy_veth(&netlink, "up0", &within).await;
            let mut plane = DataPlane::load(&options).unwrap();
            plane.attach_only(Attachment::Clsact);
            plane.attach_uplink(host, "up0").unwrap();
            tc("qdisc del dev up0 clsact");
            if theirs {
                tc("qdisc add dev up0 clsact");
                // In classic BPF: it returns 0, no match.
                let filter = "filter add dev up0 ingress prio 7 bpf bytecode";
                tc(&format!("{filter} 1,6_0_0_0"));
            }
            let pins = links(&options.instance).into_keys().collect::<Vec<_>>();
            assert_eq!(pins.len(), 3, "{pins:?}");
            drop(plane);
            DataPlane::remove(&options.instance).unwrap();
            assert!(!DataPlane::exists(&options.instance));
            let left = tc("qdisc show dev up0").contains("clsact");
            assert_eq!(left, theirs);
            if theirs {
                assert!(tc("filter show dev up0 ingress").contains("pref 7"));
                // It was there before us, and stays.
                let mut plane = DataPlane::load(&options).unwrap();
                plane.attach_only(Attachment::Clsact);
                plane.attach_uplink(host, "up0").unwrap();
                let pins = links(&options.instance).into_keys().collect::<Vec<_>>();
                assert_eq!(pins.len(), 2, "{pins:?}");
                drop(plane);
                tc("filter del dev up0 ingress prio 7");
                DataPlane::remove(&options.instance).unwrap();
                assert!(tc("qdisc show dev up0").contains("clsact"));
            }
        });
    }
}

#[test]
fn beside_the_data_plane_of_another_layout_a_second_one_was_attached() {
    if !root() {
        return;
    }
    let instance = Instance::new();
    let plane = DataPlane::load(&instance.options()).unwrap();
    let root = Path::new(BPFFS).join(&instance.0);
    let own = root.join(format!("v{}", netfw_common::ABI));
    let other = root.join(format!("v{}", netfw_common::ABI + 1));
    for part in ["maps", "links"] {
        std::fs::create_dir_all(other.join(part)).unwrap();
    }
    // Nothing in it: an upgrade that ended there.
    DataPlane::check_layout(&instance.0).unwrap();
    std::fs::rename(own.join("maps/CONFIG"), other.join("maps/CONFIG")).unwrap();
    let error = DataPlane::load(&instance.options()).map(drop).unwrap_err();
    assert!(
        matches!(error, BpfError::OtherLayout { newer: true, .. }),
        "{error}"
    );
    let down = format!("netfw down --instance {}", instance.0);
    assert!(error.to_string().contains(&down), "{error}");
    assert!(other.join("maps/CONFIG").exists(), "it stays as it was");
    drop(plane);
    DataPlane::remove(&instance.0).unwrap();
    assert!(!root.exists());
}

/// `tc WORDS`: what it printed. Where a word has spaces they are written as underscores.
fn tc(words: &str) -> String {
    let split = words.split(' ').map(|word| word.replace('_', " "));
    let done = std::process::Command::new("tc").args(split).output();
    let done = done.unwrap();
    assert!(done.status.success(), "tc {words}");
    String::from_utf8(done.stdout).unwrap()
}

/// The links that are pinned, by name: the number that the kernel gave each, and its program's. None
/// for what stands for a filter under clsact.
pub fn links(instance: &str) -> HashMap<String, Option<(u32, u32)>> {
    let links = Path::new(BPFFS)
        .join(instance)
        .join(format!("v{}/links", netfw_common::ABI));
    std::fs::read_dir(links)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let info = (!name.ends_with("-clsact")).then(|| {
                let link = FdLink::from(PinnedLink::from_pin(entry.path()).unwrap());
                let info = link.info().unwrap();
                (info.id(), info.program_id())
            });
            (name, info)
        })
        .collect()
}

pub fn publish_key(port: u16) -> PublishKey4 {
    PublishKey4 {
        addr: Ip4::new([0; 4]),
        port: Be16::new(port),
        proto: proto::TCP,
        reserved: 0,
    }
}

pub fn publish(port: u16) -> Publish4 {
    Publish4 {
        addr: Ip4::new([172, 18, 0, 2]),
        counter: 1,
        flags: 0,
        port: Be16::new(port),
        allow: allow::EVERYBODY,
    }
}

#[test]
fn maps_hold_what_they_are_given() {
    if !root() {
        return;
    }
    let instance = Instance::new();
    let mut plane = DataPlane::load(&instance.options()).unwrap();

    let ip6 = |last| Ip6::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last));
    let endpoint = Endpoint {
        ifindex: 7,
        ip4: Ip4::new([172, 18, 0, 2]),
        ip6: ip6(2),
        ..Default::default()
    };
    plane.set_endpoint(&endpoint).unwrap();
    let moved = Endpoint {
        ip4: Ip4::new([172, 18, 0, 3]),
        ip6: ip6(3),
        ..endpoint
    };
    plane.set_endpoint(&moved).unwrap();
    assert_eq!(plane.endpoints(), [moved]);
    plane.remove_endpoint(7).unwrap();
    plane.remove_endpoint(7).unwrap();
    assert_eq!(plane.endpoints(), []);

    let nets: [ipnet::IpNet; 2] = ["172.18.0.0/16", "fd00::/64"].map(|net| net.parse().unwrap());
    let subnet = Subnet {
        network: 1,
        flags: 3,
    };
    for net in nets {
        plane.set_subnet(net, subnet).unwrap();
    }
    assert_eq!(plane.subnets(), nets.map(|net| (net, subnet)));
    for net in nets {
        plane.remove_subnet(net).unwrap();
        plane.remove_subnet(net).unwrap();
    }
    assert_eq!(plane.subnets(), []);

    let key = PublishKey {
        addr: ip6(1),
        port: Be16::new(80),
        proto: proto::TCP,
        reserved: 0,
    };
    let value = Publish {
        addr: ip6(2),
        ..Default::default()
    };
    plane.publish([(key, value)]).unwrap();
    assert_eq!(plane.publishes::<Ip6>(), [(key, value)]);
    assert_eq!(plane.publishes::<Ip4>(), []);
    plane.unpublish([key]).unwrap();
    assert_eq!(plane.publishes::<Ip6>(), []);

    let addr = |last: u8| match last {
        4 => IpAddr::V6(ip6(4).into()),
        _ => IpAddr::from(Ipv4Addr::new(192, 0, 2, last)),
    };
    plane
        .set_locals(&HashMap::from([(addr(1), 2), (addr(2), 2)]))
        .unwrap();
    plane
        .set_locals(&HashMap::from([(addr(2), 3), (addr(4), 2)]))
        .unwrap();
    let mut locals = plane.locals();
    locals.sort_unstable();
    assert_eq!(locals, [(addr(2), 3), (addr(4), 2)]);

    plane.epoch().raise().unwrap();
    plane.set_mappings(true).unwrap();

    let uplink = Uplink {
        mtu: 1500,
        ..Default::default()
    };
    plane.set_uplink(2, &uplink).unwrap();
    assert_eq!(plane.uplinks(), [(2, uplink)]);
    plane.remove_uplink(2).unwrap();
    assert_eq!(plane.uplinks(), []);

    assert_eq!(plane.counter(5).unwrap(), Counter::default());
    plane.reset_counter(5).unwrap();
    assert!(plane.counter(u32::MAX).is_err());
    assert!(plane.drops().unwrap().iter().all(|(_, count)| *count == 0));
    assert_eq!(plane.program_stats().len(), 3);
}

#[test]
fn a_range_is_published_at_once_or_not_at_all() {
    if !root() {
        return;
    }
    let instance = Instance::new();
    let mut plane = DataPlane::load(&instance.options()).unwrap();
    let range: Vec<_> = (10_000..20_000)
        .map(|port| (publish_key(port), publish(port)))
        .collect();
    let started = Instant::now();
    plane.publish(range.iter().copied()).unwrap();
    let published = started.elapsed();
    assert_eq!(plane.publishes::<Ip4>().len(), 10_000);
    // Too many: the map has room for 2^18. One that was there is overwritten, and put back.
    let more = (0..(1u32 << 18)).map(|n| {
        let key = PublishKey4 {
            addr: Ip4::new(n.to_be_bytes()),
            ..publish_key(10_000)
        };
        (key, publish(1))
    });
    assert!(matches!(plane.publish(more), Err(BpfError::Full { .. })));
    let mut left = plane.publishes();
    left.sort_unstable_by_key(|(key, _)| key.port.get());
    assert!(left == range, "the map is not what it was");
    let started = Instant::now();
    // The first two are not there: a batch deletion ends at each of them.
    plane.unpublish((9_998..20_000).map(publish_key)).unwrap();
    let withdrawn = started.elapsed();
    assert_eq!(plane.publishes::<Ip4>(), []);
    eprintln!("10,000 ports: published in {published:?}, withdrawn in {withdrawn:?}");
    assert!(published < Duration::from_millis(500) && withdrawn < Duration::from_millis(500));
}
