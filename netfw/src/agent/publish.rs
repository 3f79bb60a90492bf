//! Publishes: who may have which port, and the map entries that say so.

use std::net::{IpAddr, Ipv4Addr};

use netfw_common::{
    addr::{Be16, Ip4},
    flow::flag,
    record::{Publish4, PublishKey4},
    tuple::zone,
};

use super::{
    Agent, AgentError,
    record::{Endpoint, Published},
    store::Change,
};
use crate::{
    api::types,
    name::Name,
    net::{socket, sysctl},
    publish::{PortRange, Publish, Spec},
};

impl Agent {
    pub fn publish(&mut self, name: &Name, specs: &[Spec]) -> Result<types::Endpoint, AgentError> {
        let before = self.wanted_endpoint(name)?.clone();
        if !self.up.contains_key(name) {
            return Err(AgentError::Gone(name.clone()));
        }
        if specs.is_empty() {
            return Err(AgentError::NoPublish);
        }
        let publishes = self.resolve_publishes(specs)?;
        let mut counters = Vec::new();
        let result = self.try_publish(&before, publishes, &mut counters);
        if result.is_err() {
            for counter in counters {
                self.counters.give_back(counter);
            }
        }
        result?;
        self.endpoint_view(name)
    }

    fn try_publish(
        &mut self,
        before: &Endpoint,
        publishes: Vec<Publish>,
        counters: &mut Vec<u32>,
    ) -> Result<(), AgentError> {
        let mut after = before.clone();
        let mut new = Vec::with_capacity(publishes.len());
        for publish in publishes {
            let counter = self.take_counter(counters)?;
            new.push(Published { publish, counter });
        }
        after.publishes.extend(new.iter().cloned());
        self.store.commit(&[Change::Endpoint(&after)])?;
        let entries = new.iter().flat_map(|p| entries(after.ip4, p));
        if let Err(error) = self.dataplane.publish(entries) {
            self.store.commit(&[Change::Endpoint(before)])?;
            return Err(error.into());
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
            let mut matches = after
                .publishes
                .iter()
                .enumerate()
                .filter(|(_, p)| spec.names(&p.publish))
                .map(|(i, _)| i);
            match (matches.next(), matches.next()) {
                (None, _) => {
                    return Err(AgentError::NotPublished {
                        spec: *spec,
                        endpoint: name.clone(),
                        has: has(),
                    });
                }
                (Some(_), Some(_)) => {
                    return Err(AgentError::Ambiguous {
                        spec: *spec,
                        endpoint: name.clone(),
                        has: has(),
                    });
                }
                (Some(index), None) => gone.push(after.publishes.remove(index)),
            }
        }
        self.store.commit(&[Change::Endpoint(&after)])?;
        if let Err(error) = self.dataplane.unpublish(gone.iter().flat_map(keys)) {
            // Some may be withdrawn already.
            self.store.commit(&[Change::Endpoint(&before)])?;
            if self.up.contains_key(name) {
                self.dataplane.publish(entries_of_endpoint(&before))?;
            }
            return Err(error.into());
        }
        self.wanted.endpoints.insert(name.clone(), after);
        self.dataplane
            .remove_flows(|_, flow| gone.iter().any(|p| p.counter == u32::from(flow.counter)))?;
        for published in gone {
            self.counters.give_back(published.counter);
        }
        self.endpoint_view(name)
    }

    /// The publishes that `specs` ask for, ports chosen and nobody in the way.
    pub(super) fn resolve_publishes(&self, specs: &[Spec]) -> Result<Vec<Publish>, AgentError> {
        let mut publishes: Vec<Publish> = Vec::with_capacity(specs.len());
        for spec in specs {
            if let Some(ip) = spec.host_ip
                && !ip.is_unspecified()
                && !ip.is_loopback()
                && !self.locals.contains_key(&ip)
            {
                let mut has: Vec<_> = self.locals.keys().copied().collect();
                has.sort();
                return Err(AgentError::NotLocal {
                    spec: *spec,
                    ip,
                    has,
                });
            }
            let publish = match spec.host_ports {
                Some(ports) => {
                    let publish = spec.resolve(ports);
                    self.check_free(&publish, &publishes)?;
                    publish
                }
                None => self.choose_ports(*spec, &publishes)?,
            };
            publishes.push(publish);
        }
        Ok(publishes)
    }

