//! `netfw network`: creating, looking, removing, and what cannot be.

use netfw_tests::{
    Agent, Lab, Namespace,
    agent::{FAILED, USAGE},
    programs::{Nginx, curl, ping, ping_in_vain},
    topology::{NODE, WORLD},
};
use serde_json::{Value, json};

use crate::setting::{Site, text};

/// `netfw endpoint add NAME --network NETWORK`.
#[track_caller]
fn join(agent: &Agent, name: &str, network: &str, container: &Namespace, rest: &[&str]) -> Value {
    let words = [
        "endpoint",
        "add",
        name,
        "--network",
        network,
        "--netns",
        container.name(),
    ];
    agent.json(&[&words, rest].concat())
}

#[test]
fn a_network_is_created_shown_and_removed() {
    let lab = Lab::new();
    let agent = Agent::start(&lab);
    let before = lab.node.links();
    let created = agent.json(&[
        "network",
        "create",
        "app",
        "--subnet",
        "10.77.0.0/24",
        "--subnet",
        "fd77::/64",
        "--gateway",
        "10.77.0.254",
        "--mtu",
        "1400",
    ]);
    assert_eq!(created, agent.json(&["network", "inspect", "app"]));
    for (key, value) in [
        ("subnet", json!("10.77.0.0/24")),
        ("gateway", json!("10.77.0.254")),
        ("subnet6", json!("fd77::/64")),
        ("gateway6", json!("fd77::1")),
        ("mtu", json!(1400)),
        ("internal", json!(false)),
        ("routed", json!(false)),
        ("masquerade", json!(true)),
        ("nat", json!("port-restricted")),
        ("filter", json!("address-and-port-dependent")),
        ("endpoints", json!(0)),
        ("members", json!([])),
    ] {
        assert_eq!(created[key], value, "{key}");
    }
    let bridge = text(&created["bridge"]);
    let shown = lab.node.ip(&["-o", "link", "show", bridge]);
    assert!(shown.contains("mtu 1400"), "{shown}");

    let web = lab.container("web");
    let added = join(&agent, "web", "app", &web, &[]);
    assert_eq!(
        (text(&added["ip"]), text(&added["ip6"])),
        ("10.77.0.1", "fd77::2")
    );
    let eth0 = web.ip(&["-o", "link", "show", "eth0"]);
    assert!(eth0.contains("mtu 1400"), "{eth0}");
    let host = lab
        .node
        .ip(&["-o", "link", "show", text(&added["host_interface"])]);
    assert!(host.contains("mtu 1400") && host.contains(bridge), "{host}");
    let inspected = agent.json(&["network", "inspect", "app"]);
    assert_eq!(
        inspected["members"],
        json!([{"name": "web", "ip": "10.77.0.1", "ip6": "fd77::2", "mac": added["mac"]}])
    );
    let table = agent.netfw(&["network", "ls"]);
    assert!(
        table
            .lines()
            .any(|l| l.starts_with("app ") && l.contains("fd77::/64")),
        "{table}"
    );

    let said = agent.refuses(FAILED, &["network", "rm", "app"]);
    assert!(said.contains("web"), "{said}");
    agent.netfw(&["endpoint", "rm", "web"]);
    assert_eq!(
        agent.json(&["network", "rm", "app"]),
        json!({"removed": "app"})
    );
    assert_eq!(before, lab.node.links());
    // Its subnets are free again.
    agent.netfw(&[
        "network",
        "create",
        "app",
        "--subnet",
        "10.77.0.0/24",
        "--subnet",
        "fd77::/64",
    ]);
}

