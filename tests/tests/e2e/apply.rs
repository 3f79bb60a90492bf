//! The whole wanted state as one document: `netfw apply`.

use std::io::Write as _;

use netfw_tests::{
    Agent, Lab, Namespace,
    agent::FAILED,
    programs::{
        Drinker, Drinking, Fountain, Nginx, UdpEcho, ask, ask_in_vain, curl, curl_in_vain,
        udp_socket,
    },
    topology::{CLIENT, NODE, NODE6},
    wait_until,
};
use serde_json::Value;
use tempfile::NamedTempFile;

use crate::setting::{SOON, Site as Attached, text};

/// A document in a file.
fn document(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("a temporary file");
    file.write_all(text.as_bytes()).expect("room for it");
    file
}

fn path(file: &NamedTempFile) -> &str {
    file.path().to_str().expect("a path of letters")
}

/// Applies it: what the steps are, as `add endpoint web`.
#[track_caller]
fn apply(agent: &Agent, text: &str) -> Vec<String> {
    let file = document(text);
    steps(&agent.json(&["apply", "-f", path(&file)]))
}

#[track_caller]
fn steps(applied: &Value) -> Vec<String> {
    let all = applied["steps"].as_array().expect("a list");
    let words = all.iter().map(|step| {
        let words = ["action", "object", "endpoint", "network"].map(|key| step[key].as_str());
        words.into_iter().flatten().collect::<Vec<_>>().join(" ")
    });
    words.collect()
}

/// What there is.
fn state(agent: &Agent) -> [Value; 3] {
    ["endpoint", "network", "port"].map(|what| match what {
        "port" => agent.json(&["port"]),
        what => agent.json(&[what, "ls"]),
    })
}

const NOTHING: [&str; 0] = [];

/// A node with an agent, and nginx in a namespace of its own that nobody has attached.
struct Site {
    agent: Agent,
    nginx: Nginx,
    web: Namespace,
    lab: Lab,
}

impl Site {
    fn new() -> Self {
        let lab = Lab::new();
        let agent = Agent::start(&lab);
        let web = lab.container("web");
        let nginx = Nginx::start(&web, "web", &[80, 81]);
        Self {
            agent,
            nginx,
            web,
            lab,
        }
    }

    fn document(&self) -> String {
        format!(
            r#"
[networks.app]
subnets = ["10.77.0.0/24"]

[endpoints.web]
netns = "{}"
networks = ["bridge", {{ network = "app", ip = "10.77.0.7", aliases = ["www"] }}]
publish = ["8080:80", "81"]
"#,
            self.web.name()
        )
    }

    fn serves(&self, port: u16, of: u16) {
        for node in [NODE, NODE6] {
            let page = curl(&self.lab.client, node, port, "/");
            assert_eq!(page, Some(self.nginx.page(of)), "{node} {port}");
        }
    }
}

#[test]
fn a_document_is_applied_and_twice_changes_nothing() {
    let mut site = Site::new();
    let text = site.document();
    let agent = &site.agent;
    let before = state(agent);
    let file = document(&text);
    let plan = agent.json(&["apply", "--dry-run", "-f", path(&file)]);
    assert_eq!(plan["dry_run"], true);
    assert_eq!(steps(&plan), ["add network app", "add endpoint web"]);
    assert_eq!(state(agent), before);
    let shown = agent.netfw(&["apply", "-f", path(&file)]);
    assert!(shown.contains("10.77.0.7 in app"), "{shown}");
    site.serves(8080, 80);
    let after = state(agent);
    assert_eq!(apply(agent, &text), NOTHING);
    let said = agent.netfw(&["apply", "-f", path(&file)]);
    assert_eq!(said, "nothing to change\n");
    // Nor does what is exported, also after a restart.
    let exported = agent.netfw(&["store", "export", "--toml"]);
    assert!(exported.contains("8080:80/tcp"), "{exported}");
    assert_eq!(apply(agent, &exported), NOTHING);
    assert_eq!(state(agent), after);
    site.agent.kill();
    site.agent.start_again();
    assert_eq!(apply(&site.agent, &text), NOTHING);
    assert_eq!(state(&site.agent), after);
    site.serves(8080, 80);
    // All that is not in it goes, if somebody means it.
    for empty in ["", "# nothing was written\n", "[networks]\n"] {
        let file = document(empty);
        let said = site.agent.refuses(FAILED, &["apply", "-f", path(&file)]);
        assert!(
            said.contains("has neither networks nor endpoints, and nothing was changed"),
            "{said}"
        );
        assert_eq!(state(&site.agent), after);
    }
    let gone = ["remove endpoint web", "remove network app"];
    assert_eq!(apply(&site.agent, "[networks]\n[endpoints]\n"), gone);
    assert_eq!(state(&site.agent), before);
    assert!(curl_in_vain(&site.lab.client, NODE, 8080));
}

