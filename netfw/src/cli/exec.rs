//! `netfw exec`: a command in an endpoint's network namespace, with its host name and its files for
//! `/etc`, everything else as it is here.
//!
//! The process becomes the command, so exit status and signals are the command's own.

use std::{ffi::OsString, fs, io, os::unix::process::CommandExt, path::Path, process::Command};

use anyhow::Context;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::sethostname,
};

use super::{Global, need_root};
use crate::{
    agent::{files, paths::Paths},
    api::types::Endpoint,
    mode::Mode,
    name::Name,
    net::{Namespace, NetError, Netlink},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The endpoint.
    name: Name,
    /// The command and its arguments; a `--` before it may be left out.
    #[arg(trailing_var_arg = true, required = true, value_name = "COMMAND")]
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
    let owner = match &endpoint.network {
        Mode::Container(other) => other,
        _ => &endpoint.name,
    };
    let paths = Paths::of(&global.instance);
    put_over_etc(&files::directory(&paths, owner))
        .context("giving it its own resolv.conf, hosts and hostname")?;
    let (program, rest) = args.command.split_first().context("no command")?;
    // `exec` returns only where it failed.
    let error = Command::new(program).args(rest).exec();
    Err(CannotRun {
        program: program.clone(),
        source: error,
    }
    .into())
}

/// Puts the endpoint's files over those of `/etc`, for this process and its children alone, and gives them
/// its host name.
fn put_over_etc(directory: &Path) -> anyhow::Result<()> {
    if !directory.is_dir() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS).context("unshare")?;
    const NOTHING: Option<&str> = None;
    // What is mounted elsewhere still comes here, and nothing goes the other way.
    let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(NOTHING, "/", NOTHING, flags, NOTHING).context("making mounts its own")?;
    for file in files::FILES {
        let (own, over) = (directory.join(file), Path::new("/etc").join(file));
        if own.exists() && over.exists() {
            mount(Some(&own), &over, NOTHING, MsFlags::MS_BIND, NOTHING)
                .with_context(|| format!("mounting {}", over.display()))?;
        }
    }
    let name = fs::read_to_string(directory.join("hostname")).context("hostname")?;
    sethostname(name.trim()).context("sethostname")
}

/// A name may stand for another namespace by now: the endpoint's has the other end of its pair.
async fn is_attached(endpoint: &Endpoint, namespace: &Namespace) -> Result<bool, NetError> {
    if endpoint.networks.is_empty() {
        // There is nothing to know it by.
        return Ok(true);
    }
    let links = Netlink::within(namespace)?.links().await?;
    let hosts = endpoint.networks.iter().map(|a| a.host_ifindex);
    // Whatever the container calls it.
    let is_there = |host: u32| links.iter().any(|link| link.peer == Some(host));
    Ok(hosts.flatten().any(is_there))
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
