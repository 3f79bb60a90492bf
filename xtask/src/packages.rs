//! Debian packages: which are missing, and installing those.
//!
//! Installing one must not start a service: a package's scripts start what they bring, and an
//! nginx on the machine's port 80 is not what somebody who runs tests asked for. Nothing on the
//! machine may stay changed for it either, so there is no policy-rc.d: apt-get runs in a mount
//! namespace of its own, where the programs that start services do nothing and no systemd is to be
//! seen. It goes when apt-get ends.

use std::{
    process::{Command, Stdio},
    sync::Once,
};

use anyhow::{Context as _, Result, bail};

use crate::command::{find, is_root, line, or_by_hand, prefixed, root_prefix, run};

/// A program that tests or the bench start, and the Debian package it is in.
pub type Program = (&'static str, &'static str);

pub const FOR_TESTS: &[Program] = &[
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("ss", "iproute2"),
    ("nsenter", "util-linux"),
    ("nginx", "nginx-light"),
    ("curl", "curl"),
    ("dig", "bind9-dnsutils"),
    ("iperf3", "iperf3"),
    ("ping", "iputils-ping"),
    ("tracepath", "iputils-tracepath"),
    ("traceroute", "traceroute"),
    ("tcpdump", "tcpdump"),
    ("iptables", "iptables"),
    ("iptables-save", "iptables"),
    ("ip6tables-save", "iptables"),
    ("iptables-nft", "iptables"),
    ("ip6tables-nft", "iptables"),
    ("nft", "nftables"),
    ("conntrack", "conntrack"),
    ("ethtool", "ethtool"),
    ("/usr/lib/usrsctp/client", "libusrsctp-examples"),
    ("/usr/lib/usrsctp/echo_server", "libusrsctp-examples"),
];

/// What tests with container runtimes start; they are skipped where it is not there, as on the kernels of
/// `--kernel`.
pub const FOR_RUNTIMES: &[Program] = &[
    ("podman", "podman"),
    ("runc", "runc"),
    ("conmon", "conmon"),
    ("containerd", "containerd"),
    ("dockerd", "docker.io"),
    ("busybox", "busybox-static"),
    ("/usr/lib/cni/host-local", "containernetworking-plugins"),
];

/// What the programs that tests start need beside.
pub const LIBRARIES_FOR_TESTS: [&str; 1] = ["python3-prometheus-client"];

pub const FOR_BENCH: &[Program] = &[
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("taskset", "util-linux"),
    ("iptables-restore", "iptables"),
    ("conntrack", "conntrack"),
    ("ethtool", "ethtool"),
    ("nginx", "nginx-light"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
];

/// For `--kernel`: to boot another kernel.
pub const FOR_KERNEL: &[Program] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("unshare", "util-linux"),
    ("strip", "binutils"),
];

/// What runs on that kernel, beside [`FOR_TESTS`], and busybox has not or has not all of.
pub const FOR_GUESTS: &[Program] = &[
    ("bash", "bash"),
    ("getent", "libc-bin"),
    ("/usr/bin/python3", "python3"),
    ("setpriv", "util-linux"),
    ("sleep", "coreutils"),
    ("unshare", "util-linux"),
];

/// For `package --try`.
pub const FOR_TRIAL: &[Program] = &[
    ("/usr/lib/systemd/systemd", "systemd"),
    ("ip", "iproute2"),
    ("unshare", "util-linux"),
    ("curl", "curl"),
    ("pgrep", "procps"),
    ("python3", "python3"),
];

/// Installs the packages of those programs that are not there.
pub fn ensure_programs(programs: &[Program]) -> Result<()> {
    let mut missing: Vec<String> = programs
        .iter()
        .filter(|(program, _)| find(program).is_none())
        .map(|(_, package)| (*package).to_owned())
        .collect();
    missing.dedup();
    if missing.is_empty() {
        let names: Vec<&str> = programs.iter().map(|(program, _)| *program).collect();
        println!("programs: all there ({})", names.join(", "));
        return Ok(());
    }
    println!("programs: missing {}", missing.join(", "));
    install(&missing)
}

/// Installs those packages that dpkg does not have.
pub fn ensure(packages: &[String]) -> Result<()> {
    if find("dpkg-query").is_none() {
        println!(
            "packages: no dpkg here to ask; needed is what these Debian packages hold: {}",
            packages.join(" ")
        );
        return Ok(());
    }
    let missing: Vec<String> = packages
        .iter()
        .filter(|package| !is_installed(package))
        .cloned()
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("packages: missing {}", missing.join(", "));
    install(&missing)
}

fn is_installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f", "${Status}", package])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| output.stdout == b"install ok installed")
}

fn install(packages: &[String]) -> Result<()> {
    let by_hand = format!(
        "to install by hand:\n    {}apt-get update && {0}apt-get install {}",
        if is_root() { "" } else { "sudo " },
        packages.join(" ")
    );
    if find("apt-get").is_none() {
        bail!(
            "there is no apt-get here; install what these Debian packages hold: {}",
            packages.join(" ")
        );
    }
    let prefix = or_by_hand(root_prefix("apt-get", &[]), &by_hand)?;
    or_by_hand(update(&prefix), &by_hand)?;

    const QUIET: &str = r#"
        for starter in /usr/sbin/invoke-rc.d /usr/bin/deb-systemd-invoke; do
            if [ -e $starter ]; then mount --bind /bin/true $starter || exit; fi
        done
        if [ -d /run/systemd ]; then mount -t tmpfs tmpfs /run/systemd || exit; fi
        DEBIAN_FRONTEND=noninteractive exec "$@""#;
    let mut install = prefixed(&prefix, "unshare");
    install
        .args(["--mount", "sh", "-c", QUIET, "sh"])
        .args(["apt-get", "install", "-y", "--no-install-recommends"])
        .args(packages)
        .stdin(Stdio::null());
    println!(
        "packages: apt-get install {}, without starting any service",
        packages.join(" ")
    );
    let status = install.status().context("cannot start apt-get")?;
    if !status.success() {
        bail!("apt-get ended with {status}\n{by_hand}");
    }
    Ok(())
}

/// Brings the package lists up to date.
pub fn refresh() -> Result<()> {
    update(&root_prefix("apt-get", &[])?)
}

/// Once in a run: a fresh machine has no package lists, an old one stale ones.
fn update(prefix: &[std::ffi::OsString]) -> Result<()> {
    static UPDATED: Once = Once::new();
    let mut result = Ok(());
    UPDATED.call_once(|| {
        let mut update = prefixed(prefix, "apt-get");
        update.args(["update", "-q"]).stdin(Stdio::null());
        result = run(&mut update).with_context(|| format!("`{}` failed", line(&update)));
    });
    result
}
