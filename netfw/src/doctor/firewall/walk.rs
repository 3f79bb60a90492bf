//! What a ruleset does with a packet, as far as its rules are understood.
//!
//! A packet is described, not made: where it comes from and goes to, and what is known of the rest. A condition
//! holds, does not, or nobody can tell; so what becomes of the packet is a set. Where it has one member, that is
//! the answer, however many rules on the way were not understood.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use crate::net::{
    nftables::{Action, Asks, Chain, Condition, Interface, Place, Rule},
    subnet,
};

/// An interface, and its index where that is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link<'a> {
    pub name: &'a str,
    pub index: Option<u32>,
}

/// Where a packet comes from, or goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End<'a> {
    Link(Link<'a>),
    /// Any of these; nobody knows, where there are none.
    OneOf(&'a [Link<'a>]),
    Node,
}

// NF_CT_STATE_BIT of linux/netfilter/nf_conntrack_common.h.
pub const ESTABLISHED: u32 = 1 << 1;
pub const NEW: u32 = 1 << 3;
/// Neighbour discovery.
pub const UNTRACKED: u32 = 1 << 6;

/// None: any.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet<'a> {
    pub six: bool,
    pub from: End<'a>,
    pub to: End<'a>,
    pub protocol: Option<u8>,
    pub port: Option<u16>,
    pub source: Option<IpNet>,
    pub destination: Destination<'a>,
    pub state: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Destination<'a> {
    In(IpNet),
    /// One of the node's own.
    Local(&'a [IpAddr]),
    Any,
}

impl Packet<'_> {
    /// None where nobody can tell.
    fn meets(&self, condition: &Condition) -> Option<bool> {
        let met = match &condition.asks {
            Asks::From(interface) => self.from.is(interface),
            Asks::To(interface) => self.to.is(interface),
            Asks::Six(six) => Some(*six == self.six),
            Asks::Protocol(protocol) => self.protocol.map(|own| own == *protocol),
            Asks::Port(first, last) => self.port.map(|own| (*first..=*last).contains(&own)),
            Asks::Source(net) => self.source.and_then(|own| is_within(own, *net)),
            Asks::Destination(net) => match self.destination {
                Destination::In(own) => is_within(own, *net),
                Destination::Local(all) if !all.is_empty() => {
                    Some(all.iter().any(|own| net.contains(own)))
                }
                Destination::Local(_) | Destination::Any => None,
            },
            Asks::Local => match self.destination {
                Destination::Local(_) => Some(true),
                Destination::In(_) | Destination::Any => None,
            },
            Asks::State(states) => Some(states & self.state != 0),
            Asks::Unknown => None,
        };
        met.map(|met| met != condition.not)
    }

    fn meets_all(&self, rule: &Rule) -> Option<bool> {
        let mut all = Some(true);
        for condition in &rule.conditions {
            match self.meets(condition) {
                Some(true) => {}
                Some(false) => return Some(false),
                None => all = None,
            }
        }
        all
    }
}

impl End<'_> {
    fn is(&self, interface: &Interface) -> Option<bool> {
        match self {
            Self::Link(link) => interface.is(link.name, link.index),
            Self::Node => Some(false),
            Self::OneOf(links) => {
                let (first, rest) = links.split_first()?;
                let is = interface.is(first.name, first.index);
                rest.iter()
                    .all(|link| interface.is(link.name, link.index) == is)
                    .then_some(is)?
            }
        }
    }
}

fn is_within(own: IpNet, net: IpNet) -> Option<bool> {
    match net.contains(&own) {
        true => Some(true),
        false => (!subnet::overlap(&own, &net)).then_some(false),
    }
}

/// What may become of a packet.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Ends {
    passes: bool,
    drops: bool,
    translates: bool,
    /// It goes on behind what was looked at.
    goes_on: bool,
}

impl Ends {
    const UNKNOWN: Self = Self {
        passes: true,
        drops: true,
        translates: false,
        goes_on: true,
    };

