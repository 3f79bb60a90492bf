//! The ways from a client to a container that are compared.
//!
//! Each stands in a [`Lab`] of its own: client — `up0` node — container. In front of the
//! container:
//!
//! * **redirect**: a TC program on the uplink that sends everything into the container without a
//!   look: the limit. No addresses behind it, hence packets only.
//! * **routing**: `ip_forward`, a bridge, and the container's own address: no translation at all.
//! * **iptables**: the same bridge, and Docker's layout in the nat table: `PREROUTING` jumps to
//!   `DOCKER` for local addresses, which has one DNAT rule per publish; `POSTROUTING` masquerades.
//!   What Docker adds in the filter table is left out, and `bridge-nf-call-iptables` is off: both
//!   would only slow it down.
//! * **netfw**: an agent for the node, an endpoint with as many publishes, by TC.
//! * **redirect-xdp** and **netfw-xdp**: the same two by native XDP on the uplink.
//!
//! The publish that is measured is the one in the middle: the average, where the number of rules
//! before it matters.

use std::{
    fmt::{self, Write as _},
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Stdio,
};

use anyhow::{Context as _, Result, bail};
use netfw_tests::{Agent, Lab, Namespace, topology::NODE};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    Redirect,
    RedirectXdp,
    Routing,
    Iptables,
    Netfw,
    NetfwXdp,
}

impl Kind {
    pub const ALL: [Self; 6] = [
        Self::Redirect,
        Self::RedirectXdp,
        Self::Routing,
        Self::Iptables,
        Self::Netfw,
        Self::NetfwXdp,
    ];

    pub fn has_addresses(self) -> bool {
        !matches!(self, Self::Redirect | Self::RedirectXdp)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Redirect => "bare redirect (TC)",
            Self::RedirectXdp => "bare redirect (XDP)",
            Self::Routing => "routing, no NAT",
            Self::Iptables => "iptables",
            Self::Netfw => "netfw (TC)",
            Self::NetfwXdp => "netfw (XDP)",
        })
    }
}

/// The first published TCP port, and the first port of the container's that it leads to.
const FIRST_PUBLISHED: u16 = 8000;
const FIRST_SERVED: u16 = 80;
/// Published and served for UDP.
const UDP: u16 = 53;

const BRIDGE: &str = "docker0";
const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 17, 0, 1));
const CONTAINER: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 17, 0, 2));

/// The node's end of the container's veth, for those without netfw.
pub const HOST_SIDE: &str = "ct0";

pub struct Contender {
    pub kind: Kind,
    /// Where the client sends UDP packets to, and the port on which the container gets them.
    pub udp: (SocketAddr, u16),
    /// The same for HTTP.
    pub http: (SocketAddr, u16),
    // Dropped in this order: the agent takes its own things down while the node is there.
    agent: Option<Agent>,
    pub container: Namespace,
    pub lab: Lab,
}

impl Contender {
    pub fn set_up(kind: Kind, publishes: u16) -> Result<Self> {
        let Some(last) = (publishes - 1).checked_add(FIRST_PUBLISHED) else {
            bail!("{publishes} publishes do not fit behind port {FIRST_PUBLISHED}");
        };
        let lab = Lab::new();
        let container = lab.container("container");
        // XDP frames reach a veth only where the other end polls, which GRO makes it do.
        lab.node.run(&["ethtool", "-K", "up0", "gro", "on"]);
        let middle = publishes / 2;
        let (published, served) = (FIRST_PUBLISHED + middle, FIRST_SERVED + middle);
        let mut contender = Self {
            kind,
            udp: (SocketAddr::new(NODE, UDP), UDP),
            http: (SocketAddr::new(NODE, published), served),
            agent: None,
            container,
            lab,
        };
        match kind {
            Kind::Redirect => contender.attach(),
            Kind::RedirectXdp => {
                contender.attach();
                let container = &contender.container;
                container.run(&["ethtool", "-K", "eth0", "gro", "on"]);
            }
            Kind::Routing => {
                contender.bridge();
                contender.udp.0 = SocketAddr::new(CONTAINER, UDP);
                contender.http.0 = SocketAddr::new(CONTAINER, served);
            }
            Kind::Iptables => {
                contender.bridge();
                contender.docker_rules(publishes)?;
            }
            Kind::Netfw | Kind::NetfwXdp => {
                let mode = match kind {
                    Kind::NetfwXdp => "native",
                    _ => "off",
                };
                let agent = Agent::start_with(&contender.lab, &["--xdp", mode]).lenient();
                let path = contender.container.path();
                let last_served = FIRST_SERVED + (publishes - 1);
                agent.netfw(&[
                    "endpoint",
                    "add",
                    "web",
                    "--netns",
                    path.to_str().context("a namespace's path is ASCII")?,
                    "-p",
                    &format!("{FIRST_PUBLISHED}-{last}:{FIRST_SERVED}-{last_served}"),
                    "-p",
                    &format!("{UDP}:{UDP}/udp"),
                ]);
                contender.agent = Some(agent);
            }
        }
        Ok(contender)
    }

