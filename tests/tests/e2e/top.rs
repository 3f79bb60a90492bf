//! `netfw top` on a terminal.

use netfw_tests::{agent::FAILED, programs::curl, pty::Pty, topology::NODE, wait_until};
use nix::sys::signal::Signal;

use crate::setting::{SOON, Site};

/// What tells a terminal to show its other screen, and to go back.
const TAKEN: &str = "\x1b[?1049h";
const GIVEN_BACK: &str = "\x1b[?1049l";
const CURSOR_SHOWN: &str = "\x1b[?25h";

/// Has all drawn anew until it says that: a word, or several in one style other than the terminal's own, or the
/// blanks between them are skipped.
#[track_caller]
fn sees(top: &mut Pty, what: &str) {
    let mut columns = 120;
    wait_until(what, SOON, || {
        columns = if columns == 120 { 121 } else { 120 };
        top.resize(columns, 40);
        netfw_tests::wait::wait_at_most(std::time::Duration::from_millis(700), || {
            top.output().contains(what).then_some(())
        })
        .is_some()
    });
}

#[test]
fn rates_are_seen_keys_work_and_the_agent_may_come_and_go() {
    let mut site = Site::new(&["8080:80"]);
    let mut top = Pty::start(site.agent.command(&["top"]), 120, 40);
    wait_until("the screen to be taken", SOON, || {
        top.output().contains(TAKEN)
    });
    sees(&mut top, "0.0.0.0:8080:80/tcp");
    sees(&mut top, "pkt/s");
    top.press("3");
    assert!(curl(&site.lab.client, NODE, 8080, "/").is_some());
    sees(&mut top, "10.1.0.1:8080");
    top.press("4");
    sees(&mut top, "spoofed-mac");
    top.press("?");
    sees(&mut top, "Ctrl-C");
    top.press("?2");

    site.agent.kill();
    sees(&mut top, "no answer for ");
    sees(&mut top, "web");
    site.agent.start_again();
    sees(&mut top, "q quit");

    site.agent.process().signal(Signal::SIGSTOP);
    sees(&mut top, "it is stopped");
    site.agent.process().signal(Signal::SIGCONT);
    sees(&mut top, "q quit");

    top.press("q");
    let (status, same) = top.end(SOON);
    assert!(status.success(), "{status}");
    assert!(same, "the terminal's modes are as they were");
    wait_until("the screen to be given back", SOON, || {
        let said = top.output();
        said.contains(GIVEN_BACK) && said.contains(CURSOR_SHOWN)
    });
}

#[test]
fn a_signal_gives_the_terminal_back() {
    let site = Site::new(&[]);
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
        let mut top = Pty::start(site.agent.command(&["top", "-n", "3600"]), 80, 24);
        wait_until("a first look", SOON, || top.output().contains("q quit"));
        top.signal(signal);
        let (status, same) = top.end(SOON);
        assert!(status.success(), "{signal}: {status}");
        assert!(same, "{signal}");
        wait_until("the screen to be given back", SOON, || {
            top.output().contains(GIVEN_BACK)
        });
    }
}

#[test]
fn without_a_terminal_or_an_agent_it_says_so() {
    let mut site = Site::new(&[]);
    let said = site.agent.refuses(FAILED, &["top"]);
    assert!(
        said.contains("stdout is none") && said.contains("netfw stats --watch"),
        "{said}"
    );
    let said = site.agent.refuses(FAILED, &["-o", "json", "top"]);
    assert!(said.contains("\"kind\": \"invalid\""), "{said}");

    site.agent.stop();
    let mut top = Pty::start(site.agent.command(&["top"]), 80, 24);
    let (status, same) = top.end(SOON);
    assert_eq!((status.code(), same), (Some(FAILED), true));
    wait_until("its words", SOON, || {
        top.output().contains("no agent is running")
    });
    assert!(!top.output().contains(TAKEN));
}
