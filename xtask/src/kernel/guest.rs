//! What the guest runs, and qemu around it.
//!
//! The guest speaks by its serial console, which qemu makes our pipe. Lines that begin with
//! [`MARK`] are its init's, all others what the programs print, and are shown as they come. A guest
//! that says nothing of a step's end (a panic, a hang) has failed it.

use std::{
    ffi::OsString,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use super::{Plan, image::Image, programs::OWN};
use crate::{
    command::{is_root, line, workspace},
    test::Totals,
};

/// Before what the guest's init says.
const MARK: &str = "@guest ";

/// After this many seconds qemu is ended: some four times what all takes, emulated, on two busy cores.
const DEADLINE: u32 = 4 * 3600;

/// In MiB. The initramfs is in it twice while it is unpacked.
const MEMORY: u32 = 2048;

/// The MAC addresses of the guest's virtio-net interfaces, which are wired to each other.
const NICS: [&str; 2] = ["52:54:00:6e:66:01", "52:54:00:6e:66:02"];

/// Queues of each: one for each of two processors, and one more for each that XDP asks for.
const QUEUES: u32 = 4;

/// The other ends of the guest's interfaces, in a network namespace that goes with qemu: several
/// queues and all offloads, as behind most virtual machines. qemu's own ways to wire two interfaces
/// have neither.
const WIRED: &str = "
set -e
ip link add guest type bridge
ip link set guest addrgenmode none up
for tap in nic0 nic1; do
    ip tuntap add $tap mode tap multi_queue
    ip link set $tap addrgenmode none master guest up
done
exec \"$@\"
";

/// A program to run in the guest.
pub struct Step<'a> {
    pub name: &'a str,
    pub program: &'a str,
    pub arguments: &'a str,
}

/// How a step ended.
pub struct Ended {
    pub name: String,
    pub status: i32,
    pub seconds: u32,
}

/// What the guest told.
#[derive(Default)]
pub struct Outcome {
    pub steps: Vec<Ended>,
    /// The new budget, where one was asked for.
    pub budget: Option<String>,
    in_budget: bool,
}

impl Outcome {
    /// An error that says what failed or did not run.
    pub fn check(&self, plan: &Plan, image: &Image) -> Result<()> {
        let wrong: Vec<String> = plan
            .steps
            .iter()
            .filter_map(
                |step| match self.steps.iter().find(|ended| ended.name == step.name) {
                    Some(ended) if ended.status == 0 => None,
                    Some(ended) => Some(format!("{} ended with {}", step.name, ended.status)),
                    None => Some(format!("{} did not come to its end", step.name)),
                },
            )
            .collect();
        if !wrong.is_empty() {
            bail!("on Linux {}: {}", image.release, wrong.join(", "));
        }
        Ok(())
    }

    /// Takes a line of the guest's; true where it is not to be shown.
    fn take(&mut self, line: &str) -> bool {
        let Some(said) = line.strip_prefix(MARK) else {
            if let (true, Some(budget)) = (self.in_budget, &mut self.budget) {
                budget.push_str(line);
                budget.push('\n');
            }
            return self.in_budget;
        };
        match *said.split(' ').collect::<Vec<_>>() {
            ["end", name, status, seconds] => self.steps.push(Ended {
                name: name.to_owned(),
                status: status.parse().unwrap_or(-1),
                seconds: seconds.parse().unwrap_or(0),
            }),
            ["budget"] => {
                self.in_budget = true;
                self.budget = Some(String::new());
            }
            ["budget-end"] => self.in_budget = false,
            _ => {}
        }
        true
    }
}

/// The guest's first and only process of its own: a shell script.
pub fn init(plan: &Plan) -> String {
    let mut script = format!(
        "#!/bin/sh
export PATH={OWN}:/bin:/sbin NETFW_BIN={OWN}/netfw HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
ln -s /proc/self/fd /dev/fd
# Whoever opens it has its module loaded.
mkdir -p /dev/net
mknod /dev/net/tun c 10 200
# /tmp is the root's, which lies in memory as well: the workspace may be below it.
mount -t tmpfs run /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
ip link set lo up
# No udev is here to see the devices.
modprobe -a virtio_pci virtio_net
export NETFW_VIRTIO='{nics}'
seconds() {{ cut -d. -f1 /proc/uptime; }}
step() {{
    name=$1; shift; began=$(seconds)
    \"$@\" </dev/null 2>&1
    echo \"{MARK}end $name $? $(($(seconds) - began))\"
}}
echo \"Linux $(uname -r) is up after $(seconds) s\"
",
        nics = NICS.join(" ")
    );
    if plan.update_budget {
        script.push_str("export NETFW_UPDATE_BUDGET=1\n");
    }
    for step in plan.steps {
        script.push_str(&format!(
            "step {} {} {}\n",
            step.name, step.program, step.arguments
        ));
    }
    if plan.update_budget {
        script.push_str(&format!(
            "echo '{MARK}budget'; cat '{}/verifier-budget-{}.toml'; echo '{MARK}budget-end'\n",
            workspace().join("tests").display(),
            plan.version
        ));
    }
    script.push_str("poweroff -f\n");
    script
}

