//! `cargo xtask verify`: what each kernel's verifier makes of the programs, and XDP in a real driver.
//!
//! * The verifier's instruction count per program, held to the budget in tests/verifier-budget.toml
//!   or the kernel's own. The test `verifier` of the tests crate does it; `test` runs it too.
//! * On this machine, nanoseconds per packet of each program, in multiples of a reference's, held to the
//!   budget in tests/speed-budget.toml. The bench does it (`netfw-bench --budget`), as it is no test:
//!   those do not assert on time. `test` runs it after the tests.
//! * On an emulated machine also native XDP on virtio-net: the test `virtio`.

use std::ffi::OsStr;

use anyhow::Result;

use crate::{command::run as run_command, kernel, setup, test, toolchain::Toolchain};

/// The oldest kernel of which Debian has packages for a machine to emulate.
const EMULATED: &str = "6.1";

/// On the command line, this machine's kernel.
const HERE: &str = "here";

#[derive(clap::Args)]
pub struct Arguments {
    /// Write what was seen as the new budget: of instructions a tenth more
    #[arg(long)]
    update: bool,
    /// On this kernel alone: `here`, or the newest of Debian's cloud kernels of a version, as 6.1,
    /// in qemu. Without it: on this machine's and on 6.1
    #[arg(long, value_name = "KERNEL")]
    kernel: Option<String>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    match arguments.kernel.as_deref() {
        Some(HERE) => here(arguments.update),
        Some(version) => emulated(version, arguments.update),
        None => {
            // Both, even if the first fails: one look shows all that is wrong.
            let here = here(arguments.update);
            emulated(EMULATED, arguments.update).and(here)
        }
    }
}

fn emulated(version: &str, update_budget: bool) -> Result<()> {
    kernel::run(&kernel::Plan {
        version,
        steps: &[kernel::tests("verifier", "--nocapture"), kernel::VIRTIO],
        update_budget,
    })
}

fn here(update_budget: bool) -> Result<()> {
    let toolchain = setup::run()?;
    let environment: &[_] = if update_budget {
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
    )?;
    speed(&toolchain, update_budget)
}

/// Holds the programs' time per packet to its budget, or writes that.
pub fn speed(toolchain: &Toolchain, update_budget: bool) -> Result<()> {
    let mode = if update_budget { "update" } else { "check" };
    run_command(
        test::as_root(toolchain, &["run", "--release"], &["netfw-bench"], &[])?
            .args(["--", "--budget", mode]),
    )
}
