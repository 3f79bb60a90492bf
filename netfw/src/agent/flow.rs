//! Flows: what `flow ls` shows, `flow flush`, and the sweep.
//!
//! Walks over the tables are made in steps, with the agent free for others between them.

use std::collections::HashMap;

use netfw_common::{
    addr::{Ip4, Ip6},
    flow::{Flow as Entry, TICK_NS, Timeouts, flag, is_assured},
    tuple::Tuple as Key,
};
use tokio::{sync::Mutex, task::block_in_place};

use super::{
    Agent, AgentError,
    purge::{Doomed, Then},
    record::Endpoint,
};
use crate::{
    api::types::{Flow, Tuple},
    bpf::{self, Family, FlowWalk, Visit, now},
    filter::{FlowFilter, IpProtocol, State},
    name::Name,
};

/// Flows as they were during one walk: entries of the original direction.
struct Listing {
    flows: Vec<Listed>,
    filter: FlowFilter,
    /// Whom the filter names.
    only: Option<Endpoint>,
    timeouts: Timeouts,
}

/// What a row of `flow ls` is made of.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Listed {
    original: Tuple,
    reply: Tuple,
    proto: u8,
    zone: u8,
    state: u8,
    flags: u8,
    counter: u16,
    seen: u32,
}

impl Listed {
    fn new<A: Family>(key: &Key<A>, flow: &Entry<A>) -> Self {
        Self {
            original: tuple(key),
            reply: tuple(&flow.reverse_key(key.proto)),
            proto: key.proto,
            zone: key.zone,
            state: flow.state,
            flags: flow.flags,
            counter: flow.counter,
            seen: flow.seen,
        }
    }
}

impl Listed {
    fn suits(&self, filter: &FlowFilter) -> bool {
        let tuples = [self.original, self.reply];
        let mut ports = tuples.iter().flat_map(|t| [t.sport, t.dport]);
        let mut ips = tuples.iter().flat_map(|t| [t.src, t.dst]);
        filter.protocol.is_none_or(|p| p.0 == self.proto)
            && filter
                .state
                .is_none_or(|state| state == State::of(self.proto, self.state))
            && filter.port.is_none_or(|port| ports.any(|p| p == port))
            && filter
                .address
                .is_none_or(|net| ips.any(|ip| net.0.contains(&ip)))
    }
}

impl Visit for Listing {
    fn flow<A: Family>(&mut self, key: &Key<A>, flow: &Entry<A>) -> bool {
        let part = |endpoint: &Endpoint| {
            let ips = [key.src, key.dst, flow.src, flow.dst];
            endpoint.counters().any(|c| c == u32::from(flow.counter))
                || endpoint.ips().filter_map(A::of).any(|ip| ips.contains(&ip))
        };
        if !flow.has(flag::REPLY)
            && !flow.is_expired(key.proto, now(), &self.timeouts)
            && self.only.as_ref().is_none_or(part)
        {
            let listed = Listed::new(key, flow);
            if listed.suits(&self.filter) {
                self.flows.push(listed);
            }
        }
        false
    }
}

/// The flows that suit the filter, ordered by family, protocol and original tuple.
pub async fn list(agent: &Mutex<Agent>, filter: &FlowFilter) -> Result<Vec<Flow>, AgentError> {
    let (mut listing, owners) = {
        let agent = agent.lock().await;
        let only = filter
            .endpoint
            .as_ref()
            .map(|name| agent.wanted_endpoint(name).cloned())
            .transpose()?;
        let endpoints = agent.wanted.endpoints.values();
        let owners: HashMap<u32, Name> = endpoints
            .flat_map(|e| e.counters().map(|counter| (counter, e.name.clone())))
            .collect();
        let listing = Listing {
            flows: Vec::new(),
            filter: filter.clone(),
            only,
            timeouts: agent.config.dataplane.timeouts,
        };
        (listing, owners)
    };
    let mut walk = FlowWalk::default();
    loop {
        let mut agent = agent.lock().await;
        if block_in_place(|| agent.dataplane.visit(&mut walk, &mut listing))? {
            break;
        }
    }
    Ok(block_in_place(|| listing.views(&owners)))
}

impl Listing {
    /// `owners` are the endpoints that counters belong to.
    fn views(mut self, owners: &HashMap<u32, Name>) -> Vec<Flow> {
        let order = |f: &Listed| {
            let t = f.original;
            (
                t.src.is_ipv6(),
                f.proto,
                t.src,
                t.sport,
                t.dst,
                t.dport,
                f.zone,
            )
        };
        self.flows.sort_by_key(order);
        // A flow that moved from table to table was met twice.
        self.flows.dedup_by_key(|flow| order(flow));
        let now = now();
        self.flows
            .iter()
            .map(|flow| {
                let owner = owners.get(&flow.counter.into());
                view(flow, owner, self.timeouts.of(flow.proto, flow.state), now)
            })
            .collect()
    }
}

/// A table of a family, to be swept.
#[derive(Clone, Copy, Debug)]
pub enum Part {
    V4(bpf::Part),
    V6(bpf::Part),
}

impl Part {
    pub const ALL: [Self; 6] = [
        Self::V4(bpf::Part::Assured),
        Self::V4(bpf::Part::Embryos),
        Self::V6(bpf::Part::Assured),
        Self::V6(bpf::Part::Embryos),
        Self::V4(bpf::Part::Mappings),
        Self::V6(bpf::Part::Mappings),
    ];
}

impl Agent {
    /// Forgets all flows, or those of one endpoint, by a purge.
    pub fn flush(&mut self, endpoint: Option<&Name>) -> Result<(), AgentError> {
        let doomed = match endpoint {
            None => Doomed::All,
            Some(name) => Doomed::endpoint(self.wanted_endpoint(name)?),
        };
        self.purge(doomed, Then::Nothing);
        Ok(())
    }

