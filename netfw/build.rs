//! Builds the eBPF programs (`netfw-ebpf`) into `OUT_DIR`, from where `bpf::load` embeds them.

use aya_build::{Package, Toolchain};

fn main() -> anyhow::Result<()> {
    let root_dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../netfw-ebpf");
    aya_build::build_ebpf(
        [Package {
            name: "netfw-ebpf",
            root_dir,
            ..Default::default()
        }],
        Toolchain::default(),
    )
}
