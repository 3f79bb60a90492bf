//! Masquerade: containers reach the outside, which sees the node.

use std::net::IpAddr;

use netfw_tests::{
    Namespace,
    programs::{Capture, Nginx, UdpEcho, ask, ask_in_vain, ask_within, curl, ping, udp_socket},
    topology::{CLIENT, FAR, NODE, NODE_OUTSIDE, WORLD},
    wait_until,
};

use crate::setting::{SOON, Site, attach, total};

#[test]
fn a_container_reaches_the_outside_which_sees_the_node() {
    let Site {
        agent,
        lab,
        web,
        ip,
        ..
    } = &Site::new(&[]);
    let world = Nginx::start(&lab.world, "world", &[80]);
    let _echo = UdpEcho::start(&lab.world, (WORLD, 53));
    let uplink = Capture::start(&lab.node, "up1");

    // By a neighbour's address, and by a gateway.
    for (n, to) in [WORLD, FAR].into_iter().enumerate() {
        let path = format!("/{n}");
        assert_eq!(curl(web, to, 80, &path), Some(world.page(80)), "{to}");
        let line = world.logged(&path);
        assert!(line.starts_with(&format!("{NODE_OUTSIDE} ")), "{line}");
        assert!(ping(web, to), "{to}");
    }
    let socket = udp_socket(web);
    for _ in 0..10 {
        let answer = ask(&socket, (WORLD, 53), "who am I").expect("answered");
        assert!(answer.starts_with(&format!("{NODE_OUTSIDE}:")), "{answer}");
    }
    // Refused outside, the error comes back in.
    let refused = web
        .command("curl")
        .args(["-s", "http://10.2.0.2:9/"])
        .status();
    assert_eq!(
        refused.expect("curl runs").code(),
        Some(7),
        "refused at once"
    );

    let packets = uplink.finish(WORLD);
    let own = ip.to_string();
    let leaked: Vec<_> = packets.iter().filter(|line| line.contains(&own)).collect();
    assert!(leaked.is_empty(), "{own} was seen outside: {leaked:#?}");
    assert!(packets.iter().any(|line| line.contains("10.2.0.1.")));

    let counted = |what| total(agent, "web", what);
    assert!(counted("tx_packets") >= 24, "{}", agent.netfw(&["stats"]));
    assert!(counted("rx_packets") >= 20, "{}", agent.netfw(&["stats"]));
    assert_eq!(lab.node.run(&["conntrack", "-L"]).trim(), "");
}

#[test]
fn another_uplink_gives_its_own_address() {
    let Site { lab, web, .. } = &Site::new(&[]);
    let client = Nginx::start(&lab.client, "client", &[80]);
    assert_eq!(curl(web, CLIENT, 80, "/"), Some(client.page(80)));
    assert!(client.logged("/").starts_with(&format!("{NODE} ")));
}

#[test]
fn two_containers_with_one_source_port_keep_apart() {
    let Site {
        agent, lab, web, ..
    } = &Site::new(&[]);
    let second = lab.container("second");
    attach(agent, "second", &second, &[]);
    let _echo = UdpEcho::start(&lab.world, (WORLD, 53));
    let bind = |namespace: &Namespace| {
        namespace
            .enter(|| std::net::UdpSocket::bind("0.0.0.0:5000").expect("the port is free in each"))
    };
    let (one, two) = (bind(web), bind(&second));
    let mut peers = Vec::new();
    for n in 0..50 {
        for (socket, who) in [(&one, "one"), (&two, "two")] {
            let message = format!("{who} {n}");
            let answer = ask(socket, (WORLD, 53), &message).expect("answered");
            let (peer, echoed) = answer.split_once(' ').expect("two words");
            assert_eq!(echoed, message);
            peers.push(peer.to_owned());
        }
    }
    peers.sort();
    peers.dedup();
    assert_eq!(peers.len(), 2, "one port each, all along: {peers:?}");
    let flows = agent.json(&["flow", "ls", "--endpoint", "second"]);
    assert_eq!(flows.as_array().map(Vec::len), Some(1), "{flows}");
    drop(agent.json(&["endpoint", "rm", "second"]));
}

