//! Cleans up after a test process that could not: a Ctrl-C, a SIGKILL, an abort.
//!
//! Values clean up on drop, which covers success and panic. For the rest a shell in a session of
//! its own waits at the other end of a pipe. Whenever this process ends, however it ends, the
//! kernel closes the pipe, and the shell runs the commands that it was sent, the last first.
//! Each command must therefore do nothing where its thing is gone already.

use std::{
    io::Write as _,
    os::{
        fd::{AsRawFd as _, RawFd},
        unix::process::CommandExt as _,
    },
    process::{Child, ChildStdin, Command, Stdio},
    sync::{LazyLock, Mutex},
};

/// Has `command` (a line of shell) run when this process ends.
pub fn at_end(command: &str) {
    with_pipe(|pipe| writeln!(pipe, "{command}").expect("the reaper takes a line"));
}

/// The descriptor that has to stay open until this process ends.
pub(crate) fn pipe() -> RawFd {
    with_pipe(|pipe| pipe.as_raw_fd())
}

fn with_pipe<T>(work: impl FnOnce(&mut ChildStdin) -> T) -> T {
    // Never waited for: it outlives us by design, and init takes it over.
    static REAPER: LazyLock<Mutex<Child>> = LazyLock::new(|| Mutex::new(start()));
    let mut reaper = REAPER.lock().unwrap_or_else(|poison| poison.into_inner());
    work(reaper.stdin.as_mut().expect("stdin is a pipe"))
}

fn start() -> Child {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "trap '' INT TERM HUP; tac | sh"])
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: setsid(2) is async-signal-safe, which is all that may run between fork and exec.
    unsafe {
        shell.pre_exec(|| {
            nix::unistd::setsid()?;
            Ok(())
        });
    }
    shell.spawn().expect("a shell can be started")
}
