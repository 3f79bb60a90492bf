//! Publishing: clients beyond an uplink reach a container by the node's address.

use netfw_tests::{
    agent::FAILED,
    programs::{
        Capture, Nginx, UdpEcho, ask, ask_in_vain, curl, curl_in_vain, ping, ping_in_vain,
        udp_socket,
    },
    topology::{CLIENT, NODE, NODE_OUTSIDE, WORLD},
};

use serde_json::Value;

use crate::setting::{Site, drops, text};

#[test]
fn a_published_port_serves_and_leaves_no_trace_but_the_client_s_address() {
    let site = Site::new(&["8080:80"]);
    let uplink = Capture::start(&site.lab.node, "up0");

    for n in 0..20 {
        let path = format!("/hello-{n}");
        let page = curl(&site.lab.client, NODE, 8080, &path);
        assert_eq!(page, Some(site.nginx.page(80)));
        let line = site.nginx.logged(&path);
        assert_eq!(line.split(' ').next(), Some(CLIENT.to_string().as_str()));
    }

    // What the container could leak: errors, a connection nobody listens for, its own requests.
    curl_in_vain(&site.lab.client, NODE, 8081);
    assert!(ping(&site.web, CLIENT));
    curl_in_vain(&site.web, CLIENT, 8080);
    let packets = uplink.finish(CLIENT);
    let seen = |what: &str| packets.iter().filter(|line| line.contains(what)).count();
    assert!(seen("10.1.0.2.") > 100, "tcpdump saw the requests");
    let own = site.ip.to_string();
    let leaked: Vec<_> = packets.iter().filter(|line| line.contains(&own)).collect();
    assert!(leaked.is_empty(), "{own} was seen outside: {leaked:#?}");

    let node = &site.lab.node;
    for words in [
        &["iptables-save"] as &[&str],
        &["ip6tables-save"],
        &["nft", "list", "ruleset"],
        &["conntrack", "-L"],
    ] {
        let output = node.run(words);
        assert_eq!(output.trim(), "", "{words:?} in the node");
    }
    let forwarding = node.run(&["cat", "/proc/sys/net/ipv4/ip_forward"]);
    assert_eq!(forwarding.trim(), "0", "the global switch is not touched");
}

#[test]
fn publishing_and_withdrawing_take_effect_at_once() {
    let Site {
        agent, nginx, lab, ..
    } = &Site::new(&[]);
    assert!(curl_in_vain(&lab.client, NODE, 8080), "nothing yet");
    agent.netfw(&["publish", "web", "8080:80"]);
    assert_eq!(curl(&lab.client, NODE, 8080, "/"), Some(nginx.page(80)));
    agent.netfw(&["publish", "web", "8081:81", "8082:82"]);
    for (host, inside) in [(8080, 80), (8081, 81), (8082, 82)] {
        assert_eq!(curl(&lab.client, NODE, host, "/"), Some(nginx.page(inside)));
    }
    agent.netfw(&["unpublish", "web", "8081:81"]);
    assert!(curl_in_vain(&lab.client, NODE, 8081), "withdrawn");
    assert_eq!(curl(&lab.client, NODE, 8082, "/"), Some(nginx.page(82)));
    // Free again, for another container port too.
    agent.netfw(&["publish", "web", "8081:80"]);
    assert_eq!(curl(&lab.client, NODE, 8081, "/"), Some(nginx.page(80)));
    agent.netfw(&["endpoint", "rm", "web"]);
    for port in [8080, 8081, 8082] {
        assert!(curl_in_vain(&lab.client, NODE, port), "{port} went along");
    }
}

#[test]
fn any_local_address_serves_and_another_uplink_too() {
    let Site { nginx, lab, .. } = &Site::new(&["8080:80"]);
    assert_eq!(
        curl(&lab.world, NODE_OUTSIDE, 8080, "/world"),
        Some(nginx.page(80))
    );
    let line = nginx.logged("/world");
    assert!(line.starts_with(&format!("{WORLD} ")), "{line}");
    lab.route_through_node();
    assert_eq!(
        curl(&lab.client, NODE_OUTSIDE, 8080, "/"),
        Some(nginx.page(80)),
        "an address of another interface is the node's as well"
    );
}

