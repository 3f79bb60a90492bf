//! `--network none|host|container:NAME`, as `docker run` has them.

use netfw_tests::{
    Agent, Lab,
    agent::{FAILED, USAGE},
    programs::{Nginx, curl, ping},
    topology::{NODE, WORLD},
};

use crate::setting::{attach, text};

#[test]
fn none_is_a_namespace_with_nothing_but_lo() {
    let lab = Lab::new();
    let agent = Agent::start(&lab);
    let name = format!("none{}", std::process::id());
    let added = agent.json(&["endpoint", "add", &name, "--network", "none"]);
    assert_eq!(
        (&added["network"], &added["state"]),
        (&"none".into(), &"up".into())
    );
    assert!(added["ip"].is_null() && added["interface"].is_null());
    let links = agent.netfw(&["exec", &name, "--", "ip", "-o", "link"]);
    assert_eq!(links.lines().count(), 1, "{links}");
    assert!(links.contains("lo:") && links.contains("UP"), "{links}");
    let said = agent.refuses(FAILED, &["publish", &name, "8080:80"]);
    assert!(said.contains("network mode none"), "{said}");
    let said = agent.refuses(FAILED, &["network", "connect", "bridge", &name]);
    assert!(said.contains("joins no network"), "{said}");
    agent.netfw(&["endpoint", "rm", &name]);
    assert!(!std::path::Path::new("/run/netns").join(&name).exists());
}

#[test]
fn host_is_the_node_itself() {
    let lab = Lab::new();
    let agent = Agent::start(&lab);
    agent.netfw(&["endpoint", "add", "tool", "--network", "host"]);
    let links = agent.netfw(&["exec", "tool", "--", "ip", "-o", "link"]);
    assert!(
        links.contains("netfw0"),
        "the node's bridge is there: {links}"
    );
    let table = agent.netfw(&["endpoint", "ls"]);
    assert!(
        table
            .lines()
            .any(|l| l.starts_with("tool") && l.contains("host")),
        "{table}"
    );
    for (words, said) in [
        (&["-p", "8080:80"][..], "the node's own addresses and ports"),
        (&["--ip", "172.18.0.9"], "neither address nor MAC"),
        (&["--netns", "x"], "neither netns nor pid"),
    ] {
        let all = [&["endpoint", "add", "other", "--network", "host"], words].concat();
        let told = agent.refuses(FAILED, &all);
        assert!(told.contains(said), "{words:?}: {told}");
    }
    agent.netfw(&["endpoint", "rm", "tool"]);
}

#[test]
fn a_container_shares_another_s_namespace() {
    let lab = Lab::new();
    let mut agent = Agent::start(&lab);
    let web = lab.container("web");
    let _nginx = Nginx::start(&web, "web", &[80]);
    let ip = attach(&agent, "web", &web, &["8080:80"]);
    let side = agent.json(&["endpoint", "add", "side", "--network", "container:web"]);
    assert_eq!(text(&side["network"]), "container:web");
    assert_eq!(
        side["netns"],
        agent.json(&["endpoint", "inspect", "web"])["netns"]
    );
    for _ in 0..2 {
        let page = agent.netfw(&["exec", "side", "--", "curl", "-s", "http://127.0.0.1/"]);
        assert_eq!(page, _nginx.page(80));
        let own = agent.netfw(&[
            "exec", "side", "--", "ip", "-o", "-4", "addr", "show", "eth0",
        ]);
        assert!(own.contains(&ip.to_string()), "{own}");
        agent.kill();
        agent.start_again();
    }
    for (words, said) in [
        (
            &["endpoint", "add", "a", "--network", "container:side"][..],
            "container:web",
        ),
        (
            &["endpoint", "add", "a", "--network", "container:a"],
            "its own namespace",
        ),
        (
            &["endpoint", "add", "a", "--network", "container:nobody"],
            "no endpoint \"nobody\"",
        ),
        (&["endpoint", "rm", "web"], "shared by side"),
        (&["publish", "side", "8081:80"], "those of endpoint \"web\""),
        (&["network", "create", "host"], "host"),
    ] {
        let told = agent.refuses(FAILED, words);
        assert!(told.contains(said), "{words:?}: {told}");
    }
    agent.refuses(USAGE, &["endpoint", "add", "a", "--network", "container:"]);
    assert!(curl(&lab.client, NODE, 8080, "/").is_some());
    agent.netfw(&["endpoint", "rm", "side"]);
    assert!(curl(&lab.client, NODE, 8080, "/").is_some());
    agent.netfw(&["endpoint", "rm", "web"]);
}

#[test]
fn a_process_that_runs_already_gets_its_interface() {
    let lab = Lab::new();
    let agent = Agent::start(&lab);
    // As `docker run --net=none` leaves one: a namespace without a name.
    let mut command = std::process::Command::new("unshare");
    command.args(["--net", "sleep", "600"]);
    let mut running = netfw_tests::Running::start(command);
    let pid = running.pid().to_string();
    netfw_tests::wait_until("unshare", crate::setting::SOON, || {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm"));
        comm.is_ok_and(|comm| comm.trim() == "sleep")
    });
    agent.netfw(&["endpoint", "add", "app", "--pid", &pid]);
    let inside = |words: &[&str]| {
        let all = [&["exec", "app", "--"], words].concat();
        agent.netfw(&all)
    };
    let links = inside(&["ip", "-o", "link"]);
    for name in ["lo:", "eth0@"] {
        let line = links.lines().find(|line| line.contains(name));
        assert!(line.is_some_and(|line| line.contains("UP")), "{links}");
    }
    assert!(inside(&["ip", "route"]).starts_with("default via "));
    assert!(inside(&["ping", "-n", "-c1", "-W3", &WORLD.to_string()]).contains("1 received"));
    assert!(ping(&lab.client, NODE));
    agent.netfw(&["endpoint", "rm", "app"]);
    running.stop();
}
