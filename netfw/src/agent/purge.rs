//! Flows that must go: with a publish, an endpoint, an address of the node, or because somebody says
//! so.
//!
//! There may be a million, and a walk over all of them takes seconds. So it is made in portions, and
//! whoever else wants the agent gets it between two of them. What made the flows is gone before the
//! walk begins, so none appear behind its back; what must not be used again while it goes on (a
//! counter, an address, a name) is given back at its end, by [`Then`].

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;
use netfw_common::{
    flow::{Flow, flag},
    record::{Mapping, MappingKey, side},
    tuple::{Tuple, zone},
};
use tokio::{sync::Mutex, task::block_in_place};

use super::{Agent, AgentError, endpoint::place, record::Endpoint, store::Change};
use crate::{
    bpf::{Family, FlowWalk, Visit},
    name::Name,
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
        ips: Vec<IpAddr>,
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
        all.extend(publishes);
        all
    }

    fn extend(&mut self, publishes: impl IntoIterator<Item = Publish>) {
        for publish in publishes {
            for port in publish.host_ports.ports() {
                self.ports[usize::from(port) / 64] |= 1 << (port % 64);
            }
            self.publishes.push(publish);
        }
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

/// What is due when they are gone.
#[derive(Clone, Debug)]
pub enum Then {
    Nothing,
    /// Counters are free.
    GiveBack(Vec<u32>),
    /// An endpoint that was being removed is.
    Forget(Name),
    /// The rules of a network hold for all of its flows.
    Settle(Name),
    /// An attachment that was being removed is.
    Detach {
        endpoint: Name,
        network: Name,
    },
}

/// A walk over all flows, to be carried out.
pub struct Purge {
    doomed: Doomed,
    /// One for each that it was asked for.
    then: Vec<Then>,
    walk: FlowWalk,
}

impl Purge {
    fn new(doomed: Doomed, then: Then) -> Self {
        Self {
            doomed,
            then: vec![then],
            walk: FlowWalk::default(),
        }
    }
}

/// Where one that has not begun looks for the same kind of thing, it looks for both: there may be an endpoint a
/// moment, and a million flows.
fn enqueue(waiting: &mut Vec<Purge>, purge: Purge) {
    for other in &mut *waiting {
        match (&mut other.doomed, &purge.doomed) {
            (Doomed::Shadows(all), Doomed::Shadows(more)) => {
                all.extend(more.publishes.iter().cloned());
            }
            (Doomed::Foreign, Doomed::Foreign) | (Doomed::Unowned, Doomed::Unowned) => {}
            _ => continue,
        }
        other.then.extend(purge.then);
        return;
    }
    waiting.push(purge);
}

/// Those for endpoints, or what publishes have made, by one walk.
fn merged(purges: Vec<Purge>) -> Vec<Purge> {
    let mut all: Vec<Purge> = Vec::new();
    for purge in purges {
        let (counters, ips) = match &purge.doomed {
            Doomed::Counters(counters) => (counters.clone(), Vec::new()),
            Doomed::Endpoint { counters, ips } => (counters.clone(), ips.clone()),
            _ => {
                all.push(purge);
                continue;
            }
        };
        let one = |purge: &Purge| matches!(purge.doomed, Doomed::Endpoint { .. });
        let at = all.iter().position(one).unwrap_or_else(|| {
            let none = Doomed::addresses([]);
            all.push(Purge {
                then: Vec::new(),
                ..Purge::new(none, Then::Nothing)
            });
            all.len() - 1
        });
        all[at].then.extend(purge.then);
        if let Doomed::Endpoint {
            counters: more,
            ips: others,
        } = &mut all[at].doomed
        {
            more.extend(counters);
            others.extend(ips);
        }
    }
    all
}

/// A [`Doomed`], with what it is measured by at this moment.
struct Judge<'a> {
    doomed: &'a Doomed,
    locals: &'a HashMap<IpAddr, u32>,
    /// Networks whose containers are reached by their own addresses.
    subnets: Vec<IpNet>,
    /// Of endpoints: their counters, the addresses of those that are up, and their veth pairs' host sides.
    counters: HashSet<u32>,
    ips: HashSet<IpAddr>,
    interfaces: HashSet<u32>,
}

