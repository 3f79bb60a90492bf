//! Endpoints: adding and removing.
//!
//! An endpoint is a namespace and its attachments to networks ([`super::attachment`]). What it will be is
//! decided first, with nothing touched.

use std::path::PathBuf;

use super::{
    Agent, AgentError,
    attachment::{Asked, Inside},
    error::ModeError,
    network::DEFAULT_NETWORK,
    ports::check_held,
    publish::CHOICES,
    purge::{Doomed, Then},
    record::{self, Attachment, Endpoint, Network, Published, Target},
    store::Change,
};
use crate::{
    api::types::{self, EndpointRequest, NamespaceRequest},
    mode::Mode,
    name::Name,
    net::{
        Namespace, NetError,
        namespace::{self, Beside},
    },
    publish::{Families, Spec},
};

/// What an endpoint will be.
struct Decided {
    endpoint: Endpoint,
    /// The network that it joins, of which addresses are taken.
    network: Option<Network>,
    /// Its namespace; none where it has the node's, or another's.
    within: Option<Within>,
}

/// An endpoint's own namespace.
enum Within {
    There(Inside),
    /// In the making: the kernel takes as long for it as the agent for what comes before it is needed.
    Begun(Beside<Result<Inside, NetError>>),
    /// A runtime makes it later.
    ToCome,
}

impl Within {
    /// What is there, or a new one.
    fn of(inside: Option<Inside>) -> Result<Self, NetError> {
        Ok(match inside {
            Some(inside) => Self::There(inside),
            None => Self::Begun(Inside::begin()?),
        })
    }
}

impl Agent {
    pub async fn add_endpoint(
        &mut self,
        request: EndpointRequest,
    ) -> Result<types::Endpoint, AgentError> {
        let name = request.name.clone();
        let specs = &request.publish;
        let chooses = request.publish_all || specs.iter().any(|s| s.host_ports.is_none());
        for attempt in 1.. {
            let mut taken_counters = Vec::new();
            let result = self.try_add(&request, &mut taken_counters).await;
            if result.is_err() {
                for counter in taken_counters {
                    self.counters.give_back(counter);
                }
            }
            match result {
                Err(AgentError::PortHeld { .. }) if chooses && attempt < CHOICES => {
                    // Its name is taken until nothing is left of it.
                    self.purge_now()?;
                }
                result => {
                    result?;
                    break;
                }
            }
        }
        self.endpoint_view(&name)
    }

    async fn try_add(
        &mut self,
        request: &EndpointRequest,
        counters: &mut Vec<u32>,
    ) -> Result<(), AgentError> {
        let Decided {
            endpoint,
            network,
            within,
        } = self.decide(request, counters).await?;
        let network_change = network.as_ref().map(Change::Network);
        let changes: Vec<Change<'_>> = network_change
            .into_iter()
            .chain([Change::Endpoint(&endpoint)])
            .collect();
        self.store.commit(&changes)?;
        if let Some(network) = network {
            self.wanted.networks.insert(network.name.clone(), network);
        }
        self.wanted
            .endpoints
            .insert(endpoint.name.clone(), endpoint.clone());
        match self.make(&endpoint, within).await {
            Ok(()) => {
                self.flush_shadows(&endpoint.publishes);
                let ips: Vec<String> = endpoint.ips().map(|ip| ip.to_string()).collect();
                tracing::info!(endpoint = %endpoint.name, ips = %ips.join(", "), "added");
                Ok(())
            }
            Err(error) => {
                // As a removal, which the next agent finishes where this one is killed.
                let name = endpoint.name.clone();
                let mut endpoint = endpoint;
                endpoint.removing = true;
                // The name went to somebody else meanwhile, and is his.
                if matches!(error, AgentError::Net(NetError::NamespaceExists { .. })) {
                    endpoint.namespace.made = false;
                }
                if let Err(error) = self.store.commit(&[Change::Endpoint(&endpoint)]) {
                    tracing::error!(endpoint = %name, error = %crate::chain(&error), "undoing");
                }
                self.wanted.endpoints.insert(name.clone(), endpoint);
                // They are free when no flow has them any more.
                counters.clear();
                self.finish_removal(&name).await?;
                Err(error)
            }
        }
    }

