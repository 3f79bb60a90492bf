//! `cargo xtask verify`: the verifier's instruction count per program, held to the budget in
//! tests/verifier-budget.toml. The test `verifier` of the tests crate does it; `test` runs it too.

use std::ffi::OsStr;

use anyhow::Result;

use crate::{command::run as run_command, setup, test};

#[derive(clap::Args)]
pub struct Arguments {
    /// Write the counts seen, with a tenth on top, as the new budget
    #[arg(long)]
    update: bool,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let toolchain = setup::run()?;
    let environment: &[_] = if arguments.update {
        &[("NETFW_UPDATE_BUDGET", OsStr::new("1"))]
    } else {
        &[]
    };
    run_command(
        test::as_root(
            &toolchain,
            &["test", "--release", "--test", "verifier"],
            &["netfw-tests"],
            environment,
        )?
        .args(["--", "--nocapture"]),
    )
}
