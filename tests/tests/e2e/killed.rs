//! The agent is killed before each step of a change, as far as the kernel and files can tell steps apart: the
//! next start ends in the state before the change or the one after it, and nothing is left behind.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use netfw_tests::{
    Agent, Lab, Namespace,
    fate::{End, Fate},
    netns,
    wait::{wait_at_most, wait_until},
};
use nix::{
    mount::{MntFlags, umount2},
    unistd::Pid,
};
use serde_json::Value;

use crate::setting::SOON;

/// How many steps of each change, chosen at random; `all` for all.
const KILLS: &str = "NETFW_KILLS";
const SAMPLE: usize = 3;
/// A start, traced, on a busy machine.
const LONG: Duration = Duration::from_secs(120);
const STAYS: Duration = Duration::from_millis(1100);

/// A node with a network `app` and an endpoint in it, in a namespace that netfw has made.
struct Site {
    agent: Agent,
    lab: Lab,
    endpoint: String,
}

impl Site {
    fn new() -> Self {
        let lab = Lab::new();
        let agent = Agent::start(&lab);
        let endpoint = format!("kept-{}", agent.instance());
        let site = Self {
            agent,
            lab,
            endpoint,
        };
        site.fill();
        site
    }

    fn fill(&self) {
        for words in [
            &[
                "network",
                "create",
                "app",
                "--subnet",
                "10.99.0.0/24",
                "--subnet",
                "fd99::/64",
            ] as &[_],
            &["network", "create", "other", "--subnet", "10.98.0.0/24"],
            &[
                "endpoint",
                "add",
                &self.endpoint,
                "--network",
                "app",
                "-p",
                "9000:80",
            ],
        ] {
            self.agent.netfw(words);
        }
    }

    /// All that is there of netfw's, but for what each making calls anew.
    fn state(&self, namespaces: &[&str]) -> Vec<String> {
        let Self { agent, lab, .. } = self;
        let mut state = Vec::new();
        for words in [
            &["endpoint", "ls"] as &[&str],
            &["port"],
            &["network", "ls"],
        ] {
            state.push(without_names(agent.json(words)).to_string());
        }
        let tables = agent.json(&["status"])["tables"].clone();
        state.push(format!("tables {tables}"));
        let pins = format!("/sys/fs/bpf/{}", agent.instance());
        state.extend(files(Path::new(&pins)).iter().map(|pin| kind(pin)));
        state.extend(interfaces(&lab.node));
        for name in namespaces {
            for path in [
                format!("/etc/netns/{name}"),
                format!("/run/netfw/{}/etc/{name}", agent.instance()),
                format!("/run/netns/{name}"),
            ] {
                let there = fs::symlink_metadata(&path).is_ok();
                state.push(format!("{path} {there}"));
            }
            let path = format!("/run/netns/{name}");
            if Path::new(&path).exists() {
                state.extend(netns::enter(Path::new(&path), || addresses(name)));
            }
        }
        state.sort();
        state
    }

    /// The state once it stays: the kernel acts on a carrier within a second.
    fn settled(&self, namespaces: &[&str]) -> Vec<String> {
        let mut last = self.state(namespaces);
        let mut since = Instant::now();
        wait_until("the state to stay", LONG, || {
            let now = self.state(namespaces);
            if now != last {
                (last, since) = (now, Instant::now());
            }
            since.elapsed() > STAYS
        });
        last
    }

    /// Which of `wanted` it is, or soon will be: carriers and the like come and go in the kernel's own time.
    #[track_caller]
    fn comes_to(&self, namespaces: &[&str], wanted: &[&[String]], place: &str) -> usize {
        let mut now = Vec::new();
        let found = wait_at_most(SOON, || {
            now = self.state(namespaces);
            wanted.iter().position(|want| *want == now)
        });
        found.unwrap_or_else(|| {
            let all = wanted.iter().map(|want| difference(&now, want));
            let least = all.min_by_key(String::len).expect("one at least");
            panic!("{place}: neither before nor after{least}")
        })
    }
}

/// How `now` differs.
fn difference(now: &[String], want: &[String]) -> String {
    let strange = now.iter().filter(|line| !want.contains(line));
    let missing = want.iter().filter(|line| !now.contains(line));
    let strange: String = strange.map(|line| format!("\n+ {line}")).collect();
    missing.fold(strange, |all, line| format!("{all}\n- {line}"))
}

