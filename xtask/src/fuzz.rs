//! `cargo xtask fuzz`: random packets through every hook and family, for as long as one likes. The
//! tests do the same for a minute.

use std::ffi::OsStr;

use anyhow::Result;

use crate::{command, packages, setup, test};

/// The test runs them one after the other: IPv4 and IPv6, by TC and by XDP.
const PATHS: u64 = 4;

#[derive(clap::Args)]
pub struct Arguments {
    /// For how long, in all
    #[arg(long, value_name = "MINUTES", default_value_t = 10)]
    minutes: u64,
    /// Where to begin, as an earlier run printed it [default: somewhere else each time]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let toolchain = setup::run()?;
    packages::ensure_programs(packages::FOR_TESTS)?;
    let seconds = (arguments.minutes * 60 / PATHS).to_string();
    let seed = arguments
        .seed
        .unwrap_or_else(|| fastrand::u64(..))
        .to_string();
    let environment = [
        ("NETFW_FUZZ_SECONDS", OsStr::new(&seconds)),
        ("NETFW_FUZZ_SEED", OsStr::new(&seed)),
    ];
    let mut fuzz = test::as_root(
        &toolchain,
        &["test", "--release", "--test", "packet"],
        &["netfw-tests"],
        &environment,
    )?;
    command::run(fuzz.args(["--", "--nocapture", "fuzz::"]))
}
