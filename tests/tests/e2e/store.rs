//! The store in trouble: a full disk, a damaged file, another version; and `netfw store`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use netfw_tests::{
    Agent, Lab,
    agent::{FAILED, binary},
    programs::curl,
    topology::NODE,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::setting::{Site, text};

fn home(agent: &Agent) -> PathBuf {
    Path::new("/var/lib/netfw").join(agent.instance())
}

fn file(agent: &Agent) -> PathBuf {
    home(agent).join("state.redb")
}

/// Goes on although the agent does not.
fn is_served(site: &Site) -> bool {
    curl(&site.lab.client, NODE, 8080, "/") == Some(site.nginx.page(80))
}

/// `netfw store import -` with a document.
fn import(agent: &Agent, document: &str) -> std::process::Output {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("saved.json");
    fs::write(&path, document).expect("our own directory");
    let mut command = agent.command(&["store", "import", "-"]);
    command.stdin(fs::File::open(&path).expect("just written"));
    command.output().expect("netfw can be started")
}

#[track_caller]
fn imports(agent: &Agent, document: &str) -> String {
    let output = import(agent, document);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn refuses_import(agent: &Agent, document: &str) -> String {
    let output = import(agent, document);
    assert_eq!(output.status.code(), Some(FAILED), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// An agent that cannot start says why; no packet is lost by it.
fn does_not_start(site: &Site) -> String {
    let node = site.lab.node.path().display().to_string();
    let output = Command::new(binary())
        .args([
            "agent",
            "--netns",
            &node,
            "--instance",
            site.agent.instance(),
        ])
        .output()
        .expect("netfw can be started");
    assert_eq!(output.status.code(), Some(FAILED));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_store_that_is_lost_takes_nothing_with_it() {
    let mut site = Site::new(&["8080:80"]);
    site.agent.stop();
    let kept = home(&site.agent).join("kept");
    fs::rename(file(&site.agent), &kept).expect("it is there");
    let said = does_not_start(&site);
    assert!(said.contains("is lost"), "{said}");
    assert!(is_served(&site));
    assert!(!file(&site.agent).exists());
    fs::write(file(&site.agent), "").expect("our own");
    let said = does_not_start(&site);
    assert!(said.contains("is lost"), "{said}");
    assert!(is_served(&site));
    fs::rename(&kept, file(&site.agent)).expect("our own");
    site.agent.start_again();
    assert!(is_served(&site));
}

/// A disk with room for the store, and not for much more, over an instance's directory.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn over(directory: PathBuf) -> Self {
        let options = Some("size=3m");
        mount(
            Some("small"),
            &directory,
            Some("tmpfs"),
            MsFlags::empty(),
            options,
        )
        .expect("root mounts");
        Self(directory)
    }

    fn fill(&self) {
        let full = fs::write(self.0.join("filler"), vec![0; 4 << 20]).expect_err("it is small");
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    }

    fn make_room(&self) {
        fs::remove_file(self.0.join("filler")).expect("it is there");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_changes_nothing_and_is_got_over() {
    let mut site = Site::new(&["8080:80"]);
    site.agent.stop();
    let kept = fs::read(file(&site.agent)).expect("the store");
    let disk = SmallDisk::over(home(&site.agent));
    fs::write(file(&site.agent), kept).expect("there is room");
    site.agent.start_again();
    disk.fill();
    let before = site.agent.json(&["endpoint", "ls"]);
    let mut refused = 0;
    // What is free in the file is used first: records of some 50 KB soon fill that.
    let ports: Vec<String> = (1..=1000).map(|port: u16| port.to_string()).collect();
    for n in 0..200 {
        let name = format!("full{n}");
        let mut words = vec!["endpoint", "add", &name, "--network", "none"];
        words.extend(["--netns", site.web.name()]);
        words.extend(ports.iter().flat_map(|port| ["--expose", port]));
        let output = site.agent.output(&words);
        if output.status.success() {
            continue;
        }
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("No space left on device"), "{said}");
        refused += 1;
        if refused == 3 {
            break;
        }
    }
    assert_eq!(refused, 3, "the disk is full");
    let status = site.agent.netfw(&["status"]);
    assert!(status.contains("could not be written"), "{status}");
    assert!(is_served(&site));
    let now = site.agent.json(&["endpoint", "ls"]);
    disk.make_room();
    // The agent that met the full disk goes on.
    for endpoint in now.as_array().expect("a list") {
        if !before.as_array().expect("a list").contains(endpoint) {
            site.agent
                .netfw(&["endpoint", "rm", text(&endpoint["name"])]);
        }
    }
    assert_eq!(site.agent.json(&["endpoint", "ls"]), before);
    site.agent.netfw(&["publish", "web", "8081:81"]);
    assert_eq!(site.agent.json(&["status"])["warnings"], json!([]));
    site.agent.kill();
    site.agent.start_again();
    assert_eq!(site.agent.json(&["port"]).as_array().map(Vec::len), Some(4));
    // `netfw down` cannot remove what something is mounted on.
    site.agent.stop();
    drop(disk);
}

#[test]
fn a_damaged_store_is_told_and_replaced_while_packets_pass() {
    let mut site = Site::new(&["8080:80"]);
    let agent = &site.agent;
    let saved = agent.netfw(&["store", "export"]);
    assert!(
        agent
            .netfw(&["store", "check"])
            .contains("nothing is wrong")
    );
    site.agent.kill();
    // Without an agent it is the same.
    assert_eq!(site.agent.netfw(&["store", "export"]), saved);
    assert!(
        site.agent
            .netfw(&["store", "check"])
            .contains("nothing is wrong")
    );

    fs::write(file(&site.agent), b"rubbish").expect("the store is a file");
    let said = does_not_start(&site);
    for phrase in ["cannot be opened", "netfw store import", "goes on"] {
        assert!(said.contains(phrase), "{said}");
    }
    assert!(is_served(&site));
    site.agent.refuses(FAILED, &["store", "check"]);
    site.agent
        .refuses(FAILED, &["store", "export", "--salvage"]);
    let said = imports(&site.agent, &saved);
    assert!(said.contains("imported 1 network, 1 endpoint;"), "{said}");
    assert_eq!(
        fs::read(home(&site.agent).join("state.redb.old")).expect("it is kept"),
        b"rubbish"
    );
    assert!(is_served(&site));
    site.agent.start_again();
    assert!(is_served(&site));
    assert_eq!(site.agent.netfw(&["store", "export"]), saved);
}

#[test]
fn what_an_imported_store_does_not_want_goes() {
    let mut site = Site::new(&["8080:80"]);
    let saved = site.agent.netfw(&["store", "export"]);
    let name = format!("later-{}", site.agent.instance());
    site.agent.netfw(&["network", "create", "app"]);
    site.agent.netfw(&[
        "endpoint",
        "add",
        &name,
        "--network",
        "app",
        "-p",
        "8081:80",
    ]);
    let namespace = Path::new("/run/netns").join(&name);
    assert!(namespace.exists());

    // Not under a running agent, and not what contradicts itself.
    let said = refuses_import(&site.agent, &saved);
    assert!(said.contains("stop it first"), "{said}");
    site.agent.stop();
    let document: Value = serde_json::from_str(&saved).expect("JSON");
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut document = document.clone();
        change(&mut document);
        document.to_string()
    };
    let twin = |document: &mut Value| {
        let mut twin = document["endpoints"][0].clone();
        twin["name"] = json!("twin");
        document["endpoints"]
            .as_array_mut()
            .expect("a list")
            .push(twin);
    };
    for (document, phrase) in [
        ("{".to_owned(), "no document"),
        (changed(&|d| d["version"] = json!(99)), "version 99"),
        (
            changed(&|d| d["networks"] = json!([])),
            "which is not there",
        ),
        (changed(&twin), "have the same"),
        (
            changed(&|d| d["endpoints"][0]["attachments"][0]["ip4"] = json!("10.0.0.1")),
            "10.0.0.1",
        ),
    ] {
        let said = refuses_import(&site.agent, &document);
        assert!(said.contains(phrase), "{phrase}: {said}");
    }
    site.agent.start_again();
    assert!(namespace.exists());
    assert_eq!(
        site.agent
            .json(&["endpoint", "ls"])
            .as_array()
            .map(Vec::len),
        Some(2)
    );

    site.agent.stop();
    let said = imports(&site.agent, &saved);
    assert!(said.contains(&name), "{said}");
    site.agent.start_again();
    assert!(is_served(&site));
    assert!(!namespace.exists());
    assert_eq!(site.agent.netfw(&["store", "export"]), saved);
    let links = site.lab.node.links();
    assert_eq!(
        links
            .iter()
            .filter(|link| link.starts_with("netfw"))
            .count(),
        1,
        "{links:?}"
    );
}

#[test]
fn an_address_that_was_changed_in_the_document_is_had() {
    let mut site = Site::new(&["8080:80"]);
    let saved = site.agent.netfw(&["store", "export"]);
    let mut document: Value = serde_json::from_str(&saved).expect("JSON");
    let ip = &mut document["endpoints"][0]["attachments"][0]["ip4"];
    let (network, _) = text(ip).rsplit_once('.').expect("an address");
    let moved = format!("{network}.77");
    *ip = json!(moved);
    site.agent.stop();
    imports(&site.agent, &document.to_string());
    site.agent.start_again();
    assert!(is_served(&site));
    let addresses = site.web.ip(&["-4", "-o", "addr", "show", "dev", "eth0"]);
    assert_eq!(addresses.lines().count(), 1, "{addresses}");
    assert!(addresses.contains(&moved), "{addresses}");
}

#[test]
fn a_node_that_was_lost_is_had_again_elsewhere() {
    let labs = [Lab::new(), Lab::new()];
    let agent = Agent::start(&labs[0]);
    agent.netfw(&["network", "create", "app", "--subnet", "10.99.0.0/24"]);
    let saved = agent.netfw(&["store", "export"]);
    let mut other = Agent::start(&labs[1]);
    other.stop();
    imports(&other, &saved);
    other.start_again();
    let networks = |agent: &Agent| agent.json(&["network", "inspect", "app"])["subnet"].clone();
    assert_eq!(networks(&other), networks(&agent));
}

#[test]
fn a_document_without_end_is_refused() {
    let lab = Lab::new();
    let agent = Agent::start(&lab);
    for words in [["store", "import"], ["apply", "-f"]] {
        let output = agent
            .command(&[&words[..], &["/dev/zero"]].concat())
            .output();
        let output = output.expect("netfw can be started");
        assert_eq!(output.status.code(), Some(FAILED), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("/dev/zero has more than 64 MiB"), "{said}");
    }
}
