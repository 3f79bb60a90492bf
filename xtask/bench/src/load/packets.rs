//! Small UDP packets per second that one core brings through: into the container, there and back,
//! out of it; and those that it turns away. See [`crate::frames`].

use std::time::Duration;

use anyhow::Result;

use super::{Lane, Load, heading};
use crate::{
    contender::{Closed, Contender, Kind},
    frames::{Direction, Frames},
    plan::Plan,
    report::{Better, Heading},
};

/// Flows for the loads that do not ask how the cost grows with them.
const FEW: u32 = 256;

struct Packets {
    direction: Direction,
    flows: u32,
    duration: Duration,
}

pub fn loads(plan: &Plan) -> Vec<Box<dyn Load>> {
    let load = |direction, flows| -> Box<dyn Load> {
        Box::new(Packets {
            direction,
            flows,
            duration: plan.packets,
        })
    };
    let mut loads = Vec::new();
    for &flows in &plan.flows {
        loads.push(load(Direction::In, flows));
    }
    loads.push(load(Direction::ToDriver, FEW));
    loads.push(load(Direction::Both, FEW));
    for &flows in &plan.flows {
        loads.push(load(Direction::Out, flows));
    }
    loads.push(load(Direction::Direct, FEW));
    loads
}

pub fn heading_of(direction: Direction) -> Heading {
    let (id, title, axis) = match direction {
        Direction::In => ("packets-in", "Small UDP packets to a publish", true),
        Direction::ToDriver => (
            "packets-in-xdp",
            "Small UDP packets to a publish, into a container that takes frames by XDP",
            false,
        ),
        Direction::Both => (
            "packets-both",
            "Small UDP packets to a publish, and answers",
            false,
        ),
        Direction::Out => (
            "packets-out",
            "Small UDP packets from a container, masqueraded",
            true,
        ),
        Direction::Direct => (
            "packets-refused",
            "Small UDP packets straight to a container's address, turned away",
            false,
        ),
    };
    let axis = axis.then_some("flows");
    let title = format!("{title}, on one core");
    heading(id, &title, "packets/s", Better::Higher, axis)
}

impl Load for Packets {
    fn name(&self) -> &'static str {
        "packets"
    }

    fn measures(&self) -> Vec<Heading> {
        vec![heading_of(self.direction)]
    }

    fn at(&self) -> Option<u64> {
        matches!(self.direction, Direction::In | Direction::Out).then_some(self.flows.into())
    }

    fn suits(&self, kind: Kind) -> bool {
        match self.direction {
            // On the node itself nothing is forwarded: the figure would be the generator's.
            Direction::In | Direction::Both | Direction::Out => kind.has_container(),
            // What goes by `bpf_redirect_peer` passes the driver by.
            Direction::ToDriver => {
                kind.has_container() && !matches!(kind, Kind::Redirect | Kind::Netfw)
            }
            // The redirects drop everything: the limit here.
            Direction::Direct => kind.translates() || !kind.has_addresses(),
        }
    }

    fn lane<'a>(&self, contender: &'a Contender) -> Result<Box<dyn Lane + 'a>> {
        let closed = (self.direction == Direction::Direct && !contender.kind.has_addresses())
            .then(|| contender.drop_all())
            .transpose()?;
        Ok(Box::new(Running {
            contender,
            frames: Frames::new(contender, self.direction, self.flows)?,
            many: self.flows > FEW && self.direction != Direction::Direct,
            _closed: closed,
            duration: self.duration,
        }))
    }

    fn seconds(&self) -> f64 {
        self.duration.as_secs_f64()
    }
}

struct Running<'a> {
    contender: &'a Contender,
    frames: Frames<'a>,
    /// Then it has its flows during its own round only: conntrack's hash is one for all namespaces, and
    /// with the flows of several in it chains would be longer than any has to bear.
    many: bool,
    _closed: Option<Closed<'a>>,
    duration: Duration,
}

impl Lane for Running<'_> {
    fn run(&mut self) -> Result<Vec<f64>> {
        if self.many {
            self.frames.open()?;
        }
        let rate = self.frames.run(self.duration)?;
        if self.many {
            self.contender.forget_flows();
        }
        Ok(vec![rate])
    }
}
