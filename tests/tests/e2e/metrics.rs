//! Metrics, as a scraper sees them: read by the parser of Prometheus' own Python library, which takes nothing
//! that OpenMetrics forbids.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    net::{IpAddr, TcpListener},
    os::unix::{fs::MetadataExt as _, net::UnixListener},
    process::{Command, Stdio},
};

use netfw_tests::{
    Agent, Lab, Namespace,
    agent::FAILED,
    programs::{curl, curl_in_vain},
    topology::{NODE, NODE6, WORLD},
    wait_until,
};
use serde_json::Value;

use crate::setting::{SOON, Site, attach, text};

const PORT: u16 = 9469;
const LOCAL: &str = "127.0.0.1:9469";

/// A page, parsed: type and value of each sample.
struct Page(BTreeMap<String, (String, f64)>);

impl Page {
    /// Panics where the page is not as OpenMetrics has it.
    #[track_caller]
    fn parse(page: &str) -> Self {
        // Names, labels and values, in JSON.
        const PARSER: &str = r#"
import json, sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
for family in parse(sys.stdin.read()):
    assert family.documentation, family.name + " has no HELP"
    for name, labels, value, *_ in family.samples:
        of = ",".join(k + "=" + v for k, v in sorted(labels.items()))
        print(json.dumps([name + "{" + of + "}", family.type, value]))
"#;
        let mut parser = Command::new("/usr/bin/python3")
            .args(["-c", PARSER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("python3 can be started");
        let mut stdin = parser.stdin.take().expect("piped");
        stdin.write_all(page.as_bytes()).expect("it reads");
        drop(stdin);
        let output = parser.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}\n{page}");
        let lines = String::from_utf8(output.stdout).expect("UTF-8");
        let samples = lines.lines().map(|line| {
            let [name, kind, value]: [Value; 3] = serde_json::from_str(line).expect("three");
            let value = value.as_f64().expect("a number");
            (text(&name).to_owned(), (text(&kind).to_owned(), value))
        });
        Self(samples.collect())
    }

    #[track_caller]
    fn get(&self, sample: &str) -> f64 {
        match self.0.get(sample) {
            Some((_, value)) => *value,
            None => panic!("no {sample} in {:#?}", self.0.keys()),
        }
    }
}

/// What is served at `address` in the node.
#[track_caller]
fn scrape(lab: &Lab, address: &str) -> Page {
    let url = format!("http://{address}/metrics");
    Page::parse(&lab.node.run(&["curl", "-sSf", "--max-time", "5", &url]))
}

/// The same of a unix socket.
#[track_caller]
fn scrape_socket(path: &str) -> Page {
    let words = [
        "-sSf",
        "--max-time",
        "5",
        "--unix-socket",
        path,
        "http://netfw/metrics",
    ];
    let output = Command::new("curl")
        .args(words)
        .output()
        .expect("curl can be started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    Page::parse(&String::from_utf8_lossy(&output.stdout))
}

fn api(agent: &Agent) -> String {
    format!("/run/netfw/{}/agent.sock", agent.instance())
}

#[test]
fn a_scrape_says_what_stats_and_status_say() {
    let site = Site::in_lab(Lab::new(), &["--metrics", LOCAL], &["8080:80"]);
    assert!(curl(&site.lab.client, NODE, 8080, "/").is_some());
    assert!(curl(&site.lab.client, NODE6, 8080, "/").is_some());
    // Of no publish.
    site.web
        .succeeds(&["ping", "-n", "-c1", "-W1", &WORLD.to_string()]);
    assert!(
        site.lab
            .node
            .succeeds(&["dig", "+tries=1", "+time=2", "@172.18.0.1", "web.bridge"])
    );

    let page = scrape(&site.lab, LOCAL);
    let stats = site.agent.json(&["stats"]);
    let web = &stats["endpoints"][0];
    let number = |value: &Value| value.as_f64().expect("a number");
    let (mut packets, mut bytes) = (0.0, 0.0);
    for publish in web["publishes"].as_array().expect("a list") {
        let host = text(&publish["publish"]["host_ip"]);
        let host = if host == "::" { "[::]" } else { host };
        let labels = format!("{{endpoint=web,publish={host}:8080:80/tcp}}");
        let rx = page.get(&format!("netfw_endpoint_receive_packets_total{labels}"));
        assert_eq!(rx, number(&publish["counter"]["rx_packets"]), "{labels}");
        assert!(rx >= 3.0, "{labels}: {rx}");
        let tx = page.get(&format!("netfw_endpoint_transmit_bytes_total{labels}"));
        assert_eq!(tx, number(&publish["counter"]["tx_bytes"]), "{labels}");
        packets += rx;
        bytes += tx;
    }
    let rest = "{endpoint=web,publish=}";
    packets += page.get(&format!("netfw_endpoint_receive_packets_total{rest}"));
    bytes += page.get(&format!("netfw_endpoint_transmit_bytes_total{rest}"));
    assert_eq!(packets, number(&web["total"]["rx_packets"]));
    assert_eq!(bytes, number(&web["total"]["tx_bytes"]));

    let status = site.agent.json(&["status"]);
    let version = text(&status["version"]);
    assert!(
        page.0
            .keys()
            .any(|name| name.starts_with("netfw_build_info{")
                && name.contains(&format!("version={version}"))),
        "{:#?}",
        page.0.keys()
    );
    for uplink in status["uplinks"].as_array().expect("a list") {
        let (name, hook) = (text(&uplink["name"]), text(&uplink["hook"]));
        assert_eq!(
            page.get(&format!(
                "netfw_uplink_info{{hook={hook},uplink={name},xdp=none}}"
            )),
            1.0
        );
        assert_eq!(
            page.get(&format!("netfw_uplink_served{{uplink={name}}}")),
            1.0
        );
    }
    for table in status["tables"].as_array().expect("a list") {
        let label = format!("{{table={}}}", text(&table["name"]));
        assert_eq!(
            page.get(&format!("netfw_table_max_entries{label}")),
            number(&table["max"])
        );
    }
    assert!(page.get("netfw_table_max_entries{table=embryos4}") > 0.0);
    // Connections that are over are no assured flows any more.
    let flows =
        ["flows4", "embryos4"].map(|t| page.get(&format!("netfw_table_entries{{table={t}}}")));
    assert!(flows[0] + flows[1] >= 1.0, "{flows:?}");
    for drop in site
        .agent
        .json(&["stats", "--drops"])
        .as_array()
        .expect("a list")
    {
        page.get(&format!(
            "netfw_dropped_packets_total{{reason={}}}",
            text(&drop["reason"])
        ));
    }
    assert_eq!(page.get("netfw_endpoints{state=up}"), 1.0);
    assert_eq!(page.get("netfw_network_endpoints{network=bridge}"), 1.0);
    assert_eq!(page.get("netfw_publishes{}"), 2.0);
    assert!(page.get("netfw_dns_queries_total{result=known}") >= 1.0);
    assert!(page.get("netfw_api_requests_total{code=200,method=POST}") >= 1.0);
    assert!(page.get("netfw_reconciles_total{}") >= 1.0);
    assert!(page.get("process_resident_memory_bytes{}") > 1e6);
    assert!(page.get("process_start_time_seconds{}") > 1.6e9);

    // The same, by the API's socket; counters never fall.
    let again = scrape_socket(&api(&site.agent));
    for (name, (kind, value)) in &page.0 {
        let (_, later) = again
            .0
            .get(name)
            .unwrap_or_else(|| panic!("{name} is gone"));
        assert!(
            kind != "counter" || later >= value,
            "{name}: {value}, then {later}"
        );
    }
}

#[test]
fn what_is_mended_is_counted() {
    let site = Site::new(&["8080:80"]);
    let repaired = |what: &str| {
        scrape_socket(&api(&site.agent)).get(&format!("netfw_repairs_total{{what={what}}}"))
    };
    assert_eq!(repaired("filter"), 0.0);
    let endpoint = site.agent.json(&["endpoint", "inspect", "web"]);
    let veth = text(&endpoint["host_interface"]);
    site.lab
        .node
        .run(&["tc", "qdisc", "del", "dev", veth, "clsact"]);
    wait_until("the filter to be counted", SOON, || {
        repaired("filter") == 1.0
    });
    assert_eq!(repaired("bridge"), 0.0);
    site.lab
        .node
        .ip(&["addr", "del", "172.18.0.1/16", "dev", "netfw0"]);
    wait_until("the bridge to be counted", SOON, || {
        repaired("bridge") == 1.0
    });
}

#[test]
fn a_withdrawn_publish_lowers_nothing() {
    let site = Site::in_lab(Lab::new(), &["--metrics", LOCAL], &["8080:80"]);
    let rest = "netfw_endpoint_receive_packets_total{endpoint=web,publish=}";
    let of_publish =
        "netfw_endpoint_receive_packets_total{endpoint=web,publish=0.0.0.0:8080:80/tcp}";
    assert!(curl(&site.lab.client, NODE, 8080, "/").is_some());
    let before = scrape(&site.lab, LOCAL);
    assert!(before.get(of_publish) >= 3.0);
    site.agent.netfw(&["unpublish", "web", "8080:80"]);
    // A page may be a second old.
    let mut after = scrape(&site.lab, LOCAL);
    wait_until("the publish to be gone", SOON, || {
        after = scrape(&site.lab, LOCAL);
        !after.0.contains_key(of_publish)
    });
    assert!(after.get(rest) >= before.get(rest));
}

#[test]
fn rows_are_bounded_by_the_configuration() {
    let lab = Lab::new();
    let directory = tempfile::tempdir().expect("a directory");
    let config = directory.path().join("netfw.toml");
    fs::write(
        &config,
        format!("metrics = \"{LOCAL}\"\nmetrics_rows = 3\n"),
    )
    .expect("our own");
    let agent = Agent::start_with(&lab, &["--config", &config.display().to_string()]);
    let web = lab.container("web");
    attach(&agent, "web", &web, &["8080-8083:80-83", "9000:90"]);
    let page = scrape(&lab, LOCAL);
    let rows = page
        .0
        .keys()
        .filter(|name| name.starts_with("netfw_endpoint_receive_bytes_total"));
    assert_eq!(rows.count(), 3, "{:#?}", page.0.keys());
    // The endpoint, and two publishes for each family.
    assert_eq!(page.get("netfw_counters_left_out{}"), 2.0);
}

#[test]
fn containers_are_told_nothing() {
    let address = format!("[::]:{PORT}");
    let site = Site::in_lab(Lab::new(), &["--metrics", &address], &[]);
    let told = |from: &Namespace, to: IpAddr| {
        let page = curl(from, to, PORT, "/metrics");
        page.is_some_and(|page| page.contains("netfw_build_info"))
    };
    assert!(told(&site.lab.client, NODE));
    assert!(told(&site.lab.client, NODE6));
    // The node is no container, at whichever of its addresses.
    let inspected = site.agent.json(&["network", "inspect", "bridge"]);
    for key in ["gateway", "gateway6"] {
        let gateway: IpAddr = text(&inspected[key]).parse().expect("an address");
        assert!(told(&site.lab.node, gateway));
        assert!(curl_in_vain(&site.web, gateway, PORT), "{gateway}");
    }
    for node in [NODE, NODE6] {
        assert!(curl_in_vain(&site.web, node, PORT), "{node}");
    }
    // By the bridge's link-local address.
    let bridge = site
        .lab
        .node
        .ip(&["-6", "-o", "addr", "show", "dev", "netfw0", "scope", "link"]);
    let local = bridge
        .split_whitespace()
        .nth(3)
        .and_then(|at| at.split('/').next());
    let url = format!(
        "http://[{}%25eth0]:{PORT}/metrics",
        local.expect("it has one")
    );
    assert!(
        !site
            .web
            .succeeds(&["curl", "-sSf", "--max-time", "2", &url])
    );
    // And nothing else is there for anybody.
    let url = format!("http://{LOCAL}/v1/status");
    let code = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", &url];
    assert_eq!(site.lab.node.run(&code), "404");
    // Nor can a publish take the port over.
    let said = site.agent.refuses(FAILED, &["publish", "web", "9469:80"]);
    assert!(said.contains("the agent's own metrics"), "{said}");
    assert!(!said.contains("stop it"), "{said}");
    let chosen = site.agent.json(&["publish", "web", "9469-9470:80"]);
    assert_eq!(chosen["publishes"][0]["host_ports"]["first"], 9470);
    assert!(told(&site.lab.client, NODE));
}

#[test]
fn they_are_off_unless_asked_for() {
    let site = Site::new(&[]);
    let listening = site.lab.node.run(&["ss", "-Hltn"]);
    assert!(!listening.contains(&format!(":{PORT} ")), "{listening}");
    scrape_socket(&api(&site.agent)).get("netfw_publishes{}");
}

/// What an agent that does not start says; it leaves nothing.
#[track_caller]
fn refused(lab: &Lab, instance: &str, address: &str) -> String {
    let mut command = Command::new(netfw_tests::agent::binary());
    command.args(["--instance", instance, "agent", "--netns", lab.node.name()]);
    let output = command
        .args(["--metrics", address])
        .output()
        .expect("it can be started");
    assert_eq!(output.status.code(), Some(FAILED), "{address}");
    for left in ["/run/netfw", "/var/lib/netfw", "/sys/fs/bpf"] {
        let left = std::path::Path::new(left).join(instance);
        assert!(!left.exists(), "{} is left behind", left.display());
    }
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn an_address_that_cannot_be_had_ends_the_start() {
    let lab = Lab::new();
    let instance = format!("metrics-{}", std::process::id());
    let held = lab.node.enter(|| TcpListener::bind(LOCAL).expect("free"));
    let said = refused(&lab, &instance, LOCAL);
    assert!(
        said.contains("metrics cannot be served at 127.0.0.1:9469: somebody has that port"),
        "{said}"
    );
    assert!(said.contains("--metrics"), "{said}");
    drop(held);
    let said = refused(&lab, &instance, "unix:/nowhere/to/be/m.sock");
    assert!(
        said.contains("there is no directory /nowhere/to/be: make it"),
        "{said}"
    );

    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("m.sock");
    let address = format!("unix:{}", path.display());
    fs::write(&path, "mine").expect("our own");
    let said = refused(&lab, &instance, &address);
    assert!(
        said.contains("is there, and no socket that nobody serves"),
        "{said}"
    );
    assert_eq!(fs::read_to_string(&path).expect("still there"), "mine");
}

#[test]
fn an_address_that_comes_later_is_waited_for() {
    let lab = Lab::new();
    for address in ["198.51.100.77", "[2001:db8:77::1]"] {
        let at = format!("{address}:{PORT}");
        let mut agent = Agent::start_with(&lab, &["--metrics", &at]);
        let ip = address.trim_matches(['[', ']']);
        let warned = |agent: &Agent| {
            let warnings = agent.json(&["status"])["warnings"].to_string();
            warnings.contains(&format!("the node has no address {ip} (yet)"))
        };
        assert!(warned(&agent));
        let length = if ip.contains(':') { 128 } else { 32 };
        let added = format!("{ip}/{length}");
        lab.node.ip(&["addr", "add", &added, "dev", "lo", "nodad"]);
        wait_until("the address to be known", SOON, || !warned(&agent));
        scrape(&lab, &at).get("netfw_publishes{}");
        agent.stop();
        lab.node.ip(&["addr", "del", &added, "dev", "lo"]);
    }
}

#[test]
fn a_unix_socket_is_for_root_and_goes_with_the_agent() {
    let lab = Lab::new();
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("m.sock");
    // What somebody left who died.
    drop(UnixListener::bind(&path).expect("free"));
    let address = format!("unix:{}", path.display());
    let mut agent = Agent::start_with(&lab, &["--metrics", &address]);
    let path = path.to_str().expect("UTF-8");
    assert_eq!(
        fs::metadata(path).expect("it is there").mode() & 0o777,
        0o600
    );
    scrape_socket(path).get("netfw_publishes{}");
    agent.kill();
    agent.start_again();
    scrape_socket(path).get("netfw_publishes{}");
    agent.stop();
    assert!(fs::metadata(path).is_err(), "it is gone");
}

#[test]
fn silent_peers_keep_nobody_out_for_long() {
    let lab = Lab::new();
    let address = format!("{NODE}:{PORT}");
    let _agent = Agent::start_with(&lab, &["--metrics", &address]);
    let silent: Vec<_> = (0..40)
        .map(|_| {
            lab.client
                .enter(|| std::net::TcpStream::connect((NODE, PORT)).expect("it listens"))
        })
        .collect();
    drop(silent);
    wait_until("a scrape", SOON, || {
        curl(&lab.client, NODE, PORT, "/metrics").is_some_and(|page| page.ends_with("# EOF\n"))
    });
}
