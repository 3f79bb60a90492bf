//! The agent's networks: their MTUs, their subnets and who else has them, their bridges.

use ipnet::IpNet;

use super::{Area, Finding, Node, State, Told, command, endpoints::Member};
use crate::{
    agent::{
        network::DEFAULT_NETWORK,
        plan::{self, Obstacle},
        record::object_of,
    },
    api::types::Network,
    dns::resolv,
    name::Name,
    net::{Link, subnet, sysctl},
    rules::{Nat, Rules},
};

/// A network, and what the node has of it.
struct Seen {
    network: Network,
    bridge: Option<Link>,
    /// The veth pairs of its endpoints.
    ports: Vec<Port>,
    /// Keys that are not as the agent has set them.
    unset: Vec<String>,
}

/// A veth pair of an endpoint.
struct Port {
    endpoint: Name,
    host: Link,
    /// The container's end: its name there, and its MTU where it can be looked at.
    inner: (String, Option<u32>),
}

/// An interface, and its MTU.
type Mtu = (String, u32);

pub struct Facts {
    instance: Name,
    networks: Vec<Seen>,
    endpoints: Vec<Member>,
    /// The narrowest of the uplinks that are served.
    narrowest: Option<Mtu>,
    /// What of the node may be in a subnet's way.
    obstacles: Vec<Obstacle>,
}

impl Facts {
    pub fn look(instance: &Name, seen: &Node, told: &Told) -> Self {
        let own = |ifindex: u32| {
            let mut links = seen.links.iter().filter(|link| link.index == ifindex);
            links.any(|link| object_of(instance, link.alias.as_deref()).is_some())
        };
        let routes: Vec<_> = seen
            .routes
            .iter()
            .filter(|r| !r.oif.is_some_and(own))
            .copied()
            .collect();
        let others = seen
            .addresses
            .iter()
            .filter(|address| !own(address.ifindex));
        let addresses: Vec<_> = others.copied().collect();
        let resolvers = resolv::Config::of_file(resolv::PATH.as_ref()).servers;
        let served = |link: &&Link| {
            let mut uplinks = told.status.uplinks.iter();
            link.up && uplinks.any(|uplink| uplink.served && uplink.ifindex == Some(link.index))
        };
        let narrowest = seen.links.iter().filter(served).min_by_key(|link| link.mtu);
        let endpoints: Vec<Member> = told.endpoints.iter().map(Member::look).collect();
        let networks = told.status.networks.iter().map(|network| Seen {
            network: network.clone(),
            bridge: seen.link(&network.bridge).cloned(),
            ports: ports(network, &endpoints, seen),
            unset: unset(network),
        });
        Self {
            instance: instance.clone(),
            networks: networks.collect(),
            narrowest: narrowest.map(|link| (link.name.clone(), link.mtu)),
            obstacles: plan::of_node(
                &routes,
                &addresses,
                resolvers.iter().map(|server| server.ip()),
            ),
            endpoints,
        }
    }
}

fn ports(network: &Network, endpoints: &[Member], seen: &Node) -> Vec<Port> {
    let attachments = endpoints.iter().flat_map(|member| {
        let networks = &member.endpoint.networks;
        networks.iter().map(move |one| (member, one))
    });
    attachments
        .filter(|(_, attachment)| attachment.network == network.name)
        .filter_map(|(member, attachment)| {
            let interface = attachment.interface.clone();
            let interior = member.interior.as_ref();
            let mtu = interior.and_then(|interior| interior.mtu(&interface));
            Some(Port {
                endpoint: member.endpoint.name.clone(),
                host: seen.link(&attachment.host_interface)?.clone(),
                inner: (interface, mtu),
            })
        })
        .collect()
}

/// What `bpf_fib_lookup` goes by (`Agent::ensure_bridge`).
fn unset(network: &Network) -> Vec<String> {
    let families = [("ipv4", network.subnet), ("ipv6", network.subnet6)];
    families
        .into_iter()
        .filter(|(_, subnet)| subnet.is_some())
        .map(|(family, _)| format!("net/{family}/conf/{}/forwarding", network.bridge))
        .filter(|key| sysctl::get(key).is_ok_and(|value| value == "0"))
        .collect()
}

fn ok(check: String, found: impl Into<String>) -> Finding {
    Finding::ok(Area::Networks, check, found)
}

pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for seen in &facts.networks {
        let name = &seen.network.name;
        findings.push(bridge(seen));
        findings.push(mtu(seen, facts.narrowest.as_ref(), &facts.instance));
        findings.push(
            match subnets(&seen.network, &facts.obstacles, &facts.instance) {
                Some(finding) => finding,
                None => {
                    let nets = nets(&seen.network).map(|net| net.to_string());
                    let nets: Vec<String> = nets.collect();
                    ok(
                        format!("subnets of {name}"),
                        format!("{}; nobody else has them", nets.join(", ")),
                    )
                }
            },
        );
    }
    findings.extend(
        facts
            .endpoints
            .iter()
            .flat_map(|member| member.judge(&facts.instance)),
    );
    findings
}

fn bridge(seen: &Seen) -> Finding {
    let Network { name, bridge, .. } = &seen.network;
    let check = |found: String| ok(format!("bridge of {name}"), found);
    match &seen.bridge {
        None => check(format!("{bridge} is not there")).but(
            State::Warn,
            "wait for 30 s: the agent makes it again; its log says why, where it does not",
        ),
        Some(link) if !link.up => check(format!("{bridge} is down"))
            .but(State::Warn, format!("`ip link set dev {bridge} up`")),
        Some(_) if !seen.unset.is_empty() => {
            let set: Vec<String> = seen.unset.iter().map(|key| format!("{key}=1")).collect();
            check(format!("{bridge} does not forward: {} is 0", seen.unset.join(", "))).but(
                State::Warn,
                format!(
                    "`sysctl -w {}`: whoever writes to net.ipv4.ip_forward changes it on all interfaces",
                    set.join(" ")
                ),
            )
        }
        Some(_) => check(format!("{bridge} is up and forwards")),
    }
}

fn mtu(seen: &Seen, narrowest: Option<&Mtu>, instance: &Name) -> Finding {
    let Network { name, mtu, .. } = &seen.network;
    let check = |found: String| ok(format!("mtu of {name}"), found);
    // A veth drops what is longer than its peer takes, so both ends go together.
    let both = |port: &Port| {
        let (inner, host) = (&port.inner.0, &port.host.name);
        let exec = command(instance, &format!("exec {}", port.endpoint));
        format!(
            "{} -- ip link set dev {inner} mtu {mtu}` and `ip link set dev {host} mtu {mtu}`",
            exec.trim_end_matches('`')
        )
    };
    let uneven = |port: &&Port| port.inner.1.is_some_and(|inner| inner != port.host.mtu);
    if let Some(port) = seen.ports.iter().find(uneven) {
        let (inner, inner_mtu) = (&port.inner.0, port.inner.1.unwrap_or_default());
        let found = format!(
            "{mtu}, and the ends of a veth pair differ: {} has {}, {inner} of {} {inner_mtu}; what the shorter end \
             does not take is lost",
            port.host.name, port.host.mtu, port.endpoint
        );
        return check(found).but(State::Warn, both(port));
    }
    if let Some((uplink, narrow)) = narrowest
        && mtu > narrow
    {
        let anew = match name.as_str() {
            DEFAULT_NETWORK => format!(
                "have `netfw apply` make it anew: {} prints the document, in which its mtu becomes {narrow}",
                command(instance, "store export --toml")
            ),
            _ => format!(
                "make the network again, once its endpoints are removed: {}, {}",
                command(instance, &format!("network rm {name}")),
                command(instance, &again(&seen.network, true, *narrow))
            ),
        };
        return check(format!("{mtu}, more than the {narrow} of uplink {uplink}")).but(
            State::Warn,
            format!("`ip link set dev {uplink} mtu {mtu}` if that link carries it, or {anew}"),
        );
    }
    if let Some(port) = seen.ports.iter().find(|port| port.host.mtu != *mtu) {
        let than = if port.host.mtu > *mtu { "less" } else { "more" };
        let found = format!(
            "{mtu}, {than} than the {} of {}",
            port.host.mtu, port.host.name
        );
        return check(found).but(
            State::Note,
            format!(
                "nothing has to be done; both ends can have the network's: {}",
                both(port)
            ),
        );
    }
    if let Some(bridge) = seen.bridge.as_ref().filter(|bridge| bridge.mtu != *mtu) {
        let found = format!("{mtu}, and {} of its bridge, {}", bridge.mtu, bridge.name);
        return check(found).but(
            State::Note,
            format!(
                "nothing, as endpoints' packets go by no bridge as a rule; or `ip link set dev {} mtu {mtu}`",
                bridge.name
            ),
        );
    }
    check(match narrowest {
        Some((uplink, narrow)) => format!("{mtu}; the narrowest uplink, {uplink}, has {narrow}"),
        None => format!("{mtu}; no uplink is up"),
    })
}