    /// What the endpoint will be, or why it cannot be. Touches nothing; a namespace that is to be made is
    /// begun, and goes by itself where it is not used.
    async fn decide(
        &mut self,
        request: &EndpointRequest,
        counters: &mut Vec<u32>,
    ) -> Result<Decided, AgentError> {
        let name = &request.name;
        // Letters of either case are the same where it is asked for.
        let mut all = self.wanted.endpoints.values();
        if let Some(other) = all.find(|e| e.name.eq_ignore_ascii_case(name)) {
            let name = other.name.clone();
            return Err(if other.removing {
                AgentError::Removing(name)
            } else if self.is_up(other) {
                AgentError::EndpointExists(name)
            } else {
                AgentError::EndpointGone(name)
            });
        }
        let network = match &request.network {
            None => DEFAULT_NETWORK.parse().map_err(AgentError::Name)?,
            Some(Mode::Network(network)) => network.clone(),
            Some(mode) => return self.decide_without_network(request, mode, counters),
        };
        let mut network = self
            .wanted
            .networks
            .get(&network)
            .cloned()
            .ok_or_else(|| self.no_network(&network))?;
        let asked = Asked {
            ip4: request.ip,
            ip6: request.ip6,
            mac: request.mac,
            aliases: request.aliases.clone(),
            owned: request.owned.clone(),
        };
        let (target, namespace) = match (&request.namespace, asked.is_configured_by_runtime()) {
            (Some(NamespaceRequest::Path(path)), true) => (Target::foreign(path), None),
            (namespace, _) => self.target(name, namespace.as_ref())?,
        };
        let inside = namespace.map(Inside::of).transpose()?;
        self.check_links(&request.links, &network)?;
        let attachment = self
            .decide_attachment(name, &asked, &mut network, inside.as_ref(), &target.path)
            .await?;
        let families = Families {
            v4: attachment.ip4.is_some(),
            v6: attachment.ip6.is_some(),
        };
        let mut specs = request.publish.clone();
        if request.publish_all {
            for exposed in request.expose.iter().copied().map(Spec::from) {
                // Once, and not what is published already.
                if !specs.iter().any(|spec| spec.serves(&exposed)) {
                    specs.push(exposed);
                }
            }
        }
        let within = match asked.is_configured_by_runtime() {
            true => Within::ToCome,
            false => Within::of(inside)?,
        };
        let publishes = self.resolve_publishes(&specs, families, &network)?;
        let mut endpoint = self.new_endpoint(name, record::Mode::Networks, target, counters)?;
        endpoint.attachments.push(attachment);
        endpoint.exposed.clone_from(&request.expose);
        endpoint.allow_from.clone_from(&request.allow_from);
        endpoint.links.clone_from(&request.links);
        for publish in publishes {
            let counter = self.take_counter(counters)?;
            endpoint.publishes.push(Published {
                publish,
                counter,
                allow_from: Default::default(),
                runtime: request.owned.is_some(),
            });
        }
        Ok(Decided {
            endpoint,
            network: Some(network),
            within: Some(within),
        })
    }

    /// The same for those that join no network.
    fn decide_without_network(
        &mut self,
        request: &EndpointRequest,
        mode: &Mode,
        counters: &mut Vec<u32>,
    ) -> Result<Decided, AgentError> {
        let name = &request.name;
        let refuse = |error: fn(Mode) -> ModeError| Err(error(mode.clone()).into());
        if !request.publish.is_empty() || request.publish_all || !request.allow_from.is_empty() {
            return refuse(ModeError::Publish);
        }
        if !request.aliases.is_empty() || !request.links.is_empty() {
            return refuse(ModeError::Names);
        }
        if request.ip.is_some() || request.ip6.is_some() || request.mac.is_some() {
            return refuse(ModeError::Address);
        }
        let (mode, target, within) = match mode {
            Mode::None => {
                let (target, namespace) = self.target(name, request.namespace.as_ref())?;
                let inside = namespace.map(Inside::of).transpose()?;
                (record::Mode::None, target, Some(Within::of(inside)?))
            }
            _ if request.namespace.is_some() => return refuse(ModeError::Namespace),
            Mode::Container(other) => {
                let target = self.shared_target(name, other)?;
                (record::Mode::Container(other.clone()), target, None)
            }
            _ => (record::Mode::Host, Target::default(), None),
        };
        let mut endpoint = self.new_endpoint(name, mode, target, counters)?;
        endpoint.exposed.clone_from(&request.expose);
        Ok(Decided {
            endpoint,
            network: None,
            within,
        })
    }

    fn new_endpoint(
        &mut self,
        name: &Name,
        mode: record::Mode,
        namespace: Target,
        counters: &mut Vec<u32>,
    ) -> Result<Endpoint, AgentError> {
        Ok(Endpoint {
            name: name.clone(),
            mode,
            namespace,
            attachments: Vec::new(),
            counter: self.take_counter(counters)?,
            publishes: Vec::new(),
            exposed: Vec::new(),
            allow_from: Default::default(),
            links: Vec::new(),
            removing: false,
            predecessor: None,
        })
    }

