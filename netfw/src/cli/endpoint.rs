//! `netfw endpoint add|ls|inspect|rm`.

use std::net::IpAddr;

use clap::{CommandFactory, error::ErrorKind};

use super::{
    Global,
    output::{Table, joined, outside, print, warn},
};
use crate::{
    api::types::{Endpoint, EndpointRequest, EndpointState, NamespaceRequest},
    name::{Mac, Name},
    publish::{Publish, Spec},
};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Attach a container's network namespace to a network.
    Add(Add),
    /// List endpoints.
    Ls,
    /// Show everything about an endpoint.
    Inspect { name: Name },
    /// Detach a container; a namespace that `add` made goes too.
    Rm { name: Name },
}

#[derive(Debug, clap::Args)]
pub struct Add {
    /// The endpoint's name; without --netns and --pid also the name of the namespace that is made.
    name: Name,
    /// The network to join.
    #[arg(long, value_name = "NETWORK", default_value = "bridge")]
    network: Name,
    /// Attach this namespace: a name under /run/netns, or a path.
    #[arg(long, value_name = "NAME|PATH", conflicts_with = "pid")]
    netns: Option<String>,
    /// Attach the network namespace of this process.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pid: Option<u32>,
    /// The container's address; one of each family may be given. Default: the next free one.
    #[arg(long)]
    ip: Vec<IpAddr>,
    /// The container's MAC address. Default: derived from its address.
    #[arg(long)]
    mac: Option<Mac>,
    /// [HOST_IP:]HOST_PORT[-END]:CONTAINER_PORT[-END][/tcp|udp|sctp]; may be given several times.
    /// An IPv6 address stands in brackets.
    #[arg(short, long, value_name = "PUBLISH")]
    publish: Vec<Spec>,
}

pub fn run(global: &Global, command: Command) -> anyhow::Result<()> {
    let client = global.client();
    match command {
        Command::Add(add) => {
            let request = add.request()?;
            let endpoint = crate::block_on(client.add_endpoint(&request))?;
            warn(global.output, &endpoint);
            print(global.output, &endpoint, |e| {
                let mut text = format!("{}   {}\n", e.name, addresses(e));
                for publish in &e.publishes {
                    text += &format!("{}\n", Publish::from(publish.clone()));
                }
                text
            })
        }
        Command::Ls => {
            let endpoints = crate::block_on(client.endpoints())?;
            print(global.output, &endpoints, |all| table(all))
        }
        Command::Inspect { name } => {
            let endpoint = crate::block_on(client.endpoint(&name))?;
            print(global.output, &endpoint, details)
        }
        Command::Rm { name } => {
            crate::block_on(client.remove_endpoint(&name))?;
            let removed = serde_json::json!({ "removed": name });
            print(global.output, &removed, |_| String::new())
        }
    }
}

impl Add {
    fn request(self) -> anyhow::Result<EndpointRequest> {
        let namespace = match (self.netns, self.pid) {
            (Some(text), _) if text.contains('/') => {
                Some(NamespaceRequest::Path(std::path::absolute(text)?))
            }
            (Some(name), _) => Some(NamespaceRequest::Name(name)),
            (None, Some(pid)) => Some(NamespaceRequest::Pid(pid)),
            (None, None) => None,
        };
        let (mut ip, mut ip6) = (None, None);
        for asked in self.ip {
            let twice = match asked {
                IpAddr::V4(asked) => ip.replace(asked).is_some(),
                IpAddr::V6(asked) => ip6.replace(asked).is_some(),
            };
            if twice {
                super::Cli::command()
                    .error(
                        ErrorKind::ArgumentConflict,
                        "--ip may be given once for each family",
                    )
                    .exit();
            }
        }
        Ok(EndpointRequest {
            name: self.name,
            network: Some(self.network),
            namespace,
            ip,
            ip6,
            mac: self.mac,
            publish: self.publish,
        })
    }
}

fn addresses(e: &Endpoint) -> String {
    joined([e.ip.map(IpAddr::V4), e.ip6.map(IpAddr::V6)])
}

fn state(state: EndpointState) -> &'static str {
    match state {
        EndpointState::Up => "up",
        EndpointState::Gone => "gone",
    }
}

fn publishes(endpoint: &Endpoint) -> String {
    let all: Vec<String> = endpoint
        .publishes
        .iter()
        .map(|p| {
            let outside = outside(p.host_ip, p.host_ports);
            format!("{outside}->{}/{}", p.container_ports, p.protocol)
        })
        .collect();
    all.join(", ")
}

fn table(endpoints: &[Endpoint]) -> String {
    let mut table = Table::new(&["NAME", "STATE", "NETWORK", "IP", "NETNS", "PORTS"]);
    for e in endpoints {
        table.row([
            e.name.to_string(),
            state(e.state).into(),
            e.network.to_string(),
            addresses(e),
            e.netns.display().to_string(),
            publishes(e),
        ]);
    }
    table.to_string()
}

fn details(e: &Endpoint) -> String {
    let mut table = Table::new(&["name", e.name.as_str()]);
    let mut row = |key: &str, value: String| table.row([key.to_owned(), value]);
    row("state", state(e.state).into());
    row("network", e.network.to_string());
    let with_length = |ip: IpAddr, length: Option<u8>| match length {
        Some(length) => format!("{ip}/{length}"),
        None => ip.to_string(),
    };
    let ips = [
        e.ip.map(|ip| with_length(ip.into(), e.prefix_len)),
        e.ip6.map(|ip| with_length(ip.into(), e.prefix_len6)),
    ];
    row("address", joined(ips));
    row("gateway", joined([e.gateway, e.gateway6]));
    row("mac", e.mac.to_string());
    row(
        "netns",
        format!(
            "{}{}",
            e.netns.display(),
            if e.netns_made { " (made by netfw)" } else { "" }
        ),
    );
    row("interface", e.interface.clone());
    row(
        "host interface",
        match e.host_ifindex {
            Some(index) => format!("{} (index {index})", e.host_interface),
            None => format!("{} (gone)", e.host_interface),
        },
    );
    row("ports", publishes(e));
    table.to_string()
}
