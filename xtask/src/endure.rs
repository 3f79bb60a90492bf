//! `cargo xtask endure`: endpoints that come and go by the thousand, restarts by the hundred, and traffic among
//! changes at random, for as long as one likes. The tests do the same for a minute.

use std::ffi::OsStr;

use anyhow::Result;

use crate::{command, packages, setup, test};

#[derive(clap::Args)]
pub struct Arguments {
    /// For how long traffic goes on; a thousand endpoints and ten restarts for each of them come before
    #[arg(long, value_name = "MINUTES", default_value_t = 10)]
    minutes: u64,
    /// Which changes, as an earlier run printed it
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let toolchain = setup::run()?;
    packages::ensure_programs(packages::FOR_TESTS)?;
    let minutes = arguments.minutes.to_string();
    let mut environment = vec![("NETFW_ENDURE_MINUTES", OsStr::new(&minutes))];
    let seed = arguments.seed.map(|seed| seed.to_string());
    if let Some(seed) = &seed {
        environment.push(("NETFW_ENDURE_SEED", OsStr::new(seed)));
    }
    let mut endure = test::as_root(
        &toolchain,
        &["test", "--release", "--test", "e2e"],
        &["netfw-tests"],
        &environment,
    )?;
    // One after the other: each counts what there is.
    command::run(endure.args(["--", "--nocapture", "--test-threads=1", "endurance::"]))
}