    /// The namespace of `other`, for `name` to share.
    fn shared_target(&self, name: &Name, other: &Name) -> Result<Target, AgentError> {
        if name == other {
            return Err(ModeError::Own(name.clone()).into());
        }
        let other = self.wanted_endpoint(other)?;
        if let record::Mode::Container(whose) = &other.mode {
            return Err(ModeError::Chain {
                other: other.name.clone(),
                whose: whose.clone(),
            }
            .into());
        }
        if !self.is_up(other) {
            return Err(AgentError::Gone(other.name.clone()));
        }
        Ok(Target {
            made: false,
            ..other.namespace.clone()
        })
    }

    /// The namespace, opened; none where it is to be made.
    fn target(
        &self,
        name: &Name,
        request: Option<&NamespaceRequest>,
    ) -> Result<(Target, Option<Namespace>), AgentError> {
        let Some(request) = request else {
            let path = PathBuf::from(namespace::DIRECTORY).join(name.as_str());
            if path.symlink_metadata().is_ok() {
                return Err(AgentError::NamespaceExists(name.clone()));
            }
            let target = Target {
                path,
                made: true,
                id: None,
            };
            return Ok((target, None));
        };
        let (path, namespace) = match request {
            NamespaceRequest::Name(name) => (
                PathBuf::from(namespace::DIRECTORY).join(name),
                Namespace::named(name)?,
            ),
            NamespaceRequest::Path(path) => (path.clone(), Namespace::at_path(path)?),
            NamespaceRequest::Pid(pid) => (
                PathBuf::from(format!("/proc/{pid}/ns/net")),
                Namespace::of_pid(*pid)?,
            ),
        };
        let target = self.foreign(path, &namespace)?;
        Ok((target, Some(namespace)))
    }

    /// A namespace that somebody else made, for an endpoint.
    pub(super) fn foreign(
        &self,
        path: PathBuf,
        namespace: &Namespace,
    ) -> Result<Target, AgentError> {
        if self.wanted.node.as_ref().map(|n| n.id) == Some(namespace.id()) {
            return Err(AgentError::NodeNamespace(path));
        }
        if Namespace::of_machine().is_some_and(|machine| machine == *namespace) {
            return Err(AgentError::MachineNamespace(path));
        }
        Ok(Target {
            id: path.starts_with("/proc").then_some(namespace.id()),
            ..Target::foreign(path)
        })
    }

    pub(super) fn take_counter(&mut self, taken: &mut Vec<u32>) -> Result<u32, AgentError> {
        let counter = self
            .counters
            .take()
            .ok_or(AgentError::NoCounter(super::counter::ENTRIES - 1))?;
        taken.push(counter);
        self.dataplane.reset_counter(counter)?;
        Ok(counter)
    }

    /// Makes what the endpoint is in the kernel, and its files. Where it fails the caller removes the endpoint
    /// ([`Agent::finish_removal`]).
    async fn make(
        &mut self,
        endpoint: &Endpoint,
        within: Option<Within>,
    ) -> Result<(), AgentError> {
        let inside = match within {
            Some(Within::There(inside)) => inside,
            Some(Within::Begun(inside)) => inside.wait()?.bind(&endpoint.name)?,
            Some(Within::ToCome) => {
                for attachment in &endpoint.attachments {
                    self.hold_out(endpoint, attachment).await?;
                }
                // What it publishes comes later, too.
                self.write_files(endpoint);
                return Ok(());
            }
            None => return Ok(()),
        };
        inside.raise_loopback().await?;
        let mut plugged = Vec::new();
        for attachment in &endpoint.attachments {
            plugged.push((attachment, self.plug(endpoint, attachment, &inside).await?));
        }
        let (published, files) = (endpoint.publishes.clone(), self.files(endpoint));
        // Beside the rest: it takes as long as all of that.
        let held = tokio::task::spawn_blocking(move || {
            if let Some(files) = files {
                files.write();
            }
            check_held(&published)
        });
        let rest = async {
            let mut up = Vec::new();
            for (attachment, plugged) in plugged {
                let ends = self
                    .bring_up(endpoint, attachment, &inside, plugged)
                    .await?;
                up.push((attachment, ends));
            }
            if !up.is_empty() {
                self.set_ways(endpoint, &inside).await?;
            }
            for (attachment, ends) in up {
                self.wait_usable(&endpoint.name, attachment, ends, &inside.netlink)
                    .await?;
            }
            Ok(())
        };
        let rest: Result<(), AgentError> = rest.await;
        // In any case: what is undone must not be written after that.
        let held = held.await;
        rest?;
        held.map_err(|join| AgentError::Fault(join.to_string()))?
    }

    /// Takes the endpoint out of the kernel, whatever of it is there; goes on past errors. Its flows
    /// are left to a purge, at whose end `then` is done.
    pub(super) async fn unmake(&mut self, endpoint: &Endpoint, then: Then) {
        // First the way in, then the flows, so that no new ones appear behind our back.
        if let Err(error) = self.withdraw_publishes(&endpoint.publishes) {
            tracing::warn!(endpoint = %endpoint.name, %error, "its publishes were not withdrawn");
        }
        let ips: Vec<_> = endpoint.ips().collect();
        self.hang_up(&endpoint.name, &ips, &endpoint.publishes);
        for attachment in &endpoint.attachments {
            self.detach(endpoint, attachment).await;
        }
        self.purge(Doomed::endpoint(endpoint), then);
    }