/// JSON without what is chosen anew for each veth pair.
fn without_names(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            fields.retain(|name, _| !name.starts_with("host_i"));
            for field in fields.values_mut() {
                *field = without_names(field.take());
            }
        }
        Value::Array(all) => {
            for one in all {
                *one = without_names(one.take());
            }
        }
        _ => {}
    }
    value
}

fn files(directory: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).expect("pins are there").flatten() {
        match entry.path() {
            path if path.is_dir() => all.extend(files(&path)),
            path => all.push(path.display().to_string()),
        }
    }
    all
}

/// A pin without the index of its interface: `links/7-container`.
fn kind(pin: &str) -> String {
    let (directory, name) = pin.rsplit_once('/').expect("a path");
    let name = name.trim_start_matches(|c: char| c.is_ascii_digit());
    format!("pin {directory}/{name}")
}

/// The node's interfaces, addresses and routes, and which have our program.
fn interfaces(node: &Namespace) -> Vec<String> {
    let text = node.ip(&["-j", "-d", "link"]);
    let links: Value = serde_json::from_str(&text).expect("ip prints JSON");
    let mut all: Vec<String> = LOOKS.iter().map(|words| stable(&node.ip(words))).collect();
    for link in links.as_array().expect("a list") {
        let name = link["ifname"].as_str().expect("a name");
        let ours = name.starts_with("nf") && name.len() == 10;
        let filters = match ours {
            true => node.run(&["tc", "filter", "show", "dev", name, "ingress"]),
            false => String::new(),
        };
        all.push(format!(
            "link {} {} {} {} {} program {}",
            if ours { "nf" } else { name },
            link["flags"],
            link["master"],
            link["mtu"],
            link["ifalias"],
            filters.contains("netfw_container")
        ));
    }
    all
}

/// What is in the namespace of the calling thread.
fn addresses(name: &str) -> Vec<String> {
    let looks = LOOKS.iter().map(|words| {
        let output = Command::new("ip").args(*words).output();
        let output = output.expect("ip can be started");
        format!(
            "{name}: {}",
            stable(&String::from_utf8_lossy(&output.stdout))
        )
    });
    looks.collect()
}

/// What ip(8) is asked in each namespace.
const LOOKS: [&[&str]; 6] = [
    &["-o", "addr", "show", "scope", "global"],
    &["route"],
    &["-6", "route"],
    &["route", "show", "table", "all", "scope", "link"],
    &["rule"],
    &["-6", "rule"],
];

/// Without indexes of interfaces and numbers of tables, which are new for each veth pair, and without the
/// kernel's own routes for link-local addresses: a bridge has them from its first port on.
fn stable(text: &str) -> String {
    let stable = |word| {
        let is_number = |word: &str| word.parse::<u32>().is_ok_and(|number| number > 255);
        match str::strip_suffix(word, ':') {
            Some(index) if index.parse::<u32>().is_ok() => "#",
            _ if is_number(word) => "#",
            _ => word,
        }
    };
    let lines = text.lines().filter(|line| !line.starts_with("fe80::"));
    // Tables are listed by number.
    let mut lines: Vec<String> = lines
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().map(stable).collect();
            words.join(" ")
        })
        .collect();
    lines.sort();
    lines.join("; ")
}

/// Goes through the steps of `change`, which `undo` takes back.
fn killed_at_each_step(site: &mut Site, namespaces: &[&str], change: &[&str], undo: &[&str]) {
    let before = site.settled(namespaces);
    let run = |site: &mut Site, step: usize| -> (bool, End) {
        let fate = Fate::of(site.agent.process().pid(), step);
        let done = site.agent.output(change).status.success();
        let end = fate.fulfil();
        site.agent.kill();
        site.agent.start_again();
        (done, end)
    };
    // Killed when it is done: that is a step too, and tells how many there are.
    let (done, End { steps, struck }) = run(site, usize::MAX);
    assert!(done && struck.is_none(), "{change:?} is done");
    let after = site.settled(namespaces);
    assert_ne!(before, after, "{change:?} changes something");
    site.agent.netfw(undo);
    site.comes_to(namespaces, &[&before], &format!("{undo:?}"));

    for step in chosen(steps) {
        let (done, End { struck, .. }) = run(site, step);
        let place = format!("{change:?} killed at step {step} of {steps}: {struck:?}");
        eprintln!("{place}");
        if site.comes_to(namespaces, &[&before, &after], &place) == 1 {
            site.agent.netfw(undo);
            let place = format!("{place}, and taken back");
            site.comes_to(namespaces, &[&before], &place);
        } else {
            assert!(!done, "{place}: it was said to be done");
        }
    }
}

