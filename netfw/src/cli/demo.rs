//! `netfw demo`.

use super::{Global, need_root};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Stay up with live counters until Ctrl-C.
    #[arg(long)]
    keep: bool,
}

pub fn run(global: &Global, args: Args) -> anyhow::Result<()> {
    need_root("the demo")?;
    crate::demo::run(args.keep, global.output)
}
