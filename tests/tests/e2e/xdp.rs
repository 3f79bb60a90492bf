//! XDP on the node's uplinks, and everything that makes its frames arrive.

use std::{net::IpAddr, time::Duration};

use aya::{
    EbpfLoader,
    programs::{Xdp, XdpMode},
};
use netfw_tests::{
    Agent, Lab, Namespace,
    load::Pings,
    programs::{
        Drinker, Drinking, Fountain, Nginx, UdpEcho, ask, curl, udp_socket, udp_socket_for,
    },
    topology::{NODE, NODE_OUTSIDE, NODE6, NODE6_OUTSIDE, WORLD, WORLD6, wire},
    wait_until,
    xdp::{self, host_side, told},
};

use crate::setting::{SOON, Site, attach};

/// The node as the client knows it, and the world as a container does.
const FAMILIES: [(IpAddr, IpAddr); 2] = [(NODE, WORLD), (NODE6, WORLD6)];

/// A site with an agent of these options. What the client and the world send has its checksums:
/// without, XDP leaves it to TC.
#[track_caller]
fn site(options: &[&str], publishes: &[&str]) -> Site {
    let lab = Lab::new();
    for end in [&lab.client, &lab.world] {
        end.run(&["ethtool", "-K", "eth0", "tx", "off"]);
    }
    Site::in_lab(lab, options, publishes)
}

fn mode(agent: &Agent, uplink: &str) -> Option<String> {
    told(agent, uplink).0
}

/// The XDP program's id on a link, by the kernel's word.
fn program(namespace: &Namespace, link: &str) -> Option<String> {
    let shown = namespace.ip(&["-d", "link", "show", link]);
    let (_, rest) = shown.split_once("prog/xdp")?;
    rest.split_whitespace().nth(1).map(str::to_owned)
}

/// How many frames native XDP has sent into the endpoint's veth, by its driver's count.
#[track_caller]
fn sent(site: &Site, endpoint: &str) -> u64 {
    let host = host_side(&site.agent, endpoint);
    let shown = site.lab.node.run(&["ethtool", "-S", &host]);
    shown
        .lines()
        .filter_map(|line| line.split_once("xdp_xmit: "))
        .map(|(_, count)| count.trim().parse::<u64>().expect("a number"))
        .sum()
}

/// How many packets came into the container by XDP of either mode, or by its bridge.
#[track_caller]
fn entered(site: &Site, endpoint: &str) -> u64 {
    xdp::entered(&site.agent, &site.lab.node, endpoint)
}

fn gro(container: &Namespace) -> bool {
    container
        .run(&["ethtool", "-k", "eth0"])
        .contains("generic-receive-offload: on")
}

#[track_caller]
fn page(site: &Site) {
    for (node, _) in FAMILIES {
        let page = curl(&site.lab.client, node, 8080, "/");
        assert_eq!(page, Some(site.nginx.page(80)));
    }
}

/// Asks a UDP publish of the node's, 20 times.
#[track_caller]
fn ask_20(site: &Site, node: IpAddr, port: u16) {
    let socket = udp_socket_for(&site.lab.client, node);
    for _ in 0..20 {
        assert!(ask(&socket, (node, port), "x").is_some());
    }
}

/// Has the ends' hardware (the veths that play it) complete checksums, or has the ends do it.
fn offload_checksums(site: &Site, on: bool) {
    for end in [&site.lab.client, &site.lab.world] {
        end.run(&["ethtool", "-K", "eth0", "tx", if on { "on" } else { "off" }]);
    }
}

/// The agent, from now on with `--xdp MODE`.
#[track_caller]
fn restart_with(site: &mut Site, mode: &str) {
    site.agent.stop();
    site.agent.set_options(&["--xdp", mode]);
    site.agent.start_again();
}

