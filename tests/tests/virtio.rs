//! Native XDP in a driver that is not veth's: virtio-net, in the machine that `cargo xtask verify`
//! emulates.
//!
//! ```text
//!   client                                        node                web
//!   eth0 10.1.0.2/24 ══ qemu: tap, bridge, tap ══ up0 10.1.0.1/24
//!        fd00:1::2/64                                 fd00:1::1/64
//! ```
//!
//! `NETFW_VIRTIO` names the two interfaces by their MAC addresses, the node's first. Without it these
//! tests say so and pass: they must not take a machine's own. They run one after the other.

use std::{net::IpAddr, process::Command, time::Duration};

use netfw_tests::{
    Agent, Namespace,
    netns::stdout,
    programs::{Drinker, Drinking, Fountain, UdpEcho, ask, ping, udp_socket_for},
    topology::{CLIENT, CLIENT6, NODE, NODE6, set_up},
    wait::wait_for,
    wait_until,
    xdp::{entered, told},
};

const NICS: &str = "NETFW_VIRTIO";
/// The machine is emulated.
const SOON: Duration = Duration::from_secs(60);
/// The node as the client knows it, and the other way round.
const FAMILIES: [(IpAddr, IpAddr); 2] = [(NODE, CLIENT), (NODE6, CLIENT6)];

/// Fields drop in order: the agent takes everything down while the node lives.
struct Site {
    agent: Agent,
    web: Namespace,
    ips: [IpAddr; 2],
    node: Namespace,
    client: Namespace,
}

impl Site {
    /// A container `web` with publishes 7000/tcp and 9000/udp.
    fn new(mode: &str) -> Option<Self> {
        let Ok(nics) = std::env::var(NICS) else {
            eprintln!(
                "skipped: no {NICS} (`cargo xtask verify` gives it to the machine it emulates)"
            );
            return None;
        };
        let [node_nic, client_nic] = *nics.split(' ').collect::<Vec<_>>() else {
            panic!("{NICS}={nics}: two addresses");
        };
        let (node, client) = (Namespace::new("node"), Namespace::new("client"));
        for (nic, namespace, name) in [(node_nic, &node, "up0"), (client_nic, &client, "eth0")] {
            // The namespace that had it before may not be quite gone.
            let found = wait_for("the interface to be here", SOON, || interface(nic));
            let words = [
                "link",
                "set",
                &found,
                "netns",
                namespace.name(),
                "name",
                name,
            ];
            stdout(Command::new("ip").args(words));
            namespace.sysctl(&format!("ipv6/conf/{name}/keep_addr_on_down"), "1");
        }
        set_up([
            (&node, "up0", [NODE, NODE6]),
            (&client, "eth0", [CLIENT, CLIENT6]),
        ]);
        // A test before may have left it off: generic XDP does.
        set_merging(&node, true);
        let agent = Agent::serve(&node, &["--xdp", mode]);
        let web = Namespace::new("web");
        let endpoint = agent.json(&[
            "endpoint",
            "add",
            "web",
            "--netns",
            web.name(),
            "-p",
            "7000:7000",
            "-p",
            "9000:9000/udp",
        ]);
        let ips = ["ip", "ip6"].map(|key| {
            let ip = endpoint[key].as_str().expect("an address");
            ip.parse().expect("an address")
        });
        Some(Self {
            agent,
            web,
            ips,
            node,
            client,
        })
    }

    fn entered(&self) -> u64 {
        entered(&self.agent, &self.node, "web")
    }

    #[track_caller]
    fn restart_with(&mut self, mode: &str) {
        self.agent.stop();
        self.agent.set_options(&["--xdp", mode]);
        self.agent.start_again();
    }

    /// Datagrams, echoes and bulk, both ways; true where what came in went by XDP.
    #[track_caller]
    fn exchange(&self) -> bool {
        let before = self.entered();
        let _echoes = self.ips.map(|ip| UdpEcho::start(&self.web, (ip, 9000)));
        for (node, client) in FAMILIES {
            let socket = udp_socket_for(&self.client, node);
            for _ in 0..20 {
                assert!(ask(&socket, (node, 9000), "x").is_some(), "{node}");
            }
            assert!(ping(&self.web, client), "{client}");
            let _inside = Fountain::start(&self.web, 7000);
            Drinker::connect(&self.client, (node, 7000)).drink(64);
            let _outside = Fountain::start(&self.client, 7000);
            Drinker::connect(&self.web, (client, 7000)).drink(256);
        }
        let by_xdp = self.entered() - before;
        println!("{by_xdp} packets into the container by XDP");
        // 4 MiB in segments of the MTU; without XDP, what the bridge has to say.
        assert!(!(50..2500).contains(&by_xdp), "{by_xdp}: some by XDP");
        by_xdp >= 2500
    }
}

/// Does the uplink take segments that its host has merged, or never cut?
fn set_merging(node: &Namespace, on: bool) {
    let word = if on { "on" } else { "off" };
    node.run(&["ethtool", "-K", "up0", "rx-gro-hw", word]);
}

/// The name of the interface with this MAC address.
fn interface(mac: &str) -> Option<String> {
    let shown = stdout(Command::new("ip").args(["-j", "link"]));
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    let links = shown.as_array().expect("a list");
    let link = links.iter().find(|link| link["address"] == mac)?;
    link["ifname"].as_str().map(str::to_owned)
}

#[test]
fn a_publish_is_answered_through_native_xdp() {
    let Some(mut site) = Site::new("native") else {
        return;
    };
    let native = (Some("native".into()), "--xdp native".into());
    assert_eq!(told(&site.agent, "up0"), native);
    assert!(site.exchange());

    // A transfer while the agent is killed and started, and while the uplink goes down and up.
    let _outside = Fountain::start(&site.client, 7001);
    let transfer = Drinking::start(Drinker::connect(&site.web, (CLIENT6, 7001)));
    site.agent.kill();
    transfer.goes_on();
    site.agent.start_again();
    assert_eq!(told(&site.agent, "up0"), native);
    transfer.goes_on();
    for state in ["down", "up"] {
        site.node.ip(&["link", "set", "up0", state]);
    }
    transfer.goes_on();
    transfer.finish();
    assert_eq!(told(&site.agent, "up0"), native);
    assert!(site.exchange());

    for mode in ["off", "generic", "native"] {
        site.restart_with(mode);
        let runs = (mode != "off").then_some(mode);
        assert_eq!(told(&site.agent, "up0").0.as_deref(), runs);
        // On skbs XDP is given what the host has not cut or summed up, and leaves that to TC.
        assert_eq!(site.exchange(), mode == "native", "{mode}");
    }
}

#[test]
fn auto_takes_virtio_where_its_host_merges_nothing() {
    let Some(site) = Site::new("auto") else {
        return;
    };
    let (mode, why) = told(&site.agent, "up0");
    assert_eq!(mode, None, "{why}");
    assert!(why.contains("virtio_net would not merge"), "{why}");
    assert!(!site.exchange());
    set_merging(&site.node, false);
    wait_until("XDP to be taken up", SOON, || {
        told(&site.agent, "up0").0.is_some()
    });
    let native = (Some("native".into()), "auto: virtio_net runs it".into());
    assert_eq!(told(&site.agent, "up0"), native);
    assert!(site.exchange());
}