    /// Frees what expired flows take: one step. Returns how many went, and whether this was the
    /// table's end.
    pub fn sweep(&mut self, part: Part) -> Result<(usize, bool), AgentError> {
        Ok(match part {
            Part::V4(part) => self.dataplane.sweep::<Ip4>(part)?,
            Part::V6(part) => self.dataplane.sweep::<Ip6>(part)?,
        })
    }
}

/// `timeout` and `now` in ticks.
fn view(flow: &Listed, endpoint: Option<&Name>, timeout: u32, now: u32) -> Flow {
    // Another CPU's clock may have run ahead, and the sweep may be late.
    let age = u64::from(
        (now.wrapping_sub(flow.seen)
            .cast_signed()
            .max(0)
            .cast_unsigned())
        .min(timeout),
    );
    let left = (u64::from(timeout) - age) * TICK_NS / 1_000_000_000;
    Flow {
        protocol: IpProtocol(flow.proto).to_string(),
        state: State::of(flow.proto, flow.state).name().into(),
        assured: is_assured(flow.state),
        timeout: left,
        original: flow.original,
        reply: flow.reply,
        origin: origin(flow.flags).into(),
        endpoint: endpoint.cloned(),
    }
}

/// What made a flow, by its flags.
pub(super) fn origin(flags: u8) -> &'static str {
    match flags & (flag::PUBLISHED | flag::MAPPED) {
        flag::PUBLISHED => "publish",
        0 | flag::MAPPED => "masquerade",
        _ => "mapping",
    }
}

fn tuple<A: Family>(t: &Key<A>) -> Tuple {
    Tuple {
        src: t.src.ip(),
        dst: t.dst.ip(),
        sport: t.sport.get(),
        dport: t.dport.get(),
    }
}

#[cfg(test)]
mod tests {
    use netfw_common::{
        addr::Be16,
        flow::{Flow4, state},
        tuple::{Tuple4, proto},
    };

    use super::*;

    fn example() -> (Tuple4, Flow4) {
        let key = Tuple4 {
            src: Ip4::new([192, 0, 2, 9]),
            dst: Ip4::new([192, 0, 2, 1]),
            sport: Be16::new(40000),
            dport: Be16::new(8080),
            proto: proto::TCP,
            ..Default::default()
        };
        let flow = Flow4 {
            src: key.src,
            dst: Ip4::new([172, 18, 0, 2]),
            sport: key.sport,
            dport: Be16::new(80),
            flags: flag::TO_CONTAINER | flag::PUBLISHED,
            state: state::ESTABLISHED,
            seen: 1000,
            ..Default::default()
        };
        (key, flow)
    }

    #[test]
    fn a_flow_is_shown_as_conntrack_shows_it() {
        let (key, flow) = example();
        let flow = Listed::new(&key, &flow);
        let shown = view(&flow, None, 100, 1040);
        assert_eq!(shown.reply.src.to_string(), "172.18.0.2");
        assert_eq!((shown.reply.sport, shown.reply.dport), (80, 40000));
        assert_eq!((shown.origin.as_str(), shown.timeout), ("publish", 64));
        assert_eq!(view(&flow, None, 100, 999).timeout, 107);
        for (flags, origin) in [
            (flag::PUBLISHED | flag::MAPPED, "mapping"),
            (flag::MAPPED, "masquerade"),
            (0, "masquerade"),
        ] {
            assert_eq!(view(&Listed { flags, ..flow }, None, 100, 0).origin, origin);
        }
        assert_eq!(view(&flow, None, 100, 2000).timeout, 0);
    }

    #[test]
    fn a_filter_takes_what_suits_it_in_either_direction() {
        let (key, flow) = example();
        let listed = Listed::new(&key, &flow);
        let nothing = FlowFilter::default();
        let with = |change: &dyn Fn(&mut FlowFilter)| {
            let mut filter = nothing.clone();
            change(&mut filter);
            listed.suits(&filter)
        };
        assert!(listed.suits(&nothing));
        for (text, suits) in [("tcp", true), ("udp", false)] {
            assert_eq!(with(&|f| f.protocol = Some(text.parse().unwrap())), suits);
        }
        for (text, suits) in [
            ("192.0.2.9", true),
            ("192.0.2.0/24", true),
            ("172.18.0.2", true),
            ("172.18.0.3", false),
            ("::/0", false),
        ] {
            let found = with(&|f| f.address = Some(text.parse().unwrap()));
            assert_eq!(found, suits, "{text}");
        }
        for (port, suits) in [(40000, true), (8080, true), (80, true), (81, false)] {
            assert_eq!(with(&|f| f.port = Some(port)), suits, "{port}");
        }
        for (state, suits) in [(State::Established, true), (State::New, false)] {
            assert_eq!(with(&|f| f.state = Some(state)), suits, "{state:?}");
        }
    }

    #[test]
    fn a_flow_that_was_met_twice_is_shown_once() {
        let (key, flow) = example();
        let other = Tuple4 {
            dport: Be16::new(9090),
            ..key
        };
        let moved = Flow4 {
            state: state::TIME_WAIT,
            ..flow
        };
        let listing = Listing {
            flows: vec![
                Listed::new(&key, &flow),
                Listed::new(&other, &flow),
                Listed::new(&key, &moved),
            ],
            filter: FlowFilter::default(),
            only: None,
            timeouts: Timeouts::default(),
        };
        let shown = listing.views(&HashMap::new());
        let ports: Vec<u16> = shown.iter().map(|flow| flow.original.dport).collect();
        assert_eq!(ports, [8080, 9090]);
    }
}
