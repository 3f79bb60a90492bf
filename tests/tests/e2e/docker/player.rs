//! dockerd, played: what it asks a driver, and what it does with an interface.

use std::{
    cell::RefCell,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::symlink,
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Stdio},
};

use netfw_tests::{Agent, Lab, Namespace, runtime::directory, wait::wait_until};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::setting::{SOON, text};

pub const NETWORK: &str = "c875d97a11bb22cc33dd44ee55ff66778899aabbccddeeff0011223344556677";
pub const OTHER: &str = "6e564a3f11bb22cc33dd44ee55ff66778899aabbccddeeff0011223344556677";
pub const ENDPOINT: &str = "865286fa11bb22cc33dd44ee55ff66778899aabbccddeeff0011223344556677";
pub const SECOND: &str = "455c8c9a11bb22cc33dd44ee55ff66778899aabbccddeeff0011223344556677";

/// What the sandboxes of these tests are called.
pub const SANDBOX: &str = "81c5c27c3446";

pub const OK: u16 = 200;
pub const BAD: u16 = 400;
pub const CONFLICT: u16 = 409;

/// Plays dockerd towards an agent.
///
/// Fields drop in order.
pub struct Player {
    dockerd: Dockerd,
    pub agent: Agent,
    /// Of namespaces' files.
    sandboxes: TempDir,
    pub lab: Lab,
}

impl Player {
    #[track_caller]
    pub fn new() -> Self {
        Self::in_lab(Lab::new(), &[])
    }

    /// `options` are the agent's.
    #[track_caller]
    pub fn in_lab(lab: Lab, options: &[&str]) -> Self {
        let agent = Agent::start_with(&lab, options);
        Self {
            dockerd: Dockerd::start(&lab.node, &agent),
            agent,
            sandboxes: directory("netfw-sandboxes-"),
            lab,
        }
    }

    /// `POST /METHOD`: status and answer.
    #[track_caller]
    pub fn post(&self, method: &str, body: &str) -> (u16, Value) {
        self.dockerd.post(method, body)
    }

    /// As when dockerd is killed and started again.
    #[track_caller]
    pub fn restart_dockerd(&mut self) {
        self.dockerd = Dockerd::start(&self.lab.node, &self.agent);
    }

    /// What the driver answers where it has nothing against it.
    #[track_caller]
    pub fn ask(&self, method: &str, body: Value) -> Value {
        let (status, answer) = self.post(method, &body.to_string());
        assert_eq!(status, OK, "{method} {body}: {answer}");
        answer
    }

    /// Why the driver refuses.
    #[track_caller]
    pub fn refused(&self, method: &str, body: Value) -> (u16, String) {
        let (status, answer) = self.post(method, &body.to_string());
        assert_ne!(status, OK, "{method} {body}: {answer}");
        (status, text(&answer["Err"]).to_owned())
    }

    #[track_caller]
    pub fn create_network(&self, id: &str, subnet: &str, gateway: &str) {
        let body = json!({
            "NetworkID": id,
            "Options": {"com.docker.network.enable_ipv6": false, "com.docker.network.generic": {}},
            "IPv4Data": [{"AddressSpace": "LocalDefault", "Gateway": gateway, "Pool": subnet}],
            "IPv6Data": [],
        });
        assert_eq!(self.ask("NetworkDriver.CreateNetwork", body), json!({}));
    }

    /// The answer to a Join.
    #[track_caller]
    pub fn join(&self, network: &str, endpoint: &str, address: &str) -> Value {
        self.create_endpoint(network, endpoint, address);
        self.ask("NetworkDriver.Join", self.joining(network, endpoint))
    }

    #[track_caller]
    pub fn create_endpoint(&self, network: &str, endpoint: &str, address: &str) -> Value {
        let body = json!({
            "NetworkID": network,
            "EndpointID": endpoint,
            "Interface": {"Address": address, "AddressIPv6": "", "MacAddress": ""},
            "Options": {"com.docker.network.endpoint.exposedports": [], "com.docker.network.portmap": []},
        });
        self.ask("NetworkDriver.CreateEndpoint", body)
    }

    pub fn joining(&self, network: &str, endpoint: &str) -> Value {
        json!({
            "NetworkID": network,
            "EndpointID": endpoint,
            "SandboxKey": self.sandbox(),
            "Options": {},
        })
    }

    pub fn sandbox(&self) -> PathBuf {
        self.sandboxes.path().join(SANDBOX)
    }

