//! IPv6: what a container gets, and packets as over IPv4.

use std::net::{IpAddr, UdpSocket};

use netfw_tests::{
    Agent, Lab, Namespace,
    programs::{Capture, Nginx, UdpEcho, ask, ask_in_vain, curl, curl_in_vain, ping, ping_in_vain},
    topology::{CLIENT6, FAR6, NODE, NODE6, NODE6_OUTSIDE, WORLD6},
    wait_until,
};

use crate::setting::{SOON, Site, attach, drops, text};

/// A sysctl under `net/ipv6/conf`.
fn conf(namespace: &Namespace, key: &str) -> String {
    let path = format!("/proc/sys/net/ipv6/conf/{key}");
    namespace.run(&["cat", &path]).trim().to_owned()
}

fn udp6(namespace: &Namespace) -> UdpSocket {
    namespace.enter(|| UdpSocket::bind("[::]:0").expect("any port"))
}

/// An address of a container, with a carrier and all.
fn addresses(namespace: &Namespace, link: &str) -> String {
    namespace.ip(&["-6", "-o", "addr", "show", "dev", link])
}

#[test]
fn a_container_has_an_address_and_a_way_out_at_once() {
    let site = Site::new(&[]);
    let endpoint = site.agent.json(&["endpoint", "inspect", "web"]);
    let gateway = text(&endpoint["gateway6"]).to_owned();
    assert_eq!(endpoint["prefix_len6"], 64);
    let status = site.agent.json(&["status"]);
    let subnet = text(&status["networks"][0]["subnet6"]).to_owned();
    assert!(
        subnet.starts_with("fd") && subnet.ends_with("/64"),
        "{subnet}"
    );
    let net: ipnet::Ipv6Net = subnet.parse().expect("a subnet");
    let nth = |n: u128| IpAddr::from(std::net::Ipv6Addr::from(u128::from(net.network()) + n));
    assert_eq!((gateway.parse(), site.ip6), (Ok(nth(1)), nth(2)));

    let own = addresses(&site.web, "eth0");
    let line = own
        .lines()
        .find(|line| line.contains(&site.ip6.to_string()))
        .unwrap_or_else(|| panic!("{} is missing in {own}", site.ip6));
    assert!(
        line.contains("nodad") && !line.contains("tentative"),
        "{line}"
    );
    let route = site.web.ip(&["-6", "route", "show", "default"]);
    assert!(
        route.starts_with(&format!("default via {gateway} dev eth0")),
        "{route}"
    );
    for (key, value) in [("accept_ra", "0"), ("autoconf", "0"), ("disable_ipv6", "0")] {
        assert_eq!(conf(&site.web, &format!("eth0/{key}")), value, "{key}");
    }
    assert_eq!(conf(&site.lab.node, "netfw0/forwarding"), "1");
    assert_eq!(conf(&site.lab.node, "netfw0/accept_ra"), "0");
    assert_eq!(
        conf(&site.lab.node, "all/forwarding"),
        "0",
        "the global switch is not touched"
    );
    let bridge = addresses(&site.lab.node, "netfw0");
    assert!(!bridge.contains("tentative"), "{bridge}");
    assert!(bridge.contains("fe80::"), "{bridge}");
    assert!(ping(&site.web, gateway.parse().expect("an address")));
    assert!(ping(&site.lab.node, site.ip6));
    let port = text(&endpoint["host_interface"]);
    assert_eq!(addresses(&site.lab.node, port), "", "a port has none");
}

#[test]
fn a_bridge_without_a_carrier_has_its_addresses_all_the_same() {
    let lab = Lab::new();
    let _agent = Agent::start(&lab);
    let bridge = addresses(&lab.node, "netfw0");
    assert_eq!(bridge.lines().count(), 2, "{bridge}");
    assert!(!bridge.contains("tentative"), "{bridge}");
}

#[test]
fn a_container_that_has_ipv6_off_gets_it_and_reaches_itself() {
    let lab = Lab::new();
    let agent = Agent::start(&lab);
    let web = lab.container("web");
    for which in ["all", "default"] {
        web.sysctl(&format!("ipv6/conf/{which}/disable_ipv6"), "1");
    }
    attach(&agent, "web", &web, &[]);
    let endpoint = agent.json(&["endpoint", "inspect", "web"]);
    for ip in [&endpoint["gateway6"], &endpoint["ip6"]] {
        assert!(ping(&web, text(ip).parse().expect("an address")), "{ip}");
    }
}

