//! Networks: those that are as they were, those whose subnets are named, and those that get free ones.

use super::{Making, default_network, is_replaced};
use crate::{
    agent::{
        error::NetworkError,
        ipam::{self, Pool},
        network::free_bridge_name,
        plan::{self, Obstacle, Surroundings, check_mtu, rules},
        record::Network,
    },
    api::types::NetworkRequest,
    document, mode,
};

impl Making<'_> {
    pub(super) fn networks(&mut self) {
        let (bridge, unsaid) = (default_network(), document::Network::default());
        let implied = (!self.document.networks.contains_key(&bridge)).then_some((&bridge, &unsaid));
        let mut open = Vec::new();
        for (name, said) in implied.into_iter().chain(&self.document.networks) {
            if mode::RESERVED.contains(&name.as_str()) {
                self.fault(&["networks", name], NetworkError::Reserved(name.clone()));
                continue;
            }
            let mut request = said.request(name.clone());
            let before = self.present.networks.get(name);
            if *name == bridge {
                if said.ipv6 == Some(false) {
                    self.fault(&["networks", name, "ipv6"], NetworkError::DefaultIpv6);
                    continue;
                }
                // It has IPv6 where the node has.
                request.ipv6 |= before.is_some_and(|n| n.v6.is_some());
            }
            let kept = kept(&request, before);
            // Those that are as they were come first, then those whose subnets are named.
            let rank = match &kept {
                Some(_) => 0,
                None if !request.subnets.is_empty() => 1,
                None => 2,
            };
            open.push((rank, request, kept));
        }
        open.sort_by_key(|(rank, ..)| *rank);
        for (_, request, kept) in open {
            let name = request.name.clone();
            let before = self.present.networks.get(&name);
            let planned = match kept {
                Some([v4, v6]) => rules(&request).and_then(|rules| {
                    check_mtu(request.mtu, v6.is_some())?;
                    Ok((v4, v6, rules))
                }),
                None => self.plan(&request, before),
            };
            match planned {
                Ok((v4, v6, rules)) => self.add_network(request, before, v4, v6, rules),
                Err(error) => self.fault(&["networks", &name, key_of(&error)], error),
            }
        }
    }

    /// Pools of which at least one is to be chosen, or is not as it was.
    fn plan(
        &self,
        request: &NetworkRequest,
        before: Option<&Network>,
    ) -> Result<(Option<Pool>, Option<Pool>, crate::rules::Rules), NetworkError> {
        let mut request = request.clone();
        for pool in before.iter().flat_map(|n| n.pools()) {
            if keeps(&request, pool) && !request.subnets.contains(&pool.subnet) {
                request.subnets.push(pool.subnet);
                request.gateways.push(pool.gateway);
            }
        }
        let node = self
            .around
            .obstacles
            .iter()
            .map(|o| (o.net, o.what.clone()));
        let others = self.wanted.networks.values().flat_map(|network| {
            let what = format!("network \"{}\"", network.name);
            network.subnets().map(move |net| (net, what.clone()))
        });
        let obstacles: Vec<Obstacle> = node
            .chain(others)
            .map(|(net, what)| Obstacle { net, what })
            .collect();
        plan::plan(
            &request,
            &Surroundings {
                obstacles: &obstacles,
                prefix6: self.around.prefix6,
                ipv6: self.around.ipv6,
            },
        )
    }

    fn add_network(
        &mut self,
        request: NetworkRequest,
        before: Option<&Network>,
        v4: Option<Pool>,
        v6: Option<Pool>,
        rules: crate::rules::Rules,
    ) {
        let all = || {
            let present = self.present.networks.values();
            present.chain(self.wanted.networks.values())
        };
        let gateway = v4.iter().chain(&v6).next().map(|pool| pool.gateway);
        let Some(gateway) = gateway else { return };
        let mut network = Network {
            number: before.map_or(0, |before| before.number),
            bridge: before.map_or_else(String::new, |before| before.bridge.clone()),
            mac: ipam::mac_for(gateway),
            name: request.name.clone(),
            v4,
            v6,
            mtu: request.mtu,
            rules,
            labels: request.labels,
            unsettled: before.is_some_and(|before| before.unsettled),
        };
        if before.is_none() {
            network.number = 1 + all().map(|n| n.number).max().unwrap_or(0);
        }
        // Another interface goes by another name: one of two that were half made is then known.
        if before.is_none_or(|before| is_replaced(before, &network)) {
            let links = self.around.links.iter().map(String::as_str);
            let taken = links.chain(all().map(|n| n.bridge.as_str()));
            network.bridge = match free_bridge_name(taken) {
                Ok(bridge) => bridge,
                Err(error) => return self.fault(&["networks", &request.name], error),
            };
        }
        self.wanted.networks.insert(request.name, network);
    }
}

/// The pools of a network that stays as it is, if it does.
fn kept(request: &NetworkRequest, before: Option<&Network>) -> Option<[Option<Pool>; 2]> {
    let before = before?;
    let mut pools = [None, None];
    for (six, pool) in [before.v4, before.v6].into_iter().enumerate() {
        let named = || request.subnets.iter();
        let wanted = match six == 1 {
            false => named().len() == 0 || named().any(|net| net.addr().is_ipv4()),
            true => request.ipv6 || named().any(|net| net.addr().is_ipv6()),
        };
        if wanted {
            pools[six] = Some(pool.filter(|pool| keeps(request, pool))?);
        }
    }
    // Whatever else is named is nothing that it has.
    let all = || pools.iter().flatten();
    let mut subnets = request.subnets.clone();
    let mut gateways = request.gateways.clone();
    for pool in all() {
        let subnet = subnets.iter().position(|net| *net == pool.subnet);
        subnet.map(|at| subnets.swap_remove(at));
        let gateway = gateways.iter().position(|ip| *ip == pool.gateway);
        gateway.map(|at| gateways.swap_remove(at));
    }
    (subnets.is_empty() && gateways.is_empty()).then_some(pools)
}

/// Is the pool what the request says of that family, if anything?
fn keeps(request: &NetworkRequest, pool: &Pool) -> bool {
    let six = pool.gateway.is_ipv6();
    let mut subnets = request
        .subnets
        .iter()
        .filter(|net| net.addr().is_ipv6() == six);
    let mut gateways = request.gateways.iter().filter(|ip| ip.is_ipv6() == six);
    match (subnets.next(), gateways.next()) {
        (None, None) => six <= request.ipv6 && (six || request.subnets.is_empty()),
        (None, Some(_)) => false,
        (Some(net), gateway) => {
            let default = Pool::new(pool.subnet, gateway.copied());
            *net == pool.subnet && default.is_ok_and(|default| default.gateway == pool.gateway)
        }
    }
}

/// Which key of a network an error is about.
fn key_of(error: &NetworkError) -> &'static str {
    use NetworkError as E;
    match error {
        E::Gateway { .. } | E::GatewayOutside { .. } | E::TwoGateways { .. } | E::Address(_) => {
            "gateways"
        }
        E::Mtu { .. } => "mtu",
        E::Filter => "filter",
        E::NatWithoutMasquerade => "nat",
        E::InternalRouted => "internal",
        E::NoIpv6(_) => "ipv6",
        _ => "subnets",
    }
}
