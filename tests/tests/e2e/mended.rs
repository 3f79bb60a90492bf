//! What once went wrong, each test named after it.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Duration,
};

use netfw_tests::{
    Agent, Lab, Namespace,
    agent::{FAILED, binary},
    wait::{wait_for, wait_until},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

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
