//! The packets that netfw leaves to the node's stack, and that must pass its rules.

use std::net::IpAddr;

use ipnet::IpNet;

use super::walk::{Destination, ESTABLISHED, End, Link, NEW, Packet, UNTRACKED};
use crate::{
    doctor::{Node, State, Told, node},
    net::{
        nftables::{Chain, Family, Hook, Place},
        sysctl,
    },
    rules::Rules,
};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP6: u8 = 58;
const DNS: u16 = 53;

/// What the stack sees of a network of one family.
#[derive(Clone, Copy, Debug)]
pub struct Side {
    pub subnet: IpNet,
    pub gateway: Option<IpAddr>,
    /// The bridge asks the rules for what it forwards (`bridge-nf-call-iptables`, `-ip6tables`).
    pub filtered: bool,
}

/// A network, as far as rules see it.
#[derive(Clone, Copy, Debug)]
pub struct Bridged<'a> {
    pub link: Link<'a>,
    pub rules: Rules,
    pub sides: [Option<Side>; 2],
    /// Processes of the node may send to its endpoints: one has a publish.
    pub published: bool,
}

impl<'a> Bridged<'a> {
    pub fn all(seen: Option<&Node>, told: Option<&'a Told>) -> Vec<Self> {
        let filtered = ["iptables", "ip6tables"].map(|tables| {
            let key = format!("net/bridge/bridge-nf-call-{tables}");
            sysctl::get(&key).is_ok_and(|value| value == "1")
        });
        let networks = told.into_iter().flat_map(|told| {
            told.status
                .networks
                .iter()
                .map(move |network| (told, network))
        });
        networks
            .map(|(told, network)| {
                let side = |subnet: Option<IpNet>, gateway, filtered| {
                    subnet.map(|subnet| Side {
                        subnet,
                        gateway,
                        filtered,
                    })
                };
                let mut published = told
                    .endpoints
                    .iter()
                    .filter(|one| !one.publishes.is_empty());
                Self {
                    link: Link {
                        name: &network.bridge,
                        index: seen
                            .and_then(|seen| seen.link(&network.bridge))
                            .map(|link| link.index),
                    },
                    rules: network.rules,
                    sides: [
                        side(network.subnet, network.gateway, filtered[0]),
                        side(network.subnet6, network.gateway6, filtered[1]),
                    ],
                    published: published
                        .any(|one| one.networks.iter().any(|own| own.network == network.name)),
                }
            })
            .collect()
    }

    /// One that nobody has made yet.
    pub fn to_come() -> Self {
        Self {
            link: Link {
                name: "netfw0",
                index: None,
            },
            rules: Rules::default(),
            sides: [None; 2],
            published: false,
        }
    }

    pub fn is_forwarded(&self) -> bool {
        node::is_forwarded(&self.rules)
    }
}

/// A packet that is to pass, and how bad it is where it does not.
#[derive(Clone, Debug)]
pub struct Need<'a> {
    pub words: String,
    pub packet: Packet<'a>,
    pub state: State,
}

/// Of all networks, in a chain.
pub fn needs<'a>(
    chain: &Chain,
    networks: &[Bridged<'a>],
    outside: &'a [Link<'a>],
) -> Vec<Need<'a>> {
    let families: &[bool] = match chain.place.family {
        Family::Ip => &[false],
        Family::Ip6 => &[true],
        Family::Inet => &[false, true],
        Family::Bridge | Family::Other => &[],
    };
    let of = match chain.hook {
        Hook::Forward => forward,
        Hook::Input => input,
        Hook::Output => output,
        _ => return Vec::new(),
    };
    let mut needs = Vec::new();
    for network in networks {
        for six in families {
            if let Some(side) = network.sides[usize::from(*six)] {
                of(network, &side, packet(*six), outside, &mut needs);
            }
        }
    }
    needs
}

fn packet<'a>(six: bool) -> Packet<'a> {
    Packet {
        six,
        from: End::Node,
        to: End::Node,
        protocol: None,
        port: None,
        source: None,
        destination: Destination::Any,
        state: NEW,
    }
}

/// What a network to come would need first.
pub fn of_any<'a>(
    chain: &Chain,
    network: &Bridged<'a>,
    outside: &'a [Link<'a>],
) -> Option<Need<'a>> {
    let six = chain.place.family == Family::Ip6;
    let from = End::Link(network.link);
    let packet = match (chain.place.family, chain.hook) {
        (Family::Bridge | Family::Other, _) => return None,
        (_, Hook::Forward) => Packet {
            from,
            to: End::OneOf(outside),
            ..packet(six)
        },
        (_, Hook::Input) => Packet {
            from,
            protocol: Some(UDP),
            port: Some(DNS),
            ..packet(six)
        },
        _ => return None,
    };
    Some(Need {
        words: String::new(),
        packet,
        state: State::Note,
    })
}

