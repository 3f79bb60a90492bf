//! `netfw demo`.

use std::path::Path;

use super::{Global, need_root};
use crate::{bpf::BPFFS, net::mounts};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Stay up with live counters until Ctrl-C.
    #[arg(long)]
    keep: bool,
}

pub fn run(global: &Global, args: Args) -> anyhow::Result<()> {
    need_root("the demo")?;
    mounts::check(Path::new(BPFFS))?;
    crate::demo::run(args.keep, global.output)
}
