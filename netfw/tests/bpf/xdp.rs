//! XDP programs on interfaces, and veths that take their frames.

use std::collections::BTreeSet;

use netfw::{
    bpf::{Attachment, DataPlane, Family, XdpMode, now},
    net::{
        Namespace, Netlink, ethtool, peer,
        xdp::{Attached, Mode, attached},
    },
};
use netfw_common::{
    addr::{Be16, Ip4, Ip6},
    flow::{Flow, flag, state},
    record::{Endpoint, endpoint_flag},
    tuple::{Tuple, proto, zone},
};

use crate::{
    instance::Instance,
    lab::{Lab, dummy_veth, root},
};

/// A veth, up at both ends, whose peer (`eth0`) is in `peer`; its index.
async fn veth(netlink: &Netlink, name: &str, peer: &Namespace) -> u32 {
    let (host, end) = dummy_veth(netlink, name, peer).await;
    let inside = Netlink::within(peer).unwrap();
    inside.set_up(end).await.unwrap();
    host
}

#[test]
fn xdp_runs_from_its_link_and_is_swapped() {
    if !root() {
        return;
    }
    let (node, container) = (Lab::new(), Lab::new());
    let inside = container.namespace.try_clone().unwrap();
    let instance = Instance::new();
    let options = instance.options();
    node.run(async move || {
        let netlink = Netlink::current().unwrap();
        let up = veth(&netlink, "up0", &inside).await;
        assert_eq!(attached(up).unwrap(), None);

        let mut plane = DataPlane::load(&options).unwrap();
        let programs = plane.program_stats();
        assert!(
            programs.iter().all(|p| p.name != "netfw_uplink_xdp"),
            "loaded, and nobody uses it"
        );
        plane.attach_uplink(up, "up0").unwrap();
        plane.attach_xdp(up, "up0", XdpMode::Native).unwrap();
        assert_eq!(plane.xdp_mode(up).unwrap(), Some(XdpMode::Native));
        assert!(!plane.is_xdp_taken(up).unwrap());
        let first = attached(up).unwrap().unwrap();
        assert_eq!(first.mode, Mode::Native);

        // The agent died; the next one goes on.
        drop(plane);
        assert_eq!(attached(up).unwrap(), Some(first));
        let mut plane = DataPlane::load(&options).unwrap();
        assert_eq!(plane.xdp_pinned(), [up]);
        assert_eq!(plane.attached(), [up]);
        assert_eq!(plane.xdp_mode(up).unwrap(), Some(XdpMode::Native));
        plane.attach_xdp(up, "up0", XdpMode::Native).unwrap();
        let second = attached(up).unwrap().unwrap();
        assert_ne!(first.program, second.program);

        // Another mode.
        plane.attach_xdp(up, "up0", XdpMode::Generic).unwrap();
        assert!(matches!(
            attached(up).unwrap(),
            Some(Attached { mode: Mode::Generic, program }) if program == second.program
        ));
        plane.detach_xdp(up).unwrap();
        plane.detach_xdp(up).unwrap();
        assert_eq!(attached(up).unwrap(), None);
        assert!(plane.xdp_pinned().is_empty());
        assert_eq!(plane.attached(), [up], "TC stays");

        // With all the others.
        plane.attach_xdp(up, "up0", XdpMode::Native).unwrap();
        plane.detach(up).unwrap();
        assert_eq!(attached(up).unwrap(), None);
        plane.attach_xdp(up, "up0", XdpMode::Native).unwrap();
        DataPlane::remove(&options.instance).unwrap();
        assert_eq!(attached(up).unwrap(), None);
    });
}

