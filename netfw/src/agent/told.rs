//! Events in words: names for numbers.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv6Addr},
    time::{Duration, SystemTime},
};

use netfw_common::{
    addr::Ip6,
    event::{Action, Ends, Event, Hook, Why},
    flow::flag,
    tuple::proto,
};

use super::{Agent, flow::origin};
use crate::{
    api::{
        types::Tuple,
        watch::{Decision, FlowOf, Icmp, Line, Packet},
    },
    bpf::{epoch_of_events, interface_name},
    filter::{IpProtocol, State},
    name::Name,
};

/// `ETH_P_*` (linux/if_ether.h).
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ARP: u16 = 0x0806;

/// What the numbers in some events mean.
pub struct Names {
    /// Whose a counter is: the endpoint, and the publish where it is one's.
    counters: HashMap<u32, (Name, Option<String>)>,
    interfaces: HashMap<u32, Option<String>>,
    /// Since when the events' time counts.
    epoch: Duration,
}

impl Names {
    /// Must be called in the node's namespace.
    pub fn of(agent: &Agent, events: &[Event]) -> Self {
        let meant = |event: &Event| [event.endpoint, event.counter.into()];
        let meant: HashSet<u32> = events.iter().flat_map(meant).collect();
        let mut counters = HashMap::new();
        for endpoint in agent.wanted.endpoints.values() {
            let own = std::iter::once((endpoint.counter, None));
            let publishes = endpoint.publishes.iter();
            let publishes = publishes.map(|p| (p.counter, Some(&p.publish)));
            for (counter, publish) in own.chain(publishes) {
                if meant.contains(&counter) {
                    let publish = publish.map(ToString::to_string);
                    counters.insert(counter, (endpoint.name.clone(), publish));
                }
            }
        }
        Self {
            counters,
            interfaces: interfaces(events, interface_name),
            epoch: epoch_of_events(),
        }
    }

    pub fn drop(&self, event: &Event) -> Line {
        Line::Drop {
            packet: self.packet(event),
            reason: reason(event),
            answered: event.action == Action::Answer as u8,
        }
    }

    pub fn decision(&self, event: &Event) -> Line {
        let action = Action::of(event.action);
        let flow = self.flow(event);
        let to = self.interfaces.get(&event.to).cloned().flatten();
        Line::Packet {
            packet: self.packet(event),
            decision: Box::new(Decision {
                translated: (event.after != event.before)
                    .then(|| tuple(&event.after))
                    .flatten(),
                action: action.map_or("?", Action::name).into(),
                why: match event.drop() {
                    Some(reason) => reason.name().into(),
                    None => Why::of(event.why).map_or("?", Why::name).into(),
                },
                sentence: sentence(event, flow.as_ref(), to.as_deref()),
                flow,
                to,
            }),
        }
    }

    fn packet(&self, event: &Event) -> Packet {
        Packet {
            time: self.time(event),
            hook: Hook::of(event.hook).map_or("?", Hook::name).into(),
            interface: self.interfaces.get(&event.ifindex).cloned().flatten(),
            endpoint: self
                .counters
                .get(&event.endpoint)
                .map(|(name, _)| name.clone()),
            protocol: protocol(event),
            tuple: tuple(&event.before),
            icmp: matches!(event.proto, proto::ICMP | proto::ICMPV6).then_some(Icmp {
                r#type: event.icmp_type,
                code: event.icmp_code,
            }),
            length: event.len,
        }
    }

    fn flow(&self, event: &Event) -> Option<FlowOf> {
        let by_flow = [Why::Known, Why::New, Why::Related].map(|why| why as u8);
        if !by_flow.contains(&event.why) {
            return None;
        }
        let owner = self.counters.get(&event.counter.into());
        Some(FlowOf {
            origin: origin(event.flow).into(),
            state: State::of(event.proto, event.state).name().into(),
            direction: match event.flow & flag::REPLY {
                0 => "original",
                _ => "reply",
            }
            .into(),
            endpoint: owner.map(|(name, _)| name.clone()),
            publish: owner.and_then(|(_, publish)| publish.clone()),
        })
    }

    fn time(&self, event: &Event) -> String {
        let since = self.epoch + Duration::from_nanos(event.time);
        humantime::format_rfc3339_micros(SystemTime::UNIX_EPOCH + since).to_string()
    }
}

/// Each asked for once: a flood comes by one interface.
fn interfaces(
    events: &[Event],
    mut name: impl FnMut(u32) -> Option<String>,
) -> HashMap<u32, Option<String>> {
    let mut names = HashMap::new();
    for index in events.iter().flat_map(|event| [event.ifindex, event.to]) {
        names.entry(index).or_insert_with(|| name(index));
    }
    names
}

fn reason(event: &Event) -> String {
    event.drop().map_or("?", |reason| reason.name()).into()
}

fn protocol(event: &Event) -> String {
    match event.ethertype.get() {
        IPV4 | IPV6 => IpProtocol(event.proto).to_string(),
        ARP => "arp".into(),
        other => format!("{other:#06x}"),
    }
}

