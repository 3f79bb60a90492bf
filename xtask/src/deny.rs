//! `cargo xtask deny`: licences, sources and known faults of what netfw is made of, by cargo-deny and `deny.toml`.
//!
//! cargo-deny takes minutes to build, so it is installed only where somebody asks for it; CI uses it where it is.
//! The database of advisories is fetched by git from its own site, which a machine may not reach: the rest
//! is checked all the same, and what was not is said.

use std::{path::PathBuf, process::Command};

use anyhow::{Result, bail};

use crate::{
    command::{find, line, or_by_hand, run as run_command, workspace},
    toolchain::{Toolchain, cargo_bin},
};

const VERSION: &str = "0.20.2";

#[derive(clap::Args)]
pub struct Arguments {
    /// Install cargo-deny first, if it is not there; that takes some minutes
    #[arg(long, conflicts_with = "if_installed")]
    install: bool,
    /// Without cargo-deny, say so and be done: for CI
    #[arg(long)]
    if_installed: bool,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    if cargo_deny().is_none() {
        if arguments.if_installed {
            println!(
                "deny: NOT CHECKED: licences, sources and advisories, for there is no cargo-deny here"
            );
            return Ok(());
        }
        if !arguments.install {
            bail!(
                "there is no cargo-deny here: `cargo xtask deny --install` installs it, in some minutes"
            );
        }
        install()?;
    }
    check(&["licenses", "bans", "sources"])?;
    match deny(&["fetch", "db"]) {
        Ok(()) => check(&["--disable-fetch", "advisories"]),
        Err(error) => {
            println!(
                "deny: NOT CHECKED: advisories, for their database cannot be had here: {error:#}"
            );
            Ok(())
        }
    }
}

fn cargo_deny() -> Option<PathBuf> {
    find("cargo-deny").or_else(|| {
        let program = cargo_bin().join("cargo-deny");
        program.exists().then_some(program)
    })
}

fn check(what: &[&str]) -> Result<()> {
    deny(&[&["check"], what].concat())
}

fn deny(words: &[&str]) -> Result<()> {
    let Some(program) = cargo_deny() else {
        bail!("cargo-deny is gone");
    };
    let mut command = Command::new(program);
    run_command(command.args(words).current_dir(workspace()))
}

fn install() -> Result<()> {
    let mut install = Toolchain::find()?.cargo();
    install.args(["install", "cargo-deny", "--version", VERSION, "--locked"]);
    let by_hand = format!("by hand:\n    {}", line(&install));
    or_by_hand(run_command(&mut install), &by_hand)
}
