//! The fixtures themselves, without netfw: what the other tests stand on must hold.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    process::{Command, Stdio},
    time::Duration,
};

use netfw_tests::{
    Lab, Namespace,
    topology::{CLIENT, FAR, FAR6, NODE, NODE6, WORLD, WORLD6},
    wait_until,
};

const SOON: Duration = Duration::from_secs(5);

fn ping(from: &Namespace, to: std::net::IpAddr) -> bool {
    from.succeeds(&["ping", "-n", "-c1", "-W3", &to.to_string()])
}

#[test]
fn a_node_that_routes_connects_client_and_world() {
    let lab = Lab::new();
    for near in [NODE, NODE6] {
        assert!(ping(&lab.client, near), "the client reaches {near}");
    }
    assert!(!ping(&lab.client, WORLD), "the client has no route yet");

    lab.route_through_node();
    assert!(!ping(&lab.client, WORLD), "the node does not forward yet");

    lab.node.sysctl("ipv4/ip_forward", "1");
    lab.node.sysctl("ipv6/conf/all/forwarding", "1");
    // Changing IPv6 forwarding resets the node's routes for a moment.
    for far in [WORLD, FAR, WORLD6, FAR6] {
        wait_until(&format!("the client to reach {far}"), SOON, || {
            ping(&lab.client, far)
        });
    }
}

#[test]
fn sockets_opened_inside_belong_to_the_namespace() {
    let lab = Lab::new();
    let listener = lab
        .node
        .enter(|| TcpListener::bind((NODE, 8080)).expect("the node has its address"));
    let mut stream = lab
        .client
        .enter(|| TcpStream::connect((NODE, 8080)).expect("the client reaches the node"));
    let (mut accepted, from) = listener.accept().expect("a connection waits");
    assert_eq!(from.ip(), CLIENT);
    writeln!(accepted, "hello").expect("the client reads");
    drop(accepted);
    let mut line = String::new();
    BufReader::new(&mut stream)
        .read_line(&mut line)
        .expect("the node wrote a line");
    assert_eq!(line, "hello\n");
}

#[test]
fn nothing_is_left_after_a_panic() {
    let names = std::sync::Mutex::new(Vec::new());
    let result = std::panic::catch_unwind(|| {
        let lab = Lab::new();
        let sleeper = lab.client.spawn(&["sleep", "600"]);
        *names.lock().expect("one thread") = vec![
            format!("/run/netns/{}", lab.client.name()),
            format!("/run/netns/{}", lab.node.name()),
            format!("/run/netns/{}", lab.world.name()),
            format!("/proc/{}", sleeper.pid()),
        ];
        panic!("a test that fails, as this test wants");
    });
    assert!(result.is_err());
    let names = names.into_inner().expect("one thread");
    assert_eq!(names.len(), 4);
    for name in names {
        assert!(!std::path::Path::new(&name).exists(), "{name} is left");
    }
}

/// Started by the next test; without the variable there is nothing to do.
#[test]
fn makes_a_lab_and_waits_to_be_killed() {
    if std::env::var_os(KILLED).is_none() {
        return;
    }
    let lab = Lab::new();
    let _sleeper = lab.client.spawn(&["sleep", "600"]);
    println!("lab {}", lab.client.name());
    // Our parent kills us long before.
    wait_until("SIGKILL", Duration::from_secs(60), || false);
}

const KILLED: &str = "NETFW_TEST_TO_BE_KILLED";

#[test]
fn nothing_is_left_after_sigkill() {
    let mut child = Command::new(std::env::current_exe().expect("a running program has a path"))
        .args(["--exact", "fixtures::makes_a_lab_and_waits_to_be_killed"])
        .arg("--nocapture")
        .env(KILLED, "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program can be started again");
    let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let name = lines
        .map_while(Result::ok)
        .find_map(|line| line.split_once("lab ").map(|(_, name)| name.to_owned()))
        .expect("the child tells its namespace");
    let inside = format!("/run/netns/{name}");
    assert!(std::path::Path::new(&inside).exists());
    child.kill().expect("our own child");
    child.wait().expect("our own child");
    let prefix = name
        .strip_suffix("client")
        .expect("the client's")
        .to_owned();
    let prefix = prefix.rsplitn(3, '-').last().expect("nft-PID").to_owned() + "-";
    wait_until("the reaper to delete all namespaces", SOON, || {
        std::fs::read_dir("/run/netns").is_ok_and(|mut entries| {
            !entries.any(|entry| {
                entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            })
        })
    });
}
