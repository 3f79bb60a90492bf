//! Bringing the node to what a document wants: `netfw apply`.
//!
//! What is wanted ([`target`]), and what is different ([`steps`]), is decided first, and all of it checked.
//! Then it is in the store by one commit, with all that is on its way out, so that the next start finishes what
//! a killed agent leaves. What fails in the kernel after that is told, and does not keep the rest from being
//! done: it is wanted all the same, shows as gone, and is tried again by the next `apply` or start.

use std::collections::{BTreeMap, BTreeSet};

use tokio::task::block_in_place;

use super::{
    Agent, AgentError,
    attachment::{Inside, free_interface},
    endpoint::place,
    ports::check_held,
    record::{Attachment, Endpoint, Mode, Network, Published, Wanted, new_host_interface},
    steps::steps,
    store::Change,
    target::{Around, is_another, is_faulty, is_replaced, target},
};
use crate::{
    api::types::{Action, Applied, ApplyRequest, Fault, Object, Step},
    document::Document,
    name::Name,
    net::{Link, Namespace},
};

impl Agent {
    pub async fn apply(&mut self, request: &ApplyRequest) -> Result<Applied, AgentError> {
        let document = request.document.beside_runtimes(&self.wanted);
        let (mut target, mut faults) = self.wanted_by(&document).await?;
        // A runtime's that is gone is for the runtime to bring back.
        let is_named =
            |endpoint: &Endpoint| request.document.endpoints.contains_key(&endpoint.name);
        let is_gone = |endpoint: &Endpoint, attachment: Option<&Attachment>| {
            let is_there = match attachment {
                Some(attachment) => self.up.contains_key(&place(endpoint, attachment)),
                None => self.is_up(endpoint),
            };
            !is_there && is_named(endpoint)
        };
        let steps = steps(&self.wanted, &target, is_gone);
        self.find_namespaces(&mut target, &steps, &document, &mut faults)
            .await;
        if !faults.is_empty() {
            return Err(AgentError::Document(faults));
        }
        let mut failures = Vec::new();
        if !request.dry_run && !steps.is_empty() {
            if request.expected.as_ref().is_some_and(|plan| *plan != steps) {
                return Err(AgentError::Outdated);
            }
            failures = self.bring_about(target, &steps).await?;
        }
        Ok(Applied {
            steps,
            dry_run: request.dry_run,
            failures,
        })
    }

    async fn wanted_by(&mut self, document: &Document) -> Result<(Wanted, Vec<Fault>), AgentError> {
        let obstacles = self.obstacles_of_node().await?;
        let prefix6 = self.prefix6()?;
        let links = self.netlink.links().await?;
        let links: Vec<String> = links.into_iter().map(|link| link.name).collect();
        let around = Around {
            obstacles: &obstacles,
            prefix6,
            ipv6: &self.ipv6,
            locals: &self.locals,
            links: &links,
        };
        Ok(target(document, &self.wanted, &around, self.ports()))
    }

    /// Looks for the namespaces of what is to be made, and chooses names for interfaces in them. Those of which
    /// something is wrong already are left out.
    async fn find_namespaces(
        &self,
        target: &mut Wanted,
        steps: &[Step],
        document: &Document,
        faults: &mut Vec<Fault>,
    ) {
        let made = steps.iter().filter(|step| {
            matches!(step.object, Object::Endpoint | Object::Attachment)
                && matches!(step.action, Action::Add | Action::Replace)
        });
        let names = made.filter_map(|step| step.endpoint.clone());
        let names: BTreeSet<Name> = names.filter(|name| !is_faulty(faults, name)).collect();
        for name in names {
            let Some(endpoint) = target.endpoints.get(&name) else {
                continue;
            };
            match self.find_namespace(endpoint.clone(), target).await {
                Ok(found) => {
                    target.endpoints.insert(name, found);
                }
                Err(error) => {
                    let said = document.endpoints.get(&name);
                    let pid = said.is_some_and(|said| said.pid.is_some());
                    let key = if pid { "pid" } else { "netns" };
                    faults.push(Fault {
                        at: vec!["endpoints".into(), name.to_string(), key.into()],
                        error: crate::chain(&error),
                    });
                }
            }
        }
        // As those whom they share with have found them.
        let owners = target.endpoints.clone();
        for endpoint in target.endpoints.values_mut() {
            if let Mode::Container(other) = &endpoint.mode
                && let Some(owner) = owners.get(other)
            {
                endpoint.namespace.id = owner.namespace.id;
            }
        }
    }

