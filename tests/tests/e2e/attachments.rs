//! Endpoints in several networks: connect, disconnect, which way is whose.

use std::net::IpAddr;

use netfw_tests::{
    Agent, Lab, Namespace,
    agent::FAILED,
    programs::{Nginx, curl, curl_in_vain, ping, ping_in_vain},
    topology::{self, CLIENT, CLIENT6, NODE, NODE6, WORLD},
    wait_until,
};
use serde_json::Value;

use crate::setting::{SOON, attach, text};

fn ip(value: &Value) -> IpAddr {
    text(value).parse().expect("an address")
}

/// The attachment of `endpoint` to `network`, as `endpoint inspect` shows it.
#[track_caller]
fn attachment(agent: &Agent, endpoint: &str, network: &str) -> Value {
    let shown = agent.json(&["endpoint", "inspect", endpoint]);
    let all = shown["networks"].as_array().expect("a list");
    let one = all.iter().find(|a| a["network"] == network);
    one.unwrap_or_else(|| panic!("{endpoint} is not in {network}: {shown}"))
        .clone()
}

/// The networks that `endpoint` is in, in order.
#[track_caller]
fn networks(agent: &Agent, endpoint: &str) -> Vec<String> {
    let shown = agent.json(&["endpoint", "inspect", endpoint]);
    let all = shown["networks"].as_array().expect("a list");
    all.iter().map(|a| text(&a["network"]).to_owned()).collect()
}

/// What `ip rule` shows of ours, of both families.
fn rules(container: &Namespace) -> Vec<String> {
    let all = container.ip(&["rule"]) + &container.ip(&["-6", "rule"]);
    let own = all.lines().filter(|line| line.starts_with("20000:"));
    own.map(str::to_owned).collect()
}

#[test]
fn an_endpoint_joins_and_leaves_networks_while_it_runs() {
    let lab = Lab::new();
    let agent = Agent::start(&lab);
    agent.netfw(&["network", "create", "app", "--ipv6"]);
    let web = lab.container("web");
    let db = lab.container("db");
    attach(&agent, "web", &web, &[]);
    agent.netfw(&[
        "endpoint",
        "add",
        "db",
        "--network",
        "app",
        "--netns",
        db.name(),
    ]);
    let db_ip = ip(&attachment(&agent, "db", "app")["ip"]);
    let db_ip6 = ip(&attachment(&agent, "db", "app")["ip6"]);
    assert!(ping_in_vain(&web, db_ip), "networks are isolated");

    let connected = agent.json(&[
        "network",
        "connect",
        "app",
        "web",
        "--mac",
        "02:00:00:00:00:77",
    ]);
    assert_eq!(networks(&agent, "web"), ["bridge", "app"]);
    assert_eq!(connected["networks"][1]["mac"], "02:00:00:00:00:77");
    assert_eq!(connected["networks"][1]["interface"], "eth1");
    assert_eq!(connected["network"], "bridge", "the first stays the first");
    for there in [db_ip, db_ip6] {
        assert!(ping(&web, there), "web reaches {there} in its own subnet");
    }
    assert!(ping(&web, WORLD), "the default route is where it was");
    let members = agent.json(&["network", "inspect", "app"]);
    assert_eq!(members["members"].as_array().map(Vec::len), Some(2));

    let said = agent.refuses(FAILED, &["network", "connect", "app", "web"]);
    assert!(said.contains("already"), "{said}");
    let said = agent.refuses(FAILED, &["network", "rm", "app"]);
    assert!(said.contains("web") && said.contains("db"), "{said}");

    agent.netfw(&["network", "disconnect", "app", "web"]);
    assert_eq!(networks(&agent, "web"), ["bridge"]);
    assert_eq!(web.links(), ["lo", "eth0"]);
    assert!(ping_in_vain(&web, db_ip));
    assert!(ping(&web, WORLD));
    assert_eq!(rules(&web), Vec::<String>::new());
    let said = agent.refuses(FAILED, &["network", "disconnect", "app", "web"]);
    assert!(said.contains("is not in network \"app\""), "{said}");
    let said = agent.refuses(FAILED, &["network", "disconnect", "bridge", "web"]);
    assert!(said.contains("last"), "{said}");
    // And again.
    agent.netfw(&["network", "connect", "app", "web"]);
    assert!(ping(&web, db_ip));
}

#[test]
fn answers_leave_by_the_network_that_the_question_came_by() {
    let lab = Lab::new();
    let agent = Agent::start(&lab);
    for (name, subnet, subnet6) in [
        ("one", "10.81.0.0/24", "fd81::/64"),
        ("two", "10.82.0.0/24", "fd82::/64"),
    ] {
        agent.netfw(&[
            "network", "create", name, "--routed", "--subnet", subnet, "--subnet", subnet6,
        ]);
    }
    for (subnet, node) in [
        ("10.81.0.0/24", NODE),
        ("10.82.0.0/24", NODE),
        ("fd81::/64", NODE6),
        ("fd82::/64", NODE6),
    ] {
        lab.client
            .ip(&["route", "add", subnet, "via", &node.to_string()]);
    }
    topology::forward(&lab.node);
    let web = lab.container("web");
    agent.netfw(&[
        "endpoint",
        "add",
        "web",
        "--network",
        "one",
        "--netns",
        web.name(),
    ]);
    agent.netfw(&["network", "connect", "two", "web"]);
    for network in ["one", "two"] {
        let shown = attachment(&agent, "web", network);
        for family in ["ip", "ip6"] {
            let there = ip(&shown[family]);
            wait_until(&format!("{there} to answer"), SOON, || {
                ping(&lab.client, there)
            });
        }
    }
    assert_eq!(rules(&web).len(), 4);
    // Each by its own interface: what came in by one is counted there.
    let sent = |interface: &str| -> u64 {
        let file = format!("/sys/class/net/{interface}/statistics/tx_packets");
        web.run(&["cat", &file]).trim().parse().expect("a number")
    };
    let (before, second) = (sent("eth0"), ip(&attachment(&agent, "web", "two")["ip"]));
    for _ in 0..20 {
        assert!(ping(&lab.client, second));
    }
    assert!(sent("eth0") < before + 10, "answers of eth1 leave by eth1");
    agent.netfw(&["endpoint", "rm", "web"]);
    assert_eq!(rules(&web), Vec::<String>::new());
    assert_eq!(web.links(), ["lo"]);
}

