//! How long the agent takes to start where it has to take over what is there, and the memory that it
//! has then.
//!
//! It is killed, and started again: from the start of its process to its first answer to `netfw
//! status`, the programs loaded, verified and swapped. Its memory is its share of pages (PSS) once that
//! does not change any more, after such a start and, once, after it has attached all of them itself;
//! what the kernel keeps for maps and programs is not in it.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use netfw_tests::{Agent, Crowd};

use super::{
    Chore, Stage,
    attacher::{Attacher as _, Netfw},
    count,
};
use crate::{
    plan::Plan,
    report::{Better, Heading},
};

const NAME: &str = "netfw";
/// Before it is killed: what it took to attach them may not have been given back.
const GROWN: &str = "netfw, having attached them";
const FIRST_PORT: u16 = 20_000;

/// Seconds, about: to set up, per endpoint, and a round.
const START: f64 = 3.0;
const FILL: f64 = 0.05;
const ROUND: f64 = 3.0;

pub struct Starts {
    endpoints: Vec<u32>,
}

impl Starts {
    pub fn new(plan: &Plan) -> Self {
        Self {
            endpoints: plan.endpoints.clone(),
        }
    }
}

impl Chore for Starts {
    fn name(&self) -> &'static str {
        "agent"
    }

    fn seconds(&self, rounds: usize) -> f64 {
        let most = self.endpoints.iter().max().copied().unwrap_or_default();
        START + FILL * f64::from(most) + ROUND * count(rounds * self.endpoints.len())
    }

    fn run(&self, stage: &mut Stage) -> Result<()> {
        let heading = |id: &str, title: &str, unit: &str| Heading {
            id: id.to_owned(),
            title: title.to_owned(),
            unit: unit.to_owned(),
            better: Better::Lower,
            axis: Some("endpoints".to_owned()),
        };
        let start = heading("agent-start", "Start of the agent after a kill -9", "ms");
        let memory = heading("agent-memory", "Memory of the agent, idle", "MiB");
        stage.progress.say("agent: setting up");
        let mut netfw = Netfw::new()?;
        stage.progress.advance(START);
        let mut present = 0;
        for &endpoints in &self.endpoints {
            let more = endpoints - present;
            if more > 0 {
                let words = format!("agent: {endpoints} endpoints");
                stage.progress.say(&words);
                let port = FIRST_PORT + u16::try_from(present).context("a port")?;
                netfw.fill(Crowd::new("present", more)?, port)?;
                let mib = settled_memory(&mut netfw.agent)?;
                stage
                    .report
                    .add(&memory, GROWN, Some(endpoints.into()), mib);
                stage.progress.advance(FILL * f64::from(more));
            }
            present = endpoints;
            for round in 1..=stage.rounds {
                stage.progress.say(&format!(
                    "agent, {endpoints} endpoints, round {round} of {}",
                    stage.rounds
                ));
                let at = Some(endpoints.into());
                let took = restart(&mut netfw.agent);
                stage.report.add(&start, NAME, at, took.as_secs_f64() * 1e3);
                let mib = settled_memory(&mut netfw.agent)?;
                stage.report.add(&memory, NAME, at, mib);
                stage.progress.advance(ROUND);
            }
        }
        Ok(())
    }
}

fn restart(agent: &mut Agent) -> Duration {
    agent.kill();
    let start = Instant::now();
    agent.start_again();
    start.elapsed()
}

/// MiB, once they stay the same.
fn settled_memory(agent: &mut Agent) -> Result<f64> {
    const LOOK: Duration = Duration::from_millis(200);
    const LOOKS: u32 = 25;
    let file = format!("/proc/{}/smaps_rollup", agent.process().pid());
    let mut last = None;
    for _ in 0..LOOKS {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
        let now = pss(&text).with_context(|| format!("no Pss in {file}"))?;
        if last == Some(now) {
            break;
        }
        last = Some(now);
        thread::sleep(LOOK);
    }
    Ok(f64::from(last.unwrap_or_default()) / 1024.0)
}

/// KiB, of a file like `smaps`.
fn pss(text: &str) -> Option<u32> {
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pss_is_found_among_the_rest() {
        let text = "5590-7ffd ---p 00000000 00:00 0  [rollup]\nRss:      8420 kB\n\
                    Pss:               53101 kB\nPss_Dirty:          1 kB\n";
        assert_eq!(pss(text), Some(53_101));
        assert_eq!(pss(""), None);
    }
}
