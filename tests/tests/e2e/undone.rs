//! What others undo of netfw's on the node is made again, what they do beside it harms neither, and what cannot
//! come back is told and swept away.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, TcpListener},
    path::Path,
    process::Command,
    time::Duration,
};

use aya::programs::{
    LinkOrder, SchedClassifier, TcAttachType,
    tc::{NlOptions, TcAttachOptions, TcHandle},
};
use netfw_common::ABI;
use netfw_tests::{
    Agent, Lab, Running, link,
    programs::{
        Drinker, Drinking, Fountain, Nginx, UdpEcho, ask, ask_within, curl, curl_in_vain, ping,
        udp_socket,
    },
    topology::{CLIENT, NODE, NODE_OUTSIDE, NODE6, WORLD},
    wait_until,
};

use crate::{
    doctor::{guard, theirs},
    setting::{SOON, Site, attach, text},
};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const GLANCE: Duration = Duration::from_millis(300);

fn host_interface(agent: &Agent) -> String {
    let web = agent.json(&["endpoint", "inspect", "web"]);
    text(&web["host_interface"]).to_owned()
}

fn bridge(agent: &Agent) -> String {
    text(&agent.json(&["network", "inspect", "bridge"])["bridge"]).to_owned()
}

/// In and out, by both families.
#[track_caller]
fn works(site: &Site) {
    for node in [NODE, NODE6] {
        let page = curl(&site.lab.client, node, 8080, "/");
        assert_eq!(page, Some(site.nginx.page(80)), "{node}");
    }
    assert!(ping(&site.web, WORLD));
    let web = site.agent.json(&["endpoint", "inspect", "web"]);
    assert_eq!(web["state"], "up", "{web}");
    assert_eq!(text(&web["ip"]), site.ip.to_string());
    assert_eq!(text(&web["ip6"]), site.ip6.to_string());
}

#[test]
fn what_somebody_does_to_interfaces_is_undone() {
    let site = Site::new(&["8080:80", "9000:90"]);
    let node = &site.lab.node;
    let bridge = bridge(&site.agent);
    let fountain = Fountain::start(&site.web, 90);
    let drink = || Drinking::start(Drinker::connect(&site.lab.client, (NODE, 9000)));
    let index = || site.agent.json(&["endpoint", "inspect", "web"])["host_ifindex"].clone();
    works(&site);
    let is_up = |link: &str| node.ip(&["-o", "link", "show", link]).contains(",UP");
    let veth = host_interface(&site.agent);

    node.ip(&["link", "set", &bridge, "down"]);
    wait_until("the bridge to be up", SOON, || is_up(&bridge));
    node.ip(&["link", "set", &veth, "down"]);
    wait_until("the veth to be up", SOON, || is_up(&veth));
    works(&site);

    // Connections do not go by the bridge.
    let before = index();
    let drinking = drink();
    let is_port = || {
        let ports = node.ip(&["-o", "link", "show", "master", &bridge]);
        ports.contains(&veth)
    };
    node.ip(&["link", "set", &veth, "nomaster"]);
    wait_until("a veth in the bridge", SOON, is_port);
    drinking.goes_on();
    works(&site);
    node.ip(&["link", "del", &bridge]);
    wait_until("another bridge, and the veth in it", SOON, || {
        node.links().contains(&bridge) && is_port()
    });
    drinking.goes_on();
    works(&site);
    assert_eq!(index(), before, "the same veth pair");
    drop((drinking, fountain));

    node.ip(&["link", "del", &veth]);
    wait_until("another veth pair", SOON, || {
        let now = index();
        now.is_number() && now != before
    });
    works(&site);

    node.ip(&["addr", "flush", "dev", &bridge, "scope", "global"]);
    wait_until("the gateway's addresses", SOON, || {
        let shown = node.ip(&["-o", "addr", "show", "dev", &bridge, "scope", "global"]);
        shown.lines().count() == 2
    });
    works(&site);
}

