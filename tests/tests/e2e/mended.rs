//! What once went wrong, each test named after it.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::{UnixDatagram, UnixStream},
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Duration,
};

use netfw_tests::{
    Agent, Lab, Namespace, Running,
    agent::{FAILED, USAGE, binary},
    wait::{wait_for, wait_until},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::setting::text;

/// For a whole demo, on a busy machine.
const LONG: Duration = Duration::from_secs(60);

/// `words` run to their end, on the machine itself.
fn output(program: impl AsRef<std::ffi::OsStr>, words: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null());
    command.output().expect("the program can be started")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The directories of an instance that exist.
fn traces(instance: &str) -> Vec<String> {
    ["/run/netfw", "/var/lib/netfw", "/sys/fs/bpf"]
        .map(|home| format!("{home}/{instance}"))
        .into_iter()
        .filter(|path| Path::new(path).exists())
        .collect()
}

#[test]
fn what_a_container_sent_at_once_was_lost() {
    let lab = Lab::new();
    let agent = Agent::start(&lab);
    let app = lab.container("app");
    let network = agent.json(&["network", "inspect", "bridge"]);
    for _ in 0..20 {
        let endpoint = agent.json(&["endpoint", "add", "app", "--netns", app.name()]);
        assert_eq!(endpoint["state"], "up", "{endpoint}");
        // A second later it is asked for the neighbour once more.
        for gateway in ["172.18.0.1", text(&network["gateway6"])] {
            app.run(&["ping", "-n", "-c", "1", "-W", "0.9", gateway]);
        }
        agent.netfw(&["endpoint", "rm", "app"]);
    }
}

#[test]
fn in_a_private_mount_namespace_pins_were_lost_with_the_agent() {
    let node = Namespace::new("node");
    let instance = format!("private-{}", std::process::id());
    let netfw = binary().display().to_string();
    let name = node.name();
    // Were it not refused, it would serve this node, and end.
    let agent = ["agent", "--netns", name];
    let asked = ["timeout", "20", &netfw, "--instance", &instance];
    let private: [&[&str]; 2] = [&["ip", "netns", "exec", name], &["unshare", "--mount"]];
    for within in private {
        for command in [&agent[..], &["down"], &["demo"]] {
            let words = [within, &asked, command].concat();
            let refused = output(words[0], &words[1..]);
            let said = said(&refused);
            assert_eq!(refused.status.code(), Some(FAILED), "{words:?}: {said}");
            let hint = match within[0] {
                "ip" => format!("--netns {name}"),
                _ => "--netns".into(),
            };
            assert!(said.contains(&hint), "{said}");
        }
    }
    assert_eq!(traces(&instance), [""; 0]);
}

/// A demo of ours, and what it leaves.
struct Demo(Child);

impl Demo {
    fn start(words: &[&str]) -> Self {
        let mut command = Command::new(binary());
        command.args(words).arg("demo");
        // A group of its own: its signals are not ours.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        Self(child.expect("netfw can be started"))
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn is_up(&self) -> bool {
        Path::new(&format!("/run/netfw/demo-{}/agent.sock", self.pid())).exists()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).expect("our own child");
    }

    fn end(&mut self) -> ExitStatus {
        wait_for("the demo to end", LONG, || {
            self.0.try_wait().expect("our own child")
        })
    }

    fn left(&self) -> Vec<String> {
        let namespaces = fs::read_dir("/run/netns").into_iter().flatten().flatten();
        let prefix = format!("netfw-demo-{}-", self.pid());
        namespaces
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with(&prefix))
            .chain(traces(&format!("demo-{}", self.pid())))
            .collect()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_demo_whose_reader_went_away_left_everything() {
    for words in [&["-o", "json"][..], &[]] {
        let mut demo = Demo::start(words);
        wait_until("the demo's agent", LONG, || demo.is_up());
        drop(demo.0.stdout.take());
        assert_eq!(demo.end().code(), Some(FAILED));
        assert_eq!(demo.left(), [""; 0]);
    }
}

#[test]
fn a_demo_that_was_told_to_end_left_everything() {
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        let mut demo = Demo::start(&[]);
        wait_until("the demo's namespaces", LONG, || !demo.left().is_empty());
        demo.signal(signal);
        assert_eq!(demo.end().code(), Some(FAILED), "{signal}");
        assert_eq!(demo.left(), [""; 0], "{signal}");
    }
}

#[test]
fn a_demo_that_was_killed_left_its_agent_and_its_namespaces_for_ever() {
    let mut killed = Demo::start(&[]);
    wait_until("the demo's agent", LONG, || killed.is_up());
    let lock = format!("/run/netfw/demo-{}/agent.lock", killed.pid());
    let agent = fs::read_to_string(lock).expect("the agent's process id");
    let agent = format!("/proc/{}/exe", agent.trim());
    killed.signal(Signal::SIGKILL);
    killed.end();
    wait_until("its agent to end", LONG, || fs::read_link(&agent).is_err());
    assert_ne!(killed.left(), [""; 0]);

    let mut next = Demo::start(&["-o", "json"]);
    let output = BufReader::new(next.0.stdout.take().expect("a pipe"));
    assert!(output.lines().map_while(Result::ok).count() > 5);
    assert!(next.end().success());
    assert_eq!(killed.left(), [""; 0]);
    assert_eq!(next.left(), [""; 0]);
}

#[test]
fn a_client_that_hung_up_could_end_the_agent() {
    let lab = Lab::new();
    let mut agent = Agent::start(&lab);
    let socket = format!("/run/netfw/{}/agent.sock", agent.instance());
    for _ in 0..50 {
        let mut client = UnixStream::connect(&socket).expect("the agent listens");
        // Many at once: the answers to the later ones find nobody.
        let request = "GET /v1/stats HTTP/1.1\r\nHost: netfw\r\n\r\n";
        client
            .write_all(request.repeat(8).as_bytes())
            .expect("the agent reads");
    }
    agent.netfw(&["status"]);
    assert!(agent.process().ended().is_none());
}

#[test]
fn the_machine_s_own_namespace_became_an_endpoint() {
    let lab = Lab::new();
    let agent = Agent::start(&lab);
    let own = agent.refuses(
        FAILED,
        &["endpoint", "add", "x", "--netns", "/proc/2/ns/net"],
    );
    assert!(own.contains("the machine's own"), "{own}");
    agent.refuses(FAILED, &["endpoint", "add", "x", "--pid", "1"]);
    let node = lab.node.path().display().to_string();
    let node = agent.refuses(FAILED, &["endpoint", "add", "x", "--netns", &node]);
    assert!(node.contains("the agent serves"), "{node}");
    assert_eq!(
        agent.json(&["endpoint", "ls"]).as_array().map(Vec::len),
        Some(0)
    );
}

#[test]
fn a_publish_that_reaches_nobody_was_taken_without_a_word() {
    let node = Namespace::new("node");
    let instance = format!("no-cgroup-{}", std::process::id());
    let netfw = |words: &[&str]| {
        let mut all = vec!["--instance", &instance];
        all.extend(words);
        output(binary(), &all)
    };
    // No cgroup hierarchy in here, and nothing of it gets out: /sys is made private first. The rest
    // is shared with the machine, as the agent wants it.
    let script = "mount --make-rprivate /sys
        grep ' cgroup2 ' /proc/mounts | cut -d' ' -f2 | grep ^/sys/ | xargs -r umount -l
        exec \"$@\"";
    let mut agent = Command::new("unshare");
    agent
        .args(["--mount", "--propagation", "unchanged", "sh", "-c", script])
        .arg("sh")
        .arg(binary())
        .args(["--instance", &instance, "agent", "--netns", node.name()]);
    let mut agent = Running::start(agent);
    wait_until("the agent", LONG, || netfw(&["status"]).status.success());
    let added = netfw(&["endpoint", "add", &instance, "-p", "127.0.0.1:8080:80"]);
    assert!(added.status.success(), "{}", said(&added));
    let warning = "warning: 127.0.0.1:8080:80/tcp serves nobody: ";
    assert!(said(&added).contains(warning), "{}", said(&added));
    let shown = netfw(&["publish", &instance, "8081:80", "-o", "json"]);
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).expect("JSON");
    assert_eq!(shown["warnings"].as_array().map(Vec::len), Some(1));
    agent.stop();
    assert!(netfw(&["down"]).status.success());

    let lab = Lab::new();
    let agent = Agent::start(&lab);
    let json = agent.json(&["endpoint", "add", &instance, "-p", "127.0.0.1:8080:80"]);
    assert_eq!(json["warnings"], serde_json::json!([]), "it is served");
}