#[test]
fn publishes_and_the_default_route_follow_the_networks() {
    let lab = Lab::new();
    let mut agent = Agent::start(&lab);
    agent.netfw(&["network", "create", "inside", "--internal"]);
    agent.netfw(&["network", "create", "app", "--ipv6"]);
    let web = lab.container("web");
    let _nginx = Nginx::start(&web, "web", &[80]);
    agent.netfw(&[
        "endpoint",
        "add",
        "web",
        "--network",
        "inside",
        "--netns",
        web.name(),
    ]);
    let said = agent.refuses(FAILED, &["publish", "web", "8080:80"]);
    assert!(said.contains("internal"), "{said}");

    agent.netfw(&["network", "connect", "app", "web"]);
    assert!(attachment(&agent, "web", "app")["default_route"] == true);
    assert!(attachment(&agent, "web", "inside")["default_route"] == false);
    assert!(
        ping(&web, WORLD),
        "the way out is the network that leads out"
    );
    agent.netfw(&["publish", "web", "8080:80"]);
    for node in [NODE, NODE6] {
        assert!(curl(&lab.client, node, 8080, "/").is_some(), "{node}");
    }

    agent.netfw(&["network", "connect", "bridge", "web"]);
    assert!(curl(&lab.client, NODE, 8080, "/").is_some());
    for _ in 0..2 {
        agent.netfw(&["network", "disconnect", "app", "web"]);
        for node in [NODE, NODE6] {
            assert!(
                curl(&lab.client, node, 8080, "/").is_some(),
                "the publish leads to the network that is left: {node}"
            );
        }
        assert!(ping(&web, WORLD));
        agent.kill();
        agent.start_again();
        assert_eq!(networks(&agent, "web"), ["inside", "bridge"]);
        assert!(curl(&lab.client, NODE, 8080, "/").is_some());
        agent.netfw(&["network", "connect", "app", "web"]);
    }
    agent.netfw(&["network", "disconnect", "app", "web"]);
    agent.netfw(&["network", "disconnect", "bridge", "web"]);
    for (node, client) in [(NODE, CLIENT), (NODE6, CLIENT6)] {
        assert!(curl_in_vain(&lab.client, node, 8080), "internal: {client}");
    }
}

#[test]
fn an_interface_that_somebody_deletes_is_made_again() {
    let lab = Lab::new();
    let agent = Agent::start(&lab);
    agent.netfw(&["network", "create", "app", "--ipv6"]);
    let web = lab.container("web");
    let _nginx = Nginx::start(&web, "web", &[80]);
    attach(&agent, "web", &web, &["8080:80"]);
    agent.netfw(&["network", "connect", "app", "web"]);
    let serves = || [NODE, NODE6].map(|node| curl(&lab.client, node, 8080, "/").is_some());
    assert_eq!(serves(), [true; 2]);
    let before = attachment(&agent, "web", "bridge");
    lab.node
        .ip(&["link", "del", text(&before["host_interface"])]);
    wait_until("another interface", SOON, || {
        let now = attachment(&agent, "web", "bridge");
        now["state"] == "up" && now["host_ifindex"] != before["host_ifindex"]
    });
    assert_eq!(attachment(&agent, "web", "bridge")["default_route"], true);
    assert_eq!(attachment(&agent, "web", "app")["state"], "up");
    assert_eq!(serves(), [true; 2]);
    assert!(ping(&web, WORLD));
}

#[test]
fn what_is_in_the_way_of_connecting() {
    let lab = Lab::new();
    let agent = Agent::start(&lab);
    agent.netfw(&["network", "create", "app", "--subnet", "10.77.0.0/24"]);
    let web = lab.container("web");
    attach(&agent, "web", &web, &[]);
    for (words, said) in [
        (&["connect", "nothing", "web"][..], "no network"),
        (
            &["connect", "app", "nobody"],
            "there is no endpoint \"nobody\"",
        ),
        (
            &["connect", "app", "web", "--ip", "10.78.0.2"],
            "does not lie in",
        ),
        (
            &["connect", "app", "web", "--ip", "10.77.0.1"],
            "is the gateway",
        ),
        (&["connect", "app", "web", "--ip", "fd00::2"], "has no IPv6"),
        (&["disconnect", "nothing", "web"], "no network"),
        (
            &["disconnect", "app", "nobody"],
            "there is no endpoint \"nobody\"",
        ),
    ] {
        let told = agent.refuses(FAILED, &[&["network"], words].concat());
        assert!(told.contains(said), "{words:?}: {told}");
    }
    assert_eq!(networks(&agent, "web"), ["bridge"]);
    assert_eq!(web.links(), ["lo", "eth0"]);
    // Its namespace is gone: nothing can be made in there.
    web.delete();
    wait_until("the endpoint to be gone", SOON, || {
        agent.json(&["endpoint", "inspect", "web"])["state"] == "gone"
    });
    let said = agent.refuses(FAILED, &["network", "connect", "app", "web"]);
    assert!(said.contains("gone"), "{said}");
    agent.netfw(&["endpoint", "rm", "web"]);
}