/// The kernel tells nobody: what looks at the node now and then finds it.
#[test]
fn a_program_that_was_detached_from_an_uplink_is_there_again() {
    let site = Site::new(&["8080:80"]);
    let links = format!("/sys/fs/bpf/{}/v{ABI}/links", site.agent.instance());
    let ends = ["-uplink", "-guard"];
    let mut detached = 0;
    for pin in fs::read_dir(links).expect("they are pinned").flatten() {
        if ends
            .iter()
            .any(|end| pin.file_name().to_string_lossy().ends_with(end))
        {
            link::detach(&pin.path()).expect("root may");
            detached += 1;
        }
    }
    if detached == 0 {
        // By filters, of which other tests tell.
        return;
    }
    assert!(curl_in_vain(&site.lab.client, NODE, 8080));
    // Anything that happens to interfaces has the agent look, as does some time.
    site.lab
        .node
        .ip(&["link", "add", "other0", "type", "bridge"]);
    wait_until("the programs to be there again", SOON, || {
        !curl_in_vain(&site.lab.client, NODE, 8080) && ping(&site.web, WORLD)
    });
    works(&site);
}

#[test]
fn programs_for_sockets_that_were_detached_are_there_again() {
    let site = Site::new(&["8080:80"]);
    let reaches = || curl(&site.lab.node, LOCALHOST, 8080, "/") == Some(site.nginx.page(80));
    assert!(reaches());
    let links = format!("/sys/fs/bpf/{}/v{ABI}/links", site.agent.instance());
    for program in ["netfw_connect4", "netfw_bind4"] {
        let pin = Path::new(&links).join(format!("cgroup-{program}"));
        link::detach(&pin).expect("root may");
    }
    assert!(curl_in_vain(&site.lab.node, LOCALHOST, 8080));
    site.lab
        .node
        .ip(&["link", "add", "other0", "type", "bridge"]);
    wait_until("the programs to be there again", SOON, reaches);
    let taken = || TcpListener::bind(("0.0.0.0", 8080)).is_err();
    assert!(
        site.lab.node.enter(taken),
        "a published port was given away"
    );
}

/// While nobody looked: a flow by the old address would have no way out, for as long as the container sends.
#[test]
fn flows_by_an_address_that_went_while_no_agent_ran_are_forgotten() {
    let mut site = Site::new(&[]);
    let _echo = UdpEcho::start(&site.lab.world, (WORLD, 7000));
    let socket = udp_socket(&site.web);
    let answer = ask(&socket, (WORLD, 7000), "one").expect("an answer");
    assert!(answer.starts_with(&NODE_OUTSIDE.to_string()), "{answer}");
    site.agent.stop();
    let node = &site.lab.node;
    let [old, new] = [NODE_OUTSIDE.to_string(), "10.2.0.77".to_owned()].map(|ip| ip + "/24");
    node.ip(&["addr", "add", &new, "dev", "up1"]);
    node.ip(&["addr", "del", &old, "dev", "up1"]);
    node.ip(&["addr", "replace", &new, "dev", "up1"]);
    site.agent.start_again();
    wait_until("an answer by the new address", SOON, || {
        let answer = ask_within(GLANCE, &socket, (WORLD, 7000), "two");
        answer.is_some_and(|answer| answer.starts_with("10.2.0.77:"))
    });
}

#[test]
fn what_is_undone_again_and_again_is_left_alone() {
    let mut site = Site::new(&[]);
    let bridge = bridge(&site.agent);
    wait_until("the agent to have enough", SOON * 3, || {
        site.lab.node.ip(&["link", "set", &bridge, "down"]);
        let said = site.agent.process().stderr();
        said.contains("network bridge is undone again and again")
    });
    // It is no less well for that.
    site.agent.netfw(&["status"]);
    site.agent.kill();
    site.agent.start_again();
    let shown = site.lab.node.ip(&["-o", "link", "show", &bridge]);
    assert!(shown.contains(",UP"), "{shown}");
}

