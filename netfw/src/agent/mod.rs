//! The agent: it owns the wanted state and makes the node be so.
//!
//! | module | what |
//! |---|---|
//! | [`config`] | command line and file, resolved |
//! | [`record`] | the wanted state |
//! | [`store`] | the wanted state on disk |
//! | [`paths`] | directories, socket, the lock of an instance |
//! | [`ipam`], [`plan`], [`counter`], [`node`] | decisions, pure: addresses, networks, counter indexes, uplinks |
//! | [`start`] | from the store to a running node |
//! | [`network`], [`endpoint`], [`attachment`], [`publish`], [`ports`], [`flow`] | requests |
//! | [`owned`], [`docker`] | attachments of container runtimes, and what Docker wants otherwise |
//! | [`files`] | what containers find in `/etc` |
//! | [`names`] | what the name servers are told |
//! | [`doomed`], [`purge`] | which flows must go; the walk to them, in portions |
//! | [`xdp`] | XDP on uplinks |
//! | [`observe`], [`mend`] | what happens to the node meanwhile; what of it is undone |
//! | [`apply`], [`target`], [`steps`] | the node brought to what a document wants: what that is, and what is different |
//! | [`described`] | the wanted state as such a document |
//! | [`view`] | answers |
//! | [`interior`] | what a container has lost of what it was given |
//! | [`watch`], [`told`] | single packets, told as they come |
//! | [`notify`] | telling a service manager |
//! | [`capability`] | what the agent may do |
//! | [`run`] | the process: signals, socket, timers |
//! | [`down`] | everything away |
//!
//! All state lies in one [`Agent`] behind one lock, so changes happen one after the other. A change
//! is decided first (nothing touched yet), then written to the store, then made in the kernel; what
//! fails on the way is undone in both.

mod apply;
pub mod attachment;
pub mod capability;
pub mod config;
pub mod counter;
mod described;
pub mod docker;
mod doomed;
pub mod down;
pub mod endpoint;
pub mod error;
pub mod files;
pub mod flow;
pub mod interior;
pub mod ipam;
pub mod measure;
pub mod memory;
mod mend;
mod names;
pub mod network;
pub mod node;
mod notify;
pub mod observe;
pub mod owned;
pub mod paths;
pub mod plan;
mod ports;
pub mod publish;
pub mod purge;
pub mod record;
pub mod run;
pub mod saved;
pub mod start;
mod steps;
pub mod store;
mod target;
mod told;
pub mod view;
pub mod watch;
mod xdp;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use aya_log::EbpfLogger;
use tokio::sync::Notify;

pub use self::error::AgentError;
use self::{
    config::Config,
    counter::Indexes,
    docker::Waiting,
    mend::Patience,
    names::Names,
    purge::Purge,
    record::{Endpoint, NamespaceId, Wanted},
    store::Store,
};
use crate::{
    bpf::{DataPlane, Epoch, Filters, PacketEvents},
    metrics::Events,
    name::Name,
    net::{Netlink, sysctl::Directory},
};

/// Names an attachment: the endpoint, and the network.
pub type Place = (Name, Name);

pub struct Agent {
    config: Config,
    store: Store,
    /// What the store holds.
    wanted: Wanted,
    netlink: Netlink,
    dataplane: DataPlane,
    counters: Indexes,
    /// Attachments that wait for dockerd, since when and for which.
    waiting: HashMap<Place, Waiting>,
    /// The networks' bridges as they are.
    bridges: BTreeMap<Name, Bridge>,
    /// Attachments that are up, and the ifindex of their host side. What is wanted and not here is
    /// gone.
    up: BTreeMap<Place, u32>,
    /// Host sides that the agent has deleted, until netlink says so.
    deleted: BTreeSet<u32>,
    uplinks: BTreeMap<u32, UplinkState>,
    xdp: xdp::State,
    missing_uplinks: Vec<String>,
    locals: HashMap<IpAddr, u32>,
    /// The node's `net/ipv6/conf`, unless the kernel has no IPv6.
    conf6: Option<Directory>,
    /// Why the node has no IPv6, if so.
    ipv6: Result<(), String>,
    /// The namespaces of endpoints that are up, or were.
    namespaces: BTreeMap<Name, NamespaceId>,
    /// Since when endpoints that cannot come back are gone.
    lost: BTreeMap<Name, Instant>,
    patience: Patience,
    /// Interfaces whose filters are not put back at once.
    unfiltered: BTreeSet<u32>,
    /// Not carried out yet.
    purges: Vec<Purge>,
    /// Nor these, for which nobody waits; told when there are some.
    later: Vec<Purge>,
    purger: Arc<Notify>,
    names: Names,
    /// Why the node's own processes do not reach publishes, if so.
    sockets: Result<(), String>,
    mtu: u32,
    events: Events,
    started: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Bridge {
    ifindex: u32,
}

/// An uplink, and whether the programs run on it.
#[derive(Clone, Debug)]
struct UplinkState {
    uplink: node::Uplink,
    /// The hook's name, or why there is none.
    attached: Result<&'static str, String>,
}

impl Agent {
    /// What the programs log; to be read while `program_log` is configured.
    pub fn logger(&mut self) -> Result<Option<EbpfLogger<&'static dyn log::Log>>, AgentError> {
        Ok(self.dataplane.logger()?)
    }

    /// Who is told of packets, and what; once.
    pub fn take_watch(&mut self) -> Result<(Filters, PacketEvents), AgentError> {
        let taken = self.dataplane.take_watch();
        taken.ok_or_else(|| AgentError::Fault("the events are taken already".into()))
    }

    /// To be raised whenever the node's ways to the world may have changed.
    pub fn epoch(&self) -> Epoch {
        self.dataplane.epoch()
    }

    fn wanted_endpoint(&self, name: &Name) -> Result<&Endpoint, AgentError> {
        self.wanted
            .endpoints
            .get(name)
            .filter(|e| !e.removing)
            .ok_or_else(|| AgentError::NoEndpoint(name.clone()))
    }
}
