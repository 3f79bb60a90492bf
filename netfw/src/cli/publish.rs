//! `netfw publish` and `netfw unpublish`.

use super::{
    Global,
    output::{print, warn},
};
use crate::{
    api::types::Endpoint,
    name::Name,
    publish::{Publish, Spec},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The endpoint.
    name: Name,
    /// [HOST_IP:]HOST_PORT[-END]:CONTAINER_PORT[-END][/tcp|udp|sctp]; several are published together
    /// or not at all.
    #[arg(required = true, value_name = "PUBLISH")]
    publish: Vec<Spec>,
}

pub fn publish(global: &Global, args: Args) -> anyhow::Result<()> {
    let endpoint = crate::block_on(global.client().publish(&args.name, args.publish))?;
    warn(global.output, &endpoint);
    print(global.output, &endpoint, list)
}

pub fn unpublish(global: &Global, args: Args) -> anyhow::Result<()> {
    let endpoint = crate::block_on(global.client().unpublish(&args.name, args.publish))?;
    print(global.output, &endpoint, list)
}

/// What is published now.
fn list(endpoint: &Endpoint) -> String {
    endpoint
        .publishes
        .iter()
        .map(|p| format!("{}\n", Publish::from(p.clone())))
        .collect()
}
