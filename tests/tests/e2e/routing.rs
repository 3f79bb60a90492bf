//! The node routes what it translates as it routes everything: by its tables and rules, and as
//! these are now.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use netfw_tests::{
    Agent, Lab, Namespace,
    programs::{Capture, Nginx, UdpEcho, curl, curl_in_vain, ping, ping_in_vain},
    sockets::{connection, dont_fragment, exchange, listen, mark, udp_to},
    topology::{
        CLIENT, CLIENT6, FAR, FAR6, NODE, NODE_OUTSIDE, NODE6, NODE6_OUTSIDE, WORLD, WORLD6,
        default_route, forward, on_link, wire,
    },
    wait_until,
};

use crate::setting::{SOON, Site, on_each_hook, text};

/// 4 MiB.
const BLOCKS: u32 = 64;

/// Client and world both have the far addresses; the node's routes decide who is asked.
fn two_ways(site: &Site) {
    for far in [FAR, FAR6] {
        let far = far.to_string();
        site.lab.client.ip(&["addr", "add", &far, "dev", "lo"]);
    }
}

#[test]
fn rules_choose_the_uplink_and_with_it_the_address() {
    let site = Site::new(&[]);
    two_ways(&site);
    let Site { lab, web, .. } = &site;
    let client = Nginx::start(&lab.client, "client", &[80]);
    let world = Nginx::start(&lab.world, "world", &[80]);
    let network = site.agent.json(&["status"])["networks"][0].clone();
    for (family, subnet, far, gateway, node) in [
        ("-4", "subnet", FAR, CLIENT, NODE),
        ("-6", "subnet6", FAR6, CLIENT6, NODE6),
    ] {
        let ip = |words: &[&str]| lab.node.ip(&[&[family], words].concat());
        let gateway = gateway.to_string();
        ip(&["route", "add", "default", "via", &gateway, "table", "100"]);
        let far_text = far.to_string();
        for rule in [
            &["from", text(&network[subnet])] as &[&str],
            &["iif", text(&network["bridge"])],
            &["to", &far_text],
            &["ipproto", "tcp", "dport", "80"],
        ] {
            assert_eq!(curl(web, far, 80, "/"), Some(world.page(80)), "{rule:?}");
            ip(&[&["rule", "add"], rule, &["lookup", "100"]].concat());
            wait_until(&format!("{rule:?} to be followed"), SOON, || {
                curl(web, far, 80, "/ruled") == Some(client.page(80))
            });
            let line = client.logged("/ruled");
            assert!(line.starts_with(&format!("{node} ")), "{rule:?}: {line}");
            ip(&[&["rule", "del"], rule, &["lookup", "100"]].concat());
            wait_until(&format!("the end of {rule:?}"), SOON, || {
                curl(web, far, 80, "/") == Some(world.page(80))
            });
        }
    }
}

#[test]
fn without_masquerade_the_world_sees_containers_and_answers_them() {
    let lab = Lab::new();
    let agent = Agent::start(&lab);
    let subnets = ["--subnet", "10.6.0.0/24", "--subnet", "fd06::/64"];
    let create = ["network", "create", "own", "--no-masquerade"];
    agent.netfw(&[&create[..], &subnets].concat());
    let app = lab.container("app");
    let add = ["endpoint", "add", "app", "--network", "own", "--netns"];
    let added = agent.json(&[&add[..], &[app.name()]].concat());
    lab.route_through_node();
    let world = Nginx::start(&lab.world, "world", &[80]);
    let _app = Nginx::start(&app, "app", &[80]);
    for (server, key) in [(WORLD, "ip"), (WORLD6, "ip6")] {
        let own = text(&added[key]);
        let path = format!("/{key}");
        assert!(curl(&app, server, 80, &path).is_some(), "{own}");
        let line = world.logged(&path);
        assert!(line.starts_with(&format!("{own} ")), "{line}");
        assert!(ping(&app, server));
        // An answer in pieces.
        let large = ["ping", "-n", "-c1", "-W3", "-s4000", &server.to_string()];
        assert!(app.succeeds(&large), "{own}");
        // Nobody gets in who was not asked.
        let container: IpAddr = own.parse().expect("an address");
        assert!(curl_in_vain(&lab.world, container, 80), "{own}");
        assert!(ping_in_vain(&lab.world, container), "{own}");
    }
}