/// The command that makes a network with these rules, with its subnets or free ones.
fn again(network: &Network, subnets: bool, mtu: u32) -> String {
    let Network { name, rules, .. } = network;
    let Rules {
        internal,
        routed,
        masquerade,
        nat,
        filter,
    } = rules;
    let mut words = vec![format!("network create {name}")];
    if subnets {
        words.extend(nets(network).map(|net| format!("--subnet {net}")));
        let gateways = [network.gateway, network.gateway6].into_iter().flatten();
        words.extend(gateways.map(|ip| format!("--gateway {ip}")));
    } else if network.subnet6.is_some() {
        words.push("--ipv6".into());
    }
    let flags = [
        (*internal, "--internal"),
        (*routed, "--routed"),
        (!*routed && !*masquerade, "--no-masquerade"),
    ];
    words.extend(
        flags
            .iter()
            .filter(|(set, _)| *set)
            .map(|(_, word)| (*word).into()),
    );
    if *nat != Nat::default() {
        words.push(format!("--nat {} --filter {}", nat.name(), filter.name()));
    }
    words.push(format!("--mtu {mtu}"));
    for (key, value) in &network.labels {
        words.push(match value.is_empty() {
            true => format!("--label '{key}'"),
            false => format!("--label '{key}={value}'"),
        });
    }
    words.join(" ")
}

fn nets(network: &Network) -> impl Iterator<Item = IpNet> {
    [network.subnet, network.subnet6].into_iter().flatten()
}

