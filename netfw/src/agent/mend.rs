//! What somebody undoes of netfw's is made again: bridges, their addresses, forwarding, veth pairs, filters.
//! And what cannot come back is swept away.
//!
//! Not at any rate: what is undone again and again is left alone for a while ([`Patience`]).

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use super::{
    Agent, AgentError, UplinkState,
    record::{Endpoint, Network},
};
use crate::{metrics::Repair, name::Name, net::Link};

/// How often a thing is mended in a row.
const BURST: u32 = 5;
/// After that, once in this time.
const PAUSE: Duration = Duration::from_secs(10);
/// How long an endpoint is shown as gone that cannot come back.
pub(super) const SHOWN: Duration = Duration::from_secs(300);

/// How often things may still be mended.
#[derive(Default)]
pub struct Patience(HashMap<String, Left>);

struct Left {
    times: u32,
    /// When the last one came back.
    at: Instant,
    /// That there is none left.
    told: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    Yes,
    /// And it was so the last time.
    No,
    /// From now on.
    NoMore,
}

impl Patience {
    /// May `what` be mended once more? Says in the log when it begins to be left alone.
    fn has(&mut self, what: &str) -> bool {
        let answer = self.take(what, Instant::now());
        if answer == Answer::NoMore {
            let pause = PAUSE.as_secs();
            tracing::warn!("{what} is undone again and again: made again once in {pause} s");
        }
        answer == Answer::Yes
    }

    fn take(&mut self, what: &str, now: Instant) -> Answer {
        // What had its rest is as if it had never been.
        self.0.retain(|_, left| now - left.at < PAUSE * BURST);
        let left = self.0.entry(what.to_owned()).or_insert(Left {
            times: BURST,
            at: now,
            told: false,
        });
        while left.at + PAUSE <= now {
            left.at += PAUSE;
            left.times = BURST.min(left.times + 1);
        }
        match (left.times, left.told) {
            (0, true) => Answer::No,
            (0, false) => {
                left.told = true;
                Answer::NoMore
            }
            _ => {
                left.times -= 1;
                left.told = false;
                Answer::Yes
            }
        }
    }
}

impl Agent {
    /// What a look at the node finds wrong. `links` are its interfaces.
    pub(super) async fn mend(&mut self, links: &[Link]) -> Result<(), AgentError> {
        let postponed = std::mem::take(&mut self.unfiltered);
        self.mend_filters(&postponed);
        let mut bridges = Ok(());
        if self.mend_bridges(links, &mut bridges).await {
            let links = self.netlink.links().await?;
            self.mend_endpoints(&links).await;
        } else {
            self.mend_endpoints(links).await;
        }
        bridges
    }

    /// A bridge that somebody deleted or set down is made again, and endpoints with it; so are the gateway's
    /// address and forwarding. Returns whether anything was made, and `first` becomes the first error.
    async fn mend_bridges(&mut self, links: &[Link], first: &mut Result<(), AgentError>) -> bool {
        let mut mended = false;
        let networks: Vec<Network> = self.wanted.networks.values().cloned().collect();
        for network in networks {
            let name = &network.name;
            let Some(ifindex) = self.bridges.get(name).map(|bridge| bridge.ifindex) else {
                // Not made yet.
                continue;
            };
            let link = links.iter().find(|link| link.index == ifindex);
            let mut pools = self.pools(&network);
            let what = match link {
                None => "its bridge was deleted",
                Some(link) if !link.up => "its bridge was set down",
                Some(_) if !pools.all(|pool| self.locals.contains_key(&pool.gateway)) => {
                    "the gateway's address was removed"
                }
                Some(_) => {
                    drop(pools);
                    self.mend_forwarding(&[ifindex].into());
                    continue;
                }
            };
            drop(pools);
            if !self.patience.has(&format!("network {name}")) {
                continue;
            }
            tracing::warn!(network = %name, "{what}: made again");
            let made = self.ensure_bridge(name).await;
            let made = match link {
                None if made.is_ok() => self.plug_in_again().await,
                _ => made,
            };
            mended = true;
            self.events.repaired(Repair::Bridge);
            if first.is_ok() {
                *first = made;
            }
        }
        mended
    }

    /// Endpoints of a bridge that was made anew.
    async fn plug_in_again(&mut self) -> Result<(), AgentError> {
        self.ensure_endpoints().await?;
        self.forget_strangers()
    }

    /// Switches forwarding on again where somebody has switched it off on one of these interfaces:
    /// `net.ipv4.ip_forward=0` does so on all.
    pub fn mend_forwarding(&mut self, ifindexes: &BTreeSet<u32>) {
        let networks: Vec<Network> = self
            .bridges
            .iter()
            .filter(|(_, bridge)| ifindexes.contains(&bridge.ifindex))
            .filter_map(|(name, _)| self.wanted.networks.get(name).cloned())
            .collect();
        for network in networks {
            let name = &network.name;
            if self.forwards(&network) || !self.patience.has(&format!("forwarding of {name}")) {
                continue;
            }
            match self.set_forwarding(&network) {
                Ok(()) => {
                    self.events.repaired(Repair::Forwarding);
                    tracing::warn!(
                        network = %name,
                        "somebody switched forwarding off on its bridge: it is on again"
                    );
                }
                Err(error) => tracing::warn!(network = %name, %error, "it does not forward"),
            }
        }
    }