#[test]
fn a_node_without_ipv6_is_served_by_ipv4_and_says_so() {
    let lab = Lab::new();
    lab.node.sysctl("ipv6/conf/all/disable_ipv6", "1");
    let mut agent = Agent::start(&lab);
    let status = agent.json(&["status"]);
    assert!(
        text(&status["ipv6_missing"]).contains("disable_ipv6"),
        "{status}"
    );
    assert!(status["networks"][0]["subnet6"].is_null(), "{status}");
    assert!(agent.netfw(&["status"]).contains("disable_ipv6"));
    let web = lab.container("web");
    let nginx = Nginx::start(&web, "web", &[80]);
    attach(&agent, "web", &web, &["8080:80"]);
    let endpoint = agent.json(&["endpoint", "inspect", "web"]);
    assert!(endpoint["ip6"].is_null(), "{endpoint}");
    assert_eq!(agent.netfw(&["port", "web"]), "80/tcp -> 0.0.0.0:8080\n");
    assert_eq!(curl(&lab.client, NODE, 8080, "/"), Some(nginx.page(80)));
    for words in [
        &["network", "create", "six", "--ipv6"] as &[&str],
        &["network", "create", "six", "--subnet", "fd77::/64"],
    ] {
        let said = agent.refuses(netfw_tests::agent::FAILED, words);
        assert!(said.contains("the node has no IPv6"), "{said}");
    }

    // As a store of before there was IPv6: the next start completes network and endpoint.
    agent.stop();
    lab.node.sysctl("ipv6/conf/all/disable_ipv6", "0");
    agent.start_again();
    let endpoint = agent.json(&["endpoint", "inspect", "web"]);
    let own = text(&endpoint["ip6"]).to_owned();
    let gateway = text(&endpoint["gateway6"]).parse().expect("an address");
    assert!(ping(&web, gateway), "{own}");
    let again = agent.json(&["status"])["networks"][0]["subnet6"].clone();
    agent.kill();
    agent.start_again();
    assert_eq!(again, agent.json(&["status"])["networks"][0]["subnet6"]);
    assert_eq!(endpoint, agent.json(&["endpoint", "inspect", "web"]));
}

#[test]
fn an_address_may_be_chosen_in_each_family() {
    let site = Site::new(&[]);
    let app = site.lab.container("app");
    let ip6 = site.ip6.to_string().replace("::2", "::beef");
    let ip4 = site.ip.to_string().replace(".0.2", ".7.7");
    let added = site.agent.json(&[
        "endpoint",
        "add",
        "app",
        "--netns",
        app.name(),
        "--ip",
        &ip6,
        "--ip",
        &ip4,
    ]);
    assert_eq!((text(&added["ip"]), text(&added["ip6"])), (&*ip4, &*ip6));
    // Addresses rest, and short ones come first all the same.
    let other = site.lab.container("other");
    attach(&site.agent, "other", &other, &[]);
    let endpoint = site.agent.json(&["endpoint", "inspect", "other"]);
    assert!(text(&endpoint["ip6"]).ends_with("::3"), "{endpoint}");
    site.agent.netfw(&["endpoint", "rm", "other"]);
    attach(&site.agent, "other", &other, &[]);
    let endpoint = site.agent.json(&["endpoint", "inspect", "other"]);
    assert!(text(&endpoint["ip6"]).ends_with("::4"), "{endpoint}");
}

#[test]
fn everything_of_ipv6_goes_with_its_endpoint() {
    let site = Site::new(&["8080:80"]);
    site.agent.netfw(&["endpoint", "rm", "web"]);
    assert_eq!(addresses(&site.web, "lo").lines().count(), 1);
    assert_eq!(site.web.ip(&["-6", "route", "show", "default"]), "");
    assert_eq!(site.agent.json(&["port"]), serde_json::json!([]));
}

#[test]
fn a_gateway_that_somebody_removed_is_there_again() {
    let site = Site::new(&[]);
    let endpoint = site.agent.json(&["endpoint", "inspect", "web"]);
    let gateway = text(&endpoint["gateway6"]).to_owned();
    site.lab
        .node
        .ip(&["addr", "del", &format!("{gateway}/64"), "dev", "netfw0"]);
    wait_until("the gateway to be there again", SOON, || {
        addresses(&site.lab.node, "netfw0").contains(&format!("{gateway}/64"))
    });
}

