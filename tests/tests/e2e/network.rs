//! The default network: containers among themselves, with the node, and what they may not do.

use std::net::IpAddr;

use netfw_tests::{
    Namespace, Running,
    programs::{
        Capture, Nginx, UdpEcho, ask, ask_in_vain, curl, curl_in_vain, ping, ping_in_vain,
        udp_socket,
    },
    topology::{CLIENT, NODE, NODE_OUTSIDE, WORLD},
    wait_until,
};
use serde_json::Value;

use crate::setting::{SOON, Site, attach, drops, text};

/// A second container beside `web`.
fn neighbour(site: &Site, publishes: &[&str]) -> (Namespace, IpAddr) {
    let container = site.lab.container("app");
    let ip = attach(&site.agent, "app", &container, publishes);
    (container, ip)
}

#[test]
fn neighbours_reach_each_other_directly() {
    let site = Site::new(&[]);
    let (app, ip) = neighbour(&site, &[]);
    assert!(ping(&app, site.ip));
    assert!(ping(&site.web, ip));
    assert_eq!(
        curl(&app, site.ip, 80, "/direct"),
        Some(site.nginx.page(80))
    );
    let line = site.nginx.logged("/direct");
    assert!(
        line.starts_with(&format!("{ip} ")),
        "{line}: its own address"
    );
    let _echo = UdpEcho::start(&site.web, (site.ip, 53));
    assert!(
        ask(&udp_socket(&app), (site.ip, 53), "x").is_some_and(|a| a.starts_with(&ip.to_string()))
    );
    // No translation, so no flow.
    assert_eq!(site.agent.json(&["flow", "ls"]), serde_json::json!([]));
}

#[test]
fn neighbours_exchange_bulk() {
    let site = Site::new(&[]);
    let (app, _) = neighbour(&site, &[]);
    let _server = iperf3_server(&site.web);
    for reverse in [&[] as &[&str], &["-R"]] {
        let bits = iperf3(&app, site.ip, reverse);
        assert!(bits > 100e6, "{reverse:?}: {bits} bit/s");
    }
}

/// `iperf3 -s`, once it listens.
pub fn iperf3_server(namespace: &Namespace) -> Running {
    let server = namespace.spawn(&["iperf3", "-s", "--forceflush"]);
    wait_until("iperf3 to listen", SOON, || {
        server.stdout().contains("listening on 5201")
    });
    server
}

/// Bits per second that arrived within a second.
#[track_caller]
pub fn iperf3(client: &Namespace, server: IpAddr, options: &[&str]) -> f64 {
    let server = server.to_string();
    let mut words = vec!["iperf3", "-J", "-t", "1", "-c", &server];
    words.extend(options);
    // Between two runs the server is busy for a moment.
    let mut report = Value::Null;
    wait_until(&format!("{words:?} to run through"), SOON, || {
        let output = client
            .command(words[0])
            .args(&words[1..])
            .output()
            .expect("iperf3 can be started");
        report = serde_json::from_slice(&output.stdout).unwrap_or_default();
        output.status.success()
    });
    let end = &report["end"];
    let received = [&end["sum_received"], &end["sum"]]
        .into_iter()
        .find(|sum| sum.is_object())
        .unwrap_or_else(|| panic!("no result in {report}"));
    if let Some(lost) = end["sum"]["lost_percent"].as_f64() {
        assert!(lost < 5.0, "{lost} % of the datagrams were lost: {end}");
    }
    received["bits_per_second"].as_f64().expect("a number")
}