    /// `also` are the publishes of the same request.
    fn check_free(&self, publish: &Publish, also: &[Publish]) -> Result<(), AgentError> {
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
        let host_ip = (!publish.host_ip.is_unspecified()).then_some(IpAddr::V4(publish.host_ip));
        let holders = socket::holders(publish.protocol, publish.host_ports.ports(), host_ip)?;
        match holders.into_iter().next() {
            Some(holder) => Err(AgentError::PortHeld {
                publish: *publish,
                holder,
            }),
            None => Ok(()),
        }
    }

    /// Free host ports for a spec that names none.
    fn choose_ports(&self, spec: Spec, also: &[Publish]) -> Result<Publish, AgentError> {
        let count = spec.container_ports.count();
        for pool in pools(ephemeral_ports()) {
            if pool.count() < count {
                continue;
            }
            let host_ip = spec.host_ip.filter(|ip| !ip.is_unspecified());
            // One look at the sockets for the whole pool.
            let held = socket::holders(spec.protocol, pool.ports(), host_ip.map(IpAddr::V4))?;
            let blocked = |publish: &Publish| {
                self.wanted
                    .endpoints
                    .values()
                    .flat_map(|e| e.publishes.iter().map(|p| &p.publish))
                    .chain(also)
                    .find(|p| p.overlaps(publish))
                    .map(|p| p.host_ports.last)
                    .or_else(|| {
                        held.iter()
                            .map(|h| h.port)
                            .find(|port| publish.host_ports.contains(*port))
                    })
            };
            let mut first = pool.first;
            while let Some(last) = first.checked_add((count - 1) as u16)
                && last <= pool.last
            {
                let publish = spec.resolve(PortRange { first, last });
                match blocked(&publish) {
                    None => return Ok(publish),
                    Some(u16::MAX) => break,
                    Some(port) => first = port + 1,
                }
            }
        }
        Err(AgentError::NoFreePort { spec })
    }

    /// Forgets masqueraded flows whose answers come to ports that are published now: they would be
    /// found before the publish is.
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
        let shadows = self.dataplane.remove_flows(|key, flow| {
            key.zone == zone::WORLD
                && !flow.has(flag::PUBLISHED)
                && published.iter().any(|Published { publish, .. }| {
                    key.proto == publish.protocol.number()
                        && publish.host_ports.contains(key.dport.get())
                        && (publish.host_ip.is_unspecified()
                            || Ip4::from(publish.host_ip) == key.dst)
                })
        });
        match shadows {
            Ok(0) => {}
            Ok(flows) => tracing::info!(flows, "masqueraded flows gave way to a publish"),
            Err(error) => tracing::warn!(%error, "flows in the way of a publish were not removed"),
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

fn key(publish: &Publish, host_port: u16) -> PublishKey4 {
    PublishKey4 {
        addr: publish.host_ip.into(),
        port: Be16::new(host_port),
        proto: publish.protocol.number(),
        reserved: 0,
    }
}

pub(super) fn keys(published: &Published) -> impl Iterator<Item = PublishKey4> + use<'_> {
    published
        .publish
        .pairs()
        .map(|(host, _)| key(&published.publish, host))
}

fn entries(
    ip: Ipv4Addr,
    published: &Published,
) -> impl Iterator<Item = (PublishKey4, Publish4)> + use<'_> {
    published.publish.pairs().map(move |(host, container)| {
        let value = Publish4 {
            addr: ip.into(),
            counter: published.counter,
            port: Be16::new(container),
            reserved: 0,
        };
        (key(&published.publish, host), value)
    })
}

pub(super) fn keys_of_endpoint(endpoint: &Endpoint) -> impl Iterator<Item = PublishKey4> + use<'_> {
    endpoint.publishes.iter().flat_map(keys)
}

pub(super) fn entries_of_endpoint(
    endpoint: &Endpoint,
) -> impl Iterator<Item = (PublishKey4, Publish4)> + use<'_> {
    endpoint
        .publishes
        .iter()
        .flat_map(|p| entries(endpoint.ip4, p))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_entry_a_port() {
        let spec: Spec = "192.0.2.1:8080-8082:80-82/udp".parse().unwrap();
        let published = Published {
            publish: spec.resolve(spec.container_ports),
            counter: 7,
        };
        let ip = Ipv4Addr::new(172, 18, 0, 2);
        let entries: Vec<_> = entries(ip, &published).collect();
        assert_eq!(entries.len(), 3);
        let (key, value) = entries[2];
        assert_eq!(key.addr, Ipv4Addr::new(192, 0, 2, 1).into());
        assert_eq!((key.port.get(), key.proto), (8082, 17));
        assert_eq!(value.addr, ip.into());
        assert_eq!((value.port.get(), value.counter), (82, 7));
        assert!(keys(&published).eq(entries.iter().map(|(key, _)| *key)));
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
