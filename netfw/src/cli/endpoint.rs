//! `netfw endpoint add|ls|inspect|rm`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clap::{CommandFactory, error::ErrorKind};

use super::{
    Global,
    output::{Table, allowed, joined, outside, print, warn},
};
use crate::{
    api::types::{self, Attachment, Endpoint, EndpointRequest, EndpointState, NamespaceRequest},
    mode::Mode,
    name::{Mac, Name, NameLink},
    publish::{Exposed, Publish, Spec},
    source::Source,
};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Attach a container's network namespace to a network.
    Add(Box<Add>),
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
    /// The network to join; or none, host, container:NAME, as with `docker run`.
    #[arg(long, value_name = "NETWORK", default_value = "bridge")]
    network: Mode,
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
    /// [[HOST_IP:]HOST_PORT[-END]:]CONTAINER_PORT[-END][/tcp|udp|sctp]; may be given several times. A
    /// HOST_PORT of 0, or none: a free one.
    /// An IPv6 address stands in brackets.
    #[arg(short, long, value_name = "PUBLISH")]
    publish: Vec<Spec>,
    /// Who may use the endpoint's publishes, these and later ones: an address or a prefix of IPv4 or IPv6;
    /// may be given several times. Others' packets are dropped; the node's own processes always may.
    /// Default: the agent's `allow_from`, or everybody.
    #[arg(long, value_name = "CIDR")]
    allow_from: Vec<Source>,
    /// A port that the container serves: PORT[-END][/tcp|udp|sctp]; may be given several times.
    #[arg(long, value_name = "PORT")]
    expose: Vec<Exposed>,
    /// Publish what --expose names, on free ports.
    #[arg(short = 'P', long)]
    publish_all: bool,
    /// Another name for it in the network; may be given several times, and to several endpoints.
    #[arg(long, value_name = "NAME")]
    alias: Vec<Name>,
    /// A name for another endpoint of the network, for this one alone: OTHER[:ALIAS].
    #[arg(long, value_name = "OTHER[:ALIAS]")]
    link: Vec<NameLink>,
}

pub fn run(global: &Global, command: Command) -> anyhow::Result<()> {
    let client = global.client();
    match command {
        Command::Add(add) => {
            let request = add.request()?;
            let endpoint = crate::block_on(client.add_endpoint(&request))?;
            warn(global.output, &endpoint);
            print(global.output, &endpoint, |e| {
                let mut text = summary(e);
                for publish in &e.publishes {
                    let allowed = allowed(publish);
                    text += &format!("{}{allowed}\n", Publish::from(publish.clone()));
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
        let (ip, ip6) = one_of_each(self.ip);
        Ok(EndpointRequest {
            name: self.name,
            network: Some(self.network),
            namespace,
            ip,
            ip6,
            mac: self.mac,
            publish: self.publish,
            allow_from: self.allow_from.into(),
            expose: self.expose,
            publish_all: self.publish_all,
            aliases: self.alias,
            links: self.link,
            owned: None,
        })
    }
}

/// What `--ip` names.
pub fn one_of_each(asked: Vec<IpAddr>) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    let (mut ip, mut ip6) = (None, None);
    for asked in asked {
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
    (ip, ip6)
}

/// A line that says what an endpoint is now.
pub fn summary(e: &Endpoint) -> String {
    format!("{}   {}", e.name, addresses(e))
        .trim_end()
        .to_owned()
        + "\n"
}

fn addresses(e: &Endpoint) -> String {
    let each = |a: &Attachment| joined([a.ip.map(IpAddr::V4), a.ip6.map(IpAddr::V6)]);
    let all: Vec<String> = e.networks.iter().map(each).collect();
    all.join(", ")
}

/// All that it is in, or what it has instead.
fn networks(e: &Endpoint) -> String {
    if e.networks.is_empty() {
        return e.network.to_string();
    }
    let all: Vec<&str> = e.networks.iter().map(|a| a.network.as_str()).collect();
    all.join(", ")
}

fn state(state: EndpointState) -> &'static str {
    match state {
        EndpointState::Up => "up",
        EndpointState::Gone => "gone",
    }
}

fn publishes(endpoint: &Endpoint, and: fn(&types::Publish) -> String) -> String {
    let all: Vec<String> = endpoint
        .publishes
        .iter()
        .map(|p| {
            let outside = outside(p.host_ip, p.host_ports);
            format!("{outside}->{}/{}{}", p.container_ports, p.protocol, and(p))
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
            networks(e),
            addresses(e),
            e.netns.display().to_string(),
            publishes(e, |_| String::new()),
        ]);
    }
    table.to_string()
}

fn details(e: &Endpoint) -> String {
    let mut table = Table::new(&["name", e.name.as_str()]);
    let mut row = |key: &str, value: String| table.row([key.to_owned(), value]);
    row("state", state(e.state).into());
    if e.networks.is_empty() {
        row("network", e.network.to_string());
    }
    row(
        "netns",
        format!(
            "{}{}",
            e.netns.display(),
            if e.netns_made { " (made by netfw)" } else { "" }
        ),
    );
    row("ports", publishes(e, allowed));
    if !e.allow_from.is_empty() {
        row("allow from", e.allow_from.to_string());
    }
    if !e.exposed.is_empty() {
        let all: Vec<String> = e.exposed.iter().map(Exposed::to_string).collect();
        row("exposed", all.join(", "));
    }
    if !e.links.is_empty() {
        let all: Vec<String> = e.links.iter().map(NameLink::to_string).collect();
        row("links", all.join(", "));
    }
    for a in &e.networks {
        row("network", a.network.to_string());
        let with_length = |ip: IpAddr, length: Option<u8>| match length {
            Some(length) => format!("{ip}/{length}"),
            None => ip.to_string(),
        };
        let ips = [
            a.ip.map(|ip| with_length(ip.into(), a.prefix_len)),
            a.ip6.map(|ip| with_length(ip.into(), a.prefix_len6)),
        ];
        row("  address", joined(ips));
        row("  gateway", joined([a.gateway, a.gateway6]));
        let ways = [
            a.default_route.then_some("IPv4"),
            a.default_route6.then_some("IPv6"),
        ];
        let ways = joined(ways);
        row(
            "  default route",
            if ways.is_empty() { "-".into() } else { ways },
        );
        if !a.aliases.is_empty() {
            let all: Vec<&str> = a.aliases.iter().map(Name::as_str).collect();
            row("  aliases", all.join(", "));
        }
        if let Some(owner) = &a.owner {
            row("  owner", owner.to_string());
        }
        row("  mac", a.mac.to_string());
        let index = a.wiring.as_ref().and_then(|w| w.ifindex);
        row("  interface", indexed(&a.interface, index));
        row(
            "  host interface",
            match a.host_ifindex {
                None => format!("{} (gone)", a.host_interface),
                index => indexed(&a.host_interface, index),
            },
        );
        let Some(wiring) = &a.wiring else {
            continue;
        };
        if let Some(bridge) = &a.bridge {
            row("  bridge", indexed(bridge, wiring.bridge_ifindex));
        }
        let macs = wiring.macs.iter().map(|known| {
            let whose = if known.own { "host side" } else { "learned" };
            format!("{} ({whose})", known.mac)
        });
        row("  behind its port", macs.collect::<Vec<_>>().join(", "));
    }
    for warning in &e.warnings {
        row("warning", warning.clone());
    }
    table.to_string()
}

fn indexed(interface: &str, index: Option<u32>) -> String {
    match index {
        Some(index) => format!("{interface} (index {index})"),
        None => interface.to_owned(),
    }
}
