//! Answers: the state as the API shows it.

use std::{collections::HashMap, path::PathBuf};

use netfw_common::{
    addr::{Ip4, Ip6},
    drop::Drop,
    record,
};

use super::{
    Agent, AgentError, endpoint::place, interior::Interior, network, plan::family,
    record as wanted, run::instance_option, saved::Saved,
};
use crate::{
    api::types::{
        self, Attachment, Counter, DropStats, Endpoint, EndpointDrops, EndpointState,
        EndpointStats, KnownMac, Member, Network, NetworkDetails, Program, PublishStats, Stats,
        Status, Table, Uplink, Wiring,
    },
    bpf::{Family, Part},
    name::{Mac, Name},
    net::{NetError, Netlink},
    publish::Publish,
    source::Sources,
};

impl Agent {
    /// What there is, for the service manager's list.
    pub fn sentence(&self) -> String {
        let count = |n: usize, what: &str, plural: &str| match n {
            1 => format!("1 {what}"),
            n => format!("{n} {what}{plural}"),
        };
        let endpoints = self.wanted.endpoints.values();
        let gone = match endpoints.clone().filter(|e| !self.is_up(e)).count() {
            0 => String::new(),
            gone => format!(" ({gone} gone)"),
        };
        format!(
            "serving {}{gone}, {}",
            count(endpoints.len(), "endpoint", "s"),
            count(endpoints.map(|e| e.publishes.len()).sum(), "publish", "es"),
        )
    }

