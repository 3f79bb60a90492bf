//! Network namespaces and the processes in them, gone when their value is dropped.
//!
//! A namespace lies under /run/netns as `ip netns` keeps them, so that a developer can look into
//! one by name while a test stands still. Programs enter it with `nsenter --net`, never with
//! `ip netns exec`: that mounts another /sys, and bpffs is gone.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{reaper, require_root, serial, wait::wait_at_most};

/// How long a process may take to end after SIGTERM before it is killed.
const PATIENCE: Duration = Duration::from_secs(5);

pub struct Namespace {
    name: String,
}

impl Namespace {
    /// A new namespace, its loopback up. `role` ends its name: `nft-4711-3-client`.
    pub fn new(role: &str) -> Self {
        require_root();
        let name = format!("nft-{}-{}-{role}", std::process::id(), serial());
        let path = format!("/run/netns/{name}");
        reaper::at_end(&format!(
            "[ -e {path} ] && {{ ip netns pids {name} | xargs -r kill -KILL; ip netns del {name}; }}"
        ));
        ip(&["netns", "add", &name]);
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"]);
        namespace
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// `program`, to be started inside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut net = std::ffi::OsString::from("--net=");
        net.push(self.path());
        let mut command = Command::new("nsenter");
        command.arg(net).arg("--").arg(program).stdin(Stdio::null());
        command
    }

    /// Runs `words` (program and arguments) inside. What it printed; panics unless it ends with 0.
    #[track_caller]
    pub fn run(&self, words: &[&str]) -> String {
        let mut command = self.command(words[0]);
        command.args(&words[1..]);
        stdout(&mut command)
    }

    /// Whether `words` end with status 0 inside; what they print is thrown away.
    pub fn succeeds(&self, words: &[&str]) -> bool {
        self.command(words[0])
            .args(&words[1..])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap_or_else(|error| panic!("cannot start {words:?}: {error}"))
            .success()
    }

    /// `ip` in this namespace.
    #[track_caller]
    pub fn ip(&self, arguments: &[&str]) -> String {
        let mut all = vec!["-n", &self.name];
        all.extend(arguments);
        ip(&all)
    }

    /// Sets a sysctl of this namespace, named with slashes below /proc/sys/net: `ipv4/ip_forward`.
    #[track_caller]
    pub fn sysctl(&self, name: &str, value: &str) {
        let file = format!("/proc/sys/net/{name}");
        self.enter(|| {
            fs::write(&file, value).unwrap_or_else(|error| panic!("{file} = {value}: {error}"));
        });
    }

    /// Starts `words` inside; killed when the value returned is dropped.
    #[track_caller]
    pub fn spawn(&self, words: &[&str]) -> Running {
        let mut command = self.command(words[0]);
        command.args(&words[1..]);
        Running::start(command)
    }

    /// Runs `work` in this namespace, see [`enter`].
    #[track_caller]
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        enter(&self.path(), work)
    }

    /// The names of the links inside.
    pub fn links(&self) -> Vec<String> {
        self.ip(&["-o", "link"])
            .lines()
            .filter_map(|line| line.split(": ").nth(1))
            .map(|name| name.split('@').next().unwrap_or(name).to_owned())
            .collect()
    }

    /// Deletes it now, while the value lives on: for tests of what happens then.
    pub fn delete(&self) {
        ip(&["netns", "del", &self.name]);
    }
}

/// Runs `work` on a thread that is in the namespace at `path`: sockets opened there belong to it,
/// also once they are out.
#[track_caller]
pub fn enter<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> T {
    let result = thread::scope(|scope| {
        scope
            .spawn(|| {
                let file = File::open(path)
                    .unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()));
                setns(file, CloneFlags::CLONE_NEWNET)
                    .unwrap_or_else(|error| panic!("cannot enter {}: {error}", path.display()));
                work()
            })
            .join()
    });
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if !self.path().exists() {
            return;
        }
        // A process left inside would keep the namespace, and its links, alive for ever. It is
        // one of ours: nobody else was told the name.
        let inside = Command::new("ip")
            .args(["netns", "pids", &self.name])
            .output();
        for pid in inside
            .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.trim().parse().ok())
        {
            // A thread of this very process can be inside (`enter` on another thread).
            if Pid::from_raw(pid) != Pid::this() {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        let deleted = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
        if !matches!(deleted, Ok(status) if status.success()) {
            eprintln!("cannot delete namespace {}: {deleted:?}", self.name);
        }
    }
}

