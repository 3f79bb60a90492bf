//! Flows that must go: with a publish, an endpoint, an address of the node, or because somebody says
//! so. Which they are is [`doomed`](super::doomed)'s; here they are walked to.
//!
//! There may be a million, and a walk over all of them takes seconds. So it is made in portions, and
//! whoever else wants the agent gets it between two of them. What made the flows is gone before the
//! walk begins, so none appear behind its back; what must not be used again while it goes on (a
//! counter, an address, a name) is given back at its end, by [`Then`].

use std::{collections::HashSet, time::Duration};

use tokio::{sync::Mutex, task::block_in_place};

pub use super::doomed::{Doomed, Shadows};
use super::{Agent, AgentError, doomed::Judge, endpoint::place, store::Change};
use crate::{bpf::FlowWalk, name::Name};

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
                all.extend(more);
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
            Doomed::Counters(counters) => (counters.clone(), HashSet::new()),
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
        let mut judge = Judge::new(&purge.doomed, &self.locals);
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
    for mut purge in merged(purges) {
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
    use std::net::IpAddr;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_goes_with_endpoints_and_publishes_goes_at_once() {
        let endpoint = |counter: u32, text: &str| Doomed::Endpoint {
            counters: HashSet::from([counter]),
            ips: HashSet::from([ip(text)]),
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
        assert_eq!(*ips, HashSet::from([ip("172.18.0.2"), ip("172.18.0.3")]));
        assert_eq!(one.then.len(), 3);
    }
}
