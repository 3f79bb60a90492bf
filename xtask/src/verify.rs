//! `cargo xtask verify`: the verifier's instruction count per program, held to the budget in
//! tests/verifier-budget.toml. The test `verifier` of the tests crate does it; `test` runs it too.

use std::ffi::OsStr;

use anyhow::Result;

use crate::{command::run as run_command, kernel, setup, test};

#[derive(clap::Args)]
pub struct Arguments {
    /// Write the counts seen, with a tenth on top, as the new budget
    #[arg(long)]
    update: bool,
    /// On another kernel, in qemu: the newest of Debian's cloud kernels of this version, as 6.1.
    /// Held to tests/verifier-budget-VERSION.toml
    #[arg(long, value_name = "VERSION")]
    kernel: Option<String>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    if let Some(version) = &arguments.kernel {
        return kernel::run(&kernel::Plan {
            version,
            steps: &[kernel::tests("verifier", "--nocapture")],
            update_budget: arguments.update,
        });
    }
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
