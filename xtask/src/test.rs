//! `cargo xtask test`: host tests as whoever runs it, then packet and end-to-end tests as root; then the
//! programs' time per packet, beside its budget.
//!
//! Only the compiled test programs run as root, through cargo's `runner`: cargo itself stays the
//! user's, so no file under target/ ends up with another owner.

use std::{
    ffi::{OsStr, OsString},
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::{
    build,
    command::{is_root, line, root_prefix},
    kernel, packages, setup,
    toolchain::{Toolchain, path},
    verify,
};

#[derive(clap::Args)]
pub struct Arguments {
    /// On another kernel, in qemu: the newest of Debian's cloud kernels of this version, as 6.1.
    /// Runs the verifier test, the packet tests, XDP on virtio-net, the end-to-end tests and `netfw demo`
    #[arg(long, value_name = "VERSION")]
    kernel: Option<String>,
    /// With --kernel: no more than what shows each hook at work
    #[arg(long, requires = "kernel")]
    brief: bool,
    /// For the test programs: a filter, `--nocapture`, `--test-threads N`, …
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

/// End-to-end tests that together have packets at each hook: TC on uplinks, the guard on what leaves, TC on
/// containers' interfaces, XDP, sockets of the node, port 53 of gateways; and an agent that is killed.
const EACH_HOOK: [&str; 7] = [
    "publish::a_published_port_serves",
    "masquerade::a_container_reaches_the_outside",
    "network::a_stolen_address_gets_nothing_out",
    "xdp::a_publish_is_reached_by_xdp",
    "sockets::a_process_of_the_node_reaches",
    "names::containers_find_each_other",
    "agent::transfers_go_on",
];

/// End-to-end tests for a processor, and not for one that is emulated, nor for what a cloud kernel and an
/// initramfs have not: how many packets arrive in which time, who waits for how long, other programs' services,
/// pages of a newer kernel's.
const NOT_EMULATED: [&str; 12] = [
    "bulk::",
    "cni::attach::a_hundred_at_once",
    "dns_lookup::none_is_lost_among_thousands",
    "endurance::",
    "fixtures::",
    "floods::",
    "hostile::",
    "mended::a_command_right_after_the_agent_s_start_found_none",
    "top::",
    "tutorial::",
    "upgrade::",
    "walks::nobody_waits",
];

fn skipped() -> String {
    NOT_EMULATED
        .map(|tests| format!("--skip {tests}"))
        .join(" ")
}

pub fn run(arguments: &Arguments) -> Result<()> {
    if let Some(version) = &arguments.kernel {
        let words = kernel::words(&arguments.arguments)?;
        let verifier = kernel::tests("verifier", "");
        let (of_each_hook, all) = (EACH_HOOK.join(" "), words.clone() + " " + &skipped());
        let steps = match arguments.brief {
            true => vec![verifier, kernel::tests("e2e", &of_each_hook)],
            false => vec![
                verifier,
                kernel::tests("packet", &words),
                kernel::VIRTIO,
                kernel::tests("e2e", &all),
                kernel::DEMO,
            ],
        };
        return kernel::run(&kernel::Plan {
            version,
            steps: &steps,
            update_budget: false,
        });
    }
    let toolchain = setup::run()?;
    packages::ensure_programs(packages::FOR_TESTS)?;
    packages::ensure_programs(packages::FOR_RUNTIMES)?;
    packages::ensure(&packages::LIBRARIES_FOR_TESTS.map(str::to_owned))?;

    // Both layers run even if the first fails: one look shows all that is broken.
    let mut totals = Totals::default();
    let host = totals.count(
        toolchain
            .cargo()
            .args(["test", "--no-fail-fast", "--"])
            .args(&arguments.arguments),
    );
    let root = as_root(
        &toolchain,
        &["test", "--release", "--no-fail-fast"],
        &["netfw-tests", "netfw-bench"],
        &[],
    )
    .and_then(|mut command| totals.count(command.arg("--").args(&arguments.arguments)));
    // Root had them among the host tests; to others they only said that they need root.
    let node = if is_root() {
        Ok(())
    } else {
        as_root(
            &toolchain,
            &[
                "test",
                "--release",
                "--no-fail-fast",
                "--test",
                "bpf",
                "--test",
                "net",
            ],
            &["netfw"],
            &[],
        )
        .and_then(|mut command| totals.count(command.arg("--").args(&arguments.arguments)))
    };

    // No test has a say in time, and whoever names tests wants those alone.
    let speed = if arguments.arguments.is_empty() {
        verify::speed(&toolchain, false)
    } else {
        Ok(())
    };

    println!(
        "total: {} passed, {} failed, {} ignored",
        totals.passed, totals.failed, totals.ignored
    );
    let failed: Vec<String> = [
        ("host tests", host),
        ("tests that need root", root),
        ("tests of the node, as root", node),
        ("the programs' time per packet", speed),
    ]
    .into_iter()
    .filter_map(|(what, result)| result.err().map(|error| format!("{what}: {error:#}")))
    .collect();
    if !failed.is_empty() {
        bail!("{}", failed.join("\n"));
    }
    Ok(())
}

/// Over all test programs; each says its own in a line `test result: …`.
#[derive(Default)]
pub struct Totals {
    pub passed: u32,
    pub failed: u32,
    pub ignored: u32,
}

impl Totals {
    /// Runs a `cargo test`, shows what it prints, and adds up its results.
    fn count(&mut self, command: &mut Command) -> Result<()> {
        let line = line(command);
        println!("+ {line}");
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{line}`"))?;
        let stdout = child.stdout.take().context("stdout is a pipe")?;
        for printed in BufReader::new(stdout).lines() {
            let printed = printed.with_context(|| format!("reading what `{line}` prints"))?;
            println!("{printed}");
            self.add(&printed);
        }
        let status = child.wait().with_context(|| format!("`{line}`"))?;
        if !status.success() {
            bail!("`{line}` ended with {status}");
        }
        Ok(())
    }

    /// `test result: ok. 3 passed; 0 failed; 1 ignored; …`
    pub fn add(&mut self, line: &str) {
        let Some((_, results)) = line
            .strip_prefix("test result: ")
            .and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for result in results.split("; ") {
            let Some((Ok(count), what)) = result
                .split_once(' ')
                .map(|(count, what)| (count.parse::<u32>(), what))
            else {
                continue;
            };
            match what {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }
}

/// `cargo ARGUMENTS` for `packages`, their programs run by root and told where netfw is.
///
/// `--release` in both, so that netfw is compiled once.
pub fn as_root(
    toolchain: &Toolchain,
    arguments: &[&str],
    packages: &[&str],
    environment: &[(&str, &OsStr)],
) -> Result<Command> {
    let binary = build::netfw(toolchain)?;
    let path = path();
    let mut for_programs = vec![("NETFW_BIN", binary.as_os_str()), ("PATH", &*path)];
    for_programs.extend(environment);
    let prefix = root_prefix("the test programs", &for_programs)?;
    let mut command = toolchain.cargo();
    if !prefix.is_empty() {
        let words: Vec<String> = prefix
            .iter()
            .map(|word| {
                word.to_str()
                    .map(|word| format!("'{word}'"))
                    .ok_or_else(|| anyhow!("{} is not UTF-8", word.display()))
            })
            .collect::<Result<_>>()?;
        command.arg("--config").arg(format!(
            "target.'cfg(unix)'.runner = [{}]",
            words.join(", ")
        ));
    }
    command.args(arguments).envs(for_programs);
    for package in packages {
        command.args(["--package", package]);
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::Totals;

    #[test]
    fn results_of_all_programs_add_up() {
        let mut totals = Totals::default();
        for line in [
            "running 4 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: FAILED. 5 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.00s",
        ] {
            totals.add(line);
        }
        assert_eq!((totals.passed, totals.failed, totals.ignored), (8, 2, 1));
    }
}
