//! Pods as Kubernetes has them: a kubelet's part is played here, containerd's is real.

mod cri;

use std::{
    fs,
    net::{IpAddr, UdpSocket},
    path::PathBuf,
};

use netfw_tests::{
    netns,
    programs::{UdpEcho, ask, curl, curl_in_vain, ping, udp_socket_for},
    runtime::{self, HTTPD, IMAGE, PAGE, endpoint, has_no_rules, serves},
    topology::{CLIENT, CLIENT6, NODE, NODE6, WORLD, forward},
    wait::{wait_for, wait_until},
};
use serde_json::json;

use self::cri::{
    Client, Container, ContainerConfig, ContainerMetadata, CreateContainerRequest, ExecSyncRequest,
    ExecSyncResponse, ImageSpec, Nothing, PodSandbox, PodSandboxConfig, PodSandboxMetadata,
    PodSandboxStatusResponse, PortMapping, Protocol, RunPodSandboxRequest, StatusResponse,
};
use crate::{
    containerd::Containerd,
    setting::{SOON, text},
};

/// containerd has it set the pods' `lo` up.
const LOOPBACK: (&str, &str) = ("/usr/lib/cni/loopback", "containernetworking-plugins");

/// A node with pods.
struct Node {
    cri: Client,
    containerd: Containerd,
}

/// A pod with one container.
struct Pod {
    name: String,
    sandbox: PodSandbox,
    container: Container,
    /// As the runtime tells Kubernetes: IPv4, IPv6.
    ips: Vec<IpAddr>,
    log: PathBuf,
}

impl Node {
    /// None, said aloud, where the programs are not there. `more` is of the network's configuration.
    #[track_caller]
    fn start(more: &str) -> Option<Self> {
        if !runtime::are_there(&[LOOPBACK]) {
            return None;
        }
        let containerd = Containerd::start("pods", &format!(r#""ipv6": true, {more}"#))?;
        let cri = Client {
            socket: containerd.socket(),
        };
        let ready = wait_for("containerd to answer", SOON, || {
            cri.call::<StatusResponse>("Status", &Nothing {})
                .ok()?
                .status
        });
        assert!(ready.conditions.iter().all(|c| c.status), "{ready:?}");
        Some(Self { cri, containerd })
    }

    fn config(&self, name: &str, ports: &[PortMapping]) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: format!("{name}-uid"),
                namespace: "default".into(),
            }),
            hostname: name.into(),
            log_directory: self.containerd.path().display().to_string(),
            port_mappings: ports.to_vec(),
        }
    }

    /// A pod of that name whose container runs `command`.
    fn run(&self, name: &str, ports: &[PortMapping], command: &[&str]) -> anyhow::Result<Pod> {
        let config = self.config(name, ports);
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
        };
        let sandbox: PodSandbox = self.cri.call("RunPodSandbox", &request)?;
        let log = format!("{name}.log");
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.pod_sandbox_id.clone(),
            config: Some(ContainerConfig {
                metadata: Some(ContainerMetadata { name: name.into() }),
                image: Some(ImageSpec {
                    image: IMAGE.into(),
                }),
                command: command.iter().map(|&word| word.to_owned()).collect(),
                log_path: log.clone(),
            }),
            sandbox_config: Some(config),
        };
        let container: Container = self.cri.call("CreateContainer", &request)?;
        self.cri.call::<Nothing>("StartContainer", &container)?;

        let answer: PodSandboxStatusResponse = self.cri.call("PodSandboxStatus", &sandbox)?;
        let network = answer.status.and_then(|status| status.network);
        let network = network.unwrap_or_default();
        let more = network.additional_ips.into_iter().map(|more| more.ip);
        let ips = [network.ip].into_iter().chain(more).map(|ip| ip.parse());
        Ok(Pod {
            name: name.into(),
            sandbox,
            container,
            ips: ips.collect::<Result<_, _>>()?,
            log: self.containerd.path().join(log),
        })
    }

    /// A pod that serves the page.
    #[track_caller]
    fn serve(&self, name: &str, ports: &[PortMapping]) -> Pod {
        self.run(name, ports, &HTTPD).expect("a pod")
    }

    /// What a command in the pod's container printed.
    #[track_caller]
    fn exec(&self, pod: &Pod, words: &[&str]) -> String {
        let request = ExecSyncRequest {
            container_id: pod.container.container_id.clone(),
            cmd: words.iter().map(|&word| word.to_owned()).collect(),
        };
        let done: ExecSyncResponse = self.cri.call("ExecSync", &request).expect("an answer");
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.exit_code, 0, "{words:?}: {said}");
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    /// The pod's page, by a command in another pod.
    #[track_caller]
    fn fetch(&self, from: &Pod, ip: IpAddr, port: u16) -> String {
        let url = format!("http://{}/", std::net::SocketAddr::new(ip, port));
        self.exec(from, &["wget", "-qO-", &url])
    }

    #[track_caller]
    fn stop(&self, pod: &Pod) {
        for method in ["StopPodSandbox", "RemovePodSandbox"] {
            let done = self.cri.call::<Nothing>(method, &pod.sandbox);
            done.unwrap_or_else(|error| panic!("{method}: {error:#}"));
        }
    }

    /// Where the pod's namespace is.
    #[track_caller]
    fn namespace(&self, pod: &Pod) -> PathBuf {
        let endpoint = endpoint(&self.containerd.agent, &pod.name).expect("an endpoint");
        PathBuf::from(text(&endpoint["netns"]))
    }

    /// An echo server in the pod.
    #[track_caller]
    fn echo(&self, pod: &Pod, port: u16) -> UdpEcho {
        UdpEcho::on(netns::enter(&self.namespace(pod), || {
            UdpSocket::bind(("::", port)).expect("the port is free")
        }))
    }
}

