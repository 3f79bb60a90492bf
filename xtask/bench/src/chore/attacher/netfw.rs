//! `netfw endpoint add` and `rm`.

use std::time::Duration;

use anyhow::{Context as _, Result};
use netfw_tests::{Agent, Crowd, Lab, Namespace, wait::wait_at_most};

use super::{Attacher, Commands, Ports};

pub struct Netfw {
    // Dropped in this order: the agent takes its own things down while the node is there.
    crowds: Vec<Crowd>,
    pub agent: Agent,
    lab: Lab,
    filled: usize,
}

pub const NAME: &str = "netfw";

impl Netfw {
    pub fn new() -> Result<Self> {
        let lab = Lab::lay_out();
        Ok(Self {
            crowds: Vec::new(),
            agent: Agent::start(&lab).lenient(),
            lab,
            filled: 0,
        })
    }
}

impl Attacher for Netfw {
    fn name(&self) -> &'static str {
        NAME
    }

    fn lab(&self) -> &Lab {
        &self.lab
    }

    fn fill(&mut self, crowd: Crowd, port: u16) -> Result<()> {
        let mut commands = Commands::new(Duration::MAX);
        for (path, port) in crowd.paths().zip(port..) {
            let name = format!("present{}", self.filled);
            let path = path.to_str().context("a namespace's path is ASCII")?;
            let publish = Ports::one(port).publish();
            let add = ["endpoint", "add", &name, "--netns", path, "-p", &publish];
            commands.run(&mut self.agent.command(&add), "")?;
            self.filled += 1;
        }
        self.crowds.push(crowd);
        Ok(())
    }

    fn attach(
        &mut self,
        name: &str,
        to: &Namespace,
        ports: Ports,
        commands: &mut Commands,
    ) -> Result<()> {
        let path = to.path();
        let path = path.to_str().context("a namespace's path is ASCII")?;
        let publish = ports.publish();
        let add = ["endpoint", "add", name, "--netns", path, "-p", &publish];
        commands.run(&mut self.agent.command(&add), "")?;
        Ok(())
    }

    fn detach(
        &mut self,
        name: &str,
        _from: &Namespace,
        _ports: Ports,
        commands: &mut Commands,
    ) -> Result<()> {
        commands.run(&mut self.agent.command(&["endpoint", "rm", name]), "")?;
        Ok(())
    }
}

impl Drop for Netfw {
    /// The kernel deletes a thousand veth pairs at once faster than `netfw down` does one by one.
    fn drop(&mut self) {
        if self.crowds.is_empty() {
            return;
        }
        self.agent.kill();
        self.crowds.clear();
        wait_at_most(Duration::from_secs(60), || {
            (self.lab.node.links().len() < 10).then_some(())
        });
    }
}
