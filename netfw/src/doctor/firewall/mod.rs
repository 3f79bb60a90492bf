//! Rules of nftables and iptables that may be in netfw's way, or netfw in theirs.
//!
//! Translated packets pass all of them by. What goes through the node's stack meets them: routed networks and those
//! without masquerade (`forward`), names and, over IPv6, neighbours (`input`). A port that both publish goes to netfw,
//! which is first.

use std::fs;

use super::{Area, Finding, State, Told, command, node::is_forwarded};
use crate::{
    api::types::{Network, Publish},
    name::Name,
    net::{
        nftables::{Action, Chain, Family, Hook, Place, Ports, Rule, Ruleset},
        socket::Protocol,
    },
    rules::Rules,
};

/// A network, as far as rules see it.
struct Bridged<'a> {
    bridge: &'a str,
    rules: &'a Rules,
}

/// The tables of legacy iptables that are in use in this namespace.
pub fn legacy() -> Vec<String> {
    ["ip", "ip6"]
        .into_iter()
        .flat_map(|family| {
            let names = format!("/proc/thread-self/net/{family}_tables_names");
            let names = fs::read_to_string(names).unwrap_or_default();
            let names = names.lines().map(|table| format!("{family}tables {table}"));
            names.collect::<Vec<_>>()
        })
        .collect()
}

pub fn judge(ruleset: &Ruleset, legacy: &[String], told: Option<&Told>) -> Vec<Finding> {
    let networks: Vec<Bridged<'_>> = told
        .iter()
        .flat_map(|told| &told.status.networks)
        .map(|Network { bridge, rules, .. }| Bridged { bridge, rules })
        .collect();
    let publishes: Vec<(&Name, &Publish)> = told
        .iter()
        .flat_map(|told| &told.endpoints)
        .flat_map(|endpoint| endpoint.publishes.iter().map(|p| (&endpoint.name, p)))
        .collect();
    let mut findings = Vec::new();
    for chain in &ruleset.chains {
        findings.extend(
            drops(chain, &ruleset.rules).and_then(|how| match chain.hook {
                Hook::Forward => Some(forward(chain, how, &ruleset.rules, &networks)),
                Hook::Input => Some(input(chain, how, &ruleset.rules, &networks)),
                _ => None,
            }),
        );
    }
    let instance = told.map_or("", |told| told.status.instance.as_str());
    findings.extend(translations(&ruleset.rules, &publishes, instance));
    findings.extend(sources(&ruleset.rules));
    if !legacy.is_empty() {
        findings.push(ok("legacy", format!("in use: {}", legacy.join(", "))).but(
            State::Note,
            "`iptables-legacy-save` and `ip6tables-legacy-save` show the rules, which are not looked into here: \
             none may translate a port that netfw publishes",
        ));
    }
    if findings.is_empty() {
        findings.push(ok(
            "rules",
            "none in the way, neither of nftables nor of iptables",
        ));
    }
    findings
}

fn ok(check: &str, found: impl Into<String>) -> Finding {
    Finding::ok(Area::Firewall, check, found)
}

/// Does a base chain drop what no rule decides, and how?
fn drops(chain: &Chain, rules: &[Rule]) -> Option<&'static str> {
    if chain.place.family == Family::Other {
        return None;
    }
    if chain.drops {
        return Some("policy drop");
    }
    let last = rules.iter().rfind(|rule| rule.place == chain.place)?;
    let refuses = last.unconditional && last.action == Action::Drop;
    refuses.then_some("a last rule that drops")
}

/// Does a rule of the same table speak of the interface?
fn speaks_of(rules: &[Rule], place: &Place, bridge: &str) -> bool {
    rules
        .iter()
        .filter(|rule| rule.place.family == place.family && rule.place.table == place.table)
        .any(|rule| rule.names(bridge) && rule.action != Action::Drop)
}