#[test]
fn a_flow_keeps_to_one_of_several_paths() {
    let site = Site::new(&[]);
    two_ways(&site);
    let Site { lab, web, .. } = &site;
    // By addresses and ports, so that flows to one host take both.
    lab.node.sysctl("ipv4/fib_multipath_hash_policy", "1");
    lab.node.sysctl("ipv6/fib_multipath_hash_policy", "1");
    for (far, ways) in [
        (FAR, [(CLIENT, NODE), (WORLD, NODE_OUTSIDE)]),
        (FAR6, [(CLIENT6, NODE6), (WORLD6, NODE6_OUTSIDE)]),
    ] {
        let far_text = far.to_string();
        let mut words = vec!["route", "add", &far_text];
        let gateways = ways.map(|(gateway, _)| gateway.to_string());
        for gateway in &gateways {
            words.extend(["nexthop", "via", gateway]);
        }
        lab.node.ip(&words);
        let _echoes = [&lab.client, &lab.world].map(|end| UdpEcho::start(end, (far, 53)));
        let sockets = [(); 16].map(|()| udp_to(web, 0, (far, 53)));
        let ask = |socket: &UdpSocket| {
            socket.send(b"x").expect("sent");
            let mut answer = [0; 128];
            let length = socket.recv(&mut answer).expect("an answer");
            String::from_utf8_lossy(&answer[..length]).into_owned()
        };
        let first = sockets.each_ref().map(ask);
        for (_, source) in ways {
            let took = first.iter().filter(|seen| asked_from(seen) == source);
            assert_ne!(took.count(), 0, "nobody went by {source}: {first:?}");
        }
        // Routes are asked for anew each second.
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end {
            assert_eq!(sockets.each_ref().map(ask), first);
        }
    }
}

/// Whom a [`UdpEcho`] saw.
#[track_caller]
fn asked_from(answer: &str) -> IpAddr {
    let peer = answer.split(' ').next().and_then(|peer| peer.parse().ok());
    let peer: SocketAddr = peer.unwrap_or_else(|| panic!("{answer} names nobody"));
    peer.ip()
}

/// A host that both the client and the world lead to. It answers by way of the world.
fn host_behind_both(site: &Site) -> Namespace {
    let host = Namespace::new("host");
    for (link, router) in [(3, &site.lab.world), (4, &site.lab.client)] {
        forward(router);
        let end = (
            &host,
            if link == 3 { "eth0" } else { "eth1" },
            on_link(link, 2),
        );
        wire((router, "eth1", on_link(link, 1)), end);
    }
    default_route(&host, on_link(3, 1));
    for (network, gateway) in ["10.3.0.0/24", "fd00:3::/64"].iter().zip(on_link(4, 2)) {
        let gateway = gateway.to_string();
        let words = ["route", "add", network, "via", &gateway];
        site.lab.client.ip(&words);
    }
    host
}

/// Packets that `device` has sent.
fn sent(namespace: &Namespace, device: &str) -> u64 {
    let shown = namespace.ip(&["-j", "-s", "link", "show", device]);
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    shown[0]["stats64"]["tx"]["packets"]
        .as_u64()
        .expect("a number")
}

#[test]
fn a_transfer_goes_on_by_a_new_route() {
    on_each_hook(&["9000:9000"], |site| new_route(&site));
}

