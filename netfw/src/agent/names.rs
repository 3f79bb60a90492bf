//! Names of endpoints: what the name servers are told.

use super::{Agent, endpoint::place};
use crate::dns::{Bridge, Link, Member, Network, Options, Server, View};

impl Agent {
    /// Starts the name servers, in the node's namespace; they serve nothing yet. Without them the
    /// containers ask the node's resolvers themselves.
    pub(super) fn start_names(&mut self) {
        let options = Options {
            resolv_conf: self.config.resolv_conf.clone(),
            ..Options::default()
        };
        match self.dataplane.attach_lookup() {
            Ok(lookup) => self.names = Ok(Server::new(lookup, &options)),
            Err(error) => {
                let error = crate::chain(&error);
                tracing::warn!(error, "names of endpoints are not served");
                self.names = Err(error);
            }
        }
    }

    /// Tells the name servers what there is now. To be called after each change of networks, endpoints
    /// and bridges.
    pub fn set_names(&mut self) {
        let view = self.names_now();
        if let Ok(server) = &mut self.names {
            for error in server.set(view) {
                tracing::warn!(error = %crate::chain(&error), "names are not served there");
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
                    .filter(|(endpoint, attachment)| {
                        self.up.contains_key(&place(endpoint, attachment))
                    })
                    .map(|(endpoint, attachment)| Member {
                        endpoint: endpoint.name.clone(),
                        aliases: attachment.aliases.clone(),
                        addresses: attachment.ips().collect(),
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
        View {
            networks: networks.collect(),
        }
    }
}
