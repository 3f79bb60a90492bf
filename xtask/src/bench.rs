//! `cargo xtask bench`: netfw beside iptables and plain routing, in one run on one machine.
//!
//! The crate `netfw-bench` measures: it needs the tests' namespaces and eBPF programs of its own,
//! and xtask must build without either. All options are its own, and so is the text of `--help`.
//!
//! `exec` rather than a child: a Ctrl-C reaches the bench alone, and its exit status, by which
//! `--compare` tells that something got worse, is ours.

use std::{env, ffi::OsString, os::unix::process::CommandExt as _};

use anyhow::{Context as _, Result};

use crate::{
    command::{line, workspace},
    packages, setup, test,
};

#[derive(clap::Args)]
// `--help` is handed over, too.
#[command(disable_help_flag = true)]
pub struct Arguments {
    /// Options of the bench: `cargo xtask bench --help` shows them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let toolchain = setup::run()?;
    packages::ensure_programs(packages::FOR_BENCH)?;
    packages::ensure_programs(packages::FOR_RUNTIMES)?;
    let manifest = workspace().join("Cargo.toml");
    let manifest = manifest
        .to_str()
        .with_context(|| format!("{} is not UTF-8", manifest.display()))?;
    let words = ["run", "--release", "--manifest-path", manifest];
    let mut bench = test::as_root(&toolchain, &words, &["netfw-bench"], &[])?;
    // Files are named from where the user is.
    let here = env::current_dir().context("where we are")?;
    bench.current_dir(here).arg("--").args(&arguments.arguments);
    println!("+ {}", line(&bench));
    Err(bench.exec()).with_context(|| format!("cannot start `{}`", line(&bench)))
}
