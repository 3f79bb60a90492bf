//! Containers by their names: `dig`, `curl` and `ping` in them, and what they find in `/etc`.

use std::{collections::BTreeSet, io::Write as _, net::IpAddr, path::Path, process::Command};

use netfw_tests::{
    Agent, Lab, Namespace,
    agent::{FAILED, USAGE},
    programs::Nginx,
    topology::WORLD,
};

use crate::{
    dns_lookup::{FORWARDED, Fake, dig, full, text as says},
    setting::text,
};

/// A lab with a resolver in the world, which the agent is told of by its configuration.
struct Site {
    agent: Agent,
    _resolver: Fake,
    _directory: tempfile::TempDir,
    lab: Lab,
}

impl Site {
    fn new() -> Self {
        // The resolver answers everything, a container's name with that domain behind it as well.
        let lines = format!("nameserver {WORLD}\nsearch example.org\noptions ndots:3\n");
        Self::with(&lines)
    }

    fn with(lines: &str) -> Self {
        let lab = Lab::new();
        let resolver = Fake::start(&lab.world, (WORLD, 53).into(), FORWARDED);
        let directory = tempfile::tempdir().expect("a directory");
        let resolv_conf = directory.path().join("resolv.conf");
        std::fs::write(&resolv_conf, lines).expect("our own file");
        let config = directory.path().join("netfw.toml");
        let mut file = std::fs::File::create(&config).expect("our own file");
        writeln!(file, "resolv_conf = {resolv_conf:?}").expect("our own file");
        let agent = Agent::start_with(&lab, &["--config", &config.display().to_string()]);
        Self {
            agent,
            _resolver: resolver,
            _directory: directory,
            lab,
        }
    }

    /// A container as an endpoint of its role's name; `words` are options of `endpoint add`.
    #[track_caller]
    fn container(&self, name: &str, words: &[&str]) -> Container {
        let namespace = self.lab.container(name);
        let all = [
            &["endpoint", "add", name, "--netns", namespace.name()],
            words,
        ]
        .concat();
        let endpoint = self.agent.json(&all);
        let address = |key: &str| endpoint[key].as_str().unwrap_or("").to_owned();
        Container {
            ip: address("ip"),
            ip6: address("ip6"),
            gateway: address("gateway"),
            gateway6: address("gateway6"),
            namespace,
        }
    }
}

struct Container {
    namespace: Namespace,
    ip: String,
    ip6: String,
    gateway: String,
    gateway6: String,
}

impl Container {
    /// What its first network's name server says, over UDP and TCP, IPv4 and IPv6: always the same.
    #[track_caller]
    fn asks(&self, words: &[&str]) -> Vec<String> {
        let servers = [&self.gateway, &self.gateway6];
        let mut answers = Vec::new();
        for server in servers.into_iter().filter(|server| !server.is_empty()) {
            for by in ["+notcp", "+tcp"] {
                answers.push(dig(&self.namespace, server, &[words, &[by]].concat()));
            }
        }
        answers.dedup();
        assert_eq!(answers.len(), 1, "{words:?}");
        answers.remove(0)
    }

    fn finds(&self, name: &str) -> bool {
        !self.asks(&[name, "A"]).is_empty()
    }
}

#[test]
fn containers_find_each_other() {
    let mut site = Site::new();
    let agent = &site.agent;
    agent.netfw(&["network", "create", "app", "--ipv6"]);
    let web = site.container("web", &["--network", "app", "--alias", "www"]);
    let db = site.container("db", &["--network", "app"]);
    let lone = site.container("lone", &[]);
    for name in ["web", "WEB", "web.app", "www", "www.app."] {
        assert_eq!(db.asks(&[name, "A"]), [web.ip.as_str()], "{name}");
        assert_eq!(db.asks(&[name, "AAAA"]), [web.ip6.as_str()], "{name}");
    }
    for ip in [&web.ip, &web.ip6] {
        assert_eq!(db.asks(&["-x", ip]), ["web.app."]);
    }
    // The world's names, and what comes of somebody else's: a container's name is nobody's elsewhere.
    assert_eq!(db.asks(&["example.com", "A"]), [says(FORWARDED)]);
    for name in ["web", "web.app"] {
        assert_eq!(lone.asks(&[name, "A"]), [says(FORWARDED)], "{name}");
    }
    assert!(lone.asks(&["-x", &web.ip]).is_empty());
    // A program finds it with what the container has in /etc.
    let _nginx = Nginx::start(&web.namespace, "web", &[80]);
    for family in ["-4", "-6"] {
        let page = agent.netfw(&["exec", "db", "--", "curl", "-s", family, "http://www/"]);
        assert_eq!(page, _nginx.page(80));
        let line = agent.netfw(&["exec", "db", "--", "ping", family, "-c1", "-W3", "web"]);
        assert!(line.contains("1 received"), "{line}");
    }
    // A name goes with its endpoint; whoever takes the name has it.
    agent.netfw(&["endpoint", "rm", "web"]);
    assert_eq!(db.asks(&["www", "A"]), [says(FORWARDED)]);
    let words = ["endpoint", "add", "web", "--network", "app", "--netns"];
    let again = agent.json(&[&words[..], &[web.namespace.name()]].concat());
    assert_eq!(db.asks(&["web", "A"]), [text(&again["ip"])]);
    // An agent that was killed serves names again once it is back.
    site.agent.kill();
    let told = full(&db.namespace, &db.gateway, &["web", "+time=1", "+notcp"]);
    assert!(!told.contains("status: NOERROR"), "{told}");
    site.agent.start_again();
    assert_eq!(db.asks(&["web", "A"]), [text(&again["ip"])]);
}

