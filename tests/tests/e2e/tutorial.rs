//! Pages of docs/ that are copied from a terminal, run as they stand there.
//!
//! With `NETFW_TUTORIAL=write` in the environment, what comes out is written into the page.

use std::{
    fs::{self, Permissions},
    io::{BufRead as _, BufReader, Write as _},
    net::Ipv6Addr,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

use netfw_tests::{
    Namespace,
    agent::binary,
    docker::{CLIENT, Docker},
    podman::Podman,
    runtime::IMAGE,
    wait::wait_at_most,
};

use crate::setting::SOON;

/// For one line of the page.
const PATIENCE: Duration = Duration::from_secs(30);

/// A page, and the namespaces that it makes, which are to be gone at its end.
struct Page {
    name: &'static str,
    namespaces: &'static [&'static str],
}

const TUTORIAL: Page = Page {
    name: "tutorial.md",
    namespaces: &[
        "laptop", "host1", "shop", "store", "lone", "api", "db", "safe",
    ],
};

const BY_HAND: Page = Page {
    name: "by-hand.md",
    namespaces: &["guest", "host2", "cache"],
};

/// A line of the page.
enum Line {
    Prose(String),
    Command(String),
    Output(String),
}

fn lines(text: &str) -> Vec<Line> {
    let mut console = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        let fence = line.starts_with("```");
        lines.push(match line.strip_prefix("# ") {
            Some(command) if console => Line::Command(command.to_owned()),
            None if console && !fence => Line::Output(line.to_owned()),
            _ => Line::Prose(line.to_owned()),
        });
        if fence {
            console = line == "```console";
        }
    }
    lines
}

/// A shell, in which `netfw` is the one under test, with an instance of its own.
struct Shell {
    child: Child,
    stdin: ChildStdin,
    said: Receiver<String>,
    instance: String,
    namespaces: &'static [&'static str],
    /// Has the programs that are the tests' own.
    _path: tempfile::TempDir,
}

