//! The `netfw` binary: parse, run, exit code. By another name it is a plugin for container runtimes.

use std::process::ExitCode;

fn main() -> ExitCode {
    match netfw::cni::is_called(std::env::args_os().next().as_deref()) {
        true => netfw::cni::main(),
        false => netfw::cli::main(),
    }
}
