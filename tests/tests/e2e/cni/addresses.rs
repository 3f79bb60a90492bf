//! Addresses that another plugin chooses.

use std::{fs, path::Path};

use serde_json::{Value, json};

use super::{At, CONFLICT, Plugin, directory, path};
use crate::setting::text;

const HOST_LOCAL: &str = "/usr/lib/cni/host-local";

/// The addresses that host-local has given away, as it keeps them: a file each.
fn reserved(data: &Path) -> Vec<String> {
    let files = fs::read_dir(data.join("app")).map(|all| all.flatten().collect::<Vec<_>>());
    let names = files.unwrap_or_default().into_iter();
    let mut names: Vec<String> = names
        .map(|file| file.file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains(['.', ':']) && !name.starts_with("last"))
        .collect();
    names.sort();
    names
}

#[test]
fn host_local_gives_and_takes_back() {
    if !Path::new(HOST_LOCAL).exists() {
        eprintln!("skipped: there is no {HOST_LOCAL} (Debian's containernetworking-plugins)");
        return;
    }
    let plugin = Plugin::new();
    let data = directory("netfw-host-local-");
    let ranges = json!([[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]]);
    let config = |more: Value| {
        let routes = json!([{"dst": "0.0.0.0/0"}]);
        let ipam = json!({"type": "host-local", "dataDir": data.path(), "ranges": ranges, "routes": routes});
        let mut config = plugin.config("app", json!({"ipam": ipam}));
        // Debian's does not know a newer one.
        config["cniVersion"] = "1.0.0".into();
        for (key, value) in more.as_object().expect("an object") {
            config[key] = value.clone();
        }
        config
    };
    let container = plugin.lab.container("c");
    let netns = path(&container);
    let at = At::eth0("c1", &netns);
    let mut plain = config(json!({}));
    let said = plugin.done("ADD", at, &plain);
    assert_eq!(reserved(data.path()), ["10.77.0.2", "fd77::2"]);
    assert_eq!(text(&said["ips"][0]["address"]), "10.77.0.2/24");
    assert_eq!(text(&said["ips"][1]["address"]), "fd77::2/64");
    let there = container.ip(&["addr", "show", "eth0"]);
    assert!(
        there.contains("10.77.0.2/24") && there.contains("fd77::2/64"),
        "{there}"
    );
    plain["prevResult"] = said;
    plugin.done("CHECK", at, &plain);
    for _ in 0..2 {
        plugin.done("DEL", at, &plain);
        assert_eq!(reserved(data.path()), [""; 0]);
        assert_eq!(plugin.endpoints(), [""; 0]);
    }

    // What the agent refuses is given back.
    let ports = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80}]});
    let publishing = config(json!({"runtimeConfig": ports}));
    let hers = plugin.lab.container("hers");
    plugin.agent.netfw(&[
        "endpoint",
        "add",
        "hers",
        "--netns",
        hers.name(),
        "-p",
        "8080:80",
    ]);
    plugin.refuses(CONFLICT, "ADD", at, &publishing);
    assert_eq!(reserved(data.path()), [""; 0]);
    // And what host-local refuses is told.
    let error = plugin
        .call("ADD", at, &config(json!({"ipam": {"type": "host-local"}})))
        .expect_err("no ranges");
    assert!(error.to_string().contains("host-local"), "{error}");
    assert_eq!(container.links(), ["lo"]);
}
