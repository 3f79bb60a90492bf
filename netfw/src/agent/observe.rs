//! What happens to the node while the agent runs: interfaces come and go, addresses change,
//! namespaces are deleted. The agent looks at everything anew and acts on the difference.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Agent, AgentError, Place, UplinkState,
    attachment::Inside,
    endpoint::place,
    mend::SHOWN,
    node,
    purge::{Doomed, Then},
    record::{Attachment, Endpoint},
};
use crate::{name::Name, net::Touched};

impl Agent {
    /// Brings uplinks, local addresses and endpoints in line with what the kernel has. Trouble
    /// with one interface is reported and does not keep others from being served.
    pub async fn observe(&mut self) -> Result<(), AgentError> {
        self.events.reconciles.inc();
        let links = self.netlink.links().await?;
        let addresses = self.netlink.addresses().await?;
        let view = node::observe(&links, &addresses, &self.config.uplinks);
        if view.locals != self.locals {
            if let Err(error) = self.dataplane.set_locals(&view.locals) {
                tracing::warn!(error = %crate::chain(&error), "not all of the node's addresses are served");
            }
            let before = std::mem::replace(&mut self.locals, view.locals);
            if before.keys().any(|ip| !self.locals.contains_key(ip)) {
                self.purge(Doomed::Foreign, Then::Nothing);
            }
        }
        self.deleted
            .retain(|ifindex| view.present.contains(ifindex));
        self.follow_uplinks(view.uplinks);
        // The kernel tells nobody of a link that was detached.
        self.unfiltered.extend(self.uplinks.keys());
        self.mend_sockets();
        self.follow_xdp(&links);
        for name in &view.missing {
            if !self.missing_uplinks.contains(name) {
                tracing::warn!(uplink = %name, "there is no such interface: it will be served when it appears");
            }
        }
        self.missing_uplinks = view.missing;
        self.mtu = view.mtu;
        let gone: Vec<Place> = self
            .up
            .iter()
            .filter(|(_, ifindex)| !view.present.contains(ifindex))
            .map(|(place, _)| place.clone())
            .collect();
        for (name, network) in gone {
            tracing::warn!(
                endpoint = %name,
                %network,
                "gone: its namespace or veth pair was deleted"
            );
            self.clear_away(&name, &network).await;
        }
        self.adopt().await;
        // Last: it makes interfaces that are not in this view.
        let mended = self.mend(&links).await;
        self.sweep_lost(SHOWN).await?;
        self.set_names();
        mended
    }

    /// What is left in the kernel of an attachment whose veth pair is gone.
    async fn clear_away(&mut self, name: &Name, network: &Name) {
        let Some(endpoint) = self.wanted.endpoints.get(name).cloned() else {
            return;
        };
        let Some(attachment) = endpoint.attachment(network) else {
            return;
        };
        self.take_down(&endpoint, attachment).await;
        self.wanted.gone.insert(place(&endpoint, attachment));
        if !self.is_up(&endpoint) {
            if let Err(error) = self.withdraw_publishes(&endpoint.publishes) {
                tracing::warn!(endpoint = %name, %error, "its publishes were not withdrawn");
            }
            return;
        }
        // It has other networks.
        if let Err(error) = self.enter_publishes(&endpoint, &endpoint.publishes) {
            tracing::warn!(endpoint = %name, %error, "its publishes do not lead to another network");
        }
        let inside = self.open_target(&endpoint).map(Inside::of);
        if let Ok(Ok(inside)) = inside
            && let Err(error) = self.set_ways(&endpoint, &inside).await
        {
            tracing::warn!(endpoint = %name, %error, "its routes are left as they are");
        }
        self.write_files(&endpoint);
    }

    /// Is what happened to interfaces no more than the agent's own doing? Then there is nothing to look at:
    /// with a thousand endpoints, a look at all interfaces takes longer than to add one more.
    pub fn expects(&mut self, touched: &Touched) -> bool {
        let gone: Vec<bool> = touched
            .gone
            .iter()
            .map(|ifindex| self.deleted.remove(ifindex))
            .collect();
        let is_veth = |ifindex: &u32| {
            // They are said to have changed before they are said to be gone.
            touched.gone.contains(ifindex)
                || self.deleted.contains(ifindex)
                || self.up.values().any(|up| up == ifindex)
        };
        let is_bridge = |ifindex: &u32| self.bridges.values().any(|b| b.ifindex == *ifindex);
        // An end in a container that comes up is to be prepared for XDP; and one that comes to be there, to be
        // adopted.
        !self.xdp.is_active()
            && !self.is_awaited(touched.links.iter().copied())
            && gone.iter().all(|known| *known)
            && touched.links.iter().all(|i| is_veth(i) || is_bridge(i))
            // What is up stays so, unless somebody else has his way.
            && !touched.down.iter().any(|i| self.is_own(i))
            && !touched.left.iter().any(|i| self.up.values().any(|up| up == i))
            && touched
                .addresses
                .iter()
                .all(|i| is_veth(i) && !self.locals.values().any(|at| at == i))
    }

