//! bpf-linker: found, checked against the compiler's LLVM, or installed.
//!
//! bpf-linker reads the bitcode that rustc writes, so its LLVM must be of the same major version
//! or newer; an older one fails with obscure errors, or miscompiles. It does not tell which LLVM
//! it was built with. But every bitcode file begins with the name and version of the LLVM that
//! wrote it, so we have it write one and read the version there. The same run proves that it
//! starts, finds its shared libraries and reads what this compiler writes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    command::{find, or_by_hand, output, run},
    packages,
    toolchain::{Toolchain, cargo_bin},
};

const VERSION: &str = "0.13.0";

/// Leaves a bpf-linker that fits `toolchain` where [`crate::toolchain::path`] finds it.
pub fn ensure(toolchain: &Toolchain) -> Result<()> {
    let wanted = toolchain.llvm_major()?;
    if let Some(linker) = find("bpf-linker").or_else(|| {
        let linker = cargo_bin().join("bpf-linker");
        linker.exists().then_some(linker)
    }) {
        match probe(&linker, toolchain) {
            Ok(llvm) if llvm == wanted => {
                println!(
                    "bpf-linker: {} fits, LLVM {llvm} as the compiler's",
                    linker.display()
                );
                return Ok(());
            }
            Ok(llvm) => println!(
                "bpf-linker: {} has LLVM {llvm}, the compiler has LLVM {wanted}",
                linker.display()
            ),
            Err(error) => println!("bpf-linker: {} does not work: {error:#}", linker.display()),
        }
    } else {
        println!("bpf-linker: not found");
    }
    install(wanted)?;
    let linker = cargo_bin().join("bpf-linker");
    let llvm = probe(&linker, toolchain)
        .with_context(|| format!("the new {} does not work", linker.display()))?;
    if llvm != wanted {
        bail!(
            "the new {} has LLVM {llvm}, wanted {wanted}",
            linker.display()
        );
    }
    // An older one further up in PATH would be taken before it.
    if let Some(first) = find("bpf-linker")
        && first != linker
    {
        bail!(
            "{} comes before {} in PATH and does not fit: remove it, or put {} first",
            first.display(),
            linker.display(),
            cargo_bin().display()
        );
    }
    Ok(())
}

fn install(llvm: u32) -> Result<()> {
    let mut needed = ["libzstd-dev", "zlib1g-dev", "libxml2-dev"]
        .map(str::to_owned)
        .to_vec();
    let prefix = std::env::var_os("LLVM_PREFIX").map_or_else(
        || {
            needed.extend([format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev")]);
            PathBuf::from(format!("/usr/lib/llvm-{llvm}"))
        },
        PathBuf::from,
    );
    if find("c++").is_none() {
        needed.push("g++".to_owned());
    }
    let mut install = Command::new("cargo");
    install
        .args(["install", "bpf-linker", "--version", VERSION, "--locked"])
        .args(["--force", "--no-default-features"])
        .args(["--features", &format!("llvm-{llvm}")])
        // bpf-linker's own build script reads the first, llvm-sys the second; since LLVM 18 the
        // first minor version of a major one is 1, and llvm-sys is numbered after it.
        .env("LLVM_PREFIX", &prefix)
        .env(format!("LLVM_SYS_{llvm}1_PREFIX"), &prefix);
    let by_hand = format!(
        "by hand, with the development files of LLVM {llvm} from your distribution:\n    {}",
        crate::command::line(&install)
    );

    or_by_hand(packages::ensure(&needed), &by_hand)?;

    println!("bpf-linker: installing into {}", cargo_bin().display());
    or_by_hand(run(&mut install), &by_hand)
}

/// The major version of the LLVM inside `linker`.
fn probe(linker: &Path, toolchain: &Toolchain) -> Result<u32> {
    let scratch = tempfile::tempdir().context("cannot make a temporary directory")?;
    let [source, compiled, linked] =
        ["probe.rs", "in.bc", "out.bc"].map(|name| scratch.path().join(name));
    fs::write(&source, "#![feature(no_core)]\n#![no_core]\n")
        .with_context(|| format!("cannot write {}", source.display()))?;
    output(
        toolchain
            .rustc()
            .args(["--crate-type=lib", "--emit=llvm-bc"])
            .args(["--target", "bpfel-unknown-none", "-o"])
            .args([&compiled, &source]),
    )?;
    output(
        Command::new(linker)
            .args(["--emit=llvm-bc", "-o"])
            .args([&linked, &compiled]),
    )?;
    let bitcode = fs::read(&linked).with_context(|| format!("cannot read {}", linked.display()))?;
    bitcode_major(&bitcode).context("its bitcode does not name the LLVM that wrote it")
}

/// Finds `LLVM22` in the identification block of a bitcode file.
///
/// The block stores the text in 6-bit characters, at any bit offset (LLVM Bitcode File Format,
/// "Char6-encoded Value" and "IDENTIFICATION_BLOCK").
fn bitcode_major(bitcode: &[u8]) -> Option<u32> {
    const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._";
    // The block is the file's first; its few dozen bytes all lie within this.
    let head = &bitcode[..bitcode.len().min(256)];
    let character = |bit: usize| -> Option<u8> {
        let bits = (0..6).try_fold(0, |bits, n| {
            let byte = head.get((bit + n) / 8)?;
            Some(bits | usize::from(byte >> ((bit + n) % 8) & 1) << n)
        })?;
        Some(ALPHABET[bits])
    };
    (0..head.len() * 8).find_map(|start| {
        let mut text = (0..).map_while(|n| character(start + 6 * n));
        if !b"LLVM".iter().all(|want| text.next() == Some(*want)) {
            return None;
        }
        let digits: String = text
            .take_while(u8::is_ascii_digit)
            .map(char::from)
            .take(3)
            .collect();
        digits.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_version_is_read_from_the_identification_block() {
        // The first 48 bytes of what a bpf-linker with LLVM 22.1.8 wrote.
        let head = [
            0x42, 0x43, 0xc0, 0xde, 0x35, 0x14, 0x00, 0x00, 0x05, 0x00, 0x00, 0x00, 0x62, 0x0c,
            0x30, 0x24, 0x4a, 0x59, 0xbe, 0xa6, 0x6d, 0xfb, 0xb5, 0xcf, 0x0b, 0x51, 0x80, 0x4c,
            0x01, 0x00, 0x00, 0x00, 0x21, 0x0c, 0x00, 0x00, 0xa2, 0x01, 0x00, 0x00, 0x0b, 0x02,
            0x21, 0x00, 0x02, 0x00, 0x00, 0x00,
        ];
        assert_eq!(bitcode_major(&head), Some(22));
    }

    #[test]
    fn a_file_without_identification_names_no_version() {
        assert_eq!(bitcode_major(b"BC\xc0\xde"), None);
        assert_eq!(bitcode_major(&[]), None);
    }
}