    fn or(self, other: Self) -> Self {
        Self {
            passes: self.passes || other.passes,
            drops: self.drops || other.drops,
            translates: self.translates || other.translates,
            goes_on: self.goes_on || other.goes_on,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    Passes,
    /// By what.
    Drops(String),
    Unknown,
}

/// Rules by the chain that they are in.
pub struct Rulebook<'a>(BTreeMap<&'a Place, Vec<&'a Rule>>);

impl<'a> Rulebook<'a> {
    pub fn of(rules: &'a [Rule]) -> Self {
        let mut chains: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for rule in rules {
            chains.entry(&rule.place).or_default().push(rule);
        }
        Self(chains)
    }

    /// What a base chain does with a packet.
    pub fn verdict(&self, chain: &Chain, packet: &Packet<'_>) -> Verdict {
        let mut walk = self.walk(packet);
        let ends = walk.chain(&chain.place, 0);
        // What is translated is accepted.
        let passes = ends.passes || ends.translates || ends.goes_on && !chain.drops;
        let drops = ends.drops || ends.goes_on && chain.drops;
        match (passes, drops) {
            (true, false) => Verdict::Passes,
            (false, true) => Verdict::Drops(match walk.dropped {
                Some(place) if ends.drops => format!("a rule of {place}"),
                _ => "its policy".into(),
            }),
            _ => Verdict::Unknown,
        }
    }

    /// Does it send the packet elsewhere? None where nobody can tell.
    pub fn translates(&self, chain: &Chain, packet: &Packet<'_>) -> Option<bool> {
        let ends = self.walk(packet).chain(&chain.place, 0);
        match ends {
            Ends {
                translates: false, ..
            } => Some(false),
            Ends {
                passes: false,
                drops: false,
                goes_on: false,
                ..
            } => Some(true),
            _ => None,
        }
    }

    fn walk<'w>(&'w self, packet: &'w Packet<'w>) -> Walk<'w> {
        Walk {
            book: self,
            packet,
            seen: BTreeMap::new(),
            dropped: None,
        }
    }
}

/// The kernel goes no deeper (`NFT_JUMP_STACK_SIZE`).
const DEPTH: usize = 16;

struct Walk<'w> {
    book: &'w Rulebook<'w>,
    packet: &'w Packet<'w>,
    /// Chains that were walked: there may be many ways into one.
    seen: BTreeMap<Place, Ends>,
    /// The first chain with a rule that drops.
    dropped: Option<Place>,
}

impl Walk<'_> {
    fn chain(&mut self, place: &Place, depth: usize) -> Ends {
        if let Some(ends) = self.seen.get(place) {
            return *ends;
        }
        if depth > DEPTH {
            return Ends::UNKNOWN;
        }
        let mut ends = Ends::default();
        for rule in self.book.0.get(place).into_iter().flatten() {
            let met = self.packet.meets_all(rule);
            if met == Some(false) {
                continue;
            }
            let (mut act, back) = self.act(rule, depth);
            let way_on = act.goes_on || met.is_none();
            // Back to the caller, past the rest.
            act.goes_on = back;
            ends = ends.or(act);
            if !way_on {
                self.seen.insert(place.clone(), ends);
                return ends;
            }
        }
        ends.goes_on = true;
        self.seen.insert(place.clone(), ends);
        ends
    }

    /// What a rule does, and whether it may leave the chain for where that was called from.
    fn act(&mut self, rule: &Rule, depth: usize) -> (Ends, bool) {
        let none = Ends::default();
        let mut other = |chain: &str| {
            let place = Place {
                chain: chain.into(),
                ..rule.place.clone()
            };
            self.chain(&place, depth + 1)
        };
        match &rule.action {
            Action::Accept => (
                Ends {
                    passes: true,
                    ..none
                },
                false,
            ),
            Action::Drop => {
                self.dropped.get_or_insert_with(|| rule.place.clone());
                (
                    Ends {
                        drops: true,
                        ..none
                    },
                    false,
                )
            }
            Action::Dnat => (
                Ends {
                    translates: true,
                    ..none
                },
                false,
            ),
            Action::Jump(chain) => (other(chain), false),
            Action::Goto(chain) => {
                let ends = other(chain);
                (
                    Ends {
                        goes_on: false,
                        ..ends
                    },
                    ends.goes_on,
                )
            }
            Action::Return => (none, true),
            Action::Snat | Action::None => (
                Ends {
                    goes_on: true,
                    ..none
                },
                false,
            ),
            Action::Unknown => (Ends::UNKNOWN, true),
        }
    }
}

