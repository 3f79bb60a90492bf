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

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{SigHandler, Signal},
    unistd::geteuid,
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::{
    contender::Kind,
    plan::Plan,
    progress::Progress,
    report::{Report, compare::Comparison, docs, html},
};

/// netfw beside its alternatives: iptables, nftables, plain routing, and redirects that look at nothing
///
/// Ends with 0, with 1 if `--compare` finds that something of netfw's got worse, and with 2 if something
/// went wrong. A run that is stopped leaves the figures of the loads that were done.
#[derive(Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
struct Arguments {
    /// Two minutes: fewer and shorter rounds, fewer points
    #[arg(long)]
    quick: bool,
    #[arg(long, value_delimiter = ',', value_name = "NAMES", help = only_help())]
    only: Vec<String>,
    /// Numbers of publishes, instead of the plan's
    #[arg(long, value_delimiter = ',', value_name = "NUMBERS")]
    publishes: Vec<u32>,
    /// Rounds, instead of the plan's
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Where the report goes, as report.json and report.html [default: target/bench of the sources, or
    /// where the report of --from lies]
    #[arg(long, value_name = "DIRECTORY")]
    into: Option<PathBuf>,
    /// Measure nothing: show this report, and make the page anew
    #[arg(long, value_name = "REPORT.JSON", conflicts_with_all = ["quick", "only", "publishes", "rounds"])]
    from: Option<PathBuf>,
    /// Tell what got slower or faster since this report
    #[arg(long, value_name = "OLD.JSON")]
    compare: Option<PathBuf>,
    /// Write the figures into docs/benchmarks.md too, with charts and raw rounds
    #[arg(long)]
    docs: bool,
    /// Instead of all else: hold the programs' time per packet to the committed budget, or write that
    #[arg(long, value_name = "MODE", conflicts_with_all = ["quick", "only", "publishes", "rounds", "from", "compare", "docs"])]
    budget: Option<chore::programs::budget::Mode>,
}

const WORSE: u8 = 1;
const FAILED: u8 = 2;

fn main() -> ExitCode {
    // `| head` ends it as it does any tool. SAFETY: the default disposition runs no code of ours.
    let _ = unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let Some(mode) = arguments.budget {
        need_root()?;
        let _alone = alone()?;
        chore::programs::budget::run(mode)?;
        return Ok(ExitCode::SUCCESS);
    }
    // Whatever is wrong with these should not show only after half an hour.
    let old = arguments.compare.as_deref().map(Report::read).transpose()?;
    if arguments.docs {
        ensure!(
            !arguments.quick && arguments.only.is_empty(),
            "--docs keeps the figures of a whole run: it goes with neither --quick nor --only"
        );
        docs::check(&docs::directory())?;
    }

    let report = match &arguments.from {
        Some(from) => show(from, arguments.into.as_deref())?,
        None => measure(arguments)?,
    };
    if arguments.docs {
        docs::check_report(&report)?;
        let page = docs::update(&report, &docs::directory())?;
        println!("docs: {}", shown(&page));
    }
    let Some(old) = old else {
        return Ok(ExitCode::SUCCESS);
    };
    let comparison = Comparison::new(&old, &report);
    println!("\n{comparison}");
    Ok(if comparison.is_worse() {
        ExitCode::from(WORSE)
    } else {
        ExitCode::SUCCESS
    })
}

/// Shows a report that is there, and makes its page.
fn show(from: &Path, into: Option<&Path>) -> Result<Report> {
    let report = Report::read(from)?;
    println!("{report}");
    match into {
        Some(into) => {
            report.write(&into.join(REPORT))?;
            write_page(&report, into)?;
        }
        None => write_page(&report, from.parent().unwrap_or(Path::new("")))?,
    }
    Ok(report)
}

const REPORT: &str = "report.json";
const PAGE: &str = "report.html";

fn write_page(report: &Report, into: &Path) -> Result<()> {
    let page = into.join(PAGE);
    report::write(&page, &html::page(report)?)?;
    println!("page: {}", shown(&page));
    Ok(())
}

/// As short as one would type it.
fn shown(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or(path.to_owned());
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here)
        .unwrap_or(&path)
        .display()
        .to_string()
}