#[test]
fn a_publish_serves_the_container_itself_and_its_neighbour() {
    let site = Site::new(&["8080:80"]);
    let (app, ip) = neighbour(&site, &[]);
    for (who, from) in [("its neighbour", &app), ("itself", &site.web)] {
        for to in [NODE, NODE_OUTSIDE] {
            assert_eq!(
                curl(from, to, 8080, "/"),
                Some(site.nginx.page(80)),
                "{who} by {to}"
            );
        }
    }
    curl(&app, NODE, 8080, "/neighbour").expect("served");
    let line = site.nginx.logged("/neighbour");
    assert!(line.starts_with(&format!("{ip} ")), "{line}: the neighbour");
    // A host that answered itself would do so directly, so it sees the gateway.
    curl(&site.web, NODE, 8080, "/itself").expect("served");
    let gateway = site.agent.json(&["endpoint", "inspect", "web"])["gateway"].clone();
    let line = site.nginx.logged("/itself");
    assert!(line.starts_with(&format!("{} ", text(&gateway))), "{line}");
    assert!(curl_in_vain(&app, NODE, 8081), "not published");
}

#[test]
fn the_node_and_a_container_reach_each_other() {
    let site = Site::new(&[]);
    assert_eq!(
        curl(&site.lab.node, site.ip, 80, "/node"),
        Some(site.nginx.page(80))
    );
    let gateway: IpAddr = text(&site.agent.json(&["endpoint", "inspect", "web"])["gateway"])
        .parse()
        .expect("an address");
    let line = site.nginx.logged("/node");
    assert!(line.starts_with(&format!("{gateway} ")), "{line}");
    assert!(ping(&site.lab.node, site.ip));
    let on_node = Nginx::start(&site.lab.node, "node", &[90]);
    for to in [gateway, NODE, NODE_OUTSIDE] {
        assert!(ping(&site.web, to), "{to}");
        assert_eq!(curl(&site.web, to, 90, "/"), Some(on_node.page(90)), "{to}");
    }
    // The client, too, finds what the node itself serves, as ever.
    assert_eq!(
        curl(&site.lab.client, NODE, 90, "/"),
        Some(on_node.page(90))
    );
}

#[test]
fn a_stolen_address_gets_nothing_out() {
    let site = Site::new(&[]);
    let (app, _) = neighbour(&site, &[]);
    let _echo = UdpEcho::start(&site.lab.world, (WORLD, 53));
    let _neighbour = UdpEcho::start(&site.web, (site.ip, 53));
    let uplink = Capture::start(&site.lab.node, "up1");
    let before = drops(&site.agent, "spoofed-address");
    let endpoint = site.agent.json(&["endpoint", "inspect", "app"]);
    let prefix = &endpoint["prefix_len"];
    let own = text(&endpoint["ip"]).to_owned();
    let gateway = text(&endpoint["gateway"]).to_owned();
    // Another of its subnet, one of the world's.
    for stolen in [
        format!("{}/{prefix}", next(next(site.ip))),
        "198.51.100.9/24".into(),
    ] {
        app.ip(&["addr", "flush", "dev", "eth0"]);
        app.ip(&["addr", "add", &stolen, "dev", "eth0"]);
        app.ip(&["route", "replace", &gateway, "dev", "eth0"]);
        app.ip(&["route", "replace", "default", "via", &gateway]);
        app.ip(&["route", "replace", &site.ip.to_string(), "via", &gateway]);
        // As the node's kernel does not answer its ARP either, so that IP would not even try.
        let mac = site.agent.json(&["status"])["networks"][0]["mac"].clone();
        app.ip(&[
            "neigh",
            "replace",
            &gateway,
            "lladdr",
            text(&mac),
            "dev",
            "eth0",
        ]);
        let socket = udp_socket(&app);
        assert!(ask_in_vain(&socket, (WORLD, 53), "spoofed"), "{stolen}");
        assert!(ask_in_vain(&socket, (site.ip, 53), "spoofed"), "{stolen}");
    }
    let after = drops(&site.agent, "spoofed-address");
    assert!(
        after >= before + 4,
        "{before} to {after}: {}",
        site.agent.netfw(&["stats", "--drops"])
    );
    let packets = uplink.finish(WORLD);
    assert!(!packets.iter().any(|line| line.contains("198.51.100.9")));
    assert!(
        !packets.iter().any(|line| line.contains(".53: ")),
        "{packets:#?}"
    );
    // Back to its own, all is well.
    app.ip(&["addr", "flush", "dev", "eth0"]);
    app.ip(&["addr", "add", &format!("{own}/{prefix}"), "dev", "eth0"]);
    app.ip(&["route", "replace", "default", "via", &gateway]);
    assert!(ask(&udp_socket(&app), (WORLD, 53), "honest").is_some());
}

