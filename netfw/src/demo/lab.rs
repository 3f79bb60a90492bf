//! The lab: four namespaces, two wires, servers, and an agent of this very binary.
//!
//! Dropping a [`Lab`] removes all of it, in whatever state it is; that is also what an interrupt
//! does.

use std::{
    fs::File,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context;
use ipnet::IpNet;
use nix::{
    errno::Errno,
    sys::{
        prctl::set_pdeathsig,
        signal::{Signal, kill},
    },
    unistd::{Pid, getpid, getppid},
};

use super::{
    http::{self, Seen},
    leftovers::{self, Mark},
    report::say,
};
use crate::{
    agent::{ipam::mac_for, network},
    api::{
        client::{Client, ClientError},
        types::{EndpointRequest, NamespaceRequest},
    },
    name::Name,
    net::{Namespace, Netlink, Route, Veth},
};

/// Of each family one: RFC 5737's and RFC 3849's addresses for documentation, which no network in use
/// has.
pub type Both = [IpAddr; 2];
pub const CLIENT: Both = both([198, 51, 100, 10], 1, 0x10);
pub const NODE_CLIENT_SIDE: Both = both([198, 51, 100, 1], 1, 1);
pub const NODE_WORLD_SIDE: Both = both([203, 0, 113, 1], 2, 1);
pub const WORLD: Both = both([203, 0, 113, 10], 2, 0x10);

const fn both(four: [u8; 4], link: u16, host: u16) -> Both {
    let [a, b, c, d] = four;
    [
        IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, link, 0, 0, 0, 0, host)),
    ]
}
/// The host port, and where it leads.
pub const PUBLISHED: u16 = 8080;
pub const INSIDE: u16 = 80;
pub const WORLD_PORT: u16 = 80;

pub const PICTURE: &str = "\
netfw demo: four network namespaces on this machine, one of them a node that netfw serves

  client 198.51.100.10 ---- 198.51.100.1  NODE  203.0.113.1 ---- 203.0.113.10 outside server
       2001:db8:1::10       2001:db8:1::1  |  2001:db8:2::1      2001:db8:2::10
                                           |
                                        netfw0
                                           |
                                web container (port 80, published as 8080)
";

/// For the agent to start or to end. The verifier of an emulated machine takes a good half of it.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Lab {
    pub client: Namespace,
    pub node: Namespace,
    pub container: Namespace,
    pub web: Name,
    pub web_saw: Seen,
    pub world_saw: Seen,
    instance: Name,
    // Fields drop in order: the agent and what it made, then the namespaces, then the mark that
    // tells of them.
    _agent: Agent,
    _names: Names,
    _mark: Mark,
}

impl Lab {
    pub async fn build() -> anyhow::Result<Self> {
        let instance = leftovers::instance(std::process::id());
        let mark = Mark::make(&instance)?;
        let mut names = Names::default();
        let client = names.make("client")?;
        let node = names.make("node")?;
        let container = names.make("web")?;
        let world = names.make("world")?;
        wire(&node, "client0", NODE_CLIENT_SIDE, &client, CLIENT).await?;
        wire(&node, "world0", NODE_WORLD_SIDE, &world, WORLD).await?;
        let web_saw = http::serve(&container, INSIDE)?;
        let world_saw = http::serve(&world, WORLD_PORT)?;
        let agent = Agent::start(&instance, &names.of("node"))?;
        agent.ready(&instance).await?;
        let web: Name = "web".parse()?;
        Client::new(&instance)
            .add_endpoint(&EndpointRequest {
                name: web.clone(),
                network: None,
                namespace: Some(NamespaceRequest::Name(names.of("web"))),
                ip: None,
                ip6: None,
                mac: None,
                publish: vec![format!("{PUBLISHED}:{INSIDE}").parse()?],
                allow_from: Default::default(),
                expose: Vec::new(),
                publish_all: false,
                aliases: Vec::new(),
                links: Vec::new(),
                owned: None,
            })
            .await?;
        Ok(Self {
            client,
            node,
            container,
            web,
            web_saw,
            world_saw,
            instance,
            _agent: agent,
            _names: names,
            _mark: mark,
        })
    }

    pub fn agent(&self) -> Client {
        Client::new(&self.instance)
    }

    /// For `--keep`.
    pub fn explain(&self) -> anyhow::Result<()> {
        let netfw = std::env::current_exe()
            .map_or_else(|_| "netfw".into(), |path| path.display().to_string());
        let i = &self.instance;
        let [client, node] = ["client", "node"].map(|role| self._names.of(role));
        let ([inside, _], [outside, _]) = (NODE_CLIENT_SIDE, WORLD);
        say(&format!(
            "
Look around from another terminal:
  {netfw} --instance {i} status          (also: endpoint ls, port, flow ls, stats, stats --drops)
  {netfw} --instance {i} exec web -- ip addr
  ip netns exec {client} curl http://{inside}:{PUBLISHED}/
  {netfw} --instance {i} exec web -- curl http://{outside}/
  ip netns exec {node} tcpdump -ni world0
Ctrl-C ends the demo and removes everything.

"
        ))
    }
}

/// The namespaces' names; they go when it drops.
#[derive(Default)]
struct Names(Vec<String>);

impl Names {
    fn of(&self, role: &str) -> String {
        format!("{}{role}", leftovers::prefix(std::process::id()))
    }

    fn make(&mut self, role: &str) -> anyhow::Result<Namespace> {
        let name = self.of(role);
        let namespace = Namespace::create(&name)?;
        self.0.push(name);
        Ok(namespace)
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        for name in &self.0 {
            if let Err(error) = Namespace::delete(name) {
                complain(&error.to_string());
            }
        }
    }
}

