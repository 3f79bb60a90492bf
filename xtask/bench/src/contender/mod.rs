//! The ways from a client to a container that are compared.
//!
//! Each stands in a [`Lab`] of its own: client — `up0` node — container. In front of the container:
//!
//! * **host**: nothing; the server runs on the node itself, as with `docker run --network host`.
//! * **redirect**, **redirect-xdp**: a program on the uplink, by TC or by XDP, that sends everything
//!   into the container without a look: the limit. No addresses behind it, hence packets only.
//! * **routing**: `ip_forward`, a bridge, and the container's own address: no translation at all.
//! * **iptables**, **iptables-legacy**: the same bridge, and Docker's rules for nat, on the nf_tables
//!   backend and on the old one.
//! * **nftables**: the same bridge, and one rule with a map that finds the publish by hash: the best
//!   that netfilter can do without flowtables.
//! * **netfw**, **netfw-xdp**: an agent for the node, and an endpoint; by TC, and by native XDP on the
//!   uplink.
//!
//! Half of the publishes are for TCP, half for UDP, in turns. The one that is measured is the one in
//! the middle: the average, where the number of rules before it matters.

pub mod room;
mod rules;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    path::Path,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf,
    programs::{TcAttachType, Xdp, XdpMode},
};
use netfw_tests::{
    Agent, Lab, Namespace,
    testrun::ifindex,
    topology::{CLIENT, NODE},
};
use serde::{Deserialize, Serialize};

use crate::frames;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Host,
    Redirect,
    RedirectXdp,
    Routing,
    Iptables,
    IptablesLegacy,
    Nftables,
    Netfw,
    NetfwXdp,
}

impl Kind {
    pub const ALL: [Self; 9] = [
        Self::Host,
        Self::Redirect,
        Self::RedirectXdp,
        Self::Routing,
        Self::Iptables,
        Self::IptablesLegacy,
        Self::Nftables,
        Self::Netfw,
        Self::NetfwXdp,
    ];

    /// Can programs on the client and in the container talk?
    pub fn has_addresses(self) -> bool {
        !matches!(self, Self::Redirect | Self::RedirectXdp)
    }

    /// Is the server in a namespace of its own?
    /// What makes the node what it is, for people; none where nothing is made by command.
    pub fn commands(self) -> Option<String> {
        if let Some((command, rules)) = self.rules(1) {
            return Some(format!("{} <<END\n{rules}END\n", command.join(" ")));
        }
        let mode = self.xdp_mode()?;
        let publishes = publishes(1).join(" ");
        Some(format!(
            "netfw agent --netns NODE --xdp {mode}\n\
             netfw endpoint add web --netns CONTAINER {publishes}\n"
        ))
    }

    /// A command and the rules that it takes: so many publishes of each protocol.
    fn rules(self, each: u16) -> Option<(&'static [&'static str], String)> {
        match self {
            Self::Iptables => Some((&["iptables-nft-restore"], rules::iptables(each))),
            Self::IptablesLegacy => Some((&["iptables-legacy-restore"], rules::iptables(each))),
            Self::Nftables => Some((&["nft", "-f", "-"], rules::nftables(each))),
            _ => None,
        }
    }

    /// netfw's `--xdp`.
    fn xdp_mode(self) -> Option<&'static str> {
        match self {
            Self::Netfw => Some("off"),
            Self::NetfwXdp => Some("native"),
            _ => None,
        }
    }

    pub fn has_container(self) -> bool {
        self != Self::Host
    }

    /// Does the number of publishes mean anything?
    pub fn translates(self) -> bool {
        self.is_netfilter() || self.is_netfw()
    }

    pub fn is_netfilter(self) -> bool {
        matches!(self, Self::Iptables | Self::IptablesLegacy | Self::Nftables)
    }

    pub fn is_netfw(self) -> bool {
        matches!(self, Self::Netfw | Self::NetfwXdp)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Host => "host, no container",
            Self::Redirect => "bare redirect (TC)",
            Self::RedirectXdp => "bare redirect (XDP)",
            Self::Routing => "routing, no NAT",
            Self::Iptables => "iptables (nft)",
            Self::IptablesLegacy => "iptables (legacy)",
            Self::Nftables => "nftables, map",
            Self::Netfw => "netfw (TC)",
            Self::NetfwXdp => "netfw (XDP)",
        })
    }
}

