//! A port that is published is taken: no process of the node can bind it, as if a socket listened there.

use std::{
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
};

use netfw::net::release;
use netfw_tests::{
    Namespace,
    agent::FAILED,
    topology::{NODE, NODE_OUTSIDE},
    wait::wait_for,
    wait_until,
};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
    },
};

use crate::setting::{SOON, Site, attach};

const TCP: SockType = SockType::Stream;
const UDP: SockType = SockType::Datagram;

/// A socket that is bound and nothing else, `at` an address and port. With `only6`, it is `IPV6_V6ONLY`.
fn bound(namespace: &Namespace, kind: SockType, at: &str, only6: bool) -> nix::Result<OwnedFd> {
    let at: SocketAddr = at.parse().expect("address and port");
    let family = match at.ip() {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    namespace.enter(|| {
        let made = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
        // What a server does. It shares with nobody who listens.
        if kind == TCP {
            setsockopt(&made, sockopt::ReuseAddr, &true)?;
        }
        if at.is_ipv6() {
            setsockopt(&made, sockopt::Ipv6V6Only, &only6)?;
        }
        bind(made.as_raw_fd(), &SockaddrStorage::from(at))?;
        Ok(made)
    })
}

#[track_caller]
fn is_taken(namespace: &Namespace, kind: SockType, at: &str, only6: bool) -> bool {
    match bound(namespace, kind, at, only6) {
        Ok(_) => false,
        Err(Errno::EADDRINUSE) => true,
        Err(error) => panic!("{at}: {error}"),
    }
}

#[test]
fn what_a_publish_takes_nobody_can_bind() {
    let site = Site::new(&[
        "8080:80",
        "5300:53/udp",
        "0.0.0.0:7000:70",
        "[::]:7001:71",
        "10.1.0.1:7002:72",
        "[fd00:1::1]:7003:73",
        "127.0.0.1:7004:74",
        "0.0.0.0:7005:75/udp",
        "65535:80",
        "7064-7130:7064-7130",
    ]);
    let node = &site.lab.node;
    let (shared, only6) = (false, true);
    for (kind, at, only6) in [
        (TCP, "0.0.0.0:8080", shared),
        (TCP, "[::]:8080", shared),
        (TCP, "[::]:8080", only6),
        (TCP, "127.0.0.1:8080", shared),
        (TCP, "127.1.2.3:8080", shared),
        (TCP, "10.1.0.1:8080", shared),
        (TCP, "10.2.0.1:8080", shared),
        (TCP, "[::1]:8080", shared),
        (TCP, "[fd00:1::1]:8080", shared),
        (TCP, "[::ffff:0.0.0.0]:8080", shared),
        (TCP, "[::ffff:127.0.0.1]:8080", shared),
        (UDP, "0.0.0.0:5300", shared),
        (UDP, "[::]:5300", only6),
        (UDP, "127.0.0.1:5300", shared),
        (UDP, "[fd00:2::1]:5300", shared),
        // Of IPv4 alone: a socket of both families would have it too.
        (TCP, "0.0.0.0:7000", shared),
        (TCP, "[::]:7000", shared),
        (TCP, "[::ffff:10.1.0.1]:7000", shared),
        (UDP, "[::]:7005", shared),
        (TCP, "[::]:7001", shared),
        (TCP, "[::]:7001", only6),
        (TCP, "[::1]:7001", shared),
        // Of one address.
        (TCP, "0.0.0.0:7002", shared),
        (TCP, "[::]:7002", shared),
        (TCP, "10.1.0.1:7002", shared),
        (TCP, "[::ffff:10.1.0.1]:7002", shared),
        (TCP, "[::]:7003", only6),
        (TCP, "[fd00:1::1]:7003", shared),
        (TCP, "0.0.0.0:7004", shared),
        (TCP, "127.0.0.1:7004", shared),
        (TCP, "0.0.0.0:65535", shared),
        (TCP, "0.0.0.0:7064", shared),
        (TCP, "[::]:7130", shared),
    ] {
        assert!(is_taken(node, kind, at, only6), "{kind:?} {at} {only6}");
    }
    for (kind, at, only6) in [
        (TCP, "0.0.0.0:0", shared),
        (TCP, "[::]:0", shared),
        (UDP, "0.0.0.0:8080", shared),
        (UDP, "[::]:8080", shared),
        (TCP, "[::]:5300", shared),
        (TCP, "[::]:8081", shared),
        (TCP, "[::]:7000", only6),
        (TCP, "[::1]:7000", shared),
        (UDP, "[::]:7005", only6),
        (TCP, "0.0.0.0:7001", shared),
        (TCP, "[::ffff:0.0.0.0]:7001", shared),
        (TCP, "127.0.0.1:7002", shared),
        (TCP, "10.2.0.1:7002", shared),
        (TCP, "[::ffff:127.0.0.1]:7002", shared),
        (TCP, "[::]:7002", only6),
        (TCP, "[::1]:7003", shared),
        (TCP, "[fd00:2::1]:7003", shared),
        (TCP, "0.0.0.0:7003", shared),
        (TCP, "10.1.0.1:7004", shared),
        (TCP, "127.0.0.2:7004", shared),
        (TCP, "0.0.0.0:65534", shared),
        (TCP, "[::]:7063", shared),
        (TCP, "[::]:7131", shared),
    ] {
        assert!(!is_taken(node, kind, at, only6), "{kind:?} {at} {only6}");
    }
    // Other namespaces have ports of their own.
    for other in [&site.web, &site.lab.client, &site.lab.world] {
        for (kind, at) in [(TCP, "[::]:8080"), (UDP, "0.0.0.0:5300")] {
            assert!(!is_taken(other, kind, at, shared), "{kind:?} {at}");
        }
    }
    // What has no ports.
    assert!(node.succeeds(&["ping", "-c", "1", "-I", "10.1.0.1", "10.1.0.2"]));
}

#[test]
fn a_port_is_free_again_when_nothing_is_published_there() {
    let mut site = Site::new(&["10.1.0.1:8080:80", "127.0.0.1:8080:81"]);
    let lab = &site.lab;
    let node = &lab.node;
    let taken = |at: &str| is_taken(node, TCP, at, false);
    // Each has its own address; both are in the way of every address.
    site.agent.netfw(&["unpublish", "web", "10.1.0.1:8080:80"]);
    assert!(!taken("10.1.0.1:8080") && taken("127.0.0.1:8080"));
    assert!(taken("0.0.0.0:8080") && taken("[::]:8080"));
    site.agent.netfw(&["unpublish", "web", "127.0.0.1:8080:81"]);
    assert!(!taken("127.0.0.1:8080") && !taken("0.0.0.0:8080") && !taken("[::]:8080"));

    // Whoever comes first has it, and what was refused leaves nothing behind.
    let own = node.enter(|| TcpListener::bind((NODE, 9000)).expect("free"));
    let udp = node.enter(|| UdpSocket::bind((NODE_OUTSIDE, 9001)).expect("free"));
    let ports = ["9000:80", "8999:79", "9001:81/udp"];
    let mut words = vec!["publish", "web", "8990-8998:90-98"];
    words.extend(ports);
    let said = site.agent.refuses(FAILED, &words);
    assert!(said.contains("holds 10.1.0.1:9000/tcp"), "{said}");
    for at in ["0.0.0.0:8990", "0.0.0.0:8999", "127.0.0.1:9000"] {
        assert!(!taken(at), "{at}");
    }
    // Bound, and about to listen: kernels tell that from 6.8 on.
    drop(own);
    let about = bound(node, TCP, "10.1.0.1:9000", false).expect("free");
    let said = site.agent.refuses(FAILED, &words);
    let holder = match release::version() {
        Some(version) if version < (6, 8) => "holds 10.2.0.1:9001/udp",
        _ => "holds 10.1.0.1:9000/tcp",
    };
    assert!(said.contains(holder), "{said}");
    drop((about, udp));
    site.agent.netfw(&words);
    for at in ["0.0.0.0:8990", "0.0.0.0:8999", "127.0.0.1:9000"] {
        assert!(taken(at), "{at}");
    }

    // Without an agent, and with another: nobody slips in.
    let all = ["0.0.0.0:8990", "[::]:8998", "127.0.0.1:9000", "[::1]:9000"];
    site.agent.kill();
    assert!(all.iter().all(|at| taken(at)));
    assert!(is_taken(node, UDP, "0.0.0.0:9001", false));
    site.agent.start_again();
    assert!(all.iter().all(|at| taken(at)));
    site.agent.netfw(&["unpublish", "web", "8990-8998:90-98"]);
    assert!(!taken("0.0.0.0:8990") && taken("[::1]:9000"));
    site.agent.netfw(&["endpoint", "rm", "web"]);
    assert!(!taken("127.0.0.1:9000") && !is_taken(node, UDP, "0.0.0.0:9001", false));

    // With its namespace.
    let short = lab.container("short");
    attach(&site.agent, "short", &short, &["8080:80"]);
    assert!(taken("[::]:8080"));
    short.delete();
    wait_until("the port of what is gone to be free", SOON, || {
        !taken("[::]:8080")
    });
    // And with everything.
    site.agent.netfw(&["endpoint", "rm", "short"]);
    attach(&site.agent, "again", &site.web, &["8080:80"]);
    assert!(taken("[::]:8080"));
    site.agent.netfw(&["down"]);
    assert!(!taken("[::]:8080"));
}

#[test]
fn a_process_that_was_first_after_a_reboot_is_told_of() {
    let mut site = Site::new(&["8080:80"]);
    site.agent.stop();
    // And with them what keeps the port.
    site.agent.forget_pins();
    // The kernel ends a program in its own time when its last pin goes.
    let _first = wait_for("nobody to keep the port", SOON, || {
        let first = site.lab.node.enter(|| TcpListener::bind("0.0.0.0:8080"));
        first.ok()
    });
    site.agent.start_again();
    let said = site.agent.process().stderr();
    let told = "what comes from outside goes to 0.0.0.0:8080:80/tcp";
    assert!(said.contains(told), "{said}");
}
