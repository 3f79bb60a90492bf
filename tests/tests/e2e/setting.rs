//! What most of these tests begin with.

use std::{net::IpAddr, time::Duration};

use netfw_tests::{Agent, Lab, Namespace, programs::Nginx};

/// For anything that is to come about.
pub const SOON: Duration = Duration::from_secs(10);

/// A node with an agent, and nginx in a container that is attached as `web`.
///
/// Fields drop in order: the agent takes everything down while the node and the container live.
pub struct Site {
    pub agent: Agent,
    pub nginx: Nginx,
    pub web: Namespace,
    /// The container's own address.
    pub ip: IpAddr,
    pub ip6: IpAddr,
    pub lab: Lab,
}

impl Site {
    /// `-p` for each of `publishes`; nginx listens on ports 80 to 82.
    #[track_caller]
    pub fn new(publishes: &[&str]) -> Self {
        Self::in_lab(Lab::new(), &[], publishes)
    }

    /// In a lab as it is; `options` are the agent's.
    #[track_caller]
    pub fn in_lab(lab: Lab, options: &[&str], publishes: &[&str]) -> Self {
        let agent = Agent::start_with(&lab, options);
        let web = lab.container("web");
        let nginx = Nginx::start(&web, "web", &[80, 81, 82]);
        let ip = attach(&agent, "web", &web, publishes);
        let endpoint = agent.json(&["endpoint", "inspect", "web"]);
        let ip6 = text(&endpoint["ip6"]).parse().expect("an address");
        Self {
            agent,
            nginx,
            web,
            ip,
            ip6,
            lab,
        }
    }
}

/// Runs `test` twice: on what the client and the world send without checksums, as a veth pair does,
/// and TC takes; and on what they send with checksums, and XDP takes.
pub fn on_each_hook(publishes: &[&str], test: impl Fn(Site)) {
    for state in ["on", "off"] {
        let site = Site::new(publishes);
        for end in [&site.lab.client, &site.lab.world] {
            end.run(&["ethtool", "-K", "eth0", "tx", state]);
        }
        test(site);
    }
}

/// `netfw endpoint add NAME --netns … -p …`: the address that it got.
#[track_caller]
pub fn attach(agent: &Agent, name: &str, container: &Namespace, publishes: &[&str]) -> IpAddr {
    let mut words = vec!["endpoint", "add", name, "--netns", container.name()];
    for publish in publishes {
        words.extend(["-p", publish]);
    }
    let endpoint = agent.json(&words);
    text(&endpoint["ip"]).parse().expect("an address")
}

/// Where JSON must have a string.
#[track_caller]
pub fn text(value: &serde_json::Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is no string"))
}

/// How many packets were dropped for `reason`.
#[track_caller]
pub fn drops(agent: &Agent, reason: &str) -> u64 {
    let drops = agent.json(&["stats", "--drops"]);
    let all = drops.as_array().expect("a list");
    let one = all.iter().find(|drop| drop["reason"] == reason);
    one.and_then(|drop| drop["packets"].as_u64())
        .unwrap_or_else(|| panic!("no reason {reason} in {drops}"))
}

/// A counter of endpoint `name`: `rx_packets` and so on.
#[track_caller]
pub fn total(agent: &Agent, name: &str, counter: &str) -> u64 {
    let stats = agent.json(&["stats"]);
    let all = stats["endpoints"].as_array().expect("a list");
    let one = all.iter().find(|endpoint| endpoint["name"] == name);
    one.and_then(|endpoint| endpoint["total"][counter].as_u64())
        .unwrap_or_else(|| panic!("no {counter} of {name} in {stats}"))
}
