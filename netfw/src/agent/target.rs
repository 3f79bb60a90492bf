//! From a document to the records that it wants, or what is wrong with it. Pure, but for sockets in the way
//! of new publishes: the caller brings what is there.
//!
//! What was chosen before (subnets, addresses, host ports, interfaces) stays, as long as the document does not
//! say otherwise. What only the moment of making can choose is left open: counters are 0, interface names
//! empty.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnet::Ipv6Net;

use super::{
    AgentError,
    error::{ModeError, NetworkError},
    ipam::{self, Pool},
    names,
    network::{DEFAULT_NETWORK, free_bridge_name},
    plan::{self, Obstacle, Surroundings, check_mtu, family, rules},
    ports::Ports,
    record::{Attachment, Endpoint, Family, Mode, Network, Published, Target, Wanted},
};
use crate::{
    api::types::{Fault, NetworkRequest},
    document::{self, Document},
    mode,
    name::{Mac, Name},
    net::namespace,
    publish::Publish,
};

/// What of the node counts.
pub(super) struct Around<'a> {
    /// In the way of new networks; not those that there are.
    pub obstacles: &'a [Obstacle],
    pub prefix6: Ipv6Net,
    /// Or why it has none.
    pub ipv6: &'a Result<(), String>,
    pub locals: &'a HashMap<IpAddr, u32>,
    /// Names of interfaces.
    pub links: &'a [String],
}

/// What `document` wants, where `present` is there.
pub(super) fn target(
    document: &Document,
    present: &Wanted,
    around: &Around<'_>,
    ports: Ports<'_>,
) -> Result<Wanted, Vec<Fault>> {
    let mut making = Making {
        document,
        present,
        around,
        wanted: Wanted {
            node: present.node.clone(),
            ..Wanted::default()
        },
        faults: Vec::new(),
    };
    making.networks();
    making.endpoints();
    making.addresses();
    making.sharing();
    making.check_names();
    // Whatever is wrong with the rest would be said once more about them.
    if making.faults.is_empty() {
        making.publishes(ports);
    }
    match making.faults.is_empty() {
        true => Ok(making.wanted),
        false => Err(making.faults),
    }
}

struct Making<'a> {
    document: &'a Document,
    present: &'a Wanted,
    around: &'a Around<'a>,
    wanted: Wanted,
    faults: Vec<Fault>,
}

/// Does a network's interface have to be made anew, to become the other one?
pub(super) fn is_replaced(before: &Network, after: &Network) -> bool {
    let shape = |n: &Network| {
        let pool = |pool: Option<Pool>| pool.map(|pool| (pool.subnet, pool.gateway));
        (pool(n.v4), pool(n.v6), n.mtu)
    };
    shape(before) != shape(after)
}

/// Is it another container that goes by the name?
pub(super) fn is_another(before: &Endpoint, after: &Endpoint) -> bool {
    let namespace = |e: &Endpoint| (e.namespace.path.clone(), e.namespace.made);
    before.mode != after.mode
        || (!matches!(before.mode, Mode::Container(_)) && namespace(before) != namespace(after))
}

