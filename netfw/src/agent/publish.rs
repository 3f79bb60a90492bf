//! Publishes: the map entries that say who has which port. Who may have one: [`super::ports`].

use std::net::{IpAddr, SocketAddr};

use netfw_common::{
    addr::{Be16, Ip4, Ip6},
    record::{self as map, PublishKey, allow, publish_flag},
};

use super::{
    Agent, AgentError,
    error::ModeError,
    ports::{Looks, Ports, check_held},
    purge::{Doomed, Shadows, Then},
    record::{Endpoint, Family, Network, Published},
    store::Change,
};
use crate::{
    api::types::{self, PublishRequest},
    bpf,
    metrics::Address,
    name::Name,
    net::{diag, socket::Protocol},
    publish::{Families, PortRange, Publish, Spec},
};

/// How often free ports are chosen, where somebody takes them before they are published.
pub(super) const CHOICES: u32 = 3;

impl Agent {
    pub fn publish(
        &mut self,
        name: &Name,
        request: &PublishRequest,
    ) -> Result<types::Endpoint, AgentError> {
        self.publish_for(name, request, false)
    }

    /// `runtime`: for that of the endpoint's container.
    pub(super) fn publish_for(
        &mut self,
        name: &Name,
        request: &PublishRequest,
        runtime: bool,
    ) -> Result<types::Endpoint, AgentError> {
        let specs = &request.publish;
        let before = self.wanted_endpoint(name)?.clone();
        if !self.is_up(&before) {
            return Err(AgentError::Gone(name.clone()));
        }
        let Some(first) = specs.first() else {
            return Err(AgentError::NoPublish);
        };
        let ways = [Family::V4, Family::V6].map(|family| self.wanted.way_out(&before, family));
        let Some(way) = ways.into_iter().flatten().next() else {
            return Err(ModeError::NoPublish {
                spec: *first,
                endpoint: name.clone(),
                mode: before.mode(),
            }
            .into());
        };
        let families = self.wanted.families(&before);
        let network = self.network_of(way)?.clone();
        let chooses = specs.iter().any(|spec| spec.host_ports.is_none());
        for attempt in 1.. {
            let publishes = self.resolve_publishes(specs, families, &network)?;
            let mut counters = Vec::new();
            let new = publishes.into_iter().map(|publish| Published {
                publish,
                counter: 0,
                allow_from: request.allow_from.clone(),
                runtime,
            });
            let result = self.try_publish(&before, new.collect(), &mut counters);
            if result.is_err() {
                for counter in counters {
                    self.counters.give_back(counter);
                }
            }
            match result {
                Err(AgentError::PortHeld { .. }) if chooses && attempt < CHOICES => {}
                result => {
                    result?;
                    break;
                }
            }
        }
        self.endpoint_view(name)
    }

    fn try_publish(
        &mut self,
        before: &Endpoint,
        mut new: Vec<Published>,
        counters: &mut Vec<u32>,
    ) -> Result<(), AgentError> {
        let mut after = before.clone();
        for published in &mut new {
            published.counter = self.take_counter(counters)?;
        }
        after.publishes.extend(new.iter().cloned());
        self.store.commit(&[Change::Endpoint(&after)])?;
        let entered = self
            .enter_publishes(&after, &new)
            .and_then(|()| check_held(&new));
        if let Err(error) = entered {
            if let Err(error) = self.withdraw_publishes(&new) {
                tracing::error!(%error, "undoing a publish");
            }
            self.store.commit(&[Change::Endpoint(before)])?;
            // Somebody may have come by them already.
            let ips: Vec<IpAddr> = before.ips().collect();
            self.hang_up(&before.name, &ips, &new);
            let counters = std::mem::take(counters);
            self.purge(
                Doomed::Counters(counters.iter().copied().collect()),
                Then::GiveBack(counters),
            );
            return Err(error);
        }
        self.wanted.endpoints.insert(after.name.clone(), after);
        self.flush_shadows(&new);
        Ok(())
    }

