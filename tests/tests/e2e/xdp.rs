//! XDP on the node's uplinks, and everything that makes its frames arrive.

use aya::{
    EbpfLoader,
    programs::{Xdp, XdpMode},
};
use netfw_tests::{
    Agent, Lab, Namespace,
    programs::{Drinker, Fountain, Nginx, UdpEcho, ask, curl, udp_socket},
    topology::{NODE, NODE_OUTSIDE, NODE6_OUTSIDE, WORLD, WORLD6, wire},
    wait_until,
};

use crate::setting::{SOON, Site, text};

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

/// An uplink's XDP mode and why it has none, as the status tells them.
#[track_caller]
fn told(agent: &Agent, uplink: &str) -> (Option<String>, String) {
    let status = agent.json(&["status"]);
    let uplinks = status["uplinks"].as_array().expect("a list");
    let one = uplinks.iter().find(|one| one["name"] == uplink);
    let one = one.unwrap_or_else(|| panic!("no uplink {uplink} in {status}"));
    let word = |field: &str| one[field].as_str().map(str::to_owned);
    (word("xdp"), word("xdp_why").unwrap_or_default())
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

/// How many frames XDP has sent into the endpoint's veth, by its driver's count.
#[track_caller]
fn sent(site: &Site, endpoint: &str) -> u64 {
    let endpoint = site.agent.json(&["endpoint", "inspect", endpoint]);
    let host = text(&endpoint["host_interface"]);
    let shown = site.lab.node.run(&["ethtool", "-S", host]);
    shown
        .lines()
        .filter_map(|line| line.split_once("xdp_xmit: "))
        .map(|(_, count)| count.trim().parse::<u64>().expect("a number"))
        .sum()
}

fn gro(container: &Namespace) -> bool {
    container
        .run(&["ethtool", "-k", "eth0"])
        .contains("generic-receive-offload: on")
}

#[track_caller]
fn page(site: &Site) {
    let page = curl(&site.lab.client, NODE, 8080, "/");
    assert_eq!(page, Some(site.nginx.page(80)));
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
        for uplink in ["up0", "up1"] {
            assert_eq!(told(&site.agent, uplink), (Some(how.into()), String::new()));
        }
        let table = site.agent.netfw(&["status"]);
        assert!(table.contains(&format!("+xdp {how}")), "{table}");
        assert!(gro(&site.web));
        let _echo = UdpEcho::start(&site.web, (site.ip, 9000));
        let socket = udp_socket(&site.lab.client);
        page(&site);
        assert!(ask(&socket, (NODE, 9000), "x").is_some());
        if how == "native" {
            // SYN, ACK, the request, two more at the end; a datagram.
            assert!(sent(&site, "web") >= 5, "{}", sent(&site, "web"));
        }
    }
}

#[test]
fn replies_to_what_a_container_asked_come_by_xdp() {
    let site = site(&["--xdp", "native"], &[]);
    let world = Nginx::start(&site.lab.world, "world", &[80]);
    assert_eq!(curl(&site.web, WORLD, 80, "/"), Some(world.page(80)));
    assert!(sent(&site, "web") >= 3, "{}", sent(&site, "web"));
}

#[test]
fn what_hardware_was_to_complete_arrives_by_tc() {
    let site = site(&["--xdp", "native"], &["8080:80", "7000:7000"]);
    for end in [&site.lab.client, &site.lab.world] {
        end.run(&["ethtool", "-K", "eth0", "tx", "on"]);
    }
    page(&site);
    let _fountain = Fountain::start(&site.web, 7000);
    Drinker::connect(&site.lab.client, (NODE, 7000)).drink(2048);
    let _world = Fountain::start(&site.lab.world, 7000);
    Drinker::connect(&site.web, (WORLD, 7000)).drink(2048);
}

#[test]
fn much_data_by_xdp() {
    let site = site(&["--xdp", "native"], &["7000:7000"]);
    let _inside = Fountain::start(&site.web, 7000);
    let _outside = Fountain::start(&site.lab.world, 7000);
    Drinker::connect(&site.lab.client, (NODE, 7000)).drink(2048);
    let before = sent(&site, "web");
    Drinker::connect(&site.web, (WORLD, 7000)).drink(2048);
    // 16 MiB in segments of the MTU.
    assert!(sent(&site, "web") - before > 10_000, "by XDP");
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
    let mut site = site(&["--xdp", "native"], &["8080:80", "7000:7000"]);
    let _fountain = Fountain::start(&site.web, 7000);
    let mut transfer = Drinker::connect(&site.lab.client, (NODE, 7000));
    transfer.drink(256);
    let before = program(&site.lab.node, "up0").expect("a program");
    // Replies come in by XDP.
    let mut pings = site.web.spawn(&[
        "ping",
        "-n",
        "-q",
        "-i",
        "0.002",
        "-c",
        "100000",
        &WORLD.to_string(),
    ]);
    wait_until("pings to be answered by XDP", SOON, || {
        sent(&site, "web") > 100
    });

    site.agent.kill();
    assert_eq!(program(&site.lab.node, "up0").as_ref(), Some(&before));
    page(&site);
    site.agent.start_again();
    assert_eq!(mode(&site.agent, "up0").as_deref(), Some("native"));
    assert_ne!(program(&site.lab.node, "up0"), Some(before), "swapped");
    page(&site);
    transfer.drink(256);
    let now = sent(&site, "web");
    wait_until("pings to be answered by XDP again", SOON, || {
        sent(&site, "web") > now + 100
    });
    pings.signal(nix::sys::signal::Signal::SIGINT);
    pings.wait(SOON);
    let told = pings.stdout();
    assert!(told.contains(" 0% packet loss"), "{told}");
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
