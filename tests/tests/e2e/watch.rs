//! `netfw monitor` and `netfw trace`: what happens to packets, told as it happens.

use std::time::Duration;

use netfw_tests::{
    Agent,
    agent::{FAILED, USAGE},
    load::Pings,
    netns::Running,
    programs::{Drinker, Fountain, UdpEcho, ask, curl, curl_in_vain, ping, udp_socket},
    sockets::dial,
    topology::{CLIENT, NODE, WORLD},
    wait_until,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::setting::{SOON, Site, attach, drops};

/// The verifier goes through all programs once more, on a busy machine.
const LOADED: Duration = Duration::from_secs(120);

/// One who listens.
struct Listener(Running);

impl Listener {
    /// `netfw -o json WORDS`; listens when this returns.
    #[track_caller]
    fn start(agent: &Agent, words: &[&str]) -> Self {
        let mut running = Running::start(agent.command(&[&["-o", "json"], words].concat()));
        wait_until("somebody to listen", LOADED, || {
            let said = running.stderr();
            if let Some(status) = running.ended() {
                panic!("{words:?} ended with {status}: {said}");
            }
            said.contains("listening")
        });
        Self(running)
    }

    /// What it was told, so far.
    #[track_caller]
    fn lines(&self) -> Vec<Value> {
        let text = self.0.stdout();
        // The last one may be half written.
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        let lines = whole
            .lines()
            .map(|line| serde_json::from_str(line).expect(line));
        lines.collect()
    }

    /// Waits for a line that is `wanted`.
    #[track_caller]
    fn hears(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut found = None;
        wait_until(what, SOON, || {
            found = self.lines().into_iter().find(|line| wanted(line));
            found.is_some()
        });
        found.expect("waited for")
    }

    /// Ctrl-C.
    #[track_caller]
    fn interrupt(mut self) -> Vec<Value> {
        self.0.signal(Signal::SIGINT);
        let status = self.0.wait(SOON);
        assert!(status.success(), "{status}: {}", self.0.stderr());
        self.lines()
    }

    /// Ends by itself, with this status; what it said.
    #[track_caller]
    fn ends(mut self, code: i32) -> (Vec<Value>, String) {
        let status = self.0.wait(SOON);
        assert_eq!(status.code(), Some(code), "{}", self.0.stderr());
        (self.lines(), self.0.stderr())
    }
}

/// Has the world send a datagram to the container's own address.
fn trespass(site: &Site) {
    site.lab.client.ip(&[
        "route",
        "replace",
        &site.ip.to_string(),
        "via",
        &NODE.to_string(),
    ]);
    let socket = udp_socket(&site.lab.client);
    socket.send_to(b"x", (site.ip, 80)).expect("sent");
}

#[test]
fn a_monitor_is_told_of_each_drop() {
    let site = Site::new(&["8080:80"]);
    let all = Listener::start(&site.agent, &["monitor"]);
    let one = Listener::start(
        &site.agent,
        &["monitor", "--reason", "direct-access", "--count", "1"],
    );
    let web = Listener::start(&site.agent, &["monitor", "--endpoint", "web"]);
    let others = Listener::start(
        &site.agent,
        &["monitor", "--reason", "leak,martian", "--proto", "udp"],
    );
    let elsewhere = Listener::start(&site.agent, &["monitor", "--from", "10.9.9.0/24:53"]);
    trespass(&site);
    let (told, _) = one.ends(0);
    let [event] = &told[..] else {
        panic!("one event: {told:?}");
    };
    let packet = &event["tuple"];
    assert_eq!(packet["src"], CLIENT.to_string());
    assert_eq!(
        (&packet["dst"], &packet["dport"]),
        (&json!(site.ip.to_string()), &json!(80))
    );
    for (field, value) in [
        ("event", json!("drop")),
        ("reason", json!("direct-access")),
        ("hook", json!("uplink")),
        ("interface", json!("up0")),
        ("endpoint", json!("web")),
        ("protocol", json!("udp")),
        ("length", json!(29)),
        ("icmp", Value::Null),
        ("answered", json!(false)),
    ] {
        assert_eq!(event[field], value, "{field} of {event}");
    }
    for listener in [&all, &web] {
        listener.hears("the same", |line| line == event);
    }
    // What a container sends is counted for it.
    site.web
        .succeeds(&["ping", "-c", "1", "-W", "1", "-t", "1", &WORLD.to_string()]);
    let answered = web.hears("a ping that lived too short", |line| {
        line["reason"] == "ttl-exceeded"
    });
    assert_eq!(answered["answered"], true);
    assert_eq!(answered["icmp"], json!({"type": 8, "code": 0}));
    let drops = site.agent.json(&["stats", "--drops"]);
    let row = drops.as_array().expect("a list").iter();
    let row = row
        .clone()
        .find(|row| row["reason"] == "ttl-exceeded")
        .expect("a row");
    assert_eq!(row["senders"], json!([{"name": "web", "packets": 1}]));
    assert!(site.agent.netfw(&["stats", "--drops"]).contains("web (1)"));
    for listener in [others, elsewhere] {
        assert_eq!(listener.interrupt(), Vec::<Value>::new());
    }
    assert!(all.interrupt().len() >= 2);
    assert!(web.interrupt().len() >= 2);
    // For people.
    let mut table = Running::start(site.agent.command(&["monitor", "--count", "1"]));
    wait_until("it to listen", SOON, || {
        table.stderr().contains("listening")
    });
    trespass(&site);
    assert!(table.wait(SOON).success());
    let line = table.stdout();
    let ends = format!("{}:80, 29 bytes  direct-access", site.ip);
    assert!(
        line.contains("uplink up0 (web) udp") && line.contains(&ends),
        "{line}"
    );
}

#[test]
fn a_flood_is_told_of_in_part() {
    let site = Site::new(&[]);
    let listener = Listener::start(&site.agent, &["monitor", "--reason", "direct-access"]);
    let before = drops(&site.agent, "direct-access");
    trespass(&site);
    let socket = udp_socket(&site.lab.client);
    for _ in 0..20_000 {
        // Its own queue may be full.
        let _ = socket.send_to(b"x", (site.ip, 80));
    }
    let suppressed = |lines: &[Value]| -> u64 {
        let all = lines.iter().filter(|line| line["event"] == "suppressed");
        all.map(|line| line["events"].as_u64().expect("a number"))
            .sum()
    };
    let told = |lines: &[Value]| lines.iter().filter(|line| line["event"] == "drop").count() as u64;
    wait_until("all to be accounted for", SOON, || {
        let lines = listener.lines();
        told(&lines) + suppressed(&lines) == drops(&site.agent, "direct-access") - before
    });
    let lines = listener.interrupt();
    assert!(suppressed(&lines) > told(&lines), "{} told", told(&lines));
}

#[test]
fn who_listens_ends_when_it_was_told_to_or_the_agent_does() {
    let mut site = Site::new(&["8080:80"]);
    Listener::start(&site.agent, &["monitor", "--for", "1"]).ends(0);
    let listeners = [&["monitor"] as &[&str], &["trace", "--endpoint", "web"]];
    let started = listeners.map(|words| Listener::start(&site.agent, words));
    site.agent.stop();
    for listener in started {
        let (_, said) = listener.ends(FAILED);
        assert!(said.contains("\"not_running\""), "{said}");
    }
    let said = site.agent.refuses(FAILED, &["monitor"]);
    assert!(said.contains("no agent is running"), "{said}");
    assert_eq!(
        curl(&site.lab.client, NODE, 8080, "/"),
        Some(site.nginx.page(80))
    );
    site.agent.start_again();
    let started = listeners.map(|words| Listener::start(&site.agent, words));
    site.agent.kill();
    for listener in started {
        listener.ends(FAILED);
    }
    assert_eq!(
        curl(&site.lab.client, NODE, 8080, "/"),
        Some(site.nginx.page(80))
    );
    site.agent.start_again();
    assert_eq!(
        curl(&site.lab.client, NODE, 8080, "/"),
        Some(site.nginx.page(80))
    );
    for words in [
        &["monitor", "--endpoint", "nobody"] as &[&str],
        &["trace", "--endpoint", "nobody"],
    ] {
        site.agent.refuses(FAILED, words);
    }
    for words in [
        &["trace"] as &[&str],
        &["monitor", "--reason", "bad-luck"],
        &["monitor", "--from", "nowhere"],
    ] {
        site.agent.refuses(USAGE, words);
    }
}

#[test]
fn there_is_room_for_sixteen() {
    let site = Site::new(&[]);
    let all: Vec<_> = (0..16)
        .map(|_| Listener::start(&site.agent, &["monitor"]))
        .collect();
    let said = site.agent.refuses(FAILED, &["monitor"]);
    assert!(said.contains("16 monitors and traces"), "{said}");
    trespass(&site);
    for listener in all {
        listener.hears("the drop", |line| line["reason"] == "direct-access");
        listener.interrupt();
    }
    Listener::start(&site.agent, &["monitor"]).interrupt();
}

/// Has the agent ordinary programs again?
#[track_caller]
fn stops_tracing(agent: &mut Agent, times: usize) {
    let process = agent.process();
    wait_until("ordinary programs", LOADED, || {
        process
            .stderr()
            .matches("programs that trace on=false")
            .count()
            == times
    });
}

#[test]
fn a_trace_tells_what_was_decided_and_why() {
    let mut site = Site::new(&["8080:80"]);
    let client = CLIENT.to_string();
    let listener = Listener::start(&site.agent, &["trace", "--proto", "tcp", "--from", &client]);
    assert_eq!(
        curl(&site.lab.client, NODE, 8080, "/"),
        Some(site.nginx.page(80))
    );
    let decided = |hook: &str, why: &str| {
        let (hook, why) = (hook.to_owned(), why.to_owned());
        listener.hears(&format!("{why} at {hook}"), move |line| {
            line["hook"] == *hook && line["why"] == *why
        })
    };
    let first = decided("uplink", "new-flow");
    assert_eq!(first["tuple"]["dst"], NODE.to_string());
    assert_eq!(first["tuple"]["dport"], 8080);
    assert_eq!(first["translated"]["dst"], site.ip.to_string());
    assert_eq!(first["translated"]["dport"], 80);
    assert_eq!(
        (&first["action"], &first["endpoint"]),
        (&json!("container"), &json!("web"))
    );
    assert_eq!(
        first["flow"],
        json!({
            "origin": "publish", "state": "new", "direction": "original",
            "endpoint": "web", "publish": "0.0.0.0:8080:80/tcp",
        })
    );
    assert!(
        first["to"].as_str().is_some_and(|to| to.starts_with("nf")),
        "{first}"
    );
    let answer = decided("container", "known-flow");
    assert_eq!(answer["translated"]["src"], NODE.to_string());
    assert_eq!(answer["flow"]["direction"], "reply");
    let sentence = answer["sentence"].as_str().expect("a sentence");
    assert!(
        sentence.contains("of publish 0.0.0.0:8080:80/tcp of web"),
        "{sentence}"
    );
    // The guard looks at what is on its way out.
    decided("guard", "translated");
    let lines = listener.interrupt();
    assert!(
        lines.iter().all(|line| line["protocol"] == "tcp"),
        "{lines:?}"
    );
    stops_tracing(&mut site.agent, 1);

    let web = Listener::start(&site.agent, &["trace", "--endpoint", "web"]);
    let _echo = UdpEcho::start(&site.lab.world, (WORLD, 53));
    assert!(ask(&udp_socket(&site.web), (WORLD, 53), "x").is_some());
    let out = web.hears("masquerade", |line| line["why"] == "new-flow");
    assert_eq!(
        (&out["action"], &out["flow"]["origin"]),
        (&json!("out"), &json!("masquerade"))
    );
    trespass(&site);
    let dropped = web.hears("a drop", |line| line["action"] == "drop");
    assert_eq!(dropped["why"], "direct-access");
    // Killed, it is gone as well.
    let Listener(mut process) = web;
    process.signal(Signal::SIGKILL);
    process.wait(SOON);
    stops_tracing(&mut site.agent, 2);
}

#[test]
fn a_process_of_the_node_is_traced_to_the_container() {
    let site = Site::new(&["8080:80"]);
    let listener = Listener::start(&site.agent, &["trace", "--to", "127.0.0.1:8080"]);
    let localhost = std::net::Ipv4Addr::LOCALHOST.into();
    drop(dial(&site.lab.node, 0, (localhost, 8080)));
    let call = listener.hears("the call", |line| line["hook"] == "connect");
    assert_eq!(
        (&call["action"], &call["why"]),
        (&json!("connected"), &json!("published"))
    );
    assert_eq!(call["translated"]["dst"], site.ip.to_string());
    assert_eq!(
        (&call["endpoint"], &call["interface"]),
        (&json!("web"), &Value::Null)
    );
    listener.interrupt();
}

#[test]
fn connections_go_on_while_programs_are_swapped() {
    let mut site = Site::new(&["8080:80", "7000:7000"]);
    let other = site.lab.container("other");
    attach(&site.agent, "other", &other, &[]);
    let _inside = Fountain::start(&site.web, 7000);
    let mut published = Drinker::connect(&site.lab.client, (NODE, 7000));
    let pings = Pings::start(&site.web, WORLD, Duration::from_millis(10));
    for time in 1..=3 {
        let listener = Listener::start(&site.agent, &["trace", "--to", "10.9.9.9"]);
        published.drink(2048);
        assert_eq!(
            curl(&site.lab.client, NODE, 8080, "/"),
            Some(site.nginx.page(80))
        );
        // One that comes meanwhile is traced as well.
        if time == 1 {
            let late = site.lab.container("late");
            let ip = attach(&site.agent, "late", &late, &[]);
            let traced = Listener::start(&site.agent, &["trace", "--endpoint", "late"]);
            assert!(ping(&late, WORLD));
            traced.hears("its ping", |line| line["tuple"]["src"] == ip.to_string());
            traced.interrupt();
        }
        assert_eq!(listener.interrupt(), Vec::<Value>::new());
        stops_tracing(&mut site.agent, time);
        published.drink(2048);
    }
    pings.finish();
    assert!(curl_in_vain(&other, site.ip, 9));
}
