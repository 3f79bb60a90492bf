//! Endpoints: their kind of network, their namespaces and who shares them, their names.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{Making, is_another};
use crate::{
    agent::{
        AgentError,
        error::{ModeError, NetworkError},
        names,
        record::{Endpoint, Mode, Target},
    },
    document, mode,
    name::Name,
    net::namespace,
};

impl Making<'_> {
    /// The endpoints, with attachments whose addresses may be open.
    pub(super) fn endpoints(&mut self) {
        let mut folded: BTreeMap<String, &Name> = BTreeMap::new();
        for (name, said) in &self.document.endpoints {
            // Letters of either case are the same where a name is asked for.
            if let Some(other) = folded.insert(name.to_ascii_lowercase(), name) {
                let other = AgentError::EndpointExists(other.clone());
                self.fault(&["endpoints", name], other);
                continue;
            }
            let before = self.present.endpoints.get(name);
            let leaving = |e: &Endpoint| {
                e.removing || e.predecessor.is_some() || e.attachments.iter().any(|a| a.removing)
            };
            if before.is_some_and(leaving) {
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
                predecessor: None,
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
        let mut refuse = |key: &str, error: ModeError| {
            self.fault(&["endpoints", name, key], error);
            None
        };
        let Some(asked) = &said.network_mode else {
            return match &said.networks {
                Some(none) if none.is_empty() => refuse("networks", ModeError::NoNetworks),
                _ => Some(Mode::Networks),
            };
        };
        if said.networks.iter().flatten().next().is_some()
            || matches!(asked, mode::Mode::Network(_))
        {
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
                self.fault(&["endpoints", name, "netns"], ModeError::TwoNamespaces);
                return None;
            }
        };
        Some(Target {
            path,
            made,
            id: None,
        })
    }

    /// Who has whose namespace.
    pub(super) fn sharing(&mut self) {
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

    pub(super) fn check_names(&mut self) {
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
}
