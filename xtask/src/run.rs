//! `cargo xtask run`: builds netfw and becomes it.
//!
//! `exec` rather than a child: signals reach netfw itself, its exit status is ours, and no xtask
//! is in between that a Ctrl-C could end first.

use std::{ffi::OsString, os::unix::process::CommandExt as _};

use anyhow::{Context as _, Result};

use crate::{
    build,
    command::{line, prefixed, root_prefix},
};

#[derive(clap::Args)]
pub struct Arguments {
    /// What to run netfw with; `demo` if empty
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let binary = build::run()?;
    let mut arguments = arguments.arguments.clone();
    if arguments.is_empty() {
        arguments.push("demo".into());
    }
    let prefix = if only_tells(&arguments) {
        Vec::new()
    } else {
        root_prefix("netfw", &[])?
    };
    let mut command = prefixed(&prefix, binary);
    command.args(arguments);
    println!("+ {}", line(&command));
    Err(command.exec()).with_context(|| format!("cannot start `{}`", line(&command)))
}

/// Help and version need no root.
fn only_tells(arguments: &[OsString]) -> bool {
    arguments
        .iter()
        .take_while(|argument| *argument != "--")
        .any(|argument| {
            ["help", "--help", "-h", "--version", "-V"].contains(&&*argument.to_string_lossy())
        })
}