fn next(ip: IpAddr) -> IpAddr {
    let IpAddr::V4(ip) = ip else {
        panic!("{ip} is an IPv4 address")
    };
    std::net::Ipv4Addr::from(u32::from(ip) + 1).into()
}

#[test]
fn a_stolen_mac_gets_nothing_out() {
    let site = Site::new(&[]);
    let (app, _) = neighbour(&site, &[]);
    let own = text(&site.agent.json(&["endpoint", "inspect", "app"])["mac"]).to_owned();
    assert!(ping(&app, WORLD) && ping(&app, site.ip));
    let before = drops(&site.agent, "spoofed-mac");
    app.ip(&["link", "set", "eth0", "address", "02:00:00:00:00:99"]);
    assert!(ping_in_vain(&app, WORLD));
    assert!(ping_in_vain(&app, site.ip));
    assert!(drops(&site.agent, "spoofed-mac") > before);
    app.ip(&["link", "set", "eth0", "address", &own]);
    wait_until("its own MAC address to be served again", SOON, || {
        ping(&app, WORLD) && ping(&app, site.ip)
    });
}

#[test]
fn a_container_made_by_path_by_pid_or_new_is_served_alike() {
    let site = Site::new(&[]);
    let (agent, world) = (&site.agent, &site.lab.world);
    let _echo = UdpEcho::start(world, (WORLD, 53));
    let by_path = site.lab.container("path");
    agent.netfw(&[
        "endpoint",
        "add",
        "by-path",
        "--netns",
        &by_path.path().display().to_string(),
    ]);
    assert!(ask(&udp_socket(&by_path), (WORLD, 53), "x").is_some());

    let by_pid = site.lab.container("pid");
    let sleeper = by_pid.spawn(&["sleep", "600"]);
    wait_until("the process to be inside", SOON, || {
        std::fs::read_link(format!("/proc/{}/exe", sleeper.pid()))
            .is_ok_and(|exe| exe.ends_with("sleep"))
    });
    agent.netfw(&[
        "endpoint",
        "add",
        "by-pid",
        "--pid",
        &sleeper.pid().to_string(),
    ]);
    assert!(ask(&udp_socket(&by_pid), (WORLD, 53), "x").is_some());

    // The name of a namespace is global: this test's own.
    let name = format!("new-{}", agent.instance());
    agent.netfw(&["endpoint", "add", &name]);
    let path = format!("/run/netns/{name}");
    assert!(std::path::Path::new(&path).exists());
    agent.netfw(&[
        "exec",
        &name,
        "--",
        "ping",
        "-n",
        "-c1",
        "-W2",
        &WORLD.to_string(),
    ]);
    agent.netfw(&["endpoint", "rm", &name]);
    assert!(!std::path::Path::new(&path).exists(), "it went along");
    for name in ["by-path", "by-pid"] {
        agent.netfw(&["endpoint", "rm", name]);
    }
    assert_eq!(by_path.links(), ["lo"], "what was there before stays");
}

#[test]
fn an_address_and_a_mac_that_were_asked_for_are_given() {
    let site = Site::new(&[]);
    let ip = next(next(next(site.ip)));
    let app = site.lab.container("app");
    let endpoint = site.agent.json(&[
        "endpoint",
        "add",
        "app",
        "--netns",
        app.name(),
        "--ip",
        &ip.to_string(),
        "--mac",
        "02:11:22:33:44:55",
    ]);
    assert_eq!(text(&endpoint["ip"]), ip.to_string());
    assert_eq!(text(&endpoint["mac"]), "02:11:22:33:44:55");
    let shown = app.ip(&["-o", "addr", "show", "eth0"]);
    assert!(shown.contains(&ip.to_string()), "{shown}");
    assert!(ping(&app, WORLD) && ping(&app, site.ip) && ping(&app, CLIENT));
}
