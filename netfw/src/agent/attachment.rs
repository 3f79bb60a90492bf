//! An endpoint's interface in a network: deciding, making and removing it; connecting an endpoint to
//! further networks, and disconnecting it.
//!
//! The order in [`Agent::attach`] is what keeps a container's own address off the wire: records and
//! programs are there before its interface has an address.
//!
//! A container in several networks has one default route of each family ([`Wanted::way_out`]). What it
//! sends from another attachment's address (answers, most of it) leaves by that attachment, by a rule of
//! its own: replies go the way that the question came.
//!
//! [`Wanted::way_out`]: super::record::Wanted::way_out

mod decide;
mod inside;
mod make;

use std::net::IpAddr;

pub(super) use self::{
    decide::{Asked, free_interface},
    inside::Inside,
};
use super::{
    Agent, AgentError,
    error::NetworkError,
    purge::{Doomed, Then},
    record::Mode,
    store::Change,
};
use crate::{
    api::types::{self, ConnectRequest},
    name::Name,
};

impl Agent {
    pub async fn connect_endpoint(
        &mut self,
        network: &Name,
        request: ConnectRequest,
    ) -> Result<types::Endpoint, AgentError> {
        let name = &request.endpoint.clone();
        let before = self.wanted_endpoint(name)?.clone();
        let mut network = self
            .wanted
            .networks
            .get(network)
            .cloned()
            .ok_or_else(|| self.no_network(network))?;
        if before.mode != Mode::Networks {
            return Err(NetworkError::NotAttachable(name.clone()).into());
        }
        match before.attachment(&network.name) {
            Some(attachment) if attachment.removing => {
                return Err(AgentError::Removing(name.clone()));
            }
            Some(_) => {
                return Err(NetworkError::Connected {
                    endpoint: name.clone(),
                    network: network.name,
                }
                .into());
            }
            None => {}
        }
        if !self.is_up(&before) {
            return Err(AgentError::Gone(name.clone()));
        }
        let asked = Asked {
            ip4: request.ip,
            ip6: request.ip6,
            mac: request.mac,
            aliases: request.aliases,
            owned: request.owned,
        };
        let inside = match asked.is_configured_by_runtime() {
            true => None,
            false => Some(Inside::of(self.open_target(&before)?)?),
        };
        let path = &before.namespace.path;
        let attachment = self
            .decide_attachment(name, &asked, &mut network, inside.as_ref(), path)
            .await?;
        let mut after = before.clone();
        after.attachments.push(attachment.clone());
        self.store
            .commit(&[Change::Network(&network), Change::Endpoint(&after)])?;
        self.wanted
            .networks
            .insert(network.name.clone(), network.clone());
        self.wanted.endpoints.insert(name.clone(), after.clone());
        let made = async {
            let Some(inside) = &inside else {
                return self.hold_out(&after, &attachment).await;
            };
            let ends = self.attach(&after, &attachment, inside).await?;
            self.set_ways(&after, inside).await?;
            self.wait_usable(name, &attachment, ends, &inside.netlink)
                .await
        };
        if let Err(error) = made.await {
            self.detach(&after, &attachment).await;
            self.store.commit(&[Change::Endpoint(&before)])?;
            self.wanted.endpoints.insert(name.clone(), before.clone());
            // They may have followed already.
            let entered = self.enter_publishes(&before, &before.publishes);
            let mut leaving = after;
            for attachment in &mut leaving.attachments {
                attachment.removing |= attachment.network == network.name;
            }
            let ways = match &inside {
                Some(inside) => self.set_ways(&leaving, inside).await,
                None => Ok(()),
            };
            for undone in [entered, ways] {
                if let Err(error) = undone {
                    tracing::error!(endpoint = %name, error = %crate::chain(&error), "undoing");
                }
            }
            self.purge(Doomed::Unowned, Then::Nothing);
            return Err(error);
        }
        self.write_files(&after);
        tracing::info!(endpoint = %name, network = %network.name, "connected");
        self.endpoint_view(name)
    }

    pub async fn disconnect_endpoint(
        &mut self,
        network: &Name,
        name: &Name,
    ) -> Result<(), AgentError> {
        let endpoint = self.wanted_endpoint(name)?;
        if !self.wanted.networks.contains_key(network) {
            return Err(self.no_network(network));
        }
        match endpoint.attachment(network) {
            None => {
                return Err(NetworkError::NotConnected {
                    endpoint: name.clone(),
                    network: network.clone(),
                    has: endpoint.attached().map(|a| a.network.clone()).collect(),
                }
                .into());
            }
            Some(attachment) if attachment.removing => {
                return Err(AgentError::Removing(name.clone()));
            }
            Some(_) if endpoint.attached().count() == 1 => {
                return Err(NetworkError::Last {
                    endpoint: name.clone(),
                    network: network.clone(),
                }
                .into());
            }
            Some(_) => {}
        }
        let mut endpoint = endpoint.clone();
        for attachment in &mut endpoint.attachments {
            attachment.removing |= attachment.network == *network;
        }
        self.store.commit(&[Change::Endpoint(&endpoint)])?;
        self.wanted.endpoints.insert(name.clone(), endpoint);
        self.finish_disconnect(network, name).await
    }

    /// From marked to gone, but for its flows: see [`Agent::finish_removal`].
    pub(super) async fn finish_disconnect(
        &mut self,
        network: &Name,
        name: &Name,
    ) -> Result<(), AgentError> {
        let endpoint = self.wanted.endpoints.get(name).cloned();
        let endpoint = endpoint.ok_or_else(|| AgentError::NoEndpoint(name.clone()))?;
        let Some(attachment) = endpoint.attachment(network).cloned() else {
            return Ok(());
        };
        let report = |what: &str, error: &AgentError| {
            tracing::warn!(endpoint = %name, error = %crate::chain(error), "{what}");
        };
        // To another attachment, where there is one.
        if let Err(error) = self.enter_publishes(&endpoint, &endpoint.publishes) {
            report("its publishes lead to where it was", &error);
        }
        let ips: Vec<IpAddr> = attachment.ips().collect();
        self.hang_up(name, &ips, &endpoint.publishes);
        self.detach(&endpoint, &attachment).await;
        // What its namespace has of it, if that is still there.
        if let Ok(inside) = self.open_target(&endpoint)
            && let Ok(inside) = Inside::of(inside)
            && let Err(error) = self.set_ways(&endpoint, &inside).await
        {
            report("its routes are not as they should be", &error);
        }
        self.write_files(&endpoint);
        let then = Then::Detach {
            endpoint: name.clone(),
            network: network.clone(),
        };
        self.purge(Doomed::addresses(ips), then);
        Ok(())
    }

    /// An attachment of which nothing is left in the kernel.
    pub(super) fn forget_attachment(
        &mut self,
        name: &Name,
        network: &Name,
    ) -> Result<(), AgentError> {
        let Some(mut endpoint) = self.wanted.endpoints.get(name).cloned() else {
            return Ok(());
        };
        endpoint
            .attachments
            .retain(|a| a.network != *network || !a.removing);
        self.store.commit(&[Change::Endpoint(&endpoint)])?;
        self.wanted.endpoints.insert(name.clone(), endpoint);
        tracing::info!(endpoint = %name, %network, "disconnected");
        Ok(())
    }
}
