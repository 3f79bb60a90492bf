//! What got slower or faster between two runs (`--compare`).
//!
//! A machine is not the same from day to day, so the verdict is by the normalised ratio, where there is
//! one: how much a figure changed beside a contender of the same measure that no change of netfw's
//! touches. A difference counts only if it is larger than all the spreads that are in it, added up.

use std::{collections::BTreeSet, fmt};

use super::{Better, Machine, Measure, Report, stats, table};
use crate::contender::Kind;

/// Less is not worth a word, however steady the rounds are. In percent.
const LEAST: f64 = 2.0;

pub struct Comparison {
    /// What else differs between the runs.
    warnings: Vec<String>,
    differences: Vec<Difference>,
    /// Measured in one of the runs only.
    missing: Vec<String>,
}

/// A figure of both runs.
struct Difference {
    measure: String,
    unit: String,
    contender: String,
    at: Option<u64>,
    old: f64,
    new: f64,
    /// The same ratio of the contender that does not change, and its name.
    anchor: Option<(String, f64)>,
    /// What the rounds of both runs leave open, in percent; none with too few rounds.
    noise: Option<f64>,
    verdict: Verdict,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Slower,
    Faster,
    Same,
    /// One round has no spread.
    Unknown,
}

impl fmt::Display for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Slower => "worse",
            Self::Faster => "better",
            Self::Same => "",
            Self::Unknown => "too few rounds",
        })
    }
}

impl Comparison {
    pub fn new(old: &Report, new: &Report) -> Self {
        let mut differences = Vec::new();
        let mut missing = Vec::new();
        for measure in &new.measures {
            match old.measure(&measure.heading.id) {
                None => missing.push(format!("{}: in the new run only", measure.heading.title)),
                Some(before) if before.heading.unit != measure.heading.unit => {
                    missing.push(format!(
                        "{}: {} in the old run, {} in the new",
                        measure.heading.title, before.heading.unit, measure.heading.unit
                    ))
                }
                Some(before) => differences.extend(compare(before, measure)),
            }
        }
        for measure in &old.measures {
            if new.measure(&measure.heading.id).is_none() {
                missing.push(format!("{}: in the old run only", measure.heading.title));
            }
        }
        Self {
            warnings: warnings(old, new),
            differences,
            missing,
        }
    }

    /// Did something of netfw's get worse?
    pub fn is_worse(&self) -> bool {
        self.differences.iter().any(|difference| {
            difference.verdict == Verdict::Slower && difference.contender.starts_with("netfw")
        })
    }
}

fn warnings(old: &Report, new: &Report) -> Vec<String> {
    let Machine {
        kernel,
        cpu,
        cpus,
        memory_mib,
        versions,
        settings,
        idle: _,
    } = &old.machine;
    let now = &new.machine;
    let pairs = [
        ("kernel", kernel.clone(), now.kernel.clone()),
        ("CPU", cpu.clone(), now.cpu.clone()),
        ("CPUs", cpus.to_string(), now.cpus.to_string()),
        (
            "memory",
            format!("{memory_mib} MiB"),
            format!("{} MiB", now.memory_mib),
        ),
    ];
    let mut warnings: Vec<String> = pairs
        .into_iter()
        .filter(|(_, old, new)| old != new)
        .map(|(what, old, new)| format!("another {what}: {old}, now {new}"))
        .collect();
    if !warnings.is_empty() {
        warnings
            .push("so this is another machine, and ratios alone may be compared, if any".into());
    }
    for (old, new) in [(versions, &now.versions), (settings, &now.settings)] {
        let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        for name in names {
            let (old, new) = (old.get(name), new.get(name));
            if old != new {
                let value = |value: Option<&String>| value.cloned().unwrap_or("absent".to_owned());
                warnings.push(format!("{name}: {}, now {}", value(old), value(new)));
            }
        }
    }
    for (report, which) in [(old, "old"), (new, "new")] {
        if report.unfinished {
            warnings.push(format!("the {which} run was stopped before its end"));
        }
    }
    warnings
}