#[test]
fn forwarding_that_is_switched_off_for_all_is_not_so_for_long() {
    let site = Site::new(&["8080:80"]);
    let node = &site.lab.node;
    let bridge = bridge(&site.agent);
    for (all, family) in [
        ("ipv4/ip_forward", "ipv4"),
        ("ipv6/conf/all/forwarding", "ipv6"),
    ] {
        node.sysctl(all, "1");
        node.sysctl(all, "0");
        let key = format!("net.{family}.conf.{bridge}.forwarding");
        wait_until(&key, SOON, || {
            node.run(&["sysctl", "-n", &key]).trim() == "1"
        });
    }
    works(&site);
    let key = format!("ipv4/conf/{bridge}/forwarding");
    node.sysctl(&key, "0");
    wait_until(&key, SOON, || {
        let key = key.replace('/', ".");
        node.run(&["sysctl", "-n", &format!("net.{key}")]).trim() == "1"
    });
    works(&site);
}

#[test]
fn an_uplink_of_another_name_and_address_is_served() {
    let site = Site::new(&["8080:80"]);
    let Lab { node, client, .. } = &site.lab;
    let served = |name: &str| {
        let status = site.agent.json(&["status"]);
        let uplinks = status["uplinks"].as_array().expect("a list");
        uplinks
            .iter()
            .any(|uplink| uplink["name"] == name && uplink["served"] == true)
    };
    node.ip(&["link", "set", "up0", "down"]);
    node.ip(&["link", "set", "up0", "name", "wan"]);
    node.ip(&["link", "set", "wan", "up"]);
    wait_until("wan to be served", SOON, || served("wan") && !served("up0"));
    let page = Some(site.nginx.page(80));
    wait_until("the publish at the old address", SOON, || {
        curl(client, NODE, 8080, "/") == page
    });
    // As a DHCP server would have it: another one first, then the old one goes.
    let other = "10.1.0.77".parse().expect("an address");
    node.ip(&["addr", "add", "10.1.0.77/24", "dev", "wan"]);
    node.ip(&["addr", "del", "10.1.0.1/24", "dev", "wan"]);
    node.ip(&["addr", "replace", "10.1.0.77/24", "dev", "wan"]);
    wait_until("the publish at the new address", SOON, || {
        curl(client, other, 8080, "/") == page
    });
    let outside = Nginx::start(client, "client", &[80]);
    wait_until("masquerade by the new address", SOON, || {
        curl(&site.web, CLIENT, 80, "/from").is_some()
            && outside
                .log()
                .iter()
                .any(|line| line.starts_with("10.1.0.77 "))
    });
}

#[test]
fn a_reload_of_the_firewall_harms_nothing() {
    let mut site = Site::new(&["8080:80"]);
    let fountain = Fountain::start(&site.web, 90);
    site.agent.netfw(&["publish", "web", "9000:90"]);
    let drinker = Drinker::connect(&site.lab.client, (NODE, 9000));
    let drinking = Drinking::start(drinker);
    let run = |site: &Site, words: &[&str]| site.lab.node.run(words);
    let rules = "flush ruleset; table inet firewall { chain forward { type filter hook forward \
                 priority filter; policy drop; }; chain input { type filter hook input priority \
                 filter; policy accept; }; }";
    // As firewalld does: all away, all anew.
    for _ in 0..3 {
        run(&site, &["nft", rules]);
        drinking.goes_on();
        works_in(&site);
    }
    let listed = run(&site, &["nft", "list", "ruleset"]);
    // Whatever netfw does, it leaves others' rules alone.
    let app = site.lab.container("app");
    attach(&site.agent, "app", &app, &["7000:80"]);
    site.agent.netfw(&["endpoint", "rm", "app"]);
    site.agent.kill();
    site.agent.start_again();
    drinking.goes_on();
    assert_eq!(run(&site, &["nft", "list", "ruleset"]), listed);
    run(&site, &["nft", "flush", "ruleset"]);
    for words in [
        &["iptables", "-P", "FORWARD", "DROP"][..],
        &[
            "iptables",
            "-t",
            "nat",
            "-A",
            "POSTROUTING",
            "-j",
            "MASQUERADE",
        ],
        &["iptables", "-F"],
        &["iptables", "-t", "nat", "-F"],
    ] {
        run(&site, words);
        drinking.goes_on();
        works_in(&site);
    }
    drinking.finish();
    drop(fountain);
}