    pub fn status(&self) -> Status {
        let endpoints = self.wanted.endpoints.len();
        let publishes = || self.wanted.endpoints.values().flat_map(|e| &e.publishes);
        let tables = self.tables();
        let flow_tables = || tables.iter().filter(|t| t.name.starts_with("flows"));
        let (flows, flows_max) = (
            flow_tables().map(|t| t.used).sum(),
            flow_tables().map(|t| t.max).sum(),
        );
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
            endpoints_gone: self
                .wanted
                .endpoints
                .values()
                .filter(|e| !self.is_up(e))
                .count(),
            publishes: publishes().count(),
            published_ports: publishes()
                .map(|p| u64::from(p.publish.host_ports.count()))
                .sum(),
            flows,
            flows_max,
            warnings: self.warnings(&tables, &drops),
            tables,
            ipv6_missing: self.ipv6.clone().err(),
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

    /// What is on disk, which is what is wanted.
    pub fn stored(&mut self) -> Result<Saved, AgentError> {
        Ok(Saved::of(&self.store.load()?))
    }

    pub fn network_views(&self) -> Vec<Network> {
        self.wanted
            .networks
            .values()
            .map(|n| self.network_of_record(n))
            .collect()
    }

    pub(super) fn network_of_record(&self, n: &wanted::Network) -> Network {
        Network {
            labels: n.labels.clone(),
            name: n.name.clone(),
            bridge: n.bridge.clone(),
            subnet: n.v4.map(|pool| pool.subnet),
            gateway: n.v4.map(|pool| pool.gateway),
            subnet6: n.v6.map(|pool| pool.subnet),
            gateway6: n.v6.map(|pool| pool.gateway),
            mac: n.mac,
            mtu: self.mtu_of(n),
            rules: n.rules,
            endpoints: self.members(&n.name).count(),
        }
    }

    pub fn network_details(&self, name: &Name) -> Result<NetworkDetails, AgentError> {
        let Some(network) = self.wanted.networks.get(name) else {
            return Err(self.no_network(name));
        };
        Ok(NetworkDetails {
            network: self.network_of_record(network),
            members: self
                .members(name)
                .map(|(e, a)| Member {
                    name: e.name.clone(),
                    ip: a.ip4,
                    ip6: a.ip6,
                    mac: a.mac,
                })
                .collect(),
        })
    }

    /// How full what can be full is.
    fn tables(&self) -> Vec<Table> {
        let mut tables = self.tables_of::<Ip4>("4");
        tables.extend(self.tables_of::<Ip6>("6"));
        tables
    }

    fn tables_of<A: Family>(&self, digit: &str) -> Vec<Table> {
        let of = |name: &str, (used, max): (usize, usize)| Table {
            name: format!("{name}{digit}"),
            used: used as u64,
            max: max as u64,
        };
        let publishes = self.wanted.endpoints.values().flat_map(|e| &e.publishes);
        let ports = publishes
            .filter(|p| A::of(p.publish.host_ip).is_some())
            .map(|p| p.publish.host_ports.count() as usize)
            .sum();
        vec![
            of("flows", self.dataplane.flow_usage::<A>(Part::Assured)),
            of("mappings", self.dataplane.flow_usage::<A>(Part::Mappings)),
            of("publishes", (ports, self.dataplane.publish_room() as usize)),
            of("allowed", self.dataplane.allowed_usage::<A>()),
        ]
    }

    /// What is amiss, and what to do.
    fn warnings(&self, tables: &[Table], drops: &[DropStats]) -> Vec<String> {
        let mut warnings = Vec::new();
        let met = |reason: Drop| {
            let met = drops.iter().find(|d| d.reason == reason.name());
            met.map_or(0, |d| d.packets)
        };
        let down = format!("`netfw down{}`", instance_option(&self.config.instance));
        for table in tables
            .iter()
            .filter(|t| t.max > 0 && t.used * 10 >= t.max * 9)
        {
            warnings.push(format!(
                "table {} is {} % full",
                table.name,
                table.used * 100 / table.max
            ));
        }
        for (reason, why) in [
            (Drop::TableFull, "a flow table was full"),
            (
                Drop::FlowShare,
                "an endpoint or publish had most of a flow table already",
            ),
        ] {
            let full = met(reason);
            if full > 0 {
                warnings.push(format!(
                    "{full} packets were dropped because {why}: raise max_flows in the configuration \
                     (takes effect after {down}), or shorten the timeouts"
                ));
            }
        }
        let exhausted = met(Drop::PortsExhausted);
        if exhausted > 0 {
            let ports = &self.config.dataplane;
            warnings.push(format!(
                "{exhausted} packets were dropped because every port tried for masquerade was taken, or their container \
                 had three quarters of those towards their peer: widen `ports` in the configuration (now {}-{}), or give the node more addresses",
                ports.port_min, ports.port_max
            ));
        }
        if let Some(path) = self.store.is_closed() {
            warnings.push(format!(
                "the store {} could not be written when something was last changed: nothing is changed until it can be \
                 (`df {0}` tells of a full disk)",
                path.display()
            ));
        }
        warnings.extend_from_slice(self.names.troubles());
        warnings.extend(self.no_metrics_address());
        let networks = self.wanted.networks.values();
        let routed: Vec<_> = networks.filter(|network| network.rules.routed).collect();
        let families = [
            routed.iter().any(|network| network.v4.is_some()),
            routed.iter().any(|network| network.v6.is_some()),
        ];
        let asked = network::FORWARDING.into_iter().zip(families);
        let asked = asked.filter(|(_, wanted)| *wanted);
        warnings.extend(asked.filter_map(|(key, _)| network::unforwarded(key)));
        if let Err(why) = &self.ipv6 {
            let without = self.wanted.networks.values().filter(|n| n.v6.is_some());
            for network in without {
                warnings.push(format!(
                    "network \"{}\" is IPv4 only for now: {why}; restart the agent once that has \
                     changed",
                    network.name
                ));
            }
        }
        warnings
    }

    pub fn endpoint_views(&self) -> Vec<Endpoint> {
        self.wanted
            .endpoints
            .values()
            .filter(|e| !e.removing)
            .map(|e| self.endpoint_of(e))
            .collect()
    }

    pub fn endpoint_view(&self, name: &Name) -> Result<Endpoint, AgentError> {
        Ok(self.endpoint_of(self.wanted_endpoint(name)?))
    }

    /// The same, and what to ask how it is plugged in, and of which instance: see [`wire`].
    pub fn endpoint_to_inspect(
        &self,
        name: &Name,
    ) -> Result<(Endpoint, Netlink, Name), AgentError> {
        let instance = self.config.instance.clone();
        Ok((self.endpoint_view(name)?, self.netlink.clone(), instance))
    }

    fn endpoint_of(&self, e: &wanted::Endpoint) -> Endpoint {
        let networks: Vec<Attachment> = e
            .attachments
            .iter()
            .map(|a| self.attachment_view(e, a))
            .collect();
        // What there was when an endpoint had one network.
        let first = networks.first();
        Endpoint {
            name: e.name.clone(),
            state: state(self.is_up(e)),
            network: e.mode(),
            ip: first.and_then(|a| a.ip),
            prefix_len: first.and_then(|a| a.prefix_len),
            gateway: first.and_then(|a| a.gateway),
            ip6: first.and_then(|a| a.ip6),
            prefix_len6: first.and_then(|a| a.prefix_len6),
            gateway6: first.and_then(|a| a.gateway6),
            mac: first.map(|a| a.mac),
            netns: self.netns_of(e),
            netns_made: e.namespace.made,
            interface: first.map(|a| a.interface.clone()),
            host_interface: first.map(|a| a.host_interface.clone()),
            host_ifindex: first.and_then(|a| a.host_ifindex),
            networks,
            allow_from: e.allow_from.clone(),
            publishes: e.publishes.iter().map(|p| self.publish_of(e, p)).collect(),
            exposed: e.exposed.clone(),
            links: e.links.clone(),
            warnings: e
                .publishes
                .iter()
                .filter_map(|p| {
                    let sources = e.sources(p, &self.config.allow_from);
                    unreachable(&p.publish, &self.sockets).or_else(|| closed(&p.publish, sources))
                })
                .collect(),
        }
    }

    fn publish_of(&self, e: &wanted::Endpoint, p: &wanted::Published) -> types::Publish {
        let sources = e.sources(p, &self.config.allow_from);
        types::Publish::new(p.publish, sources.clone())
    }

    fn attachment_view(&self, e: &wanted::Endpoint, a: &wanted::Attachment) -> Attachment {
        let network = self.wanted.networks.get(&a.network);
        let v4 = network.and_then(|n| n.v4).filter(|_| a.ip4.is_some());
        let v6 = network.and_then(|n| n.v6).filter(|_| a.ip6.is_some());
        let ifindex = self.up.get(&place(e, a)).copied();
        let way = |family| {
            let way = self.wanted.way_out(e, family);
            way.is_some_and(|way| way.network == a.network)
        };
        Attachment {
            network: a.network.clone(),
            bridge: network.map(|n| n.bridge.clone()),
            state: state(ifindex.is_some()),
            ip: a.ip4,
            prefix_len: v4.map(|pool| pool.subnet.prefix_len()),
            gateway: v4.map(|pool| pool.gateway),
            ip6: a.ip6,
            prefix_len6: v6.map(|pool| pool.subnet.prefix_len()),
            gateway6: v6.map(|pool| pool.gateway),
            mac: a.mac,
            interface: a.interface.clone(),
            host_interface: a.host_interface.clone(),
            host_ifindex: ifindex,
            aliases: a.aliases.clone(),
            default_route: way(wanted::Family::V4),
            default_route6: way(wanted::Family::V6),
            owner: a.owner.clone(),
            wiring: None,
        }
    }

    /// The file by which the endpoint's namespace is opened now.
    fn netns_of(&self, e: &wanted::Endpoint) -> PathBuf {
        let node = || match &self.config.netns {
            Some(path) => path.clone(),
            None => PathBuf::from(format!("/proc/{}/ns/net", std::process::id())),
        };
        if e.namespace.path.as_os_str().is_empty() {
            node()
        } else {
            e.namespace.path.clone()
        }
    }

    pub fn stats(&self) -> Result<Stats, AgentError> {
        self.stats_within(usize::MAX)
    }

    /// Of so many endpoints and publishes at most; endpoints go first. What is left out is in no total.
    pub(super) fn stats_within(&self, rows: usize) -> Result<Stats, AgentError> {
        let mut endpoints = Vec::with_capacity(self.wanted.endpoints.len().min(rows));
        let mut room = rows.saturating_sub(self.wanted.endpoints.len());
        for endpoint in self.wanted.endpoints.values().take(rows) {
            // A packet counts once: for the publish that made its flow, or else for the endpoint.
            let mut total = self.dataplane.counter(endpoint.counter)?;
            let published = &endpoint.publishes[..endpoint.publishes.len().min(room)];
            room -= published.len();
            let mut publishes = Vec::with_capacity(published.len());
            for published in published {
                let counter = self.dataplane.counter(published.counter)?;
                total += counter;
                publishes.push(PublishStats {
                    publish: self.publish_of(endpoint, published),
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
        let of_endpoints = self.dataplane.drops_of_endpoints()?;
        let names = self.wanted.endpoints.values();
        let names: HashMap<u32, &Name> = names.map(|e| (e.counter, &e.name)).collect();
        let senders = |reason: Drop| {
            let of_reason = of_endpoints
                .iter()
                .filter(|(key, _)| key.reason == reason as u32);
            let named = of_reason.filter_map(|(key, packets)| {
                Some(EndpointDrops {
                    name: (*names.get(&key.endpoint)?).clone(),
                    packets: *packets,
                })
            });
            let mut senders: Vec<_> = named.collect();
            senders.sort_by(|a, b| a.name.cmp(&b.name));
            senders
        };
        Ok(drops
            .into_iter()
            .map(|(reason, packets)| DropStats {
                reason: reason.name().into(),
                description: reason.description().into(),
                packets,
                senders: senders(reason),
            })
            .collect())
    }
}

/// Why nobody reaches a publish, if so: a loopback address is for the node's own processes alone.
fn unreachable(publish: &Publish, sockets: &Result<(), String>) -> Option<String> {
    let why = sockets.as_ref().err()?;
    publish.host_ip.is_loopback().then(|| {
        format!("{publish} serves nobody: processes of the node do not reach publishes ({why})")
    })
}

/// Why only the node's own processes reach a publish, if so: its list knows nobody of its family.
fn closed(publish: &Publish, sources: &Sources) -> Option<String> {
    // A loopback address is for those processes alone in any case.
    let ip = publish.host_ip;
    (sources.closes(ip) && !ip.is_loopback()).then(|| {
        let family = family(ip);
        format!(
            "{publish} serves nobody but the node's own processes: those who may use it ({sources}) have \
             no {family} address; --allow-from an {family} prefix lets it in"
        )
    })
}

/// Adds how an endpoint is plugged in, which takes a look at all that the node's bridges know, and what it has lost
/// inside. Interfaces may go at any moment: it is left out of those.
pub async fn wire(endpoint: &mut Endpoint, netlink: &Netlink, instance: &Name) {
    if let Ok(interior) = Interior::look(&endpoint.netns).await {
        let exec = format!("netfw exec {}{}", endpoint.name, instance_option(instance));
        let losses = interior.losses(endpoint).into_iter();
        endpoint
            .warnings
            .extend(losses.map(|loss| match loss.command {
                Some(command) => format!("{}: `{exec} -- {command}` puts it back", loss.what),
                None => format!("{}: remove the endpoint, and add it again", loss.what),
            }));
    }
    for attachment in &mut endpoint.networks {
        let Some(host) = attachment.host_ifindex else {
            continue;
        };
        let looked = async {
            let link = netlink.link_by_index(host).await?;
            Ok::<_, NetError>((link, netlink.forwarding(host).await?))
        };
        match looked.await {
            Ok((Some(link), known)) => {
                attachment.wiring = Some(Wiring {
                    ifindex: link.peer,
                    bridge_ifindex: link.master,
                    macs: known
                        .into_iter()
                        .map(|known| KnownMac {
                            mac: Mac(known.mac),
                            own: known.own,
                        })
                        .collect(),
                });
            }
            Ok((None, _)) => {}
            Err(error) => {
                tracing::debug!(endpoint = %endpoint.name, %error, "no look at its bridge")
            }
        }
    }
}

fn state(up: bool) -> EndpointState {
    if up {
        EndpointState::Up
    } else {
        EndpointState::Gone
    }
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
            ("[::1]:8080:80", true),
            ("8080:80", false),
            ("192.0.2.1:8080:80", false),
        ] {
            let spec: Spec = text.parse().unwrap();
            let host_ip = spec
                .host_ip
                .unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into());
            let publish = spec.resolve(host_ip, spec.host_ports.unwrap());
            assert_eq!(unreachable(&publish, &broken).is_some(), warned, "{text}");
            assert_eq!(unreachable(&publish, &Ok(())), None, "{text}");
        }
    }

    #[test]
    fn a_publish_of_a_family_that_its_list_does_not_know_is_warned_of() {
        let four: Sources = vec!["10.0.0.0/8".parse().unwrap()].into();
        for (text, warned) in [
            ("[::]:8080:80", true),
            ("[2001:db8::1]:8080:80", true),
            ("[::1]:8080:80", false),
            ("0.0.0.0:8080:80", false),
        ] {
            let spec: Spec = text.parse().unwrap();
            let publish = spec.resolve(spec.host_ip.unwrap(), spec.host_ports.unwrap());
            assert_eq!(closed(&publish, &four).is_some(), warned, "{text}");
            assert_eq!(closed(&publish, &Sources::default()), None, "{text}");
        }
    }
}
