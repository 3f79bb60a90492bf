//! Serving every gateway address of every network.

use std::{collections::BTreeMap, net::IpAddr, os::fd::AsFd as _, path::PathBuf, sync::Arc};

use netfw_common::tuple::proto;
use tokio::task::JoinHandle;

use super::{
    DnsError,
    forward::{Forwarder, Patience},
    limit::Limits,
    resolv::{self, File},
    resolver::Resolver,
    socket::{self, Failure, Port, Replies},
    tcp, udp,
    view::{Bridge, View},
};
use crate::{bpf::Lookup, metrics::Answers, name::Name};

/// What a server is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the node's resolvers are named.
    pub resolv_conf: PathBuf,
    pub limits: Limits,
    pub patience: Patience,
    /// Where queries are counted.
    pub answers: Answers,
}

impl Default for Options {
    /// Raises the process's limit on open files: see [`Limits::of_process`].
    fn default() -> Self {
        Self {
            resolv_conf: resolv::PATH.into(),
            limits: Limits::of_process(),
            patience: Patience::default(),
            answers: Answers::default(),
        }
    }
}

/// The name servers of a node. Dropped, it serves no more; it holds nothing that outlives it.
pub struct Server {
    lookup: Lookup,
    resolver: Arc<Resolver>,
    gates: BTreeMap<IpAddr, Gate>,
}

/// One gateway address that is served.
struct Gate {
    network: Name,
    bridge: Bridge,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Gate {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Server {
    /// Serves nothing yet. `lookup` must be of the network namespace whose networks they are.
    pub fn new(lookup: Lookup, options: &Options) -> Self {
        let file = File::new(options.resolv_conf.clone());
        let forwarder = Forwarder::new(file, options.patience);
        Self {
            lookup,
            resolver: Arc::new(Resolver::new(
                forwarder,
                &options.limits,
                options.answers.clone(),
            )),
            gates: BTreeMap::new(),
        }
    }

    /// These names, and these networks, from now on. Where a gateway cannot be served, the others are;
    /// it is tried again with the next view. To be called on a runtime's thread, in the node's network
    /// namespace, when the bridges are there.
    pub fn set(&mut self, view: View) -> Vec<DnsError> {
        let wanted: BTreeMap<IpAddr, (Name, Bridge)> = view
            .networks
            .iter()
            .flat_map(|network| {
                let gateways = network.gateways.iter();
                gateways.map(|&addr| (addr, (network.name.clone(), network.bridge.clone())))
            })
            .collect();
        let is_wanted = |addr: &IpAddr, gate: &Gate| {
            let same = |(network, bridge): &(Name, Bridge)| {
                *network == gate.network && *bridge == gate.bridge
            };
            wanted.get(addr).is_some_and(same)
        };
        let mut errors = Vec::new();
        let unwanted: Vec<IpAddr> = self
            .gates
            .iter()
            .filter(|(addr, gate)| !is_wanted(addr, gate))
            .map(|(&addr, _)| addr)
            .collect();
        for gateway in unwanted {
            errors.extend(self.close(gateway));
        }
        self.resolver.directory().set(view);
        for (gateway, (network, bridge)) in wanted {
            if self.gates.contains_key(&gateway) {
                continue;
            }
            match self.open(gateway, network, bridge) {
                Ok(gate) => drop(self.gates.insert(gateway, gate)),
                Err(error) => errors.push(error),
            }
        }
        errors
    }

    /// The gateway addresses that are served.
    pub fn served(&self) -> impl Iterator<Item = IpAddr> {
        self.gates.keys().copied()
    }

    fn open(&mut self, gateway: IpAddr, network: Name, bridge: Bridge) -> Result<Gate, DnsError> {
        let failed = |(call, source): Failure| DnsError::Socket {
            network: network.clone(),
            gateway,
            call,
            source,
        };
        let port = if self.lookup.is_attached() {
            Port::Any
        } else {
            Port::Dns
        };
        let by_udp = socket::udp(gateway, &bridge.name, port).map_err(failed)?;
        let replies = Replies::new(gateway, &bridge.name).map_err(failed)?;
        let by_tcp = socket::tcp(gateway, &bridge.name, port).map_err(failed)?;
        for (proto, socket) in [(proto::UDP, by_udp.as_fd()), (proto::TCP, by_tcp.as_fd())] {
            let served = self.lookup.serve(gateway, proto, bridge.ifindex, socket);
            if let Err(source) = served {
                self.withdraw(gateway);
                return Err(DnsError::Lookup {
                    network,
                    gateway,
                    source: Box::new(source),
                });
            }
        }
        tracing::debug!(%network, %gateway, "names are served");
        let resolver = self.resolver.clone();
        let tasks = [
            tokio::spawn(udp::serve(
                by_udp,
                replies,
                network.clone(),
                resolver.clone(),
            )),
            tokio::spawn(tcp::serve(by_tcp, network.clone(), resolver)),
        ];
        Ok(Gate {
            network,
            bridge,
            tasks,
        })
    }

    fn close(&mut self, gateway: IpAddr) -> Option<DnsError> {
        let gate = self.gates.remove(&gateway)?;
        // Before its sockets go: what comes now is the node's.
        let source = self.withdraw(gateway)?;
        Some(DnsError::Lookup {
            network: gate.network.clone(),
            gateway,
            source: Box::new(source),
        })
    }

    /// The first error.
    fn withdraw(&mut self, gateway: IpAddr) -> Option<crate::bpf::BpfError> {
        let protocols = [proto::UDP, proto::TCP];
        let results = protocols.map(|proto| self.lookup.withdraw(gateway, proto).err());
        results.into_iter().flatten().next()
    }
}