fn compare(old: &Measure, new: &Measure) -> Vec<Difference> {
    let mut differences = Vec::new();
    for figure in &new.figures {
        let Some(before) = old.figure(&figure.contender, figure.at) else {
            continue;
        };
        let ratio = figure.median() / before.median();
        if !ratio.is_finite() || ratio <= 0.0 {
            continue;
        }
        let anchor = anchors(&figure.contender).into_iter().find_map(|name| {
            let (before, now) = (old.figure(&name, figure.at)?, new.figure(&name, figure.at)?);
            let ratio = now.median() / before.median();
            (ratio.is_finite() && ratio > 0.0).then_some((name, ratio, before, now))
        });
        let mut involved = vec![before, figure];
        if let Some((_, _, before, now)) = anchor {
            involved.extend([before, now]);
        }
        let noise = involved
            .iter()
            .map(|figure| (figure.rounds.len() > 1).then(|| stats::spread(&figure.rounds)))
            .sum();
        let anchor = anchor.map(|(name, ratio, ..)| (name, ratio));
        let normalised = ratio / anchor.as_ref().map_or(1.0, |(_, ratio)| *ratio);
        differences.push(Difference {
            measure: new.heading.title.clone(),
            unit: match &new.heading.axis {
                Some(axis) => format!("{} by {axis}", new.heading.unit),
                None => new.heading.unit.clone(),
            },
            contender: figure.contender.clone(),
            at: figure.at,
            old: before.median(),
            new: figure.median(),
            anchor,
            noise,
            verdict: verdict(normalised, noise, new.heading.better),
        });
    }
    differences
}

/// Contenders that nothing of netfw's is in, the likest first. They have none themselves: which of them
/// changed would be anybody's guess.
pub fn anchors(contender: &str) -> Vec<String> {
    let kinds: &[Kind] = if contender.starts_with("netfw") && contender.ends_with("(XDP)") {
        &[Kind::RedirectXdp, Kind::Routing, Kind::Host]
    } else {
        &[Kind::Redirect, Kind::Routing, Kind::Host]
    };
    let all = [Kind::Redirect, Kind::RedirectXdp, Kind::Routing, Kind::Host];
    if all.iter().any(|kind| kind.to_string() == contender) {
        return Vec::new();
    }
    kinds.iter().map(Kind::to_string).collect()
}