#[test]
fn a_publish_is_reached_by_xdp() {
    for how in ["native", "generic"] {
        let site = site(&["--xdp", how], &["8080:80", "9000:9000/udp"]);
        let why = format!("--xdp {how}");
        for uplink in ["up0", "up1"] {
            assert_eq!(told(&site.agent, uplink), (Some(how.into()), why.clone()));
        }
        let table = site.agent.netfw(&["status"]);
        assert!(table.contains(&format!("+xdp {how} ({why})")), "{table}");
        assert!(gro(&site.web));
        let _echoes = [site.ip, site.ip6].map(|ip| UdpEcho::start(&site.web, (ip, 9000)));
        for (node, _) in FAMILIES {
            let before = (sent(&site, "web"), entered(&site, "web"));
            assert_eq!(
                curl(&site.lab.client, node, 8080, "/"),
                Some(site.nginx.page(80))
            );
            ask_20(&site, node, 9000);
            // Of the connection: SYN, ACK, the request, two more at the end.
            let now = (sent(&site, "web"), entered(&site, "web"));
            assert!(now.1 >= before.1 + 25, "{node} {how}: {before:?} {now:?}");
            if how == "native" {
                assert!(now.0 >= before.0 + 25, "{node} {how}: {before:?} {now:?}");
            }
        }
    }
}

#[test]
fn replies_to_what_a_container_asked_come_by_xdp() {
    let site = site(&["--xdp", "native"], &[]);
    let server = Nginx::start(&site.lab.world, "world", &[80]);
    for (_, world) in FAMILIES {
        let before = sent(&site, "web");
        assert_eq!(curl(&site.web, world, 80, "/"), Some(server.page(80)));
        site.web
            .run(&["ping", "-n", "-q", "-i0.01", "-c20", &world.to_string()]);
        assert!(sent(&site, "web") >= before + 23, "{world}");
    }
}

#[test]
fn what_hardware_was_to_complete_arrives_by_tc() {
    for how in ["native", "generic"] {
        let site = site(&["--xdp", how], &["8080:80", "7000:7000", "9000:9000/udp"]);
        let _echoes = [site.ip, site.ip6].map(|ip| UdpEcho::start(&site.web, (ip, 9000)));
        let _inside = Fountain::start(&site.web, 7000);
        let _outside = Fountain::start(&site.lab.world, 7000);
        for (on, (node, world)) in [
            (true, FAMILIES[0]),
            (true, FAMILIES[1]),
            (false, FAMILIES[0]),
            (false, FAMILIES[1]),
            // Flows that went by XDP before.
            (true, FAMILIES[0]),
        ] {
            offload_checksums(&site, on);
            let before = entered(&site, "web");
            page(&site);
            ask_20(&site, node, 9000);
            Drinker::connect(&site.lab.client, (node, 7000)).drink(128);
            Drinker::connect(&site.web, (world, 7000)).drink(512);
            let by_xdp = entered(&site, "web") - before;
            // A bridge's packets, and what a kernel answers for a socket that is gone: it always
            // completes those itself.
            assert_eq!(by_xdp < 20, on, "{node} {how} offload {on}: {by_xdp}");
        }
    }
}

#[test]
fn much_data_by_xdp() {
    let site = site(&["--xdp", "native"], &["7000:7000"]);
    let _inside = Fountain::start(&site.web, 7000);
    let _outside = Fountain::start(&site.lab.world, 7000);
    for (node, world) in FAMILIES {
        Drinker::connect(&site.lab.client, (node, 7000)).drink(2048);
        let before = sent(&site, "web");
        Drinker::connect(&site.web, (world, 7000)).drink(2048);
        // 16 MiB in segments of the MTU.
        assert!(sent(&site, "web") - before > 10_000, "{world}");
    }
}

#[test]
fn auto_leaves_a_veth_alone_and_says_why() {
    let site = site(&[], &["8080:80"]);
    let (mode, why) = told(&site.agent, "up0");
    assert_eq!(mode, None);
    assert!(why.contains("veth: TSO would be lost"), "{why}");
    let table = site.agent.netfw(&["status"]);
    assert!(table.contains("(xdp: veth: TSO"), "{table}");
    assert!(!gro(&site.web));
    page(&site);
    let programs = site.agent.json(&["status"])["programs"].to_string();
    assert!(!programs.contains("xdp"), "loaded for nothing: {programs}");
}