#[test]
fn an_uplink_that_cannot_be_was_a_failure_and_not_wrong_usage() {
    let wrong = output(binary(), &["agent", "--uplink", "a/b"]);
    assert_eq!(wrong.status.code(), Some(USAGE));
    assert!(said(&wrong).contains("a/b"));
}

#[test]
fn exec_of_a_missing_command_ended_as_any_failure() {
    let lab = Lab::new();
    let agent = Agent::start(&lab);
    // Its namespace has this name on the whole machine.
    let name = format!("missing{}", std::process::id());
    agent.netfw(&["endpoint", "add", &name]);
    let status = |command: &str| agent.output(&["exec", &name, "--", command]).status.code();
    assert_eq!(status("no-such-command"), Some(127));
    assert_eq!(status("/etc/passwd"), Some(126));
    assert_eq!(status("true"), Some(0));
}

#[test]
fn exec_ran_in_whatever_bore_the_endpoint_s_name() {
    let lab = Lab::new();
    let web = lab.container("web");
    let agent = Agent::start(&lab);
    agent.netfw(&["endpoint", "add", "web", "--netns", web.name()]);
    // Its interface may have another name.
    web.ip(&["link", "set", "eth0", "down"]);
    web.ip(&["link", "set", "eth0", "name", "net7"]);
    agent.netfw(&["exec", "web", "--", "true"]);
    web.delete();
    Command::new("ip")
        .args(["netns", "add", web.name()])
        .status()
        .expect("ip can be started");
    wait_until("the endpoint's namespace to be refused", LONG, || {
        let output = agent.output(&["exec", "web", "--", "true"]);
        output.status.code() == Some(FAILED)
            && said(&output).contains("is not the namespace that endpoint \"web\" was made for")
    });
}