fn forward(chain: &Chain, how: &str, rules: &[Rule], networks: &[Bridged<'_>]) -> Finding {
    let place = &chain.place;
    let found = ok("forward", format!("chain {place} has {how}"));
    let met: Vec<&str> = networks
        .iter()
        .filter(|network| is_forwarded(network.rules))
        .map(|network| network.bridge)
        .filter(|bridge| !speaks_of(rules, place, bridge))
        .collect();
    let Some(bridge) = met.first() else {
        return found.but(
            State::Note,
            "nothing: translated packets pass it by. A network made with --routed or --no-masquerade needs rules of \
             its own there",
        );
    };
    let found = ok(
        "forward",
        format!("{}, and no rule for {}", found.found, met.join(", ")),
    );
    found.but(
        State::Warn,
        format!(
            "the node's stack forwards what such a network sends and gets: `nft insert rule {place} iifname {bridge} \
             accept` and `nft insert rule {place} oifname {bridge} accept`"
        ),
    )
}

fn input(chain: &Chain, how: &str, rules: &[Rule], networks: &[Bridged<'_>]) -> Finding {
    let place = &chain.place;
    let found = ok("input", format!("chain {place} has {how}"));
    let names = rules.iter().any(|rule| {
        rule.place.table == place.table
            && rule.place.family == place.family
            && rule.action == Action::Accept
            && rule.ports == Ports::Range(53, 53)
    });
    let met: Vec<&str> = networks
        .iter()
        .map(|network| network.bridge)
        .filter(|bridge| !names && !speaks_of(rules, place, bridge))
        .collect();
    let Some(bridge) = met.first() else {
        return found.but(
            State::Note,
            "nothing, as long as it accepts port 53, TCP and UDP, and ICMPv6 from netfw's bridges",
        );
    };
    let found = ok(
        "input",
        format!("{}, and no rule for {}", found.found, met.join(", ")),
    );
    found.but(
        State::Warn,
        format!(
            "containers ask the node for names, and IPv6 for neighbours: `nft insert rule {place} iifname {bridge} \
             meta l4proto {{ tcp, udp }} th dport 53 accept` and `nft insert rule {place} iifname {bridge} meta \
             l4proto ipv6-icmp accept`"
        ),
    )
}

/// Ports that a rule translates and netfw publishes, too.
fn translations(rules: &[Rule], publishes: &[(&Name, &Publish)], instance: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for rule in rules.iter().filter(|rule| rule.action == Action::Dnat) {
        let common = |publish: &Publish| {
            let family = match rule.place.family {
                Family::Ip => publish.host_ip.is_ipv4(),
                Family::Ip6 => publish.host_ip.is_ipv6(),
                Family::Inet => true,
                Family::Bridge | Family::Other => false,
            };
            let protocol = rule
                .protocol
                .is_none_or(|protocol| protocol == publish.protocol);
            family && protocol && overlap(rule.ports, publish)
        };
        let Some((endpoint, publish)) = publishes.iter().find(|(_, publish)| common(publish))
        else {
            continue;
        };
        let (place, spec) = (
            &rule.place,
            crate::publish::Publish::from((*publish).clone()),
        );
        let show = format!("`nft -a list chain {place}` shows the rule");
        findings.push(match rule.ports {
            Ports::Unknown => ok(
                "ports",
                format!("a rule in {place} translates ports of a set; netfw publishes {spec} for {endpoint}"),
            )
            .but(State::Note, format!("see that the set has none of netfw's ports: {show}")),
            Ports::Any | Ports::Range(..) => ok(
                "ports",
                format!(
                    "a rule in {place} translates {}, which netfw publishes for {endpoint} ({spec}); netfw is first",
                    ports(rule.protocol, rule.ports)
                ),
            )
            .but(
                State::Warn,
                format!(
                    "publish one of the two at another port ({}): {show}",
                    command(instance, &format!("unpublish {endpoint} {spec}"))
                ),
            ),
        });
    }
    findings.dedup();
    findings
}

fn overlap(ports: Ports, publish: &Publish) -> bool {
    let published = publish.host_ports;
    match ports {
        Ports::Any | Ports::Unknown => true,
        Ports::Range(first, last) => published.first <= last && first <= published.last,
    }
}

fn ports(protocol: Option<Protocol>, ports: Ports) -> String {
    let protocol = protocol.map_or("any", Protocol::name);
    match ports {
        Ports::Range(first, last) if first == last => format!("{protocol} port {first}"),
        Ports::Range(first, last) => format!("{protocol} ports {first}-{last}"),
        Ports::Any | Ports::Unknown => format!("{protocol} ports"),
    }
}

/// Who else gives packets the node's addresses: neither knows the other's ports.
fn sources(rules: &[Rule]) -> Vec<Finding> {
    let mut places: Vec<&Place> = rules
        .iter()
        .filter(|rule| rule.action == Action::Snat)
        .map(|rule| &rule.place)
        .collect();
    places.sort();
    places.dedup();
    places
        .into_iter()
        .map(|place| {
            ok("masquerade", format!("rules in {place} masquerade, too")).but(
                State::Note,
                format!(
                    "nothing, unless both speak to one server from one fixed port: then keep their ports apart, by \
                     `ports` in the agent's file (1024-32767 by default) and `masquerade to :32768-65535` in \
                     {place}"
                ),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> Place {
        let words: Vec<&str> = text.split(' ').collect();
        Place {
            family: match words[0] {
                "inet" => Family::Inet,
                "ip" => Family::Ip,
                "ip6" => Family::Ip6,
                _ => Family::Other,
            },
            table: words[1].into(),
            chain: words[2].into(),
        }
    }

    fn chain(text: &str, hook: Hook, drops: bool) -> Chain {
        Chain {
            place: place(text),
            hook,
            drops,
        }
    }

    fn rule(text: &str, action: Action) -> Rule {
        Rule {
            place: place(text),
            protocol: None,
            ports: Ports::Any,
            interfaces: Vec::new(),
            unconditional: true,
            action,
        }
    }

    fn routed() -> Rules {
        Rules {
            routed: true,
            masquerade: false,
            ..Rules::default()
        }
    }

    fn publish(spec: &str) -> Publish {
        let (ip, port) = spec.rsplit_once(':').unwrap();
        let port: u16 = port.parse().unwrap();
        Publish {
            protocol: Protocol::Tcp,
            host_ip: ip.parse().unwrap(),
            host_ports: crate::publish::PortRange {
                first: port,
                last: port,
            },
            container_ports: crate::publish::PortRange {
                first: 80,
                last: 80,
            },
            allow_from: Default::default(),
        }
    }

    const FORWARD: &str = "inet filter forward";

    #[test]
    fn a_chain_that_drops_concerns_those_that_the_node_forwards_for() {
        let chain = chain(FORWARD, Hook::Forward, true);
        let (masqueraded, routed) = (Rules::default(), routed());
        let network = |rules| Bridged {
            bridge: "netfw1",
            rules,
        };
        let state = |rules: &[Rule], networks: &[Bridged<'_>]| {
            let finding = forward(&chain, "policy drop", rules, networks);
            assert!(finding.found.contains(FORWARD), "{finding:?}");
            finding.state
        };
        assert_eq!(state(&[], &[]), State::Note);
        assert_eq!(state(&[], &[network(&masqueraded)]), State::Note);
        assert_eq!(state(&[], &[network(&routed)]), State::Warn);
        let accepts = Rule {
            interfaces: vec!["netfw*".into()],
            unconditional: false,
            ..rule(FORWARD, Action::Accept)
        };
        assert_eq!(state(&[accepts], &[network(&routed)]), State::Note);
    }

    #[test]
    fn a_chain_drops_by_its_policy_or_its_last_rule() {
        let accepting = chain(FORWARD, Hook::Forward, false);
        let (accept, drop) = (rule(FORWARD, Action::Accept), rule(FORWARD, Action::Drop));
        let asked = Rule {
            unconditional: false,
            ..drop.clone()
        };
        let elsewhere = rule("inet filter other", Action::Drop);
        assert!(drops(&chain(FORWARD, Hook::Forward, true), &[]).is_some());
        assert!(drops(&accepting, &[]).is_none());
        assert!(drops(&accepting, &[accept.clone(), drop.clone()]).is_some());
        assert!(drops(&accepting, &[drop, accept]).is_none());
        assert!(drops(&accepting, &[asked, elsewhere]).is_none());
        assert!(drops(&chain("arp x y", Hook::Other, true), &[]).is_none());
    }

    #[test]
    fn names_are_asked_of_the_node() {
        const INPUT: &str = "inet filter input";
        let chain = chain(INPUT, Hook::Input, true);
        let rules = Rules::default();
        let networks = [Bridged {
            bridge: "netfw0",
            rules: &rules,
        }];
        assert_eq!(input(&chain, "policy drop", &[], &[]).state, State::Note);
        let finding = input(&chain, "policy drop", &[], &networks);
        assert_eq!(finding.state, State::Warn);
        assert!(finding.remedy.unwrap().contains("iifname netfw0"));
        let accepts = Rule {
            ports: Ports::Range(53, 53),
            ..rule(INPUT, Action::Accept)
        };
        assert_eq!(
            input(&chain, "policy drop", &[accepts], &networks).state,
            State::Note
        );
    }

    #[test]
    fn a_port_of_two_is_told() {
        let (name, four, six) = (
            "web".parse().unwrap(),
            publish("0.0.0.0:8080"),
            publish(":::8080"),
        );
        let both = [(&name, &four), (&name, &six)];
        let dnat = |text: &str, first, last| Rule {
            protocol: Some(Protocol::Tcp),
            ports: Ports::Range(first, last),
            ..rule(text, Action::Dnat)
        };
        let told = |rule: Rule, publishes: &[(&Name, &Publish)]| {
            let found = translations(&[rule], publishes, "netfw");
            found
                .first()
                .map(|finding| (finding.state, finding.found.clone()))
        };
        let (state, words) = told(dnat("ip nat DOCKER", 8080, 8080), &both).unwrap();
        assert_eq!(state, State::Warn);
        assert!(
            words.contains("ip nat DOCKER") && words.contains("tcp port 8080"),
            "{words}"
        );
        assert!(words.contains("0.0.0.0:8080:80/tcp"), "{words}");
        assert!(told(dnat("ip nat DOCKER", 8000, 8100), &both).is_some());
        assert!(told(dnat("ip nat DOCKER", 8081, 8100), &both).is_none());
        assert!(told(dnat("ip6 nat DOCKER", 8080, 8080), &both[..1]).is_none());
        let udp = Rule {
            protocol: Some(Protocol::Udp),
            ..dnat("ip nat DOCKER", 8080, 8080)
        };
        assert!(told(udp, &both).is_none());
        let set = Rule {
            ports: Ports::Unknown,
            ..dnat("inet nat dnat", 0, 0)
        };
        assert_eq!(told(set, &both).unwrap().0, State::Note);
    }

    #[test]
    fn who_masquerades_too_is_told_once() {
        let rules = [
            rule("ip nat POSTROUTING", Action::Snat),
            rule("ip nat POSTROUTING", Action::Snat),
        ];
        assert_eq!(sources(&rules).len(), 1);
        let ruleset = Ruleset::default();
        let found = judge(&ruleset, &[], None);
        assert_eq!(found[0].state, State::Ok);
        let found = judge(&ruleset, &["iptables filter".into()], None);
        assert!(found[0].state == State::Note && found[0].found.contains("iptables filter"));
    }
}
