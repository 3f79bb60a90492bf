//! The node's network, in namespaces of the tests' own.

mod lab;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use lab::{Lab, dummy_veth, root, unique};
use netfw::net::{Change, Monitor, Namespace, NetError, Netlink, Route, Veth, sysctl};

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
            .add_route(
                &Route::default_of(gateway.addr(), inner, Route::MAIN),
                Some(gateway.addr()),
            )
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

        // IPv6: usable at once, although the bridge has no carrier before its first port is up.
        let gateway6: ipnet::IpNet = "fd00:9::1/64".parse().unwrap();
        netlink.add_address(bridge.index, gateway6).await.unwrap();
        netlink.add_address(bridge.index, gateway6).await.unwrap();
        let addresses = netlink.addresses().await.unwrap();
        let found = addresses
            .iter()
            .find(|a| a.addr == gateway6.addr())
            .unwrap();
        assert!(!found.tentative && !found.deprecated && found.scope_global);
        within
            .add_address(inner, "fd00:9::2/64".parse().unwrap())
            .await
            .unwrap();
        within
            .add_route(
                &Route::default_of(gateway6.addr(), inner, Route::MAIN),
                Some(gateway6.addr()),
            )
            .await
            .unwrap();
        let routes = within.routes().await.unwrap();
        assert!(
            routes
                .iter()
                .any(|r| r.dst.to_string() == "::/0" && r.oif == Some(inner)),
            "{routes:?}"
        );

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
fn many_links_go_at_once_and_no_others() {
    if !root() {
        return;
    }
    Lab::new().run(async || {
        let netlink = Netlink::current().unwrap();
        let bridge = async |name: &str| {
            let made = netlink.create_bridge(name, [2, 0, 0, 0, 0, 1], 1500, "netfw test");
            made.await.unwrap()
        };
        let stays = bridge("stays").await;
        // More than one group, and one that is gone already.
        let mut doomed = Vec::new();
        for n in 0..140 {
            doomed.push(bridge(&format!("b{n}")).await);
        }
        netlink.delete_link(doomed[70]).await.unwrap();
        netlink.delete_links(&doomed).await.unwrap();
        let links = netlink.links().await.unwrap();
        let left = links.iter().filter(|link| !link.loopback);
        assert!(left.map(|link| link.index).eq([stays]), "{links:?}");
        netlink.delete_links(&doomed).await.unwrap();
        netlink.delete_links(&[]).await.unwrap();
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
        netlink
            .add_address(host, "fd00:9::1/64".parse().unwrap())
            .await
            .unwrap();
        while !(seen.contains(&Change::Links)
            && seen.contains(&Change::Addresses)
            && seen.contains(&Change::Routes))
        {
            seen.push(tokio::time::timeout(wait, monitor.changed()).await.unwrap());
        }
    });
}
