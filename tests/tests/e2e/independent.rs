//! Endpoint-independent NAT, as a STUN client sees it (RFC 5780).

use std::net::{IpAddr, UdpSocket};

use netfw_tests::{
    Agent, Lab, Namespace,
    stun::{Client, Filtering, Hairpin, Mapping, PORTS, Server},
    topology::{FAR, FAR6, WORLD, WORLD6},
    wait_until,
};

use crate::setting::{SOON, Site, drops};

/// A network of endpoint-independent NAT with this filter, and a container in it.
#[track_caller]
fn independent(agent: &Agent, lab: &Lab, name: &str, filter: &str) -> Namespace {
    let words = ["--ipv6", "--nat", "endpoint-independent", "--filter"];
    let network = [&["network", "create", name], &words[..], &[filter]].concat();
    let created = agent.json(&network);
    assert_eq!(created["filter"], filter);
    let container = lab.container(name);
    let words = ["endpoint", "add", name, "--network", name, "--netns"];
    agent.json(&[&words[..], &[container.name()]].concat());
    container
}

/// The world's addresses in each family, the primary first.
const SERVERS: [[IpAddr; 2]; 2] = [[WORLD, FAR], [WORLD6, FAR6]];

fn servers(lab: &Lab) -> Vec<Server> {
    SERVERS
        .into_iter()
        .map(|addresses| Server::start(&lab.world, addresses))
        .collect()
}

#[test]
fn behaviour_of_each_filter() {
    let Site { agent, lab, .. } = &Site::new(&[]);
    let _servers = servers(lab);
    let kinds = [
        ("endpoint-independent", Filtering::EndpointIndependent),
        ("address-dependent", Filtering::AddressDependent),
        (
            "address-and-port-dependent",
            Filtering::AddressAndPortDependent,
        ),
    ];
    for (n, (filter, filtering)) in kinds.into_iter().enumerate() {
        let container = independent(agent, lab, &format!("net{n}"), filter);
        for [primary, _] in SERVERS {
            let client = Client::new(&container, primary);
            let found = (client.mapping(0), client.filtering());
            println!("{filter}, {primary}: {}, {}", found.0, found.1);
            assert_eq!(found, (Mapping::EndpointIndependent, filtering));
            // Nobody has sent to the node from there.
            let hairpin =
                (filtering == Filtering::EndpointIndependent).then_some(Hairpin::ExternalSource);
            assert_eq!(client.hairpinning(), hairpin, "{filter}");
        }
    }
    assert!(drops(agent, "filtered") > 0);
}

/// Two containers with one port, in the way of each other towards one address of the server: that is
/// where the kinds of mapping differ.
#[test]
fn behaviour_with_a_neighbour_in_the_way() {
    let Site {
        agent, lab, web, ..
    } = &Site::new(&[]);
    let _servers = servers(lab);
    let first = independent(agent, lab, "first", "address-and-port-dependent");
    let second = independent(agent, lab, "second", "address-and-port-dependent");
    let usual = lab.container("usual");
    crate::setting::attach(agent, "usual", &usual, &[]);
    for ([primary, other], any) in SERVERS.into_iter().zip(["0.0.0.0", "::"]) {
        // All want the same port; those with mappings have the upper half for themselves.
        for (in_the_way, asks, port, mapping) in [
            (web, &usual, 5000, Mapping::AddressAndPortDependent),
            (&first, &second, 5000, Mapping::EndpointIndependent),
            (web, &first, 20000, Mapping::EndpointIndependent),
            (&first, &second, 20000, Mapping::EndpointIndependent),
        ] {
            let socket = in_the_way.enter(|| UdpSocket::bind((any, port)).expect("a free port"));
            socket.send_to(b"", (other, PORTS[0])).expect("a route");
            let found = Client::new(asks, primary).mapping(port);
            println!("{primary}: {found}");
            assert_eq!(found, mapping, "{primary}, from {port}");
        }
        let client = Client::new(&usual, primary);
        assert_eq!(client.filtering(), Filtering::AddressAndPortDependent);
        assert_eq!(client.hairpinning(), None);
    }
}

#[test]
fn what_comes_through_a_mapping_is_listed_and_goes_with_its_endpoint() {
    let Site { agent, lab, .. } = &Site::new(&[]);
    let games = independent(agent, lab, "games", "endpoint-independent");
    let inside = games.enter(|| UdpSocket::bind("0.0.0.0:20000").expect("a free port"));
    let outside = lab
        .world
        .enter(|| [WORLD, FAR].map(|at| UdpSocket::bind((at, 7000)).expect("a free port")));
    inside.send_to(b"hello", (WORLD, 7000)).expect("a route");
    let mut buffer = [0; 16];
    let (_, mapped) = outside[0].recv_from(&mut buffer).expect("a datagram");
    outside[1].send_to(b"hi", mapped).expect("a route");
    let (_, from) = inside.recv_from(&mut buffer).expect("let in");
    assert_eq!(from, (FAR, 7000).into());

    let flows = agent.json(&["flow", "ls", "--endpoint", "games"]);
    let mut origins: Vec<_> = flows
        .as_array()
        .expect("a list")
        .iter()
        .map(|flow| crate::setting::text(&flow["origin"]))
        .collect();
    origins.sort_unstable();
    assert_eq!(origins, ["mapping", "masquerade"], "{flows}");
    let used = |agent: &Agent| {
        let status = agent.json(&["status"]);
        let tables = status["tables"].as_array().expect("a list").clone();
        let table = tables.iter().find(|table| table["name"] == "mappings4");
        table.expect("is named")["used"].as_u64().expect("a number")
    };
    assert_eq!(used(agent), 1);
    agent.netfw(&["endpoint", "rm", "games"]);
    assert_eq!(used(agent), 0);
}

/// A publish takes the port of a mapping, and its container gets another.
#[test]
fn a_publish_ends_the_mapping_of_its_port() {
    let Site { agent, lab, .. } = &Site::new(&[]);
    let _servers = servers(lab);
    let games = independent(agent, lab, "games", "endpoint-independent");
    let inside = games.enter(|| UdpSocket::bind("0.0.0.0:20000").expect("a free port"));
    let outside = lab
        .world
        .enter(|| UdpSocket::bind((WORLD, 7000)).expect("a free port"));
    let mapped = || {
        inside.send_to(b"hello", (WORLD, 7000)).expect("a route");
        let (_, from) = outside.recv_from(&mut [0; 16]).expect("a datagram");
        from
    };
    assert_eq!(mapped().port(), 20000);
    agent.netfw(&["publish", "web", "20000:80/udp"]);
    wait_until("another port", SOON, || mapped().port() != 20000);
    let client = Client::new(&games, WORLD);
    assert_eq!(client.mapping(0), Mapping::EndpointIndependent);
}

/// What the programs are told of the networks is told again.
#[test]
fn there_are_mappings_after_a_reboot() {
    let mut site = Site::new(&[]);
    let _servers = servers(&site.lab);
    let games = independent(&site.agent, &site.lab, "games", "endpoint-independent");
    site.agent.stop();
    site.agent.forget_pins();
    site.agent.start_again();
    for [primary, _] in SERVERS {
        let client = Client::new(&games, primary);
        assert_eq!(client.mapping(0), Mapping::EndpointIndependent, "{primary}");
        assert_eq!(client.filtering(), Filtering::EndpointIndependent);
    }
}