    async fn find_namespace(
        &self,
        mut endpoint: Endpoint,
        target: &Wanted,
    ) -> Result<Endpoint, AgentError> {
        if !matches!(endpoint.mode, Mode::Networks | Mode::None) {
            return Ok(endpoint);
        }
        let before = self.wanted.endpoints.get(&endpoint.name);
        let stays = before.is_some_and(|before| !is_another(before, &endpoint));
        let mut taken: Vec<String> = Vec::new();
        let path = &endpoint.namespace.path;
        // One that goes is no namespace to look into.
        let goes = |other: &Endpoint| {
            let after = target.endpoints.get(&other.name);
            other.namespace.made
                && other.namespace.path == *path
                && after.is_none_or(|after| is_another(other, after))
        };
        let made_anew = endpoint.namespace.made && !stays;
        if made_anew {
            let owned = self.wanted.endpoints.values().any(goes);
            if path.symlink_metadata().is_ok() && !owned {
                return Err(AgentError::NamespaceExists(endpoint.name));
            }
        } else if let Some(namespace) = self.look_into(&endpoint, stays)? {
            if !endpoint.namespace.made {
                endpoint.namespace = self.foreign(path.clone(), &namespace)?;
            }
            let inside = Inside::of(namespace)?;
            let links = inside.netlink.links().await?;
            for attachment in &endpoint.attachments {
                let other = self.attached_from(&inside, &links, &attachment.network);
                let other = other.and_then(|other| target.endpoints.get(&other.name));
                if let Some(other) = other.filter(|other| {
                    other.name != endpoint.name && other.attachment(&attachment.network).is_some()
                }) {
                    return Err(AgentError::AlreadyAttached {
                        netns: endpoint.namespace.path.clone(),
                        network: attachment.network.clone(),
                        endpoint: other.name.clone(),
                    });
                }
            }
            // What goes is gone by then.
            let goes = |link: &Link| {
                let mut up = self.up.iter();
                up.any(|((name, network), host)| {
                    let (before, after) =
                        (self.wanted.endpoints.get(name), target.endpoints.get(name));
                    let stays = before.zip(after).is_some_and(|(before, after)| {
                        !is_another(before, after) && after.attachment(network).is_some()
                    });
                    link.peer == Some(*host) && !stays
                })
            };
            let links = links.into_iter().filter(|link| !goes(link));
            taken = links.map(|link| link.name).collect();
        }
        for n in 0..endpoint.attachments.len() {
            if endpoint.attachments[n].interface.is_empty() {
                let own = endpoint.attachments.iter().map(|a| a.interface.as_str());
                let taken = taken.iter().map(String::as_str).chain(own);
                endpoint.attachments[n].interface = free_interface("eth", taken)?;
            }
        }
        Ok(endpoint)
    }

    /// The endpoint's namespace, as it is; none where netfw made it and it is gone.
    fn look_into(&self, endpoint: &Endpoint, stays: bool) -> Result<Option<Namespace>, AgentError> {
        let is_up = stays && self.is_up(endpoint);
        let opened = match is_up {
            true => self.open_target(endpoint),
            // Whatever it is called by now.
            false => Namespace::at_path(&endpoint.namespace.path).map_err(AgentError::from),
        };
        match opened {
            Err(AgentError::Net(error)) if endpoint.namespace.made && error.is_gone() => Ok(None),
            opened => opened.map(Some),
        }
    }