#[test]
fn networks_outlive_the_agent() {
    let lab = Lab::new();
    let mut agent = Agent::start(&lab);
    agent.netfw(&[
        "network",
        "create",
        "app",
        "--ipv6",
        "--nat",
        "endpoint-independent",
    ]);
    agent.netfw(&["network", "create", "gone"]);
    let web = lab.container("web");
    join(&agent, "web", "app", &web, &[]);
    let before = agent.json(&["network", "ls"]);
    agent.kill();
    agent.start_again();
    assert_eq!(before, agent.json(&["network", "ls"]));
    agent.netfw(&["network", "rm", "gone"]);
    let before = agent.json(&["network", "ls"]);
    agent.stop();
    agent.start_again();
    assert_eq!(before, agent.json(&["network", "ls"]));
    let app = agent.json(&["network", "inspect", "app"]);
    assert_eq!(app["nat"], "endpoint-independent");
    assert!(ping(
        &web,
        text(&app["gateway6"]).parse().expect("an address")
    ));
}

#[test]
fn a_network_of_ipv6_alone_works() {
    let lab = Lab::new();
    let agent = Agent::start(&lab);
    let created = agent.json(&["network", "create", "six", "--subnet", "fd66::/64"]);
    assert!(
        created["subnet"].is_null() && created["gateway"].is_null(),
        "{created}"
    );
    let web = lab.container("web");
    let nginx = Nginx::start(&web, "web", &[80]);
    let added = join(&agent, "web", "six", &web, &["-p", "8080:80"]);
    assert!(
        added["ip"].is_null() && added["prefix_len"].is_null(),
        "{added}"
    );
    assert_eq!(agent.netfw(&["port", "web"]), "80/tcp -> [::]:8080\n");
    assert_eq!(web.ip(&["-4", "-o", "addr", "show", "dev", "eth0"]), "");
    let node6 = netfw_tests::topology::NODE6;
    assert_eq!(curl(&lab.client, node6, 8080, "/"), Some(nginx.page(80)));
    for (words, phrase) in [
        (
            &["publish", "web", "0.0.0.0:81:80"] as &[&str],
            "no IPv4 address",
        ),
        (&["publish", "web", "10.1.0.1:81:80"], "no IPv4 address"),
    ] {
        let said = agent.refuses(FAILED, words);
        assert!(said.contains(phrase), "{said}");
    }
}

