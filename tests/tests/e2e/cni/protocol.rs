//! What is asked and answered, word for word, and what is refused.

use netfw_tests::topology;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{
    AGAIN, At, CONFIG, CONFLICT, DECODE, ENVIRONMENT, INCOMPATIBLE, LIMITED, Plugin, UNSUPPORTED,
    answer, finish, path,
};
use crate::setting::text;

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

#[test]
fn version_needs_no_agent() {
    let mut plugin = Plugin::new();
    plugin.agent.stop();
    let child = plugin.start(&[("CNI_COMMAND", "VERSION")], r#"{"cniVersion": "1.0.0"}"#);
    assert_eq!(
        answer(&finish(child)),
        Ok(json!({
            "cniVersion": "1.0.0",
            "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        }))
    );
}

#[test]
fn add_answers_in_the_form_of_each_version() {
    let plugin = Plugin::new();
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let container = plugin.lab.container("c");
        let netns = path(&container);
        let at = At {
            container: "c1",
            netns: &netns,
            interface: "net0",
        };
        let subnets = json!(["10.77.0.0/24", "fd77::/64"]);
        let mut config = plugin.config("app", json!({"subnets": subnets, "mtu": 1400}));
        config["cniVersion"] = version.into();
        let said = plugin.done("ADD", at, &config);
        let endpoint = plugin.agent.json(&["endpoint", "inspect", "c1"]);
        let (bridge, host) = (
            &endpoint["networks"][0]["bridge"],
            &endpoint["host_interface"],
        );
        let node = |link: &Value| mac(topology::mac(&plugin.lab.node, text(link)));
        let mut expected = json!({
            "cniVersion": version,
            "interfaces": [
                {"name": bridge, "mac": node(bridge)},
                {"name": host, "mac": node(host)},
                {"name": "net0", "mac": mac(topology::mac(&container, "net0")), "sandbox": netns},
            ],
            "ips": [
                {"address": format!("{}/24", text(&endpoint["ip"])), "gateway": "10.77.0.1", "interface": 2},
                {"address": format!("{}/64", text(&endpoint["ip6"])), "gateway": "fd77::1", "interface": 2},
            ],
            "routes": [
                {"dst": "0.0.0.0/0", "gw": "10.77.0.1"},
                {"dst": "::/0", "gw": "fd77::1"},
            ],
            "dns": {"nameservers": ["10.77.0.1", "fd77::1"]},
        });
        if version == "1.1.0" {
            for interface in expected["interfaces"].as_array_mut().expect("a list") {
                interface["mtu"] = 1400.into();
            }
        }
        if version.starts_with('0') {
            expected["ips"][0]["version"] = "4".into();
            expected["ips"][1]["version"] = "6".into();
        }
        assert_eq!(said, expected, "{version}");
        let there = container.ip(&["addr", "show", "net0"]);
        for ip in said["ips"].as_array().expect("a list") {
            assert!(there.contains(text(&ip["address"])), "{there}");
        }
        // What it has no need of is in nobody's way.
        let mut damaged = config.clone();
        damaged["mtu"] = "much".into();
        damaged["runtimeConfig"] = json!([]);
        assert_eq!(plugin.done("DEL", at, &damaged), Value::Null);
        assert_eq!(plugin.endpoints(), [""; 0]);
    }
}

#[test]
fn what_is_wrong_is_refused_with_the_code_for_it_and_changes_nothing() {
    let plugin = Plugin::new();
    let container = plugin.lab.container("c");
    let netns = path(&container);
    let at = At::eth0("c1", &netns);
    let other = At {
        container: "other",
        netns: &netns,
        interface: "eth9",
    };
    plugin.done("ADD", other, &plugin.config("taken", json!({})));
    let state = || {
        let links = (plugin.lab.node.links(), container.links());
        let networks = plugin.agent.json(&["network", "ls"]);
        (links, networks, plugin.endpoints())
    };
    let before = state();
    let mapping = |mapping: Value| json!({"runtimeConfig": {"portMappings": [mapping]}});
    for (code, more, word) in [
        (INCOMPATIBLE, json!({"cniVersion": "0.2.0"}), "0.2.0"),
        (INCOMPATIBLE, json!({"cniVersion": "1.2.0"}), "1.2.0"),
        (UNSUPPORTED, json!({"isGateway": true}), "isGateway"),
        (
            UNSUPPORTED,
            json!({"runtimeConfig": {"bandwidth": {"ingressRate": 2048}}}),
            "2048",
        ),
        (DECODE, json!({"cniVersion": 1}), "cniVersion"),
        (CONFIG, json!({"name": ""}), "name"),
        (CONFIG, json!({"instance": "a.b"}), "instance"),
        (CONFIG, json!({"network": "host"}), "host"),
        (CONFIG, json!({"subnets": ["10.77.0.1/24"]}), "10.77.0.0/24"),
        (
            CONFIG,
            json!({"subnets": ["10.77.0.0/24"], "gateways": ["10.78.0.1"]}),
            "10.78.0.1",
        ),
        (
            CONFIG,
            json!({"prevResult": {"cniVersion": "1.1.0"}}),
            "prevResult",
        ),
        (
            CONFIG,
            json!({"ipam": {"type": "no-such-plugin"}}),
            "no-such-plugin",
        ),
        (
            CONFIG,
            mapping(json!({"hostPort": 70000, "containerPort": 80})),
            "70000",
        ),
        (
            CONFIG,
            mapping(json!({"hostPort": 80, "containerPort": 80, "hostIP": "192.0.2.1"})),
            "192.0.2.1",
        ),
        (
            CONFIG,
            json!({"runtimeConfig": {"ips": ["192.0.2.1/24"]}}),
            "192.0.2.1",
        ),
        (
            CONFIG,
            json!({"runtimeConfig": {"aliases": ["a b"]}}),
            "a b",
        ),
        // Of the lab's own.
        (CONFLICT, json!({"subnets": ["10.1.0.0/24"]}), "10.1.0.0/24"),
    ] {
        let said = plugin.refuses(code, "ADD", at, &plugin.config("app", more));
        assert!(said.contains(word), "{word}: {said}");
        assert_eq!(state(), before, "{said}");
    }
    let config = plugin.config("app", json!({}));
    let node = path(&plugin.lab.node);
    for netns in [
        "/dev/null",
        "/run/netns/no-such",
        "/proc/self/ns/mnt",
        &node,
    ] {
        let said = plugin.refuses(ENVIRONMENT, "ADD", At { netns, ..at }, &config);
        assert!(said.contains("CNI_NETNS"), "{said}");
    }
    for interface in ["eth9", "lo"] {
        let said = plugin.refuses(CONFLICT, "ADD", At { interface, ..at }, &config);
        assert!(said.contains(interface), "{said}");
    }
    plugin.refuses(
        ENVIRONMENT,
        "ADD",
        At {
            container: "",
            ..at
        },
        &config,
    );
    for garbage in ["", "nonsense", "[]", "{"] {
        let environment = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", netns.as_str()),
            ("CNI_IFNAME", "eth0"),
        ];
        let error = answer(&finish(plugin.start(&environment, garbage))).expect_err("refused");
        assert_eq!(error["code"], DECODE, "{garbage:?}: {error}");
    }
    assert_eq!(state(), before);
}

#[test]
fn an_agent_that_is_away_is_worth_another_try() {
    let mut plugin = Plugin::new();
    let container = plugin.lab.container("c");
    let netns = path(&container);
    let at = At::eth0("c1", &netns);
    let mut config = plugin.config("app", json!({}));
    config["prevResult"] = plugin.done("ADD", at, &config);
    let asked = |plugin: &Plugin| {
        let add = plugin.config("app", json!({}));
        plugin.refuses(
            AGAIN,
            "ADD",
            At {
                container: "c2",
                ..at
            },
            &add,
        );
        plugin.refuses(AGAIN, "DEL", at, &config);
        plugin.refuses(AGAIN, "CHECK", at, &config);
        plugin.refuses(LIMITED, "STATUS", at, &config);
        let error = plugin.collect(&config, json!([])).expect_err("no agent");
        assert_eq!(error["code"], AGAIN, "{error}");
    };
    plugin.done("STATUS", at, &config);
    plugin.agent.process().signal(Signal::SIGSTOP);
    asked(&plugin);
    plugin.agent.process().signal(Signal::SIGCONT);
    plugin.done("STATUS", at, &config);
    plugin.agent.kill();
    asked(&plugin);
    plugin.agent.start_again();
    plugin.done("CHECK", at, &config);
    plugin.done("DEL", at, &config);
    assert_eq!(plugin.endpoints(), [""; 0]);
}