#[test]
fn an_xdp_program_of_somebody_elses_stays() {
    if !root() {
        return;
    }
    let (node, container) = (Lab::new(), Lab::new());
    let inside = container.namespace.try_clone().unwrap();
    let (ours, others) = (Instance::new(), Instance::new());
    let (options, other_options) = (ours.options(), others.options());
    node.run(async move || {
        let netlink = Netlink::current().unwrap();
        let up = veth(&netlink, "up0", &inside).await;
        let mut other = DataPlane::load(&other_options).unwrap();
        other.attach_xdp(up, "up0", XdpMode::Native).unwrap();
        let theirs = attached(up).unwrap();

        let mut plane = DataPlane::load(&options).unwrap();
        assert!(plane.is_xdp_taken(up).unwrap());
        for mode in [XdpMode::Native, XdpMode::Generic] {
            let error = plane.attach_xdp(up, "up0", mode).unwrap_err();
            assert!(error.to_string().contains("another"), "{error}");
        }
        assert_eq!(plane.xdp_mode(up).unwrap(), None);
        plane.detach(up).unwrap();
        assert_eq!(attached(up).unwrap(), theirs);
    });
}

#[test]
fn a_driver_without_xdp_says_so() {
    if !root() {
        return;
    }
    let node = Lab::new();
    let instance = Instance::new();
    let options = instance.options();
    node.run(async move || {
        let netlink = Netlink::current().unwrap();
        let bridge = netlink
            .create_bridge("br0", [2, 0, 0, 0, 0, 1], 1500, "netfw test")
            .await
            .unwrap();
        assert_eq!(ethtool::driver("br0").unwrap(), "bridge");
        let mut plane = DataPlane::load(&options).unwrap();
        let error = plane
            .attach_xdp(bridge, "br0", XdpMode::Native)
            .unwrap_err();
        assert!(error.to_string().contains("driver cannot"), "{error}");
        plane.attach_xdp(bridge, "br0", XdpMode::Generic).unwrap();
        assert_eq!(plane.xdp_mode(bridge).unwrap(), Some(XdpMode::Generic));
    });
}

#[test]
fn a_pin_of_an_interface_that_is_gone_is_removed() {
    if !root() {
        return;
    }
    let (node, container) = (Lab::new(), Lab::new());
    let inside = container.namespace.try_clone().unwrap();
    let instance = Instance::new();
    let options = instance.options();
    node.run(async move || {
        let netlink = Netlink::current().unwrap();
        let up = veth(&netlink, "up0", &inside).await;
        let mut plane = DataPlane::load(&options).unwrap();
        plane.attach_xdp(up, "up0", XdpMode::Native).unwrap();
        netlink.delete_link(up).await.unwrap();
        assert!(plane.attached().is_empty());
        assert!(plane.xdp_pinned().is_empty());
        plane.detach_xdp(up).unwrap();
    });
}

#[test]
fn gro_is_switched_at_the_other_end() {
    if !root() {
        return;
    }
    let (node, container) = (Lab::new(), Lab::new());
    let inside = container.namespace.try_clone().unwrap();
    node.run(async move || {
        let netlink = Netlink::current().unwrap();
        let (host, end) = dummy_veth(&netlink, "nf0", &inside).await;
        let gro = || inside.run(|| ethtool::gro("eth0")).unwrap().unwrap();
        let was = |gro| Some(peer::Before { gro });
        assert!(!gro());
        let down = peer::switch_gro(host, &inside, true, true).unwrap();
        assert_eq!((down, gro()), (None, false), "it is down");
        let within = Netlink::within(&inside).unwrap();
        within.set_up(end).await.unwrap();
        for (on, renew, before) in [
            (true, true, false),
            (true, false, true),
            (true, true, true),
            (false, false, true),
            (false, false, false),
        ] {
            let found = peer::switch_gro(host, &inside, on, renew).unwrap();
            assert_eq!((found, gro()), (was(before), on));
        }
        // Another interface of the same index is not it.
        let (other, _) = {
            let lab = Lab::new();
            let found = peer::switch_gro(host, &lab.namespace, true, false).unwrap();
            (found, lab)
        };
        assert_eq!(other, None);
    });
}