fn new_route(site: &Site) {
    let Site { lab, web, .. } = site;
    let host = host_behind_both(site);
    let (inside, outside) = (listen(web, 9000), listen(&host, 9000));
    for (there, node, gateway) in [
        (on_link(3, 2)[0], NODE_OUTSIDE, CLIENT),
        (on_link(3, 2)[1], NODE6_OUTSIDE, CLIENT6),
    ] {
        let connections = [
            connection(&inside, &host, (node, 9000)),
            connection(&outside, web, (there, 9000)),
        ];
        for connection in &connections {
            exchange(connection, BLOCKS);
        }
        let before = sent(&lab.client, "eth1");
        let (there, gateway) = (there.to_string(), gateway.to_string());
        lab.node.ip(&["route", "add", &there, "via", &gateway]);
        wait_until("both flows to take the new route", SOON, || {
            for connection in &connections {
                exchange(connection, 1);
            }
            let before = sent(&lab.world, "eth1");
            for connection in &connections {
                exchange(connection, 4);
            }
            sent(&lab.world, "eth1") == before
        });
        assert!(sent(&lab.client, "eth1") > before);
        lab.node.ip(&["route", "del", &there]);
        wait_until("both flows to take the old route", SOON, || {
            let before = sent(&lab.client, "eth1");
            for connection in &connections {
                exchange(connection, 4);
            }
            sent(&lab.client, "eth1") == before
        });
    }
}

/// What stands in the network headers of packets to `port`, but for the time to live, and that.
#[track_caller]
fn headers(lines: &[String], port: u16) -> Vec<(String, u8)> {
    let to = format!(".{port}: ");
    let mut headers = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        if !line.contains(&to) {
            continue;
        }
        // tcpdump tells of IPv4 on a line of its own.
        let told = if line.contains("IP6 (") {
            line
        } else {
            &lines[index - 1]
        };
        let (_, told) = told.split_once('(').expect("a header");
        let (ttl, rest): (Vec<&str>, Vec<&str>) = told
            .split(", ")
            .take(5)
            .partition(|field| field.starts_with("ttl ") || field.starts_with("hlim "));
        let ttl = ttl[0].split(' ').nth(1).and_then(|ttl| ttl.parse().ok());
        let rest = rest
            .into_iter()
            .filter(|field| !field.starts_with("next-header"));
        headers.push((rest.collect::<Vec<_>>().join(", "), ttl.expect("a number")));
    }
    headers
}

#[test]
fn headers_survive_but_for_a_hop() {
    on_each_hook(&["5300:5300/udp"], |site| headers_survive(&site));
}

fn headers_survive(site: &Site) {
    const VERBOSE: &[&str] = &["-v"];
    /// Expedited forwarding, ECT(1).
    const CLASS: u8 = 0xb9;
    let Site { lab, web, .. } = site;
    for (inside, client, node, world, name) in [
        (site.ip, CLIENT, NODE, WORLD, "tos"),
        (site.ip6, CLIENT6, NODE6, WORLD6, "class"),
    ] {
        let _echoes = [(web, inside), (&lab.world, world)]
            .map(|(end, address)| UdpEcho::start(end, (address, 5300)));
        for (from, to, there) in [
            (web, (world, 5300), (&lab.world, "eth0", node_of(world))),
            (&lab.client, (node, 5300), (web, "eth0", client)),
        ] {
            let sender = Capture::start_with(from, "eth0", VERBOSE);
            let receiver = Capture::start_with(there.0, there.1, VERBOSE);
            for fragment in [false, true] {
                let socket = udp_to(from, 0, to);
                mark(&socket, CLASS);
                if !fragment {
                    dont_fragment(&socket);
                }
                for _ in 0..3 {
                    assert!(ask_within(SOON, &socket).is_some());
                }
            }
            let sent = headers(&sender.finish(to.0), 5300);
            let received = headers(&receiver.finish(there.2), 5300);
            assert_eq!(sent.len(), 6, "{sent:?}");
            for (before, after) in sent.iter().zip(&received) {
                assert_eq!(before.0, after.0);
                assert_eq!(before.1, after.1 + 1, "a hop: {before:?} {after:?}");
                assert!(
                    before.0.contains(&format!("{name} 0x{CLASS:x}")),
                    "{before:?}"
                );
            }
            assert_eq!(sent.len(), received.len());
        }
    }
    // Options: the route is recorded by those who have one.
    let told = web.run(&["ping", "-n", "-c1", "-W5", "-R", &WORLD.to_string()]);
    assert!(told.contains("RR: "), "{told}");
}

/// The node as the world or the client know it.
fn node_of(neighbour: IpAddr) -> IpAddr {
    match neighbour {
        WORLD => NODE_OUTSIDE,
        _ => NODE6_OUTSIDE,
    }
}

