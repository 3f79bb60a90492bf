//! netfw as a CNI plugin, called as a runtime calls it: a process with variables in its environment, a
//! configuration on stdin, and an answer on stdout.

mod addresses;
mod attach;
mod check;
mod collect;
mod protocol;

use std::{
    io::Write as _,
    process::{Child, Command, Output, Stdio},
};

use netfw_tests::{
    Agent, Lab, Namespace,
    runtime::{directory, install},
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The specification's codes, and netfw's own from 100 on.
pub const INCOMPATIBLE: u64 = 1;
pub const UNSUPPORTED: u64 = 2;
pub const UNKNOWN_CONTAINER: u64 = 3;
pub const ENVIRONMENT: u64 = 4;
pub const DECODE: u64 = 6;
pub const CONFIG: u64 = 7;
pub const AGAIN: u64 = 11;
pub const LIMITED: u64 = 51;
pub const CONFLICT: u64 = 100;
pub const DRIFT: u64 = 102;

/// A node with an agent, and the plugin as it is installed.
///
/// Fields drop in order: the agent takes everything down while the node lives.
pub struct Plugin {
    pub agent: Agent,
    pub lab: Lab,
    directory: TempDir,
}

/// One attachment, as a runtime names it.
#[derive(Clone, Copy)]
pub struct At<'a> {
    pub container: &'a str,
    /// A path; empty: none is said.
    pub netns: &'a str,
    pub interface: &'a str,
}

impl<'a> At<'a> {
    pub fn eth0(container: &'a str, netns: &'a str) -> Self {
        Self {
            container,
            netns,
            interface: "eth0",
        }
    }
}

impl Plugin {
    #[track_caller]
    pub fn new() -> Self {
        let lab = Lab::new();
        let agent = Agent::start(&lab);
        let directory = directory("netfw-cni-");
        install(directory.path());
        Self {
            agent,
            lab,
            directory,
        }
    }

    /// A network configuration for this agent, of the newest version; `more` are fields beside.
    pub fn config(&self, name: &str, more: Value) -> Value {
        let mut config = json!({
            "cniVersion": "1.1.0",
            "name": name,
            "type": "netfw-cni",
            "instance": self.agent.instance(),
        });
        for (key, value) in more.as_object().expect("an object") {
            config[key] = value.clone();
        }
        config
    }

    /// Where the plugin is, and where it looks for others.
    pub fn path(&self) -> String {
        format!("{}:/usr/lib/cni", self.directory.path().display())
    }

    /// The plugin with this environment, in the node, to be started by the caller.
    pub fn command(&self, environment: &[(&str, &str)]) -> Command {
        let mut command = self
            .lab
            .node
            .command(self.directory.path().join("netfw-cni"));
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("CNI_") {
                command.env_remove(key);
            }
        }
        command
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Starts the plugin with `stdin`.
    pub fn start(&self, environment: &[(&str, &str)], stdin: &str) -> Child {
        let mut child = self
            .command(environment)
            .spawn()
            .expect("the plugin starts");
        let mut pipe = child.stdin.take().expect("a pipe");
        // One that refuses the environment does not read it.
        let _ = pipe.write_all(stdin.as_bytes());
        child
    }

    /// Starts the plugin for an attachment.
    pub fn begin(&self, command: &str, at: At, config: &Value) -> Child {
        let path = self.path();
        let mut environment = vec![
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", at.container),
            ("CNI_IFNAME", at.interface),
            ("CNI_PATH", &path),
        ];
        if !at.netns.is_empty() {
            environment.push(("CNI_NETNS", at.netns));
        }
        self.start(&environment, &config.to_string())
    }

    /// Calls the plugin: what it answered, or its error.
    pub fn call(&self, command: &str, at: At, config: &Value) -> Result<Value, Value> {
        answer(&finish(self.begin(command, at, config)))
    }

    /// As [`call`](Self::call); panics unless it is done.
    #[track_caller]
    pub fn done(&self, command: &str, at: At, config: &Value) -> Value {
        self.call(command, at, config)
            .unwrap_or_else(|error| panic!("{command}: {error}\n{config}"))
    }

    /// As [`call`](Self::call); panics unless it is refused with `code`: what it said.
    #[track_caller]
    pub fn refuses(&self, code: u64, command: &str, at: At, config: &Value) -> String {
        match self.call(command, at, config) {
            Ok(answer) => panic!("{command} was to be refused: {answer}\n{config}"),
            Err(error) => {
                assert_eq!(error["code"], code, "{command}: {error}\n{config}");
                error.to_string()
            }
        }
    }

    /// GC: `valid` are containers and interfaces.
    pub fn collect(&self, config: &Value, valid: Value) -> Result<Value, Value> {
        let mut config = config.clone();
        config["cni.dev/valid-attachments"] = valid;
        let path = self.path();
        let environment = [("CNI_COMMAND", "GC"), ("CNI_PATH", path.as_str())];
        answer(&finish(self.start(&environment, &config.to_string())))
    }

    /// The names of the endpoints that there are.
    pub fn endpoints(&self) -> Vec<String> {
        let all = self.agent.json(&["endpoint", "ls"]);
        let all = all.as_array().expect("a list").iter();
        all.map(|e| e["name"].as_str().expect("a name").to_owned())
            .collect()
    }
}

#[track_caller]
pub fn finish(child: Child) -> Output {
    child.wait_with_output().expect("the plugin ends")
}

/// What the plugin answered, `null` if nothing, or its error.
#[track_caller]
pub fn answer(output: &Output) -> Result<Value, Value> {
    let said = String::from_utf8_lossy(&output.stdout);
    let value = match said.trim() {
        "" => Value::Null,
        text => serde_json::from_str(text).unwrap_or_else(|e| panic!("no JSON: {e}\n{text}")),
    };
    match output.status.success() {
        true => Ok(value),
        false => {
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(value["code"].is_u64(), "{value} {error}");
            Err(value)
        }
    }
}

/// As `CNI_NETNS` has it.
pub fn path(namespace: &Namespace) -> String {
    namespace.path().display().to_string()
}
