//! netfw beside iptables and plain routing, in one run on one machine (`cargo xtask bench`).
//!
//! Two measures, each for every [`contender`]:
//! * [`packets`]: small UDP packets per second that one core brings into a container;
//! * [`connections`]: new HTTP connections per second, with few publishes and with many.
//!
//! All contenders stand at the same time, each in namespaces of its own, and take turns round by
//! round: what the machine does meanwhile hits all alike. Medians are compared, and the spread is
//! shown. Figures from different runs are not comparable, and none is a promise for other machines.

mod connections;
mod contender;
mod cpu;
mod packets;
mod report;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use clap::Parser;

use crate::{
    contender::{Contender, Kind},
    report::{Measure, Report},
};

#[derive(Parser)]
#[command(about = "netfw beside iptables and plain routing")]
struct Arguments {
    /// One short round each: shows that it works, not how fast it is
    #[arg(long)]
    quick: bool,
    /// Only these contenders
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Kind>,
    /// Numbers of publishes to measure connections with
    #[arg(long, value_delimiter = ',', default_values_t = [10, 10_000])]
    publishes: Vec<u16>,
    /// Where the figures go, as JSON
    #[arg(long, default_value = "target/bench/datapath.json")]
    json: PathBuf,
}

struct Plan {
    rounds: usize,
    packets: Duration,
    connections: Duration,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    netfw_tests::require_root();
    let plan = if arguments.quick {
        Plan {
            rounds: 1,
            packets: Duration::from_millis(300),
            connections: Duration::from_millis(500),
        }
    } else {
        Plan {
            rounds: 7,
            packets: Duration::from_secs(1),
            connections: Duration::from_secs(2),
        }
    };
    let kinds: Vec<Kind> = Kind::ALL
        .into_iter()
        .filter(|kind| arguments.only.is_empty() || arguments.only.contains(kind))
        .collect();

    let mut report = Report::new();
    report.push(measure_packets(&kinds, &plan)?);
    for &publishes in &arguments.publishes {
        report.push(measure_connections(&kinds, publishes, &plan)?);
    }
    println!("\n{report}");
    report
        .write(&arguments.json)
        .with_context(|| format!("cannot write {}", arguments.json.display()))?;
    println!("figures: {}", arguments.json.display());
    Ok(())
}

fn measure_packets(kinds: &[Kind], plan: &Plan) -> Result<Measure> {
    println!("small UDP packets: setting up {} contenders", kinds.len());
    let mut lanes = Vec::new();
    for &kind in kinds {
        let contender = Contender::set_up(kind, 10)
            .and_then(packets::Lane::new)
            .with_context(|| format!("setting up {kind}"))?;
        lanes.push((kind, contender));
    }
    let mut measure = Measure::new("small UDP packets on one core", "packets/s");
    for round in 1..=plan.rounds {
        for (kind, lane) in &mut lanes {
            let rate = lane
                .run(plan.packets)
                .with_context(|| format!("packets through {kind}"))?;
            println!("round {round}: {kind:<24} {:>8.3} M packets/s", rate / 1e6);
            measure.add(*kind, rate);
        }
    }
    Ok(measure)
}

fn measure_connections(kinds: &[Kind], publishes: u16, plan: &Plan) -> Result<Measure> {
    println!("new HTTP connections, {publishes} publishes: setting up");
    let mut lanes = Vec::new();
    for &kind in kinds.iter().filter(|kind| kind.has_addresses()) {
        let lane = Contender::set_up(kind, publishes)
            .and_then(connections::Lane::new)
            .with_context(|| format!("setting up {kind} with {publishes} publishes"))?;
        lanes.push((kind, lane));
    }
    let name = format!("new HTTP connections, {publishes} publishes");
    let mut measure = Measure::new(&name, "connections/s");
    for round in 1..=plan.rounds {
        for (kind, lane) in &mut lanes {
            let rate = lane
                .run(plan.connections)
                .with_context(|| format!("connections through {kind}"))?;
            println!("round {round}: {kind:<24} {rate:>8.0} connections/s");
            measure.add(*kind, rate);
        }
    }
    Ok(measure)
}
