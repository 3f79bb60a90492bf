//! Milliseconds that it takes to start a container with one port published, and to remove it, as the user of a
//! container runtime does it: real podman and dockerd, each with a node of its own. Beside each of them the same
//! runtime without a network, which is what the rest of a container takes.

use std::{
    os::unix::fs::symlink,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use netfw_tests::{
    Agent, Lab,
    docker::Docker,
    podman::Podman,
    programs::curl,
    runtime::{HTTPD, IMAGE, PAGE},
    topology::NODE,
    wait::wait_for,
};

use super::{Chore, Stage, attacher::Cni, count};
use crate::report::{Better, Heading};

const PORT: u16 = 8080;
const NAME: &str = "one-more";
const NETWORK: &str = "bench";

/// Seconds, about: to set all up, and a round of one.
const START: f64 = 15.0;
const ROUND: f64 = 2.0;

/// However few rounds others have: one takes a second, and no two are alike.
const LEAST: usize = 10;

pub struct Containers;

impl Chore for Containers {
    fn name(&self) -> &'static str {
        "containers"
    }

    fn seconds(&self, rounds: usize) -> f64 {
        START + ROUND * 6.0 * count(rounds.max(LEAST))
    }

    fn run(&self, stage: &mut Stage) -> Result<()> {
        let heading = |id: &str, title: &str| Heading {
            id: id.to_owned(),
            title: title.to_owned(),
            unit: "ms".to_owned(),
            better: Better::Lower,
            axis: None,
        };
        let start = heading("container-start", "Start a container, with one publish");
        let end = heading("container-end", "Remove a container, with one publish");
        stage.progress.say("containers: setting up");
        let lanes = lanes(stage)?;
        stage.progress.advance(START);
        let rounds = stage.rounds.max(LEAST);
        for round in 1..=rounds {
            for lane in &lanes {
                let name = lane.name;
                stage
                    .progress
                    .say(&format!("containers, round {round} of {rounds}: {name}"));
                let [started, ended] = lane.round(round == 1);
                stage.report.add(&start, name, None, started);
                stage.report.add(&end, name, None, ended);
                stage.progress.advance(ROUND);
            }
        }
        Ok(())
    }
}

/// Who starts a container, and the network that it gets; None: it has none, and no publish.
///
/// Fields drop in order: containers go before the agent, and that before the node.
struct Lane {
    name: &'static str,
    network: Option<&'static str>,
    runtime: Runtime,
    _agent: Option<Agent>,
    lab: Lab,
}

enum Runtime {
    Podman(Podman),
    Docker(Docker),
}

impl Runtime {
    fn run(&self, words: &[&str]) {
        match self {
            Self::Podman(podman) => podman.podman(words),
            Self::Docker(docker) => docker.docker(words),
        };
    }
}

/// All for whom there are programs; the fixtures say what is missing.
fn lanes(stage: &Stage) -> Result<Vec<Lane>> {
    let mut lanes = Vec::new();
    for (name, network) in [
        ("podman, netfw-cni", Some(NETWORK)),
        ("podman, CNI bridge + portmap", Some(NETWORK)),
        ("podman, no network", None),
    ] {
        let lab = Lab::lay_out();
        let Some(podman) = Podman::start(&lab.node) else {
            break;
        };
        let mut agent = None;
        if name.ends_with("netfw-cni") {
            let agent = agent.insert(Agent::start(&lab).lenient());
            let instance = agent.instance();
            podman.network(
                NETWORK,
                &format!(
                    r#"{{"type": "netfw-cni", "instance": "{instance}", "capabilities": {{"portMappings": true}}}}"#
                ),
            );
        } else if network.is_some() {
            if let Some(program) = Cni::missing() {
                stage
                    .progress
                    .line(&format!("{name} is left out: there is no {program} here"));
                continue;
            }
            bridge(&podman)?;
        }
        lanes.push(Lane {
            name,
            network,
            runtime: Runtime::Podman(podman),
            _agent: agent,
            lab,
        });
    }
    for (name, network) in [
        ("Docker, netfw", Some(NETWORK)),
        ("Docker, its bridge", Some(NETWORK)),
        ("Docker, no network", None),
    ] {
        let lab = Lab::lay_out();
        let Some(docker) = Docker::start(&lab.node, &[]) else {
            break;
        };
        let create = |driver: &str| docker.docker(&["network", "create", "-d", driver, NETWORK]);
        let mut agent = None;
        if name.ends_with("netfw") {
            let agent = agent.insert(Agent::start(&lab).lenient());
            create(agent.instance());
        } else if network.is_some() {
            // Not the default one, whose containers have no name server of dockerd's.
            create("bridge");
        }
        lanes.push(Lane {
            name,
            network,
            runtime: Runtime::Docker(docker),
            _agent: agent,
            lab,
        });
    }
    Ok(lanes)
}

/// The network of the reference plugins.
fn bridge(podman: &Podman) -> Result<()> {
    for plugin in ["bridge", "host-local", "portmap"] {
        let from = Path::new("/usr/lib/cni").join(plugin);
        symlink(from, podman.path().join("bin").join(plugin)).context("a link to a plugin")?;
    }
    let addresses = podman.path().join("addresses");
    podman.network(
        NETWORK,
        &format!(
            r#"{{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
                 "ipam": {{"type": "host-local", "dataDir": "{}", "ranges": [[{{"subnet": "10.88.0.0/16"}}]],
                           "routes": [{{"dst": "0.0.0.0/0"}}]}}}},
               {{"type": "portmap", "capabilities": {{"portMappings": true}}}}"#,
            addresses.display()
        ),
    );
    Ok(())
}

impl Lane {
    /// Milliseconds to start one, and to remove it. Where asked to, looks whether it serves.
    fn round(&self, check: bool) -> [f64; 2] {
        let publish = format!("{PORT}:80");
        let mut run = vec!["run", "-d", "--name", NAME];
        match self.network {
            Some(network) => run.extend(["--network", network, "-p", &publish]),
            None => run.extend(["--network", "none"]),
        }
        run.push(IMAGE);
        run.extend(HTTPD);
        let started = timed(|| self.runtime.run(&run));
        if check && self.network.is_some() {
            wait_for("the page", Duration::from_secs(10), || {
                curl(&self.lab.client, NODE, PORT, "/").filter(|page| page == PAGE)
            });
        }
        let remove: &[&str] = match &self.runtime {
            Runtime::Podman(_) => &["rm", "-f", "-t", "0", NAME],
            Runtime::Docker(_) => &["rm", "-f", NAME],
        };
        [started, timed(|| self.runtime.run(remove))]
    }
}

fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64() * 1e3
}
