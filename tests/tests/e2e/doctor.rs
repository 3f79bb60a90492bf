//! `netfw doctor`: what is wrong is named, with what to do; what is right is not.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::{Command, Output},
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{
        LinkOrder, SchedClassifier, TcAttachType, Xdp, XdpMode,
        tc::{NlOptions, TcAttachOptions, TcHandle, qdisc_add_clsact},
    },
};
use netfw_tests::{
    Agent, Lab, Namespace,
    agent::{FAILED, binary},
    programs::curl,
    topology::{NODE, WORLD},
    wait_until,
};
use serde_json::Value;

use crate::setting::{SOON, Site, attach, text};

/// What was found, and the exit status.
struct Diagnosis {
    status: Option<i32>,
    findings: Vec<Value>,
}

impl Diagnosis {
    #[track_caller]
    fn of(output: &Output) -> Self {
        let findings: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("no JSON: {error}: {output:?}"));
        let findings = findings.as_array().expect("a list").clone();
        for finding in &findings {
            for field in ["area", "check", "state", "found"] {
                assert!(finding[field].is_string(), "no {field} in {finding}");
            }
            for field in ["instead", "remedy"] {
                let value = finding.get(field).expect(field);
                assert!(value.is_null() || value.is_string(), "{finding}");
            }
            assert_eq!(
                finding["state"] == "ok",
                finding["remedy"].is_null(),
                "{finding}"
            );
        }
        Self {
            status: output.status.code(),
            findings,
        }
    }

    /// The one of this check that says `words`.
    #[track_caller]
    fn finding(&self, check: &str, words: &str) -> &Value {
        let said =
            |finding: &&Value| finding["check"] == check && text(&finding["found"]).contains(words);
        let found = self.findings.iter().find(said);
        found.unwrap_or_else(|| panic!("no {check} with {words:?} in {:#?}", self.findings))
    }

    #[track_caller]
    fn names(&self, check: &str, state: &str, words: &str) {
        let finding = self.finding(check, words);
        assert_eq!(finding["state"], state, "{finding}");
    }

    /// Nothing keeps netfw from working.
    #[track_caller]
    fn is_fine(&self) {
        let wrong = |finding: &&Value| !["ok", "note"].contains(&text(&finding["state"]));
        let wrong: Vec<_> = self.findings.iter().filter(wrong).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert_eq!(self.status, Some(0));
    }

    #[track_caller]
    fn is_not_fine(&self) {
        assert_eq!(self.status, Some(FAILED), "{:#?}", self.findings);
    }
}

#[track_caller]
fn doctor(agent: &Agent) -> Diagnosis {
    Diagnosis::of(&agent.output(&["doctor", "-o", "json"]))
}

/// Of an instance that there is none of.
#[track_caller]
fn doctor_alone(node: &Namespace) -> Diagnosis {
    let instance = format!("nfdoc{}", std::process::id());
    let output = Command::new(binary())
        .args(["doctor", "-o", "json", "--instance", &instance])
        .args(["--netns", node.name()])
        .output()
        .expect("netfw runs");
    for directory in ["/run/netfw", "/sys/fs/bpf", "/var/lib/netfw"] {
        assert!(
            !Path::new(directory).join(&instance).exists(),
            "{directory}"
        );
    }
    Diagnosis::of(&output)
}

#[test]
fn a_clean_node_without_an_agent_is_fine_and_stays_as_it_is() {
    let lab = Lab::new();
    let look = || {
        [
            lab.node.ip(&["-o", "link"]),
            lab.node.run(&["tc", "qdisc"]),
            lab.node
                .run(&["tc", "filter", "show", "dev", "up0", "ingress"]),
        ]
    };
    let before = look();
    let found = doctor_alone(&lab.node);
    assert_eq!(before, look());
    found.is_fine();
    found.names("version", "ok", "Linux ");
    found.names("programs", "ok", "the kernel takes 16 of 16");
    found.names("agent", "note", "none runs");
    found.names("programs on up0", "ok", "none");
    found.names("rules", "ok", "none found");
    found.names("ipv6", "ok", "on");
    assert!(found.findings.iter().all(|one| one["area"] != "networks"));
}

