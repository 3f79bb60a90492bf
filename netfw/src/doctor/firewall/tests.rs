use super::{
    needs::Side,
    walk::{
        ESTABLISHED,
        made::{chain, from, place, rule, to},
    },
    *,
};
use crate::{
    api::types::Publish,
    name::Name,
    net::{
        nftables::{Action, Asks, Condition, Rule},
        socket::Protocol,
    },
    rules::Rules,
};

const FORWARD: &str = "inet filter forward";
const INPUT: &str = "inet filter input";

fn side(subnet: &str, gateway: &str) -> Option<Side> {
    Some(Side {
        subnet: subnet.parse().unwrap(),
        gateway: Some(gateway.parse().unwrap()),
        filtered: false,
    })
}

fn bridged(name: &str, routed: bool) -> Bridged<'_> {
    Bridged {
        link: Link {
            name,
            index: Some(9),
        },
        rules: Rules {
            routed,
            masquerade: !routed,
            ..Rules::default()
        },
        sides: [
            side("172.19.0.0/16", "172.19.0.1"),
            side("fd00:19::/64", "fd00:19::1"),
        ],
        published: false,
    }
}

fn facts<'a>(networks: &[Bridged<'a>]) -> Facts<'a> {
    Facts {
        networks: networks.to_vec(),
        outside: vec![Link {
            name: "eth0",
            index: Some(2),
        }],
        ..Facts::default()
    }
}