#[test]
fn publishes_of_each_family_are_for_themselves() {
    let Site { agent, lab, .. } = &Site::new(&[]);
    agent.netfw(&["publish", "web", "0.0.0.0:8080:80"]);
    agent.netfw(&["publish", "web", "[::]:8080:81"]);
    agent.netfw(&["publish", "web", "[fd00:1::1]:9000:80", "10.1.0.1:9000:80"]);
    let said = agent.refuses(netfw_tests::agent::FAILED, &["unpublish", "web", "80"]);
    assert!(said.contains("ambiguous"), "{said}");
    agent.netfw(&["unpublish", "web", "[fd00:1::1]:9000:80"]);
    assert_eq!(
        agent.netfw(&["port", "web"]),
        "80/tcp -> 0.0.0.0:8080\n81/tcp -> [::]:8080\n80/tcp -> 10.1.0.1:9000\n"
    );
    // One spec without an address made two, and takes both away.
    agent.netfw(&["publish", "web", "7000-7002:70-72/sctp"]);
    let table = agent.netfw(&["endpoint", "ls"]);
    assert!(table.contains("[::]:7000-7002->70-72/sctp"), "{table}");
    agent.netfw(&["unpublish", "web", "7000-7002:70-72/sctp"]);
    assert_eq!(agent.netfw(&["port", "web"]).lines().count(), 3);

    // A socket on [::] holds the port of both families, unless it says otherwise.
    let both = lab
        .node
        .enter(|| std::net::TcpListener::bind("[::]:8888").expect("free"));
    for publish in [
        "8888:80",
        "0.0.0.0:8888:80",
        "[::]:8888:80",
        "[::1]:8888:80",
    ] {
        let said = agent.refuses(netfw_tests::agent::FAILED, &["publish", "web", publish]);
        assert!(said.contains("holds [::]:8888/tcp"), "{publish}: {said}");
    }
    drop(both);
    let four = lab
        .node
        .enter(|| std::net::TcpListener::bind("0.0.0.0:8888").expect("free"));
    agent.refuses(netfw_tests::agent::FAILED, &["publish", "web", "8888:80"]);
    agent.netfw(&["publish", "web", "[::]:8888:80"]);
    drop(four);
}

#[test]
fn a_publish_serves_over_ipv6_and_the_client_is_seen() {
    let site = Site::new(&["8080:80", "[fd00:1::1]:8081:81", "0.0.0.0:8082:82"]);
    let Site { nginx, lab, .. } = &site;
    assert_eq!(curl(&lab.client, NODE6, 8080, "/six"), Some(nginx.page(80)));
    let line = nginx.logged("/six");
    assert!(line.starts_with(&format!("{CLIENT6} ")), "{line}");
    assert_eq!(curl(&lab.client, NODE, 8080, "/"), Some(nginx.page(80)));
    assert_eq!(curl(&lab.client, NODE6, 8081, "/"), Some(nginx.page(81)));
    assert!(curl_in_vain(&lab.client, NODE6, 8082), "of IPv4 alone");
    assert_eq!(
        curl(&lab.world, NODE6_OUTSIDE, 8080, "/"),
        Some(nginx.page(80))
    );
    assert!(curl_in_vain(&lab.world, NODE6_OUTSIDE, 8081));
    let flows = site.agent.json(&["flow", "ls"]);
    let flows = flows.as_array().expect("a list");
    assert!(
        flows
            .iter()
            .any(|flow| flow["original"]["src"] == CLIENT6.to_string()),
        "{flows:?}"
    );
    site.agent.netfw(&["unpublish", "web", "8080:80"]);
    assert!(curl_in_vain(&lab.client, NODE6, 8080));
    assert!(curl_in_vain(&lab.client, NODE, 8080));
}