#[test]
fn a_site_is_fine() {
    let site = Site::new(&["8080:80"]);
    let found = doctor(&site.agent);
    found.is_fine();
    let hook = text(&site.agent.json(&["status"])["uplinks"][0]["hook"]).to_owned();
    for uplink in ["up0", "up1"] {
        found.names(&format!("uplink {uplink}"), "ok", &hook);
        found.names(&format!("programs on {uplink}"), "ok", "none but netfw's");
    }
    found.names("sockets", "ok", "reach publishes");
    found.names("mtu of bridge", "ok", "1500");
    found.names("subnets of bridge", "ok", "nobody else");
    found.names("bridge of bridge", "ok", "forwards");
    let table = site.agent.netfw(&["doctor"]);
    for words in ["KERNEL ", "NODE ", "HOOKS ", "FIREWALL ", "NETWORKS "] {
        assert!(table.contains(words), "{table}");
    }
}

/// Somebody's programs: what netfw's do with empty maps, which is nothing.
pub fn theirs() -> Ebpf {
    EbpfLoader::new()
        .load(netfw::bpf::PROGRAMS_OBJECT)
        .expect("the object that netfw carries can be loaded")
}

/// One of TC, loaded.
pub fn guard(ebpf: &mut Ebpf) -> &mut SchedClassifier {
    let program = ebpf.program_mut("netfw_guard").expect("a program");
    let program: &mut SchedClassifier = program.try_into().expect("one of TC");
    program.load().expect("a program that passes");
    program
}

#[test]
fn others_on_the_hooks_are_named() {
    let site = Site::new(&[]);
    let mut ebpf = theirs();
    let program = guard(&mut ebpf);
    let id = format!("(id {})", program.info().expect("loaded").id());
    let node = &site.lab.node;
    let first = TcAttachOptions::TcxOrder(LinkOrder::first());
    let by_tcx = node.enter(|| program.attach_with_options("up0", TcAttachType::Ingress, first));
    let filter = NlOptions {
        priority: 1,
        handle: TcHandle::new(0, 1),
        classid: None,
    };
    let link = node.enter(|| {
        // On an old kernel netfw has made one.
        let _ = qdisc_add_clsact("up1");
        let options = TcAttachOptions::Netlink(filter);
        program
            .attach_with_options("up1", TcAttachType::Egress, options)
            .and_then(|link| program.take_link(link))
            .expect("attached")
    });
    // It goes with the namespace; aya would take it off an interface of ours that has its index.
    std::mem::forget(link);
    let xdp: &mut Xdp = ebpf
        .program_mut("netfw_uplink_xdp")
        .and_then(|program| program.try_into().ok())
        .expect("an XDP program");
    xdp.load().expect("a program that passes");
    let xdp_id = format!("(id {})", xdp.info().expect("loaded").id());
    node.enter(|| xdp.attach("up1", XdpMode::Skb))
        .expect("attached");

    let found = doctor(&site.agent);
    found.is_fine();
    if by_tcx.is_ok() {
        found.names("programs on up0", "note", &id);
        let finding = found.finding("programs on up0", "TCX ingress: program netfw_guard");
        assert!(
            text(&finding["found"]).contains("before netfw"),
            "{finding}"
        );
    } else {
        eprintln!("this kernel has no TCX");
    }
    found.names(
        "programs on up1",
        "note",
        &format!("clsact egress: program netfw_guard {id}"),
    );
    found.names("programs on up1", "note", &xdp_id);
    let finding = found.finding("programs on up1", "XDP: program");
    assert!(text(&finding["instead"]).contains("TC"), "{finding}");
    assert!(
        text(&finding["remedy"]).contains("dev up1 xdp off"),
        "{finding}"
    );
    // Without an agent, too; netfw's own are then another's.
    let alone = doctor_alone(node);
    alone.names("programs on up1", "note", &xdp_id);
    alone.names("instances", "warn", site.agent.instance());
    alone.is_not_fine();
}

