//! `netfw trace`.

use super::{
    Global,
    watch::{Until, Which, follow},
};
/// Follow packets through the programs: what each of them decided, and why.
///
/// Both directions of what is said are shown, before and after their translation. While somebody traces,
/// other programs run, which tell of each packet and are slower for it.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("which").required(true).multiple(true)
    .args(["endpoint", "proto", "from", "to"]))]
pub struct Args {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    until: Until,
}

pub fn run(global: &Global, args: Args) -> anyhow::Result<()> {
    follow(global, "/v1/trace", &args.which.filter(), args.until)
}
