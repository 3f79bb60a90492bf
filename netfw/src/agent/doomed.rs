//! Which flows, mappings and permits must go. Whoever is concerned is judged by what is so at the moment of
//! judging; the walk to all of them is [`purge`](super::purge)'s.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use ipnet::IpNet;
use netfw_common::{
    flow::{Flow, flag},
    record::{Mapping, MappingKey, side},
    tuple::{Tuple, zone},
};

use super::record::Endpoint;
use crate::{
    bpf::{Family, Visit},
    publish::Publish,
};

/// Which flows and mappings.
#[derive(Clone, Debug)]
pub enum Doomed {
    All,
    /// Those that publishes with these counters made.
    Counters(HashSet<u32>),
    /// Those in which an endpoint has part, as its owner or (a client of a neighbour's publish) as one
    /// of its ends.
    Endpoint {
        counters: HashSet<u32>,
        ips: HashSet<IpAddr>,
    },
    /// Masqueraded ones whose answers come to ports that are published now, and those that came in
    /// through mappings of such ports: they would be found before the publish is.
    Shadows(Shadows),
    /// Those by addresses that are not the node's any more: nothing comes back to them, and what a
    /// container sends would keep them from expiring.
    Foreign,
    /// Those that no endpoint accounts for, and those into veth pairs that are none's any more: where an
    /// endpoint has another one by now, its new flows stay.
    Unowned,
}

/// Publishes that flows may be in the way of.
#[derive(Clone, Debug)]
pub struct Shadows {
    publishes: Vec<Publish>,
    /// A bit for each host port of theirs: most flows are at none, and need no second look.
    ports: Vec<u64>,
}

impl Shadows {
    pub fn of(publishes: impl IntoIterator<Item = Publish>) -> Self {
        let mut all = Self {
            publishes: Vec::new(),
            ports: vec![0; (1 << 16) / 64],
        };
        publishes.into_iter().for_each(|publish| all.add(publish));
        all
    }

    fn add(&mut self, publish: Publish) {
        for port in publish.host_ports.ports() {
            self.ports[usize::from(port) / 64] |= 1 << (port % 64);
        }
        self.publishes.push(publish);
    }

    pub(super) fn extend(&mut self, more: &Self) {
        more.publishes.iter().for_each(|publish| self.add(*publish));
    }

    /// Does one of them take what is sent there?
    fn take<A: Family>(&self, addr: A, port: u16, proto: u8) -> bool {
        self.ports[usize::from(port) / 64] & 1 << (port % 64) != 0
            && self
                .publishes
                .iter()
                .any(|publish| takes(publish, addr, port, proto))
    }
}

impl Doomed {
    pub fn endpoint(endpoint: &Endpoint) -> Self {
        Self::Endpoint {
            // 0 is nobody's.
            counters: endpoint.counters().filter(|c| *c != 0).collect(),
            ips: endpoint.ips().collect(),
        }
    }

    /// Those of containers with these addresses.
    pub fn addresses(ips: impl IntoIterator<Item = IpAddr>) -> Self {
        Self::Endpoint {
            counters: HashSet::new(),
            ips: ips.into_iter().collect(),
        }
    }
}

/// A [`Doomed`], with what it is measured by at this moment.
pub(super) struct Judge<'a> {
    doomed: &'a Doomed,
    locals: &'a HashMap<IpAddr, u32>,
    /// Networks whose containers are reached by their own addresses.
    pub(super) subnets: Vec<IpNet>,
    /// Of endpoints: their counters, the addresses of those that are up, and their veth pairs' host sides.
    pub(super) counters: HashSet<u32>,
    pub(super) ips: HashSet<IpAddr>,
    pub(super) interfaces: HashSet<u32>,
}

impl<'a> Judge<'a> {
    /// The rest is for whoever needs it.
    pub(super) fn new(doomed: &'a Doomed, locals: &'a HashMap<IpAddr, u32>) -> Self {
        Self {
            doomed,
            locals,
            subnets: Vec::new(),
            counters: HashSet::new(),
            ips: HashSet::new(),
            interfaces: HashSet::new(),
        }
    }

    fn is_foreign(&self, ip: IpAddr) -> bool {
        !self.locals.contains_key(&ip) && !self.subnets.iter().any(|net| net.contains(&ip))
    }
}