/// Where `br_netfilter` is loaded, bridges of a new namespace ask the rules for what they forward.
fn ask_no_rules_of_bridges(node: &Namespace) -> bool {
    let there = Path::new("/proc/sys/net/bridge/bridge-nf-call-ip6tables").exists();
    if there {
        node.sysctl("bridge/bridge-nf-call-iptables", "0");
        node.sysctl("bridge/bridge-nf-call-ip6tables", "0");
    }
    there
}

/// Does what the finding says, as it is written.
#[track_caller]
fn obey(node: &Namespace, finding: &Value) {
    let remedy = text(&finding["remedy"]);
    let commands: Vec<&str> = remedy.split('`').skip(1).step_by(2).collect();
    assert!(!commands.is_empty(), "{finding}");
    for command in commands {
        node.run(&command.split(' ').collect::<Vec<_>>());
    }
}

const FORWARD: &str = "add table inet theirs; \
    add chain inet theirs forward { type filter hook forward priority 0; policy drop; }";

#[test]
fn a_chain_that_drops_what_is_forwarded_is_named() {
    let site = Site::new(&[]);
    let node = &site.lab.node;
    ask_no_rules_of_bridges(node);
    node.run(&["nft", FORWARD]);
    let found = doctor(&site.agent);
    found.is_fine();
    found.names("forward", "note", "inet theirs forward");
    doctor_alone(&site.lab.client).names("rules", "ok", "none");

    // The node's stack forwards for this one.
    site.agent.netfw(&["network", "create", "way", "--routed"]);
    let bridge = site.agent.json(&["network", "inspect", "way"])["bridge"].clone();
    let bridge = text(&bridge);
    let found = doctor(&site.agent);
    found.is_not_fine();
    found.names("forward", "warn", bridge);
    found.names("ip_forward", "warn", "net.ipv4.ip_forward is 0");
    obey(node, found.finding("forward", bridge));
    netfw_tests::topology::forward(node);
    doctor(&site.agent).is_fine();
}

#[test]
fn a_chain_that_keeps_containers_from_names_is_named() {
    let site = Site::new(&[]);
    let node = &site.lab.node;
    node.run(&[
        "nft",
        "add table inet theirs; \
         add chain inet theirs input { type filter hook input priority 0; policy accept; }; \
         add rule inet theirs input ct state established accept; \
         add rule inet theirs input counter reject",
    ]);
    let found = doctor(&site.agent);
    found.is_not_fine();
    found.names(
        "input",
        "warn",
        "inet theirs input drops questions for names",
    );
    obey(node, found.finding("input", "netfw"));
    doctor(&site.agent).is_fine();
}

#[test]
fn what_iptables_drops_is_named_and_mended_by_iptables() {
    let site = Site::new(&["8080:80"]);
    let node = &site.lab.node;
    ask_no_rules_of_bridges(node);
    let iptables = |line: &str| {
        let words: Vec<&str> = ["iptables-nft"]
            .into_iter()
            .chain(line.split(' '))
            .collect();
        node.run(&words)
    };
    iptables("-P INPUT DROP");
    iptables("-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT");
    iptables("-A INPUT -i up0 -p udp --dport 53 -j ACCEPT");
    iptables("-N last");
    iptables("-A last -m comment --comment all -j DROP");
    iptables("-A OUTPUT -o lo -j ACCEPT");
    iptables("-A OUTPUT -j last");
    let found = doctor(&site.agent);
    found.is_not_fine();
    found.names("input", "warn", "ip filter INPUT drops questions for names");
    found.names("output", "warn", "a rule of ip filter last");
    obey(node, found.finding("input", "netfw"));
    obey(node, found.finding("output", "netfw"));
    doctor(&site.agent).is_fine();
    // It fails where there is a rule that it could not have written.
    let listed = iptables("-S INPUT");
    assert!(listed.contains("--dport 53"), "{listed}");
}