    /// The container's interface, by its name there.
    pub fn container_link(&self) -> Result<String> {
        self.container
            .links()
            .into_iter()
            .find(|link| link != "lo")
            .with_context(|| format!("{} has no interface", self.container.name()))
    }

    /// Forgets all flows, so that a round does not pay for those of earlier ones.
    pub fn forget_flows(&self) {
        match (&self.agent, self.kind) {
            (Some(agent), _) => {
                agent.netfw(&["flow", "flush"]);
            }
            (None, Kind::Iptables) => {
                self.lab.node.run(&["conntrack", "-F"]);
            }
            _ => {}
        }
    }

    /// A veth pair between node and container.
    fn attach(&self) {
        self.lab.node.ip(&[
            "link",
            "add",
            HOST_SIDE,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            self.container.name(),
        ]);
        self.lab.node.ip(&["link", "set", HOST_SIDE, "up"]);
        self.container.ip(&["link", "set", "eth0", "up"]);
    }

    /// A bridge with the container on it, and a node that forwards.
    fn bridge(&self) {
        let node = &self.lab.node;
        node.ip(&["link", "add", BRIDGE, "type", "bridge"]);
        node.ip(&["addr", "add", &format!("{GATEWAY}/16"), "dev", BRIDGE]);
        node.ip(&["link", "set", BRIDGE, "up"]);
        self.attach();
        node.ip(&["link", "set", HOST_SIDE, "master", BRIDGE]);
        self.container
            .ip(&["addr", "add", &format!("{CONTAINER}/16"), "dev", "eth0"]);
        self.container
            .ip(&["route", "add", "default", "via", &GATEWAY.to_string()]);
        node.sysctl("ipv4/ip_forward", "1");
        self.lab.route_through_node();
        // Absent where the kernel has no br_netfilter, or has not loaded it.
        if std::path::Path::new("/proc/sys/net/bridge").exists() {
            node.sysctl("bridge/bridge-nf-call-iptables", "0");
        }
    }

    fn docker_rules(&self, publishes: u16) -> Result<()> {
        let mut rules = format!(
            "*nat\n\
             :DOCKER - [0:0]\n\
             -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
             -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER\n\
             -A POSTROUTING -s {CONTAINER}/16 ! -o {BRIDGE} -j MASQUERADE\n\
             -A DOCKER -i {BRIDGE} -j RETURN\n"
        );
        let mut publish = |protocol: &str, from: u16, to: u16| {
            let _ = writeln!(
                rules,
                "-A DOCKER ! -i {BRIDGE} -p {protocol} -m {protocol} --dport {from} -j DNAT --to-destination {CONTAINER}:{to}"
            );
        };
        for n in 0..publishes {
            publish("tcp", FIRST_PUBLISHED + n, FIRST_SERVED + n);
        }
        publish("udp", UDP, UDP);
        rules.push_str("COMMIT\n");

        let mut restore = self
            .lab
            .node
            .command("iptables-restore")
            .stdin(Stdio::piped())
            .spawn()
            .context("cannot start iptables-restore")?;
        restore
            .stdin
            .take()
            .context("stdin is a pipe")?
            .write_all(rules.as_bytes())
            .context("iptables-restore takes no rules")?;
        let status = restore.wait().context("iptables-restore")?;
        if !status.success() {
            bail!("iptables-restore ended with {status}");
        }
        Ok(())
    }
}
