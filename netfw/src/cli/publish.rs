//! `netfw publish` and `netfw unpublish`.

use super::{
    Global,
    output::{allowed, print, warn},
};
use crate::{
    api::types::{Endpoint, PublishRequest},
    name::Name,
    publish::{Publish, Spec},
    source::Source,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The endpoint.
    name: Name,
    /// [[HOST_IP:]HOST_PORT[-END]:]CONTAINER_PORT[-END][/tcp|udp|sctp]; a HOST_PORT of 0, or none: a free
    /// one. Several are published together
    /// or not at all.
    #[arg(required = true, value_name = "PUBLISH")]
    publish: Vec<Spec>,
    /// Who may use these publishes: an address or a prefix of IPv4 or IPv6; may be given several times.
    /// Others' packets are dropped; the node's own processes always may. Default: those of the endpoint.
    #[arg(long, value_name = "CIDR")]
    allow_from: Vec<Source>,
}

#[derive(Debug, clap::Args)]
pub struct Withdraw {
    /// The endpoint.
    name: Name,
    /// [HOST_IP:]HOST_PORT[-END]:CONTAINER_PORT[-END][/tcp|udp|sctp]; several are withdrawn together
    /// or not at all.
    #[arg(required = true, value_name = "PUBLISH")]
    publish: Vec<Spec>,
}

pub fn publish(global: &Global, args: Args) -> anyhow::Result<()> {
    let request = PublishRequest {
        publish: args.publish,
        allow_from: args.allow_from.into(),
    };
    let endpoint = crate::block_on(global.client().publish(&args.name, &request))?;
    warn(global.output, &endpoint);
    print(global.output, &endpoint, list)
}

pub fn unpublish(global: &Global, args: Withdraw) -> anyhow::Result<()> {
    let endpoint = crate::block_on(global.client().unpublish(&args.name, args.publish))?;
    print(global.output, &endpoint, list)
}

/// What is published now.
fn list(endpoint: &Endpoint) -> String {
    endpoint
        .publishes
        .iter()
        .map(|p| format!("{}{}\n", Publish::from(p.clone()), allowed(p)))
        .collect()
}
