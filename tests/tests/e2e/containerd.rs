//! containerd's containers, in a network of netfw's by the CNI plugin: real containerd and ctr, with directories
//! of their own, and the lab's node for their host.

use std::{
    fs::{self, File},
    net::UdpSocket,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use netfw_tests::{
    Agent, Lab, Running, netns,
    programs::{UdpEcho, ask, curl_in_vain, udp_socket_for},
    reaper,
    runtime::{self, HTTPD, IMAGE, PAGE, endpoint, has_no_rules, serves},
    topology::{CLIENT, CLIENT6, NODE, NODE6},
    wait::wait_until,
};
use serde_json::json;
use tempfile::TempDir;

use crate::setting::{SOON, text};

/// What containerd and these tests start, and the Debian package it is in.
const PROGRAMS: [(&str, &str); 4] = [
    ("/usr/bin/containerd", "containerd"),
    ("/usr/bin/ctr", "containerd"),
    ("/usr/sbin/runc", "runc"),
    runtime::BUSYBOX,
];

/// containerd's namespaces of containers: ctr's own, and that of its Container Runtime Interface.
const DEFAULT: &str = "default";
pub const KUBERNETES: &str = "k8s.io";

/// containerd on a node with an agent.
///
/// Fields drop in order: the containers go before the agent, and that before the node.
pub struct Containerd {
    own: Own,
    pub agent: Agent,
    pub lab: Lab,
}

/// containerd and its directories.
struct Own {
    daemon: Running,
    directory: TempDir,
}

impl Containerd {
    /// None, said aloud, where containerd is not installed. All containers are for the network of that name, as
    /// docs/containerd.md has it; `more` are further fields. The image is there, in both namespaces.
    #[track_caller]
    pub fn start(network: &str, more: &str) -> Option<Self> {
        if !runtime::are_there(&PROGRAMS) {
            return None;
        }
        let lab = Lab::new();
        let agent = Agent::start(&lab);
        let instance = agent.instance();
        let list = format!(
            r#"{{"cniVersion": "1.0.0", "name": "{network}", "plugins": [{{
                "type": "netfw-cni", "instance": "{instance}", {more}
                "capabilities": {{"portMappings": true, "ips": true, "mac": true, "aliases": true}}
            }}]}}"#
        );
        let own = Own::new(&lab, &list);
        let containerd = Self { own, agent, lab };
        wait_until("containerd to answer", SOON, || {
            containerd.output(&["version"]).status.success()
        });
        let archive = runtime::image(containerd.path()).display().to_string();
        for namespace in [DEFAULT, KUBERNETES] {
            containerd.ctr(&["-n", namespace, "image", "import", "--no-unpack", &archive]);
        }
        Some(containerd)
    }

    pub fn path(&self) -> &Path {
        self.own.directory.path()
    }

    /// Where containerd listens.
    pub fn socket(&self) -> PathBuf {
        self.path().join("socket")
    }

    #[track_caller]
    fn output(&self, words: &[&str]) -> Output {
        let mut command = self.own.script("ctr");
        command.args(words).stdin(Stdio::null());
        command.output().expect("ctr can be started")
    }

    /// `ctr WORDS`: what it printed. Panics unless it ends with status 0.
    #[track_caller]
    fn ctr(&self, words: &[&str]) -> String {
        netns::stdout(self.own.script("ctr").args(words).stdin(Stdio::null()))
    }

    /// `ctr run --cni OPTIONS … ID COMMAND`. What runc keeps by a container's ID is ours alone, too.
    #[track_caller]
    fn run(&self, id: &str, options: &[&str], command: &[&str]) -> String {
        let own = self.path().file_name().expect("a name").display();
        let runc = self.path().join("runc").display().to_string();
        let cgroup = format!("/{own}-{id}");
        let run = ["run", "--cni", "--runc-root", &runc, "--cgroup", &cgroup];
        self.ctr(&[&run[..], options, &[IMAGE, id], command].concat())
    }

    /// A container that goes on, and says what it says to a file.
    #[track_caller]
    fn serve(&self, id: &str) -> PathBuf {
        let log = self.path().join(format!("{id}.log"));
        File::create(&log).expect("a new file");
        let to = format!("file://{}", log.display());
        self.run(id, &["-d", "--log-uri", &to], &HTTPD);
        log
    }
}

