//! What netfw must reach (DESIGN, section 7), and whether a run shows that it does.
//!
//! The worst point of a measure decides, and medians are judged strictly: the spread is shown, and said
//! to be larger than the distance where it is, but saves nobody. Of "flat" alone nothing is said where the
//! spread is larger than what was lost: two figures that differ by less are not known to differ.
//!
//! The points of an axis are measured minutes apart, and a machine drifts. So "flat" is judged beside a
//! contender on which what grows has no bearing, see [`anchors`], where that was measured; and not at all
//! where that one moved too far itself.

mod rules;

use std::fmt;

use serde::Serialize;

use self::rules::{Judged, REASONS, RULES, Rule};
use super::{Better, Figure, Measure, Report, compare::anchors, stats, table};

#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Target {
    pub id: &'static str,
    pub what: &'static str,
    pub wanted: String,
    /// What was measured, with its spread; none where it was not.
    pub seen: Option<String>,
    pub verdict: Verdict,
    /// What is known to stand in the way, of a target that is missed.
    pub reason: Option<&'static str>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Met,
    Missed,
    /// Measured, and not clear enough to say.
    Undecided,
    Unmeasured,
}

impl fmt::Display for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Met => "met",
            Self::Missed => "not met",
            Self::Undecided => "undecided",
            Self::Unmeasured => "not measured",
        })
    }
}

/// Fewer are too few to tell noise from a difference.
const ENOUGH_ROUNDS: usize = 5;

/// In percent.
const FLAT: f64 = 5.0;

/// By how many percent a contender may move that has no reason to: further, and something else was at work.
const DRIFT: f64 = 15.0;

/// What was seen, and what it means.
struct Seen {
    text: String,
    verdict: Verdict,
    /// How far the figure is from its limit, and how far its rounds lie apart, in the same unit.
    distance: f64,
    spread: f64,
    rounds: usize,
}

/// Said once where rounds are few.
pub const FEW_ROUNDS: &str = "Rounds are few: each of these may be otherwise in a run of its own. What a whole run \
    found is in docs/benchmarks.md.";

/// Are there too few rounds for the targets to be relied on?
pub fn has_few_rounds(report: &Report) -> bool {
    let figures = report.measures.iter().flat_map(|measure| &measure.figures);
    figures
        .map(|figure| figure.rounds.len())
        .max()
        .is_some_and(|rounds| rounds < ENOUGH_ROUNDS)
}

/// All targets, those that were not measured too.
pub fn judge(report: &Report) -> Vec<Target> {
    let target = |rule: &Rule| {
        let seen = rule.judged.look_at(report);
        let verdict = match &seen {
            None => Verdict::Unmeasured,
            Some(seen) => seen.verdict,
        };
        let reason = REASONS.iter().find(|(id, _)| *id == rule.id);
        Target {
            id: rule.id,
            what: rule.what,
            wanted: rule.judged.wanted(),
            seen: seen.map(|seen| seen.to_string()),
            verdict,
            reason: reason
                .filter(|_| verdict == Verdict::Missed)
                .map(|&(_, reason)| reason),
        }
    };
    RULES.iter().map(target).collect()
}

impl Judged {
    fn wanted(&self) -> String {
        match self {
            Self::Share { least, .. } if *least < 1.0 => format!("at least {:.0}%", least * 100.0),
            Self::Share { least, .. } if *least == 1.0 => "more".to_owned(),
            Self::Share { least, .. } => format!("at least {least:.0}x"),
            Self::Flat { .. } => format!("within {FLAT:.0}%"),
            Self::Most { limit, unit, .. } => format!("at most {limit:.0} {unit}"),
        }
    }

    fn look_at(&self, report: &Report) -> Option<Seen> {
        match *self {
            Self::Share {
                measure,
                of,
                to,
                least,
            } => least_share(report.measure(measure)?, of, to, least),
            Self::Flat {
                measure,
                of,
                further,
            } => {
                let further = further.and_then(|(id, at)| Some((report.measure(id)?, at)));
                steepest(report.measure(measure)?, of, further)
            }
            Self::Most {
                measure,
                at,
                limit,
                unit,
            } => highest(report.measure(measure)?, at, limit, unit),
        }
    }
}