#[test]
fn an_endpoint_is_known_in_each_of_its_networks() {
    let site = Site::new();
    let agent = &site.agent;
    agent.netfw(&["network", "create", "front"]);
    agent.netfw(&["network", "create", "back", "--internal"]);
    let api = site.container("api", &["--network", "front"]);
    let db = site.container("db", &["--network", "back", "--alias", "store"]);
    let web = site.container("web", &["--network", "front"]);
    assert!(!api.asks(&["db", "A"]).contains(&db.ip));
    let words = ["network", "connect", "back", "api", "--alias", "backend"];
    let connected = agent.json(&words);
    let inner = text(&connected["networks"][1]["ip"]);
    // Where both are: through either server, by its address there.
    assert_eq!(api.asks(&["db", "A"]), [db.ip.as_str()]);
    assert_eq!(api.asks(&["store.back", "A"]), [db.ip.as_str()]);
    assert_eq!(db.asks(&["api", "A"]), [inner]);
    assert_eq!(db.asks(&["backend", "A"]), [inner]);
    assert_eq!(web.asks(&["api", "A"]), [api.ip.as_str()]);
    assert_eq!(web.asks(&["backend", "A"]), [says(FORWARDED)]);
    // Without a way out there are no names of the world.
    let told = full(&db.namespace, &db.gateway, &["example.com", "A"]);
    assert!(told.contains("SERVFAIL"), "{told}");
    agent.netfw(&["network", "disconnect", "back", "api"]);
    assert!(!db.finds("api") && !db.finds("backend"));
    assert!(!api.asks(&["db", "A"]).contains(&db.ip));
}

#[test]
fn an_alias_may_be_several_and_a_link_is_one_s_own() {
    let site = Site::new();
    let agent = &site.agent;
    agent.netfw(&["network", "create", "app"]);
    let app = ["--network", "app"];
    let one = site.container("one", &[&app[..], &["--alias", "pool"]].concat());
    let two = site.container("two", &[&app[..], &["--alias", "pool"]].concat());
    let links = ["--link", "one:first", "--link", "two"];
    let asker = site.container("asker", &[&app[..], &links].concat());
    let server = &asker.gateway;
    let mut first = BTreeSet::new();
    // That one is missed has a chance of 2^-39.
    for _ in 0..40 {
        let mut all = dig(&asker.namespace, server, &["pool", "A"]);
        first.insert(all[0].clone());
        all.sort();
        let mut both = [one.ip.clone(), two.ip.clone()];
        both.sort();
        assert_eq!(all, both);
        if first.len() == 2 {
            break;
        }
    }
    assert_eq!(first.len(), 2, "one is always the first");
    assert_eq!(asker.asks(&["first", "A"]), [one.ip.as_str()]);
    assert_eq!(asker.asks(&["two", "A"]), [two.ip.as_str()]);
    assert_eq!(two.asks(&["first", "A"]), [says(FORWARDED)]);
    let inspected = agent.json(&["endpoint", "inspect", "asker"]);
    assert_eq!(inspected["links"], serde_json::json!(["one:first", "two"]));
    let inspected = agent.json(&["endpoint", "inspect", "one"]);
    let aliases = &inspected["networks"][0]["aliases"];
    assert_eq!(*aliases, serde_json::json!(["pool"]));
    for (words, said) in [
        (&["--alias", "one"][..], "has that one already"),
        (&["--alias", "ONE"], "has that one already"),
        (&["--alias", "One.App"], "has that one already"),
        (&["--link", "nobody"], "there is no endpoint \"nobody\""),
    ] {
        let all = [&["endpoint", "add", "x"], &app[..], words].concat();
        let told = agent.refuses(FAILED, &all);
        assert!(told.contains(said), "{words:?}: {told}");
    }
    let told = agent.refuses(FAILED, &["endpoint", "add", "pool", "--network", "app"]);
    assert!(told.contains("pool"), "{told}");
    for name in ["POOL.app", "One"] {
        // Letters of either case are the same, and so is a name with its network's.
        let told = agent.refuses(FAILED, &["endpoint", "add", name, "--network", "app"]);
        assert!(told.contains("choose another"), "{told}");
    }
    let told = agent.refuses(FAILED, &["endpoint", "add", "x", "--link", "one"]);
    assert!(told.contains("app"), "{told}");
    let none = ["endpoint", "add", "x", "--network", "none", "--alias", "y"];
    let told = agent.refuses(FAILED, &none);
    assert!(told.contains("neither aliases nor links"), "{told}");
}

