//! Flows: what `flow ls` shows, `flow flush`, and the sweep.

use std::collections::HashMap;

use netfw_common::{
    flow::{Flow4, TICK_NS, Timeouts, flag, is_assured, state},
    tuple::{Tuple4, proto},
};

use super::{Agent, AgentError};
use crate::{
    api::types::{Flow, Tuple},
    bpf::now,
    name::Name,
};

/// Flows as they were at one moment.
pub struct Listing {
    /// Entries of the original direction.
    flows: Vec<(Tuple4, Flow4)>,
    /// The endpoints that counters belong to.
    owners: HashMap<u32, Name>,
    timeouts: Timeouts,
    now: u32,
}

impl Listing {
    /// Ordered by protocol and original tuple.
    pub fn views(mut self) -> Vec<Flow> {
        self.flows
            .sort_by_key(|(t, _)| (t.proto, t.src, t.sport, t.dst, t.dport));
        self.flows
            .iter()
            .map(|(key, flow)| {
                let owner = self.owners.get(&flow.counter.into());
                let timeout = self.timeouts.of(key.proto, flow.state);
                view(key, flow, owner, timeout, self.now)
            })
            .collect()
    }
}

impl Agent {
    /// All flows, or those of one endpoint.
    pub fn list_flows(&self, endpoint: Option<&Name>) -> Result<Listing, AgentError> {
        let only = endpoint
            .map(|name| self.wanted_endpoint(name))
            .transpose()?;
        let owners: HashMap<u32, Name> = self
            .wanted
            .endpoints
            .values()
            .flat_map(|e| {
                std::iter::once(e.counter)
                    .chain(e.publishes.iter().map(|p| p.counter))
                    .map(move |counter| (counter, e.name.clone()))
            })
            .collect();
        let mut flows = self.dataplane.flows()?;
        flows.retain(|(key, flow)| {
            !flow.has(flag::REPLY) && only.is_none_or(|e| e.takes_part(key, flow))
        });
        Ok(Listing {
            flows,
            owners,
            timeouts: self.config.dataplane.timeouts,
            now: now(),
        })
    }

    pub fn flush(&mut self, endpoint: Option<&Name>) -> Result<usize, AgentError> {
        let Some(name) = endpoint else {
            return Ok(self.dataplane.remove_flows(|_, _| true)?);
        };
        let endpoint = self.wanted_endpoint(name)?.clone();
        Ok(self
            .dataplane
            .remove_flows(|key, flow| endpoint.takes_part(key, flow))?)
    }

    /// Frees what expired flows take.
    pub fn sweep(&mut self) -> Result<usize, AgentError> {
        Ok(self.dataplane.sweep()?)
    }
}

/// `key`, `flow`: the entry of the original direction. `timeout` and `now` in ticks.
fn view(key: &Tuple4, flow: &Flow4, endpoint: Option<&Name>, timeout: u32, now: u32) -> Flow {
    // Another CPU's clock may have run ahead, and the sweep may be late.
    let age = u64::from(
        (now.wrapping_sub(flow.seen)
            .cast_signed()
            .max(0)
            .cast_unsigned())
        .min(timeout),
    );
    let left = (u64::from(timeout) - age) * TICK_NS / 1_000_000_000;
    let reply = flow.reverse_key(key.proto);
    Flow {
        protocol: match key.proto {
            proto::TCP => "tcp".into(),
            proto::UDP => "udp".into(),
            proto::ICMP => "icmp".into(),
            proto::SCTP => "sctp".into(),
            other => other.to_string(),
        },
        state: match flow.state {
            state::NEW => "new",
            state::REPLIED if key.proto == proto::TCP => "syn_recv",
            state::REPLIED => "replied",
            state::ESTABLISHED => "established",
            state::FIN_ORIGINAL | state::FIN_REPLY => "fin_wait",
            state::TIME_WAIT => "time_wait",
            state::CLOSE | state::REFUSED => "close",
            _ => "unknown",
        }
        .into(),
        assured: is_assured(flow.state),
        timeout: left,
        original: tuple(key),
        reply: tuple(&reply),
        origin: if flow.has(flag::PUBLISHED) {
            "publish".into()
        } else {
            "masquerade".into()
        },
        endpoint: endpoint.cloned(),
    }
}

fn tuple(t: &Tuple4) -> Tuple {
    Tuple {
        src: t.src.into(),
        dst: t.dst.into(),
        sport: t.sport.get(),
        dport: t.dport.get(),
    }
}

#[cfg(test)]
mod tests {
    use netfw_common::addr::{Be16, Ip4};

    use super::*;

    #[test]
    fn a_flow_is_shown_as_conntrack_shows_it() {
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
        let shown = view(&key, &flow, None, 100, 1040);
        assert_eq!(shown.reply.src.to_string(), "172.18.0.2");
        assert_eq!((shown.reply.sport, shown.reply.dport), (80, 40000));
        assert_eq!((shown.origin.as_str(), shown.timeout), ("publish", 64));
        assert_eq!(view(&key, &flow, None, 100, 999).timeout, 107);
        assert_eq!(view(&key, &flow, None, 100, 2000).timeout, 0);
    }
}
