//! Containers come and go: alone, in several networks, by the hundred, and half way.

use std::{io::Write as _, net::TcpListener, os::fd::AsFd as _, process::ChildStdout};

use netfw_tests::{
    Namespace,
    fate::Fate,
    programs::{Nginx, curl, curl_in_vain, ping},
    topology::{CLIENT, CLIENT6, NODE, NODE6, WORLD},
    wait_until,
};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::Pid,
};
use serde_json::{Value, json};

use super::{At, CONFIG, CONFLICT, Plugin, answer, finish, path};
use crate::setting::{SOON, text};

#[test]
fn a_published_port_serves_and_goes_with_the_container() {
    let mut plugin = Plugin::new();
    let container = plugin.lab.container("web");
    let nginx = Nginx::start(&container, "web", &[80]);
    let netns = path(&container);
    let at = At::eth0(
        "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        &netns,
    );
    let config = plugin.config(
        "app",
        json!({"ipv6": true, "runtimeConfig": {
            "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
            "ips": ["172.30.0.7"],
            "mac": "02:00:00:00:00:07",
            "aliases": ["www"],
        }, "subnets": ["172.30.0.0/24"]}),
    );
    plugin.done("ADD", at, &config);
    for (node, client) in [(NODE, CLIENT), (NODE6, CLIENT6)] {
        let path = format!("/{client}");
        assert_eq!(
            curl(&plugin.lab.client, node, 8080, &path),
            Some(nginx.page(80))
        );
        assert!(
            nginx.logged(&path).starts_with(&client.to_string()),
            "{client}"
        );
    }
    assert!(ping(&container, WORLD));
    let endpoint = &plugin.agent.json(&["endpoint", "ls"])[0];
    assert_eq!(text(&endpoint["ip"]), "172.30.0.7");
    assert_eq!(text(&endpoint["mac"]), "02:00:00:00:00:07");
    assert_eq!(endpoint["networks"][0]["aliases"], json!(["www"]));
    // An ID is longer than a name can be.
    assert_eq!(text(&endpoint["name"]), &at.container[..63]);

    // The agent that comes next knows whose it is.
    plugin.agent.kill();
    plugin.agent.start_again();
    assert_eq!(
        curl(&plugin.lab.client, NODE, 8080, "/"),
        Some(nginx.page(80))
    );
    for _ in 0..2 {
        plugin.done("DEL", at, &config);
        assert_eq!(plugin.endpoints(), [""; 0]);
        assert_eq!(container.links(), ["lo"]);
        assert!(curl_in_vain(&plugin.lab.client, NODE, 8080));
    }
}

#[test]
fn a_container_is_deleted_though_its_namespace_is_gone_and_configuration_changed() {
    let plugin = Plugin::new();
    let config = plugin.config("app", json!({}));
    for netns_said in [true, false] {
        let container = plugin.lab.container("c");
        let netns = path(&container);
        let at = At::eth0("c1", &netns);
        plugin.done("ADD", at, &config);
        drop(container);
        let netns = if netns_said { netns.as_str() } else { "" };
        let changed = plugin.config("app", json!({"isGateway": true, "subnets": ["x"]}));
        plugin.done("DEL", At { netns, ..at }, &changed);
        assert_eq!(plugin.endpoints(), [""; 0]);
    }
}

#[test]
fn a_container_that_came_back_without_a_word_is_attached_anew() {
    let plugin = Plugin::new();
    let config = plugin.config("app", json!({}));
    for _ in 0..2 {
        let container = plugin.lab.container("c");
        let netns = path(&container);
        let at = At::eth0("c1", &netns);
        plugin.done("ADD", at, &config);
        assert!(ping(&container, WORLD));
        assert_eq!(plugin.endpoints(), ["c1"]);
        plugin.refuses(CONFLICT, "ADD", at, &config);
    }
}

#[test]
fn what_people_add_to_a_container_goes_with_it() {
    let plugin = Plugin::new();
    let config = plugin.config("app", json!({}));
    let container = plugin.lab.container("c");
    let netns = path(&container);
    let at = At::eth0("c1", &netns);
    plugin.done("ADD", at, &config);
    for words in [
        &["network", "create", "more"][..],
        &["network", "connect", "more", "c1"],
        &["publish", "c1", "8089:80"],
        &["endpoint", "add", "side", "--network", "container:c1"],
    ] {
        plugin.agent.netfw(words);
    }
    plugin.done("DEL", at, &config);
    assert_eq!(plugin.endpoints(), [""; 0]);
    assert_eq!(container.links(), ["lo"]);
    plugin.done("ADD", at, &config);
}

