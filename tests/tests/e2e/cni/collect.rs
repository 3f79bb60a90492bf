//! GC removes what its runtime does not have any more, and nothing else.

use netfw_tests::Namespace;
use serde_json::json;

use super::{At, CONFIG, Plugin, path};

#[test]
fn what_is_not_valid_goes_and_nothing_else() {
    let mut plugin = Plugin::new();
    let app = plugin.config("app", json!({}));
    let other = plugin.config("other", json!({}));
    let same = plugin.config("same", json!({"network": "app"}));
    let all = [
        ("c1", "eth0", &app),
        ("c2", "eth0", &app),
        ("c3", "eth0", &app),
        ("c4", "eth0", &other),
        ("c5", "eth0", &same),
    ];
    let containers: Vec<Namespace> = all.iter().map(|_| plugin.lab.container("c")).collect();
    for ((container, interface, config), netns) in all.iter().zip(&containers) {
        let netns = path(netns);
        let at = At {
            container,
            netns: &netns,
            interface,
        };
        plugin.done("ADD", at, config);
    }
    // c2 is in two networks.
    let netns = path(&containers[1]);
    let second = At {
        container: "c2",
        netns: &netns,
        interface: "eth1",
    };
    plugin.done("ADD", second, &other);
    // One that a person added.
    let hers = plugin.lab.container("hers");
    plugin.agent.netfw(&[
        "endpoint",
        "add",
        "hers",
        "--network",
        "app",
        "--netns",
        hers.name(),
    ]);
    plugin.agent.kill();
    plugin.agent.start_again();

    let environment = [("CNI_COMMAND", "GC")];
    let said = super::answer(&super::finish(plugin.start(&environment, &app.to_string())));
    assert_eq!(said.expect_err("no list")["code"], CONFIG);
    let valid = json!([
        {"containerID": "c1", "ifname": "eth0"},
        {"containerID": "c3", "ifname": "eth1"},
        {"containerID": "c4", "ifname": "eth0"},
    ]);
    for _ in 0..2 {
        plugin.collect(&app, valid.clone()).expect("done");
        assert_eq!(plugin.endpoints(), ["c1", "c2", "c4", "c5", "hers"]);
        assert_eq!(containers[1].links(), ["lo", "eth1"]);
        assert_eq!(containers[2].links(), ["lo"]);
    }
    // As Go writes an empty list.
    plugin.collect(&app, json!(null)).expect("done");
    assert_eq!(plugin.endpoints(), ["c2", "c4", "c5", "hers"]);
    plugin.collect(&same, json!([])).expect("done");
    plugin.collect(&other, json!([])).expect("done");
    assert_eq!(plugin.endpoints(), ["hers"]);
}