/// Machines without IPv6 see the demo without.
fn has_ipv6(namespace: &Namespace) -> anyhow::Result<bool> {
    Ok(namespace.run(|| network::ipv6().is_ok())?)
}

/// A veth pair from the node to a neighbour, who has the node as its gateway.
async fn wire(
    node: &Namespace,
    name: &str,
    node_ips: Both,
    neighbour: &Namespace,
    ips: Both,
) -> anyhow::Result<()> {
    let here = Netlink::within(node)?;
    let mac = |[ip, _]: Both| mac_for(ip).0;
    let (near, far) = here
        .create_veth(Veth {
            host_name: name,
            host_mac: mac(node_ips),
            peer_name: "eth0",
            peer_mac: mac(ips),
            peer_ns: neighbour.as_fd(),
            mtu: 1500,
            // Of no bridge.
            master: 0,
            alias: "netfw demo",
        })
        .await?;
    let there = Netlink::within(neighbour)?;
    here.set_up(near).await?;
    there.set_up(far).await?;
    let families = if has_ipv6(node)? { 2 } else { 1 };
    for (node_ip, ip) in node_ips.into_iter().zip(ips).take(families) {
        let prefix = if ip.is_ipv4() { 24 } else { 64 };
        here.add_address(near, IpNet::new(node_ip, prefix)?).await?;
        there.add_address(far, IpNet::new(ip, prefix)?).await?;
        there
            .add_route(&Route::default_of(node_ip, far, Route::MAIN), Some(node_ip))
            .await?;
    }
    Ok(())
}

/// The agent, a process of its own; `netfw down` when it drops.
struct Agent {
    instance: Name,
    process: Child,
    log: File,
}

impl Agent {
    fn start(instance: &Name, netns: &str) -> anyhow::Result<Self> {
        // Its log is nobody's concern unless it fails; a file without a name goes by itself.
        let log = nix::sys::memfd::memfd_create(
            c"netfw-demo-agent-log",
            nix::sys::memfd::MFdFlags::MFD_CLOEXEC,
        )?;
        let log = File::from(log);
        let mut command = netfw(instance);
        command
            .args(["agent", "--netns", netns])
            .stderr(log.try_clone()?)
            // Ctrl-C is for the demo, which ends the agent when it is done with it.
            .process_group(0);
        let demo = getpid();
        // SAFETY: prctl(2) and getppid(2) are all that runs between fork and exec.
        unsafe {
            command.pre_exec(move || {
                // SIGKILL leaves the demo no time to do so.
                set_pdeathsig(Signal::SIGTERM)?;
                // Before that it died unseen.
                if getppid() != demo {
                    return Err(Errno::ESRCH.into());
                }
                Ok(())
            });
        }
        let process = command.spawn().context("the agent cannot be started")?;
        Ok(Self {
            instance: instance.clone(),
            process,
            log,
        })
    }

    async fn ready(&self, instance: &Name) -> anyhow::Result<()> {
        let client = Client::new(instance);
        let deadline = Instant::now() + PATIENCE;
        loop {
            match client.status().await {
                Ok(_) => return Ok(()),
                Err(ClientError::NotRunning { .. } | ClientError::Starting { .. })
                    if Instant::now() < deadline && self.lives() =>
                {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(_) if self.lives() => anyhow::bail!(
                    "the agent takes longer than {} s to start; it said:\n{}",
                    PATIENCE.as_secs(),
                    self.said()
                ),
                Err(_) => anyhow::bail!("the agent did not start; it said:\n{}", self.said()),
            }
        }
    }

    fn lives(&self) -> bool {
        let pid = Pid::from_raw(self.process.id().cast_signed());
        // A zombie would still take a signal: look without reaping.
        std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.contains(") Z "))
    }

    fn said(&self) -> String {
        // Through /proc: the descriptor's own offset is the agent's writing position.
        use std::os::fd::AsRawFd;
        let mut text = String::new();
        let path = format!("/proc/self/fd/{}", self.log.as_raw_fd());
        match File::open(path).and_then(|mut file| file.read_to_string(&mut text)) {
            Ok(_) => text,
            Err(error) => format!("(its log cannot be read: {error})"),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.process.id().cast_signed());
        let _ = kill(pid, Signal::SIGTERM);
        let deadline = Instant::now() + PATIENCE;
        while let Ok(None) = self.process.try_wait() {
            if Instant::now() > deadline {
                let _ = self.process.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        down(&self.instance);
    }
}

/// `netfw down`, a process of its own because it enters namespaces.
pub fn down(instance: &Name) {
    let done = netfw(instance)
        .arg("down")
        .stdout(Stdio::null())
        .process_group(0)
        .status();
    match done {
        Ok(status) if status.success() => {}
        // It said itself what is in the way.
        Ok(_) => complain(&format!("`netfw down --instance {instance}` failed")),
        Err(error) => complain(&format!("`netfw down` cannot be started: {error}")),
    }
}

/// On stderr, which may be closed as well: `eprintln!` would panic, in the middle of removing.
pub fn complain(what: &str) {
    let _ = writeln!(std::io::stderr(), "netfw: {what}");
}

/// This very binary, for the demo's instance.
fn netfw(instance: &Name) -> Command {
    // By the link: right even where the file was replaced since.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("netfw")
        .args(["--instance", instance])
        .stdin(Stdio::null());
    command
}
