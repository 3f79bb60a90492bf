//! `cargo xtask package`: the Debian package, in `target/debian`.
//!
//! What is in it is said in `netfw/Cargo.toml`, for cargo-deb. Man pages and completions are netfw's own
//! word: the binary that goes into the package writes them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build,
    command::{find, or_by_hand, output, prefixed, root_prefix, run as run_command, workspace},
    packages,
    toolchain::{Toolchain, cargo_bin},
};

const VERSION: &str = "3.7.0";

/// What nobody should find missing.
const CONTENTS: [&str; 10] = [
    "/etc/netfw/netfw.toml",
    "/lib/systemd/system/netfw.service",
    "/usr/bin/netfw",
    "/usr/lib/cni/netfw-cni",
    "/usr/share/bash-completion/completions/netfw",
    "/usr/share/doc/netfw/copyright",
    "/usr/share/fish/vendor_completions.d/netfw.fish",
    "/usr/share/man/man1/netfw-agent.1.gz",
    "/usr/share/man/man1/netfw.1.gz",
    "/usr/share/zsh/vendor-completions/_netfw",
];

#[derive(clap::Args)]
pub struct Arguments {
    /// Then install, restart, crash, upgrade, remove and purge it, as root, under a systemd in namespaces of
    /// its own: nothing on the machine changes
    #[arg(long = "try")]
    attempt: bool,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let package = build()?;
    if arguments.attempt {
        packages::ensure_programs(packages::FOR_TRIAL)?;
        let prefix = root_prefix("the trial", &[])?;
        let script = workspace().join("packaging/try");
        run_command(prefixed(&prefix, script).arg(&package))?;
    }
    println!("packaged {}", package.display());
    Ok(())
}

/// Builds the package; where it lies.
fn build() -> Result<PathBuf> {
    let toolchain = crate::setup::run()?;
    ensure_cargo_deb(&toolchain)?;
    let binary = build::netfw(&toolchain)?;
    write_pages(&binary, &build::target().join("release/package"))?;
    let directory = build::target().join("debian");
    let version = env!("CARGO_PKG_VERSION");
    let package = directory.join(format!("netfw_{version}-1_{}.deb", architecture()?));
    run_command(
        toolchain
            .cargo()
            // It is built, and keeps its symbols.
            .args(["deb", "--package", "netfw", "--no-build", "--no-strip"])
            .arg("--output")
            .arg(&package),
    )?;
    check(&package)?;
    Ok(package)
}

/// As Debian calls this machine's.
fn architecture() -> Result<String> {
    let name = output(Command::new("dpkg").arg("--print-architecture"))
        .context("a Debian package takes Debian's dpkg")?;
    Ok(name.trim().to_owned())
}

fn ensure_cargo_deb(toolchain: &Toolchain) -> Result<()> {
    let found = find("cargo-deb").or_else(|| {
        let program = cargo_bin().join("cargo-deb");
        program.exists().then_some(program)
    });
    if let Some(program) = found {
        let version = output(Command::new(&program).arg("--version"));
        let version = version.as_deref().unwrap_or_default().trim();
        if is_new_enough(version) {
            println!("cargo-deb: {} fits, {version}", program.display());
            return Ok(());
        }
        println!(
            "cargo-deb: {} is {version:?}, wanted {VERSION}",
            program.display()
        );
    } else {
        println!("cargo-deb: not found");
    }
    println!("cargo-deb: installing into {}", cargo_bin().display());
    let mut install = toolchain.cargo();
    install.args([
        "install",
        "cargo-deb",
        "--version",
        VERSION,
        "--locked",
        "--force",
    ]);
    let by_hand = format!("by hand:\n    {}", crate::command::line(&install));
    or_by_hand(run_command(&mut install), &by_hand)
}

/// `cargo-deb 3.7.0`: of the same major version, and no older.
fn is_new_enough(version: &str) -> bool {
    let version = version.trim_start_matches("cargo-deb ");
    let parse = |text: &str| {
        let mut numbers = text.split('.').map(str::parse::<u32>);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    };
    match (parse(version), parse(VERSION)) {
        (Some((major, minor)), Some(wanted)) => major == wanted.0 && minor >= wanted.1,
        _ => false,
    }
}

/// Man pages into `man`, completions beside it, under the names that their shells look for.
fn write_pages(binary: &Path, directory: &Path) -> Result<()> {
    if directory.exists() {
        // A page of a command that is no more.
        fs::remove_dir_all(directory)
            .with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    run_command(Command::new(binary).arg("man").arg(directory.join("man")))?;
    for (shell, file) in [
        ("bash", "netfw.bash"),
        ("zsh", "_netfw"),
        ("fish", "netfw.fish"),
    ] {
        let text = output(Command::new(binary).args(["completions", shell]))?;
        let file = directory.join(file);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    // As Debian has them; without a time, so that the same pages are the same package.
    run_command(
        Command::new("gzip")
            .args(["--recursive", "--best", "--no-name"])
            .arg(directory.join("man")),
    )
}

fn check(package: &Path) -> Result<()> {
    let listing = output(Command::new("dpkg-deb").arg("--contents").arg(package))?;
    let missing = missing(&listing);
    if !missing.is_empty() {
        bail!("{} lacks {}", package.display(), missing.join(", "));
    }
    let conffiles = output(
        Command::new("dpkg-deb")
            .args(["--info"])
            .arg(package)
            .arg("conffiles"),
    )?;
    if conffiles.trim() != CONTENTS[0] {
        bail!(
            "{}: its configuration files are {conffiles:?}",
            package.display()
        );
    }
    Ok(())
}

/// What a `dpkg-deb --contents` does not list: `-rw-r--r-- 0/0 5 2026-01-01 00:00 ./etc/file`.
fn missing(listing: &str) -> Vec<&'static str> {
    let files: Vec<&str> = listing
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5)?.strip_prefix('.'))
        .collect();
    let mut missing = CONTENTS.to_vec();
    missing.retain(|file| !files.contains(file) && !files.contains(&&*format!("/usr{file}")));
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_package_lacks_is_told() {
        let line = |file: &str| format!("-rw-r--r-- 0/0  1234 2026-11-22 02:57 .{file}\n");
        let whole: String = CONTENTS.into_iter().map(line).collect();
        assert_eq!(missing(&whole), [""; 0]);
        let merged = whole.replace("./lib/", "./usr/lib/");
        assert_eq!(missing(&merged), [""; 0]);
        let without: String = CONTENTS[1..].iter().copied().map(line).collect();
        assert_eq!(missing(&without), [CONTENTS[0]]);
        assert_eq!(missing(""), CONTENTS);
    }

    #[test]
    fn an_older_cargo_deb_is_not_taken() {
        for fits in [VERSION, "cargo-deb 3.7.0", "3.9.12"] {
            assert!(is_new_enough(fits), "{fits}");
        }
        for other in ["3.6.9", "2.99.0", "4.0.0", "3", "", "cargo-deb 3.6.9"] {
            assert!(!is_new_enough(other), "{other}");
        }
    }
}