#[test]
fn nothing_is_lost_while_the_agent_is_killed_and_restarted() {
    for (_, world) in FAMILIES {
        let mut site = site(&["--xdp", "native"], &["8080:80"]);
        let _fountain = Fountain::start(&site.lab.world, 7000);
        let before = program(&site.lab.node, "up0").expect("a program");
        // What comes in by XDP.
        let transfer = Drinking::start(Drinker::connect_modestly(&site.web, (world, 7000)));
        let pings = Pings::start(&site.web, world, Duration::from_millis(2));
        transfer.goes_on();

        site.agent.kill();
        assert_eq!(program(&site.lab.node, "up0").as_ref(), Some(&before));
        transfer.goes_on();
        page(&site);
        site.agent.start_again();
        assert_eq!(mode(&site.agent, "up0").as_deref(), Some("native"));
        assert_ne!(program(&site.lab.node, "up0"), Some(before), "swapped");
        page(&site);
        let now = sent(&site, "web");
        transfer.goes_on();
        assert!(sent(&site, "web") > now + 500, "by XDP");
        transfer.finish();
        pings.finish();
    }
}

#[test]
fn an_uplink_that_was_down_has_xdp_as_before() {
    let site = site(&["--xdp", "native"], &["8080:80"]);
    let (node, client) = (&site.lab.node, &site.lab.client);
    // IPv6 addresses go with the interface's being up.
    node.sysctl("ipv6/conf/up0/keep_addr_on_down", "1");
    client.sysctl("ipv6/conf/eth0/keep_addr_on_down", "1");
    for (end, link) in [(node, "up0"), (client, "eth0")] {
        end.ip(&["link", "set", link, "down"]);
        end.ip(&["link", "set", link, "up"]);
        wait_until("the uplink to be up", SOON, || {
            curl(client, NODE, 8080, "/").is_some() && curl(client, NODE6, 8080, "/").is_some()
        });
        assert_eq!(mode(&site.agent, "up0").as_deref(), Some("native"));
        let before = sent(&site, "web");
        page(&site);
        assert!(sent(&site, "web") >= before + 10, "{link}");
    }
}

#[test]
fn endpoints_come_and_go_while_xdp_runs() {
    let site = site(&["--xdp", "native"], &["8080:80"]);
    let _outside = Fountain::start(&site.lab.world, 7000);
    let transfer = Drinking::start(Drinker::connect(&site.web, (WORLD, 7000)));
    let late = site.lab.container("late");
    let nginx = Nginx::start(&late, "late", &[80]);
    for _ in 0..2 {
        attach(&site.agent, "late", &late, &["8081:80"]);
        assert!(gro(&late));
        for (node, _) in FAMILIES {
            let before = sent(&site, "late");
            let page = curl(&site.lab.client, node, 8081, "/");
            assert_eq!(page, Some(nginx.page(80)));
            assert!(sent(&site, "late") >= before + 5, "{node}");
        }
        site.agent.netfw(&["endpoint", "rm", "late"]);
        assert!(curl(&site.lab.client, NODE, 8081, "/").is_none());
        transfer.goes_on();
    }
    // Whoever deletes it.
    let late = site.lab.container("other");
    attach(&site.agent, "other", &late, &[]);
    let host = host_side(&site.agent, "other");
    site.lab.node.ip(&["link", "del", &host]);
    transfer.goes_on();
    page(&site);
    transfer.finish();
}

#[test]
fn a_container_whose_end_was_down_is_reached_by_xdp_again() {
    let mut site = site(&["--xdp", "native"], &["8080:80"]);
    site.web.ip(&["link", "set", "eth0", "down"]);
    // An agent that finds it down, and one that finds it up without addresses.
    restart_with(&mut site, "native");
    site.web.ip(&["link", "set", "eth0", "up"]);
    restart_with(&mut site, "native");
    let before = sent(&site, "web");
    page(&site);
    assert!(sent(&site, "web") >= before + 10);
}

