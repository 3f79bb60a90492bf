//! Real dockerd, with directories of its own, and the lab's node for its host.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    path::PathBuf,
    time::Duration,
};

use netfw_tests::{
    Agent, Lab,
    docker::Docker,
    netns,
    programs::{UdpEcho, ask, curl, curl_in_vain, udp_socket_for},
    runtime::{IMAGE, PAGE, has_no_rules, serves},
    topology::{CLIENT, CLIENT6, NODE, NODE6},
    wait::wait_until,
};
use serde_json::Value;

use crate::setting::{SOON, text};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// dockerd that leaves its own bridge and rules out, as docs/docker.md has it.
const BARE: [&str; 4] = [
    "--bridge=none",
    "--iptables=false",
    "--ip6tables=false",
    "--live-restore",
];

/// dockerd on a node with an agent.
///
/// Fields drop in order: the containers go before the agent, and that before the node.
struct Site {
    docker: Docker,
    agent: Agent,
    lab: Lab,
}

impl Site {
    /// None, said aloud, where Docker is not installed.
    #[track_caller]
    fn start(options: &[&str]) -> Option<Self> {
        let lab = Lab::new();
        let agent = Agent::start(&lab);
        let docker = Docker::start(&lab.node, options)?;
        Some(Self { docker, agent, lab })
    }

    /// `docker network create -d netfw`, with subnets of netfw's choice.
    #[track_caller]
    fn create(&self, name: &str) {
        let driver = self.agent.instance();
        self.create_with(name, &["--ipam-driver", driver, "--ipv6"]);
    }

    #[track_caller]
    fn create_with(&self, name: &str, options: &[&str]) {
        let driver = self.agent.instance();
        let words = ["network", "create", "-d", driver, "-o"];
        let own = format!("name={name}");
        self.docker
            .docker(&[&words[..], &[&own], options, &[name]].concat());
    }

    fn endpoints(&self) -> Vec<Value> {
        let all = self.agent.json(&["endpoint", "ls"]);
        all.as_array().expect("a list").clone()
    }

    /// The endpoint that a container is.
    #[track_caller]
    fn endpoint(&self, container: &str) -> Value {
        let format = "docker-{{slice .NetworkSettings.SandboxID 0 12}}";
        let name = self.docker.docker(&["inspect", "-f", format, container]);
        let mut all = self.endpoints().into_iter();
        all.find(|e| e["name"] == name.trim())
            .unwrap_or_else(|| panic!("no endpoint {name}"))
    }

    /// All rules of the node, without their counters and times.
    fn rules(&self) -> Vec<String> {
        let mut all = Vec::new();
        for look in ["iptables-save", "ip6tables-save"] {
            let said = self.lab.node.run(&[look]);
            let lines = said.lines().filter(|line| !line.starts_with('#'));
            all.extend(lines.map(|line| line.split(" [").next().unwrap_or(line).to_owned()));
        }
        all
    }

    #[track_caller]
    fn page_at(&self, port: u16) {
        serves(&self.lab, port);
    }
}