/// Rules for tests of who judges them.
#[cfg(test)]
pub mod made {
    use crate::net::nftables::{
        Action, Asks, Chain, Condition, Family, Hook, Interface, Place, Rule,
    };

    pub fn place(text: &str) -> Place {
        let words: Vec<&str> = text.split(' ').collect();
        Place {
            family: match words[0] {
                "inet" => Family::Inet,
                "ip" => Family::Ip,
                "ip6" => Family::Ip6,
                "bridge" => Family::Bridge,
                _ => Family::Other,
            },
            table: words[1].into(),
            chain: words[2].into(),
        }
    }

    pub fn chain(text: &str, hook: Hook, drops: bool) -> Chain {
        Chain {
            place: place(text),
            hook,
            drops,
        }
    }

    pub fn rule(text: &str, asks: &[Asks], action: Action) -> Rule {
        let conditions = asks.iter().cloned();
        Rule {
            place: place(text),
            conditions: conditions
                .map(|asks| Condition { asks, not: false })
                .collect(),
            action,
        }
    }

    pub fn from(name: &str) -> Asks {
        Asks::From(Interface::Named(name.into()))
    }

    pub fn to(name: &str) -> Asks {
        Asks::To(Interface::Named(name.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::{made::*, *};
    use crate::net::nftables::Hook;

    const CHAIN: &str = "inet filter forward";

    fn link(name: &str) -> Link<'_> {
        Link {
            name,
            index: Some(7),
        }
    }

    /// From netfw1 to eth0, by TCP, port 80.
    fn packet<'a>(outside: &'a [Link<'a>]) -> Packet<'a> {
        Packet {
            six: false,
            from: End::Link(link("netfw1")),
            to: End::OneOf(outside),
            protocol: Some(6),
            port: Some(80),
            source: Some("172.19.0.0/16".parse().unwrap()),
            destination: Destination::Any,
            state: NEW,
        }
    }

    #[track_caller]
    fn becomes(rules: &[Rule], drops: bool) -> Verdict {
        let outside = [link("eth0")];
        Rulebook::of(rules).verdict(&chain(CHAIN, Hook::Forward, drops), &packet(&outside))
    }

    fn dropped(place: &str) -> Verdict {
        Verdict::Drops(format!("a rule of {place}"))
    }

    #[test]
    fn the_first_rule_that_decides_counts_and_else_the_policy() {
        use Action::{Accept, Drop, None};
        let all = |action| rule(CHAIN, &[], action);
        let policy = Verdict::Drops("its policy".into());
        for (rules, drops, verdict) in [
            (vec![], false, Verdict::Passes),
            (vec![], true, policy.clone()),
            (vec![all(None)], true, policy),
            (vec![all(Accept)], true, Verdict::Passes),
            (vec![all(Drop)], false, dropped(CHAIN)),
            (vec![all(Accept), all(Drop)], false, Verdict::Passes),
            (vec![all(Drop), all(Accept)], false, dropped(CHAIN)),
            // Elsewhere.
            (
                vec![rule("inet filter other", &[], Drop)],
                false,
                Verdict::Passes,
            ),
            (
                vec![rule("inet theirs forward", &[], Drop)],
                false,
                Verdict::Passes,
            ),
        ] {
            assert_eq!(becomes(&rules, drops), verdict, "{rules:?}");
        }
    }

    #[test]
    fn conditions_hold_or_not_or_nobody_can_tell() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let named = |asks| (asks, Some(true));
        let other = |asks| (asks, Some(false));
        let beginning = |text: &str| Interface::Beginning(text.into());
        for (asks, met) in [
            named(from("netfw1")),
            other(from("netfw10")),
            named(Asks::From(beginning("netfw"))),
            named(Asks::From(Interface::Index(7))),
            other(Asks::From(Interface::Index(8))),
            named(to("eth0")),
            other(to("netfw1")),
            named(Asks::Six(false)),
            named(Asks::Protocol(6)),
            other(Asks::Protocol(17)),
            named(Asks::Port(80, 90)),
            other(Asks::Port(81, 90)),
            named(Asks::Source(net("172.16.0.0/12"))),
            (Asks::Source(net("172.19.7.0/24")), None),
            other(Asks::Source(net("10.0.0.0/8"))),
            (Asks::Destination(net("10.0.0.0/8")), None),
            (Asks::Local, None),
            named(Asks::State(NEW | ESTABLISHED)),
            other(Asks::State(ESTABLISHED)),
            (Asks::Unknown, None),
        ] {
            for not in [false, true] {
                let asks = asks.clone();
                let outside = [link("eth0")];
                let condition = Condition { asks, not };
                let wanted = met.map(|met| met != not);
                assert_eq!(packet(&outside).meets(&condition), wanted, "{condition:?}");
            }
        }
        // By one of two.
        let outside = [link("eth0"), link("wlan0")];
        let ask = |asks| packet(&outside).meets(&Condition { asks, not: false });
        assert_eq!(ask(to("eth0")), None);
        assert_eq!(ask(to("docker0")), Some(false));
    }

    #[test]
    fn what_is_not_understood_matters_only_where_it_decides() {
        let asked = |action| rule(CHAIN, &[Asks::Unknown], action);
        let all = |action| rule(CHAIN, &[], action);
        for (rules, drops, verdict) in [
            (vec![asked(Action::Accept)], true, Verdict::Unknown),
            (vec![asked(Action::Accept)], false, Verdict::Passes),
            (vec![asked(Action::Drop)], false, Verdict::Unknown),
            (
                vec![asked(Action::Drop), all(Action::Drop)],
                false,
                dropped(CHAIN),
            ),
            (
                vec![asked(Action::Return), all(Action::Drop)],
                false,
                Verdict::Unknown,
            ),
            (
                vec![all(Action::Unknown), all(Action::Drop)],
                true,
                Verdict::Unknown,
            ),
            // It does not hold, whatever the other says.
            (
                vec![rule(CHAIN, &[Asks::Unknown, from("eth9")], Action::Accept)],
                true,
                Verdict::Drops("its policy".into()),
            ),
        ] {
            assert_eq!(becomes(&rules, drops), verdict, "{rules:?}");
        }
    }

    #[test]
    fn other_chains_are_followed() {
        const LAST: &str = "inet filter last";
        let jump = |asks: &[Asks]| rule(CHAIN, asks, Action::Jump("last".into()));
        let goto = || rule(CHAIN, &[], Action::Goto("last".into()));
        let all = |place, action| rule(place, &[], action);
        for (rules, verdict) in [
            (vec![jump(&[]), all(LAST, Action::Drop)], dropped(LAST)),
            (
                vec![jump(&[from("eth9")]), all(LAST, Action::Drop)],
                Verdict::Passes,
            ),
            (
                vec![jump(&[Asks::Unknown]), all(LAST, Action::Drop)],
                Verdict::Unknown,
            ),
            (vec![jump(&[]), all(CHAIN, Action::Drop)], dropped(CHAIN)),
            (
                vec![
                    jump(&[]),
                    all(LAST, Action::Return),
                    all(CHAIN, Action::Drop),
                ],
                dropped(CHAIN),
            ),
            // From where it went, there is no way back.
            (vec![goto(), all(CHAIN, Action::Drop)], Verdict::Passes),
            (vec![goto(), all(LAST, Action::Drop)], dropped(LAST)),
            (
                vec![all(CHAIN, Action::Return), all(CHAIN, Action::Drop)],
                Verdict::Passes,
            ),
        ] {
            assert_eq!(becomes(&rules, false), verdict, "{rules:?}");
        }
        // The kernel has no such, but a list may be of two moments.
        let round = rule(LAST, &[], Action::Jump("last".into()));
        assert_eq!(becomes(&[jump(&[]), round], false), Verdict::Unknown);
    }
}
