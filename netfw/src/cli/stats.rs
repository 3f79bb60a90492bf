//! `netfw stats`.

use super::{
    Global,
    output::{Table, print},
};
use crate::{
    api::types::{Counter, DropStats, Stats},
    publish::Publish,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Drops by reason instead of counters.
    #[arg(long)]
    drops: bool,
}

pub fn run(global: &Global, args: Args) -> anyhow::Result<()> {
    let stats = crate::block_on(global.client().stats())?;
    if args.drops {
        print(global.output, &stats.drops, |drops| show_drops(drops))
    } else {
        print(global.output, &stats, show)
    }
}

fn show(stats: &Stats) -> String {
    let mut table = Table::new(&[
        "ENDPOINT",
        "PUBLISH",
        "RX PACKETS",
        "RX BYTES",
        "TX PACKETS",
        "TX BYTES",
    ]);
    let cells = |c: &Counter| [c.rx_packets, c.rx_bytes, c.tx_packets, c.tx_bytes];
    for e in &stats.endpoints {
        let row = |publish: String, c: &Counter| {
            [e.name.to_string(), publish]
                .into_iter()
                .chain(cells(c).map(|n| n.to_string()))
                .collect::<Vec<_>>()
        };
        table.row(row("(total)".into(), &e.total));
        for p in &e.publishes {
            table.row(row(
                Publish::from(p.publish.clone()).to_string(),
                &p.counter,
            ));
        }
    }
    table.to_string()
}

fn show_drops(drops: &[DropStats]) -> String {
    let mut table = Table::new(&["REASON", "PACKETS", "WHAT IT MEANS"]);
    for d in drops {
        table.row([
            d.reason.clone(),
            d.packets.to_string(),
            d.description.clone(),
        ]);
    }
    table.to_string()
}
