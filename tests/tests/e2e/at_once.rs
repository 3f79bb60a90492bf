//! Many requests at once: each ends right or fails cleanly.

use std::{
    collections::HashSet,
    fs,
    path::Path,
    process::{Child, Stdio},
};

use netfw_tests::{Agent, Lab};
use serde_json::Value;

const MANY: usize = 100;

fn start(agent: &Agent, words: &[&str]) -> Child {
    let mut command = agent.command(&[&["-o", "json"], words].concat());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("netfw starts")
}

/// What those said that succeeded, and what those said that did not.
fn end(children: Vec<Child>) -> (Vec<Value>, Vec<String>) {
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for child in children {
        let output = child.wait_with_output().expect("it ends");
        match output.status.success() {
            true => done.push(serde_json::from_slice(&output.stdout).expect("JSON")),
            false => failed.push(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }
    (done, failed)
}

#[test]
fn a_hundred_endpoints() {
    let lab = Lab::new();
    let agent = Agent::start(&lab);
    let names: Vec<String> = (0..MANY)
        .map(|n| format!("c{n}-{}", std::process::id()))
        .collect();
    let add = |name: &String| start(&agent, &["endpoint", "add", name, "-p", "0:80"]);
    let (added, failed) = end(names.iter().map(add).collect());
    assert_eq!(failed, [""; 0]);
    let distinct = |what: &dyn Fn(&Value) -> Value| {
        let all: HashSet<String> = added.iter().map(|e| what(e).to_string()).collect();
        assert_eq!(all.len(), MANY, "{all:?}");
    };
    distinct(&|e| e["ip"].clone());
    distinct(&|e| e["ip6"].clone());
    distinct(&|e| e["mac"].clone());
    distinct(&|e| e["host_interface"].clone());
    distinct(&|e| e["publishes"][0]["host_ports"].clone());
    // Each can send: to the gateway's name server at least.
    for name in [&names[0], &names[MANY / 2], &names[MANY - 1]] {
        let known = agent.netfw(&["exec", name, "--", "getent", "ahostsv4", &names[1]]);
        assert!(known.contains(added_ip(&added, &names[1])), "{known}");
    }
    let remove = |name: &String| start(&agent, &["endpoint", "rm", name]);
    let (_, failed) = end(names.iter().map(remove).collect());
    assert_eq!(failed, [""; 0]);
    assert_eq!(agent.json(&["endpoint", "ls"]), serde_json::json!([]));
    for name in &names {
        assert!(!Path::new("/run/netns").join(name).exists(), "{name}");
    }
}

fn added_ip<'a>(added: &'a [Value], name: &str) -> &'a str {
    let endpoint = added.iter().find(|e| e["name"] == name);
    endpoint.and_then(|e| e["ip"].as_str()).expect("an address")
}

#[test]
fn one_name_one_port_one_address_for_many() {
    let lab = Lab::new();
    let agent = Agent::start(&lab);
    let pid = std::process::id();
    let same = format!("same{pid}");
    let add = |_| start(&agent, &["endpoint", "add", &same]);
    let (added, failed) = end((0..20).map(add).collect());
    assert_eq!(added.len(), 1, "{failed:?}");
    assert!(
        failed.iter().all(|said| said.contains("exists")),
        "{failed:?}"
    );
    // The same port, and the same address.
    for words in [["-p", "8080:80"], ["--ip", "172.18.0.77"]] {
        let names: Vec<String> = (0..10).map(|n| format!("d{n}-{pid}")).collect();
        let add = |name: &String| start(&agent, &[&["endpoint", "add", name], &words[..]].concat());
        let (added, failed) = end(names.iter().map(add).collect());
        assert_eq!((added.len(), failed.len()), (1, 9), "{failed:?}");
        for name in &names {
            let there = added[0]["name"] == **name;
            assert_eq!(Path::new("/run/netns").join(name).exists(), there, "{name}");
        }
        let winner = added[0]["name"].as_str().expect("a name");
        agent.netfw(&["endpoint", "rm", winner]);
    }
    agent.netfw(&["endpoint", "rm", &same]);
}

#[test]
fn one_of_two_documents() {
    let lab = Lab::new();
    let agent = Agent::start(&lab);
    let name = format!("web{}", std::process::id());
    let directory = tempfile::tempdir().expect("a temporary directory");
    let files = ["a", "b"].map(|network| {
        let file = directory.path().join(network);
        let port = if network == "a" { 8080 } else { 8081 };
        let text = format!(
            "[networks.{network}]\n[endpoints.{name}]\nnetworks = [\"{network}\"]\npublish = [\"{port}:80\"]\n"
        );
        fs::write(&file, text).expect("room for it");
        file.to_str().expect("a path of letters").to_owned()
    });
    for round in 0..3 {
        let apply = |n: usize| start(&agent, &["apply", "-f", &files[n % 2]]);
        let (done, failed) = end((0..8).map(apply).collect());
        assert!(!done.is_empty(), "{failed:?}");
        // What they had planned was not so any more.
        let outdated = |said: &String| said.contains("was changed since the plan was made");
        assert!(failed.iter().all(outdated), "round {round}: {failed:?}");
        let plans = files
            .each_ref()
            .map(|file| agent.json(&["apply", "--dry-run", "-f", file])["steps"].clone());
        let reached = plans
            .iter()
            .filter(|plan| **plan == Value::Array(Vec::new()));
        assert_eq!(reached.count(), 1, "round {round}: {plans:?}");
        assert!(Path::new("/run/netns").join(&name).exists());
    }
    agent.netfw(&["endpoint", "rm", &name]);
}
