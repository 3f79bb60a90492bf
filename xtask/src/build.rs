//! `cargo xtask build`: `target/release/netfw`, one file to copy to a node.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::{
    command::{run as run_command, workspace},
    setup,
    toolchain::Toolchain,
};

pub fn run() -> Result<PathBuf> {
    let toolchain = setup::run()?;
    let binary = netfw(&toolchain)?;
    println!("built {}", binary.display());
    Ok(binary)
}

/// Builds netfw and says where it lies.
pub fn netfw(toolchain: &Toolchain) -> Result<PathBuf> {
    run_command(
        toolchain
            .cargo()
            .args(["build", "--release", "--package", "netfw"]),
    )?;
    let binary = target().join("release/netfw");
    if !binary.exists() {
        bail!("cargo left no {}", binary.display());
    }
    Ok(binary)
}

/// cargo's target directory.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || workspace().join("target"),
        |directory| workspace().join(directory),
    )
}