#[test]
fn a_veth_that_takes_xdps_frames_is_known_across_restarts() {
    if !root() {
        return;
    }
    let (node, container) = (Lab::new(), Lab::new());
    let inside = container.namespace.try_clone().unwrap();
    let instance = Instance::new();
    let options = instance.options();
    node.run(async move || {
        let netlink = Netlink::current().unwrap();
        let host = veth(&netlink, "nf0", &inside).await;
        let endpoint = Endpoint {
            ifindex: host,
            ip4: std::net::Ipv4Addr::new(10, 9, 0, 2).into(),
            ..Default::default()
        };
        let has_flag = |plane: &DataPlane| {
            let all = plane.endpoints();
            assert_eq!(all.len(), 1);
            all[0].flags & endpoint_flag::NAPI != 0
        };
        let mut plane = DataPlane::load(&options).unwrap();
        plane.set_endpoint(&endpoint).unwrap();
        assert!(!has_flag(&plane) && plane.napi().is_empty());
        plane.note_gro(host).unwrap();
        plane.set_napi(host).unwrap();
        assert!(has_flag(&plane) && plane.has_napi(host));

        drop(plane);
        let mut plane = DataPlane::load(&options).unwrap();
        assert_eq!(plane.napi(), [host]);
        assert!(plane.is_gro_noted(host));
        // What the agent writes at its start does not know of it.
        plane.set_endpoint(&endpoint).unwrap();
        assert!(has_flag(&plane));

        flows_lose_the_flag::<Ip4>(&mut plane, host);
        flows_lose_the_flag::<Ip6>(&mut plane, host);

        plane.clear_napi(host).unwrap();
        plane.clear_napi(host).unwrap();
        plane.forget_gro(host).unwrap();
        assert!(!has_flag(&plane) && !plane.has_napi(host) && !plane.is_gro_noted(host));

        // It goes with the interface, whoever deletes that.
        plane.set_napi(host).unwrap();
        plane.note_gro(host).unwrap();
        netlink.delete_link(host).await.unwrap();
        assert!(plane.napi().is_empty());
        plane.remove_endpoint(host).unwrap();
        assert!(plane.attached().is_empty() && !plane.is_gro_noted(host));
    });
}

/// In either table, and only those into the interface.
fn flows_lose_the_flag<A: Family>(plane: &mut DataPlane, host: u32) {
    for (port, state) in [(1, state::NEW), (2, state::ESTABLISHED)] {
        for ifindex in [host, host + 1] {
            let key = Tuple::<A> {
                sport: Be16::new(port),
                dport: Be16::new(ifindex as u16),
                proto: proto::UDP,
                zone: zone::WORLD,
                ..Default::default()
            };
            let flow = Flow::<A> {
                ifindex,
                flags: flag::TO_CONTAINER | flag::NAPI,
                seen: now(),
                state,
                ..Default::default()
            };
            plane.insert_flow(&key, &flow).unwrap();
        }
    }
    assert_eq!(plane.forget_napi(&BTreeSet::from([host])).unwrap(), 2);
    assert_eq!(plane.forget_napi(&BTreeSet::from([host])).unwrap(), 0);
    assert_eq!(plane.forget_napi(&BTreeSet::from([host + 1])).unwrap(), 2);
}

#[test]
fn an_uplink_without_ethernet_header_has_its_own_program() {
    if !root() {
        return;
    }
    let (node, container) = (Lab::new(), Lab::new());
    let inside = container.namespace.try_clone().unwrap();
    for way in [Attachment::Tcx, Attachment::Clsact] {
        let instance = Instance::new();
        let options = instance.options();
        let inside = inside.try_clone().unwrap();
        node.run(async move || {
            let netlink = Netlink::current().unwrap();
            let up = veth(&netlink, "up0", &inside).await;
            let mut plane = DataPlane::load(&options).unwrap();
            plane.attach_only(way);
            assert_eq!(plane.attach_tunnel(up, "up0").unwrap(), way);
            drop(plane);
            let mut plane = DataPlane::load(&options).unwrap();
            plane.attach_only(way);
            assert_eq!(plane.attach_tunnel(up, "up0").unwrap(), way);
            let named = |name| plane.program_stats().iter().any(|p| p.name == name);
            assert!(named("netfw_tunnel") && named("netfw_guard"));
            assert_eq!(plane.attached(), [up]);
            plane.detach(up).unwrap();
            assert!(plane.attached().is_empty());
            netlink.delete_link(up).await.unwrap();
        });
    }
}