/// Boots the guest and waits for its end.
pub fn boot(plan: &Plan, image: &Image, initramfs: &Path, totals: &mut Totals) -> Result<Outcome> {
    // timeout(1) rather than a thread of ours: it ends qemu even when we are killed meanwhile.
    let mut qemu = Command::new("timeout");
    qemu.args(["--foreground", "--kill-after=10", &DEADLINE.to_string()])
        .args(wired())
        .args(["qemu-system-x86_64", "-accel"])
        .arg(accelerator())
        .args(["-cpu", "max", "-smp", "2", "-m", &MEMORY.to_string()])
        .args([
            "-display",
            "none",
            "-vga",
            "none",
            "-nic",
            "none",
            "-no-reboot",
        ])
        .args(["-serial", "stdio", "-monitor", "none"])
        .arg("-kernel")
        .arg(image.kernel())
        .arg("-initrd")
        .arg(initramfs)
        // A panic ends it at once, by -no-reboot.
        .args(["-append", "console=ttyS0 quiet panic=-1"]);
    for (number, mac) in NICS.iter().enumerate() {
        let nic = format!("nic{number}");
        qemu.arg("-netdev")
            .arg(format!(
                "tap,id={nic},ifname={nic},script=no,downscript=no,queues={QUEUES}"
            ))
            .arg("-device")
            // Vectors: two for each queue pair, and two.
            .arg(format!(
                "virtio-net-pci,netdev={nic},mac={mac},mq=on,vectors={}",
                2 * QUEUES + 2
            ));
    }
    let line = line(&qemu);
    println!("+ {line}");
    let mut child = qemu
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))?;
    let mut console = BufReader::new(child.stdout.take().context("stdout is a pipe")?);
    let mut outcome = Outcome::default();
    let mut raw = Vec::new();
    // Bytes, not text: a console may say anything.
    while console.read_until(b'\n', &mut raw)? > 0 {
        let said = String::from_utf8_lossy(&raw);
        let said = said.trim_end();
        if !outcome.take(said) {
            println!("{said}");
            totals.add(said);
        }
        raw.clear();
    }
    let status = child.wait().with_context(|| format!("`{line}`"))?;
    match status.code() {
        Some(0) => Ok(outcome),
        Some(124) => bail!(
            "Linux {} did not end within {DEADLINE} s and was ended; steps done: {} of {}",
            image.release,
            outcome.steps.len(),
            plan.steps.len()
        ),
        _ => bail!("`{line}` ended with {status}"),
    }
}

/// Runs what follows where the guest's interfaces have their other ends. Whoever is not root is, in
/// a user namespace.
fn wired() -> Vec<&'static str> {
    let mut words = vec!["unshare", "--net"];
    if !is_root() {
        words.extend(["--user", "--map-root-user"]);
    }
    words.extend(["sh", "-c", WIRED, "qemu"]);
    words
}

/// How qemu runs the guest's instructions: emulated, unless the environment says `kvm`.
///
/// Not KVM by itself where `/dev/kvm` can be opened: there are machines, virtual ones, on which it
/// can and a guest then fails or hangs without a word. Emulation works on all.
fn accelerator() -> OsString {
    std::env::var_os("NETFW_QEMU_ACCEL").unwrap_or_else(|| "tcg,thread=multi".into())
}

#[cfg(test)]
mod tests {
    use super::Outcome;

    #[test]
    fn the_guests_own_lines_are_taken_and_not_shown() {
        let mut outcome = Outcome::default();
        assert!(!outcome.take("test a ... ok"));
        assert!(outcome.take("@guest end packet 101 7"));
        for line in ["@guest budget", "# Instructions", "netfw_guard = 100"] {
            assert!(outcome.take(line));
        }
        assert!(outcome.take("@guest budget-end"));
        assert!(!outcome.take("test b ... ok"));
        let [step] = &*outcome.steps else {
            panic!("one step ended");
        };
        assert_eq!((&*step.name, step.status, step.seconds), ("packet", 101, 7));
        assert_eq!(
            outcome.budget.as_deref(),
            Some("# Instructions\nnetfw_guard = 100\n")
        );
    }
}
