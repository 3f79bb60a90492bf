//! Which host ports can be had: what other publishes and sockets of the node leave free.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use super::{
    AgentError,
    plan::family,
    record::{Network, Published},
};
use crate::{
    name::Name,
    net::{
        socket::{Holder, Protocol, Sockets},
        sysctl,
    },
    publish::{Families, PortRange, Publish, Spec},
};

/// What is in the way of a publish, and what it can be for.
pub(super) struct Ports<'a> {
    /// The node's addresses.
    locals: &'a HashMap<IpAddr, u32>,
    /// Publishes, and whose they are; none: of the same request.
    taken: Vec<(Option<Name>, Publish)>,
    /// The agent's own socket, for metrics: a publish would take its packets. Those of the name servers are in
    /// nobody's way.
    own: Option<SocketAddr>,
    looks: Looks,
}

impl<'a> Ports<'a> {
    pub fn new(locals: &'a HashMap<IpAddr, u32>, own: Option<SocketAddr>) -> Self {
        Self {
            locals,
            own,
            taken: Vec::new(),
            looks: Looks::default(),
        }
    }

    /// The same of a node without sockets.
    #[cfg(test)]
    pub fn without_sockets(locals: &'a HashMap<IpAddr, u32>) -> Self {
        let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        Self {
            looks: Looks(all.map(Sockets::none).into()),
            ..Self::new(locals, None)
        }
    }

    /// From here on, it is in others' way.
    pub fn take(&mut self, owner: Option<&Name>, publish: Publish) {
        self.taken.push((owner.cloned(), publish));
    }

    /// The node's addresses that `spec` means, of a container that has addresses of `families` in `network`.
    pub fn host_ips(
        &self,
        spec: &Spec,
        families: Families,
        network: &Network,
    ) -> Result<Vec<IpAddr>, AgentError> {
        if network.rules.internal {
            return Err(AgentError::PublishInternal {
                spec: *spec,
                network: network.name.clone(),
            });
        }
        if let Some(ip) = spec.host_ip {
            self.check_local(*spec, ip)?;
        }
        let host_ips: Vec<IpAddr> = spec.host_ips(families).collect();
        match spec.host_ip {
            Some(ip) if host_ips.is_empty() => Err(AgentError::PublishFamily {
                spec: *spec,
                family: family(ip),
                network: network.name.clone(),
            }),
            _ => Ok(host_ips),
        }
    }

    /// The publishes of `spec` on `host_ips`; ports chosen, and nobody in the way.
    pub fn resolve(&mut self, spec: Spec, host_ips: &[IpAddr]) -> Result<Vec<Publish>, AgentError> {
        let ports = match spec.host_ports {
            Some(ports) => ports,
            None => self.choose(spec, host_ips)?,
        };
        let publishes: Vec<Publish> = host_ips.iter().map(|ip| spec.resolve(*ip, ports)).collect();
        for publish in publishes.iter().filter(|_| spec.host_ports.is_some()) {
            self.check_free(publish)?;
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

    fn check_free(&mut self, publish: &Publish) -> Result<(), AgentError> {
        let mut taken = self.taken.iter();
        match taken.find(|(_, other)| other.overlaps(publish)) {
            Some((Some(endpoint), other)) => Err(AgentError::PublishTaken {
                publish: *publish,
                existing: *other,
                endpoint: endpoint.clone(),
            }),
            Some((None, other)) => Err(AgentError::PublishTwice {
                publish: *publish,
                existing: *other,
            }),
            None => match self.holder(publish) {
                Some(holder) => Err(AgentError::MetricsPort {
                    publish: *publish,
                    metrics: SocketAddr::new(holder.addr, holder.port),
                }),
                None => self.looks.check(publish),
            },
        }
    }

    /// Is the agent itself in the way?
    fn holder(&self, publish: &Publish) -> Option<Holder> {
        let ports = publish.host_ports.ports();
        Holder::this_process(self.own?, ports, publish.host_ip)
            .filter(|holder| holder.proto == publish.protocol)
    }

    /// Host ports for a spec that names none, free on all of `host_ips`.
    fn choose(&mut self, spec: Spec, host_ips: &[IpAddr]) -> Result<PortRange, AgentError> {
        let count = spec.container_ports.count();
        let named = spec.choice.into_iter();
        let free = pools(ephemeral_ports()).filter(|_| spec.choice.is_none());
        for pool in named.chain(free) {
            if pool.count() < count {
                continue;
            }
            let sockets = self.looks.of(spec.protocol)?;
            let held: HashSet<u16> = host_ips
                .iter()
                .flat_map(|host_ip| sockets.ports(pool.ports(), *host_ip))
                .collect();
            let blocked = |publish: &Publish| {
                self.taken
                    .iter()
                    .map(|(_, taken)| taken)
                    .find(|p| p.overlaps(publish))
                    .map(|p| p.host_ports.last)
                    .or_else(|| publish.host_ports.ports().find(|port| held.contains(port)))
                    .or_else(|| self.holder(publish).map(|holder| holder.port))
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
}

/// [`Ports`]' look once more, when nobody can ask for the ports any longer: somebody may
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
pub(super) struct Looks(Vec<Sockets>);

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

    pub fn check(&mut self, publish: &Publish) -> Result<(), AgentError> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
