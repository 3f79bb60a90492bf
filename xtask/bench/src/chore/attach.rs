//! Milliseconds that it takes to attach one more container and to detach it, as its user does: with
//! more and more containers there, and with more and more ports.

use std::time::Duration;

use anyhow::{Context as _, Result};
use netfw_tests::{Crowd, Namespace};

use super::{
    Chore, Stage,
    attacher::{self, Attacher, Ports, TooLong, timed},
    count,
};
use crate::{
    plan::Plan,
    report::{Better, Heading, table::grouped},
};

/// Of those that are there already; and of the one that is measured.
const PRESENT: u16 = 20_000;
const ONE_MORE: u16 = 30_000;
const SERVED: u16 = 10_000;

/// One more container with one publish, by the number of those there.
pub struct Attach {
    endpoints: Vec<u32>,
    patience: Duration,
}

/// A container with a range of ports, by their number.
pub struct Ranges {
    ports: Vec<u16>,
    patience: Duration,
}

impl Attach {
    pub fn new(plan: &Plan) -> Self {
        Self {
            endpoints: plan.endpoints.clone(),
            patience: plan.patience,
        }
    }
}

impl Ranges {
    pub fn new(plan: &Plan) -> Self {
        Self {
            ports: plan.ports.clone(),
            patience: plan.patience,
        }
    }
}

impl Chore for Attach {
    fn name(&self) -> &'static str {
        "attach"
    }

    fn seconds(&self, rounds: usize) -> f64 {
        let most = self.endpoints.iter().max().copied().unwrap_or_default();
        START + FILL * f64::from(most) + ROUND * count(rounds * self.endpoints.len())
    }

    fn run(&self, stage: &mut Stage) -> Result<()> {
        let headings = headings(
            [
                ("attach", "Attach one more container, with one publish"),
                ("detach", "Detach a container, with one publish"),
            ],
            "endpoints",
        );
        stage.progress.say("attach: setting up");
        let mut lanes = lanes(stage)?;
        stage.progress.advance(START);
        let mut present = 0;
        for &endpoints in &self.endpoints {
            let more = endpoints - present;
            if more > 0 {
                for lane in &mut lanes {
                    let name = lane.attacher.name();
                    let words = format!("attach: {endpoints} containers for {name}");
                    stage.progress.say(&words);
                    let crowd = Crowd::new("present", more)?;
                    let port = PRESENT + u16::try_from(present).context("a port")?;
                    lane.attacher
                        .fill(crowd, port)
                        .with_context(|| format!("{name}: {more} containers"))?;
                }
                stage.progress.advance(FILL * f64::from(more));
            }
            present = endpoints;
            let point = Point {
                what: format!("{} endpoints", grouped(endpoints.into())),
                at: endpoints.into(),
                ports: Ports::one(ONE_MORE),
            };
            rounds(&point, &mut lanes, &headings, self.patience, stage)?;
        }
        Ok(())
    }
}

impl Chore for Ranges {
    fn name(&self) -> &'static str {
        "ranges"
    }

    fn seconds(&self, rounds: usize) -> f64 {
        START + ROUND * count(rounds * self.ports.len())
    }

    fn run(&self, stage: &mut Stage) -> Result<()> {
        let headings = headings(
            [
                ("publish-range", "Attach a container, with a range of ports"),
                (
                    "withdraw-range",
                    "Detach a container, with a range of ports",
                ),
            ],
            "ports",
        );
        stage.progress.say("ranges: setting up");
        let mut lanes = lanes(stage)?;
        stage.progress.advance(START);
        for &ports in &self.ports {
            let point = Point {
                what: format!("{} ports", grouped(ports.into())),
                at: ports.into(),
                ports: Ports {
                    published: ONE_MORE,
                    served: SERVED,
                    count: ports,
                },
            };
            lanes.retain(|lane| {
                let hopeless = lane.at_least(ports) > self.patience;
                if hopeless {
                    stage.progress.line(&format!(
                        "{} is left out at {}: {} took {:.1} s, and these would take more than {} s",
                        lane.attacher.name(),
                        point.what,
                        grouped(lane.ports.into()),
                        lane.last.as_secs_f64(),
                        self.patience.as_secs()
                    ));
                }
                !hopeless
            });
            rounds(&point, &mut lanes, &headings, self.patience, stage)?;
        }
        Ok(())
    }
}

/// Seconds, about: to set all up, per container that is there beforehand, and a round.
const START: f64 = 4.0;
const FILL: f64 = 0.06;
const ROUND: f64 = 1.5;

