//! `netfw completions` and `netfw man`: made from the definition of the command line.

use std::{io, path::PathBuf};

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;

use super::Cli;

#[derive(Debug, clap::Args)]
pub struct Completions {
    /// For this shell.
    shell: Shell,
}

#[derive(Debug, clap::Args)]
pub struct Man {
    /// Where the pages go: netfw.1, netfw-agent.1 and so on.
    directory: PathBuf,
}

pub fn completions(args: &Completions) {
    clap_complete::generate(args.shell, &mut Cli::command(), "netfw", &mut io::stdout());
}

pub fn man(args: &Man) -> anyhow::Result<()> {
    let shown = args.directory.display();
    std::fs::create_dir_all(&args.directory).with_context(|| format!("cannot make {shown}"))?;
    clap_mangen::generate_to(Cli::command(), &args.directory)
        .with_context(|| format!("cannot write pages to {shown}"))
}