    pub fn unpublish(
        &mut self,
        name: &Name,
        specs: &[Spec],
    ) -> Result<types::Endpoint, AgentError> {
        let before = self.wanted_endpoint(name)?.clone();
        let mut after = before.clone();
        let mut gone = Vec::new();
        if specs.is_empty() {
            return Err(AgentError::NoPublish);
        }
        for spec in specs {
            let has = || {
                after
                    .publishes
                    .iter()
                    .map(|p| p.publish)
                    .collect::<Vec<_>>()
            };
            let named = |p: &&Published| spec.names(&p.publish);
            let mut matches = after.publishes.iter().filter(named);
            let Some(first) = matches.next().map(|p| p.publish) else {
                return Err(AgentError::NotPublished {
                    spec: *spec,
                    endpoint: name.clone(),
                    has: has(),
                });
            };
            // One of each family is what one spec made.
            if !matches.all(|p| p.publish.is_twin_of(&first)) {
                return Err(AgentError::Ambiguous {
                    spec: *spec,
                    endpoint: name.clone(),
                    has: has(),
                });
            }
            let named = |p: &mut Published| spec.names(&p.publish);
            gone.extend(after.publishes.extract_if(.., named));
        }
        self.withdraw_from(&before, &gone)?;
        self.endpoint_view(name)
    }

    /// Ends publishes of an endpoint that stays, with their connections.
    pub(super) fn withdraw_from(
        &mut self,
        before: &Endpoint,
        gone: &[Published],
    ) -> Result<(), AgentError> {
        let mut after = before.clone();
        after
            .publishes
            .retain(|published| !gone.contains(published));
        self.store.commit(&[Change::Endpoint(&after)])?;
        if let Err(error) = self.withdraw_publishes(gone) {
            // Some may be withdrawn already.
            self.store.commit(&[Change::Endpoint(before)])?;
            if self.is_up(before) {
                self.enter_publishes(before, &before.publishes)?;
            }
            return Err(error);
        }
        self.wanted.endpoints.insert(before.name.clone(), after);
        let ips: Vec<IpAddr> = before.ips().collect();
        self.hang_up(&before.name, &ips, gone);
        self.purge_publishes(gone);
        Ok(())
    }

    /// Flows that publishes have made, and then their counters are free.
    pub(super) fn purge_publishes(&mut self, gone: &[Published]) {
        let counters: Vec<u32> = gone.iter().map(|p| p.counter).collect();
        self.purge(
            Doomed::Counters(counters.iter().copied().collect()),
            Then::GiveBack(counters),
        );
    }

    /// The map entries of some of an endpoint's publishes, which lead to where it reaches the world: all,
    /// or none of them. Those of a family in which nobody gets to it rest.
    pub(super) fn enter_publishes(
        &mut self,
        endpoint: &Endpoint,
        published: &[Published],
    ) -> Result<(), AgentError> {
        self.enter::<Ip4>(endpoint, published)?;
        if let Err(error) = self.enter::<Ip6>(endpoint, published) {
            if let Err(error) = self.withdraw::<Ip4>(published) {
                tracing::error!(%error, "undoing a publish");
            }
            return Err(error);
        }
        Ok(())
    }

    /// Those of one family. Whoever may not use one finds it closed from the first moment on: its list is
    /// there before it is.
    fn enter<A: bpf::Family>(
        &mut self,
        endpoint: &Endpoint,
        published: &[Published],
    ) -> Result<(), AgentError> {
        let way = self.wanted.way_in(endpoint, Family::of(A::ANY.ip()));
        let Some(own) = way.and_then(|way| way.ips().find_map(A::of)) else {
            return self.withdraw::<A>(published);
        };
        let mut listed = Vec::with_capacity(published.len());
        for published in of_family::<A>(published) {
            let sources = endpoint.sources(published, &self.config.allow_from);
            let list = match sources.is_empty() {
                true => allow::EVERYBODY,
                false => self.dataplane.allow::<A>(sources.nets())?,
            };
            listed.push((published, list));
        }
        let flags = |published: &Published| match endpoint.is_bound(published) {
            true => publish_flag::UNRESERVED,
            false => 0,
        };
        Ok(self.dataplane.publish(entries(own, flags, listed))?)
    }