impl Making<'_> {
    fn fault(&mut self, at: &[&str], error: impl Into<AgentError>) {
        self.faults.push(Fault {
            at: at.iter().map(|&part| part.to_owned()).collect(),
            error: crate::chain(&error.into()),
        });
    }

    fn networks(&mut self) {
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

    /// The endpoints, with attachments whose addresses may be open.
    fn endpoints(&mut self) {
        let mut folded: BTreeMap<String, &Name> = BTreeMap::new();
        for (name, said) in &self.document.endpoints {
            // Letters of either case are the same where a name is asked for.
            if let Some(other) = folded.insert(name.to_ascii_lowercase(), name) {
                let other = AgentError::EndpointExists(other.clone());
                self.fault(&["endpoints", name], other);
                continue;
            }
            let before = self.present.endpoints.get(name);
            if before.is_some_and(|e| e.removing || e.attachments.iter().any(|a| a.removing)) {
                self.fault(&["endpoints", name], AgentError::Removing(name.clone()));
                continue;
            }
            let (Some(mode), Some(namespace)) = (self.mode(name, said), self.namespace(name, said))
            else {
                continue;
            };
            let mut endpoint = Endpoint {
                name: name.clone(),
                namespace: match mode {
                    Mode::Networks | Mode::None => namespace,
                    // Known when all are.
                    Mode::Host | Mode::Container(_) => Target::default(),
                },
                mode,
                attachments: Vec::new(),
                counter: 0,
                publishes: Vec::new(),
                exposed: said.expose.clone(),
                allow_from: said.allow_from.clone(),
                links: said.links.clone(),
                removing: false,
            };
            if let Some(before) = before.filter(|before| !is_another(before, &endpoint)) {
                // With the identity of what was attached.
                endpoint.namespace.clone_from(&before.namespace);
                endpoint.counter = before.counter;
            }
            self.wanted.endpoints.insert(name.clone(), endpoint);
        }
    }

    fn mode(&mut self, name: &Name, said: &document::Endpoint) -> Option<Mode> {
        let Some(asked) = &said.network_mode else {
            return Some(Mode::Networks);
        };
        let mut refuse = |key: &str, error: ModeError| {
            self.fault(&["endpoints", name, key], error);
            None
        };
        if !said.networks.is_empty() || matches!(asked, mode::Mode::Network(_)) {
            return refuse("network_mode", ModeError::Networks(asked.clone()));
        }
        if !said.publish.is_empty() {
            return refuse("publish", ModeError::Publish(asked.clone()));
        }
        if !said.allow_from.is_empty() {
            return refuse("allow_from", ModeError::Publish(asked.clone()));
        }
        if !said.links.is_empty() {
            return refuse("links", ModeError::Names(asked.clone()));
        }
        let named = said.netns.is_some() || said.pid.is_some();
        match asked {
            mode::Mode::None => Some(Mode::None),
            _ if named => refuse("network_mode", ModeError::Namespace(asked.clone())),
            mode::Mode::Container(other) if other == name => {
                refuse("network_mode", ModeError::Own(name.clone()))
            }
            mode::Mode::Container(other) => Some(Mode::Container(other.clone())),
            mode::Mode::Host | mode::Mode::Network(_) => Some(Mode::Host),
        }
    }

    fn namespace(&mut self, name: &Name, said: &document::Endpoint) -> Option<Target> {
        let directory = Path::new(namespace::DIRECTORY);
        let (path, made) = match (&said.netns, said.pid) {
            (None, None) => (directory.join(name.as_str()), true),
            (None, Some(pid)) => (PathBuf::from(format!("/proc/{pid}/ns/net")), false),
            (Some(text), None) if text.starts_with('/') => (PathBuf::from(text), false),
            (Some(text), None) if !text.contains('/') => (directory.join(text), false),
            _ => {
                let error = "say either netns, a name or an absolute path, or pid";
                self.fault(
                    &["endpoints", name, "netns"],
                    AgentError::Request(error.into()),
                );
                return None;
            }
        };
        Some(Target {
            path,
            made,
            id: None,
        })
    }

    /// Who has which address: those that are asked for or kept first, then the others get free ones.
    fn addresses(&mut self) {
        let names: Vec<Name> = self.wanted.endpoints.keys().cloned().collect();
        let mut taken: BTreeMap<Name, BTreeSet<IpAddr>> = BTreeMap::new();
        let mut open = Vec::new();
        let default = [document::Attachment::to(default_network())];
        for name in names {
            let endpoint = &self.wanted.endpoints[&name];
            if endpoint.mode != Mode::Networks {
                continue;
            }
            let said = &self.document.endpoints[&name];
            let implied = said.networks.is_empty();
            let asked = if implied {
                &default[..]
            } else {
                &said.networks
            };
            for (n, asked) in asked.iter().enumerate() {
                let n = n.to_string();
                let at = match implied {
                    true => vec!["endpoints", name.as_str()],
                    false => vec!["endpoints", name.as_str(), "networks", &n],
                };
                match self.attachment(&name, asked, &mut taken) {
                    Ok(()) => open.push((name.clone(), asked)),
                    Err((key, error)) => {
                        let key = Some(key).filter(|key| !implied && !key.is_empty());
                        let at: Vec<&str> = at.into_iter().chain(key).collect();
                        self.fault(&at, *error);
                    }
                }
            }
        }
        for (name, asked) in open {
            if let Err(error) = self.complete(&name, asked, &mut taken) {
                self.fault(&["endpoints", &name, "networks"], error);
            }
        }
    }

    /// The subnets that are in use: not those of IPv6 where the node has none.
    fn pools(&self, network: &Name) -> Vec<Pool> {
        let ipv6 = self.around.ipv6.is_ok();
        let pools = self.wanted.networks[network].pools();
        let used = pools.filter(|pool| ipv6 || pool.gateway.is_ipv4());
        used.copied().collect()
    }

    /// An attachment with the addresses that are asked for, or that it had. An error has the key that it is
    /// about.
    fn attachment(
        &mut self,
        name: &Name,
        asked: &document::Attachment,
        taken: &mut BTreeMap<Name, BTreeSet<IpAddr>>,
    ) -> Result<(), (&'static str, Box<AgentError>)> {
        let network = &asked.network;
        if !self.wanted.networks.contains_key(network) {
            if self.document.networks.contains_key(network) {
                // What is wrong with it was said.
                return Ok(());
            }
            let has = self.wanted.networks.keys().cloned().collect();
            let name = network.clone();
            let none = NetworkError::None { name, has };
            return Err(("network", Box::new(none.into())));
        }
        let endpoint = &self.wanted.endpoints[name];
        if endpoint.attachment(network).is_some() {
            let (endpoint, network) = (name.clone(), network.clone());
            return Err((
                "network",
                Box::new(NetworkError::Connected { endpoint, network }.into()),
            ));
        }
        let before = self.present.endpoints.get(name);
        let before = before.and_then(|before| before.attachment(network));
        let taken = taken.entry(network.clone()).or_default();
        let pools = self.pools(network);
        let mut made = Attachment {
            network: network.clone(),
            ip4: None,
            ip6: None,
            mac: Mac([0; 6]),
            host_interface: String::new(),
            interface: String::new(),
            aliases: asked.aliases.clone(),
            owner: before.and_then(|before| before.owner.clone()),
            removing: false,
        };
        let both = [
            ("ip", asked.ip.map(IpAddr::V4)),
            ("ip6", asked.ip6.map(IpAddr::V6)),
        ];
        for (n, (key, ip)) in both.into_iter().enumerate() {
            let six = n == 1;
            let pool = pools.iter().find(|pool| pool.gateway.is_ipv6() == six);
            let had = before.and_then(|a| a.ips().find(|had| had.is_ipv6() == six));
            let ip = match (ip, pool) {
                (Some(ip), None) => {
                    return Err((
                        key,
                        Box::new(AgentError::NoFamily {
                            ip,
                            network: network.clone(),
                            family: family(ip),
                            why: self.around.ipv6.clone().err().filter(|_| six),
                        }),
                    ));
                }
                (Some(ip), Some(pool)) => {
                    pool.check(ip, taken)
                        .map_err(|error| (key, Box::new(error.into())))?;
                    if self.around.locals.contains_key(&ip) {
                        return Err((key, Box::new(AgentError::NodeAddress { ip })));
                    }
                    Some(ip)
                }
                (None, Some(pool)) => had.filter(|had| pool.check(*had, taken).is_ok()),
                // Of a time when the node had IPv6.
                (None, None) => had.filter(|_| self.wanted.networks[network].v6.is_some()),
            };
            match ip {
                Some(IpAddr::V4(ip)) => made.ip4 = Some(ip),
                Some(IpAddr::V6(ip)) => made.ip6 = Some(ip),
                None => {}
            }
            taken.extend(ip);
        }
        if let Some(endpoint) = self.wanted.endpoints.get_mut(name) {
            endpoint.attachments.push(made);
        }
        Ok(())
    }

    /// What is still open of an attachment, but for names of interfaces.
    fn complete(
        &mut self,
        name: &Name,
        asked: &document::Attachment,
        taken: &mut BTreeMap<Name, BTreeSet<IpAddr>>,
    ) -> Result<(), AgentError> {
        let network = &asked.network;
        let made = self.wanted.endpoints[name].attachment(network);
        let Some(mut made) = made.cloned() else {
            return Ok(());
        };
        let pools = self.pools(network);
        let taken = taken.entry(network.clone()).or_default();
        for pool in pools {
            let lacks = match pool.gateway {
                IpAddr::V4(_) => made.ip4.is_none(),
                IpAddr::V6(_) => made.ip6.is_none(),
            };
            if !lacks {
                continue;
            }
            let ip = pool.next(taken)?;
            taken.insert(ip);
            let own = self.wanted.networks.get_mut(network);
            match (ip, own) {
                (IpAddr::V4(ip), Some(own)) => {
                    made.ip4 = Some(ip);
                    own.v4 = own.v4.map(|pool| Pool {
                        last: ip.into(),
                        ..pool
                    });
                }
                (IpAddr::V6(ip), Some(own)) => {
                    made.ip6 = Some(ip);
                    own.v6 = own.v6.map(|pool| Pool {
                        last: ip.into(),
                        ..pool
                    });
                }
                (_, None) => {}
            }
        }
        let Some(first) = made.ips().next() else {
            let why = self.around.ipv6.clone().err().unwrap_or_default();
            return Err(NetworkError::NoIpv6(why).into());
        };
        let present = self.present.endpoints.get(name);
        let before = present.and_then(|before| before.attachment(network));
        let same = before.filter(|before| before.ips().eq(made.ips()));
        made.mac = match (asked.mac, same) {
            (Some(mac), _) => mac,
            (None, Some(before)) => before.mac,
            (None, None) => ipam::mac_for(first),
        };
        let after = &self.wanted.networks[network];
        let stays = |before: &&Attachment| {
            let network = self.present.networks.get(network);
            before.mac == made.mac && network.is_some_and(|network| !is_replaced(network, after))
        };
        let endpoint = &self.wanted.endpoints[name];
        let stays_here = present.is_some_and(|before| !is_another(before, endpoint));
        if stays_here && let Some(before) = same.filter(stays) {
            made.host_interface.clone_from(&before.host_interface);
        }
        if let (true, Some(before)) = (stays_here, before) {
            made.interface.clone_from(&before.interface);
        }
        let other = self
            .wanted
            .attachments()
            .find(|(e, a)| e.name != *name && a.network == *network && a.mac == made.mac);
        let owner = match other {
            Some((other, _)) => Some(format!("endpoint \"{}\"", other.name)),
            None => (after.mac == made.mac).then(|| format!("the bridge {}", after.bridge)),
        };
        if let Some(owner) = owner {
            let mac = made.mac;
            return Err(AgentError::MacTaken { mac, owner });
        }
        if let Some(endpoint) = self.wanted.endpoints.get_mut(name) {
            for attachment in &mut endpoint.attachments {
                if attachment.network == *network {
                    attachment.clone_from(&made);
                }
            }
        }
        Ok(())
    }

    /// Who has whose namespace.
    fn sharing(&mut self) {
        let names: Vec<Name> = self.wanted.endpoints.keys().cloned().collect();
        for name in &names {
            let endpoint = &self.wanted.endpoints[name];
            if let Mode::Container(other) = &endpoint.mode {
                let shared = match self.wanted.endpoints.get(other) {
                    None => Err(ModeError::NotNamed {
                        other: other.clone(),
                    }),
                    Some(owner) => match &owner.mode {
                        Mode::Container(whose) => Err(ModeError::Chain {
                            other: other.clone(),
                            whose: whose.clone(),
                        }),
                        _ => Ok(Target {
                            made: false,
                            ..owner.namespace.clone()
                        }),
                    },
                };
                match (shared, self.wanted.endpoints.get_mut(name)) {
                    (Ok(target), Some(endpoint)) => endpoint.namespace = target,
                    (Err(error), _) => self.fault(&["endpoints", name, "network_mode"], error),
                    (Ok(_), None) => {}
                }
                continue;
            }
            let said = &self.document.endpoints[name];
            let key = if said.pid.is_some() { "pid" } else { "netns" };
            let path = &endpoint.namespace.path;
            let mut others = self.wanted.endpoints.values().filter(|other| {
                other.name != *name
                    && other.namespace.path == *path
                    && !matches!(other.mode, Mode::Container(_) | Mode::Host)
            });
            let clash = others.find_map(|other| {
                let mut ours = endpoint.attachments.iter();
                let both = ours.find(|a| other.attachment(&a.network).is_some())?;
                Some(AgentError::AlreadyAttached {
                    netns: path.clone(),
                    network: both.network.clone(),
                    endpoint: other.name.clone(),
                })
            });
            // It goes with that one, and this one would be left without.
            let owner = self.present.endpoints.values().find(|other| {
                other.namespace.made
                    && other.namespace.path == *path
                    && !endpoint.namespace.made
                    && endpoint.mode != Mode::Host
                    && self
                        .wanted
                        .endpoints
                        .get(&other.name)
                        .is_none_or(|after| is_another(other, after))
            });
            let goes = owner.map(|owner| {
                AgentError::from(ModeError::Shared {
                    endpoint: owner.name.clone(),
                    sharers: vec![name.clone()],
                })
            });
            if let Some(error) = clash.or(goes) {
                self.fault(&["endpoints", name, key], error);
            }
        }
    }

    fn check_names(&mut self) {
        let mut found = Vec::new();
        for (endpoint, attachment) in self.wanted.attachments() {
            let (name, network) = (&endpoint.name, &attachment.network);
            if let Err(error) = names::check(&self.wanted, name, &attachment.aliases, network) {
                found.push((name.clone(), "networks", AgentError::from(error)));
            }
        }
        for endpoint in self.wanted.endpoints.values() {
            for link in &endpoint.links {
                let Some(other) = self.wanted.endpoints.get(&link.endpoint) else {
                    let error = AgentError::NoEndpoint(link.endpoint.clone());
                    found.push((endpoint.name.clone(), "links", error));
                    continue;
                };
                let mut ours = endpoint.attachments.iter();
                if let Some(first) = endpoint.attachments.first()
                    && !ours.any(|a| other.attachment(&a.network).is_some())
                {
                    let error = NetworkError::NotConnected {
                        endpoint: other.name.clone(),
                        network: first.network.clone(),
                        has: other.attached().map(|a| a.network.clone()).collect(),
                    };
                    found.push((endpoint.name.clone(), "links", error.into()));
                }
            }
        }
        for (name, key, error) in found {
            self.fault(&["endpoints", &name, key], error);
        }
    }

    /// What is published: what is there and wanted first, then ports that are named, then the others get free
    /// ones.
    fn publishes(&mut self, mut ports: Ports<'_>) {
        let mut slots: BTreeMap<(Name, usize, IpAddr), Published> = BTreeMap::new();
        let mut open: Vec<(Name, usize, crate::publish::Spec, Vec<IpAddr>)> = Vec::new();
        for (name, endpoint) in &self.wanted.endpoints {
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
                    };
                    ports.take(Some(name), kept.publish);
                    slots.insert((name.clone(), n, *host_ip), kept);
                }
                let spec = crate::publish::Spec {
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
        spec: crate::publish::Spec,
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

fn default_network() -> Name {
    DEFAULT_NETWORK.parse().expect("a constant that is a name")
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

#[cfg(test)]
mod tests;