/// One who attaches, and whom.
struct Lane {
    container: Namespace,
    attacher: Box<dyn Attacher>,
    /// How many ports the last attachment had, and how long it took.
    ports: u16,
    last: Duration,
}

struct Point {
    what: String,
    at: u64,
    ports: Ports,
}

fn lanes(stage: &Stage) -> Result<Vec<Lane>> {
    let all = attacher::all(stage.progress)?.into_iter();
    Ok(all
        .map(|attacher| Lane {
            container: attacher.lab().container("one-more"),
            attacher,
            ports: 1,
            last: Duration::ZERO,
        })
        .collect())
}

/// How long `ports` will take at least, where `fewer` took `took`.
fn at_least(fewer: u16, took: Duration, ports: u16) -> Duration {
    /// What takes longer than the rest of an attachment can, takes it for ports: as long for each, or
    /// longer where there are more.
    const REST: Duration = Duration::from_secs(1);
    if took > REST {
        took.mul_f64(f64::from(ports) / f64::from(fewer))
    } else {
        took
    }
}

fn headings(ids: [(&str, &str); 2], axis: &str) -> [Heading; 2] {
    ids.map(|(id, title)| Heading {
        id: id.to_owned(),
        title: title.to_owned(),
        unit: "ms".to_owned(),
        better: Better::Lower,
        axis: Some(axis.to_owned()),
    })
}

/// Rounds in which each attaches one and detaches it. A lane whose rounds have used up the patience
/// has no more of them; one that does not get through a single one is left out from then on.
fn rounds(
    point: &Point,
    lanes: &mut Vec<Lane>,
    headings: &[Heading; 2],
    patience: Duration,
    stage: &mut Stage,
) -> Result<()> {
    let mut used = vec![Duration::ZERO; lanes.len()];
    let mut longest = used.clone();
    let mut out = vec![false; lanes.len()];
    for round in 1..=stage.rounds {
        for (place, lane) in lanes.iter_mut().enumerate() {
            let name = lane.attacher.name();
            if out[place] || used[place] + longest[place] > patience {
                continue;
            }
            let of = stage.rounds;
            let what = &point.what;
            stage
                .progress
                .say(&format!("{what}, round {round} of {of}: {name}"));
            let id = format!("one-more-{round}");
            match lane.round(&id, point.ports, round == 1, patience) {
                Ok(figures) => {
                    for (heading, took) in headings.iter().zip(figures) {
                        let milliseconds = took.as_secs_f64() * 1e3;
                        stage
                            .report
                            .add(heading, name, Some(point.at), milliseconds);
                    }
                    let took = figures.iter().sum();
                    used[place] += took;
                    longest[place] = longest[place].max(took);
                    (lane.ports, lane.last) = (point.ports.count, figures[0]);
                    if round < of && used[place] + longest[place] > patience {
                        stage.progress.line(&format!(
                            "{name}: {round} of {of} rounds at {what}, as each takes {:.1} s",
                            took.as_secs_f64()
                        ));
                    }
                }
                Err(error) if error.downcast_ref::<TooLong>().is_some() => {
                    stage
                        .progress
                        .line(&format!("{name} is left out at {what}: {error:#}"));
                    out[place] = true;
                }
                Err(error) => return Err(error).context(name),
            }
        }
        stage.progress.advance(ROUND);
    }
    // Half of a container is attached: its whole lab goes.
    let mut out = out.into_iter();
    lanes.retain(|_| !out.next().unwrap_or(false));
    Ok(())
}

impl Lane {
    /// How long so many ports will take at least.
    fn at_least(&self, ports: u16) -> Duration {
        at_least(self.ports, self.last, ports)
    }

    /// How long it took to attach, and to detach.
    fn round(
        &mut self,
        id: &str,
        ports: Ports,
        check: bool,
        patience: Duration,
    ) -> Result<[Duration; 2]> {
        let (attacher, container) = (self.attacher.as_mut(), &self.container);
        let attach = timed(attacher, patience, |attacher, commands| {
            attacher.attach(id, container, ports, commands)
        })?;
        if check {
            attacher::check(attacher.lab(), container, ports)?;
        }
        let detach = timed(attacher, patience, |attacher, commands| {
            attacher.detach(id, container, ports, commands)
        })?;
        Ok([attach, detach])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_takes_long_will_take_longer() {
        let seconds = Duration::from_secs;
        assert_eq!(at_least(100, seconds(2), 1000), seconds(20));
        let short = Duration::from_millis(60);
        assert_eq!(at_least(100, short, 10_000), short);
    }
}