/// Asks a [`UdpEcho`] by a connected socket, and waits as long for its answer.
fn ask_within(time: Duration, socket: &UdpSocket) -> Option<String> {
    socket.set_read_timeout(Some(time)).expect("not 0");
    socket.send(b"x").ok()?;
    let mut answer = [0; 128];
    let length = socket.recv(&mut answer).ok()?;
    Some(String::from_utf8_lossy(&answer[..length]).into_owned())
}

#[test]
fn a_neighbour_with_another_mac_is_found_again() {
    let site = Site::new(&[]);
    let Site { lab, web, .. } = &site;
    // The kernel doubts a neighbour that it heard nothing of for a second, and asks after another.
    for family in ["ipv4", "ipv6"] {
        let neigh = format!("{family}/neigh/up1");
        lab.node
            .sysctl(&format!("{neigh}/base_reachable_time_ms"), "1000");
        lab.node
            .sysctl(&format!("{neigh}/delay_first_probe_time"), "1");
    }
    let _echoes = [WORLD, WORLD6].map(|world| UdpEcho::start(&lab.world, (world, 53)));
    let sockets = [WORLD, WORLD6].map(|world| udp_to(web, 0, (world, 53)));
    for (n, says_so) in [(1, "1"), (2, "0")] {
        for socket in &sockets {
            assert!(ask_within(SOON, socket).is_some());
        }
        lab.world.sysctl("ipv4/conf/eth0/arp_notify", says_so);
        lab.world.sysctl("ipv6/conf/eth0/ndisc_notify", says_so);
        let mac = format!("02:00:00:00:07:0{n}");
        lab.world.ip(&["link", "set", "eth0", "address", &mac]);
        for socket in &sockets {
            // The kernel's own patience is some 5 s.
            wait_until("the neighbour to answer again", 3 * SOON, || {
                ask_within(Duration::from_millis(200), socket).is_some()
            });
        }
    }
}

#[test]
fn nothing_more_comes_from_an_address_that_vanished() {
    on_each_hook(&[], |site| vanished(&site));
}

fn vanished(site: &Site) {
    let Site { lab, web, .. } = site;
    lab.node.sysctl("ipv4/conf/up1/promote_secondaries", "1");
    for (old, new, world) in [
        (NODE_OUTSIDE, on_link(2, 9)[0], WORLD),
        (NODE6_OUTSIDE, on_link(2, 9)[1], WORLD6),
    ] {
        let prefix = if old.is_ipv4() { "24" } else { "64" };
        let [old_text, new_text] = [old, new].map(|ip| format!("{ip}/{prefix}"));
        // Both ways and both tables: one flow that is assured, one that is new.
        let _echo = UdpEcho::start(&lab.world, (world, 53));
        let [assured, fresh] = [(); 2].map(|()| udp_to(web, 0, (world, 53)));
        for socket in [&assured, &assured, &fresh] {
            let seen = ask_within(SOON, socket).expect("an answer");
            assert_eq!(asked_from(&seen), old);
        }
        let listener = listen(&lab.world, 9000);
        let transfer = connection(&listener, web, (world, 9000));
        exchange(&transfer, 1);
        lab.node.ip(&["addr", "add", &new_text, "dev", "up1"]);
        lab.node.ip(&["addr", "del", &old_text, "dev", "up1"]);
        wait_until("the flows of the old address to go", SOON, || {
            let flows = site.agent.json(&["flow", "ls"]);
            let flows = flows.as_array().expect("a list");
            !flows
                .iter()
                .any(|flow| flow["reply"]["dst"] == old.to_string())
        });
        let uplink = Capture::start(&lab.node, "up1");
        let _ = std::io::Write::write(&mut &transfer[0], b"is anybody there?");
        for socket in [&assured, &fresh] {
            let seen = ask_within(SOON, socket).expect("an answer to the new address");
            assert_eq!(asked_from(&seen), new);
        }
        let packets = uplink.finish(world);
        let old = format!(" {old}.");
        let late: Vec<_> = packets.iter().filter(|line| line.contains(&old)).collect();
        assert!(late.is_empty(), "{late:#?}");
    }
}
