//! netfw's development commands. `main` parses and dispatches; each subcommand is a file.
//!
//! `xtask` must build on a machine that has nothing but a Rust toolchain, because its first job
//! is to bring the rest: it depends on no crate of the workspace.

mod bench;
mod build;
mod command;
mod deny;
mod endure;
mod fuzz;
mod kernel;
mod linker;
mod package;
mod packages;
mod run;
mod setup;
mod test;
mod toolchain;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "netfw's development commands")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or install what building needs: the source of `core` and a matching bpf-linker
    Setup,
    /// Build target/release/netfw, the eBPF programs inside it
    Build,
    /// Build, then run `netfw demo`, or `netfw ARGS` with `cargo xtask run -- ARGS`
    Run(run::Arguments),
    /// Run all tests: host tests as you, packet and end-to-end tests as root
    Test(test::Arguments),
    /// Send random packets through every hook, and check what comes out
    Fuzz(fuzz::Arguments),
    /// Add and remove endpoints by the thousand, restart by the hundred, change at random under traffic, and see
    /// that nothing is lost or left
    Endure(endure::Arguments),
    /// Print what the verifier walks through per program and how long a packet takes, and hold both to
    /// the committed budgets
    Verify(verify::Arguments),
    /// Build the Debian package: binary, unit, configuration, man pages, completions
    Package(package::Arguments),
    /// Check licences, sources and known faults of all crates (cargo-deny)
    Deny(deny::Arguments),
    /// Compare netfw with iptables and plain routing, side by side on this machine
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Setup => setup::run().map(|_| ()),
        Command::Build => build::run().map(|_| ()),
        Command::Run(arguments) => run::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
        Command::Endure(arguments) => endure::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Package(arguments) => package::run(&arguments),
        Command::Deny(arguments) => deny::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