/// Some of so many, or all.
fn chosen(steps: usize) -> Vec<usize> {
    match std::env::var(KILLS).as_deref() {
        Ok("all") => (0..steps).collect(),
        number => {
            let number = number.map_or(SAMPLE, |n| n.parse().expect("a number, or all"));
            fastrand::choose_multiple(0..steps, number)
        }
    }
}

/// Runs a command to its end, or until it is `over`, and kills it then or before its step.
fn run_until(step: usize, command: &Command, mut over: impl FnMut() -> bool) -> End {
    // It begins when it is traced.
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "read go; exec \"$0\" \"$@\""])
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = shell.spawn().expect("a shell can be started");
    let fate = Fate::of(Pid::from_raw(child.id().cast_signed()), step);
    let mut stdin = child.stdin.take().expect("it is a pipe");
    stdin.write_all(b"\n").expect("it waits for this");
    wait_until("the end of a command", LONG, || fate.is_over() || over());
    let end = fate.fulfil();
    child.wait().expect("our own child");
    end
}

#[test]
fn adding_and_removing_an_endpoint() {
    let mut site = Site::new();
    let name = format!("killed-{}", site.agent.instance());
    let add = [
        "endpoint",
        "add",
        &name,
        "--network",
        "app",
        "--ip",
        "10.99.0.9",
        "--ip",
        "fd99::9",
        "-p",
        "8080-8089:80-89",
        "-p",
        "8080:80/udp",
        "--allow-from",
        "10.0.0.0/8",
    ];
    let remove = ["endpoint", "rm", &name];
    killed_at_each_step(&mut site, &[&name], &add, &remove);
    site.agent.netfw(&add);
    killed_at_each_step(&mut site, &[&name], &remove, &add);
}

#[test]
fn adding_an_endpoint_without_a_network() {
    let mut site = Site::new();
    let name = format!("killed-{}", site.agent.instance());
    let add = ["endpoint", "add", &name, "--network", "none"];
    killed_at_each_step(&mut site, &[&name], &add, &["endpoint", "rm", &name]);
}

#[test]
fn publishing_and_withdrawing() {
    let mut site = Site::new();
    let name = site.endpoint.clone();
    let publish = [
        "publish",
        &name,
        "8080-8089:80-89",
        "--allow-from",
        "10.0.0.0/8",
    ];
    let unpublish = ["unpublish", &name, "8080-8089:80-89"];
    killed_at_each_step(&mut site, &[&name], &publish, &unpublish);
    site.agent.netfw(&publish);
    killed_at_each_step(&mut site, &[&name], &unpublish, &publish);
}

#[test]
fn connecting_and_disconnecting() {
    let mut site = Site::new();
    let name = site.endpoint.clone();
    let connect = ["network", "connect", "other", &name, "--ip", "10.98.0.9"];
    let disconnect = ["network", "disconnect", "other", &name];
    killed_at_each_step(&mut site, &[&name], &connect, &disconnect);
    site.agent.netfw(&connect);
    killed_at_each_step(&mut site, &[&name], &disconnect, &connect);
}

#[test]
fn creating_and_removing_a_network() {
    let mut site = Site::new();
    let create = [
        "network",
        "create",
        "third",
        "--subnet",
        "10.97.0.0/24",
        "--subnet",
        "fd97::/64",
    ];
    let remove = ["network", "rm", "third"];
    killed_at_each_step(&mut site, &[], &create, &remove);
    site.agent.netfw(&create);
    killed_at_each_step(&mut site, &[], &remove, &create);
}

