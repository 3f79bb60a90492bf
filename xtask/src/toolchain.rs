//! The compiler that builds the eBPF crate: rustup's nightly, or the distribution's own Rust.
//!
//! `aya-build` makes the same choice (`rustup run nightly` where there is a rustup, else the
//! toolchain at hand), so what is looked at here is what will be used there.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::command::{find, is_root, line, or_by_hand, output, run};

pub struct Toolchain {
    rustup: bool,
    /// Of the compiler of the eBPF crate, as `22.1.4`.
    pub llvm: String,
    sysroot: PathBuf,
}

impl Toolchain {
    /// Finds the toolchain; installs rustup's nightly where rustup has none.
    pub fn find() -> Result<Self> {
        let rustup = find("rustup").is_some();
        if rustup {
            let installed = output(Command::new("rustup").args(["toolchain", "list"]))?;
            if installed.lines().any(|name| name.starts_with("nightly")) {
                println!("toolchain: rustup's nightly is there");
            } else {
                println!("toolchain: rustup has no nightly, which builds the eBPF programs");
                run(Command::new("rustup").args([
                    "toolchain",
                    "install",
                    "nightly",
                    "--profile",
                    "minimal",
                    "--component",
                    "rust-src",
                ]))?;
            }
        } else {
            println!("toolchain: no rustup, so the eBPF programs build with the `rustc` on PATH");
        }
        let mut toolchain = Self {
            rustup,
            llvm: String::new(),
            sysroot: PathBuf::new(),
        };
        let version = output(toolchain.rustc().arg("-vV"))?;
        toolchain.llvm = version
            .lines()
            .find_map(|line| line.strip_prefix("LLVM version: "))
            .with_context(|| format!("`rustc -vV` names no LLVM version: {version}"))?
            .to_owned();
        toolchain.sysroot = output(toolchain.rustc().args(["--print", "sysroot"]))?
            .trim()
            .into();
        Ok(toolchain)
    }

    pub fn rustc(&self) -> Command {
        let mut command = Command::new("rustc");
        if self.rustup {
            command.arg("+nightly");
        } else {
            // The distribution's compiler is a stable one; this lets it build `core`.
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        command
    }

    /// `cargo` for the workspace: the default toolchain, with bpf-linker on its `PATH`.
    pub fn cargo(&self) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command
            .current_dir(crate::command::workspace())
            .env("PATH", path());
        if !self.rustup {
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        command
    }

    pub fn llvm_major(&self) -> Result<u32> {
        let major = self.llvm.split('.').next().unwrap_or_default();
        major
            .parse()
            .with_context(|| format!("the compiler's LLVM version is {:?}", self.llvm))
    }

    /// `core` must be there as source: no toolchain ships it compiled for a BPF target.
    pub fn ensure_core_source(&self) -> Result<()> {
        let source = self
            .sysroot
            .join("lib/rustlib/src/rust/library/core/src/lib.rs");
        if source.exists() {
            println!("core: its source is there ({})", source.display());
            return Ok(());
        }
        if !self.rustup {
            bail!(
                "the source of `core` is not there ({}). On Debian:\n    {}apt-get install rustc-web cargo-web rust-web-src",
                source.display(),
                if is_root() { "" } else { "sudo " }
            );
        }
        println!("core: its source is missing");
        let mut add = Command::new("rustup");
        add.args(["component", "add", "rust-src", "--toolchain", "nightly"]);
        let by_hand = format!("to try by hand:\n    {}", line(&add));
        or_by_hand(run(&mut add), &by_hand)
    }
}

/// Where `cargo install` puts programs. Often not on `PATH` under sudo or in CI.
pub fn cargo_bin() -> PathBuf {
    let home = env::var_os("CARGO_HOME").map_or_else(
        || Path::new(&env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cargo"),
        PathBuf::from,
    );
    home.join("bin")
}

/// `PATH` with cargo's own directory and the system's at its end, for our children.
pub fn path() -> OsString {
    let present = env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = env::split_paths(&present).collect();
    for more in [cargo_bin(), "/usr/sbin".into(), "/sbin".into()] {
        if !directories.contains(&more) {
            directories.push(more);
        }
    }
    env::join_paths(directories).unwrap_or(present)
}