#[test]
fn a_container_in_two_networks_is_one_endpoint() {
    let plugin = Plugin::new();
    let container = plugin.lab.container("c");
    let nginx = Nginx::start(&container, "c", &[80]);
    let netns = path(&container);
    let eth0 = At::eth0("c1", &netns);
    let eth1 = At {
        interface: "eth1",
        ..eth0
    };
    let ports = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80}]});
    let front = plugin.config("front", json!({"runtimeConfig": ports}));
    let back = plugin.config("back", json!({"ipv6": true, "runtimeConfig": ports}));
    plugin.done("ADD", eth0, &front);
    plugin.done("ADD", eth1, &back);
    assert_eq!(plugin.endpoints(), ["c1"]);
    assert_eq!(container.links().len(), 3);
    // What IPv6 there is came with the second.
    for node in [NODE, NODE6] {
        assert_eq!(
            curl(&plugin.lab.client, node, 8080, "/"),
            Some(nginx.page(80))
        );
    }
    plugin.done("DEL", eth0, &front);
    assert_eq!(container.links(), ["lo", "eth1"]);
    assert_eq!(
        curl(&plugin.lab.client, NODE, 8080, "/"),
        Some(nginx.page(80))
    );
    plugin.done("DEL", eth1, &back);
    assert_eq!(plugin.endpoints(), [""; 0]);
    assert_eq!(container.links(), ["lo"]);
}

#[test]
fn names_are_pods_and_found_by_others() {
    let plugin = Plugin::new();
    let config = plugin
        .config("app", json!({"subnets": ["10.77.0.0/24"]}))
        .to_string();
    let pods = ["default", "prod"].map(|_| plugin.lab.container("pod"));
    let path_variable = plugin.path();
    for (pod, (id, namespace)) in pods.iter().zip([("c1", "default"), ("c2", "prod")]) {
        let netns = path(pod);
        let arguments = format!(
            "IgnoreUnknown=1;K8S_POD_NAME=web;K8S_POD_NAMESPACE={namespace};K8S_POD_INFRA_CONTAINER_ID={id};X=Y"
        );
        let environment = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", id),
            ("CNI_NETNS", &netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", &arguments),
            ("CNI_PATH", &path_variable),
        ];
        let said = answer(&finish(plugin.start(&environment, &config))).expect("done");
        assert_eq!(text(&said["dns"]["nameservers"][0]), "10.77.0.1");
    }
    assert_eq!(plugin.endpoints(), ["web", "web.prod"]);
    let known = pods[1].run(&["dig", "+short", "@10.77.0.1", "web"]);
    let web = plugin.agent.json(&["endpoint", "inspect", "web"]);
    assert_eq!(known.trim(), text(&web["ip"]));
}

#[test]
fn a_hundred_at_once() {
    const MANY: usize = 100;
    let plugin = Plugin::new();
    let config = plugin.config("app", json!({}));
    let containers: Vec<Namespace> = (0..MANY).map(|_| plugin.lab.container("c")).collect();
    let all: Vec<(String, String)> = containers
        .iter()
        .enumerate()
        .map(|(n, container)| (format!("c{n}"), path(container)))
        .collect();
    let each = |command: &str| -> Vec<Value> {
        let begin = |(id, netns): &(String, String)| {
            let at = At::eth0(id, netns);
            plugin.begin(command, at, &config)
        };
        let children: Vec<_> = all.iter().map(begin).collect();
        let finished = children.into_iter().map(|child| answer(&finish(child)));
        finished.map(|said| said.expect("done")).collect()
    };
    let said = each("ADD");
    let mut addresses: Vec<&str> = said
        .iter()
        .map(|said| text(&said["ips"][0]["address"]))
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), MANY);
    for n in [0, MANY / 2, MANY - 1] {
        assert!(ping(&containers[n], WORLD), "{n}");
    }
    each("DEL");
    assert_eq!(plugin.endpoints(), [""; 0]);
}

