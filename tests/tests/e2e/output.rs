//! What is printed: tables for people, JSON for programs.

use std::io::Write as _;

use netfw_tests::{
    Agent, Lab, Namespace,
    agent::USAGE,
    programs::{UdpEcho, ask, curl, ping, udp_socket},
    sockets::{dial, listen},
    topology::{CLIENT, NODE, WORLD},
    wait_until,
};
use serde_json::{Value, json};

use crate::setting::{SOON, Site, attach, text};

#[test]
fn json_may_be_asked_for_before_and_after_the_command() {
    let Site { agent, .. } = &Site::new(&["8080:80"]);
    let parse = |words: &[&str]| -> Value {
        let printed = agent.netfw(words);
        serde_json::from_str(&printed)
            .unwrap_or_else(|error| panic!("{words:?}: {error}\n{printed}"))
    };
    for command in [
        &["endpoint", "ls"] as &[&str],
        &["endpoint", "inspect", "web"],
        &["port"],
        &["port", "web"],
        &["flow", "ls"],
        &["stats"],
        &["stats", "--drops"],
    ] {
        let before = parse(&[&["-o", "json"], command].concat());
        let after = parse(&[command, &["-o", "json"]].concat());
        let long = parse(&[&[command[0], "--output=json"], &command[1..]].concat());
        // Counters count on.
        if command[0] != "stats" {
            assert_eq!(before, after, "{command:?}");
            assert_eq!(before, long, "{command:?}");
        }
        let table = agent.netfw(command);
        assert!(
            serde_json::from_str::<Value>(&table).is_err(),
            "{command:?} prints a table"
        );
    }
    // Its uptime may pass a second meanwhile.
    let status = parse(&["status", "-o", "json"]);
    assert_eq!(status["instance"], agent.instance());
    assert_eq!(status["endpoints"], 1);
    assert_eq!(status["published_ports"], 2, "of each family one");
    let mut uplinks: Vec<_> = status["uplinks"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|uplink| text(&uplink["name"]))
        .collect();
    uplinks.sort();
    assert_eq!(uplinks, ["up0", "up1"]);
}

#[test]
fn ports_are_printed_as_docker_prints_them() {
    let Site { agent, .. } = &Site::new(&["8080:80", "10.1.0.1:5300:53/udp", "9000-9002:90-92"]);
    assert_eq!(
        agent.netfw(&["port", "web"]),
        "80/tcp -> 0.0.0.0:8080\n\
         80/tcp -> [::]:8080\n\
         53/udp -> 10.1.0.1:5300\n\
         90-92/tcp -> 0.0.0.0:9000-9002\n\
         90-92/tcp -> [::]:9000-9002\n"
    );
    let table = agent.netfw(&["port"]);
    assert!(table.starts_with("ENDPOINT"), "{table}");
    assert!(
        table.lines().skip(1).all(|line| line.starts_with("web ")),
        "{table}"
    );
    assert_eq!(
        agent.json(&["port", "web"])[0],
        json!({
            "endpoint": "web",
            "protocol": "tcp",
            "host_ip": "0.0.0.0",
            "host_ports": {"first": 8080, "last": 8080},
            "container_ports": {"first": 80, "last": 80},
            "allow_from": [],
        })
    );
}

#[test]
fn endpoints_are_listed_with_what_docker_ps_shows() {
    let Site {
        agent,
        ip,
        web,
        lab,
        ..
    } = &Site::new(&["8080:80"]);
    let table = agent.netfw(&["endpoint", "ls"]);
    let mut lines = table.lines();
    assert!(
        lines.next().is_some_and(|head| head.starts_with("NAME ")),
        "{table}"
    );
    let line = lines.next().expect("a line for web");
    for part in [
        "web ",
        "up",
        "bridge",
        &ip.to_string(),
        web.name(),
        "0.0.0.0:8080->80/tcp",
    ] {
        assert!(line.contains(part), "{part} is missing in {line}");
    }
    assert_eq!(lines.next(), None);
    // What adds an endpoint, and what shows it, say the same.
    let listed = agent.json(&["endpoint", "ls"])[0].clone();
    let mut inspected = agent.json(&["endpoint", "inspect", "web"]);
    let mut wiring = inspected["networks"][0]["wiring"].take();
    let attachment = inspected["networks"][0].as_object_mut();
    attachment.expect("an object").remove("wiring");
    assert_eq!(listed, inspected);
    // And how it is plugged in.
    let index = |namespace: &Namespace, name: &str| {
        let line = namespace.ip(&["-o", "link", "show", "dev", name]);
        line.split(':').next().map(str::to_owned)
    };
    assert_eq!(Some(wiring["ifindex"].to_string()), index(web, "eth0"));
    let bridge = index(&lab.node, "netfw0");
    assert_eq!(Some(wiring["bridge_ifindex"].to_string()), bridge);
    let macs = wiring["macs"].take();
    let macs = macs.as_array().expect("a list");
    let host = lab
        .node
        .ip(&["-o", "link", "show", "dev", text(&listed["host_interface"])]);
    let host_mac = host
        .split_whitespace()
        .skip_while(|word| *word != "link/ether")
        .nth(1);
    let own = json!({ "mac": host_mac, "own": true });
    assert!(macs.contains(&own), "{macs:?}");
    assert_eq!(listed["state"], "up");
    assert_eq!(listed["interface"], "eth0");
}