#[test]
fn another_list_of_publishes_leaves_other_flows_alone() {
    let site = Site::new();
    let text = site.document();
    apply(&site.agent, &text);
    let _fountain = Fountain::start(&site.web, 90);
    let text = text.replace("\"81\"", "\"9000:90\"");
    assert_eq!(
        apply(&site.agent, &text),
        [
            "remove publish web",
            "remove publish web",
            "add publish web",
            "add publish web"
        ]
    );
    let drinker = Drinker::connect(&site.lab.client, (NODE, 9000));
    let drinking = Drinking::start(drinker);
    let more = text.replace("\"8080:80\"", "\"8080:81\", \"8082:80\"");
    apply(&site.agent, &more);
    site.serves(8080, 81);
    site.serves(8082, 80);
    drinking.goes_on();
    let listed = more.replace(
        "\"8082:80\"",
        "{ publish = \"8082:80\", allow_from = [\"192.0.2.0/24\"] }",
    );
    assert_eq!(
        apply(&site.agent, &listed),
        ["change publish web", "change publish web"]
    );
    assert!(curl_in_vain(&site.lab.client, NODE, 8082));
    site.serves(8080, 81);
    drinking.goes_on();
    drinking.finish();
}

#[test]
fn a_network_moves_with_its_endpoints() {
    let site = Site::new();
    let text = site.document().replace("\"bridge\", ", "");
    // In a namespace that netfw has made, what is in it stays.
    let name = format!("kept-{}", site.agent.instance());
    let text = format!("{text}\n[endpoints.{name}]\nnetworks = [\"app\"]\n");
    apply(&site.agent, &text);
    let inside = |words: &[&str]| {
        let all = [&["exec", &name, "--"], words].concat();
        site.agent.netfw(&all)
    };
    let other = ["type", "veth", "peer", "name", "own2"];
    inside(&[&["ip", "link", "add", "own"], &other[..]].concat());
    let moved = text.replace("10.77.0.", "10.78.0.");
    let [first, rest @ ..] = &apply(&site.agent, &moved)[..] else {
        panic!("nothing was done");
    };
    assert_eq!(first, "replace network app");
    assert_eq!(rest.len(), 2, "{rest:?}");
    let links = inside(&["ip", "-o", "link"]);
    assert!(links.contains(": own@"), "{links}");
    let web = site.agent.json(&["endpoint", "inspect", "web"]);
    assert_eq!(web["ip"], "10.78.0.7");
    assert_eq!(web["state"], "up");
    let page = curl(&site.lab.client, NODE, 8080, "/");
    assert_eq!(page, Some(site.nginx.page(80)));
    let client = Nginx::start(&site.lab.client, "client", &[80]);
    assert_eq!(curl(&site.web, CLIENT, 80, "/"), Some(client.page(80)));
    assert_eq!(apply(&site.agent, &moved), NOTHING);
    // From one network into another, which takes its subnet.
    let renamed = moved.replace("networks.app", "networks.other");
    let renamed = renamed.replace("\"app\"", "\"other\"");
    apply(&site.agent, &renamed);
    let page = curl(&site.lab.client, NODE, 8080, "/");
    assert_eq!(page, Some(site.nginx.page(80)));
    assert_eq!(apply(&site.agent, &renamed), NOTHING);
    let links = inside(&["ip", "-o", "link"]);
    assert!(links.contains(": own@"), "{links}");
}

#[test]
fn rules_of_a_network_change_in_place() {
    let site = Site::new();
    let text = site
        .document()
        .replace("\"bridge\", ", "")
        .replace("publish = [\"8080:80\", \"81\"]", "");
    apply(&site.agent, &text);
    let client = Nginx::start(&site.lab.client, "client", &[80]);
    assert_eq!(curl(&site.web, CLIENT, 80, "/"), Some(client.page(80)));
    let interface = |agent: &Agent| {
        let web = agent.json(&["endpoint", "inspect", "web"]);
        web["host_interface"].clone()
    };
    let before = interface(&site.agent);
    let closed = text.replace("[networks.app]", "[networks.app]\ninternal = true");
    assert_eq!(apply(&site.agent, &closed), ["change network app"]);
    assert!(curl_in_vain(&site.web, CLIENT, 80));
    assert_eq!(apply(&site.agent, &text), ["change network app"]);
    assert_eq!(curl(&site.web, CLIENT, 80, "/"), Some(client.page(80)));
    assert_eq!(interface(&site.agent), before);
}