fn works_in(site: &Site) {
    let page = curl(&site.lab.client, NODE, 8080, "/");
    assert_eq!(page, Some(site.nginx.page(80)));
}

#[test]
fn programs_of_others_on_the_same_hooks_come_and_go() {
    let mut site = Site::new(&["8080:80"]);
    let veth = host_interface(&site.agent);
    let mut ebpf = theirs();
    let program = guard(&mut ebpf);
    let id = program.info().expect("loaded").id();
    let node = &site.lab.node;
    // Behind netfw's, wherever they are.
    let last = TcAttachOptions::TcxOrder(LinkOrder::last());
    let by_tcx = node.enter(|| program.attach_with_options("up0", TcAttachType::Ingress, last));
    node.enter(|| {
        let filter = NlOptions {
            priority: 0xfff0,
            handle: TcHandle::new(0, 1),
            classid: None,
        };
        let options = TcAttachOptions::Netlink(filter);
        let link = program
            .attach_with_options(&veth, TcAttachType::Ingress, options)
            .and_then(|link| program.take_link(link))
            .expect("attached");
        // As in `doctor`.
        std::mem::forget(link);
    });
    let filters = |site: &Site| {
        let words = ["tc", "filter", "show", "dev", &veth, "ingress"];
        site.lab.node.run(&words)
    };
    let are_there = |site: &Site| {
        assert!(filters(site).contains("pref 65520"), "{}", filters(site));
        if by_tcx.is_ok() {
            let query = || SchedClassifier::query_tcx("up0", TcAttachType::Ingress);
            let (_, programs) = site.lab.node.enter(query).expect("what is attached");
            assert!(programs.iter().any(|program| program.id() == id));
        }
        works(site);
    };
    are_there(&site);
    site.agent.kill();
    site.agent.start_again();
    site.agent.netfw(&["publish", "web", "8081:81"]);
    are_there(&site);
    let words = [
        "tc", "filter", "del", "dev", &veth, "ingress", "pref", "65520",
    ];
    site.lab.node.run(&words);
    drop(ebpf);
    works(&site);
    assert!(filters(&site).contains("netfw_container"));
}

#[test]
fn an_endpoint_of_a_process_that_is_gone_is_told_and_swept() {
    let lab = Lab::new();
    let mut agent = Agent::start(&lab);
    let mut command = Command::new("unshare");
    command.args(["--net", "sleep", "600"]);
    let mut process = Running::start(command);
    let pid = process.pid().to_string();
    wait_until("unshare", SOON, || {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm"));
        comm.is_ok_and(|comm| comm.trim() == "sleep")
    });
    agent.netfw(&["endpoint", "add", "app", "--pid", &pid, "-p", "8080:80"]);
    let named = lab.container("named");
    attach(&agent, "named", &named, &[]);
    let state =
        |agent: &Agent, name: &str| agent.json(&["endpoint", "inspect", name])["state"].clone();
    process.stop();
    wait_until("the endpoint to be gone", SOON, || {
        state(&agent, "app") == "gone"
    });
    assert_eq!(agent.json(&["status"])["endpoints_gone"], 1);
    let listed = agent.netfw(&["endpoint", "ls"]);
    let line = listed.lines().find(|line| line.starts_with("app "));
    assert!(line.is_some_and(|line| line.contains("gone")), "{listed}");
    named.delete();
    wait_until("the other to be gone", SOON, || {
        state(&agent, "named") == "gone"
    });
    agent.stop();
    agent.start_again();
    // Nobody will ever be that process again; a namespace may come back by its name.
    let all = agent.json(&["endpoint", "ls"]);
    let names: Vec<_> = all
        .as_array()
        .expect("a list")
        .iter()
        .map(|endpoint| text(&endpoint["name"]))
        .collect();
    assert_eq!(names, ["named"]);
    let other = lab.container("other");
    attach(&agent, "other", &other, &["8080:80"]);
}