/// The plugin is killed at each step that can be seen from outside: what it has begun, DEL removes.
#[test]
fn a_caller_that_dies_half_way_leaves_what_del_removes() {
    const ENOUGH: usize = 100;
    let plugin = Plugin::new();
    let config = plugin.config("app", json!({}));
    let container = plugin.lab.container("c");
    let netns = path(&container);
    let at = At::eth0("c1", &netns);
    let path = plugin.path();
    let environment = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", at.container),
        ("CNI_NETNS", at.netns),
        ("CNI_IFNAME", at.interface),
        ("CNI_PATH", &path),
    ];
    for step in 0..ENOUGH {
        let mut child = plugin.command(&environment).spawn().expect("it starts");
        let comm = format!("/proc/{}/comm", child.id());
        wait_until("nsenter to become the plugin", SOON, || {
            std::fs::read_to_string(&comm).is_ok_and(|comm| comm == "netfw-cni\n")
        });
        let fate = Fate::of(Pid::from_raw(child.id().cast_signed()), step);
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin
            .write_all(config.to_string().as_bytes())
            .expect("it reads");
        drop(stdin);
        let stdout = child.stdout.take().expect("a pipe");
        wait_until("the plugin's end", SOON, || {
            fate.is_over() || plugin_has_answered(&stdout)
        });
        let struck = fate.fulfil().struck;
        child.wait().expect("our own child");
        plugin.done("DEL", at, &config);
        assert_eq!(
            plugin.endpoints(),
            [""; 0],
            "killed at step {step}, {struck:?}"
        );
        assert_eq!(
            container.links(),
            ["lo"],
            "killed at step {step}, {struck:?}"
        );
        if struck.is_none() {
            return;
        }
    }
    panic!("no end after {ENOUGH} steps");
}

/// Is there something to be read?
fn plugin_has_answered(stdout: &ChildStdout) -> bool {
    let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

#[test]
fn a_network_is_changed_when_nobody_is_in_it() {
    let plugin = Plugin::new();
    let container = plugin.lab.container("c");
    let netns = path(&container);
    let at = At::eth0("c1", &netns);
    let other = plugin.lab.container("other");
    let other = path(&other);
    let one = plugin.config("app", json!({"subnets": ["10.77.0.0/24"]}));
    let two = plugin.config("app", json!({"subnets": ["10.78.0.0/24"]}));
    plugin.done("ADD", at, &one);
    let second = At {
        container: "c2",
        netns: &other,
        ..at
    };
    let said = plugin.refuses(CONFIG, "ADD", second, &two);
    assert!(
        said.contains("10.78.0.0/24") && said.contains("c1"),
        "{said}"
    );
    plugin.done("DEL", at, &two);
    let said = plugin.done("ADD", second, &two);
    assert_eq!(text(&said["ips"][0]["gateway"]), "10.78.0.1");

    // Not one that a person made.
    plugin
        .agent
        .netfw(&["network", "create", "hers", "--subnet", "10.79.0.0/24"]);
    let hers = |more: Value| plugin.config("x", json!({"network": "hers", "subnets": more}));
    let said = plugin.refuses(CONFIG, "ADD", at, &hers(json!(["10.80.0.0/24"])));
    assert!(said.contains("hers"), "{said}");
    let said = plugin.done("ADD", at, &hers(json!([])));
    assert_eq!(text(&said["ips"][0]["gateway"]), "10.79.0.1");
}

#[test]
fn a_port_that_is_taken_is_refused_and_nothing_is_left() {
    let plugin = Plugin::new();
    let container = plugin.lab.container("c");
    let netns = path(&container);
    let at = At::eth0("c1", &netns);
    let before = plugin.lab.node.links();
    let held = plugin
        .lab
        .node
        .enter(|| TcpListener::bind(("0.0.0.0", 8080)).expect("the port is free"));
    let ports = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80}]});
    let config = plugin.config("app", json!({"runtimeConfig": ports}));
    let said = plugin.refuses(CONFLICT, "ADD", at, &config);
    assert!(said.contains("8080"), "{said}");
    assert_eq!(container.links(), ["lo"]);
    assert_eq!(plugin.lab.node.links(), before);
    drop(held);
    plugin.done("ADD", at, &config);
}