#[test]
fn what_is_gone_is_made_again() {
    let mut site = Site::new();
    let name = format!("made-{}", site.agent.instance());
    let text = format!("[endpoints.{name}]\npublish = [\"8080:80\"]\n");
    apply(&site.agent, &text);
    site.agent.kill();
    let status = std::process::Command::new("ip")
        .args(["netns", "del", &name])
        .status();
    assert!(status.expect("ip can be started").success());
    site.agent.start_again();
    // A start makes it again, and so does a document.
    let state = |agent: &Agent| agent.json(&["endpoint", "inspect", &name])["state"].clone();
    assert_eq!(state(&site.agent), "up");
    let status = std::process::Command::new("ip")
        .args(["netns", "del", &name])
        .status();
    assert!(status.expect("ip can be started").success());
    wait_until("the endpoint to be gone", SOON, || {
        state(&site.agent) == "gone"
    });
    let want = format!("replace attachment {name} bridge");
    assert_eq!(apply(&site.agent, &text), [want]);
    assert_eq!(state(&site.agent), "up");
    assert_eq!(apply(&site.agent, &text), NOTHING);
}

#[test]
fn what_cannot_be_is_told_with_its_place_and_changes_nothing() {
    let site = Site::new();
    let good = site.document();
    apply(&site.agent, &good);
    let before = state(&site.agent);
    let web = site.web.name();
    let busy = site
        .lab
        .node
        .enter(|| std::net::TcpListener::bind("0.0.0.0:7000").expect("a free port"));
    let _busy = netfw_tests::Running::holding(busy);
    for (what, by, line, phrase) in [
        ("8080:80", "7000:80", 8, "holds 0.0.0.0:7000"),
        ("8080:80", "70000:80", 8, "is no port"),
        ("10.77.0.0/24", "10.1.0.0/24", 3, "overlaps"),
        ("10.77.0.7", "10.99.0.7", 7, "does not lie in the subnet"),
        (web, "nobody-s", 6, "nobody-s"),
        (
            "\"bridge\"",
            "\"bride\"",
            7,
            "there is no network \"bride\"",
        ),
        ("aliases", "alias", 7, "unknown field `alias`"),
    ] {
        assert!(good.contains(what), "{what}");
        let file = document(&good.replace(what, by));
        for dry in [&["--dry-run"][..], &[]] {
            let words = [&["apply", "-f", path(&file)], dry].concat();
            let said = site.agent.refuses(FAILED, &words);
            assert!(said.contains(&format!("line {line}")), "{said}");
            assert!(said.contains(phrase), "{phrase}: {said}");
            assert!(said.contains("nothing was changed"), "{said}");
        }
        assert_eq!(state(&site.agent), before, "{what} -> {by}");
    }
    // What only a look at the node finds comes with the rest.
    let bad = good
        .replace("10.77.0.0/24", "10.1.0.0/24")
        .replace(web, "nobody-s");
    let file = document(&format!("{bad}\n[endpoints.db]\npublish = [\"7000:80\"]\n"));
    let said = site.agent.refuses(FAILED, &["apply", "-f", path(&file)]);
    for (line, phrase) in [(3, "overlaps"), (6, "nobody-s"), (11, "holds 0.0.0.0:7000")] {
        let told = said
            .lines()
            .find(|told| told.contains(&format!("line {line},")));
        assert!(told.is_some_and(|told| told.contains(phrase)), "{said}");
    }
    let output = site
        .agent
        .output(&["-o", "json", "apply", "-f", "/nowhere"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        text(&serde_json::from_str::<Value>(&said).expect("JSON")["error"]).contains("/nowhere")
    );
}

/// Killed after the store has new rules, and before the flows that went by the old ones are gone.
#[test]
fn rules_hold_for_old_flows_after_a_kill() {
    let mut site = Attached::new(&[]);
    let echo = UdpEcho::start(&site.lab.client, (CLIENT, 7000));
    let socket = udp_socket(&site.web);
    assert!(ask(&socket, (CLIENT, 7000), "one").is_some());
    site.agent.stop();
    let export = |site: &Attached| -> Value {
        let said = site.agent.netfw(&["store", "export"]);
        serde_json::from_str(&said).expect("JSON")
    };
    let mut saved = export(&site);
    let networks = saved["networks"].as_array_mut().expect("a list");
    for network in &mut *networks {
        network["rules"]["internal"] = true.into();
        network["unsettled"] = true.into();
    }
    let file = document(&saved.to_string());
    site.agent.netfw(&["store", "import", path(&file)]);
    site.agent.start_again();
    assert!(ask_in_vain(&socket, (CLIENT, 7000), "two"));
    assert_eq!(site.agent.json(&["flow", "ls"]), serde_json::json!([]));
    site.agent.stop();
    assert!(!export(&site).to_string().contains("unsettled"));
    drop(echo);
}
