//! The node's network and the data plane's life, in namespaces of their own.
//!
//! These need root and a kernel with BPF; without, each says so and passes, so that a bare
//! `cargo test` works for anybody. Everything made here has the process id in its name and goes with
//! the fixture, whatever happens.

#[path = "node/xdp.rs"]
mod xdp;

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use aya::programs::links::{FdLink, PinnedLink};
use netfw::{
    bpf::{Attachment, BPFFS, BpfError, DataPlane, Options, now},
    net::{Change, Monitor, Namespace, NetError, Netlink, Veth, sysctl},
};
use netfw_common::{
    addr::{Be16, Ip4},
    flow::{Flow4, flag, state},
    record::{Config, Counter, Endpoint, Publish4, PublishKey4, Subnet, Uplink},
    tuple::{Tuple4, proto, zone},
};

/// A namespace that goes with its value.
struct Lab {
    name: String,
    namespace: Namespace,
}

impl Lab {
    fn new() -> Self {
        let name = unique();
        let namespace = Namespace::create(&name).unwrap();
        Self { name, namespace }
    }

    /// Runs `f` on a runtime of its own inside the namespace, as the agent runs in the node's.
    fn run<T: Send + 'static>(&self, f: impl AsyncFnOnce() -> T + Send + 'static) -> T {
        self.namespace
            .run(|| {
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap()
                    .block_on(f())
            })
            .unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        Namespace::delete(&self.name).unwrap();
    }
}

/// An instance's pins, which go with the value.
struct Instance(String);

impl Instance {
    fn new() -> Self {
        Self(unique())
    }

