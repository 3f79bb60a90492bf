//! Publishes: who may have which port, and the map entries that say so.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
};

use netfw_common::{
    addr::{Be16, Ip4, Ip6},
    record::{self as map, PublishKey, allow},
};

use super::{
    Agent, AgentError,
    error::ModeError,
    plan::family,
    purge::{Doomed, Shadows, Then},
    record::{Endpoint, Family, Network, Published},
    store::Change,
};
use crate::{
    api::types::{self, PublishRequest},
    bpf,
    metrics::Address,
    name::Name,
    net::{
        diag,
        socket::{Holder, Protocol, Sockets},
        sysctl,
    },
    publish::{Families, PortRange, Publish, Spec},
    source::Sources,
};

/// How often free ports are chosen, where somebody takes them before they are published.
pub(super) const CHOICES: u32 = 3;

impl Agent {
    pub fn publish(
        &mut self,
        name: &Name,
        request: &PublishRequest,
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
            let result = self.try_publish(&before, publishes, &request.allow_from, &mut counters);
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
        publishes: Vec<Publish>,
        allow_from: &Sources,
        counters: &mut Vec<u32>,
    ) -> Result<(), AgentError> {
        let mut after = before.clone();
        let mut new = Vec::with_capacity(publishes.len());
        for publish in publishes {
            let counter = self.take_counter(counters)?;
            new.push(Published {
                publish,
                counter,
                allow_from: allow_from.clone(),
            });
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
        self.store.commit(&[Change::Endpoint(&after)])?;
        if let Err(error) = self.withdraw_publishes(&gone) {
            // Some may be withdrawn already.
            self.store.commit(&[Change::Endpoint(&before)])?;
            if self.is_up(&before) {
                self.enter_publishes(&before, &before.publishes)?;
            }
            return Err(error);
        }
        self.wanted.endpoints.insert(name.clone(), after);
        let ips: Vec<IpAddr> = before.ips().collect();
        self.hang_up(name, &ips, &gone);
        let counters: Vec<u32> = gone.iter().map(|p| p.counter).collect();
        self.purge(
            Doomed::Counters(counters.iter().copied().collect()),
            Then::GiveBack(counters),
        );
        self.endpoint_view(name)
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
        Ok(self.dataplane.publish(entries(own, listed))?)
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

    /// The publishes that `specs` ask for, for a container that has addresses of `families` in
    /// `network`; ports chosen and nobody in the way.
    pub(super) fn resolve_publishes(
        &self,
        specs: &[Spec],
        families: Families,
        network: &Network,
    ) -> Result<Vec<Publish>, AgentError> {
        let mut looks = Looks::default();
        let mut publishes: Vec<Publish> = Vec::with_capacity(2 * specs.len());
        for spec in specs {
            if network.rules.internal {
                return Err(AgentError::PublishInternal {
                    spec: *spec,
                    network: network.name.clone(),
                });
            }
            if let Some(ip) = spec.host_ip {
                self.check_local(*spec, ip)?;
            }
            let host_ips = spec.host_ips(families);
            if let (Some(ip), None) = (spec.host_ip, host_ips.clone().next()) {
                return Err(AgentError::PublishFamily {
                    spec: *spec,
                    family: family(ip),
                    network: network.name.clone(),
                });
            }
            match spec.host_ports {
                Some(ports) => {
                    for host_ip in host_ips {
                        let publish = spec.resolve(host_ip, ports);
                        self.check_free(&publish, &publishes, &mut looks)?;
                        publishes.push(publish);
                    }
                }
                None => {
                    let host_ips: Vec<IpAddr> = host_ips.collect();
                    let ports = self.choose_ports(*spec, &host_ips, &publishes, &mut looks)?;
                    publishes.extend(host_ips.iter().map(|ip| spec.resolve(*ip, ports)));
                }
            }
        }
        Ok(publishes)
    }

    /// A publish is for an address that the node has.
    fn check_local(&self, spec: Spec, ip: IpAddr) -> Result<(), AgentError> {
        if ip.is_unspecified() || ip.is_loopback() || self.locals.contains_key(&ip) {
            return Ok(());
        }
        let locals = self.locals.keys();
        let mut has: Vec<_> = locals
            .copied()
            .filter(|local| local.is_ipv4() == ip.is_ipv4())
            .collect();
        has.sort();
        Err(AgentError::NotLocal { spec, ip, has })
    }

    /// `also` are the publishes of the same request, `looks` what sockets there are.
    fn check_free(
        &self,
        publish: &Publish,
        also: &[Publish],
        looks: &mut Looks,
    ) -> Result<(), AgentError> {
        for endpoint in self.wanted.endpoints.values() {
            if let Some(other) = endpoint
                .publishes
                .iter()
                .find(|p| p.publish.overlaps(publish))
            {
                return Err(AgentError::PublishTaken {
                    publish: *publish,
                    existing: other.publish,
                    endpoint: endpoint.name.clone(),
                });
            }
        }
        if let Some(other) = also.iter().find(|p| p.overlaps(publish)) {
            return Err(AgentError::PublishTwice {
                publish: *publish,
                existing: *other,
            });
        }
        match self.holds(publish) {
            Some(holder) => Err(AgentError::PortHeld {
                publish: *publish,
                holder,
            }),
            None => looks.check(publish),
        }
    }

    /// The agent's own socket, for metrics, where a publish would take its packets; those of the name servers
    /// are in nobody's way.
    fn holds(&self, publish: &Publish) -> Option<Holder> {
        let Some(Address::Tcp(own)) = self.config.metrics else {
            return None;
        };
        let ports = publish.host_ports.ports();
        Holder::this_process(own, ports, publish.host_ip)
            .filter(|holder| holder.proto == publish.protocol)
    }

    /// Says which publishes are in the way of sockets that were there first: after a reboot a process may
    /// have bound a port before the agent could keep it.
    pub(super) fn report_held(&self) {
        let mut looks = Looks::default();
        let up = self.wanted.endpoints.values().filter(|e| self.is_up(e));
        for endpoint in up {
            for published in &endpoint.publishes {
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

    /// Host ports for a spec that names none, free on all of `host_ips`.
    fn choose_ports(
        &self,
        spec: Spec,
        host_ips: &[IpAddr],
        also: &[Publish],
        looks: &mut Looks,
    ) -> Result<PortRange, AgentError> {
        let count = spec.container_ports.count();
        let named = spec.choice.into_iter();
        let free = pools(ephemeral_ports()).filter(|_| spec.choice.is_none());
        for pool in named.chain(free) {
            if pool.count() < count {
                continue;
            }
            let sockets = looks.of(spec.protocol)?;
            let held: HashSet<u16> = host_ips
                .iter()
                .flat_map(|host_ip| sockets.ports(pool.ports(), *host_ip))
                .collect();
            let blocked = |publish: &Publish| {
                self.wanted
                    .endpoints
                    .values()
                    .flat_map(|e| e.publishes.iter().map(|p| &p.publish))
                    .chain(also)
                    .find(|p| p.overlaps(publish))
                    .map(|p| p.host_ports.last)
                    .or_else(|| publish.host_ports.ports().find(|port| held.contains(port)))
                    .or_else(|| self.holds(publish).map(|holder| holder.port))
            };
            let mut first = pool.first;
            while let Some(last) = first.checked_add((count - 1) as u16)
                && last <= pool.last
            {
                let ports = PortRange { first, last };
                let mut publishes = host_ips.iter().map(|ip| spec.resolve(*ip, ports));
                match publishes.find_map(|publish| blocked(&publish)) {
                    None => return Ok(ports),
                    Some(u16::MAX) => break,
                    Some(port) => first = port + 1,
                }
            }
        }
        Err(match spec.choice {
            Some(choice) => AgentError::NoFreePortOf { spec, choice },
            None => AgentError::NoFreePort { spec },
        })
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

/// [`Agent::resolve_publishes`]'s look once more, when nobody can ask for the ports any longer: somebody may
/// have come between the first one and that. Not so where the kernel chose the port for him; then he is
/// found now, or goes without what comes in from outside.
pub(super) fn check_held(published: &[Published]) -> Result<(), AgentError> {
    let mut looks = Looks::default();
    published
        .iter()
        .try_for_each(|published| looks.check(&published.publish))
}

/// The sockets of the node as they were at one moment, by protocol: one look for a whole request.
#[derive(Default)]
struct Looks(Vec<Sockets>);

impl Looks {
    fn of(&mut self, protocol: Protocol) -> Result<&Sockets, AgentError> {
        let known = self
            .0
            .iter()
            .position(|sockets| sockets.protocol() == protocol);
        let at = match known {
            Some(at) => at,
            None => {
                self.0.push(Sockets::of_others(protocol)?);
                self.0.len() - 1
            }
        };
        Ok(&self.0[at])
    }

    fn check(&mut self, publish: &Publish) -> Result<(), AgentError> {
        let sockets = self.of(publish.protocol)?;
        match sockets.holder(publish.host_ports.ports(), publish.host_ip) {
            Some(holder) => Err(AgentError::PortHeld {
                publish: *publish,
                holder,
            }),
            None => Ok(()),
        }
    }
}

/// Where free host ports are looked for: first above the ports that the node's own connections
/// use, because an answer to such a connection would otherwise go to the container; then among
/// them.
fn pools(ephemeral: PortRange) -> impl Iterator<Item = PortRange> {
    let above = ephemeral.last.checked_add(1).map(|first| PortRange {
        first,
        last: u16::MAX,
    });
    above.into_iter().chain([ephemeral])
}

fn ephemeral_ports() -> PortRange {
    let parse = |text: String| {
        let mut parts = text.split_whitespace().map(|p| p.parse().ok());
        let (first, last) = (parts.next()??, parts.next()??);
        (0 < first && first <= last).then_some(PortRange { first, last })
    };
    sysctl::get("net/ipv4/ip_local_port_range")
        .ok()
        .and_then(parse)
        .unwrap_or(PortRange {
            first: 32768,
            last: 60999,
        })
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

/// Of publishes, each with the number of its list. `own` is the container's address.
fn entries<'a, A: bpf::Family>(
    own: A,
    published: impl IntoIterator<Item = (&'a Published, u16)>,
) -> impl Iterator<Item = (PublishKey<A>, map::Publish<A>)> {
    published.into_iter().flat_map(move |(published, allow)| {
        let publish = &published.publish;
        publish.pairs().filter_map(move |(host, container)| {
            let value = map::Publish {
                addr: own,
                counter: published.counter,
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
                allow_from: Sources::default(),
            }
        };
        let all = [
            published("192.0.2.1:8080-8082:80-82/udp", 7),
            published("[::]:443:443", 8),
        ];
        let listed = |n: u16| all.iter().zip(n..);
        let four: Vec<_> = entries(ip4, listed(3)).collect();
        assert_eq!(four.len(), 3);
        let (key, value) = four[2];
        assert_eq!(key.addr, Ip4::new([192, 0, 2, 1]));
        assert_eq!((key.port.get(), key.proto), (8082, 17));
        assert_eq!(value.addr, ip4);
        assert_eq!((value.port.get(), value.counter, value.allow), (82, 7, 3));
        assert!(keys::<Ip4>(&all).eq(four.iter().map(|(key, _)| *key)));
        let six: Vec<_> = entries(ip6, listed(4)).collect();
        assert_eq!(six.len(), 1);
        assert_eq!((six[0].0.port.get(), six[0].1.counter), (443, 8));
        assert!(keys::<Ip6>(&all).eq(six.iter().map(|(key, _)| *key)));
    }

    #[test]
    fn the_node_s_own_ports_come_last() {
        let ephemeral = PortRange {
            first: 32768,
            last: 60999,
        };
        let pools: Vec<_> = pools(ephemeral).collect();
        assert_eq!(
            pools[0],
            PortRange {
                first: 61000,
                last: 65535
            }
        );
        assert_eq!(pools[1], ephemeral);
        let all = PortRange {
            first: 1024,
            last: 65535,
        };
        assert_eq!(super::pools(all).collect::<Vec<_>>(), [all]);
    }
}
