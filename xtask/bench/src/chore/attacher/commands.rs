//! Processes one after the other, and the time that they take.

use std::{
    fmt,
    io::Write as _,
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

/// Commands that may take so long in all.
pub struct Commands {
    patience: Duration,
    took: Duration,
}

/// They took longer than anybody wants to wait; the last was killed.
#[derive(Debug)]
pub struct TooLong(pub Duration);

impl fmt::Display for TooLong {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "not done after {} s", self.0.as_secs())
    }
}

impl std::error::Error for TooLong {}

impl Commands {
    pub fn new(patience: Duration) -> Self {
        Self {
            patience,
            took: Duration::ZERO,
        }
    }

    /// From the start of each to its end.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// Runs words to their end: what they printed.
    pub fn words(&mut self, words: &[&str]) -> Result<String> {
        let mut command = Command::new(words[0]);
        self.run(command.args(&words[1..]), "")
    }

    /// Runs a command to its end, with `input` to read: what it printed.
    pub fn run(&mut self, command: &mut Command, input: &str) -> Result<String> {
        let left = self.patience.saturating_sub(self.took);
        let what = format!("{command:?}");
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // What it starts must end with it.
            .process_group(0);
        let start = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {what}"))?;
        let group = Pid::from_raw(child.id().cast_signed());
        let (ended, watched) = mpsc::channel::<()>();
        let (output, late) = thread::scope(|scope| {
            let watch = scope.spawn(move || {
                let late = watched.recv_timeout(left) == Err(RecvTimeoutError::Timeout);
                if late {
                    // Its own child: where it has ended by now, nobody has waited for it.
                    let _ = killpg(group, Signal::SIGKILL);
                }
                late
            });
            if let Some(mut stdin) = child.stdin.take() {
                // Where it ends without reading everything, its status tells.
                let _ = stdin.write_all(input.as_bytes());
            }
            let output = child.wait_with_output();
            drop(ended);
            (output, watch.join().unwrap_or(false))
        });
        self.took += start.elapsed();
        if late {
            return Err(TooLong(self.patience).into());
        }
        let output = output.with_context(|| what.clone())?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            // A CNI plugin tells its error on stdout.
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("{what} ended with {}\n{said}{error}", output.status);
        }
        Ok(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_read_their_input_and_print() {
        let mut commands = Commands::new(Duration::from_secs(60));
        let printed = commands.run(&mut Command::new("cat"), "some text");
        assert_eq!(printed.expect("cat ends well"), "some text");
        assert!(commands.took() > Duration::ZERO);
        assert!(commands.words(&["false"]).is_err());
    }

    #[test]
    fn what_takes_too_long_ends_with_all_that_it_started() {
        let mut commands = Commands::new(Duration::from_millis(100));
        let error = commands
            .words(&["sh", "-c", "sleep 1000; true"])
            .expect_err("1000 s are too long");
        assert!(error.downcast_ref::<TooLong>().is_some(), "{error:#}");
    }
}