#[test]
fn an_error_was_text_also_where_json_was_asked_for() {
    let lab = Lab::new();
    let agent = Agent::start(&lab);
    let kind = |output: &Output| {
        let error: serde_json::Value =
            serde_json::from_slice(&output.stderr).expect("JSON on stderr");
        assert!(!error["error"].as_str().expect("a sentence").is_empty());
        error["kind"].as_str().expect("a kind").to_owned()
    };
    let json = |words: &[&str]| agent.output(&[&["-o", "json"], words].concat());
    assert_eq!(kind(&json(&["endpoint", "inspect", "x"])), "not_found");
    let wrong = json(&["publish", "x"]);
    assert_eq!(
        (kind(&wrong).as_str(), wrong.status.code()),
        ("usage", Some(USAGE))
    );
    let other = ["-o", "json", "--instance", "no-such-agent", "status"];
    assert_eq!(kind(&output(binary(), &other)), "not_running");
}

#[test]
fn a_command_right_after_the_agent_s_start_found_none() {
    let node = Namespace::new("node");
    let instance = format!("at-once-{}", std::process::id());
    let words = |words: &[&'static str]| {
        let mut command = Command::new(binary());
        command.args(["--instance", &instance]).args(words);
        command
    };
    let directory = tempfile::tempdir().expect("a directory can be made");
    let address = directory.path().join("notify");
    let manager = UnixDatagram::bind(&address).expect("a socket can be bound");
    manager.set_read_timeout(Some(LONG)).expect("a time limit");
    let mut agent = words(&["agent"]);
    agent
        .args(["--netns", node.name()])
        .env("NOTIFY_SOCKET", &address);
    let mut agent = Running::start(agent);
    let status = words(&["status"]).output().expect("netfw can be started");
    assert!(status.status.success(), "{}", said(&status));
    let mut told = [0; 64];
    let length = manager.recv(&mut told).expect("the agent tells");
    assert_eq!(
        &told[..length],
        b"READY=1\nSTATUS=serving 0 endpoints, 0 publishes"
    );
    assert!(agent.stop().success());
    let length = manager.recv(&mut told).expect("the agent tells");
    assert_eq!(&told[..length], b"STOPPING=1");
    let down = words(&["down"]).output().expect("netfw can be started");
    assert!(down.status.success(), "{}", said(&down));
    assert_eq!(traces(&instance), [""; 0]);
}