    /// Goes on past errors, and returns the first.
    pub(super) fn withdraw_publishes(&mut self, published: &[Published]) -> Result<(), AgentError> {
        let four = self.withdraw::<Ip4>(published);
        let six = self.withdraw::<Ip6>(published);
        four.and(six)
    }

    fn withdraw<A: bpf::Family>(&mut self, published: &[Published]) -> Result<(), AgentError> {
        let withdrawn = self.dataplane.unpublish(keys::<A>(published));
        // In any case: what could not be withdrawn is for nobody then.
        let counters = of_family::<A>(published).map(|published| published.counter);
        self.dataplane.disallow::<A>(counters);
        Ok(withdrawn?)
    }

    /// Ends what processes of the node have with a container by publishes that are withdrawn: no packet
    /// of theirs belongs to a flow, and whoever gets the address next is somebody else. Goes on past
    /// errors.
    /// `ips` are the container's.
    pub(super) fn hang_up(&mut self, endpoint: &Name, ips: &[IpAddr], gone: &[Published]) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let publishes = || {
                let all = gone.iter().map(|published| published.publish);
                all.filter(|publish| publish.protocol == protocol)
            };
            if publishes().next().is_none() {
                continue;
            }
            let is_over = |container: SocketAddr, asked: SocketAddr| {
                ips.contains(&container.ip())
                    && publishes().any(|publish| {
                        publish.container_ports.contains(container.port())
                            && publish.host_ports.contains(asked.port())
                    })
            };
            let ended = self
                .dataplane
                .sockets(is_over)
                .map_err(|error| crate::chain(&error))
                .and_then(|sockets| match sockets.is_empty() {
                    true => Ok(0),
                    false => diag::abort(protocol, &sockets).map_err(|error| error.to_string()),
                });
            match ended {
                Ok(0) => {}
                Ok(sockets) => {
                    tracing::info!(%endpoint, sockets, "ended: their publish is gone");
                }
                Err(error) => {
                    tracing::warn!(%endpoint, error, "sockets of the node stay connected to it");
                }
            }
        }
    }

    /// Those that are free of sockets, publishes not considered yet.
    pub(super) fn ports(&self) -> Ports<'_> {
        let own = match self.config.metrics {
            Some(Address::Tcp(own)) => Some(own),
            _ => None,
        };
        Ports::new(&self.locals, own)
    }

    /// The publishes that `specs` ask for, for a container that has addresses of `families` in
    /// `network`; ports chosen and nobody in the way.
    pub(super) fn resolve_publishes(
        &self,
        specs: &[Spec],
        families: Families,
        network: &Network,
    ) -> Result<Vec<Publish>, AgentError> {
        let mut ports = self.ports();
        for endpoint in self.wanted.endpoints.values() {
            for published in &endpoint.publishes {
                ports.take(Some(&endpoint.name), published.publish);
            }
        }
        let mut publishes = Vec::with_capacity(2 * specs.len());
        for spec in specs {
            let host_ips = ports.host_ips(spec, families, network)?;
            for publish in ports.resolve(*spec, &host_ips)? {
                ports.take(None, publish);
                publishes.push(publish);
            }
        }
        Ok(publishes)
    }

    /// Says which publishes are in the way of sockets that were there first: after a reboot a process may
    /// have bound a port before the agent could keep it.
    pub(super) fn report_held(&self) {
        let mut looks = Looks::default();
        // A runtime's are bound by itself.
        let endpoints = self.wanted.endpoints.values();
        for endpoint in endpoints.filter(|e| self.is_up(e)) {
            let publishes = endpoint.publishes.iter();
            for published in publishes.filter(|p| !endpoint.is_bound(p)) {
                match looks.check(&published.publish) {
                    Err(AgentError::PortHeld { publish, holder }) => tracing::warn!(
                        endpoint = %endpoint.name,
                        "{holder}; what comes from outside goes to {publish}"
                    ),
                    Err(error) => {
                        tracing::warn!(error = %crate::chain(&error), "no look at sockets")
                    }
                    Ok(()) => {}
                }
            }
        }
    }

    /// Forgets masqueraded flows whose answers come to ports that are published now: they would be
    /// found before the publish is. Not at once: to be in somebody's way, one must be a talk with the
    /// very port that he comes from.
    pub(super) fn flush_shadows(&mut self, published: &[Published]) {
        let config = &self.config.dataplane;
        let masquerade = PortRange {
            first: config.port_min,
            last: config.port_max,
        };
        // A walk over all flows: not where there can be none.
        if !published
            .iter()
            .any(|p| p.publish.host_ports.overlaps(masquerade))
        {
            return;
        }
        let publishes = published.iter().map(|p| p.publish);
        self.purge_later(Doomed::Shadows(Shadows::of(publishes)));
    }
}