impl Pod {
    /// Waits until the pod's server has been asked by `client`.
    #[track_caller]
    fn was_asked_by(&self, client: IpAddr) {
        wait_until(&format!("{client} in the log"), SOON, || {
            let said = fs::read_to_string(&self.log).expect("the log");
            said.contains(&client.to_string())
        });
    }
}

fn host_port(protocol: Protocol, host_port: i32, container_port: i32) -> PortMapping {
    PortMapping {
        protocol: protocol.into(),
        container_port,
        host_port,
        host_ip: String::new(),
    }
}

#[test]
fn pods_of_a_node_reach_each_other_and_it_without_nat() {
    let Some(node) = Node::start("") else {
        return;
    };
    let Containerd { agent, lab, .. } = &node.containerd;
    let web = node.serve("web", &[]);
    let other = node.serve("other", &[]);
    has_no_rules(&lab.node);
    for pod in [&web, &other] {
        assert_eq!(pod.ips.len(), 2, "one of each family");
        let own = node.exec(pod, &["ip", "address", "show", "dev", "eth0"]);
        for ip in &pod.ips {
            assert!(own.contains(&format!(" {ip}/")), "{ip}: {own}");
        }
        let endpoint = endpoint(agent, &pod.name).expect("an endpoint");
        let told = pod.ips.iter().map(IpAddr::to_string);
        assert!(told.eq([&endpoint["ip"], &endpoint["ip6"]].map(text)));
    }
    // From pod to pod, seen as what it is.
    for (to, from) in web.ips.iter().zip(&other.ips) {
        assert_eq!(node.fetch(&other, *to, 80), PAGE);
        web.was_asked_by(*from);
    }
    let echo = node.echo(&web, 53);
    for (to, from) in web.ips.iter().zip(&other.ips) {
        let answer = ask_from(&node, &other, *to, 53);
        assert!(answer.contains(&from.to_string()), "{answer}");
    }
    drop(echo);
    // From the node to a pod, as probes do, and back.
    let network = agent.json(&["network", "inspect", "pods"]);
    for (to, gateway) in web
        .ips
        .iter()
        .zip([&network["gateway"], &network["gateway6"]])
    {
        assert!(ping(&lab.node, *to));
        assert_eq!(curl(&lab.node, *to, 80, "/").as_deref(), Some(PAGE));
        web.was_asked_by(text(gateway).parse().expect("an address"));
    }
    for (to, from) in [NODE, NODE6].into_iter().zip(&web.ips) {
        let _echo = UdpEcho::start(&lab.node, (to, 5300));
        let answer = ask_from(&node, &web, to, 5300);
        assert!(answer.contains(&from.to_string()), "{answer}");
    }
    // The world knows no pod, and is reached as from the node.
    netns::enter(&node.namespace(&web), || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("any port");
        let _echo = UdpEcho::start(&lab.world, (WORLD, 7));
        assert!(
            ask(&socket, (WORLD, 7), "hello").is_some_and(|said| said.starts_with("10.2.0.1:"))
        );
    });

    for pod in [&web, &other] {
        node.stop(pod);
        assert_eq!(endpoint(agent, &pod.name), None);
    }
    has_no_rules(&lab.node);
}