#[test]
fn a_host_ip_serves_there_and_nowhere_else() {
    let Site {
        agent, nginx, lab, ..
    } = &Site::new(&["10.1.0.1:8080:80"]);
    lab.route_through_node();
    assert_eq!(curl(&lab.client, NODE, 8080, "/"), Some(nginx.page(80)));
    assert!(curl_in_vain(&lab.world, NODE_OUTSIDE, 8080));
    assert!(curl_in_vain(&lab.client, NODE_OUTSIDE, 8080));
    // The same port of another address is another publish.
    agent.netfw(&["publish", "web", "10.2.0.1:8080:81"]);
    assert_eq!(curl(&lab.client, NODE, 8080, "/"), Some(nginx.page(80)));
    assert_eq!(
        curl(&lab.world, NODE_OUTSIDE, 8080, "/"),
        Some(nginx.page(81))
    );
}

#[test]
fn a_port_of_the_loopback_address_is_not_served_outside() {
    let Site { lab, agent, .. } = &Site::new(&["127.0.0.1:8080:80"]);
    assert!(curl_in_vain(&lab.client, NODE, 8080));
    // A neighbour can address 127.0.0.1 to us if it has a mind to.
    lab.client.sysctl("ipv4/conf/all/route_localnet", "1");
    lab.client.ip(&["addr", "del", "127.0.0.1/8", "dev", "lo"]);
    lab.client
        .ip(&["route", "add", "127.0.0.0/8", "via", &NODE.to_string()]);
    assert!(curl_in_vain(
        &lab.client,
        "127.0.0.1".parse().expect("an address"),
        8080
    ));
    assert_eq!(agent.json(&["flow", "ls"]), serde_json::json!([]));
}

#[test]
fn a_range_leads_port_by_port() {
    let Site {
        agent, nginx, lab, ..
    } = &Site::new(&["8080-8082:80-82"]);
    for n in 0..3 {
        assert_eq!(
            curl(&lab.client, NODE, 8080 + n, "/"),
            Some(nginx.page(80 + n))
        );
    }
    assert!(curl_in_vain(&lab.client, NODE, 8083));
    agent.netfw(&["unpublish", "web", "8080-8082:80-82"]);
    for n in 0..3 {
        assert!(curl_in_vain(&lab.client, NODE, 8080 + n));
    }
}

#[test]
fn one_container_port_may_be_published_twice() {
    let Site { lab, web, ip, .. } = &Site::new(&["5300:53/udp", "5301:53/udp"]);
    let _echo = UdpEcho::start(web, (*ip, 53));
    // One client port towards both: two flows with one reply tuple, were it not for netfw.
    let socket = udp_socket(&lab.client);
    for n in 0..10 {
        for port in [5300, 5301] {
            // `ask` checks that the answer comes from where the question went.
            let answer = ask(&socket, (NODE, port), "x");
            let answer = answer.unwrap_or_else(|| panic!("{port} did not answer, round {n}"));
            assert!(answer.starts_with(&format!("{CLIENT}:")), "{answer}");
        }
    }
}

#[test]
fn udp_is_served_and_its_client_seen() {
    let Site {
        agent,
        lab,
        web,
        ip,
        ..
    } = &Site::new(&["5300:53/udp"]);
    let _echo = UdpEcho::start(web, (*ip, 53));
    let socket = udp_socket(&lab.client);
    let port = socket.local_addr().expect("bound").port();
    for n in 0..100 {
        let message = format!("question {n}");
        assert_eq!(
            ask(&socket, (NODE, 5300), &message),
            Some(format!("{CLIENT}:{port} {message}"))
        );
    }
    // Two containers' worth of clients at once keep apart.
    let another = udp_socket(&lab.client);
    let port = another.local_addr().expect("bound").port();
    assert_eq!(
        ask(&another, (NODE, 5300), "x"),
        Some(format!("{CLIENT}:{port} x"))
    );
    assert!(ask_in_vain(&socket, (NODE, 53), "x"), "53 is not published");
    let flows = agent.json(&["flow", "ls"]);
    let flows = flows.as_array().expect("a list");
    assert_eq!(flows.len(), 2, "{flows:?}");
    assert!(flows.iter().all(|flow| flow["protocol"] == "udp"));

    // Withdrawn, the flows that it made go along.
    agent.netfw(&["unpublish", "web", "5300:53/udp"]);
    assert!(ask_in_vain(&socket, (NODE, 5300), "x"));
    assert_eq!(agent.json(&["flow", "ls"]), serde_json::json!([]));
}