fn found(chain: &Chain, rules: &[Rule], networks: &[Bridged<'_>]) -> Option<Finding> {
    of_chain(chain, &Rulebook::of(rules), &facts(networks))
}

fn state(chain: &Chain, rules: &[Rule], networks: &[Bridged<'_>]) -> Option<State> {
    found(chain, rules, networks).map(|finding| finding.state)
}

fn established(place: &str) -> Rule {
    rule(place, &[Asks::State(ESTABLISHED)], Action::Accept)
}

#[test]
fn a_chain_that_drops_concerns_those_that_the_node_forwards_for() {
    let dropping = chain(FORWARD, Hook::Forward, true);
    let (masqueraded, routed) = (bridged("netfw0", false), bridged("netfw1", true));
    assert_eq!(state(&dropping, &[], &[]), Some(State::Note));
    assert_eq!(state(&dropping, &[], &[masqueraded]), Some(State::Note));
    let finding = found(&dropping, &[], &[masqueraded, routed]).unwrap();
    assert_eq!(finding.state, State::Warn);
    assert!(finding.found.contains(FORWARD) && !finding.found.contains("netfw0"));
    let remedy = finding.remedy.unwrap();
    for command in [
        "`nft insert rule inet filter forward iifname netfw1 accept`",
        "`nft insert rule inet filter forward oifname netfw1 accept`",
    ] {
        assert!(remedy.contains(command), "{remedy}");
    }
    let accept = |asks: &[Asks]| rule(FORWARD, asks, Action::Accept);
    for (rules, wanted) in [
        (
            vec![accept(&[from("netfw1")]), accept(&[to("netfw1")])],
            None,
        ),
        (vec![accept(&[from("netfw1")])], Some(State::Warn)),
        (
            vec![accept(&[from("netfw1")]), established(FORWARD)],
            Some(State::Warn),
        ),
        (
            vec![rule(INPUT, &[from("netfw1")], Action::Accept)],
            Some(State::Warn),
        ),
        (vec![accept(&[Asks::Unknown])], Some(State::Note)),
        (
            vec![rule(FORWARD, &[from("netfw1")], Action::Drop), accept(&[])],
            Some(State::Warn),
        ),
    ] {
        assert_eq!(state(&dropping, &rules, &[routed]), wanted, "{rules:?}");
    }
    // Nobody may speak first to one that only keeps its addresses.
    let kept = Bridged {
        rules: Rules {
            masquerade: false,
            ..Rules::default()
        },
        ..routed
    };
    let rules = [accept(&[from("netfw1")]), established(FORWARD)];
    assert_eq!(state(&dropping, &rules, &[kept]), None);
}

#[test]
fn a_chain_concerns_the_families_that_it_sees() {
    let four = Bridged {
        sides: [side("172.19.0.0/16", "172.19.0.1"), None],
        ..bridged("netfw1", true)
    };
    for (place, wanted) in [
        ("ip6 filter FORWARD", Some(State::Note)),
        ("ip filter FORWARD", Some(State::Warn)),
        ("bridge filter forward", None),
        ("arp filter forward", None),
    ] {
        let chain = chain(place, Hook::Forward, true);
        assert_eq!(state(&chain, &[], &[four]), wanted, "{place}");
    }
}

#[test]
fn names_and_neighbours_are_asked_of_the_node() {
    let dropping = chain(INPUT, Hook::Input, true);
    let networks = [bridged("netfw0", false), bridged("netfw1", true)];
    assert_eq!(state(&dropping, &[], &[]), Some(State::Note));
    let remedy = found(&dropping, &[], &networks).unwrap().remedy.unwrap();
    for bridge in ["netfw0", "netfw1"] {
        for what in ["udp dport 53", "tcp dport 53", "meta l4proto ipv6-icmp"] {
            let command =
                format!("`nft insert rule inet filter input iifname {bridge} {what} accept`");
            assert!(remedy.contains(&command), "{remedy}");
        }
    }
    let udp = rule(
        INPUT,
        &[Asks::Protocol(17), Asks::Port(53, 53)],
        Action::Accept,
    );
    let tcp = rule(
        INPUT,
        &[Asks::Protocol(6), Asks::Port(53, 53)],
        Action::Accept,
    );
    let icmp = rule(INPUT, &[Asks::Protocol(58)], Action::Accept);
    let rules = [established(INPUT), udp.clone(), tcp.clone(), icmp.clone()];
    assert_eq!(state(&dropping, &rules, &networks), None);
    let mut elsewhere = udp;
    elsewhere.conditions.push(Condition {
        asks: from("eth0"),
        not: false,
    });
    assert_eq!(
        state(&dropping, &[elsewhere, tcp, icmp], &networks),
        Some(State::Warn)
    );
}

#[test]
fn iptables_gets_what_it_can_list() {
    let dropping = chain("ip filter INPUT", Hook::Input, true);
    let remedy = found(&dropping, &[], &[bridged("netfw0", false)]).unwrap();
    let remedy = remedy.remedy.unwrap();
    assert!(
        remedy.contains("`iptables-nft -t filter -I INPUT -i netfw0 -p udp --dport 53 -j ACCEPT`"),
        "{remedy}"
    );
    assert!(!remedy.contains("`nft "), "{remedy}");
    assert!(!place("ip filter input").is_of_iptables());
    assert!(!place("inet filter INPUT").is_of_iptables());
}

#[test]
fn answers_must_leave_the_node() {
    const OUTPUT: &str = "inet filter output";
    let dropping = chain(OUTPUT, Hook::Output, true);
    let network = bridged("netfw0", false);
    let finding = found(&dropping, &[], &[network]).unwrap();
    assert_eq!(finding.state, State::Warn);
    assert!(finding.remedy.unwrap().contains("oifname netfw0 accept"));
    let icmp = rule(OUTPUT, &[Asks::Protocol(58)], Action::Accept);
    let rules = [established(OUTPUT), icmp];
    assert_eq!(state(&dropping, &rules, &[network]), None);
    let published = Bridged {
        published: true,
        ..network
    };
    assert_eq!(state(&dropping, &rules, &[published]), Some(State::Warn));
    assert_eq!(state(&dropping, &[], &[]), None);
}

#[test]
fn a_bridge_that_asks_the_rules_needs_them_to_pass() {
    let filtered = |name, six| {
        let mut network = bridged(name, false);
        for side in network.sides.iter_mut().flatten() {
            side.filtered = side.subnet.addr().is_ipv6() == six;
        }
        network
    };
    let dropping = chain("ip6 filter FORWARD", Hook::Forward, true);
    let finding = found(&dropping, &[], &[filtered("netfw0", true)]).unwrap();
    assert_eq!(finding.state, State::Warn);
    let command = "`ip6tables-nft -t filter -I FORWARD -i netfw0 -o netfw0 -j ACCEPT`";
    assert!(finding.remedy.unwrap().contains(command));
    let accept = rule(
        "ip6 filter FORWARD",
        &[from("netfw0"), to("netfw0")],
        Action::Accept,
    );
    assert_eq!(
        state(&dropping, &[accept], &[filtered("netfw0", true)]),
        None
    );
    let dropping = chain("ip filter FORWARD", Hook::Forward, true);
    assert_eq!(
        state(&dropping, &[], &[filtered("netfw0", false)]),
        Some(State::Note)
    );
}

fn publish(spec: &str) -> Publish {
    let (ip, port) = spec.rsplit_once(':').unwrap();
    let port: u16 = port.parse().unwrap();
    let range = |port| crate::publish::PortRange {
        first: port,
        last: port,
    };
    Publish {
        protocol: Protocol::Tcp,
        host_ip: ip.parse().unwrap(),
        host_ports: range(port),
        container_ports: range(80),
        allow_from: Default::default(),
    }
}

const TCP: Asks = Asks::Protocol(6);

fn port(port: u16) -> Asks {
    Asks::Port(port, port)
}

fn translated(place: &str, rules: Vec<Rule>, publishes: &[&str]) -> Vec<(State, String)> {
    let name: Name = "web".parse().unwrap();
    let publishes: Vec<_> = publishes.iter().map(|spec| publish(spec)).collect();
    let facts = Facts {
        publishes: publishes.iter().map(|publish| (&name, publish)).collect(),
        locals: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        ..facts(&[])
    };
    let ruleset = Ruleset {
        chains: vec![chain(place, Hook::Prerouting, false)],
        rules,
    };
    judge(&ruleset, &facts)
        .into_iter()
        .map(|finding| (finding.state, finding.found))
        .collect()
}

#[test]
fn a_port_of_two_is_told() {
    const NAT: &str = "ip nat PREROUTING";
    let net = |text: &str| Asks::Destination(text.parse().unwrap());
    let dnat = |asks: &[Asks]| rule(NAT, asks, Action::Dnat);
    let both = ["0.0.0.0:8080", ":::8080"];
    for (asks, wanted) in [
        (vec![TCP, port(8080)], Some(State::Warn)),
        (vec![TCP, Asks::Port(8000, 8100)], Some(State::Warn)),
        (vec![TCP, Asks::Port(8081, 8100)], None),
        (vec![Asks::Protocol(17), port(8080)], None),
        (vec![TCP, Asks::Unknown], Some(State::Note)),
        (
            vec![net("192.0.2.1/32"), TCP, port(8080)],
            Some(State::Warn),
        ),
        (vec![net("192.0.2.9/32"), TCP, port(8080)], None),
        (vec![Asks::Local, TCP], Some(State::Warn)),
        (vec![from("virbr0"), TCP, port(8080)], None),
        (vec![from("eth0"), TCP, port(8080)], Some(State::Warn)),
    ] {
        let found = translated(NAT, vec![dnat(&asks)], &both);
        assert_eq!(
            found.first().map(|found| found.0),
            wanted,
            "{asks:?} {found:?}"
        );
    }
    let found = translated(NAT, vec![dnat(&[TCP, port(8080)])], &both);
    assert!(
        found[0]
            .1
            .contains("ip nat translate tcp port 8080, which netfw publishes for web"),
        "{found:?}"
    );
    let six = "ip6 nat PREROUTING";
    let rules = vec![rule(six, &[TCP, port(8080)], Action::Dnat)];
    assert_eq!(translated(six, rules, &both[..1]), []);
}

/// As kube-proxy and Docker have them: the chain that translates asks for no port.
#[test]
fn a_table_with_many_translations_is_told_once() {
    const NAT: &str = "ip nat PREROUTING";
    let jump =
        |place: &str, asks: &[Asks], chain: &str| rule(place, asks, Action::Jump(chain.into()));
    let net = |text: &str| Asks::Destination(text.parse().unwrap());
    let mut rules = vec![jump(NAT, &[], "KUBE-SERVICES")];
    for service in 1..100u8 {
        let (own, ip) = (
            format!("KUBE-SEP-{service}"),
            format!("10.96.0.{service}/32"),
        );
        rules.push(jump(
            "ip nat KUBE-SERVICES",
            &[net(&ip), TCP, port(8080)],
            &own,
        ));
        rules.push(rule(&format!("ip nat {own}"), &[TCP], Action::Dnat));
    }
    rules.push(jump(
        "ip nat KUBE-SERVICES",
        &[Asks::Local],
        "KUBE-NODEPORTS",
    ));
    let publishes = ["0.0.0.0:8080", "0.0.0.0:30080", "0.0.0.0:30081"];
    assert_eq!(translated(NAT, rules.clone(), &publishes), []);
    for node_port in [30080, 30081] {
        rules.push(jump(
            "ip nat KUBE-NODEPORTS",
            &[TCP, port(node_port)],
            "KUBE-SEP-1",
        ));
    }
    let found = translated(NAT, rules, &publishes);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0, State::Warn);
    assert!(found[0].1.contains("and 1 more like it"), "{found:?}");
}

#[test]
fn who_masquerades_too_is_told_once() {
    let snat = |place| rule(place, &[], Action::Snat);
    let rules = ["ip nat POSTROUTING", "ip nat POSTROUTING", "ip nat KUBE"].map(snat);
    let found = ports::sources(&rules);
    assert_eq!(found.len(), 1);
    assert!(found[0].found.contains("ip nat KUBE, ip nat POSTROUTING"));
}

#[test]
fn legacy_tables_are_told_with_the_networks_that_they_may_concern() {
    assert_eq!(legacy(&[], &[]), None);
    let tables = ["iptables filter".to_owned()];
    let networks = [bridged("netfw0", false), bridged("netfw1", true)];
    let remedy = |networks: &[Bridged<'_>]| legacy(&tables, networks).unwrap().remedy.unwrap();
    assert!(remedy(&networks).contains("FORWARD must accept what netfw1 sends"));
    assert!(!remedy(&networks[..1]).contains("FORWARD"));
}