    pub async fn remove_endpoint(&mut self, name: &Name) -> Result<(), AgentError> {
        let mut endpoint = self.wanted_endpoint(name)?.clone();
        // Also by `--netns`: the namespace would go under them.
        let path = (endpoint.namespace.made).then(|| endpoint.namespace.path.clone());
        let shares = |e: &&Endpoint| {
            e.mode == record::Mode::Container(name.clone())
                || (e.name != *name && path.as_ref() == Some(&e.namespace.path))
        };
        let sharers: Vec<Name> = self
            .wanted
            .endpoints
            .values()
            .filter(shares)
            .map(|e| e.name.clone())
            .collect();
        if !sharers.is_empty() {
            return Err(ModeError::Shared {
                endpoint: name.clone(),
                sharers,
            }
            .into());
        }
        endpoint.removing = true;
        self.store.commit(&[Change::Endpoint(&endpoint)])?;
        self.wanted.endpoints.insert(name.clone(), endpoint);
        self.finish_removal(name).await
    }

    /// From marked to gone, but for its flows; name, addresses and counters are kept until those are
    /// gone too. What cannot be removed from the kernel is reported and left.
    pub(super) async fn finish_removal(&mut self, name: &Name) -> Result<(), AgentError> {
        let endpoint = self
            .wanted
            .endpoints
            .get(name)
            .cloned()
            .ok_or_else(|| AgentError::NoEndpoint(name.clone()))?;
        let forget = Then::Forget(name.clone());
        if let Some(before) = &endpoint.predecessor {
            let then = match endpoint.removing {
                true => Then::Nothing,
                false => forget.clone(),
            };
            self.unmake(before, then).await;
        }
        if endpoint.removing {
            self.unmake(&endpoint, forget).await;
        }
        Ok(())
    }

    /// What is on its way out under that name, and of which nothing is left in the kernel but, perhaps, its
    /// namespace.
    pub(super) fn forget_endpoint(&mut self, name: &Name) -> Result<(), AgentError> {
        let Some(mut endpoint) = self.wanted.endpoints.get(name).cloned() else {
            return Ok(());
        };
        let mut leaving: Vec<Endpoint> = Vec::new();
        leaving.extend(endpoint.predecessor.take().map(|before| *before));
        let stays = !endpoint.removing;
        if !stays {
            leaving.push(endpoint.clone());
        }
        let deleted = match leaving.iter().any(|e| e.namespace.made) {
            true => Namespace::delete(name),
            false => Ok(()),
        };
        self.remove_files(name);
        self.namespaces.remove(name);
        if stays {
            self.store.commit(&[Change::Endpoint(&endpoint)])?;
            self.wanted.endpoints.insert(name.clone(), endpoint);
        } else {
            self.store.commit(&[Change::NoEndpoint(name)])?;
            self.wanted.endpoints.remove(name);
        }
        for endpoint in leaving {
            for counter in endpoint.counters() {
                self.counters.give_back(counter);
            }
            if let Err(error) = self.dataplane.forget_drops_of(endpoint.counter) {
                tracing::warn!(error = %crate::chain(&error), "its drops are counted on");
            }
        }
        tracing::info!(endpoint = %name, "removed");
        Ok(deleted?)
    }

    /// Opens the endpoint's namespace, if it is still the one that was attached.
    pub(super) fn open_target(&self, endpoint: &Endpoint) -> Result<Namespace, AgentError> {
        let namespace = Namespace::at_path(&endpoint.namespace.path)?;
        match endpoint.namespace.id {
            Some(id) if id != namespace.id() => Err(AgentError::Gone(endpoint.name.clone())),
            _ => Ok(namespace),
        }
    }

    /// Is the endpoint there: one of its interfaces or, where it has none, its namespace?
    pub(super) fn is_up(&self, endpoint: &Endpoint) -> bool {
        match &endpoint.mode {
            record::Mode::Networks => endpoint
                .attachments
                .iter()
                .any(|a| self.up.contains_key(&place(endpoint, a))),
            record::Mode::None => self.open_target(endpoint).is_ok(),
            record::Mode::Host => true,
            record::Mode::Container(other) => self
                .wanted
                .endpoints
                .get(other)
                .is_some_and(|other| self.is_up(other)),
        }
    }
}

/// Where an attachment is in [`Agent::up`].
pub(super) fn place(endpoint: &Endpoint, attachment: &Attachment) -> super::Place {
    (endpoint.name.clone(), attachment.network.clone())
}
