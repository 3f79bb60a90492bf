//! Real podman, with directories of its own, networks by its CNI backend, and any namespace for its host.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

use crate::{
    netns::{Namespace, stdout},
    reaper,
    runtime::{self, HTTPD, IMAGE},
};

/// What podman's tests start, and the Debian package it is in.
const PROGRAMS: [(&str, &str); 4] = [
    ("/usr/bin/podman", "podman"),
    ("/usr/sbin/runc", "runc"),
    ("/usr/bin/conmon", "conmon"),
    runtime::BUSYBOX,
];

pub struct Podman {
    directory: TempDir,
}

impl Podman {
    /// None, said aloud, where podman is not installed. The image is there, and netfw's plugin.
    #[track_caller]
    pub fn start(host: &Namespace) -> Option<Self> {
        if !runtime::are_there(&PROGRAMS) {
            return None;
        }
        let directory = runtime::directory("netfw-podman-");
        let own = directory.path();
        for directory in ["bin", "net"] {
            fs::create_dir(own.join(directory)).expect("a new directory");
        }
        runtime::install(&own.join("bin"));
        let path = own.display();
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
        fs::write(own.join("containers.conf"), conf).expect("a new file");
        // What every command begins with; also for the reaper.
        let script = format!(
            "#!/bin/sh\nCONTAINERS_CONF='{path}/containers.conf' exec nsenter --net='{}' -- /usr/bin/podman \
             --root '{path}/root' --runroot '{path}/run' --tmpdir '{path}/tmp' --storage-driver vfs \"$@\"\n",
            host.path().display()
        );
        fs::write(own.join("podman"), script).expect("a new file");
        reaper::at_end(&format!(
            "[ -e '{path}/podman' ] && sh '{path}/podman' rm -fa -t 0"
        ));
        let podman = Self { directory };
        let archive = runtime::image(podman.path()).display().to_string();
        podman.podman(&["load", "--quiet", "--input", &archive]);
        Some(podman)
    }

    /// podman's directory; plugins are in `bin`.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// What every command begins with.
    pub fn program(&self) -> PathBuf {
        self.path().join("podman")
    }

    /// A network of these plugins, a list in JSON.
    pub fn network(&self, name: &str, plugins: &str) {
        let list =
            format!(r#"{{"cniVersion": "1.0.0", "name": "{name}", "plugins": [{plugins}]}}"#);
        let file = self.path().join(format!("net/{name}.conflist"));
        fs::write(file, list).expect("a file in our own directory");
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("sh");
        command.arg(self.program()).args(words).stdin(Stdio::null());
        command
    }

    /// `podman WORDS`, whatever comes of it.
    #[track_caller]
    pub fn output(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("podman can be started")
    }

    /// `podman WORDS`: what it printed. Panics unless it ends with status 0.
    #[track_caller]
    pub fn podman(&self, words: &[&str]) -> String {
        stdout(&mut self.command(words))
    }

    /// A container that serves a page on port 80; `options` are those of `podman run`.
    #[track_caller]
    pub fn serve(&self, name: &str, options: &[&str]) {
        let run = ["run", "-d", "--stop-signal", "KILL", "--name", name];
        self.podman(&[&run[..], options, &[IMAGE], &HTTPD].concat());
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        if !self.output(&["rm", "-fa", "-t", "0"]).status.success() {
            eprintln!("`podman rm -fa` failed");
        }
    }
}