    /// Makes the steps; what went wrong, in sentences. An error: nothing was changed.
    async fn bring_about(
        &mut self,
        target: Wanted,
        steps: &[Step],
    ) -> Result<Vec<String>, AgentError> {
        let mut failures = Failures::default();
        let before = self.wanted.clone();
        self.commit_target(target)?;
        self.take_away(&before, &mut failures).await;
        self.put_there(&before, steps, &mut failures).await;
        for failure in &failures.0 {
            tracing::warn!("apply: {failure}");
        }
        tracing::info!(
            steps = steps.len(),
            failures = failures.0.len(),
            "applied a document"
        );
        Ok(failures.0)
    }

    /// The records, complete, in the store; with what is on its way out. Counters of that are not free yet.
    fn commit_target(&mut self, mut target: Wanted) -> Result<(), AgentError> {
        let mut counters = self.counters.clone();
        let mut new = Vec::new();
        let mut fill = |counter: &mut u32| {
            if *counter == 0 {
                let taken = counters.take();
                let most = super::counter::ENTRIES - 1;
                *counter = taken.ok_or(AgentError::NoCounter(most))?;
                new.push(*counter);
            }
            Ok::<(), AgentError>(())
        };
        for endpoint in target.endpoints.values_mut() {
            fill(&mut endpoint.counter)?;
            for published in &mut endpoint.publishes {
                fill(&mut published.counter)?;
            }
            for attachment in &mut endpoint.attachments {
                if attachment.host_interface.is_empty() {
                    attachment.host_interface = new_host_interface(&endpoint.name);
                }
            }
        }
        for before in self.wanted.endpoints.values() {
            let Some(after) = target.endpoints.get_mut(&before.name) else {
                let leaving = before.leaving();
                target.endpoints.insert(before.name.clone(), leaving);
                continue;
            };
            if is_another(before, after) {
                after.predecessor = Some(Box::new(before.leaving()));
                continue;
            }
            for attachment in &before.attachments {
                if after.attachment(&attachment.network).is_none() {
                    after.attachments.push(Attachment {
                        removing: true,
                        ..attachment.clone()
                    });
                }
            }
        }
        for (name, network) in &mut target.networks {
            let before = self.wanted.networks.get(name);
            network.unsettled |= before.is_some_and(|before| {
                !is_replaced(before, network) && before.rules != network.rules
            });
        }
        target.gone.clone_from(&self.wanted.gone);
        let gone = self.wanted.networks.keys();
        let gone = gone.filter(|name| !target.networks.contains_key(*name));
        let networks = target.networks.values();
        let networks = networks.filter(|n| self.wanted.networks.get(&n.name) != Some(*n));
        let endpoints = target.endpoints.values();
        let endpoints = endpoints.filter(|e| self.wanted.endpoints.get(&e.name) != Some(*e));
        let changes: Vec<Change<'_>> = networks
            .map(Change::Network)
            .chain(gone.map(Change::NoNetwork))
            .chain(endpoints.map(Change::Endpoint))
            .collect();
        for counter in new {
            self.dataplane.reset_counter(counter)?;
        }
        self.store.commit(&changes)?;
        self.counters = counters;
        self.wanted = target;
        Ok(())
    }