/// Neighbours of IPv6 are asked over the bridge.
#[test]
fn a_bridge_whose_frames_rules_drop_is_named() {
    let site = Site::new(&[]);
    let node = &site.lab.node;
    if !ask_no_rules_of_bridges(node) {
        return eprintln!("br_netfilter is not loaded here");
    }
    node.run(&["ip6tables-nft", "-P", "FORWARD", "DROP"]);
    doctor(&site.agent).is_fine();
    node.sysctl("bridge/bridge-nf-call-ip6tables", "1");
    let other = site.lab.container("other");
    attach(&site.agent, "other", &other, &[]);
    let ping = |seconds: &str| {
        let to = site.ip6.to_string();
        let words = ["ping", "-c", "1", "-W", seconds, to.as_str()];
        other.succeeds(&words)
    };
    assert!(!ping("1"), "the bridge asks nobody");
    let found = doctor(&site.agent);
    found.is_not_fine();
    found.names(
        "forward",
        "warn",
        "ip6 filter FORWARD drops neighbour discovery",
    );
    obey(node, found.finding("forward", "netfw"));
    doctor(&site.agent).is_fine();
    wait_until("a neighbour to be found", SOON, || ping("1"));
}

#[test]
fn an_agent_that_hangs_is_told() {
    let mut site = Site::new(&[]);
    let signal = |site: &mut Site, signal| site.agent.process().signal(signal);
    signal(&mut site, nix::sys::signal::Signal::SIGSTOP);
    let found = doctor(&site.agent);
    let said = site.agent.refuses(FAILED, &["down"]);
    signal(&mut site, nix::sys::signal::Signal::SIGCONT);
    found.is_not_fine();
    found.names("agent", "fail", "has not answered");
    assert!(said.contains("`kill -KILL "), "{said}");
    assert!(said.contains("waiting for the agent (process "), "{said}");
}

#[test]
fn what_a_container_has_lost_inside_is_named() {
    let mut site = Site::new(&["8080:80"]);
    let web = &site.web;
    let inspected = || {
        let endpoint = site.agent.json(&["endpoint", "inspect", "web"]);
        endpoint["warnings"].to_string()
    };
    let ip = text(&site.agent.json(&["endpoint", "inspect", "web"])["ip"]).to_owned();
    assert_eq!(inspected(), "[]");
    // Puts back what is lost, by what is said to.
    let obeyed = |found: &Diagnosis| {
        let of_web = |finding: &&Value| finding["check"] == "endpoint web";
        for finding in found.findings.iter().filter(of_web) {
            let remedy = text(&finding["remedy"]);
            let command = remedy.split('`').nth(1).expect("a command");
            let inside = command.split_once(" -- ").expect("in the namespace").1;
            web.run(&inside.split(' ').collect::<Vec<_>>());
        }
        doctor(&site.agent).is_fine();
        assert_eq!(inspected(), "[]");
        assert!(curl(&site.lab.client, NODE, 8080, "/").is_some());
    };
    web.ip(&["addr", "del", &format!("{ip}/16"), "dev", "eth0"]);
    let found = doctor(&site.agent);
    found.is_not_fine();
    found.names(
        "endpoint web",
        "warn",
        &format!("eth0 has lost its address {ip}"),
    );
    assert!(inspected().contains(&ip), "{}", inspected());
    let shown = site.agent.netfw(&["endpoint", "inspect", "web"]);
    assert!(
        shown.contains(&format!("eth0 has lost its address {ip}: `netfw exec web ")),
        "{shown}"
    );
    obeyed(&found);

    web.ip(&["-6", "route", "del", "default"]);
    let found = doctor(&site.agent);
    found.is_not_fine();
    found.names("endpoint web", "warn", "no default route of IPv6");
    obeyed(&found);

    web.ip(&["link", "set", "dev", "eth0", "down"]);
    let found = doctor(&site.agent);
    found.is_not_fine();
    found.names("endpoint web", "warn", "eth0 is down inside");
    obeyed(&found);

    let other = ["link", "set", "dev", "eth0", "address", "02:00:00:00:00:99"];
    web.ip(&other);
    let found = doctor(&site.agent);
    found.is_not_fine();
    found.names("endpoint web", "warn", "another MAC address");
    obeyed(&found);

    // A start gives back what belongs to it.
    web.ip(&other);
    site.agent.stop();
    site.agent.start_again();
    doctor(&site.agent).is_fine();
    assert!(curl(&site.lab.client, NODE, 8080, "/").is_some());
}

