//! `netfw exec`: a command in an endpoint's network namespace, everything else as it is here.
//!
//! The process becomes the command, so exit status and signals are the command's own.

use std::{ffi::OsString, os::unix::process::CommandExt, process::Command};

use anyhow::Context;

use super::{Global, need_root};
use crate::{name::Name, net::Namespace};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The endpoint.
    name: Name,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub fn run(global: &Global, args: Args) -> anyhow::Result<()> {
    need_root("exec")?;
    let endpoint = crate::block_on(global.client().endpoint(&args.name))?;
    Namespace::at_path(&endpoint.netns)
        .and_then(|namespace| namespace.enter())
        .with_context(|| format!("the namespace of endpoint \"{}\"", args.name))?;
    let (program, rest) = args.command.split_first().context("no command")?;
    // `exec` returns only where it failed.
    let error = Command::new(program).args(rest).exec();
    Err(error).with_context(|| format!("{} cannot be run", program.display()))
}
