//! `netfw exec`: the command becomes the process.

use netfw_tests::agent::{FAILED, USAGE};

use crate::setting::Site;

#[test]
fn a_command_runs_inside_and_its_exit_status_passes_through() {
    let Site { agent, ip, .. } = &Site::new(&[]);
    let shown = agent.netfw(&[
        "exec", "web", "--", "ip", "-o", "-4", "addr", "show", "eth0",
    ]);
    assert!(shown.contains(&ip.to_string()), "{shown}");
    for status in [0, 1, 2, 7, 255] {
        let line = format!("exit {status}");
        let output = agent.output(&["exec", "web", "--", "sh", "-c", &line]);
        assert_eq!(output.status.code(), Some(status));
        assert!(output.stderr.is_empty(), "netfw adds nothing of its own");
    }
    use std::os::unix::process::ExitStatusExt as _;
    let output = agent.output(&["exec", "web", "--", "sh", "-c", "kill -KILL $$"]);
    assert_eq!(output.status.signal(), Some(9), "so does a signal");
}

#[test]
fn options_of_the_command_are_the_command_s() {
    let Site { agent, .. } = &Site::new(&[]);
    let output = agent.netfw(&["exec", "web", "--", "echo", "-o", "json", "--instance", "x"]);
    assert_eq!(output, "-o json --instance x\n");
    // As with `docker exec` and `ip netns exec`.
    let output = agent.netfw(&["exec", "web", "echo", "-o", "json", "--", "--instance", "x"]);
    assert_eq!(output, "-o json -- --instance x\n");
    let output = agent.netfw(&["exec", "-o", "json", "web", "echo", "--output"]);
    assert_eq!(output, "--output\n");
}

#[test]
fn the_network_is_another_and_what_goes_with_it() {
    let Site { agent, ip, .. } = &Site::new(&[]);
    // bpffs, this directory, files: all as here.
    let line = "pwd; stat -f -c %T /sys/fs/bpf; cat /etc/passwd";
    let inside = agent.netfw(&["exec", "web", "--", "sh", "-c", line]);
    let sh = |line: &str| {
        let mut here = std::process::Command::new("sh");
        let output = here.args(["-c", line]).output().expect("a shell");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(inside, sh(line));
    let inside = |words: &[&str]| agent.netfw(&[&["exec", "web", "--"], words].concat());
    assert_eq!(inside(&["hostname"]), "web\n");
    assert_eq!(inside(&["cat", "/etc/hostname"]), "web\n");
    let known = inside(&["getent", "hosts", "web"]);
    assert!(known.contains("web"), "{known}");
    assert!(inside(&["cat", "/etc/hosts"]).contains(&format!("{ip}\tweb")));
    // And nothing of it comes out.
    assert_ne!(sh("hostname"), "web\n");
    assert!(!sh("cat /etc/hosts").contains(&ip.to_string()));
}

#[test]
fn who_makes_namespaces_by_name_finds_their_files() {
    let Site { agent, .. } = &Site::new(&[]);
    let name = format!("made{}", std::process::id());
    let added = agent.json(&["endpoint", "add", &name]);
    let ip = added["ip"].as_str().expect("an address");
    let mut command = std::process::Command::new("ip");
    command.args(["netns", "exec", &name, "cat", "/etc/hosts"]);
    let shown = String::from_utf8(command.output().expect("ip").stdout).expect("text");
    assert!(shown.contains(&format!("{ip}\t{name}")), "{shown}");
    agent.netfw(&["endpoint", "rm", &name]);
    let link = std::path::Path::new("/etc/netns").join(&name);
    assert!(
        link.symlink_metadata().is_err(),
        "{} is left",
        link.display()
    );
}

#[test]
fn what_cannot_be_run_is_told() {
    let Site { agent, .. } = &Site::new(&[]);
    // As shells and docker tell it.
    let said = agent.refuses(127, &["exec", "web", "--", "/no/such/program"]);
    assert!(said.contains("/no/such/program"), "{said}");
    let said = agent.refuses(FAILED, &["exec", "nobody", "--", "true"]);
    assert!(said.contains("there is no endpoint \"nobody\""), "{said}");
    agent.refuses(USAGE, &["exec", "web"]);
    agent.refuses(USAGE, &["exec", "web", "--"]);
}