/// None where it is for the other family.
fn key<A: bpf::Family>(publish: &Publish, host_port: u16) -> Option<PublishKey<A>> {
    Some(PublishKey {
        addr: A::of(publish.host_ip)?,
        port: Be16::new(host_port),
        proto: publish.protocol.number(),
        reserved: 0,
    })
}

/// The keys of those that are for family `A`.
pub(super) fn keys<A: bpf::Family>(published: &[Published]) -> impl Iterator<Item = PublishKey<A>> {
    published.iter().flat_map(|published| {
        let publish = &published.publish;
        let pairs = publish.pairs();
        pairs.filter_map(|(host, _)| key(publish, host))
    })
}

/// Those that are for family `A`.
fn of_family<A: bpf::Family>(published: &[Published]) -> impl Iterator<Item = &Published> {
    let all = published.iter();
    all.filter(|published| A::of(published.publish.host_ip).is_some())
}

/// Of publishes, each with the number of its list. `own` is the container's address, `flags` tells each one's
/// of [`publish_flag`].
fn entries<'a, A: bpf::Family>(
    own: A,
    flags: impl Fn(&Published) -> u16,
    published: impl IntoIterator<Item = (&'a Published, u16)>,
) -> impl Iterator<Item = (PublishKey<A>, map::Publish<A>)> {
    published.into_iter().flat_map(move |(published, allow)| {
        let publish = &published.publish;
        let flags = flags(published);
        publish.pairs().filter_map(move |(host, container)| {
            let value = map::Publish {
                addr: own,
                counter: published.counter as u16,
                flags,
                port: Be16::new(container),
                allow,
            };
            Some((key(publish, host)?, value))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_entry_a_port_and_family() {
        let ip4 = Ip4::new([172, 18, 0, 2]);
        let ip6 = Ip6::from("fd00::2".parse::<std::net::Ipv6Addr>().unwrap());
        let published = |text: &str, counter| {
            let spec: Spec = text.parse().unwrap();
            Published {
                publish: spec.resolve(spec.host_ip.unwrap(), spec.host_ports.unwrap()),
                counter,
                allow_from: Default::default(),
                runtime: false,
            }
        };
        let all = [
            published("192.0.2.1:8080-8082:80-82/udp", 7),
            published("[::]:443:443", 8),
        ];
        let listed = |n: u16| all.iter().zip(n..);
        let four: Vec<_> = entries(ip4, |_| 0, listed(3)).collect();
        assert_eq!(four.len(), 3);
        let (key, value) = four[2];
        assert_eq!(key.addr, Ip4::new([192, 0, 2, 1]));
        assert_eq!((key.port.get(), key.proto), (8082, 17));
        assert_eq!(value.addr, ip4);
        assert_eq!((value.port.get(), value.counter, value.allow), (82, 7, 3));
        assert!(keys::<Ip4>(&all).eq(four.iter().map(|(key, _)| *key)));
        let six: Vec<_> = entries(ip6, |_| 0, listed(4)).collect();
        assert_eq!(six.len(), 1);
        assert_eq!((six[0].0.port.get(), six[0].1.counter), (443, 8));
        assert!(keys::<Ip6>(&all).eq(six.iter().map(|(key, _)| *key)));
    }
}
