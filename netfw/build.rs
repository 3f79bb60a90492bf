//! Builds the eBPF programs (`netfw-ebpf`) into `OUT_DIR`, from where `bpf::load` embeds them.

use std::env;

use aya_build::{Package, Toolchain};

/// Whoever builds incrementally means the programs that he debugs. In many codegen units the eBPF object is
/// another one, which the verifier refuses.
const INCREMENTAL: [&str; 2] = ["CARGO_INCREMENTAL", "CARGO_PROFILE_RELEASE_INCREMENTAL"];

fn main() -> anyhow::Result<()> {
    for name in INCREMENTAL {
        // SAFETY: this process has one thread.
        unsafe { env::remove_var(name) };
    }
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
