//! netfw beside its alternatives, in one run on one machine (`cargo xtask bench`).
//!
//! * [`contender`]: the ways from a client to a container that are compared
//! * [`load`]: what they are loaded with
//! * [`chore`]: what is measured without traffic, such as the time to attach a container
//! * [`stage`]: all contenders under one load after the other, in turns
//! * [`report`]: the figures
//!
//! Medians are compared, and the spread is shown. Figures from different runs are hardly comparable,
//! and none is a promise for other machines.

mod chore;
mod contender;
mod cpu;
mod frames;
mod load;
mod plan;
mod progress;
mod report;
mod stage;

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use crate::{contender::Kind, plan::Plan, progress::Progress, report::Report};

#[derive(Parser)]
#[command(name = "cargo xtask bench", about = "netfw beside its alternatives")]
struct Arguments {
    /// Two minutes: fewer and shorter rounds, fewer points
    #[arg(long)]
    quick: bool,
    /// Only these loads, chores and contenders: names of any, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    only: Vec<String>,
    /// Numbers of publishes, instead of the plan's
    #[arg(long, value_delimiter = ',')]
    publishes: Vec<u32>,
    /// Rounds, instead of the plan's
    #[arg(long)]
    rounds: Option<usize>,
    /// Where the report goes: report.json
    #[arg(long, default_value = "target/bench", value_name = "DIRECTORY")]
    into: PathBuf,
    /// Instead of all else: hold the programs' time per packet to the committed budget, or write that
    #[arg(long, value_name = "MODE")]
    budget: Option<chore::programs::budget::Mode>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    netfw_tests::require_root();
    if let Some(mode) = arguments.budget {
        return chore::programs::budget::run(mode);
    }
    let mut plan = if arguments.quick {
        Plan::quick()
    } else {
        Plan::full()
    };
    if !arguments.publishes.is_empty() {
        plan.publishes.clone_from(&arguments.publishes);
    }
    plan.rounds = arguments.rounds.unwrap_or(plan.rounds);
    let only = Only::parse(&arguments.only)?;

    let stages: Vec<_> = plan
        .publishes
        .iter()
        .enumerate()
        .map(|(place, &publishes)| {
            let mut loads = load::all(&plan, publishes, place == 0);
            loads.retain(|load| only.takes_load(load.name()));
            (publishes, loads)
        })
        .filter(|(_, loads)| !loads.is_empty())
        .collect();
    let mut chores = chore::all(&plan);
    chores.retain(|chore| only.takes_chore(chore.name()));
    let kinds = only.kinds();
    let for_loads: f64 = stages
        .iter()
        .map(|(_, loads)| stage::seconds(&kinds, loads, plan.rounds))
        .sum();
    let for_chores: f64 = chores.iter().map(|chore| chore.seconds(plan.rounds)).sum();
    let progress = Progress::new(for_loads + for_chores);
    let mut report = Report::new(report::machine::now());
    for (publishes, loads) in &stages {
        stage::run(
            &kinds,
            *publishes,
            loads,
            plan.rounds,
            &progress,
            &mut report,
        )?;
    }
    for chore in &chores {
        let mut stage = chore::Stage {
            rounds: plan.rounds,
            progress: &progress,
            report: &mut report,
        };
        let name = chore.name();
        chore
            .run(&mut stage)
            .with_context(|| format!("chore {name}"))?;
    }
    progress.finish();
    println!("\n{report}");
    let file = arguments.into.join("report.json");
    report.write(&file)?;
    println!("figures: {}", file.display());
    Ok(())
}

/// What `--only` leaves.
struct Only {
    /// And chores.
    loads: Vec<String>,
    kinds: Vec<Kind>,
}

impl Only {
    fn parse(names: &[String]) -> Result<Self> {
        let mut only = Self {
            loads: Vec::new(),
            kinds: Vec::new(),
        };
        for name in names {
            if let Ok(kind) = <Kind as clap::ValueEnum>::from_str(name, false) {
                only.kinds.push(kind);
            } else {
                let known = [load::NAMES, chore::NAMES].concat();
                ensure!(
                    known.contains(&name.as_str()),
                    "{name:?} is neither a load or a chore ({}) nor a contender ({})",
                    known.join(", "),
                    kind_names().join(", ")
                );
                only.loads.push(name.clone());
            }
        }
        Ok(only)
    }

    fn takes_load(&self, name: &str) -> bool {
        self.loads.is_empty() || self.loads.iter().any(|load| load == name)
    }

    /// Chores have contenders of their own: who names some of the others' does not ask for chores.
    fn takes_chore(&self, name: &str) -> bool {
        match self.loads.is_empty() {
            true => self.kinds.is_empty(),
            false => self.takes_load(name),
        }
    }

    fn kinds(&self) -> Vec<Kind> {
        Kind::ALL
            .into_iter()
            .filter(|kind| self.kinds.is_empty() || self.kinds.contains(kind))
            .collect()
    }
}

fn kind_names() -> Vec<String> {
    <Kind as clap::ValueEnum>::value_variants()
        .iter()
        .filter_map(clap::ValueEnum::to_possible_value)
        .map(|value| value.get_name().to_owned())
        .collect()
}
