//! podman's containers, in a network of netfw's by the CNI plugin: real podman, with directories of its own,
//! and the lab's node for its host.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use netfw_tests::{
    Agent, Lab, netns,
    programs::{UdpEcho, ask, curl, curl_in_vain, udp_socket_for},
    reaper,
    runtime::{self, HTTPD, IMAGE, PAGE, endpoint, has_no_rules, serves},
    topology::{CLIENT, CLIENT6, NODE, NODE6},
    wait::wait_until,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    cni::{directory, install},
    setting::{SOON, text},
};

/// What podman and these tests start, and the Debian package it is in.
const PROGRAMS: [(&str, &str); 4] = [
    ("/usr/bin/podman", "podman"),
    ("/usr/sbin/runc", "runc"),
    ("/usr/bin/conmon", "conmon"),
    runtime::BUSYBOX,
];

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// podman on a node with an agent.
///
/// Fields drop in order: the containers go before the agent, and that before the node.
pub struct Podman {
    directory: Own,
    pub agent: Agent,
    pub lab: Lab,
}

/// podman's directories.
struct Own(TempDir);

impl Podman {
    /// None, said aloud, where podman is not installed.
    #[track_caller]
    pub fn start() -> Option<Self> {
        if !runtime::are_there(&PROGRAMS) {
            return None;
        }
        let lab = Lab::new();
        let agent = Agent::start(&lab);
        let directory = Own::new(&lab);
        let podman = Self {
            directory,
            agent,
            lab,
        };
        let archive = runtime::image(podman.path());
        podman.podman(&["load", "--quiet", "--input", &archive.display().to_string()]);
        Some(podman)
    }

