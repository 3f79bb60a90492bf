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
}

#[test]
fn only_the_network_is_another() {
    let Site { agent, .. } = &Site::new(&[]);
    // bpffs, this directory, the machine's name: all as here.
    let inside = agent.netfw(&[
        "exec",
        "web",
        "--",
        "sh",
        "-c",
        "pwd; hostname; stat -f -c %T /sys/fs/bpf",
    ]);
    let here = std::process::Command::new("sh")
        .args(["-c", "pwd; hostname; stat -f -c %T /sys/fs/bpf"])
        .output()
        .expect("a shell");
    assert_eq!(inside, String::from_utf8_lossy(&here.stdout));
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