#[test]
fn a_container_reaches_the_world_by_the_node_s_address() {
    let site = Site::new(&[]);
    let Site { lab, web, .. } = &site;
    let world = Nginx::start(&lab.world, "world", &[80]);
    let uplink = Capture::start(&lab.node, "up1");
    for to in [WORLD6, FAR6] {
        assert_eq!(curl(web, to, 80, "/from"), Some(world.page(80)), "{to}");
        let line = world.logged("/from");
        assert!(line.starts_with(&format!("{NODE6_OUTSIDE} ")), "{line}");
        assert!(ping(web, to), "{to}");
    }
    let _echo = UdpEcho::start(&lab.world, (WORLD6, 53));
    let socket = udp6(web);
    let answer = ask(&socket, (WORLD6, 53), "x").expect("an answer");
    assert!(
        answer.starts_with(&format!("[{NODE6_OUTSIDE}]:")),
        "{answer}"
    );
    let packets = uplink.finish(WORLD6);
    let own = site.ip6.to_string();
    let leaked: Vec<_> = packets.iter().filter(|line| line.contains(&own)).collect();
    assert!(leaked.is_empty(), "{own} was seen outside: {leaked:#?}");
}

#[test]
fn neighbours_hairpin_and_isolation() {
    let site = Site::new(&["8080:80"]);
    let Site {
        agent,
        nginx,
        lab,
        web,
        ..
    } = &site;
    let app = lab.container("app");
    attach(agent, "app", &app, &[]);
    assert_eq!(curl(&app, site.ip6, 80, "/"), Some(nginx.page(80)));
    assert!(ping(&app, site.ip6));
    for from in [&app, web] {
        for to in [NODE6, NODE6_OUTSIDE] {
            assert_eq!(curl(from, to, 8080, "/"), Some(nginx.page(80)), "{to}");
        }
    }
    // Another network.
    agent.netfw(&["network", "create", "other", "--ipv6"]);
    let far = lab.container("far");
    let words = [
        "endpoint",
        "add",
        "far",
        "--network",
        "other",
        "--netns",
        far.name(),
    ];
    agent.netfw(&words);
    assert!(ping_in_vain(&far, site.ip6));
    assert!(curl_in_vain(&far, site.ip6, 80));
    assert!(drops(agent, "isolated") > 0);
    assert_eq!(curl(&far, NODE6, 8080, "/"), Some(nginx.page(80)));
}

#[test]
fn the_outside_cannot_reach_a_container_by_its_own_ipv6_address() {
    let site = Site::new(&["8080:80"]);
    let Site { agent, lab, .. } = &site;
    lab.client.ip(&[
        "-6",
        "route",
        "add",
        &site.ip6.to_string(),
        "via",
        &NODE6.to_string(),
    ]);
    assert!(curl_in_vain(&lab.client, site.ip6, 80));
    assert!(ping_in_vain(&lab.client, site.ip6));
    assert!(drops(agent, "direct-access") >= 2);
}

#[test]
fn flows_go_with_their_publish_and_with_an_address_of_the_node() {
    let site = Site::new(&["5300:53/udp"]);
    let Site {
        agent, lab, web, ..
    } = &site;
    let _echo = UdpEcho::start(web, (site.ip6, 53));
    let client = udp6(&lab.client);
    assert!(ask(&client, (NODE6, 5300), "x").is_some());
    agent.netfw(&["unpublish", "web", "5300:53/udp"]);
    assert_eq!(agent.json(&["flow", "ls"]), serde_json::json!([]));
    assert!(ask_in_vain(&client, (NODE6, 5300), "x"));

    let _world = UdpEcho::start(&lab.world, (WORLD6, 53));
    let socket = udp6(web);
    let second = "fd00:2::99";
    lab.node.ip(&[
        "addr",
        "add",
        "fd00:2::99/64",
        "dev",
        "up1",
        "nodad",
        "preferred_lft",
        "0",
    ]);
    assert!(ask(&socket, (WORLD6, 53), "x").is_some());
    assert_eq!(
        agent.json(&["flow", "ls"]).as_array().map(Vec::len),
        Some(1)
    );
    lab.node
        .ip(&["addr", "del", &format!("{NODE6_OUTSIDE}/64"), "dev", "up1"]);
    wait_until("the flow of the lost address to go", SOON, || {
        agent.json(&["flow", "ls"]) == serde_json::json!([])
    });
    // The next packet starts another one.
    lab.node.ip(&[
        "addr",
        "change",
        "fd00:2::99/64",
        "dev",
        "up1",
        "preferred_lft",
        "forever",
    ]);
    wait_until("an answer by the other address", SOON, || {
        ask(&socket, (WORLD6, 53), "x").is_some_and(|answer| answer.contains(second))
    });
}
