//! `cargo xtask test`: host tests as whoever runs it, then packet and end-to-end tests as root.
//!
//! Only the compiled test programs run as root, through cargo's `runner`: cargo itself stays the
//! user's, so no file under target/ ends up with another owner.

use std::{
    ffi::{OsStr, OsString},
    process::Command,
};

use anyhow::{Result, anyhow, bail};

use crate::{
    build,
    command::{root_prefix, run as run_command},
    packages, setup,
    toolchain::{Toolchain, path},
};

#[derive(clap::Args)]
pub struct Arguments {
    /// For the test programs: a filter, `--nocapture`, `--test-threads N`, …
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let toolchain = setup::run()?;
    packages::ensure_programs(packages::FOR_TESTS)?;

    // Both layers run even if the first fails: one look shows all that is broken.
    let host = run_command(
        toolchain
            .cargo()
            .args(["test", "--no-fail-fast", "--"])
            .args(&arguments.arguments),
    );
    let mut as_root = as_root(
        &toolchain,
        &["test", "--release", "--no-fail-fast"],
        &["netfw-tests", "netfw-bench"],
        &[],
    )?;
    let root = run_command(as_root.arg("--").args(&arguments.arguments));

    let failed: Vec<String> = [("host tests", host), ("tests that need root", root)]
        .into_iter()
        .filter_map(|(what, result)| result.err().map(|error| format!("{what}: {error:#}")))
        .collect();
    if !failed.is_empty() {
        bail!("{}", failed.join("\n"));
    }
    Ok(())
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