#[test]
fn a_port_chosen_by_netfw_is_told_and_serves() {
    let Site {
        agent, nginx, lab, ..
    } = &Site::new(&["80", "81"]);
    let ports = agent.json(&["port", "web"]);
    let ports = ports.as_array().expect("a list");
    assert_eq!(ports.len(), 4, "one of each family");
    for (port, inside) in ports.iter().step_by(2).zip([80, 81]) {
        let shown = agent.netfw(&["port", "web"]);
        let line = shown
            .lines()
            .find(|line| line.starts_with(&format!("{inside}/tcp -> ")))
            .unwrap_or_else(|| panic!("{inside} is missing in {shown}"));
        let host: u16 = line
            .rsplit(':')
            .next()
            .and_then(|port| port.parse().ok())
            .unwrap_or_else(|| panic!("no port in {line}"));
        assert_eq!(text(&port["protocol"]), "tcp");
        assert_eq!(curl(&lab.client, NODE, host, "/"), Some(nginx.page(inside)));
    }
}

#[test]
fn counters_of_a_publish_tell_what_it_carried() {
    let Site { agent, lab, .. } = &Site::new(&["0.0.0.0:8080:80", "0.0.0.0:8081:81"]);
    for _ in 0..3 {
        curl(&lab.client, NODE, 8080, "/").expect("served");
    }
    let stats = agent.json(&["stats"]);
    let publishes = stats["endpoints"][0]["publishes"].clone();
    let counter = |n: usize, what: &str| publishes[n]["counter"][what].as_u64().expect("a number");
    // SYN, ACK, request, FIN, ACK at the least; as many the other way but one.
    assert!(counter(0, "rx_packets") >= 12, "{publishes}");
    assert!(counter(0, "tx_packets") >= 9, "{publishes}");
    assert!(counter(0, "rx_bytes") >= 12 * 40, "{publishes}");
    assert_eq!(counter(1, "rx_packets"), 0, "{publishes}");
}

#[test]
fn the_outside_cannot_reach_a_container_by_its_own_address() {
    let Site {
        agent,
        nginx,
        lab,
        ip,
        ..
    } = &Site::new(&["8080:80"]);
    lab.client
        .ip(&["route", "add", &ip.to_string(), "via", &NODE.to_string()]);
    assert!(curl_in_vain(&lab.client, *ip, 80));
    assert!(ping_in_vain(&lab.client, *ip));
    assert!(drops(agent, "direct-access") >= 2);
    assert_eq!(curl(&lab.client, NODE, 8080, "/"), Some(nginx.page(80)));
}

#[test]
fn a_free_port_is_chosen_as_docker_chooses_it() {
    let Site { agent, lab, .. } = &Site::new(&[]);
    let port = |published: &Value| published["host_ports"]["first"].as_u64().expect("a port");
    let publishes = |endpoint: &Value| endpoint["publishes"].as_array().expect("a list").clone();
    // -P with --expose, and a host port of 0.
    let api = lab.container("api");
    let _nginx = Nginx::start(&api, "api", &[80, 81]);
    let words = [
        "endpoint",
        "add",
        "api",
        "--netns",
        api.name(),
        "-P",
        "--expose",
        "80",
        "--expose",
        "53/udp",
        "-p",
        "0:81",
    ];
    let added = agent.json(&words);
    assert_eq!(added["exposed"].as_array().map(Vec::len), Some(2));
    let all = publishes(&added);
    let of = |protocol: &str, container: u64| {
        let one = all.iter().find(|p| {
            p["protocol"] == protocol && p["container_ports"]["first"].as_u64() == Some(container)
        });
        port(one.unwrap_or_else(|| panic!("no {container}/{protocol} in {all:?}")))
    };
    for (protocol, container) in [("tcp", 80), ("tcp", 81), ("udp", 53)] {
        assert!(of(protocol, container) > 60999, "above the ephemeral ports");
    }
    for container in [80, 81] {
        let host = u16::try_from(of("tcp", container)).expect("a port");
        assert!(curl(&lab.client, NODE, host, "/").is_some(), "{host}");
    }
    // What is exposed is not published without -P.
    let quiet = lab.container("quiet");
    let words = [
        "endpoint",
        "add",
        "quiet",
        "--netns",
        quiet.name(),
        "--expose",
        "80",
    ];
    assert!(publishes(&agent.json(&words)).is_empty());
    // One of several.
    for want in [8000, 8001] {
        let published = agent.json(&["publish", "quiet", "127.0.0.1:8000-8001:80"]);
        let last = publishes(&published).last().cloned().expect("a publish");
        assert_eq!(port(&last), want);
    }
    let said = agent.refuses(FAILED, &["publish", "quiet", "127.0.0.1:8000-8001:80"]);
    assert!(
        said.contains("none of the host ports 8000-8001 is free"),
        "{said}"
    );
    agent.netfw(&["unpublish", "quiet", "127.0.0.1:8001:80"]);
    agent.netfw(&["publish", "quiet", "127.0.0.1:8000-8001:80"]);
}
