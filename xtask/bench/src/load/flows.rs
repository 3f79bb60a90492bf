//! New UDP flows per second, at so many publishes: each packet is the first of a flow.
//!
//! Flows are opened in bursts, with the tables emptied before each: no burst is larger than what
//! netfw keeps flows of one packet in (65,536 of them) and conntrack's table (262,144), so nobody
//! has to push one flow out for the next, and nobody answers, so nobody moves one on. Emptying does
//! not count. Without state, every packet is like any other: what the host and plain routing make
//! is the limit.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Lane, Load, heading};
use crate::{
    contender::{Contender, Kind},
    frames::{Direction, Frames, are_enough},
    plan::Plan,
    report::{Better, Heading},
};

/// Flows that are opened between two emptyings.
const BURST: u32 = 50_000;
/// More than in a burst, so that none comes twice.
const DISTINCT: u32 = 1 << 20;
/// Flows of the first system call; then so many that each takes about [`CALL`].
const FIRST: u32 = 128;
const CALL: Duration = Duration::from_millis(100);

pub struct NewFlows {
    publishes: u32,
    duration: Duration,
}

impl NewFlows {
    pub fn new(plan: &Plan, publishes: u32) -> Self {
        Self {
            publishes,
            duration: plan.new_flows,
        }
    }
}

impl Load for NewFlows {
    fn name(&self) -> &'static str {
        "udp-flows"
    }

    fn measures(&self) -> Vec<Heading> {
        vec![heading(
            "udp-flows",
            "New UDP flows to a publish, on one core",
            "flows/s",
            Better::Higher,
            Some("publishes"),
        )]
    }

    fn at(&self) -> Option<u64> {
        Some(self.publishes.into())
    }

    fn suits(&self, kind: Kind) -> bool {
        kind.has_addresses()
    }

    fn lane<'a>(&self, contender: &'a Contender) -> Result<Box<dyn Lane + 'a>> {
        let mut frames = Frames::attach(contender, Direction::In, DISTINCT)?;
        frames.wait_for_neighbours()?;
        Ok(Box::new(Running {
            contender,
            frames,
            duration: self.duration,
            call: FIRST,
        }))
    }

    fn seconds(&self) -> f64 {
        // Emptying takes about as long as filling.
        2.0 * self.duration.as_secs_f64()
    }
}

struct Running<'a> {
    contender: &'a Contender,
    frames: Frames<'a>,
    duration: Duration,
    /// Flows of the next system call.
    call: u32,
}

impl Lane for Running<'_> {
    fn run(&mut self) -> Result<Vec<f64>> {
        let (mut opened, mut took) = (0, Duration::ZERO);
        while took < self.duration {
            self.contender.forget_flows();
            let mut left = BURST;
            while left > 0 && took < self.duration {
                let flows = self.call.min(left);
                let (arrived, time) = self.frames.send(flows)?;
                ensure!(
                    are_enough(arrived, flows.into()),
                    "of the first packets of {flows} flows only {arrived} arrived"
                );
                opened += arrived;
                took += time;
                left -= flows;
                self.call = next_call(flows, time);
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52 flows")]
        Ok(vec![opened as f64 / took.as_secs_f64()])
    }
}

/// Flows that take about [`CALL`] where `flows` took `time`: a round ends about when it should, also
/// where each packet passes 30,000 rules.
fn next_call(flows: u32, time: Duration) -> u32 {
    if time > CALL {
        (flows / 2).max(FIRST)
    } else if time < CALL / 2 {
        (flows * 2).min(BURST)
    } else {
        flows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_grows_and_shrinks_until_it_takes_its_time() {
        assert_eq!(next_call(1024, CALL / 4), 2048);
        assert_eq!(next_call(1024, CALL * 3 / 4), 1024);
        assert_eq!(next_call(1024, CALL * 2), 512);
        assert_eq!(next_call(FIRST, CALL * 2), FIRST);
        assert_eq!(next_call(BURST, CALL / 4), BURST);
    }
}