impl Shell {
    /// `programs` are what the page calls beside netfw, and the command that each stands for. Programs, and no
    /// functions: who ends a job is to end what it has become.
    fn start(page: &Page, programs: &[(&str, &str)]) -> Self {
        let mut command = Command::new("bash");
        command
            .args(["--norc", "-m"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // It complains of having no terminal; what commands say, it is told to send elsewhere.
            .stderr(Stdio::null());
        let mut child = command.spawn().expect("bash is there");
        let mut stdin = child.stdin.take().expect("a pipe");
        let stdout = child.stdout.take().expect("a pipe");
        let (sender, said) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let name = page.name.trim_end_matches(".md");
        let instance = format!("{name}{}", std::process::id());
        let path = tempfile::tempdir().expect("a directory");
        let netfw = format!("{} --instance {instance}", binary().display());
        for (name, line) in programs.iter().chain(&[("netfw", &netfw[..])]) {
            let program = path.path().join(name);
            fs::write(&program, format!("#!/bin/sh\nexec {line} \"$@\"\n")).expect("our own file");
            fs::set_permissions(&program, Permissions::from_mode(0o755)).expect("our own file");
        }
        let path_line = format!("exec 2>&1; PATH={}:$PATH", path.path().display());
        writeln!(stdin, "{path_line}").expect("bash reads");
        Self {
            child,
            stdin,
            said,
            instance,
            namespaces: page.namespaces,
            _path: path,
        }
    }

    /// What a command says.
    #[track_caller]
    fn run(&mut self, command: &str) -> Vec<String> {
        const END: &str = "-- the end of a command --";
        writeln!(self.stdin, "{command}\necho '{END}'").expect("bash reads");
        let mut lines = Vec::new();
        loop {
            match self.said.recv_timeout(PATIENCE) {
                Ok(line) if line == END => break,
                Ok(line) => lines.push(line),
                Err(error) => panic!("{command}: {error}; it said {lines:#?}"),
            }
        }
        // What bash says of its jobs.
        lines.retain(|line| !is_job(line));
        lines
    }
}

/// `[1]+  Terminated   …`, `[1] 1234`.
fn is_job(line: &str) -> bool {
    let number = line.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    number.is_some_and(|(number, _)| number.parse::<u32>().is_ok())
}

impl Drop for Shell {
    /// Whatever the page has left.
    fn drop(&mut self) {
        let _ = writeln!(self.stdin, "kill $(jobs -p); exit");
        let ended = || self.child.try_wait().ok().flatten();
        if wait_at_most(SOON, ended).is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let quiet = |command: &mut Command| {
            let _ = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        };
        quiet(Command::new(binary()).args(["--instance", &self.instance, "down"]));
        for name in self.namespaces {
            if fs::exists(format!("/run/netns/{name}")).unwrap_or(false) {
                quiet(Command::new("ip").args(["netns", "del", name]));
            }
        }
    }
}

/// What is the same each time of a line: words, but for what is random or a matter of time.
fn shape(line: &str) -> Vec<String> {
    let shaped = |word: &str| {
        let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        let (address, length) = bare.split_once('/').unwrap_or((bare, ""));
        if let Ok(ip) = address.parse::<Ipv6Addr>()
            && ip.is_unique_local()
        {
            // The /48 is random.
            let segments = ip.segments();
            return format!("{:x?}/{length}", &segments[3..]);
        }
        // A host side's name comes of the instance's.
        let (interface, peer) = bare.split_once('@').unwrap_or((bare, ""));
        let digits = interface.strip_prefix("nf").unwrap_or("");
        if digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return format!("nf…@{peer}");
        }
        // Its MAC address, of its name.
        if bare.starts_with("fe:") && bare.len() == 17 {
            return "fe:…".into();
        }
        word.to_owned()
    };
    line.split_whitespace().map(shaped).collect()
}

#[test]
fn the_tutorial_s_page_is_what_happens() {
    happens(&TUTORIAL, &[]);
}

#[test]
fn the_page_of_containers_by_hand_is_what_happens() {
    let host = Namespace::new("runtimes");
    let (Some(docker), Some(podman)) = (Docker::start(&host, &[]), Podman::start(&host)) else {
        return;
    };
    let busybox = "docker.io/library/busybox";
    docker.docker(&["tag", IMAGE, busybox]);
    podman.podman(&["tag", IMAGE, busybox]);
    let docker = format!("{CLIENT} --host {}", docker.address());
    let podman = format!("sh {}", podman.program().display());
    happens(&BY_HAND, &[("docker", &docker), ("podman", &podman)]);
}

/// Runs the page. `programs` are those of [`Shell::start`].
#[track_caller]
fn happens(page: &Page, programs: &[(&str, &str)]) {
    for name in page.namespaces {
        assert!(
            !fs::exists(format!("/run/netns/{name}")).unwrap_or(false),
            "the page needs the name {name}: `ip netns del {name}`, or `netfw down`, first"
        );
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs")
        .join(page.name);
    let text = fs::read_to_string(&file).expect("the page");
    let lines = lines(&text);
    let mut shell = Shell::start(page, programs);
    let mut written = String::new();
    let mut wrong = Vec::new();
    let mut rest = &lines[..];
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match first {
            Line::Prose(line) | Line::Output(line) => written += &format!("{line}\n"),
            Line::Command(command) => {
                let count = rest.iter().take_while(|l| matches!(l, Line::Output(_)));
                let (expected, after) = rest.split_at(count.count());
                rest = after;
                let said = shell.run(command);
                written += &format!("# {command}\n");
                for line in &said {
                    written += &format!("{}\n", line.trim_end());
                }
                let expected: Vec<&str> = expected
                    .iter()
                    .filter_map(|l| match l {
                        Line::Output(line) => Some(&line[..]),
                        _ => None,
                    })
                    .collect();
                let said_shape = said.iter().map(|line| shape(line));
                if !said_shape.eq(expected.iter().map(|line| shape(line))) {
                    wrong.push(format!("# {command}\n{}", said.join("\n")));
                }
            }
        }
    }
    if std::env::var_os("NETFW_TUTORIAL").is_some_and(|it| it == "write") {
        fs::write(&file, written).expect("the page");
    } else {
        assert!(
            wrong.is_empty(),
            "NETFW_TUTORIAL=write writes the page anew; not as it stands there:\n{}",
            wrong.join("\n")
        );
    }
    for name in page.namespaces {
        let left = fs::exists(format!("/run/netns/{name}")).unwrap_or(false);
        assert!(!left, "{name} is left");
    }
}