    fn is_own(&self, ifindex: &u32) -> bool {
        self.up.values().any(|up| up == ifindex)
            || self.bridges.values().any(|b| b.ifindex == *ifindex)
    }

    /// Whose host side is that?
    pub(super) fn attachment_at(&self, ifindex: u32) -> Option<(&Endpoint, &Attachment)> {
        let ((endpoint, network), _) = self.up.iter().find(|(_, up)| **up == ifindex)?;
        let endpoint = self.wanted.endpoints.get(endpoint)?;
        Some((endpoint, endpoint.attachment(network)?))
    }

    /// Interfaces whose programs may be filters.
    pub fn filtered(&self) -> BTreeSet<u32> {
        let uplinks = self.uplinks.keys().copied();
        self.up.values().copied().chain(uplinks).collect()
    }

    fn follow_uplinks(&mut self, now: BTreeMap<u32, node::Uplink>) {
        // Also those that an agent before us served and that are none any more.
        let attached = self.dataplane.attached();
        let ours: Vec<u32> = self
            .uplinks
            .keys()
            .copied()
            .chain(attached.iter().copied())
            .filter(|ifindex| !now.contains_key(ifindex))
            .filter(|ifindex| !self.up.values().any(|up| up == ifindex))
            .collect();
        for ifindex in ours {
            let name = self.uplinks.remove(&ifindex).map(|s| s.uplink.name);
            tracing::info!(uplink = name, ifindex, "no uplink any more");
            if let Err(error) = self.dataplane.detach(ifindex) {
                tracing::warn!(ifindex, %error, "not detached");
            }
            if let Err(error) = self.dataplane.remove_uplink(ifindex) {
                tracing::warn!(ifindex, %error, "not removed");
            }
        }
        for (ifindex, uplink) in now {
            if let Some(known) = self.uplinks.get_mut(&ifindex)
                && known.attached.is_ok()
                && !attached.contains(&ifindex)
            {
                known.attached = Err("somebody removed its pins".to_owned());
            }
            let known = self.uplinks.get(&ifindex);
            if known.is_some_and(|k| k.uplink == uplink && k.attached.is_ok()) {
                continue;
            }
            let served_before = known.map(|k| k.attached.is_ok());
            let attached = self.serve(ifindex, &uplink);
            match (&attached, served_before) {
                // Said before.
                (Ok(_), Some(true)) | (Err(_), Some(false)) => {}
                (Ok(hook), _) => match uplink.closed {
                    None => tracing::info!(uplink = %uplink.name, hook, "serving"),
                    Some(why) => tracing::info!(uplink = %uplink.name, hook, why, "closed"),
                },
                (Err(error), _) => tracing::warn!(uplink = %uplink.name, error, "not served"),
            }
            self.uplinks
                .insert(ifindex, UplinkState { uplink, attached });
        }
    }

    /// The record last: nothing is sent by an interface that the guard does not watch.
    fn serve(&mut self, ifindex: u32, uplink: &node::Uplink) -> Result<&'static str, String> {
        let attached = match self.uplinks.get(&ifindex) {
            Some(UplinkState {
                attached: Ok(hook), ..
            }) => Ok(*hook),
            _ => self.attach_uplink(ifindex, uplink),
        };
        let recorded = if attached.is_ok() && uplink.closed.is_none() {
            self.dataplane.set_uplink(ifindex, &uplink.record)
        } else {
            self.dataplane.remove_uplink(ifindex)
        };
        recorded.map_err(|e| crate::chain(&e))?;
        attached
    }

    pub(super) fn attach_uplink(
        &mut self,
        ifindex: u32,
        uplink: &node::Uplink,
    ) -> Result<&'static str, String> {
        let attached = if uplink.is_ethernet() {
            self.dataplane.attach_uplink(ifindex, &uplink.name)
        } else {
            self.dataplane.attach_tunnel(ifindex, &uplink.name)
        };
        match attached {
            Ok(attachment) => Ok(attachment.name()),
            Err(error) => Err(crate::chain(&error)),
        }
    }
}