/// The first published port of each protocol, and the container's first port behind those.
const FIRST_PUBLISHED: u16 = 2000;
const FIRST_SERVED: u16 = 3000;

/// Publishes of one protocol behind those: the ports up to 65535, and no more than are behind
/// [`FIRST_SERVED`].
const MOST_PUBLISHES: u32 = 2 * (u16::MAX - FIRST_SERVED) as u32;

pub const BRIDGE: &str = "docker0";
const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 17, 0, 1));
const CONTAINER: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 17, 0, 2));

/// The node's end of the container's veth, for those without netfw.
pub const HOST_SIDE: &str = "ct0";

/// A second container on the same network, for those loads that need one.
const NEIGHBOUR: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 17, 0, 3));
const NEIGHBOUR_HOST_SIDE: &str = "ct1";

/// Where the generator's flows come from beyond the client's own address: its low half counts.
pub const SOURCES: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 0);

/// A port of the server's, as the client knows it and as the server does.
#[derive(Clone, Copy)]
pub struct Service {
    pub published: SocketAddr,
    pub served: u16,
}

pub struct Contender {
    pub kind: Kind,
    pub tcp: Service,
    pub udp: Service,
    // Dropped in this order: the agent takes its own things down while the node is there.
    agent: Option<Agent>,
    redirect: Mutex<Option<Ebpf>>,
    container: Option<Namespace>,
    neighbour: OnceLock<Namespace>,
    pub lab: Lab,
}

/// netfw's options for so many publishes of each protocol.
fn publishes(each: u16) -> [String; 4] {
    let ports = |first: u16| format!("{first}-{}", first + (each - 1));
    let range = format!("{}:{}", ports(FIRST_PUBLISHED), ports(FIRST_SERVED));
    let udp = format!("{range}/udp");
    ["-p".to_owned(), range, "-p".to_owned(), udp]
}

/// Half of them are TCP's and half UDP's.
pub fn check_publishes(publishes: u32) -> Result<()> {
    ensure!(
        (2..=MOST_PUBLISHES).contains(&publishes),
        "{publishes} publishes: from 2 to {MOST_PUBLISHES} there can be"
    );
    Ok(())
}

impl Contender {
    /// `config` is netfw's configuration file, if it has any.
    pub fn set_up(kind: Kind, publishes: u32, config: Option<&Path>) -> Result<Self> {
        check_publishes(publishes)?;
        let each = u16::try_from(publishes / 2).context("a number of ports")?;
        let lab = Lab::lay_out();
        let container = kind.has_container().then(|| lab.container("container"));
        let middle = each / 2;
        let service = Service {
            published: SocketAddr::new(NODE, FIRST_PUBLISHED + middle),
            served: FIRST_SERVED + middle,
        };
        let mut contender = Self {
            kind,
            tcp: service,
            udp: service,
            agent: None,
            redirect: Mutex::new(None),
            container,
            neighbour: OnceLock::new(),
            lab,
        };
        match kind {
            Kind::Host => contender.serve_at(NODE),
            Kind::Redirect | Kind::RedirectXdp => {
                contender.attach(contender.server(), HOST_SIDE);
                contender.redirect = Mutex::new(Some(contender.redirect()?));
            }
            Kind::Routing => {
                contender.bridge();
                contender.serve_at(CONTAINER);
            }
            Kind::Iptables | Kind::IptablesLegacy | Kind::Nftables => {
                contender.bridge();
                contender.load_rules(each)?;
            }
            Kind::Netfw | Kind::NetfwXdp => contender.start_agent(each, config)?,
        }
        contender.get_ready()?;
        Ok(contender)
    }

    /// Where the server runs.
    pub fn server(&self) -> &Namespace {
        self.container.as_ref().unwrap_or(&self.lab.node)
    }