    fn options(&self) -> Options {
        Options {
            instance: self.0.clone(),
            max_flows: 1 << 12,
            max_embryos: 1 << 10,
            log_level: None,
            config: Config::default(),
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = DataPlane::remove(&self.0);
    }
}

fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "nfn-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

async fn dummy_veth(netlink: &Netlink, name: &str, peer: &Namespace) -> (u32, u32) {
    let bridge = match netlink.link("br0").await.unwrap() {
        Some(link) => link.index,
        None => netlink
            .create_bridge("br0", [2, 0, 0, 0, 0, 1], 1500, "netfw test")
            .await
            .unwrap(),
    };
    netlink
        .create_veth(Veth {
            host_name: name,
            host_mac: [2, 0, 0, 0, 1, 1],
            peer_name: "eth0",
            peer_mac: [2, 0, 0, 0, 2, 2],
            peer_ns: peer.as_fd(),
            mtu: 1400,
            master: bridge,
            alias: "netfw test/web",
        })
        .await
        .unwrap()
}

#[test]
fn namespaces_come_and_go() {
    if !root() {
        return;
    }
    let name = unique();
    assert!(matches!(
        Namespace::named(&name),
        Err(NetError::NoNamespace { .. })
    ));
    let made = Namespace::create(&name).unwrap();
    assert!(matches!(
        Namespace::create(&name),
        Err(NetError::NamespaceExists { .. })
    ));
    assert_eq!(made, Namespace::named(&name).unwrap());
    assert_ne!(made, Namespace::current().unwrap());
    let (inside, up) = made
        .run(|| {
            let flags = std::fs::read_to_string("/sys/class/net/lo/flags");
            (Namespace::current().unwrap().id(), flags.is_ok())
        })
        .unwrap();
    assert_eq!(inside, made.id());
    assert!(up);
    Namespace::delete(&name).unwrap();
    Namespace::delete(&name).unwrap();
    assert!(!Path::new("/run/netns").join(&name).exists());
}

#[test]
fn a_container_is_wired() {
    if !root() {
        return;
    }
    let node = Lab::new();
    let web = Lab::new();
    let peer = web.namespace.try_clone().unwrap();
    node.run(async move || {
        let netlink = Netlink::current().unwrap();
        let lo = netlink.link("lo").await.unwrap().unwrap();
        assert!(lo.up && lo.loopback);
        assert_eq!(netlink.link("nothing").await.unwrap(), None);
        assert_eq!(netlink.link("a-name-that-is-too-long").await.unwrap(), None);
        assert_eq!(netlink.link_by_index(4242).await.unwrap(), None);

        let started = Instant::now();
        let (host, inner) = dummy_veth(&netlink, "nf-web", &peer).await;
        let bridge = netlink.link("br0").await.unwrap().unwrap();
        assert!(!bridge.up);
        assert_eq!(bridge.kind.as_deref(), Some("bridge"));
        assert_eq!(bridge.mac, Some([2, 0, 0, 0, 0, 1]));
        netlink.set_up(bridge.index).await.unwrap();
        let gateway: ipnet::IpNet = "172.18.0.1/16".parse().unwrap();
        netlink.add_address(bridge.index, gateway).await.unwrap();
        netlink.add_address(bridge.index, gateway).await.unwrap();

        let within = Netlink::within(&peer).unwrap();
        within
            .add_address(inner, "172.18.0.2/16".parse().unwrap())
            .await
            .unwrap();
        within.set_up(inner).await.unwrap();
        within
            .add_default_route(inner, "172.18.0.1".parse().unwrap())
            .await
            .unwrap();
        eprintln!("bridge, veth, addresses, route: {:?}", started.elapsed());

        let link = netlink.link_by_index(host).await.unwrap().unwrap();
        assert_eq!(link.name, "nf-web");
        assert_eq!(link.kind.as_deref(), Some("veth"));
        assert_eq!(link.alias.as_deref(), Some("netfw test/web"));
        assert_eq!((link.master, link.peer), (Some(bridge.index), Some(inner)));
        assert_eq!((link.mtu, link.up), (1400, true));
        assert_eq!(link.mac, Some([2, 0, 0, 0, 1, 1]));
        let eth0 = within.link("eth0").await.unwrap().unwrap();
        assert_eq!(
            (eth0.mtu, eth0.mac, eth0.up),
            (1400, Some([2, 0, 0, 0, 2, 2]), true)
        );

        let routes = within.routes().await.unwrap();
        assert!(
            routes
                .iter()
                .any(|r| r.dst.prefix_len() == 0 && r.dst.addr().is_ipv4() && r.oif == Some(inner)),
            "{routes:?}"
        );
        let addresses = netlink.addresses().await.unwrap();
        let found = addresses
            .iter()
            .find(|a| a.ifindex == bridge.index && a.addr.is_ipv4())
            .unwrap();
        assert_eq!(
            (found.prefix_len, found.scope_global, found.secondary),
            (16, true, false)
        );

        let key = "net/ipv4/conf/br0/forwarding";
        assert_eq!(sysctl::set(key, "1").unwrap().as_deref(), Some("0"));
        assert_eq!(sysctl::set(key, "1").unwrap(), None);

        // A second pair of the same name: what is in the way is said, and nothing half made stays.
        let error = netlink
            .create_veth(Veth {
                host_name: "nf-other",
                host_mac: [2, 0, 0, 0, 1, 3],
                peer_name: "eth0",
                peer_mac: [2, 0, 0, 0, 2, 4],
                peer_ns: peer.as_fd(),
                mtu: 1400,
                master: bridge.index,
                alias: "x",
            })
            .await
            .unwrap_err();
        eprintln!("{error}");
        assert_eq!(netlink.link("nf-other").await.unwrap(), None);

        netlink.delete_link(host).await.unwrap();
        netlink.delete_link(host).await.unwrap();
        netlink.delete_address(bridge.index, gateway).await.unwrap();
        netlink.delete_address(bridge.index, gateway).await.unwrap();
        assert_eq!(within.link("eth0").await.unwrap(), None);
    });
}

#[test]
fn changes_are_told() {
    if !root() {
        return;
    }
    let node = Lab::new();
    let peer = Lab::new();
    let within = peer.namespace.try_clone().unwrap();
    node.run(async move || {
        let netlink = Netlink::current().unwrap();
        let mut monitor = Monitor::current().unwrap();
        let (host, _) = dummy_veth(&netlink, "nf-web", &within).await;
        netlink
            .add_address(host, "192.0.2.1/24".parse().unwrap())
            .await
            .unwrap();
        let mut seen = Vec::new();
        let wait = Duration::from_secs(5);
        while !(seen.contains(&Change::Links) && seen.contains(&Change::Addresses)) {
            seen.push(tokio::time::timeout(wait, monitor.changed()).await.unwrap());
        }
    });
}

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

/// The links that are pinned, by name: the number that the kernel gave each, and its program's. None
/// for what stands for a filter under clsact.
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
    assert!(matches!(error, BpfError::OtherLayout { .. }), "{error}");
    let down = format!("netfw down --instance {}", instance.0);
    assert!(error.to_string().contains(&down), "{error}");
    assert!(other.join("maps/CONFIG").exists(), "it stays as it was");
    drop(plane);
    DataPlane::remove(&instance.0).unwrap();
    assert!(!root.exists());
}

