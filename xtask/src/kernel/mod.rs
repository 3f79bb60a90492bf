//! The tests on another kernel than this machine's: `verify --kernel 6.1`, `test --kernel 6.1`.
//!
//! The programs must pass the verifier of every kernel that netfw runs on, and that verifier is a
//! different program in each. So a Debian cloud kernel boots in qemu, with nothing but an
//! initramfs: busybox, the kernel's modules for networking, netfw, the test programs, and what
//! they need. It runs them, says on its serial console how each ended, and goes.
//!
//! * [`image`]: the kernel, from Debian's package, unpacked below target/
//! * [`programs`]: what runs there, with the libraries it takes
//! * [`modules`]: which modules go along
//! * [`initramfs`]: the archive that the kernel unpacks
//! * [`guest`]: what runs in there, and qemu around it
//!
//! The guest has two virtio-net interfaces, wired to each other.
//!
//! Nothing of this needs root but the installation of missing packages, and all of it stays below
//! target/. qemu emulates the processor, which takes some ten times as long as running on it does.
//! `NETFW_QEMU_ACCEL=kvm` has it use KVM, where that works.

mod guest;
mod image;
mod initramfs;
mod modules;
mod programs;

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use self::{guest::Step, image::Image, initramfs::Archive};
use crate::{build, command::workspace, packages, setup, test::Totals};

/// What is to run: in a guest, one after the other.
pub struct Plan<'a> {
    /// As on the command line: `6.1`.
    pub version: &'a str,
    pub steps: &'a [Step<'a>],
    /// Write what the verifier counted as this kernel's budget.
    pub update_budget: bool,
}

/// A step of the guest's: the test program of a name.
pub const fn tests<'a>(name: &'a str, arguments: &'a str) -> Step<'a> {
    Step {
        name,
        program: name,
        arguments,
    }
}

/// A step's program that is no test.
const NETFW: &str = "netfw";

/// `netfw demo`.
pub const DEMO: Step = Step {
    name: "demo",
    program: NETFW,
    arguments: "demo",
};

/// Native XDP on virtio-net. One test after the other: there is one pair of interfaces.
pub const VIRTIO: Step = tests("virtio", "--nocapture --test-threads=1");

pub fn run(plan: &Plan) -> Result<()> {
    let began = Instant::now();
    check_version(plan.version)?;
    if std::env::consts::ARCH != "x86_64" {
        bail!(
            "--kernel boots an x86-64 kernel with this machine's programs, and this machine is {}",
            std::env::consts::ARCH
        );
    }
    let toolchain = setup::run()?;
    for programs in [
        packages::FOR_KERNEL,
        packages::FOR_GUESTS,
        packages::FOR_TESTS,
    ] {
        packages::ensure_programs(programs)?;
    }
    packages::ensure(&packages::LIBRARIES_FOR_TESTS.map(str::to_owned))?;
    let directory = build::target().join("kernel").join(plan.version);
    let image = Image::get(plan.version, &directory)?;
    let netfw = build::netfw(&toolchain)?;
    let programs = plan.steps.iter().map(|step| step.program);
    let names: Vec<&str> = programs.filter(|&program| program != NETFW).collect();
    let tests = programs::build_tests(&toolchain, &names)?;

    let mut archive = Archive::default();
    programs::add_system(&mut archive)?;
    programs::add_own(&mut archive, &netfw, &tests, &directory)?;
    modules::add(&mut archive, &image)?;
    // Found where the test program was compiled to look for it.
    let budgets = workspace().join("tests");
    for budget in budget_files(&budgets)? {
        archive.copy(&budget, &budget)?;
    }
    let budget = budgets.join(format!("verifier-budget-{}.toml", plan.version));
    if plan.update_budget && !budget.exists() {
        // The test writes that of its kernel where there is one, and keeps the head.
        let head = format!(
            "# Instructions that the verifier of Linux {0} may walk through, per program.\n\
             # `cargo xtask verify --kernel {0}` compares; with \
             `--update` it writes what it saw and a tenth more.\n",
            plan.version
        );
        archive.file(&budget, head.as_bytes(), 0o644);
    }
    archive.file("/init", guest::init(plan).as_bytes(), 0o755);
    let initramfs = directory.join("initramfs.cpio");
    archive.write(&initramfs)?;

    let mut totals = Totals::default();
    let outcome = guest::boot(plan, &image, &initramfs, &mut totals)?;
    for step in &outcome.steps {
        println!(
            "Linux {}: {} ended with {} after {} s",
            image.release, step.name, step.status, step.seconds
        );
    }
    println!(
        "total on Linux {}: {} passed, {} failed, {} ignored, in {} s",
        image.release,
        totals.passed,
        totals.failed,
        totals.ignored,
        began.elapsed().as_secs()
    );
    outcome.check(plan, &image)?;
    if let Some(content) = &outcome.budget {
        fs::write(&budget, content)
            .with_context(|| format!("cannot write {}", budget.display()))?;
        println!("wrote {}", budget.display());
    }
    Ok(())
}

/// Arguments for a line of the guest's shell.
pub fn words(arguments: &[OsString]) -> Result<String> {
    let quoted: Result<Vec<String>> = arguments
        .iter()
        .map(|word| match word.to_str() {
            Some(word) => Ok(format!("'{}'", word.replace('\'', "'\\''"))),
            None => bail!("{} is not UTF-8", word.display()),
        })
        .collect();
    Ok(quoted?.join(" "))
}

/// The budget files of all kernels: `verifier-budget*.toml`.
fn budget_files(tests: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in tests.read_dir()? {
        let name = entry?.file_name();
        let is_budget = name
            .to_str()
            .is_some_and(|name| name.starts_with("verifier-budget") && name.ends_with(".toml"));
        if is_budget {
            files.push(tests.join(name));
        }
    }
    Ok(files)
}

/// It becomes part of a path and of a regular expression.
fn check_version(version: &str) -> Result<()> {
    let numbers: Vec<&str> = version.split('.').collect();
    let is_number = |n: &&str| !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit());
    if numbers.len() != 2 || !numbers.iter().all(is_number) {
        bail!("--kernel {version}: it takes a major and a minor number, as in --kernel 6.1");
    }
    Ok(())
}

#[cfg(test)]
mod unit {
    use super::{check_version, words};

    #[test]
    fn the_guests_shell_reads_arguments_as_given() {
        let arguments = ["a b", "don't", "$(x)"].map(Into::into);
        assert_eq!(words(&arguments).unwrap(), r"'a b' 'don'\''t' '$(x)'");
    }

    #[test]
    fn a_version_is_two_numbers() {
        assert!(check_version("6.1").is_ok());
        for wrong in ["", "6", "6.", "6.1.3", "../6", "6.x"] {
            assert!(check_version(wrong).is_err(), "{wrong}");
        }
    }
}
