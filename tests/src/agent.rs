//! A `netfw agent` that serves a lab's node, and netfw's command line towards it.
//!
//! Dropping it ends the agent, takes everything down and checks that nothing is left in the node:
//! so every end-to-end test is a test of the teardown as well.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::{
    netns::{Namespace, Running},
    reaper, serial,
    topology::Lab,
    wait::wait_until,
};

/// The programs are loaded and verified in this time, on a busy machine or an emulated one too.
const START: Duration = Duration::from_secs(120);
const STOP: Duration = Duration::from_secs(10);

/// netfw's exit status where it was asked for something that cannot be done.
pub const FAILED: i32 = 1;
/// netfw's exit status where the command line itself is wrong.
pub const USAGE: i32 = 2;

pub struct Agent {
    binary: PathBuf,
    instance: String,
    node: String,
    running: Option<Running>,
    options: Vec<String>,
    environment: Vec<(String, OsString)>,
    strict: bool,
}

impl Agent {
    /// Starts an agent for the lab's node and waits until it answers.
    #[track_caller]
    pub fn start(lab: &Lab) -> Self {
        Self::start_with(lab, &[])
    }

    /// As [`start`](Self::start), with more options for `netfw agent`.
    #[track_caller]
    pub fn start_with(lab: &Lab, options: &[&str]) -> Self {
        Self::serve(&lab.node, options)
    }

