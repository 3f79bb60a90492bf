//! `--allow-from`: publishes that are for some sources alone.

use std::{io::Write as _, net::IpAddr};

use netfw_tests::{
    Agent, Lab, Namespace,
    agent::{FAILED, USAGE},
    programs::{UdpEcho, ask, ask_in_vain, curl, curl_in_vain, udp_socket_for},
    topology::{CLIENT, CLIENT6, NODE, NODE_OUTSIDE, NODE6, NODE6_OUTSIDE, WORLD, WORLD6},
};
use serde_json::json;

use crate::setting::{Site, attach, drops};

/// The node as the client and as the world know it.
const FAMILIES: [(IpAddr, IpAddr); 2] = [(NODE, NODE_OUTSIDE), (NODE6, NODE6_OUTSIDE)];

const LOCALHOSTS: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
    IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
];

/// Who gets an answer: client and world, over IPv4 and IPv6.
type Who = [[bool; 2]; 2];

#[track_caller]
fn serves(lab: &Lab, port: u16, who: Who) {
    for ((near, far), who) in FAMILIES.into_iter().zip(who) {
        for ((from, node), may) in [(&lab.client, near), (&lab.world, far)]
            .into_iter()
            .zip(who)
        {
            if may {
                assert!(curl(from, node, port, "/").is_some(), "{node} {port}");
            } else {
                assert!(curl_in_vain(from, node, port), "{node} {port}");
            }
        }
    }
}

const ALL: Who = [[true; 2]; 2];
const NONE: Who = [[false; 2]; 2];
const CLIENT_ALONE: Who = [[true, false]; 2];
const WORLD_ALONE: Who = [[false, true]; 2];

/// The lists that the publishes of an endpoint go by.
#[track_caller]
fn lists(agent: &Agent) -> Vec<serde_json::Value> {
    let endpoint = agent.json(&["endpoint", "inspect", "web"]);
    let publishes = endpoint["publishes"].as_array().expect("a list").clone();
    publishes.iter().map(|p| p["allow_from"].clone()).collect()
}

fn neighbour(site: &Site) -> (Namespace, IpAddr) {
    let other = site.lab.container("other");
    let ip = attach(&site.agent, "other", &other, &[]);
    (other, ip)
}

#[test]
fn a_publish_serves_those_whom_its_list_names() {
    for options in [&[] as &[&str], &["--xdp", "native"]] {
        let lab = Lab::new();
        for end in [&lab.client, &lab.world] {
            // With checksums: without, XDP leaves a packet to TC.
            end.run(&["ethtool", "-K", "eth0", "tx", "off"]);
        }
        let site = Site::in_lab(lab, options, &[]);
        let Site { agent, lab, .. } = &site;
        let [client, client6] = [CLIENT, CLIENT6].map(|ip| ip.to_string());
        let publish = |words: &[&str]| agent.netfw(&[&["publish", "web"], words].concat());
        let said = publish(&["8080:80", "--allow-from", &client, "--allow-from", &client6]);
        let from = format!("(from {client}, {client6})");
        assert!(said.contains(&from), "{said}");
        publish(&["8081:80"]);
        serves(lab, 8080, CLIENT_ALONE);
        // A SYN and, after a second, perhaps another, in each family.
        assert!(drops(agent, "not-allowed") >= 2);
        serves(lab, 8081, ALL);

        // Containers of the node are no exception, its own processes are.
        let (other, ip) = neighbour(&site);
        for (node, localhost) in [NODE, NODE6].into_iter().zip(LOCALHOSTS) {
            assert!(curl_in_vain(&other, node, 8080), "{node}");
            assert!(curl(&lab.node, node, 8080, "/").is_some(), "{node}");
            assert!(curl(&lab.node, localhost, 8080, "/").is_some());
        }
        publish(&["8082:80", "--allow-from", &ip.to_string()]);
        assert!(curl(&other, NODE, 8082, "/").is_some());
        serves(lab, 8082, NONE);

        // UDP, and a range.
        let _echo = UdpEcho::start(&site.web, (site.ip, 53));
        publish(&["5300-5302:51-53/udp", "--allow-from", "10.1.0.0/24"]);
        let socket = udp_socket_for(&lab.client, NODE);
        assert!(ask(&socket, (NODE, 5302), "x").is_some());
        let socket = udp_socket_for(&lab.world, NODE_OUTSIDE);
        assert!(ask_in_vain(&socket, (NODE_OUTSIDE, 5302), "x"));

        // Another list, by another publish.
        agent.netfw(&["unpublish", "web", "8080:80"]);
        let (world, world6) = (WORLD.to_string(), WORLD6.to_string());
        publish(&["8080:80", "--allow-from", &world, "--allow-from", &world6]);
        serves(lab, 8080, WORLD_ALONE);
    }
}

