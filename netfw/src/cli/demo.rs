//! `netfw demo`.

use super::need_root;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Stay up with live counters until Ctrl-C.
    #[arg(long)]
    keep: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    need_root("the demo")?;
    crate::demo::run(args.keep)
}