fn forward<'a>(
    network: &Bridged<'a>,
    side: &Side,
    packet: Packet<'a>,
    outside: &'a [Link<'a>],
    needs: &mut Vec<Need<'a>>,
) {
    let (bridge, own) = (network.link.name, End::Link(network.link));
    if side.filtered {
        let (protocol, state, words, how_bad) = match packet.six {
            true => (
                ICMP6,
                UNTRACKED,
                format!(
                    "neighbour discovery within {bridge}, without which IPv6 is dead there (br_netfilter)"
                ),
                State::Warn,
            ),
            false => (
                UDP,
                NEW,
                format!("IPv4 multicast and broadcast within {bridge} (br_netfilter)"),
                State::Note,
            ),
        };
        needs.push(Need {
            words,
            packet: Packet {
                from: own,
                to: own,
                protocol: Some(protocol),
                state,
                ..packet
            },
            state: how_bad,
        });
    }
    if !network.is_forwarded() {
        return;
    }
    needs.push(Need {
        words: format!("what {bridge} sends"),
        packet: Packet {
            from: own,
            to: End::OneOf(outside),
            source: Some(side.subnet),
            ..packet
        },
        state: State::Warn,
    });
    needs.push(Need {
        words: format!("what is for {bridge}"),
        packet: Packet {
            from: End::OneOf(outside),
            to: own,
            destination: Destination::In(side.subnet),
            // To what is not routed nobody may speak first.
            state: if network.rules.routed {
                NEW
            } else {
                ESTABLISHED
            },
            ..packet
        },
        state: State::Warn,
    });
}

fn input<'a>(
    network: &Bridged<'a>,
    side: &Side,
    packet: Packet<'a>,
    _: &'a [Link<'a>],
    needs: &mut Vec<Need<'a>>,
) {
    let (bridge, from) = (network.link.name, End::Link(network.link));
    for protocol in [UDP, TCP] {
        needs.push(Need {
            words: format!("questions for names from {bridge}"),
            packet: Packet {
                from,
                protocol: Some(protocol),
                port: Some(DNS),
                source: Some(side.subnet),
                destination: to_gateway(side),
                ..packet
            },
            state: State::Warn,
        });
    }
    if packet.six {
        needs.push(Need {
            words: format!("neighbour discovery from {bridge}"),
            packet: Packet {
                from,
                protocol: Some(ICMP6),
                state: UNTRACKED,
                ..packet
            },
            state: State::Warn,
        });
    }
}

fn to_gateway<'a>(side: &Side) -> Destination<'a> {
    side.gateway
        .map_or(Destination::Any, |ip| Destination::In(ip.into()))
}

fn output<'a>(
    network: &Bridged<'a>,
    side: &Side,
    packet: Packet<'a>,
    _: &'a [Link<'a>],
    needs: &mut Vec<Need<'a>>,
) {
    let bridge = network.link.name;
    let packet = Packet {
        to: End::Link(network.link),
        destination: Destination::In(side.subnet),
        ..packet
    };
    needs.push(Need {
        words: format!("answers with names to {bridge}"),
        packet: Packet {
            protocol: Some(UDP),
            source: side.gateway.map(IpNet::from),
            state: ESTABLISHED,
            ..packet
        },
        state: State::Warn,
    });
    if packet.six {
        needs.push(Need {
            words: format!("neighbour discovery to {bridge}"),
            packet: Packet {
                protocol: Some(ICMP6),
                destination: Destination::Any,
                state: UNTRACKED,
                ..packet
            },
            state: State::Warn,
        });
    }
    if network.published {
        needs.push(Need {
            words: format!("what the node's processes send to publishes in {bridge}"),
            packet: Packet {
                protocol: Some(TCP),
                ..packet
            },
            state: State::Warn,
        });
    }
}

impl Need<'_> {
    /// The command that adds a rule to a base chain which lets it pass: iptables' own where the chain is of
    /// iptables, which does not list what it could not have written.
    pub fn rule(&self, place: &Place) -> String {
        let name = |end: &End<'_>| match end {
            End::Link(link) => Some(link.name.to_owned()),
            End::OneOf(_) | End::Node => None,
        };
        let (from, to) = (name(&self.packet.from), name(&self.packet.to));
        // Of what comes to the node, no more than it needs.
        let protocol = match self.packet.to {
            End::Node => self.packet.protocol,
            _ => None,
        };
        let mut words = Vec::new();
        let iptables = place.is_of_iptables();
        let (input, output) = match iptables {
            true => ("-i", "-o"),
            false => ("iifname", "oifname"),
        };
        words.extend(from.map(|from| format!("{input} {from}")));
        words.extend(to.map(|to| format!("{output} {to}")));
        words.extend(protocol.map(|protocol| match (protocol, iptables) {
            (UDP, true) => "-p udp --dport 53".into(),
            (TCP, true) => "-p tcp --dport 53".into(),
            (UDP, false) => "udp dport 53".into(),
            (TCP, false) => "tcp dport 53".into(),
            (_, true) => "-p ipv6-icmp".into(),
            (_, false) => "meta l4proto ipv6-icmp".to_owned(),
        }));
        let words = words.join(" ");
        match iptables {
            true => {
                let program = match place.family {
                    Family::Ip6 => "ip6tables-nft",
                    _ => "iptables-nft",
                };
                let Place { table, chain, .. } = place;
                format!("`{program} -t {table} -I {chain} {words} -j ACCEPT`")
            }
            false => format!("`nft insert rule {place} {words} accept`"),
        }
    }
}
