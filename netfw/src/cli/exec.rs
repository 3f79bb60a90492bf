//! `netfw exec`: a command in an endpoint's network namespace, everything else as it is here.
//!
//! The process becomes the command, so exit status and signals are the command's own.

use std::{ffi::OsString, io, os::unix::process::CommandExt, process::Command};

use anyhow::Context;

use super::{Global, need_root};
use crate::{
    api::types::Endpoint,
    name::Name,
    net::{Namespace, NetError, Netlink},
};

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
    let namespace = Namespace::at_path(&endpoint.netns)
        .with_context(|| format!("the namespace of endpoint \"{}\"", args.name))?;
    anyhow::ensure!(
        crate::block_on(is_attached(&endpoint, &namespace))?,
        "{} is not the namespace that endpoint \"{}\" was made for (any more): remove the endpoint, and add it again",
        endpoint.netns.display(),
        args.name
    );
    namespace.enter()?;
    let (program, rest) = args.command.split_first().context("no command")?;
    // `exec` returns only where it failed.
    let error = Command::new(program).args(rest).exec();
    Err(CannotRun {
        program: program.clone(),
        source: error,
    }
    .into())
}

/// A name may stand for another namespace by now: the endpoint's has the other end of its pair.
async fn is_attached(endpoint: &Endpoint, namespace: &Namespace) -> Result<bool, NetError> {
    let links = Netlink::within(namespace)?.links().await?;
    // Whatever the container calls it.
    Ok(endpoint.host_ifindex.is_some() && links.iter().any(|l| l.peer == endpoint.host_ifindex))
}

/// The command could not be started; its own statuses are handed on and no error.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be run: {source}", program.display())]
pub struct CannotRun {
    program: OsString,
    source: io::Error,
}

impl CannotRun {
    /// As shells and docker have it: 127 not found, 126 found and not to be run.
    pub fn status(&self) -> u8 {
        match self.source.kind() {
            io::ErrorKind::NotFound => 127,
            _ => 126,
        }
    }
}
