//! The agent's log in the journal: a journal of our own, where the machine has none.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::ErrorKind,
    os::unix::{fs::MetadataExt as _, net::UnixDatagram},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use netfw_tests::{Lab, agent::binary, netns::Running, reaper, wait_until};
use nix::sys::signal::Signal;

use crate::setting::SOON;

/// How long an agent may take to serve where another machine is emulated.
const START: Duration = Duration::from_secs(120);

/// systemd-journald(8).
const DIRECTORY: &str = "/run/systemd/journal";
const SOCKET: &str = "/run/systemd/journal/socket";

/// What listens there.
struct Journal(UnixDatagram);

impl Journal {
    /// None where the machine has one, which is not ours to take.
    fn stand_in() -> Option<Self> {
        if Path::new(DIRECTORY).exists() {
            return None;
        }
        fs::create_dir_all(DIRECTORY).expect("root may");
        reaper::at_end(&format!("rm -rf {DIRECTORY}"));
        let socket = UnixDatagram::bind(SOCKET).expect("free");
        socket.set_nonblocking(true).expect("a socket");
        Some(Self(socket))
    }

    /// The next entry, if there is one by now. Values with line breaks have their length before them
    /// (systemd.io/JOURNAL_NATIVE_PROTOCOL).
    fn next(&self) -> Option<BTreeMap<String, String>> {
        let mut buffer = vec![0; 1 << 16];
        let length = match self.0.recv(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
            Err(error) => panic!("the journal's socket: {error}"),
        };
        let mut rest = &buffer[..length];
        let mut entry = BTreeMap::new();
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&rest[..end]).into_owned();
            rest = &rest[end + 1..];
            let (name, value) = match line.split_once('=') {
                Some((name, value)) => (name.to_owned(), value.to_owned()),
                None => {
                    let (length, value) = rest.split_at(8);
                    let length = u64::from_le_bytes(length.try_into().expect("eight")) as usize;
                    rest = &value[length + 1..];
                    (line, String::from_utf8_lossy(&value[..length]).into_owned())
                }
            };
            entry.insert(name, value);
        }
        Some(entry)
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(DIRECTORY);
    }
}

/// An agent that believes what `stream` says of its stderr, until it serves.
fn agent(lab: &Lab, instance: &str, stderr: &File, stream: &str) -> Running {
    let mut command = Command::new(binary());
    command
        .args(["--instance", instance, "agent", "--netns", lab.node.name()])
        .env("JOURNAL_STREAM", stream);
    let agent = Running::start_with_stderr(command, stderr);
    wait_until("the agent", START, || netfw(instance, &["status"]));
    agent
}

fn netfw(instance: &str, words: &[&str]) -> bool {
    let mut command = Command::new(binary());
    command.args(["--instance", instance]).args(words);
    let output = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    output.expect("it can be started").success()
}

#[test]
fn the_journal_gets_fields_and_stderr_gets_lines() {
    // First: what was open before is not, after.
    let lab = Lab::new();
    let Some(journal) = Journal::stand_in() else {
        eprintln!("this machine has a journal of its own: not tried");
        return;
    };
    let instance = format!("journal-{}", std::process::id());
    reaper::at_end(&format!(
        "'{}' down --instance {instance}",
        binary().display()
    ));
    let stderr = tempfile::tempfile().expect("a file");
    let meta = stderr.metadata().expect("a file");
    let stream = format!("{}:{}", meta.dev(), meta.ino());

    let mut running = agent(&lab, &instance, &stderr, &stream);
    let app = lab.container("app");
    assert!(netfw(
        &instance,
        &["endpoint", "add", "app", "--netns", app.name()]
    ));
    let mut entries = Vec::new();
    wait_until("the endpoint in the journal", SOON, || {
        entries.extend(std::iter::from_fn(|| journal.next()));
        entries.iter().any(|entry| {
            entry
                .get("NETFW_ENDPOINT")
                .is_some_and(|name| name == "app")
                && entry["MESSAGE"] == "added"
                && entry["PRIORITY"] == "6"
        })
    });
    let entries: Vec<_> = entries
        .into_iter()
        .filter(|entry| !entry.is_empty())
        .collect();
    for entry in &entries {
        assert_eq!(entry["NETFW_INSTANCE"], instance);
        assert_eq!(entry["SYSLOG_IDENTIFIER"], "netfw");
    }
    assert!(
        entries
            .iter()
            .any(|entry| entry.get("NETFW_NETWORK").is_some_and(|n| n == "bridge"))
    );
    running.signal(Signal::SIGTERM);
    assert!(running.wait(SOON).success());
    assert_eq!(
        stderr.metadata().expect("a file").len(),
        0,
        "all is in the journal"
    );
    while journal.next().is_some() {}

    // Inherited from a service, and meant for another stderr.
    let mut running = agent(&lab, &instance, &stderr, "1:1");
    running.signal(Signal::SIGTERM);
    assert!(running.wait(SOON).success());
    assert!(stderr.metadata().expect("a file").len() > 0, "lines");
    assert_eq!(journal.next(), None);
    assert!(netfw(&instance, &["down"]));
}
