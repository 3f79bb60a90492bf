//! The agent's endpoints: those that are gone, and what others have lost inside.

use super::{Area, Finding, State, command};
use crate::{
    agent::interior::Interior,
    api::types::{Endpoint, EndpointState},
    name::Name,
};

/// An endpoint, and what is in its namespace.
pub struct Member {
    pub endpoint: Endpoint,
    /// None where it cannot be looked at, or there is none but the node's.
    pub interior: Option<Interior>,
}

impl Member {
    pub fn look(endpoint: &Endpoint) -> Self {
        let own = !endpoint.networks.is_empty();
        let look = || crate::block_on(Interior::look(&endpoint.netns)).ok();
        Self {
            endpoint: endpoint.clone(),
            interior: own.then(look).flatten(),
        }
    }

    pub fn judge(&self, instance: &Name) -> Vec<Finding> {
        let Self { endpoint, interior } = self;
        let name = &endpoint.name;
        let check = |found: String| Finding::ok(Area::Networks, format!("endpoint {name}"), found);
        let mut findings = Vec::new();
        if endpoint.state == EndpointState::Gone {
            let remove = command(instance, &format!("endpoint rm {name}"));
            findings.push(
                check("gone: its namespace or veth pair was deleted".into())
                    .but(State::Warn, format!("{remove} clears it away")),
            );
        }
        let losses = interior
            .iter()
            .flat_map(|interior| interior.losses(endpoint));
        findings.extend(losses.map(|loss| {
            let remedy = match loss.command {
                Some(inside) => {
                    let exec = command(instance, &format!("exec {name}"));
                    format!("{} -- {inside}`", exec.trim_end_matches('`'))
                }
                None => format!(
                    "{}, and add it again",
                    command(instance, &format!("endpoint rm {name}"))
                ),
            };
            check(loss.what).but(State::Warn, remedy)
        }));
        // That nobody of a family may use a publish is its maker's will as a rule.
        findings.extend(endpoint.warnings.iter().map(|warning| {
            let inspect = command(instance, &format!("endpoint inspect {name}"));
            check(warning.clone()).but(State::Note, format!("{inspect} shows all of it"))
        }));
        findings
    }
}