impl Visit for Judge<'_> {
    fn flow<A: Family>(&mut self, key: &Tuple<A>, flow: &Flow<A>) -> bool {
        let counter = u32::from(flow.counter);
        match self.doomed {
            Doomed::All => true,
            Doomed::Counters(counters) => counters.contains(&counter),
            Doomed::Endpoint { counters, ips } => {
                // An `apply` may remove a thousand at once.
                let part = |addr: A| ips.contains(&addr.ip());
                counters.contains(&counter)
                    || [key.src, key.dst, flow.src, flow.dst].into_iter().any(part)
            }
            Doomed::Shadows(publishes) => {
                // One that came in through a mapping, from the world or from a container, too.
                let shadow = if flow.has(flag::PUBLISHED) {
                    flow.has(flag::MAPPED) && !flow.has(flag::REPLY)
                } else {
                    key.zone == zone::WORLD
                };
                shadow && publishes.take(key.dst, key.dport.get(), key.proto)
            }
            Doomed::Foreign => key.zone == zone::WORLD && self.is_foreign(key.dst.ip()),
            Doomed::Unowned => {
                !self.counters.contains(&counter)
                    || flow.has(flag::TO_CONTAINER) && !self.interfaces.contains(&flow.ifindex)
            }
        }
    }

    fn judges_halves_alike(&self) -> bool {
        match self.doomed {
            Doomed::All | Doomed::Counters(_) | Doomed::Endpoint { .. } => true,
            // What the world sends, or what leads into a container, is judged; the other half goes with it.
            Doomed::Shadows(_) | Doomed::Foreign | Doomed::Unowned => false,
        }
    }

    fn mapping<A: Family>(&mut self, key: &MappingKey<A>, mapping: &Mapping<A>) -> bool {
        let [inside, outside] = match key.side {
            side::INTERNAL => [(key.addr, key.port), (mapping.addr, mapping.port)],
            _ => [(mapping.addr, mapping.port), (key.addr, key.port)],
        };
        match self.doomed {
            Doomed::All => true,
            Doomed::Counters(_) => false,
            Doomed::Endpoint { ips, .. } => ips.contains(&inside.0.ip()),
            Doomed::Shadows(publishes) => publishes.take(outside.0, outside.1.get(), key.proto),
            Doomed::Foreign => self.is_foreign(outside.0.ip()),
            Doomed::Unowned => !self.ips.contains(&inside.0.ip()),
        }
    }

    fn permit<A: Family>(&mut self, key: &Tuple<A>) -> bool {
        match self.doomed {
            Doomed::All => true,
            Doomed::Endpoint { ips, .. } => ips.contains(&key.dst.ip()),
            Doomed::Unowned => !self.ips.contains(&key.dst.ip()),
            Doomed::Counters(_) | Doomed::Shadows(_) | Doomed::Foreign => false,
        }
    }
}

/// Does the publish take what is sent there?
fn takes<A: Family>(publish: &Publish, addr: A, port: u16, proto: u8) -> bool {
    proto == publish.protocol.number()
        && publish.host_ports.contains(port)
        && A::of(publish.host_ip).is_some_and(|host| host == A::ANY || host == addr)
}

#[cfg(test)]
mod tests {
    use netfw_common::{
        addr::{Be16, Ip4, Ip6},
        flow::Flow4,
        tuple::{Tuple4, proto},
    };

    use super::*;
    use crate::publish::Spec;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn judge<'a>(doomed: &'a Doomed, locals: &'a HashMap<IpAddr, u32>) -> Judge<'a> {
        Judge {
            subnets: vec!["172.18.0.0/16".parse().unwrap()],
            counters: HashSet::from([7]),
            ips: HashSet::from([ip("fd00::2")]),
            interfaces: HashSet::from([5]),
            ..Judge::new(doomed, locals)
        }
    }

    fn key(dst: &str, port: u16) -> Tuple4 {
        Tuple4 {
            src: Ip4::new([192, 0, 2, 9]),
            dst: Ip4::of(ip(dst)).unwrap(),
            dport: Be16::new(port),
            proto: proto::TCP,
            zone: zone::WORLD,
            ..Default::default()
        }
    }