    /// Host sides that somebody set down or took out of their bridge, and veth pairs that were deleted from a
    /// namespace that is still there.
    async fn mend_endpoints(&mut self, links: &[Link]) {
        let by_index: HashMap<u32, &Link> = links.iter().map(|link| (link.index, link)).collect();
        let mut broken: BTreeSet<Name> = BTreeSet::new();
        for ((name, network), ifindex) in &self.up {
            let bridge = self.bridges.get(network).map(|bridge| bridge.ifindex);
            let link = by_index.get(ifindex);
            if link.is_some_and(|link| !link.up || link.master != bridge) {
                broken.insert(name.clone());
            }
        }
        for (name, _) in &self.wanted.gone {
            let endpoint = self.wanted.endpoints.get(name);
            let same = endpoint.is_some_and(|endpoint| {
                let id = self.open_target(endpoint).map(|namespace| namespace.id());
                !endpoint.removing && id.ok() == self.namespaces.get(name).copied()
            });
            // Another that goes by its name is somebody else's.
            if same && self.namespaces.contains_key(name) {
                broken.insert(name.clone());
            }
        }
        for name in broken {
            let Some(endpoint) = self.wanted.endpoints.get(&name).cloned() else {
                continue;
            };
            if endpoint.removing || !self.patience.has(&format!("endpoint {name}")) {
                continue;
            }
            tracing::warn!(endpoint = %name, "somebody undid its interface: made again");
            self.events.repaired(Repair::Endpoint);
            // What fails is logged.
            let _ = self.ensure_endpoint(&endpoint, links).await;
        }
    }

    /// Removes endpoints whose processes, or Docker's sandboxes, are gone for `shown`: nobody can have their
    /// namespace again.
    pub(super) async fn sweep_lost(&mut self, shown: Duration) -> Result<(), AgentError> {
        let now = Instant::now();
        let lost = |e: &&Endpoint| {
            e.namespace.id.is_some()
                && !e.removing
                && !self.is_up(e)
                && self.open_target(e).is_err()
        };
        let all = self.wanted.endpoints.values();
        let mut lost: Vec<Name> = all.filter(lost).map(|e| e.name.clone()).collect();
        lost.extend(self.lost_sandboxes().await?);
        self.lost.retain(|name, _| lost.contains(name));
        for name in lost {
            let since = *self.lost.entry(name.clone()).or_insert(now);
            if now - since < shown {
                continue;
            }
            tracing::info!(endpoint = %name, "removed: the container whose namespace it had is gone");
            self.remove_owned(&name).await?;
        }
        Ok(())
    }

    /// Puts the programs for sockets back where somebody has detached one. Where they were never attached, why not
    /// stays as it is.
    pub(super) fn mend_sockets(&mut self) {
        if self.sockets.is_err()
            || !self.dataplane.lacks_socket_program()
            || !self.patience.has("the programs for sockets")
        {
            return;
        }
        match self.dataplane.attach_sockets() {
            Ok(()) => {
                self.events.repaired(Repair::Sockets);
                tracing::warn!(
                    "somebody detached netfw's programs for sockets: they are there again"
                );
            }
            Err(error) => {
                let error = crate::chain(&error);
                tracing::warn!(error, "processes of the node do not reach publishes");
                self.sockets = Err(error);
            }
        }
    }

    /// Puts programs back that somebody has taken off these interfaces (`tc qdisc del`).
    pub fn mend_filters(&mut self, ifindexes: &BTreeSet<u32>) {
        for &ifindex in ifindexes {
            if !self.dataplane.lacks_program(ifindex) {
                continue;
            }
            if !self
                .patience
                .has(&format!("the filter on interface {ifindex}"))
            {
                self.unfiltered.insert(ifindex);
                continue;
            }
            let (name, mended) = if let Some((_, attachment)) = self.attachment_at(ifindex) {
                let name = attachment.host_interface.clone();
                let attached = self.dataplane.attach_container(ifindex, &name);
                (name, attached.map(drop).map_err(|e| crate::chain(&e)))
            } else if let Some(UplinkState { uplink, attached }) = self.uplinks.get(&ifindex)
                && attached.is_ok()
            {
                let uplink = uplink.clone();
                let attached = self.attach_uplink(ifindex, &uplink);
                (uplink.name, attached.map(drop))
            } else {
                continue;
            };
            match mended {
                Ok(()) => {
                    self.events.repaired(Repair::Filter);
                    tracing::warn!(
                        interface = %name,
                        "somebody took netfw's filter off: it is there again"
                    );
                }
                // The interface may be going as well.
                Err(error) => tracing::warn!(interface = %name, error, "without netfw's filter"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_undone_again_and_again_is_left_alone() {
        let mut patience = Patience::default();
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        for _ in 0..BURST {
            assert_eq!(patience.take("a", at(1)), Answer::Yes);
        }
        assert_eq!(patience.take("a", at(2)), Answer::NoMore);
        assert_eq!(patience.take("a", at(3)), Answer::No);
        assert_eq!(
            patience.take("b", at(3)),
            Answer::Yes,
            "others are none the worse"
        );
        assert_eq!(patience.take("a", at(11)), Answer::Yes);
        assert_eq!(patience.take("a", at(12)), Answer::NoMore);
        // After a long rest, as at first.
        for _ in 0..BURST {
            assert_eq!(patience.take("a", at(100)), Answer::Yes);
        }
        assert_eq!(patience.take("a", at(100)), Answer::NoMore);
        assert_eq!(patience.0.len(), 1);
    }
}
