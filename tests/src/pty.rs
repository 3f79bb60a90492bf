//! A program on a terminal.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::{AsRawFd as _, OwnedFd},
    process::{Child, Command, ExitStatus},
    sync::{Arc, Mutex},
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    pty::{OpenptyResult, Winsize, openpty},
    sys::{
        signal::{Signal, kill},
        termios::{Termios, tcgetattr},
    },
    unistd::Pid,
};

use crate::wait::wait_at_most;

pub struct Pty {
    child: Child,
    master: File,
    /// Held, so that the terminal is there when the program has gone.
    slave: OwnedFd,
    before: Termios,
    output: Arc<Mutex<Vec<u8>>>,
}

fn size(columns: u16, rows: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

impl Pty {
    /// Starts a program on a terminal of its own, of that many columns and rows.
    #[track_caller]
    pub fn start(mut command: Command, columns: u16, rows: u16) -> Self {
        let OpenptyResult { master, slave } =
            openpty(&size(columns, rows), None).expect("a terminal can be made");
        for end in [&master, &slave] {
            // Or programs that are started later have them, too.
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("a descriptor");
        }
        let end = || slave.try_clone().expect("a descriptor");
        let before = tcgetattr(&slave).expect("it is a terminal");
        let child = command
            .env("TERM", "xterm")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .expect("the program can be started");
        let master = File::from(master);
        let output = Arc::new(Mutex::new(Vec::new()));
        {
            let (mut master, output) = (master.try_clone().expect("a descriptor"), output.clone());
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                // It fails when nobody has the other end any longer.
                while let Ok(length @ 1..) = master.read(&mut buffer) {
                    output.lock().expect("no panic").extend(&buffer[..length]);
                }
            });
        }
        Self {
            child,
            master,
            slave,
            before,
            output,
        }
    }

    pub fn press(&mut self, keys: &str) {
        self.master
            .write_all(keys.as_bytes())
            .expect("it takes keys");
    }

    /// As when somebody pulls at the window's corner: programs draw all anew. What was written before is
    /// forgotten.
    pub fn resize(&mut self, columns: u16, rows: u16) {
        self.output.lock().expect("no panic").clear();
        let size = size(columns, rows);
        // SAFETY: TIOCSWINSZ reads a `Winsize`, which outlives the call.
        let done =
            unsafe { nix::libc::ioctl(self.master.as_raw_fd(), nix::libc::TIOCSWINSZ, &size) };
        assert_eq!(done, 0, "the terminal takes a size");
        // It is nobody's controlling terminal, so the kernel tells nobody.
        self.signal(Signal::SIGWINCH);
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).expect("our own child");
    }

    /// What was written to the terminal, with its control sequences.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().expect("no panic")).into_owned()
    }

    /// Waits for the program's end: its status, and whether the terminal is as it was before.
    #[track_caller]
    pub fn end(&mut self, deadline: Duration) -> (ExitStatus, bool) {
        let ended = wait_at_most(deadline, || self.child.try_wait().expect("our own child"));
        let Some(status) = ended else {
            panic!("it still runs: {}", self.output());
        };
        let after = tcgetattr(&self.slave).expect("it is a terminal");
        (status, after == self.before)
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
