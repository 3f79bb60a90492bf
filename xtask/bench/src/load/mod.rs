//! What contenders are loaded with, and what is measured of it.
//!
//! * [`packets`]: small UDP packets per second through one core
//! * [`flows`]: new UDP flows per second
//! * [`http`]: new HTTP connections per second, and requests on those that are kept
//! * [`bulk`]: TCP as much as goes through
//! * [`latency`]: how long an answer takes
//! * [`million`]: a million flows at a time
//!
//! A [`Load`] makes a [`Lane`] for each contender; the [`crate::stage`] has the lanes run in turns.

pub mod bulk;
pub mod flows;
pub mod http;
pub mod latency;
pub mod million;
pub mod packets;

use std::{net::TcpListener, time::Duration};

use anyhow::{Context as _, Result};
use nix::sys::{
    socket::{setsockopt, sockopt},
    time::{TimeVal, TimeValLike as _},
};

use crate::{
    contender::{Contender, Kind},
    plan::Plan,
    report::{Better, Heading},
};

/// A kind of load.
pub trait Load {
    /// A word for `--only` and for the progress bar.
    fn name(&self) -> &'static str;

    /// What a round measures, in the order of its figures.
    fn measures(&self) -> Vec<Heading>;

    /// Where on the axis of its measures the figures lie.
    fn at(&self) -> Option<u64>;

    /// Can it be put on such a contender?
    fn suits(&self, kind: Kind) -> bool;

    /// How many flows contenders are to have room for, where that is more than they have by themselves.
    /// All loads of a stage want the same.
    fn flows(&self) -> Option<u32> {
        None
    }

    /// No more rounds than so many, whatever the plan says.
    fn most_rounds(&self) -> usize {
        usize::MAX
    }

    /// Gets ready for rounds on a contender.
    fn lane<'a>(&self, contender: &'a Contender) -> Result<Box<dyn Lane + 'a>>;

    /// Seconds that a round takes, as far as the progress bar needs to know.
    fn seconds(&self) -> f64;
}

/// One contender under one load.
pub trait Lane {
    /// A round: a figure for each of [`Load::measures`], NaN where this contender has none.
    fn run(&mut self) -> Result<Vec<f64>>;
}

/// All of [`Load::name`].
pub const NAMES: &[&str] = &[
    "packets",
    "udp-flows",
    "connections",
    "requests",
    "bulk",
    "latency",
    "million",
];

/// The loads for contenders with so many publishes; `first` are those with the fewest, which the loads
/// run on that have nothing to do with publishes.
pub fn all(plan: &Plan, publishes: u32, first: bool) -> Vec<Box<dyn Load>> {
    let mut loads: Vec<Box<dyn Load>> = Vec::new();
    if first {
        loads.extend(packets::loads(plan));
    }
    loads.push(Box::new(flows::NewFlows::new(plan, publishes)));
    loads.push(Box::new(http::Http::connections(plan, publishes)));
    if first {
        loads.push(Box::new(http::Http::requests(plan, publishes)));
        loads.extend(bulk::loads(plan));
        loads.extend(latency::loads(plan));
    }
    loads
}

/// Has `accept` fail after so many whole seconds: a connection that ended up elsewhere is not waited
/// for.
fn accept_within(listener: &TcpListener, patience: Duration) -> Result<()> {
    let patience = TimeVal::seconds(patience.as_secs().cast_signed());
    setsockopt(listener, sockopt::ReceiveTimeout, &patience).context("SO_RCVTIMEO")
}

/// A heading in few words.
fn heading(id: &str, title: &str, unit: &str, better: Better, axis: Option<&str>) -> Heading {
    Heading {
        id: id.to_owned(),
        title: title.to_owned(),
        unit: unit.to_owned(),
        better,
        axis: axis.map(str::to_owned),
    }
}