#[test]
fn a_published_port_of_docker_s_serves_the_world() {
    // With all its own rules.
    let Some(site) = Site::start(&[]) else {
        return;
    };
    let before = (site.lab.node.links(), site.rules());
    assert!(before.1.iter().any(|rule| rule.contains("DOCKER")));
    site.create("app");
    let ports = ["--network", "app", "-p", "8080:80", "-p", "5353:53/udp"];
    site.docker.serve("web", &ports);
    site.page_at(8080);
    assert_eq!(site.rules(), before.1);
    let own = curl(&site.lab.node, LOCALHOST, 8080, "/");
    assert_eq!(own.as_deref(), Some(PAGE));
    for client in [CLIENT, CLIENT6] {
        wait_until(&format!("{client} in the log"), SOON, || {
            let logs = site.docker.output(&["logs", "web"]);
            let said = [logs.stdout, logs.stderr].concat();
            String::from_utf8_lossy(&said).contains(&client.to_string())
        });
    }
    // Docker and netfw are of one mind.
    let endpoint = site.endpoint("web");
    let format = "{{json .NetworkSettings.Networks.app}}";
    let inspected = site.docker.docker(&["inspect", "-f", format, "web"]);
    let inspected: Value = serde_json::from_str(&inspected).expect("JSON");
    assert_eq!(inspected["IPAddress"], endpoint["ip"]);
    assert_eq!(inspected["GlobalIPv6Address"], endpoint["ip6"]);
    assert_eq!(inspected["MacAddress"], endpoint["mac"]);
    assert_eq!(inspected["Gateway"], endpoint["gateway"]);
    let gateway6 = site.agent.json(&["network", "inspect", "app"]);
    assert_eq!(endpoint["gateway6"], gateway6["gateway6"]);
    assert_eq!(endpoint["interface"], "eth0");
    assert_eq!(endpoint["warnings"], serde_json::json!([]));

    let inside = PathBuf::from(text(&endpoint["netns"]));
    let echo = netns::enter(&inside, || {
        UdpSocket::bind(("::", 53)).expect("the port is free")
    });
    let _echo = UdpEcho::on(echo);
    for node in [NODE, NODE6] {
        let socket = udp_socket_for(&site.lab.client, node);
        assert!(ask(&socket, (node, 5353), "hello").is_some_and(|said| said.ends_with("hello")));
    }

    let wget = [
        "run",
        "--rm",
        "--network",
        "app",
        IMAGE,
        "wget",
        "-qO-",
        "http://web/",
    ];
    assert_eq!(site.docker.docker(&wget), PAGE);

    // A port is one's.
    let taken = [
        "run",
        "-d",
        "--name",
        "late",
        "--network",
        "app",
        "-p",
        "8080:80",
        IMAGE,
    ];
    let refused = site.docker.output(&taken);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("published already"),
        "{said}"
    );
    site.docker.docker(&["rm", "-f", "late"]);
    site.page_at(8080);
    let bound = site.lab.node.enter(|| UdpSocket::bind(("0.0.0.0", 5353)));
    assert!(bound.is_err(), "netfw keeps it");

    site.docker.docker(&["stop", "-t", "0", "web"]);
    assert_eq!(site.endpoints(), [Value::Null; 0]);
    assert!(curl_in_vain(&site.lab.client, NODE, 8080));
    site.docker.docker(&["start", "web"]);
    site.page_at(8080);
    site.docker.docker(&["restart", "-t", "0", "web"]);
    site.page_at(8080);
    site.docker.docker(&["rm", "-f", "web"]);
    assert_eq!(site.endpoints(), [Value::Null; 0]);
    site.docker.docker(&["network", "rm", "app"]);
    assert_eq!((site.lab.node.links(), site.rules()), before);
}