fn ip(addr: Ip6) -> IpAddr {
    Ipv6Addr::from(addr).to_canonical()
}

/// None where there are no addresses.
fn tuple(ends: &Ends) -> Option<Tuple> {
    (*ends != Ends::default()).then(|| Tuple {
        src: ip(ends.src),
        dst: ip(ends.dst),
        sport: ends.sport.get(),
        dport: ends.dport.get(),
    })
}

/// What became of the packet, and why.
fn sentence(event: &Event, flow: Option<&FlowOf>, to: Option<&str>) -> String {
    let action = Action::of(event.action);
    let does = action.map_or("?", Action::description);
    if let Some(reason) = event.drop() {
        return format!("{does}: {}", reason.name());
    }
    let why = Why::of(event.why).map_or("?", Why::description);
    let flow = flow.map_or_else(String::new, |flow| {
        let by = match (&flow.publish, &flow.endpoint) {
            (Some(publish), Some(endpoint)) => format!(" of publish {publish} of {endpoint}"),
            (None, Some(endpoint)) => format!(" of {} of {endpoint}", flow.origin),
            _ => format!(" of {}", flow.origin),
        };
        format!("{by} ({}, {})", flow.state, flow.direction)
    });
    let to = to.map_or_else(String::new, |to| format!(" by {to}"));
    format!("{why}{flow}: {does}{to}")
}

#[cfg(test)]
mod tests {
    use netfw_common::{
        addr::{Be16, Ip4},
        drop::Drop,
        flow::state,
    };

    use super::*;

    fn names() -> Names {
        let web: Name = "web".parse().unwrap();
        Names {
            counters: [
                (1, (web.clone(), None)),
                (2, (web, Some("0.0.0.0:8080:80/tcp".into()))),
            ]
            .into(),
            interfaces: [(3, Some("eth0".into())), (4, Some("nf1".into()))].into(),
            epoch: Duration::from_secs(1_000_000_000),
        }
    }

    fn event() -> Event {
        let ends = |last, dport| Ends {
            src: Ip6::from_mapped(Ip4::new([192, 0, 2, 9])),
            dst: Ip6::from_mapped(Ip4::new([192, 0, 2, last])),
            sport: Be16::new(4000),
            dport: Be16::new(dport),
        };
        Event {
            time: 1_500_000_000,
            before: ends(1, 8080),
            after: ends(2, 80),
            ifindex: 3,
            to: 4,
            len: 60,
            endpoint: 1,
            counter: 2,
            ethertype: Be16::new(IPV4),
            proto: proto::TCP,
            hook: Hook::Uplink as u8,
            action: Action::Container as u8,
            why: Why::New as u8,
            flow: flag::PUBLISHED,
            state: state::NEW,
            ..Event::default()
        }
    }

    #[test]
    fn a_decision_is_told_in_words() {
        let Line::Packet { packet, decision } = names().decision(&event()) else {
            panic!("no decision");
        };
        assert_eq!(packet.time, "2001-09-09T01:46:41.500000Z");
        assert_eq!(packet.interface.as_deref(), Some("eth0"));
        assert_eq!(packet.endpoint, Some("web".parse().unwrap()));
        assert_eq!(decision.translated.unwrap().dport, 80);
        assert_eq!(
            decision.sentence,
            "it made a flow of publish 0.0.0.0:8080:80/tcp of web (new, original): sent into a container by nf1"
        );
    }

    #[test]
    fn a_name_is_asked_for_once() {
        let back = Event {
            ifindex: 4,
            to: 3,
            ..event()
        };
        let mut asked = Vec::new();
        let names = interfaces(&[event(), back, event()], |index| {
            asked.push(index);
            Some(format!("eth{index}"))
        });
        asked.sort_unstable();
        assert_eq!(asked, [3, 4]);
        assert_eq!(names[&4].as_deref(), Some("eth4"));
    }

    #[test]
    fn what_went_on_as_it_was_and_what_was_dropped() {
        let passed = Event {
            after: event().before,
            action: Action::Pass as u8,
            why: Why::NotOurs as u8,
            to: 0,
            ..event()
        };
        let Line::Packet { decision, .. } = names().decision(&passed) else {
            panic!("no decision");
        };
        assert_eq!((decision.translated, decision.flow), (None, None));
        let dropped = Event {
            action: Action::Answer as u8,
            reason: Drop::TtlExceeded as u8,
            ..passed
        };
        let Line::Drop {
            reason, answered, ..
        } = names().drop(&dropped)
        else {
            panic!("no drop");
        };
        assert_eq!((reason.as_str(), answered), ("ttl-exceeded", true));
        let arp = Event {
            ethertype: Be16::new(ARP),
            proto: 0,
            ..dropped
        };
        assert_eq!(protocol(&arp), "arp");
        assert_eq!(
            protocol(&Event {
                ethertype: Be16::new(0x88cc),
                ..arp
            }),
            "0x88cc"
        );
    }
}
