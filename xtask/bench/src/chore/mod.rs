//! What is measured without traffic: how long commands take, how much memory the agent has, and what
//! a packet costs in each program alone.
//!
//! * [`attach`]: attaching and detaching a container, with one publish and with many; [`attacher`]:
//!   netfw and its contenders
//! * [`containers`]: starting and removing a container, by its runtime
//! * [`agent`]: its start, and its memory
//! * [`programs`]: nanoseconds per packet of the eBPF programs
//!
//! Contenders and points are a chore's own. What they have in common with [`crate::load`]: rounds in
//! which all take turns, and a report with every round's figure.

pub mod agent;
pub mod attach;
pub mod attacher;
pub mod containers;
pub mod programs;

use anyhow::Result;

use crate::{plan::Plan, progress::Progress, report::Report};

/// A kind of measurement.
pub trait Chore {
    /// A word for `--only` and for the progress bar.
    fn name(&self) -> &'static str;

    /// Seconds that it takes, as far as the progress bar needs to know.
    fn seconds(&self, rounds: usize) -> f64;

    fn run(&self, stage: &mut Stage) -> Result<()>;
}

/// Where a chore's figures go, and how often it is done.
pub struct Stage<'a> {
    pub rounds: usize,
    pub progress: &'a Progress,
    pub report: &'a mut Report,
}

/// All of [`Chore::name`].
pub const NAMES: &[&str] = &["attach", "ranges", "containers", "agent", "programs"];

pub fn all(plan: &Plan) -> Vec<Box<dyn Chore>> {
    vec![
        Box::new(attach::Attach::new(plan)),
        Box::new(attach::Ranges::new(plan)),
        Box::new(containers::Containers),
        Box::new(agent::Starts::new(plan)),
        Box::new(programs::Programs::new(plan)),
    ]
}

/// A number of rounds or things, for arithmetic on seconds.
fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}
