//! `cargo xtask bench`: netfw beside iptables and plain routing, in one run on one machine.
//!
//! The crate `netfw-bench` measures: it needs the tests' namespaces and eBPF programs of its own,
//! and xtask must build without either.

use std::ffi::OsString;

use anyhow::Result;

use crate::{command::run as run_command, packages, setup, test};

#[derive(clap::Args)]
pub struct Arguments {
    /// Fewer and shorter rounds: shows that it works, not how fast it is
    #[arg(long)]
    quick: bool,
    /// More options of the bench, `--help` among them
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let toolchain = setup::run()?;
    packages::ensure_programs(packages::FOR_BENCH)?;
    let mut bench = test::as_root(&toolchain, &["run", "--release"], &["netfw-bench"], &[])?;
    bench.arg("--");
    if arguments.quick {
        bench.arg("--quick");
    }
    run_command(bench.args(&arguments.arguments))
}
