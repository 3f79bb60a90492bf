//! SCTP between namespaces, by usrsctp: a whole stack in user space, on raw sockets, for kernels that
//! have none. It checks every CRC32c that it receives.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::IpAddr,
    process::{Child, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use crate::{
    netns::{Namespace, Running},
    wait::{wait_for, wait_until},
};

/// The examples of the Debian package libusrsctp-examples.
const PROGRAMS: &str = "/usr/lib/usrsctp";

/// What the server listens on; it takes no other.
pub const ECHO: u16 = 7;

const SOON: Duration = Duration::from_secs(10);

/// For a client to have an association: one that meets a server that just starts may wait for ever.
const ATTEMPT: Duration = Duration::from_secs(3);

fn program(name: &str) -> String {
    format!("{PROGRAMS}/{name}")
}

/// Sends back what it gets, on port [`ECHO`] of every address.
pub fn echo_server(namespace: &Namespace) -> Running {
    let server = namespace.spawn(&[&program("echo_server")]);
    wait_until("the server's raw socket", SOON, || {
        let sockets = namespace.run(&["cat", "/proc/net/raw6"]);
        sockets.contains(":0084 ")
    });
    server
}

/// An association with an [`echo_server`].
pub struct Association {
    child: Child,
    answers: mpsc::Receiver<String>,
}

impl Association {
    /// The server may not listen yet: then it aborts what it is asked, and is asked again.
    #[track_caller]
    pub fn open(namespace: &Namespace, to: (IpAddr, u16)) -> Self {
        wait_for("an association", SOON, || {
            let mut association = Self::try_open(namespace, to);
            let answer = association.ask_within("hello", ATTEMPT);
            answer.is_some().then_some(association)
        })
    }

    fn try_open(namespace: &Namespace, to: (IpAddr, u16)) -> Self {
        let mut child = namespace
            .command(program("client"))
            .args([to.0.to_string(), to.1.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("usrsctp's client can be started");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let (tell, answers) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = tell.send(line);
            }
        });
        Self { child, answers }
    }

    /// Sends a line of at most 78 bytes and returns what comes back.
    pub fn ask(&mut self, line: &str) -> Option<String> {
        self.ask_within(line, SOON)
    }

    fn ask_within(&mut self, line: &str, time: Duration) -> Option<String> {
        let stdin = self.child.stdin.as_mut().expect("a pipe");
        writeln!(stdin, "{line}").ok()?;
        self.answers.recv_timeout(time).ok()
    }

    /// Ends it, in good order; whether it was.
    pub fn close(mut self) -> bool {
        drop(self.child.stdin.take());
        self.child.wait().is_ok_and(|status| status.success())
    }
}

impl Drop for Association {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
