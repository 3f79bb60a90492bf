//! podman's containers, in a network of netfw's by the CNI plugin: real podman, and the lab's node for its host.

use std::{
    net::{IpAddr, Ipv4Addr, UdpSocket},
    path::PathBuf,
};

use netfw_tests::{
    Agent, Lab, netns,
    podman::Podman,
    programs::{UdpEcho, ask, curl, curl_in_vain, udp_socket_for},
    runtime::{IMAGE, PAGE, endpoint, has_no_rules, serves},
    topology::{CLIENT, CLIENT6, NODE, NODE6},
    wait::wait_until,
};
use serde_json::Value;

use crate::setting::{SOON, text};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// podman on a node with an agent.
///
/// Fields drop in order: the containers go before the agent, and that before the node.
pub struct Site {
    pub podman: Podman,
    pub agent: Agent,
    pub lab: Lab,
}

impl Site {
    /// None, said aloud, where podman is not installed.
    #[track_caller]
    pub fn start() -> Option<Self> {
        let lab = Lab::new();
        let podman = Podman::start(&lab.node)?;
        let agent = Agent::start(&lab);
        Some(Self { podman, agent, lab })
    }

    /// A network of netfw's for podman, as docs/podman.md has it.
    pub fn network(&self, name: &str, more: &str) {
        let instance = self.agent.instance();
        let plugin = format!(
            r#"{{
                "type": "netfw-cni", "instance": "{instance}", {more}
                "capabilities": {{"portMappings": true, "ips": true, "mac": true, "aliases": true}}
            }}"#
        );
        self.podman.network(name, &plugin);
    }
}

#[test]
fn a_published_port_of_podman_s_serves_the_world() {
    let Some(site) = Site::start() else {
        return;
    };
    let Site { podman, agent, lab } = &site;
    site.network("app", r#""ipv6": true,"#);
    let before = lab.node.links();
    podman.serve(
        "web",
        &["--network", "app", "-p", "8080:80", "-p", "5353:53/udp"],
    );
    serves(lab, 8080);
    has_no_rules(&lab.node);
    // podman holds the port itself (`enable_port_reservation`); who asks for it gets the container.
    let bound = lab.node.enter(|| UdpSocket::bind(("0.0.0.0", 5353)));
    assert!(bound.is_err(), "the port is podman's");
    let own = curl(&lab.node, LOCALHOST, 8080, "/");
    assert_eq!(own.as_deref(), Some(PAGE));
    for client in [CLIENT, CLIENT6] {
        wait_until(&format!("{client} in the log"), SOON, || {
            let logs = podman.output(&["logs", "web"]);
            let said = [logs.stdout, logs.stderr].concat();
            String::from_utf8_lossy(&said).contains(&client.to_string())
        });
    }
    // podman and netfw are of one mind.
    let web = endpoint(agent, "web").expect("an endpoint");
    let inspected = podman.podman(&[
        "inspect",
        "web",
        "--format",
        "{{json .NetworkSettings.Networks.app}}",
    ]);
    let inspected: Value = serde_json::from_str(&inspected).expect("JSON");
    assert_eq!(inspected["IPAddress"], web["ip"]);
    assert_eq!(inspected["GlobalIPv6Address"], web["ip6"]);
    assert_eq!(inspected["MacAddress"], web["mac"]);
    assert_eq!(inspected["Gateway"], web["gateway"]);
    let shown = podman.podman(&["network", "ls", "--format", "{{.Name}} {{.Driver}}"]);
    assert!(shown.lines().any(|line| line == "app netfw-cni"), "{shown}");
    let shown = podman.podman(&["network", "inspect", "app"]);
    assert!(shown.contains("netfw-cni"), "{shown}");

    let inside = PathBuf::from(text(&web["netns"]));
    let echo = netns::enter(&inside, || {
        UdpSocket::bind(("::", 53)).expect("the port is free")
    });
    let _echo = UdpEcho::on(echo);
    for node in [NODE, NODE6] {
        let socket = udp_socket_for(&lab.client, node);
        assert!(ask(&socket, (node, 5353), "hello").is_some_and(|said| said.ends_with("hello")));
    }

    let other = [
        "run",
        "--rm",
        "--network",
        "app",
        IMAGE,
        "wget",
        "-qO-",
        "http://web/",
    ];
    assert_eq!(podman.podman(&other), PAGE);

    podman.podman(&["stop", "-t", "0", "web"]);
    assert_eq!(endpoint(agent, "web"), None);
    assert!(curl_in_vain(&lab.client, NODE, 8080));
    podman.podman(&["start", "web"]);
    serves(lab, 8080);
    podman.podman(&["restart", "-t", "0", "web"]);
    serves(lab, 8080);
    podman.podman(&["rm", "-f", "-t", "0", "web"]);
    assert_eq!(agent.json(&["endpoint", "ls"]), serde_json::json!([]));
    has_no_rules(&lab.node);
    agent.netfw(&["network", "rm", "app"]);
    assert_eq!(lab.node.links(), before);
}

#[test]
fn a_container_of_podman_s_joins_and_leaves_networks() {
    let Some(site) = Site::start() else {
        return;
    };
    let Site { podman, agent, lab } = &site;
    site.network("front", r#""ipv6": true,"#);
    site.network("back", r#""subnets": ["10.79.0.0/24"],"#);
    let back = [
        "--network",
        "back",
        "--ip",
        "10.79.0.77",
        "--mac-address",
        "02:00:00:00:00:77",
    ];
    podman.serve("db", &back);
    let db = endpoint(agent, "db").expect("an endpoint");
    assert_eq!(
        (text(&db["ip"]), text(&db["mac"])),
        ("10.79.0.77", "02:00:00:00:00:77")
    );
    podman.serve("web", &["--network", "front", "-p", "8080:80"]);
    let networks = || {
        let web = endpoint(agent, "web").expect("an endpoint");
        let all = web["networks"].as_array().expect("a list").iter();
        all.map(|a| text(&a["network"]).to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(networks(), ["front"]);
    podman.podman(&["network", "connect", "--alias", "www", "back", "web"]);
    assert_eq!(networks(), ["front", "back"]);
    let fetch = ["exec", "web", "wget", "-qO-", "http://db/"];
    assert_eq!(podman.podman(&fetch), PAGE);
    assert_eq!(
        podman.podman(&["exec", "db", "wget", "-qO-", "http://www/"]),
        PAGE
    );
    serves(lab, 8080);
    podman.podman(&["network", "disconnect", "back", "web"]);
    assert_eq!(networks(), ["front"]);
    serves(lab, 8080);
    // Both from the beginning, though `back` has no IPv6.
    podman.serve("both", &["--network", "back,front", "-p", "8081:80"]);
    serves(lab, 8081);

    // A port that is taken: nothing of the container is left.
    let taken = [
        "run",
        "-d",
        "--name",
        "late",
        "--network",
        "front",
        "-p",
        "8080:80",
        IMAGE,
        "sleep",
        "9",
    ];
    let output = podman.output(&taken);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("8080"), "{said}");
    assert_eq!(endpoint(agent, "late"), None);
    podman.podman(&["rm", "-fa", "-t", "0"]);
    assert_eq!(agent.json(&["endpoint", "ls"]), serde_json::json!([]));
}