#[test]
fn the_nearest_list_counts_and_outlives_the_agent() {
    let mut site = Site::new(&[]);
    let Site {
        agent, web, lab, ..
    } = &mut site;
    agent.netfw(&["endpoint", "rm", "web"]);
    let [near, near6] = ["10.1.0.0/24", "fd00:1::/64"];
    let added = agent.json(&[
        "endpoint",
        "add",
        "web",
        "--netns",
        web.name(),
        "-p",
        "8080:80",
        "--allow-from",
        near,
        "--allow-from",
        near6,
    ]);
    let own = json!([near, near6]);
    assert_eq!(added["allow_from"], own);
    assert_eq!(added["warnings"], json!([]));
    // A later one; and one with a list of its own.
    agent.netfw(&["publish", "web", "8081:80"]);
    let all = ["0.0.0.0/0", "::/0"];
    agent.netfw(&[
        "publish",
        "web",
        "8082:80",
        "--allow-from",
        all[0],
        "--allow-from",
        all[1],
    ]);
    // One family alone.
    let closed = agent.output(&["publish", "web", "8083:80", "--allow-from", "0.0.0.0/0"]);
    let said = String::from_utf8_lossy(&closed.stderr);
    assert!(
        said.contains("[::]:8083:80/tcp serves nobody") && !said.contains("0.0.0.0:8083"),
        "{said}"
    );
    let expected = [
        own.clone(),
        own.clone(),
        own.clone(),
        own.clone(),
        json!(all),
        json!(all),
        json!([all[0]]),
        json!([all[0]]),
    ];
    let check = |agent: &Agent| {
        assert_eq!(lists(agent), expected);
        serves(lab, 8080, CLIENT_ALONE);
        serves(lab, 8081, CLIENT_ALONE);
        serves(lab, 8082, ALL);
        serves(lab, 8083, [[true; 2], [false; 2]]);
    };
    check(agent);
    let shown = agent.netfw(&["endpoint", "inspect", "web"]);
    for phrase in [
        "\nallow from          10.1.0.0/24, fd00:1::/64\n",
        "[::]:8081->80/tcp (from 10.1.0.0/24, fd00:1::/64)",
    ] {
        assert!(shown.contains(phrase), "{shown}");
    }
    let ports = agent.netfw(&["port", "web"]);
    assert!(
        ports.contains("80/tcp -> 0.0.0.0:8082 (from 0.0.0.0/0, ::/0)\n"),
        "{ports}"
    );
    let ports = agent.netfw(&["port"]);
    assert!(ports.contains("ALLOW FROM"), "{ports}");
    assert_eq!(agent.json(&["port"])[0]["allow_from"], own);

    agent.kill();
    // Nobody is needed for that.
    serves(lab, 8080, CLIENT_ALONE);
    agent.start_again();
    check(agent);

    // The agent's own list is for those that have no other; it may change with each start.
    agent.netfw(&["endpoint", "rm", "web"]);
    attach(agent, "web", web, &["8080:80"]);
    agent.netfw(&[
        "publish",
        "web",
        "8081:80",
        "--allow-from",
        "10.2.0.0/24",
        "--allow-from",
        "fd00:2::/64",
    ]);
    for (list, who) in [
        ("[\"10.1.0.0/24\", \"fd00:1::/64\"]", CLIENT_ALONE),
        ("[\"10.2.0.2\", \"fd00:2::2\"]", WORLD_ALONE),
        ("[]", ALL),
    ] {
        let mut config = tempfile::NamedTempFile::new().expect("a temporary file");
        writeln!(config, "allow_from = {list}").expect("our own file");
        agent.stop();
        agent.set_options(&["--config", &config.path().display().to_string()]);
        agent.start_again();
        serves(lab, 8080, who);
        serves(lab, 8081, WORLD_ALONE);
    }
    let tables = agent.json(&["status"])["tables"].clone();
    let used = tables.as_array().expect("a list").iter();
    let used: Vec<_> = used
        .filter(|table| {
            table["name"]
                .as_str()
                .is_some_and(|name| name.starts_with("allowed"))
        })
        .map(|table| table["used"].clone())
        .collect();
    assert_eq!(
        used,
        [json!(1), json!(1)],
        "8081's, of each family: {tables}"
    );
}

#[test]
fn what_is_no_source_is_refused() {
    let site = Site::new(&["8080:80"]);
    let before = site.agent.json(&["endpoint", "ls"]);
    for (text, phrase) in [
        ("10.0.0.1/8", "the sources are 10.0.0.0/8"),
        ("fd00::1/8", "the sources are fd00::/8"),
        ("10.0.0.0/33", "is no source"),
        ("localhost", "is no source"),
        ("0.0.0.0", "everybody is 0.0.0.0/0"),
    ] {
        for words in [
            &["publish", "web", "8081:80", "--allow-from", text] as &[&str],
            &["endpoint", "add", "x", "--allow-from", text],
        ] {
            let said = site.agent.refuses(USAGE, words);
            assert!(said.contains(phrase), "{words:?}: {said}");
        }
    }
    // As before: the port is taken, whoever it is for.
    let words = ["publish", "web", "8080:80", "--allow-from", "10.0.0.0/8"];
    let said = site.agent.refuses(FAILED, &words);
    assert!(said.contains("published already"), "{said}");
    assert_eq!(before, site.agent.json(&["endpoint", "ls"]));
}
