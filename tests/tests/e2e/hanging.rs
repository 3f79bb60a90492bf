//! An agent that does not answer: commands say so, and end when they are told to.

use std::time::Duration;

use netfw_tests::{Agent, Lab, Running, agent::FAILED, wait_until};
use nix::sys::signal::Signal;

use crate::setting::SOON;

/// `--for 1`, and what an agent gets at least.
const GIVEN_UP: Duration = Duration::from_secs(40);

/// What it says on stderr soon.
#[track_caller]
fn says(running: &Running, what: &str) {
    wait_until(what, SOON, || running.stderr().contains(what));
}

#[test]
fn who_waits_for_it_says_so_and_ends() {
    let lab = Lab::new();
    let mut agent = Agent::start(&lab);
    let pid = agent.process().pid();
    agent.process().signal(Signal::SIGSTOP);
    let start = |words: &[&str]| Running::start(agent.command(words));
    let mut watchers = Vec::new();
    for words in [&["monitor"] as &[_], &["trace", "--proto", "tcp"]] {
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            watchers.push((start(words), signal));
        }
    }
    let mut brief = start(&["monitor", "--for", "1"]);
    let mut status = start(&["status"]);
    let waits = format!("netfw: waiting for the agent (process {pid}), which does not answer");
    let remedy = format!("`kill -CONT {pid}` has it go on");
    for (mut watcher, signal) in watchers {
        says(&watcher, &waits);
        watcher.signal(signal);
        assert!(watcher.wait(SOON).success(), "{signal}");
    }
    says(&status, &waits);
    says(&status, &remedy);
    let given_up = brief.wait(GIVEN_UP);
    assert_eq!(given_up.code(), Some(FAILED));
    says(&brief, "has not answered for 10 s");

    agent.process().signal(Signal::SIGCONT);
    assert!(status.wait(SOON).success());
    let told = status.stderr();
    assert_eq!(told.matches(&waits).count(), 1, "{told}");
    assert_eq!(agent.output(&["status"]).stderr, b"");
}