fn least_share(measure: &Measure, of: &str, to: &str, least: f64) -> Option<Seen> {
    let mut shares = Vec::new();
    for at in measure.points() {
        let (Some(ours), Some(theirs)) = (measure.figure(of, at), measure.figure(to, at)) else {
            continue;
        };
        let share = ours.median() / theirs.median();
        if share.is_finite() {
            shares.push((share, at, ours, theirs));
        }
    }
    let points = shares.len();
    let (share, at, ours, theirs) = shares.into_iter().min_by(|a, b| a.0.total_cmp(&b.0))?;
    let spread = share * (spread(ours) + spread(theirs)) / 100.0;
    let figure = if least < 1.0 {
        format!("{:.0}% \u{b1}{:.0}%", share * 100.0, spread * 100.0)
    } else {
        format!("{share:.2}x \u{b1}{spread:.2}x")
    };
    Some(Seen {
        text: format!(
            "{figure}{}{}",
            place(measure, at),
            of_points("the least", points)
        ),
        verdict: Verdict::met(if least == 1.0 {
            share > least
        } else {
            share >= least
        }),
        distance: (share - least).abs(),
        spread,
        rounds: ours.rounds.len().min(theirs.rounds.len()),
    })
}

fn steepest(measure: &Measure, of: &[&str], further: Option<(&Measure, u64)>) -> Option<Seen> {
    let mut found: Option<(f64, Seen)> = None;
    for contender in of {
        // Where each point lies: in which measure, and where there.
        let mut points: Vec<(u64, &Measure, Option<u64>)> = measure
            .points()
            .into_iter()
            .filter_map(|at| Some((at?, measure, at)))
            .collect();
        if let Some((more, at)) = further
            && !points.iter().any(|&(known, ..)| known == at)
        {
            points.extend(more.points().last().map(|&place| (at, more, place)));
        }
        points.retain(|(_, measure, place)| measure.figure(contender, *place).is_some());
        let Some((&first, others)) = points.split_first() else {
            continue;
        };
        for &point in others {
            let Some((ratio, own_spread, rounds)) = change(contender, first, point) else {
                continue;
            };
            let anchor = anchors(contender)
                .into_iter()
                .find_map(|name| Some((change(&name, first, point)?, name)));
            let (beside, spread, drift, other) = match anchor {
                Some(((anchor, spread, _), name)) => (
                    ratio / anchor,
                    own_spread + spread,
                    percent(anchor).abs(),
                    format!(" beside {name}, which has {:+.1}%", percent(anchor)),
                ),
                None => (ratio, own_spread, 0.0, String::new()),
            };
            let change = percent(beside);
            let loss = match measure.heading.better {
                Better::Higher => -change,
                Better::Lower => change,
            };
            let over = loss - FLAT;
            if found.as_ref().is_some_and(|&(worst, _)| worst >= over) {
                continue;
            }
            let which = match of.len() {
                1 => String::new(),
                _ => format!(", {contender}"),
            };
            let seen = Seen {
                text: format!(
                    "{change:+.1}% \u{b1}{spread:.1}%{}{which}{other}",
                    place(measure, Some(point.0))
                ),
                verdict: match over {
                    _ if drift > DRIFT => Verdict::Undecided,
                    ..=0.0 => Verdict::Met,
                    _ if loss <= spread => Verdict::Undecided,
                    _ => Verdict::Missed,
                },
                distance: over.abs(),
                spread,
                rounds,
            };
            found = Some((over, seen));
        }
    }
    found.map(|(_, seen)| seen)
}

/// A point's figure to another's, their spreads in percent, and how many rounds both have.
fn change(
    contender: &str,
    from: (u64, &Measure, Option<u64>),
    to: (u64, &Measure, Option<u64>),
) -> Option<(f64, f64, usize)> {
    let (from, to) = (
        from.1.figure(contender, from.2)?,
        to.1.figure(contender, to.2)?,
    );
    let ratio = to.median() / from.median();
    let rounds = from.rounds.len().min(to.rounds.len());
    (ratio.is_finite() && ratio > 0.0).then_some((ratio, spread(from) + spread(to), rounds))
}

fn percent(ratio: f64) -> f64 {
    (ratio - 1.0) * 100.0
}

fn highest(measure: &Measure, at: Option<u64>, limit: f64, unit: &str) -> Option<Seen> {
    let figures: Vec<&Figure> = measure
        .figures
        .iter()
        .filter(|figure| figure.contender.starts_with("netfw"))
        .filter(|figure| at.is_none() || figure.at == at)
        .collect();
    let points = figures.len();
    let figure = figures
        .into_iter()
        .max_by(|a, b| a.median().total_cmp(&b.median()))?;
    let median = figure.median();
    let spread = median * spread(figure) / 100.0;
    Some(Seen {
        text: format!(
            "{} \u{b1}{} {unit}{}{}",
            table::number(median),
            table::number(spread),
            place(measure, figure.at),
            of_points("the most", points)
        ),
        verdict: Verdict::met(median <= limit),
        distance: (median - limit).abs(),
        spread,
        rounds: figure.rounds.len(),
    })
}

fn spread(figure: &Figure) -> f64 {
    stats::spread(&figure.rounds)
}

/// ` at 100,000 flows`
fn place(measure: &Measure, at: Option<u64>) -> String {
    match (at, &measure.heading.axis) {
        (Some(1), Some(axis)) => format!(" at 1 {}", axis.trim_end_matches('s')),
        (Some(at), Some(axis)) => format!(" at {} {axis}", table::grouped(at)),
        _ => String::new(),
    }
}