    /// Takes out of the kernel what is not wanted any more, or must be made anew; then, by one walk, the flows
    /// of all that: what comes may have the same addresses.
    async fn take_away(&mut self, before: &Wanted, failures: &mut Failures) {
        for endpoint in before.endpoints.values().filter(|e| !e.removing) {
            let name = &endpoint.name;
            let Some(after) = self.wanted.endpoints.get(name).cloned() else {
                continue;
            };
            if after.removing || after.predecessor.is_some() {
                let removed = self.finish_removal(name).await;
                failures.note(name, removed);
                continue;
            }
            let gone: Vec<Published> = endpoint
                .publishes
                .iter()
                .filter(|p| !after.publishes.iter().any(|a| a.publish == p.publish))
                .cloned()
                .collect();
            if !gone.is_empty() {
                failures.note(name, self.withdraw_publishes(&gone));
                let ips: Vec<_> = endpoint.ips().collect();
                self.hang_up(name, &ips, &gone);
                self.purge_publishes(&gone);
            }
            for attachment in endpoint.attached() {
                match after.attachment(&attachment.network) {
                    Some(now) if now.removing => {
                        let network = &attachment.network;
                        failures.note(name, self.finish_disconnect(network, name).await);
                    }
                    Some(now) if now.host_interface != attachment.host_interface => {
                        self.take_down(endpoint, attachment).await;
                    }
                    _ => {}
                }
            }
        }
        // Map operations block; the other worker goes on with connections meanwhile.
        let purged = block_in_place(|| self.purge_now());
        failures.note(&"flows", purged);
        for network in before.networks.values() {
            let after = self.wanted.networks.get(&network.name);
            if after.is_none_or(|after| is_replaced(network, after)) {
                let taken = self.take_down_network(network).await;
                failures.note(&network.name, taken);
            }
        }
    }

    /// Makes what is missing.
    async fn put_there(&mut self, before: &Wanted, steps: &[Step], failures: &mut Failures) {
        let set = self.dataplane.set_mappings(self.wanted.has_mappings());
        failures.note(&"mappings", set.map_err(AgentError::from));
        let mut touched: BTreeMap<Name, bool> = BTreeMap::new();
        for network in self.wanted.networks.clone().values() {
            let was = before.networks.get(&network.name);
            let stays = was.is_some_and(|was| is_same_way(was, network));
            if stays {
                continue;
            }
            failures.note(&network.name, self.ensure_bridge(&network.name).await);
            let members = self.members(&network.name);
            let members: Vec<Name> = members.map(|(e, _)| e.name.clone()).collect();
            for member in members {
                touched.insert(member, true);
            }
        }
        for step in steps.iter().filter(|step| step.action != Action::Remove) {
            if let Some(name) = &step.endpoint {
                let ports_alone = step.object == Object::Publish;
                *touched.entry(name.clone()).or_default() |= !ports_alone;
            }
        }
        let links = match self.netlink.links().await {
            Ok(links) => links,
            Err(error) => return failures.note(&"interfaces", Err(error.into())),
        };
        let mut new = Vec::new();
        for (name, whole) in touched {
            let Some(endpoint) = self.wanted.endpoints.get(&name).cloned() else {
                continue;
            };
            if endpoint.removing {
                continue;
            }
            let made = match whole {
                true => self.ensure_endpoint(&endpoint, &links).await,
                false if self.is_up(&endpoint) => {
                    self.enter_publishes(&endpoint, &endpoint.publishes)
                }
                false => Ok(()),
            };
            failures.note(&name, made);
            let had = before.endpoints.get(&name);
            let had = |p: &&Published| {
                let mut all = had.iter().flat_map(|e| &e.publishes);
                all.any(|had| had.publish == p.publish)
            };
            let added: Vec<Published> = endpoint
                .publishes
                .iter()
                .filter(|p| !had(p))
                .cloned()
                .collect();
            failures.note(&name, check_held(&added));
            new.extend(added);
        }
        self.flush_shadows(&new);
        self.purge_unsettled();
    }
}

/// Is nothing different between the two but what only the store knows?
fn is_same_way(before: &Network, after: &Network) -> bool {
    !is_replaced(before, after) && before.rules == after.rules
}

/// What went wrong, and with what.
#[derive(Default)]
struct Failures(Vec<String>);

impl Failures {
    fn note(&mut self, what: &impl std::fmt::Display, done: Result<(), AgentError>) {
        if let Err(error) = done {
            self.0.push(format!("{what}: {}", crate::chain(&error)));
        }
    }
}