impl Judge<'_> {
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
                let part = |ip: &IpAddr| {
                    A::of(*ip)
                        .is_some_and(|ip| [key.src, key.dst, flow.src, flow.dst].contains(&ip))
                };
                counters.contains(&counter) || ips.iter().any(part)
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

impl Agent {
    /// To be carried out when the lock is free: [`carry_out`], or [`Agent::purge_now`].
    pub(super) fn purge(&mut self, doomed: Doomed, then: Then) {
        enqueue(&mut self.purges, Purge::new(doomed, then));
    }

    /// To be carried out in the background, by [`keep_purging`].
    pub(super) fn purge_later(&mut self, doomed: Doomed) {
        enqueue(&mut self.later, Purge::new(doomed, Then::Nothing));
        self.purger.notify_one();
    }

    /// Flows of networks whose rules were changed, once the programs have the new ones.
    pub(super) fn purge_unsettled(&mut self) {
        let networks = self.wanted.networks.values().filter(|n| n.unsettled);
        for name in networks.map(|n| n.name.clone()).collect::<Vec<_>>() {
            let ips: Vec<_> = self.members(&name).flat_map(|(_, a)| a.ips()).collect();
            self.purge(Doomed::addresses(ips), Then::Settle(name));
        }
    }

    fn settle(&mut self, network: &Name) -> Result<(), AgentError> {
        let Some(network) = self.wanted.networks.get_mut(network) else {
            return Ok(());
        };
        network.unsettled = false;
        self.store.commit(&[Change::Network(network)])?;
        Ok(())
    }

    /// Whoever takes them carries them out.
    pub fn take_purges(&mut self) -> Vec<Purge> {
        std::mem::take(&mut self.purges)
    }

    /// Those that are due now become such that nobody waits for.
    pub(super) fn defer_purges(&mut self) {
        if !self.purges.is_empty() {
            for purge in self.take_purges() {
                enqueue(&mut self.later, purge);
            }
            self.purger.notify_one();
        }
    }

    /// All that are due, with the lock held: at the start, when nobody waits for it, and within an `apply`.
    /// Goes on past errors; returns the first.
    pub(super) fn purge_now(&mut self) -> Result<(), AgentError> {
        let mut first = Ok(());
        for mut purge in merged(self.take_purges()) {
            let walked = loop {
                match self.purge_step(&mut purge) {
                    Ok(true) => break Ok(()),
                    Ok(false) => {}
                    Err(error) => break Err(error),
                }
            };
            // What is due at the end is due all the same.
            let ended = self.end_purge(purge).map(drop);
            first = first.and(walked).and(ended);
        }
        first
    }

    /// True at the end.
    fn purge_step(&mut self, purge: &mut Purge) -> Result<bool, AgentError> {
        let mut judge = Judge {
            doomed: &purge.doomed,
            locals: &self.locals,
            subnets: Vec::new(),
            counters: HashSet::new(),
            ips: HashSet::new(),
            interfaces: HashSet::new(),
        };
        match purge.doomed {
            Doomed::Foreign => {
                judge.subnets = self
                    .wanted
                    .networks
                    .values()
                    .flat_map(|n| n.subnets())
                    .collect();
            }
            Doomed::Unowned => {
                judge.counters = self.wanted.counters().collect();
                let attachments = self.wanted.attachments();
                judge.ips = attachments
                    .filter(|(endpoint, a)| self.up.contains_key(&place(endpoint, a)))
                    .flat_map(|(_, attachment)| attachment.ips())
                    .collect();
                judge.interfaces = self.up.values().copied().collect();
            }
            _ => {}
        }
        Ok(self.dataplane.visit(&mut purge.walk, &mut judge)?)
    }