#[test]
fn flows_are_found_by_what_is_known_of_them() {
    let site = &Site::new(&["8080:80"]);
    let Site { agent, lab, .. } = site;
    assert!(curl(&lab.client, NODE, 8080, "/").is_some());
    assert!(ping(&site.web, WORLD));
    let found = |words: &[&str]| {
        let flows = agent.json(&[&["flow", "ls"], words].concat());
        let flows = flows.as_array().expect("a list").clone();
        flows
            .iter()
            .map(|flow| text(&flow["protocol"]).to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(found(&[]), ["icmp", "tcp"]);
    let client = CLIENT.to_string();
    for (words, want) in [
        (&["--protocol", "tcp"][..], &["tcp"][..]),
        (&["--protocol", "6"], &["tcp"]),
        (&["--protocol", "udp"], &[]),
        (&["--port", "8080"], &["tcp"]),
        (&["--port", "80"], &["tcp"]),
        (&["--port", "81"], &[]),
        (&["--address", &client], &["tcp"]),
        (&["--address", "10.0.0.0/8"], &["icmp", "tcp"]),
        (&["--address", "fd00::/8"], &[]),
        (&["--state", "established"], &[]),
        (&["--state", "time_wait", "--endpoint", "web"], &["tcp"]),
        (&["--protocol", "icmp", "--port", "8080"], &[]),
    ] {
        assert_eq!(found(words), want, "{words:?}");
    }
    for words in [
        &["--protocol", "tpc"][..],
        &["--address", "10.0.0.0/33"],
        &["--port", "65536"],
        &["--state", "open"],
    ] {
        agent.refuses(USAGE, &[&["flow", "ls"], words].concat());
    }
}

#[test]
fn rates_are_printed_until_somebody_has_enough() {
    let site = &Site::new(&["8080:80"]);
    let Site { agent, lab, .. } = site;
    let mut watch = netfw_tests::Running::start(agent.command(&["-o", "json", "stats", "--watch"]));
    wait_until("a rate that is not 0", SOON, || {
        curl(&lab.client, NODE, 8080, "/");
        let printed = watch.stdout();
        let lines = printed.lines().map(|line| {
            serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{line}: {e}"))
        });
        let mut rates = lines.map(|stats| stats["endpoints"][0]["total"]["rx_packets"].clone());
        rates.any(|rate| rate.as_u64().is_some_and(|rate| rate > 0))
    });
    watch.stop();
    agent.refuses(USAGE, &["stats", "--watch", "0"]);
    agent.refuses(USAGE, &["stats", "--watch", "--drops"]);
}

#[test]
fn shells_and_man_are_told_of_every_command() {
    let lab = Lab::new();
    let agent = Agent::start(&lab);
    for shell in ["bash", "zsh", "fish"] {
        let text = agent.netfw(&["completions", shell]);
        for word in ["netfw", "disconnect", "publish-all"] {
            assert!(text.contains(word), "{shell}: {word}");
        }
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_str().expect("text");
    agent.netfw(&["man", path]);
    for page in ["netfw.1", "netfw-endpoint-add.1", "netfw-network-connect.1"] {
        let text = std::fs::read_to_string(directory.path().join(page));
        assert!(text.is_ok_and(|text| text.contains(".SH NAME")), "{page}");
    }
}

#[test]
fn a_closed_pipe_ends_netfw_quietly() {
    let Site { agent, .. } = &Site::new(&["8080-8099:80-99"]);
    let netfw = netfw_tests::agent::binary();
    let line = format!(
        "{} --instance {} endpoint inspect web -o json | head -1",
        netfw.display(),
        agent.instance()
    );
    let output = std::process::Command::new("sh")
        .args(["-c", &line])
        .output()
        .expect("a shell");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.stdout, b"{\n");
}

#[test]
fn what_is_full_is_said_with_what_to_do() {
    let lab = Lab::new();
    let mut config = tempfile::NamedTempFile::new().expect("a temporary file");
    writeln!(config, "max_flows = 1\nports = \"2000-2001\"").expect("our own file");
    let agent = Agent::start_with(&lab, &["--config", &config.path().display().to_string()]);
    assert_eq!(agent.json(&["status"])["warnings"], json!([]));
    let web = lab.container("web");
    attach(&agent, "web", &web, &[]);
    let _echo = UdpEcho::start(&lab.world, (WORLD, 53));
    // Room for one connection, and two ports.
    let _listener = listen(&lab.world, 9000);
    let _connections = [4001, 4002].map(|port| dial(&web, port, (WORLD, 9000)));
    let sockets = [(); 3].map(|()| udp_socket(&web));
    wait_until("both warnings", SOON, || {
        for socket in &sockets {
            for _ in 0..3 {
                ask(socket, (WORLD, 53), "x");
            }
        }
        let status = agent.json(&["status"]);
        let warnings = status["warnings"].to_string();
        warnings.contains("max_flows") && warnings.contains("`ports`")
    });
    let status = agent.netfw(&["status"]);
    assert!(status.contains("warning: "), "{status}");
    let tables = agent.json(&["status"])["tables"].clone();
    assert_eq!(tables[0]["name"], "flows4");
    assert_eq!(tables[0]["max"], 1);
}
