//! Where the figures were measured, and with what.

use std::{collections::BTreeMap, fs, process::Command};

use serde::{Deserialize, Serialize};

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Machine {
    pub kernel: String,
    /// The processor's name, as far as the machine tells it.
    pub cpu: String,
    pub cpus: usize,
    pub memory_mib: u64,
    /// Programs, and what they say of their version.
    pub versions: BTreeMap<String, String>,
}

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
                .collect(),
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
