//! All contenders side by side under one load after the other.
//!
//! They stand at the same time, each in namespaces of its own, and take turns round by round: what the
//! machine does meanwhile hits all alike.

use anyhow::{Context as _, Result};

use crate::{
    contender::{Contender, Kind, room::Room},
    load::{Lane, Load},
    progress::Progress,
    report::{Heading, Report, table},
};

/// Runs `loads` on contenders of these kinds, each with so many publishes.
pub fn run(
    kinds: &[Kind],
    publishes: u32,
    loads: &[Box<dyn Load>],
    rounds: usize,
    progress: &Progress,
    report: &mut Report,
) -> Result<()> {
    // Outlives the contenders.
    let room = loads.iter().find_map(|load| load.flows());
    let room = room.map(Room::new).transpose()?;
    let config = room.as_ref().map(Room::config);
    let mut contenders = Vec::new();
    for &kind in kinds.iter().filter(|&&kind| is_loaded(kind, loads)) {
        progress.say(&format!("setting up {kind}, {publishes} publishes"));
        let contender = Contender::set_up(kind, publishes, config)
            .with_context(|| format!("setting up {kind} with {publishes} publishes"))?;
        contenders.push(contender);
        progress.advance(SET_UP);
    }
    for load in loads {
        put_on(load.as_ref(), &contenders, rounds, progress, report)
            .with_context(|| format!("load {}", load.name()))?;
    }
    Ok(())
}

fn is_loaded(kind: Kind, loads: &[Box<dyn Load>]) -> bool {
    loads.iter().any(|load| load.suits(kind))
}

/// Seconds that it takes to set a contender up, and to make a lane.
const SET_UP: f64 = 1.0;
const LANE: f64 = 0.3;

/// Seconds that [`run`] will take.
pub fn seconds(kinds: &[Kind], loads: &[Box<dyn Load>], rounds: usize) -> f64 {
    let count = |number: usize| f64::from(u32::try_from(number).unwrap_or(u32::MAX));
    let times = loads.iter().map(|load| {
        let lanes = kinds.iter().filter(|&&kind| load.suits(kind)).count();
        let rounds = rounds.min(load.most_rounds());
        count(lanes) * (LANE + count(rounds) * load.seconds())
    });
    let contenders = kinds.iter().filter(|&&kind| is_loaded(kind, loads));
    count(contenders.count()) * SET_UP + times.sum::<f64>()
}

fn put_on(
    load: &dyn Load,
    contenders: &[Contender],
    rounds: usize,
    progress: &Progress,
    report: &mut Report,
) -> Result<()> {
    let headings = load.measures();
    progress.start(&describe(load, &headings));
    let mut lanes: Vec<(Kind, Box<dyn Lane>)> = Vec::new();
    for contender in contenders {
        let kind = contender.kind;
        if !load.suits(kind) {
            continue;
        }
        progress.say(&format!("{}: getting {kind} ready", load.name()));
        let lane = load
            .lane(contender)
            .with_context(|| format!("getting {kind} ready"))?;
        lanes.push((kind, lane));
        progress.advance(LANE);
    }
    let rounds = rounds.min(load.most_rounds());
    for round in 1..=rounds {
        for (kind, lane) in &mut lanes {
            progress.say(&format!(
                "{}, round {round} of {rounds}: {kind}",
                load.name()
            ));
            let figures = lane.run().with_context(|| kind.to_string())?;
            let figures = headings.iter().zip(figures);
            for (heading, value) in figures.filter(|(_, value)| !value.is_nan()) {
                let at = heading.axis.as_ref().and_then(|_| load.at());
                report.add(heading, &kind.to_string(), at, value);
            }
            progress.advance(load.seconds());
        }
    }
    drop(lanes);
    report.keep()?;
    for contender in contenders {
        contender.forget_flows();
    }
    Ok(())
}

/// `connections: New HTTP connections, 1,000 publishes`
fn describe(load: &dyn Load, headings: &[Heading]) -> String {
    let titles: Vec<&str> = headings.iter().map(|heading| &*heading.title).collect();
    let axis = headings.iter().find_map(|heading| heading.axis.as_deref());
    let at = match (load.at(), axis) {
        (Some(at), Some(axis)) => format!(", {} {axis}", table::grouped(at)),
        _ => String::new(),
    };
    format!("{}: {}{at}", load.name(), titles.join("; "))
}
