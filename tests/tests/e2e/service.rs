//! The agent as a service: what its manager hears.

use std::{ffi::OsString, io::ErrorKind, os::unix::net::UnixDatagram, time::Duration};

use netfw_tests::{Agent, Lab, wait_until};
use nix::sys::signal::Signal;

use crate::setting::{SOON, attach};

/// What the watchdog of these tests waits for; it is told twice as often.
const LIMIT: Duration = Duration::from_millis(500);

/// A service manager's ear.
struct Manager {
    socket: UnixDatagram,
    // Removed with the value.
    directory: tempfile::TempDir,
}

impl Manager {
    fn listen() -> Self {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let socket = UnixDatagram::bind(directory.path().join("notify")).expect("a free path");
        Self { socket, directory }
    }

    fn environment(&self) -> [(&'static str, OsString); 2] {
        let limit = LIMIT.as_micros().to_string();
        [
            (
                "NOTIFY_SOCKET",
                self.directory.path().join("notify").into_os_string(),
            ),
            ("WATCHDOG_USEC", limit.into()),
        ]
    }

    /// What it hears next, if that comes in time.
    fn hears(&self, within: Duration) -> Option<String> {
        let time = Some(within);
        self.socket.set_read_timeout(time).expect("not 0");
        let mut buffer = [0; 256];
        match self.socket.recv(&mut buffer) {
            Ok(length) => Some(String::from_utf8_lossy(&buffer[..length]).into_owned()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("the manager's socket: {error}"),
        }
    }
}

#[test]
fn the_watchdog_hears_of_an_agent_that_lives_and_of_no_other() {
    let lab = Lab::new();
    let manager = Manager::listen();
    let mut agent = Agent::start_in(&lab, &[], manager.environment());
    let none = "STATUS=serving 0 endpoints, 0 publishes";
    assert_eq!(manager.hears(SOON), Some(format!("READY=1\n{none}")));
    for _ in 0..3 {
        assert_eq!(manager.hears(SOON), Some(format!("WATCHDOG=1\n{none}")));
    }
    let web = lab.container("web");
    attach(&agent, "web", &web, &["8080:80"]);
    let some = "WATCHDOG=1\nSTATUS=serving 1 endpoint, 2 publishes";
    wait_until("the endpoint to be told of", SOON, || {
        manager.hears(SOON).as_deref() == Some(some)
    });

    agent.process().signal(Signal::SIGSTOP);
    // What it had told before.
    wait_until("silence", SOON, || manager.hears(2 * LIMIT).is_none());
    agent.process().signal(Signal::SIGCONT);
    assert_eq!(manager.hears(SOON).as_deref(), Some(some));

    agent.stop();
    wait_until("the last word", SOON, || {
        manager.hears(SOON).as_deref() == Some("STOPPING=1")
    });
    assert_eq!(manager.hears(2 * LIMIT), None);
}
