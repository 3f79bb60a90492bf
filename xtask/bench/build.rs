//! Builds the packet generator and its counterparts (`netfw-bench-ebpf`) into `OUT_DIR`.

use aya_build::{Package, Toolchain};

fn main() -> anyhow::Result<()> {
    aya_build::build_ebpf(
        [Package {
            name: "netfw-bench-ebpf",
            root_dir: concat!(env!("CARGO_MANIFEST_DIR"), "/ebpf"),
            ..Default::default()
        }],
        Toolchain::default(),
    )
}
