//! The wanted state as a document that people can go on with: what `netfw store export --toml` prints.

use std::path::Path;

use super::{
    docker,
    ipam::{self, Pool},
    record::{Endpoint, Mode, Network, Published, Wanted},
};
use crate::{
    document::{self, Document},
    net::namespace,
    publish::Spec,
    rules::Nat,
};

/// What is wanted, as a document: all that was chosen is named. What is on its way out is not in it, nor what
/// container runtimes make and remove themselves.
impl From<&Wanted> for Document {
    fn from(wanted: &Wanted) -> Self {
        let networks = wanted.networks.values();
        let endpoints = wanted.endpoints.values();
        let endpoints = endpoints.filter(|e| !e.removing && !e.is_runtimes());
        Self {
            networks: networks.map(|n| (n.name.clone(), n.into())).collect(),
            endpoints: endpoints.map(|e| (e.name.clone(), e.into())).collect(),
        }
    }
}

impl Document {
    /// As if it named what container runtimes have, where it does not: their containers come and go as they say,
    /// and the networks of these stay for them. Docker's stay in any case, since it makes each once.
    pub(super) fn beside_runtimes(&self, wanted: &Wanted) -> Self {
        let mut all = self.clone();
        let networks = wanted.networks.values();
        for network in networks.filter(|n| n.labels.contains_key(docker::LABEL)) {
            let name = network.name.clone();
            all.networks.entry(name).or_insert_with(|| network.into());
        }
        let endpoints = wanted.endpoints.values();
        for endpoint in endpoints.filter(|e| e.is_runtimes() && !e.removing) {
            all.endpoints
                .entry(endpoint.name.clone())
                .or_insert_with(|| endpoint.into());
            for attachment in endpoint.attached() {
                if let Some(network) = wanted.networks.get(&attachment.network) {
                    let name = network.name.clone();
                    all.networks.entry(name).or_insert_with(|| network.into());
                }
            }
        }
        all
    }
}

impl From<&Network> for document::Network {
    fn from(network: &Network) -> Self {
        let rules = network.rules;
        let chosen = network.pools().filter(|pool| {
            Pool::new(pool.subnet, None).is_ok_and(|default| default.gateway != pool.gateway)
        });
        Self {
            subnets: network.subnets().collect(),
            gateways: chosen.map(|pool| pool.gateway).collect(),
            // A subnet that is named says as much.
            ipv6: None,
            internal: rules.internal,
            routed: rules.routed,
            masquerade: rules.masquerade || rules.routed,
            nat: rules.nat,
            filter: (rules.nat == Nat::EndpointIndependent).then_some(rules.filter),
            mtu: network.mtu,
            labels: network.labels.clone(),
        }
    }
}

impl From<&Endpoint> for document::Endpoint {
    fn from(endpoint: &Endpoint) -> Self {
        let (mut netns, mut pid) = (None, None);
        let path = &endpoint.namespace.path;
        if matches!(endpoint.mode, Mode::Networks | Mode::None) && !endpoint.namespace.made {
            let text = path.to_string_lossy();
            let process = text
                .strip_prefix("/proc/")
                .and_then(|rest| rest.strip_suffix("/ns/net"));
            let named = path.strip_prefix(namespace::DIRECTORY).ok();
            let named = named.and_then(Path::to_str).filter(|n| !n.contains('/'));
            match (process.and_then(|pid| pid.parse().ok()), named) {
                (Some(process), _) => pid = Some(process),
                (None, Some(name)) => netns = Some(name.to_owned()),
                (None, None) => netns = Some(text.into_owned()),
            }
        }
        let networks = endpoint.attached().map(|a| document::Attachment {
            network: a.network.clone(),
            ip: a.ip4,
            ip6: a.ip6,
            mac: Some(a.mac)
                .filter(|mac| a.ips().next().is_none_or(|ip| *mac != ipam::mac_for(ip))),
            aliases: a.aliases.clone(),
        });
        Self {
            netns,
            pid,
            network_mode: Some(endpoint.mode()).filter(|_| endpoint.mode != Mode::Networks),
            networks: (endpoint.mode == Mode::Networks).then(|| networks.collect()),
            publish: publishes(endpoint),
            allow_from: endpoint.allow_from.clone(),
            expose: endpoint.exposed.clone(),
            links: endpoint.links.clone(),
        }
    }
}

/// Those of both families that one spec asks for are one.
fn publishes(endpoint: &Endpoint) -> Vec<document::Publish> {
    let mut all: Vec<document::Publish> = Vec::new();
    let mut rest: Vec<&Published> = endpoint.publishes.iter().collect();
    while !rest.is_empty() {
        let first = rest.remove(0);
        let twin = rest.iter().position(|p| {
            p.publish.is_twin_of(&first.publish)
                && p.publish.host_ip != first.publish.host_ip
                && p.allow_from == first.allow_from
        });
        let twin = twin.map(|at| rest.remove(at));
        let publish = first.publish;
        all.push(document::Publish {
            publish: Spec {
                host_ip: Some(publish.host_ip).filter(|_| twin.is_none()),
                host_ports: Some(publish.host_ports),
                choice: None,
                container_ports: publish.container_ports,
                protocol: publish.protocol,
            },
            allow_from: first.allow_from.clone(),
        });
    }
    all
}
