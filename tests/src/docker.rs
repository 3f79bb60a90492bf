//! Real dockerd, with directories of its own, and any namespace for its host.

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{
    netns::{Namespace, Running, stdout},
    reaper,
    runtime::{self, HTTPD, IMAGE},
    wait::wait_until,
};

/// The client, of the daemon's package: there may be others.
pub const CLIENT: &str = "/usr/bin/docker";

/// What Docker's tests start, and the Debian package it is in.
const PROGRAMS: [(&str, &str); 4] = [
    ("/usr/sbin/dockerd", "docker.io"),
    (CLIENT, "docker.io"),
    ("/usr/sbin/runc", "runc"),
    runtime::BUSYBOX,
];

const SOON: Duration = Duration::from_secs(30);

pub struct Docker {
    // Dropped in this order: the daemons before their files.
    daemon: Running,
    _containerd: Running,
    options: Vec<String>,
    directory: TempDir,
}

impl Docker {
    /// None, said aloud, where Docker is not installed. The image is there; `options` are dockerd's.
    #[track_caller]
    pub fn start(host: &Namespace, options: &[&str]) -> Option<Self> {
        if !runtime::are_there(&PROGRAMS) {
            return None;
        }
        let directory = runtime::directory("netfw-docker-");
        let path = directory.path().display().to_string();
        let group = cgroup(directory.path());
        let containerd = containerd(host, &path);
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        let docker = Self {
            daemon: daemon(host, &path, &options),
            _containerd: containerd,
            options,
            directory,
        };
        reaper::at_end(&format!(
            "[ -e {path} ] && {{ {}; pkill -F {path}/pid; {}; }}",
            remove_all(&path),
            clean(&path, &group)
        ));
        let archive = runtime::image(docker.directory.path());
        docker.docker(&["load", "--quiet", "--input", &archive.display().to_string()]);
        Some(docker)
    }

    /// As a crash ends it: with SIGKILL. Containers go on.
    #[track_caller]
    pub fn kill(&mut self) {
        self.daemon.signal(Signal::SIGKILL);
        self.daemon.wait(SOON);
    }

    /// Starts dockerd where it was killed, with the options it had.
    #[track_caller]
    pub fn start_again(&mut self, host: &Namespace) {
        let _ = fs::remove_file(self.directory.path().join("pid"));
        self.daemon = daemon(host, &self.path(), &self.options);
    }

    /// Where dockerd listens, as `docker --host` takes it.
    pub fn address(&self) -> String {
        address(&self.path())
    }

    fn path(&self) -> String {
        self.directory.path().display().to_string()
    }

    /// `docker WORDS`, whatever comes of it.
    #[track_caller]
    pub fn output(&self, words: &[&str]) -> Output {
        let mut command = command_to(&self.path());
        command.args(words).output().expect("docker can be started")
    }

    /// `docker WORDS`: what it printed. Panics unless it ends with status 0.
    #[track_caller]
    pub fn docker(&self, words: &[&str]) -> String {
        stdout(command_to(&self.path()).args(words))
    }

    /// A container that serves a page on port 80; `options` are those of `docker run`.
    #[track_caller]
    pub fn serve(&self, name: &str, options: &[&str]) {
        let run = ["run", "-d", "--stop-signal", "KILL", "--name", name];
        self.docker(&[&run[..], options, &[IMAGE], &HTTPD].concat());
    }
}

/// containerd, which goes on when dockerd is killed.
#[track_caller]
fn containerd(host: &Namespace, path: &str) -> Running {
    let conf = format!(
        r#"
        version = 2
        root = "{path}/containerd"
        state = "{path}/containerd-state"
        disabled_plugins = ["io.containerd.grpc.v1.cri"]
        [grpc]
        address = "{path}/containerd-socket"
        "#
    );
    let file = format!("{path}/containerd.toml");
    fs::write(&file, conf).expect("a new file");
    let mut command = host.command("containerd");
    command.args(["--config", &file]);
    let containerd = Running::start(command);
    let pid = containerd.pid();
    reaper::at_end(&format!(
        "grep -qs {path} /proc/{pid}/cmdline && kill {pid}"
    ));
    let socket = format!("{path}/containerd-socket");
    wait_until("containerd to listen", SOON, || Path::new(&socket).exists());
    containerd
}

/// dockerd, once it answers.
#[track_caller]
fn daemon(host: &Namespace, path: &str, options: &[String]) -> Running {
    let group = cgroup(Path::new(path));
    let mut command = host.command("dockerd");
    command
        .args(["--host", &address(path)])
        .arg(format!("--containerd={path}/containerd-socket"))
        .arg(format!("--data-root={path}/root"))
        .arg(format!("--exec-root={path}/run"))
        .arg(format!("--pidfile={path}/pid"))
        .arg(format!("--cgroup-parent=/{group}"))
        .args([
            "--storage-driver=vfs",
            "--default-ulimit=nofile=20000:20000",
        ])
        .args(options);
    let mut daemon = Running::start(command);
    wait_until("dockerd to answer", SOON, || {
        if let Some(status) = daemon.ended() {
            panic!("dockerd ended with {status}\n{}", daemon.stderr());
        }
        let answer = command_to(path).arg("version").output();
        answer.is_ok_and(|output| output.status.success())
    });
    daemon
}

fn address(path: &str) -> String {
    format!("unix://{path}/socket")
}

fn command_to(path: &str) -> Command {
    let mut command = Command::new(CLIENT);
    command
        .args(["--host", &address(path)])
        .stdin(Stdio::null());
    command
}

/// Below which its containers' are: as the directory is called.
fn cgroup(directory: &Path) -> String {
    let name = directory.file_name().expect("a directory has a name");
    name.to_string_lossy().into_owned()
}

/// A line of shell that removes all containers.
fn remove_all(path: &str) -> String {
    let docker = format!("{CLIENT} --host {}", address(path));
    format!("{docker} ps -aq | xargs -r {docker} rm -f")
}

/// A line of shell for what a daemon that has ended leaves.
fn clean(path: &str, group: &str) -> String {
    let unmount = runtime::unmount(path);
    format!("{unmount}; find /sys/fs/cgroup -depth -type d -path '*/{group}*' -exec rmdir {{}} +")
}

impl Drop for Docker {
    fn drop(&mut self) {
        let path = self.path();
        let quiet = |line: &str| {
            let mut shell = Command::new("sh");
            let _ = shell.args(["-c", line]).stdin(Stdio::null()).output();
        };
        quiet(&remove_all(&path));
        self.daemon.stop();
        quiet(&clean(&path, &cgroup(self.directory.path())));
    }
}