#[test]
fn a_container_of_docker_s_joins_and_leaves_networks() {
    let Some(site) = Site::start(&BARE) else {
        return;
    };
    site.create("front");
    site.create_with("back", &["--subnet", "10.79.0.0/24"]);
    site.create_with("apart", &["--internal"]);
    let db = [
        "--network",
        "back",
        "--ip",
        "10.79.0.77",
        "--mac-address",
        "02:00:00:00:00:77",
    ];
    site.docker.serve("db", &db);
    let endpoint = site.endpoint("db");
    assert_eq!(text(&endpoint["ip"]), "10.79.0.77");
    assert_eq!(text(&endpoint["mac"]), "02:00:00:00:00:77");
    site.docker
        .serve("web", &["--network", "front", "-p", "8080:80"]);
    site.page_at(8080);
    let by_name = |from: &str, name: &str| {
        let url = format!("http://{name}/");
        site.docker.docker(&["exec", from, "wget", "-qO-", &url])
    };
    let inside = PathBuf::from(text(&site.endpoint("web")["netns"]));
    let db = SocketAddr::new(text(&endpoint["ip"]).parse().expect("an address"), 80);
    let connect = || TcpStream::connect_timeout(&db, Duration::from_secs(1));
    assert!(
        netns::enter(&inside, connect).is_err(),
        "networks are apart"
    );
    site.docker.docker(&["network", "connect", "back", "web"]);
    assert_eq!(by_name("web", "db"), PAGE);
    assert_eq!(by_name("db", "web"), PAGE);
    site.page_at(8080);
    let networks = || {
        let web = site.endpoint("web");
        let all = web["networks"].as_array().expect("a list").iter();
        let names: Vec<String> = all
            .map(|n| format!("{} {}", text(&n["network"]), text(&n["interface"])))
            .collect();
        names
    };
    wait_until("both to be adopted", SOON, || {
        let mut all = networks();
        all.sort();
        all == ["back eth1", "front eth0"]
    });
    // What is published follows.
    site.docker
        .docker(&["network", "disconnect", "front", "web"]);
    assert_eq!(networks(), ["back eth1"]);
    let publishes = site.endpoint("web")["publishes"].clone();
    let publishes = publishes.as_array().expect("a list").iter();
    let host_ips: Vec<&str> = publishes.map(|p| text(&p["host_ip"])).collect();
    assert_eq!(host_ips, ["0.0.0.0"], "IPv6 went with its network");
    assert_eq!(
        curl(&site.lab.client, NODE, 8080, "/").as_deref(),
        Some(PAGE)
    );
    assert_eq!(by_name("web", "db"), PAGE);

    site.docker
        .serve("hidden", &["--network", "apart", "-p", "8081:80"]);
    assert!(curl_in_vain(&site.lab.client, NODE, 8081));
    assert_eq!(site.endpoint("hidden")["warnings"], serde_json::json!([]));
    let route = site.docker.docker(&["exec", "hidden", "ip", "route"]);
    assert!(!route.contains("default"), "{route}");
    has_no_rules(&site.lab.node);
}

#[test]
fn dockerd_and_the_agent_are_restarted_in_any_order() {
    let Some(mut site) = Site::start(&BARE) else {
        return;
    };
    site.create("app");
    site.docker
        .serve("web", &["--network", "app", "-p", "8080:80"]);
    site.page_at(8080);
    let served = |site: &Site| {
        assert_eq!(
            curl(&site.lab.client, NODE, 8080, "/").as_deref(),
            Some(PAGE)
        );
    };
    site.agent.kill();
    served(&site);
    site.agent.start_again();
    served(&site);
    site.docker.kill();
    served(&site);
    site.docker.start_again(&site.lab.node);
    served(&site);
    // Both, each first once.
    site.agent.kill();
    site.docker.kill();
    site.docker.start_again(&site.lab.node);
    served(&site);
    site.agent.start_again();
    served(&site);
    site.docker.docker(&["restart", "-t", "0", "web"]);
    site.page_at(8080);
    site.docker.kill();
    site.agent.stop();
    site.agent.start_again();
    served(&site);
    site.docker.start_again(&site.lab.node);
    site.docker.docker(&["restart", "-t", "0", "web"]);
    site.page_at(8080);
    assert_eq!(site.endpoints().len(), 1);

    // A container ends while nobody looks.
    let format = "{{.State.Pid}}";
    let pid = site.docker.docker(&["inspect", "-f", format, "web"]);
    site.docker.kill();
    site.agent.kill();
    let pid = pid.trim().parse().expect("a process");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::signal::Signal::SIGKILL,
    )
    .expect("it lives");
    site.agent.start_again();
    site.docker.start_again(&site.lab.node);
    wait_until("Docker to tell of it", SOON, || site.endpoints().is_empty());
    assert!(curl_in_vain(&site.lab.client, NODE, 8080));
    site.docker.docker(&["start", "web"]);
    site.page_at(8080);

    // The agent is away when a container is to start: dockerd asks again.
    site.agent.stop();
    std::thread::scope(|scope| {
        let docker = &site.docker;
        let run = scope.spawn(|| docker.serve("late", &["--network", "app", "-p", "8081:80"]));
        wait_until("dockerd to ask", SOON, || {
            let all = docker.docker(&["ps", "-a", "--format", "{{.Names}}"]);
            all.lines().any(|name| name == "late")
        });
        site.agent.start_again();
        run.join().expect("it starts");
    });
    site.page_at(8081);
    has_no_rules(&site.lab.node);
}
