//! `netfw port`: published ports, as `docker port` prints them.

use serde::Serialize;

use super::{
    Global,
    output::{self, Table, print},
};
use crate::{
    api::types::{Endpoint, Publish},
    name::Name,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Of this endpoint only.
    name: Option<Name>,
}

/// What `-o json` prints: a list of these.
#[derive(Serialize)]
struct Port {
    endpoint: Name,
    #[serde(flatten)]
    publish: Publish,
}

pub fn run(global: &Global, args: Args) -> anyhow::Result<()> {
    let client = global.client();
    let one = args.name.is_some();
    let endpoints: Vec<Endpoint> = match args.name {
        Some(name) => vec![crate::block_on(client.endpoint(&name))?],
        None => crate::block_on(client.endpoints())?,
    };
    let ports: Vec<Port> = endpoints
        .into_iter()
        .flat_map(|e| {
            let name = e.name;
            e.publishes.into_iter().map(move |publish| Port {
                endpoint: name.clone(),
                publish,
            })
        })
        .collect();
    print(global.output, &ports, |ports| {
        if one {
            return ports
                .iter()
                .map(|p| {
                    let allowed = output::allowed(&p.publish);
                    format!(
                        "{} -> {}{allowed}\n",
                        inside(&p.publish),
                        outside(&p.publish)
                    )
                })
                .collect();
        }
        let mut headings = vec!["ENDPOINT", "CONTAINER PORT", "HOST PORT"];
        let restricted = ports.iter().any(|p| !p.publish.allow_from.is_empty());
        if restricted {
            headings.push("ALLOW FROM");
        }
        let mut table = Table::new(&headings);
        for p in ports {
            let allowed = restricted.then(|| p.publish.allow_from.to_string());
            let cells = [
                p.endpoint.to_string(),
                inside(&p.publish),
                outside(&p.publish),
            ];
            table.row(cells.into_iter().chain(allowed));
        }
        table.to_string()
    })
}

fn inside(p: &Publish) -> String {
    format!("{}/{}", p.container_ports, p.protocol)
}

fn outside(p: &Publish) -> String {
    output::outside(p.host_ip, p.host_ports)
}