fn need_root() -> Result<()> {
    ensure!(
        geteuid().is_root(),
        "this makes network namespaces and loads BPF programs: run it as root, or by `cargo xtask bench`, which \
         uses sudo"
    );
    Ok(())
}

/// Two at once would measure each other.
fn alone() -> Result<Flock<File>> {
    const LOCK: &str = "/run/netfw-bench.lock";
    let file = File::create(LOCK).with_context(|| format!("cannot make {LOCK}"))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, error)| error)
        .with_context(|| format!("another bench is running (it has {LOCK}): wait for its end"))
}

/// Below, others' work is in the figures. In percent.
const IDLE: f64 = 90.0;

fn measure(arguments: &Arguments) -> Result<Report> {
    need_root()?;
    let _alone = alone()?;
    let mut plan = if arguments.quick {
        Plan::quick()
    } else {
        Plan::full()
    };
    if !arguments.publishes.is_empty() {
        plan.publishes.clone_from(&arguments.publishes);
    }
    if let Some(rounds) = arguments.rounds {
        plan.rounds = rounds.try_into().context("a number of rounds")?;
    }
    let only = Only::parse(&arguments.only)?;
    for publishes in &plan.publishes {
        contender::check_publishes(*publishes)?;
    }
    let into = arguments
        .into
        .clone()
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/bench"));

    let mut stages: Vec<_> = plan
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
    // On contenders of its own, with as few publishes as any.
    let million = load::million::loads(&plan);
    if let Some(&publishes) = plan.publishes.first()
        && million.iter().any(|load| only.takes_load(load.name()))
    {
        stages.push((publishes, million));
    }
    let mut chores = chore::all(&plan);
    chores.retain(|chore| only.takes_chore(chore.name()));
    let kinds = only.kinds();
    let for_loads: f64 = stages
        .iter()
        .map(|(_, loads)| stage::seconds(&kinds, loads, plan.rounds))
        .sum();
    let file = into.join(REPORT);
    let for_chores: f64 = chores.iter().map(|chore| chore.seconds(plan.rounds)).sum();
    let mut report = Report::new(report::machine::now());
    if let Some(idle) = report.machine.idle
        && idle < IDLE
    {
        eprintln!(
            "the machine is busy: only {idle:.0}% of its processors' time is free. Figures will be of what is left"
        );
    }
    report.keep_in(file.clone());
    // Before half an hour of measuring. What is there stays until there is something to keep.
    report::check_writable(&file)?;
    end_on_signals(file.clone())?;
    let progress = Progress::new(for_loads + for_chores);
    let mut all = || {
        for (publishes, loads) in &stages {
            let rounds = plan.rounds;
            stage::run(&kinds, *publishes, loads, rounds, &progress, &mut report)?;
        }
        for chore in &chores {
            progress.start(chore.name());
            let mut stage = chore::Stage {
                rounds: plan.rounds,
                progress: &progress,
                report: &mut report,
            };
            chore
                .run(&mut stage)
                .with_context(|| chore.name().to_owned())?;
            report.keep()?;
        }
        Ok(())
    };
    let done = all();
    if let Err(error) = done {
        progress.finish();
        report.keep()?;
        eprintln!("figures so far: {}", shown(&file));
        return Err(error);
    }
    progress.finish();
    report.finish()?;
    println!("\n{report}");
    println!("figures: {}", shown(&file));
    write_page(&report, &into)?;
    Ok(report)
}

/// On a signal this process ends at once, and says what is left of its work. Loads that are done are in
/// `file`; rounds of one that is not are of no use, as contenders would differ in number. Namespaces and
/// agents are the reaper's matter (`netfw_tests::reaper`), which takes them down when this process ends.
fn end_on_signals(file: PathBuf) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("waiting for signals")?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            let file = shown(&file);
            eprintln!(
                "\nstopped. Figures of the loads that were done: {file}\nto see them: cargo xtask bench --from {file}"
            );
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

fn only_help() -> String {
    format!(
        "Only these loads, chores and contenders, separated by commas. Loads: {}. Chores: {}. Contenders: {}",
        load::NAMES.join(", "),
        chore::NAMES.join(", "),
        kind_names().join(", ")
    )
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