#[test]
fn applying_a_document() {
    let mut site = Site::new();
    let name = site.endpoint.clone();
    let (new, other) = (format!("new-{name}"), format!("other-{name}"));
    let add = ["endpoint", "add", &other, "--network", "none"];
    site.agent.netfw(&add);
    let was = site.agent.netfw(&["store", "export", "--toml"]);
    // Something comes, something goes, something is another, and something moves.
    let is = was
        .replace("9000:80", "9001:80")
        .replace("[networks.other]", "[networks.third]")
        .replace("10.98.0.0/24", "10.97.0.0/24")
        .replace("10.99.0.", "10.96.0.")
        .replace(
            "network_mode = \"none\"",
            "networks = [\"third\"]\npublish = [\"9002:80\"]",
        );
    assert!(is.contains("9002:80"), "{is}");
    let is = format!("{is}\n[endpoints.{new}]\nnetworks = [\"third\"]\npublish = [\"9000:80\"]\n");
    let files = [was, is].map(|text| {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(text.as_bytes()).expect("room for it");
        file
    });
    let [was, is] = files
        .each_ref()
        .map(|file| file.path().display().to_string());
    let (there, back) = (["apply", "-f", &is], ["apply", "-f", &was]);
    killed_at_each_step(&mut site, &[&name, &new, &other], &there, &back);
}

/// What a kill leaves between two steps, made by hand: by chance the others come by seldom.
#[test]
fn what_was_half_made_is_finished() {
    let mut site = Site::new();
    let name = site.endpoint.clone();
    let before = site.settled(&[&name]);
    let path = Path::new("/run/netns").join(&name);
    site.agent.kill();
    for link in site.lab.node.links() {
        if link.starts_with("netfw") || link.starts_with("nf") {
            site.lab.node.ip(&["link", "set", &link, "alias", ""]);
        }
    }
    site.agent.start_again();
    site.comes_to(&[&name], &[&before], "interfaces without alias");
    site.agent.kill();
    umount2(&path, MntFlags::MNT_DETACH).expect("a namespace is mounted there");
    site.agent.start_again();
    site.comes_to(&[&name], &[&before], "a name without its namespace");
}

#[test]
fn starting() {
    let mut site = Site::new();
    let name = site.endpoint.clone();
    let mut before = site.settled(&[&name]);
    let node = site.lab.node.path().display().to_string();
    let command = site.agent.command(&["agent", "--netns", &node]);
    let start = |site: &Site, step| {
        run_until(step, &command, || {
            site.agent.output(&["status"]).status.success()
        })
    };
    site.agent.kill();
    // What is there, and what is to be made.
    for fresh in [false, true] {
        if fresh {
            site.agent.netfw(&["down"]);
        }
        let steps = start(&site, usize::MAX).steps;
        for step in chosen(steps) {
            if fresh {
                site.agent.netfw(&["down"]);
            }
            let End { struck, .. } = start(&site, step);
            let place = format!("a start killed at step {step} of {steps}: {struck:?}");
            eprintln!("{place}, fresh: {fresh}");
            if fresh {
                site.agent.netfw(&["down"]);
                assert_eq!(site.agent.leftovers(), [""; 0], "{place}");
                site.agent.start_again();
                site.fill();
                // Its prefix of IPv6 is another.
                before = site.settled(&[&name]);
            } else {
                site.agent.start_again();
                site.comes_to(&[&name], &[&before], &place);
            }
            site.agent.kill();
        }
    }
}

#[test]
fn taking_all_down() {
    let mut site = Site::new();
    let command = site.agent.command(&["down"]);
    let down = |site: &mut Site, step| {
        site.agent.kill();
        run_until(step, &command, || false)
    };
    let steps = down(&mut site, usize::MAX).steps;
    assert_eq!(site.agent.leftovers(), [""; 0]);
    for step in chosen(steps) {
        site.agent.start_again();
        site.fill();
        let struck = down(&mut site, step).struck;
        eprintln!("down killed at step {step} of {steps}: {struck:?}");
        site.agent.netfw(&["down"]);
        assert_eq!(site.agent.leftovers(), [""; 0], "{step}: {struck:?}");
        let namespace = Path::new("/run/netns").join(&site.endpoint);
        assert!(!namespace.exists(), "{step}: {struck:?}");
    }
}
