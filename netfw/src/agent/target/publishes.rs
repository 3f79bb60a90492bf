//! Publishes, and who has which host port.

use std::{collections::BTreeMap, net::IpAddr};

use super::{Making, is_another, is_faulty};
use crate::{
    agent::{
        AgentError,
        ports::Ports,
        record::{Family, Mode, Published},
    },
    name::Name,
    publish::{Publish, Spec},
};

impl Making<'_> {
    /// What is published: what is there and wanted first, then ports that are named, then the others get free
    /// ones.
    pub(super) fn publishes(&mut self, mut ports: Ports<'_>) {
        let mut slots: BTreeMap<(Name, usize, IpAddr), Published> = BTreeMap::new();
        let mut open: Vec<(Name, usize, Spec, Vec<IpAddr>)> = Vec::new();
        // Whatever is wrong with an endpoint, or its networks, would be said once more of its publishes.
        let endpoints = self.wanted.endpoints.iter();
        let whole = endpoints.filter(|(name, endpoint)| {
            let said = &self.document.endpoints[*name].networks;
            let asked = said.as_ref().map_or(1, Vec::len);
            let has_all = endpoint.mode != Mode::Networks || endpoint.attachments.len() == asked;
            has_all && !is_faulty(&self.faults, name)
        });
        for (name, endpoint) in whole {
            let said = &self.document.endpoints[name].publish;
            let before = self.present.endpoints.get(name);
            let is_new = before.is_none_or(|before| is_another(before, endpoint));
            let mut had: Vec<&Published> = before.iter().flat_map(|e| &e.publishes).collect();
            let families = self.wanted.families(endpoint);
            // A port that is named is not taken by a spec that leaves it open.
            let mut order: Vec<usize> = (0..said.len()).collect();
            order.sort_by_key(|n| said[*n].publish.host_ports.is_none());
            for n in order {
                let spec = said[n].publish;
                let host_ips: Vec<IpAddr> = spec.host_ips(families).collect();
                let chosen = spec.host_ports.or_else(|| {
                    let fits = |p: &&&Published| {
                        spec.names(&p.publish) && host_ips.contains(&p.publish.host_ip)
                    };
                    Some(had.iter().find(fits)?.publish.host_ports)
                });
                let mut missing = Vec::new();
                for host_ip in &host_ips {
                    let publish = chosen.map(|chosen| spec.resolve(*host_ip, chosen));
                    let found = had.iter().position(|p| Some(p.publish) == publish);
                    let Some(found) = found else {
                        missing.push(*host_ip);
                        continue;
                    };
                    let had = had.swap_remove(found);
                    let kept = Published {
                        publish: had.publish,
                        // Another one's are given back.
                        counter: if is_new { 0 } else { had.counter },
                        allow_from: said[n].allow_from.clone(),
                        runtime: had.runtime,
                    };
                    ports.take(Some(name), kept.publish);
                    slots.insert((name.clone(), n, *host_ip), kept);
                }
                let spec = Spec {
                    host_ports: chosen,
                    ..spec
                };
                if !missing.is_empty() || host_ips.is_empty() {
                    open.push((name.clone(), n, spec, missing));
                }
            }
        }
        open.sort_by_key(|(_, _, spec, _)| spec.host_ports.is_none());
        for (name, n, spec, missing) in open {
            let said = &self.document.endpoints[&name].publish[n];
            match self.resolve(&name, spec, missing, &mut ports) {
                Ok(publishes) => {
                    for publish in publishes {
                        ports.take(Some(&name), publish);
                        let new = Published {
                            publish,
                            counter: 0,
                            allow_from: said.allow_from.clone(),
                            runtime: false,
                        };
                        slots.insert((name.clone(), n, publish.host_ip), new);
                    }
                }
                Err(error) => {
                    let n = n.to_string();
                    self.fault(&["endpoints", &name, "publish", &n], error);
                }
            }
        }
        for ((name, ..), published) in slots {
            if let Some(endpoint) = self.wanted.endpoints.get_mut(&name) {
                endpoint.publishes.push(published);
            }
        }
    }

    fn resolve(
        &self,
        name: &Name,
        spec: Spec,
        missing: Vec<IpAddr>,
        ports: &mut Ports<'_>,
    ) -> Result<Vec<Publish>, AgentError> {
        let endpoint = &self.wanted.endpoints[name];
        let mut ways = [Family::V4, Family::V6].into_iter();
        let way = ways.find_map(|family| self.wanted.way_out(endpoint, family));
        let network = way.and_then(|way| self.wanted.networks.get(&way.network));
        if let Some(network) = network {
            ports.host_ips(&spec, self.wanted.families(endpoint), network)?;
        }
        ports.resolve(spec, &missing)
    }
}
