//! `netfw stats`.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use super::{
    Format, Global,
    output::{Table, print},
};
use crate::{
    api::types::{Counter, DropStats, Stats},
    publish::Publish,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Drops by reason, and of what endpoints sent by endpoint, instead of counters.
    #[arg(long)]
    drops: bool,
    /// Again and again, until Ctrl-C: packets and bytes a second, of an interval of so many seconds.
    #[arg(
        short,
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = "1",
        value_parser = clap::value_parser!(u64).range(1..=3600),
        conflicts_with = "drops"
    )]
    watch: Option<u64>,
}

pub fn run(global: &Global, args: Args) -> anyhow::Result<()> {
    if let Some(seconds) = args.watch {
        return watch(global, Duration::from_secs(seconds));
    }
    let stats = crate::block_on(global.client().stats())?;
    if args.drops {
        print(global.output, &stats.drops, |drops| show_drops(drops))
    } else {
        print(global.output, &stats, show)
    }
}

/// Rates, an interval after the other: each a table, or a line of JSON.
fn watch(global: &Global, interval: Duration) -> anyhow::Result<()> {
    /// The cursor to the corner, and all behind it away.
    const CLEAR: &str = "\x1b[H\x1b[J";
    let client = global.client();
    let ask = || {
        let stats = crate::block_on(client.stats())?;
        anyhow::Ok((stats, Instant::now()))
    };
    let mut before = ask()?;
    loop {
        std::thread::sleep(interval);
        let now = ask()?;
        let rates = rates(&before.0, &now.0, (now.1 - before.1).as_secs_f64());
        let mut out = io::stdout().lock();
        match global.output {
            Format::Json => writeln!(out, "{}", serde_json::to_string(&rates)?)?,
            Format::Table => {
                if out.is_terminal() {
                    write!(out, "{CLEAR}")?;
                }
                writeln!(out, "{}", table(&rates, &RATES))?;
            }
        }
        out.flush()?;
        drop(out);
        before = now;
    }
}

/// What came between two looks, a second. What is new counts from 0; what was reset counts as new.
pub(super) fn rates(before: &Stats, now: &Stats, seconds: f64) -> Stats {
    let rate = |old: Option<&Counter>, new: &Counter| {
        let old = old.copied().unwrap_or_default();
        let each = |old: u64, new: u64| {
            let came = new.checked_sub(old).unwrap_or(new);
            #[expect(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a rate"
            )]
            let rate = (came as f64 / seconds).round() as u64;
            rate
        };
        Counter {
            rx_packets: each(old.rx_packets, new.rx_packets),
            rx_bytes: each(old.rx_bytes, new.rx_bytes),
            tx_packets: each(old.tx_packets, new.tx_packets),
            tx_bytes: each(old.tx_bytes, new.tx_bytes),
        }
    };
    let mut rates = now.clone();
    for endpoint in &mut rates.endpoints {
        let old = before.endpoints.iter().find(|e| e.name == endpoint.name);
        endpoint.total = rate(old.map(|e| &e.total), &endpoint.total);
        for publish in &mut endpoint.publishes {
            let old = old.and_then(|e| e.publishes.iter().find(|p| p.publish == publish.publish));
            publish.counter = rate(old.map(|p| &p.counter), &publish.counter);
        }
    }
    for drop in &mut rates.drops {
        let old = before.drops.iter().find(|d| d.reason == drop.reason);
        let counter = |packets| Counter {
            rx_packets: packets,
            ..Counter::default()
        };
        let old = old.map(|d| counter(d.packets));
        drop.senders.clear();
        drop.packets = rate(old.as_ref(), &counter(drop.packets)).rx_packets;
    }
    rates
}

const TOTALS: [&str; 4] = ["RX PACKETS", "RX BYTES", "TX PACKETS", "TX BYTES"];
const RATES: [&str; 4] = ["RX PACKETS/S", "RX BYTES/S", "TX PACKETS/S", "TX BYTES/S"];

fn show(stats: &Stats) -> String {
    table(stats, &TOTALS)
}

fn table(stats: &Stats, headings: &[&str; 4]) -> String {
    let mut table = Table::new(&[&["ENDPOINT", "PUBLISH"], &headings[..]].concat());
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
    let mut table = Table::new(&["REASON", "PACKETS", "SENT BY", "WHAT IT MEANS"]);
    for d in drops {
        let senders = d.senders.iter();
        let senders: Vec<_> = senders
            .map(|s| format!("{} ({})", s.name, s.packets))
            .collect();
        table.row([
            d.reason.clone(),
            d.packets.to_string(),
            if senders.is_empty() {
                "-".into()
            } else {
                senders.join(", ")
            },
            d.description.clone(),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::EndpointStats;

    fn stats(name: &str, packets: u64, dropped: u64) -> Stats {
        Stats {
            endpoints: vec![EndpointStats {
                name: name.parse().unwrap(),
                total: Counter {
                    rx_packets: packets,
                    rx_bytes: packets * 100,
                    ..Counter::default()
                },
                publishes: Vec::new(),
            }],
            drops: vec![DropStats {
                reason: "leak".into(),
                description: String::new(),
                packets: dropped,
                senders: Vec::new(),
            }],
        }
    }

    #[test]
    fn rates_are_of_what_came_between() {
        let rates_of = |before: &Stats, now: &Stats| {
            let rates = rates(before, now, 2.0);
            let total = rates.endpoints[0].total;
            (total.rx_packets, total.rx_bytes, rates.drops[0].packets)
        };
        let before = stats("web", 100, 10);
        assert_eq!(rates_of(&before, &stats("web", 300, 14)), (100, 10_000, 2));
        assert_eq!(rates_of(&before, &before), (0, 0, 0));
        // Removed and added again, or another one.
        assert_eq!(rates_of(&before, &stats("web", 20, 10)), (10, 1000, 0));
        assert_eq!(rates_of(&before, &stats("db", 20, 10)), (10, 1000, 0));
    }
}