/// What a server told a pod whom it saw.
#[track_caller]
fn ask_from(node: &Node, pod: &Pod, to: IpAddr, port: u16) -> String {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    netns::enter(&node.namespace(pod), || {
        let socket = UdpSocket::bind(any).expect("any port");
        ask(&socket, (to, port), "hello").expect("an answer")
    })
}

#[test]
fn a_host_port_serves_whoever_asks_the_node() {
    let Some(node) = Node::start("") else {
        return;
    };
    let Containerd { agent, lab, .. } = &node.containerd;
    let before = lab.node.links();
    let ports = [
        host_port(Protocol::Tcp, 8080, 80),
        host_port(Protocol::Udp, 5353, 53),
    ];
    let web = node.serve("web", &ports);
    serves(lab, 8080);
    for client in [CLIENT, CLIENT6] {
        web.was_asked_by(client);
    }
    let echo = node.echo(&web, 53);
    for (client, to) in [(CLIENT, NODE), (CLIENT6, NODE6)] {
        let socket = udp_socket_for(&lab.client, to);
        let answer = ask(&socket, (to, 5353), "hello").expect("an answer");
        assert!(answer.contains(&client.to_string()), "{answer}");
    }
    drop(echo);
    has_no_rules(&lab.node);
    assert_eq!(curl(&lab.node, NODE, 8080, "/").as_deref(), Some(PAGE));
    // Another pod uses the port too, and is refused it for itself.
    let other = node.serve("other", &[]);
    assert_eq!(node.fetch(&other, NODE, 8080), PAGE);
    web.was_asked_by(other.ips[0]);
    let taken = node.run("late", &[host_port(Protocol::Tcp, 8080, 80)], &HTTPD);
    let error = taken.err().expect("the port is taken").to_string();
    assert!(error.contains("8080") && error.contains("web"), "{error}");
    assert_eq!(endpoint(agent, "late"), None);

    node.stop(&web);
    assert!(curl_in_vain(&lab.client, NODE, 8080));
    // It is free again.
    let late = node.serve("late", &[host_port(Protocol::Tcp, 8080, 80)]);
    serves(lab, 8080);
    for pod in [&other, &late] {
        node.stop(pod);
    }
    assert_eq!(agent.json(&["endpoint", "ls"]), json!([]));
    assert_eq!(agent.json(&["port"]), json!([]));
    has_no_rules(&lab.node);
    agent.netfw(&["network", "rm", "pods"]);
    assert_eq!(lab.node.links(), before);
}

#[test]
fn a_pod_of_a_routed_network_is_reached_at_its_own_address() {
    let Some(node) = Node::start(r#""routed": true, "subnets": ["10.78.0.0/24", "fd78::/64"],"#)
    else {
        return;
    };
    let Containerd { lab, .. } = &node.containerd;
    forward(&lab.node);
    // The client plays another node, which has a route to this one's pods.
    lab.client
        .ip(&["route", "add", "10.78.0.0/24", "via", &NODE.to_string()]);
    lab.client
        .ip(&["-6", "route", "add", "fd78::/64", "via", &NODE6.to_string()]);
    let web = node.serve("web", &[host_port(Protocol::Tcp, 8080, 80)]);
    for (ip, client) in web.ips.iter().zip([CLIENT, CLIENT6]) {
        wait_for("the page at the pod's own address", SOON, || {
            curl(&lab.client, *ip, 80, "/").filter(|page| page == PAGE)
        });
        web.was_asked_by(client);
    }
    let port = 5300;
    let socket = lab
        .client
        .enter(|| UdpSocket::bind(("::", port)).expect("the port is free"));
    let _echo = UdpEcho::on(socket);
    for (to, from) in [CLIENT, CLIENT6].into_iter().zip(&web.ips) {
        let answer = ask_from(&node, &web, to, port);
        assert!(answer.contains(&from.to_string()), "{answer}");
    }
    serves(lab, 8080);
    has_no_rules(&lab.node);
    node.stop(&web);
    assert!(curl_in_vain(&lab.client, NODE, 8080));
}