/// A process that we started; ended when dropped, SIGTERM first. Its output goes to files, so that
/// it never waits for a reader.
pub struct Running {
    child: Child,
    what: String,
    stdout: File,
    stderr: File,
}

impl Running {
    #[track_caller]
    pub fn start(command: Command) -> Self {
        Self::start_with(command, Stdio::null(), scratch())
    }

    /// As [`start`](Self::start), with that file as stderr.
    #[track_caller]
    pub fn start_with_stderr(command: Command, stderr: &File) -> Self {
        let stderr = stderr.try_clone().expect("a file can be shared");
        Self::start_with(command, Stdio::null(), stderr)
    }

    /// A process, `sleep`, that holds a socket. This one's own files are not seen under its id in `/proc`:
    /// see [`files`](crate::files).
    #[track_caller]
    pub fn holding(socket: impl Into<OwnedFd>) -> Self {
        let mut command = Command::new("sleep");
        command.arg("600");
        Self::hold(command, socket)
    }

    /// As [`holding`](Self::holding), another program.
    #[track_caller]
    pub fn hold(command: Command, socket: impl Into<OwnedFd>) -> Self {
        Self::start_with(command, Stdio::from(socket.into()), scratch())
    }

    #[track_caller]
    fn start_with(mut command: Command, stdin: Stdio, stderr: File) -> Self {
        let what = format!("{command:?}");
        let stdout = scratch();
        let copy = |file: &File| file.try_clone().expect("a file can be shared");
        let child = command
            .stdin(stdin)
            .stdout(copy(&stdout))
            .stderr(copy(&stderr))
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {what}: {error}"));
        Self {
            child,
            what,
            stdout,
            stderr,
        }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// What it has printed on stdout so far.
    pub fn stdout(&self) -> String {
        content(&self.stdout)
    }

    /// What it has printed on stderr so far.
    pub fn stderr(&self) -> String {
        content(&self.stderr)
    }

    pub fn signal(&self, signal: Signal) {
        let _ = kill(self.pid(), signal);
    }

    /// Its status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child
            .try_wait()
            .expect("our own child can be waited for")
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        match wait_at_most(deadline, || self.ended()) {
            Some(status) => status,
            None => panic!(
                "{} still runs after {deadline:?}\n{}{}",
                self.what,
                self.stdout(),
                self.stderr()
            ),
        }
    }

    /// SIGTERM, then SIGKILL if need be; its status.
    pub fn stop(&mut self) -> ExitStatus {
        if let Some(status) = self.ended() {
            return status;
        }
        self.signal(Signal::SIGTERM);
        wait_at_most(PATIENCE, || self.ended()).unwrap_or_else(|| {
            let _ = self.child.kill();
            self.child.wait().expect("our own child can be waited for")
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
        if thread::panicking() {
            let (stdout, stderr) = (self.stdout(), self.stderr());
            eprintln!("--- {}\n{stdout}{stderr}---", self.what);
        }
    }
}

fn scratch() -> File {
    tempfile::tempfile().expect("a temporary file can be made")
}

/// Reads at positions: the offset is the writer's.
fn content(file: &File) -> String {
    let length = file.metadata().map_or(0, |meta| meta.len());
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    let read = file.read_at(&mut bytes, 0).unwrap_or(0);
    bytes.truncate(read);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[track_caller]
fn ip(arguments: &[&str]) -> String {
    stdout(Command::new("ip").args(arguments))
}

/// Runs a command to its end. What it printed; panics with what it said unless it ends with 0.
#[track_caller]
pub fn stdout(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} ended with {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