    /// As [`start_with`](Self::start_with), with more in its environment.
    #[track_caller]
    pub fn start_in(
        lab: &Lab,
        options: &[&str],
        environment: impl IntoIterator<Item = (&'static str, OsString)>,
    ) -> Self {
        let environment = environment.into_iter();
        let environment = environment.map(|(name, value)| (name.to_owned(), value));
        Self::serve_in(&lab.node, options, environment.collect())
    }

    /// Starts an agent for any namespace.
    #[track_caller]
    pub fn serve(node: &Namespace, options: &[&str]) -> Self {
        Self::serve_in(node, options, Vec::new())
    }

    #[track_caller]
    fn serve_in(node: &Namespace, options: &[&str], environment: Vec<(String, OsString)>) -> Self {
        let instance = format!("t{}x{}", std::process::id(), serial());
        let directories = directories(&instance).join(" ");
        reaper::at_end(&format!(
            "ls -d {directories} && {{ '{}' down --instance {instance}; rm -rf {directories}; }}",
            binary().display()
        ));
        let mut agent = Self {
            binary: binary(),
            instance,
            node: node.path().display().to_string(),
            running: None,
            options: options.iter().map(|&option| option.to_owned()).collect(),
            environment,
            strict: true,
        };
        agent.start_again();
        agent
    }

    /// Has what is left after the teardown told, but not fail: for a bench, whose figures hold
    /// all the same.
    pub fn lenient(mut self) -> Self {
        self.strict = false;
        self
    }

    /// Starts the agent where it was stopped or killed, with the options it had.
    #[track_caller]
    pub fn start_again(&mut self) {
        let mut command = Command::new(&self.binary);
        command
            .args(["agent", "--netns", &self.node, "--instance", &self.instance])
            .args(&self.options)
            .envs(self.environment.iter().cloned());
        let mut running = Running::start(command);
        // It is in no namespace of ours, as far as `ip netns pids` can tell, and would go on.
        let (pid, instance) = (running.pid(), &self.instance);
        reaper::at_end(&format!(
            "grep -qs {instance} /proc/{pid}/cmdline && kill {pid} && timeout 10 tail -f /dev/null --pid={pid}"
        ));
        wait_until("the agent to answer `netfw status`", START, || {
            if let Some(status) = running.ended() {
                panic!("the agent ended with {status}\n{}", running.stderr());
            }
            self.output(&["status"]).status.success()
        });
        self.running = Some(running);
    }

    /// Options for `netfw agent` from the next start on.
    pub fn set_options(&mut self, options: &[&str]) {
        self.options = options.iter().map(|&option| option.to_owned()).collect();
    }

    /// Another netfw, from the next start or command on.
    pub fn set_binary(&mut self, binary: &Path) {
        self.binary = binary.into();
    }

    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Takes what a reboot takes of a stopped agent's data plane.
    pub fn forget_pins(&self) {
        std::fs::remove_dir_all(format!("/sys/fs/bpf/{}", self.instance)).expect("it is ours");
    }

    /// The agent's own process.
    pub fn process(&mut self) -> &mut Running {
        self.running.as_mut().expect("the agent was started")
    }

    /// SIGKILL: no chance to clean up. [`start_again`](Self::start_again) goes on from there.
    pub fn kill(&mut self) {
        let process = self.process();
        process.signal(nix::sys::signal::Signal::SIGKILL);
        process.wait(STOP);
        self.running = None;
    }

    /// SIGTERM; panics unless it ends with status 0.
    #[track_caller]
    pub fn stop(&mut self) {
        let process = self.process();
        process.signal(nix::sys::signal::Signal::SIGTERM);
        let status = process.wait(STOP);
        assert!(
            status.success(),
            "the agent ended with {status}\n{}",
            self.process().stderr()
        );
        self.running = None;
    }

    /// `netfw ARGUMENTS`, whatever comes of it.
    pub fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments)
            .output()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", binary().display()))
    }

    /// `netfw ARGUMENTS`, to be started by the caller.
    pub fn command(&self, arguments: &[&str]) -> Command {
        // Before the arguments: what follows a `--` is not netfw's.
        let mut command = Command::new(&self.binary);
        command
            .args(["--instance", &self.instance])
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    /// `netfw ARGUMENTS`: what it printed. Panics unless it ends with status 0.
    #[track_caller]
    pub fn netfw(&self, arguments: &[&str]) -> String {
        crate::netns::stdout(&mut self.command(arguments))
    }

    /// `netfw ARGUMENTS -o json`, parsed.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let text = crate::netns::stdout(self.command(&["-o", "json"]).args(arguments));
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("netfw {arguments:?} printed no JSON: {error}\n{text}"))
    }

    /// `netfw ARGUMENTS` must end with `status` ([`FAILED`], [`USAGE`]): what it said on stderr.
    #[track_caller]
    pub fn refuses(&self, status: i32, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(
            output.status.code(),
            Some(status),
            "netfw {arguments:?} was to be refused\n{}{said}",
            String::from_utf8_lossy(&output.stdout)
        );
        assert!(
            !said.trim().is_empty(),
            "netfw {arguments:?} was refused without a word"
        );
        said
    }

    /// What is left in the node and of the instance; nothing, once taken down.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left = directories(&self.instance).to_vec();
        left.retain(|directory| Path::new(directory).exists());
        // The test may have deleted the node itself.
        if Path::new(&self.node).exists() {
            let mut links = Command::new("nsenter");
            links.arg(format!("--net={}", self.node));
            match links.args(["--", "ip", "-o", "link"]).output() {
                Ok(output) => left.extend(
                    String::from_utf8_lossy(&output.stdout)
                        .lines()
                        .filter(|line| line.contains(": netfw") || line.contains(": nf"))
                        .map(|line| format!("link {line}")),
                ),
                Err(error) => left.push(format!("cannot list links: {error}")),
            }
        }
        left
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let ended = self.running.as_mut().map(Running::stop);
        let down = self.output(&["down"]);
        let mut wrong = self.leftovers();
        if let Some(status) = ended
            && !status.success()
        {
            wrong.push(format!("the agent ended with {status}"));
        }
        if !down.status.success() {
            wrong.push(format!(
                "`netfw down` ended with {}: {}",
                down.status,
                String::from_utf8_lossy(&down.stderr).trim()
            ));
        }
        if !wrong.is_empty() {
            let said = self.running.as_ref().map(Running::stderr);
            let wrong = format!(
                "after `netfw down`: {}\nthe agent said:\n{}",
                wrong.join("; "),
                said.unwrap_or_default()
            );
            if thread::panicking() || !self.strict {
                eprintln!("{wrong}");
            } else {
                panic!("{wrong}");
            }
        }
    }
}

/// Where an instance keeps its pins, its socket and its store.
fn directories(instance: &str) -> [String; 3] {
    ["/sys/fs/bpf", "/run/netfw", "/var/lib/netfw"].map(|home| format!("{home}/{instance}"))
}

/// The netfw under test: `$NETFW_BIN`, or the one built beside this test program.
pub fn binary() -> PathBuf {
    if let Some(binary) = std::env::var_os("NETFW_BIN") {
        return binary.into();
    }
    let own = std::env::current_exe().expect("a running program has a path");
    // target/PROFILE/netfw-bench, or target/PROFILE/deps/e2e-0123456789abcdef
    let mut candidates: Vec<PathBuf> = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join("netfw"))
        .collect();
    candidates.extend(
        own.ancestors()
            .nth(3)
            .map(|target| target.join("release/netfw")),
    );
    let found = candidates.iter().find(|binary| binary.is_file());
    found.cloned().unwrap_or_else(|| {
        panic!("no netfw to test: neither $NETFW_BIN nor any of {candidates:?}; `cargo build --release -p netfw` makes one")
    })
}