fn links(instance: &str) -> HashMap<String, Option<(u32, u32)>> {
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

fn publish_key(port: u16) -> PublishKey4 {
    PublishKey4 {
        addr: Ip4::new([0; 4]),
        port: Be16::new(port),
        proto: proto::TCP,
        reserved: 0,
    }
}

fn publish(port: u16) -> Publish4 {
    Publish4 {
        addr: Ip4::new([172, 18, 0, 2]),
        counter: 1,
        port: Be16::new(port),
        reserved: 0,
    }
}

#[test]
fn maps_hold_what_they_are_given() {
    if !root() {
        return;
    }
    let instance = Instance::new();
    let mut plane = DataPlane::load(&instance.options()).unwrap();

    let endpoint = Endpoint {
        ifindex: 7,
        ip4: Ip4::new([172, 18, 0, 2]),
        ..Default::default()
    };
    plane.set_endpoint(&endpoint).unwrap();
    let moved = Endpoint {
        ip4: Ip4::new([172, 18, 0, 3]),
        ..endpoint
    };
    plane.set_endpoint(&moved).unwrap();
    assert_eq!(plane.endpoints(), [moved]);
    plane.remove_endpoint(7).unwrap();
    plane.remove_endpoint(7).unwrap();
    assert_eq!(plane.endpoints(), []);

    let net = "172.18.0.0/16".parse().unwrap();
    let subnet = Subnet {
        network: 1,
        flags: 3,
    };
    plane.set_subnet(net, subnet).unwrap();
    assert_eq!(plane.subnets(), [(net, subnet)]);
    plane.remove_subnet(net).unwrap();
    plane.remove_subnet(net).unwrap();
    assert_eq!(plane.subnets(), []);

    let addr = |last| Ipv4Addr::new(192, 0, 2, last);
    plane
        .set_locals(&HashMap::from([(addr(1), 2), (addr(2), 2)]))
        .unwrap();
    plane
        .set_locals(&HashMap::from([(addr(2), 3), (addr(4), 2)]))
        .unwrap();
    let mut locals = plane.locals();
    locals.sort_unstable();
    assert_eq!(locals, [(addr(2), 3), (addr(4), 2)]);

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
    assert_eq!(plane.publishes().len(), 10_000);
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
    assert_eq!(plane.publishes(), []);
    eprintln!("10,000 ports: published in {published:?}, withdrawn in {withdrawn:?}");
    assert!(published < Duration::from_millis(500) && withdrawn < Duration::from_millis(500));
}

/// Both halves of a flow from client `n` to a container.
fn flow(n: u32, state: u8, seen: u32) -> [(Tuple4, Flow4); 2] {
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

fn sweep_all(plane: &mut DataPlane) -> usize {
    (0..64).map(|_| plane.sweep().unwrap()).sum()
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

    assert_eq!(plane.flow_usage(), (2, 1 << 12));
    assert_eq!(plane.flows().unwrap().len(), 2 + 2 + 1);
    assert_eq!(sweep_all(&mut plane), 3);
    assert_eq!(sweep_all(&mut plane), 0);
    assert_eq!(plane.flows().unwrap().len(), 2 + 2 + 1);
    let client = Ip4::new((0x0b00_0000u32 + 3).to_be_bytes());
    assert_eq!(plane.remove_flows_of(client).unwrap(), 1);
    assert_eq!(plane.remove_flows(|_, _| true).unwrap(), 2);
    assert_eq!(plane.flows().unwrap(), []);
    assert_eq!(plane.flow_usage().0, 0);
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
    let used = plane.flow_usage();
    eprintln!("usage {used:?}: {:?}", started.elapsed());
    assert!(used.0.abs_diff(900_000) < 9_000, "{used:?}");
    let started = Instant::now();
    let mut longest = Duration::ZERO;
    let mut removed = 0;
    for _ in 0..70 {
        let one = Instant::now();
        removed += plane.sweep().unwrap();
        longest = longest.max(one.elapsed());
    }
    eprintln!(
        "swept {removed} in {:?}, longest step {longest:?}",
        started.elapsed()
    );
    assert_eq!(removed, 100_000);
    let started = Instant::now();
    let listed = plane.flows().unwrap().len();
    eprintln!("listed {listed} entries: {:?}", started.elapsed());
    // What `unpublish` and `endpoint rm` do.
    let started = Instant::now();
    assert_eq!(plane.remove_flows(|_, flow| flow.counter == 77).unwrap(), 0);
    eprintln!("looked for flows to remove: {:?}", started.elapsed());
}