#[test]
fn flows_are_listed_and_can_be_forgotten() {
    let Site {
        agent,
        lab,
        web,
        ip,
        ..
    } = &Site::new(&[]);
    let _echo = UdpEcho::start(&lab.world, (WORLD, 53));
    let socket = udp_socket(web);
    let port = socket.local_addr().expect("bound").port();
    ask(&socket, (WORLD, 53), "x").expect("answered");
    assert_eq!(agent.json(&["flow", "ls"])[0]["state"], "replied");
    ask(&socket, (WORLD, 53), "y").expect("answered");
    let flows = agent.json(&["flow", "ls"]);
    let flow = &flows[0];
    assert_eq!(flow["protocol"], "udp");
    assert_eq!(flow["origin"], "masquerade");
    assert_eq!(flow["endpoint"], "web");
    assert_eq!(flow["assured"], true, "the talk goes on: {flow}");
    assert_eq!(flow["original"]["src"], ip.to_string());
    assert_eq!(flow["original"]["sport"], port);
    assert_eq!(flow["original"]["dst"], WORLD.to_string());
    assert_eq!(flow["reply"]["src"], WORLD.to_string());
    assert_eq!(flow["reply"]["dst"], NODE_OUTSIDE.to_string());
    let table = agent.netfw(&["flow", "ls"]);
    assert!(
        table.contains(&format!("{ip}:{port} -> {WORLD}:53")),
        "{table}"
    );

    assert_eq!(
        agent
            .json(&["flow", "ls", "--endpoint", "web"])
            .as_array()
            .map(Vec::len),
        Some(1)
    );
    assert_eq!(
        agent.json(&["flow", "flush"]),
        serde_json::json!({"flows": 1})
    );
    assert_eq!(agent.json(&["flow", "ls"]), serde_json::json!([]));
    ask(&socket, (WORLD, 53), "x").expect("a new flow");
    assert_eq!(
        agent.json(&["flow", "ls"]).as_array().map(Vec::len),
        Some(1)
    );
}

#[test]
fn nobody_outside_gets_in_by_a_masqueraded_port() {
    let Site { lab, web, .. } = &Site::new(&[]);
    let _echo = UdpEcho::start(&lab.world, (WORLD, 53));
    let socket = udp_socket(web);
    let answer = ask(&socket, (WORLD, 53), "x").expect("answered");
    let outside: std::net::SocketAddr = answer
        .split(' ')
        .next()
        .and_then(|peer| peer.parse().ok())
        .expect("a peer");
    // Another port of the same server: port-restricted filtering, as Docker's.
    let stranger = udp_socket(&lab.world);
    stranger.send_to(b"hello", outside).expect("sent");
    let mut buffer = [0; 64];
    let soon = std::time::Duration::from_millis(300);
    socket.set_read_timeout(Some(soon)).expect("not 0");
    assert!(socket.recv_from(&mut buffer).is_err(), "filtered");
    assert!(ask(&socket, (WORLD, 53), "y").is_some(), "and yet it works");
}

#[test]
fn a_new_address_of_the_uplink_is_what_the_outside_sees() {
    let Site {
        lab,
        web,
        ip,
        agent,
        ..
    } = &Site::new(&[]);
    let world = Nginx::start(&lab.world, "world", &[80]);
    let _echo = UdpEcho::start(&lab.world, (WORLD, 53));
    let socket = udp_socket(web);
    let peer = || {
        let time = std::time::Duration::from_secs(1);
        let answer = ask_within(time, &socket, (WORLD, 53), "x")?;
        let peer: std::net::SocketAddr = answer.split(' ').next()?.parse().ok()?;
        Some(peer.ip())
    };
    assert_eq!(peer(), Some(NODE_OUTSIDE));
    let uplink = Capture::start(&lab.node, "up1");
    let renumbered: IpAddr = [10, 2, 0, 77].into();
    lab.node.ip(&["addr", "del", "10.2.0.1/24", "dev", "up1"]);
    lab.node.ip(&["addr", "add", "10.2.0.77/24", "dev", "up1"]);
    lab.node
        .ip(&["route", "add", "default", "via", &WORLD.to_string()]);
    wait_until("new connections to come from the new address", SOON, || {
        let path = format!("/{}", world.log().len());
        curl(web, WORLD, 80, &path).is_some()
            && world.logged(&path).starts_with(&format!("{renumbered} "))
    });
    wait_until("a socket opened before to be served again", SOON, || {
        peer() == Some(renumbered)
    });
    let packets = uplink.finish(WORLD);
    let own = ip.to_string();
    assert!(!packets.iter().any(|line| line.contains(&own)));
    agent.netfw(&["status"]);
}