#[test]
fn a_port_that_a_rule_translates_is_named() {
    let site = Site::new(&["8080:80", "9000:80/udp"]);
    let node = &site.lab.node;
    node.run(&[
        "nft",
        "add table ip theirs; \
         add chain ip theirs ports { type nat hook prerouting priority -100; }; \
         add rule ip theirs ports tcp dport 9000 dnat to 10.9.0.2:80; \
         add chain ip theirs hide { type nat hook postrouting priority 100; }; \
         add rule ip theirs hide oifname up1 masquerade",
    ]);
    let found = doctor(&site.agent);
    found.is_fine();
    found.names("masquerade", "note", "ip theirs hide");
    node.run(&[
        "nft",
        "add rule ip theirs ports tcp dport 8000-8100 dnat to 10.9.0.2",
    ]);
    let found = doctor(&site.agent);
    found.is_not_fine();
    found.names(
        "ports",
        "warn",
        "rules in ip theirs translate tcp port 8080",
    );
    found.names("ports", "warn", "0.0.0.0:8080:80/tcp");
    node.run(&["nft", "delete table ip theirs"]);

    // As Docker has it.
    let rule = "-t nat -A PREROUTING -p udp --dport 9000 -j DNAT --to-destination 10.9.0.2:80";
    let rule: Vec<&str> = ["iptables-nft"]
        .into_iter()
        .chain(rule.split(' '))
        .collect();
    node.run(&rule);
    let found = doctor(&site.agent);
    found.is_not_fine();
    found.names("ports", "warn", "rules in ip nat translate udp port 9000");
}

#[test]
fn an_mtu_that_does_not_fit_is_named() {
    let site = Site::new(&[]);
    let node = &site.lab.node;
    let endpoint = site.agent.json(&["endpoint", "inspect", "web"]);
    let veth = text(&endpoint["host_interface"]);
    node.ip(&["link", "set", veth, "mtu", "2000"]);
    let found = doctor(&site.agent);
    found.is_not_fine();
    found.names("mtu of bridge", "warn", &format!("{veth} has 2000"));
    let remedy = text(&found.finding("mtu of bridge", veth)["remedy"]).to_owned();
    let host = format!("`ip link set dev {veth} mtu 1500`");
    assert!(
        remedy.contains(&host) && remedy.contains("`netfw exec web "),
        "{remedy}"
    );
    // Both ends alike are no harm.
    node.ip(&["link", "set", veth, "mtu", "1280"]);
    site.web.ip(&["link", "set", "eth0", "mtu", "1280"]);
    let found = doctor(&site.agent);
    found.is_fine();
    found.names("mtu of bridge", "note", "more than the 1280 of");
    for end in [(node, veth), (&site.web, "eth0")] {
        end.0.ip(&["link", "set", end.1, "mtu", "1500"]);
    }

    site.agent
        .netfw(&["network", "create", "wide", "--mtu", "9000"]);
    let found = doctor(&site.agent);
    found.is_not_fine();
    found.names(
        "mtu of wide",
        "warn",
        "9000, more than the 1500 of uplink up",
    );
    found.names("mtu of bridge", "ok", "1500");
}