#[test]
fn a_container_that_switches_gro_off_is_mended() {
    let mut site = site(&["--xdp", "native"], &["8080:80"]);
    let switch_off = |site: &Site| site.web.run(&["ethtool", "-K", "eth0", "gro", "off"]);
    switch_off(&site);
    assert!(
        curl(&site.lab.client, NODE, 8080, "/").is_none(),
        "no wonder"
    );
    // The agent looks every 30 seconds.
    wait_until("GRO to be on again", 4 * SOON, || gro(&site.web));
    let before = sent(&site, "web");
    page(&site);
    assert!(sent(&site, "web") >= before + 10);
    let said = site.agent.process().stderr();
    assert!(said.contains("GRO was switched off"), "{said}");
    switch_off(&site);
    restart_with(&mut site, "native");
    page(&site);
    restart_with(&mut site, "off");
    assert!(!gro(&site.web), "as it was");
    page(&site);
}

#[test]
fn another_mode_at_the_next_start() {
    let mut site = site(&["--xdp", "native"], &["8080:80", "9000:9000/udp"]);
    let _echo = UdpEcho::start(&site.web, (site.ip, 9000));
    let socket = udp_socket(&site.lab.client);
    let go_on = |site: &Site| {
        page(site);
        // A flow that lives through all of it.
        assert!(ask(&socket, (NODE, 9000), "x").is_some());
    };
    go_on(&site);
    restart_with(&mut site, "off");
    assert_eq!(told(&site.agent, "up0"), (None, "--xdp off".into()));
    assert_eq!(program(&site.lab.node, "up0"), None);
    assert!(!gro(&site.web), "as it was");
    go_on(&site);

    restart_with(&mut site, "generic");
    assert_eq!(mode(&site.agent, "up0").as_deref(), Some("generic"));
    assert!(gro(&site.web));
    go_on(&site);

    // Its owner's choice.
    restart_with(&mut site, "off");
    site.web.run(&["ethtool", "-K", "eth0", "gro", "on"]);
    restart_with(&mut site, "native");
    assert_eq!(mode(&site.agent, "up0").as_deref(), Some("native"));
    let before = sent(&site, "web");
    go_on(&site);
    assert!(sent(&site, "web") > before);
    restart_with(&mut site, "auto");
    assert_eq!(mode(&site.agent, "up0"), None);
    assert!(gro(&site.web), "left as it was");
    go_on(&site);
}

#[test]
fn flows_of_a_container_that_cannot_be_prepared_again_go_by_tc() {
    let mut site = site(&["--xdp", "native"], &["8080:80", "9000:9000/udp"]);
    let _echo = UdpEcho::start(&site.web, (site.ip, 9000));
    let socket = udp_socket(&site.lab.client);
    assert!(ask(&socket, (NODE, 9000), "x").is_some());
    restart_with(&mut site, "off");
    assert!(ask(&socket, (NODE, 9000), "x").is_some());
    // The name goes, the namespace lives: nginx and the echo are in it.
    let path = site.web.path();
    nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH).expect("a mount of ours");
    restart_with(&mut site, "native");
    assert_eq!(mode(&site.agent, "up0").as_deref(), Some("native"));
    let by_xdp = sent(&site, "web");
    assert!(ask(&socket, (NODE, 9000), "x").is_some());
    page(&site);
    assert_eq!(sent(&site, "web"), by_xdp);
}

#[test]
fn a_vlan_on_top_ends_xdp_and_its_end_brings_it_back() {
    let site = site(&["--xdp", "native"], &["8080:80"]);
    let node = &site.lab.node;
    let tagged = "ip link add link up0 name tagged type vlan id 5";
    if !node.succeeds(&tagged.split(' ').collect::<Vec<_>>()) {
        eprintln!("skipped: this kernel has no VLANs");
        return;
    }
    wait_until("XDP to leave", SOON, || mode(&site.agent, "up0").is_none());
    let (_, why) = told(&site.agent, "up0");
    assert!(why.contains("the tags of tagged's frames"), "{why}");
    assert_eq!(mode(&site.agent, "up1").as_deref(), Some("native"));
    assert!(gro(&site.web), "up1 has it still");
    page(&site);
    node.ip(&["link", "del", "tagged"]);
    wait_until("XDP to return", SOON, || mode(&site.agent, "up0").is_some());
    page(&site);
}

