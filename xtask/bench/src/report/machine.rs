//! Where the figures were measured, and with what.

use std::{collections::BTreeMap, fs, process::Command, thread, time::Duration};

use serde::{Deserialize, Serialize};

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Machine {
    pub kernel: String,
    /// The processor's name, as far as the machine tells it.
    pub cpu: String,
    pub cpus: usize,
    pub memory_mib: u64,
    /// Programs, and what they say of their version.
    pub versions: BTreeMap<String, String>,
    /// What of the kernel's settings these figures depend on.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// Of the processors' time, the percentage that nobody used in the second before the run.
    #[serde(default)]
    pub idle: Option<f64>,
}

/// Files that tell them, and what they are called in a report.
const SETTINGS: &[(&str, &str)] = &[
    (
        "return speculation",
        "/sys/devices/system/cpu/vulnerabilities/spec_rstack_overflow",
    ),
    (
        "retbleed",
        "/sys/devices/system/cpu/vulnerabilities/retbleed",
    ),
    (
        "spectre v2",
        "/sys/devices/system/cpu/vulnerabilities/spectre_v2",
    ),
    ("bpf_jit_enable", "/proc/sys/net/core/bpf_jit_enable"),
    ("bpf_jit_harden", "/proc/sys/net/core/bpf_jit_harden"),
    (
        "nf_conntrack hashsize",
        "/sys/module/nf_conntrack/parameters/hashsize",
    ),
    (
        "clocksource",
        "/sys/devices/system/clocksource/clocksource0/current_clocksource",
    ),
];

/// Programs that contenders and loads are made of, and how they tell their version.
const PROGRAMS: &[(&str, &[&str])] = &[
    ("netfw", &["--version"]),
    ("iptables-nft", &["-V"]),
    ("iptables-legacy", &["-V"]),
    ("nft", &["-v"]),
    ("ip", &["-V"]),
    ("nginx", &["-v"]),
];

impl Machine {
    pub fn here() -> Self {
        let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
        let field = |file: &str, name: &str| {
            read(file).lines().find_map(|line| {
                let rest = line.strip_prefix(name)?.trim_start();
                Some(rest.strip_prefix(':')?.trim().to_owned())
            })
        };
        let cpuinfo = |name| field("/proc/cpuinfo", name).unwrap_or_default();
        // A machine may hide the name, and then tells numbers only.
        let cpu = match cpuinfo("model name") {
            name if name.is_empty() || name == "unknown" => format!(
                "{} family {} model {}",
                cpuinfo("vendor_id"),
                cpuinfo("cpu family"),
                cpuinfo("model")
            ),
            name => name,
        };
        let memory = field("/proc/meminfo", "MemTotal").unwrap_or_default();
        let kib = memory
            .split_whitespace()
            .next()
            .map_or(0, |number| number.parse::<u64>().unwrap_or_default());
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu,
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mib: kib / 1024,
            versions: PROGRAMS
                .iter()
                .filter_map(|&(program, arguments)| {
                    Some((program.to_owned(), version(program, arguments)?))
                })
                .chain(commit().map(|commit| ("commit".to_owned(), commit)))
                .chain(cni().map(|version| ("CNI plugins".to_owned(), version)))
                .collect(),
            settings: SETTINGS
                .iter()
                .map(|&(name, file)| (name.to_owned(), read(file).trim().to_owned()))
                .filter(|(_, value)| !value.is_empty())
                .collect(),
            idle: idle(),
        }
    }
}

/// The first line that a program prints; none where there is no such program.
fn version(program: &str, arguments: &[&str]) -> Option<String> {
    let mut command = match program {
        "netfw" => Command::new(netfw_tests::agent::binary()),
        _ => Command::new(program),
    };
    let output = command.args(arguments).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    Some(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// The version of the CNI plugins, which tell it to whoever names no command.
fn cni() -> Option<String> {
    let output = Command::new("/usr/lib/cni/bridge").output().ok()?;
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    (!text.is_empty()).then(|| text.lines().next().unwrap_or_default().to_owned())
}

/// The percentage of the processors' time that nobody uses, for a second.
fn idle() -> Option<f64> {
    /// All time and that without work, in ticks, since the machine was started.
    fn times() -> Option<(u64, u64)> {
        let text = fs::read_to_string("/proc/stat").ok()?;
        let numbers: Vec<u64> = text
            .lines()
            .next()?
            .split_whitespace()
            .skip(1)
            // user, nice, system, idle, iowait, irq, softirq, steal; guests' time is in the first two.
            .take(8)
            .filter_map(|number| number.parse().ok())
            .collect();
        Some((numbers.iter().sum(), *numbers.get(3)?))
    }
    let (before, idle_before) = times()?;
    thread::sleep(Duration::from_secs(1));
    let (after, idle_after) = times()?;
    #[expect(clippy::cast_precision_loss, reason = "ticks of a second")]
    let share = (idle_after - idle_before) as f64 / (after - before) as f64;
    share.is_finite().then_some(share * 100.0)
}

/// What of the sources is measured, where they lie in git: `-dirty` ends it if they were changed.
fn commit() -> Option<String> {
    let output = Command::new("git")
        // Root may look into a user's clone.
        .args(["-c", "safe.directory=*", "-C", env!("CARGO_MANIFEST_DIR")])
        .args(["describe", "--always", "--dirty", "--exclude=*"])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

/// Now, in UTC and RFC 3339's form.
pub fn now() -> String {
    humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string()
}
