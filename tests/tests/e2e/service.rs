//! The agent as a service: what its manager hears, and what it may do.

use std::{
    ffi::OsString,
    fs,
    io::ErrorKind,
    net::TcpListener,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        net::UnixDatagram,
    },
    path::Path,
    process::Command,
    time::Duration,
};

use netfw::agent::capability::NEEDED;
use netfw_tests::{
    Agent, Lab, Namespace, Running,
    agent::{FAILED, binary},
    topology::NODE,
    wait_until,
};
use nix::sys::signal::Signal;

use crate::setting::{SOON, Site, attach};

/// What the watchdog of these tests waits for; it is told twice as often.
const LIMIT: Duration = Duration::from_millis(500);
/// nobody's, in every Debian.
const NOBODY: &str = "65534";

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

#[test]
fn the_agent_has_the_capabilities_that_it_needs_and_no_more() {
    let mut site = Site::new(&["8080:80"]);
    let tasks = format!("/proc/{}/task", site.agent.process().pid());
    let needed = NEEDED
        .iter()
        .fold(0, |mask, (capability, _)| mask | capability.bitmask());
    let needed = format!("{needed:016x}");
    let mut threads = 0;
    for task in fs::read_dir(tasks).expect("it runs").flatten() {
        // Some come and go.
        let Ok(status) = fs::read_to_string(task.path().join("status")) else {
            continue;
        };
        threads += 1;
        for (key, value) in [
            ("CapPrm", needed.as_str()),
            ("CapEff", &needed),
            ("CapBnd", &needed),
            ("CapInh", "0000000000000000"),
            ("CapAmb", "0000000000000000"),
            ("NoNewPrivs", "1"),
        ] {
            let line = format!("{key}:\t{value}");
            assert!(status.lines().any(|l| l == line), "{line}, not: {status}");
        }
    }
    assert!(threads > 1, "{threads}");
}

#[test]
fn an_agent_that_lacks_a_capability_names_it_and_leaves_nothing() {
    let node = Namespace::new("node");
    let instance = format!("lacks-{}", std::process::id());
    for (capability, _) in NEEDED {
        let name = capability.to_string();
        let less = name.trim_start_matches("CAP_").to_lowercase();
        let refused = Command::new("setpriv")
            .arg(format!("--bounding-set=-{less}"))
            .arg(binary())
            .args(["--instance", &instance, "agent", "--netns", node.name()])
            .output()
            .expect("setpriv can be started");
        assert_eq!(refused.status.code(), Some(FAILED), "{name}");
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains(&format!("needs {name}, for ")), "{said}");
        for left in ["/run/netfw", "/var/lib/netfw", "/sys/fs/bpf"] {
            let left = Path::new(left).join(&instance);
            assert!(!left.exists(), "{} is left behind", left.display());
        }
    }
}

/// `words` as another user than root.
fn as_nobody(words: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command
        .arg(format!("--reuid={NOBODY}"))
        .arg(format!("--regid={NOBODY}"))
        .args(["--clear-groups", "--"])
        .args(words);
    command
}

#[test]
fn what_belongs_to_other_users_is_within_reach() {
    let lab = Lab::new();
    let directory = tempfile::tempdir().expect("a directory can be made");
    let file = directory.path().join("netfw.toml");
    fs::write(&file, "socket_group = \"nogroup\"\n").expect("a file can be written");
    let options = ["--config", file.to_str().expect("UTF-8")];
    let agent = Agent::start_with(&lab, &options);
    let socket = format!("/run/netfw/{}/agent.sock", agent.instance());
    let socket = fs::metadata(socket).expect("the agent listens");
    assert_eq!(
        (socket.uid(), socket.gid().to_string().as_str()),
        (0, NOBODY)
    );

    // A process that holds a port.
    let held = lab
        .node
        .enter(|| TcpListener::bind((NODE, 8080)).expect("free"));
    let holder = Running::hold(as_nobody(&["sleep", "600"]), held);
    wait_until("it to be nobody's", SOON, || {
        fs::metadata(format!("/proc/{}/fd", holder.pid())).is_ok_and(|of| of.uid() != 0)
    });
    let web = lab.container("web");
    attach(&agent, "web", &web, &[]);
    let said = agent.refuses(FAILED, &["publish", "web", "8080:80"]);
    let name = format!("sleep (process {})", holder.pid());
    assert!(said.contains(&name), "{said}");

    // A process in a namespace that is to be attached.
    let app = lab.container("app");
    let inside = app.enter(|| Running::start(as_nobody(&["sleep", "600"])));
    wait_until("it to be nobody's", SOON, || {
        fs::metadata(format!("/proc/{}/ns", inside.pid())).is_ok_and(|of| of.uid() != 0)
    });
    let pid = inside.pid().to_string();
    agent.netfw(&["endpoint", "add", "app", "--pid", &pid]);
    agent.netfw(&["endpoint", "rm", "app"]);

    // A namespace below a directory that only its owner may search.
    let private = directory.path().join("private");
    fs::create_dir(&private).expect("a directory can be made");
    let path = private.join("app");
    std::os::unix::fs::symlink(app.path(), &path).expect("a link can be made");
    fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).expect("it is ours");
    let nobody = NOBODY.parse().ok();
    std::os::unix::fs::chown(&private, nobody, nobody).expect("root may");
    let path = path.to_str().expect("UTF-8");
    agent.netfw(&["endpoint", "add", "app", "--netns", path]);
    agent.netfw(&["endpoint", "rm", "app"]);
}
