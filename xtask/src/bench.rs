//! `cargo xtask bench`: netfw beside iptables and plain routing, in one run on one machine.
//!
//! The measuring itself is the bench target `datapath` of the tests crate, where the namespaces,
//! the agent and the eBPF programs are at hand; this crate must build without them.

use anyhow::Result;

use crate::{command::run as run_command, packages, setup, test};

#[derive(clap::Args)]
pub struct Arguments {
    /// Fewer and shorter rounds: shows that it works, not how fast it is
    #[arg(long)]
    quick: bool,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let toolchain = setup::run()?;
    packages::ensure_programs(packages::FOR_BENCH)?;
    let mut bench = test::as_root(&toolchain, &["bench", "--bench", "datapath"], &[])?;
    bench.arg("--");
    if arguments.quick {
        bench.arg("--quick");
    }
    run_command(&mut bench)
}