impl Own {
    #[track_caller]
    fn new(lab: &Lab, network: &str) -> Self {
        let directory = runtime::directory("netfw-containerd-");
        let path = directory.path();
        let plugins = path.join("opt/cni/bin");
        for directory in [&path.join("etc/cni/net.d"), &plugins] {
            fs::create_dir_all(directory).expect("a new directory");
        }
        fs::write(path.join("etc/cni/net.d/10-network.conflist"), network).expect("a new file");
        runtime::install(&plugins);
        // Of the reference plugins; containerd has it set each pod's `lo` up.
        symlink("/usr/lib/cni/loopback", plugins.join("loopback")).expect("a new link");
        let (path, node) = (path.display(), lab.node.path());
        let conf = format!(
            r#"
            version = 2
            root = "{path}/root"
            state = "{path}/state"
            [grpc]
            address = "{path}/socket"
            [plugins."io.containerd.internal.v1.opt"]
            path = "{path}/containerd"
            [plugins."io.containerd.grpc.v1.cri"]
            sandbox_image = "{IMAGE}"
            restrict_oom_score_adj = true
            netns_mounts_under_state_dir = true
            [plugins."io.containerd.grpc.v1.cri".containerd]
            snapshotter = "native"
            [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
            runtime_type = "io.containerd.runc.v2"
            [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
            Root = "{path}/runc"
            [plugins."io.containerd.grpc.v1.cri".cni]
            conf_dir = "{path}/etc/cni/net.d"
            bin_dir = "{path}/opt/cni/bin"
            "#
        );
        fs::write(directory.path().join("config.toml"), conf).expect("a new file");
        // ctr knows one place for networks, and one for plugins.
        let ctr = format!(
            "export CONTAINERD_ADDRESS='{path}/socket' CONTAINERD_SNAPSHOTTER=native
             exec unshare --mount sh -c 'mount --bind {path}/etc /etc && mount --bind {path}/opt /opt &&
                 exec nsenter --net={} -- ctr \"$@\"' ctr \"$@\"\n",
            node.display()
        );
        // What containerd would leave: containers, their shims, and mounts. Also for the reaper.
        let clean = format!(
            "for namespace in {DEFAULT} {KUBERNETES}; do
                 for task in $(sh '{path}/ctr' -n $namespace task ls -q); do
                     sh '{path}/ctr' -n $namespace task rm -f $task
                 done
             done
             {}\n",
            runtime::unmount(&path.to_string())
        );
        for (name, script) in [("ctr", ctr), ("clean", clean)] {
            fs::write(directory.path().join(name), script).expect("a new file");
        }
        let mut command = lab.node.command("containerd");
        command.args(["--config", &format!("{path}/config.toml")]);
        let daemon = Running::start(command);
        let pid = daemon.pid();
        reaper::at_end(&format!(
            "grep -qs '{path}' /proc/{pid}/cmdline && kill {pid}"
        ));
        reaper::at_end(&format!("[ -e '{path}/clean' ] && sh '{path}/clean'"));
        Self { daemon, directory }
    }

    fn script(&self, name: &str) -> Command {
        let mut command = Command::new("sh");
        command.arg(self.directory.path().join(name));
        command
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let output = self.script("clean").output();
        if !output.is_ok_and(|output| output.status.success()) {
            eprintln!("containers of containerd may be left");
        }
        self.daemon.stop();
    }
}

#[test]
fn a_container_of_containerd_s_is_found_and_serves() {
    let Some(containerd) = Containerd::start("app", r#""ipv6": true,"#) else {
        return;
    };
    let Containerd { agent, lab, .. } = &containerd;
    let before = lab.node.links();
    let log = containerd.serve("web");
    let web = endpoint(agent, "default-web").expect("an endpoint");
    assert_eq!(
        (text(&web["state"]), text(&web["networks"][0]["network"])),
        ("up", "app")
    );

    agent.netfw(&["publish", "default-web", "8080:80"]);
    agent.netfw(&["publish", "default-web", "5353:53/udp"]);
    serves(lab, 8080);
    has_no_rules(&lab.node);
    for client in [CLIENT, CLIENT6] {
        wait_until(&format!("{client} in the log"), SOON, || {
            let said = fs::read_to_string(&log).expect("the log");
            said.contains(&client.to_string())
        });
    }
    let inside = PathBuf::from(text(&web["netns"]));
    let echo = netns::enter(&inside, || {
        UdpSocket::bind(("::", 53)).expect("the port is free")
    });
    let echo = UdpEcho::on(echo);
    for node in [NODE, NODE6] {
        let socket = udp_socket_for(&lab.client, node);
        assert!(ask(&socket, (node, 5353), "hello").is_some_and(|said| said.ends_with("hello")));
    }
    drop(echo);

    // ctr tells a container of no name server: whoever wants names brings the file.
    let resolv = containerd.path().join("resolv.conf");
    let gateway = text(&web["gateway"]);
    fs::write(&resolv, format!("nameserver {gateway}\n")).expect("a new file");
    let mount = format!(
        "type=bind,src={},dst=/etc/resolv.conf,options=rbind:ro",
        resolv.display()
    );
    let fetch = ["wget", "-qO-", "http://default-web/"];
    let options = ["--rm", "--mount", &mount];
    assert_eq!(containerd.run("asker", &options, &fetch), PAGE);
    assert_eq!(endpoint(agent, "default-asker"), None);

    // The same container again, whose end nobody has told netfw of.
    let end = || {
        containerd.ctr(&["task", "rm", "-f", "web"]);
        containerd.ctr(&["container", "rm", "web"]);
    };
    end();
    containerd.serve("web");
    let again = endpoint(agent, "default-web").expect("an endpoint");
    assert_ne!(again["netns"], web["netns"]);
    agent.netfw(&["publish", "default-web", "8080:80"]);
    serves(lab, 8080);
    agent.netfw(&["endpoint", "rm", "default-web"]);
    assert!(curl_in_vain(&lab.client, NODE, 8080));
    end();
    assert_eq!(agent.json(&["endpoint", "ls"]), json!([]));
    agent.netfw(&["network", "rm", "app"]);
    assert_eq!(lab.node.links(), before);
}

#[test]
fn what_a_container_of_containerd_s_leaves_is_swept() {
    let Some(mut containerd) = Containerd::start("app", "") else {
        return;
    };
    containerd.serve("web");
    containerd.serve("stays");
    let publish = ["publish", "default-web", "8080:80"];
    containerd.agent.netfw(&publish);
    // `ctr run -d` calls no plugin at the end.
    containerd.ctr(&["task", "rm", "-f", "web"]);
    containerd.agent.stop();
    containerd.agent.start_again();
    wait_until("the endpoint to be gone", SOON, || {
        endpoint(&containerd.agent, "default-web").is_none()
    });
    assert_eq!(containerd.agent.json(&["port"]), json!([]));
    let stays = endpoint(&containerd.agent, "default-stays").expect("an endpoint");
    assert_eq!(stays["state"], "up");
}
