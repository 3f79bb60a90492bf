//! The `netfw` binary: parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    netfw::cli::main()
}
