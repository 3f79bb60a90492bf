//! A long life: what comes and goes leaves nothing, and what stays is not disturbed.
//!
//! A minute of it here; `cargo xtask endure --minutes N` goes on for longer (`NETFW_ENDURE_MINUTES`), and
//! `NETFW_ENDURE_SEED` repeats the changes of an earlier run.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use aya::{
    maps::MapInfo,
    programs::{ProgramInfo, loaded_programs},
};
use fastrand::Rng;
use netfw_common::ABI;
use netfw_tests::{
    Agent, Lab,
    load::{Connections, Greeter, Numbered},
    programs::{Drinker, Drinking, Fountain},
    topology::{NODE, WORLD},
    wait::wait_at_most,
};

use crate::setting::{SOON, attach};

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}: no number")))
}

/// What an agent and its data plane hold.
#[derive(Clone, Debug, PartialEq)]
struct Holdings {
    counts: BTreeMap<&'static str, usize>,
    /// The agent's resident memory, KiB.
    resident: usize,
}

impl Holdings {
    fn of(agent: &mut Agent, lab: &Lab) -> Self {
        let instance = agent.instance().to_owned();
        let pid = agent.process().pid();
        let entries = |path: &str| fs::read_dir(path).map_or(0, Iterator::count);
        let pins = format!("/sys/fs/bpf/{instance}/v{ABI}");
        let made = fs::read_dir("/run/netns").into_iter().flatten().flatten();
        let made = made.filter(|entry| {
            let name = entry.file_name();
            name.to_string_lossy().starts_with(&instance)
        });
        let counts = [
            ("links", lab.node.links().len()),
            (
                "routes",
                lab.node
                    .ip(&["route", "show", "table", "all"])
                    .lines()
                    .count(),
            ),
            ("programs", programs(&pins)),
            ("pinned maps", entries(&format!("{pins}/maps"))),
            ("pinned links", entries(&format!("{pins}/links"))),
            ("namespaces", made.count()),
            ("open files", entries(&format!("/proc/{pid}/fd"))),
            ("run files", entries(&format!("/run/netfw/{instance}"))),
        ];
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        Self {
            counts: counts.into(),
            resident: resident.expect("a running agent has memory"),
        }
    }

    /// Memory that the allocator keeps is not lost: a tenth and 4 MiB more are taken.
    #[track_caller]
    fn return_to(self, agent: &mut Agent, lab: &Lab) {
        let mut now = self.clone();
        let back = wait_at_most(SOON, || {
            now = Self::of(agent, lab);
            (now.counts == self.counts).then_some(())
        });
        eprintln!("{self:?}\n{now:?}");
        assert!(
            back.is_some(),
            "{:?} before, {:?} now",
            self.counts,
            now.counts
        );
        let most = self.resident + self.resident / 10 + (4 << 10);
        assert!(
            now.resident <= most,
            "{} KiB, {most} expected",
            now.resident
        );
    }
}

/// How many programs use the maps pinned there.
fn programs(pins: &str) -> usize {
    let config = MapInfo::from_pin(format!("{pins}/maps/CONFIG")).map(|map| map.id());
    let config = config.expect("the data plane is pinned");
    // Others' programs come and go meanwhile.
    let uses =
        |info: &ProgramInfo| matches!(info.map_ids(), Ok(Some(ids)) if ids.contains(&config));
    let loaded = loaded_programs().filter_map(Result::ok);
    loaded.filter(uses).count()
}

#[test]
fn cycles_and_restarts_leave_nothing() {
    let (cycles, restarts) = match number("NETFW_ENDURE_MINUTES") {
        Some(minutes) => (minutes * 1000, minutes * 10),
        None => (200, 4),
    };
    let lab = Lab::new();
    let mut agent = Agent::start(&lab);
    let cycle = |agent: &Agent, n: u64| {
        let name = format!("{}c{}", agent.instance(), n % 7);
        agent.netfw(&["endpoint", "add", &name, "-p", "0:80", "-p", "53:53/udp"]);
        agent.netfw(&["endpoint", "rm", &name]);
    };
    // The first ones fill what is kept.
    (0..20).for_each(|n| cycle(&agent, n));
    let before = Holdings::of(&mut agent, &lab);
    (0..cycles).for_each(|n| cycle(&agent, n));
    before.return_to(&mut agent, &lab);

    let stay = format!("{}stay", agent.instance());
    agent.netfw(&["endpoint", "add", &stay, "-p", "8080:80"]);
    agent.kill();
    agent.start_again();
    let before = Holdings::of(&mut agent, &lab);
    for n in 0..restarts {
        match n % 2 {
            0 => agent.kill(),
            _ => agent.stop(),
        }
        agent.start_again();
    }
    before.return_to(&mut agent, &lab);
    eprintln!("{cycles} endpoints came and went, the agent was restarted {restarts} times");
}

/// Endpoints and networks that come and go at random; none of the changes may fail.
struct Changes {
    rng: Rng,
    endpoints: Vec<String>,
    networks: Vec<String>,
    serial: u32,
}