#[test]
fn an_xdp_program_of_somebody_elses_is_left_alone() {
    let lab = Lab::new();
    let mut ebpf = EbpfLoader::new()
        .load(netfw::bpf::PROGRAMS_OBJECT)
        .expect("the object that netfw carries can be loaded");
    let theirs: &mut Xdp = ebpf
        .program_mut("netfw_uplink_xdp")
        .and_then(|program| program.try_into().ok())
        .expect("an XDP program");
    theirs.load().expect("a program that passes");
    let link = lab
        .node
        .enter(|| theirs.attach("up0", XdpMode::Driver))
        .expect("attached");
    let id = program(&lab.node, "up0");
    let mut agent = Agent::start_with(&lab, &["--xdp", "native"]);
    let (mode_of_up0, why) = told(&agent, "up0");
    assert_eq!((mode_of_up0, &*why), (None, "another XDP program is on it"));
    assert_eq!(mode(&agent, "up1").as_deref(), Some("native"));
    assert_eq!(program(&lab.node, "up0"), id);
    let said = agent.process().stderr();
    assert!(
        said.contains("WARN") && said.contains("no XDP, though asked for"),
        "{said}"
    );

    theirs.detach(link).expect("ours to detach");
    // Something happens; without, it would take half a minute.
    lab.node.ip(&["link", "set", "up0", "mtu", "1400"]);
    wait_until("XDP to be taken up", SOON, || mode(&agent, "up0").is_some());
}

#[test]
fn xdp_goes_with_its_uplinks_and_comes_to_new_ones() {
    let lab = Lab::new();
    let agent = Agent::start_with(&lab, &["--xdp", "native"]);
    lab.node.ip(&["link", "del", "up1"]);
    wait_until("up1 to be gone", SOON, || {
        !agent.json(&["status"])["uplinks"]
            .to_string()
            .contains("up1")
    });
    wire(
        (&lab.node, "up1", [NODE_OUTSIDE, NODE6_OUTSIDE]),
        (&lab.world, "eth0", [WORLD, WORLD6]),
    );
    wait_until("up1 to have XDP", SOON, || {
        agent.json(&["status"])["uplinks"]
            .to_string()
            .contains("up1")
            && mode(&agent, "up1").as_deref() == Some("native")
    });
}

#[test]
fn only_served_uplinks_have_xdp() {
    let lab = Lab::new();
    let mut agent = Agent::start_with(&lab, &["--xdp", "native"]);
    assert!(mode(&agent, "up1").is_some());
    agent.stop();
    agent.set_options(&["--xdp", "native", "--uplink", "up0"]);
    agent.start_again();
    assert!(mode(&agent, "up0").is_some());
    assert_eq!(mode(&agent, "up1"), None);
    assert_eq!(program(&lab.node, "up1"), None);
}

#[test]
fn a_device_without_driver_for_it_stays_with_tc() {
    let lab = Lab::new();
    lab.node.ip(&["link", "add", "plain0", "type", "bridge"]);
    lab.node.ip(&["link", "set", "plain0", "up"]);
    let agent = Agent::start_with(&lab, &["--xdp", "native"]);
    let (mode_of_it, why) = told(&agent, "plain0");
    assert_eq!(mode_of_it, None);
    assert!(why.contains("its driver cannot"), "{why}");
    assert!(netfw_tests::programs::ping(&lab.client, NODE));
}

#[test]
fn down_takes_xdp_off() {
    let lab = Lab::new();
    let agent = Agent::start_with(&lab, &["--xdp", "native"]);
    assert!(program(&lab.node, "up0").is_some());
    agent.netfw(&["down"]);
    assert_eq!(program(&lab.node, "up0"), None);
    drop(agent);
}
