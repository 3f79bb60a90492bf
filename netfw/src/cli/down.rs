//! `netfw down`.

use std::path::Path;

use serde::Serialize;

use super::{Global, need_root, output::print};
use crate::{
    agent::down::{Report, down},
    bpf::BPFFS,
    net::mounts,
};

/// What `-o json` prints.
#[derive(Serialize)]
struct Shown<'a> {
    removed: &'a [String],
    errors: &'a [String],
}

pub fn run(global: &Global) -> anyhow::Result<()> {
    need_root("down")?;
    mounts::check(Path::new(BPFFS))?;
    let Report { removed, errors } = down(&global.instance);
    let shown = Shown {
        removed: &removed,
        errors: &errors,
    };
    print(global.output, &shown, |shown| {
        if shown.removed.is_empty() && shown.errors.is_empty() {
            return format!("instance \"{}\": nothing to remove\n", global.instance);
        }
        shown
            .removed
            .iter()
            .map(|what| format!("removed {what}\n"))
            .collect()
    })?;
    anyhow::ensure!(
        errors.is_empty(),
        "instance \"{}\" is not all gone; run `netfw down{}` again once this is mended:\n  {}",
        global.instance,
        crate::agent::run::instance_option(&global.instance),
        errors.join("\n  ")
    );
    Ok(())
}