    #[track_caller]
    pub fn publish(&self, network: &str, endpoint: &str, ports: Value) {
        let body = json!({
            "NetworkID": network, "EndpointID": endpoint,
            "Options": {"com.docker.network.endpoint.exposedports": [], "com.docker.network.portmap": ports},
        });
        self.ask("NetworkDriver.ProgramExternalConnectivity", body);
    }

    #[track_caller]
    pub fn says(&self, method: &str, network: &str, endpoint: &str) {
        let body = json!({"NetworkID": network, "EndpointID": endpoint});
        let answer = self.ask(&format!("NetworkDriver.{method}"), body);
        assert_eq!(answer, json!({}));
    }

    /// As dockerd does it once the container's namespace is there.
    #[track_caller]
    pub fn take(&self, joined: &Value, address: &str, container: &Namespace, interface: &str) {
        if !self.sandbox().exists() {
            symlink(container.path(), self.sandbox()).expect("a new link");
        }
        let source = text(&joined["InterfaceName"]["SrcName"]);
        self.lab
            .node
            .ip(&["link", "set", source, "netns", container.name()]);
        container.ip(&["link", "set", source, "name", interface]);
        container.ip(&["address", "add", address, "dev", interface]);
        container.ip(&["link", "set", interface, "up"]);
        if let Some(gateway) = joined["Gateway"].as_str()
            && container.ip(&["route", "show", "default"]).is_empty()
        {
            container.ip(&["route", "add", "default", "via", gateway]);
        }
    }

    /// As dockerd does it when the container leaves.
    #[track_caller]
    pub fn put_back(&self, joined: &Value, container: &Namespace, interface: &str) {
        let source = text(&joined["InterfaceName"]["SrcName"]);
        container.ip(&["link", "set", interface, "down"]);
        container.ip(&["link", "set", interface, "name", source]);
        let node = self.lab.node.name();
        container.ip(&["link", "set", source, "netns", node]);
    }

    pub fn endpoints(&self) -> Vec<Value> {
        let all = self.agent.json(&["endpoint", "ls"]);
        all.as_array().expect("a list").clone()
    }

    /// The agent knows by which names the container's interfaces go there.
    #[track_caller]
    pub fn is_adopted(&self, interfaces: &[&str]) {
        wait_until("the agent to look inside", SOON, || {
            let endpoints = self.endpoints();
            let networks = endpoints[0]["networks"].as_array().expect("a list");
            let names = networks.iter().map(|n| text(&n["interface"]));
            names.eq(interfaces.iter().copied())
        });
    }
}

/// A process that posts what it is told, each by a connection of its own: the agent looks at who asks.
pub struct Dockerd {
    process: Child,
    asked: RefCell<ChildStdin>,
    answers: RefCell<BufReader<ChildStdout>>,
}

/// Lines of JSON: the method and the body; status and answer.
const POST: &str = r#"
import http.client, json, socket, sys
for line in sys.stdin:
    method, body = json.loads(line)
    connection = http.client.HTTPConnection("plugin")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(sys.argv[1])
    connection.request("POST", "/" + method, body)
    answer = connection.getresponse()
    print(json.dumps([answer.status, answer.read().decode()]), flush=True)
    connection.close()
"#;

impl Dockerd {
    #[track_caller]
    pub fn start(from: &Namespace, agent: &Agent) -> Self {
        let mut command = from.command("/usr/bin/python3");
        command
            .args(["-c", POST])
            .arg(socket(agent))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = command.spawn().expect("python3 can be started");
        let asked = process.stdin.take().expect("a pipe");
        let answers = process.stdout.take().expect("a pipe");
        Self {
            process,
            asked: RefCell::new(asked),
            answers: RefCell::new(BufReader::new(answers)),
        }
    }

    #[track_caller]
    pub fn post(&self, method: &str, body: &str) -> (u16, Value) {
        writeln!(self.asked.borrow_mut(), "{}", json!([method, body])).expect("it reads");
        let mut line = String::new();
        let read = self.answers.borrow_mut().read_line(&mut line);
        assert!(read.is_ok_and(|bytes| bytes > 0), "no answer to {method}");
        let (status, text): (u16, String) = serde_json::from_str(&line).expect("a pair");
        let answer = match text.as_str() {
            "" => Value::Null,
            text => serde_json::from_str(text).expect("JSON"),
        };
        (status, answer)
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub fn socket(agent: &Agent) -> PathBuf {
    PathBuf::from(format!("/run/docker/plugins/{}.sock", agent.instance()))
}

/// As `docker run -p HOST:CONTAINER` has it; protocols as of IP.
pub fn binding(protocol: u8, host: u16, container: u16) -> Value {
    json!({"Proto": protocol, "IP": "", "Port": container, "HostIP": "", "HostPort": host, "HostPortEnd": host})
}