fn of_points(which: &str, points: usize) -> String {
    if points > 1 {
        format!(", {which} of {points}")
    } else {
        String::new()
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)?;
        if self.rounds >= ENOUGH_ROUNDS && self.distance < self.spread {
            out.write_str("; uncertain: the limit is within the spread")?;
        }
        Ok(())
    }
}

impl Verdict {
    fn met(met: bool) -> Self {
        if met { Self::Met } else { Self::Missed }
    }
}

/// `12 met, 3 not met, 1 undecided, 3 not measured in this run`
pub fn summary(targets: &[Target]) -> String {
    let count = |verdict| {
        targets
            .iter()
            .filter(|target| target.verdict == verdict)
            .count()
    };
    format!(
        "{} met, {} not met, {} undecided, {} not measured in this run",
        count(Verdict::Met),
        count(Verdict::Missed),
        count(Verdict::Undecided),
        count(Verdict::Unmeasured)
    )
}

/// For a terminal.
pub fn write(out: &mut fmt::Formatter<'_>, targets: &[Target], few_rounds: bool) -> fmt::Result {
    writeln!(out, "Targets: {}", summary(targets))?;
    if few_rounds {
        writeln!(out, "  {FEW_ROUNDS}")?;
    }
    for target in targets {
        let seen = target.seen.as_deref().unwrap_or_default();
        let line = format!(
            "  {:<12}  {:<70}  {:<12}  {seen}",
            target.verdict, target.what, target.wanted
        );
        writeln!(out, "{}", line.trim_end())?;
        if let Some(reason) = target.reason {
            writeln!(out, "  {:<12}  {reason}", "")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Heading,
            tests::{add, heading, report},
        },
        rules::{IPTABLES, REDIRECT_TC, REDIRECT_XDP, ROUTING, TC, XDP},
        *,
    };
    use crate::contender::Kind;

    fn rate(id: &str, axis: &str) -> Heading {
        Heading {
            better: Better::Higher,
            axis: Some(axis.to_owned()),
            ..heading(id)
        }
    }

    fn target(report: &Report, id: &str) -> Target {
        judge(report)
            .into_iter()
            .find(|target| target.id == id)
            .expect("a target of this id")
    }

    fn verdict(report: &Report, id: &str) -> Verdict {
        target(report, id).verdict
    }

    #[test]
    fn contenders_have_the_names_that_are_looked_for() {
        let names = Kind::ALL.map(|kind| kind.to_string());
        for name in [TC, XDP, REDIRECT_TC, REDIRECT_XDP, ROUTING, IPTABLES] {
            assert!(names.contains(&name.to_owned()), "{name}");
        }
    }

    #[test]
    fn reasons_are_of_targets_that_exist() {
        for (id, _) in REASONS {
            assert!(RULES.iter().any(|rule| rule.id == *id), "{id}");
        }
    }

    #[test]
    fn what_was_not_measured_is_neither_met_nor_missed() {
        let empty = report(&heading("other"), &[]);
        assert_eq!(judge(&empty).len(), RULES.len());
        for target in judge(&empty) {
            assert_eq!((target.verdict, target.seen), (Verdict::Unmeasured, None));
        }
        // Without the contender that it is compared with.
        let alone = report(&rate("packets-in", "flows"), &[(TC, Some(1), &[1.0])]);
        assert_eq!(verdict(&alone, "limit-tc"), Verdict::Unmeasured);
        // One point says nothing about being flat.
        assert_eq!(verdict(&alone, "flat-flows-tc"), Verdict::Unmeasured);
    }

    #[test]
    fn the_worst_point_decides_a_share() {
        let figures: &[(&str, Option<u64>, &[f64])] = &[
            (REDIRECT_TC, Some(1), &[100.0; 7]),
            (REDIRECT_TC, Some(1000), &[100.0; 7]),
            (TC, Some(1), &[95.0; 7]),
            (TC, Some(1000), &[89.0; 7]),
            (IPTABLES, Some(1), &[40.0; 7]),
            (IPTABLES, Some(1000), &[40.0; 7]),
            (ROUTING, Some(1), &[95.0; 7]),
        ];
        let report = report(&rate("packets-in", "flows"), figures);
        let limit = target(&report, "limit-tc");
        assert_eq!(limit.verdict, Verdict::Missed);
        assert_eq!(
            limit.seen.as_deref(),
            Some("89% \u{b1}0% at 1,000 flows, the least of 2")
        );
        assert_eq!(verdict(&report, "iptables-tc"), Verdict::Met);
        assert_eq!(verdict(&report, "iptables-xdp"), Verdict::Unmeasured);
        // As fast as routing is not ahead of it.
        assert_eq!(verdict(&report, "routing-tc"), Verdict::Missed);
    }

    #[test]
    fn the_median_is_judged_and_uncertainty_is_said() {
        let measure = rate("packets-in", "flows");
        let noisy = [80.0, 85.0, 89.0, 93.0, 99.0];
        let noisy_report = report(
            &measure,
            &[(REDIRECT_TC, Some(1), &[100.0; 5]), (TC, Some(1), &noisy)],
        );
        let limit = target(&noisy_report, "limit-tc");
        assert_eq!(limit.verdict, Verdict::Missed);
        let seen = limit.seen.expect("seen");
        assert!(
            seen.ends_with("uncertain: the limit is within the spread"),
            "{seen}"
        );

        let few = report(
            &measure,
            &[(REDIRECT_TC, Some(1), &[100.0]), (TC, Some(1), &[99.0])],
        );
        let limit = target(&few, "limit-tc");
        assert_eq!(limit.verdict, Verdict::Met);
        assert!(has_few_rounds(&few) && !has_few_rounds(&noisy_report));
    }

    #[test]
    fn flat_is_within_five_percent_and_nothing_is_said_within_the_spread() {
        let steep = |last: &[f64]| {
            let figures: &[(&str, Option<u64>, &[f64])] = &[
                (TC, Some(10), &[100.0; 5]),
                (TC, Some(1000), &[120.0; 5]),
                (TC, Some(60_000), last),
            ];
            verdict(
                &report(&rate("connections", "publishes"), figures),
                "flat-connections",
            )
        };
        assert_eq!(steep(&[95.5; 5]), Verdict::Met);
        assert_eq!(steep(&[94.0; 5]), Verdict::Missed);
        assert_eq!(steep(&[80.0, 84.0, 94.0, 104.0, 110.0]), Verdict::Undecided);
        assert_eq!(steep(&[60.0, 64.0, 70.0, 76.0, 80.0]), Verdict::Missed);
        assert_eq!(steep(&[200.0; 5]), Verdict::Met);
    }

    #[test]
    fn a_machine_that_got_slower_is_no_steep_netfw() {
        let judged = |routing: f64| {
            let figures: &[(&str, Option<u64>, &[f64])] = &[
                (ROUTING, Some(10), &[100.0; 5]),
                (ROUTING, Some(60_000), &[routing; 5]),
                (TC, Some(10), &[100.0; 5]),
                (TC, Some(60_000), &[88.0; 5]),
            ];
            target(
                &report(&rate("connections", "publishes"), figures),
                "flat-connections",
            )
        };
        let drifted = judged(90.0);
        assert_eq!(drifted.verdict, Verdict::Met);
        let seen = drifted.seen.expect("seen");
        assert!(
            seen.ends_with("beside routing, no NAT, which has -10.0%"),
            "{seen}"
        );
        assert_eq!(judged(100.0).verdict, Verdict::Missed);
        // Nothing that grew has to do with routing: whatever it was, it hit netfw as well.
        assert_eq!(judged(70.0).verdict, Verdict::Undecided);
    }

    #[test]
    fn a_million_flows_count_from_their_own_measure_too() {
        let mut report = report(&rate("packets-in", "flows"), &[(TC, Some(1), &[100.0; 5])]);
        assert_eq!(verdict(&report, "flat-flows-tc"), Verdict::Unmeasured);
        let million = Heading {
            axis: None,
            ..rate("million-packets", "")
        };
        add(&mut report, &million, &[(TC, None, &[70.0; 5])]);
        let flat = target(&report, "flat-flows-tc");
        assert_eq!(flat.verdict, Verdict::Missed);
        assert!(flat.seen.expect("seen").contains("at 1,000,000 flows"));
    }

    #[test]
    fn times_and_memory_have_an_upper_limit() {
        let axis = |id: &str, axis: &str| Heading {
            axis: Some(axis.to_owned()),
            ..heading(id)
        };
        let mut report = report(
            &axis("attach", "endpoints"),
            &[
                ("netfw", Some(1), &[4.0; 5]),
                ("netfw", Some(100), &[11.0; 5]),
            ],
        );
        // Another number of ports than the target's is not judged.
        add(
            &mut report,
            &axis("publish-range", "ports"),
            &[
                ("netfw", Some(60_000), &[90.0; 5]),
                ("netfw", Some(10_000), &[49.0; 5]),
            ],
        );
        add(
            &mut report,
            &heading("million-memory"),
            &[(TC, None, &[256.0; 5])],
        );
        assert_eq!(verdict(&report, "attach"), Verdict::Missed);
        assert_eq!(verdict(&report, "publish-range"), Verdict::Met);
        assert_eq!(verdict(&report, "withdraw-range"), Verdict::Unmeasured);
        assert_eq!(verdict(&report, "million-memory"), Verdict::Met);
    }
}
