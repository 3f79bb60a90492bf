//! `netfw network create|ls|inspect|rm|connect|disconnect`.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Global,
    endpoint::{one_of_each, summary},
    output::{Table, joined, print},
};
use crate::{
    api::types::{ConnectRequest, Network, NetworkDetails, NetworkRequest},
    name::{Mac, Name},
    rules::{Filter, Nat},
};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Create a network.
    Create(Create),
    /// List networks.
    Ls,
    /// Show everything about a network, and who is in it.
    Inspect { name: Name },
    /// Remove a network that has no endpoints.
    Rm { name: Name },
    /// Give an endpoint an interface in a further network.
    Connect(Connect),
    /// Take an endpoint out of a network.
    Disconnect { network: Name, endpoint: Name },
}

#[derive(Debug, clap::Args)]
pub struct Connect {
    network: Name,
    endpoint: Name,
    /// The container's address; one of each family may be given. Default: the next free one.
    #[arg(long)]
    ip: Vec<IpAddr>,
    /// The interface's MAC address. Default: derived from its address.
    #[arg(long)]
    mac: Option<Mac>,
    /// Another name for it in this network; may be given several times.
    #[arg(long, value_name = "NAME")]
    alias: Vec<Name>,
}

#[derive(Debug, clap::Args)]
pub struct Create {
    name: Name,
    /// Its subnet; one of each family may be given. Default: a free one of IPv4.
    #[arg(long, value_name = "CIDR")]
    subnet: Vec<IpNet>,
    /// The gateway's address in a subnet that is given. Default: its first.
    #[arg(long, value_name = "IP")]
    gateway: Vec<IpAddr>,
    /// With a free IPv6 subnet, if none is given.
    #[arg(long)]
    ipv6: bool,
    /// No way out or in.
    #[arg(long)]
    internal: bool,
    /// Containers are reached by their own addresses from outside, published or not. Implies
    /// --no-masquerade.
    #[arg(long)]
    routed: bool,
    /// What containers send to the world keeps their own addresses.
    #[arg(long)]
    no_masquerade: bool,
    /// How masquerade maps a container's ports.
    #[arg(long, value_name = "KIND", default_value = "port-restricted")]
    nat: Nat,
    /// Who may send to a port that --nat endpoint-independent has mapped.
    #[arg(long, value_name = "KIND")]
    filter: Option<Filter>,
    /// Of its interfaces, in bytes. Default: the narrowest uplink's.
    #[arg(long, value_name = "BYTES")]
    mtu: Option<u32>,
    /// A note, for whoever looks for it in `network inspect`; may be given several times.
    #[arg(long, value_name = "KEY[=VALUE]", value_parser = label)]
    label: Vec<(String, String)>,
}

pub fn run(global: &Global, command: Command) -> anyhow::Result<()> {
    let client = global.client();
    match command {
        Command::Create(create) => {
            let created = crate::block_on(client.create_network(&create.request()))?;
            print(global.output, &created, |d| {
                let n = &d.network;
                format!("{}   {}\n", n.name, joined([n.subnet, n.subnet6]))
            })
        }
        Command::Ls => {
            let networks = crate::block_on(client.networks())?;
            print(global.output, &networks, |all| table(all))
        }
        Command::Inspect { name } => {
            let network = crate::block_on(client.network(&name))?;
            print(global.output, &network, details)
        }
        Command::Rm { name } => {
            crate::block_on(client.remove_network(&name))?;
            let removed = serde_json::json!({ "removed": name });
            print(global.output, &removed, |_| String::new())
        }
        Command::Connect(connect) => {
            let (ip, ip6) = one_of_each(connect.ip);
            let request = ConnectRequest {
                endpoint: connect.endpoint,
                ip,
                ip6,
                mac: connect.mac,
                aliases: connect.alias,
                owned: None,
            };
            let endpoint = crate::block_on(client.connect_endpoint(&connect.network, &request))?;
            print(global.output, &endpoint, summary)
        }
        Command::Disconnect { network, endpoint } => {
            let endpoint = crate::block_on(client.disconnect_endpoint(&network, &endpoint))?;
            print(global.output, &endpoint, summary)
        }
    }
}

impl Create {
    fn request(self) -> NetworkRequest {
        NetworkRequest {
            name: self.name,
            subnets: self.subnet,
            gateways: self.gateway,
            ipv6: self.ipv6,
            internal: self.internal,
            routed: self.routed,
            masquerade: !self.no_masquerade,
            nat: self.nat,
            filter: self.filter,
            mtu: self.mtu,
            labels: self.label.into_iter().collect(),
        }
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    match key.is_empty() {
        true => Err("a label has a key: write KEY=VALUE, or KEY alone".into()),
        false => Ok((key.to_owned(), value.to_owned())),
    }
}

/// What of a network's rules is not as usual.
fn rules(n: &Network) -> String {
    let mut words = Vec::new();
    let r = &n.rules;
    if r.internal {
        words.push("internal".to_owned());
    }
    if r.routed {
        words.push("routed".into());
    }
    if !r.masquerade {
        words.push("no masquerade".into());
    }
    if r.nat == Nat::EndpointIndependent {
        words.push(format!("{} NAT, {} filter", r.nat.name(), r.filter.name()));
    }
    if words.is_empty() {
        return "-".into();
    }
    words.join(", ")
}

fn table(networks: &[Network]) -> String {
    let mut table = Table::new(&["NAME", "BRIDGE", "SUBNET", "MTU", "ENDPOINTS", "RULES"]);
    for n in networks {
        table.row([
            n.name.to_string(),
            n.bridge.clone(),
            joined([n.subnet, n.subnet6]),
            n.mtu.to_string(),
            n.endpoints.to_string(),
            rules(n),
        ]);
    }
    table.to_string()
}

fn details(d: &NetworkDetails) -> String {
    let n = &d.network;
    let mut head = Table::new(&["name", n.name.as_str()]);
    let mut row = |key: &str, value: String| head.row([key.to_owned(), value]);
    row("bridge", n.bridge.clone());
    row("subnet", joined([n.subnet, n.subnet6]));
    row("gateway", joined([n.gateway, n.gateway6]));
    row("mac", n.mac.to_string());
    row("mtu", n.mtu.to_string());
    row("rules", rules(n));
    for (key, value) in &n.labels {
        row("label", format!("{key}={value}"));
    }
    let mut members = Table::new(&["ENDPOINT", "IP", "MAC"]);
    for m in &d.members {
        members.row([
            m.name.to_string(),
            joined([m.ip.map(IpAddr::V4), m.ip6.map(IpAddr::V6)]),
            m.mac.to_string(),
        ]);
    }
    if d.members.is_empty() {
        return head.to_string();
    }
    format!("{head}\n{members}")
}
