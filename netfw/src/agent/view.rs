//! Answers: the state as the API shows it.

use std::net::Ipv4Addr;

use netfw_common::record;

use super::{Agent, AgentError, record as wanted};
use crate::{
    api::types::{
        Counter, DropStats, Endpoint, EndpointState, EndpointStats, Network, Program, PublishStats,
        Stats, Status, Uplink,
    },
    name::Name,
    publish::Publish,
};

impl Agent {
    pub fn status(&self) -> Status {
        let endpoints = self.wanted.endpoints.len();
        let publishes = || self.wanted.endpoints.values().flat_map(|e| &e.publishes);
        let (used, max) = self.dataplane.flow_usage();
        let served = self.uplinks.iter().map(|(ifindex, state)| {
            let (xdp, xdp_why) = self.xdp_view(*ifindex);
            Uplink {
                name: state.uplink.name.clone(),
                ifindex: Some(*ifindex),
                hook: state.attached.as_ref().ok().map(|hook| (*hook).to_owned()),
                served: state.uplink.closed.is_none() && state.attached.is_ok(),
                error: match &state.attached {
                    Ok(_) => state.uplink.closed.map(str::to_owned),
                    Err(error) => Some(error.clone()),
                },
                xdp: xdp.map(str::to_owned),
                xdp_why,
            }
        });
        let missing = self.missing_uplinks.iter().map(|name| Uplink {
            name: name.clone(),
            ifindex: None,
            hook: None,
            served: false,
            error: Some("there is no such interface (yet)".into()),
            xdp: None,
            xdp_why: None,
        });
        // What cannot be read is not there to be shown; `stats` says why.
        let mut drops = self.drop_views().unwrap_or_default();
        drops.retain(|d| d.packets > 0);
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            instance: self.config.instance.clone(),
            pid: std::process::id(),
            netns: self.config.netns.clone(),
            uptime: self.started.elapsed().as_secs(),
            uplinks: served.chain(missing).collect(),
            networks: self.network_views(),
            endpoints,
            endpoints_gone: endpoints - self.up.len().min(endpoints),
            publishes: publishes().count(),
            published_ports: publishes()
                .map(|p| u64::from(p.publish.host_ports.count()))
                .sum(),
            flows: used as u64,
            flows_max: max as u64,
            dropped: drops.iter().map(|d| d.packets).sum(),
            drops,
            programs: self
                .dataplane
                .program_stats()
                .into_iter()
                .map(|p| Program {
                    name: p.name.into(),
                    runs: p.run_count,
                    run_time_ns: p.run_time.as_nanos().try_into().unwrap_or(u64::MAX),
                    verified_instructions: p.verified_instructions,
                })
                .collect(),
        }
    }

    pub fn network_views(&self) -> Vec<Network> {
        self.wanted
            .networks
            .values()
            .map(|n| Network {
                name: n.name.clone(),
                bridge: n.bridge.clone(),
                subnet: n.subnet,
                gateway: n.gateway,
                mac: n.mac,
                endpoints: self
                    .wanted
                    .endpoints
                    .values()
                    .filter(|e| e.network == n.name)
                    .count(),
            })
            .collect()
    }

    pub fn endpoint_views(&self) -> Vec<Endpoint> {
        self.wanted
            .endpoints
            .values()
            .map(|e| self.endpoint_of(e))
            .collect()
    }

    pub fn endpoint_view(&self, name: &Name) -> Result<Endpoint, AgentError> {
        Ok(self.endpoint_of(self.wanted_endpoint(name)?))
    }

    fn endpoint_of(&self, e: &wanted::Endpoint) -> Endpoint {
        let network = self.wanted.networks.get(&e.network);
        let ifindex = self.up.get(&e.name).copied();
        Endpoint {
            name: e.name.clone(),
            state: match ifindex {
                Some(_) => EndpointState::Up,
                None => EndpointState::Gone,
            },
            network: e.network.clone(),
            ip: e.ip4,
            prefix_len: network.map_or(32, |n| n.subnet.prefix_len()),
            gateway: network.map_or(Ipv4Addr::UNSPECIFIED, |n| n.gateway),
            mac: e.mac,
            netns: e.namespace.path.clone(),
            netns_made: e.namespace.made,
            interface: e.interface.clone(),
            host_interface: e.host_interface.clone(),
            host_ifindex: ifindex,
            publishes: e.publishes.iter().map(|p| p.publish.into()).collect(),
            warnings: e
                .publishes
                .iter()
                .filter_map(|p| unreachable(&p.publish, &self.sockets))
                .collect(),
        }
    }

    pub fn stats(&self) -> Result<Stats, AgentError> {
        let mut endpoints = Vec::with_capacity(self.wanted.endpoints.len());
        for endpoint in self.wanted.endpoints.values() {
            // A packet counts once: for the publish that made its flow, or else for the endpoint.
            let mut total = self.dataplane.counter(endpoint.counter)?;
            let mut publishes = Vec::with_capacity(endpoint.publishes.len());
            for published in &endpoint.publishes {
                let counter = self.dataplane.counter(published.counter)?;
                total += counter;
                publishes.push(PublishStats {
                    publish: published.publish.into(),
                    counter: counter_view(counter),
                });
            }
            endpoints.push(EndpointStats {
                name: endpoint.name.clone(),
                total: counter_view(total),
                publishes,
            });
        }
        let drops = self.drop_views()?;
        Ok(Stats { endpoints, drops })
    }
}

impl Agent {
    fn drop_views(&self) -> Result<Vec<DropStats>, AgentError> {
        let drops = self.dataplane.drops()?;
        Ok(drops
            .into_iter()
            .map(|(reason, packets)| DropStats {
                reason: reason.name().into(),
                description: reason.description().into(),
                packets,
            })
            .collect())
    }
}

/// Why nobody reaches a publish, if so: 127.0.0.1 is for the node's own processes alone.
fn unreachable(publish: &Publish, sockets: &Result<(), String>) -> Option<String> {
    let why = sockets.as_ref().err()?;
    publish.host_ip.is_loopback().then(|| {
        format!("{publish} serves nobody: processes of the node do not reach publishes ({why})")
    })
}

fn counter_view(c: record::Counter) -> Counter {
    Counter {
        rx_packets: c.rx_packets,
        rx_bytes: c.rx_bytes,
        tx_packets: c.tx_packets,
        tx_bytes: c.tx_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::Spec;

    #[test]
    fn only_a_publish_that_nobody_reaches_is_warned_of() {
        let broken = Err("no cgroups".to_owned());
        for (text, warned) in [
            ("127.0.0.1:8080:80", true),
            ("127.0.0.2:8080:80/udp", true),
            ("8080:80", false),
            ("192.0.2.1:8080:80", false),
        ] {
            let spec: Spec = text.parse().unwrap();
            let publish = spec.resolve(spec.host_ports.unwrap());
            assert_eq!(unreachable(&publish, &broken).is_some(), warned, "{text}");
            assert_eq!(unreachable(&publish, &Ok(())), None, "{text}");
        }
    }
}