#[test]
fn an_overlapping_route_is_named() {
    let site = Site::new(&[]);
    let node = &site.lab.node;
    let network = site.agent.json(&["network", "inspect", "bridge"]);
    let subnet = text(&network["subnet"]);
    let inside = subnet.replace("0.0/16", "7.0/24");
    assert_ne!(inside, subnet);
    let via = WORLD.to_string();
    node.ip(&["route", "add", &inside, "via", &via]);
    let found = doctor(&site.agent);
    found.is_not_fine();
    found.names(
        "subnets of bridge",
        "warn",
        &format!("{subnet} and {inside}, a route"),
    );
    node.ip(&["route", "del", &inside]);
    // For more than the network: the network's own route counts.
    node.ip(&["route", "add", "172.16.0.0/12", "via", &via]);
    let found = doctor(&site.agent);
    found.is_fine();
    found.names("subnets of bridge", "note", "172.16.0.0/12");
}

#[test]
fn a_bridge_that_does_not_forward_is_named() {
    let site = Site::new(&[]);
    let bridge = site.agent.json(&["network", "inspect", "bridge"])["bridge"].clone();
    let key = format!("ipv4/conf/{}/forwarding", text(&bridge));
    // The agent switches it on again, but not for ever.
    wait_until("the agent to leave it alone", SOON * 3, || {
        for _ in 0..10 {
            site.lab.node.sysctl(&key, "0");
        }
        let found = doctor(&site.agent);
        let named = |finding: &Value| {
            finding["check"] == "bridge of bridge"
                && finding["state"] == "warn"
                && text(&finding["found"]).contains("does not forward")
        };
        found.status == Some(FAILED) && found.findings.iter().any(named)
    });
}

#[test]
fn an_agent_that_died_or_serves_another_node_is_told() {
    let mut site = Site::new(&[]);
    let client = site.lab.client.name().to_owned();
    let output = site
        .agent
        .output(&["doctor", "-o", "json", "--netns", &client]);
    let found = Diagnosis::of(&output);
    found.is_fine();
    found.names("namespace", "ok", &client);
    found.names("agent", "note", "it serves another namespace");
    assert!(found.findings.iter().all(|one| one["area"] != "networks"));

    site.agent.kill();
    let node = site.lab.node.name().to_owned();
    let output = site
        .agent
        .output(&["doctor", "-o", "json", "--netns", &node]);
    let found = Diagnosis::of(&output);
    found.is_not_fine();
    found.names("agent", "warn", "its data plane is there");
    found.names("programs on up0", "ok", "none");
    site.agent.start_again();
    wait_until("all to be well", SOON, || {
        doctor(&site.agent).status == Some(0)
    });
}

#[test]
fn what_cannot_be_examined_is_refused() {
    let lab = Lab::new();
    let agent = Agent::start(&lab);
    let said = agent.refuses(FAILED, &["doctor", "--netns", "nosuch"]);
    assert!(
        said.contains("there is no network namespace nosuch"),
        "{said}"
    );
    let said = agent.refuses(FAILED, &["doctor", "--netns", "/etc/passwd"]);
    assert!(said.contains("is not a network namespace"), "{said}");

    // Where anybody may run it.
    let directory = tempfile::tempdir().expect("a directory");
    let everybody = fs::Permissions::from_mode(0o755);
    fs::set_permissions(directory.path(), everybody).expect("ours");
    let netfw = directory.path().join("netfw");
    fs::copy(binary(), &netfw).expect("room for a copy");
    let refused = Command::new(&netfw)
        .args(["doctor", "-o", "json"])
        .uid(65534)
        .output()
        .expect("netfw runs");
    assert_eq!(refused.status.code(), Some(FAILED));
    let said: Value = serde_json::from_slice(&refused.stderr).expect("JSON");
    assert_eq!(said["kind"], "permission");
    assert!(text(&said["error"]).contains("doctor needs root"), "{said}");
}