impl Changes {
    fn new() -> Self {
        let seed = number("NETFW_ENDURE_SEED").unwrap_or_else(|| fastrand::u64(..));
        eprintln!("NETFW_ENDURE_SEED={seed}");
        Self {
            rng: Rng::with_seed(seed),
            endpoints: Vec::new(),
            networks: Vec::new(),
            serial: 0,
        }
    }

    fn name(&mut self, agent: &Agent, kind: char) -> String {
        self.serial += 1;
        format!("{}{kind}{}", agent.instance(), self.serial)
    }

    fn some_network(&mut self) -> Option<String> {
        self.rng.choice(&self.networks).cloned()
    }

    fn some_endpoint(&mut self) -> Option<String> {
        self.rng.choice(&self.endpoints).cloned()
    }

    fn carry_out(&mut self, agent: &mut Agent) {
        match self.rng.u8(..20) {
            0 => {
                agent.kill();
                agent.start_again();
            }
            1..=5 if self.endpoints.len() < 8 => {
                let name = self.name(agent, 'e');
                let mut words = vec!["endpoint", "add", &name, "-p", "0:80", "-p", "0:53/udp"];
                let network = self.some_network();
                words.extend(network.iter().flat_map(|network| ["--network", network]));
                agent.netfw(&words);
                self.endpoints.push(name);
            }
            6..=8 => {
                if let Some(endpoint) = self.some_endpoint() {
                    agent.netfw(&["endpoint", "rm", &endpoint]);
                    self.endpoints.retain(|name| *name != endpoint);
                }
            }
            9..=10 if self.networks.len() < 3 => {
                let name = self.name(agent, 'n');
                agent.netfw(&["network", "create", &name, "--ipv6"]);
                self.networks.push(name);
            }
            11 => {
                if let Some(network) = self.some_network() {
                    // One that is in use is refused, and stays.
                    let done = agent.output(&["network", "rm", &network]);
                    if done.status.success() {
                        self.networks.retain(|name| *name != network);
                    }
                }
            }
            12..=13 => {
                let network = self.some_network();
                if let (Some(network), Some(endpoint)) = (network, self.some_endpoint()) {
                    // In the way: it is in this one already, or in no other.
                    agent.output(&["network", "connect", &network, &endpoint]);
                }
            }
            14..=16 => {
                if let Some(endpoint) = self.some_endpoint() {
                    agent.netfw(&["publish", &endpoint, "20000-20063:1000-1063"]);
                    agent.netfw(&["flow", "flush", "--endpoint", &endpoint]);
                    agent.netfw(&["unpublish", &endpoint, "20000-20063:1000-1063"]);
                }
            }
            _ => {
                for words in [&["endpoint", "ls"], &["flow", "ls"], &["network", "ls"]] {
                    agent.netfw(words);
                }
            }
        }
    }

    fn undo(&mut self, agent: &Agent) {
        for endpoint in self.endpoints.drain(..) {
            agent.netfw(&["endpoint", "rm", &endpoint]);
        }
        for network in self.networks.drain(..) {
            agent.netfw(&["network", "rm", &network]);
        }
    }
}

#[test]
fn traffic_goes_on_among_changes() {
    let minutes = number("NETFW_ENDURE_MINUTES");
    let time = minutes.map_or(Duration::from_secs(20), |n| Duration::from_secs(n * 60));
    let lab = Lab::new();
    let mut agent = Agent::start(&lab);
    let web = lab.container("web");
    attach(
        &agent,
        "web",
        &web,
        &["7000:7000", "7001:7001", "7002:7002/udp"],
    );
    let _inside = Fountain::start(&web, 7000);
    let _outside = Fountain::start(&lab.world, 7000);
    let greeter = Greeter::start(&web, 7001);
    let mut changes = Changes::new();
    (0..20).for_each(|_| changes.carry_out(&mut agent));
    changes.undo(&agent);
    agent.stop();
    agent.start_again();
    let before = Holdings::of(&mut agent, &lab);

    let transfers = [
        Drinker::connect(&lab.client, (NODE, 7000)),
        Drinker::connect(&web, (WORLD, 7000)),
    ]
    .map(|drinker| Drinking::paced(drinker, 100_000_000));
    let streams = [
        Numbered::start(&lab.client, (NODE, 7002), (&web, 7002), 200),
        Numbered::start(&web, (WORLD, 7002), (&lab.world, 7002), 200),
    ];
    let calls = Connections::start(&lab.client, (NODE, 7001), 200);
    let end = Instant::now() + time;
    let mut made = 0;
    while Instant::now() < end {
        changes.carry_out(&mut agent);
        made += 1;
        if made % 50 == 0 {
            transfers.iter().for_each(Drinking::goes_on);
        }
    }
    changes.undo(&agent);

    transfers.into_iter().for_each(Drinking::finish);
    for (what, stream) in ["in", "out"].into_iter().zip(streams) {
        let (sent, wrong) = stream.finish();
        assert_eq!(wrong, [0u64; 0], "{what}: of {sent}");
        eprintln!("{sent} datagrams {what}, none lost");
    }
    let calls = calls.finish();
    assert_eq!(calls.failed, [""; 0], "of {}", calls.made);
    eprintln!(
        "{made} changes; {} connections, the slowest {:?}",
        calls.made, calls.slowest
    );
    greeter.finish(&web, 7001);
    before.return_to(&mut agent, &lab);
}
