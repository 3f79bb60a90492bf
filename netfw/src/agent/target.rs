//! From a document to the records that it wants, or what is wrong with it. Pure, but for sockets in the way
//! of new publishes: the caller brings what is there.
//!
//! What was chosen before (subnets, addresses, host ports, interfaces) stays, as long as the document does not
//! say otherwise. What only the moment of making can choose is left open: counters are 0, interface names
//! empty.
//!
//! | file | what |
//! |---|---|
//! | `networks` | subnets, bridges, rules |
//! | `endpoints` | namespaces, sharing, names |
//! | `addresses` | attachments and their addresses |
//! | `publishes` | host ports |

mod addresses;
mod endpoints;
mod networks;
mod publishes;

use std::{collections::HashMap, net::IpAddr};

use ipnet::Ipv6Net;

use super::{
    AgentError,
    ipam::Pool,
    network::DEFAULT_NETWORK,
    plan::Obstacle,
    ports::Ports,
    record::{Endpoint, Mode, Network, Wanted},
};
use crate::{api::types::Fault, document::Document, name::Name};

/// What of the node counts.
pub(super) struct Around<'a> {
    /// In the way of new networks; not those that there are.
    pub obstacles: &'a [Obstacle],
    pub prefix6: Ipv6Net,
    /// Or why it has none.
    pub ipv6: &'a Result<(), String>,
    pub locals: &'a HashMap<IpAddr, u32>,
    /// Names of interfaces.
    pub links: &'a [String],
}

/// What `document` wants, where `present` is there; and what is wrong with it, of which the rest is without.
pub(super) fn target(
    document: &Document,
    present: &Wanted,
    around: &Around<'_>,
    ports: Ports<'_>,
) -> (Wanted, Vec<Fault>) {
    let mut making = Making {
        document,
        present,
        around,
        wanted: Wanted {
            node: present.node.clone(),
            ..Wanted::default()
        },
        faults: Vec::new(),
    };
    making.networks();
    making.endpoints();
    making.addresses();
    making.sharing();
    making.check_names();
    making.publishes(ports);
    (making.wanted, making.faults)
}

/// Is something wrong with the endpoint, or with a part of it?
pub(super) fn is_faulty(faults: &[Fault], name: &Name) -> bool {
    let of = |fault: &Fault| fault.at.get(..2) == Some(&["endpoints".into(), name.to_string()][..]);
    faults.iter().any(of)
}

struct Making<'a> {
    document: &'a Document,
    present: &'a Wanted,
    around: &'a Around<'a>,
    wanted: Wanted,
    faults: Vec<Fault>,
}

/// Does a network's interface have to be made anew, to become the other one?
pub(super) fn is_replaced(before: &Network, after: &Network) -> bool {
    let shape = |n: &Network| {
        let pool = |pool: Option<Pool>| pool.map(|pool| (pool.subnet, pool.gateway));
        (pool(n.v4), pool(n.v6), n.mtu)
    };
    shape(before) != shape(after)
}

/// Is it another container that goes by the name?
pub(super) fn is_another(before: &Endpoint, after: &Endpoint) -> bool {
    let namespace = |e: &Endpoint| (e.namespace.path.clone(), e.namespace.made);
    before.mode != after.mode
        || (!matches!(before.mode, Mode::Container(_)) && namespace(before) != namespace(after))
}

impl Making<'_> {
    fn fault(&mut self, at: &[&str], error: impl Into<AgentError>) {
        self.faults.push(Fault {
            at: at.iter().map(|&part| part.to_owned()).collect(),
            error: crate::chain(&error.into()),
        });
    }
}

fn default_network() -> Name {
    DEFAULT_NETWORK.parse().expect("a constant that is a name")
}

#[cfg(test)]
mod tests;
