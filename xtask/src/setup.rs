//! `cargo xtask setup`: what building needs, found or installed, each said in a line.
//!
//! Does nothing twice: a second run only looks, in well under a second.

use anyhow::Result;

use crate::{command::find, linker, toolchain::Toolchain};

pub fn run() -> Result<Toolchain> {
    match find("cc") {
        Some(cc) => println!("cc: {}", cc.display()),
        // Hardly ever seen: cargo needed one to link this very program.
        None => crate::packages::ensure(&["gcc".to_owned(), "libc6-dev".to_owned()])?,
    }
    let toolchain = Toolchain::find()?;
    toolchain.ensure_core_source()?;
    linker::ensure(&toolchain)?;
    Ok(toolchain)
}
