//! Names of endpoints: what the name servers are told, and where they serve.

use std::{collections::BTreeSet, net::IpAddr};

use super::{Agent, endpoint::place, record::Endpoint};
use crate::dns::{Bridge, Link, Member, Network, Options, Server, View};

/// The name servers as they are.
#[derive(Default)]
pub struct Names {
    /// None where they could not be started.
    server: Option<Server>,
    /// The gateways that answer.
    served: BTreeSet<IpAddr>,
    /// Why others do not; sentences for people.
    troubles: Vec<String>,
}

impl Names {
    pub fn serves(&self, gateway: IpAddr) -> bool {
        self.served.contains(&gateway)
    }

    pub fn troubles(&self) -> &[String] {
        &self.troubles
    }
}

impl Agent {
    /// Starts the name servers, in the node's namespace. Without them the containers ask the node's
    /// resolvers themselves.
    pub(super) fn start_names(&mut self) {
        let options = Options {
            resolv_conf: self.config.resolv_conf.clone(),
            answers: self.events.answers.clone(),
            ..Options::default()
        };
        match self.dataplane.attach_lookup() {
            Ok(lookup) => self.names.server = Some(Server::new(lookup, &options)),
            Err(error) => {
                let trouble = format!(
                    "names of endpoints are not served: {}",
                    crate::chain(&error)
                );
                tracing::warn!("{trouble}");
                self.names.troubles = vec![trouble];
            }
        }
        self.set_names();
    }

    /// Tells the name servers what there is now. To be called after each change of networks, endpoints
    /// and bridges.
    pub fn set_names(&mut self) {
        let view = self.names_now();
        let Some(server) = &mut self.names.server else {
            return;
        };
        let errors = server.set(view);
        let troubles: Vec<String> = errors.iter().map(|error| crate::chain(error)).collect();
        for trouble in &troubles {
            if !self.names.troubles.contains(trouble) {
                tracing::warn!("{trouble}");
            }
        }
        self.names.troubles = troubles;
        let served: BTreeSet<IpAddr> = server.served().collect();
        if served != self.names.served {
            self.names.served = served;
            let endpoints: Vec<Endpoint> = self.wanted.endpoints.values().cloned().collect();
            for endpoint in endpoints.iter().filter(|e| self.is_up(e)) {
                self.write_files(endpoint);
            }
        }
    }

    fn names_now(&self) -> View {
        let networks = self.wanted.networks.values();
        let networks = networks.filter_map(|network| {
            let bridge = self.bridges.get(&network.name)?;
            Some(Network {
                name: network.name.clone(),
                internal: network.rules.internal,
                bridge: Bridge {
                    ifindex: bridge.ifindex,
                    name: network.bridge.clone(),
                },
                gateways: self.pools(network).map(|pool| pool.gateway).collect(),
                subnets: self.pools(network).map(|pool| pool.subnet).collect(),
                members: self
                    .members(&network.name)
                    .filter(|(endpoint, attachment)| !endpoint.removing && !attachment.removing)
                    .map(|(endpoint, attachment)| Member {
                        endpoint: endpoint.name.clone(),
                        aliases: attachment.aliases.clone(),
                        // While it is down its name is still nobody else's.
                        addresses: match self.up.contains_key(&place(endpoint, attachment)) {
                            true => attachment.ips().collect(),
                            false => Vec::new(),
                        },
                        links: endpoint
                            .links
                            .iter()
                            .map(|link| Link {
                                alias: link.alias.clone(),
                                endpoint: link.endpoint.clone(),
                            })
                            .collect(),
                    })
                    .collect(),
            })
        });
        View::of(networks)
    }
}
