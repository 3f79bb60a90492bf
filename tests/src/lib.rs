//! Fixtures for netfw's packet and end-to-end tests. Everything here needs root.
//!
//! * [`wait`]: wait for a condition, with a deadline
//! * [`netns`]: network namespaces and processes in them, gone when their value is dropped
//! * [`crowd`]: many empty namespaces at once
//! * [`docker`], [`podman`]: real ones, with directories of their own
//! * [`files`]: open files that no other test's programs hold
//! * [`reaper`]: undoes what is left even when the test process is killed
//! * [`topology`]: [`Lab`], a client, a node and the outside world in one line
//! * [`agent`]: a `netfw agent` that serves a lab's node, and the command line towards it
//! * [`programs`]: nginx, echo servers, tcpdump and the like, in a namespace
//! * [`pty`]: a program on a terminal
//! * [`load`]: traffic that says what it missed
//! * [`raw`]: sockets of any IP protocol
//! * [`runtime`]: what tests of container runtimes share
//! * [`sctp`]: an SCTP stack in user space
//! * [`site`]: the programs, and a small world in their maps
//! * [`sockets`]: sockets with what the standard library has no words for
//! * [`packet`]: builds packets, good and damaged ones, and checks those that come back
//! * [`stun`]: how a NAT behaves, as RFC 5780 finds out
//! * [`tap`]: what a device receives
//! * [`testrun`]: runs TC and XDP programs on a packet, without a wire
//! * [`tunnel`]: a wire between interfaces without Ethernet header
//! * [`xdp`]: what shows that packets go by XDP
//!
//! Tests run side by side in one process and several processes side by side on one machine:
//! every name that is global (namespaces, instances) carries the process id and a number.
//!
//! A fixture that cannot be set up panics with the facts; a test has nothing better to do.

pub mod agent;
pub mod crowd;
pub mod docker;
pub mod fate;
pub mod files;
pub mod flood;
pub mod link;
pub mod load;
pub mod netns;
pub mod packet;
pub mod podman;
pub mod programs;
pub mod pty;
pub mod raw;
pub mod reaper;
pub mod runtime;
pub mod sctp;
pub mod site;
pub mod sockets;
pub mod stun;
pub mod tap;
pub mod testrun;
pub mod topology;
pub mod tunnel;
pub mod wait;
pub mod xdp;

pub use agent::Agent;
pub use crowd::Crowd;
pub use netns::{Namespace, Running};
pub use topology::Lab;
pub use wait::wait_until;

use std::sync::atomic::{AtomicU32, Ordering};

/// A number that this process has not used yet.
fn serial() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Panics where the tests cannot work, with the reason instead of a dozen puzzling errors.
pub fn require_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "these tests make network namespaces and load BPF programs: run them as root (`cargo xtask test` does)"
    );
}