    /// The interface there on which packets for the server arrive.
    pub fn server_link(&self) -> &'static str {
        match self.container {
            Some(_) => "eth0",
            None => "up0",
        }
    }

    /// A second container on the same network, made when somebody first asks for it.
    pub fn neighbour(&self) -> Result<&Namespace> {
        if let Some(neighbour) = self.neighbour.get() {
            return Ok(neighbour);
        }
        let neighbour = self.lab.container("neighbour");
        if let Some(agent) = &self.agent {
            let path = neighbour.path();
            let path = path.to_str().context("a namespace's path is ASCII")?;
            agent.netfw(&["endpoint", "add", "neighbour", "--netns", path]);
        } else {
            self.plug_in(&neighbour, NEIGHBOUR_HOST_SIDE, NEIGHBOUR);
        }
        self.have_gro();
        Ok(self.neighbour.get_or_init(|| neighbour))
    }

    pub fn agent(&self) -> Option<&Agent> {
        self.agent.as_ref()
    }

    /// The server's own address.
    pub fn server_address(&self) -> Result<IpAddr> {
        if !self.kind.has_container() {
            return Ok(NODE);
        }
        let listed = self
            .server()
            .ip(&["-4", "-o", "addr", "show", "dev", "eth0"]);
        listed
            .split_whitespace()
            .find_map(|word| word.split_once('/')?.0.parse().ok())
            .with_context(|| format!("no address in {listed:?}"))
    }

    /// Forgets all flows, so that a round does not pay for those of earlier ones.
    pub fn forget_flows(&self) {
        match (&self.agent, self.kind.is_netfilter()) {
            (Some(agent), _) => {
                agent.netfw(&["flow", "flush"]);
            }
            (None, true) => {
                self.lab.node.run(&["conntrack", "-F"]);
            }
            _ => {}
        }
    }

    /// The server needs no publish: the client reaches it by its own address.
    fn serve_at(&mut self, address: IpAddr) {
        for service in [&mut self.tcp, &mut self.udp] {
            service.published = SocketAddr::new(address, service.served);
        }
    }

    /// A veth pair between the node and a container.
    fn attach(&self, container: &Namespace, host_side: &str) {
        let node = &self.lab.node;
        let peer = ["peer", "name", "eth0", "netns", container.name()];
        node.ip(&[&["link", "add", host_side, "type", "veth"], &peer[..]].concat());
        node.ip(&["link", "set", host_side, "up"]);
        container.ip(&["link", "set", "eth0", "up"]);
    }

    /// The same, and the container has an address on the bridge.
    fn plug_in(&self, container: &Namespace, host_side: &str, address: IpAddr) {
        self.attach(container, host_side);
        let node = &self.lab.node;
        node.ip(&["link", "set", host_side, "master", BRIDGE]);
        container.ip(&["addr", "add", &format!("{address}/16"), "dev", "eth0"]);
        container.ip(&["route", "add", "default", "via", &GATEWAY.to_string()]);
    }

    /// A bridge with the container on it, and a node that forwards.
    fn bridge(&self) {
        let node = &self.lab.node;
        node.ip(&["link", "add", BRIDGE, "type", "bridge"]);
        node.ip(&["addr", "add", &format!("{GATEWAY}/16"), "dev", BRIDGE]);
        node.ip(&["link", "set", BRIDGE, "up"]);
        self.plug_in(self.server(), HOST_SIDE, CONTAINER);
        node.sysctl("ipv4/ip_forward", "1");
        self.lab.route_through_node();
        // Absent where the kernel has no br_netfilter, or has not loaded it.
        if Path::new("/proc/sys/net/bridge").exists() {
            node.sysctl("bridge/bridge-nf-call-iptables", "0");
        }
    }

    /// The bare redirects, both ways.
    fn redirect(&self) -> Result<Ebpf> {
        let node = &self.lab.node;
        let mut ebpf = frames::loader()
            .override_global("REDIRECT_TO", &ifindex(node, HOST_SIDE), true)
            .override_global("REDIRECT_OUT", &ifindex(node, "up0"), true)
            .load(frames::PROGRAMS)
            .context("loading the bare redirects")?;
        if self.kind == Kind::RedirectXdp {
            attach_xdp(node, &mut ebpf, "redirect_xdp")?;
        } else {
            let redirect = frames::classifier(&mut ebpf, "redirect")?;
            node.enter(|| redirect.attach("up0", TcAttachType::Ingress))
                .context("attaching the redirect")?;
        }
        let redirect = frames::classifier(&mut ebpf, "redirect_out")?;
        node.enter(|| redirect.attach(HOST_SIDE, TcAttachType::Ingress))
            .context("attaching the redirect on the way out")?;
        Ok(ebpf)
    }

    /// Has a bare redirect's uplink drop everything instead, as long as the value returned lives.
    pub fn drop_all(&self) -> Result<Closed<'_>> {
        let node = &self.lab.node;
        // Detaches it.
        *self.programs() = None;
        let mut ebpf = frames::loader()
            .load(frames::PROGRAMS)
            .context("loading the bare drops")?;
        if self.kind == Kind::RedirectXdp {
            attach_xdp(node, &mut ebpf, "drop_xdp")?;
        } else {
            let drop = frames::classifier(&mut ebpf, "drop")?;
            node.enter(|| drop.attach("up0", TcAttachType::Ingress))
                .context("attaching the drop")?;
        }
        *self.programs() = Some(ebpf);
        Ok(Closed(self))
    }

    fn programs(&self) -> MutexGuard<'_, Option<Ebpf>> {
        self.redirect.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load_rules(&self, each: u16) -> Result<()> {
        let node = &self.lab.node;
        match self.kind.rules(each) {
            Some((command, rules)) => rules::load(node, command, &rules),
            None => Ok(()),
        }
    }

    fn start_agent(&mut self, each: u16, config: Option<&Path>) -> Result<()> {
        let mode = self.kind.xdp_mode().context("a mode of XDP")?;
        let mut options = vec!["--xdp", mode];
        if let Some(config) = config {
            let config = config.to_str().context("a configuration's path")?;
            options.extend(["--config", config]);
        }
        let agent = Agent::start_with(&self.lab, &options).lenient();
        let path = self.server().path();
        let path = path.to_str().context("a namespace's path is ASCII")?;
        let publishes = publishes(each);
        let publishes: Vec<&str> = publishes.iter().map(String::as_str).collect();
        agent.netfw(&[&["endpoint", "add", "web", "--netns", path], &publishes[..]].concat());
        self.agent = Some(agent);
        Ok(())
    }

    /// What the loads need, whoever forwards.
    fn get_ready(&self) -> Result<()> {
        let Lab { node, client, .. } = &self.lab;
        client.run(&["ethtool", "-K", "eth0", "gro", "on"]);
        self.have_gro();
        if self.kind == Kind::RedirectXdp {
            self.server().run(&["ethtool", "-K", "eth0", "gro", "on"]);
        }
        let sources = format!("{SOURCES}/16");
        node.ip(&["route", "add", &sources, "via", &CLIENT.to_string()]);
        if self.kind.has_container() && self.kind.has_addresses() {
            self.meet()?;
        }
        Ok(())
    }

    /// XDP frames reach a veth only where the other end polls, which GRO makes it do; the same for all.
    fn have_gro(&self) {
        let node = &self.lab.node;
        for link in node.links() {
            if is_veth(node, &link) {
                node.run(&["ethtool", "-K", &link, "gro", "on"]);
            }
        }
    }

    /// A datagram from the container to the client: neighbours know each other from then on.
    fn meet(&self) -> Result<()> {
        let sent = self.server().enter(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.send_to(b"hello", (CLIENT, 9))
        });
        sent.context("sending from the container")?;
        Ok(())
    }
}

/// While it lives, the uplink of a bare redirect drops everything; then it redirects again.
pub struct Closed<'a>(&'a Contender);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        *self.0.programs() = None;
        match self.0.redirect() {
            Ok(redirect) => *self.0.programs() = Some(redirect),
            // Whatever comes next finds that nothing arrives, and says so.
            Err(error) => eprintln!("{}: {error:#}", self.0.kind),
        }
    }
}

/// Loads an XDP program and attaches it to the uplink.
fn attach_xdp(node: &Namespace, ebpf: &mut Ebpf, name: &str) -> Result<()> {
    let program: &mut Xdp = ebpf
        .program_mut(name)
        .with_context(|| format!("program {name}"))?
        .try_into()?;
    program.load().with_context(|| format!("loading {name}"))?;
    node.enter(|| program.attach("up0", XdpMode::Driver))
        .with_context(|| format!("attaching {name} by XDP"))?;
    Ok(())
}

fn is_veth(node: &Namespace, link: &str) -> bool {
    node.ip(&["-d", "link", "show", "dev", link])
        .contains(" veth ")
}