#[test]
fn a_container_s_resolver_is_its_gateway() {
    let site = Site::new();
    let agent = &site.agent;
    let name = format!("named{}", std::process::id());
    let added = agent.json(&["endpoint", "add", &name]);
    let wanted = [
        format!("nameserver {}", text(&added["gateway"])),
        format!("nameserver {}", text(&added["gateway6"])),
        "search example.org".into(),
        "options ndots:0".into(),
    ];
    let check = |shown: &str| {
        let lines: Vec<&str> = shown.lines().filter(|l| !l.starts_with('#')).collect();
        assert_eq!(lines, wanted);
    };
    check(&agent.netfw(&["exec", &name, "--", "cat", "/etc/resolv.conf"]));
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &name, "cat", "/etc/resolv.conf"]);
    check(&String::from_utf8_lossy(
        &command.output().expect("ip is there").stdout,
    ));
    let known = agent.netfw(&["exec", &name, "--", "getent", "ahostsv4", "host.example"]);
    assert!(known.contains(&says(FORWARDED)), "{known}");
    agent.netfw(&["endpoint", "rm", &name]);
    assert!(!Path::new("/etc/netns").join(&name).exists());
}

#[test]
fn a_network_is_not_where_the_resolver_is() {
    let site = Site::with("nameserver 172.18.0.53\nnameserver 172.20.5.3\n");
    let agent = &site.agent;
    let subnet = |name: &str| {
        let network = agent.json(&["network", "inspect", name]);
        text(&network["subnet"]).to_owned()
    };
    assert_eq!(subnet("bridge"), "172.19.0.0/16");
    agent.netfw(&["network", "create", "app", "--label", "a=b", "--label", "c"]);
    assert_eq!(subnet("app"), "172.21.0.0/16");
    let labels = agent.json(&["network", "inspect", "app"])["labels"].clone();
    assert_eq!(labels, serde_json::json!({ "a": "b", "c": "" }));
    let create = ["network", "create", "x", "--subnet", "172.20.0.0/16"];
    let told = agent.refuses(FAILED, &create);
    assert!(told.contains("resolver 172.20.5.3"), "{told}");
    agent.refuses(USAGE, &["network", "create", "x", "--label", "=b"]);
}

#[test]
fn the_node_s_port_53_stays_the_node_s() {
    let lab = Lab::new();
    let _own = Fake::start(
        &lab.node,
        (IpAddr::from([0, 0, 0, 0]), 53).into(),
        [203, 0, 113, 53],
    );
    let agent = Agent::start(&lab);
    let web = lab.container("web");
    let added = agent.json(&["endpoint", "add", "web", "--netns", web.name()]);
    let gateway = text(&added["gateway"]);
    for by in ["+tcp", "+notcp"] {
        assert_eq!(dig(&web, gateway, &["web", by]), [text(&added["ip"])]);
        assert_eq!(dig(&lab.node, "127.0.0.1", &["web", by]), ["203.0.113.53"]);
    }
    // A container that serves names to the world gets none of the questions of the others.
    let dns = lab.container("dns");
    let _served = Fake::start(&dns, (IpAddr::from([0, 0, 0, 0]), 53).into(), FORWARDED);
    drop(_own);
    let words = ["endpoint", "add", "dns", "--netns", dns.name()];
    agent.netfw(&[&words[..], &["-p", "53:53/udp", "-p", "53:53"]].concat());
    for by in ["+tcp", "+notcp"] {
        assert_eq!(dig(&web, gateway, &["web", by]), [text(&added["ip"])]);
        let node = netfw_tests::topology::NODE.to_string();
        assert_eq!(dig(&lab.client, &node, &["web", by]), [says(FORWARDED)]);
    }
}