/// Who else has addresses of the network's.
fn subnets(network: &Network, obstacles: &[Obstacle], instance: &Name) -> Option<Finding> {
    let mut wider = Vec::new();
    let mut within = Vec::new();
    for net in nets(network) {
        let overlapping = obstacles
            .iter()
            .filter(|other| other.net.prefix_len() > 0 && subnet::overlap(&other.net, &net));
        for other in overlapping {
            // A route for more than the network is no route for what is in it.
            let list = match other.net.prefix_len() < net.prefix_len() {
                true => &mut wider,
                false => &mut within,
            };
            list.push(format!("{net} and {}, {}", other.net, other.what));
        }
    }
    let name = &network.name;
    let check = |all: &[String]| ok(format!("subnets of {name}"), all.join("; "));
    let elsewhere = match name.as_str() {
        DEFAULT_NETWORK => format!(
            "{} takes away all networks, endpoints and publishes of the instance ({} writes down which), and the next \
             start chooses other subnets",
            command(instance, "down"),
            command(instance, "store export")
        ),
        _ => format!(
            "remove its endpoints, {}, {}, and add them again",
            command(instance, &format!("network rm {name}")),
            command(instance, &again(network, false, network.mtu))
        ),
    };
    if !within.is_empty() {
        return Some(check(&within).but(
            State::Warn,
            format!("`ip route show table all` lists routes; take that one away, or move the network: {elsewhere}"),
        ));
    }
    (!wider.is_empty()).then(|| {
        check(&wider).but(
            State::Note,
            format!("nothing, unless hosts with such addresses are to be reached: then move the network: {elsewhere}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> Network {
        Network {
            name: "back".parse().unwrap(),
            bridge: "netfw1".into(),
            subnet: Some("172.19.0.0/16".parse().unwrap()),
            gateway: None,
            subnet6: Some("fd00:19::/64".parse().unwrap()),
            gateway6: None,
            mac: "02:00:00:00:00:01".parse().unwrap(),
            mtu: 1500,
            rules: Rules::default(),
            labels: Default::default(),
            endpoints: 1,
        }
    }

    fn link(name: &str, mtu: u32) -> Link {
        Link {
            mtu,
            ..Link::example(2, name)
        }
    }

    fn port(host: u32, inner: u32) -> Port {
        Port {
            endpoint: "web".parse().unwrap(),
            host: link("nf01", host),
            inner: ("eth0".into(), Some(inner)),
        }
    }

    fn seen() -> Seen {
        Seen {
            network: network(),
            bridge: Some(link("netfw1", 1500)),
            ports: vec![port(1500, 1500)],
            unset: Vec::new(),
        }
    }

    fn name() -> Name {
        "netfw".parse().unwrap()
    }

    fn obstacle(net: &str) -> Obstacle {
        Obstacle {
            net: net.parse().unwrap(),
            what: "a route of the node".into(),
        }
    }

    #[test]
    fn mtus_that_do_not_fit_are_told() {
        for (uplink, bridge, host, inner, state, words) in [
            (
                1500,
                1500,
                1500,
                1500,
                State::Ok,
                "the narrowest uplink, up0, has 1500",
            ),
            (9000, 1500, 1500, 1500, State::Ok, "9000"),
            (
                1400,
                1500,
                1500,
                1500,
                State::Warn,
                "more than the 1400 of uplink up0",
            ),
            (
                1500,
                1500,
                9000,
                9000,
                State::Note,
                "less than the 9000 of nf01",
            ),
            (
                1500,
                1500,
                1400,
                1400,
                State::Note,
                "more than the 1400 of nf01",
            ),
            (
                1500,
                1500,
                1500,
                9000,
                State::Warn,
                "nf01 has 1500, eth0 of web 9000",
            ),
            (
                1500,
                1500,
                1280,
                1500,
                State::Warn,
                "the ends of a veth pair differ",
            ),
            (
                1500,
                1400,
                1500,
                1500,
                State::Note,
                "1400 of its bridge, netfw1",
            ),
        ] {
            let seen = Seen {
                bridge: Some(link("netfw1", bridge)),
                ports: vec![port(host, inner)],
                ..seen()
            };
            let found = mtu(&seen, Some(&("up0".into(), uplink)), &name());
            assert_eq!(found.state, state, "{found:?}");
            assert!(found.found.contains(words), "{found:?}");
            if host != 1500 || inner != 1500 {
                let both = "`netfw exec web -- ip link set dev eth0 mtu 1500` and `ip link set dev nf01 mtu 1500`";
                assert!(found.remedy.unwrap().contains(both));
            }
        }
        assert_eq!(mtu(&seen(), None, &name()).state, State::Ok);
    }

    #[test]
    fn a_network_is_made_again_as_it_was() {
        let mut network = network();
        assert_eq!(
            again(&network, false, 1500),
            "network create back --ipv6 --mtu 1500"
        );
        network.rules.routed = true;
        network.rules.masquerade = false;
        network.labels = [("team".to_owned(), "a b".to_owned())].into();
        assert_eq!(
            again(&network, true, 1400),
            "network create back --subnet 172.19.0.0/16 --subnet fd00:19::/64 --routed --mtu 1400 --label 'team=a b'"
        );
    }

    #[test]
    fn subnets_that_others_have_are_told() {
        let judged = |net: &str| subnets(&network(), &[obstacle(net)], &name());
        for (net, state) in [
            ("172.19.7.0/24", State::Warn),
            ("172.19.0.0/16", State::Warn),
            ("172.19.0.9/32", State::Warn),
            ("172.16.0.0/12", State::Note),
            ("fd00:19::/64", State::Warn),
            ("fd00::/8", State::Note),
        ] {
            let found = judged(net).unwrap();
            assert_eq!(found.state, state, "{found:?}");
            assert!(found.found.contains(net), "{found:?}");
            assert!(found.remedy.unwrap().contains("`netfw network rm back`"));
        }
        for net in ["0.0.0.0/0", "::/0", "172.20.0.0/16", "fd00:20::/64"] {
            assert_eq!(judged(net), None, "{net}");
        }
    }

    #[test]
    fn a_bridge_must_be_there_and_forward() {
        assert_eq!(bridge(&seen()).state, State::Ok);
        let gone = Seen {
            bridge: None,
            ..seen()
        };
        assert_eq!(bridge(&gone).state, State::Warn);
        let down = Seen {
            bridge: Some(Link {
                up: false,
                ..link("netfw1", 1500)
            }),
            ..seen()
        };
        assert!(
            bridge(&down)
                .remedy
                .unwrap()
                .contains("ip link set dev netfw1 up")
        );
        let unset = Seen {
            unset: vec!["net/ipv4/conf/netfw1/forwarding".into()],
            ..seen()
        };
        let found = bridge(&unset);
        assert_eq!(found.state, State::Warn);
        assert!(
            found
                .remedy
                .unwrap()
                .contains("net/ipv4/conf/netfw1/forwarding=1")
        );
    }
}
