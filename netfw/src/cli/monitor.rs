//! `netfw monitor`.

use netfw_common::drop::Drop;

use super::{
    Global,
    watch::{Until, Which, follow},
};
use crate::filter::{Reasons, WatchFilter, parse_reason};

/// Tell of each packet that is dropped, as it happens.
///
/// A flood is told of by some thousand packets a second, and how many more there were.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Dropped for this reason; may be given more than once. `netfw stats --drops` lists them.
    #[arg(long, value_name = "REASON", value_delimiter = ',', value_parser = parse_reason)]
    reason: Vec<Drop>,
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    until: Until,
}

pub fn run(global: &Global, args: Args) -> anyhow::Result<()> {
    let filter = WatchFilter {
        reasons: (!args.reason.is_empty()).then_some(Reasons(args.reason)),
        ..args.which.filter()
    };
    follow(global, "/v1/monitor", &filter, args.until)
}