    #[test]
    fn those_concerned_and_no_others() {
        let locals = HashMap::from([(ip("192.0.2.1"), 2)]);
        let spec: Spec = "0.0.0.0:8080:80".parse().unwrap();
        let publish = spec.resolve(ip("0.0.0.0"), spec.container_ports);
        let endpoint = Doomed::Endpoint {
            counters: HashSet::from([5]),
            ips: HashSet::from([ip("172.18.0.2"), ip("fd00::2")]),
        };
        let flow = Flow4 {
            counter: 7,
            ..Default::default()
        };
        let cases: [(&Doomed, [bool; 3]); 6] = [
            (&Doomed::All, [true; 3]),
            (&Doomed::Counters(HashSet::from([7])), [true; 3]),
            (&Doomed::Counters(HashSet::from([8])), [false; 3]),
            (&endpoint, [false, false, true]),
            (
                &Doomed::Shadows(Shadows::of([publish])),
                [true, false, false],
            ),
            (&Doomed::Foreign, [false, true, false]),
        ];
        for (doomed, want) in cases {
            let mut judge = judge(doomed, &locals);
            let found = [
                key("192.0.2.1", 8080),
                key("192.0.2.2", 80),
                key("172.18.0.2", 80),
            ]
            .map(|key| judge.flow(&key, &flow));
            assert_eq!(found, want, "{doomed:?}");
        }
        let mapped = Flow4 {
            flags: flag::PUBLISHED | flag::MAPPED,
            ..flow
        };
        for (zone, flags, want) in [
            (zone::WORLD, flag::PUBLISHED, false),
            (zone::CONTAINER, 0, false),
            (zone::WORLD, mapped.flags, true),
            (zone::CONTAINER, mapped.flags, true),
            (zone::CONTAINER, mapped.flags | flag::REPLY, false),
        ] {
            let doomed = Doomed::Shadows(Shadows::of([publish]));
            let key = Tuple4 {
                zone,
                ..key("192.0.2.1", 8080)
            };
            let found = judge(&doomed, &locals).flow(&key, &Flow4 { flags, ..mapped });
            assert_eq!(found, want, "{zone} {flags}");
        }
        let mut judge = judge(&Doomed::Unowned, &locals);
        assert!(!judge.flow(&key("192.0.2.1", 1), &flow));
        assert!(judge.flow(&key("192.0.2.1", 1), &Flow4::default()));
        for (ifindex, flags, goes) in [
            (5, flag::TO_CONTAINER, false),
            (6, flag::TO_CONTAINER, true),
            // By an uplink.
            (6, 0, false),
        ] {
            let half = Flow4 {
                ifindex,
                flags,
                ..flow
            };
            assert_eq!(judge.flow(&key("192.0.2.1", 1), &half), goes, "{ifindex}");
        }
    }

    #[test]
    fn a_mapping_goes_by_either_side() {
        let locals = HashMap::from([(ip("2001:db8::1"), 2)]);
        let inside = (Ip6::of(ip("fd00::2")).unwrap(), Be16::new(5000));
        let outside = (Ip6::of(ip("2001:db8::1")).unwrap(), Be16::new(6000));
        let spec: Spec = "[::]:6000:80/udp".parse().unwrap();
        let publish = spec.resolve(ip("::"), spec.host_ports.unwrap());
        let endpoint = |text| Doomed::Endpoint {
            counters: HashSet::new(),
            ips: HashSet::from([ip(text)]),
        };
        for (doomed, want) in [
            (Doomed::All, true),
            (endpoint("fd00::2"), true),
            (endpoint("fd00::3"), false),
            (Doomed::Shadows(Shadows::of([publish])), true),
            (Doomed::Foreign, false),
            (Doomed::Unowned, false),
        ] {
            for (side, key, value) in [
                (side::INTERNAL, inside, outside),
                (side::EXTERNAL, outside, inside),
            ] {
                let key = MappingKey {
                    addr: key.0,
                    port: key.1,
                    proto: proto::UDP,
                    side,
                };
                let mapping = Mapping {
                    addr: value.0,
                    port: value.1,
                    ..Default::default()
                };
                let found = judge(&doomed, &locals).mapping(&key, &mapping);
                assert_eq!(found, want, "{doomed:?} {side}");
            }
            let permit = Tuple {
                dst: inside.0,
                ..Default::default()
            };
            let goes = want && !matches!(doomed, Doomed::Shadows(_));
            assert_eq!(judge(&doomed, &locals).permit(&permit), goes, "{doomed:?}");
        }
    }
}
