//! Attachments, and who has which address.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{Making, default_network, is_another, is_replaced};
use crate::{
    agent::{
        AgentError,
        error::NetworkError,
        ipam::{self, Pool},
        plan::family,
        record::{Attachment, Mode},
    },
    document,
    name::{Mac, Name},
};

impl Making<'_> {
    /// Who has which address: those that are asked for or kept first, then the others get free ones.
    pub(super) fn addresses(&mut self) {
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
            let implied = said.networks.is_none();
            let asked = said.networks.as_deref().unwrap_or(&default);
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
        let present = self.present.endpoints.get(name);
        let is_other = present.is_some_and(|present| is_another(present, endpoint));
        let before = present.and_then(|present| present.attachment(network));
        let taken = taken.entry(network.clone()).or_default();
        let pools = self.pools(network);
        let same = before.filter(|_| !is_other);
        let mut made = Attachment {
            network: network.clone(),
            ip4: None,
            ip6: None,
            mac: Mac([0; 6]),
            host_interface: String::new(),
            interface: String::new(),
            aliases: asked.aliases.clone(),
            owner: same.and_then(|before| before.owner.clone()),
            external: same.is_some_and(|before| before.external),
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
}
