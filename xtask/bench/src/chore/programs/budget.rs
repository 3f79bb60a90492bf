//! The programs' time, held to a budget: `cargo xtask verify` and `cargo xtask test` have it checked.
//!
//! This is no test, and no test asserts on time. It can hold where a time in nanoseconds could not,
//! because it compares with the reference's time on the same CPU in the same moment, gives half as
//! much on top, and asks again before it complains.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::{Case, in_site};
use crate::report::stats;

/// Multiples of the reference's time.
type Budget = BTreeMap<String, f64>;

/// How far above the budget a multiple may lie: other processors do this and that faster.
const ALLOWED: f64 = 1.5;

/// Blocks of runs; and how often it is measured before it is too much, or a budget.
const BLOCKS: usize = 25;
const ATTEMPTS: u32 = 4;

const HEAD: &str = "\
# Time per packet of each program, in multiples of a reference's time (xtask/bench/ebpf/src/reference.rs).
# `cargo xtask verify` fails at half as much again; `cargo xtask verify --update` writes what it saw.

";

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Mode {
    /// Compare with the budget
    Check,
    /// Write what was seen as the new budget
    Update,
}

/// Measures, and compares or writes.
pub fn run(mode: Mode) -> Result<()> {
    let file = file();
    match mode {
        Mode::Check => {
            let budget = read(&file)?;
            let seen = lowest(&budget)?;
            print!("{}", table(&seen, &budget));
            let wrong = compare(&seen, &budget);
            if !wrong.is_empty() {
                bail!(
                    "{}\nIf it is worth it: `cargo xtask verify --update`, and commit {}",
                    wrong.join("\n"),
                    file.display()
                );
            }
        }
        Mode::Update => {
            let seen = medians()?;
            print!("{}", table(&seen, &Budget::new()));
            fs::write(&file, text(&seen))
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
    }
    Ok(())
}

/// The multiples of these cases. Each time the programs are loaded anew: where their maps happen to
/// lie in memory makes a difference to new flows.
fn measure(cases: &[Case]) -> Result<Budget> {
    in_site(|bench| {
        let measured = cases.iter().map(|&case| {
            let cost = bench.cost(case, BLOCKS)?;
            Ok((case.to_string(), cost.multiple))
        });
        measured.collect()
    })
}

/// Of every case what it costs at best: those over their budget are measured again.
fn lowest(budget: &Budget) -> Result<Budget> {
    let mut seen = Budget::new();
    let mut cases = Case::all();
    for _ in 0..ATTEMPTS {
        for (name, multiple) in measure(&cases)? {
            let lowest = seen.entry(name).or_insert(multiple);
            *lowest = lowest.min(multiple);
        }
        cases.retain(|case| {
            let name = case.to_string();
            let limit = budget.get(&name).map_or(f64::INFINITY, |one| one * ALLOWED);
            seen.get(&name).is_some_and(|&multiple| multiple > limit)
        });
        if cases.is_empty() {
            break;
        }
    }
    Ok(seen)
}

/// Of every case the median of some attempts.
fn medians() -> Result<Budget> {
    let mut all: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for _ in 0..ATTEMPTS {
        for (name, multiple) in measure(&Case::all())? {
            all.entry(name).or_default().push(multiple);
        }
    }
    let medians = all.into_iter();
    Ok(medians
        .map(|(name, multiples)| (name, stats::median(&multiples)))
        .collect())
}

/// What is wrong, a line each.
fn compare(seen: &Budget, budget: &Budget) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, multiple) in seen {
        match budget.get(name) {
            None => wrong.push(format!("{name}: {multiple:.2}, and no budget")),
            Some(limit) if *multiple > limit * ALLOWED => wrong.push(format!(
                "{name}: {multiple:.2} times the reference's time, budget {limit:.2}, and more than \
                 {ALLOWED} times that"
            )),
            Some(_) => {}
        }
    }
    let gone = budget.keys().filter(|name| !seen.contains_key(*name));
    wrong.extend(gone.map(|name| format!("{name}: in the budget, but nobody measures it")));
    wrong
}

fn table(seen: &Budget, budget: &Budget) -> String {
    let mut table = "x reference    budget    program and packet\n".to_owned();
    for (name, multiple) in seen {
        let limit = budget
            .get(name)
            .map_or("none".to_owned(), |limit| format!("{limit:.2}"));
        let _ = writeln!(table, "{multiple:>11.2} {limit:>9}    {name}");
    }
    table
}

fn text(budget: &Budget) -> String {
    let mut text = HEAD.to_owned();
    for (name, multiple) in budget {
        let _ = writeln!(text, "\"{name}\" = {multiple:.2}");
    }
    text
}

/// Beside the verifier's.
fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/speed-budget.toml")
}

fn read(file: &Path) -> Result<Budget> {
    let text =
        fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    toml::from_str(&text).with_context(|| format!("{} is no budget", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(entries: &[(&str, f64)]) -> Budget {
        let entries = entries.iter();
        entries
            .map(|&(name, value)| (name.to_owned(), value))
            .collect()
    }

    #[test]
    fn a_budget_comes_back_from_its_text() {
        let written = budget(&[("uplink TC: refused, IPv4", 1.25), ("other", 3.0)]);
        let read: Budget = toml::from_str(&text(&written)).expect("a budget");
        assert_eq!(read, written);
    }

    #[test]
    fn the_budget_in_the_repository_names_every_case() {
        let budget = read(&file()).expect("a budget");
        let cases: Budget = Case::all()
            .iter()
            .map(|case| (case.to_string(), 0.0))
            .collect();
        assert_eq!(compare(&cases, &budget), Vec::<String>::new());
    }

    #[test]
    fn what_is_over_missing_or_gone_is_told() {
        let limits = budget(&[("fast", 1.0), ("slow", 1.0), ("gone", 1.0)]);
        let seen = budget(&[("fast", 1.4), ("slow", 1.6), ("new", 1.0)]);
        let wrong = compare(&seen, &limits);
        let names: Vec<&str> = wrong
            .iter()
            .filter_map(|line| line.split(':').next())
            .collect();
        assert_eq!(names, ["new", "slow", "gone"]);
    }
}