#[test]
fn networks_do_not_reach_each_other() {
    let site = Site::new(&["8080:80"]);
    let Site {
        agent, nginx, lab, ..
    } = &site;
    agent.netfw(&["network", "create", "other"]);
    let far = lab.container("far");
    let added = join(agent, "far", "other", &far, &[]);
    let ip = text(&added["ip"]).parse().expect("an address");
    assert!(ping_in_vain(&site.web, ip));
    assert!(ping_in_vain(&far, site.ip));
    let gateway = agent.json(&["endpoint", "inspect", "web"])["gateway"].clone();
    assert!(ping_in_vain(
        &far,
        text(&gateway).parse().expect("an address")
    ));
    assert_eq!(curl(&far, NODE, 8080, "/"), Some(nginx.page(80)));
    assert!(ping(&far, WORLD));
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let site = Site::new(&["8080:80"]);
    let Site { agent, lab, .. } = &site;
    agent.netfw(&["network", "create", "lan", "--internal"]);
    let free = lab.container("free");
    let state = || {
        [
            agent.json(&["network", "ls"]).to_string(),
            agent.json(&["endpoint", "ls"]).to_string(),
            lab.node.links().join(" "),
            lab.node.ip(&["-4", "route"]),
            lab.node.ip(&["-6", "route"]),
        ]
    };
    let own = agent.json(&["network", "inspect", "bridge"]);
    let (own4, own6) = (
        text(&own["subnet"]).to_owned(),
        text(&own["subnet6"]).to_owned(),
    );
    let create = |rest: &[&'static str]| [&["network", "create", "n"], rest].concat();
    let table: Vec<(i32, Vec<&str>, &[&str])> = vec![
        (USAGE, vec!["network", "create"], &[]),
        (
            USAGE,
            vec!["network", "create", "a/b"],
            &["must not contain"],
        ),
        (USAGE, create(&["--subnet", "10.9.0.0"]), &[]),
        (USAGE, create(&["--nat", "symmetric"]), &["port-restricted"]),
        (
            FAILED,
            vec!["network", "create", "bridge"],
            &["exists already"],
        ),
        (
            FAILED,
            vec!["network", "create", "lan"],
            &["exists already"],
        ),
        (
            FAILED,
            vec!["network", "create", "host"],
            &["something else"],
        ),
        (
            FAILED,
            vec!["network", "create", "none"],
            &["something else"],
        ),
        (
            FAILED,
            vec!["network", "create", "n", "--subnet", &own4],
            &["overlaps", "\"bridge\""],
        ),
        (
            FAILED,
            vec!["network", "create", "n", "--subnet", &own6],
            &["overlaps", "\"bridge\""],
        ),
        (
            FAILED,
            create(&["--subnet", "10.0.0.0/8"]),
            &["overlaps", "10.1.0.0/24"],
        ),
        (
            FAILED,
            create(&["--subnet", "10.1.0.64/26"]),
            &["overlaps", "10.1.0.1"],
        ),
        (
            FAILED,
            create(&["--subnet", "fd00:2::/48"]),
            &["overlaps", "fd00:2::"],
        ),
        (
            FAILED,
            create(&["--subnet", "10.9.0.1/24"]),
            &["10.9.0.0/24"],
        ),
        (FAILED, create(&["--subnet", "127.0.0.0/24"]), &["loopback"]),
        (FAILED, create(&["--subnet", "ff05::/64"]), &["multicast"]),
        (FAILED, create(&["--subnet", "10.9.0.0/32"]), &["no room"]),
        (
            FAILED,
            create(&["--subnet", "10.8.0.0/24", "--subnet", "10.9.0.0/24"]),
            &["two IPv4 subnets"],
        ),
        (
            FAILED,
            create(&["--subnet", "10.9.0.0/24", "--gateway", "10.8.0.1"]),
            &["10.8.0.1", "10.9.0.0/24"],
        ),
        (FAILED, create(&["--gateway", "172.19.0.1"]), &["--subnet"]),
        (
            FAILED,
            create(&["--subnet", "10.9.0.0/24", "--gateway", "10.9.0.255"]),
            &["broadcast"],
        ),
        (FAILED, create(&["--mtu", "67"]), &["68 to 65535"]),
        (
            FAILED,
            create(&["--ipv6", "--mtu", "1279"]),
            &["IPv6", "1280"],
        ),
        (FAILED, create(&["--mtu", "65536"]), &["65535"]),
        (
            FAILED,
            create(&["--filter", "address-dependent"]),
            &["needs nat endpoint-independent"],
        ),
        (
            FAILED,
            create(&["--nat", "endpoint-independent", "--no-masquerade"]),
            &["without masquerade"],
        ),
        (FAILED, create(&["--internal", "--routed"]), &["contradict"]),
        (
            FAILED,
            vec!["network", "inspect", "nothing"],
            &["no network \"nothing\"", "bridge, lan"],
        ),
        (
            FAILED,
            vec!["network", "rm", "nothing"],
            &["no network \"nothing\""],
        ),
        (FAILED, vec!["network", "rm", "bridge"], &["default"]),
        (
            FAILED,
            vec![
                "endpoint",
                "add",
                "x",
                "--network",
                "lan",
                "--netns",
                free.name(),
                "-p",
                "90:80",
            ],
            &["internal"],
        ),
        (
            FAILED,
            vec![
                "endpoint",
                "add",
                "x",
                "--network",
                "lan",
                "--netns",
                free.name(),
                "--ip",
                "fd00::2",
            ],
            &["no IPv6 subnet"],
        ),
    ];
    for (status, words, phrases) in &table {
        let before = state();
        let said = agent.refuses(*status, words);
        for phrase in *phrases {
            assert!(
                said.contains(phrase),
                "{words:?} must say {phrase:?}, but says: {said}"
            );
        }
        assert_eq!(before, state(), "{words:?} changed something");
    }
}
