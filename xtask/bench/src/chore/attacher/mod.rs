//! Those that attach containers to a node and publish their ports, as their users have them do it.
//!
//! * [`Netfw`]: `netfw endpoint add`, an agent running
//! * [`Cni`]: the plugins `bridge` and `portmap`, as a container runtime calls them
//! * [`ByHand`]: `ip` and `iptables`, the commands that Docker's bridge driver amounts to
//!
//! Each has a [`Lab`] of its own, and does its work in processes that are started in the node's
//! namespace: there is no `nsenter` in between, whose time would be added.

mod by_hand;
mod cni;
mod commands;
mod netfw;

use std::{
    net::{TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result};
use netfw_tests::{Crowd, Lab, Namespace, netns::enter, topology::NODE, wait::wait_for};

pub use self::{
    by_hand::ByHand,
    cni::Cni,
    commands::{Commands, TooLong},
    netfw::Netfw,
};
use crate::progress::Progress;

/// TCP ports that are published, each as one of the container's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ports {
    pub published: u16,
    pub served: u16,
    pub count: u16,
}

impl Ports {
    pub fn one(published: u16) -> Self {
        Self {
            published,
            served: 80,
            count: 1,
        }
    }

    /// Pairs of published and served.
    pub fn pairs(self) -> impl DoubleEndedIterator<Item = (u16, u16)> {
        (0..self.count).map(move |n| (self.published + n, self.served + n))
    }

    /// As `-p` has it.
    pub fn publish(self) -> String {
        let range = |first: u16| match self.count {
            1 => first.to_string(),
            count => format!("{first}-{}", first + (count - 1)),
        };
        format!("{}:{}", range(self.published), range(self.served))
    }
}

pub trait Attacher: Send {
    fn name(&self) -> &'static str;

    fn lab(&self) -> &Lab;

    /// Attaches each of the crowd with one publish, from `port` on. It may take a shortcut to the
    /// state that attaching one by one would lead to.
    fn fill(&mut self, crowd: Crowd, port: u16) -> Result<()>;

    /// Attaches one more, by `commands`, which are in the node.
    fn attach(
        &mut self,
        name: &str,
        to: &Namespace,
        ports: Ports,
        commands: &mut Commands,
    ) -> Result<()>;

    fn detach(
        &mut self,
        name: &str,
        from: &Namespace,
        ports: Ports,
        commands: &mut Commands,
    ) -> Result<()>;
}

/// All for whom there are programs; of the others it is told that they are left out.
pub fn all(progress: &Progress) -> Result<Vec<Box<dyn Attacher>>> {
    let mut all: Vec<Box<dyn Attacher>> = vec![Box::new(Netfw::new()?)];
    match Cni::missing() {
        None => all.push(Box::new(Cni::new()?)),
        Some(program) => leave_out(progress, cni::NAME, program),
    }
    match by_hand::missing() {
        None => all.push(Box::new(ByHand::new()?)),
        Some(program) => leave_out(progress, by_hand::NAME, program),
    }
    Ok(all)
}

fn leave_out(progress: &Progress, name: &str, program: &str) {
    progress.line(&format!("{name} is left out: there is no {program} here"));
}

/// Has an attacher do something by commands in its node: the time that those took.
pub fn timed(
    attacher: &mut dyn Attacher,
    patience: Duration,
    work: impl FnOnce(&mut dyn Attacher, &mut Commands) -> Result<()> + Send,
) -> Result<Duration> {
    let node = attacher.lab().node.path();
    enter(&node, || {
        let mut commands = Commands::new(patience);
        work(attacher, &mut commands)?;
        Ok(commands.took())
    })
}

/// Fails unless the client reaches the container by the first and the last of its ports.
pub fn check(lab: &Lab, container: &Namespace, ports: Ports) -> Result<()> {
    const SOON: Duration = Duration::from_secs(5);
    for (published, served) in ports
        .pairs()
        .next()
        .into_iter()
        .chain(ports.pairs().next_back())
    {
        let listener = container.enter(|| TcpListener::bind(("0.0.0.0", served)));
        let listener = listener.with_context(|| format!("listening on {served}"))?;
        wait_for("a published port to be reached", 2 * SOON, || {
            let target = (NODE, published).into();
            lab.client
                .enter(|| TcpStream::connect_timeout(&target, SOON))
                .ok()
        });
        listener.accept().context("accept")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_written_as_users_write_them() {
        assert_eq!(Ports::one(8080).publish(), "8080:80");
        let range = Ports {
            published: 30_000,
            served: 10_000,
            count: 100,
        };
        assert_eq!(range.publish(), "30000-30099:10000-10099");
        assert_eq!(range.pairs().next_back(), Some((30_099, 10_099)));
    }
}
