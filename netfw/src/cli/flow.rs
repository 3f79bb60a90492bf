//! `netfw flow ls|flush`.

use std::net::SocketAddr;

use super::{
    Global,
    output::{Table, print},
};
use crate::{
    api::types::{Flow, Tuple},
    filter::{FlowFilter, IpProtocol, Prefix, State},
    name::Name,
};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List translated flows, as `conntrack -L` does.
    Ls(Ls),
    /// Forget flows: packets that follow start new ones, or are refused.
    Flush {
        /// Of this endpoint only.
        #[arg(long, value_name = "NAME")]
        endpoint: Option<Name>,
    },
}

/// All that is said must hold.
#[derive(Debug, clap::Args)]
pub struct Ls {
    /// Of this endpoint only.
    #[arg(long, value_name = "NAME")]
    endpoint: Option<Name>,
    /// tcp, udp, sctp, icmp, icmpv6, or a number.
    #[arg(long)]
    protocol: Option<IpProtocol>,
    /// With one of these addresses, in either direction.
    #[arg(long, value_name = "IP|CIDR")]
    address: Option<Prefix>,
    /// With this port, in either direction; of a ping, its identifier.
    #[arg(long)]
    port: Option<u16>,
    #[arg(long)]
    state: Option<State>,
}

pub fn run(global: &Global, command: Command) -> anyhow::Result<()> {
    let client = global.client();
    match command {
        Command::Ls(ls) => {
            let filter = FlowFilter {
                endpoint: ls.endpoint,
                protocol: ls.protocol,
                address: ls.address,
                port: ls.port,
                state: ls.state,
            };
            let flows = crate::block_on(client.flows(&filter))?;
            print(global.output, &flows, |flows| table(flows))
        }
        Command::Flush { endpoint } => {
            let flushed = crate::block_on(client.flush(endpoint.as_ref()))?;
            print(global.output, &flushed, |f| match f.flows {
                1 => "1 flow forgotten\n".into(),
                n => format!("{n} flows forgotten\n"),
            })
        }
    }
}

fn table(flows: &[Flow]) -> String {
    let mut table = Table::new(&[
        "PROTO", "STATE", "LEFT", "ORIGINAL", "REPLY", "ORIGIN", "ENDPOINT",
    ]);
    for flow in flows {
        table.row([
            flow.protocol.clone(),
            flow.state.clone(),
            format!("{}s", flow.timeout),
            tuple(&flow.original, &flow.protocol),
            tuple(&flow.reply, &flow.protocol),
            flow.origin.clone(),
            flow.endpoint
                .as_ref()
                .map_or_else(|| "-".into(), Name::to_string),
        ]);
    }
    table.to_string()
}

fn tuple(t: &Tuple, protocol: &str) -> String {
    if protocol.starts_with("icmp") {
        // One of the two is the identifier, the other is 0.
        format!("{} -> {} id={}", t.src, t.dst, t.sport | t.dport)
    } else if protocol.parse::<u8>().is_ok() {
        // One without ports has no name here.
        format!("{} -> {}", t.src, t.dst)
    } else {
        let (src, dst) = (
            SocketAddr::new(t.src, t.sport),
            SocketAddr::new(t.dst, t.dport),
        );
        format!("{src} -> {dst}")
    }
}