    /// Returns how many flows went.
    fn end_purge(&mut self, purge: Purge) -> Result<usize, AgentError> {
        let flows = purge.walk.removed;
        if flows > 0 {
            match purge.doomed {
                Doomed::Shadows(_) => {
                    tracing::info!(flows, "flows and mappings gave way to a publish");
                }
                Doomed::Foreign => {
                    tracing::info!(flows, "forgotten: their address is not the node's any more");
                }
                _ => tracing::debug!(flows, "forgotten"),
            }
        }
        let mut first = Ok(flows);
        for then in purge.then {
            let done = match then {
                Then::Nothing => Ok(()),
                Then::GiveBack(counters) => {
                    for counter in counters {
                        self.counters.give_back(counter);
                    }
                    Ok(())
                }
                Then::Forget(name) => self.forget_endpoint(&name),
                Then::Settle(network) => self.settle(&network),
                Then::Detach { endpoint, network } => self.forget_attachment(&endpoint, &network),
            };
            if let (Err(error), true) = (done, first.is_ok()) {
                first = Err(error);
            }
        }
        first
    }
}

/// Carries purges out, the agent free for others between two portions. Goes on past errors; returns
/// the number of flows that went, or the first error.
pub async fn carry_out(agent: &Mutex<Agent>, purges: Vec<Purge>) -> Result<usize, AgentError> {
    let (mut flows, mut first) = (0, None);
    for mut purge in purges {
        loop {
            let mut agent = agent.lock().await;
            // Map operations block; the other worker goes on with connections meanwhile.
            match block_in_place(|| agent.purge_step(&mut purge)) {
                Ok(false) => {}
                Ok(true) => break,
                // What is due at the end is due all the same.
                Err(error) => {
                    first.get_or_insert(error);
                    break;
                }
            }
        }
        match agent.lock().await.end_purge(purge) {
            Ok(more) => flows += more,
            Err(error) => {
                first.get_or_insert(error);
            }
        }
    }
    match first {
        None => Ok(flows),
        Some(error) => Err(error),
    }
}

/// What nobody waits for is put off for so long: it is not to compete with the answer to the request that
/// asks for it, and what the next one asks for may go in the same walk.
const PUT_OFF: Duration = Duration::from_millis(20);

/// Carries out what nobody waits for, as it comes.
pub async fn keep_purging(agent: &Mutex<Agent>) {
    let due = agent.lock().await.purger.clone();
    loop {
        let purges = std::mem::take(&mut agent.lock().await.later);
        if purges.is_empty() {
            due.notified().await;
            tokio::time::sleep(PUT_OFF).await;
        } else if let Err(error) = carry_out(agent, purges).await {
            tracing::warn!(error = %crate::chain(&error), "not all flows that should go went");
        }
    }
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
            doomed,
            locals,
            subnets: vec!["172.18.0.0/16".parse().unwrap()],
            counters: HashSet::from([7]),
            ips: HashSet::from([ip("fd00::2")]),
            interfaces: HashSet::from([5]),
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
    fn what_goes_with_endpoints_and_publishes_goes_at_once() {
        let endpoint = |counter: u32, text: &str| Doomed::Endpoint {
            counters: HashSet::from([counter]),
            ips: vec![ip(text)],
        };
        let forget = |name: &str| Then::Forget(name.parse().unwrap());
        let all = merged(vec![
            Purge::new(endpoint(1, "172.18.0.2"), forget("a")),
            Purge::new(Doomed::Foreign, Then::Nothing),
            Purge::new(
                Doomed::Counters(HashSet::from([3])),
                Then::GiveBack(vec![3]),
            ),
            Purge::new(endpoint(2, "172.18.0.3"), forget("b")),
        ]);
        let [
            one,
            Purge {
                doomed: Doomed::Foreign,
                ..
            },
        ] = &all[..]
        else {
            panic!("{} purges", all.len());
        };
        let Doomed::Endpoint { counters, ips } = &one.doomed else {
            panic!("{:?}", one.doomed);
        };
        assert_eq!(*counters, HashSet::from([1, 2, 3]));
        assert_eq!(*ips, [ip("172.18.0.2"), ip("172.18.0.3")]);
        assert_eq!(one.then.len(), 3);
    }

    #[test]
    fn those_concerned_and_no_others() {
        let locals = HashMap::from([(ip("192.0.2.1"), 2)]);
        let spec: Spec = "0.0.0.0:8080:80".parse().unwrap();
        let publish = spec.resolve(ip("0.0.0.0"), spec.container_ports);
        let endpoint = Doomed::Endpoint {
            counters: HashSet::from([5]),
            ips: vec![ip("172.18.0.2"), ip("fd00::2")],
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
            ips: vec![ip(text)],
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