#[test]
fn a_new_route_is_followed() {
    let Site { lab, web, .. } = &Site::new(&[]);
    // The client has the far address too; the route decides who is asked.
    lab.client
        .ip(&["addr", "add", &FAR.to_string(), "dev", "lo"]);
    let world = Nginx::start(&lab.world, "world", &[80]);
    let client = Nginx::start(&lab.client, "client", &[80]);
    assert_eq!(curl(web, FAR, 80, "/"), Some(world.page(80)));
    lab.node
        .ip(&["route", "add", &FAR.to_string(), "via", &CLIENT.to_string()]);
    wait_until("connections to take the new route", SOON, || {
        curl(web, FAR, 80, "/new") == Some(client.page(80))
    });
    let line = client.logged("/new");
    assert!(line.starts_with(&format!("{NODE} ")), "{line}");
    lab.node.ip(&["route", "del", &FAR.to_string()]);
    wait_until("connections to take the old route", SOON, || {
        curl(web, FAR, 80, "/") == Some(world.page(80))
    });
}

#[test]
fn a_flow_whose_route_moves_never_shows_the_container() {
    let Site { lab, web, ip, .. } = &Site::new(&[]);
    let _echo = UdpEcho::start(&lab.world, (FAR, 53));
    lab.client
        .ip(&["addr", "add", &FAR.to_string(), "dev", "lo"]);
    let _other = UdpEcho::start(&lab.client, (FAR, 53));
    let socket = udp_socket(web);
    let first = ask(&socket, (FAR, 53), "x").expect("answered");
    assert!(first.starts_with(&format!("{NODE_OUTSIDE}:")), "{first}");
    let up0 = Capture::start(&lab.node, "up0");
    let up1 = Capture::start(&lab.node, "up1");
    lab.node
        .ip(&["route", "add", &FAR.to_string(), "via", &CLIENT.to_string()]);
    for _ in 0..3 {
        ask_in_vain(&socket, (FAR, 53), "x");
    }
    let fresh = udp_socket(web);
    let answer = ask(&fresh, (FAR, 53), "x").expect("a new flow takes the new route");
    assert!(answer.starts_with(&format!("{NODE}:")), "{answer}");
    let own = ip.to_string();
    for packets in [up0.finish(CLIENT), up1.finish(WORLD)] {
        assert!(!packets.iter().any(|line| line.contains(&own)));
    }
}

#[test]
fn without_a_route_nothing_leaves_and_the_container_is_told() {
    let Site { lab, web, ip, .. } = &Site::new(&[]);
    lab.node.ip(&["route", "del", "default"]);
    let uplinks = [("up0", CLIENT), ("up1", WORLD)]
        .map(|(device, neighbour)| (Capture::start(&lab.node, device), neighbour));
    let refused = web
        .command("curl")
        .args(["-s", "--max-time", "5", &format!("http://{FAR}/")])
        .status();
    // 7: the node says that it has no route; 28 would be silence.
    assert_eq!(refused.expect("curl runs").code(), Some(7));
    for (capture, neighbour) in uplinks {
        let packets = capture.finish(neighbour);
        for address in [FAR, *ip] {
            let address = address.to_string();
            assert!(!packets.iter().any(|line| line.contains(&address)));
        }
    }
}