    /// A network for podman, as docs/podman.md has it.
    pub fn network(&self, name: &str, more: &str) {
        let instance = self.agent.instance();
        let plugin = format!(
            r#"{{
                "type": "netfw-cni", "instance": "{instance}", {more}
                "capabilities": {{"portMappings": true, "ips": true, "mac": true, "aliases": true}}
            }}"#
        );
        self.list(name, &plugin);
    }

    /// A network of other plugins.
    pub fn list(&self, name: &str, plugins: &str) {
        let list =
            format!(r#"{{"cniVersion": "1.0.0", "name": "{name}", "plugins": [{plugins}]}}"#);
        let file = self.path().join(format!("net/{name}.conflist"));
        fs::write(file, list).expect("a file in our own directory");
    }

    /// podman's directory; plugins are in `bin`.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    #[track_caller]
    pub fn output(&self, words: &[&str]) -> Output {
        let mut command = self.directory.command();
        command.args(words).stdin(Stdio::null());
        command.output().expect("podman can be started")
    }

    /// `podman WORDS`: what it printed. Panics unless it ends with status 0.
    #[track_caller]
    pub fn podman(&self, words: &[&str]) -> String {
        let output = self.output(words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "podman {words:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A container that serves a page on port 80.
    #[track_caller]
    pub fn serve(&self, name: &str, options: &[&str]) {
        let run = ["run", "-d", "--stop-signal", "KILL", "--name", name];
        self.podman(&[&run[..], options, &[IMAGE], &HTTPD].concat());
    }
}

impl Own {
    #[track_caller]
    fn new(lab: &Lab) -> Self {
        let own = Self(directory("netfw-podman-"));
        for directory in ["bin", "net"] {
            fs::create_dir(own.path().join(directory)).expect("a new directory");
        }
        install(&own.path().join("bin"));
        let path = own.path().display();
        let conf = format!(
            r#"
            [containers]
            default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
            [network]
            network_backend = "cni"
            network_config_dir = "{path}/net"
            cni_plugin_dirs = ["{path}/bin"]
            [engine]
            cgroup_manager = "cgroupfs"
            events_logger = "file"
            runtime = "runc"
            lock_type = "file"
            "#
        );
        fs::write(own.path().join("containers.conf"), conf).expect("a new file");
        // What every command begins with; also for the reaper.
        let script = format!(
            "#!/bin/sh\nCONTAINERS_CONF='{path}/containers.conf' exec nsenter --net='{}' -- /usr/bin/podman \
             --root '{path}/root' --runroot '{path}/run' --tmpdir '{path}/tmp' --storage-driver vfs \"$@\"\n",
            lab.node.path().display()
        );
        fs::write(own.path().join("podman"), script).expect("a new file");
        reaper::at_end(&format!(
            "[ -e '{path}/podman' ] && sh '{path}/podman' rm -fa -t 0"
        ));
        own
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn command(&self) -> Command {
        let mut command = Command::new("sh");
        let script: PathBuf = self.path().join("podman");
        command.arg(script);
        command
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let output = self.command().args(["rm", "-fa", "-t", "0"]).output();
        if !output.is_ok_and(|output| output.status.success()) {
            eprintln!("`podman rm -fa` failed");
        }
    }
}

#[test]
fn a_published_port_of_podman_s_serves_the_world() {
    let Some(podman) = Podman::start() else {
        return;
    };
    podman.network("app", r#""ipv6": true,"#);
    let before = podman.lab.node.links();
    podman.serve(
        "web",
        &["--network", "app", "-p", "8080:80", "-p", "5353:53/udp"],
    );
    serves(&podman.lab, 8080);
    has_no_rules(&podman.lab.node);
    // podman holds the port itself (`enable_port_reservation`); who asks for it gets the container.
    let bound = podman.lab.node.enter(|| UdpSocket::bind(("0.0.0.0", 5353)));
    assert!(bound.is_err(), "the port is podman's");
    let own = curl(&podman.lab.node, LOCALHOST, 8080, "/");
    assert_eq!(own.as_deref(), Some(PAGE));
    for client in [CLIENT, CLIENT6] {
        wait_until(&format!("{client} in the log"), SOON, || {
            let logs = podman.output(&["logs", "web"]);
            let said = [logs.stdout, logs.stderr].concat();
            String::from_utf8_lossy(&said).contains(&client.to_string())
        });
    }
    // podman and netfw are of one mind.
    let web = endpoint(&podman.agent, "web").expect("an endpoint");
    let inspected = podman.podman(&[
        "inspect",
        "web",
        "--format",
        "{{json .NetworkSettings.Networks.app}}",
    ]);
    let inspected: Value = serde_json::from_str(&inspected).expect("JSON");
    assert_eq!(inspected["IPAddress"], web["ip"]);
    assert_eq!(inspected["GlobalIPv6Address"], web["ip6"]);
    assert_eq!(inspected["MacAddress"], web["mac"]);
    assert_eq!(inspected["Gateway"], web["gateway"]);
    let shown = podman.podman(&["network", "ls", "--format", "{{.Name}} {{.Driver}}"]);
    assert!(shown.lines().any(|line| line == "app netfw-cni"), "{shown}");
    let shown = podman.podman(&["network", "inspect", "app"]);
    assert!(shown.contains("netfw-cni"), "{shown}");

    let inside = PathBuf::from(text(&web["netns"]));
    let echo = netns::enter(&inside, || {
        UdpSocket::bind(("::", 53)).expect("the port is free")
    });
    let _echo = UdpEcho::on(echo);
    for node in [NODE, NODE6] {
        let socket = udp_socket_for(&podman.lab.client, node);
        assert!(ask(&socket, (node, 5353), "hello").is_some_and(|said| said.ends_with("hello")));
    }

    let other = [
        "run",
        "--rm",
        "--network",
        "app",
        IMAGE,
        "wget",
        "-qO-",
        "http://web/",
    ];
    assert_eq!(podman.podman(&other), PAGE);

    podman.podman(&["stop", "-t", "0", "web"]);
    assert_eq!(endpoint(&podman.agent, "web"), None);
    assert!(curl_in_vain(&podman.lab.client, NODE, 8080));
    podman.podman(&["start", "web"]);
    serves(&podman.lab, 8080);
    podman.podman(&["restart", "-t", "0", "web"]);
    serves(&podman.lab, 8080);
    podman.podman(&["rm", "-f", "-t", "0", "web"]);
    assert_eq!(
        podman.agent.json(&["endpoint", "ls"]),
        serde_json::json!([])
    );
    has_no_rules(&podman.lab.node);
    podman.agent.netfw(&["network", "rm", "app"]);
    assert_eq!(podman.lab.node.links(), before);
}

#[test]
fn a_container_of_podman_s_joins_and_leaves_networks() {
    let Some(podman) = Podman::start() else {
        return;
    };
    podman.network("front", r#""ipv6": true,"#);
    podman.network("back", r#""subnets": ["10.79.0.0/24"],"#);
    let back = [
        "--network",
        "back",
        "--ip",
        "10.79.0.77",
        "--mac-address",
        "02:00:00:00:00:77",
    ];
    podman.serve("db", &back);
    let db = endpoint(&podman.agent, "db").expect("an endpoint");
    assert_eq!(
        (text(&db["ip"]), text(&db["mac"])),
        ("10.79.0.77", "02:00:00:00:00:77")
    );
    podman.serve("web", &["--network", "front", "-p", "8080:80"]);
    let networks = || {
        let web = endpoint(&podman.agent, "web").expect("an endpoint");
        let all = web["networks"].as_array().expect("a list").iter();
        all.map(|a| text(&a["network"]).to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(networks(), ["front"]);
    podman.podman(&["network", "connect", "--alias", "www", "back", "web"]);
    assert_eq!(networks(), ["front", "back"]);
    let fetch = ["exec", "web", "wget", "-qO-", "http://db/"];
    assert_eq!(podman.podman(&fetch), PAGE);
    assert_eq!(
        podman.podman(&["exec", "db", "wget", "-qO-", "http://www/"]),
        PAGE
    );
    serves(&podman.lab, 8080);
    podman.podman(&["network", "disconnect", "back", "web"]);
    assert_eq!(networks(), ["front"]);
    serves(&podman.lab, 8080);
    // Both from the beginning, though `back` has no IPv6.
    podman.serve("both", &["--network", "back,front", "-p", "8081:80"]);
    serves(&podman.lab, 8081);

    // A port that is taken: nothing of the container is left.
    let taken = [
        "run",
        "-d",
        "--name",
        "late",
        "--network",
        "front",
        "-p",
        "8080:80",
        IMAGE,
        "sleep",
        "9",
    ];
    let output = podman.output(&taken);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("8080"), "{said}");
    assert_eq!(endpoint(&podman.agent, "late"), None);
    podman.podman(&["rm", "-fa", "-t", "0"]);
    assert_eq!(
        podman.agent.json(&["endpoint", "ls"]),
        serde_json::json!([])
    );
}
