//! The figures: a table for people, JSON for programs.

use std::{fmt, fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::contender::Kind;

pub struct Report {
    measures: Vec<Measure>,
}

pub struct Measure {
    name: String,
    unit: &'static str,
    rounds: Vec<(Kind, Vec<f64>)>,
}

impl Measure {
    pub fn new(name: &str, unit: &'static str) -> Self {
        Self {
            name: name.to_owned(),
            unit,
            rounds: Vec::new(),
        }
    }

    pub fn add(&mut self, kind: Kind, rate: f64) {
        match self.rounds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, rates)) => rates.push(rate),
            None => self.rounds.push((kind, vec![rate])),
        }
    }

    fn median(&self, kind: Kind) -> Option<f64> {
        self.rounds
            .iter()
            .find(|(known, _)| *known == kind)
            .map(|(_, rates)| median(rates))
    }
}

impl Report {
    pub fn new() -> Self {
        Self {
            measures: Vec::new(),
        }
    }

    pub fn push(&mut self, measure: Measure) {
        self.measures.push(measure);
    }

    pub fn write(&self, file: &Path) -> Result<()> {
        let measures: Vec<_> = self
            .measures
            .iter()
            .map(|measure| {
                let contenders: Vec<_> = measure
                    .rounds
                    .iter()
                    .map(|(kind, rates)| {
                        json!({
                            "name": kind.to_string(),
                            "median": median(rates),
                            "rounds": rates,
                        })
                    })
                    .collect();
                json!({ "name": measure.name, "unit": measure.unit, "contenders": contenders })
            })
            .collect();
        let report = json!({ "machine": machine(), "measures": measures });
        if let Some(directory) = file.parent() {
            fs::create_dir_all(directory)
                .with_context(|| format!("cannot make {}", directory.display()))?;
        }
        fs::write(file, format!("{report:#}\n"))?;
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = machine();
        writeln!(
            out,
            "Linux {}, {} CPUs, {}",
            machine["kernel"].as_str().unwrap_or("?"),
            machine["cpus"],
            machine["model"].as_str().unwrap_or("?")
        )?;
        for measure in &self.measures {
            let base = measure.median(Kind::Iptables);
            writeln!(out, "\n{}, {}", measure.name, measure.unit)?;
            writeln!(
                out,
                "{:<24} {:>11} {:>11} {:>11} {:>11}",
                "", "median", "lowest", "highest", "x iptables"
            )?;
            for (kind, rates) in &measure.rounds {
                let (low, high) = rates
                    .iter()
                    .fold((f64::MAX, f64::MIN), |(low, high), &rate| {
                        (low.min(rate), high.max(rate))
                    });
                let median = median(rates);
                let ratio = base.map_or(String::new(), |base| format!("{:.2}", median / base));
                // A `Kind` does not pad itself, a `String` does.
                let name = kind.to_string();
                writeln!(
                    out,
                    "{name:<24} {median:>11.0} {low:>11.0} {high:>11.0} {ratio:>11}"
                )?;
            }
        }
        Ok(())
    }
}

fn median(rates: &[f64]) -> f64 {
    let mut sorted = rates.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

fn machine() -> serde_json::Value {
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    let model = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| line.strip_prefix("model name").map(str::to_owned))
        .map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_owned());
    json!({
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "model": model,
    })
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_the_one_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