/// `ratio` is new to old. What is better may be more or less; worse by 5 % is a twentieth more time per
/// packet, or a twentieth more of what is to be little.
fn verdict(ratio: f64, noise: Option<f64>, better: Better) -> Verdict {
    let Some(noise) = noise else {
        return Verdict::Unknown;
    };
    let bound = 1.0 + noise.max(LEAST) / 100.0;
    let cost = match better {
        Better::Higher => 1.0 / ratio,
        Better::Lower => ratio,
    };
    if cost > bound {
        Verdict::Slower
    } else if 1.0 / cost > bound {
        Verdict::Faster
    } else {
        Verdict::Same
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "Beside the older run:")?;
        for warning in &self.warnings {
            writeln!(out, "  {warning}")?;
        }
        let mut measure = None;
        let telling = |difference: &&Difference| difference.verdict != Verdict::Same;
        for difference in self.differences.iter().filter(telling) {
            if measure != Some(&difference.measure) {
                measure = Some(&difference.measure);
                writeln!(out, "\n{}: {}", difference.measure, difference.unit)?;
                writeln!(
                    out,
                    "  {:<22} {:>10} {:>12} {:>12} {:>7} {:>10} {:>7}",
                    "", "", "old", "new", "ratio", "normalised", "noise"
                )?;
            }
            difference.fmt(out)?;
        }
        if !self.missing.is_empty() {
            writeln!(out)?;
        }
        for missing in &self.missing {
            writeln!(out, "{missing}")?;
        }
        writeln!(out)?;
        let count = |verdict| {
            self.differences
                .iter()
                .filter(|difference| difference.verdict == verdict)
                .count()
        };
        writeln!(
            out,
            "{} worse, {} better, {} the same within noise, {} with too few rounds to tell.{}",
            count(Verdict::Slower),
            count(Verdict::Faster),
            count(Verdict::Same),
            count(Verdict::Unknown),
            if self.is_worse() {
                " netfw got worse."
            } else {
                " Nothing of netfw's got worse."
            }
        )?;
        writeln!(
            out,
            "Normalised: beside the bare redirect of the same hook, or routing. Noise: the spreads of both runs, \
             added up; a difference counts beyond it and {LEAST:.0}%."
        )
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ratio = self.new / self.old;
        let normalised = self.anchor.as_ref().map_or(String::new(), |(_, anchor)| {
            format!("{:.3}", ratio / anchor)
        });
        let line = format!(
            "  {:<22} {:>10} {:>12} {:>12} {ratio:>7.3} {normalised:>10} {:>7}  {}",
            self.contender,
            self.at.map_or(String::new(), table::grouped),
            table::number(self.old),
            table::number(self.new),
            self.noise
                .map_or(String::new(), |noise| format!("{noise:.1}%")),
            self.verdict
        );
        writeln!(out, "{}", line.trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Heading,
            tests::{heading, report},
        },
        *,
    };

    const NETFW: &str = "netfw (TC)";
    const REDIRECT: &str = "bare redirect (TC)";

    fn rate() -> Heading {
        Heading {
            better: Better::Higher,
            ..heading("packets-in")
        }
    }

    fn run(heading: &Heading, netfw: &[f64], redirect: &[f64]) -> Report {
        report(heading, &[(NETFW, None, netfw), (REDIRECT, None, redirect)])
    }

    fn verdicts(old: &Report, new: &Report) -> Vec<Verdict> {
        let comparison = Comparison::new(old, new);
        comparison
            .differences
            .iter()
            .map(|difference| difference.verdict)
            .collect()
    }

    #[test]
    fn a_slower_machine_is_no_slower_netfw() {
        let old = run(&rate(), &[100.0; 5], &[200.0; 5]);
        let new = run(&rate(), &[80.0; 5], &[160.0; 5]);
        assert_eq!(verdicts(&old, &new), [Verdict::Same, Verdict::Slower]);
        assert!(!Comparison::new(&old, &new).is_worse());
    }

    #[test]
    fn netfw_alone_got_slower() {
        let old = run(&rate(), &[100.0; 5], &[200.0; 5]);
        let new = run(&rate(), &[90.0; 5], &[200.0; 5]);
        assert_eq!(verdicts(&old, &new), [Verdict::Slower, Verdict::Same]);
        assert!(Comparison::new(&old, &new).is_worse());
        assert_eq!(verdicts(&new, &old), [Verdict::Faster, Verdict::Same]);
        assert!(!Comparison::new(&new, &old).is_worse());
        let shown = Comparison::new(&old, &new).to_string();
        assert!(
            shown.contains("0.900") && shown.contains("netfw got worse."),
            "{shown}"
        );
    }

    #[test]
    fn less_time_is_better() {
        let old = run(&heading("attach"), &[10.0; 5], &[10.0; 5]);
        let new = run(&heading("attach"), &[12.0; 5], &[10.0; 5]);
        assert_eq!(verdicts(&old, &new), [Verdict::Slower, Verdict::Same]);
        assert_eq!(verdicts(&new, &old), [Verdict::Faster, Verdict::Same]);
    }

    #[test]
    fn what_lies_within_the_spread_is_no_difference() {
        let old = run(&rate(), &[90.0, 92.0, 100.0, 108.0, 110.0], &[200.0; 5]);
        let new = run(&rate(), &[85.0, 88.0, 93.0, 100.0, 105.0], &[200.0; 5]);
        assert_eq!(verdicts(&old, &new), [Verdict::Same, Verdict::Same]);
    }

    #[test]
    fn one_round_is_no_ground_for_a_verdict() {
        let old = run(&rate(), &[100.0], &[200.0]);
        let new = run(&rate(), &[50.0], &[200.0]);
        assert_eq!(verdicts(&old, &new), [Verdict::Unknown, Verdict::Unknown]);
        assert!(!Comparison::new(&old, &new).is_worse());
    }

    #[test]
    fn other_machines_and_absent_measures_are_told() {
        let mut old = run(&rate(), &[100.0; 5], &[200.0; 5]);
        let new = run(&heading("attach"), &[100.0; 5], &[200.0; 5]);
        old.machine.kernel = "5.15.0".to_owned();
        old.machine
            .versions
            .insert("nginx".to_owned(), "another".to_owned());
        let shown = Comparison::new(&old, &new).to_string();
        assert!(shown.contains("another kernel: 5.15.0, now"), "{shown}");
        assert!(shown.contains("nginx: another, now"), "{shown}");
        assert!(shown.contains("in the old run only"), "{shown}");
        assert!(shown.contains("in the new run only"), "{shown}");
    }
}
